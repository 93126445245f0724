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
  truncated file              error, where containers.py detects it
  several streams in a file   joined, at the rate of the first
  headers that do not fit     what is there is read; containers.py has the rules
  not audio, or damaged       error, where the decoder detects it
  more than LONGEST samples   error, before they are decoded into memory
"""

import io
import math
import os
import pathlib
from typing import BinaryIO, Iterator

import numpy as np

from ttt_jax.audio import containers
from ttt_jax.errors import UserError
from ttt_jax.storage import files, object_cache, remote, url_path

LOWEST_RATE, HIGHEST_RATE = 4_000, 384_000  # Hz; other rates mean a broken header
_PIECE = 2**20                              # samples read at once
SILENT_PEAK = 1e-4                          # -80 dB of full scale
LOUDEST = 8.0                               # +18 dB, above the overshoot of any decoder
LONGEST = 2**29                             # samples read from one file: 2 GiB, 3 hours at 48 kHz
_UNKNOWN = 2**62                            # frames of a FLAC that was written into a pipe
_IN_MEMORY = 2**26                          # bytes of an object
BEYOND = 0.1                                # s; manifests round durations

def read(source: str | os.PathLike | bytes, offset: float = 0.0, duration: float | None = None,
         channel: int | None = None, name: str = '', longest: int | None = None
         ) -> tuple[np.ndarray, int]:
  """Reads a file, or a part of it: (float32 [N], rate); the module's docstring has the rules.

  Args:
    source: path of a file, its URL in a bucket (gs://, s3://), or its contents. Parts of a
      recording in a bucket are read from a local copy (storage/object_cache.py).
    offset: where the part begins [s].
    duration: length of the part [s]; None = to the end. A part may end up to BEYOND after the end
      of the file. If the part is not in the file, but the file has its length, it is all of it.
    channel: the channel to read, from 0; None = the mean of all channels.
    name: of the recording in error messages, instead of the path.
    longest: samples; more are an error, before they are decoded into memory. None = LONGEST.

  Raises:
    UserError: an error in that table, no such file, or a part that is not in it; the sentence
      names the file.
  """
  longest = LONGEST if longest is None else longest
  if isinstance(source, bytes):
    return _read(_Bytes(source), len(source), f'recording {name or "in the record"}', offset,
                 duration, channel, longest)
  what = f'recording {name or _shown(source)}'
  if url_path.is_url(source):
    return _of_bucket(str(source), what, offset, duration, channel, longest)
  try:
    if not os.path.isfile(source):
      kind = 'is a folder' if os.path.isdir(source) else 'does not exist'
      raise UserError(f'{what} {kind}.')
    with open(source, 'rb', buffering=0) as file:  # libsndfile shares its position
      status = os.fstat(file.fileno())
      key = (os.fspath(source), status.st_size, status.st_mtime_ns)
      return _read(file, status.st_size, what, offset, duration, channel, longest,
                   None if duration is None else key)
  except OSError as error:
    raise UserError(f'{what} cannot be read: {error.strerror or error}.') from error


def _of_bucket(url: str, what: str, offset: float, duration: float | None, channel: int | None,
               longest: int) -> tuple[np.ndarray, int]:
  """As ``read``, of an object: all of it goes through memory, parts are read from a local copy."""
  entry = remote.stat(url)
  if entry is None:
    raise UserError(f'{what} {"is a folder" if remote.is_folder(url) else "does not exist"}.')
  if not offset and duration is None and entry.size <= _IN_MEMORY:
    data = remote.read_bytes(url)
    return _read(_Bytes(data), len(data), what, offset, duration, channel, longest)
  copy = object_cache.fetch(url, entry.size, version=entry.checksum)
  return read(copy, offset, duration, channel, what.removeprefix('recording '), longest)


def _shown(path: str | os.PathLike) -> str:
  """A path as it may be printed: bytes that are not UTF-8 and control characters are escaped."""
  text = str(path)
  return text if text.isprintable() else repr(text)[1:-1]


class _Bytes(io.BytesIO):
  """Contents of a file. A damaged header makes libsndfile seek before the start, which is ignored:
  an exception inside its callback would be printed."""

  def seek(self, offset: int, whence: int = 0) -> int:
    try:
      return super().seek(offset, whence)
    except (ValueError, OverflowError):
      return self.tell()


# The last files of which parts were read -> their streams: finding these reads the whole file.
_scanned: dict[tuple, list[containers.Stream]] = {}


def _streams(file: BinaryIO, size: int, key: tuple | None) -> list[containers.Stream]:
  """As ``containers.streams``; ``key`` identifies the file if its parts are read one by one."""
  found = _scanned.get(key) if key else None
  if found is None:
    found = containers.streams(file, size)
    if key and all(stream.data is None for stream in found):  # else the contents would stay
      if len(_scanned) >= 8:
        _scanned.clear()
      _scanned[key] = found
  return found


def _read(file: BinaryIO, size: int, what: str, offset: float, duration: float | None,
          channel: int | None, longest: int, key: tuple | None = None
          ) -> tuple[np.ndarray, int]:
  """As ``read``, of an open file of ``size`` bytes; errors start with ``what``."""
  import soundfile
  try:
    found = _streams(file, size, key)
    decoded = [_decode(file, stream, what, channel, (offset, duration) if len(found) == 1 else None,
                       longest)
               for stream in found]
  except containers.Unusable as error:
    raise UserError(f'{what} {error}.') from error
  except soundfile.LibsndfileError as error:
    other = containers.foreign(file)
    raise UserError(f'{what} {other}.' if other else f'{what} cannot be read as WAV, FLAC, OGG or '
                    f'MP3: {error.error_string.rstrip(".")}.') from error
  rate = decoded[0][1]
  waveform = decoded[0][0]
  if len(decoded) > 1:
    _check_length(sum(len(piece) * rate // own for piece, own in decoded), rate, what, longest)
    waveform = np.concatenate([resample(piece, own, rate) for piece, own in decoded])
    if offset or duration is not None:
      first, last = _range(len(waveform), rate, (offset, duration), what)
      waveform = waveform[first:last].copy()
  check(waveform, rate, what, silence=True)
  peak = np.abs(waveform).max()
  if peak > LOUDEST:
    raise UserError(f'{what} has samples of {peak:,.0f} times full scale; float samples must be in '
                    '[-1, 1]; divide them by their full scale.')
  return np.clip(waveform, -1, 1, out=waveform) if peak > 1 else waveform, rate


def _decode(file: BinaryIO, stream: containers.Stream, what: str, channel: int | None,
            part: tuple[float, float | None] | None, longest: int) -> tuple[np.ndarray, int]:
  """(float32 [N], rate) of one stream, or of its ``part`` (offset, duration).

  Raises:
    soundfile.LibsndfileError: not a sound file, or a damaged one.
    containers.Unusable: fewer samples than the stream must have.
  """
  import soundfile
  data: BinaryIO = _Bytes(stream.data) if stream.data is not None else file
  data.seek(0)
  # The descriptor is read by libsndfile itself, which is faster, and has no name to guess from.
  handle = data if isinstance(data, _Bytes) else data.fileno()
  with soundfile.SoundFile(handle, closefd=False) as sound:
    rate = sound.samplerate
    check_rate(rate, what)
    if sound.frames >= _UNKNOWN:  # soundfile seeks after every read, which then fails at the end
      sound.seekable = lambda: False
    if channel is not None and channel >= sound.channels:
      raise UserError(f'{what} has {sound.channels} channels, numbered from 0; there is no channel '
                      f'{channel}.')
    if part is None or part == (0.0, None) or not stream.seeks or not sound.seekable():
      waveform = _all(_pieces(sound, channel), rate, what, longest)
      if len(waveform) < stream.samples:
        raise containers.Unusable(f'is truncated or damaged: {len(waveform):,} samples of '
                                  f'{stream.samples:,} can be decoded')
      if part is not None:
        first, last = _range(len(waveform), rate, part, what)
        waveform = waveform if last - first == len(waveform) else waveform[first:last].copy()
      return waveform, rate
    first, last = _range(sound.frames, rate, part, what)
    sound.seek(first)
    waveform = _all(_pieces(sound, channel, last - first), rate, what, longest)
    if len(waveform) < last - first:
      raise containers.Unusable(f'is truncated or damaged: it ends after '
                                f'{(first + len(waveform)) / rate:.2f} s')
    return waveform, rate


def _pieces(sound, channel: int | None, count: int = -1) -> Iterator[np.ndarray]:
  """``count`` samples from the current position, or all, in pieces: a damaged header may announce
  more than fit into memory."""
  while (piece := sound.read(min(_PIECE, count) if count >= 0 else _PIECE, dtype='float32',
                             always_2d=True)).size:
    if channel is not None:
      yield np.ascontiguousarray(piece[:, channel])
    else:
      yield piece.mean(axis=1) if piece.shape[1] > 1 else piece[:, 0]
    count -= len(piece) if count >= 0 else 0


def _all(pieces: Iterator[np.ndarray], rate: int, what: str, longest: int) -> np.ndarray:
  out, length = [], 0
  for piece in pieces:
    out.append(piece)
    length += len(piece)
    _check_length(length, rate, what, longest)
  return np.concatenate(out) if out else np.zeros(0, np.float32)


def _check_length(length: int, rate: int, what: str, longest: int) -> None:
  if length > longest:
    hours = f'{longest / rate / 3600:.1f} hours' if longest >= 3600 * rate else (
        f'{longest / rate:.0f} s')
    raise UserError(f'{what} has more than {longest:,} samples ({hours} at {rate:,} Hz); split it, '
                    'or name parts of it with offset and duration.')


def _range(length: int, rate: int, part: tuple[float, float | None], what: str
           ) -> tuple[int, int]:
  """(first sample, last sample + 1) of a part of a recording of ``length`` samples."""
  offset, duration = part
  if part == (0.0, None):
    return 0, length
  end = length / rate if duration is None else offset + duration
  if offset < 0 or not end > offset or offset * rate >= length or end > length / rate + BEYOND:
    if duration and offset > 0 and abs(length / rate - duration) <= min(BEYOND, duration / 20):
      return 0, length  # the file is the part, cut out of a longer one, as in AMI and GigaSpeech
    asked = f'from {offset:g} s' + (' to its end' if duration is None else f' to {end:g} s')
    raise UserError(f'{what} lasts {length / rate:g} s; there is no part {asked} (offset and '
                    'duration are in seconds).')
  first = round(offset * rate)
  return first, max(min(round(end * rate), length), first + 1)


def write_wav(path: str | os.PathLike, waveform: np.ndarray, rate: int) -> None:
  """Writes a 16-bit mono WAV (temporary name, then rename), clipped to [-1, 1]."""
  import soundfile
  path = pathlib.Path(path)
  waveform = np.asarray(waveform, np.float32)
  check_rate(rate, f'recording {path}')
  assert waveform.ndim == 1 and np.isfinite(waveform).all(), 'a waveform is finite and 1-D'
  with files.writing(path):
    files.make_folder(path.parent)
  sound = io.BytesIO()  # soundfile does not say why it could not write to a disk
  soundfile.write(sound, np.clip(waveform, -1, 1), int(rate), 'PCM_16', format='WAV')
  with files.replacing(path, 'wb') as file:
    file.write(sound.getbuffer())


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
