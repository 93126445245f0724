"""Codec 'mel', fitted to its corpus: residual k-means over patches of log-mel frames.

  waveform --STFT, mel, log--> frames [F, 80] --> patches [P, frames x 80] --> codes
  codes --> sum of codewords --> mel --> linear magnitude --Griffin-Lim--> waveform

Two details matter for intelligibility. The log-mel of a recording is relative to its own
loudest bin, so that codes do not encode loudness; and it is floored 60 dB below that, so that they
do not encode differences between almost silent frames. Code 0 of the first codebook is silence,
and code 0 of every further codebook is the zero vector.

With several codebooks, a patch has one code of each, in order; code c of codebook b has the
number b * codes + c.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import numpy as np

from ttt_jax.audio import io
from ttt_jax.audio.codec import Codec, check_codes
from ttt_jax.audio.kmeans import fit_codebook, nearest
from ttt_jax.audio.streaming import Stream
from ttt_jax.config import CodecConfig
from ttt_jax.errors import UserError
from ttt_jax.storage import schema

RATE = 22_050
WINDOW, HOP, MELS, HIGHEST = 1024, 256, 80, 8000  # samples, samples, bins, Hz
FLOOR = -float(np.log(1000))    # 60 dB below the loudest bin, in nats of magnitude
SILENT = FLOOR + 0.5            # a patch is silent if no bin is above this
FIT_MINUTES = 60                # of speech; more hardly changes the codebook
GRIFFIN_LIM_STEPS = 32


def _mel_matrix() -> np.ndarray:
  """Triangles [MELS, WINDOW//2+1], evenly spaced on the mel scale, each of area one."""
  def mel(hertz):
    return 2595 * np.log10(1 + hertz / 700)
  points = 700 * (10 ** (np.linspace(0, mel(HIGHEST), MELS + 2) / 2595) - 1)
  bins = np.fft.rfftfreq(WINDOW, 1 / RATE)
  low, centre, high = (points[i:i + MELS, None] for i in range(3))
  triangles = np.clip(np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)),
                      0, None)
  return (triangles * 2 / (high - low)).astype(np.float32)


_HANN = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)).astype(np.float32)
_MEL = _mel_matrix()
_PAD = (WINDOW - HOP) // 2  # frame i is centred on its own HOP samples


def _stft(waveform: np.ndarray, fft: Callable[..., Any] = np.fft.rfft) -> np.ndarray:
  """float32 [F * HOP] -> complex64 [F, WINDOW//2+1]; ``fft``: NumPy's or SciPy's."""
  padded = np.pad(waveform, _PAD)
  frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
  return fft(frames * _HANN, axis=1).astype(np.complex64, copy=False)


def _istft(spectrum: np.ndarray) -> np.ndarray:
  """complex64 [F, WINDOW//2+1] -> float32 [F * HOP]; the least-squares inverse of _stft."""
  import scipy.fft
  frames = np.asarray(scipy.fft.irfft(spectrum, WINDOW, axis=1)) * _HANN
  count, pieces = len(frames), WINDOW // HOP
  total, weight = np.zeros((2, count + pieces - 1, HOP), np.float32)
  for i in range(pieces):  # WINDOW is a multiple of HOP
    part = slice(i * HOP, (i + 1) * HOP)
    total[i:i + count] += frames[:, part]
    weight[i:i + count] += _HANN[part] ** 2
  total /= np.maximum(weight, 1e-8, out=weight)
  return total.reshape(-1)[_PAD:_PAD + count * HOP]


def log_mel(waveform: np.ndarray, multiple: int = 1) -> tuple[np.ndarray, float]:
  """float32 [N] at RATE -> (float32 [F, MELS] in [FLOOR, 0], its level in nats).

  F is a multiple of `multiple`. The level is that of the loudest bin when the waveform's
  peak is 1; exp(log_mel + level) is the mel magnitude.
  """
  waveform = waveform / np.abs(waveform).max()
  waveform = np.pad(waveform, (0, -len(waveform) % (HOP * multiple)))
  mel = np.log(np.maximum(np.abs(_stft(waveform)) @ _MEL.T, 1e-9))
  level = float(mel.max())
  return np.maximum(mel - level, FLOOR).astype(np.float32), level


def _to_linear(mel: np.ndarray) -> np.ndarray:
  """Mel magnitude [F, MELS] -> a non-negative magnitude [F, WINDOW//2+1] with that mel."""
  target = mel @ _MEL
  linear = target.copy()
  gram = _MEL.T @ _MEL
  for _ in range(12):  # multiplicative updates stay non-negative
    linear *= target / np.maximum(linear @ gram, 1e-10)
  return linear


def _griffin_lim(magnitude: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
  """Magnitude [F, WINDOW//2+1] -> complex64 [F, WINDOW//2+1], a spectrum that has it (fast
  Griffin-Lim, Perraudin et al. 2013).

  SciPy's transforms of float32 are several times faster than NumPy's; the analysis of recordings
  keeps NumPy's, so that their codes stay the same.

  Args:
    magnitude: float32.
    known: complex64 [K, WINDOW//2+1], the spectrum of the frames before, which stays as it is: the
      phases of the others are found so that they continue it.
  """
  import scipy.fft
  draw = np.random.default_rng(0)
  angles = np.exp(2j * np.pi * draw.random(magnitude.shape)).astype(np.complex64)
  before = np.zeros_like(angles)
  held = np.zeros((0, magnitude.shape[1]), np.complex64) if known is None else known
  spectrum = np.concatenate([held, angles])
  for _ in range(GRIFFIN_LIM_STEPS):
    np.multiply(magnitude, angles, out=spectrum[len(held):])
    after = _stft(_istft(spectrum), scipy.fft.rfft)[len(held):]
    # Momentum 0.9 converges faster: after + 0.9 (after - before).
    angles = np.multiply(before, -0.9, out=before)
    angles += 1.9 * after
    angles *= 1 / np.maximum(np.abs(angles), 1e-12)
    before = after
  return magnitude * angles


class MelSettings(schema.Kind):
  """The settings of a mel codec in codec.json."""
  frames: Annotated[int, schema.Range(1, 1024)]
  level: Annotated[float, schema.Range(-40, 40)]


class MelCodec(Codec):
  """Residual k-means over log-mel patches; see the module's docstring."""

  sample_rate = RATE

  def __init__(self, books: np.ndarray, frames: int, level: float):
    """
    Args:
      books: [codebooks, codes, frames * MELS], nats; stored as float16.
      frames: frames per patch.
      level: nats added in decoding, so that the peak is near 1.
    """
    self.frames, self.level = int(frames), float(np.float32(level))
    if books.ndim != 3 or not books.size or not np.issubdtype(books.dtype, np.floating):
      raise UserError(f'the books of a mel codec are {books.dtype} {list(books.shape)}; they must '
                      'be floating-point numbers [codebooks, codes, frames x bins].')
    with np.errstate(over='ignore'):  # too large numbers become infinite
      self.books = books.astype(np.float16)
    self.codebooks, self.codes, size = self.books.shape
    if size != self.frames * MELS or not np.isfinite(self.books).all():
      raise UserError(f'a mel codebook of {self.frames} frames needs {self.frames * MELS} finite '
                      f'numbers per code, not {size}.')
    self.codebook_size = self.codebooks * self.codes
    self.group = self.codebooks
    self.tokens_per_second = RATE / (HOP * self.frames) * self.codebooks
    digest = hashlib.sha256(self.books.astype('<f2').tobytes())
    digest.update(f'{self.frames} {self.level:.6e}'.encode())
    self.name = f'mel-{self.codebooks}x{self.codes}x{self.frames}-{digest.hexdigest()[:8]}'
    self._books = self.books.astype(np.float32)
    self.silence = tuple(range(0, self.codebook_size, self.codes))

  @classmethod
  def planned_codebook_size(cls, config: CodecConfig) -> int:
    return config.codebooks * config.codes

  @classmethod
  def create(cls, config: CodecConfig,
             recordings: Iterable[tuple[np.ndarray, int]]) -> 'MelCodec':
    """Fit codebooks of config.codebooks x config.codes to at most an hour of recordings."""
    patches, levels, seconds = [], [], 0.0
    for waveform, rate in recordings:
      mel, level = _analyse(waveform, rate, config.frames)
      patches.append(mel.reshape(-1, config.frames * MELS))
      levels.append(level)
      seconds += len(mel) * HOP / RATE
      if seconds > 60 * FIT_MINUTES:
        break
    rows = np.concatenate(patches) if patches else np.zeros((0, config.frames * MELS), np.float32)
    speech = rows[rows.max(axis=1, initial=FLOOR) > SILENT]
    if config.codes < 2 or len(speech) < config.codes:
      raise UserError(
          f'config key codec.codes is {config.codes}, but the recordings hold {len(speech)} '
          f'patches of speech ({seconds:.0f} s); give more recordings or use 2 to '
          f'{max(2, len(speech))} codes.')
    books = []
    rest = speech
    for index in range(config.codebooks):
      fixed = np.full(rows.shape[1], 0.0 if index else FLOOR, np.float32)  # code 0
      book = np.concatenate([fixed[None], fit_codebook(rest, config.codes - 1, seed=index)])
      book = book.astype(np.float16).astype(np.float32)
      rest = rest - book[nearest(rest, book)]
      books.append(book)
    return cls(np.stack(books), config.frames, np.median(levels))

  def encode(self, waveform: np.ndarray, rate: int) -> np.ndarray:
    mel, _ = _analyse(waveform, rate, self.frames)
    rest = mel.reshape(-1, self.frames * MELS)
    codes = np.empty((len(rest), self.codebooks), np.int32)
    for index, book in enumerate(self._books):
      chosen = nearest(rest, book)
      codes[:, index] = chosen + index * self.codes
      rest = rest - book[chosen]
    return codes.reshape(-1)

  def decode(self, codes: np.ndarray) -> np.ndarray:
    """As in Codec. A patch lasts frames * HOP samples.

    A code of another codebook than its slot's, or missing in an incomplete last patch, counts as
    zero: the patch is coarser, or silent if its first code is missing.
    """
    if not np.size(codes):
      return np.zeros(0, np.float32)
    return np.clip(_istft(_griffin_lim(self._magnitude(codes))), -1, 1)

  def stream(self) -> 'MelStream':
    return MelStream(self)

  def _magnitude(self, codes: np.ndarray) -> np.ndarray:
    """Codes [n] -> linear magnitude float32 [F, WINDOW//2+1]; see ``decode``."""
    codes = check_codes(codes, self)
    slots = np.pad(codes, (0, -len(codes) % self.codebooks), constant_values=-1)
    slots = slots.reshape(-1, self.codebooks) - np.arange(self.codebooks) * self.codes
    slots = np.where((slots >= 0) & (slots < self.codes), slots, 0)
    patches = sum(book[slots[:, i]] for i, book in enumerate(self._books))
    mel = np.clip(patches, FLOOR, 0).reshape(-1, MELS)
    audible = mel > FLOOR + 0.01  # the floor is not exact in float16
    return _to_linear(np.where(audible, np.exp(mel + self.level), 0).astype(np.float32))

  def settings(self) -> dict[str, Any]:
    return {'frames': self.frames, 'level': self.level}

  def arrays(self) -> dict[str, np.ndarray]:
    return {'books': self.books}

  @classmethod
  def restore(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> 'MelCodec':
    schema.check(settings, MelSettings, 'codec.json, settings,', 'prepare the data again')
    return cls(arrays['books'], settings['frames'], settings['level'])


class MelStream(Stream):
  """Incremental decoding without a cross-fade: new frames continue the phases of earlier ones.

  A sample depends on the frames around it, so the samples of the last HELD frames follow when their
  neighbours are known.
  """
  HELD = 2      # a window of 4 hops reaches 1.5 hops beyond the middle one
  CONTEXT = 8   # frames whose spectrum is kept

  def __init__(self, codec: 'MelCodec'):
    super().__init__(codec)
    self._mel_codec = codec
    self._spectrum = np.zeros((0, WINDOW // 2 + 1), np.complex64)
    self._unsent = 0  # of its frames, the last ones, whose samples were not returned

  def finish(self) -> np.ndarray:
    out = self._decode(self._waiting) if len(self._waiting) else np.zeros(0, np.float32)
    rest = self._samples(0)
    self._waiting, self._spectrum, self._unsent = self._waiting[:0], self._spectrum[:0], 0
    return np.concatenate([out, rest])

  def _decode(self, fresh: np.ndarray) -> np.ndarray:
    new = _griffin_lim(self._mel_codec._magnitude(fresh), self._spectrum)
    self._spectrum = np.concatenate([self._spectrum, new])
    self._unsent += len(new)
    out = self._samples(self.HELD)
    self._spectrum = self._spectrum[-self.CONTEXT:]
    return out

  def _samples(self, held: int) -> np.ndarray:
    """The samples of unsent frames but the last ``held``."""
    count = len(self._spectrum)
    first, last = count - self._unsent, max(count - held, count - self._unsent)
    self._unsent = count - last
    if first == last:
      return np.zeros(0, np.float32)
    return np.clip(_istft(self._spectrum)[first * HOP:last * HOP], -1, 1)


def _analyse(waveform: np.ndarray, rate: int, frames: int) -> tuple[np.ndarray, float]:
  io.check(waveform, rate, 'a recording')
  resampled = io.resample(waveform, rate, RATE)
  io.check(resampled, RATE, 'a recording')  # all of its energy may be above 11 kHz
  return log_mel(resampled, frames)
