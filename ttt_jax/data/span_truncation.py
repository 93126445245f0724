"""SST (stochastic span truncation): a document's last span is cut short with a probability.

Without it every training span has its end token, and the model never sees the unfinished span
that it has to continue in generation (arXiv 2509.20072). It works on clean packed rows, so it is
redrawn every epoch although rows are packed once.
"""

import numpy as np

from ttt_jax.tokens.batch import Batch
from ttt_jax.tokens.vocab import Vocabulary

_LONGER_THAN = 10  # tokens; shorter spans are never cut
_LEAST, _LOW, _HIGH = 5, 0.3, 0.9  # a cut span has max(5, 30 %) to 90 % of its tokens (paper)


def cut_last_spans(row: Batch, vocab: Vocabulary, probability: float,
                   rng: np.random.Generator) -> Batch:
  """A row in which each document's last quad span is cut with the given probability.

  Args:
    row: int32 [T] vectors, as batch.make_row builds them.
    vocab: the id space.
    probability: of a cut, per document.
    rng: draws two numbers per document, in the order of the row.

  Returns:
    A new row. A cut span has a uniformly random length between max(30 %, 5) and 90 % of its
    codes; its end token, im_end and newline are removed; later documents move left; the freed
    end of the row is padding. Only supervised quad spans of more than 10 codes that end their
    document (apart from im_end and newline) can be cut.
  """
  batch = Batch(*(vector[None] for vector in row))
  out = cut(batch, vocab, probability, rng.random((2, len(documents(batch)))))
  return Batch(*(vector[0] for vector in out))


def cut(batch: Batch, vocab: Vocabulary, probability: float, draws: np.ndarray) -> Batch:
  """As ``cut_last_spans`` for int32 [B, T] vectors and given uniform numbers.

  Args:
    draws: float [2, n] for the n documents of the batch, in the order of ``documents``.
  """
  flat = Batch(*(vector.reshape(-1) for vector in batch))
  starts, ends = _bounds(batch)
  code_end = _code_ends(flat.token, starts, ends, vocab)
  last = np.maximum(code_end - 1, 0)
  in_span = (code_end > starts) & (flat.span[last] > 0)
  previous = np.append(0, flat.span[:-1])
  span_starts = np.flatnonzero((flat.span > 0) & (flat.span != previous))
  if not in_span.any():
    return batch
  begin = span_starts[np.maximum(np.searchsorted(span_starts, last, 'right') - 1, 0)]
  size = code_end - begin
  fit = (in_span & (size > _LONGER_THAN) & (begin > starts) &
         (flat.token[begin - 1] == vocab.begin_of_quad) & (flat.supervised[last] > 0))
  chosen = fit & (draws[0] < probability)
  low = np.maximum(np.ceil(_LOW * size), _LEAST)
  high = np.floor(_HIGH * size)
  keep = (low + np.floor(draws[1] * (high - low + 1))).astype(np.int64)
  change = np.zeros(flat.token.size + 1, np.int32)
  np.add.at(change, (begin + keep)[chosen], 1)
  np.add.at(change, ends[chosen], -1)
  stays = ((np.cumsum(change[:-1]) == 0) & (flat.document > 0)).reshape(batch.token.shape)
  filled = np.arange(stays.shape[1]) < stays.sum(axis=1, keepdims=True)
  out = Batch(*(np.zeros_like(vector) for vector in batch))
  out.token[:] = vocab.pad
  for target, vector in zip(out, batch):
    target[filled] = vector[stays]  # both masks run row by row, with equal counts per row
  return out


def documents(batch: Batch) -> np.ndarray:
  """Document ids of a batch [B, T] in row order, one per document and row: int [n]."""
  return batch.document.reshape(-1)[_bounds(batch)[0]]


def rows_of_documents(batch: Batch) -> np.ndarray:
  """The row of each of ``documents(batch)``: int [n]."""
  return _bounds(batch)[0] // batch.document.shape[1]


def _bounds(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
  """(first position, position after the last) of every document, in the flattened batch."""
  edge = np.zeros((batch.document.shape[0], 1), batch.document.dtype)
  before = np.concatenate([edge, batch.document[:, :-1]], axis=1)
  after = np.concatenate([batch.document[:, 1:], edge], axis=1)
  inside = batch.document > 0
  return (np.flatnonzero(inside & (batch.document != before)),
          np.flatnonzero(inside & (batch.document != after)) + 1)


def _code_ends(token: np.ndarray, starts: np.ndarray, ends: np.ndarray,
               vocab: Vocabulary) -> np.ndarray:
  """Per document the position after the last code of the quad span that ends it, or 0.

  Such a document ends in [...codes, end_of_last] or [..., end_of_last, im_end, newline].
  """
  bare = token[ends - 1] == vocab.end_of_last
  chat = (ends - starts > 3) & (token[np.maximum(ends - 2, starts)] == vocab.im_end) & (
      token[np.maximum(ends - 3, starts)] == vocab.end_of_last)
  return np.where(bare, ends - 1, np.where(chat, ends - 3, 0))


def document_draws(seed: int | np.ndarray, epoch: int | np.ndarray,
                   document: np.ndarray) -> np.ndarray:
  """Uniform numbers in [0, 1) as a pure function of (seed, epoch, document).

  Args:
    seed: any integer, or int [n], one for each document.
    epoch: likewise.
    document: int [n] document ids.

  Returns:
    float64 [2, n]; a document's numbers do not depend on its row.
  """
  state = _mix(np.atleast_1d(np.asarray(seed, np.int64)).astype(np.uint64))
  for key in (epoch, document):
    state = _mix(state + np.asarray(key, np.int64).astype(np.uint64))
  streams = np.stack([_mix(state + np.uint64(1)), _mix(state + np.uint64(2))])
  return (streams >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
  """One step of SplitMix64 (Steele et al. 2014) on uint64 arrays."""
  x = x + np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))
