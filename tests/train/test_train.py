"""Training: meshes agree, a resumed run is the uninterrupted one, mistakes are sentences."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from tests import small_run
from ttt_jax.config import MeshConfig
from ttt_jax.data import loader, store
from ttt_jax.data.prepare.prepare import prepare
from ttt_jax.errors import UserError
from ttt_jax.model import sharding
from ttt_jax.model.transformer import Model
from ttt_jax.train import (
    checkpoint, metrics, optimizer as optimizers, state as train_state, step as train_step,
    train)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('prepared')
  prepare(small_run.config(), folder)
  return folder / 'data'


@pytest.fixture
def config(data_dir):
  return small_run.replace(small_run.config(), 'data', path=str(data_dir))


def two_steps(config, data_dir, mesh):
  """Losses, gradient norms and parameters of two updates on ``mesh``."""
  vocab = store.vocabulary(data_dir)
  model = Model(config.model, vocab.size)
  optimizer = optimizers.make(config.optimizer, config.train.steps)
  batches = loader.Loader(data_dir, config.data, config.train.batch_size, config.seed, vocab)
  with jax.set_mesh(mesh):
    state = train_state.init_sharded(model, optimizer, mesh, config.seed)
    step = train_step.make_train_step(config, model, vocab, optimizer, mesh)
    figures = []
    for index in range(2):
      state, found = step(state, sharding.put_batch(mesh, batches.batch_at(index)))
      figures.append([float(found[name]) for name in ('loss', 'grad_norm', 'text_nll')])
  assert step._cache_size() == 1, 'the step was traced more than once'
  return np.array(figures), jax.tree.map(np.asarray, state.params)


@pytest.fixture(scope='module')
def one_device(data_dir):
  config = small_run.replace(small_run.config(), 'data', path=str(data_dir))
  return two_steps(config, data_dir, sharding.make_mesh(MeshConfig(), jax.devices()[:1]))


@pytest.mark.parametrize('mesh', [
    MeshConfig(data=8, fsdp=1), pytest.param(MeshConfig(fsdp=8), marks=pytest.mark.slow),
    pytest.param(MeshConfig(fsdp=4, tensor=2), marks=pytest.mark.slow),  # test_scale.py has both
    MeshConfig(fsdp=4, seq=2)], ids=str)
def test_every_mesh_gives_the_same_losses(config, data_dir, one_device, mesh):
  figures, params = two_steps(config, data_dir, sharding.make_mesh(mesh, jax.devices()[:8]))
  np.testing.assert_allclose(figures, one_device[0], rtol=1e-5)
  # Adam divides by the root of tiny second moments, so single weights may differ by more.
  for mine, other in zip(jax.tree.leaves(params), jax.tree.leaves(one_device[1])):
    np.testing.assert_allclose(mine, other, atol=2e-3)


def test_microbatches_give_the_same_losses(config, data_dir, one_device):
  cut = small_run.replace(config, 'train', grad_accum_steps=4)
  figures, _ = two_steps(cut, data_dir, sharding.make_mesh(MeshConfig(), jax.devices()[:1]))
  np.testing.assert_allclose(figures, one_device[0], rtol=1e-5)


def test_parameters_are_really_sharded(config, data_dir):
  mesh = sharding.make_mesh(MeshConfig(fsdp=4, tensor=2), jax.devices()[:8])
  model = Model(config.model, 900)
  state = train_state.init_sharded(model, optimizers.make(config.optimizer, 10), mesh, 0)
  for tree in (state.params, state.opt_state[1][0].mu):
    kernel = tree['layers']['mlp']['gate']['kernel']
    assert kernel.shape == (2, 32, 64)
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 8, 32)}


def losses(workdir):
  return {line['step']: line['loss'] for line in metrics.read(workdir) if 'loss' in line}


def saved(config, workdir, step):
  vocab = store.vocabulary(workdir / config.data.path)
  mesh = sharding.make_mesh(config.mesh)
  target = train_state.abstract(Model(config.model, vocab.size),
                                optimizers.make(config.optimizer, config.train.steps), mesh)
  with checkpoint.open_existing(workdir / 'checkpoints') as checkpoints:
    return jax.tree.map(np.asarray, checkpoints.restore(step, target)), checkpoints.meta(step)


def test_five_and_five_steps_are_ten(config, tmp_path):
  whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
  train.train(config, whole)
  # What a run leaves that is killed after step 7: metrics of 7 steps, a checkpoint of 5.
  shutil.copytree(whole / 'checkpoints' / '5', resumed / 'checkpoints' / '5')
  lines = (whole / 'metrics.jsonl').read_text().splitlines(keepends=True)
  (resumed / 'metrics.jsonl').write_text(''.join(
      line for line in lines if json.loads(line)['step'] <= 7))
  train.train(config, resumed)
  assert sorted(losses(whole)) == list(range(1, 11))
  assert losses(resumed) == losses(whole), 'a resumed run must give the very same losses'
  (state, meta), (other, other_meta) = saved(config, whole, 10), saved(config, resumed, 10)
  for mine, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(other)):
    np.testing.assert_array_equal(mine, theirs)
  assert meta['data'] == other_meta['data'] == {'next': 10}


def test_init_from_takes_parameters_and_starts_at_step_0(config, tmp_path):
  short = small_run.replace(config, 'train', steps=2, checkpoint_every=2)
  first = train.train(short, tmp_path / 'first')
  again = small_run.replace(short,
                            'train',
                            init_from=str(tmp_path / 'first' / 'checkpoints'),
                            steps=1)
  # A learning rate of (nearly) nothing shows that the parameters are the other run's.
  again = small_run.replace(again, 'optimizer', learning_rate=1e-30)
  second = train.train(again, tmp_path / 'second')
  assert int(second.step) == 1
  for mine, theirs in zip(jax.tree.leaves(first.params), jax.tree.leaves(second.params)):
    np.testing.assert_allclose(mine, theirs, atol=1e-7)


@pytest.mark.parametrize('section, values, words', [
    ('train', {'batch_size': 6}, 'train.batch_size=6'),
    ('mesh', {'data': 3, 'fsdp': 1}, 'mesh.data=3'),
    ('model', {'hidden_size': 36}, "along its 'embed' axis"),
    ('data', {'seq_len': 128}, 'data.seq_len is 128'),
])
def test_a_config_that_cannot_work_is_a_sentence(config, tmp_path, section, values, words):
  with pytest.raises(UserError, match=words.replace('.', r'\.')) as error:
    train.train(small_run.replace(config, section, **values), tmp_path / 'run')
  assert str(error.value).endswith('.')
  assert not (tmp_path / 'run' / 'config.json').exists()


def test_another_model_is_refused_by_name(config, tmp_path):
  short = small_run.replace(config, 'train', steps=1)
  train.train(short, tmp_path)
  wider = small_run.replace(short, 'model', intermediate_size=128)
  with pytest.raises(UserError, match=r'layers\.mlp\.gate\.kernel: checkpoint has \(2, 32, 64\)'):
    train.train(wider, tmp_path)


def test_another_vocabulary_is_refused(config, data_dir, tmp_path):
  short = small_run.replace(config, 'train', steps=1)
  train.train(short, tmp_path / 'run')
  other = tmp_path / 'other'
  shutil.copytree(data_dir, other)
  manifest = json.loads((other / 'manifest.json').read_text())
  manifest['vocabulary']['codec'] = 'another-codec'
  (other / 'manifest.json').write_text(json.dumps(manifest))
  with pytest.raises(UserError, match='was trained with vocabulary'):
    train.train(small_run.replace(short, 'data', path=str(other)), tmp_path / 'run')


def test_schedule_warms_up_and_ends_at_its_fraction():
  settings = dataclasses.replace(small_run.config().optimizer, warmup_ratio=0.1, final_fraction=0.2)
  rate = optimizers.schedule(settings, 100)
  assert rate(0) == 0
  assert rate(5) == pytest.approx(settings.learning_rate / 2)
  assert rate(10) == pytest.approx(settings.learning_rate)
  assert rate(100) == pytest.approx(0.2 * settings.learning_rate)
