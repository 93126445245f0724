"""Resampling of a waveform that arrives in pieces."""

import math

import numpy as np

from ttt_jax.audio import io

_HALF = 10     # taps on each side, per output phase, as in scipy.signal.resample_poly
_KAISER = 5.0  # shape of its window


class Resampler:
  """A stream of samples at one rate to the same stream at another.

  The pieces of the output, joined, are what ``io.resample`` gives for the joined input, whatever
  the sizes of the pieces. The output lags behind by 10 samples of the lower rate.
  """

  def __init__(self, rate: int, target: int):
    """
    Args:
      rate, target: in Hz.

    Raises:
      UserError: a rate out of range (io.check_rate).
    """
    import scipy.signal
    io.check_rate(rate, 'a stream')
    io.check_rate(target, 'a stream')
    common = math.gcd(int(rate), int(target))
    self._up, self._down = int(target) // common, int(rate) // common
    widest = max(self._up, self._down)
    self._half = _HALF * widest if widest > 1 else 0
    taps = np.ones(1)
    if widest > 1:
      taps = scipy.signal.firwin(
          2 * self._half + 1, 1 / widest,
          window=('kaiser', _KAISER))  # pyright: ignore[reportArgumentType]
    # Row p holds the taps that meet the input at outputs of phase p.
    taps = np.pad(taps * self._up, (0, -len(taps) % self._up))
    self._taps = taps.reshape(-1, self._up).T.astype(np.float32)
    self.reset()

  def reset(self) -> None:
    """Begin another stream."""
    width = self._taps.shape[1]
    self._samples = np.zeros(width - 1, np.float32)  # input that is still needed
    self._first = 1 - width                          # number of its first sample
    self._made = 0                                   # samples of output

  def push(self, waveform: np.ndarray) -> np.ndarray:
    """Takes float32 [n] in [-1, 1]; returns the samples float32 [m] that are final now, m >= 0."""
    self._samples = np.concatenate([self._samples, np.asarray(waveform, np.float32)])
    # Output i needs the input up to number (i * down + half) // up.
    seen = self._first + len(self._samples)
    return self._until(max(0, (seen * self._up - self._half - 1) // self._down + 1))

  def finish(self) -> np.ndarray:
    """Returns the remaining samples; the object can be used for another stream."""
    seen = self._first + len(self._samples)
    self._samples = np.pad(self._samples, (0, self._half // self._up + 1))
    out = self._until(-(-seen * self._up // self._down))
    self.reset()
    return out

  def _until(self, end: int) -> np.ndarray:
    """Outputs from the first that was not made to number ``end``."""
    if end <= self._made:
      return np.zeros(0, np.float32)
    centre = np.arange(self._made, end) * self._down + self._half
    last, phase = np.divmod(centre, self._up)
    width = self._taps.shape[1]
    # The input from newest to oldest, as the taps want it.
    windows = np.lib.stride_tricks.sliding_window_view(self._samples, width)[:, ::-1]
    out = np.einsum('nk,nk->n', windows[last - width + 1 - self._first], self._taps[phase])
    self._made = end
    spent = (end * self._down + self._half) // self._up - width + 1 - self._first
    spent = min(max(spent, 0), len(self._samples) - width + 1)
    self._samples, self._first = self._samples[spent:], self._first + spent
    return out
