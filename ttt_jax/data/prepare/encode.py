"""Phase 2 of prepare: chooses or fits the codec and encodes every stretch of an audio file once."""

import collections
from concurrent import futures
import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import json
import pathlib
from typing import Any, Callable, Iterator, Sequence

import numpy as np

from ttt_jax.audio import codec as codecs, io
from ttt_jax.audio.codec import Codec
from ttt_jax.config import CodecConfig
from ttt_jax.data.prepare import addresses
from ttt_jax.data.prepare.jobs import Work, tick
from ttt_jax.data.prepare.scan import BLOBS, Scanned
from ttt_jax.data.records import embedded, places
from ttt_jax.data.records.parts import Clip
from ttt_jax.errors import UserError
from ttt_jax.storage import url_path

Blob = tuple[str, int, int]  # (address of a result of scan.py, start, bytes)
FILE = 'codes.int32'
_EMBEDDED = 'inside the record'
_AHEAD = 16  # recordings of a bucket
_MANY = 100  # recordings; fewer are encoded in this process


@dataclasses.dataclass(frozen=True)
class Place:
  """Where the codes of a stretch of an audio file are stored, or why there are none.

  Attributes:
    folder: name of the job's result.
    start, stop: range in the codes stored there.
    error: a sentence, '' if there are codes.
  """
  folder: str
  start: int = 0
  stop: int = 0
  error: str = ''


Recording = tuple[str, Clip, tuple[int, int], Blob | None]


@dataclasses.dataclass(frozen=True)
class FitJob:
  """See ``fit``.

  Attributes:
    config: of the codec.
    stamps: of the files that it names.
    recordings: as of Job; in the order in which they are read.
    strict: a recording that cannot be read is an error.
  """
  config: CodecConfig
  stamps: tuple[tuple[int, int], ...]
  recordings: tuple[Recording, ...]
  strict: bool


@dataclasses.dataclass(frozen=True)
class Job:
  """See ``encode_group``.

  Attributes:
    codec: folder of the saved codec, or the address of its result.
    identity: the text of its codec.json.
    clips: ('file:line' that names it, stretch, stamp of its file, blob) of each recording; blob
      tells where an embedded sound is, else None.
  """
  codec: str
  identity: str
  clips: tuple[Recording, ...]


def choose(config: CodecConfig, scans: Sequence[Scanned], seed: int, strict: bool, work: Work,
           progress: Callable[[str, int, int], None]) -> tuple[Codec, str]:
  """The codec of a prepared set, and where it is saved: see results.folder_at.

  Where sources hold codes, it is the one saved in the directory codec/ beside them. Otherwise
  it is created from the config and, where needed, fitted on the training splits' recordings.

  Raises:
    UserError: codes whose codec is unknown, or a class that the config does not name; two codecs
      in one set; too little to fit on; if strict, a recording that cannot be read.
  """
  if (known := beside(config, scans)) is not None:
    return known[0], str(known[1])
  named = _named(one for one in scans if not one.input.heldout)
  found = _recordings(named, _blobs(scans))
  order = np.random.default_rng(seed).permutation(len(found))
  job = FitJob(config, _stamps(config), tuple(found[i] for i in order), strict)
  def read(done: int) -> None:
    if done:  # most codecs are not fitted
      progress('reading speech to fit the codec', done, len(found))
  result, = work.run(fit, [job], read, apart=False)
  with work.results.folder(result.name) as folder:
    return codecs.load(folder, config), work.results.address(result.name)


def beside(config: CodecConfig, scans: Sequence[Scanned]) -> tuple[Codec, pathlib.Path] | None:
  """The codec saved beside sources that hold codes, and its folder; None = it is to be created.

  Raises:
    UserError: as ``choose``.
  """
  found: dict[pathlib.Path, Codec] = {}
  for one in scans:
    directory = one.input.folder / 'codec'
    if directory in found:
      continue
    if (directory / codecs.FILE).is_file() and (one.coded or not one.audio):
      found[directory] = codecs.load(directory, config)
    elif one.coded and config.name == 'mel':
      raise UserError(f'{one.coded}: the audio is given as codes, but there is no codec in '
                      f'{directory}; save the codec that made them there.')
  saved = {codec.name: (codec, directory) for directory, codec in reversed(found.items())}
  if len(saved) > 1:
    raise UserError(f'config key data.sources: the sources hold codes of different codecs '
                    f'({", ".join(sorted(saved))}); a prepared set has one codec.')
  return next(iter(saved.values()), None)


def _stamps(config: CodecConfig) -> tuple[tuple[int, int], ...]:
  """Stamps of the files that decide what a codec computes: weights, and a user's own module."""
  paths = [path for name in (config.weights, config.decoder_weights) if name
           for path in sorted(url_path.place(name).glob('*'), key=str)]
  for name in (config.name, config.decoder):
    if ':' in name:
      with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(name.partition(':')[0])
        paths += [spec.origin] if spec and spec.origin else []
  return tuple(places.stamp(str(path)) for path in paths)


def fit(job: FitJob, folder: pathlib.Path) -> dict[str, Any]:
  """Creates a codec and saves it; returns {'units': recordings that were read for it}."""
  count = 0
  def waveforms():
    nonlocal count
    for reading in _readings(job.recordings):
      count += 1
      tick()
      try:
        yield reading()
      except UserError:
        if job.strict:
          raise
  codecs.create(job.config, waveforms()).save(folder)
  return {'units': count}


def _named(scans) -> dict[Clip, str]:
  """Stretches of audio files without codes -> the 'file:line' that names them first."""
  out: dict[Clip, str] = {}
  for one in scans:
    for clip, where in one.named.items():
      out.setdefault(clip, where)
  return out


def _blobs(scans) -> dict[str, Blob]:
  """Key of every embedded sound -> where it is stored."""
  return {key: blob for one in scans for key, blob in one.blobs.items()}


def _recordings(named: dict[Clip, str], blobs: dict[str, Blob]) -> list[Recording]:
  return [(where, clip, (0, 0) if clip.path in blobs else places.stamp(clip.path),
           blobs.get(clip.path)) for clip, where in named.items()]


def _read(clip: Clip, where: str, blob: Blob | None) -> tuple[np.ndarray, int]:
  """A recording that can be encoded."""
  try:
    if blob is None:
      waveform, rate = io.read(*clip)
    else:
      address, start, size = blob
      waveform, rate = io.read(addresses.read_at(address, BLOBS, start, size), *clip[1:],
                               name=_EMBEDDED)
  except UserError as error:
    sentence = str(error).removesuffix('.')
    if blob is None and sentence.endswith(' does not exist'):
      sentence += places.searched(clip.path)
    raise UserError(f'{where}: {sentence}.') from error
  io.check(waveform, rate, f'{where}: recording {_name(clip)}')
  return waveform, rate


def _readings(clips: Sequence[Recording]) -> Iterator[Callable[[], tuple[np.ndarray, int]]]:
  """For each recording what reads it: call it before the next one is taken.

  What is in a bucket is read ahead, several at once, since each waits for the network.
  """
  order = (functools.partial(_read, clip, where, blob) for where, clip, _, blob in clips)
  if not any(url_path.is_url(blob[0] if blob else clip.path) for _, clip, _, blob in clips):
    yield from order
    return
  with futures.ThreadPoolExecutor(_AHEAD) as pool:
    waiting = collections.deque(map(pool.submit, itertools.islice(order, _AHEAD)))
    try:
      while waiting:
        yield waiting.popleft().result
        waiting.extend(map(pool.submit, itertools.islice(order, 1)))
    finally:
      pool.shutdown(cancel_futures=True)


def _name(clip: Clip) -> str:
  return _EMBEDDED if embedded.is_key(clip.path) else clip.path


def encode(codec: Codec, saved: str, scans: Sequence[Scanned], work: Work, strict: bool,
           progress: Callable[[str, int, int], None]) -> dict[Clip, Place]:
  """Encode every stretch of an audio file once.

  Args:
    codec: the set's codec.
    saved: where it is saved, for other processes.
    scans: name the stretches.
    work: stores the codes.
    strict: a recording without codes is an error.
    progress: (what, done, total).

  Returns:
    Every stretch -> where its codes are stored.

  Raises:
    UserError: if strict: an unreadable, empty or silent recording, with its file and record.
  """
  named = _named(scans)
  clips = _recordings(named, _blobs(scans))
  with addresses.folder_at(saved) as folder:
    identity = (folder / codecs.FILE).read_text(encoding='utf-8')
  elsewhere = codec.own_devices and work.pool.has_devices and bool(clips)
  size = (work.pool.call(_at_once, saved, identity) if elsewhere else
          codec.at_once if clips else 1)
  jobs = [Job(saved, identity, tuple(clips[i:i + size]))
          for i in range(0, len(clips), size)]
  out: dict[Clip, Place] = {}
  results = work.run(encode_group, jobs,
                     lambda done: progress('encoding speech', done, len(clips)),
                     apart=len(clips) > _MANY, devices=codec.own_devices)
  for job, result in zip(jobs, results):
    at = 0
    for (_, clip, *_), (count, error) in zip(job.clips, result.info['found']):
      if error and strict:
        raise UserError(error)
      out[clip] = Place(result.name, at, at + count, error)
      at += count
  _load.cache_clear()  # the codec may have large weights
  return out


@functools.lru_cache(1)
def _load(saved: str, identity: str) -> Codec:
  kind = json.loads(identity)['kind']  # ``choose`` may import it, and saved it there
  with addresses.folder_at(saved) as folder:
    return codecs.load(folder, CodecConfig(kind))


def _at_once(saved: str, identity: str) -> int:
  """Recordings per job, which may depend on the accelerators of a process."""
  return _load(saved, identity).at_once


def encode_group(job: Job, folder: pathlib.Path) -> dict[str, Any]:
  """Writes the codes of some stretches, concatenated as int32, to FILE.

  Returns:
    {'found': [[number of codes, error or ''], ...] per stretch, 'units': stretches}.
  """
  codec = _load(job.codec, job.identity)
  errors: dict[int, str] = {}
  read: list[int] = []
  def waveforms() -> Iterator[tuple[np.ndarray, int]]:
    for i, reading in enumerate(_readings(job.clips)):
      try:
        recording = reading()
      except UserError as error:
        errors[i] = str(error)
        tick()
        continue
      read.append(i)
      yield recording
  codes = [np.zeros(0, np.int32)] * len(job.clips)
  for i, found in enumerate(codec.encode_many(waveforms())):
    number = read[i]
    where, clip, *_ = job.clips[number]
    try:
      if isinstance(found, UserError):
        raise found
      codes[number] = codecs.checked(found, codec, 'it')
    except UserError as error:
      errors[number] = f'{where}: recording {_name(clip)}: {error}'
    tick()
  (folder / FILE).write_bytes(np.concatenate(codes).tobytes())
  return {'found': [[len(one), errors.get(i, '')] for i, one in enumerate(codes)],
          'units': len(codes)}
