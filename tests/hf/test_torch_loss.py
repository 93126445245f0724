"""Our loss and gradients beside PyTorch's, for the same noise: packed rows, every strategy."""

import jax
import numpy as np
import pytest

from tests.objective import test_hybrid as drawn
from tests.reference import batches, quick
from ttt_jax.config import ObjectiveConfig
from ttt_jax.model.transformer import Model
from ttt_jax.objective import hybrid

torch = pytest.importorskip('torch')
pytest.importorskip('transformers')

from tests.hf import torch_models  # noqa: E402
from tests.reference import torch_loss  # noqa: E402

V = batches.VOCAB
LENGTH = 64
MODES = {
    'published': ObjectiveConfig(banom=0.3, ppm=0.3),
    'plain': ObjectiveConfig(banom=0.0, ppm=0.0),
    'BANOM by batch': ObjectiveConfig(banom=0.5, banom_unit='batch', ppm=0.0),
    'PPM always': ObjectiveConfig(banom=0.0, ppm=1.0),
    'BANOM always': ObjectiveConfig(banom=1.0),
    'causal prompt': ObjectiveConfig(prompt_audio='causal', banom=0.0),
    'weighted': ObjectiveConfig(ar_weight=0.7, diffusion_weight=1.3, banom=0.0),
    'pure AR': ObjectiveConfig(mode='ar'), 'pure NAR': ObjectiveConfig(mode='nar'),
}
MODELS = {name: Model(config, V.size) for name, config in torch_models.SHAPES.items()}


@quick.jit_with(static_argnums=(0, 4))
def scored(model, params, batch, targets, config):
  """((objective, Sums), gradient) of the mean over documents."""
  return jax.value_and_grad(
      lambda params: hybrid.loss_and_sums(model, params, batch, targets, config, targets.documents),
      has_aux=True)(params)


def compare(shape, config, seed, **rows):
  """Both terms to 1e-5, every parameter's gradient to 1e-4; (documents, noises)."""
  model = MODELS[shape]
  params = torch_models.weights.random(model, np.random.default_rng(seed), scale=0.25)
  plan, batch = batches.packed(np.random.default_rng(seed), rows=4, seq_len=LENGTH, **rows)
  targets = drawn.corrupt(batch, jax.random.key(seed), config)
  documents, noises = drawn.all_noise(plan, targets, config.mode)
  (objective, sums), gradient = scored(model, params, batch, targets, config)

  tied = model.config.tie_word_embeddings
  net = torch_loss.model(model.config, torch_models.named(params, V.size, tied), V.size)
  ar, diffusion = torch_loss.terms(net, plan, LENGTH, noises, V, config.mode,
                                   config.prompt_audio)
  loss = config.ar_weight * ar + config.diffusion_weight * diffusion
  loss.backward()
  count = len(documents)
  for ours, theirs in ((sums.ar / count, ar), (sums.diffusion / count, diffusion),
                       (objective, loss)):
    np.testing.assert_allclose(float(ours), float(theirs), rtol=1e-5, atol=1e-6)
  mine = torch_models.named(gradient, V.size, tied)
  other = {name: weight.grad for name, weight in net.named_parameters()}
  assert mine.keys() == other.keys()
  for name, grad in mine.items():
    want = other[name].numpy()
    scale = np.abs(want).max()
    assert scale > 0, name
    np.testing.assert_allclose(grad, want, rtol=1e-4, atol=1e-4 * scale, err_msg=name)
    assert np.linalg.norm(grad - want) <= 1e-4 * np.linalg.norm(want), name
  return documents, noises


@pytest.mark.parametrize('mode', MODES)
def test_loss_and_gradients(mode):
  _, noises = compare('untied', MODES[mode], 1)
  assert any(noise.masked.any() for noise in noises) == (mode not in ('pure AR', 'BANOM always'))


@pytest.mark.parametrize('shape', torch_models.SHAPES)
def test_loss_and_gradients_of_other_shapes(shape):
  compare(shape, MODES['published'], 2)


def test_documents_that_sst_has_cut():
  compare('untied', MODES['published'], 3, kinds=('sst', 'multiturn'))


def test_the_strategies_really_speak():
  """Over a few batches: documents without noise by BANOM, and spans that PPM keeps clean."""
  noises = [noise for seed in range(4, 7) for noise in compare('untied', MODES['published'],
                                                              seed)[1]]
  assert any(noise.banom for noise in noises) and any(noise.start for noise in noises)


@pytest.mark.slow
@pytest.mark.parametrize('shape', torch_models.SHAPES)
@pytest.mark.parametrize('mode', MODES)
def test_loss_and_gradients_many_times(mode, shape):
  for seed in range(20, 26):
    compare(shape, MODES[mode], seed)
