"""Items of published files: recordings of a corpus, rows of tables, questions with answers."""

import collections
from collections.abc import Iterable
import dataclasses
import os
import pathlib
from typing import Any

from ttt_jax.config import Source
from ttt_jax.data.records import embedded, places, readers, sources, tasks
from ttt_jax.data.records.records import Part, Record, Turn
from ttt_jax.data.records.tasks import Recording
from ttt_jax.errors import UserError


def recordings(data: pathlib.Path, task: str, notes: list[str] | None = None,
               subset: str = '') -> list[tuple[Recording | Record, str]]:
  """All recordings or records of a folder or a file, in any layout that `prepare` reads.

  Args:
    data: the folder, file or pattern. Of a corpus with parts, the test parts are read.
    task: of data/records/tasks.py; says which keys the rows need.
    notes: takes a sentence for each reason for which the corpus itself leaves rows out.
    subset: parts of the corpus, separated by commas; '' = the test parts.

  Returns:
    (item, part of the corpus or '') in order; paths of audio are absolute.

  Raises:
    UserError: no such place, an unknown layout, or a row that cannot be used: numbers of a
      benchmark are of all of its rows.
  """
  require(data)
  out: list[tuple[Recording | Record, str]] = []
  left_out: collections.Counter[str] = collections.Counter()
  source = Source(path=str(data), task=task, split=sources.HELDOUT, subset=subset)
  for one in _inputs(source):
    part = getattr(one.piece, 'part', '')
    for _, item in one.items():
      if isinstance(item, sources.Reject):
        raise UserError(item.sentence)
      if isinstance(item, (Recording, Record)):
        out.append((item.map_audio(one.with_path), part))
      else:
        left_out[item.reason] += 1
  if not out:
    raise readers.empty(data)
  if notes is not None:
    notes += [f'Rows left out: {count:,} ({reason}).' for reason, count in left_out.items()]
  return out


def _inputs(source: Source) -> list[sources.Input]:
  """The inputs of a source; errors name the flags that it was made of."""
  try:
    return sources.inputs((source,), pathlib.Path())
  except UserError as error:
    text = str(error)
    for key, flag in ((f'config key data.sources[0].task is {source.task!r}, but ',
                       f'the suite needs records of task {source.task!r}, but --data '),
                      ('config key data.sources[0].subset', '--subset'),
                      ('config key data.sources[0]:', '--data:'),
                      (', which a source with a held-out split reads unless it has a subset',
                       ', which is evaluated unless --subset names others')):
      text = text.replace(key, flag)
    raise UserError(text) from error


def check_sounds(items: Iterable[Record]) -> None:
  """Raises a UserError if a recording of a request does not exist, before hours of work."""
  seen = set()
  for record in items:
    for part in record.audio():
      path = part.source
      if path is None or embedded.is_embedded(path) or path in seen:
        continue
      seen.add(path)
      if not os.path.isfile(path):
        raise UserError(f'{record.where}: there is no recording {path}{places.searched(path)}.')


def rows(data: pathlib.Path) -> list[tuple[str, dict[str, Any], pathlib.Path]]:
  """('file:line', row, folder of the file) of all files that ``data`` names.

  Raises:
    UserError: no such place, an unknown layout, or a row that cannot be read.
  """
  require(data)
  return [(where, row, file.parent) for file in readers.find(str(data), [pathlib.Path()])
          for where, row in readers.read(file)]


def absolute(part: Part, folder: pathlib.Path) -> Part:
  """A part whose path, relative to ``folder``, is absolute."""
  if part.source is None or embedded.is_embedded(part.source):
    return part
  return dataclasses.replace(part, source=os.path.abspath(places.located(folder, part.source)))


def require(data: pathlib.Path) -> None:
  """Raises a UserError unless ``data`` exists or is a pattern."""
  if not data.exists() and not any(mark in str(data) for mark in '*?['):
    raise UserError(f'--data: there is no folder or file {data}.')


def question(id: str, task: str, parts: tuple[Part, ...], where: str) -> Record:
  """The request with ``parts`` as the user's turn."""
  return Record(id, task, 'IT', (Turn('user', parts), Turn('assistant', ())), where)


def asked(item: Recording | Record, task: str) -> Record:
  """The request that a recording makes in training: its record with an empty answer."""
  record = tasks.to_record(item, task) if isinstance(item, Recording) else item
  last = max((i for i, turn in enumerate(record.turns) if turn.role == 'assistant'), default=0)
  if not any(turn.role == 'user' for turn in record.turns[:last]):
    raise UserError(f'{record.where}: record {record.id} does not ask a question.')
  return dataclasses.replace(record, task=record.task or task,
                             turns=(*record.turns[:last], Turn('assistant', ())))


def sound_of(item: Recording | Record) -> tuple[Any, ...]:
  """Identifies the sounds of a request: equal ones are the same stretches of the same files."""
  parts = item.audio_parts() if isinstance(item, Recording) else item.audio()
  return tuple(part.clip if part.source is not None else part.known_codes.tobytes()
               for part in parts)


def answer_of(item: Recording | Record) -> str:
  """The text of the reference answer; the transcript of a recording that has no other."""
  if isinstance(item, Recording):
    return ''.join(part.text for part in item.answer if part.kind == 'text').strip() or (
        item.text.strip())
  turn = next((turn for turn in item.turns[::-1] if turn.role == 'assistant'), None)
  return ''.join(part.text for part in turn.parts if part.kind == 'text').strip() if turn else ''
