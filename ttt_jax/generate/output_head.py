"""The output head over a few positions, reduced to what a choice needs.

A vocabulary of 168,072 ids is swept once for all positions of a step. Of every group of ids
only the largest logit and the sum of exponentials are returned. That is enough for a softmax
over any union of groups (as in online softmax, arXiv 1805.02867), and it tells which group has
the best id. On a CPU with many positions the sweep goes tile by tile, so that logits stay in
a core's cache.

C = positions, V = rows of the head's table, E = width; the rows form G groups of g.
"""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from ttt_jax.model.types import Array

GROUP = 128  # ids per group at most; fewer if the table is not a multiple of it


class Groups(NamedTuple):
  """Summaries of the logits of each group; float32 [G, C].

  Attributes:
    top: largest logit; -inf in a group that does not count.
    total: sum of exp(logit - top).
    weighted: sum of exp(logit - top) * (logit - top), for entropies; zeros if not needed.
  """
  top: jax.Array
  total: jax.Array
  weighted: jax.Array

  def log_sum(self) -> jax.Array:
    """log-sum-exp of the logits of all groups, [C]."""
    top = self.top.max(0)
    return top + jnp.log(jnp.sum(self.total * jnp.exp(self.top - top), axis=0))

  def entropy(self, log_sum: jax.Array) -> jax.Array:
    """Entropy of the softmax over all groups, nats, [C]."""
    below = jnp.where(jnp.isneginf(self.top), 0.0, log_sum - self.top)
    # sum p (Z - logit), with Z the log-sum-exp. All terms are >= 0, so that a small entropy does
    # not come from cancellation.
    return jnp.sum(jnp.exp(self.top - log_sum) * (self.total * below - self.weighted), axis=0)


class Swept(NamedTuple):
  """The result of ``sweep``.

  Attributes:
    groups: summaries over all rows, allowed or not.
    table, hidden: the rows [V, E] and the positions [C, E].
    logits: float32 [G, g, C]; None after a sweep in tiles.
  """
  groups: Groups
  table: Array
  hidden: Array
  logits: jax.Array | None

  @property
  def group(self) -> int:
    """g."""
    return self.table.shape[0] // self.groups.top.shape[0]

  def of_each(self, group: Array) -> jax.Array:
    """Logits [g, C] of one group per position; ``group``: int32 [C]."""
    if self.logits is not None:
      return jnp.take_along_axis(self.logits, group[None, None], axis=0)[0]

    def one(args):
      row, x = args
      rows = lax.dynamic_slice(self.table, (row * self.group, 0), (self.group, x.size))
      return jnp.einsum('ve,e->v', rows, x, preferred_element_type=jnp.float32)
    return lax.map(one, (group, self.hidden)).T

  def of_all(self, groups: tuple[int, ...]) -> jax.Array:
    """Logits [len(groups), g, C] of the given groups at every position."""
    if self.logits is not None:
      return jnp.stack([self.logits[i] for i in groups])
    rows = jnp.stack([self.table[i * self.group:(i + 1) * self.group] for i in groups])
    return jnp.einsum('sve,ce->svc', rows, self.hidden, preferred_element_type=jnp.float32)


def group_size(rows: int) -> int:
  """g of a table of so many rows: their greatest common divisor with GROUP."""
  return math.gcd(rows, GROUP)


def summary(logits: jax.Array, weigh: Array | bool) -> Groups:
  """Summaries of logits [G, g, C]; -inf does not count. ``weigh``: whether to sum ``weighted``."""
  top = logits.max(1)
  # In a group of -inf alone: exp(-inf - 0) = 0 instead of exp(-inf + inf) = NaN.
  below = logits - jnp.where(jnp.isneginf(top), 0.0, top)[:, None]
  share = jnp.exp(below)
  weighted = lax.cond(
      weigh, lambda: jnp.sum(jnp.where(share > 0, share * below, 0.0), axis=1),
      lambda: jnp.zeros_like(top))
  return Groups(top, share.sum(1), weighted)


def sweep(table: Array, hidden: Array, weigh: Array, tile: int | None) -> Swept:
  """Logits of all ids at C positions, summarised per group.

  Args:
    table: [V, E].
    hidden: [C, E].
    weigh: bool scalar, whether some position needs an entropy.
    tile: ids per tile, rounded down to a multiple of g; None: all at once, and ``Swept`` has the
      logits.
  """
  chex.assert_rank([table, hidden], 2)
  chex.assert_equal_shape_suffix([table, hidden], 1)
  rows, size = table.shape[0], group_size(table.shape[0])
  if tile is None or tile >= rows:
    logits = jnp.einsum('ve,ce->vc', table, hidden, preferred_element_type=jnp.float32)
    logits = logits.reshape(rows // size, size, -1)
    return Swept(summary(logits, weigh), table, hidden, logits)
  tile = max(tile // size, 1) * size

  def one_tile(number, groups):
    at = jnp.minimum(number * tile, rows - tile)  # the last tile may overlap the one before
    part = lax.dynamic_slice(table, (at, 0), (tile, table.shape[1]))
    logits = jnp.einsum('ve,ce->vc', part, hidden, preferred_element_type=jnp.float32)
    made = summary(logits.reshape(tile // size, size, -1), weigh)
    return jax.tree.map(lambda all, new: lax.dynamic_update_slice(all, new, (at // size, 0)),
                        groups, made)

  empty = jnp.zeros((rows // size, hidden.shape[0]), jnp.float32)
  groups = lax.fori_loop(0, -(-rows // tile), one_tile, Groups(empty, empty, empty))
  return Swept(groups, table, hidden, None)
