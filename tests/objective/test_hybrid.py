"""Loss and gradients against the slow reference, and what packing must not change."""

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.reference import batches, decoder, objective as slow, quick, staircase, weights
from ttt_jax.config import ModelConfig, ObjectiveConfig
from ttt_jax.model.transformer import Model
from ttt_jax.objective import hybrid

V = batches.VOCAB
LENGTH = 64
CONFIG = ModelConfig(num_layers=2,
                     hidden_size=16,
                     num_attention_heads=4,
                     num_key_value_heads=2,
                     head_dim=4,
                     intermediate_size=24,
                     vocab_multiple=32)
MODEL = Model(CONFIG, V.size)
PARAMS = weights.random(MODEL, np.random.default_rng(0), scale=0.25)
MODES = {
    'hybrid': ObjectiveConfig(),
    'causal prompt': ObjectiveConfig(prompt_audio='causal', banom=0.0, ppm=1.0),
    'ar': ObjectiveConfig(mode='ar'),
    'ar_classes': ObjectiveConfig(mode='ar', ar_mean='classes'),
    'nar': ObjectiveConfig(mode='nar'),
}


@quick.jit_with(static_argnums=2)
def corrupt(batch, key, config):
  return hybrid.corrupt(batch, V, config, key)


def sums_and_gradient(params, batch, targets, config):
  """(Sums, gradient of the loss summed over documents)."""
  # The noise is drawn already; leaving its settings out compiles once for all of them.
  plain = dataclasses.replace(config.plain(), banom=0.0, ppm=0.0,
                              confidence_weight=config.confidence_weight)
  return scored(params, batch, targets, plain)


@quick.jit_with(static_argnums=3)
def scored(params, batch, targets, config):
  def total(params):
    return hybrid.loss_and_sums(MODEL, params, batch, targets, config, 1.0)
  gradient, sums = jax.grad(total, has_aux=True)(params)
  return sums, gradient


def noise_of(targets, row, at, ids, supervised, mode):
  """Read one document's Noise off the implementation's targets."""
  here = np.s_[row, at:at + len(ids)]
  may = slow.maskable(V, ids, supervised, mode)
  left = np.flatnonzero(np.asarray(targets.maskable)[here])
  rate = np.unique(np.asarray(targets.rate, np.float64)[here])
  assert len(rate) == 1, 'one p per document'
  banom = bool(may) and not len(left)
  skipped = bool(len(left)) and left[0] > may[0]
  return slow.Noise(np.asarray(targets.masked)[here], float(rate[0]), banom,
                    int(left[0]) if skipped else 0)


def all_noise(plan, targets, mode):
  """(documents, noises) of a plan in order, each draw checked against the rules."""
  documents, noises = [], []
  for row, members in enumerate(plan):
    at = 0
    for number, ids, supervised in members:
      noise = noise_of(targets, row, at, ids, supervised, mode)
      slow.check_noise(V, ids, supervised, noise, mode)
      kept = [i for i in slow.maskable(V, ids, supervised, mode)
              if i >= noise.start and not noise.banom]
      here = np.flatnonzero(np.asarray(targets.maskable)[row, at:at + len(ids)])
      np.testing.assert_array_equal(here, kept)
      np.testing.assert_array_equal(np.asarray(targets.token)[row, at:at + len(ids)],
                                    slow.noisy_ids(V, ids, noise))
      documents.append((number, ids, supervised))
      noises.append(noise)
      at += len(ids)
  return documents, noises


def slow_loss(plain, documents, noises, config):
  def logits_of(ids, allowed):
    return decoder.logits(plain, ids, allowed, V.size)
  return slow.loss(logits_of, V, documents, noises, config.mode, config.prompt_audio,
                   config.ar_mean)


def check_loss(seed, config, **shape):
  plan, batch = batches.packed(np.random.default_rng(seed), rows=4, seq_len=LENGTH, **shape)
  targets = corrupt(batch, jax.random.key(seed), config)
  documents, noises = all_noise(plan, targets, config.mode)
  sums, gradient = sums_and_gradient(PARAMS, batch, targets, config)
  assert float(sums.documents) == len(documents)
  got = float(hybrid.loss(sums, sums.documents, config))
  want = slow_loss(weights.convert(PARAMS, CONFIG), documents, noises, config)
  np.testing.assert_allclose(got, want, rtol=2e-5)
  return documents, noises, jax.tree.map(lambda g: np.asarray(g, np.float64) / len(documents),
                                         gradient)


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('name', MODES)
def test_loss_matches_the_reference(name, seed):
  check_loss(seed, MODES[name])


@pytest.mark.parametrize('kinds, dense', [(('pt',), True), (('tts', 'prompt_only'), False)])
def test_loss_matches_with_many_and_with_few_targets(kinds, dense):
  """Logits are made for the scored positions only, however many they are."""
  documents, _, _ = check_loss(1, MODES['ar'], kinds=kinds, empty_row=False)
  targets = sum(sum(supervised[1:]) for _, _, supervised in documents)
  assert (targets > 2 * LENGTH) == dense


@pytest.mark.slow
@pytest.mark.parametrize('name', MODES)
def test_loss_matches_the_reference_many_times(name):
  for seed in range(100, 160):
    check_loss(seed, MODES[name])


@pytest.mark.parametrize('name', MODES)
def test_gradient_matches_finite_differences(name):
  """Along a random direction of every parameter array, in float64, central differences."""
  config, step = MODES[name], 1e-4
  documents, noises, gradient = check_loss(7, config)
  leaves, tree = jax.tree.flatten(PARAMS)
  rng = np.random.default_rng(0)
  for index, slope in enumerate(jax.tree.leaves(gradient)):
    way = rng.standard_normal(slope.shape)
    def at(offset):
      moved = list(leaves)
      moved[index] = np.asarray(leaves[index], np.float64) + offset * way
      plain = weights.convert(jax.tree.unflatten(tree, moved), CONFIG)
      return slow_loss(plain, documents, noises, config)
    want = (at(step) - at(-step)) / (2 * step)
    scale = np.linalg.norm(slope)
    assert scale > 0
    np.testing.assert_allclose(np.sum(slope * way), want, rtol=1e-3, atol=2e-4 * scale)


# -- packing, rows, microbatches -----------------------------------------------------


def terms_of(batch, key, config):
  """Sums of one batch, as floats."""
  sums, _ = sums_and_gradient(PARAMS, batch, corrupt(batch, key, config), config)
  return np.array([float(sums.ar), float(sums.diffusion), float(sums.documents)])


def test_a_document_does_not_feel_its_neighbours():
  """The same document first, last, in another row, with others or alone: one loss."""
  rng = np.random.default_rng(5)
  config, key = ObjectiveConfig(banom=0.0, ppm=0.5), jax.random.key(3)
  for kind in ('asr', 'multiturn', 'pt_audio', 'sst'):
    mine = (50, *batches.document(rng, kind))
    others = [(n, *batches.document(rng, k)) for n, k in ((60, 'text_only'), (70, 'audio_only'))]
    alone = terms_of(batches.layout([[mine], [], [], []], LENGTH), key, config)
    assert alone[0] > 0
    rest = terms_of(batches.layout([others, [], [], []], LENGTH), key, config)
    for plan in ([[mine] + others, [], [], []], [others + [mine], [], [], []],
                 [[], others, [], [mine]], [[others[1], mine], [], [others[0]], []]):
      together = terms_of(batches.layout(plan, LENGTH), key, config)
      np.testing.assert_allclose(together - rest, alone, rtol=1e-4, atol=1e-4)


def test_noise_does_not_feel_the_placement():
  """Bit for bit the same mask, p and decisions wherever a document lies."""
  rng = np.random.default_rng(6)
  mine = (50, *batches.document(rng, 'multiturn'))
  other = (51, *batches.document(rng, 'text_only'))
  n, shift = len(mine[1]), len(other[1])
  config = ObjectiveConfig(ppm=0.5)
  for seed in range(8):
    first = corrupt(batches.layout([[mine], [], [], []], LENGTH), jax.random.key(seed), config)
    moved = corrupt(batches.layout([[], [], [other, mine], []], LENGTH), jax.random.key(seed),
                    config)
    for name in ('token', 'masked', 'maskable', 'rate', 'self_weight', 'next_weight'):
      np.testing.assert_array_equal(np.asarray(getattr(first, name))[0, :n],
                                    np.asarray(getattr(moved, name))[2, shift:shift + n])


def test_noise_depends_on_key_and_document():
  rng = np.random.default_rng(6)
  ids, supervised = batches.document(rng, 'audio_only')
  config = ObjectiveConfig(banom=0.0, ppm=0.0)
  rates = set()
  for seed in range(4):
    batch = batches.layout([[(n, ids, supervised)] for n in (1, 2, 3, 4)], LENGTH)
    rates |= set(np.asarray(corrupt(batch, jax.random.key(seed), config).rate)[:, 0].tolist())
  assert len(rates) == 16


@pytest.mark.parametrize('name', ['hybrid', 'ar', 'nar'])
def test_microbatches_do_not_change_the_loss(name):
  """Sums and gradients of four single rows add up to those of the four rows together."""
  config, key = MODES[name], jax.random.key(1)
  _, batch = batches.packed(np.random.default_rng(8), rows=4, seq_len=LENGTH)
  targets = corrupt(batch, key, config)
  expected, expected_gradient = sums_and_gradient(PARAMS, batch, targets, config)
  sums, gradient = None, None
  for row in range(4):  # padded with empty rows: one compiled shape
    piece = jax.tree.map(lambda x: np.where(np.arange(4)[:, None] == row, x, 0), batch)
    part = sums_and_gradient(PARAMS, piece, corrupt(piece, key, config), config)
    sums, gradient = part if sums is None else jax.tree.map(jnp.add, (sums, gradient), part)
  chex.assert_trees_all_close(sums, expected, rtol=1e-5, atol=1e-5)
  # The tolerance is relative to each leaf's largest gradient.
  largest = jax.tree.map(lambda g: np.abs(g).max() + 1e-30, expected_gradient)
  chex.assert_trees_all_close(jax.tree.map(np.divide, gradient, largest),
                              jax.tree.map(np.divide, expected_gradient, largest),
                              rtol=1e-4, atol=1e-5)


# -- corners -------------------------------------------------------------------------


def test_documents_without_a_term_still_count():
  """Prompt only: 0 and counts. No supervised text: AR 0. No audio: diffusion 0."""
  rng = np.random.default_rng(9)
  config, key = ObjectiveConfig(banom=0.0, ppm=0.0), jax.random.key(2)
  def one(kind):
    return terms_of(batches.layout([[(4, *batches.document(rng, kind))], [], [], []], LENGTH), key,
                    config)
  np.testing.assert_array_equal(one('prompt_only'), [0, 0, 1])
  ar, diffusion, count = one('audio_only')
  assert ar == 0 and count == 1 and diffusion > 0
  ar, diffusion, count = one('text_only')
  assert ar > 0 and diffusion == 0 and count == 1
  np.testing.assert_array_equal(terms_of(batches.layout([[]] * 4, LENGTH), key, config), [0, 0, 0])


def test_an_empty_batch_has_a_finite_gradient():
  config = MODES['hybrid']
  batch = batches.layout([[]] * 4, LENGTH)
  _, gradient = sums_and_gradient(PARAMS, batch, corrupt(batch, jax.random.key(0), config), config)
  assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(gradient))


def test_one_position_carries_both_targets():
  """A masked end token restores itself and predicts the text after it."""
  ids = [1, V.begin_of_audio, V.code_start, V.end_of_chunk, 2, V.im_end]
  batch = batches.layout([[(1, ids, [0, 0, 1, 1, 1, 1])], [], [], []], LENGTH)
  config = ObjectiveConfig(banom=0.0, ppm=0.0)
  both = 0
  for seed in range(30):
    targets = corrupt(batch, jax.random.key(seed), config)
    rate, masked = float(targets.rate[0, 0]), np.asarray(targets.masked)[0, :6]
    np.testing.assert_array_equal(np.asarray(targets.next_weight)[0, :6], [0, 0, 0, .5, .5, 0])
    np.testing.assert_allclose(np.asarray(targets.self_weight)[0, :6], masked / (2 * rate),
                               rtol=1e-6)
    assert targets.next_label[0, 3] == 2 and targets.self_label[0, 3] == V.end_of_chunk
    if masked[3]:
      assert targets.token[0, 3] == V.mask
      both += 1
  assert 5 < both < 25


def test_targets_never_fall_on_prompt_or_pad():
  for seed in range(5):
    _, batch = batches.packed(np.random.default_rng(seed), rows=4, seq_len=LENGTH)
    for config in MODES.values():
      targets = corrupt(batch, jax.random.key(seed), config)
      open_to_loss = batch.supervised > 0
      assert (np.asarray(targets.self_weight)[~open_to_loss] == 0).all()
      following = np.pad(open_to_loss[:, 1:], ((0, 0), (0, 1)))
      assert (np.asarray(targets.next_weight)[~following] == 0).all()
      # nothing is predicted across the seam of two documents
      seam = np.pad(batch.document[:, 1:] != batch.document[:, :-1], ((0, 0), (0, 1)),
                    constant_values=True)
      assert (np.asarray(targets.next_weight)[seam] == 0).all()


def test_text_loss_ignores_the_noise_when_banom_keeps_audio_clean():
  """BANOM 1: other keys, same loss to the bit, and no diffusion term."""
  _, batch = batches.packed(np.random.default_rng(11), rows=4, seq_len=LENGTH)
  config = ObjectiveConfig(banom=1.0)
  seen = {tuple(terms_of(batch, jax.random.key(seed), config)) for seed in range(3)}
  assert len(seen) == 1
  ((ar, diffusion, _),) = seen
  assert ar > 0 and diffusion == 0
  noisy = {terms_of(batch, jax.random.key(seed), ObjectiveConfig(banom=0.0))[0]
           for seed in range(3)}
  assert len(noisy) == 3, 'without BANOM the noise is felt'


def test_the_pure_ar_baseline_is_never_noisy():
  _, batch = batches.packed(np.random.default_rng(12), rows=4, seq_len=LENGTH)
  targets = corrupt(batch, jax.random.key(0), MODES['ar'])
  np.testing.assert_array_equal(targets.token, batch.token)
  assert not np.asarray(targets.self_weight).any()
  first = np.pad(batch.position[:, 1:] == 0, ((0, 0), (0, 1)), constant_values=True)
  want = np.pad(batch.supervised[:, 1:] > 0, ((0, 0), (0, 1))) & ~first
  np.testing.assert_array_equal(np.asarray(targets.next_weight) > 0, want)


def test_the_pure_nar_baseline_has_no_next_token_loss_nor_banom_nor_ppm():
  _, batch = batches.packed(np.random.default_rng(12), rows=4, seq_len=LENGTH)
  targets = corrupt(batch, jax.random.key(0), ObjectiveConfig(mode='nar', banom=1.0, ppm=1.0))
  assert not np.asarray(targets.next_weight).any()
  np.testing.assert_array_equal(targets.maskable, batch.supervised > 0)


def test_diffusion_equals_any_order_prediction_on_average():
  """The 1/p-weighted loss, over many draws, is the mean over all orders of a span's tokens
  of -log p(token | unmasked tokens), per token (docs/method.md)."""
  ids = [1, V.begin_of_audio, V.code_start + 3, V.code_start, V.end_of_last]
  supervised, span = [0, 0, 1, 1, 1], (2, 3, 4)
  plain, config = weights.convert(PARAMS, CONFIG), ObjectiveConfig(banom=0.0, ppm=0.0)
  allowed = staircase.document_matrix(V, ids, supervised)
  costs = []
  for order in itertools.permutations(span):
    for turn, i in enumerate(order):
      hidden = [V.mask if j in order[turn:] else x for j, x in enumerate(ids)]
      costs.append(-decoder.log_softmax(decoder.logits(plain, hidden, allowed, V.size))[i, ids[i]])
  want = np.mean(costs)
  numbers = iter(range(1, 1000))
  batch = batches.layout([[(next(numbers), ids, supervised) for _ in range(12)]
                          for _ in range(4)], LENGTH)
  got = []
  for seed in range(100):
    _, diffusion, documents = terms_of(batch, jax.random.key(seed), config)
    got.append(diffusion / documents)
  assert abs(np.mean(got) - want) < 4 * np.std(got) / np.sqrt(len(got)), (np.mean(got), want)
  assert np.std(got) / np.sqrt(len(got)) < 0.04 * want, 'too few draws to say anything'


def test_term_weights():
  sums = hybrid.Sums(*(jnp.float32(x) for x in (6, 10, 2, 0, 0, 0, 0)))
  config = ObjectiveConfig(ar_weight=0.5, diffusion_weight=2.0)
  assert float(hybrid.loss(sums, jnp.float32(4), config)) == (0.5 * 6 + 2 * 10) / 4
  assert float(hybrid.loss(sums, sums.documents, ObjectiveConfig())) == 8
