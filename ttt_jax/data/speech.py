"""Codes for every audio part of the sources: the codec chosen or fitted, files encoded once."""

import concurrent.futures
import pathlib

import numpy as np

from ttt_jax.audio import codec as codecs
from ttt_jax.audio import io
from ttt_jax.audio.codec import Codec
from ttt_jax.config import CodecConfig
from ttt_jax.data.records import Part
from ttt_jax.data.sources import Loaded, is_heldout
from ttt_jax.errors import UserError

_THREADS = 2


def _files(loaded: list[Loaded], training_only: bool) -> dict[pathlib.Path, str]:
  """Audio files without codes -> the 'file:line' that names them first."""
  out: dict[pathlib.Path, str] = {}
  for one in loaded:
    if training_only and is_heldout(one.source.split):
      continue
    for where, part in one.audio():
      if part.codes is None:
        out.setdefault(one.file_of(part), where)
  return out


def _read(file: pathlib.Path, where: str) -> tuple[np.ndarray, int]:
  try:
    return io.read(file)
  except UserError as error:
    raise UserError(f'{where}: {error}') from error


def choose(config: CodecConfig, loaded: list[Loaded], seed: int, progress) -> Codec:
  """The codec of a prepared set.

  Where sources hold codes already, it is the one saved in the directory codec/ beside
  them. Otherwise the config's: created, and fitted on the training splits' recordings.

  Raises:
    UserError: codes whose codec is unknown, two codecs in one set, too little to fit on.
  """
  saved: dict[str, Codec] = {}
  for one in loaded:
    directory = one.path.parent / 'codec'
    coded = next((where for where, part in one.audio() if part.codes is not None), None)
    silent = not any(True for _ in one.audio())
    if (directory / codecs.FILE).is_file() and (coded or silent):
      found = codecs.load(directory)
      saved.setdefault(found.name, found)
    elif coded and config.name == 'mel':
      raise UserError(f'{coded}: the audio is given as codes, but there is no codec in '
                      f'{directory}; put the codec that made them there.')
  if len(saved) > 1:
    raise UserError(f'config key data.sources: the sources hold codes of different codecs '
                    f'({", ".join(sorted(saved))}); a prepared set has one.')
  if saved:
    return next(iter(saved.values()))
  files = _files(loaded, training_only=True)
  order = np.random.default_rng(seed).permutation(len(files))
  names = list(files)
  def waveforms():
    for done, i in enumerate(order):
      progress('reading speech to fit the codec', done, len(names))
      waveform, rate = _read(names[i], files[names[i]])
      _audible(waveform, rate, names[i], files[names[i]])
      yield waveform, rate
  return codecs.create(config, waveforms())


def _audible(waveform, rate, file, where) -> None:
  io.check(waveform, rate, f'{where}: recording {file}')


def encode(codec: Codec, loaded: list[Loaded], progress):
  """Encode every audio file once.

  Returns:
    (loaded source, part) -> codes int32 [n]; inline codes are returned as they are.

  Raises:
    UserError: an unreadable, empty or silent recording, with its file and record.
  """
  files = _files(loaded, training_only=False)
  def one(item):
    file, where = item
    waveform, rate = _read(file, where)
    _audible(waveform, rate, file, where)
    try:
      return codec.encode(waveform, rate)
    except UserError as error:
      raise UserError(f'{where}: recording {file}: {error}') from error
  known: dict[pathlib.Path, np.ndarray] = {}
  pool = concurrent.futures.ThreadPoolExecutor(_THREADS)
  try:
    for done, (file, codes) in enumerate(zip(files, pool.map(one, files.items())), 1):
      known[file] = np.asarray(codes, np.int32)
      progress('encoding speech', done, len(files))
  finally:
    pool.shutdown(cancel_futures=True)
  def codes_of(source: Loaded, part: Part) -> np.ndarray:
    return known[source.file_of(part)] if part.codes is None else part.codes
  return codes_of
