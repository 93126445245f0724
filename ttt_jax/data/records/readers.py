"""Readers of record files, one object at a time, without loading a file into memory.

  .jsonl .ndjson   one JSON object per line; also .jsonl.gz and .jsonl.zst
  .json            a list of objects, or {"data": [...]}; also .json.gz and .json.zst
  .parquet         one object per row, columns by name, without nulls
  .tsv .csv        one object per row under a header line; also compressed

A path may also be a folder that holds one of MANIFESTS, or a pattern with * and ?. Long .jsonl
and .parquet files are split into pieces, which several processes read in parallel.
"""

import contextlib
import csv
import dataclasses
import glob
import io
import json
import pathlib
import re
from typing import Any, Iterator

from ttt_jax.data.records import compression
from ttt_jax.errors import UserError

Row = tuple[str, dict[str, Any]]
Item = tuple[str, dict[str, Any] | UserError]
MANIFESTS = ('manifest.jsonl', 'manifest.json', 'manifest.tsv', 'metadata.jsonl', 'metadata.csv')
KINDS = ('.jsonl', '.ndjson', '.json', '.parquet', '.tsv', '.csv')
LONGEST = 256 * 2**20  # bytes of one record; a longer one means another format
_PIECE = 2**20
_SPACE = re.compile(r'\s*')
CUT = 2**23            # bytes per piece, about


def kind_of(path: pathlib.Path) -> str:
  """The suffix that determines the reader, without that of a compression; '' if unknown."""
  suffixes = [suffix.lower() for suffix in path.suffixes]
  if suffixes and suffixes[-1] in compression.ENDINGS:
    suffixes.pop()
  found = suffixes[-1] if suffixes else ''
  plain = path.suffix.lower() not in compression.ENDINGS
  return found if found in KINDS and (plain or found != '.parquet') else ''


def find(pattern: str, folders: list[pathlib.Path]) -> list[pathlib.Path]:
  """The files of a path: itself, a folder's manifest, or all that a pattern matches.

  Args:
    pattern: absolute, or relative to a folder; the first folder where it exists is used.
    folders: to search.

  Returns:
    Existing files, sorted; empty if there are none.

  Raises:
    UserError: a folder without a manifest.
  """
  for folder in folders:
    path = folder / pattern
    if pattern and path.is_file():
      return [path]
    if pattern and path.is_dir():
      found = [path / name for name in MANIFESTS if (path / name).is_file()]
      if not found:
        raise UserError(f'{path} is a folder without a manifest; it needs one of '
                        f'{", ".join(MANIFESTS)}, with the keys audio and text.')
      return found[:1]
    if any(mark in pattern for mark in '*?['):
      found = sorted(p for p in map(pathlib.Path, glob.glob(str(path), recursive=True))
                     if p.is_file())
      if found:
        return found
  return []


@dataclasses.dataclass(frozen=True)
class Piece:
  """A part of a file, or all of it.

  Attributes:
    path: the file.
    start, stop: bytes of a .jsonl, row groups of a .parquet; None = to the end.
    before: lines or rows of the file before it.
  """
  path: str
  start: int = 0
  stop: int | None = None
  before: int = 0


def cut(path: str | pathlib.Path) -> list[Piece]:
  """Splits a file into pieces of about CUT bytes, in order; some kinds are one piece.

  Raises:
    UserError: no such file, an unknown suffix, a Parquet file that cannot be read.
  """
  path = pathlib.Path(path)
  kind = _checked_kind(path)
  if path.stat().st_size > CUT and path.suffix.lower() not in compression.ENDINGS:
    if kind in ('.jsonl', '.ndjson'):
      return _cut_lines(path)
    if kind == '.parquet':
      return _cut_groups(path)
  return [Piece(str(path))]


def read(path: str | pathlib.Path) -> Iterator[Row]:
  """('file:number', object) of every record; lines count from 1, as do rows.

  Raises:
    UserError: no such file, an unknown suffix, no record in it, a record that cannot be read,
      a truncated compressed file.
  """
  count = 0
  for count, (where, value) in enumerate(items(Piece(str(path))), 1):
    if isinstance(value, UserError):
      raise value
    yield where, value
  if not count:
    raise empty(path)


def empty(path: str | pathlib.Path) -> UserError:
  """The error of a file without records."""
  return UserError(f'data file {path} is empty; it needs at least one record.')


def items(piece: Piece) -> Iterator[Item]:
  """As ``read``, of one piece; a record that cannot be read is replaced by its error.

  Raises:
    UserError: a file that is unreadable from some place on, so that records may be missing.
  """
  path = pathlib.Path(piece.path)
  kind = _checked_kind(path)
  if kind == '.parquet':
    return _parquet(path, piece)
  if kind in ('.tsv', '.csv'):
    return _table(path)
  return _json(path) if kind == '.json' else _objects(piece)


def _checked_kind(path: pathlib.Path) -> str:
  if not path.is_file():
    raise UserError(f'data file {path} does not exist; name a file of records '
                    f'({", ".join(KINDS)}).')
  kind = kind_of(path)
  if not kind:
    raise UserError(f'data file {path}: the suffix {"".join(path.suffixes[-2:])!r} is unknown; use '
                    f'one of {", ".join(KINDS)}, the text ones also with .gz or .zst.')
  return kind


def _object(value: Any, where: str) -> Item:
  if not isinstance(value, dict):
    return where, UserError(f'{where}: a {type(value).__name__}, but a record is a JSON object '
                            '{{...}}.')
  return where, value


# -- text -----------------------------------------------------------------------------------


def is_lines(path: str | pathlib.Path) -> bool:
  """Whether a file has one JSON object per line."""
  return kind_of(pathlib.Path(path)) in ('.jsonl', '.ndjson')


def lines(piece: Piece) -> Iterator[tuple[str, bytes | UserError]]:
  """('file:line', line) of a piece of a .jsonl without empty lines; an error if it is too long."""
  path = pathlib.Path(piece.path)
  with compression.opened(path) as file:
    number, at = piece.before, piece.start
    if at:
      file.seek(at)
    while (piece.stop is None or at < piece.stop) and (line := file.readline(LONGEST + 1)):
      number += 1
      at += len(line)
      where = f'{path}:{number}'
      if len(line) > LONGEST:
        while line and not line.endswith(b'\n'):
          line = file.readline(_PIECE)
          at += len(line)
        yield where, UserError(f'{where}: the line is longer than {LONGEST // 2**20} MiB; a .jsonl '
                               'file has one record per line.')
      elif line.strip():
        yield where, line


def parse_line(where: str, line: bytes) -> dict[str, Any] | UserError:
  """The object in a line of a .jsonl, or its error."""
  try:
    return _object(json.loads(line.decode('utf-8')), where)[1]
  except UnicodeDecodeError as error:
    return UserError(f'{where}: byte {error.start} of the line is not UTF-8; save the file as '
                     'UTF-8.')
  except (ValueError, RecursionError) as error:
    return UserError(f'{where}: broken JSON ({error}); every line must be one JSON object.')


def _objects(piece: Piece) -> Iterator[Item]:
  for where, line in lines(piece):
    yield where, line if isinstance(line, UserError) else parse_line(where, line)


def _cut_lines(path: pathlib.Path) -> list[Piece]:
  size = path.stat().st_size
  out, start, before = [], 0, 0
  with path.open('rb') as file:
    while start < size:
      at, count, last = start, 0, b''
      # At least CUT bytes, up to the end of the line.
      while at < size and (at - start < CUT or last != b'\n'):
        if at - start < CUT:
          data = file.read(min(_PIECE, CUT - (at - start)))
        else:
          data = file.readline(_PIECE)
        if not data:
          break
        at, count, last = at + len(data), count + data.count(b'\n'), data[-1:]
      if at == start:
        break
      out.append(Piece(str(path), start, at, before))
      start, before = at, before + count
  return out


def _json(path: pathlib.Path) -> Iterator[Item]:
  """The objects of a list, decoded one by one."""
  with compression.opened(path) as file:
    stream = _Values(io.TextIOWrapper(file, encoding='utf-8', newline=''), path)
    stream.start()
    number = 0
    while not stream.ended(number):
      number += 1
      yield _object(stream.value(f'{path}:{number}'), f'{path}:{number}')


class _Values:
  """Incremental parser of a JSON list; ``_at`` is the position in the text read so far."""

  def __init__(self, file: io.TextIOBase, path: pathlib.Path):
    self._file, self._path, self._buffer, self._at = file, path, '', 0
    self._decode = json.JSONDecoder()

  def _more(self) -> bool:
    self._buffer, self._at = self._buffer[self._at:], 0
    try:
      piece = self._file.read(max(_PIECE, len(self._buffer)))
    except UnicodeDecodeError as error:
      raise UserError(f'data file {self._path}: not UTF-8 ({error.reason}); save it as UTF-8.'
                      ) from error
    self._buffer += piece
    return bool(piece)

  def _next(self) -> str:
    """The next non-space character, without consuming it; '' at the end."""
    while True:
      space = _SPACE.match(self._buffer, self._at)
      assert space is not None, 'the pattern matches the empty string'
      self._at = space.end()
      if self._at < len(self._buffer) or not self._more():
        return self._buffer[self._at:self._at + 1]

  def start(self) -> None:
    """Consumes the bracket that opens the list."""
    first = self._next()
    if first == '{':
      while ':' not in self._buffer and self._more():
        pass
      key, _, rest = self._buffer[self._at + 1:].partition(':')
      if key.strip() == '"data"':
        self._buffer, self._at = rest, 0
        first = self._next()
    if first != '[':
      raise UserError(f'data file {self._path}: a .json file of records is a list [{{...}}, ...], '
                      'or {"data": [...]}; one object per line is a .jsonl file.')
    self._at += 1

  def ended(self, number: int) -> bool:
    """Whether the list ends here; consumes the comma after value ``number``."""
    mark = self._next()
    if mark == ']':
      return True
    if number and mark == ',':
      self._at += 1
      mark = self._next()
    elif number:
      raise UserError(f'{self._path}:{number}: a comma or ] must follow the record.')
    if not mark:
      raise UserError(f'data file {self._path} ends inside its list, after record {number}; it is '
                      'truncated.')
    return False

  def value(self, where: str) -> Any:
    while True:
      try:
        value, self._at = self._decode.raw_decode(self._buffer, self._at)
        return value
      except (ValueError, RecursionError) as error:
        # The value may continue in text that is not read yet.
        if isinstance(error, RecursionError) or len(self._buffer) > LONGEST or not self._more():
          raise UserError(f'{where}: broken JSON ({str(error)[:80]}).') from error


def _table(path: pathlib.Path) -> Iterator[Item]:
  with compression.opened(path) as file:
    text = io.TextIOWrapper(file, encoding='utf-8-sig', newline='')
    csv.field_size_limit(LONGEST)  # inline codes exceed csv's limit of 128 KiB
    rows = csv.DictReader(text, delimiter='\t' if kind_of(path) == '.tsv' else ',',
                          quoting=csv.QUOTE_NONE if kind_of(path) == '.tsv' else csv.QUOTE_MINIMAL)
    try:
      for row in rows:
        where = f'{path}:{rows.line_num}'
        if None in row or None in row.values():
          found = len(row) if None in row else sum(map(bool, row.values()))
          yield where, UserError(f'{where}: {found} values under a header of '
                                 f'{len(rows.fieldnames or ())} columns.')
          continue
        yield where, {key: value for key, value in row.items() if value}
    except UnicodeDecodeError as error:
      raise UserError(f'data file {path}: not UTF-8 ({error.reason}); save it as UTF-8.') from error
    except csv.Error as error:
      raise UserError(f'{path}:{rows.line_num}: {error}.') from error


# -- Parquet ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _parquet_file(path: pathlib.Path):
  import pyarrow
  from pyarrow import parquet
  try:
    with parquet.ParquetFile(path) as file:
      yield file
  except (pyarrow.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
    reason = str(error).splitlines()[0].rstrip('.')
    raise UserError(f'data file {path} cannot be read as Parquet ({reason}).') from error


def _parquet(path: pathlib.Path, piece: Piece) -> Iterator[Item]:
  with _parquet_file(path) as file:
    number = piece.before
    groups = range(file.num_row_groups)[piece.start:piece.stop]
    for batch in file.iter_batches(batch_size=256, row_groups=list(groups)):
      for row in batch.to_pylist():
        number += 1
        yield f'{path}:{number}', _without_nulls(row)


def _cut_groups(path: pathlib.Path) -> list[Piece]:
  out, start, before, rows, size = [], 0, 0, 0, 0
  with _parquet_file(path) as file:
    for i in range(file.num_row_groups):
      group = file.metadata.row_group(i)
      rows, size = rows + group.num_rows, size + group.total_byte_size
      if size >= CUT or i == file.num_row_groups - 1:
        out.append(Piece(str(path), start, i + 1, before))
        start, before, rows, size = i + 1, before + rows, 0, 0
  return out


def _without_nulls(value: Any) -> Any:
  """Removes the nulls of columns that a row does not use, at all levels."""
  if isinstance(value, dict):
    return {key: _without_nulls(item) for key, item in value.items() if item is not None}
  if isinstance(value, list):
    return [_without_nulls(item) for item in value]
  return value
