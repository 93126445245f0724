"""What a run carries from step to step, and where each array lives."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ttt_jax.model import lora, sharding
from ttt_jax.model.transformer import Model, Params


class TrainState(NamedTuple):
  """Attributes:
    step: int32 scalar, updates done.
    params: plain nested dict, float32.
    opt_state: optax's state, sharded like the parameters it belongs to; of the adapters alone
      where there are some (model/lora.py).
  """
  step: Any
  params: Any
  opt_state: Any


def create(model: Model, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
  params = model.init(key)
  return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(lora.trained(params)))


def begin(params: Any, optimizer: optax.GradientTransformation, target: TrainState) -> TrainState:
  """The state before the first step, around parameters on the mesh; target: ``abstract``'s."""
  where = jax.tree.map(lambda leaf: leaf.sharding, (target.step, target.opt_state))
  make = jax.jit(lambda params: (jnp.zeros((), jnp.int32), optimizer.init(lora.trained(params))),
                 out_shardings=where)
  step, opt_state = make(params)
  return TrainState(step, params, opt_state)


def state_shardings(model: Model, optimizer: optax.GradientTransformation,
                    mesh: Mesh) -> TrainState:
  """A TrainState of NamedShardings: moments lie where their parameters lie."""
  shapes = jax.eval_shape(lambda: create(model, optimizer, jax.random.key(0)))
  params = sharding.shardings(mesh, model.axes(), shapes.params)
  everywhere = NamedSharding(mesh, PartitionSpec())
  return TrainState(everywhere, params, _like_params(shapes, params, mesh))


def _like_params(shapes: TrainState, params: Any, mesh: Mesh) -> Any:
  """Shardings of the optimizer's state. A leaf belongs to the parameter whose path ends its
  own; row and column statistics lack one of its dimensions, and the sharding lacks it, too."""
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
  """Create the state already sharded: no device ever holds a whole copy."""
  make = jax.jit(lambda key: create(model, optimizer, key),
                 out_shardings=state_shardings(model, optimizer, mesh))
  return make(jax.random.key(seed))


def abstract_params(model: Model, mesh: Mesh) -> Params:
  """ShapeDtypeStructs with shardings of the parameters alone: the target of a restore."""
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return jax.tree.map(
      lambda shape, where: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where),
      shapes, sharding.shardings(mesh, model.axes(), shapes))


def abstract(model: Model, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
  """ShapeDtypeStructs with shardings: the target of a restore."""
  shapes = jax.eval_shape(lambda: create(model, optimizer, jax.random.key(0)))
  return jax.tree.map(
      lambda shape, where: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where),
      shapes, state_shardings(model, optimizer, mesh))


def described(tree: Any) -> dict[str, str]:
  """'a.b.c' -> '(2, 3) float32' of every array."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  name = lambda path: '.'.join(str(getattr(key, 'key', getattr(key, 'name', getattr(
      key, 'idx', key)))) for key in path)
  return {name(path): f'{tuple(leaf.shape)} {np.dtype(leaf.dtype).name}'
          for path, leaf in leaves if hasattr(leaf, 'shape')}
