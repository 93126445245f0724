"""The optimizers, all from optax, with one schedule: linear warm-up, then cosine decay.

  name       state per parameter  for
  adamw      8 bytes              everything (arXiv 1711.05101); used in the paper
  adafactor  almost none          a model that would not fit otherwise (arXiv 1804.04235)
  muon       4 bytes              layer matrices, orthogonalised momentum scaled to AdamW's
                                  update size (arXiv 2502.16982); the rest by Adam, not decayed
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from ttt_jax.config import OptimizerConfig


def length(config: OptimizerConfig, steps: int) -> int:
  """Length of the schedule of a run of ``steps`` updates, in updates."""
  return config.schedule_steps or steps


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
  """Learning rate by update number for a run of ``steps`` updates: linear warm-up, then cosine
  decay to final_fraction, where it stays."""
  steps = length(config, steps)
  warmup = max(1, round(config.warmup_ratio * steps))
  return optax.warmup_cosine_decay_schedule(
      0.0, config.learning_rate, warmup, max(steps, warmup + 1),
      end_value=config.final_fraction * config.learning_rate)


def _is_stacked(path: Any) -> bool:
  """Layer weights have an additional leading axis, over the layers (model/transformer.py)."""
  return path[0].key == 'layers'


def _decayed(params: Any) -> Any:
  """Mask of what weight decay applies to: matrices, not norm scales and biases."""
  return jax.tree_util.tree_map_with_path(
      lambda path, leaf: jnp.ndim(leaf) - _is_stacked(path) >= 2, params)


def _muon_matrices(params: Any) -> Any:
  """The axes that Muon orthogonalises: the last two of stacked layer matrices. None, for
  embeddings and vectors, leaves a parameter to Adam."""
  def one(path, leaf):
    if _is_stacked(path) and jnp.ndim(leaf) == 3:
      return contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    return None
  return jax.tree_util.tree_map_with_path(one, params)


def make(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
  """The optimizer for a run of ``steps`` updates, with clipping by the global gradient norm."""
  c, rate = config, schedule(config, steps)
  if c.name == 'adamw':
    update = optax.adamw(rate, b1=c.beta1, b2=c.beta2, eps=c.eps,
                         weight_decay=c.weight_decay, mask=_decayed)
  elif c.name == 'adafactor':
    # Unlike optax.adafactor, updates are not multiplied by the parameter's scale: learning rates
    # then mean the same as for AdamW, and weight decay follows the schedule.
    update = optax.chain(
        optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0),
        optax.add_decayed_weights(c.weight_decay, _decayed), optax.scale_by_learning_rate(rate))
  else:
    update = contrib.muon(
        rate, beta=c.beta1, weight_decay=c.weight_decay, weight_decay_mask=_decayed,
        adam_b1=c.beta1, adam_b2=c.beta2, eps=c.eps, ns_steps=c.newton_steps,
        muon_weight_dimension_numbers=_muon_matrices,
        consistent_rms=0.2)  # the RMS of AdamW's updates, so that learning rates carry over
  return optax.chain(optax.clip_by_global_norm(c.max_grad_norm),
                     update) if c.max_grad_norm > 0 else update
