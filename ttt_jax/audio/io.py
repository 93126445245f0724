"""Recordings in and out: WAV, FLAC, OGG and MP3 to float32 mono, and WAV back.

A waveform is float32 [N] in [-1, 1]; its rate is in samples per second (Hz). What a file
holds, and what comes of it:

  WAV of 8, 16, 24, 32 bits   a sample is its part of full scale
  WAV of floats               a sample is itself
  FLAC; OGG (Vorbis, Opus);   as decoded, by content and not by the name's ending
    MP3
  several channels, 5.1 too   averaged: no choice is right for every recording, and this one
                              loses no speaker; opposite channels cancel to silence
  4 to 384 kHz                as it is; a codec resamples to its own rate (`resample`)
  another rate                refused
  above full scale            clipped to [-1, 1], as on any loudspeaker; refused if LOUDEST
                              times full scale is exceeded: those floats count from elsewhere
  clipped before              as it is; nothing is repaired
  silence (peak below 1e-4)   read as it is; a codec refuses to encode it (`check`)
  no samples                  refused
  not a number, infinite      refused
  cut off                     refused, as far as whole.py can tell
  not audio, or damaged       refused, where the decoder can tell
"""

import math
import os
import pathlib

import numpy as np

from ttt_jax.audio import truncation
from ttt_jax.errors import UserError

LOWEST_RATE, HIGHEST_RATE = 4_000, 384_000  # Hz; outside, a header is broken or not of speech
_PIECE = 2**20                              # frames that are read at once
SILENT_PEAK = 1e-4                          # -80 dB of full scale
LOUDEST = 8.0                               # +18 dB: more than any decoder overshoots


def read(path: str | os.PathLike) -> tuple[np.ndarray, int]:
  """The recording in a file: (float32 [N], rate), as the module's table says.

  Raises:
    UserError: what the table refuses, or no such file; the sentence names the file.
  """
  import soundfile
  if not os.path.isfile(path):
    raise UserError(f'recording {path} does not exist.')
  pieces = []
  try:
    with soundfile.SoundFile(path) as file:
      rate, promised = file.samplerate, file.frames
      # Piece by piece: a damaged header may promise more samples than there is memory.
      while (piece := file.read(_PIECE, dtype='float32', always_2d=True)).size:
        pieces.append(piece.mean(axis=1) if piece.shape[1] > 1 else piece[:, 0])
  except soundfile.LibsndfileError as error:
    raise UserError(f'recording {path} cannot be read as WAV, FLAC, OGG or MP3: '
                    f'{error.error_string.rstrip(".")}.') from error
  waveform = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
  if missing := truncation.missing(path, len(waveform), promised):
    raise UserError(f'recording {path} {missing}; copy it again, or let an audio tool write it '
                    'anew.')
  check(waveform, rate, f'recording {path}', silence=True)
  peak = np.abs(waveform).max()
  if peak > LOUDEST:
    raise UserError(f'recording {path} has samples of {peak:,.0f} times full scale; floats of a '
                    'recording go from -1 to 1, so divide them by the largest they can be.')
  return np.clip(waveform, -1, 1, out=waveform) if peak > 1 else waveform, rate


def write_wav(path: str | os.PathLike, waveform: np.ndarray, rate: int) -> None:
  """Write a waveform as a 16-bit mono WAV, whole or not at all; beyond [-1, 1] is clipped."""
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
  """Refuse a sample rate that no speech recording has; `what` opens the sentence."""
  if (isinstance(rate, bool) or not isinstance(rate, (int, float, np.integer, np.floating))
      or not LOWEST_RATE <= rate <= HIGHEST_RATE or rate != int(rate)):
    raise UserError(f'{what} has a sample rate of {rate} Hz; expected a whole number from '
                    f'{LOWEST_RATE} to {HIGHEST_RATE}.')


def check(waveform: np.ndarray, rate: int, what: str, silence: bool = False) -> None:
  """Refuse what cannot be speech; `what` opens the sentence, `silence` lets silence pass."""
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
