"""The parameters of a checkpoint, for whoever starts from them.

  in the checkpoint      the config wants     then
  all                    all                  they are read
  weights in bfloat16    float32              they are widened, which is exact
  no adapters            adapters             fresh adapters, which change nothing at first
"""

from typing import Any

import jax
import numpy as np

from ttt_jax.model import lora
from ttt_jax.model.transformer import Model, Params
from ttt_jax.train import checkpoint, state as train_state


def load(checkpoints: checkpoint.Checkpoints, step: int, model: Model, target: Params,
         seed: int) -> Params:
  """The parameters of a sealed checkpoint on the mesh.

  Args:
    checkpoints, step: which.
    model: that they are for.
    target: train_state.abstract's params.
    seed: of adapters that the checkpoint does not have.

  Raises:
    UserError: naming every array whose presence, shape or type differs.
  """
  if not lora.adapters(target) or lora.adapters(checkpoints.stored(step)['params']):
    return checkpoints.restore_params(step, target)
  base = checkpoints.restore_params(step, lora.without(target))
  return lora.join(base, fresh_adapters(model, target, seed))


def fresh_adapters(model: Model, target: Params, seed: int) -> Params:
  """The adapters that ``model`` begins with."""
  where = jax.tree.map(lambda leaf: leaf.sharding, lora.adapters(target))
  make = jax.jit(lambda key: lora.adapters(model.init(key)), out_shardings=where)
  return make(jax.random.key(seed))


def restore(checkpoints: checkpoint.Checkpoints, step: int, model: Model, optimizer: Any,
            target: train_state.TrainState, seed: int) -> train_state.TrainState:
  """The state of a sealed checkpoint; where it has weights alone, a new state around them.

  Args:
    target: train_state.abstract; the others as for ``load``.

  Raises:
    UserError: naming every array whose presence, shape or type differs.
  """
  if 'opt_state' in checkpoints.stored(step):
    return checkpoints.restore(step, target)
  return train_state.begin(load(checkpoints, step, model, target.params, seed), optimizer, target)


def retyped(target: Params, dtype: str) -> Params:
  """``target`` with another dtype for all that is not an adapter."""
  one = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)
  return lora.join(target, jax.tree.map(one, lora.without(target)))


def dtype(checkpoints: checkpoint.Checkpoints, step: int) -> str:
  """Of the parameters of a sealed step, adapters aside."""
  stored = lora.without(checkpoints.stored(step)['params'])
  return np.dtype(jax.tree.leaves(stored)[0].dtype).name
