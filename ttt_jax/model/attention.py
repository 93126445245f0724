"""Grouped-query attention over staircase ranges: one function, four forms.

  kind       runs on      memory  blocks outside the mask
  dense      everything   O(T^2)  computed; the reference of the others
  blockwise  everything   O(T)    skipped (kernels/blockwise.py)
  pallas     TPU          O(T)    skipped (kernels/staircase_flash.py)
  tokamax    NVIDIA GPU   see kernels/gpu.py

B = rows, T = queries, S = keys, H = query heads, K = key heads, G = H / K, D = head dim.
"""

import functools
import math
from typing import Callable

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from ttt_jax.errors import UserError
from ttt_jax.model import sharding
from ttt_jax.model.types import Array

KINDS = ('dense', 'blockwise', 'pallas', 'tokamax')

# On a CPU the blockwise form is faster than the dense one from this many keys on.
LONG_ROW = 256
# The blockwise form's largest block: larger ones skip less, and a block of scores should stay in
# a core's cache.
BLOCKWISE_BLOCK = 128

# Finite, so that a query with an empty range gives zeros and zero gradients, not NaN.
_NEVER = -0.7 * float(jnp.finfo(jnp.float32).max)

# (q, k, v, k_start, k_end) -> [B, T, H, D]
_Form = Callable[[jax.Array, jax.Array, jax.Array, Array, Array], jax.Array]


def choose(kind: str, platform: str, length: int) -> str:
  """The form that a config's ``model.attention`` means on this hardware.

  Args:
    kind: 'auto' or one of KINDS.
    platform: of the devices that will run it: 'cpu', 'tpu', 'gpu' or 'cuda'.
    length: keys per row.

  Returns:
    One of KINDS.

  Raises:
    UserError: the form does not run on the platform.
  """
  assert kind == 'auto' or kind in KINDS, kind
  if kind == 'auto':
    if platform == 'tpu':
      return 'pallas'
    if platform in ('gpu', 'cuda'):
      return 'tokamax'
    return 'blockwise' if length >= LONG_ROW else 'dense'
  home = {'pallas': ('tpu',), 'tokamax': ('gpu', 'cuda')}.get(kind)
  if home and platform not in home:
    raise UserError(f"config key model.attention is '{kind}', which runs on {home[0].upper()}s "
                    f"only, and this is a {platform.upper()}; use 'auto', 'blockwise' or 'dense'.")
  return kind


def attend(q_BxTxHxD: jax.Array, k_BxSxKxD: jax.Array, v_BxSxKxD: jax.Array,
           k_start: Array, k_end: Array, *, kind: str = 'dense', block: int = 512,
           interpret: bool = False) -> jax.Array:
  """softmax(q k / sqrt(D)) v over the keys k_start <= j < k_end of each query.

  Scores and softmax are float32 whatever the inputs are. The output is tagged
  'attention_out', and the log-sum-exp of every form but the dense one 'attention_lse': a
  remat policy that keeps both names never computes attention twice.

  Under a mesh, every form but the dense one runs on each device's own queries and heads
  with all keys of its rows; XLA gathers these over the seq axis. A mesh axis that does
  not divide its dimension is not used.

  Args:
    q_BxTxHxD, k_BxSxKxD, v_BxSxKxD: rotated projections; H must be a multiple of K.
    k_start, k_end: int32 [B, T], key positions in 0..S.
    kind: one of KINDS; ``choose`` knows which one suits the hardware.
    block: queries and keys per block, at most; the dense form and tokamax have none, and the
      blockwise one takes no more than BLOCKWISE_BLOCK.
    interpret: run the Pallas kernel step by step on any hardware (tests).

  Returns:
    [B, T, H, D] in q's dtype; 0, with zero gradients, where the range is empty.
  """
  (b, t, h, d), (_, s, kv_heads, _) = q_BxTxHxD.shape, k_BxSxKxD.shape
  chex.assert_shape([k_BxSxKxD, v_BxSxKxD], (b, s, kv_heads, d))
  chex.assert_shape([k_start, k_end], (b, t))
  chex.assert_type([k_start, k_end], int)
  chex.assert_is_divisible(h, kv_heads)
  if kind == 'dense':
    out = _dense(q_BxTxHxD, k_BxSxKxD, v_BxSxKxD, k_start, k_end)
    return checkpoint_name(out, 'attention_out')
  return _on_mesh(_form(kind, block, interpret), q_BxTxHxD, k_BxSxKxD, v_BxSxKxD, k_start, k_end)


def _form(kind: str, block: int, interpret: bool) -> _Form:
  """The single-device function; its module is imported only where it is used."""
  if kind == 'blockwise':
    from ttt_jax.model.kernels import blockwise
    return functools.partial(blockwise.attend, block=min(block, BLOCKWISE_BLOCK))
  if kind == 'pallas':
    from ttt_jax.model.kernels import staircase_flash
    return functools.partial(staircase_flash.attend, block=block, interpret=interpret)
  assert kind == 'tokamax', kind
  from ttt_jax.model.kernels import gpu
  return gpu.attend


def _on_mesh(form: _Form, q: jax.Array, k: jax.Array, v: jax.Array, k_start: Array,
             k_end: Array) -> jax.Array:
  """``form`` on every device's part of the mesh in force, or directly when there is none."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return form(q, k, v, k_start, k_end)

  def place(name, *sizes):
    axes = sharding.TABLE[name]
    parts = math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes))
    return axes if all(size % parts == 0 for size in sizes) else None

  rows, length = place('rows', q.shape[0]), place('length', q.shape[1])
  heads = place('heads', q.shape[2], k.shape[2])
  queries = PartitionSpec(rows, length, heads, None)
  keys = PartitionSpec(rows, None, heads, None)
  ranges = PartitionSpec(rows, length)
  return jax.shard_map(form, in_specs=(queries, keys, keys, ranges, ranges), out_specs=queries,
                       check_vma=False)(q, k, v, k_start, k_end)


def _dense(q_BxTxHxD: jax.Array, k_BxSxKxD: jax.Array, v_BxSxKxD: jax.Array,
           k_start: Array, k_end: Array) -> jax.Array:
  """The plain XLA form, with all T x S scores in memory."""
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


def _row_max(score: jax.Array) -> jax.Array:
  """Row maximum as a constant: softmax does not depend on it, so neither do gradients."""

  return lax.stop_gradient(score.max(-1, keepdims=True))
