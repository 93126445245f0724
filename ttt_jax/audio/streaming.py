"""Sound while codes are still coming: decode in pieces, join them without a click.

A codec's waveform at a code depends on the codes around it, so each piece is decoded with
a few codes before it that were decoded already. What is handed out lags behind by a short
fade, in which the old piece's last samples give way to the new piece's.
"""

from typing import Protocol

import numpy as np

CONTEXT = 1.0  # seconds of codes that are decoded again before a piece
FADE = 0.010   # seconds of overlap between pieces


class Sounding(Protocol):
  """What a stream needs of a codec (codec.py, which imports this module)."""
  sample_rate: int
  tokens_per_second: float
  group: int

  def sound(self, codes: np.ndarray) -> np.ndarray:
    """Codes [n] -> float32 [m] at sample_rate."""


class Stream:
  """One utterance's waveform, as its codes arrive."""

  def __init__(self, codec: Sounding):
    """Pieces are whole groups of the codec's."""
    self.codec, self.group = codec, codec.group
    self._context = self.group * max(1, round(CONTEXT * codec.tokens_per_second / self.group))
    self._fade = max(1, round(FADE * codec.sample_rate))
    self._before = np.zeros(0, np.int32)   # codes decoded, the last ones
    self._waiting = np.zeros(0, np.int32)  # codes to decode
    self._tail = np.zeros(0, np.float32)   # samples decoded, not handed out

  def push(self, codes: np.ndarray) -> np.ndarray:
    """Take codes [n]; the samples float32 [m] that they make final, maybe none."""
    self._waiting = np.concatenate([self._waiting, np.asarray(codes, np.int32)])
    whole = len(self._waiting) // self.group * self.group
    fresh, self._waiting = self._waiting[:whole], self._waiting[whole:]
    return self._decode(fresh) if len(fresh) else np.zeros(0, np.float32)

  def finish(self) -> np.ndarray:
    """The rest."""
    out = self._decode(self._waiting) if len(self._waiting) else np.zeros(0, np.float32)
    out = np.concatenate([out, self._tail])
    self._before, self._waiting = self._before[:0], self._waiting[:0]
    self._tail = self._tail[:0]
    return out

  def _decode(self, fresh: np.ndarray) -> np.ndarray:
    old = len(self._before)
    sound = self.codec.sound(np.concatenate([self._before, fresh]))
    # Samples per code, so that a codec that rounds its last frame up cannot shift the rest.
    start = round(len(sound) * old / (old + len(fresh)))
    joined = sound[max(0, start - len(self._tail)):].copy()
    size = min(len(self._tail), start)
    if size:
      ramp = np.linspace(0, 1, size, dtype=np.float32)
      joined[:size] = self._tail[-size:] * (1 - ramp) + joined[:size] * ramp
    self._before = np.concatenate([self._before, fresh])[-self._context:]
    self._tail = joined[-self._fade:]
    return joined[:-self._fade]
