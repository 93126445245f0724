"""What the slots' caches still hold, so that the next turn of a conversation is not read anew.

A cached key depends on the ids before it and on how far each of them could see. So a prompt
shares with a slot what both agree on in ids and ends; n = tokens.
"""

from typing import NamedTuple

import numpy as np

from ttt_jax.generate import compiled
from ttt_jax.model import staircase
from ttt_jax.tokens import batch as batches
from ttt_jax.tokens.vocab import Vocabulary


class Text(NamedTuple):
  """Arrays int32 [n].

  Attributes:
    ids: tokens.
    end: token i sees tokens 0 .. end[i]-1.
  """
  ids: np.ndarray
  end: np.ndarray


NOTHING = Text(np.zeros(0, np.int32), np.zeros(0, np.int32))


def prompt(vocab: Vocabulary, ids: np.ndarray, mode: str, prompt_audio: str) -> Text:
  """A prompt, seen as the model was trained to see one."""
  row = batches.make_row(vocab, [(1, ids, np.zeros(ids.size, np.int32))], ids.size)
  group = np.asarray(staircase.bidirectional_group(row, mode, prompt_audio))
  return Text(ids, compiled.ends_of(group))


def answered(vocab: Vocabulary, read: Text, ids: np.ndarray, known: int, mode: str) -> Text:
  """The first ``known`` tokens of a prompt that was ``read`` and its answer ``ids``."""
  if mode == 'ar':
    group = np.zeros(ids.size, np.int32)
  elif mode == 'nar':
    group = np.ones(ids.size, np.int32)
  else:
    group = np.asarray(vocab.is_audio(ids)).astype(np.int32)
  end = read.ids.size + compiled.ends_of(group)
  return Text(np.concatenate([read.ids, ids])[:known], np.concatenate([read.end, end])[:known])


def shared(held: Text, new: Text, most: int) -> int:
  """How many tokens of ``new`` a slot that holds ``held`` need not read, at most ``most``;
  never a part of tokens that see each other."""
  length = min(held.ids.size, new.ids.size, most)
  differs = (held.ids[:length] != new.ids[:length]) | (held.end[:length] != new.end[:length])
  at = int(np.argmax(differs)) if differs.any() else length
  while at and new.end[at - 1] > at:
    at -= 1
  return at
