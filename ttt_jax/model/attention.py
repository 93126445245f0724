"""Grouped-query attention over staircase ranges.

B = rows, T = queries, S = keys, H = query heads, K = key heads, G = H / K, D = head dim.
"""

import jax.numpy as jnp
from jax import lax

# Finite, so that a query with an empty range gives zeros and zero gradients, not NaN.
_NEVER = -0.7 * float(jnp.finfo(jnp.float32).max)


def attend(q_BxTxHxD: jnp.ndarray, k_BxSxKxD: jnp.ndarray, v_BxSxKxD: jnp.ndarray,
           k_start: jnp.ndarray, k_end: jnp.ndarray) -> jnp.ndarray:
  """softmax(q k / sqrt(D)) v over the keys k_start <= j < k_end of each query.

  The plain XLA form, the reference of every faster one. Scores and softmax are float32
  whatever the inputs are.

  Args:
    q_BxTxHxD, k_BxSxKxD, v_BxSxKxD: rotated projections; H must be a multiple of K.
    k_start, k_end: int32 [B, T], key positions in 0..S.

  Returns:
    [B, T, H, D] in q's dtype; 0 where the range is empty.
  """
  b, t, h, d = q_BxTxHxD.shape
  kv_heads = k_BxSxKxD.shape[2]
  q = q_BxTxHxD.reshape(b, t, kv_heads, h // kv_heads, d)
  score = jnp.einsum('btkgd,bskd->bkgts', q, k_BxSxKxD,
                     preferred_element_type=jnp.float32) * d ** -0.5
  j = jnp.arange(k_BxSxKxD.shape[1])
  allowed = (j >= k_start[..., None]) & (j < k_end[..., None])
  allowed = allowed[:, None, None]
  score = jnp.where(allowed, score, _NEVER)
  weight = jnp.exp(score - _row_max(score))
  weight = jnp.where(allowed, weight, 0.0)
  total = weight.sum(-1, keepdims=True)
  weight = weight / jnp.where(total == 0.0, 1.0, total)
  out = jnp.einsum('bkgts,bskd->btkgd', weight.astype(v_BxSxKxD.dtype), v_BxSxKxD)
  return out.reshape(b, t, h, d)


def _row_max(score: jnp.ndarray) -> jnp.ndarray:
  """Row maximum as a constant: softmax does not depend on it, so neither do gradients."""

  return lax.stop_gradient(score.max(-1, keepdims=True))
