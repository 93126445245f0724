"""The mesh and ONE table from logical axes to mesh axes."""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ttt_jax.config import MeshConfig
from ttt_jax.errors import UserError

# From the slowest network to the fastest: 'slice' spans TPU slices, 'tensor' neighbours.
AXES = ('slice', 'data', 'fsdp', 'seq', 'tensor')

# A logical axis that is not here is an error, never a silent replication.
TABLE: dict[str, Any] = {
    'rows': ('slice', 'data', 'fsdp'),  # rows of a batch
    'length': 'seq',  # tokens of a row
    'layers': None,   # scanned over
    'vocab': 'tensor',
    'embed': 'fsdp',
    'heads': 'tensor',
    'kv_heads': 'tensor',
    'mlp': 'tensor',
    'norm': None,     # a vector per layer: too small to be worth a gather
    'width': None,    # activations: every device of a row sees the whole residual stream
}


def make_mesh(config: MeshConfig, devices: Any = None) -> Mesh:
  """The mesh of a config over the given (default: all) devices."""
  devices = jax.devices() if devices is None else devices
  sizes = [getattr(config, axis) for axis in AXES]
  known = math.prod(size for size in sizes if size != -1)
  if -1 in sizes:
    sizes[sizes.index(-1)] = max(len(devices) // known, 1)
  if math.prod(sizes) != len(devices):
    named = ', '.join(f'mesh.{axis}={getattr(config, axis)}' for axis in AXES)
    raise UserError(f'config {named} does not fit {len(devices)} devices; the product of the '
                    'axes must be the number of devices.')
  return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES),
                       devices=devices)


def spec(axes: tuple[str, ...]) -> PartitionSpec:
  for axis in axes:
    assert axis in TABLE, f'logical axis {axis!r} is missing from sharding.TABLE'
  return PartitionSpec(*(TABLE[axis] for axis in axes))


def shardings(mesh: Mesh, axes: Any, shapes: Any) -> Any:
  """A NamedSharding for every array.

  Args:
    mesh: from ``make_mesh``.
    axes: tree of tuples of logical names (Model.axes()).
    shapes: the same tree of arrays or ShapeDtypeStructs.

  Raises:
    UserError: a dimension that the mesh axis does not divide.
  """
  def one(path, shape, names):
    assert len(names) == len(shape.shape), (path, names, shape.shape)
    sharding = NamedSharding(mesh, spec(names))
    for size, name, axis in zip(shape.shape, names, sharding.spec):
      parts = _size(mesh, axis)
      if size % parts:
        raise UserError(
            f'parameter {jax.tree_util.keystr(path)} has {size} along its {name!r} axis, which '
            f'mesh axis {axis!r} of {parts} devices does not divide; change the mesh or the model.')
    return sharding

  leaf = lambda x: isinstance(x, tuple) and all(isinstance(name, str) for name in x)
  flat_axes = jax.tree.leaves(axes, is_leaf=leaf)
  paths, tree = jax.tree_util.tree_flatten_with_path(shapes)
  return jax.tree.unflatten(
      tree, [one(path, shape, names) for (path, shape), names in zip(paths, flat_axes)])


def _size(mesh: Mesh, axis: Any) -> int:
  names = () if axis is None else (axis,) if isinstance(axis, str) else axis
  return math.prod(mesh.shape[name] for name in names)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Of every [B, T] vector of a Batch."""
  return NamedSharding(mesh, spec(('rows', 'length')))


def check_batch(mesh: Mesh, rows: int, microbatches: int, length: int) -> None:
  """UserError unless every microbatch divides over the mesh."""
  parts = _size(mesh, TABLE['rows'])
  if (rows // microbatches) % parts:
    raise UserError(
        f'config keys train.batch_rows={rows} and train.microbatches={microbatches}: '
        f'{rows // microbatches} rows per microbatch do not divide over the {parts} devices of '
        'the mesh axes data x fsdp.')
  if length % _size(mesh, TABLE['length']):
    raise UserError(f'config key data.row_length={length} does not divide over '
                    f'mesh.seq={mesh.shape["seq"]}.')


def put_batch(mesh: Mesh, batch: Any) -> Any:
  """This process's rows (numpy) -> global arrays on the mesh."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)
