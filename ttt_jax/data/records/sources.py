"""The inputs that config key data.sources names: files, and pieces of large files.

  {"path": "train.jsonl", "task": "asr"}   recordings, which become records of that task
  {"path": "qa/*.parquet"}                 records
  {"path": "LibriSpeech", "task": "asr"}   a public corpus, see corpora/

readers.py finds and reads the files.
"""

from concurrent import futures
import dataclasses
import os
import pathlib
from typing import Any, Callable, Iterator, NamedTuple, Sequence

import numpy as np

from ttt_jax.config import Source
from ttt_jax.data.records import corpora, embedded, folders, places, readers, records, tasks
from ttt_jax.data.records.corpora import Skip
from ttt_jax.data.records.parts import Clip, Part, Record
from ttt_jax.data.records.tasks import Recording
from ttt_jax.errors import UserError
from ttt_jax.storage import files, url_path
from ttt_jax.tokens import words

HELDOUT = 'heldout'      # prefix of the names of splits that are never trained on
JOINED = ('asr', 'tts')  # tasks whose recordings are speech and its transcript
_START = 2**12           # bytes; enough to distinguish most files of equal size
_THREADS = 16            # that look at objects of a bucket


def is_heldout(split: str) -> bool:
  return split.startswith(HELDOUT)


class Reject(NamedTuple):
  """A record that cannot be used.

  Attributes:
    where: 'file:line'.
    reason: its category, for counts.
    sentence: the error message.
  """
  where: str
  reason: str
  sentence: str


Item = Recording | Record | Reject | Skip
BROKEN, MALFORMED = 'not readable', 'malformed record'  # reasons


@dataclasses.dataclass(frozen=True)
class Input:
  """One file of a source, or a piece of it.

  Attributes:
    source, number: the source, and its index in data.sources.
    piece: what to read.
    stamp: of the file, see url_path.stamp; it identifies the contents.
    form: of the strings of records, config key data.form.
  """
  source: Source
  number: int
  piece: readers.Piece
  stamp: tuple[int, int]
  form: str = 'default'

  @property
  def heldout(self) -> bool:
    return is_heldout(self.source.split)

  @property
  def folder(self) -> pathlib.Path:
    """The folder that paths of audio files are relative to."""
    if isinstance(self.piece, corpora.Piece):
      return url_path.place(self.piece.root)
    return url_path.place(self.piece.path).parent

  def items(self) -> Iterator[tuple[str, Item]]:
    """('file:line', item) of everything in the piece.

    Raises:
      UserError: a file that is unreadable from some place on.
    """
    found = (corpora.items(self.piece, self.source.task, self.source.transcript)
             if isinstance(self.piece, corpora.Piece) else readers.items(self.piece))
    for where, value in found:
      yield where, self.parse(where, value)

  def parse(self, where: str, value: dict[str, Any] | UserError | Skip) -> Item:
    """Parses one object of the input, as readers.items or corpora.items returns it."""
    if isinstance(value, Skip):
      return value
    if isinstance(value, UserError):
      return Reject(where, BROKEN, str(value))
    try:
      return _parse(value, where, self.source, self.form)
    except UserError as error:
      return Reject(where, MALFORMED, str(error))

  def record(self, item: Recording | Record, place: int, copy: int, seed: int,
             text_chunk: int, audio_chunk: int) -> Record:
    """The record, with its system turn, of an item whose codes are known.

    Args:
      item: of this input.
      place: index of the item in its file, from 0.
      copy: 0 .. copies(place) - 1; tasks with random draws use it.
      seed: of the run.
      text_chunk, audio_chunk: for the default system prompt.
    """
    if isinstance(item, Recording):
      rng = np.random.default_rng([seed, self.number, place, copy])
      item = tasks.to_record(item, self.source.task, rng, self.source.speech)
    elif self.form == 'published' and self.source.prompt is None:
      return item  # the template adds an empty system turn, not the wording of a task
    return tasks.with_prompt(item, self.source.prompt, text_chunk, audio_chunk)

  def copies(self, place: int) -> int:
    """Number of copies of the item at ``place``: ``repeat`` on average, evenly spread."""
    times = self.source.repeat
    return int((place + 1) * times + 1e-9) - int(place * times + 1e-9)

  def clip_of(self, part: Part) -> Clip:
    """The stretch of an audio file of a part that has no codes; for an embedded one its key."""
    if embedded.is_embedded(part.clip.path):
      return part.clip._replace(path=embedded.key(embedded.contents(part.clip.path)))
    return part.clip._replace(path=places.located(self.folder, part.clip.path))


  def with_path(self, part: Part) -> Part:
    """A part whose path, if it has one, does not depend on the input's folder."""
    if part.source is None or embedded.is_embedded(part.source):
      return part
    found = places.located(self.folder, part.source)
    return dataclasses.replace(part, source=found if url_path.is_url(found)
                               else os.path.abspath(found))


def _parse(value: dict, where: str, source: Source, form: str) -> Recording | Record:
  """A recording of the source's task, or a record; sources of most tasks may hold both."""
  task = source.task
  record = task not in JOINED and (tasks.is_record(value) or task == 'pt' and 'pieces' not in value)
  if task in tasks.RECORDED and not record:
    return tasks.parse_recording(value, where, task)
  return records.parse(value, where, source.type, task, form)


def roots(workdir: pathlib.Path, root: str = '') -> list[pathlib.Path]:
  """The folders that relative paths of sources are looked up in, in order.

  Args:
    workdir: of the run.
    root: config key data.root, '' = none.
  """
  return [*([url_path.place(root)] if root else ()), pathlib.Path(), workdir]


def find(path: str, folders_: Sequence[pathlib.Path], key: str = 'config key data.sources'
         ) -> list[pathlib.Path]:
  """The files of a path: absolute, or relative to one of the folders that ``roots`` returns."""
  found = readers.find(path, list(folders_))
  if not found:
    raise UserError(f'{key}: there is no file {path!r}{_nowhere(path, folders_)}.')
  return found


def _nowhere(path: str, folders_: Sequence[pathlib.Path]) -> str:
  """The end of a sentence: where a path was looked up."""
  if url_path.is_url(path):
    return ''
  return ', neither in ' + ' nor in '.join(str(folder.absolute()) for folder in folders_)


def inputs(sources: tuple[Source, ...], workdir: pathlib.Path,
           form: str = 'default', root: str = '') -> list[Input]:
  """The inputs of all sources, in order; ``form`` and ``root`` are config keys of data.

  Raises:
    UserError: no sources, an unknown task, a missing file, or settings that exclude each other.
  """
  if not sources:
    raise UserError('config key data.sources is empty; name at least one file of records.')
  out = []
  for number, source in enumerate(sources):
    _check(source, number)
    places_ = roots(workdir, root)
    found = _corpus(source, number, places_)
    if found is not None:
      out += [Input(source, number, piece, piece.stamp(), form) for piece in found]
      continue
    paths = find(source.path, places_, f'config key data.sources[{number}]')
    stamps = {path: url_path.stamp(path) for path in paths}
    if source.join_count and len(paths) > 1:
      raise UserError(f'config key data.sources[{number}].join_count joins recordings of one file, '
                      f'but {source.path!r} matches {len(paths)}; merge them into one.')
    cut = (lambda path: [readers.Piece(str(path))]) if source.join_count else readers.cut
    for path, pieces in zip(paths, _each(cut, paths)):
      out += [Input(source, number, piece, stamps[path], form) for piece in pieces]
  return out


def _each(function: Callable[[pathlib.Path], Any], paths: Sequence[pathlib.Path]) -> Iterator[Any]:
  """``map``; several objects of a bucket at once, since each waits for the network."""
  if not paths or not url_path.is_url(paths[0]):
    yield from map(function, paths)
    return
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    yield from pool.map(function, paths)


def duplicates(found: Sequence[Input]) -> list[tuple[str, str]]:
  """Pairs of files with equal contents that go to the same split for the same task.

  `repeat` is the way to read records several times; a pattern that also matches a copy or a
  link is a mistake.
  """
  groups: dict[tuple, list[str]] = {}
  seen = set()
  pieces: dict[tuple, int] = {}
  out = []
  for one in found:
    source, key = one.source, (one.number, one.piece.path)
    if isinstance(one.piece, corpora.Piece):
      same = source.split, source.task, source.prompt, one.piece
      if pieces.setdefault(same, one.number) != one.number and (
          not out or out[-1][0] != one.piece.path):
        out.append((one.piece.path, one.piece.path))
    elif key not in seen:
      seen.add(key)
      groups.setdefault((source.split, source.task, source.prompt, one.stamp[0]), []
                        ).append(one.piece.path)
  for paths in groups.values():
    alike: dict[bytes, list[str]] = {}  # by their first bytes
    for path in paths if len(paths) > 1 else ():
      with url_path.place(path).open('rb') as file:
        alike.setdefault(file.read(_START), []).append(path)
    for some in alike.values():
      known: dict[Any, str] = {}
      for path in some if len(some) > 1 else ():
        digest = files.sha256(path) if not url_path.is_url(path) else url_path.stamp(path)
        if digest in known:
          out.append((known[digest], path))
        known.setdefault(digest, path)
  return out


def evaluated(found: Sequence[Input]) -> list[str]:
  """A sentence for every source that trains on a development or test part of a corpus."""
  out: dict[int, str] = {}
  for one in found:
    if isinstance(one.piece, corpora.Piece) and not one.heldout and (
        corpora.kind(one.piece) != 'train'):
      out.setdefault(one.number, f'data.sources[{one.number}] trains on {one.piece.part}, a '
                     f'{corpora.kind(one.piece)} part of {one.piece.root}; give it a split '
                     f'{HELDOUT!r} to evaluate on it.')
  return list(out.values())


def _is_file(path: str) -> bool:
  """Whether a URL is that of files by its name: no request is needed then."""
  return url_path.is_url(path) and (
      bool(readers.kind_of(url_path.place(path))) or any(mark in path for mark in '*?['))


def _corpus(source: Source, number: int, places_: Sequence[pathlib.Path]
            ) -> list[corpora.Piece] | None:
  """The pieces of a source that names the folder of a public corpus; None if it does not."""
  key = f'config key data.sources[{number}]'
  folder = next((path for path in (url_path.join(place, source.path) for place in places_)
                 if path.exists()), None) if source.path and not _is_file(source.path) else None
  folder = folder if folder and folder.is_dir() else None
  if folder is None or folders.has_manifest(folder) and not source.corpus:
    if source.corpus and folder is None:
      raise UserError(f'{key}: there is no folder {source.path!r}{_nowhere(source.path, places_)}; '
                      f'corpus {source.corpus!r} is read from its folder.')
    found = None
  else:
    try:
      found = corpora.recognise(folder, source.corpus)
    except UserError as error:
      raise UserError(f'{key}: {error}') from error
  if found is None:
    for name in ('subset', 'transcript'):
      if getattr(source, name) != getattr(Source(), name):
        raise UserError(f'{key}.{name} is {getattr(source, name)!r}, but {source.path!r} is not '
                        f'the folder of a corpus that is known ({", ".join(corpora.LAYOUTS)}).')
    return None
  layout, root = found
  if source.task not in layout.tasks:
    raise UserError(f'{key}.task is {source.task!r}, but {source.path!r} is {layout.title}, which '
                    f'is read for {" or ".join(layout.tasks)}.')
  if source.join_count:
    raise UserError(f'{key}.join_count joins recordings of one file, but {source.path!r} is '
                    f'{layout.title}; leave it out.')
  try:
    return corpora.pieces(layout, root, source.subset, is_heldout(source.split))
  except UserError as error:
    raise UserError(f'{key}: {error}') from error


def _check(source: Source, number: int) -> None:
  key = f'config key data.sources[{number}]'
  if source.task:
    check_task(source.task, f'{key}.task')
  if not source.split.replace('_', '').replace('-', '').isalnum():
    raise UserError(f'{key}.split is {source.split!r}; it is part of file names, so use letters, '
                    'digits, - and _.')
  if source.join_count and source.task not in JOINED:
    raise UserError(f'{key}.join_count is for recordings; set task to one of '
                    f'{", ".join(JOINED)}.')


def check_task(task: str, what: str) -> None:
  """Raises a UserError unless there is such a task; the sentence starts with ``what``."""
  if task not in tasks.RECORDED:
    raise UserError(f'{what} is {task!r}; use one of {", ".join(sorted(tasks.RECORDED))}, or omit '
                    'it.')


def audio(item: Recording | Record) -> Iterator[Part]:
  """Every audio part of an item."""
  return item.audio_parts() if isinstance(item, Recording) else item.audio()


def spoken_texts(item: Recording | Record) -> Iterator[str]:
  """Transcripts of the user's speech in an item, normalised by words.comparable."""
  if isinstance(item, Recording):
    if item.text:
      yield words.comparable(item.text)
    return
  for turn in item.turns:
    if turn.role == 'user':
      yield from (words.comparable(part.text) for part in turn.parts
                  if part.kind == 'audio' and part.text)
