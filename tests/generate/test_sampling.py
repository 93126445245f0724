"""What sampling draws, against the probabilities it should have."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.reference import batches, quick
from ttt_jax.config import GenerateConfig
from ttt_jax.generate import sampling_params
from ttt_jax.generate.sampling import Place, Rules, choose, make_head

V = batches.VOCAB
DRAWS = 4000
TEXT, AUDIO = False, True


@quick.jit_with(static_argnums=0)
def _run(rules, scores, params, place):
  head = make_head(rules, jnp.eye(V.size, dtype=jnp.float32))
  return choose(rules, head, params, scores, None, jnp.ones(len(scores), bool), place)


def run(rules, scores, config, in_span, names):
  """Choices [N] where the logits [N, V] come out of the head as they are: hidden = logits."""
  n = len(scores)
  flags = lambda value: jnp.full(n, value)
  number, span, block, step, position = jnp.asarray(names, jnp.int32).T
  params = sampling_params.make([config] * n, [0] * n)._replace(number=number)
  place = Place(flags(in_span), flags(True), flags(True), span, block, step, position)
  return _run(rules, jnp.asarray(scores, jnp.float32), params, place)


def sample(logits, config, mode, in_span):
  """DRAWS independent choices [DRAWS] from the same logits [V]."""
  names = np.stack([np.arange(DRAWS), *np.zeros((4, DRAWS))], 1)
  rules = Rules(V, mode, sizes=(DRAWS // 4,), dense=DRAWS, tile=None)
  choice = run(rules, np.tile(logits, (DRAWS, 1)), config, in_span, names)
  return np.asarray(choice.token), np.asarray(choice.confidence)


def expected(logits, can, temperature, top_k=0, top_p=1.0):
  """Probabilities [V]: of the allowed ids, the top_k best, then the fewest that reach top_p."""
  order = sorted(can, key=lambda i: -logits[i])
  if top_k:
    order = order[:top_k]
  weight = np.array([np.exp(logits[i] / temperature) for i in order])
  weight /= weight.sum()
  kept, total = [], 0.0
  for i, w in zip(order, weight):
    if total >= top_p:
      break
    kept.append((i, w))
    total += w
  out = np.zeros(V.size)
  for i, w in kept:
    out[i] = w / total
  return out


TEXT_IDS = list(range(V.audio_threshold))
SPAN_IDS = [*range(V.code_start, V.mask), V.end_of_chunk, V.end_of_last]


@pytest.mark.parametrize('settings, mode, in_span, can, cut', [
    (dict(temperature=1.0), 'hybrid', TEXT, TEXT_IDS, {}),
    (dict(temperature=0.7, top_k=5), 'hybrid', TEXT, TEXT_IDS, dict(top_k=5)),
    (dict(temperature=1.3, top_p=0.6), 'hybrid', TEXT, TEXT_IDS, dict(top_p=0.6)),
    (dict(temperature=1.0, top_k=6, top_p=0.7), 'hybrid', TEXT, TEXT_IDS,
     dict(top_k=6, top_p=0.7)),
    (dict(audio_temperature=0.8, top_k=2, top_p=0.1), 'hybrid', AUDIO, SPAN_IDS, {}),
    (dict(temperature=1.0), 'ar', TEXT, TEXT_IDS + SPAN_IDS, {}),
    (dict(audio_temperature=1.0), 'nar', AUDIO, TEXT_IDS + SPAN_IDS, {}),
])
def test_frequencies(settings, mode, in_span, can, cut):
  logits = np.random.default_rng(0).normal(size=V.size) * 1.5
  logits[V.mask] = 9  # the most likely id, and never allowed
  temperature = settings.get('audio_temperature' if in_span else 'temperature')
  want = expected(logits, can, temperature, **cut)
  token, confidence = sample(logits, GenerateConfig(seed=3, **settings), mode, in_span)
  got = np.bincount(token, minlength=V.size) / DRAWS
  assert not got[want == 0].any()
  sigma = np.sqrt(want * (1 - want) / DRAWS)
  assert (np.abs(got - want) <= 4.5 * np.maximum(sigma, 1 / DRAWS)).all()
  full = np.exp(logits) / np.exp(logits).sum()  # confidence: no temperature, no cut
  np.testing.assert_allclose(confidence, full[token], rtol=1e-4)


@pytest.mark.parametrize('in_span', [TEXT, AUDIO])
def test_each_side_has_its_own_temperature(in_span):
  """Text is greedy while audio is sampled, and the other way round."""
  logits = np.random.default_rng(1).normal(size=V.size)
  for settings, sampled in ((dict(temperature=1.0), TEXT), (dict(audio_temperature=1.0), AUDIO)):
    token, _ = sample(logits, GenerateConfig(**settings), 'hybrid', in_span)
    assert (len(set(token.tolist())) > 1) == (in_span == sampled)


def test_equal_scores_go_to_the_lowest_id():
  token, _ = sample(np.zeros(V.size), GenerateConfig(), 'hybrid', AUDIO)
  assert (token == V.code_start).all()


def test_seed_and_every_name_of_a_draw_matter():
  logits = np.zeros((8, V.size), np.float32)
  config = GenerateConfig(audio_temperature=1.0)
  base = np.array([[1, 2, 3, 4, i] for i in range(8)])  # eight positions of a block
  draw = lambda names, c=config: tuple(np.asarray(run(Rules(V), logits, c, AUDIO, names).token))
  seen = {draw(base)}
  assert len(set(*seen)) > 1, 'positions of a block draw apart'
  for name in range(4):
    seen.add(draw(base + np.eye(5, dtype=int)[name]))
  seen.add(draw(base, GenerateConfig(audio_temperature=1.0, seed=1)))
  assert len(seen) == 6
