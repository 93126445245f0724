"""What a run carries from step to step, and where each array lives."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ttt_jax import sharding
from ttt_jax.model.transformer import Model


class TrainState(NamedTuple):
  """Attributes:
    step: int32 scalar, updates done.
    params: plain nested dict, float32.
    opt_state: optax's state, sharded like the parameters it belongs to.
  """
  step: Any
  params: Any
  opt_state: Any


def create(model: Model, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
  params = model.init(key)
  return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def state_shardings(model: Model, optimizer: optax.GradientTransformation,
                    mesh: Mesh) -> TrainState:
  """A TrainState of NamedShardings: moments lie where their parameters lie."""
  shapes = jax.eval_shape(lambda: create(model, optimizer, jax.random.key(0)))
  params = sharding.shardings(mesh, model.axes(), shapes.params)
  everywhere = NamedSharding(mesh, PartitionSpec())
  opt_state = optax.tree_utils.tree_map_params(
      optimizer, lambda _, where: where, shapes.opt_state, params,
      transform_non_params=lambda _: everywhere)
  return TrainState(everywhere, params, opt_state)


def init_sharded(model: Model, optimizer: optax.GradientTransformation, mesh: Mesh,
                 seed: int) -> TrainState:
  """Create the state already sharded: no device ever holds a whole copy."""
  make = jax.jit(lambda key: create(model, optimizer, key),
                 out_shardings=state_shardings(model, optimizer, mesh))
  return make(jax.random.key(seed))


def abstract(model: Model, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
  """ShapeDtypeStructs with shardings: the target of a restore."""
  shapes = jax.eval_shape(lambda: create(model, optimizer, jax.random.key(0)))
  return jax.tree.map(
      lambda shape, where: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where),
      shapes, state_shardings(model, optimizer, mesh))
