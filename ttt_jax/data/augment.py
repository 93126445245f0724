"""SST: now and then a document's last span is cut short, on clean rows.

Without it every training span reaches its end token, and the model never learns what a
span that is still open looks like (TTT.md section 4). It works on packed rows, so it is
redrawn every epoch though rows are packed once.
"""

import numpy as np

from ttt_jax.batch import Batch
from ttt_jax.vocab import Vocabulary

_LONGER_THAN = 10            # shorter spans are left alone
_LEAST, _LOW, _HIGH = 5, 0.3, 0.9


def cut_last_spans(row: Batch, vocab: Vocabulary, probability: float,
                   rng: np.random.Generator) -> Batch:
  """A row in which each document's last quad span is cut with the given probability.

  Args:
    row: int32 [T] vectors, as batch.make_row lays them.
    vocab: the id space.
    probability: of a cut, per document.
    rng: draws two numbers per document, in the order of the row.

  Returns:
    A new row. A cut span keeps between max(30 %, 5) and 90 % of its codes, uniformly; its
    end token, im_end and newline are gone; later documents have moved left; the freed end
    of the row is padding. Only supervised quad spans of more than 10 codes that end their
    document (but for im_end and newline) are ever cut.
  """
  draws = rng.random((2, len(_starts(row.document))))
  return cut(row, vocab, probability, draws)


def cut(row: Batch, vocab: Vocabulary, probability: float, draws: np.ndarray) -> Batch:
  """As ``cut_last_spans`` with the uniform numbers given: float [2, documents in the row]."""
  starts = _starts(row.document)
  if not probability or not len(starts):
    return row
  used = int(np.count_nonzero(row.document))
  ends = np.append(starts[1:], used)
  code_end = _code_ends(row.token, starts, ends, vocab)
  last = np.maximum(code_end - 1, 0)
  span_starts = np.flatnonzero((row.span > 0) & (row.span != np.append(0, row.span[:-1])))
  # Spans are counted from 1 along the row, so a number is also an index of its start.
  in_span = row.span[last] > 0
  begin = span_starts[np.maximum(row.span[last], 1) - 1] if len(span_starts) else last
  size = code_end - begin
  fit = ((code_end > 0) & in_span & (size > _LONGER_THAN) & (begin > starts) &
         (row.token[begin - 1] == vocab.begin_of_quad) & (row.supervised[last] > 0))
  chosen = fit & (draws[0] < probability)
  if not chosen.any():
    return row
  low = np.maximum(np.ceil(_LOW * size), _LEAST)
  high = np.floor(_HIGH * size)
  keep = (low + np.floor(draws[1] * (high - low + 1))).astype(np.int64)
  change = np.zeros(len(row.token) + 1, np.int32)
  np.add.at(change, (begin + keep)[chosen], 1)
  np.add.at(change, ends[chosen], -1)
  stays = (np.cumsum(change[:-1]) == 0) & (row.document > 0)
  n = int(np.count_nonzero(stays))
  out = Batch(*(np.zeros_like(vector) for vector in row))
  out.token[n:] = vocab.pad
  for target, vector in zip(out, row):
    target[:n] = vector[stays]
  return out


def _starts(document: np.ndarray) -> np.ndarray:
  """First position of every document of a row."""
  return np.flatnonzero((document > 0) & (document != np.append(0, document[:-1])))


def _code_ends(token, starts, ends, vocab) -> np.ndarray:
  """Per document the position just after the last span's last code, 0 where a document
  does not end in a quad span: [...codes, end_of_last] or [..., end_of_last, im_end, newline]."""
  bare = token[ends - 1] == vocab.end_of_last
  back = np.maximum(ends - 3, starts)
  chat = (ends - starts > 3) & (token[np.maximum(ends - 2, starts)] == vocab.im_end) & (
      token[back] == vocab.end_of_last)
  return np.where(bare, ends - 1, np.where(chat, ends - 3, 0))


def document_draws(seed: int, epoch: int, document: np.ndarray) -> np.ndarray:
  """Uniform numbers in [0, 1) as a pure function of (seed, epoch, document).

  Args:
    seed, epoch: any integers.
    document: int [n] document ids.

  Returns:
    float64 [2, n]; a document's numbers do not depend on the row it lies in.
  """
  key = np.array([seed, epoch], np.int64).astype(np.uint64)
  state = _mix(_mix(key[:1]) + key[1:])
  state = _mix(state + np.asarray(document, np.int64).astype(np.uint64))
  streams = np.stack([_mix(state + np.uint64(1)), _mix(state + np.uint64(2))])
  return (streams >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
  """SplitMix64's step: adds the golden-ratio constant and scrambles, on uint64 arrays."""
  x = x + np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def documents(row: Batch) -> np.ndarray:
  """Document ids of a row, in order: int [n]."""
  return row.document[_starts(row.document)]
