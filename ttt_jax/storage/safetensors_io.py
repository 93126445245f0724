"""Reads and writes safetensors files tensor by tensor, with a few tensors in memory at a time.

A file is eight bytes of length N, N bytes of JSON, and the bytes of the tensors, little-endian:

  {"lm_head.weight": {"dtype": "BF16", "shape": [4, 2], "data_offsets": [0, 16]}, ...}

Large models have several files and an index from tensors to files. The safetensors library judges
headers and reads. Its backend 'pread' is used: tensor by tensor it takes as long as the mapped one
(0.7 s for 1 GiB in tensors of 128 MiB), and the peak is one tensor instead of the whole file.
Writing is done here, because the library writes all tensors of a file at once. The format is that
of the README of safetensors 0.5. Several threads read, check and write: reads, writes and
``zlib.crc32`` release the interpreter lock.
"""

import collections
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent import futures
import dataclasses
import json
import math
import os
import pathlib
import tempfile
from typing import Any, NotRequired, TypeVar
import zlib

import ml_dtypes
import numpy as np
import safetensors

from ttt_jax.errors import UserError
from ttt_jax.storage import schema, url_path

SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
DTYPES = {'BF16': np.dtype(ml_dtypes.bfloat16), 'F16': np.dtype(np.float16),
          'F32': np.dtype(np.float32), 'F64': np.dtype(np.float64)}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER = 2**24  # bytes; the tensors of a model of 1,000 layers need a tenth
_CHUNK = 2**24       # bytes written or checked at once
_THREADS = 4
_AHEAD = 2**28       # bytes of tensors that wait, beside the largest
_T = TypeVar('_T')
# Of the bits of a number, those of the exponent: all are set in NaN and infinity.
_EXPONENT = {'BF16': (np.uint16, 0x7F80), 'F16': (np.uint16, 0x7C00),
             'F32': (np.uint32, 0x7F800000), 'F64': (np.uint64, 0x7FF0000000000000)}


class IndexFile(schema.Kind):
  """The index of a directory with several files."""
  metadata: NotRequired[dict[str, Any] | None]
  weight_map: dict[str, schema.Name]


@dataclasses.dataclass(frozen=True)
class Entry:
  """A stored tensor: its file, dtype, shape, and the place of its bytes in the file."""
  file: pathlib.Path
  dtype: np.dtype
  shape: tuple[int, ...]
  start: int = 0

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize

  @property
  def rows(self) -> int:
    """Length of the first axis."""
    return self.shape[0] if self.shape else 1


# -- reading ------------------------------------------------------------------------------


class Folder(Mapping):
  """The tensors of a directory: name -> Entry, in the order of files and offsets."""

  def __init__(self, directory: str | os.PathLike, single: str = SINGLE, index: str = INDEX):
    """Read all headers.

    Args:
      directory: holds ``single``, or ``index`` with the files that it names. A file may be a link,
        as in the cache of the Hugging Face hub; the index cannot name one outside. At a URL, ranges
        of the objects are read.

    Raises:
      UserError: neither exists or both do, a file is missing, truncated or not safetensors, a
        tensor is in two files, or the index and the files contradict each other.
    """
    self.directory = url_path.place(directory)
    if not self.directory.is_dir():
      raise UserError(f'{directory} is not a directory; name the folder of a model, with its '
                      'config.json and safetensors files.')
    self._entries: dict[str, Entry] = {}
    self._open: dict[pathlib.Path, Any] = {}
    for file, wanted in self._files(single, index):
      file = url_path.pinned(file)
      self._open[file], found = _open(file)
      for name in wanted:
        if name not in found:
          raise UserError(f'{self.directory / index} lists tensor {name} in {file.name}, which '
                          'does not have it; the download is incomplete or files were mixed.')
      for name, entry in found.items():
        if name in self._entries:
          raise UserError(f'tensor {name} is in {self._entries[name].file} and in {file}; files of '
                          'two models were mixed, download them again.')
        self._entries[name] = entry

  def _files(self, single: str, index: str) -> list[tuple[pathlib.Path, list[str]]]:
    """The files, each with the tensors that the index promises in it."""
    path = self.directory / index
    if not path.exists():
      if not _is_file(self.directory / single):
        raise UserError(f'{self.directory} has neither {single} nor {index}; weights in another '
                        'format must be converted to safetensors first.')
      return [(self.directory / single, [])]
    if (self.directory / single).exists():
      raise UserError(f'{self.directory} has both {single} and {index}, which may hold different '
                      'weights; remove the one that does not belong to the model.')
    places = schema.read(path, IndexFile, 'it must map tensor names to files beside it, so '
                         'download it again', unique=True)['weight_map']
    files: dict[str, list[str]] = {}
    for name, file in places.items():
      files.setdefault(file, []).append(name)
    for file in files:
      if not _is_file(self.directory / file):
        raise UserError(f'{path} names the file {file[:80]}, which is not in {self.directory}; the '
                        'download is incomplete.')
    return [(self.directory / file, files[file]) for file in sorted(files)]

  def __getitem__(self, name: str) -> Entry:
    return self._entries[name]

  def __iter__(self):
    return iter(self._entries)

  def __len__(self) -> int:
    return len(self._entries)

  def read(self, name: str) -> np.ndarray:
    """One tensor, in its stored dtype.

    Raises:
      UserError: the file became shorter since it was opened, or cannot be read.
    """
    entry = self[name]
    if url_path.is_url(entry.file):
      return self.read_rows(name, 0, entry.rows)
    try:
      array = self._open[entry.file].get_tensor(name)
    except (OSError, safetensors.SafetensorError) as error:
      raise _cannot_read(name, entry, str(error)) from error
    assert array.dtype == entry.dtype and array.shape == entry.shape, (array.dtype, entry)
    return array

  def read_rows(self, name: str, start: int, stop: int, into: np.ndarray | None = None
                ) -> np.ndarray:
    """Rows ``start`` to ``stop`` of a tensor, whose bytes alone are read.

    Args:
      name: of the tensor.
      start, stop: along its first axis.
      into: where to; contiguous, of the rows' shape and dtype; None = a new array.

    Raises:
      UserError: as ``read``.
    """
    entry = self[name]
    out = np.empty((stop - start, *entry.shape[1:]), entry.dtype) if into is None else into
    assert out.dtype == entry.dtype and out.flags.c_contiguous and len(out) == stop - start, entry
    data = out.reshape(-1).view(np.uint8).data
    begin = entry.start + start * math.prod(entry.shape[1:]) * entry.dtype.itemsize
    try:
      with entry.file.open('rb') as file:
        file.seek(begin)
        for at in range(0, len(data), _CHUNK):
          piece = data[at:at + _CHUNK]
          if file.readinto(piece) != len(piece):
            raise _cannot_read(name, entry, 'it ends too early')
    except OSError as error:
      raise _cannot_read(name, entry, error.strerror or str(error)) from error
    return out

  def read_finite(self, name: str) -> np.ndarray:
    """As ``read``, for weights.

    Raises:
      UserError: also if a number is NaN or infinite.
    """
    array = self.read(name)
    self.check_finite(name, [array])
    return array

  def check_finite(self, name: str, rows: Iterable[np.ndarray]) -> None:
    """UserError if a number in some rows of a tensor is NaN or infinite."""
    counts = [(count_not_finite(array), array.size) for array in rows]
    if bad := sum(count for count, _ in counts):
      raise UserError(f'tensor {name} in {self[name].file} has {bad:,} of '
                      f'{sum(size for _, size in counts):,} numbers that are NaN or infinite; a '
                      'model with such weights computes nothing, so use another checkpoint of it.')

  def check_unchanged(self) -> None:
    """UserError if an object of a bucket was replaced since its header was read: not every store
    refuses to read ranges of another version."""
    for file in self._open:
      if url_path.is_url(file) and url_path.stamp(str(file)) != url_path.stamp(file):
        raise UserError(f'{file} was replaced or removed while it was read; run the same command '
                        'again.')


def _cannot_read(name: str, entry: Entry, why: str) -> UserError:
  return UserError(f'tensor {name} in {entry.file} cannot be read ({why}); the file is truncated '
                   'or being replaced.')


def _is_file(path: pathlib.Path) -> bool:
  try:
    return path.is_file()
  except OSError:  # a name that is too long
    return False


def count_not_finite(array: np.ndarray) -> int:
  """How many numbers of an array of one of DTYPES are NaN or infinite."""
  integer, mask = _EXPONENT[_NAMES[array.dtype]]
  bits = np.ascontiguousarray(array).reshape(-1).view(integer)
  step = _CHUNK // bits.itemsize
  return sum(int(np.count_nonzero((bits[at:at + step] & integer(mask)) == mask))
             for at in range(0, bits.size, step))


def _open(file: pathlib.Path) -> tuple[Any, dict[str, Entry]]:
  """(the library's handle, the tensors in the order of their offsets) of one file.

  Raises:
    UserError: it is not a safetensors file, or shorter or longer than its header says.
  """
  header = _header_bytes(file)
  # The library takes one of two entries of a name if both are equal.
  names = schema.parse(header, f'the header of {file}', 'download it again', unique=True)
  try:
    handle = _judged(file, header)
    order = handle.offset_keys()
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(f'{file} is not a complete safetensors file ({error}); download it '
                    'again.') from error
  entries = {}
  for name in order:
    place = handle.get_slice(name)
    dtype, shape = place.get_dtype(), tuple(place.get_shape())
    if dtype not in DTYPES:
      raise UserError(f'tensor {name} in {file} has dtype {dtype}; it must be one of '
                      + ', '.join(DTYPES) + '.')
    if any(length >= 2**40 for length in shape):  # next to a 0, with no bytes to read
      raise UserError(f'tensor {name} in {file} has shape {list(shape)}; download it again.')
    start = 8 + len(header) + names[name]['data_offsets'][0]
    entries[name] = Entry(file, DTYPES[dtype], shape, start)
  assert set(entries) == set(names) - {'__metadata__'}, file
  return handle, entries


def _judged(file: pathlib.Path, header: bytes) -> Any:
  """The library's handle of a file; for an object of a bucket, of a file with the same header and
  size and without any data."""
  if not url_path.is_url(file):
    return safetensors.safe_open(file, framework='numpy', backend='pread')
  with tempfile.NamedTemporaryFile() as same:
    same.write(len(header).to_bytes(8, 'little') + header)
    same.truncate(file.stat().st_size)
    same.flush()
    return safetensors.safe_open(same.name, framework='numpy', backend='pread')


def _header_bytes(file: pathlib.Path) -> bytes:
  try:
    with file.open('rb') as stream:
      size = file.stat().st_size
      length = int.from_bytes(stream.read(8), 'little')
      if not 0 < length <= min(_MAX_HEADER, size - 8):
        raise UserError(f'{file} is not a safetensors file, or its beginning is damaged; download '
                        'it again.')
      return stream.read(length)
  except OSError as error:
    raise UserError(f'{file} cannot be read ({error.strerror}); download it again.') from error


# -- writing ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Plan:
  """A tensor that will be written."""
  name: str
  shape: tuple[int, ...]
  dtype: np.dtype

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Writer:
  """Writes tensors into the files of a directory, in the order of the plans.

  A file starts with its header, so names, shapes and dtypes must be known before any tensor.
  """

  def __init__(self, directory: pathlib.Path, plans: Iterable[Plan], shard_bytes: int):
    """Args:
      directory: exists.
      plans: of all tensors.
      shard_bytes: maximum bytes of tensors in a file, unless a single tensor is larger.
    """
    self.directory = directory
    self.sums: dict[str, int] = {}  # name -> CRC-32 of its bytes, of those written here
    self._own: list[tuple[str, list[Plan]]] = []  # the files written here
    self._shards: list[list[Plan]] = [[]]
    for plan in plans:
      if self._shards[-1] and sum(p.nbytes for p in self._shards[-1]) + plan.nbytes > shard_bytes:
        self._shards.append([])
      self._shards[-1].append(plan)

  def tensors(self) -> list[list[str]]:
    """Names of the tensors in every file."""
    return [[plan.name for plan in plans] for plans in self._shards]

  def names(self) -> list[str]:
    """Names of the files."""
    count = len(self._shards)
    return [SINGLE] if count == 1 else [
        f'model-{number:05d}-of-{count:05d}.safetensors' for number in range(1, count + 1)]

  def write(self, get: Any, single: str = SINGLE, own: Callable[[int], bool] = lambda file: True
            ) -> None:
    """Write files.

    Args:
      get: name -> array of the planned shape and dtype; called once per tensor, in order, while
        other threads write the tensors before.
      single: name of the file if there is only one.
      own: whether file number i is written here; other processes write the others.
    """
    names = self.names() if len(self._shards) > 1 else [single]
    self._own = [(file, plans) for number, (file, plans) in enumerate(zip(names, self._shards))
                 if own(number)]
    for file, plans in self._own:
      self._write_file(self.directory / file, plans, get)
    if len(names) > 1 and own(0):
      places = {plan.name: file for file, plans in zip(names, self._shards) for plan in plans}
      total = sum(plan.nbytes for plans in self._shards for plan in plans)
      text = json.dumps({'metadata': {'total_size': total}, 'weight_map': places}, indent=2)
      (self.directory / INDEX).write_text(text + '\n', encoding='utf-8')

  def check(self, directory: pathlib.Path) -> None:
    """UserError unless the tensors written here are the same when they are read back.

    Args:
      directory: that of this object, or a place to which it was moved.
    """
    entries = {}
    for file, plans in self._own:
      at = len(_header(plans))
      for plan in plans:
        entries[plan.name] = Entry(directory / file, np.dtype(plan.dtype), plan.shape, at)
        at += plan.nbytes
    for name, total in checksums(entries, entries).items():
      if total != self.sums[name]:
        raise UserError(f'tensor {name} in {directory} differs from what was written; the disk may '
                        'be damaged, so export to another one.')

  def _write_file(self, path: pathlib.Path, plans: list[Plan], get: Any) -> None:
    with path.open('wb') as file:
      header = _header(plans)
      file.write(header)
      file.flush()
      number, at = file.fileno(), len(header)

      def write(array: np.ndarray, start: int) -> int:
        view = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        total = 0
        for begin in range(0, len(view), _CHUNK):
          chunk = view[begin:begin + _CHUNK]
          total = zlib.crc32(chunk, total)
          _write_at(number, chunk, start + begin)
        return total

      def tasks() -> Iterator[tuple[int, Callable[[], int]]]:
        nonlocal at
        for plan in plans:
          array = np.asarray(get(plan.name))
          assert array.shape == plan.shape and array.dtype == plan.dtype, (plan, array.shape)
          yield plan.nbytes, lambda array=array, start=at: write(array, start)
          at += plan.nbytes
      for plan, total in zip(plans, in_threads(tasks())):
        self.sums[plan.name] = total
      os.fsync(number)


def _header(plans: list[Plan]) -> bytes:
  values: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  at = 0
  for plan in plans:
    values[plan.name] = {'dtype': _NAMES[np.dtype(plan.dtype)], 'shape': list(plan.shape),
                         'data_offsets': [at, at + plan.nbytes]}
    at += plan.nbytes
  text = json.dumps(values).encode()
  text += b' ' * (-len(text) % 8)  # aligns the tensors to eight bytes
  return len(text).to_bytes(8, 'little') + text


def _write_at(number: int, data: memoryview, start: int) -> None:
  """Write all of ``data`` at an offset of an open file."""
  while data:
    count = os.pwrite(number, data, start)
    data, start = data[count:], start + count


def checksum(folder: Folder, name: str) -> int:
  """CRC-32 of a tensor's bytes."""
  return checksums(folder, [name])[name]


def checksums(folder: Mapping[str, Entry], names: Iterable[str]) -> dict[str, int]:
  """CRC-32 of the bytes of some tensors, read by several threads.

  Raises:
    UserError: a file became shorter, or cannot be read.
  """
  names = list(names)
  return dict(zip(names, in_threads(
      (0, lambda entry=folder[name]: _sum_of(entry)) for name in names)))


def _sum_of(entry: Entry) -> int:
  total, left = 0, entry.nbytes
  try:
    with entry.file.open('rb') as file:
      file.seek(entry.start)
      while left:
        data = file.read(min(_CHUNK, left))
        if not data:
          raise UserError(f'{entry.file} is shorter than its header says; it is truncated or being '
                          'replaced.')
        total, left = zlib.crc32(data, total), left - len(data)
  except OSError as error:
    raise UserError(f'{entry.file} cannot be read ({error.strerror}).') from error
  return total


def in_threads(tasks: Iterable[tuple[int, Callable[[], _T]]]) -> Generator[_T, None, None]:
  """The results of tasks in order, a few of which run at once: what follows is read ahead.

  Args:
    tasks: (bytes that a task holds, task); one is taken while those before hold at most _AHEAD.
  """
  waiting: collections.deque[tuple[int, futures.Future[_T]]] = collections.deque()
  held = 0
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    try:
      for size, task in tasks:
        waiting.append((size, pool.submit(task)))
        held += size
        while len(waiting) > 1 and (held > _AHEAD or len(waiting) > 2 * _THREADS):
          size, future = waiting.popleft()
          yield future.result()
          held -= size
      while waiting:
        yield waiting.popleft()[1].result()
    finally:
      for _, future in waiting:
        future.cancel()
