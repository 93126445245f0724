"""The input audio buffer: samples that the client sends, cut into turns by the turn detector."""

import base64
import binascii
from typing import NamedTuple

import numpy as np

from ttt_jax.audio.vad import TurnDetector
from ttt_jax.serve.realtime.events import RATE, Refused, TurnDetection

LEAST = 0.1   # s, of a turn that is committed by hand
_TAIL = 0.1   # s after speech that belong to the turn
_SLACK = 0.3  # s before the padding that are kept: what the detector needs to notice speech


class Edge(NamedTuple):
  """Speech begins or ends.

  Attributes:
    at: in ms since the session began to receive sound.
    samples: int16 [n], the turn, if it ended; None if it begins.
  """
  at: int
  samples: np.ndarray | None = None


class InputAudio:
  """The samples that were not committed yet.

  Attributes:
    speaking: whether the detector hears speech.
  """

  def __init__(self, longest: float):
    """``longest`` is the limit of a turn [s]."""
    self._longest = round(longest * RATE)
    self._samples = np.zeros(0, np.int16)
    self._first = 0                       # number of the first of them since the session began
    self._settings: TurnDetection | None = None
    self._detector: TurnDetector | None = None
    self._offset = 0                      # samples before the detector's first

  def configure(self, settings: TurnDetection | None) -> None:
    """Set or end turn detection; what is in the buffer stays."""
    if settings != self._settings or (settings is None) != (self._detector is None):
      self._settings = settings
      self._reset()

  @property
  def speaking(self) -> bool:
    return self._detector is not None and self._detector.speaking

  @property
  def seconds(self) -> float:
    return len(self._samples) / RATE

  def _reset(self) -> None:
    settings = self._settings
    self._detector = None if settings is None else TurnDetector(
        RATE, settings.threshold, settings.silence_duration_ms / 1000)
    self._offset = self._end

  @property
  def _end(self) -> int:
    return self._first + len(self._samples)

  def append(self, samples: np.ndarray) -> list[Edge]:
    """Add int16 [n]; returns the edges of speech in it.

    Raises:
      Refused: without turn detection, more sound than a turn may have.
    """
    if self._detector is None:
      if len(self._samples) + len(samples) > self._longest:
        raise Refused(f'the input audio buffer holds {self.seconds:.1f} s, and a turn has at most '
                      f'{self._longest / RATE:g} s; commit or clear it.', 'input_audio_too_long',
                      'audio')
      self._samples = np.concatenate([self._samples, samples])
      return []
    out = []
    for at in range(0, len(samples), RATE):  # of one second, so that a turn ends at its limit
      out += self._listen(self._detector, samples[at:at + RATE])
    return out

  def _listen(self, detector: TurnDetector, samples: np.ndarray) -> list[Edge]:
    self._samples = np.concatenate([self._samples, samples])
    padding = self._settings.prefix_padding_ms * RATE // 1000 if self._settings else 0
    out = []
    for begins, at in detector.push(samples.astype(np.float32) / 32768):
      at += self._offset
      if begins:
        self._drop(at - padding)
        out.append(Edge(_ms(self._first)))
      else:
        out.append(Edge(_ms(at), self._take(at + round(_TAIL * RATE))))
    if detector.speaking and len(self._samples) > self._longest:
      out.append(Edge(_ms(self._end), self._take(self._end)))
      self._reset()
    elif not detector.speaking:
      self._drop(self._end - padding - round(_SLACK * RATE))
    return out

  def commit(self) -> np.ndarray:
    """All samples int16 [n]; the buffer is empty afterwards.

    Raises:
      Refused: hardly any.
    """
    if self.seconds < LEAST:
      raise Refused(f'the input audio buffer holds {1000 * self.seconds:.0f} ms; a turn has at '
                    f'least {1000 * LEAST:.0f} ms.', 'input_audio_buffer_commit_empty')
    out = self._take(self._end)
    self._reset()
    return out

  def clear(self) -> None:
    self._drop(self._end)
    self._reset()

  def _take(self, end: int) -> np.ndarray:
    """The samples up to number ``end``, which leave the buffer."""
    out = self._samples[:max(0, end - self._first)]
    self._drop(end)
    return out

  def _drop(self, end: int) -> None:
    count = min(max(0, end - self._first), len(self._samples))
    self._samples, self._first = self._samples[count:], self._first + count


def _ms(samples: int) -> int:
  return samples * 1000 // RATE


def pcm(data: str, name: str) -> np.ndarray:
  """Base64 of little-endian PCM16 -> int16 [n].

  Raises:
    Refused: no base64, or half a sample; the sentence begins with ``name``.
  """
  try:
    raw = base64.b64decode(data, validate=True)
  except (binascii.Error, ValueError) as error:
    raise Refused(f'{name} is no base64 ({error}).', 'invalid_value', name) from error
  if len(raw) % 2:
    raise Refused(f'{name} has {len(raw)} bytes; PCM16 has two bytes per sample.', 'invalid_value',
                  name)
  return np.frombuffer(raw, '<i2')
