"""What data.sources name, as inputs that can be read on their own: files, and pieces of files.

  {"path": "train.jsonl", "task": "asr"}   recordings, made into records of that task
  {"path": "qa/*.parquet"}                 records

What a path may be and how files are read is in files.py.
"""

import dataclasses
import pathlib
from typing import Any, Iterator, NamedTuple, Sequence

import numpy as np

from ttt_jax.config import Source
from ttt_jax.data import store
from ttt_jax.data.records import readers, records, tasks
from ttt_jax.data.records.records import Part, Record
from ttt_jax.data.records.tasks import Recording
from ttt_jax.errors import UserError

HELDOUT = 'heldout'      # splits whose name starts so are never trained on
JOINED = ('asr', 'tts')  # tasks whose recordings are speech and its words
_START = 2**12           # bytes that tell most files of one size apart


def is_heldout(split: str) -> bool:
  return split.startswith(HELDOUT)


class Reject(NamedTuple):
  """A record that is left out.

  Attributes:
    where: 'file:line'.
    reason: one of a few, to count by.
    sentence: what is wrong, for people.
  """
  where: str
  reason: str
  sentence: str


BROKEN, MALFORMED = 'not readable', 'malformed record'  # two of the reasons


@dataclasses.dataclass(frozen=True)
class Input:
  """A piece of a file of a source.

  Attributes:
    source, number: the source, and its place in data.sources.
    piece: what to read.
    stamp: (bytes, time of last change in ns) of the file: another stamp, other contents.
  """
  source: Source
  number: int
  piece: readers.Piece
  stamp: tuple[int, int]

  @property
  def heldout(self) -> bool:
    return is_heldout(self.source.split)

  @property
  def folder(self) -> pathlib.Path:
    """Where relative paths of audio files start."""
    return pathlib.Path(self.piece.path).parent

  def items(self) -> Iterator[tuple[str, Recording | Record | Reject]]:
    """('file:line', what stands there) of everything in the piece.

    Raises:
      UserError: a file that cannot be read on.
    """
    for where, value in readers.items(self.piece):
      yield where, self.parse(where, value)

  def parse(self, where: str, value: dict[str, Any] | UserError) -> Recording | Record | Reject:
    """One object of the input, as files.items gives it."""
    if isinstance(value, UserError):
      return Reject(where, BROKEN, str(value))
    try:
      return _parse(value, where, self.source)
    except UserError as error:
      return Reject(where, MALFORMED, str(error))

  def record(self, item: Recording | Record, place: int, copy: int, seed: int,
             text_chunk: int, audio_chunk: int) -> Record:
    """The record, with its system turn, that an item becomes; its codes are known.

    Args:
      item: of this input.
      place: the item's number in its file, from 0.
      copy: 0 .. copies(place) - 1; it matters to tasks that draw something.
      seed: of the run.
      text_chunk, audio_chunk: the prompt names them.
    """
    if isinstance(item, Recording):
      rng = np.random.default_rng([seed, self.number, place, copy])
      item = tasks.to_record(item, self.source.task, rng, self.source.speech)
    return tasks.with_prompt(item, self.source.prompt, text_chunk, audio_chunk)

  def copies(self, place: int) -> int:
    """How often the item at ``place`` is taken: evenly spread, ``repeat`` times on average."""
    times = self.source.repeat
    return int((place + 1) * times + 1e-9) - int(place * times + 1e-9)

  def file_of(self, part: Part) -> str:
    """Path of the audio file of a part that has no codes."""
    return str(self.folder / part.source)


def _parse(value: dict, where: str, source: Source) -> Recording | Record:
  """Recordings of a task, or records, which a source of most tasks may hold as well."""
  task = source.task
  whole = task not in JOINED and (tasks.is_record(value) or task == 'pt' and 'pieces' not in value)
  if task in tasks.RECORDED and not whole:
    return tasks.parse_recording(value, where, task)
  return records.parse(value, where, source.type, task)


def stamp(path: str | pathlib.Path) -> tuple[int, int]:
  """See Input; (0, 0) if there is no such file."""
  try:
    found = pathlib.Path(path).stat()
  except OSError:
    return 0, 0
  return found.st_size, found.st_mtime_ns


def find(path: str, workdir: pathlib.Path) -> list[pathlib.Path]:
  """A path as the user means it: absolute, from the current directory, or from workdir."""
  found = readers.find(path, [pathlib.Path(), workdir])
  if not found:
    raise UserError(f'config key data.sources: there is no file {path!r}, neither here '
                    f'({pathlib.Path.cwd()}) nor in {workdir}.')
  return found


def inputs(sources: tuple[Source, ...], workdir: pathlib.Path) -> list[Input]:
  """Everything there is to read, in order.

  Raises:
    UserError: no sources, an unknown task, a missing file, settings that do not go together.
  """
  if not sources:
    raise UserError('config key data.sources is empty; name at least one file of records.')
  out = []
  for number, source in enumerate(sources):
    _check(source, number)
    paths = find(source.path, workdir)
    if source.join_count and len(paths) > 1:
      raise UserError(f'config key data.sources[{number}].join_count joins recordings of one file, '
                      f'but {source.path!r} means {len(paths)}; put them into one.')
    for path in paths:
      pieces = [readers.Piece(str(path))] if source.join_count else readers.cut(path)
      out += [Input(source, number, piece, stamp(path)) for piece in pieces]
  return out


def twice(found: Sequence[Input]) -> list[tuple[str, str]]:
  """(file, file) of the same contents that go to one split for one task, by name or as copies.

  Whoever means it sets `repeat`; a glob that also takes a copy or a link does not mean it.
  """
  groups: dict[tuple, list[str]] = {}
  seen = set()
  for one in found:
    key = one.number, one.piece.path
    if key not in seen:
      seen.add(key)
      source = one.source
      groups.setdefault((source.split, source.task, source.prompt, one.stamp[0]), []
                        ).append(one.piece.path)
  out = []
  for paths in groups.values():
    alike: dict[bytes, list[str]] = {}  # files of one size may be many: most differ at once
    for path in paths if len(paths) > 1 else ():
      with open(path, 'rb') as file:
        alike.setdefault(file.read(_START), []).append(path)
    for some in alike.values():
      known: dict[str, str] = {}
      for path in some if len(some) > 1 else ():
        digest = store.sha256(pathlib.Path(path))
        if digest in known:
          out.append((known[digest], path))
        known.setdefault(digest, path)
  return out


def _check(source: Source, number: int) -> None:
  key = f'config key data.sources[{number}]'
  if source.task:
    check_task(source.task, f'{key}.task')
  if not source.split.replace('_', '').replace('-', '').isalnum():
    raise UserError(f'{key}.split is {source.split!r}; it names files, so use letters, digits, - '
                    'and _.')
  if source.join_count and source.task not in JOINED:
    raise UserError(f'{key}.join_count is for recordings; set task to one of '
                    f'{", ".join(JOINED)}.')


def check_task(task: str, what: str) -> None:
  """UserError unless there is such a task; ``what`` opens the sentence."""
  if task not in tasks.RECORDED:
    raise UserError(f'{what} is {task!r}; use one of {", ".join(sorted(tasks.RECORDED))}, or leave '
                    'it out.')


def audio(item: Recording | Record) -> Iterator[Part]:
  """Every audio part of an item."""
  return item.audio_parts() if isinstance(item, Recording) else item.audio()


def said(item: Recording | Record) -> Iterator[str]:
  """What speech to the model says in an item, as tasks.normal gives it."""
  if isinstance(item, Recording):
    if item.text:
      yield tasks.normal(item.text)
    return
  for turn in item.turns:
    if turn.role == 'user':
      yield from (tasks.normal(part.text) for part in turn.parts
                  if part.kind == 'audio' and part.text)
