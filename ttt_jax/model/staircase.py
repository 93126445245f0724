"""The staircase: which keys a query may read, as two integers per position.

Allowed(i, j) = same document AND (j <= i OR i and j lie in the same audio span). A span
is contiguous, so this is one range of keys per query (TTT.md section 3):

    k_start[i] <= j < k_end[i]

    k_start = start of i's document
    k_end   = i + 1 for text, end of i's span for audio

One document, text a b, a span o o o, text c (1 = may read):

          a b o o o c     k_start  k_end
      a   1 . . . . .     0        1
      b   1 1 . . . .     0        2
      o   1 1 1 1 1 .     0        5
      o   1 1 1 1 1 .     0        5
      o   1 1 1 1 1 .     0        5
      c   1 1 1 1 1 1     0        6

The ranges come from clean ids: masking an id never changes its class.
"""

import jax.numpy as jnp
from jax import lax

from ttt_jax.batch import Batch


def bidirectional_group(batch: Batch, mode: str, prompt_audio: str) -> jnp.ndarray:
  """int32 [B, T]: equal non-zero neighbours read each other; 0 = causal.

  'hybrid' groups by audio span, 'ar' groups nothing, 'nar' makes each run of supervised
  tokens one group. A user's audio stays one group unless ``prompt_audio`` is 'causal'.
  """
  supervised = batch.supervised > 0
  span = jnp.asarray(batch.span)
  if mode == 'ar':
    return jnp.zeros_like(span)
  if prompt_audio == 'causal':
    span = jnp.where(supervised, span, 0)
  return jnp.where(supervised, -1, span) if mode == 'nar' else span


def key_ranges(batch: Batch, mode: str = 'hybrid',
               prompt_audio: str = 'bidirectional') -> tuple[jnp.ndarray, jnp.ndarray]:
  """The staircase of rows.

  Args:
    batch: vectors [B, T]; only document, span and supervised are read.
    mode: 'hybrid', 'ar' or 'nar' (ObjectiveConfig.mode).
    prompt_audio: 'bidirectional' or 'causal' inside a user's audio.

  Returns:
    (k_start, k_end), int32 [B, T]. Padding reads nothing: its range is 0, 0.
  """
  document = jnp.asarray(batch.document)
  group = bidirectional_group(batch, mode, prompt_audio)
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
