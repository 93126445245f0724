"""Cross entropies that return sums. N = positions, E = width, V = vocabulary rows."""

import jax
import jax.numpy as jnp


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
