"""The training state, and the sharding of each of its arrays."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ttt_jax.config import MeshConfig
from ttt_jax.model import lora, sharding
from ttt_jax.model.transformer import Model, Params
from ttt_jax.train import together


class TrainState(NamedTuple):
  """What a run carries from step to step.

  Attributes:
    step: int32 scalar, updates done.
    params: nested dict of float32 arrays.
    opt_state: optax's state, sharded like the parameters that it belongs to; with LoRA, that of
      the adapters alone (model/lora.py).
  """
  step: Any
  params: Any
  opt_state: Any


def create(model: Model, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
  """A new state with random parameters; traceable, so that eval_shape and jit can take it."""
  params = model.init(key)
  return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(lora.trained(params)))


def begin(params: Any, optimizer: optax.GradientTransformation, target: TrainState) -> TrainState:
  """The state before the first step, for given parameters on the mesh; ``target`` as ``abstract``
  returns it."""
  where = jax.tree.map(lambda leaf: leaf.sharding, (target.step, target.opt_state))
  make = jax.jit(lambda params: (jnp.zeros((), jnp.int32), optimizer.init(lora.trained(params))),
                 out_shardings=where)
  step, opt_state = make(params)
  return TrainState(step, params, opt_state)


def state_shardings(model: Model, optimizer: optax.GradientTransformation,
                    mesh: Mesh) -> TrainState:
  """A TrainState of NamedShardings; optimizer moments are sharded like their parameters."""
  shapes = jax.eval_shape(lambda: create(model, optimizer, jax.random.key(0)))
  params = sharding.shardings(mesh, model.axes(), shapes.params)
  everywhere = NamedSharding(mesh, PartitionSpec())
  return TrainState(everywhere, params, _like_params(shapes, params, mesh))


def _like_params(shapes: TrainState, params: Any, mesh: Mesh) -> Any:
  """Shardings of the optimizer's state.

  A leaf belongs to the parameter whose path is a suffix of the leaf's path. Adafactor's row and
  column statistics lack one of the parameter's dimensions, so their sharding lacks it, too.
  """
  known = {jax.tree_util.keystr(path): (shape.shape, where.spec) for (path, shape), where in zip(
      jax.tree_util.tree_flatten_with_path(shapes.params)[0], jax.tree.leaves(params))}

  def one(path, leaf):
    for start in range(len(path)):
      shape, spec = known.get(jax.tree_util.keystr(path[start:]), (None, None))
      if shape == leaf.shape:
        return NamedSharding(mesh, spec)
      for axis in range(len(shape or ())):
        if shape[:axis] + shape[axis + 1:] == leaf.shape:
          return NamedSharding(mesh, PartitionSpec(*spec[:axis], *spec[axis + 1:]))
    return NamedSharding(mesh, PartitionSpec())
  return jax.tree_util.tree_map_with_path(one, shapes.opt_state)


def init_sharded(model: Model, optimizer: optax.GradientTransformation, mesh: Mesh,
                 seed: int) -> TrainState:
  """Create the state already sharded: no device ever holds a full copy."""
  make = jax.jit(lambda key: create(model, optimizer, key),
                 out_shardings=state_shardings(model, optimizer, mesh))
  return make(jax.random.key(seed))


def abstract_params(model: Model, mesh: Mesh) -> Params:
  """ShapeDtypeStructs with shardings of the parameters alone: the target of a restore."""
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return jax.tree.map(
      lambda shape, where: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where),
      shapes, sharding.shardings(mesh, model.axes(), shapes))


def reading_mesh(model: Model, config: MeshConfig, devices: Any = None) -> Mesh:
  """The mesh to read a model's parameters on: see sharding.reading_mesh."""
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return sharding.reading_mesh(config, model.axes(), shapes, devices)


def converting_mesh(model: Model, config: MeshConfig) -> Mesh:
  """The mesh of an import or export: ``reading_mesh``, or with several processes that of
  sharding.converting_mesh."""
  if jax.process_count() == 1:
    return reading_mesh(model, config)
  together.even_devices(jax.devices())
  return sharding.converting_mesh(model.axes(), jax.eval_shape(model.init, jax.random.key(0)))


def abstract(model: Model, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
  """A TrainState of ShapeDtypeStructs with shardings: the target of a restore."""
  shapes = jax.eval_shape(lambda: create(model, optimizer, jax.random.key(0)))
  return jax.tree.map(
      lambda shape, where: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where),
      shapes, state_shardings(model, optimizer, mesh))


def described(tree: Any) -> dict[str, str]:
  """Path -> shape and dtype of every array: {'a.b.c': '(2, 3) float32'}."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  name = lambda path: '.'.join(str(getattr(key, 'key', getattr(key, 'name', getattr(
      key, 'idx', key)))) for key in path)
  return {name(path): f'{tuple(leaf.shape)} {np.dtype(leaf.dtype).name}'
          for path, leaf in leaves if hasattr(leaf, 'shape')}
