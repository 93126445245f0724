"""Low-rank adapters (arXiv 2106.09685): y = x W + b + (alpha / rank) * dropout(x) A B.

A and B are stored beside the matrix that they adapt, as leaves ``lora_a`` [in, rank] and
``lora_b`` [rank, out], so that sharding, scan, checkpoints and generation treat them like any
parameter. If a tree has such leaves, only they are trained; these functions separate the two.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ttt_jax.config import LoraConfig

A, B = 'lora_a', 'lora_b'
_DROPOUT = 0x6c6f7261  # folded into a step's key: the dropout's own stream


def adapters(tree: Any) -> dict[str, Any]:
  """The adapters of a tree of nested dicts, in nested dicts; {} if it has none."""
  return _select(tree, lambda key: key in (A, B))


def without(tree: Any) -> dict[str, Any]:
  """A tree of nested dicts without its adapters."""
  return _select(tree, lambda key: key not in (A, B))


def trained(tree: Any) -> Any:
  """The part of a tree like Model.init's that is trained: its adapters, or all if it has none."""
  return adapters(tree) or tree


def join(tree: Any, part: Any) -> Any:
  """``tree`` with the leaves of ``part`` added or replaced."""
  if not isinstance(part, dict):
    return part
  return {**tree, **{key: join(tree.get(key, {}), value) for key, value in part.items()}}


def _select(tree: Any, wanted: Any) -> dict[str, Any]:
  out = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      value = _select(value, wanted)
      if value:
        out[key] = value
    elif wanted(key):
      out[key] = value
  return out


def merge(params: Any, config: LoraConfig) -> Any:
  """Parameters without adapters and with equal outputs (dropout aside): W + scale * A B."""
  def one(branch):
    if not isinstance(branch, dict):
      return branch
    if A not in branch:
      return {key: one(value) for key, value in branch.items()}
    return without(branch) | {'kernel': _merged(
        branch['kernel'], branch[A], branch[B], config.scale)}
  return one(params)


@jax.jit
def _merged(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
  product = jnp.matmul(a, b, precision='highest')
  return (kernel.astype(jnp.float32) + scale * product).astype(kernel.dtype)


class Dropout:
  """Dropout of the adapters' inputs; every call draws a new mask."""

  def __init__(self, key: jax.Array, rate: float):
    self._key, self._rate, self._calls = key, rate, 0

  def __call__(self, x: jax.Array) -> jax.Array:
    self._calls += 1
    keep = jax.random.bernoulli(jax.random.fold_in(self._key, self._calls), 1 - self._rate, x.shape)
    return jnp.where(keep, x / (1 - self._rate), 0)


def dropout_key(key: jax.Array, config: LoraConfig) -> jax.Array | None:
  """The key of a step's dropout masks; None without adapters or dropout."""
  return jax.random.fold_in(key, _DROPOUT) if config.rank and config.dropout else None
