"""Phase 1 of prepare: counts an input's records and lists its audio files and held-out texts."""

import dataclasses
import pathlib
from typing import Any, Iterator

from ttt_jax.data.prepare.jobs import tick
from ttt_jax.data.prepare.results import Result
from ttt_jax.data.records import embedded, readers
from ttt_jax.data.records.corpora import Skip
from ttt_jax.data.records.parts import Clip
from ttt_jax.data.records.sources import Input, Reject, audio, spoken_texts
from ttt_jax.errors import UserError

BLOBS = 'sounds.bin'
# A line that has none of these, in any case, names no audio file: starts and ends of the keys in
# sounds.py, and an escape that may hide them.
_NAMING = (b'"audio', b'_audio"', b'<audio>', b'"speech', b'"sound', b'"wav', b'"path"', b'"file',
           b'\\u00')


@dataclasses.dataclass(frozen=True)
class Job:
  """See ``scan``; strict: the first bad record is an error."""
  input: Input
  strict: bool


@dataclasses.dataclass(frozen=True)
class Scanned:
  """The result of ``scan``.

  Attributes:
    input: the input.
    rows: number of records, bad ones included.
    coded: 'file:line' of the first audio that is given as codes, or None.
    named: every stretch of an audio file without codes -> the 'file:line' that names it first.
    heldout_texts: texts of held-out recordings, normalised by words.comparable.
    blobs: key of every embedded sound -> (address of the result, start, bytes) of its BLOBS.
  """
  input: Input
  rows: int
  coded: str | None
  named: dict[Clip, str]
  heldout_texts: list[str]
  blobs: dict[str, tuple[str, int, int]]

  @property
  def audio(self) -> bool:
    return bool(self.coded or self.named)


def result(job: Job, found: Result, address: str) -> Scanned:
  """A stored result of ``scan``, and its address, as a Scanned."""
  info = {key: value for key, value in found.info.items() if key != 'units'}
  named = {Clip(*clip): where for *clip, where in info.pop('named')}
  blobs = {key: (address, *place) for key, place in info.pop('blobs').items()}
  return Scanned(job.input, named=named, blobs=blobs, **info)


def scan(job: Job, folder: pathlib.Path) -> dict[str, Any]:
  """Reads an input once.

  Raises:
    UserError: the input is unreadable from some place on, or the job is strict and a record is
      bad.
  """
  rows, coded = 0, None
  blobs = _Blobs(folder)
  named: dict[Clip, str] = {}
  texts: list[str] = []
  for where, item in _items(job):
    rows += 1
    tick()
    if isinstance(item, Reject):
      if job.strict:
        raise UserError(item.sentence)
    elif isinstance(item, Skip):
      pass  # render.py counts it
    elif isinstance(item, bool):
      coded = coded or (where if item else None)
    else:
      for part in audio(item):
        if part.codes is not None:
          coded = coded or where
        else:
          clip = job.input.clip_of(part)
          named.setdefault(clip, where)
          if embedded.is_key(clip.path):
            blobs.add(clip.path, part.clip.path)
      if job.input.heldout:
        texts += spoken_texts(item)
  return {'rows': rows, 'coded': coded,
          'named': [[*clip, where] for clip, where in named.items()], 'heldout_texts': texts,
          'units': rows, 'blobs': blobs.places}


class _Blobs:
  """The embedded sounds of an input, each once, in one file beside the result: encode.py reads them
  in another order than the input has."""

  def __init__(self, folder: pathlib.Path):
    self.places: dict[str, tuple[int, int]] = {}
    self._path, self._size = folder / BLOBS, 0

  def add(self, key: str, source: str) -> None:
    if key not in self.places:
      data = embedded.contents(source)
      with self._path.open('ab') as file:
        file.write(data)
      self.places[key] = self._size, len(data)
      self._size += len(data)


def _items(job: Job) -> Iterator[tuple[str, Any]]:
  """As Input.items, but skips JSON decoding where it is not needed.

  Unless the job is strict, a line that cannot name an audio file is not decoded: a bool says
  whether it has codes. render.py decodes it later anyway.
  """
  source = job.input
  if (job.strict or source.source.task or source.heldout
      or not readers.is_lines(source.piece.path)):
    yield from source.items()
    return
  for where, line in readers.lines(source.piece):
    if isinstance(line, UserError):
      yield where, Reject(where, '', str(line))
    elif (small := line.lower()) and any(mark in small for mark in _NAMING):
      yield where, source.parse(where, readers.parse_line(where, line))
    else:
      yield where, b'<|audio_' in line or b'"codes"' in line
