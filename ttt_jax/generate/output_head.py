"""The output head over a few positions: what a choice needs, and as little of it as can be.

C = positions, V = rows of the head's table, E = width; rows come in G groups of g.

A vocabulary of 168,072 ids is swept once for all positions of a step. Of every group of ids
its largest logit and its sum of exponentials remain; that is enough for a softmax over any
union of groups, and says in which group the best id is. On a CPU the sweep goes tile by
tile where positions are many, so that logits never leave the cache.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

GROUP = 128  # ids, at most; the largest power of two that divides the table


class Groups(NamedTuple):
  """Arrays [G, C] float32.

  Attributes:
    top: largest logit; -inf in a group that does not count.
    total: sum of exp(logit - top).
    weighted: sum of exp(logit - top) * (logit - top); zeros unless it was asked for.
  """
  top: jax.Array
  total: jax.Array
  weighted: jax.Array

  def log_sum(self) -> jax.Array:
    """log-sum-exp of the logits of all groups, [C]."""
    top = self.top.max(0)
    return top + jnp.log(jnp.sum(self.total * jnp.exp(self.top - top), axis=0))

  def entropy(self, log_sum: jax.Array) -> jax.Array:
    """Of the softmax over all groups, nats, [C]."""
    below = jnp.where(jnp.isneginf(self.top), 0.0, log_sum - self.top)
    # Terms of one sign: a small entropy keeps its digits.
    return jnp.sum(jnp.exp(self.top - log_sum) * (self.total * below - self.weighted), axis=0)


class Swept(NamedTuple):
  """Attributes:
    groups: of all rows, whatever they are.
    table, hidden: the rows [V, E] and the positions [C, E].
    logits: float32 [G, g, C]; None after a sweep in tiles.
  """
  groups: Groups
  table: jax.Array
  hidden: jax.Array
  logits: jax.Array | None

  @property
  def group(self) -> int:
    return self.table.shape[0] // self.groups.top.shape[0]

  def of_each(self, group: jax.Array) -> jax.Array:
    """Logits [g, C] of one group per position, ``group`` int32 [C]."""
    if self.logits is not None:
      return jnp.take_along_axis(self.logits, group[None, None], axis=0)[0]

    def one(args):
      row, x = args
      rows = lax.dynamic_slice(self.table, (row * self.group, 0), (self.group, x.size))
      return jnp.einsum('ve,e->v', rows, x, preferred_element_type=jnp.float32)
    return lax.map(one, (group, self.hidden)).T

  def of_all(self, groups: tuple[int, ...]) -> jax.Array:
    """Logits [len(groups), g, C] of some groups, for every position."""
    if self.logits is not None:
      return jnp.stack([self.logits[i] for i in groups])
    rows = jnp.stack([self.table[i * self.group:(i + 1) * self.group] for i in groups])
    return jnp.einsum('sve,ce->svc', rows, self.hidden, preferred_element_type=jnp.float32)


def group_size(rows: int) -> int:
  """g of a table of ``rows``."""
  return math.gcd(rows, GROUP)


def summary(logits: jax.Array, weigh: jax.Array | bool) -> Groups:
  """Of logits [G, g, C]; -inf in them does not count. ``weigh``: bool, ask for ``weighted``."""
  top = logits.max(1)
  # A group without any id: exp(-inf - 0), not exp(-inf + inf).
  below = logits - jnp.where(jnp.isneginf(top), 0.0, top)[:, None]
  share = jnp.exp(below)
  weighted = lax.cond(
      weigh, lambda: jnp.sum(jnp.where(share > 0, share * below, 0.0), axis=1),
      lambda: jnp.zeros_like(top))
  return Groups(top, share.sum(1), weighted)


def sweep(table: jax.Array, hidden: jax.Array, weigh: jax.Array, tile: int | None) -> Swept:
  """Logits of all ids at some positions, summed up.

  Args:
    table: [V, E].
    hidden: [C, E].
    weigh: bool scalar, whether some position needs an entropy.
    tile: ids that are scored at once, rounded down to whole groups; None for all, which keeps
      the logits.
  """
  rows, size = table.shape[0], group_size(table.shape[0])
  if tile is None or tile >= rows:
    logits = jnp.einsum('ve,ce->vc', table, hidden, preferred_element_type=jnp.float32)
    logits = logits.reshape(rows // size, size, -1)
    return Swept(summary(logits, weigh), table, hidden, logits)
  tile = max(tile // size, 1) * size

  def turn(number, groups):
    at = jnp.minimum(number * tile, rows - tile)  # the last tile may overlap the one before
    part = lax.dynamic_slice(table, (at, 0), (tile, table.shape[1]))
    logits = jnp.einsum('ve,ce->vc', part, hidden, preferred_element_type=jnp.float32)
    made = summary(logits.reshape(tile // size, size, -1), weigh)
    return jax.tree.map(lambda all, new: lax.dynamic_update_slice(all, new, (at // size, 0)),
                        groups, made)

  empty = jnp.zeros((rows // size, hidden.shape[0]), jnp.float32)
  groups = lax.fori_loop(0, -(-rows // tile), turn, Groups(empty, empty, empty))
  return Swept(groups, table, hidden, None)
