"""AdamW under a warm-up and cosine schedule."""

import jax
import jax.numpy as jnp
import optax

from ttt_jax.config import OptimizerConfig


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
  """Learning rate by update number: linear warm-up, then a cosine to final_fraction."""
  warmup = max(1, round(config.warmup_fraction * steps))
  return optax.warmup_cosine_decay_schedule(
      0.0, config.learning_rate, warmup, max(steps, warmup + 1),
      end_value=config.final_fraction * config.learning_rate)


def _decayed(params):
  """Weight decay acts on matrices; layer weights carry one more, stacked, axis."""
  def one(path, leaf):
    stacked = path[0].key == 'layers'
    return jnp.ndim(leaf) - stacked >= 2
  return jax.tree_util.tree_map_with_path(one, params)


def make(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
  """The optimizer of a run of ``steps`` updates."""
  adamw = optax.adamw(schedule(config, steps), b1=config.beta1, b2=config.beta2, eps=config.eps,
                      weight_decay=config.weight_decay, mask=_decayed)
  if config.clip_norm > 0:
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)
  return adamw
