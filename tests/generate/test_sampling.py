"""What sampling draws, against the probabilities it should have."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.reference import batches, quick
from ttt_jax.config import GenerateConfig
from ttt_jax.generate.sampling import choose

V = batches.VOCAB
DRAWS = 4000
TEXT, AUDIO = False, True


def sample(logits, config, mode, in_span):
  """DRAWS independent choices [DRAWS] from the same logits [V]."""
  draw = np.stack([np.arange(DRAWS), *np.zeros((3, DRAWS))], 1).astype(np.int32)
  wide = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (DRAWS, 1, V.size))
  run = quick.jit(lambda x, d: choose(x, V, config, mode, jnp.full(DRAWS, in_span), d))
  choice = run(wide, draw)
  return np.asarray(choice.token)[:, 0], np.asarray(choice.confidence)[:, 0]


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
  logits[V.mask] = 9  # the likeliest of all, and never to be said
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
  logits = np.zeros((1, 3, V.size), np.float32)
  config = GenerateConfig(audio_temperature=1.0)
  base = jnp.array([[1, 2, 3, 4]], jnp.int32)
  run = quick.jit(lambda d, c: choose(logits, V, c, 'hybrid', jnp.array([True]), d).token,
                  static_argnums=1)
  seen = {tuple(np.asarray(run(base, config)).ravel())}
  assert len(set(*seen)) > 1, 'positions of a block draw apart'
  for name in range(4):
    seen.add(tuple(np.asarray(run(base.at[0, name].add(1), config)).ravel()))
  seen.add(tuple(np.asarray(run(base, GenerateConfig(audio_temperature=1.0, seed=1))).ravel()))
  assert len(seen) == 6
