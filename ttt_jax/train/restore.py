"""Restores the parameters of a checkpoint, also where it does not hold all that is needed.

  in the checkpoint      in the config        result
  all parameters         the same             loaded as they are
  weights in bfloat16    float32              cast, which is exact
  no LoRA adapters       LoRA adapters        new adapters, which change nothing at first (B = 0)
"""

from collections.abc import Callable
import logging
import os
import pathlib
from typing import Any, TypeVar

import jax
import numpy as np

from ttt_jax.errors import UserError
from ttt_jax.model import lora
from ttt_jax.model.transformer import Model, Params
from ttt_jax.storage import mirror, remote
from ttt_jax.train import checkpoint, checkpoint_folders, checksums, resume, state as train_state

_LOG = logging.getLogger(__name__)
_T = TypeVar('_T')


def initial(path: str, read: Callable[[checkpoint.Checkpoints, int], _T], verify: str) -> _T:
  """``read(checkpoints, step)`` of the intact checkpoint that config key train.init_from names.

  Args:
    path: the workdir of a run, its folder of checkpoints, or one checkpoint; on a disk or at a URL.
    read: reads its parameters.
    verify: as in ``Checkpoints``.

  Raises:
    UserError: there is none, or it is corrupt.
  """
  url = mirror.url_of(path)
  if url:
    return _initial_at(url, read, verify)
  folder = pathlib.Path(os.path.realpath(os.path.expanduser(path)))  # a link to a checkpoint, too
  if any(folder.glob('*.safetensors')):
    raise UserError(f'config key train.init_from is {path}, which holds safetensors; import it '
                    f'with `ttt-jax import-hf --hf {path}` instead.')
  inside = folder / 'checkpoints'
  step = checkpoint_folders.step_of(folder.name)
  if step is not None and not inside.is_dir() and checksums.is_complete(folder):
    return checkpoint.read_step(folder.parent, step, read, verify)
  where = inside if inside.is_dir() else folder
  if checkpoint.Checkpoints(where).latest() is None:
    raise _nothing_at(path)
  return checkpoint.read_newest(where, read, verify)


def _nothing_at(path: str) -> UserError:
  return UserError(f'config key train.init_from is {path}, where there is no complete '
                   'checkpoint; name the workdir of a run, its folder checkpoints/, or one of '
                   'the checkpoints in it.')


def _initial_at(url: str, read: Callable[[checkpoint.Checkpoints, int], _T], verify: str) -> _T:
  """As ``initial``, at a URL."""
  step = checkpoint_folders.step_of(remote.name(url))
  if step is not None and step in checkpoint.Checkpoints(remote.parent(url)).steps():
    return checkpoint.read_step(remote.parent(url), step, read, verify)
  for where in (remote.join(url, 'checkpoints'), url):
    if checkpoint.Checkpoints(where).latest() is not None:
      return checkpoint.read_newest(where, read, verify)
  raise _nothing_at(url)


def load(checkpoints: checkpoint.Checkpoints, step: int, model: Model, target: Params,
         seed: int) -> Params:
  """The parameters of a complete checkpoint, on the mesh.

  Args:
    checkpoints, step: where they are stored.
    model: the model that they belong to.
    target: their shapes, dtypes and shardings (train_state.abstract_params).
    seed: for adapters that the checkpoint does not have.

  Raises:
    UserError: naming the settings that differ, and arrays whose presence, shape or dtype does.
  """
  if not lora.adapters(target) or lora.adapters(checkpoints.stored(step)['params']):
    _check(checkpoints, step, model, target)
    return checkpoints.restore_params(step, target)
  _check(checkpoints, step, model, lora.without(target))
  base = checkpoints.restore_params(step, lora.without(target))
  return lora.join(base, fresh_adapters(model, target, seed))


def _check(checkpoints: checkpoint.Checkpoints, step: int, model: Model, target: Params) -> None:
  for sentence in resume.check_weights(checkpoints, step, model.config, target):
    _LOG.warning('%s', sentence)


def fresh_adapters(model: Model, target: Params, seed: int) -> Params:
  """The adapters of a new ``model``, with the shardings of ``target``."""
  where = jax.tree.map(lambda leaf: leaf.sharding, lora.adapters(target))
  make = jax.jit(lambda key: lora.adapters(model.init(key)), out_shardings=where)
  return make(jax.random.key(seed))


def restore(checkpoints: checkpoint.Checkpoints, step: int, model: Model, optimizer: Any,
            target: train_state.TrainState, seed: int) -> train_state.TrainState:
  """The state of a complete checkpoint; with parameters alone, a new optimizer state and step 0.

  Args:
    target: train_state.abstract; the others as for ``load``.

  Raises:
    UserError: naming the settings that differ, and arrays whose presence, shape or dtype does.
  """
  if 'opt_state' in checkpoints.stored(step):
    return checkpoints.restore(step, target)
  return train_state.begin(load(checkpoints, step, model, target.params, seed), optimizer, target)


def retyped(target: Params, dtype: str) -> Params:
  """``target`` with another dtype for everything but LoRA adapters."""
  one = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)
  return lora.join(target, jax.tree.map(one, lora.without(target)))


def dtype(checkpoints: checkpoint.Checkpoints, step: int) -> str:
  """Name of the dtype of the parameters of a complete step, LoRA adapters aside."""
  stored = lora.without(checkpoints.stored(step)['params'])
  return np.dtype(jax.tree.leaves(stored)[0].dtype).name
