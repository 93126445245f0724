"""`ttt-jax inspect --record FILE:LINE`: a record as `ttt-jax prepare` would render it."""

import contextlib
import dataclasses
import pathlib
from typing import Iterator

import numpy as np

from ttt_jax.audio import codec as codecs
from ttt_jax.config import Config, Source
from ttt_jax.data import interleave, store
from ttt_jax.data.records import places, readers, sources
from ttt_jax.data.records.corpora.layout import Skip
from ttt_jax.data.records.records import Part, Record
from ttt_jax.errors import UserError
from ttt_jax.runs.report.inspect_set import PreparedSet, Reader, describe
from ttt_jax.storage import url_path
from ttt_jax.tokens.batch import make_row


@dataclasses.dataclass(frozen=True, eq=False)
class _Found:
  """The object at a line of a file; ``before`` = how many records precede it."""
  path: pathlib.Path
  line: int
  before: int
  value: dict | UserError


def show(config: Config, workdir: pathlib.Path, place: str, task: str | None,
         out: pathlib.Path | None, ids: bool = False) -> Iterator[str]:
  """A record as text, once for each entry of data.sources that names its file.

  Args:
    config: of the run.
    workdir: of the run; prepared data there provide vocabulary and codec.
    place: 'FILE:LINE', or 'FILE' for its first record. The file is searched for in the current
      folder and in workdir, like those of data.sources. Lines are numbered as in the messages
      of `prepare`: lines of text files and tables, records of .json and .parquet.
    task: of a file that data.sources does not name; None = records as they are.
    out, ids: as inspect_set.describe.

  Raises:
    UserError: no such file or line, an unusable record or recording, no codec yet.
  """
  found = _find(place, workdir)
  entries = _entries(config, workdir, found.path, task)
  reader = _reader(config, workdir, found.path)
  for number, source in entries:
    source_name = f'data.sources[{number}]' if number >= 0 else 'no source'
    name = f'{found.path.name}-{found.line}' + (f'-source{number}' if len(entries) > 1 else '')
    record, times = _record(reader, found, source, max(number, 0))
    document, notes = _document(reader, record, source, times)
    title = f'{found.path}:{found.line} as {source_name}, task {record.task or "other"}'
    row = make_row(reader.vocab, [(1, document.token, document.supervised)], len(document.token))
    text = describe(reader, row, title, name, out, ids)
    yield '\n'.join([text, *(f'note: {note}' for note in notes), ''])


def _find(place: str, workdir: pathlib.Path) -> _Found:
  name, _, line = place.rpartition(':')
  if not name or not line.isdecimal():
    name, line = place, ''
  paths = readers.find(name, [pathlib.Path(), workdir])
  if not paths:
    raise UserError(f'--record is {place!r}: file {name!r} is neither in '
                    f'{pathlib.Path.cwd()} nor in {workdir}.')
  path, last = paths[0], 0
  piece = readers.Piece(str(path))
  lines = readers.is_lines(path)
  for before, (where, value) in enumerate(readers.lines(piece) if lines else readers.items(piece)):
    last = int(where.rpartition(':')[2])
    if line and last != int(line):
      continue
    return _Found(path, last, before, readers.parse_line(where, value) if isinstance(value, bytes)
                  else value)
  raise UserError(f'--record is {place!r}: {path} has no such record; its last one is at {last}.')


def _entries(config: Config, workdir: pathlib.Path, path: pathlib.Path, task: str | None
             ) -> list[tuple[int, Source]]:
  """(index, source) of each entry of data.sources that reads a file; (-1, a plain one) if none."""
  out = []
  for number, source in enumerate(config.data.sources):
    with contextlib.suppress(UserError):  # a folder without a manifest: `prepare` reports that
      if any(
          url_path.is_same(path, other) for other in readers.find(
              source.path, sources.roots(workdir, config.data.root))):
        out.append((number, source))
  if task and out:
    raise UserError(f'--task is {task!r}, but data.sources[{out[0][0]}] already sets the task of '
                    f'{path}; remove --task.')
  if task:
    sources.check_task(task, '--task')
  return out or [(-1, Source(path=str(path), task=task or ''))]


def _reader(config: Config, workdir: pathlib.Path, path: pathlib.Path) -> Reader:
  """With the vocabulary and codec of the prepared data, else the codec next to the file, else the
  one of the config."""
  data_dir = store.locate(workdir, config.data.path)
  if (data_dir / 'manifest.json').is_file():
    return PreparedSet(config, workdir)
  beside = path.parent / 'codec'
  if (beside / codecs.FILE).is_file():
    return Reader(config, codecs.load(beside, config.codec))
  if config.codec.name == 'mel':
    raise UserError(f'codec mel is fitted by `ttt-jax prepare`, but there is no prepared data in '
                    f'{data_dir}; prepare first, or use another codec.name.')
  return Reader(config, codecs.create(config.codec))


def _record(reader: Reader, found: _Found, source: Source, number: int) -> tuple[Record, int]:
  """(the object as `prepare` parses and encodes it, how many copies `prepare` makes of it)."""
  where = f'{found.path}:{found.line}'
  one = sources.Input(source, number, readers.Piece(str(found.path)), (0, 0),
                      reader.config.data.form)
  item = one.parse(where, found.value)
  if isinstance(item, sources.Reject):
    raise UserError(item.sentence)
  if isinstance(item, Skip):
    raise UserError(f'{where}: {item.reason}, so `ttt-jax prepare` leaves the record out.')
  def with_codes(part: Part) -> Part:
    if part.codes is not None:
      return part
    try:
      return dataclasses.replace(part, codes=np.asarray(
          reader.codec.encode(*places.read(part, one.folder)), np.int32))
    except UserError as error:
      raise UserError(f'{where}: {error}') from error
  item = item.map_audio(with_codes)
  data = reader.config.data
  record = one.record(item, found.before, 0, reader.config.seed, data.text_chunk,
                      data.audio_chunk)
  return record, one.copies(found.before)


def _document(reader: Reader, record: Record, source: Source, times: int
              ) -> tuple[interleave.Example, list[str]]:
  """(the record as it goes into rows, notes about truncation and repetition)."""
  data, notes = reader.config.data, []
  renderer = interleave.Renderer.from_config(data, reader.vocab, reader.tokenizer, reader.codec)
  full = renderer.render(record)
  how = 'no' if sources.is_heldout(source.split) else data.truncate
  length, limit = len(full.token), data.seq_len
  document = full
  if length > limit:
    cut = interleave.truncate(full, limit, how, reader.vocab) if how != 'no' else None
    document = full if cut is None else cut
    notes.append(f'the record has {length:,} tokens, a row {limit:,}; ' + (
        '`prepare` rejects it.' if cut is None else f'truncated by data.truncate={how!r}.'))
  if times != 1:
    notes.append(f'repeat={source.repeat:g} uses this record {times} times.')
  return document, notes
