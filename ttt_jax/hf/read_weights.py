"""From the tensors of a Qwen2 directory to parameters on the mesh, in one process or in several.

Tensors are read in the order of the files, the next ones by threads, and written into their slice
of the stacked parameter on the devices. Of a tensor every process reads the rows of its own
devices, a range of bytes, whatever the sharding of the parameter: the devices exchange the rest. So
a host never holds more than 256 MiB of tensors and its rows of the largest one beside the arrays of
its own devices.
"""

import contextlib
import functools
import hashlib
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ttt_jax.errors import UserError
from ttt_jax.hf import tensor_names
from ttt_jax.model import lora, sharding
from ttt_jax.model.transformer import Model, Params
from ttt_jax.storage import safetensors_io
from ttt_jax.storage.safetensors_io import Folder
from ttt_jax.train import together

NOISE = 0.02   # of new rows, in standard deviations of the old rows, per column
_ROWS = 4096   # rows of a table per pass over it
_Span = tuple[int, int]  # rows from, to


def load(directory: str | os.PathLike, model: Model, mesh: Mesh, dtype: str = '', seed: int = 0,
         rows: int | None = None) -> tuple[Params, Folder, str]:
  """The parameters of ``model`` from a directory whose config.json fits it.

  Args:
    directory: with safetensors; at a URL ranges of the objects are read.
    model: of the size and vocabulary to load.
    mesh: of the parameters; has the same number of devices in every process.
    dtype: of the parameters; '' = as in the directory: bfloat16 if all tensors are, else
      float32.
    seed: of the noise in new rows of the vocabulary.
    rows: of its embedding table, from its config.json; None = any number.

  Returns:
    (parameters, tensors of the directory, their dtype or 'mixed').

  Raises:
    UserError: a tensor is missing, unexpected, of another shape, or unreadable, or has numbers
      that are not finite; in all processes.
  """
  plan = tensor_names.tensors(model)
  folder = together.run(
      lambda: _checked(directory, plan, model.config.tie_word_embeddings, rows))
  together.same(_contents(folder), f'the SHA-256 of the headers in {directory} is',
                'all processes must read the same files')
  found = {folder[name].dtype for name in plan}
  source = found.pop().name if len(found) == 1 else 'mixed'
  dtype = dtype or ('bfloat16' if source == 'bfloat16' else 'float32')
  shapes = lora.without(jax.eval_shape(model.init, jax.random.key(0)))
  places = sharding.shardings(mesh, lora.without(model.axes()), shapes)
  leaves: dict[tuple[str, ...], jax.Array] = {}
  jobs = [_Rows(folder, plan[name], mesh, tensor_names.leaf(shapes, plan[name].path).shape)
          for name in folder if name in plan]
  with contextlib.closing(safetensors_io.in_threads(
      (job.nbytes, job.read) for job in jobs)) as read:
    for job in jobs:
      together.run(lambda: next(read))
      path = job.tensor.path
      shape, place = tensor_names.leaf(shapes, path).shape, tensor_names.leaf(places, path)
      if job.tensor.is_table:
        if job.kept < model.vocab_size:
          _fill(job, model.vocab_size, np.random.default_rng([seed, len(job.tensor.name)]))
        leaves[path] = _moved(job.on_mesh(), place, dtype)
      elif job.tensor.layer is None:
        leaves[path] = _moved(job.on_mesh(), place, dtype)
      else:
        leaves[path] = _into(leaves.pop(path, None), job, shape, place, dtype)
      job.pieces.clear()
  together.run(folder.check_unchanged)
  return (tensor_names.nested({tensor.path: leaves[tensor.path] for tensor in plan.values()}),
          folder, source)


def _contents(folder: Folder) -> str:
  listed = [(name, entry.file.name, entry.dtype.name, entry.shape, entry.start)
            for name, entry in folder.items()]
  return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]


# -- checks -------------------------------------------------------------------------------


def _checked(directory: str | os.PathLike, plan: dict[str, tensor_names.Tensor], tied: bool,
             rows: int | None) -> Folder:
  """The tensors of a directory; UserError unless they are those of the plan."""
  folder = Folder(directory)
  missing = [name for name in plan if name not in folder]
  if missing:
    raise UserError(f'{folder.directory} lacks {_some(missing)}; the download is incomplete, or '
                    'config.json belongs to another model.')
  extra = [name for name in folder if name not in plan]
  if tied and tensor_names.HEAD in extra and _same_bytes(folder, tensor_names.HEAD,
                                                         tensor_names.EMBEDDING):
    extra.remove(tensor_names.HEAD)  # a tied head that was written as well
  if extra:
    raise UserError(f'{folder.directory} also has {_some(extra)}, which a Qwen2 model with its '
                    'config.json does not; config.json belongs to another model.')
  for name, tensor in plan.items():
    shape = folder[name].shape
    if tensor.is_table and shape[:1] != (rows,) and rows is not None:
      raise UserError(f'tensor {name} in {folder[name].file} has shape {list(shape)}; its '
                      f'config.json asks for vocab_size = {rows:,} rows.')
    if shape[1:] != tensor.shape[1:] or (not tensor.is_table and shape != tensor.shape):
      raise UserError(f'tensor {name} in {folder[name].file} has shape {list(shape)}; its '
                      f'config.json asks for {list(tensor.shape)}.')
  if not tied and folder[tensor_names.HEAD].shape != folder[tensor_names.EMBEDDING].shape:
    raise UserError(f'tensor {tensor_names.HEAD} in {folder[tensor_names.HEAD].file} has '
                    f'{folder[tensor_names.HEAD].shape[0]:,} rows and {tensor_names.EMBEDDING} has '
                    f'{folder[tensor_names.EMBEDDING].shape[0]:,}; the two numbers must be equal.')
  return folder


def _some(names: list[str]) -> str:
  rest = f' and {len(names) - 1} more' if len(names) > 1 else ''
  return f'tensor {names[0]}{rest}'


def _same_bytes(folder: Folder, one: str, other: str) -> bool:
  return (folder[one].shape == folder[other].shape and folder[one].dtype == folder[other].dtype
          and safetensors_io.checksum(folder, one) == safetensors_io.checksum(folder, other))


# -- reading ------------------------------------------------------------------------------


class _Rows:
  """The rows of a tensor that the devices of this process hold first.

  Attributes:
    tensor: which one.
    kept: how many of its rows are imported; a table's others are left out.
    pieces: their arrays, once they are read; of a table up to its padded length.
  """

  def __init__(self, folder: Folder, tensor: tensor_names.Tensor, mesh: Mesh,
               shape: tuple[int, ...]):
    """``shape``: of our parameter; a table has its rows, another tensor those of the file."""
    self.tensor, self._folder = tensor, folder
    entry = folder[tensor.name]
    self.kept = entry.rows
    self._shape = entry.shape
    if tensor.is_table:
      self.kept, self._shape = min(entry.rows, tensor.shape[0]), shape
    self._place = NamedSharding(mesh, _over_devices(mesh, self._shape[0]))
    self._spans = sorted({self._span(index) for index in
                          self._place.addressable_devices_indices_map(self._shape).values()})
    self.pieces: dict[_Span, np.ndarray] = {}

  def _span(self, index: Any) -> _Span:
    return index[0].indices(self._shape[0])[:2]

  @property
  def width(self) -> int:
    """Numbers in a row of a table."""
    return self._shape[1]

  @property
  def dtype(self) -> np.dtype:
    """As in the directory."""
    return self._folder[self.tensor.name].dtype

  @property
  def nbytes(self) -> int:
    row = int(np.prod(self._shape[1:])) * self.dtype.itemsize
    return sum(stop - start for start, stop in self._spans) * row

  def read(self) -> None:
    """Read the rows; other rows of a table are 0. UserError if a number is not finite."""
    found = []
    for start, stop in self._spans:
      stored = min(stop, self.kept)
      make = np.empty if stored == stop else np.zeros
      piece = make((stop - start, *self._shape[1:]), self.dtype)
      if start < stored:
        found.append(self._folder.read_rows(self.tensor.name, start, stored,
                                            piece[:stored - start]))
      self.pieces[start, stop] = piece
    self._folder.check_finite(self.tensor.name, found)

  def stored(self, start: int, stop: int) -> np.ndarray:
    """Some rows as in the directory, read again if they are of several pieces or of others."""
    for (first, last), piece in self.pieces.items():
      if first <= start and stop <= last:
        return piece[start - first:stop - first]
    return self._folder.read_rows(self.tensor.name, start, stop)

  def set(self, start: int, rows: np.ndarray) -> None:
    """Replace the rows from ``start`` on, as far as they are here."""
    for (first, last), piece in self.pieces.items():
      begin, end = max(start, first), min(start + len(rows), last)
      if begin < end:
        piece[begin - first:end - first] = rows[begin - start:end - start]

  def on_mesh(self) -> jax.Array:
    """The tensor as a global array, its rows over the devices."""
    return jax.make_array_from_callback(self._shape, self._place,
                                        lambda index: self.pieces[self._span(index)])


def _over_devices(mesh: Mesh, rows: int) -> PartitionSpec:
  """Rows over as many devices as divide them."""
  axes, parts = [], 1
  for axis, size in mesh.shape.items():
    if rows % (parts * size) == 0:
      axes.append(axis)
      parts *= size
  return PartitionSpec(tuple(axes))


def _fill(table: _Rows, size: int, random: np.random.Generator) -> None:
  """Set rows kept .. size - 1: the mean of the old rows plus noise. The mean keeps new logits in
  the range of the old ones (Hewitt, "Initializing new word embeddings for pretrained language
  models", 2021); the noise makes the new rows different from each other.

  Blocks of rows are divided over the processes and added in their order, so that the sums do not
  depend on the number of processes."""
  starts = range(0, table.kept, _ROWS)
  mine = starts[jax.process_index()::jax.process_count()]
  def sums() -> bytes:
    out = np.zeros((len(mine), 2, table.width))
    for number, at in enumerate(mine):
      rows = table.stored(at, min(at + _ROWS, table.kept)).astype(np.float32)
      out[number] = rows.sum(axis=0, dtype=np.float64), np.einsum('re,re->e', rows, rows)
    return out.tobytes()
  found = [np.frombuffer(data).reshape(-1, 2, table.width)
           for data in together.exchange(together.run(sums))]
  total, squares = np.zeros(table.width), np.zeros(table.width)
  for number in range(len(starts)):
    block = found[number % len(found)][number // len(found)]
    total += block[0]
    squares += block[1]
  mean = total / table.kept
  spread = np.sqrt(np.maximum(squares / table.kept - mean**2, 0))
  for at in range(table.kept, size, _ROWS):
    noise = random.standard_normal((min(_ROWS, size - at), table.width), dtype=np.float32)
    table.set(at, (mean + NOISE * spread * noise).astype(table.dtype))


# -- onto the mesh ------------------------------------------------------------------------


def _moved(array: jax.Array, place: NamedSharding, dtype: str) -> jax.Array:
  """The array in another sharding and dtype."""
  if array.sharding.is_equivalent_to(place, array.ndim):
    return array.astype(dtype)
  return jax.jit(lambda value: value.astype(dtype), out_shardings=place)(array)


def _into(stacked: jax.Array | None, rows: _Rows, shape: tuple[int, ...], place: NamedSharding,
          dtype: str) -> jax.Array:
  """The stacked parameter with one layer's slice written; ``stacked`` is donated."""
  if stacked is None:
    stacked = _zeros(shape, place, dtype)()
  # Wait: dispatch is asynchronous, and the host must not hold more than one tensor.
  return jax.block_until_ready(_writer(place, rows.tensor.transposed)(
      stacked, rows.on_mesh(), rows.tensor.layer))


@functools.lru_cache(maxsize=None)
def _zeros(shape: tuple[int, ...], place: NamedSharding, dtype: str):
  return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=place)


@functools.lru_cache(maxsize=None)
def _writer(place: NamedSharding, transposed: bool):
  def write(stacked, array, layer):
    array = (array.T if transposed else array).astype(stacked.dtype)
    return jax.lax.dynamic_update_index_in_dim(stacked, array, layer, 0)
  return jax.jit(write, donate_argnums=0, out_shardings=place)
