"""The switches of the objective's noise: the same expectation, less variance, the same draws."""

import dataclasses
import itertools
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small_run
from tests.objective import test_hybrid, test_noise
from tests.reference import batches, decoder, objective as slow, quick, weights
from ttt_jax.config import Config, LoraConfig, MeshConfig, ObjectiveConfig, TrainConfig
from ttt_jax.data.loader import Pass
from ttt_jax.errors import UserError
from ttt_jax.model import sharding
from ttt_jax.model.transformer import Model
from ttt_jax.objective import diffusion, hybrid
from ttt_jax.train import metrics, step as train_step, train

V = batches.VOCAB
FLOOR = 0.2
PLAIN = ObjectiveConfig(banom=0.0, ppm=0.0, mask_floor=FLOOR)
# Two maskable spans, of two tokens and of one.
IDS = [1, V.begin_of_audio, V.code_start + 3, V.end_of_chunk, 2, V.begin_of_quad, V.end_of_last, 4]
SUPERVISED = [0, 0, 1, 1, 1, 1, 1, 1]
SPANS = [(2, 3), (6,)]
MASKABLE = [i for span in SPANS for i in span]
SHAPE = 32, 64   # of all batches here: one compiled program
PLACES = SHAPE[0] * (SHAPE[1] // len(IDS))
NODES = [((x + 1) / 2, w / 2) for x, w in zip(*np.polynomial.legendre.leggauss(3))]


def plain_of(params=test_hybrid.PARAMS):
  return weights.convert(params, test_hybrid.CONFIG)


def logits_of(plain):
  return lambda ids, allowed: decoder.logits(plain, ids, allowed, V.size)


# -- expectations, by enumeration ------------------------------------------------------------


def outcomes(config):
  """(probability, t of each maskable token, its uniform number) of everything that can be drawn.

  The masks of given t are those of intervals of the uniform numbers, each represented by its
  middle; the integral over t is a Gauss quadrature, exact for the polynomials that it meets. The
  second pass of a mirror changes masks at 1 - p, so the integral is cut where p = 1 - p.
  """
  rate = lambda t: FLOOR + (1 - FLOOR) * t
  pieces = [(0.0, 1.0)]
  if config.mirror == 'masks':
    middle = (0.5 - FLOOR) / (1 - FLOOR)
    pieces = [(0.0, middle), (middle, 1.0)]
  density = [1.0] * len(pieces)
  if config.t_density:
    count = len(config.t_density)
    pieces = [(i / count, (i + 1) / count) for i in range(count)]
    density = [one * count / sum(config.t_density) for one in config.t_density]
  levels = [(low + (high - low) * t, (high - low) * w * more)
            for (low, high), more in zip(pieces, density) for t, w in NODES]
  unit = [0, 0, 0] if config.t_unit == 'document' else [0, 0, 1]
  for drawn in itertools.product(levels, repeat=1 + unit[-1]):
    t = [drawn[number][0] for number in unit]
    cuts = []
    for level in t:
      edges = {0.0, rate(level), 1.0}
      if config.mirror == 'masks':
        edges.add(1 - rate(level))
      if config.mirror == 'draws':
        edges.add(1 - rate(1 - level))
      cuts.append([((a + b) / 2, b - a) for a, b in itertools.pairwise(sorted(edges))])
    chance = np.prod([w for _, w in drawn])
    for masks in itertools.product(*cuts):
      yield chance * np.prod([w for _, w in masks]), t, [u for u, _ in masks]


class Enumerated:
  """A batch with one document per outcome, and draws that give each document its own."""

  def __init__(self, config, monkeypatch, visit=None):
    self.config, self.visit = config, visit
    self.chance, self.t, uniform = (np.array(x) for x in zip(*outcomes(config)))
    count = len(self.chance)
    assert count <= PLACES and abs(self.chance.sum() - 1) < 1e-9
    per_row = SHAPE[1] // len(IDS)
    self.batch = batches.layout([[(n + 1, IDS, SUPERVISED) for n in range(count)][at:at + per_row]
                                 for at in range(0, PLACES, per_row)], SHAPE[1])
    level = np.zeros((count + 1, 2), np.float32)  # by document and span
    level[1:] = self.t[:, [0, 2]]
    if config.t_density:  # what is drawn is the cumulative probability
      ends = np.cumsum((0, *config.t_density)) / np.sum(config.t_density)
      level[1:] = np.interp(level[1:], np.linspace(0, 1, len(ends)), ends)
    if config.t_sampling == 'stratified' and visit is not None:  # what is shifted to these levels
      level = (level - np.asarray(diffusion.spread(jnp.zeros(1), visit, 0))) % 1
    token = np.zeros((count + 1, len(IDS)), np.float32)
    token[1:, MASKABLE] = uniform

    def document_uniforms(key, document, number):
      return jnp.asarray(level)[document, 0][..., None] * jnp.ones(number)

    def token_uniforms(key, document, position):
      if position is not self.batch.position:  # the number of a span
        return jnp.asarray(level)[document, position]
      return jnp.asarray(token)[document, position]
    monkeypatch.setattr(diffusion, 'document_uniforms', document_uniforms)
    monkeypatch.setattr(diffusion, 'token_uniforms', token_uniforms)

  def targets(self, twin=0):
    """Of all outcomes; each document's weights are multiplied by its probability."""
    def weighted(twin):
      visit = None if self.visit is None else hybrid.Visit(
          jax.random.key(1), jnp.full((SHAPE[0], 1), self.visit))
      drawn = hybrid.corrupt(self.batch, V, self.config, jax.random.key(0), visit, twin)
      chance = np.concatenate([[0], self.chance]).astype(np.float32)[self.batch.document]
      return drawn._replace(next_weight=drawn.next_weight * chance,
                            self_weight=drawn.self_weight * chance)
    return quick.jit(weighted)(twin)

  def expected(self):
    """(AR, diffusion, gradient) in expectation."""
    twins = range(self.config.passes)
    parts = []
    for twin in twins:
      sums, gradient = test_hybrid.sums_and_gradient(
          test_hybrid.PARAMS, self.batch, self.targets(twin), PLAIN)
      parts.append((float(sums.ar), float(sums.diffusion), gradient))
    return jax.tree.map(lambda *x: sum(np.asarray(y, np.float64) for y in x) / len(parts), *parts)


def truth(plain, unit='document'):
  """(AR, diffusion) in expectation, from the slow reference."""
  total = np.zeros(2)
  for chance, t, uniform in outcomes(dataclasses.replace(PLAIN, t_unit=unit)):
    p = np.ones(len(IDS))
    p[MASKABLE] = FLOOR + (1 - FLOOR) * np.array(t)
    masked = np.zeros(len(IDS), bool)
    masked[MASKABLE] = np.array(uniform) < p[MASKABLE]
    noise = slow.Noise(masked, p[MASKABLE[0]], weight=1 / p)
    total += chance * np.array(slow.document_terms(logits_of(plain), V, IDS, SUPERVISED, noise))
  return total


CASES = {
    'plain': {}, 'count': {'mask_weight': 'count'}, 'mirrored masks': {'mirror': 'masks'},
    'mirrored draws': {'mirror': 'draws'},
    'stratified': {'t_sampling': 'stratified'},
    'all three': {'mask_weight': 'count', 'mirror': 'draws', 't_sampling': 'stratified'},
    'importance': {'t_density': (3.0, 1.0, 2.0)},
    'stratified importance': {'t_density': (0.5, 4.0), 't_sampling': 'stratified'},
    'span': {'t_unit': 'span'}, 'span, count': {'t_unit': 'span', 'mask_weight': 'count'},
}


@pytest.fixture(scope='module')
def truths():
  """Unit of t -> (expectation, a direction per parameter, the expectation's slopes along them)."""
  rng, step = np.random.default_rng(0), 1e-4
  way = jax.tree.map(lambda x: rng.standard_normal(x.shape), test_hybrid.PARAMS)
  moved = [plain_of(jax.tree.map(lambda x, y, sign=sign: np.asarray(x, np.float64)
                                 + sign * step * y, test_hybrid.PARAMS, way)) for sign in (1, -1)]
  return {unit: (truth(plain_of(), unit), way,
                 (truth(moved[0], unit).sum() - truth(moved[1], unit).sum()) / (2 * step))
          for unit in ('document', 'span')}


@pytest.mark.parametrize('name', CASES)
def test_the_expectation_of_loss_and_gradient_is_that_of_the_formula(name, truths, monkeypatch):
  """Every draw that there is, weighted by its probability, against the same of the reference."""
  config = dataclasses.replace(PLAIN, **CASES[name])
  visit = 5 if config.t_sampling == 'stratified' else None
  ar, diffusion_term, gradient = Enumerated(config, monkeypatch, visit).expected()
  want, way, slope = truths[config.t_unit]
  np.testing.assert_allclose([ar, diffusion_term], want, rtol=1e-5)
  got = sum(np.sum(g * w) for g, w in zip(jax.tree.leaves(gradient), jax.tree.leaves(way)))
  scale = np.sqrt(sum(np.sum(g * g) for g in jax.tree.leaves(gradient)))
  np.testing.assert_allclose(got, slope, rtol=1e-3, atol=1e-3 * scale)


def test_a_t_for_each_span_is_another_objective(truths):
  """Spans read each other's noise, so the joint distribution of their levels matters."""
  document, span = truths['document'][0], truths['span'][0]
  assert not np.allclose(document, span, rtol=1e-4)


def test_less_variance_with_weights_from_counts(monkeypatch):
  """The weight given the masks is an average over p, which never adds variance (Rao-Blackwell)."""
  def variance(config):
    one = Enumerated(config, monkeypatch)
    first = np.unique(one.batch.document, return_index=True)[1][1:] + MASKABLE[0]
    drawn = np.asarray(one.targets().self_weight, np.float64).ravel()
    total = sum(drawn[first + i - MASKABLE[0]] for i in MASKABLE)  # times the chance
    assert abs(np.sum(total) - 1) < 1e-6  # every token counts once
    return np.sum(total ** 2 / one.chance) - 1
  assert variance(dataclasses.replace(PLAIN, mask_weight='count')) < 0.8 * variance(PLAIN)


# -- weights and sequences ---------------------------------------------------------------------


def test_a_density_of_t_and_its_weights():
  density = (3.0, 1.0, 2.0, 0.5)
  uniform = jnp.asarray([0.0, 0.3, 0.46154, 0.6, 0.99999994, *np.linspace(0, 1, 4001)[:-1]],
                        jnp.float32)
  t, weight = map(np.asarray, diffusion.importance(uniform, density))
  assert (np.diff(t[5:]) > 0).all() and t.min() >= 0 and 0.99999 < t[4] <= 1
  part = np.minimum((t * 4).astype(int), 3)
  np.testing.assert_allclose(weight, 6.5 / (4 * np.array(density))[part], rtol=1e-6)
  np.testing.assert_allclose(np.bincount(part[5:]) / 4000, np.array(density) / 6.5, atol=1e-3)
  np.testing.assert_allclose(np.mean(weight[5:] * t[5:] ** 2), 1 / 3, rtol=3e-3)


@pytest.mark.parametrize('settings, words', [
    ({'t_density': (1.0, -1.0)}, 'positive'), ({'t_density': (1.0, float('nan'))}, 'positive'),
    ({'t_density': (0.0, 0.0)}, 'positive'), ({'t_density': (1.0, 1e-9)}, 'a millionth of their'),
    ({'t_density': (1e308, 1e308)}, 'a millionth of their'),
    ({'t_density': (1.0,), 't_unit': 'span'}, "'document'"),
    ({'t_density': (1.0,), 'mask_weight': 'count'}, "'rate'"),
    ({'t_density': (1.0,), 'confidence_weight': 0.1}, '0.0'),
    ({'t_density': (1.0,), 'mode': 'ar'}, 'no token is masked')])
def test_what_a_density_of_t_does_not_go_with(settings, words):
  with pytest.raises(UserError, match=words):
    ObjectiveConfig(**settings)


@pytest.mark.parametrize('banom', [0.0, 1.0 - 1e-7])
def test_the_density_of_t_weighs_what_depends_on_t(banom):
  """Both terms of a document with noisy audio; nothing where the audio stays clean."""
  batch = test_noise.batch()
  plain = dataclasses.replace(PLAIN, banom=banom)
  draw = lambda config: jax.tree.map(np.asarray, quick.jit(
      lambda key: hybrid.corrupt(batch, V, config, key))(jax.random.key(2)))
  one, two = draw(plain), draw(dataclasses.replace(plain, t_density=(3.0, 1.0)))
  weight = np.where((two.rate - FLOOR) / (1 - FLOOR) < 0.5, 2 / 3, 2.0)
  weight = weight if banom == 0 else np.ones_like(weight)
  np.testing.assert_allclose(two.next_weight, one.next_weight * weight, rtol=1e-5)
  again = hybrid.targets(batch, V, 'hybrid', two.maskable, two.masked, two.rate)
  np.testing.assert_allclose(two.self_weight, again.self_weight * weight, rtol=1e-5)
  assert two.masked.any() == (banom == 0)


@pytest.mark.parametrize('floor', [1e-3, 0.3, 0.9])
def test_the_weight_of_a_count_is_the_mean_of_1_over_p(floor):
  cases = [(k, n) for n in (1, 2, 5, 26) for k in range(1, n + 1)] + [
      (3, 61), (60, 61), (1, 400), (40, 400), (399, 400), (700, 2048), (2048, 2048)]
  k, n = (np.array(x, np.float32) for x in zip(*cases))
  got = np.asarray(diffusion.count_weight(k, n, floor))
  want = [slow.count_weight(*case, floor) for case in cases]
  # Where so few masks are all but impossible, float32 has no digits left, and p is at the floor.
  # Elsewhere the rounding of 1 - 0.001 to float32 counts: 6e-5 of the floor.
  likely = k / n > floor - 5 * np.sqrt(floor * (1 - floor) / n)
  np.testing.assert_allclose(got[likely], np.array(want)[likely], rtol=1e-4)
  np.testing.assert_allclose(got, want, rtol=0.01)


def test_without_a_floor_the_weight_is_a_ratio_of_counts():
  k = np.arange(1, 27, dtype=np.float32)
  np.testing.assert_allclose(diffusion.count_weight(k, np.float32(26), 1e-9), 27 / k, rtol=1e-4)
  assert diffusion.count_weight(np.zeros(1), np.zeros(1), 1e-3) == 1


def test_sequences_are_even_in_visits_and_in_spans_however_late():
  for late in (0, 2**20 + 7):
    number = jnp.arange(34) + late
    for sequence in (diffusion.spread(jnp.full(34, 0.3), number, 5),
                     diffusion.spread(jnp.full(34, 0.3), 5, number)):
      placed = np.sort(np.asarray(sequence))
      assert (placed >= 0).all() and (placed < 1).all()
      assert np.diff(placed).max() < 2.7 / 34  # independent draws: about log(34) / 34, 3.5 / 34
  exact = (0.25 + (2**20 + 7) * 2_654_435_769 / 2**32) % 1
  assert abs(float(diffusion.spread(jnp.float32(0.25), 2**20 + 7, 0)) - exact) < 1e-6


def test_every_visit_of_a_document_has_a_uniform_t():
  """Over documents, at any visit; and the visits of each document are spread evenly."""
  config = dataclasses.replace(PLAIN, t_sampling='stratified')
  batch = test_noise.batch()
  draw = quick.jit(lambda number: hybrid.corrupt(batch, V, config, jax.random.key(3), hybrid.Visit(
      jax.random.key(0), jnp.full((len(batch.token), 1), number))).rate)
  firsts = np.flatnonzero((batch.position == 0) & (batch.document > 0))
  t = np.array([(np.asarray(draw(number)).ravel()[firsts] - FLOOR) / (1 - FLOOR)
                for number in range(8)])
  for visit in t:
    assert test_noise.kolmogorov(visit) < 1.95 / np.sqrt(t.shape[1])
  alone = np.sort(t, axis=0)
  assert np.diff(alone, axis=0).max() < 2.7 / 8


def test_spans_have_levels_of_their_own():
  """Uniform each, independent with 'uniform', and spread evenly in a document with 'stratified'."""
  firsts = [a for a, _ in test_noise.SPANS]
  n = len(test_noise.IDS)
  for sampling in ('uniform', 'stratified'):
    config = dataclasses.replace(PLAIN, t_unit='span', t_sampling=sampling)
    rate = np.asarray(quick.jit(lambda key: hybrid.corrupt(  # pylint: disable=cell-var-from-loop
        test_noise.batch(), V, config, key).rate)(jax.random.key(1)))
    rate = rate[:, :test_noise.PER_ROW * n].reshape(-1, n)
    for a, b in test_noise.SPANS:
      assert (rate[:, a:b] == rate[:, a:a + 1]).all()
    t = (rate[:, firsts] - FLOOR) / (1 - FLOOR)
    for one in t.T:
      assert test_noise.kolmogorov(one) < 1.95 / np.sqrt(len(t))
    gaps = np.diff(np.sort(t, axis=1), axis=1).max(1)
    if sampling == 'stratified':
      assert gaps.max() < 0.6
    else:
      assert np.abs(np.corrcoef(t.T) - np.eye(3)).max() < 4.5 / np.sqrt(len(t))
      assert gaps.max() > 0.7


def test_visits_of_rows_follow_the_stages():
  """Batches of 3 rows: two steps of a split of 4 rows, then a split of 5."""
  passes = (Pass(0, 0, 4, 0), Pass(2, 0, 5, 2))
  run = quick.jit(lambda step: train_step.visits(passes, step, 3))
  got = [np.asarray(run(step))[:, 0].tolist() for step in range(5)]
  assert got == [[0, 0, 0], [0, 1, 1], [2, 2, 2], [2, 2, 3], [3, 3, 3]]


# -- the same noise, wherever and however --------------------------------------------------------


EVERYTHING = ObjectiveConfig(t_sampling='stratified', t_unit='span', mask_weight='count',
                             mirror='draws', ppm=0.5, banom=0.2, confidence_weight=0.5)


@pytest.mark.parametrize('unit', [pytest.param('document', marks=pytest.mark.slow), 'span'])
def test_noise_does_not_feel_the_placement(unit):
  rng = np.random.default_rng(6)
  mine = (50, *batches.document(rng, 'multiturn'))
  other = (51, *batches.document(rng, 'text_only'))
  n, shift = len(mine[1]), len(other[1])
  config = dataclasses.replace(EVERYTHING, t_unit=unit)
  def draw(plan, key, twin):
    visit = hybrid.Visit(jax.random.key(9), jnp.full((4, 1), 3))
    return run(batches.layout(plan, test_hybrid.LENGTH), key, visit, twin)
  run = quick.jit(lambda batch, key, visit, twin: hybrid.corrupt(batch, V, config, key, visit,
                                                                 twin))
  for seed in range(6):
    for twin in (0, 1):
      first = draw([[mine], [], [], []], jax.random.key(seed), twin)
      moved = draw([[], [], [other, mine], []], jax.random.key(seed), twin)
      for name in ('token', 'masked', 'maskable', 'rate', 'self_weight', 'next_weight'):
        np.testing.assert_array_equal(np.asarray(getattr(first, name))[0, :n],
                                      np.asarray(getattr(moved, name))[2, shift:shift + n])


def test_a_mirror_masks_other_tokens():
  """'masks': with p below 1/2 no token twice, above every token at least once. 'draws': every token
  at least once in an answer that neither pass keeps clean, and never two clean passes."""
  batch = test_noise.batch()
  def passes(mirror, **keys):
    config = ObjectiveConfig(mirror=mirror, mask_floor=FLOOR, **keys)
    run = quick.jit(lambda twin: hybrid.corrupt(batch, V, config, jax.random.key(2), None, twin))
    return [jax.tree.map(np.asarray, run(twin)) for twin in (0, 1)]
  one, two = passes('masks', banom=0.2, ppm=0.5)
  np.testing.assert_array_equal(one.maskable, two.maskable)
  np.testing.assert_array_equal(one.rate, two.rate)
  both, neither = one.masked & two.masked, one.maskable & ~one.masked & ~two.masked
  low = one.rate < 0.5
  assert not (low & both).any() and not (~low & neither).any()
  assert (~low & both).any() and (low & neither).any()
  one, two = passes('draws', banom=0.0, ppm=0.0)
  np.testing.assert_allclose(one.rate + two.rate, 1 + FLOOR, rtol=1e-6)
  assert not (one.maskable & ~one.masked & ~two.masked).any()
  one, two = passes('draws', banom=0.4, ppm=0.5)
  assert one.masked.any() and two.masked.any() and (one.maskable != two.maskable).any()
  audio = np.asarray(hybrid.supervised_maskable(batch, V, 'hybrid'))
  assert not (audio & ~one.maskable & ~two.maskable)[:, 15:18].any()  # of the last span
  for side in passes('draws', banom=0.4, ppm=0.5) + passes('masks', banom=0.4, ppm=0.5):
    p, hits = side.rate[side.maskable], side.masked[side.maskable]
    assert abs(hits.sum() - p.sum()) < 4.5 * np.sqrt(np.sum(p * (1 - p)))


def test_everything_off_is_the_noise_of_version_0_1():
  """Pinned: masks and rates of a batch that earlier versions drew."""
  batch = batches.layout([[(7, test_noise.IDS, test_noise.SUPERVISED),
                           (9, test_noise.IDS, test_noise.SUPERVISED)]], 64)
  drawn = test_hybrid.corrupt(batch, jax.random.key(5), PLAIN)
  assert np.flatnonzero(drawn.masked[0]).tolist() == [7, 9, 12, 15, 16, 17, 18, 27, 35, 37]
  np.testing.assert_array_equal(drawn.rate[0, [0, 20]], np.float32([0.8814022, 0.37049532]))


def step_gradients(mesh_config, objective, lora=LoraConfig(), model=(), **train):
  """(sums, gradients) of a step of 8 rows as a run computes them, on a mesh."""
  base = Config(model=dataclasses.replace(test_hybrid.CONFIG, lora=lora, **dict(model)),
                objective=objective, train=TrainConfig(batch_size=8, **train))
  _, batch = batches.packed(np.random.default_rng(8), rows=8, seq_len=64)
  mesh = sharding.make_mesh(mesh_config, jax.devices()[:8 if mesh_config.fsdp > 1 else 1])
  model = Model(base.model, V.size)
  with jax.set_mesh(mesh):
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    where = sharding.shardings(mesh, model.axes(), shapes)
    params = weights.random(model, np.random.default_rng(0), 0.25)
    params = jax.tree.map(jax.device_put, params, where)
    run = quick.jit(lambda params, batch: train_step.gradients(
        base, model, V, params, batch, jax.random.key(4), None, hybrid.Visit(
            jax.random.key(5), train_step.visits((Pass(0, 0, 3, 0),), 2, 8))))
    grads, sums = run(params, sharding.put_batch(mesh, batch))
  return jax.tree.map(np.asarray, (sums, grads))


def assert_same_step(mine, other):
  chex.assert_trees_all_close(mine[0], other[0], rtol=2e-5)
  scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(other[1]))
  chex.assert_trees_all_close(mine[1], other[1], rtol=1e-3, atol=2e-5 * scale)


@pytest.mark.slow
def test_a_mesh_and_microbatches_give_the_same_step():
  """With all switches at once."""
  assert_same_step(step_gradients(MeshConfig(fsdp=4, tensor=2), EVERYTHING, grad_accum_steps=2),
                   step_gradients(MeshConfig(), EVERYTHING))


@pytest.mark.slow
def test_a_step_is_the_mean_of_both_passes_of_all_microbatches():
  """All switches at once: two microbatches, against the passes one by one over the whole batch."""
  found, gradient = step_gradients(MeshConfig(), EVERYTHING, grad_accum_steps=2)
  _, batch = batches.packed(np.random.default_rng(8), rows=8, seq_len=64)
  visit = hybrid.Visit(jax.random.key(5), train_step.visits((Pass(0, 0, 3, 0),), 2, 8))
  passes = []
  for twin in (0, 1):
    drawn = quick.jit(lambda twin: hybrid.corrupt(batch, V, EVERYTHING, jax.random.key(4), visit,
                                                  twin))(twin)
    passes.append(test_hybrid.sums_and_gradient(test_hybrid.PARAMS, batch, drawn, EVERYTHING))
  sums, slopes = jax.tree.map(lambda a, b: (a + b) / 2, *passes)
  assert_same_step((found, gradient), (sums, jax.tree.map(lambda g: g / sums.documents, slopes)))


@pytest.mark.slow
@pytest.mark.parametrize('changes', [
    {'grad_accum_steps': 4}, {'model': {'remat': 'full'}}, {'model': {'attention': 'blockwise'}}])
def test_microbatches_and_remat_give_the_same_step(changes):
  for objective in (EVERYTHING, dataclasses.replace(EVERYTHING, t_unit='document')):
    assert_same_step(step_gradients(MeshConfig(), objective, **changes),
                     step_gradients(MeshConfig(), objective))


@pytest.mark.slow
@pytest.mark.usefixtures('one_device')
def test_a_resumed_run_draws_the_same(small_config, tmp_path):
  """Four steps, and two after the checkpoint of step 2: the same losses to the bit."""
  config = small_run.replace(small_config, 'objective', **vars(EVERYTHING))
  config = small_run.replace(config, 'train', steps=4, checkpoint_every=2)
  train.train(config, tmp_path / 'one')
  shutil.copytree(tmp_path / 'one' / 'checkpoints' / '2', tmp_path / 'two' / 'checkpoints' / '2')
  train.train(config, tmp_path / 'two')
  one, two = ({line['step']: (line['loss'], line['grad_norm']) for line in metrics.read(
      tmp_path / name)} for name in ('one', 'two'))
  assert sorted(one) == [1, 2, 3, 4] and two == {3: one[3], 4: one[4]}


@pytest.mark.slow
def test_adapters_are_trained_with_mirrored_passes():
  """The gradient of the adapters is the mean of those of both passes."""
  lora = LoraConfig(rank=2)
  sums, both = step_gradients(MeshConfig(), EVERYTHING, lora)
  assert float(sums.documents) > 8 and set(both) == {'layers'}
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(both)) > 0
  _, again = step_gradients(MeshConfig(), EVERYTHING, dataclasses.replace(lora, dropout=0.5))
  assert any((a != b).any() for a, b in zip(jax.tree.leaves(both), jax.tree.leaves(again)))


# -- confidence -----------------------------------------------------------------------------------


def test_the_entropy_of_right_predictions_matches_the_reference():
  """Loss with the term; its gradient along a random direction by finite differences."""
  config = ObjectiveConfig(banom=0.0, ppm=0.0, confidence_weight=0.7)
  rng = np.random.default_rng(3)
  plan, batch = batches.packed(rng, rows=4, seq_len=test_hybrid.LENGTH)
  targets = test_hybrid.corrupt(batch, jax.random.key(3), config)
  documents, noises = test_hybrid.all_noise(plan, targets, 'hybrid')
  # A model that is right where it matters: the embeddings of the answers' codes stand out.
  sums, gradient = test_hybrid.sums_and_gradient(test_hybrid.PARAMS, batch, targets, config)

  def total(plain):
    return sum(sum(slow.document_terms(logits_of(plain), V, ids, supervised, noise))
               + 0.7 * slow.confidence(logits_of(plain), V, ids, supervised, noise)
               for (_, ids, supervised), noise in zip(documents, noises))
  plain = plain_of()
  right = sum(slow.confidence(logits_of(plain), V, ids, supervised, noise)
              for (_, ids, supervised), noise in zip(documents, noises))
  assert right > 0.5, 'no masked token is predicted right'
  np.testing.assert_allclose(float(sums.confidence), right, rtol=1e-4)
  np.testing.assert_allclose(float(hybrid.loss(sums, jnp.float32(1), config)), total(plain),
                             rtol=2e-5)
  step = 1e-5
  way = jax.tree.map(lambda x: rng.standard_normal(x.shape), test_hybrid.PARAMS)
  moved = [plain_of(jax.tree.map(lambda x, y, sign=sign: np.asarray(x, np.float64)
                                 + sign * step * y, test_hybrid.PARAMS, way)) for sign in (1, -1)]
  want = (total(moved[0]) - total(moved[1])) / (2 * step)
  got = sum(np.sum(np.asarray(g, np.float64) * w)
            for g, w in zip(jax.tree.leaves(gradient), jax.tree.leaves(way)))
  np.testing.assert_allclose(got, want, rtol=1e-3)


@pytest.mark.parametrize('keys, message', [
    ({'t_sampling': 'sobol'}, "objective.t_sampling is 'sobol'; use 'uniform' or 'stratified'"),
    ({'t_unit': 'token'}, "objective.t_unit is 'token'"),
    ({'mask_weight': 'p'}, "objective.mask_weight is 'p'; use 'rate' or 'count'"),
    ({'mirror': 'masks', 'mode': 'ar'}, "mirror is 'masks', but objective.mode is 'ar', so no"),
    ({'mirror': 'draws', 'banom': 1.0}, "objective.mirror is 'draws', but objective.banom is 1.0"),
    ({'mirror': 'yes'}, "objective.mirror is 'yes'; use 'none', 'masks' or 'draws'"),
    ({'confidence_weight': 0.1, 'mode': 'ar'}, 'objective.confidence_weight is 0.1, but'),
    ({'confidence_weight': -0.1}, 'objective.confidence_weight is -0.1; it must be at least 0'),
])
def test_settings_that_make_no_sense_are_a_sentence(keys, message):
  with pytest.raises(UserError, match=message):
    ObjectiveConfig(**keys)
