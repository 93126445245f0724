"""Files of records, of any common kind, one object at a time: nothing is loaded whole.

  .jsonl .ndjson   one JSON object per line; also .jsonl.gz and .jsonl.zst
  .json            a list of objects, or {"data": [...]}; also .json.gz and .json.zst
  .parquet         one row each, columns by name; nulls are left out
  .tsv .csv        one row each under a header line

A file may also be a folder that holds one of MANIFESTS, or a pattern with * and ?.
"""

import contextlib
import csv
import glob
import gzip
import io
import json
import pathlib
from typing import Any, BinaryIO, Iterator
import zlib

from ttt_jax.errors import UserError

Row = tuple[str, dict[str, Any]]
MANIFESTS = ('manifest.jsonl', 'manifest.json', 'manifest.tsv', 'metadata.jsonl', 'metadata.csv')
KINDS = ('.jsonl', '.ndjson', '.json', '.parquet', '.tsv', '.csv')
LONGEST = 256 * 2**20  # bytes of one record: more is a file in another format
_PACKED = ('.gz', '.zst')
_PIECE = 2**20


def kind_of(path: pathlib.Path) -> str:
  """The ending that says how a file is read, without that of a compression; '' if unknown."""
  suffixes = [suffix.lower() for suffix in path.suffixes]
  if suffixes and suffixes[-1] in _PACKED:
    suffixes.pop()
  found = suffixes[-1] if suffixes else ''
  packed = path.suffix.lower() in _PACKED
  return found if found in KINDS and not (packed and found == '.parquet') else ''


def find(pattern: str, folders: list[pathlib.Path]) -> list[pathlib.Path]:
  """The files that a path means: itself, a folder's manifest, or all that a pattern matches.

  Args:
    pattern: absolute, or relative to one of the folders; the first where it exists counts.
    folders: to look in.

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


def read(path: str | pathlib.Path) -> Iterator[Row]:
  """('file:number', object) of every record; lines count from 1, as do rows.

  Raises:
    UserError: no such file, an unknown ending, no record in it, a record that cannot be read,
      a compressed file that is cut off.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f'data file {path} does not exist; name a file of records '
                    f'({", ".join(KINDS)}).')
  kind = kind_of(path)
  if not kind:
    raise UserError(f'data file {path}: the ending {"".join(path.suffixes[-2:])!r} is unknown; use '
                    f'one of {", ".join(KINDS)}, the text ones also with .gz or .zst.')
  reader = {'.json': _json, '.parquet': _parquet, '.tsv': _table, '.csv': _table}.get(kind, _lines)
  count = 0
  for count, row in enumerate(reader(path), 1):
    yield row
  if not count:
    raise UserError(f'data file {path} is empty; it needs at least one record.')


def _object(value: Any, where: str) -> Row:
  if not isinstance(value, dict):
    raise UserError(f'{where}: a {type(value).__name__} where a JSON object {{...}} belongs.')
  return where, value


def _text(data: bytes, where: str) -> str:
  try:
    return data.decode('utf-8')
  except UnicodeDecodeError as error:
    raise UserError(f'{where}: byte {error.start} of the line is not UTF-8; save the file as '
                    'UTF-8.') from error


# -- text -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _open(path: pathlib.Path) -> Iterator[BinaryIO]:
  """The bytes of a file, unpacked; one that is cut off is an error, not an end."""
  try:
    if path.suffix.lower() == '.gz':
      with gzip.open(path) as file:
        yield file
    elif path.suffix.lower() == '.zst':
      with path.open('rb') as file:
        yield io.BufferedReader(_Zst(file), _PIECE)
    else:
      with path.open('rb') as file:
        yield file
  except (EOFError, gzip.BadGzipFile, zlib.error, _Broken) as error:
    raise UserError(f'data file {path} is damaged or cut off ({error}); copy it again.') from error


class _Broken(ValueError):
  """A .zst that cannot be unpacked to its end."""


class _Zst(io.RawIOBase):
  """Frames of Zstandard, one after another; the package's own reader takes a file that was
  cut off for one that ends."""

  def __init__(self, file: BinaryIO):
    import zstandard
    self._new = zstandard.ZstdDecompressor().decompressobj
    self._error = zstandard.ZstdError
    self._file, self._frame, self._ready = file, None, b''

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    while not self._ready:
      data = self._frame.unused_data if self._frame and self._frame.eof else b''
      data = data or self._file.read(_PIECE)
      if not data:
        if self._frame and not self._frame.eof:
          raise _Broken('the last frame does not end')
        return 0
      if self._frame is None or self._frame.eof:
        self._frame = self._new()
      try:
        self._ready = self._frame.decompress(data)
      except self._error as error:
        raise _Broken(str(error)) from error
    size = min(len(buffer), len(self._ready))
    buffer[:size], self._ready = self._ready[:size], self._ready[size:]
    return size


def _lines(path: pathlib.Path) -> Iterator[Row]:
  with _open(path) as file:
    number = 0
    while line := file.readline(LONGEST + 1):
      number += 1
      where = f'{path}:{number}'
      if len(line) > LONGEST:
        raise UserError(f'{where}: the line is longer than {LONGEST // 2**20} MiB; a .jsonl file '
                        'has one record per line.')
      if not line.strip():
        continue
      text = _text(line, where)
      try:
        value = json.loads(text)
      except (ValueError, RecursionError) as error:
        raise UserError(f'{where}: broken JSON ({error}); every line is one JSON object.'
                        ) from error
      yield _object(value, where)


def _json(path: pathlib.Path) -> Iterator[Row]:
  """The objects of a list, decoded one by one from as much text as they need."""
  with _open(path) as file:
    stream = _Values(io.TextIOWrapper(file, encoding='utf-8', newline=''), path)
    stream.start()
    number = 0
    while not stream.ended(number):
      number += 1
      yield _object(stream.value(f'{path}:{number}'), f'{path}:{number}')


class _Values:
  """The text of a JSON list, read piece by piece."""

  def __init__(self, file: io.TextIOBase, path: pathlib.Path):
    self._file, self._path, self._buffer, self._decode = file, path, '', json.JSONDecoder()

  def _more(self) -> bool:
    try:
      piece = self._file.read(max(_PIECE, len(self._buffer)))
    except UnicodeDecodeError as error:
      raise UserError(f'data file {self._path}: not UTF-8 ({error.reason}); save it as UTF-8.'
                      ) from error
    self._buffer += piece
    return bool(piece)

  def _next(self) -> str:
    """The next character that is not space, left where it is; '' at the end."""
    while True:
      self._buffer = self._buffer.lstrip()
      if self._buffer or not self._more():
        return self._buffer[:1]

  def start(self) -> None:
    """Go behind the bracket that opens the list."""
    first = self._next()
    if first == '{':
      while ':' not in self._buffer and self._more():
        pass
      key, _, rest = self._buffer[1:].partition(':')
      if key.strip() == '"data"':
        self._buffer = rest
        first = self._next()
    if first != '[':
      raise UserError(f'data file {self._path}: a .json file of records is a list [{{...}}, ...], '
                      'or {"data": [...]}; one object per line is a .jsonl file.')
    self._buffer = self._buffer[1:]

  def ended(self, number: int) -> bool:
    """Whether the list ends here; goes behind the comma that follows value ``number``."""
    mark = self._next()
    if mark == ']':
      return True
    if number and mark == ',':
      self._buffer = self._buffer[1:]
      mark = self._next()
    elif number:
      raise UserError(f'{self._path}:{number}: a comma or ] must follow the record.')
    if not mark:
      raise UserError(f'data file {self._path} ends inside its list, after record {number}; it was '
                      'cut off.')
    return False

  def value(self, where: str) -> Any:
    while True:
      try:
        value, end = self._decode.raw_decode(self._buffer)
        self._buffer = self._buffer[end:]
        return value
      except (ValueError, RecursionError) as error:
        # What is missing may stand in the next piece.
        if isinstance(error, RecursionError) or len(self._buffer) > LONGEST or not self._more():
          raise UserError(f'{where}: broken JSON ({str(error)[:80]}).') from error


def _table(path: pathlib.Path) -> Iterator[Row]:
  with _open(path) as file:
    text = io.TextIOWrapper(file, encoding='utf-8-sig', newline='')
    csv.field_size_limit(LONGEST)  # inline codes outgrow the package's 128 KiB
    rows = csv.DictReader(text, delimiter='\t' if kind_of(path) == '.tsv' else ',',
                          quoting=csv.QUOTE_NONE if kind_of(path) == '.tsv' else csv.QUOTE_MINIMAL)
    try:
      for row in rows:
        where = f'{path}:{rows.line_num}'
        if None in row or None in row.values():
          raise UserError(f'{where}: {len(row) if None in row else sum(map(bool, row.values()))} '
                          f'values under a header of {len(rows.fieldnames)} columns.')
        yield where, {key: value for key, value in row.items() if value}
    except UnicodeDecodeError as error:
      raise UserError(f'data file {path}: not UTF-8 ({error.reason}); save it as UTF-8.') from error
    except csv.Error as error:
      raise UserError(f'{path}:{rows.line_num}: {error}.') from error


# -- Parquet ----------------------------------------------------------------------------------


def _parquet(path: pathlib.Path) -> Iterator[Row]:
  import pyarrow
  from pyarrow import parquet
  try:
    with parquet.ParquetFile(path) as file:
      number = 0
      for batch in file.iter_batches(batch_size=256):
        for row in batch.to_pylist():
          number += 1
          yield f'{path}:{number}', _without_nulls(row)
  except (pyarrow.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
    reason = str(error).splitlines()[0].rstrip('.')
    raise UserError(f'data file {path} cannot be read as Parquet ({reason}).') from error


def _without_nulls(value: Any) -> Any:
  """A column that a row does not use is null in all of its levels."""
  if isinstance(value, dict):
    return {key: _without_nulls(item) for key, item in value.items() if item is not None}
  if isinstance(value, list):
    return [_without_nulls(item) for item in value]
  return value
