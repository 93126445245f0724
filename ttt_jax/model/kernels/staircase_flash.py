"""Staircase attention as a Pallas TPU kernel: flash attention with a key range per query.

The method is FlashAttention-2 (arXiv 2307.08691): online softmax in the forward pass, weights
recomputed from the log-sum-exp in the backward pass, one kernel for dq and one for dk and dv. New
are the ranges k_start <= j < k_end, given as two vectors instead of a T x T mask:

- The last grid axis counts the key blocks that a query block attends to, from its first one. The
  block's index comes by scalar prefetch, so it is known before the block is fetched. A grid step
  beyond the last block computes nothing and names that block again, so Pallas fetches nothing.
- A block pair that the mask allows completely skips the comparison of positions.

Arrays are [B, T, H * D], heads side by side, so nothing is transposed. D is padded with zeros to a
multiple of 128 lanes and T to a multiple of the block. Scores are in units of log2, because the
hardware computes exp2.

B = rows, T = queries, S = keys, H/K = query/key heads, G = H / K, D = padded head dim,
Q/C = queries/keys per block, I/J = number of query/key blocks.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ttt_jax.model.staircase import block_reach
from ttt_jax.model.types import Array

LANES = 128
_LOG2E = math.log2(math.e)
_NEVER = -0.7 * float(np.finfo(np.float32).max)
_ROWS_ROWS = (((1,), (1,)), ((), ()))     # a b^T
_ROWS_COLUMNS = (((1,), (0,)), ((), ()))  # a b


@dataclasses.dataclass(frozen=True)
class _Plan:
  """The static arguments of the kernels."""
  heads: int
  kv_heads: int
  dim: int        # padded
  scale: float    # of the true head dim
  queries: int    # per block
  keys: int       # per block
  interpret: bool

  @property
  def group(self) -> int:
    return self.heads // self.kv_heads


def attend(q_BxTxHxD: jax.Array, k_BxSxKxD: jax.Array, v_BxSxKxD: jax.Array,
           k_start: Array, k_end: Array, block: int = 512,
           interpret: bool = False) -> jax.Array:
  """softmax(q k / sqrt(D)) v over the keys k_start <= j < k_end of each query.

  Args:
    q_BxTxHxD, k_BxSxKxD, v_BxSxKxD: any T, S and D; H must be a multiple of K.
    k_start, k_end: int32 [B, T], key positions in 0..S.
    block: queries and keys per block, at most; rounded to a multiple of 128.
    interpret: run in Pallas' interpreter, on any hardware; blocks may then be multiples of 8.

  Returns:
    [B, T, H, D] in q's dtype; 0, with zero gradients, where the range is empty.
  """
  b, t, heads, d = q_BxTxHxD.shape
  kv_heads = k_BxSxKxD.shape[2]
  assert heads % kv_heads == 0, (heads, kv_heads)
  unit = 8 if interpret else LANES
  queries, t_padded = _fit(t, block, unit)
  keys, s_padded = _fit(k_BxSxKxD.shape[1], block, unit)
  plan = _Plan(heads, kv_heads, -(-d // LANES) * LANES, d ** -0.5, queries, keys, interpret)

  def pack(x, length):
    x = jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, plan.dim - d)))
    return x.reshape(b, length, -1)

  ranges = lambda x: jnp.pad(x.astype(jnp.int32), ((0, 0), (0, t_padded - t)))
  out: jax.Array = _attend(
      pack(q_BxTxHxD, t_padded), pack(k_BxSxKxD, s_padded), pack(v_BxSxKxD, s_padded),
      ranges(k_start), ranges(k_end), plan)
  return out.reshape(b, t_padded, heads, plan.dim)[:, :t, :, :d]


def _fit(length: int, block: int, unit: int) -> tuple[int, int]:
  """(block, padded length): the largest block that divides the length rounded up to units."""
  padded = -(-length // unit) * unit
  sizes = range(unit, min(max(block, unit), padded) + 1, unit)
  return max(size for size in sizes if padded % size == 0), padded


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q, k, v, k_start, k_end, plan):
  return _forward(q, k, v, k_start, k_end, plan)[0]


def _attend_forward(q, k, v, k_start, k_end, plan):
  out, lse = _forward(q, k, v, k_start, k_end, plan)
  # Named, so that a remat policy can keep them: the backward pass then needs no second forward.
  out, lse = checkpoint_name(out, 'attention_out'), checkpoint_name(lse, 'attention_lse')
  return out, (q, k, v, k_start, k_end, out, lse)


def _attend_backward(plan, saved, d_out):
  q, k, v, k_start, k_end, out, lse = saved
  b, t, _ = q.shape
  d_out = d_out.astype(q.dtype)
  delta = (out.astype(jnp.float32) * d_out.astype(jnp.float32)).reshape(b, t, plan.heads, plan.dim)
  delta = delta.sum(-1).swapaxes(1, 2)[:, :, None]
  per_query = (k_start[:, None], k_end[:, None], lse, delta)
  dq = _backward_queries(q, k, v, d_out, per_query, plan)
  dk, dv = _backward_keys(q, k, v, d_out, per_query, plan)
  no_gradient = np.zeros(k_start.shape, jax.dtypes.float0)  # of integer inputs
  return dq, dk, dv, no_gradient, no_gradient


_attend.defvjp(_attend_forward, _attend_backward)


# --- block skipping: which block a grid step visits ---

def _visits(k_start, k_end, plan):
  """int32 [B * I] each: first and one past the last key block of a query block; the largest
  start and the smallest end of its ranges. A key block between the two needs no mask."""
  blocks = lambda x: x.reshape(x.shape[0], -1, plan.queries)
  first, end = block_reach(k_start, k_end, plan.queries)
  flat = lambda x: x.astype(jnp.int32).reshape(-1)
  return (flat(first // plan.keys), flat(-(-end // plan.keys)), flat(blocks(k_start).max(-1)),
          flat(blocks(k_end).min(-1)))


def _visitors(first, last, rows, key_blocks):
  """int32 [B * J] each: first and one past the last query block that visits a key block."""
  j = jnp.arange(key_blocks)[:, None]
  visits_BxJxI = ((first.reshape(rows, 1, -1) <= j) & (j < last.reshape(rows, 1, -1)))
  i = jnp.arange(visits_BxJxI.shape[-1])
  end = jnp.where(visits_BxJxI, i + 1, 0).max(-1)
  begin = jnp.where(visits_BxJxI, i, i.size).min(-1)
  return (jnp.where(end > 0, begin, 0).astype(jnp.int32).reshape(-1),
          end.astype(jnp.int32).reshape(-1))


def _run_block(visits, i, j, keys, body):
  """Run body(masked) if query block i (flat over rows) visits key block j."""
  first, last, latest_start, earliest_end = visits
  visited = (first[i] <= j) & (j < last[i])
  unmasked = (latest_start[i] <= j * keys) & ((j + 1) * keys <= earliest_end[i])
  pl.when(visited & unmasked)(lambda: body(False))
  pl.when(visited & jnp.logical_not(unmasked))(lambda: body(True))


def _nth(first, last, n):
  """The n-th block from the first one; the last block if n is beyond it."""
  return jnp.clip(first + n, 0, jnp.maximum(last - 1, 0))


# --- the kernels: refs of one grid step ---

def _column(row, size):
  """[1, size] -> [size, LANES] with equal lanes: a value per row of a score block."""
  return jnp.broadcast_to(row, (LANES, size)).T


def _wide(column, width):
  """[n, LANES] with equal lanes -> [n, width]."""
  return jnp.tile(column, (1, -(-width // LANES)))[:, :width]


def _dot(a, b, dimensions):
  return lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _inside(start, end, j, plan):
  """Booleans [Q, C]: keys of block j inside the ranges of columns start and end."""
  key = lax.broadcasted_iota(jnp.int32, (plan.queries, plan.keys), 1) + j * plan.keys
  return (key >= _wide(start, plan.keys)) & (key < _wide(end, plan.keys))


def _forward_kernel(*refs, plan, blocks):
  visits, (q, k, v, start, end, out, lse, top, total, acc, start_column, end_column) = (
      refs[:4], refs[4:])
  i = pl.program_id(0) * blocks + pl.program_id(2)
  n, j = pl.program_id(3), visits[0][i] + pl.program_id(3)

  @pl.when(n == 0)
  def _():
    top[...] = jnp.full_like(top, _NEVER)
    total[...] = jnp.zeros_like(total)
    acc[...] = jnp.zeros_like(acc)
    start_column[...] = _column(start[0], plan.queries)
    end_column[...] = _column(end[0], plan.queries)

  def body(masked):
    score = _dot(q[0], k[0], _ROWS_ROWS) * (plan.scale * _LOG2E)
    inside = _inside(start_column[...], end_column[...], j, plan) if masked else None
    if inside is not None:
      score = jnp.where(inside, score, _NEVER)
    old = top[...]
    new = jnp.maximum(old, score.max(-1, keepdims=True))
    weight = jnp.exp2(score - _wide(new, plan.keys))
    if inside is not None:  # if a query attends to no key of the block, all its scores equal _NEVER
      weight = jnp.where(inside, weight, 0.0)
    rescale = jnp.exp2(old - new)
    total[...] = rescale * total[...] + weight.sum(-1, keepdims=True)
    top[...] = new
    acc[...] = (acc[...] * _wide(rescale, plan.dim)
                + _dot(weight.astype(v.dtype), v[0], _ROWS_COLUMNS))

  _run_block(visits, i, j, plan.keys, body)

  @pl.when(n == pl.num_programs(3) - 1)
  def _():
    empty = total[...] == 0.0
    safe = jnp.where(empty, 1.0, total[...])
    out[0] = (acc[...] * _wide(1.0 / safe, plan.dim)).astype(out.dtype)
    # An empty range gets a huge log-sum-exp, so that every weight of the backward pass is 0.
    lse[0, 0] = jnp.where(empty, -_NEVER, top[...] + jnp.log2(safe)).T[:1]


def _queries_kernel(*refs, plan, blocks):
  """dq of one query block, over its key blocks."""
  visits, (q, k, v, d_out, start, end, lse, delta, dq, acc, start_column, end_column, lse_column,
           delta_column) = refs[:4], refs[4:]
  i = pl.program_id(0) * blocks + pl.program_id(2)
  n, j = pl.program_id(3), visits[0][i] + pl.program_id(3)

  @pl.when(n == 0)
  def _():
    acc[...] = jnp.zeros_like(acc)
    for column, row in ((start_column, start[0]), (end_column, end[0]),
                        (lse_column, lse[0, 0]), (delta_column, delta[0, 0])):
      column[...] = _column(row, plan.queries)

  def body(masked):
    score = _dot(q[0], k[0], _ROWS_ROWS) * (plan.scale * _LOG2E)
    weight = jnp.exp2(score - _wide(lse_column[...], plan.keys))
    if masked:
      weight = jnp.where(_inside(start_column[...], end_column[...], j, plan), weight, 0.0)
    d_weight = _dot(d_out[0], v[0], _ROWS_ROWS)
    d_score = weight * (d_weight - _wide(delta_column[...], plan.keys))
    acc[...] += _dot(d_score.astype(k.dtype), k[0], _ROWS_COLUMNS)

  _run_block(visits, i, j, plan.keys, body)

  @pl.when(n == pl.num_programs(3) - 1)
  def _():
    dq[0] = (acc[...] * plan.scale).astype(dq.dtype)


def _keys_kernel(*refs, plan, blocks):
  """dk and dv of one key block, over the G heads and the query blocks that visit it.

  Scores are transposed, [C, Q], so that values per query are rows and need no transposition.
  """
  visits, begin, stop = refs[:4], refs[4], refs[5]
  q, k, v, d_out, start, end, lse, delta, dk, dv, dk_acc, dv_acc = refs[6:]
  b, j, g, n = (pl.program_id(axis) for axis in (0, 2, 3, 4))
  place = b * pl.num_programs(2) + j
  i = begin[place] + n

  @pl.when((g == 0) & (n == 0))
  def _():
    dk_acc[...] = jnp.zeros_like(dk_acc)
    dv_acc[...] = jnp.zeros_like(dv_acc)

  def body(masked):
    score = _dot(k[0], q[0], _ROWS_ROWS) * (plan.scale * _LOG2E)
    weight = jnp.exp2(score - lse[0, 0])
    if masked:
      key = lax.broadcasted_iota(jnp.int32, score.shape, 0) + j * plan.keys
      weight = jnp.where((key >= start[0]) & (key < end[0]), weight, 0.0)
    dv_acc[...] += _dot(weight.astype(d_out.dtype), d_out[0], _ROWS_COLUMNS)
    d_weight = _dot(v[0], d_out[0], _ROWS_ROWS)
    d_score = weight * (d_weight - delta[0, 0])
    dk_acc[...] += _dot(d_score.astype(q.dtype), q[0], _ROWS_COLUMNS)

  @pl.when(i < stop[place])
  def _():
    _run_block(visits, b * blocks + i, j, plan.keys, body)

  @pl.when((g == pl.num_programs(3) - 1) & (n == pl.num_programs(4) - 1))
  def _():
    dk[0] = (dk_acc[...] * plan.scale).astype(dk.dtype)
    dv[0] = dv_acc[...].astype(dv.dtype)


# --- the calls ---

def _query_grid_specs(plan, blocks):
  """Block specs on the grid (b, head, i, n) of a query's, a key's, a range's and an lse block."""
  def key_block(b, i, n, visits):
    return _nth(visits[0][b * blocks + i], visits[1][b * blocks + i], n)

  return (
      pl.BlockSpec((1, plan.queries, plan.dim), lambda b, h, i, n, *visits: (b, i, h)),
      pl.BlockSpec((1, plan.keys, plan.dim), lambda b, h, i, n, *visits: (
          b, key_block(b, i, n, visits), lax.div(h, plan.group))),
      pl.BlockSpec((1, 1, plan.queries), lambda b, h, i, n, *visits: (b, 0, i)),
      pl.BlockSpec((1, 1, 1, plan.queries), lambda b, h, i, n, *visits: (b, h, 0, i)))


def _call(kernel, plan, grid, prefetch, in_specs, out_specs, out_shape, scratch, products, inputs):
  """Run a kernel; the first three grid axes are independent of each other.

  ``products`` counts matrix products per pair of blocks, for XLA's scheduler.
  """
  parallel = ('parallel',) * 3 + ('arbitrary',) * (len(grid) - 3)
  pairs = math.prod(grid) * plan.queries * plan.keys
  cost = pl.CostEstimate(flops=2 * products * pairs * plan.dim, transcendentals=pairs,
                         bytes_accessed=sum(x.size * x.dtype.itemsize for x in inputs))
  return pl.pallas_call(
      kernel, out_shape=out_shape, interpret=plan.interpret, cost_estimate=cost,
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=len(prefetch), grid=grid, in_specs=in_specs, out_specs=out_specs,
          scratch_shapes=scratch),
      # Pallas accepts the names; its stub lists only the enum.
      compiler_params=pltpu.CompilerParams(dimension_semantics=parallel)  # type: ignore
  )(*prefetch, *inputs)


def _forward(q, k, v, k_start, k_end, plan):
  """Output [B, T, H * D] and log-sum-exp in units of log2, float32 [B, H, 1, T]."""
  b, t, _ = q.shape
  blocks, key_blocks = t // plan.queries, k.shape[1] // plan.keys
  query, key, ranges, per_head = _query_grid_specs(plan, blocks)
  column = lambda dtype: pltpu.VMEM((plan.queries, LANES), dtype)
  return _call(
      functools.partial(_forward_kernel, plan=plan, blocks=blocks), plan,
      (b, plan.heads, blocks, key_blocks), _visits(k_start, k_end, plan),
      [query, key, key, ranges, ranges], [query, per_head],
      [jax.ShapeDtypeStruct(q.shape, q.dtype),
       jax.ShapeDtypeStruct((b, plan.heads, 1, t), jnp.float32)],
      [column(jnp.float32), column(jnp.float32),
       pltpu.VMEM((plan.queries, plan.dim), jnp.float32), column(jnp.int32), column(jnp.int32)],
      2, (q, k, v, k_start[:, None], k_end[:, None]))


def _backward_queries(q, k, v, d_out, per_query, plan):
  """dq, like q."""
  b, t, _ = q.shape
  blocks, key_blocks = t // plan.queries, k.shape[1] // plan.keys
  query, key, ranges, per_head = _query_grid_specs(plan, blocks)
  column = lambda dtype: pltpu.VMEM((plan.queries, LANES), dtype)
  return _call(
      functools.partial(_queries_kernel, plan=plan, blocks=blocks), plan,
      (b, plan.heads, blocks, key_blocks),
      _visits(per_query[0][:, 0], per_query[1][:, 0], plan),
      [query, key, key, query, ranges, ranges, per_head, per_head], query,
      jax.ShapeDtypeStruct(q.shape, q.dtype),
      [pltpu.VMEM((plan.queries, plan.dim), jnp.float32), column(jnp.int32), column(jnp.int32),
       column(jnp.float32), column(jnp.float32)],
      3, (q, k, v, d_out, *per_query))


def _backward_keys(q, k, v, d_out, per_query, plan):
  """dk and dv, like k and v."""
  b, t, _ = q.shape
  blocks, key_blocks = t // plan.queries, k.shape[1] // plan.keys
  visits = _visits(per_query[0][:, 0], per_query[1][:, 0], plan)
  visitors = _visitors(visits[0], visits[1], b, key_blocks)

  def spec(shape, index):  # index(b, query head, key head, j, i)
    def place(b, h, j, g, n, *prefetch):
      begin, stop = (x[b * key_blocks + j] for x in prefetch[4:6])
      return index(b, h * plan.group + g, h, j, _nth(begin, stop, n))
    return pl.BlockSpec(shape, place)

  query = spec((1, plan.queries, plan.dim), lambda b, h, kv, j, i: (b, i, h))
  key = spec((1, plan.keys, plan.dim), lambda b, h, kv, j, i: (b, j, kv))
  ranges = spec((1, 1, plan.queries), lambda b, h, kv, j, i: (b, 0, i))
  per_head = spec((1, 1, 1, plan.queries), lambda b, h, kv, j, i: (b, h, 0, i))
  return _call(
      functools.partial(_keys_kernel, plan=plan, blocks=blocks), plan,
      (b, plan.kv_heads, key_blocks, plan.group, blocks), (*visits, *visitors),
      [query, key, key, query, ranges, ranges, per_head, per_head], [key, key],
      [jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)],
      [pltpu.VMEM((plan.keys, plan.dim), jnp.float32)] * 2,
      4, (q, k, v, d_out, *per_query))
