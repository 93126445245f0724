"""Prefix caching: the next turn of a conversation reuses the keys and values of earlier turns.

A cached key depends on the ids up to it and on how far each of them sees. So a new prompt can
reuse a slot's cache as far as both agree in ids and in ends.

n = tokens.
"""

from typing import NamedTuple

import numpy as np

from ttt_jax.generate import compiled
from ttt_jax.model import staircase
from ttt_jax.tokens import batch as batches
from ttt_jax.tokens.vocab import Vocabulary


class Prefix(NamedTuple):
  """Arrays int32 [n].

  Attributes:
    ids: tokens.
    end: token i attends to tokens 0 .. end[i]-1.
  """
  ids: np.ndarray
  end: np.ndarray


EMPTY = Prefix(np.zeros(0, np.int32), np.zeros(0, np.int32))


def of_prompt(vocab: Vocabulary, ids: np.ndarray, mode: str, prompt_audio: str) -> Prefix:
  """A prompt under the mask that the model was trained with."""
  row = batches.make_row(vocab, [(1, ids, np.zeros(ids.size, np.int32))], ids.size)
  group = np.asarray(staircase.bidirectional_group(row, mode, prompt_audio))
  return Prefix(ids, compiled.ends_of(group))


def with_answer(vocab: Vocabulary, prompt: Prefix, ids: np.ndarray, known: int,
                mode: str, prompt_audio: str = 'bidirectional') -> Prefix:
  """The first ``known`` tokens of a prompt and its answer ``ids``: those that are cached."""
  if mode == 'ar':
    group = np.zeros(ids.size, np.int32)
  elif mode == 'nar':
    group = np.ones(ids.size, np.int32)
  else:
    group = np.asarray(vocab.is_audio(ids)).astype(np.int32)
  end = prompt.ids.size + compiled.ends_of(group)
  before = prompt.end
  if mode == 'hybrid' and prompt_audio == 'bidirectional' and ids.size and group[0] and (
      vocab.is_audio(prompt.ids[-1])):  # one run of audio across the border
    before = np.where(before == before.size, end[0], before)
  return Prefix(np.concatenate([prompt.ids, ids])[:known],
                np.concatenate([before, end])[:known])


def shared(cached: Prefix, new: Prefix, limit: int) -> int:
  """How many tokens of ``new`` a slot has cached already, at most ``limit``; a bidirectional
  group counts completely or not at all."""
  length = min(cached.ids.size, new.ids.size, limit)
  differs = (cached.ids[:length] != new.ids[:length]) | (cached.end[:length] != new.end[:length])
  at = int(np.argmax(differs)) if differs.any() else length
  while at and new.end[at - 1] > at:
    at -= 1
  return at
