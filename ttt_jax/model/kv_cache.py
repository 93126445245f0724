"""The KV cache of generation, and attention of a window to it.

Tokens before an open audio span never attend to it, so their keys and values are final and the
cache is exact. The open span itself is bidirectional, so a new token changes all of its keys: it
stays in the *window*, is computed again at every step, and is cached once it is closed.

  cache    keys and values of tokens 0 .. known-1, one slot per request
  window   the W tokens that follow: one text token, or a begin token and its span so far

L = layers, S = slots, B = rows of a call, W = window, T = tokens of a slot, H/K = query/key
heads, D = head dim.
"""

from collections.abc import Callable
import math
import pathlib
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from ttt_jax.config import ModelConfig
from ttt_jax.model import sharding
from ttt_jax.model.types import Array

CHUNK = 256       # cached keys per step of the loop over the prefix
_LOWEST = -1e30   # instead of -inf, so that a row without any key stays finite


class Cache(NamedTuple):
  """Both [L, S, K, T, D] in the compute dtype; T is a multiple of CHUNK."""
  k: jax.Array
  v: jax.Array


def tokens_of(tokens: int) -> int:
  """``tokens`` rounded up to a multiple of CHUNK: the length of a slot."""
  return -(-tokens // CHUNK) * CHUNK


def size_in_bytes(config: ModelConfig, slots: int, tokens: int) -> int:
  """Bytes of an ``empty`` cache over all devices."""
  heads = 2 * config.num_layers * config.num_key_value_heads * config.head_dim
  return heads * slots * tokens_of(tokens) * jnp.dtype(config.dtype).itemsize


def free_bytes() -> float:
  """Free bytes of the devices in use; infinite where they do not report it."""
  mesh = jax.sharding.get_abstract_mesh()
  devices = jax.local_devices()[:1 if mesh.empty else mesh.size]
  if devices[0].platform == 'cpu':
    try:
      lines = pathlib.Path('/proc/meminfo').read_text(encoding='ascii').splitlines()
    except OSError:
      return math.inf
    return next((1024.0 * int(line.split()[1]) for line in lines
                 if line.startswith('MemAvailable:')), math.inf)
  known = [device.memory_stats() for device in devices]
  if not all(known):
    return math.inf
  return float(sum(stats['bytes_limit'] - stats['bytes_in_use'] for stats in known))


def empty(config: ModelConfig, slots: int, tokens: int) -> Cache:
  """A cache for ``slots`` requests of up to ``tokens`` tokens each."""
  shape = (config.num_layers, slots, config.num_key_value_heads, tokens_of(tokens), config.head_dim)
  zeros = lambda: constrain(jnp.zeros(shape, config.dtype))
  return Cache(zeros(), zeros())


def constrain(x: jax.Array) -> jax.Array:
  """Shard a cache array: slots as the rows of a batch, key heads over 'tensor'."""
  return sharding.constrain(x, (None, 'rows', 'kv_heads', None, None))


def attend(cache: Cache, layer: jax.Array, slots: Array | None, known: Array,
           k_end: Array) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
  """Attention of one layer's windows to their slots' prefixes and to themselves.

  Args:
    cache: of all slots.
    layer: int32 scalar.
    slots: int32 [B], the slot of each row; None if rows are slots 0 .. S-1.
    known: int32 [B], number of cached tokens of the slot that are attended to.
    k_end: int32 [B, W]: query i attends to the window's keys 0 .. k_end[i]-1.

  Returns:
    A function of q [B, W, H, D], k and v [B, W, K, D] that returns [B, W, H, D]. Its time grows
    with the largest ``known``, not with the length of a slot.
  """
  chex.assert_equal_shape([cache.k, cache.v])
  chex.assert_shape(known, k_end.shape[:1])
  if slots is not None:
    chex.assert_equal_shape([slots, known])
  chunks = (jnp.max(known) + CHUNK - 1) // CHUNK

  def run(q, k, v):
    rows, width, heads, dim = q.shape
    groups = heads // k.shape[2]
    # The G query heads that share a key head become rows of one matrix: [B, K, G W, D].
    fold = lambda x: x.reshape(rows, width, -1, groups, dim).transpose(0, 2, 3, 1, 4).reshape(
        rows, -1, groups * width, dim)
    queries = fold(q * jnp.asarray(dim ** -0.5, q.dtype))
    own = jnp.arange(width) < jnp.tile(k_end, (1, groups))[..., None]      # [B, G W, W]
    start = _add((jnp.full((*queries.shape[:3], 1), _LOWEST, jnp.float32),
                  jnp.zeros((*queries.shape[:3], 1), jnp.float32),
                  jnp.zeros(queries.shape, jnp.float32)),
                 queries, k.swapaxes(1, 2), v.swapaxes(1, 2), own[:, None])

    def one_chunk(number, carry):
      at = number * CHUNK
      seen = at + jnp.arange(CHUNK) < known[:, None]
      return _add(carry, queries, _read(cache.k, layer, slots, at, rows),
                  _read(cache.v, layer, slots, at, rows), seen[:, None, None])

    _, total, out = lax.fori_loop(0, chunks, one_chunk, start)
    out = (out / jnp.maximum(total, 1e-30)).astype(q.dtype)
    return out.reshape(rows, -1, groups, width, dim).transpose(0, 3, 1, 2, 4).reshape(q.shape)
  return run


def _add(carry, queries, k, v, seen):
  """Add a set of keys to a running softmax (online softmax, arXiv 1805.02867).

  The carry is (max, sum, weighted values), float32. When the maximum rises, the old sums are
  rescaled by exp(old max - new max).
  """
  top, total, out = carry
  score = jnp.einsum('bkqd,bkcd->bkqc', queries, k, preferred_element_type=jnp.float32)
  score = jnp.where(seen, score, _LOWEST)
  new_top = jnp.maximum(top, score.max(-1, keepdims=True))
  weight = jnp.where(seen, jnp.exp(score - new_top), 0.0)
  old = jnp.exp(top - new_top)
  more = jnp.einsum('bkqc,bkcd->bkqd', weight.astype(v.dtype), v,
                    preferred_element_type=jnp.float32)
  return new_top, total * old + weight.sum(-1, keepdims=True), out * old + more


def _read(x: jax.Array, layer, slots, at, rows: int) -> jax.Array:
  """[B, K, CHUNK, D]: keys or values at .. at + CHUNK - 1 of each row's slot."""
  size = (1, x.shape[1] if slots is None else 1, x.shape[2], CHUNK, x.shape[4])
  if slots is None:
    return lax.dynamic_slice(x, (layer, 0, 0, at, 0), size)[0]
  # One slice per row: XLA's CPU backend executes a gather element by element.
  return jnp.concatenate([lax.dynamic_slice(x, (layer, slots[row], 0, at, 0), size)[0]
                          for row in range(rows)])


def write(cache: Cache, slots: Array | None, at: Array, count: Array,
          k: jax.Array, v: jax.Array) -> Cache:
  """Cache the first ``count`` tokens of every row's window.

  Args:
    cache: of all slots; donate it.
    slots: as in ``attend``; a slot beyond the last is ignored.
    at: int32 [B], where the window starts in its slot.
    count: int32 [B]; 0 leaves a slot as it is.
    k, v: [L, B, K, W, D], from Model.extend.
  """
  rows, width = k.shape[1], k.shape[3]
  layers, _, heads, _, dim = cache.k.shape
  chex.assert_shape([k, v], (layers, rows, heads, width, dim))
  chex.assert_shape([at, count], (rows,))
  slots = jnp.arange(rows) if slots is None else slots
  index = jnp.arange(width)
  place = jnp.where(index < count[:, None], at[:, None] + index, cache.k.shape[3])
  def put(x, new):
    new = new.transpose(1, 3, 0, 2, 4).astype(x.dtype)  # [B, W, L, K, D]
    return constrain(x.at[:, slots[:, None], :, place].set(new, mode='drop'))
  return Cache(put(cache.k, k), put(cache.v, v))
