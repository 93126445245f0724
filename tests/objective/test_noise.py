"""Marginals of the corruption process, of BANOM and of PPM, with binomial tolerances."""

import functools

import jax
import numpy as np
import pytest

from tests.reference import batches, quick
from ttt_jax.config import ObjectiveConfig
from ttt_jax.objective import diffusion, hybrid

V = batches.VOCAB
ROWS, LENGTH, KEYS = 64, 64, 24
SIGMAS = 4.5  # the keys are fixed, so a test that passes once passes always

# A prompt with audio, then three maskable spans of 3, 1 and 4 tokens between text.
c = V.code_start
ANSWER = [1, V.begin_of_audio, c, c, V.end_of_chunk, 2, V.begin_of_audio, V.end_of_chunk, 3,
          V.begin_of_quad, c, c, c, V.end_of_last, V.im_end]
PROMPT = [V.im_start, V.begin_of_audio, c, c, V.end_of_audio]
IDS = PROMPT + ANSWER
SUPERVISED = [0] * len(PROMPT) + [1] * len(ANSWER)
SPANS = [(7, 10), (12, 13), (15, 19)]
MASKABLE = np.array([any(a <= i < b for a, b in SPANS) for i in range(len(IDS))])
PER_ROW = LENGTH // len(IDS)


def batch():
  numbers = iter(range(1, 1 + ROWS * PER_ROW))
  return batches.layout([[(next(numbers), IDS, SUPERVISED) for _ in range(PER_ROW)]
                         for _ in range(ROWS)], LENGTH)


@functools.lru_cache
def draws(config):
  """Documents of many keys: dict of arrays [N, n] (masked, maskable) and rate [N]."""
  rows = batch()
  run = quick.jit(lambda key: hybrid.corrupt(rows, V, config, key))
  out = {'masked': [], 'maskable': [], 'rate': []}
  for step in range(KEYS):
    targets = run(jax.random.fold_in(jax.random.key(0), step))
    for name, parts in out.items():
      value = np.asarray(getattr(targets, name))[:, :PER_ROW * len(IDS)]
      parts.append(value.reshape(-1, len(IDS)))
  out = {name: np.concatenate(parts) for name, parts in out.items()}
  out['rate'] = out['rate'][:, 0]
  return out


def assert_frequency(hits, probability):
  """The share of True among independent ``hits`` is ``probability``, within sampling."""
  sigma = np.sqrt(probability * (1 - probability) / len(hits))
  assert abs(np.mean(hits) - probability) <= SIGMAS * sigma, (np.mean(hits), probability, sigma)


def kolmogorov(values):
  """Largest distance between the empirical distribution of values and U(0, 1)."""
  values, n = np.sort(values), len(values)
  return max(np.max(np.arange(1, n + 1) / n - values), np.max(values - np.arange(n) / n))


PLAIN = ObjectiveConfig(banom=0.0, ppm=0.0)


def test_t_is_uniform_once_per_document():
  for floor in (1e-3, 0.2):
    config = ObjectiveConfig(banom=0.0, ppm=0.0, mask_floor=floor)
    rate = draws(config)['rate'].astype(np.float64)
    assert rate.min() >= floor - 1e-6 and rate.max() <= 1
    assert kolmogorov((rate - floor) / (1 - floor)) < 1.95 / np.sqrt(len(rate))  # p < 0.001


def test_mask_rate_follows_p():
  """In every band of p, at every maskable position, the share of masks is p."""
  got = draws(PLAIN)
  assert (got['maskable'] == MASKABLE).all()
  assert not got['masked'][:, ~MASKABLE].any()
  for low in np.arange(0, 1, 0.1):
    band = (got['rate'] >= low) & (got['rate'] < low + 0.1)
    p = got['rate'][band]
    for i in np.flatnonzero(MASKABLE):
      sigma = np.sqrt(np.sum(p * (1 - p)))
      assert abs(got['masked'][band, i].sum() - p.sum()) <= SIGMAS * max(sigma, 1)


def test_masks_are_independent_given_p():
  """Residuals masked - p of two positions are uncorrelated, and so are two documents'."""
  got = draws(PLAIN)
  residual = (got['masked'] - got['rate'][:, None])[:, MASKABLE]
  n = len(residual)
  correlation = np.corrcoef(residual.T) - np.eye(residual.shape[1])
  assert np.abs(correlation).max() < SIGMAS / np.sqrt(n)
  neighbours = np.corrcoef(got['rate'][:-1], got['rate'][1:])[0, 1]
  assert abs(neighbours) < SIGMAS / np.sqrt(n)


def test_the_weights_make_the_bound_unbiased():
  """E[masked / p] = 1: the 1/p-weighted sum counts every maskable token once."""
  got = draws(ObjectiveConfig(banom=0.0, ppm=0.0, mask_floor=0.2))
  weight = got['masked'][:, MASKABLE] / got['rate'][:, None]
  sigma = weight.std() / np.sqrt(weight.shape[0])  # positions share p, so count documents
  assert abs(weight.mean() - 1) < SIGMAS * sigma


@pytest.mark.parametrize('probability', [0.3, 0.8])
def test_banom_frequency(probability):
  got = draws(ObjectiveConfig(banom=probability, ppm=0.0))
  clean = ~got['maskable'].any(1)
  assert_frequency(clean, probability)
  assert not got['masked'][clean].any()
  assert (got['maskable'][~clean] == MASKABLE).all()
  assert kolmogorov((got['rate'][~clean] - 1e-3) / (1 - 1e-3)) < 1.95 / np.sqrt((~clean).sum())


def test_banom_of_a_whole_batch():
  """banom_unit='batch': all documents of a draw agree, and the draws are 30/70."""
  config = ObjectiveConfig(banom=0.3, ppm=0.0, banom_unit='batch')
  rows = batches.layout([[(1, IDS, SUPERVISED), (2, IDS, SUPERVISED)]], LENGTH)
  run = quick.jit(jax.vmap(lambda key: hybrid.corrupt(rows, V, config, key).maskable))
  maskable = np.asarray(run(jax.random.split(jax.random.key(1), 2000)))[:, 0, :2 * len(IDS)]
  clean = ~maskable.reshape(-1, 2, len(IDS)).any(-1)
  assert (clean[:, 0] == clean[:, 1]).all()
  assert_frequency(clean[:, 0], 0.3)


@pytest.mark.parametrize('probability', [0.3, 1.0])
def test_ppm_draws_a_span_uniformly(probability):
  """Audio before the drawn span is clean and leaves the count; the rest stays maskable."""
  got = draws(ObjectiveConfig(banom=0.0, ppm=probability))
  first = got['maskable'].argmax(1)
  for start, _ in SPANS:
    chosen = first == start
    kept = MASKABLE & (np.arange(len(IDS)) >= start)
    assert (got['maskable'][chosen] == kept).all()
    assert not got['masked'][chosen][:, ~kept].any()
    share = probability / len(SPANS) + (1 - probability) * (start == SPANS[0][0])
    assert_frequency(chosen, share)


def test_ppm_leaves_the_denominator():
  """The weight of a masked token is 1 / (p * what is still maskable)."""
  rows = batch()
  config = ObjectiveConfig(banom=0.0, ppm=1.0)
  targets = quick.jit(lambda key: hybrid.corrupt(rows, V, config, key))(jax.random.key(4))
  for at in range(PER_ROW):
    here = np.s_[:, at * len(IDS):(at + 1) * len(IDS)]
    maskable = np.asarray(targets.maskable)[here].sum(1, keepdims=True)
    want = np.asarray(targets.masked)[here] / (np.asarray(targets.rate)[here] * maskable)
    np.testing.assert_allclose(np.asarray(targets.self_weight)[here], want, rtol=1e-6)


def test_banom_and_ppm_are_independent_of_each_other_and_of_p():
  config = ObjectiveConfig(banom=0.5, ppm=0.5)
  got = draws(config)
  noisy = got['maskable'].any(1)
  later = got['maskable'].argmax(1)[noisy] > SPANS[0][0]
  assert_frequency(later, 0.5 * 2 / 3)  # whatever BANOM did
  rate = got['rate'][noisy]
  assert abs(np.corrcoef(rate, later)[0, 1]) < SIGMAS / np.sqrt(len(rate))
  assert abs(np.corrcoef(got['rate'], noisy)[0, 1]) < SIGMAS / np.sqrt(len(noisy))


def test_nar_masks_every_supervised_token_alike():
  got = draws(ObjectiveConfig(mode='nar'))
  supervised = np.array(SUPERVISED) > 0
  assert (got['maskable'] == supervised).all()
  p, n = got['rate'], len(got['rate'])
  sigma = np.sqrt(np.sum(p * (1 - p)))
  assert (np.abs(got['masked'][:, supervised].sum(0) - p.sum()) <= SIGMAS * sigma).all(), n


def test_no_two_tokens_share_a_draw():
  """Neither documents with adjacent numbers nor a document and its own tokens."""
  document, position = (x.astype(np.int32) for x in np.mgrid[1:65, 0:64])
  key = jax.random.key(0)
  tokens = np.asarray(diffusion.token_uniforms(key, document, position))
  documents = np.asarray(diffusion.document_uniforms(key, document[:, 0], 4))
  distinct = len(np.unique(np.concatenate([tokens.ravel(), documents.ravel()])))
  assert distinct > tokens.size + documents.size - 10  # some float32 numbers collide


def test_schedule():
  assert float(diffusion.mask_probability(0.0, 1e-3)) == pytest.approx(1e-3)
  assert float(diffusion.mask_probability(1.0, 1e-3)) == pytest.approx(1.0)
