"""Streaming decoding: codes are decoded in pieces that are joined by a cross-fade.

A codec's waveform at a code depends on neighbouring codes, so each piece is decoded together with
some earlier codes. The output lags behind by a short cross-fade between the last samples of a
piece and the same samples of the next one.
"""

from typing import Protocol

import numpy as np

CONTEXT = 1.0  # seconds of earlier codes that are decoded again with a piece
FADE = 0.010   # seconds of overlap between pieces


class Sounding(Protocol):
  """What a stream needs of a codec (a protocol, since codec.py imports this module)."""
  sample_rate: int
  tokens_per_second: float
  group: int

  def sound(self, codes: np.ndarray) -> np.ndarray:
    """Codes [n] -> float32 [m] at sample_rate."""
    ...


class Stream:
  """The waveform of one utterance, as its codes arrive."""

  def __init__(self, codec: Sounding):
    """``codec`` decodes; pieces end at multiples of its group."""
    self.codec, self.group = codec, codec.group
    self._context = self.group * max(1, round(CONTEXT * codec.tokens_per_second / self.group))
    self._fade = max(1, round(FADE * codec.sample_rate))
    self._before = np.zeros(0, np.int32)   # last codes that were decoded
    self._waiting = np.zeros(0, np.int32)  # codes to decode
    self._tail = np.zeros(0, np.float32)   # decoded samples, not returned yet

  def push(self, codes: np.ndarray) -> np.ndarray:
    """Takes codes [n]; returns the samples float32 [m] that are final now, m >= 0."""
    self._waiting = np.concatenate([self._waiting, np.asarray(codes, np.int32)])
    count = len(self._waiting) // self.group * self.group
    fresh, self._waiting = self._waiting[:count], self._waiting[count:]
    return self._decode(fresh) if len(fresh) else np.zeros(0, np.float32)

  def finish(self) -> np.ndarray:
    """Returns the remaining samples; the object can be used for another utterance."""
    out = self._decode(self._waiting) if len(self._waiting) else np.zeros(0, np.float32)
    out = np.concatenate([out, self._tail])
    self._before, self._waiting = self._before[:0], self._waiting[:0]
    self._tail = self._tail[:0]
    return out

  def _decode(self, fresh: np.ndarray) -> np.ndarray:
    old = len(self._before)
    sound = self.codec.sound(np.concatenate([self._before, fresh]))
    # By samples per code, so that a codec that rounds its last frame up does not shift the rest.
    start = round(len(sound) * old / (old + len(fresh)))
    joined = sound[max(0, start - len(self._tail)):].copy()
    size = min(len(self._tail), start)
    if size:
      ramp = np.linspace(0, 1, size, dtype=np.float32)
      joined[:size] = self._tail[-size:] * (1 - ramp) + joined[:size] * ramp
    self._before = np.concatenate([self._before, fresh])[-self._context:]
    self._tail = joined[-self._fade:]
    return joined[:-self._fade]
