"""Phase 2 of prepare: chooses or fits the codec and encodes every audio file once."""

import dataclasses
import functools
import json
import pathlib
from typing import Any, Callable, Iterator, Sequence

import numpy as np

from ttt_jax.audio import codec as codecs, io
from ttt_jax.audio.codec import Codec
from ttt_jax.config import CodecConfig
from ttt_jax.data.prepare.jobs import Work, tick
from ttt_jax.data.prepare.scan import Scanned
from ttt_jax.data.records import sources
from ttt_jax.errors import UserError

FILE = 'codes.int32'
_MANY = 100  # recordings; fewer are encoded in this process


@dataclasses.dataclass(frozen=True)
class Place:
  """Where the codes of an audio file are stored, or why there are none.

  Attributes:
    folder: name of the job's result folder in the work folder.
    start, stop: range in the codes stored there.
    error: a sentence, '' if there are codes.
  """
  folder: str
  start: int = 0
  stop: int = 0
  error: str = ''


@dataclasses.dataclass(frozen=True)
class Job:
  """See ``encode_group``; files: ('file:line' that names it, path, stamp) of each file."""
  codec: str      # folder of the saved codec ...
  identity: str   # ... and the text of its codec.json
  files: tuple[tuple[str, str, tuple[int, int]], ...]


def choose(config: CodecConfig, scans: Sequence[Scanned], seed: int, strict: bool,
           progress) -> Codec:
  """The codec of a prepared set.

  Where sources hold codes, it is the one saved in the directory codec/ beside them. Otherwise
  it is created from the config and, where needed, fitted on the training splits' recordings.

  Raises:
    UserError: codes whose codec is unknown, or a class that the config does not name; two codecs
      in one set; too little to fit on; if strict, a recording that cannot be read.
  """
  beside: dict[pathlib.Path, Codec] = {}
  for one in scans:
    directory = one.input.folder / 'codec'
    if directory in beside:
      continue
    if (directory / codecs.FILE).is_file() and (one.coded or not one.audio):
      beside[directory] = codecs.load(directory, config)
    elif one.coded and config.name == 'mel':
      raise UserError(f'{one.coded}: the audio is given as codes, but there is no codec in '
                      f'{directory}; save the codec that made them there.')
  saved = {codec.name: codec for codec in beside.values()}
  if len(saved) > 1:
    raise UserError(f'config key data.sources: the sources hold codes of different codecs '
                    f'({", ".join(sorted(saved))}); a prepared set has one codec.')
  if saved:
    return next(iter(saved.values()))
  named = _named(one for one in scans if not one.input.heldout)
  order = np.random.default_rng(seed).permutation(len(named))
  paths = list(named)
  def waveforms():
    for done, i in enumerate(order):
      progress('reading speech to fit the codec', done, len(paths))
      try:
        yield _read(paths[i], named[paths[i]])
      except UserError:
        if strict:
          raise
  return codecs.create(config, waveforms())


def _named(scans) -> dict[str, str]:
  """Audio files without codes -> the 'file:line' that names them first."""
  out: dict[str, str] = {}
  for one in scans:
    for path, where in one.named.items():
      out.setdefault(path, where)
  return out


def _read(path: str, where: str) -> tuple[np.ndarray, int]:
  """A recording that can be encoded."""
  try:
    waveform, rate = io.read(path)
  except UserError as error:
    raise UserError(f'{where}: {error}') from error
  io.check(waveform, rate, f'{where}: recording {path}')
  return waveform, rate


def encode(codec: Codec, folder: pathlib.Path, scans: Sequence[Scanned], work: Work, strict: bool,
           progress: Callable[[str, int, int], None]) -> dict[str, Place]:
  """Encode every audio file once.

  Args:
    codec: the set's codec.
    folder: where it is saved, for other processes.
    scans: name the audio files.
    work: stores the codes.
    strict: a recording without codes is an error.
    progress: (what, done, total).

  Returns:
    Path of every audio file -> where its codes are stored.

  Raises:
    UserError: if strict: an unreadable, empty or silent recording, with its file and record.
  """
  named = _named(scans)
  files = [(where, path, sources.stamp(path)) for path, where in named.items()]
  size = codec.at_once
  identity = (folder / codecs.FILE).read_text(encoding='utf-8')
  jobs = [Job(str(folder), identity, tuple(files[i:i + size]))
          for i in range(0, len(files), size)]
  out: dict[str, Place] = {}
  results = work.run(encode_group, jobs,
                     lambda done: progress('encoding speech', done, len(files)),
                     apart=len(files) > _MANY and not codec.own_devices)
  for job, result in zip(jobs, results):
    at = 0
    for (_, path, _), (count, error) in zip(job.files, result.info['found']):
      if error and strict:
        raise UserError(error)
      out[path] = Place(result.folder.name, at, at + count, error)
      at += count
  _load.cache_clear()  # the codec may have large weights
  return out


@functools.lru_cache(1)
def _load(folder: str, identity: str) -> Codec:
  kind = json.loads(identity)['kind']  # ``choose`` may import it, and saved it there
  return codecs.load(folder, CodecConfig(kind))


def encode_group(job: Job, folder: pathlib.Path) -> dict[str, Any]:
  """Writes the codes of some files, concatenated as int32, to FILE.

  Returns:
    {'found': [[number of codes, error or ''], ...] per file, 'units': files}.
  """
  codec = _load(job.codec, job.identity)
  errors: dict[int, str] = {}
  read: list[int] = []
  def waveforms() -> Iterator[tuple[np.ndarray, int]]:
    for i, (where, path, _) in enumerate(job.files):
      try:
        recording = _read(path, where)
      except UserError as error:
        errors[i] = str(error)
        tick()
        continue
      read.append(i)
      yield recording
  codes = [np.zeros(0, np.int32)] * len(job.files)
  for i, found in enumerate(codec.encode_many(waveforms())):
    number = read[i]
    where, path, _ = job.files[number]
    try:
      if isinstance(found, UserError):
        raise found
      codes[number] = codecs.checked(found, codec, 'it')
    except UserError as error:
      errors[number] = f'{where}: recording {path}: {error}'
    tick()
  (folder / FILE).write_bytes(np.concatenate(codes).tobytes())
  return {'found': [[len(one), errors.get(i, '')] for i, one in enumerate(codes)],
          'units': len(codes)}
