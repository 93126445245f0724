"""Codec 2 (700 to 3,200 bits/s, 8 kHz) as a codec: any voice, no fitting.

A frame of Codec 2 has a few dozen bits. Its fields, in stream order, are grouped into codes of 5
to 11 bits, each group with its own range of codes, so that the conversion between codes and
frames is exact:

  700C  40 ms   VQ1 9 | VQ2 9 | energy 4, pitch 6                           3 codes
  1200  40 ms   v1 v2 WoE 8 | v3 v4 WoE 8 | LSP 9 | LSP 9 | LSP 9 | spare   5 codes
  1300  40 ms   v1-4 Wo 7 | E 5 LSP 4 | LSP 4 4 | 4 4 | 4 4 | 3 3 2         6 codes
  3200  20 ms   v1 v2 Wo 7 | E 5 LSP 5 | LSP 5 5 | 5 5 | 5 5 | 5 5 | 5      7 codes

(v: voiced or not; Wo: pitch; E: energy; LSP: line spectral pairs. All but 700C write a
field's number in Gray code. Codes are categories, not quantities, so the bits stay as they are.)
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from ttt_jax.audio import io
from ttt_jax.audio.codec import Codec, check_codes
from ttt_jax.config import CodecConfig
from ttt_jax.errors import UserError

RATE = 8_000
WIDTHS = {'700C': (9, 9, 10), '1200': (10, 10, 9, 9, 9), '1300': (11, 9, 8, 8, 8, 8),
          '3200': (9, 10, 10, 10, 10, 10, 5)}  # bits of each code of a frame
_BITS = {'700C': 28, '1200': 48, '1300': 52, '3200': 64}
_SAMPLES = {'700C': 320, '1200': 320, '1300': 320, '3200': 160}
_PEAK = 0.7  # peak that speech is scaled to: Codec 2 quantizes absolute energies


def _widths(mode: str) -> tuple[int, ...]:
  if mode not in WIDTHS:
    raise UserError(f'config key codec.mode is {mode!r}; use one of {", ".join(WIDTHS)}.')
  return WIDTHS[mode]


class Codec2(Codec):
  """One mode of Codec 2."""

  sample_rate = RATE

  def __init__(self, mode: str):
    """
    Args:
      mode: '700C', '1200', '1300' or '3200' bits/s.

    Raises:
      UserError: another mode, or pycodec2 is not installed.
    """
    self.widths = _widths(mode)
    self.mode = mode
    self._coder()
    self.name = f'codec2-{mode}'
    self.group = len(self.widths)
    sizes = [1 << width for width in self.widths]
    self.offsets = np.cumsum([0] + sizes[:-1])  # first code of each of a frame's slots
    self.codebook_size = sum(sizes)
    self.tokens_per_second = len(sizes) * RATE / _SAMPLES[mode]

  @classmethod
  def planned_codebook_size(cls, config: CodecConfig) -> int:
    return sum(1 << width for width in _widths(config.mode))

  @classmethod
  def create(cls, config: CodecConfig,
             recordings: Iterable[tuple[np.ndarray, int]] = ()) -> 'Codec2':
    """Codec 2 in config.mode; it needs no recordings."""
    return cls(config.mode)

  def encode(self, waveform: np.ndarray, rate: int) -> np.ndarray:
    io.check(waveform, rate, 'a recording')
    waveform = io.resample(waveform, rate, RATE)
    io.check(waveform, RATE, 'a recording')  # all of its energy may be above 4 kHz
    size = _SAMPLES[self.mode]
    samples = np.pad(waveform * (_PEAK * 32767 / np.abs(waveform).max()),
                     (0, -len(waveform) % size))
    coder = self._coder()  # it has a state, so each utterance has its own
    frames = [coder.encode(frame) for frame in samples.astype(np.int16).reshape(-1, size)]
    return self.codes_of(b''.join(frames))

  def decode(self, codes: np.ndarray) -> np.ndarray:
    """As in Codec; 8 kHz. The phase of noise-like sounds is drawn anew at each call.

    A code outside its slot's range, or missing in an incomplete last frame, is replaced by that
    of the frame before (in the first frame, by the first code of the range).
    """
    codes = check_codes(codes, self)
    slots = len(self.widths)
    grid = np.pad(codes, (0, -len(codes) % slots), constant_values=-1).reshape(-1, slots)
    fields = grid - self.offsets
    good = (grid >= 0) & (fields >= 0) & (fields < 1 << np.array(self.widths))
    last = np.maximum.accumulate(np.where(good, np.arange(1, len(grid) + 1)[:, None], 0), axis=0)
    fields = np.concatenate([np.zeros((1, slots), np.int64), fields])
    fields = np.take_along_axis(fields, last, axis=0)
    packed = self.frames_of((fields + self.offsets).reshape(-1))
    size = -(-_BITS[self.mode] // 8)
    coder = self._coder()
    out = [coder.decode(packed[i:i + size]) for i in range(0, len(packed), size)]
    return np.concatenate([np.zeros(0, np.int16), *out]).astype(np.float32) / 32768

  def codes_of(self, frames: bytes) -> np.ndarray:
    """Complete frames as packed by Codec 2 -> codes int32 [n]."""
    size = -(-_BITS[self.mode] // 8)
    assert len(frames) % size == 0
    bits = np.unpackbits(np.frombuffer(frames, np.uint8).reshape(-1, size), axis=1)
    codes, at = [], 0
    for width, offset in zip(self.widths, self.offsets):
      codes.append(bits[:, at:at + width] @ (1 << np.arange(width)[::-1]) + offset)
      at += width
    return np.stack(codes, axis=1).reshape(-1).astype(np.int32)

  def frames_of(self, codes: np.ndarray) -> bytes:
    """The inverse of codes_of, for complete frames of codes in their slots; spare bits are 0."""
    fields = np.asarray(codes, np.int64).reshape(-1, len(self.widths)) - self.offsets
    bits = np.zeros((len(fields), -(-_BITS[self.mode] // 8) * 8), np.uint8)
    at = 0
    for i, width in enumerate(self.widths):
      bits[:, at:at + width] = fields[:, i:i + 1] >> np.arange(width)[::-1] & 1
      at += width
    return np.packbits(bits, axis=1).tobytes()

  def settings(self) -> dict[str, Any]:
    return {'mode': self.mode}

  def _coder(self):
    """A fresh object with encode(int16 [samples of a frame]) and decode(bytes of a frame)."""
    try:
      import pycodec2
    except ImportError as error:
      raise UserError("config key codec.name is 'codec2', which needs the package pycodec2 "
                      "(extra 'demo'); install it or use the codec 'mel'.") from error
    return pycodec2.Codec2(  # pyright: ignore[reportAttributeAccessIssue]  a compiled module
        700 if self.mode == '700C' else int(self.mode))
