"""Text nats against the slow reference; the audio bound against every mask there is."""

import itertools

import numpy as np
import pytest

from tests.reference import batches, decoder, staircase, weights
from ttt_jax.config import ModelConfig
from ttt_jax.errors import UserError
from ttt_jax.generate import likelihood
from ttt_jax.model.transformer import Model

V = batches.VOCAB
CONFIG = ModelConfig(num_layers=2,
                     hidden_size=16,
                     num_attention_heads=2,
                     num_key_value_heads=1,
                     head_dim=8,
                     intermediate_size=24,
                     tie_word_embeddings=False,
                     vocab_multiple=32)
MODEL = Model(CONFIG, V.size)


def document(rng, spans):
  """(ids, supervised): a written turn, then text and spans of the given lengths."""
  ids = batches.text(rng, 5) + [V.im_start, 1]
  head = len(ids)
  for length in spans:
    ids += batches.text(rng, 3) + [V.begin_of_audio]
    ids += rng.integers(V.code_start, V.mask, length - 1).tolist() + [V.end_of_chunk]
  ids += batches.text(rng, 2) + [V.im_end]
  return np.array(ids, np.int32), np.arange(len(ids)) >= head


def log_p(plain, ids, supervised):
  """log p of every id at every position, [n, V], for ids with masks."""
  allowed = staircase.document_matrix(V, ids.tolist(), supervised.astype(int).tolist(), 'hybrid',
                                      'bidirectional')
  return decoder.log_softmax(decoder.logits(plain, ids.tolist(), allowed, V.size))


def exact_bound(plain, ids, supervised, start, stop):
  """Sum over k of the mean over all k-subsets of the mean nats, and those means by k."""
  by_count = []
  for k in range(1, stop - start + 1):
    found = []
    for subset in itertools.combinations(range(start, stop), k):
      noisy = ids[:stop].copy()
      noisy[list(subset)] = V.mask
      scores = log_p(plain, noisy, supervised[:stop])
      found.append(-np.mean([scores[i, ids[i]] for i in subset]))
    by_count.append(np.mean(found))
  return sum(by_count), by_count


@pytest.fixture(scope='module')
def case():
  rng = np.random.default_rng(3)
  params = weights.random(MODEL, rng, scale=0.8)
  return params, weights.convert(params, CONFIG), *document(rng, (4, 1, 5))


def test_text_is_exact(case):
  params, plain, ids, supervised = case
  score = likelihood.Scorer(MODEL, params, V, longest=64, repeats=1).score(ids, supervised)
  table = log_p(plain, ids, supervised)
  text = [i for i in range(len(ids)) if supervised[i] and not V.is_audio(ids[i])]
  want = -sum(table[i - 1, ids[i]] for i in text)
  np.testing.assert_allclose(score.text_nll, want, rtol=1e-5)
  assert score.text_tokens == len(text) and score.audio_tokens == 4 + 1 + 5
  assert np.isnan(score.audio_error)


def test_the_bound_is_unbiased(case):
  """All masks of spans of 4, 1 and 5 tokens, against 200 sweeps; with all levels and with 2."""
  params, plain, ids, supervised = case
  starts = [i + 1 for i in range(len(ids)) if ids[i] == V.begin_of_audio]
  want = sum(exact_bound(plain, ids, supervised, at, at + size)[0]
             for at, size in zip(starts, (4, 1, 5)))
  for levels in (64, 2):
    score = likelihood.Scorer(MODEL, params, V, longest=64, repeats=200,
                              levels=levels).score(ids, supervised)
    assert score.audio_error < 0.05 * want
    assert abs(score.audio_bound - want) < 4 * score.audio_error + 1e-4 * want


def test_the_profile_is_the_loss_by_mask_rate(case):
  params, plain, ids, supervised = case
  start = int(np.flatnonzero(ids == V.begin_of_audio)[2]) + 1
  _, by_count = exact_bound(plain, ids, supervised, start, start + 5)
  supervised = supervised & (np.arange(len(ids)) >= start)
  score = likelihood.Scorer(MODEL, params, V, longest=64, repeats=300).score(ids, supervised)
  nats, count = score.profile
  assert np.flatnonzero(count).tolist() == [1, 3, 5, 7, 9]  # 1 of 5 is in (0.1, 0.2]
  np.testing.assert_allclose(nats[1::2] / count[1::2], by_count, rtol=0.1)


def test_a_baselines_answer_is_all_text_or_one_span(case):
  params, plain, ids, supervised = case
  ar = likelihood.Scorer(MODEL, params, V, mode='ar', longest=64).score(ids, supervised)
  assert (ar.text_tokens, ar.audio_tokens, ar.audio_bound) == (supervised.sum(), 0, 0)
  nar = likelihood.Scorer(MODEL, params, V, mode='nar', longest=64).score(ids, supervised)
  assert (nar.text_tokens, nar.audio_tokens) == (0, supervised.sum())
  assert nar.audio_bound > 0


def test_strata_hold_every_number_of_masks_once():
  rng = np.random.default_rng(0)
  every = likelihood.sweep(np.arange(7), 99, 64, rng)
  assert every.masked.sum(1).tolist() == [1, 2, 3, 4, 5, 6, 7]
  assert (every.token == 99).sum(1).tolist() == [1, 2, 3, 4, 5, 6, 7]
  few = likelihood.sweep(np.arange(100), 999, 8, rng)
  assert few.share.tolist() == [12.5] * 8
  assert (np.abs(few.masked.sum(1) - (np.arange(8) + 0.5) * 12.5) <= 7.25).all()


def test_too_long_a_document():
  scorer = likelihood.Scorer(MODEL, weights.random(MODEL, np.random.default_rng(0)), V, longest=10)
  with pytest.raises(UserError, match='257 tokens'):
    scorer.score(np.zeros(257, np.int32), np.ones(257, bool))
