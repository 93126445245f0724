"""Codes to waveforms, for the codecs that an exported directory carries.

  codec.json   kind and settings; kinds: 'mel' and 'codec2'
  codec.npz    the codebooks of 'mel'

'mel' is residual k-means over log-mel patches, decoded by Griffin-Lim; 'codec2' needs the package
pycodec2. Any other codec is given to ``generate_speech``: an object with ``sample_rate`` in Hz and
``decode(codes) -> samples`` in [-1, 1].

Part of ttt_jax (Apache-2.0); this file needs only numpy.
"""

from collections.abc import Callable
import importlib
import json
from typing import Any

import numpy as np

FILES = ('codec.json', 'codec.npz')
_RATE = 22_050
_WINDOW, _HOP, _MELS, _HIGHEST = 1024, 256, 80, 8000  # samples, samples, bins, Hz
_PAD = (_WINDOW - _HOP) // 2
_FLOOR = -float(np.log(1000))  # 60 dB below the loudest bin, in nats of magnitude
_STEPS = 32                    # of Griffin-Lim


def load(find: Callable[[str], str | None], name: str) -> Any:
  """The codec of a directory: an object with ``sample_rate`` and ``decode``.

  Args:
    find: name of a file -> its path, or None if the directory lacks it.
    name: of the codec, for messages.

  Raises:
    ValueError: damaged files.
  """
  path = find(FILES[0])
  if path is None:
    return _Missing(name)
  try:
    with open(path, encoding='utf-8') as file:
      saved = json.load(file)
    kind, settings = saved['kind'], saved['settings']
    if kind == 'codec2':
      return Codec2(settings['mode'])
    arrays = find(FILES[1]) if kind == 'mel' else None
    if arrays is None:
      return _Missing(name)
    with np.load(arrays, allow_pickle=False) as file:
      return Mel(file['books'], settings['frames'], settings['level'])
  except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
    raise ValueError(f'the codec beside {path} cannot be read ({error!r}); restore codec.json and '
                     'codec.npz of one export.') from error


class _Missing:
  """A codec that the directory does not carry."""

  sample_rate = 0

  def __init__(self, name: str):
    self.name = name

  def decode(self, codes: np.ndarray) -> np.ndarray:
    raise ValueError(
        f'the codec of this model ({self.name}) is not part of its directory; give its decoder as '
        'generate_speech(..., codec=C), an object with C.sample_rate in Hz and C.decode(codes) -> '
        'samples in [-1, 1], or use Answer.codes.')


def _checked(codes: Any, size: int) -> np.ndarray:
  codes = np.asarray(codes, np.int64).reshape(-1)
  bad = codes[(codes < 0) | (codes >= size)]
  if bad.size:
    raise ValueError(f'audio code {int(bad[0])} is outside the codebook (0..{size - 1}).')
  return codes


# -- mel ------------------------------------------------------------------------------------


class Mel:
  """A patch has one code of each codebook, in order; code c of codebook b is b * codes + c."""

  sample_rate = _RATE

  def __init__(self, books: np.ndarray, frames: int, level: float):
    """Args:
      books: [codebooks, codes, frames * 80], log magnitudes in nats.
      frames: per patch, of 256 samples each.
      level: nats added to them.
    """
    self._books = np.asarray(books, np.float16).astype(np.float32)
    self._frames, self._level = int(frames), float(np.float32(level))

  def decode(self, codes: Any) -> np.ndarray:
    """Codes [n] -> float32 [m]. A code that is missing, or in another codebook's slot, counts as
    code 0: silence, or the zero vector."""
    count, each, _ = self._books.shape
    codes = _checked(codes, count * each)
    if not codes.size:
      return np.zeros(0, np.float32)
    slots = np.pad(codes, (0, -len(codes) % count), constant_values=-1)
    slots = slots.reshape(-1, count) - np.arange(count) * each
    slots = np.where((slots >= 0) & (slots < each), slots, 0)
    patches = np.asarray(sum(book[slots[:, i]] for i, book in enumerate(self._books)))
    mel = np.clip(patches, _FLOOR, 0).reshape(-1, _MELS)
    audible = mel > _FLOOR + 0.01
    magnitude = np.where(audible, np.exp(mel + self._level), 0).astype(np.float32)
    return np.clip(_griffin_lim(_to_linear(magnitude)), -1, 1)


def _mel_matrix() -> np.ndarray:
  """[80, 513]: triangles evenly spaced on the mel scale, each of area one."""
  highest = 2595 * np.log10(1 + _HIGHEST / 700)
  points = 700 * (10 ** (np.linspace(0, highest, _MELS + 2) / 2595) - 1)
  bins = np.fft.rfftfreq(_WINDOW, 1 / _RATE)
  low, centre, high = (points[i:i + _MELS, None] for i in range(3))
  rising, falling = (bins - low) / (centre - low), (high - bins) / (high - centre)
  return (np.clip(np.minimum(rising, falling), 0, None) * 2 / (high - low)).astype(np.float32)


_HANN = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)).astype(np.float32)
_MEL = _mel_matrix()


def _to_linear(mel: np.ndarray) -> np.ndarray:
  """Mel magnitudes [F, 80] -> non-negative magnitudes [F, 513] with that mel."""
  target = mel @ _MEL
  linear, gram = target.copy(), _MEL.T @ _MEL
  for _ in range(12):
    linear *= target / np.maximum(linear @ gram, 1e-10)
  return linear


def _stft(waveform: np.ndarray) -> np.ndarray:
  frames = np.lib.stride_tricks.sliding_window_view(np.pad(waveform, _PAD), _WINDOW)[::_HOP]
  return np.fft.rfft(frames * _HANN, axis=1).astype(np.complex64)


def _istft(spectrum: np.ndarray) -> np.ndarray:
  """complex64 [F, 513] -> float32 [F * 256], the least-squares inverse of _stft."""
  frames = np.fft.irfft(spectrum, _WINDOW, axis=1) * _HANN
  count, pieces = len(frames), _WINDOW // _HOP
  total, weight = np.zeros((2, count + pieces - 1, _HOP))
  for i in range(pieces):
    part = slice(i * _HOP, (i + 1) * _HOP)
    total[i:i + count] += frames[:, part]
    weight[i:i + count] += _HANN[part] ** 2
  joined = (total / np.maximum(weight, 1e-8)).reshape(-1)
  return joined[_PAD:_PAD + count * _HOP].astype(np.float32)


def _griffin_lim(magnitude: np.ndarray) -> np.ndarray:
  """Magnitudes [F, 513] -> float32 [F * 256] (fast Griffin-Lim, Perraudin et al. 2013)."""
  phase = np.random.default_rng(0).random(magnitude.shape)
  angles = np.exp(2j * np.pi * phase).astype(np.complex64)
  before = np.zeros_like(angles)
  for _ in range(_STEPS):
    after = _stft(_istft(magnitude * angles))
    angles = after + 0.9 * (after - before)
    angles /= np.maximum(np.abs(angles), 1e-12)
    before = after
  return _istft(magnitude * angles)


# -- Codec 2 --------------------------------------------------------------------------------

# Bits of each code of a frame, bits of a frame in the stream, and the codec's mode.
_MODES = {'700C': ((9, 9, 10), 28, 700), '1200': ((10, 10, 9, 9, 9), 48, 1200),
          '1300': ((11, 9, 8, 8, 8, 8), 52, 1300),
          '3200': ((9, 10, 10, 10, 10, 10, 5), 64, 3200)}


class Codec2:
  """Codec 2 at 700 to 3,200 bits/s: the fields of a frame, in stream order, are grouped into codes,
  and each slot has its own range of codes."""

  sample_rate = 8_000

  def __init__(self, mode: str):
    self._widths, self._bits, self._rate = _MODES[mode]
    self._offsets = np.cumsum([0, *(1 << width for width in self._widths)])

  def frames(self, codes: Any) -> bytes:
    """The packed frames. A code outside its slot's range, or missing in the last frame, is that of
    the frame before; in the first frame, the first of the range."""
    codes, slots = _checked(codes, int(self._offsets[-1])), len(self._widths)
    grid = np.pad(codes, (0, -len(codes) % slots), constant_values=-1).reshape(-1, slots)
    fields = grid - self._offsets[:-1]
    good = (grid >= 0) & (fields >= 0) & (fields < 1 << np.array(self._widths))
    last = np.maximum.accumulate(np.where(good, np.arange(1, len(grid) + 1)[:, None], 0), axis=0)
    fields = np.take_along_axis(np.concatenate([np.zeros((1, slots), np.int64), fields]), last, 0)
    bits, at = np.zeros((len(fields), -(-self._bits // 8) * 8), np.uint8), 0
    for slot, width in enumerate(self._widths):
      bits[:, at:at + width] = fields[:, slot:slot + 1] >> np.arange(width)[::-1] & 1
      at += width
    return np.packbits(bits, axis=1).tobytes()

  def decode(self, codes: Any) -> np.ndarray:
    """Codes [n] -> float32 [m]. The phase of noise-like sounds is drawn anew at each call."""
    try:  # by name, since transformers refuses code whose imports are not installed
      package = importlib.import_module('pycodec2')
    except ImportError as error:
      raise ValueError('waveforms of Codec 2 need the package pycodec2; install it, or use '
                       'Answer.codes.') from error
    coder, packed, size = package.Codec2(self._rate), self.frames(codes), -(-self._bits // 8)
    out = [coder.decode(packed[i:i + size]) for i in range(0, len(packed), size)]
    return np.concatenate([np.zeros(0, np.int16), *out]).astype(np.float32) / 32768
