"""Which masked positions of a block a step commits: ranks, schedules, thresholds, budgets.

  rule        commits per step                                        source
  confidence  the scheduled number, highest probability first         LLaDA (arXiv 2502.09992)
  margin      the same, ranked by p(best) - p(second best)            arXiv 2502.06768
  prior       the same, ranked by log p(id) - log prior(id)           Chatterbox-Flash
  threshold   the scheduled number at least, and every choice whose   Fast-dLLM (arXiv 2505.22618)
              probability reaches the threshold
  entropy     the scheduled number at least, lowest entropy first,    EB-Sampler (arXiv 2505.24857)
              while the entropies before it sum to at most a budget

Every rule is a mask over the same ranks, so rows with different rules share a program.

B = rows, W = positions of a window.
"""

import jax.numpy as jnp

from ttt_jax.generate.sampling_params import SamplingParams
from ttt_jax.model.types import Array


def scheduled(sampling_params: SamplingParams, size: Array, masked: Array,
              step: Array) -> Array:
  """How many positions a step commits at least; int32 [B].

  Linear: size // steps, and one more in each of the first size % steps steps (arXiv 2509.20072,
  as in LLaDA). Shifted (OmniVoice, Chatterbox-Flash): the fraction done after step j of K is
  a u / (1 + (a - 1) u) with u = (j + 1) / K, so a < 1 starts slowly. At least one position per
  step, and all that are left in the last.

  Args:
    sampling_params: steps and shift (a) are read, [B].
    size: int32 [B], masks that the block began with.
    masked: int32 [B], masks that are left.
    step: int32 [B], steps made in the block so far.
  """
  steps = sampling_params.steps
  linear = size // steps + (step < size % steps)
  u = jnp.minimum((step + 1) / steps, 1.0)
  done = sampling_params.shift * u / (1.0 + (sampling_params.shift - 1.0) * u)
  target = jnp.round(size * done).astype(jnp.int32)
  shifted = jnp.where(step + 1 >= steps, masked, target - (size - masked))
  return jnp.maximum(jnp.where(sampling_params.shift == 1.0, linear, shifted), 1)


def ahead(score: Array, masked: Array) -> Array:
  """Order of commitment: the highest score first, ties from left to right.

  All pairs are compared: a window is short, and XLA compiles a sort far more slowly.

  Args:
    score: float32 [B, W].
    masked: bool [B, W], the candidates.

  Returns:
    bool [B, W, W]: position j (last axis) is committed before position i.
  """
  index = jnp.arange(score.shape[-1])
  mine, other = score[..., :, None], score[..., None, :]
  before = (other > mine) | ((other == mine) & (index < index[:, None]))
  return before & masked[..., None, :]


def accept(sampling_params: SamplingParams, score: Array, confidence: Array,
           entropy: Array, masked: Array, size: Array, step: Array) -> Array:
  """The positions that this step commits, bool [B, W]; at least one where any is masked.

  Args:
    sampling_params: [B].
    score, confidence, entropy: float32 [B, W]: the rank's key, probability of the choice, nats.
    masked, size, step: as above.
  """
  before = ahead(score, masked)
  rank = before.sum(-1)
  count = scheduled(sampling_params, size, masked.sum(-1), step)
  # The entropy budget bounds the error of committing in parallel: the sum without the
  # position itself, which for the first one is 0 (arXiv 2505.24857).
  spent = jnp.sum(jnp.where(before, entropy[:, None, :], 0.0), axis=-1)
  by_rule = (rank < count[:, None]) | (confidence >= sampling_params.threshold[:, None]) | (
      spent <= sampling_params.entropy[:, None])
  return masked & by_rule
