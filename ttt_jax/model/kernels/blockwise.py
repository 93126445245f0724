"""Staircase attention in plain XLA with O(T) memory and block skipping.

For every block of queries a loop runs over the key blocks from the first to the last key that one
of its queries attends to. The forward pass is an online softmax (arXiv 1805.02867): a running
maximum m and sum s, and when m rises to m', sums so far are multiplied by exp(m - m'). The
backward pass recomputes the weights p = exp(score - lse) from the saved log-sum-exp, as in
FlashAttention (arXiv 2205.14135), and uses

    dv = p^T do,   ds = p * (do v^T - delta),   delta = sum(do * out)

The loop has as many steps as there are blocks to compute, so a packed row of short documents
costs the sum over its documents, not T x T.

B = rows, T = queries, S = keys, H = query heads, K = key heads, G = H / K, D = head dim,
N = B * K problems with keys of their own, I = query blocks, R = queries per block * G:
the G heads that share keys are rows of one matrix, since XLA's CPU backend likes flat ones.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from ttt_jax.model.staircase import block_reach
from ttt_jax.model.types import Array

# _NEVER replaces a masked score; the running maximum starts at _LOWEST, below every real score but
# far above _NEVER. So exp(_NEVER - maximum) is exactly 0, and weights need no second mask.
_NEVER = -0.7 * float(np.finfo(np.float32).max)
_LOWEST = -1e30

_ROWS_ROWS = (((1,), (1,)), ((), ()))     # a b^T
_ROWS_COLUMNS = (((1,), (0,)), ((), ()))  # a b


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend(q_BxTxHxD: jax.Array, k_BxSxKxD: jax.Array, v_BxSxKxD: jax.Array,
           k_start: Array, k_end: Array, block: int) -> jax.Array:
  """softmax(q k / sqrt(D)) v over the keys k_start <= j < k_end of each query.

  Args:
    q_BxTxHxD, k_BxSxKxD, v_BxSxKxD: any T and S; H must be a multiple of K.
    k_start, k_end: int32 [B, T], key positions in 0..S.
    block: queries and keys per block.

  Returns:
    [B, T, H, D] in q's dtype; 0, with zero gradients, where the range is empty.
  """
  return _forward(q_BxTxHxD, k_BxSxKxD, v_BxSxKxD, k_start, k_end, block)[0]


def _attend_forward(q, k, v, k_start, k_end, block):
  out, lse = _forward(q, k, v, k_start, k_end, block)
  # Named, so that a remat policy can keep them: the backward pass then needs no second forward.
  out, lse = checkpoint_name(out, 'attention_out'), checkpoint_name(lse, 'attention_lse')
  return out, (q, k, v, k_start, k_end, out, lse)


def _attend_backward(block, saved, d_out):
  q, k, v, k_start, k_end, out, lse = saved
  dq, dk, dv = _backward(q, k, v, k_start, k_end, out, lse, d_out, block)
  no_gradient = np.zeros(k_start.shape, jax.dtypes.float0)  # of integer inputs
  return dq, dk, dv, no_gradient, no_gradient


attend.defvjp(_attend_forward, _attend_backward)


def _forward(q, k, v, k_start, k_end, block):
  """Output [B, T, H, D] and log-sum-exp, float32 [N * I, R]."""
  kv_heads, scale = k.shape[2], q.shape[-1] ** -0.5
  schedule = _Schedule(k_start, k_end, block, kv_heads, q.shape[2] // kv_heads)
  k_NxSxD, v_NxDxS = _keys(k, block), _keys(v, block).swapaxes(1, 2)

  def one_block(_, place_and_q):
    place, q_RxD = place_and_q
    problem, start_R, end_R, first, last = schedule.at(place)

    def step(j, state):
      out_DxR, top_R, total_R = state
      score_CxR = _score(_rows(k_NxSxD, problem, j, block), q_RxD, scale, j, start_R, end_R)
      new_top_R = jnp.maximum(top_R, score_CxR.max(0))
      weight_CxR = jnp.exp(score_CxR - new_top_R)
      rescale_R = jnp.exp(top_R - new_top_R)
      out_DxR = out_DxR * rescale_R + _dot(
          _columns(v_NxDxS, problem, j, block), weight_CxR.astype(v.dtype), _ROWS_COLUMNS)
      return out_DxR, new_top_R, total_R * rescale_R + weight_CxR.sum(0)

    zero = jnp.zeros(q_RxD.shape[::-1], jnp.float32)
    out_DxR, top_R, total_R = lax.fori_loop(
        first, last, step, (zero, jnp.full_like(zero[0], _LOWEST), jnp.zeros_like(zero[0])))
    total_R = jnp.where(total_R > 0, total_R, 1.0)
    return None, ((out_DxR / total_R).astype(q.dtype).T, top_R + jnp.log(total_R))

  _, (out, lse) = lax.scan(one_block, None, (schedule.places, _queries(q, kv_heads, block)))
  return _from_blocks(out, q.shape, kv_heads), lse


def _backward(q, k, v, k_start, k_end, out, lse_MxR, d_out, block):
  """Gradients of q, k and v, each in its array's dtype."""
  kv_heads, scale = k.shape[2], q.shape[-1] ** -0.5
  schedule = _Schedule(k_start, k_end, block, kv_heads, q.shape[2] // kv_heads)
  k_NxSxD, v_NxSxD = _keys(k, block), _keys(v, block)
  k_NxDxS = k_NxSxD.swapaxes(1, 2)
  d_out = d_out.astype(q.dtype)
  delta = (out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(-1, keepdims=True)
  blocks = lambda x: _queries(x, kv_heads, block)

  def one_block(d_keys, inputs):
    place, q_RxD, d_out_RxD, lse_R, delta_Rx1 = inputs
    problem, start_R, end_R, first, last = schedule.at(place)

    def step(j, state):
      dq_DxR, dk_NxSxD, dv_NxSxD = state
      score_CxR = _score(_rows(k_NxSxD, problem, j, block), q_RxD, scale, j, start_R, end_R)
      weight_CxR = jnp.exp(score_CxR - lse_R)
      d_weight_CxR = _dot(_rows(v_NxSxD, problem, j, block), d_out_RxD, _ROWS_ROWS)
      d_score_CxR = (weight_CxR * (d_weight_CxR - delta_Rx1[:, 0]) * scale).astype(q.dtype)
      dv_CxD = _dot(weight_CxR.astype(q.dtype), d_out_RxD, _ROWS_COLUMNS)
      dk_CxD = _dot(d_score_CxR, q_RxD, _ROWS_COLUMNS)
      dq_DxR += _dot(_columns(k_NxDxS, problem, j, block), d_score_CxR, _ROWS_COLUMNS)
      return dq_DxR, _add(dk_NxSxD, dk_CxD, problem, j), _add(dv_NxSxD, dv_CxD, problem, j)

    dq_DxR, *d_keys = lax.fori_loop(
        first, last, step, (jnp.zeros(q_RxD.shape[::-1], jnp.float32), *d_keys))
    return tuple(d_keys), dq_DxR.astype(q.dtype).T

  zero = jnp.zeros(k_NxSxD.shape, jnp.float32)
  (dk, dv), dq = lax.scan(
      one_block, (zero, zero),
      (schedule.places, blocks(q), blocks(d_out), lse_MxR, blocks(delta)))
  keys = lambda x, like: (x.reshape(k.shape[0], kv_heads, -1, k.shape[-1])[:, :, :k.shape[1]]
                          .swapaxes(1, 2).astype(like.dtype))
  return _from_blocks(dq, q.shape, kv_heads), keys(dk, k), keys(dv, v)


class _Schedule:
  """The key blocks that each of the N * I query blocks visits, and the ranges of its queries."""

  def __init__(self, k_start, k_end, block, kv_heads, group):
    first, end = block_reach(k_start, k_end, block)
    self.blocks = first.shape[1]
    self.kv_heads = kv_heads
    self.places = jnp.arange(first.size * kv_heads, dtype=jnp.int32)
    self._first, self._last = (first // block).reshape(-1), (-(-end // block)).reshape(-1)
    rows = lambda x: jnp.repeat(_pad(x, 1, block).reshape(-1, block), group, axis=1)
    self._start, self._end = rows(k_start), rows(k_end)

  def at(self, place):
    """Problem 0..N-1, the ranges [R] of the block's rows, first and one past the last key block."""
    problem = place // self.blocks
    i = problem // self.kv_heads * self.blocks + place % self.blocks
    return problem, self._start[i], self._end[i], self._first[i], self._last[i]


def _score(k_CxD, q_RxD, scale, j, start_R, end_R):
  """float32 [C, R], _NEVER where a key lies outside the range of its query."""
  score = _dot(k_CxD, q_RxD, _ROWS_ROWS) * scale
  key = j * k_CxD.shape[0] + lax.broadcasted_iota(jnp.int32, score.shape, 0)
  return jnp.where((key >= start_R) & (key < end_R), score, _NEVER)


def _dot(a, b, dimensions):
  return lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _rows(x_NxSxD, problem, j, block):
  """[C, D]: key block j of one problem."""
  return lax.dynamic_slice(x_NxSxD, (problem, j * block, 0), (1, block, x_NxSxD.shape[2]))[0]


def _columns(x_NxDxS, problem, j, block):
  """[D, C]: key block j of one problem, transposed."""
  return lax.dynamic_slice(x_NxDxS, (problem, 0, j * block), (1, x_NxDxS.shape[1], block))[0]


def _add(x_NxSxD, part_CxD, problem, j):
  """x with part added to key block j of one problem."""
  block = part_CxD.shape[0]
  part = (_rows(x_NxSxD, problem, j, block) + part_CxD)[None]
  return lax.dynamic_update_slice(x_NxSxD, part, (problem, j * block, 0))


def _pad(x, axis, multiple):
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, -x.shape[axis] % multiple)
  return jnp.pad(x, widths)


def _keys(x_BxSxKxD, block):
  """[N, S', D]: a problem per row and key head, S padded to whole blocks."""
  x = _pad(x_BxSxKxD, 1, block).swapaxes(1, 2)
  return x.reshape(-1, *x.shape[2:])


def _queries(x_BxTxHxD, kv_heads, block):
  """[N * I, R, D]: the G heads of a key head are neighbouring rows."""
  b, _, heads, d = x_BxTxHxD.shape
  x = _pad(x_BxTxHxD, 1, block).reshape(b, -1, kv_heads, heads // kv_heads, d)
  return x.swapaxes(1, 2).reshape(-1, block * (heads // kv_heads), d)


def _from_blocks(x, shape, kv_heads):
  """Undo ``_queries``: [B, T, H, D]."""
  b, t, heads, d = shape
  x = x.reshape(b, kv_heads, -1, heads // kv_heads, d).swapaxes(1, 2)
  return x.reshape(b, -1, heads, d)[:, :t]
