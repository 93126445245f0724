"""Turn detection: where speech begins and ends in a stream of samples.

WebRTC's voice activity detector says for every 20 ms whether they may hold speech. Speech has begun
when enough of the last frames do, and has ended after some time without it. The detector adapts to
stationary noise; a frame below QUIET is never speech.
"""

import collections
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ttt_jax.audio.resampling import Resampler
from ttt_jax.errors import UserError

RATE = 16_000       # Hz, of the detector
FRAME = 320         # samples at RATE: 20 ms
_WINDOW = 8         # frames that decide about a beginning: 160 ms
_CERTAIN = 3        # frames that decide whether speech goes on
_WARM = 8           # first frames of a stream, in which the detector takes noise for speech
_STRICTNESS = 2     # of WebRTC's detector, 0 to 3
QUIET = 10 ** (-60 / 20)  # root mean square of a frame, of full scale: -60 dB


class Edge(NamedTuple):
  """Where speech begins or ends.

  Attributes:
    begins: True for a beginning, False for an end.
    at: of the sample in the stream [samples].
  """
  begins: bool
  at: int


class TurnDetector:
  """The edges of speech in one stream.

  Attributes:
    speaking: whether the stream is inside speech.
  """

  def __init__(self, rate: int, threshold: float = 0.5, silence: float = 0.5):
    """
    Args:
      rate: of the stream, in Hz.
      threshold: share of the last 160 ms that must be speech for a beginning, 0 to 1; at least one
        frame.
      silence: time without speech after which it has ended [s].

    Raises:
      UserError: webrtcvad is not installed, or the rate is out of range.
    """
    try:
      import webrtcvad
    except ImportError as error:
      raise UserError("turn detection needs the package webrtcvad-wheels (extra 'serve'); install "
                      'it, or set turn_detection to null.') from error
    self._detector = webrtcvad.Vad(_STRICTNESS)
    self._rate, self._silence = rate, silence
    self._needed = max(1, round(threshold * _WINDOW))
    self._stream = Resampler(rate, RATE)
    self._pending = np.zeros(0, np.float32)
    self._frames = 0                                       # heard so far
    self._recent = collections.deque(maxlen=_WINDOW)       # whether the last frames are speech
    self._last = 0                                         # end of the last speech [frames]
    self.speaking = False

  def push(self, waveform: np.ndarray) -> list[Edge]:
    """The edges that float32 [n] in [-1, 1] adds, in order."""
    self._pending = np.concatenate([self._pending, self._stream.push(waveform)])
    count = len(self._pending) // FRAME
    frames = self._pending[:count * FRAME].reshape(count, FRAME)
    self._pending = self._pending[count * FRAME:]
    return [edge for frame in frames for edge in self._frame(frame)]

  def _frame(self, frame: np.ndarray) -> Iterator[Edge]:
    samples = (np.clip(frame, -1, 1) * 32767).astype('<i2').tobytes()
    loud = float(np.sqrt(np.mean(np.square(frame)))) >= QUIET
    # The detector hears every frame: it adapts to what is not speech.
    heard = self._detector.is_speech(samples, RATE) and loud
    self._recent.append(heard and self._frames >= _WARM)
    self._frames += 1
    recent = list(self._recent)
    if not self.speaking:
      if sum(recent) >= self._needed:
        self.speaking, self._last = True, self._frames
        first = self._frames - len(recent) + recent.index(True)
        yield Edge(True, self._sample(first))
      return
    # A single frame may be a click.
    if recent[-1] and sum(recent[-_CERTAIN:]) > _CERTAIN // 2:
      self._last = self._frames
    elif (self._frames - self._last) * FRAME >= self._silence * RATE:
      self.speaking = False
      self._recent.clear()
      yield Edge(False, self._sample(self._last))

  def _sample(self, frame: int) -> int:
    return frame * FRAME * self._rate // RATE
