"""SST by its marginals and bounds, and by a slow one-document version."""

import numpy as np
import pytest

from tests.data.rows import NEWLINE, VOCAB, spoken
from ttt_jax.data import interleave, span_truncation
from ttt_jax.tokens.batch import make_row, split_documents


def row_of(*documents, seq_len=200):
  return make_row(VOCAB, [(i + 1, *d) for i, d in enumerate(documents)], seq_len)


def cut_sizes(size, times=2000, probability=1.0):
  """Codes left in the last span of each of many copies of a document; None = untouched."""
  rng, per_row, document = np.random.default_rng(0), 50, spoken(size)
  row = row_of(*[document] * per_row, seq_len=per_row * len(document[0]))
  quad = document[0].tolist().index(VOCAB.begin_of_quad)
  sizes = []
  for _ in range(times // per_row):
    out = span_truncation.cut_last_spans(row, VOCAB, probability, rng)
    sizes += [None if token[-1] == NEWLINE else len(token) - quad - 1
              for _, token, _ in split_documents(out)]
  return sizes


@pytest.mark.parametrize('size, low, high', [(11, 5, 9), (40, 12, 36), (100, 30, 90)])
def test_the_cut_is_uniform_between_its_bounds(size, low, high):
  sizes = np.array(cut_sizes(size, 4000))
  assert sizes.min() == low and sizes.max() == high
  counts = np.bincount(sizes - low)
  expected = 4000 / (high - low + 1)
  chi2 = ((counts - expected) ** 2 / expected).sum()
  df = high - low
  assert chi2 < df + 5 * (2 * df) ** 0.5


def test_spans_of_ten_or_fewer_are_left_alone():
  assert cut_sizes(10, 50) == [None] * 50
  assert None not in cut_sizes(11, 50)


@pytest.mark.parametrize('probability', [0.0, 0.25, 0.5, 1.0])
def test_documents_are_cut_with_the_given_probability(probability):
  cut = sum(size is not None for size in cut_sizes(30, 4000, probability))
  sigma = (4000 * probability * (1 - probability)) ** 0.5
  assert abs(cut - 4000 * probability) <= 4 * sigma


def test_a_cut_row_is_the_row_of_the_cut_documents():
  documents = [spoken(30, 1), spoken(10, 2), spoken(25, 3, chat=False), spoken(40, 4)]
  row = row_of(*documents)
  out = span_truncation.cut_last_spans(row, VOCAB, 1.0, np.random.default_rng(1))
  found = list(split_documents(out))
  assert [number for number, _, _ in found] == [1, 2, 3, 4]
  for (_, token, supervised), (full, target) in zip(found, documents):
    np.testing.assert_array_equal(token, full[:len(token)])
    np.testing.assert_array_equal(supervised, target[:len(token)])
  assert [len(token) < len(full) for (_, token, _), (full, _) in zip(found, documents)] == [
      True, False, True, True]
  for name, one, other in zip(out._fields, out, make_row(VOCAB, found, len(row.token))):
    np.testing.assert_array_equal(one, other, name)


def test_only_supervised_quad_spans_that_end_a_document_are_cut():
  token, supervised = spoken(30)
  prompt_only = (token, np.zeros_like(supervised))
  continued = (np.append(token, [65, 66]).astype(np.int32), np.append(supervised, [1, 1]))
  not_quad = token.copy()
  not_quad[token == VOCAB.begin_of_quad] = VOCAB.begin_of_audio
  not_quad[token == VOCAB.end_of_last] = VOCAB.end_of_chunk
  text = (np.arange(60, 80, dtype=np.int32), np.ones(20, np.int8))
  row = row_of(prompt_only, continued, (not_quad, supervised), text)
  out = span_truncation.cut_last_spans(row, VOCAB, 1.0, np.random.default_rng(0))
  for one, other in zip(row, out):
    np.testing.assert_array_equal(one, other)
  empty = row_of()
  assert (span_truncation.cut_last_spans(empty, VOCAB, 1.0,
                                         np.random.default_rng(0)).document == 0).all()


def test_documents_that_were_cut_to_fit_a_row_are_cut_only_where_a_span_ended():
  whole = interleave.Example(*spoken(30, first=12))
  quad = whole.token.tolist().index(VOCAB.begin_of_quad)
  inside = interleave.truncate(whole, quad + 20, 'anywhere', VOCAB)     # codes to its last token
  behind = interleave.truncate(whole, quad + 20, 'span', VOCAB)         # ends in an earlier span
  ended = interleave.truncate(interleave.Example(*(np.concatenate([v, v]) for v in whole)),
                              len(whole.token) + 9, 'turn', VOCAB)      # ends in a whole turn
  row = row_of(inside, behind, ended)
  out = span_truncation.cut_last_spans(row, VOCAB, 1.0, np.random.default_rng(1))
  found = [token for _, token, _ in split_documents(out)]
  np.testing.assert_array_equal(found[0], inside.token)
  np.testing.assert_array_equal(found[1], behind.token)
  assert behind.token[-1] == VOCAB.end_of_chunk and len(found[2]) < len(ended.token)


def test_draws_depend_on_seed_epoch_and_document_alone():
  draws = span_truncation.document_draws(7, 3, np.arange(1, 20_001))
  assert draws.shape == (2, 20_000) and (0 <= draws).all() and (draws < 1).all()
  np.testing.assert_array_equal(span_truncation.document_draws(7, 3, np.array([40, 9])),
                                draws[:, [39, 8]])
  np.testing.assert_array_equal(
      span_truncation.document_draws(7, np.array([3, 3]), np.array([40, 9])), draws[:, [39, 8]])
  others = [span_truncation.document_draws(8, 3, np.arange(1, 20_001)),
            span_truncation.document_draws(7, 4, np.arange(1, 20_001)), draws[::-1]]
  for other in others:
    assert abs(np.corrcoef(draws[0], other[0])[0, 1]) < 0.03
  assert abs(np.corrcoef(draws[0, 1:], draws[0, :-1])[0, 1]) < 0.03
  for stream in draws:
    counts = np.histogram(stream, 20, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 19 + 5 * 38 ** 0.5


def test_rows_of_a_batch_are_cut_apart():
  rows = [row_of(spoken(30, 1), spoken(20, 2)), row_of(spoken(40, 3)), row_of()]
  # The first row is full to its end, so that its last document touches the next row's first.
  full = len(spoken(30)[0]) + len(spoken(20)[0])
  rows = [make_row(VOCAB, list(split_documents(row)), full) for row in rows]
  rows[1] = make_row(VOCAB, [(2, *spoken(20, 2))], full)  # the same document as just before
  batch = type(rows[0])(*(np.stack(v) for v in zip(*rows)))
  draws = np.array([[0, 0, 0], [0.1, 0.5, 0.9]], float)
  out = span_truncation.cut(batch, VOCAB, 1.0, draws)
  np.testing.assert_array_equal(span_truncation.documents(batch), [1, 2, 2])
  np.testing.assert_array_equal(span_truncation.rows_of_documents(batch), [0, 0, 1])
  at = 0
  for i, n in enumerate([2, 1, 0]):
    alone = span_truncation.cut(type(batch)(*(v[i:i + 1] for v in batch)), VOCAB, 1.0,
                        draws[:, at:at + n])
    at += n
    for one, other in zip(out, alone):
      np.testing.assert_array_equal(one[i], other[0])
