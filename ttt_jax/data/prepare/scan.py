"""First look at an input: how many records, which audio files, what held-out speech says."""

import dataclasses
import pathlib
from typing import Any, Iterator

from ttt_jax.data.prepare.jobs import Result, tick
from ttt_jax.data.records import readers
from ttt_jax.data.records.sources import Input, Reject, audio, said
from ttt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Job:
  """See ``scan``; strict: the first bad record is an error."""
  input: Input
  strict: bool


@dataclasses.dataclass(frozen=True)
class Scanned:
  """What was seen in an input.

  Attributes:
    input: the input.
    rows: how many records it has, bad ones too.
    coded: 'file:line' of the first audio that is given as codes; None = there is none.
    named: path of every audio file without codes -> the 'file:line' that names it first.
    said: what held-out speech says, as tasks.normal gives it; empty unless held out.
  """
  input: Input
  rows: int
  coded: str | None
  named: dict[str, str]
  said: list[str]

  @property
  def audio(self) -> bool:
    return bool(self.coded or self.named)


def result(job: Job, found: Result) -> Scanned:
  """What ``scan`` left, read back."""
  return Scanned(job.input, **{key: value for key, value in found.info.items() if key != 'units'})


def scan(job: Job, folder: pathlib.Path) -> dict[str, Any]:
  """Look through an input.

  Raises:
    UserError: the input cannot be read on, or, if the job is strict, a record is bad.
  """
  rows, coded = 0, None
  named: dict[str, str] = {}
  spoken: list[str] = []
  for where, item in _items(job):
    rows += 1
    tick()
    if isinstance(item, Reject):
      if job.strict:
        raise UserError(item.sentence)
    elif isinstance(item, bool):
      coded = coded or (where if item else None)
    else:
      for part in audio(item):
        if part.codes is not None:
          coded = coded or where
        else:
          named.setdefault(job.input.file_of(part), where)
      if job.input.heldout:
        spoken += said(item)
  return {'rows': rows, 'coded': coded, 'named': named, 'said': spoken, 'units': rows}


def _items(job: Job) -> Iterator[tuple[str, Any]]:
  """As Input.items. If bad records may pass, a line of JSON that cannot name an audio file is
  not read any further, it only says whether it has codes (a bool): it is read later anyway."""
  source = job.input
  if (job.strict or source.source.task or source.heldout
      or not readers.is_lines(source.piece.path)):
    yield from source.items()
    return
  for where, line in readers.lines(source.piece):
    if isinstance(line, UserError):
      yield where, Reject(where, '', str(line))
    elif b'"audio"' in line or b'\\u00' in line:
      yield where, source.parse(where, readers.parse_line(where, line))
    else:
      yield where, b'<|audio_' in line or b'"codes"' in line
