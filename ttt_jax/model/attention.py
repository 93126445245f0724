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
  q = (q_BxTxHxD * d ** -0.5).reshape(b, t, kv_heads, h // kv_heads, d)
  score = jnp.einsum('btkgd,bskd->bkgts', q, k_BxSxKxD, preferred_element_type=jnp.float32)
  j = jnp.arange(k_BxSxKxD.shape[1])
  allowed = (j >= k_start[..., None]) & (j < k_end[..., None])
  score = jnp.where(allowed[:, None, None], score, _NEVER)
  weight = jnp.exp(score - _row_max(score))
  # Normalised after the product with v, which is smaller than the weights; an empty range
  # has equal weights everywhere and is dropped here.
  total = jnp.einsum('bkgts->btkg', weight)[..., None]
  out = jnp.einsum('bkgts,bskd->btkgd', weight.astype(v_BxSxKxD.dtype), v_BxSxKxD,
                   preferred_element_type=jnp.float32) / total
  out = jnp.where((k_end > k_start)[..., None, None, None], out, 0.0)
  return out.reshape(b, t, h, d).astype(q_BxTxHxD.dtype)


def _row_max(score: jnp.ndarray) -> jnp.ndarray:
  """Row maximum as a constant: softmax does not depend on it, so neither do gradients."""

  return lax.stop_gradient(score.max(-1, keepdims=True))
