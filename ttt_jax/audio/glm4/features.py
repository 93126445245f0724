"""Input features of the tokenizer's encoder: 16 kHz, segments of 30 s, log-mel frames.

Features depend on one recording only: each segment is padded to a multiple of PATCH samples,
never to the length of others in its batch, since the reflection at its end and the floor relative
to its loudest bin depend on the padding.
"""

import functools
import math

import numpy as np
import scipy.fft
import scipy.signal

RATE = 16_000
WINDOW, HOP = 400, 160            # samples of a frame, and between frames
PATCH = 1_280                     # samples per token: hop 160 x stride 2 x 4 frames
FRAMES = PATCH // HOP             # log-mel frames per token
RANGE = 8.0                       # decades of power from a segment's loudest bin to the floor
_LOBES, _ROLLOFF = 6, 0.99        # of the resampling filter


def resample(waveform: np.ndarray, rate: int) -> np.ndarray:
  """float32 [N] at `rate` Hz -> float32 [ceil(N 16000 / rate)] at 16 kHz.

  The windowed sinc of torchaudio's default Resample (Hann, 6 zero crossings per side, cut-off at
  0.99 of the lower Nyquist rate), as in the published code. Another filter changes some tokens.
  """
  waveform = np.asarray(waveform, np.float32)
  if rate == RATE or not waveform.size:
    return waveform
  common = math.gcd(int(rate), RATE)
  down, up = int(rate) // common, RATE // common
  taps = _sinc(down, up)
  half = len(taps) // 2
  lead = -half % down  # zeros that align the filter's centre with an output sample
  out = scipy.signal.upfirdn(np.concatenate([np.zeros(lead, np.float32), taps]), waveform,
                             up, down)
  start, count = (half + lead) // down, -(-len(waveform) * up // down)
  out = out[start:start + count]
  return np.pad(out, (0, count - len(out)))


@functools.lru_cache(maxsize=8)
def _sinc(down: int, up: int) -> np.ndarray:
  """float32 [2h + 1]: the filter, centred, sampled at `up` times the input rate."""
  base = min(down, up) * _ROLLOFF
  half = math.floor(_LOBES * down * up / base)
  time = np.arange(-half, half + 1) / (down * up) * base  # in zero crossings
  window = np.cos(np.clip(time, -_LOBES, _LOBES) * np.pi / _LOBES / 2) ** 2
  return (np.sinc(time) * window * base / down).astype(np.float32)


def segments(waveform: np.ndarray, longest: int) -> list[np.ndarray]:
  """float32 [N] at 16 kHz -> consecutive segments of `longest` tokens (375 = 30 s), the last one
  shorter; each is encoded on its own."""
  size = longest * PATCH
  return [waveform[start:start + size] for start in range(0, len(waveform), size)]


def tokens(samples: int) -> int:
  """Number of tokens of a segment of `samples` samples."""
  return -(-samples // PATCH)


def log_mel(segment: np.ndarray, mels: int = 128) -> np.ndarray:
  """float32 [n], n >= 1 -> float32 [8 x tokens(n), mels]; the last token is zero-padded.

  As in Whisper, but computed in float64: log10 of mel powers, floored RANGE decades below the
  segment's maximum, then (x + 4) / 4.
  """
  padded = np.pad(np.asarray(segment, np.float64), (0, -len(segment) % PATCH))
  padded = np.pad(padded, WINDOW // 2, mode='reflect')
  frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][:-1]
  hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
  spectrum = np.asarray(scipy.fft.rfft(frames * hann, axis=1), np.complex128)
  power = spectrum.real ** 2 + spectrum.imag ** 2
  log = np.log10(np.maximum(power @ mel_matrix(mels), 1e-10))
  return ((np.maximum(log, log.max() - RANGE) + 4) / 4).astype(np.float32)


@functools.lru_cache(maxsize=4)
def mel_matrix(mels: int) -> np.ndarray:
  """float64 [201, mels]: triangles of area one, 0 to 8 kHz, evenly spaced on Slaney's scale:
  linear up to 1 kHz, 27 steps per factor 6.4 above (Auditory Toolbox, 1998)."""
  step, knee = 200 / 3, 15.0  # Hz per mel below the knee, which is 1 kHz
  ratio = 6.4 ** (1 / 27)
  highest = knee + math.log(RATE / 2 / 1000, ratio)
  mel = np.linspace(0, highest, mels + 2)
  hertz = np.where(mel < knee, mel * step, 1000 * ratio ** (mel - knee))
  bins = np.linspace(0, RATE / 2, WINDOW // 2 + 1)[:, None]
  low, centre, high = hertz[:-2], hertz[1:-1], hertz[2:]
  rising, falling = (bins - low) / (centre - low), (high - bins) / (high - centre)
  return np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)
