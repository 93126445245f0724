"""The head's sweep: the same choices in one go, in tiles and in parts of every size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.reference import quick
from ttt_jax.config import GenerateConfig
from ttt_jax.generate import output_head, sampling_params
from ttt_jax.generate.sampling import Place, Rules, choose, make_head
from ttt_jax.tokens.vocab import Vocabulary

V = Vocabulary('bytes', 256, 'test', 900)
ROWS, WIDTH, N = 1280, 8, 40  # the table has padding rows and ten groups of 128
PARAMS = (GenerateConfig(), GenerateConfig(rule='margin'), GenerateConfig(rule='entropy'),
            GenerateConfig(guidance=0.7), GenerateConfig(rule='prior'))


@quick.jit_with(static_argnums=0)
def run(rules, table, hidden, null, params, want, place):
  head = make_head(rules, table)._replace(prior=jnp.linspace(-9.0, 0.0, ROWS))
  return choose(rules, head, params, hidden, null, want, place)


def world(seed):
  rng = np.random.default_rng(seed)
  table = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
  hidden, null = rng.normal(size=(2, N, WIDTH)).astype(np.float32) * 2
  flags = lambda: jnp.asarray(rng.random(N) < 0.5)
  zeros = jnp.zeros(N, jnp.int32)
  place = Place(flags(), flags(), flags(), zeros, zeros, zeros, zeros)
  params = sampling_params.make([PARAMS[i % len(PARAMS)] for i in range(N)], range(N))
  return table, hidden, null, params, jnp.asarray(rng.random(N) < 0.8), place


def by_hand(table, hidden, null, params, want, place, softmax):
  """Choice fields [N] from all logits, float64, position by position."""
  out = np.zeros((4, N))
  prior = np.linspace(-9.0, 0.0, ROWS)
  ids = np.arange(V.size)
  for i in np.flatnonzero(want):
    logits = table[:V.size].astype(float) @ hidden[i]
    if place.in_span[i] and params.guidance[i] > 0:
      blind = table[:V.size].astype(float) @ null[i]
      logits = blind + (1 + params.guidance[i]) * (logits - blind)
    if place.in_span[i]:
      can = V.is_code(ids) | (V.is_end(ids) & bool(place.may_end[i]))
    else:
      can = ~V.is_audio(ids) & ~(V.is_begin(ids) & (not place.may_begin[i]))
    masked = np.where(can, logits, -np.inf)
    space = masked if softmax == 'audio' and place.in_span[i] else logits
    p = np.exp(space - space.max())
    p /= p.sum()
    first, second = np.argsort(masked)[:-3:-1]
    entropy = -np.sum(p[p > 0] * np.log(p[p > 0]))
    rank = (p[first], p[first] - p[second], -entropy, np.log(p[first]) - prior[first])
    kind = int(params.score[i])
    out[:, i] = first, p[first], rank[kind], entropy
  return out


@pytest.mark.parametrize('softmax', ['full', 'audio'])
@pytest.mark.parametrize('how', [
    dict(sizes=(64,), dense=64, tile=None), dict(sizes=(1, 8, 16, 24, 32, 64), tile=7000),
    dict(sizes=(4,), dense=4, tile=None), dict(sizes=(1, 32), tile=12_500)])
def test_every_way_to_sweep_is_right(how, softmax):
  args = world(0)
  found = run(Rules(V, softmax=softmax, **how), *args)
  expected = by_hand(*args, softmax)
  np.testing.assert_array_equal(found.token, expected[0])
  np.testing.assert_allclose(found.confidence, expected[1], rtol=2e-5)
  np.testing.assert_allclose(found.score, expected[2], rtol=2e-4, atol=2e-5)
  # Entropies are made where some position of a part is ranked by more than confidence.
  np.testing.assert_allclose(found.entropy, np.where(found.entropy == 0, 0, expected[3]),
                             rtol=2e-4, atol=5e-6)
  assert np.all(found.entropy[np.isin(args[3].score, (1, 2, 3)) & np.asarray(args[4])] > 0)


def test_a_small_vocabulary_may_be_one_group():
  # The copy of the audio rows then starts with text.
  small = Vocabulary('bytes', 256, 'test', 20)
  rng = np.random.default_rng(3)
  table, hidden = rng.normal(size=(321, WIDTH)), rng.normal(size=(1, WIDTH))
  one, none = jnp.ones(1, bool), jnp.zeros(1, jnp.int32)
  rules = Rules(small, softmax='audio', sizes=(1,), dense=1, tile=None)
  found = choose(rules, make_head(rules, jnp.asarray(table, jnp.float32)),
                 jax.tree.map(jnp.asarray, sampling_params.make([GenerateConfig()], [0])),
                 jnp.asarray(hidden, jnp.float32), None, one, Place(one, one, one, *[none] * 4))
  ids = np.r_[small.code_start:small.mask, small.end_of_chunk, small.end_of_last]
  p = np.exp((table @ hidden[0])[ids])
  np.testing.assert_allclose(found.confidence, p.max() / p.sum(), rtol=1e-5)


def test_groups_without_ids_do_not_count():
  logits = np.full((3, 4, 2), -np.inf, np.float32)
  logits[1, :2, 0] = [5.0, 4.0]
  logits[2, 3, :] = 1.0
  groups = jax.jit(output_head.summary, static_argnums=1)(logits, True)
  expected = np.array([np.log(np.exp(5) + np.exp(4) + np.exp(1)), 1.0])
  np.testing.assert_allclose(groups.log_sum(), expected, rtol=1e-6)
  p = np.exp(np.array([5.0, 4.0, 1.0]) - expected[0])
  np.testing.assert_allclose(groups.entropy(groups.log_sum()), [-np.sum(p * np.log(p)), 0.0],
                             atol=1e-6)
