"""The Batch: five integer vectors per row, from which masks, losses and noise are derived.

B = rows, T = tokens per row. The data side builds rows in numpy; the device side reads the same
five vectors.

  token       a  b  c  B  o  o  E  d | e  f  o  E | .     B = begin, o = code, E = end
  document    1  1  1  1  1  1  1  1 | 2  2  2  2 | 0     unique in the data set, 0 = padding
  span        0  0  0  0  1  1  1  0 | 0  0  2  2 | 0     audio spans counted in the row, 0 = text
  supervised  0  0  1  1  1  1  1  1 | 1  1  1  1 | 0     1 = a loss may fall on this token
  position    0  1  2  3  4  5  6  7 | 0  1  2  3 | 0     0.. inside each document (RoPE)
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from ttt_jax.tokens.vocab import Vocabulary


Document = tuple[int, np.ndarray, np.ndarray]  # (document id, token [n], supervised [n])


class Batch(NamedTuple):
  """Five int32 arrays [B, T] (or [T] for one row), numpy or JAX."""
  token: np.ndarray
  document: np.ndarray
  span: np.ndarray
  supervised: np.ndarray
  position: np.ndarray


def run_ids(member: np.ndarray, document: np.ndarray) -> np.ndarray:
  """Numbers the maximal runs of ``member`` inside documents from 1; 0 elsewhere.

  Args:
    member: bool [T].
    document: int [T]; a run never crosses a change of document.
  """
  previous = np.concatenate([[False], member[:-1]])
  same = np.concatenate([[False], document[1:] == document[:-1]])
  starts = member & ~(previous & same)
  return np.where(member, np.cumsum(starts), 0).astype(np.int32)


def make_row(vocab: Vocabulary, documents: Iterable[Document], seq_len: int) -> Batch:
  """Concatenates documents in one row and derives the five vectors.

  Args:
    vocab: tells which ids are audio.
    documents: (document id >= 1, token [n], supervised [n]) triples whose lengths sum
      to at most ``seq_len``.
    seq_len: T.

  Returns:
    A Batch of int32 [T] vectors.
  """
  token = np.full(seq_len, vocab.pad, np.int32)
  document, supervised, position = (np.zeros(seq_len, np.int32) for _ in range(3))
  at = 0
  for number, ids, targets in documents:
    n = len(ids)
    assert number >= 1 and at + n <= seq_len, (number, at, n, seq_len)
    token[at:at + n] = ids
    document[at:at + n] = number
    supervised[at:at + n] = targets
    position[at:at + n] = np.arange(n)
    at += n
  span = run_ids(vocab.is_audio(token) & (document > 0), document)
  return Batch(token, document, span, supervised, position)


def stack(rows: Iterable[Batch]) -> Batch:
  """Rows [T] -> a Batch [B, T]."""
  return Batch(*(np.stack(column) for column in zip(*rows)))


def split_documents(row: Batch) -> Iterator[Document]:
  """The inverse of make_row: (document id, token [n], supervised [n]) triples in order."""
  for number in dict.fromkeys(row.document[row.document > 0].tolist()):
    here = row.document == number
    yield number, row.token[here], row.supervised[here]
