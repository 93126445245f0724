"""Which masked positions of a block a step commits: ranks, schedules, budgets.

Every rule is a mask over the same ranks, so rows with different rules share a program.
B = rows, W = positions of a window.
"""

import jax
import jax.numpy as jnp

from ttt_jax.generate.sampling_params import SamplingParams


def scheduled(sampling_params: SamplingParams, size: jax.Array, masked: jax.Array,
              step: jax.Array) -> jax.Array:
  """How many positions a step commits at least; int32 [B].

  Linear: size // steps, and the remainder one by one to the first steps (TTT.md section 6).
  Shifted: the fraction done after step j of K is a u / (1 + (a - 1) u), u = (j + 1) / K; at
  least one position per step, and all that are left in the last.

  Args:
    sampling_params: steps and shift, [B].
    size: int32 [B], masks that the block began with.
    masked: int32 [B], masks that are left.
    step: int32 [B], steps that were made.
  """
  steps = sampling_params.steps
  linear = size // steps + (step < size % steps)
  u = jnp.minimum((step + 1) / steps, 1.0)
  done = sampling_params.shift * u / (1.0 + (sampling_params.shift - 1.0) * u)
  target = jnp.round(size * done).astype(jnp.int32)
  shifted = jnp.where(step + 1 >= steps, masked, target - (size - masked))
  return jnp.maximum(jnp.where(sampling_params.shift == 1.0, linear, shifted), 1)


def ahead(score: jax.Array, masked: jax.Array) -> jax.Array:
  """Order of commitment: the highest score first, equal ones from left to right.

  All pairs are compared: a window is short, and sorting takes XLA far longer to compile.

  Args:
    score: float32 [B, W].
    masked: bool [B, W], positions that stand for election.

  Returns:
    bool [B, W, W]: position j (last axis) is committed before position i.
  """
  index = jnp.arange(score.shape[-1])
  mine, other = score[..., :, None], score[..., None, :]
  before = (other > mine) | ((other == mine) & (index < index[:, None]))
  return before & masked[..., None, :]


def accept(sampling_params: SamplingParams, score: jax.Array, confidence: jax.Array,
           entropy: jax.Array, masked: jax.Array, size: jax.Array, step: jax.Array) -> jax.Array:
  """The positions that this step commits, bool [B, W]; at least one where any is masked.

  Args:
    sampling_params: [B].
    score, confidence, entropy: float32 [B, W]: what ranks, probability of the choice, nats.
    masked, size, step: as above.
  """
  first = ahead(score, masked)
  place = first.sum(-1)
  count = scheduled(sampling_params, size, masked.sum(-1), step)
  spent = jnp.sum(jnp.where(first, entropy[:, None, :], 0.0), axis=-1)
  by_rule = (place < count[:, None]) | (confidence >= sampling_params.threshold[:, None]) | (
      spent <= sampling_params.entropy[:, None])
  return masked & by_rule
