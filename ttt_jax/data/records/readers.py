"""Readers of record files, one object at a time, without loading a file into memory.

  .jsonl .ndjson    one JSON object per line; also .jsonl.gz and .jsonl.zst
  .json             a list of objects, {"data": [...]}, or one object per line; also compressed
  .parquet .arrow   one object per row, columns by name, without nulls
  .tsv .csv .psv    one object per row, see tables.py; also compressed
  .list .txt        a table, or one JSON object per line
  wav.scp           a folder of Kaldi

A path may also be a folder with one of MANIFESTS or with the files of a Hugging Face data set, or a
pattern with * and ?. Long .jsonl and .parquet files are split into pieces, which several processes
read in parallel. Text files may start with a byte order mark.
"""

import codecs
import dataclasses
import functools
import glob
import json
import os
import pathlib
from typing import Any, Iterator

from ttt_jax.data.records import columns, compression, folders, json_stream, limits, tables
from ttt_jax.errors import UserError
from ttt_jax.storage import url_path

Row = tuple[str, dict[str, Any]]
Item = tuple[str, dict[str, Any] | UserError]
KINDS = ('.jsonl', '.ndjson', '.json', '.parquet', '.arrow', *tables.SUFFIXES)
_LINES = ('.jsonl', '.ndjson')
_BINARY = ('.parquet', '.arrow')
_BLANK = codecs.BOM_UTF8 + b' \t\r\n'
_PIECE = 2**20
CUT = 2**23            # bytes per piece, about


def kind_of(path: pathlib.Path) -> str:
  """The suffix that determines the reader, without that of a compression; '' if unknown."""
  if path.name == tables.SCP:
    return tables.SCP
  suffixes = [suffix.lower() for suffix in path.suffixes]
  if suffixes and suffixes[-1] in compression.ENDINGS:
    suffixes.pop()
  found = suffixes[-1] if suffixes else ''
  plain = path.suffix.lower() not in compression.ENDINGS
  return found if found in KINDS and (plain or found not in _BINARY) else ''


def find(pattern: str, places: list[pathlib.Path]) -> list[pathlib.Path]:
  """The files of a path: itself, a folder's manifest, or all that a pattern matches.

  Args:
    pattern: absolute, or relative to a place; the first place where it exists is used.
    places: folders to search.

  Returns:
    Existing files, sorted; empty if there are none.

  Raises:
    UserError: a folder without a manifest, or with several.
  """
  if url_path.is_url(pattern):
    places = places[:1]
  for place in places:
    path = url_path.join(place, pattern)
    if pattern and path.is_file():
      return [path]
    if pattern and path.is_dir():
      return folders.manifest(path)
    if any(mark in pattern for mark in '*?['):
      # The folder's own name may hold characters of patterns: run[1].
      if url_path.is_url(path):
        matched = _matched(place, pattern)
      else:
        matched = map(pathlib.Path, glob.glob(os.path.join(glob.escape(str(place)), pattern),
                                              recursive=True))
      found = sorted(p for p in matched if p.is_file())
      if found:
        return found
  return []


def _matched(place: pathlib.Path, pattern: str) -> Iterator[pathlib.Path]:
  """What matches a pattern in a bucket; as on a disk, * does not match a hidden name."""
  if url_path.is_url(pattern):
    scheme, _, rest = pattern.partition('://')
    bucket, _, pattern = rest.partition('/')
    place = url_path.place(f'{scheme}://{bucket}')
  hidden = pattern.startswith('.') or '/.' in pattern
  for path in place.glob(pattern):
    if hidden or not any(part.startswith('.') for part in path.relative_to(place).parts):
      yield path


@dataclasses.dataclass(frozen=True)
class Piece:
  """A part of a file, or all of it.

  Attributes:
    path: the file, or its URL.
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
  path = url_path.place(path)
  kind = _checked_kind(path)
  if path.stat().st_size > CUT and path.suffix.lower() not in compression.ENDINGS:
    if is_lines(path):
      return cut_lines(path)
    if kind == '.parquet':
      return [Piece(str(path), *place) for place in columns.cut(path, CUT)]
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
  path = url_path.place(piece.path)
  kind = _checked_kind(path)
  if kind == '.parquet':
    return _rows(path, piece.before, columns.parquet(path, piece.start, piece.stop))
  if kind == '.arrow':
    return _rows(path, 0, columns.arrow(path))
  if kind == tables.SCP:
    return tables.kaldi(path)
  if is_lines(path):
    return _objects(piece)
  if kind in tables.SUFFIXES:
    return tables.rows(path)
  return (_object(value, where) for where, value in json_stream.values(path))


def _rows(path: pathlib.Path, before: int, found: Iterator[dict[str, Any] | str]) -> Iterator[Item]:
  for number, row in enumerate(found, before + 1):
    where = f'{path}:{number}'
    yield where, UserError(f'{where}: {row}.') if isinstance(row, str) else row


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
                            '{...}.')
  return where, value


# -- text -----------------------------------------------------------------------------------


def is_lines(path: str | pathlib.Path) -> bool:
  """Whether a file has one JSON object per line, by its suffix and its first line.

  A .jsonl may hold a list, and a .json, .list or .txt may hold lines: NeMo writes them so.
  """
  path = url_path.place(path)
  kind = kind_of(path)
  if kind not in (*_LINES, '.json', '.list', '.txt'):
    return False
  return _holds_lines(path, kind, url_path.stamp(path))


@functools.lru_cache(1000)
def _holds_lines(path: pathlib.Path, kind: str, stamp: tuple[int, int]) -> bool:
  del stamp  # a part of the cache's key
  try:
    with compression.opened(path) as file:
      first = file.readline(_PIECE)
      while first and not first.strip(_BLANK):
        first = file.readline(_PIECE)
  except UserError:
    return kind in _LINES  # the reader reports it
  first = first.strip(_BLANK)
  if kind in _LINES:
    return first[:1] != b'['
  if kind != '.json':
    return first[:1] == b'{'
  if not first.startswith(b'{'):
    return False
  try:
    value = json.loads(first)
  except (ValueError, RecursionError):
    return len(first) + 1 >= _PIECE and b'"data"' not in first[:64]  # a long line
  return isinstance(value, dict) and not isinstance(value.get('data'), list)


def lines(piece: Piece) -> Iterator[tuple[str, bytes | UserError]]:
  """('file:line', line) of a piece of a .jsonl without empty lines; an error if it is too long.

  Raises:
    UserError: very many empty lines.
  """
  path = url_path.place(piece.path)
  with compression.opened(path) as file:
    number, at, blanks = piece.before, piece.start, 0
    if at:
      file.seek(at)
    while (piece.stop is None or at < piece.stop) and (line := file.readline(limits.LONGEST + 1)):
      number += 1
      at += len(line)
      where = f'{path}:{number}'
      if len(line) > limits.LONGEST:
        while line and not line.endswith(b'\n'):
          line = file.readline(_PIECE)
          at += len(line)
        yield where, UserError(f'{where}: the line is longer than {limits.LONGEST // 2**20} MiB; a '
                               '.jsonl file has one record per line.')
      elif line.strip(_BLANK):
        blanks = 0
        yield where, line
      else:
        blanks += 1
        if blanks > limits.BLANKS:
          raise UserError(f'{where}: more than {limits.BLANKS:,} empty lines; the file is damaged.')


def parse_line(where: str, line: bytes) -> dict[str, Any] | UserError:
  """The object in a line of a .jsonl, or its error."""
  if limits.values(line) > limits.VALUES:
    return UserError(f'{where}: the record has more than {limits.VALUES:,} values.')
  line = line.removeprefix(codecs.BOM_UTF8)
  try:
    return _object(json_stream.DECODER.decode(line.decode('utf-8')), where)[1]
  except UnicodeDecodeError as error:
    if line[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
      return UserError(f'{where}: the file is UTF-16; save it as UTF-8.')
    return UserError(f'{where}: byte {error.start} of the line is not UTF-8; save the file as '
                     'UTF-8.')
  except (ValueError, RecursionError) as error:
    return UserError(f'{where}: broken JSON ({str(error)[:80]}); every line must be one JSON '
                     'object.')


def _objects(piece: Piece) -> Iterator[Item]:
  for where, line in lines(piece):
    yield where, line if isinstance(line, UserError) else parse_line(where, line)


def cut_lines(path: pathlib.Path) -> list[Piece]:
  """Pieces of a file of lines, of about CUT bytes; none of an empty file."""
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
