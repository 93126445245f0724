"""Reads and writes safetensors files tensor by tensor, with one tensor in memory at a time.

A file is eight bytes of length N, N bytes of JSON, and the bytes of the tensors, little-endian:

  {"lm_head.weight": {"dtype": "BF16", "shape": [4, 2], "data_offsets": [0, 16]}, ...}

Large models have several files and an index from tensors to files. The safetensors library maps
complete files into memory or takes all tensors of a file at once; plain reads and writes keep the
peak at one tensor. The format is that of the README of safetensors 0.5.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any
import zlib

import ml_dtypes
import numpy as np

from ttt_jax.errors import UserError

SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
DTYPES = {'BF16': np.dtype(ml_dtypes.bfloat16), 'F16': np.dtype(np.float16),
          'F32': np.dtype(np.float32), 'F64': np.dtype(np.float64)}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_CHUNK = 2**24              # bytes written or checked at once


@dataclasses.dataclass(frozen=True)
class Entry:
  """Where a tensor is stored: file, dtype, shape, and the position of its first byte."""
  file: pathlib.Path
  dtype: np.dtype
  shape: tuple[int, ...]
  start: int

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize


# -- reading ------------------------------------------------------------------------------


class Folder(Mapping):
  """The tensors of a directory: name -> Entry, in the order of files and offsets."""

  def __init__(self, directory: str | os.PathLike, single: str = SINGLE, index: str = INDEX):
    """Read all headers.

    Args:
      directory: holds ``single``, or ``index`` with the files that it names.

    Raises:
      UserError: neither exists, a file is missing, truncated or not safetensors, or the index
        and the files contradict each other.
    """
    self.directory = pathlib.Path(directory)
    if not self.directory.is_dir():
      raise UserError(f'{directory} is not a directory; name the folder of a model, with its '
                      'config.json and safetensors files.')
    self._entries: dict[str, Entry] = {}
    for file, wanted in self._files(single, index):
      found = read_header(file)
      for name in wanted if wanted is not None else found:
        if name not in found:
          raise UserError(f'{self.directory / index} lists tensor {name} in {file.name}, which '
                          'does not have it; the download is incomplete or files were mixed.')
        self._entries[name] = found[name]

  def _files(self, single: str, index: str) -> list[tuple[pathlib.Path, list[str] | None]]:
    path = self.directory / index
    if not path.is_file():
      if not (self.directory / single).is_file():
        raise UserError(f'{self.directory} has neither {single} nor {index}; weights in another '
                        'format must be converted to safetensors first.')
      return [(self.directory / single, None)]
    try:
      places = json.loads(path.read_text(encoding='utf-8'))['weight_map']
      if not all(isinstance(file, str) for file in places.values()):
        raise TypeError(places)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise UserError(f'{path} is not an index of safetensors files: it needs a "weight_map" from '
                      'tensor names to file names.') from error
    files: dict[str, list[str]] = {}
    for name, file in places.items():
      files.setdefault(file, []).append(name)
    for file in files:
      if not (self.directory / file).is_file():
        raise UserError(f'{path} names the file {file}, which is not in {self.directory}; the '
                        'download is incomplete.')
    return [(self.directory / file, files[file]) for file in sorted(files)]

  def __getitem__(self, name: str) -> Entry:
    return self._entries[name]

  def __iter__(self):
    return iter(self._entries)

  def __len__(self) -> int:
    return len(self._entries)

  def read(self, name: str, out: np.ndarray | None = None) -> np.ndarray:
    """One tensor, in its stored dtype.

    Args:
      name: of the tensor.
      out: array to read into instead of a new one; it takes as many of the first rows as it has.
    """
    entry = self[name]
    array = np.empty(entry.shape, entry.dtype) if out is None else out
    assert array.dtype == entry.dtype and array.flags.c_contiguous
    assert array.shape[1:] == entry.shape[1:] and array.shape[:1] <= entry.shape[:1]
    with entry.file.open('rb') as file:
      file.seek(entry.start)
      got = file.readinto(array.reshape(-1).view(np.uint8).data) if array.nbytes else 0
    if got != array.nbytes:
      raise UserError(f'{entry.file} ends inside tensor {name}; the file is truncated.')
    return array


def read_header(file: pathlib.Path) -> dict[str, Entry]:
  """The tensors of one file, in the order of their offsets.

  Raises:
    UserError: it is not a safetensors file, or shorter than its header says.
  """
  size = file.stat().st_size
  try:
    with file.open('rb') as stream:
      length = int.from_bytes(stream.read(8), 'little')
      if not 0 < length <= min(_MAX_HEADER, size - 8):
        raise ValueError('no header')
      values = json.loads(stream.read(length))
    values.pop('__metadata__', None)
    entries = {name: _entry(file, name, value, 8 + length) for name, value in sorted(
        values.items(), key=lambda item: item[1]['data_offsets'][0])}
  except UserError:
    raise
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f'{file} is not a safetensors file, or its beginning is damaged; download it '
                    'again.') from error
  end = max((entry.start + entry.nbytes for entry in entries.values()), default=0)
  if end > size:
    raise UserError(f'{file} has {size:,} bytes, but its header needs {end:,}; the file is '
                    'truncated, download it again.')
  return entries


def _entry(file: pathlib.Path, name: str, value: dict[str, Any], first: int) -> Entry:
  begin, end = value['data_offsets']
  if value['dtype'] not in DTYPES:
    raise UserError(f'tensor {name} in {file} has dtype {value["dtype"]}; it must be one of '
                    + ', '.join(DTYPES) + '.')
  entry = Entry(file, DTYPES[value['dtype']], tuple(value['shape']), first + begin)
  if entry.nbytes != end - begin:
    raise ValueError(f'{name}: {end - begin} bytes')
  return entry


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
    self.sums: dict[str, int] = {}  # name -> CRC-32 of its bytes
    self._shards: list[list[Plan]] = [[]]
    for plan in plans:
      if self._shards[-1] and sum(p.nbytes for p in self._shards[-1]) + plan.nbytes > shard_bytes:
        self._shards.append([])
      self._shards[-1].append(plan)

  def names(self) -> list[str]:
    """Names of the files."""
    count = len(self._shards)
    return [SINGLE] if count == 1 else [
        f'model-{number:05d}-of-{count:05d}.safetensors' for number in range(1, count + 1)]

  def write(self, get: Any, single: str = SINGLE) -> None:
    """Write all files.

    Args:
      get: name -> array of the planned shape and dtype; called once per tensor, in order.
      single: name of the file if there is only one.
    """
    names = self.names() if len(self._shards) > 1 else [single]
    for file, plans in zip(names, self._shards):
      self._write_file(self.directory / file, plans, get)
    if len(names) > 1:
      places = {plan.name: file for file, plans in zip(names, self._shards) for plan in plans}
      total = sum(plan.nbytes for plans in self._shards for plan in plans)
      text = json.dumps({'metadata': {'total_size': total}, 'weight_map': places}, indent=2)
      (self.directory / INDEX).write_text(text + '\n', encoding='utf-8')

  def _write_file(self, path: pathlib.Path, plans: list[Plan], get: Any) -> None:
    with path.open('wb') as file:
      file.write(_header(plans))
      for plan in plans:
        array = np.asarray(get(plan.name))
        assert array.shape == plan.shape and array.dtype == plan.dtype, (plan, array.shape)
        view = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        total = 0
        for at in range(0, plan.nbytes, _CHUNK):
          total = zlib.crc32(view[at:at + _CHUNK], total)
          file.write(view[at:at + _CHUNK])
        self.sums[plan.name] = total
      file.flush()
      os.fsync(file.fileno())


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


def checksum(folder: Folder, name: str) -> int:
  """CRC-32 of a tensor's bytes, read in pieces."""
  entry = folder[name]
  left, total = entry.nbytes, 0
  with entry.file.open('rb') as file:
    file.seek(entry.start)
    while left and (chunk := file.read(min(_CHUNK, left))):
      total = zlib.crc32(chunk, total)
      left -= len(chunk)
  return total
