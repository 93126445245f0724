"""Cross entropies that return sums. N = positions, E = width, V = vocabulary rows."""

from typing import Callable

import jax
import jax.numpy as jnp

_CAPACITY = 0.5  # share of the positions for which logits are planned


def pair_nll(logits_NxV: jax.Array, next_label_N: jax.Array,
             self_label_N: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Negative log-likelihoods of two labels of each position from one log-sum-exp.

  Args:
    logits_NxV: float32.
    next_label_N, self_label_N: int32; what AR predicts, and what diffusion restores.

  Returns:
    (next_nll [N], self_nll [N]) in nats.
  """
  log_z = jax.nn.logsumexp(logits_NxV, axis=-1)
  pick = lambda label: jnp.take_along_axis(logits_NxV, label[..., None], axis=-1)[..., 0]
  return log_z - pick(next_label_N), log_z - pick(self_label_N)


def scored_nll(logits_of: Callable[[jax.Array], jax.Array], hidden_BxTxE: jax.Array,
               scored: jax.Array, next_label: jax.Array,
               self_label: jax.Array) -> tuple[jax.Array, jax.Array]:
  """``pair_nll`` at the scored positions, without logits for the others.

  The scored positions are gathered to a fixed number of rows, half of all, before the
  head; a batch with more of them takes the full width instead, so the result is exact
  either way.

  Args:
    logits_of: hidden [..., E] -> float32 logits [..., V].
    hidden_BxTxE: final hidden states.
    scored: bool [B, T]: where a loss falls.
    next_label, self_label: int32 [B, T].

  Returns:
    (next_nll, self_nll), float32 [B, T]; 0 where nothing is scored.
  """
  shape = scored.shape
  hidden = hidden_BxTxE.reshape(-1, hidden_BxTxE.shape[-1])
  scored, next_label, self_label = (x.reshape(-1) for x in (scored, next_label, self_label))
  capacity = max(1, int(scored.size * _CAPACITY))

  def everything():
    return pair_nll(logits_of(hidden), next_label, self_label)

  def gathered():
    where = jnp.argsort(~scored, stable=True)[:capacity]
    found = pair_nll(logits_of(hidden[where]), next_label[where], self_label[where])
    return tuple(jnp.zeros(scored.shape, jnp.float32).at[where].set(
        x, unique_indices=True) for x in found)

  nll = jax.lax.cond(jnp.sum(scored) <= capacity, gathered, everything)
  return tuple(jnp.where(scored, x, 0.0).reshape(shape) for x in nll)
