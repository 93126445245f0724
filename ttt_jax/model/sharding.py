"""The mesh and ONE table from logical axes to mesh axes.

  axis     shards                              communication over it
  slice    copies of the model, one per TPU    gradients, once per step, over the
           slice                               data-centre network
  data     copies inside a slice               gradients, once per step
  fsdp     parts of every weight               a layer's weights before, its gradient after
  seq      parts of every row                  keys and values of a layer
  tensor   heads, ffn columns, vocabulary      activations, twice per layer
"""

import functools
import logging
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from ttt_jax.config import MeshConfig
from ttt_jax.errors import UserError
from ttt_jax.model.types import AnyMesh, Array
from ttt_jax.tokens.batch import Batch

_LOG = logging.getLogger(__name__)

# From the slowest network to the fastest: 'slice' spans TPU slices, 'tensor' neighbours.
AXES = ('slice', 'data', 'fsdp', 'seq', 'tensor')

# A logical axis that is missing here is an error; it is never replicated silently.
TABLE: dict[str, Any] = {
    'rows': ('slice', 'data', 'fsdp'),  # rows of a batch
    'row_groups': ('slice', 'data'),    # rows, where fsdp cuts the width instead
    'length': 'seq',  # tokens of a row
    'layers': None,   # scanned over
    'vocab': 'tensor',
    'embed': 'fsdp',
    'heads': 'tensor',
    'kv_heads': 'tensor',
    'mlp': 'tensor',
    'norm': None,     # a vector per layer: too small to be worth a gather
    'rank': None,     # of an adapter: a few columns
    'width': None,    # activations: every device of a row sees the complete residual stream
}


def make_mesh(config: MeshConfig, devices: Any = None) -> Mesh:
  """The mesh of a config over the given (default: all) devices."""
  devices = jax.devices() if devices is None else devices
  sizes = _sizes(config, len(devices))
  types = (AxisType.Auto,) * len(AXES)
  place = _across_slices if sizes[0] > 1 else mesh_utils.create_device_mesh
  try:
    placed = place(sizes, devices)
  except NotImplementedError:  # a mesh axis that needs only a part of a torus axis
    placed = place(sizes, devices, allow_split_physical_axes=True)
  return Mesh(placed, AXES, axis_types=types)


def reading_mesh(config: MeshConfig, axes: Any, shapes: Any, devices: Any = None) -> Mesh:
  """The mesh to read weights on: that of the config if it fits the devices, else fsdp over as
  many devices as divide the weights.

  Training needs the mesh that was asked for, since batches are divided over it. Evaluation,
  generation and export give the same results on any.

  Args:
    config: of the run that trained the weights.
    axes, shapes: as for ``shardings``.
    devices: default: all.
  """
  try:
    mesh = make_mesh(config, devices)
    shardings(mesh, axes, shapes)
    return mesh
  except UserError:
    found = jax.devices() if devices is None else devices
  count = next(n for n in range(len(found), 0, -1) if _divides(n, axes, shapes))
  named = ', '.join(f'mesh.{key}={size}' for key, size in vars(config).items() if size != 1)
  _LOG.info('the mesh of the config (%s) does not fit the %d device%s here: weights are read with '
            'mesh.fsdp=%d.', named or 'one device', len(found), 's' * (len(found) > 1), count)
  return make_mesh(MeshConfig(fsdp=count), found[:count])


def converting_mesh(axes: Any, shapes: Any) -> Mesh:
  """The mesh on which several processes import or export: every weight over as many of all devices
  as divide it, along fsdp, so that no process holds all of it.

  Args:
    axes, shapes: as for ``shardings``.
  """
  count = len(jax.devices())
  fsdp = next(n for n in range(count, 0, -1) if count % n == 0 and _divides(n, axes, shapes))
  return make_mesh(MeshConfig(data=count // fsdp, fsdp=fsdp))


def _divides(count: int, axes: Any, shapes: Any) -> bool:
  """Whether every weight can be sharded over ``count`` devices along fsdp."""
  try:
    shardings(abstract_mesh(MeshConfig(fsdp=count), count), axes, shapes)
  except UserError:
    return False
  return True


def abstract_mesh(config: MeshConfig, devices: int) -> AbstractMesh:
  """A mesh without devices, for checking shardings on any machine."""
  return AbstractMesh(tuple(_sizes(config, devices)), AXES,
                      axis_types=(AxisType.Auto,) * len(AXES))


def _sizes(config: MeshConfig, devices: int) -> list[int]:
  key = {axis: 'slices' if axis == 'slice' else axis for axis in AXES}
  sizes = [getattr(config, key[axis]) for axis in AXES]
  known = math.prod(size for size in sizes if size != -1)
  if -1 in sizes:
    sizes[sizes.index(-1)] = max(devices // known, 1)
  if math.prod(sizes) != devices:
    named = ', '.join(f'mesh.{key[axis]}={getattr(config, key[axis])}' for axis in AXES)
    raise UserError(f'config {named} does not fit {devices} devices; the product of the axes must '
                    'be the number of devices.')
  return sizes


def _across_slices(sizes: list[int], devices: Any, **torus: bool) -> np.ndarray:
  """Devices [sizes], with each slice's devices ordered for the slice's own network."""
  slices = len({getattr(device, 'slice_index', 0) for device in devices})
  if slices == 1:  # simulated slices: virtual devices, or one real slice split for a test
    return np.asarray(devices).reshape(sizes)
  if slices != sizes[0]:
    raise UserError(f'config key mesh.slices is {sizes[0]}, but the {len(devices)} devices belong '
                    f'to {slices} slices.')
  inside = (1, *sizes[1:])
  between = (sizes[0],) + (1,) * (len(AXES) - 1)
  return mesh_utils.create_hybrid_device_mesh(inside, between, devices, **torus)


def spec(axes: tuple[str, ...]) -> PartitionSpec:
  """The PartitionSpec of logical axes."""
  for axis in axes:
    assert axis in TABLE, f'logical axis {axis!r} is missing from sharding.TABLE'
  return PartitionSpec(*(TABLE[axis] for axis in axes))


def shardings(mesh: AnyMesh, axes: Any, shapes: Any) -> Any:
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


def _size(mesh: AnyMesh, axis: Any) -> int:
  names = () if axis is None else (axis,) if isinstance(axis, str) else axis
  return math.prod(mesh.shape[name] for name in names)


def in_use() -> bool:
  """Whether a mesh of more than one device is set (jax.set_mesh)."""
  mesh = jax.sharding.get_abstract_mesh()
  return not mesh.empty and mesh.size > 1


def constrain(x: Array, axes: tuple[str | None, ...]) -> jax.Array:
  """Constrain the sharding of a value inside jit; without a mesh, return it unchanged.

  Args:
    x: an activation or a weight.
    axes: a logical name or None per dimension. A dimension that its mesh axes do not divide
      is replicated, for example a batch of three requests.
  """
  if not in_use():
    return jnp.asarray(x)
  mesh = jax.sharding.get_abstract_mesh()
  places = [None if axis is None else TABLE[axis] for axis in axes]
  places = [place if size % _size(mesh, place) == 0 else None
            for size, place in zip(x.shape, places, strict=True)]
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*places))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather(weight: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  """A weight gathered along fsdp, inside jit. Its gradient is constrained to the shards, so that
  XLA emits a reduce-scatter; the transpose of a plain constraint would be an all-reduce."""
  gathered = tuple(None if TABLE[axis] == TABLE['embed'] else axis for axis in axes)
  return constrain(constrain(weight, axes), gathered)


gather.defvjp(lambda weight, axes: (gather(weight, axes), None),
              lambda axes, _, gradient: (constrain(gradient, axes),))


def check_heads(mesh: AnyMesh, num_attention_heads: int, kv_heads: int) -> None:
  """Raise UserError unless the tensor axis divides the numbers of heads."""
  parts = _size(mesh, TABLE['heads'])
  if num_attention_heads % parts or kv_heads % parts:
    raise UserError(
        f'config key mesh.tensor={parts} must divide model.num_attention_heads='
        f'{num_attention_heads} and model.num_key_value_heads={kv_heads}; '
        'use a smaller tensor axis and a larger fsdp.')


def report(mesh: AnyMesh, axes: Any, shapes: Any) -> list[str]:
  """Lines of text on which parameters are replicated on every device, and why.

  Args:
    mesh: from ``make_mesh``.
    axes, shapes: as for ``shardings``.
  """
  held: dict[str, list] = {}
  total = replicated = 0
  leaf = lambda x: isinstance(x, tuple) and all(isinstance(name, str) for name in x)
  paths = jax.tree_util.tree_flatten_with_path(shapes)[0]
  for (path, shape), names in zip(paths, jax.tree.leaves(axes, is_leaf=leaf)):
    size = math.prod(shape.shape)
    total += size
    if all(_size(mesh, place) == 1 for place in spec(names)):
      replicated += size
      cut = [name for name in names if TABLE[name] is not None]
      why = (f'{" x ".join(names)}: sharded over mesh axes of size 1' if cut else
             f'{" x ".join(names)}: small, not sharded by the sharding table')
      held.setdefault(why, []).append(jax.tree_util.keystr(path, simple=True, separator='.'))
  lines = [f'{replicated:,} of {total:,} parameters ({100 * replicated / max(total, 1):.2f} %) are '
           'replicated on every device:']
  return lines + [f'  {why}: {", ".join(names)}' for why, names in held.items()]


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of every [B, T] vector of a Batch."""
  return NamedSharding(mesh, spec(('rows', 'length')))


def abstract_batch(mesh: Mesh, rows: int, length: int) -> Batch:
  """A batch of ShapeDtypeStructs, for compiling a step ahead of time."""
  one = jax.ShapeDtypeStruct((rows, length), np.int32, sharding=batch_sharding(mesh))
  return Batch(*[one] * len(Batch._fields))  # type: ignore  # shapes in place of arrays


def check_batch(mesh: AnyMesh, rows: int, microbatches: int, length: int) -> None:
  """Raise UserError unless the mesh divides every microbatch."""
  parts = _size(mesh, TABLE['rows'])
  if (rows // microbatches) % parts:
    raise UserError(
        f'config keys train.batch_size={rows} and train.grad_accum_steps={microbatches}: '
        f'{rows // microbatches} rows per microbatch do not divide over the {parts} devices of '
        'the mesh axes slice x data x fsdp.')
  if length % _size(mesh, TABLE['length']):
    raise UserError(f'config key data.seq_len={length} does not divide over '
                    f'mesh.seq={mesh.shape["seq"]}.')


def put_batch(mesh: Mesh, batch: Any) -> Any:
  """Global arrays on the mesh from each process's own rows (numpy)."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)
