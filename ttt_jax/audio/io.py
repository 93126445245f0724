"""Audio files: WAV, FLAC, OGG and MP3 to float32 mono, and float32 mono to WAV.

A waveform is float32 [N] in [-1, 1]; its rate is in samples per second (Hz). How a file is read:

  WAV of 8, 16, 24, 32 bits   samples are scaled to full scale = 1
  WAV of floats               samples are unchanged
  FLAC; OGG (Vorbis, Opus);   as decoded; the format is detected from the content, not the name
    MP3
  several channels, also 5.1  averaged, so that no speaker is lost; channels in opposite phase
                              cancel to silence
  4 to 384 kHz                unchanged; a codec resamples to its own rate (`resample`)
  another rate                error
  above full scale            clipped to [-1, 1]; an error above LOUDEST times full scale, which
                              means floats in another unit
  clipped before              unchanged
  silence (peak below 1e-4)   unchanged; a codec rejects it (`check`)
  no samples                  error
  not a number, infinite      error
  truncated file              error, where truncation.py detects it
  not audio, or damaged       error, where the decoder detects it
"""

import math
import os
import pathlib

import numpy as np

from ttt_jax.audio import truncation
from ttt_jax.errors import UserError

LOWEST_RATE, HIGHEST_RATE = 4_000, 384_000  # Hz; other rates mean a broken header
_PIECE = 2**20                              # samples read at once
SILENT_PEAK = 1e-4                          # -80 dB of full scale
LOUDEST = 8.0                               # +18 dB, above the overshoot of any decoder


def read(path: str | os.PathLike) -> tuple[np.ndarray, int]:
  """Reads a file: (float32 [N], rate); the module's docstring has the rules.

  Raises:
    UserError: an error in that table, or no such file; the sentence names the file.
  """
  import soundfile
  if not os.path.isfile(path):
    raise UserError(f'recording {path} does not exist.')
  pieces = []
  try:
    with soundfile.SoundFile(path) as file:
      rate, announced = file.samplerate, file.frames
      # In pieces: a damaged header may announce more samples than fit into memory.
      while (piece := file.read(_PIECE, dtype='float32', always_2d=True)).size:
        pieces.append(piece.mean(axis=1) if piece.shape[1] > 1 else piece[:, 0])
  except soundfile.LibsndfileError as error:
    raise UserError(f'recording {path} cannot be read as WAV, FLAC, OGG or MP3: '
                    f'{error.error_string.rstrip(".")}.') from error
  waveform = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
  if missing := truncation.missing(path, len(waveform), announced):
    raise UserError(f'recording {path} {missing}; copy it again, or convert it with an audio '
                    'tool.')
  check(waveform, rate, f'recording {path}', silence=True)
  peak = np.abs(waveform).max()
  if peak > LOUDEST:
    raise UserError(f'recording {path} has samples of {peak:,.0f} times full scale; float '
                    'samples must be in [-1, 1]; divide them by their full scale.')
  return np.clip(waveform, -1, 1, out=waveform) if peak > 1 else waveform, rate


def write_wav(path: str | os.PathLike, waveform: np.ndarray, rate: int) -> None:
  """Writes a 16-bit mono WAV (temporary name, then rename), clipped to [-1, 1]."""
  import soundfile
  path = pathlib.Path(path)
  waveform = np.asarray(waveform, np.float32)
  check_rate(rate, f'recording {path}')
  assert waveform.ndim == 1 and np.isfinite(waveform).all(), 'a waveform is finite and 1-D'
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'{path.name}.part')
  soundfile.write(temporary, np.clip(waveform, -1, 1), int(rate), 'PCM_16', format='WAV')
  os.replace(temporary, path)


def resample(waveform: np.ndarray, rate: int, target: int) -> np.ndarray:
  """float32 [N] at `rate` -> float32 [ceil(N target / rate)] at `target`."""
  check_rate(rate, 'a recording')
  check_rate(target, 'a recording')
  waveform = np.asarray(waveform, np.float32)
  if rate == target or not waveform.size:
    return waveform
  import scipy.signal
  common = math.gcd(int(rate), int(target))
  return scipy.signal.resample_poly(
      waveform, int(target) // common, int(rate) // common).astype(np.float32)


def check_rate(rate: int, what: str) -> None:
  """Rejects a sample rate out of range; the error starts with `what`."""
  if (isinstance(rate, bool) or not isinstance(rate, (int, float, np.integer, np.floating))
      or not LOWEST_RATE <= rate <= HIGHEST_RATE or rate != int(rate)):
    raise UserError(f'{what} has a sample rate of {rate} Hz; expected an integer from '
                    f'{LOWEST_RATE} to {HIGHEST_RATE}.')


def check(waveform: np.ndarray, rate: int, what: str, silence: bool = False) -> None:
  """Rejects a waveform that cannot be speech; the error starts with `what`.

  Args:
    waveform: float32 [N].
    rate: in Hz.
    what: subject of the error message.
    silence: accept silence.
  """
  check_rate(rate, what)
  if np.ndim(waveform) != 1:
    raise UserError(f'{what} has shape {list(np.shape(waveform))}; expected one channel [N].')
  if not len(waveform):
    raise UserError(f'{what} is empty: it has no samples.')
  if not np.isfinite(waveform).all():
    raise UserError(f'{what} has samples that are not finite numbers.')
  if not silence and np.abs(waveform).max() < SILENT_PEAK:
    raise UserError(f'{what} is silent: its peak is {np.abs(waveform).max():.1e} of full scale, '
                    f'and speech needs at least {SILENT_PEAK:.0e}.')
