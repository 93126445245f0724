"""Cross entropy of two labels per position, with one chunk of logits in memory at a time.

A position of a Text-to-Talk row can have two labels, the next token and its own, and many
have none. So the scored positions are compacted first, and their logits are computed chunk by
chunk, in as many chunks as the scored positions need. One log-sum-exp serves both labels:

    loss       = w_next (Z - l[next]) + w_self (Z - l[self]),   Z = log sum_v exp(l[v])
    d loss/d l = (w_next + w_self) softmax(l) - w_next onehot(next) - w_self onehot(self)

A third weight, where it is given, adds the entropy H of the distribution at positions whose own id
is the most probable one, so that right answers become confident ones:

    loss       = ... + w_entropy H,   H = Z - m,   m = sum_v softmax(l)[v] l[v]
    d loss/d l = ... + w_entropy softmax(l) (m - l)

The weights are known beforehand, so the gradient with respect to hidden states and table is
computed in the forward pass, while a chunk's logits exist: three products with the table per
chunk and no recomputation. The backward pass only multiplies by the cotangent. (Chunked head
losses with the gradient in the forward pass: Liger Kernel, arXiv 2410.10989.)

On a mesh the hidden states are communicated, not the table: for each chunk the devices of an
fsdp group gather their chunks' hidden states, and each device scores all of them on its own
part of the vocabulary (the tensor and fsdp axes together). No device ever holds the complete
table or its complete gradient, which for large models is more than all logits of a chunk.

B = rows, T = tokens, N = B T positions of a device, E = width, V = vocabulary rows of a
device, R = positions scored at once: a chunk of every device of the fsdp group.
"""

import dataclasses
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from ttt_jax.model import sharding
from ttt_jax.model.types import Array

_EVERY = sharding.AXES
_WIDTH = sharding.TABLE['embed']                      # cuts the table's columns
_PARTS = (sharding.TABLE['vocab'], _WIDTH)            # the parts of the vocabulary, in order
_ROWS = (*sharding.TABLE['rows'], sharding.TABLE['length'])
_COPIES = tuple(axis for axis in _ROWS if axis != _WIDTH)  # hold equal parts of the table
_LOWEST = -200.0  # logits further below the largest one count as this in the entropy


class Labels(NamedTuple):
  """Labels and weights; arrays [B, T]. A weight must be 0 at positions that are not scored."""
  scored: Array            # bool: positions with any label
  next_label: Array        # int32 ids below vocab_size ...
  self_label: Array
  next_weight: Array       # float32: ... and the factors of their nats in the total
  self_weight: Array
  # float32, or None: factors of the entropy at positions whose ``self_label`` is most probable.
  entropy_weight: Array | None = None


@dataclasses.dataclass(frozen=True)
class _Plan:
  """The static arguments of a call."""
  vocab_size: int
  chunk: int
  dtype: str
  form: str
  meshed: bool             # runs inside shard_map on a mesh


@jax.named_scope('loss')
def pair_loss(hidden_BxTxE: Array, table_VxE: Array, labels: Labels, vocab_size: int, *,
              chunk: int, dtype: str,
              form: str = 'auto',
              ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
  """sum(next_weight * next_nll + self_weight * self_nll), computed chunk by chunk.

  With ``labels.entropy_weight`` the total has also sum(entropy_weight * entropy).

  Only the total is differentiable, and only with respect to ``hidden_BxTxE`` and ``table_VxE``:
  weights are constants, and the nats per token are for metrics.

  Args:
    hidden_BxTxE: final hidden states.
    table_VxE: float32 output head with at least ``vocab_size`` rows; rows beyond are padding and
      get neither probability nor gradient.
    labels: of every position.
    chunk: scored positions per device whose logits are in memory at once.
    dtype: of the products with the table; sums are float32 whatever it is.
    form: 'rows', 'dense', or 'auto': see ``_chunk``.

  Returns:
    (total, next_nll, self_nll, entropy): a float32 scalar; float32 [B, T] in nats, the first two
    of them at every scored position and 0 elsewhere. ``entropy`` is that of the distribution over
    all ids at scored positions where no id is more probable than ``self_label``, 0 elsewhere, and
    None without ``labels.entropy_weight``. On a mesh (jax.set_mesh) the batch must divide over it
    (sharding.check_batch), and the total is that of all devices.
  """
  assert form in ('auto', 'rows', 'dense'), form
  b, t, e = hidden_BxTxE.shape
  chex.assert_shape(jax.tree.leaves(labels), (b, t))
  chex.assert_type(labels[:5], [bool, int, int, float, float])
  chex.assert_shape(table_VxE, (None, e))
  chex.assert_axis_dimension_gteq(table_VxE, 0, vocab_size)
  plan = _Plan(vocab_size, chunk, dtype, form, sharding.in_use())
  return _pair_loss(plan, *jax.tree.map(jnp.asarray, (hidden_BxTxE, table_VxE, labels)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pair_loss(plan: _Plan, hidden, table, labels):
  return _over_mesh(plan, False, hidden, table, labels)[:4]


def _forward(plan: _Plan, hidden, table, labels):
  *out, d_hidden, d_table = _over_mesh(plan, True, hidden, table, labels)
  return tuple(out), (d_hidden, d_table)


def _backward(plan: _Plan, gradient, cotangent):
  scale = cotangent[0]
  d_hidden, d_table = gradient
  return (d_hidden * scale).astype(d_hidden.dtype), d_table * scale, None


_pair_loss.defvjp(_forward, _backward)


def _over_mesh(plan: _Plan, gradient: bool, hidden, table, labels):
  """(total, next_nll, self_nll, entropy[, d_hidden, d_table]), summed over devices."""
  def local(*inputs):
    form = lambda name: functools.partial(
        _local, dataclasses.replace(plan, form=name), gradient)
    if plan.form != 'auto':
      return form(plan.form)(*inputs)
    if plan.dtype != 'float32':
      return form('dense')(*inputs)
    return lax.platform_dependent(*inputs, cpu=form('rows'), default=form('dense'))

  if not plan.meshed:
    return local(hidden, table, labels)
  tokens, states = sharding.spec(('rows', 'length')), sharding.spec(('rows', 'length', 'width'))
  rows = sharding.spec(('vocab', 'embed'))
  out = (jax.P(), tokens, tokens, tokens) + ((states, rows) if gradient else ())
  return jax.shard_map(local, in_specs=(states, rows, tokens), out_specs=out,
                       check_vma=False)(hidden, table, labels)


def _local(plan: _Plan, gradient: bool, hidden_BxTxE, table, labels: Labels):
  """``_over_mesh`` on one device."""
  shape = labels.scored.shape
  n = labels.scored.size
  chunk = min(plan.chunk, n)
  size = -(-n // chunk) * chunk
  hidden = hidden_BxTxE.reshape(n, -1)
  labels = jax.tree.map(lambda x: x.reshape(n), labels)
  # Compaction: the k-th scored position has place k, and order[k] is its index.
  place = jnp.cumsum(labels.scored, dtype=jnp.int32) - 1
  count = place[-1] + 1
  order = jnp.zeros(size, jnp.int32).at[jnp.where(labels.scored, place, size)].set(
      jnp.arange(n, dtype=jnp.int32), mode='drop')
  real = jnp.arange(size) < count
  chunks = (count + chunk - 1) // chunk
  head = _own_head(plan, table)
  kinds = 2 if labels.entropy_weight is None else 3  # of nats per position
  if plan.meshed:  # the loop has collectives, so every device must run it equally often
    chunks = lax.pmax(chunks, _EVERY)

  def one_chunk(number, carry):
    at = number * chunk
    here = lax.dynamic_slice_in_dim(order, at, chunk)
    keep = lax.dynamic_slice_in_dim(real, at, chunk)
    mine = jax.tree.map(lambda x: jnp.where(keep, x[here], 0),
                        labels._replace(scored=None))._replace(scored=keep)
    total, nlls, slopes, d_table = carry
    nll, slope, d_table = _chunk(plan, hidden[here], head, mine, d_table)
    total += jnp.sum(nll[0] * mine.next_weight + nll[1] * mine.self_weight)
    if mine.entropy_weight is not None:
      total += jnp.sum(nll[2] * mine.entropy_weight)
    nlls = lax.dynamic_update_slice_in_dim(nlls, nll, at, axis=1)
    if gradient:
      assert slope is not None
      slopes = lax.dynamic_update_slice_in_dim(slopes, slope.astype(slopes.dtype), at, axis=0)
    return total, nlls, slopes, d_table

  total, nlls, slopes, d_table = lax.fori_loop(0, chunks, one_chunk, (
      jnp.float32(0), jnp.zeros((kinds, size), jnp.float32),
      jnp.zeros((size, hidden.shape[1]), hidden.dtype) if gradient else None,
      jnp.zeros(head.table.shape, jnp.float32) if gradient else None))
  back = lambda x: jnp.where(labels.scored, x[place], 0).reshape(shape)
  out = (lax.psum(total, _ROWS) if plan.meshed else total, back(nlls[0]), back(nlls[1]),
         back(nlls[2]) if kinds > 2 else None)
  if not gradient:
    return out
  d_hidden = jnp.where(labels.scored[:, None], slopes[place], 0)
  return *out, d_hidden.reshape(hidden_BxTxE.shape), _table_gradient(plan, d_table, table.shape)


class _Head(NamedTuple):
  """A device's part of the output head."""
  table: jax.Array              # [V, E] in the compute dtype
  first: jax.Array | int        # id of its first row
  rows: jax.Array | int         # number of its rows that are ids; the others are padding


def _own_head(plan: _Plan, table: jax.Array) -> _Head:
  """From [rows over tensor, columns over fsdp] to complete rows, sharded over both axes."""
  table = table.astype(plan.dtype)
  if not plan.meshed:
    return _Head(table, 0, plan.vocab_size)
  rows, parts = table.shape[0], lax.axis_size(_WIDTH)
  table = jnp.pad(table, ((0, -rows % parts), (0, 0)))
  table = lax.all_to_all(table, _WIDTH, split_axis=0, concat_axis=1, tiled=True)
  group, part = (lax.axis_index(axis) for axis in _PARTS)
  inside = part * table.shape[0]
  real = jnp.minimum(rows, plan.vocab_size - group * rows) - inside
  return _Head(table, group * rows + inside, jnp.clip(real, 0, table.shape[0]))


def _table_gradient(plan: _Plan, d_table_VxE: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """The inverse of ``_own_head`` for the gradient, summed over devices with the same part."""
  if not plan.meshed:
    return d_table_VxE
  d_table = lax.all_to_all(lax.psum(d_table_VxE, _COPIES), _WIDTH, split_axis=1, concat_axis=0,
                           tiled=True)
  return d_table[:shape[0]]


def _chunk(plan: _Plan, hidden: jax.Array, head: _Head, mine: Labels,
           d_table: jax.Array | None):
  """Score one chunk of every device of the fsdp group.

  There are two forms with equal results. 'rows' subtracts the one-hot part of the gradient from
  the few table rows that it touches, so that each exponential is computed and read once: fastest
  on a CPU in float32. 'dense' subtracts it inside the [R, V] probabilities before they are
  rounded to the compute dtype: no scatter, which is slow on a TPU, and no cancellation of
  rounded numbers.

  Args:
    hidden: [chunk, E], of this device; ``mine``: its labels, [chunk].
    d_table: float32 [V, E] to add to; None: no gradient is computed.

  Returns:
    (nats float32 [2, chunk], d_hidden float32 [chunk, E] or None, new d_table or None); with an
    entropy weight the nats have a third row, the entropy.
  """
  chunk, hidden_RxE, labels = hidden.shape[0], hidden.astype(plan.dtype), mine
  entropy = mine.entropy_weight is not None
  if plan.meshed:
    hidden_RxE, labels = jax.tree.map(
        lambda x: lax.all_gather(x, _WIDTH, tiled=True), (hidden_RxE, labels))
  weights = (labels.next_weight[:, None], labels.self_weight[:, None])
  places = [_place(label, head) for label in (labels.next_label, labels.self_label)]
  logits_RxV = _dot(hidden_RxE, head.table, 1, 1)
  column = lax.broadcasted_iota(jnp.int32, (1, head.table.shape[0]), 1)
  if plan.meshed or head.rows < head.table.shape[0]:
    logits_RxV = jnp.where(column < head.rows, logits_RxV, -jnp.inf)

  vectors, hits = [], []
  if plan.form == 'rows':
    vectors = [head.table.at[place].get(mode='fill', fill_value=0).astype(jnp.float32)
               for place in places]
    picked = [jnp.sum(hidden_RxE * vector, axis=1) for vector in vectors]
  else:
    hits = [column == place[:, None] for place in places]
    picked = [jnp.sum(jnp.where(hit, logits_RxV, 0.0), axis=1) for hit in hits]
  largest = _group(lax.pmax, plan, jnp.max(logits_RxV, axis=1))
  power_RxV = jnp.exp(logits_RxV - largest[:, None])
  nats = [_mass(plan, power_RxV), *picked]
  # Padding of the table has logits of -inf; exp of _LOWEST is 0 as well, and 0 times it is 0.
  shifted_RxV = jnp.maximum(logits_RxV - largest[:, None], _LOWEST) if entropy else 0.0
  if entropy:
    own = picked[1] if plan.form == 'dense' else jnp.take_along_axis(
        logits_RxV, places[1][:, None], axis=1, mode='fill', fill_value=0)[:, 0]
    nats += [jnp.sum(power_RxV * shifted_RxV, axis=1), own]
  sums = _group(lax.psum, plan, jnp.stack(nats))
  nll = largest + jnp.log(sums[0]) - sums[1:3]  # Z - l[label], Z by the shifted log-sum-exp
  bend_RxV = None  # the entropy's part of the gradient, over exp(l - max)
  if labels.entropy_weight is not None:
    mean = sums[3] / sums[0]  # of l - max
    right = sums[4] >= largest  # no id is more probable than the label
    nll = jnp.concatenate([nll, jnp.where(right, jnp.log(sums[0]) - mean, 0)[None]])
    rise = jnp.where(right, labels.entropy_weight, 0) / sums[0]
    bend_RxV = rise[:, None] * (mean[:, None] - shifted_RxV)
  if plan.meshed:
    nll = lax.dynamic_slice_in_dim(nll, lax.axis_index(_WIDTH) * chunk, chunk, axis=1)
  if d_table is None:
    return nll, None, None

  # (w_next + w_self) softmax(l) = scale * exp(l - max): the division is done once per row.
  scale = (weights[0] + weights[1]) / sums[0][:, None]
  if bend_RxV is not None:
    power_RxV *= scale + bend_RxV
    scale = 1.0
  if plan.form == 'rows':
    power_RxV = power_RxV.astype(plan.dtype)
    d_hidden = scale * _dot(power_RxV, head.table, 1, 0) - sum(
        weight * vector for weight, vector in zip(weights, vectors))
    d_table += _dot(power_RxV, (scale * hidden_RxE).astype(plan.dtype), 0, 0)
    for weight, place in zip(weights, places):
      d_table = d_table.at[place].add(-weight * hidden_RxE, mode='drop')
  else:
    slope_RxV = (scale * power_RxV - sum(
        jnp.where(hit, weight, 0.0) for hit, weight in zip(hits, weights))).astype(plan.dtype)
    d_hidden = _dot(slope_RxV, head.table, 1, 0)
    d_table += _dot(slope_RxV, hidden_RxE, 0, 0)
  if plan.meshed:
    d_hidden = lax.psum_scatter(lax.psum(d_hidden, _PARTS[0]), _WIDTH, tiled=True)
  return nll, d_hidden, d_table


def _place(label: Array, head: _Head) -> jax.Array:
  """Row of an id in this device's part of the table; one past the end if it lies elsewhere."""
  place = label - head.first
  return jnp.where((place >= 0) & (place < head.rows), place, head.table.shape[0])


def _mass(plan: _Plan, power_RxV: jax.Array) -> jax.Array:
  """Row sums of the exponentials. As a matrix product the sum is not fused with them; XLA's CPU
  backend would otherwise compute them twice."""
  if plan.form == 'rows':
    return _dot(power_RxV, jnp.ones((power_RxV.shape[1], 1)), 1, 0)[:, 0]
  return jnp.sum(power_RxV, axis=1)


def _group(reduce, plan: _Plan, x: jax.Array) -> jax.Array:
  """``reduce`` over the devices that hold the parts of the vocabulary."""
  return reduce(x, _PARTS) if plan.meshed else x


def _dot(a: Array, b: Array, axis_a: int, axis_b: int) -> jax.Array:
  """Matrix product over one axis of each, accumulated in float32."""
  return lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())),
                         preferred_element_type=jnp.float32)
