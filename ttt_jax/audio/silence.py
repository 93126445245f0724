"""Silence at the ends of recordings."""

import numpy as np

_FRAME = 0.02  # s
_BELOW = 0.01  # a frame is silent 40 dB below the loudest one


def trimmed(waveform: np.ndarray, rate: int, margin: float) -> np.ndarray:
  """A recording with at most ``margin`` seconds of silence at each end.

  A frame of 20 ms is silent if its energy is 40 dB below that of the loudest one; so steady noise
  is silent only if it is that much below the speech.

  Args:
    waveform: float32 [N].
    rate: Hz.
    margin: s.

  Returns:
    float32 [M], a part of ``waveform``; all of it where nothing is silent or everything is zero.
  """
  size = max(1, round(_FRAME * rate))
  padded = np.pad(waveform, (0, -len(waveform) % size)).reshape(-1, size)
  level = np.sqrt(np.mean(np.square(padded, dtype=np.float64), axis=1))
  loud = np.flatnonzero(level > _BELOW * level.max(initial=0.0))
  if not loud.size:
    return waveform
  keep = round(margin * rate)
  return waveform[max(0, loud[0] * size - keep):(loud[-1] + 1) * size + keep]
