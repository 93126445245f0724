"""Which masked positions of a block a step commits: ranks, schedules, budgets.

Every rule is a mask over the same ranks, so rows with different rules share a program.
B = rows, W = positions of a window.
"""

import jax
import jax.numpy as jnp

from ttt_jax.generate.policy import Policy


def scheduled(policy: Policy, size: jax.Array, masked: jax.Array, step: jax.Array) -> jax.Array:
  """How many positions a step commits at least; int32 [B].

  Linear: size // steps, and the remainder one by one to the first steps (TTT.md section 6).
  Shifted: the fraction done after step j of K is a u / (1 + (a - 1) u), u = (j + 1) / K; at
  least one position per step, and all that are left in the last.

  Args:
    policy: steps and shift, [B].
    size: int32 [B], masks that the block began with.
    masked: int32 [B], masks that are left.
    step: int32 [B], steps that were made.
  """
  steps = policy.steps
  linear = size // steps + (step < size % steps)
  u = jnp.minimum((step + 1) / steps, 1.0)
  done = policy.shift * u / (1.0 + (policy.shift - 1.0) * u)
  target = jnp.round(size * done).astype(jnp.int32)
  shifted = jnp.where(step + 1 >= steps, masked, target - (size - masked))
  return jnp.maximum(jnp.where(policy.shift == 1.0, linear, shifted), 1)


def rank(score: jax.Array, masked: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Order of commitment: the highest score first, equal ones from left to right.

  Args:
    score: float32 [B, W].
    masked: bool [B, W], positions that stand for election.

  Returns:
    (order, place), int32 [B, W]: order[b, r] is the position of rank r, place its inverse;
    positions that are not masked come last.
  """
  order = jnp.argsort(jnp.where(masked, -score, jnp.inf), axis=-1, stable=True)
  return order, jnp.argsort(order, axis=-1, stable=True)


def accept(policy: Policy, score: jax.Array, confidence: jax.Array, entropy: jax.Array,
           masked: jax.Array, size: jax.Array, step: jax.Array) -> jax.Array:
  """The positions that this step commits, bool [B, W]; at least one where any is masked.

  Args:
    policy: [B].
    score, confidence, entropy: float32 [B, W]: what ranks, probability of the choice, nats.
    masked, size, step: as above.
  """
  order, place = rank(score, masked)
  count = scheduled(policy, size, masked.sum(-1), step)
  nats = jnp.where(masked, entropy, 0.0)
  in_order = jnp.take_along_axis(nats, order, axis=-1)
  before = jnp.cumsum(in_order, axis=-1) - in_order
  spent = jnp.take_along_axis(before, place, axis=-1)
  by_rule = (place < count[:, None]) | (confidence >= policy.threshold[:, None]) | (
      spent <= policy.entropy[:, None])
  return masked & by_rule
