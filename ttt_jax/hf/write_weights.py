"""From parameters on the mesh to the safetensors files of an export, by one process or several.

File i belongs to process i mod N. The processes go through the tensors together, one of each in
turn: all devices gather a tensor, and its owner copies it to the host and writes it while the
others go on. So a host holds at most 256 MiB of tensors and the largest one beside its shards.
"""

from collections.abc import Callable, Iterator
import functools
import itertools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from ttt_jax.config import LoraConfig
from ttt_jax.errors import UserError
from ttt_jax.hf import tensor_names
from ttt_jax.model import lora
from ttt_jax.model.transformer import Model, Params
from ttt_jax.storage import safetensors_io
from ttt_jax.train import together

_BLOCK = 2**25  # bytes of a table that several processes gather at once


def check_finite(step: int, params: Params) -> None:
  """UserError if a parameter is NaN or infinite."""
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    if not bool(_is_finite(leaf)):
      name = '/'.join(str(getattr(key, 'key', key)) for key in path)
      raise UserError(f'checkpoint {step} has numbers in {name} that are NaN or infinite; a '
                      'model with such weights computes nothing, so export an earlier checkpoint.')


@jax.jit
def _is_finite(leaf: jax.Array) -> jax.Array:
  return jnp.isfinite(leaf).all()


def converted(params: Params, merged: LoraConfig | None, dtype: str) -> Params:
  """Parameters without adapters, in another dtype. ``params`` is emptied leaf by leaf, so that two
  copies of all parameters never exist at once.

  Args:
    merged: settings of the adapters to merge; None drops the adapters.
  """
  out = {}
  for key in list(params):
    value = params.pop(key)
    if isinstance(value, dict):
      if merged is not None and lora.A in value:
        value = lora.merge(value, merged)
      out[key] = converted(value, merged, dtype)
    elif key not in (lora.A, lora.B):
      out[key] = value.astype(dtype)
  return out


def mesh_of(params: Any) -> Mesh:
  """The mesh that parameters are on, or any tree of arrays."""
  place = jax.tree.leaves(params)[0].sharding
  assert isinstance(place, NamedSharding) and isinstance(place.mesh, Mesh), place
  return place.mesh


def everywhere(function: Callable, params: Any) -> Callable:
  """A function of ``params``, compiled; with several processes, all have the whole result."""
  if together.single():
    return jax.jit(function)
  return jax.jit(function, out_shardings=NamedSharding(mesh_of(params), PartitionSpec()))


def on_host(array: jax.Array) -> np.ndarray:
  """The whole of a global array, in every process."""
  return np.asarray(array if together.single() else everywhere(lambda value: value, array)(array))


def write(folder: pathlib.Path, model: Model, params: Params, dtype: str, shard_bytes: int,
          writing: Callable) -> safetensors_io.Writer:
  """Write the safetensors files of this process; all processes call it.

  Args:
    folder: to write to.
    model, params: without adapters.
    dtype: of the parameters.
    shard_bytes: maximum size of a file.
    writing: () -> a context in which an error of the disk becomes a sentence.

  Returns:
    The writer, which knows the names of all files and the checksums of the tensors written here.

  Raises:
    UserError: a process could not write; in all processes.
  """
  plan = tensor_names.tensors(model)
  writer = safetensors_io.Writer(folder, (
      safetensors_io.Plan(tensor.name, tensor.shape, np.dtype(dtype))
      for tensor in plan.values()), shard_bytes)
  gather = _Gather(plan, params, _in_turn(writer))
  own = lambda file: owner(file) == jax.process_index()
  try:
    with writing():
      writer.write(gather.get, own=own)
  except Exception as error:
    if not together.is_agreed(error):
      gather.finish(error)
    raise
  gather.finish(None)
  return writer


def owner(file: int) -> int:
  """The process that writes file number ``file``."""
  return file % jax.process_count()


def _in_turn(writer: safetensors_io.Writer) -> Iterator[tuple[int, str]]:
  """(process, tensor) of all tensors: one of each process, then the next one of each."""
  of = [[name for file, names in enumerate(writer.tensors()) if owner(file) == process
         for name in names] for process in range(jax.process_count())]
  for turn in itertools.zip_longest(*of):
    yield from ((process, name) for process, name in enumerate(turn) if name is not None)


class _Gather:
  """Gives the tensors of this process, and takes part in gathering those of the others."""

  def __init__(self, plan: dict[str, tensor_names.Tensor], params: Params,
               turns: Iterator[tuple[int, str]]):
    self._plan, self._params, self._turns = plan, params, turns

  def get(self, name: str) -> np.ndarray:
    """The next tensor of this process, on the host.

    Raises:
      Exception: another process has failed.
    """
    for process, current in self._turns:
      together.agree(None)
      mine = process == jax.process_index()
      array = self._gather(self._plan[current], mine)
      if mine:
        assert current == name, (current, name)
        return array
    raise AssertionError(name)

  def finish(self, error: BaseException | None) -> None:
    """Take part in the rest; if there is an ``error``, all processes raise at the next tensor."""
    for _, current in self._turns:
      together.agree(error)
      self._gather(self._plan[current], False)
    together.agree(error)

  def _gather(self, tensor: tensor_names.Tensor, mine: bool) -> np.ndarray:
    """The tensor, where it is ``mine``."""
    leaf = tensor_names.leaf(self._params, tensor.path)
    if together.single():
      if tensor.layer is None:
        return np.asarray(leaf[:tensor.shape[0]])
      return np.asarray(_slice(leaf, tensor.layer, tensor.transposed))
    if tensor.layer is not None:
      # Wait: dispatch is asynchronous, and the devices must not hold more than one tensor.
      found = jax.block_until_ready(_gathered_slice(
          mesh_of(self._params), tensor.transposed)(leaf, tensor.layer))
      return np.asarray(found) if mine else np.empty(0)
    if not tensor.is_table:
      return on_host(leaf)
    out = np.empty(tensor.shape if mine else 0, leaf.dtype)
    count = max(1, min(_BLOCK // (tensor.shape[1] * leaf.dtype.itemsize), tensor.shape[0]))
    for at in range(0, tensor.shape[0], count):
      at = min(at, tensor.shape[0] - count)  # blocks of one size: one program
      rows = jax.block_until_ready(_gathered_rows(mesh_of(self._params), count)(leaf, at))
      if mine:
        out[at:at + count] = np.asarray(rows)
    return out


@functools.partial(jax.jit, static_argnums=2)
def _slice(stacked: jax.Array, layer: int, transposed: bool) -> jax.Array:
  return stacked[layer].T if transposed else stacked[layer]


@functools.lru_cache(maxsize=None)
def _gathered_slice(mesh: Mesh, transposed: bool):
  # Transposed by the owner of every part, before it is sent.
  return jax.jit(lambda stacked, layer: stacked[layer].T if transposed else stacked[layer],
                 out_shardings=NamedSharding(mesh, PartitionSpec()))


@functools.lru_cache(maxsize=None)
def _gathered_rows(mesh: Mesh, count: int):
  return jax.jit(lambda table, at: jax.lax.dynamic_slice_in_dim(table, at, count),
                 out_shardings=NamedSharding(mesh, PartitionSpec()))
