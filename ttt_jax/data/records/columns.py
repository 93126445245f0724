"""Records of Parquet and Arrow files: one object per row, columns by name, without nulls."""

import contextlib
import pathlib
from typing import Any, Iterator

from ttt_jax.data.records import limits
from ttt_jax.errors import UserError
from ttt_jax.storage import url_path

_ROWS, _BATCH = 256, 2**26  # rows and bytes converted at once


@contextlib.contextmanager
def _errors(path: pathlib.Path, kind: str):
  import pyarrow
  try:
    yield
  except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
    if isinstance(error, UserError):
      raise
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip('.')
    raise UserError(f'data file {path} cannot be read as {kind} ({reason}).') from error


def _source(path: pathlib.Path) -> Any:
  """What pyarrow opens: a path, or a reader of an object, which it closes."""
  return path.open('rb') if url_path.is_url(path) else path


def _arrow_file(path: pathlib.Path) -> Any:
  import pyarrow as pa
  return pa.PythonFile(path.open('rb'), 'r') if url_path.is_url(path) else pa.OSFile(str(path))


def parquet(path: pathlib.Path, start: int, stop: int | None) -> Iterator[dict[str, Any] | str]:
  """The rows of row groups ``start`` to ``stop``; of a row that cannot be decoded the reason."""
  from pyarrow import parquet as files
  with _errors(path, 'Parquet'), files.ParquetFile(_source(path)) as file:
    for group in range(file.num_row_groups)[start:stop]:
      about = file.metadata.row_group(group)
      size = about.total_byte_size // max(1, about.num_rows)
      # A dictionary may give every row the largest value. (Asking the metadata of a column whether
      # it has one ends the process if the footer is damaged.)
      rows = max(1, min(_ROWS, _BATCH // max(1, size),
                        max(16, 64 * _BATCH // max(1, about.total_byte_size))))
      for batch in file.iter_batches(batch_size=rows, row_groups=[group]):
        yield from _rows(batch)


def names(path: pathlib.Path) -> frozenset[str]:
  """The names of the columns of a Parquet file.

  Raises:
    UserError: a file that cannot be read.
  """
  from pyarrow import parquet as files
  with _errors(path, 'Parquet'):
    return frozenset(files.read_schema(_source(path)).names)


def arrow(path: pathlib.Path) -> Iterator[dict[str, Any] | str]:
  """As ``parquet``, of an Arrow file or stream, as the package `datasets` saves them."""
  import pyarrow as pa
  with _errors(path, 'Arrow'), _arrow_file(path) as file:
    try:
      reader = pa.ipc.open_file(file)
      batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
    except pa.ArrowInvalid:
      file.seek(0)
      batches = iter(pa.ipc.open_stream(file))
    for batch in batches:
      batch.validate()
      batch = _without_times(batch)  # some of which count as invalid
      batch.validate(full=True)      # the offsets of a damaged file point anywhere in memory
      yield from _rows(batch)


def _rows(batch) -> Iterator[dict[str, Any] | str]:
  batch = _without_times(batch)
  size = max(1, batch.nbytes // max(1, batch.num_rows))
  step = max(1, min(_ROWS, _BATCH // size))
  for start in range(0, batch.num_rows, step):
    piece = batch.slice(start, step)
    if piece.nbytes > 4 * limits.LONGEST:
      yield from [f'the row has more than {4 * limits.LONGEST // 2**20:,} MiB'] * piece.num_rows
      continue
    try:
      yield from map(_without_nulls, piece.to_pylist())
    except (ValueError, OverflowError):
      for i in range(piece.num_rows):
        try:
          row = piece.slice(i, 1).to_pylist()[0]
        except (ValueError, OverflowError) as error:
          yield f'the row cannot be decoded ({str(error)[:80]})'
        else:
          yield _without_nulls(row)


def _without_times(batch):
  """The batch with dates, times and durations as integers: no record needs them, and Python's types
  do not hold all of them."""
  import pyarrow as pa
  for i, field in enumerate(batch.schema):
    plain = _plain(field.type)
    if plain != field.type:
      try:
        column = batch.column(i).cast(plain)
      except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        column = pa.nulls(batch.num_rows)  # a type inside which nothing can be cast
      batch = batch.set_column(i, pa.field(field.name, column.type), column)
  return batch


def _plain(kind):
  """A type with integers in place of dates, times and durations."""
  import pyarrow as pa
  types = pa.types
  if types.is_date32(kind) or types.is_time32(kind):
    return pa.int32()
  if types.is_date64(kind) or types.is_time64(kind) or types.is_timestamp(kind) or (
      types.is_duration(kind)):
    return pa.int64()
  if types.is_struct(kind):
    return pa.struct([pa.field(one.name, _plain(one.type)) for one in kind])
  if types.is_large_list(kind):
    return pa.large_list(_plain(kind.value_type))
  if types.is_list(kind):
    return pa.list_(_plain(kind.value_type))
  if types.is_fixed_size_list(kind):
    return pa.list_(_plain(kind.value_type), kind.list_size)
  if types.is_map(kind):
    return pa.map_(_plain(kind.key_type), _plain(kind.item_type))
  return kind


def _without_nulls(value: Any) -> Any:
  """Removes the nulls of columns that a row does not use, at all levels."""
  if isinstance(value, dict):
    return {key: _without_nulls(item) for key, item in value.items() if item is not None}
  if isinstance(value, list):
    return [_without_nulls(item) for item in value]
  return value


def cut(path: pathlib.Path, size: int) -> Iterator[tuple[int, int, int]]:
  """(first row group, last + 1, rows before) of pieces of at least ``size`` bytes."""
  from pyarrow import parquet as files
  start, before, rows, length = 0, 0, 0, 0
  with _errors(path, 'Parquet'), files.ParquetFile(_source(path)) as file:
    for i in range(file.num_row_groups):
      group = file.metadata.row_group(i)
      rows, length = rows + group.num_rows, length + group.total_byte_size
      if length >= size or i == file.num_row_groups - 1:
        yield start, i + 1, before
        start, before, rows, length = i + 1, before + rows, 0, 0


def count(path: pathlib.Path, start: int, stop: int | None) -> int:
  """The number of rows of row groups ``start`` to ``stop`` of a Parquet file."""
  from pyarrow import parquet as files
  with _errors(path, 'Parquet'), files.ParquetFile(_source(path)) as file:
    return sum(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)[start:stop])
