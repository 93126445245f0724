"""Sources -> a prepared set: codec, packed rows per split, held-out records, manifest.

  DATA/codec/                                the codec that the codes belong to
  DATA/train-00000-of-00002.arrayrecord ...  packed rows of split 'train'
  DATA/heldout-00000-of-00001.arrayrecord
  DATA/heldout.records.jsonl                 held-out records with inline codes, for generation
  DATA/heldout_wav/                          their recordings
  DATA/manifest.json                         counts, hashes, the vocabulary; see read_manifest

It runs four phases of jobs: scan.py counts the records of the sources, encode.py encodes
recordings, render.py renders documents, pack.py packs them into rows. They are computed by one
process per core (local_pool.py), or by several machines: by workers (team.py), or on a Ray cluster
(ray_pool.py).
Results are stored in .DATA-work until the set is complete, so that an interrupted run resumes.
The set is assembled in a temporary folder beside DATA and renamed, so DATA is never incomplete.
Where DATA is a symbolic link, all of this happens where it points to. Where it is in a bucket, one
machine does all of this in the workdir, and then uploads the set (storage/publish.py); several
machines store the results in the bucket, which copies the rows from them.
The same sources and config give the same bytes, whatever the number of processes and machines.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import shutil
from typing import Any, Callable, Sequence

import numpy as np

from ttt_jax.audio import io
from ttt_jax.audio.codec import Codec
from ttt_jax.config import Config, DataConfig
from ttt_jax.data import interleave, store
from ttt_jax.data.prepare import encode, pack, render, scan
from ttt_jax.data.prepare.bucket_results import BucketResults
from ttt_jax.data.prepare.folder_results import FolderResults
from ttt_jax.data.prepare.jobs import FORMAT, Pool, Work
from ttt_jax.data.prepare.local_pool import LocalPool
from ttt_jax.data.prepare.results import Result, Results
from ttt_jax.data.prepare.scan import Scanned
from ttt_jax.data.prepare.team import Team, Worker, wait_for_assembly
from ttt_jax.data.records import embedded, keys, places, readers, records, sources
from ttt_jax.data.records.parts import Clip, Part
from ttt_jax.errors import UserError
from ttt_jax.storage import files, mirror, owned, publish, remote, url_path
from ttt_jax.storage.names import FileNames
from ttt_jax.tokens import tokenizer as tokenizers
from ttt_jax.tokens.vocab import Vocabulary

_log = logging.getLogger(__name__)
_SENTENCE = '"sentence":'  # in every line of DATA.rejects.jsonl
_KIND, _WHERE = 'a prepared set', 'config key data.path'
# What other commands write into a workdir.
_OTHERS = frozenset((
    'checkpoints', 'logs', 'tensorboard', 'samples', 'report', 'report.html', 'config.json',
    'status.json', 'metrics.jsonl', 'evaluation.json', 'score.json'))
_LARGE = 2**22  # bytes of sources; smaller ones are read in this process
Progress = Callable[[str, int, int], None]  # (phase, units done, all units or 0)


def prepare(config: Config, workdir: str | pathlib.Path,
            progress: Progress = lambda what, done, total: None, worker: Worker | None = None
            ) -> dict[str, Any]:
  """Writes the prepared set that ``config.data`` describes to workdir/data.path.

  Args:
    config: reads sections vocab, codec and data, and the seed.
    workdir: data.path is relative to it; relative source paths are searched in the current
      directory and here.
    progress: called often with (phase, units done, all units or 0 if unknown).
    worker: this process is one of several that prepare the set together.

  Returns:
    The manifest, as store.read_manifest returns it. An existing set is replaced. Rejected
    records are listed beside the set, in DATA.rejects.jsonl.

  Raises:
    UserError: an error in the sources, or one of another worker. No set is written then, an
      existing one is unchanged, and finished jobs are stored for the next run.
    RetryableError: a process of this worker died; the others go on.
  """
  workdir = pathlib.Path(workdir)
  place = store.locate(workdir, config.data.path)
  results = results_of(config, workdir, worker is not None)
  if worker:
    wait_for_assembly(results.board)
  if isinstance(results, FolderResults):
    _check_target(named_folder(config, workdir), workdir, config.data.path)
  if url_path.is_url(place):
    if url := mirror.url_of(workdir):
      _check_place(place, url_path.place(url), config.data.path)
    publish.check(str(place), _KIND, _WHERE, store.proven_files, 'data')
    _check_rejects(_rejects_url(str(place)))
  else:
    place = owned.resolve(place)
  places.forget()
  found = sources.inputs(config.data.sources, workdir, config.data.form, config.data.root)
  team = worker and Team(results, worker, _identity(config, workdir, found),
                         place / store.MANIFEST)
  try:
    with Work(results, _pool(config.data, results, found, worker), team) as work:
      return _prepare(config, workdir, found, work, progress)
  except Exception:
    if team and team.finished():  # and so the results that this worker was about to read are gone
      return store.read_manifest(place)
    raise


def named_folder(config: Config, workdir: pathlib.Path) -> pathlib.Path:
  """The folder on the disk in which the set is assembled: DATA, or one in the workdir."""
  place = store.locate(workdir, config.data.path)
  return workdir / (f'{place.name}.upload' if url_path.is_url(place) else config.data.path)


def results_of(config: Config, workdir: pathlib.Path, together: bool) -> Results:
  """Where results of jobs are stored: in .DATA-work, which is beside DATA or, where that is in a
  bucket and a single machine prepares it, in the workdir.

  Args:
    config, workdir: see ``prepare``.
    together: whether this process is one of several workers.
  """
  place = store.locate(workdir, config.data.path)
  if url_path.is_url(place) and (together or config.data.runner != 'local'):
    return BucketResults(str(place.with_name(f'.{place.name}-work')))
  target = owned.resolve(named_folder(config, workdir))
  return FolderResults(target.with_name(f'.{target.name}-work'))


def _pool(data: DataConfig, results: Results, found: Sequence[sources.Input],
          worker: Worker | None) -> Pool:
  """What computes the jobs, by config key data.runner."""
  if data.runner == 'local':
    return LocalPool(data.workers)
  if worker:
    raise UserError("--worker shares the jobs without Ray; set data.runner to 'local', or leave "
                    '--worker out.')
  try:
    from ttt_jax.data.prepare.ray_pool import RayPool
  except ModuleNotFoundError as error:
    if (error.name or '').partition('.')[0] != 'ray':
      raise
    raise UserError("config key data.runner is 'ray', but the package ray is not installed: "
                    "`pip install 'ttt_jax[ray]'` (the extra 'ray').") from error
  return RayPool(data.ray_address, results, [(one.piece.path, one.stamp[0]) for one in found])


def _identity(config: Config, workdir: pathlib.Path, found: Sequence[sources.Input]) -> str:
  """A hash of everything that decides the names of results, for workers to compare."""
  data = dataclasses.replace(config.data, workers=0)
  text = repr((FORMAT, store.VERSION, config.vocab, config.codec, data, config.seed, found,
               str(pathlib.Path.cwd()), mirror.named(workdir)))
  return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()


def _prepare(config: Config, workdir: pathlib.Path, found: Sequence[sources.Input], work: Work,
             progress: Progress) -> dict[str, Any]:
  results = work.results
  tokenizer = tokenizers.create(config.vocab)
  for one, other in sources.duplicates(found):
    _log.warning('%s is read twice for the same split and task%s; set repeat if that is intended.',
                 one, '' if one == other else f', also as {other}')
  for sentence in sources.evaluated(found):
    _log.warning('%s', sentence)
  strict = config.data.strict
  apart = sum(size for _, size, _ in {(one.piece.path, *one.stamp) for one in found}) > _LARGE
  scan_jobs = [scan.Job(one, strict) for one in found]
  scans = [scan.result(job, result, results.address(result.name))
           for job, result in zip(scan_jobs, work.run(
               scan.scan, scan_jobs, lambda done: progress('reading sources', done, 0), apart))]
  _check_empty(scans)
  codec, saved = encode.choose(config.codec, scans, config.seed, strict, work, progress)
  vocab = Vocabulary(tokenizer.name, tokenizer.ranks, codec.name, codec.codebook_size)
  settings = _settings(config, codec, vocab, tokenizer, results, workdir)
  stored = encode.encode(codec, saved, scans, work, strict, progress)
  jobs = _render_jobs(scans, settings, stored, results.root)
  rows = sum(one.rows for one in scans)
  total = rows + sum(source.join_count for source in config.data.sources)
  rendered = list(work.run(render.render, jobs, lambda done: progress('rendering', done, total),
                           apart))
  place = store.locate(workdir, config.data.path)
  named = results.folder_for(named_folder(config, workdir))
  rejects = _rejects(named, place, rendered, rows, config.data.max_rejects, results)
  packed = _pack(scans, rendered, work, config, vocab, progress, apart)
  absent = sum(one.info['absent'] for one in rendered)
  if absent:
    _log.warning('%d held-out recordings beside codes do not exist; reports will have their '
                 'decoded codes alone.', absent)
  leaks = [where for one in rendered for where in one.info['leaks']]
  if leaks:
    _log.warning('%d training recordings have the text of a held-out one, the first at %s; case, '
                 'punctuation and Unicode forms do not count.',
                 len(leaks), leaks[0])
  manifest = {
      'version': store.VERSION, 'vocabulary': vocab.to_dict(), 'fingerprint': vocab.fingerprint,
      'codec': 'codec', 'form': config.data.form, 'seq_len': config.data.seq_len,
      'rejects': rejects,
      'max_document': sum(one.info['documents'] for one in rendered),
      'heldout_overlap': len(leaks), 'unused_keys': _by_source(scans, rendered, 'unused'),
      'left_out': _by_source(scans, rendered, 'skipped'),
      'system_prompts': _system_prompts(scans, rendered),
      'splits': {split: _entry(split, scans, rendered, results, config.data.seq_len)
                 for split, results in packed.items()}}
  with work.assembling() as mine:
    if mine:
      copies = _assemble(named, manifest, codec, packed, scans, rendered, results)
      if url_path.is_url(place):
        _upload(named, str(place), copies, progress)
  return manifest


# -- the phases ---------------------------------------------------------------------------


def _settings(config: Config, codec: Codec, vocab: Vocabulary, tokenizer: tokenizers.Tokenizer,
              results: Results, workdir: pathlib.Path) -> render.Settings:
  text = config.vocab
  if isinstance(tokenizer, tokenizers.BpeTokenizer) and text.tokenizer.endswith('.tiktoken'):
    # Recovering merges from ranks takes seconds, so it is done once and not in every process.
    text = dataclasses.replace(
        text, tokenizer=results.put('tokenizer.json', json.dumps(tokenizer.definition())))
  return dataclasses.replace(render_settings(config, codec, vocab, workdir), vocab=text)


def render_settings(config: Config, codec: Codec, vocab: Vocabulary, workdir: pathlib.Path
                    ) -> render.Settings:
  """What decides how records become documents."""
  data, text = config.data, config.vocab
  return render.Settings(text, url_path.stamp(config.vocab.tokenizer), vocab, data.text_chunk,
                         data.audio_chunk, interleave.Fill.from_config(data, codec), data.seq_len,
                         data.truncate, data.strict, config.seed,
                         (str(pathlib.Path.cwd()), mirror.named(workdir),
                          *((data.root,) if data.root else ()), *data.audio_roots))


def _check_empty(scans: Sequence[Scanned]) -> None:
  """Rejects files without records: no later phase would notice them."""
  rows: dict[str, int] = {}
  for one in scans:
    rows[one.input.piece.path] = rows.get(one.input.piece.path, 0) + one.rows
  for path, count in rows.items():
    if not count:
      raise readers.empty(path)


def _render_jobs(scans: Sequence[Scanned], settings: render.Settings,
                 stored: dict[Clip, encode.Place], root: str) -> list[render.Job]:
  heldout = tuple(sorted({text for one in scans for text in one.heldout_texts}))
  out: list[render.Job] = []
  first = {}  # (source, file) -> records before
  for one in scans:
    key = one.input.number, one.input.piece.path
    codes = tuple((clip, stored[clip]) for clip in one.named)
    out.append(render.Job(one.input, settings, first.get(key, 0), codes, root, heldout))
    first[key] = first.get(key, 0) + one.rows
  return out


def _rejects(target: pathlib.Path, place: pathlib.Path, rendered: Sequence[Result], total: int,
             max_rejects: float, results: Results) -> dict[str, int]:
  """Lists the rejected records beside the set; returns {reason: count}.

  Raises:
    UserError: more than the share ``max_rejects`` of the records.
  """
  path = _rejects_file(target)
  listed = _rejects_url(str(place)) if url_path.is_url(place) else str(path)
  counts: dict[str, int] = {}
  for one in rendered:
    for reason, count in one.info['rejects'].items():
      counts[reason] = counts.get(reason, 0) + count
  owned.check_text(path, _SENTENCE, 'config key data.path')
  if not counts:
    path.unlink(missing_ok=True)
    return {}
  with files.replacing(path, 'wb') as out:
    for lines in results.each(lambda one: results.read(one.name, render.REJECTS),
                              [one for one in rendered if one.info['rejects']]):
      out.write(lines)
  count = sum(counts.values())
  if count > max_rejects * total:
    with path.open('rb') as file:
      first = json.loads(file.readline())['sentence']
    if url_path.is_url(place):
      remote.upload(path, listed)
    raise UserError(f'{count:,} of {total:,} records ({count / total:.1%}) cannot be used, and '
                    f'data.max_rejects allows {max_rejects:.1%}; {listed} lists them, the first '
                    f'is: {first}')
  _log.warning('%d of %d records were rejected; %s lists them.', count, total, listed)
  return dict(sorted(counts.items()))


def _pack(scans, rendered, work, config, vocab, progress, apart
          ) -> dict[str, list[tuple[pack.Job, Result]]]:
  """Split -> its shards, in the config's order of splits."""
  blocks: dict[str, list[pack.Block]] = {}
  before = 0
  for one, result in zip(scans, rendered):
    mine = blocks.setdefault(one.input.source.split, [])
    mine += [pack.Block(result.name, i, documents, tokens, before)
             for i, (documents, tokens) in enumerate(result.info['blocks'])]
    before += result.info['documents']
  jobs = {split: pack.jobs(work.results.root, found, config.data.seq_len, vocab, config.seed)
          for split, found in blocks.items() if found}
  if not jobs:
    raise UserError('config key data.sources: no record is left to train on; check repeat, the '
                    'rejected records and the files.')
  flat = [job for found in jobs.values() for job in found]
  results = work.run(pack.pack, flat, lambda done: progress('packing', done, before), apart)
  return {split: [(job, next(results)) for job in found] for split, found in jobs.items()}


# -- the set ------------------------------------------------------------------------------


def _entry(split: str, scans, rendered, packed, seq_len: int) -> dict[str, Any]:
  """A split's entry in the manifest."""
  mine = [result.info for one, result in zip(scans, rendered)
          if one.input.source.split == split]
  tasks: dict[str, dict[str, int]] = {}
  for info in mine:
    for task, counts in info['tasks'].items():
      entry = tasks.setdefault(task, dict.fromkeys(counts, 0))
      for key, count in counts.items():
        entry[key] += count
  rows = sum(result.info['rows'] for _, result in packed)
  tokens = {kind: sum(entry[kind] for entry in tasks.values())
            for kind in ('text', 'audio', 'supervised')}
  padding = rows * seq_len - tokens['text'] - tokens['audio']
  return {'files': [{'name': _name(split, job), **{
              key: result.info[key] for key in ('rows', 'bytes', 'sha256')}}
                    for job, result in packed],
          'rows': rows, 'documents': sum(info['documents'] for info in mine),
          'truncated': sum(info['truncated'] for info in mine),
          'tokens': {**tokens, 'padding': padding},
          'padding': round(padding / (rows * seq_len), 6), 'tasks': tasks,
          'lengths': {'edges': render.bins(seq_len), 'documents': np.sum(
              [info['lengths'] for info in mine], axis=0).tolist()}}


def _system_prompts(scans: Sequence[Scanned], rendered: Sequence[Result]) -> dict[str, str]:
  """Task -> the system prompt of its first training record, or else of its first held-out one."""
  out: dict[str, str] = {}
  for heldout in (False, True):
    for one, result in zip(scans, rendered):
      if one.input.heldout == heldout:
        out = {**result.info['system_prompts'], **out}
  return out


def _by_source(scans: Sequence[Scanned], rendered: Sequence[Result], what: str
               ) -> dict[str, dict[str, int]]:
  """Path of a source, as the config names it -> unused keys, or reasons -> number of records."""
  out: dict[str, dict[str, int]] = {}
  for one, result in zip(scans, rendered):
    for key, count in result.info[what].items():
      mine = out.setdefault(one.input.source.path, {})
      key = key if key in mine or len(mine) < keys.MOST else keys.OTHERS
      mine[key] = mine.get(key, 0) + count
  return out


def _name(split: str, job: pack.Job) -> str:
  return f'{split}-{job.number:05d}-of-{job.total:05d}.arrayrecord'


def _assemble(target: pathlib.Path, manifest, codec: Codec, packed, scans, rendered,
              results: Results) -> dict[str, publish.Copy]:
  """Assembles the set in a temporary folder beside ``target``, and replaces it; returns what
  belongs to it and is in the bucket already, by its name in the set."""
  copies: dict[str, publish.Copy] = {}
  with owned.Building(target, _KIND, _WHERE, store.proven_files) as building, files.writing(
      target, 'finished work is stored'):
    folder = building.folder
    for split, shards in packed.items():
      for job, result in shards:
        name = _name(split, job)
        if url := results.url(result.name, pack.FILE):
          copies[name] = publish.Copy(url, result.info['bytes'], result.info['sha256'])
        else:
          _link(results.file(result.name, pack.FILE), folder / name)
    recordings = _Copies(folder / 'heldout_wav')
    for one, result in zip(scans, rendered):
      if one.input.heldout and result.info['documents']:
        _keep_records(results.file(result.name, render.RECORDS), folder, one.input.source.split,
                      recordings, one.input.form)
    codec.save(folder / 'codec')
    store.write_manifest(folder, manifest)
    building.commit({name: owned.entry(copy.size, lambda copy=copy: copy.sha256)
                     for name, copy in copies.items()})
  return copies


def _upload(named: pathlib.Path, url: str, copies: dict[str, publish.Copy], progress: Progress
            ) -> None:
  """Moves the set, and the list of rejected records, from the disk to a bucket."""
  rejects = _rejects_file(named)
  if rejects.is_file():
    remote.upload(rejects, _rejects_url(url))
  else:
    remote.remove(_rejects_url(url))
  with publish.leased(url, f'{_WHERE} = {url}'):
    publish.publish(named, url, (store.MANIFEST,),
                    lambda done, total: progress('uploading (bytes)', done, total), copies)
  owned.remove(named)
  rejects.unlink(missing_ok=True)


def _rejects_url(url: str) -> str:
  """The list of rejected records beside a set in a bucket."""
  return f'{url}.rejects.jsonl'


def _check_rejects(url: str) -> None:
  """UserError if the object is there and is no such list."""
  if remote.exists(url) and _SENTENCE.encode() not in remote.read_bytes(url)[:2**16]:
    raise UserError(f'{_WHERE}: {url} exists and was not written by ttt-jax; move it, or choose '
                    'another name.')


def _rejects_file(named: pathlib.Path) -> pathlib.Path:
  return named.with_name(f'{named.name}.rejects.jsonl')


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
  """Links a file, or copies it where the file system has no hard links.

  It is not moved: a run that is interrupted during assembly must find its shards again.
  """
  try:
    os.link(source, target)
  except OSError:
    shutil.copyfile(source, target)


class _Copies:
  """Copies of held-out recordings in one folder: each once, under a name of its own."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self._names = FileNames()
    self._known: dict[Clip, str] = {}  # stretch of a file -> name of its copy

  def add(self, clip: Clip) -> str | None:
    """The name of the copy; None if there is no such file. A part of a file becomes a file."""
    if embedded.is_embedded(clip.path):
      return self._add_embedded(clip)
    file = url_path.place(clip.path)
    if clip not in self._known:
      if not file.is_file():
        return None
      whole = clip == Clip(clip.path)
      name = self._names.new(file.stem, file.suffix if whole else '.wav')
      self.folder.mkdir(exist_ok=True)
      if whole:
        with file.open('rb') as source, (self.folder / name).open('wb') as copy:
          shutil.copyfileobj(source, copy)
      else:
        io.write_wav(self.folder / name, *io.read(*clip))
      self._known[clip] = name
    return self._known[clip]


  def _add_embedded(self, clip: Clip) -> str:
    data = embedded.contents(clip.path)
    clip = clip._replace(path=embedded.key(data))
    if clip not in self._known:
      name = self._names.new('embedded', '.wav')
      io.write_wav(self.folder / name, *io.read(data, *clip[1:]))
      self._known[clip] = name
    return self._known[clip]


def _keep_records(kept: pathlib.Path, folder: pathlib.Path, split: str, copies: _Copies,
                  form: str) -> None:
  """Writes held-out records and copies of their recordings; codes need no recording."""
  def copy(part: Part) -> Part:
    name = copies.add(part.clip) if part.source else None
    return dataclasses.replace(part, source=name and f'{copies.folder.name}/{name}', offset=0.0,
                               duration=None, channel=None)
  with (folder / f'{split}.records.jsonl').open('ab') as out:
    for where, value in readers.read(kept):
      record = records.parse(value, where, form=form).map_audio(copy)
      line = json.dumps(records.to_json(record), ensure_ascii=False) + '\n'
      out.write(line.encode('utf-8', 'backslashreplace'))  # as in render.py


def _check_place(target: pathlib.Path, workdir: pathlib.Path, path: str) -> None:
  """Raises UserError: other files of a run belong there. Both are on a disk, or in buckets."""
  if workdir.is_relative_to(target):
    raise UserError(f'{_WHERE} is {path!r}, the workdir itself or a folder around it, which would '
                    'be replaced with all that it holds; name a folder in it, such as data.')
  inside = target.relative_to(workdir).parts if target.is_relative_to(workdir) else ()
  if inside and inside[0] in _OTHERS:
    raise UserError(f'{_WHERE} is {path!r}, but {inside[0]} in a workdir is for other files of a '
                    'run; name another folder, such as data.')


def _check_target(named: pathlib.Path, workdir: pathlib.Path, path: str) -> None:
  """Raises UserError: what is there was not made by this program, or it cannot be written."""
  target = owned.resolve(named)
  _check_place(target, owned.resolve(workdir), path)
  owned.Building(named, _KIND, _WHERE, store.proven_files)
  owned.check_text(_rejects_file(named), _SENTENCE, _WHERE)
  files.require_writable(target.parent)
  files.require_writable(named.parent)
