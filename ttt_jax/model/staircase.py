"""The staircase: the hybrid attention mask as one range of keys per query.

Text is causal, an audio span is bidirectional inside (Text-to-Talk, arXiv 2509.20072, section 3):

    allowed(i, j) = same document AND (j <= i OR i and j lie in the same audio span)

A span is contiguous, so the allowed keys of a query are one range:

    k_start[i] <= j < k_end[i]

    k_start = start of i's document
    k_end   = i + 1 for text, end of i's span for audio

Two packed documents: text a b, a span o o o, text c; then text d e (1 = query i, the row, attends
to key j, the column). The upper edge is a staircase with one step per span:

          a b o o o c d e     k_start  k_end
      a   1 . . . . . . .     0        1
      b   1 1 . . . . . .     0        2
      o   1 1 1 1 1 . . .     0        5
      o   1 1 1 1 1 . . .     0        5
      o   1 1 1 1 1 . . .     0        5
      c   1 1 1 1 1 1 . .     0        6
      d   . . . . . . 1 .     6        7
      e   . . . . . . 1 1     6        8

So O(T) integers describe the mask, no T x T array is needed, and kernels skip the blocks outside.
The ranges come from clean ids: masking an id never changes its class.
"""

import jax.numpy as jnp
from jax import lax
import numpy as np

from ttt_jax.model.types import Array
from ttt_jax.tokens.batch import Batch


def bidirectional_group(batch: Batch, mode: str, prompt_audio: str) -> Array:
  """int32 [B, T]: neighbours with equal non-zero numbers attend to each other; 0 = causal.

  Args:
    batch: vectors [B, T]; span and supervised are read.
    mode: 'hybrid' groups by audio span, 'ar' groups nothing, 'nar' makes each run of
      supervised tokens one group.
    prompt_audio: 'bidirectional': a user's audio spans are groups too, as in the published
      code; 'causal': they are not, as in the paper's text.
  """
  # On the host by NumPy: JAX would compile for every length of a prompt.
  xp = np if isinstance(batch.span, np.ndarray) else jnp
  supervised, span = batch.supervised > 0, xp.asarray(batch.span)
  if mode == 'ar':
    return xp.zeros_like(span)
  if prompt_audio == 'causal':
    span = xp.where(supervised, span, 0)
  return xp.where(supervised, -1, span) if mode == 'nar' else span


def key_ranges(batch: Batch, mode: str = 'hybrid',
               prompt_audio: str = 'bidirectional') -> tuple[jnp.ndarray, jnp.ndarray]:
  """The staircase of rows.

  Args:
    batch: vectors [B, T]; only document, span and supervised are read.
    mode: 'hybrid', 'ar' or 'nar' (ObjectiveConfig.mode).
    prompt_audio: 'bidirectional' or 'causal' inside a user's audio.

  Returns:
    (k_start, k_end), int32 [B, T]. Padding attends to nothing: its range is 0, 0.
  """
  document = jnp.asarray(batch.document)
  group = jnp.asarray(bidirectional_group(batch, mode, prompt_audio))
  index = jnp.broadcast_to(jnp.arange(document.shape[-1], dtype=jnp.int32), document.shape)
  first = jnp.ones_like(document[..., :1], dtype=bool)
  new_document = jnp.concatenate([first, document[..., 1:] != document[..., :-1]], axis=-1)
  new_group = new_document | jnp.concatenate(
      [first, group[..., 1:] != group[..., :-1]], axis=-1)
  k_start = lax.cummax(jnp.where(new_document, index, 0), axis=document.ndim - 1)
  is_last = jnp.concatenate([new_group[..., 1:], first], axis=-1)
  group_end = lax.cummin(jnp.where(is_last, index + 1, document.shape[-1]),
                         axis=document.ndim - 1, reverse=True)
  k_end = jnp.where(group == 0, index + 1, group_end)
  real = document > 0
  return jnp.where(real, k_start, 0), jnp.where(real, k_end, 0)


def block_reach(k_start: jnp.ndarray, k_end: jnp.ndarray,
                block: int) -> tuple[jnp.ndarray, jnp.ndarray]:
  """The keys that each block of queries attends to: the first, and one past the last.

  Args:
    k_start, k_end: int32 [..., T].
    block: queries per block; the last block may be shorter.

  Returns:
    (first, end), int32 [..., ceil(T / block)]; 0, 0 for a block of empty ranges. Every
    query of a block attends only to keys first <= j < end, and in a staircase each of these
    keys is attended to by one of them, so nothing more can be skipped.
  """
  padding = [(0, 0)] * (k_start.ndim - 1) + [(0, -k_start.shape[-1] % block)]
  blocks = lambda x: jnp.pad(x, padding).reshape(*x.shape[:-1], -1, block)
  start, end = blocks(k_start), blocks(k_end)
  empty = end <= start
  last = jnp.where(empty, 0, end).max(-1)
  first = jnp.where(empty, jnp.iinfo(jnp.int32).max, start).min(-1)
  return jnp.where(last > 0, first, 0), last


def blocks_skipped(k_start: jnp.ndarray, k_end: jnp.ndarray, block: int) -> jnp.ndarray:
  """The fraction of (query block, key block) pairs that the mask excludes completely.

  The blockwise and kernel forms of attention skip them; the dense form computes them all.

  Args:
    k_start, k_end: int32 [B, T], over the T keys of the same row.
    block: positions per block.

  Returns:
    A float32 scalar, 0..1.
  """
  first, end = block_reach(k_start, k_end, block)
  touched = -(-end // block) - first // block
  return 1.0 - touched.sum() / (first.size * first.shape[-1])
