"""Training: meshes agree, a resumed run is the uninterrupted one, mistakes are sentences."""

import dataclasses
import json
import shutil

import chex
import jax
import numpy as np
import pytest

import ttt_jax
from tests import small_run
from ttt_jax.config import MeshConfig
from ttt_jax.data import loader, store
from ttt_jax.errors import UserError
from ttt_jax.model import sharding
from ttt_jax.model.transformer import Model
from ttt_jax.train import (
    checkpoint, metrics, optimizer as optimizers, state as train_state, step as train_step,
    train, trained_model)


@pytest.fixture
def config(small_config):
  return small_config


def two_steps(config, mesh):
  """(figures of two updates on ``mesh``, first moments after one, parameters after two).

  After one update AdamW's first moments are the clipped gradients times 1 - beta1.
  """
  vocab = store.vocabulary(config.data.path)
  model = Model(config.model, vocab.size)
  optimizer = optimizers.make(config.optimizer, config.train.steps)
  batches = loader.Loader(config.data.path, config.data, config.train.batch_size, config.seed,
                          vocab)
  with jax.set_mesh(mesh):
    state = train_state.init_sharded(model, optimizer, mesh, config.seed)
    step = train_step.make_train_step(config, model, vocab, optimizer, mesh)
    figures, moments = [], None
    for index in range(2):
      state, found = step(state, sharding.put_batch(mesh, batches.batch_at(index)))
      figures.append([float(found[name])
                      for name in ('loss', 'grad_norm', 'text_nll', 'masked_nll')])
      # Copies: the next step takes the state's memory.
      moments = moments or jax.tree.map(np.array, state.opt_state[1][0].mu)
  assert step._cache_size() == 1, 'the step was traced more than once'
  return np.array(figures), moments, jax.tree.map(np.asarray, state.params)


@pytest.fixture(scope='module')
def alone(small_config):
  """Two steps of the dense form on one device."""
  form = small_run.replace(small_config, 'model', attention='dense')
  return two_steps(form, sharding.make_mesh(MeshConfig(), jax.devices()[:1]))


def case(attention, grad_accum_steps=1, slow=False, **axes):
  name = '-'.join([attention, *(f'{axis}{size}' for axis, size in axes.items())])
  return pytest.param(MeshConfig(**axes), attention, grad_accum_steps, id=name,
                      marks=[pytest.mark.slow] if slow else [])


# Every axis once in the fast suite, every axis with both forms of attention in the slow one.
@pytest.mark.parametrize('mesh, attention, grad_accum_steps', [
    case('blockwise', fsdp=4, tensor=2),
    case('blockwise', fsdp=4, seq=2),
    case('blockwise', 2, slices=2, fsdp=2, tensor=2),
    case('dense', data=8, fsdp=1),
    case('dense', fsdp=4, seq=2, slow=True),
    case('dense', fsdp=8, slow=True),
    case('dense', fsdp=4, tensor=2, slow=True),
    case('blockwise', data=8, fsdp=1, slow=True),
    case('blockwise', fsdp=8, slow=True),
    case('blockwise', slices=2, data=2, fsdp=2, slow=True),
    case('blockwise', 2, data=2, fsdp=2, tensor=2, slow=True)])
def test_every_mesh_gives_the_same_steps(config, alone, mesh, attention, grad_accum_steps):
  form = small_run.replace(config, 'model', attention=attention, attention_block=64)
  form = small_run.replace(form, 'train', grad_accum_steps=grad_accum_steps)
  figures, moments, params = two_steps(form, sharding.make_mesh(mesh, jax.devices()[:8]))
  np.testing.assert_allclose(figures, alone[0], rtol=1e-5)
  scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(alone[1]))
  for mine, other in zip(jax.tree.leaves(moments), jax.tree.leaves(alone[1]), strict=True):
    np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5 * scale)
  # Adam divides by the root of tiny second moments, so single weights may differ by more.
  for mine, other in zip(jax.tree.leaves(params), jax.tree.leaves(alone[2]), strict=True):
    np.testing.assert_allclose(mine, other, atol=2e-3)


def test_microbatches_give_the_same_steps(config, alone):
  cut = small_run.replace(config, 'train', grad_accum_steps=4)
  figures, moments, _ = two_steps(cut, sharding.make_mesh(MeshConfig(), jax.devices()[:1]))
  np.testing.assert_allclose(figures, alone[0], rtol=1e-5)
  scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(alone[1]))
  for mine, other in zip(jax.tree.leaves(moments), jax.tree.leaves(alone[1]), strict=True):
    np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5 * scale)


def test_parameters_are_really_sharded(config):
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
  vocab = store.vocabulary(config.data.path)
  mesh = sharding.make_mesh(config.mesh)
  target = train_state.abstract(Model(config.model, vocab.size),
                                optimizers.make(config.optimizer, config.train.steps), mesh)
  with checkpoint.open_existing(workdir / 'checkpoints') as checkpoints:
    return jax.tree.map(np.asarray, checkpoints.restore(step, target)), checkpoints.meta(step)


@pytest.mark.usefixtures('one_device')
def test_five_and_five_steps_are_ten(config, ten_steps, tmp_path):
  resumed = tmp_path / 'resumed'
  # What a run leaves that is killed after step 7: metrics of 7 steps, a checkpoint of 5.
  shutil.copytree(ten_steps / 'checkpoints' / '5', resumed / 'checkpoints' / '5')
  lines = (ten_steps / 'metrics.jsonl').read_text().splitlines(keepends=True)
  (resumed / 'metrics.jsonl').write_text(''.join(
      line for line in lines if json.loads(line)['step'] <= 7))
  train.train(config, resumed)
  assert sorted(losses(ten_steps)) == list(range(1, 11))
  assert losses(resumed) == losses(ten_steps), 'a resumed run must give the very same losses'
  (state, meta), (other, other_meta) = saved(config, ten_steps, 10), saved(config, resumed, 10)
  for mine, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(other)):
    np.testing.assert_array_equal(mine, theirs)
  assert meta['data'] == other_meta['data'] == {'next': 10}


@pytest.mark.usefixtures('one_device')
def test_init_from_takes_parameters_and_starts_at_step_0(config, ten_steps, tmp_path):
  again = small_run.replace(config, 'train', init_from=str(ten_steps / 'checkpoints'), steps=1)
  # A learning rate of (nearly) nothing shows that the parameters are the other run's.
  again = small_run.replace(again, 'optimizer', learning_rate=1e-30)
  second = train.train(again, tmp_path / 'second')
  assert int(second.step) == 1
  first, _ = saved(config, ten_steps, 10)
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


@pytest.mark.usefixtures('one_device')
def test_another_model_is_refused_by_name(config, ten_steps):
  wider = small_run.replace(config, 'model', intermediate_size=128)
  with pytest.raises(UserError, match=r'intermediate_size was 64 and is 128; .*mlp'):
    train.train(wider, ten_steps)


@pytest.mark.usefixtures('one_device')
def test_another_vocabulary_is_refused(config, prepared, ten_steps, tmp_path):
  other = tmp_path / 'other'
  shutil.copytree(prepared, other)
  small_run.name_codec(other, 'another-codec')
  with pytest.raises(UserError, match='was trained with vocabulary'):
    train.train(small_run.replace(config, 'data', path=str(other)), ten_steps)


def test_schedule_warms_up_and_ends_at_its_fraction():
  settings = dataclasses.replace(small_run.config().optimizer, warmup_ratio=0.1, final_fraction=0.2)
  rate = optimizers.schedule(settings, 100)
  assert rate(0) == 0
  assert rate(5) == pytest.approx(settings.learning_rate / 2)
  assert rate(10) == pytest.approx(settings.learning_rate)
  assert rate(100) == pytest.approx(0.2 * settings.learning_rate)


def test_weights_are_read_on_the_devices_that_are_there(config, ten_steps, caplog):
  """Trained on one device, or on a mesh that these devices do not have; read by all of them."""
  caplog.set_level('INFO', 'ttt_jax')
  first = trained_model.load(config, ten_steps, mesh=sharding.make_mesh(
      MeshConfig(), jax.devices()[:1]))
  for axes, places in ((dict(fsdp=1), 8), (dict(data=2, tensor=2, fsdp=1), 8),
                       (dict(data=2, fsdp=2, tensor=2), 8), (dict(seq=3, fsdp=1), 8)):
    found = trained_model.load(dataclasses.replace(config, mesh=MeshConfig(**axes)), ten_steps)
    embedding = found.params['trunk']['embedding']
    assert len(embedding.sharding.device_set) == places
    chex.assert_trees_all_equal(found.params, first.params)
  assert 'mesh of the config (mesh.seq=3) does not fit the 8 devices here' in caplog.text
  # 3 and 6 devices do not divide a width of 32: the largest number that does is taken.
  assert train_state.reading_mesh(found.model, MeshConfig(fsdp=8), jax.devices()[:3]).size == 2
  assert train_state.reading_mesh(found.model, MeshConfig(), jax.devices()[:6]).size == 4
  loaded = ttt_jax.load(ten_steps, mesh=MeshConfig(fsdp=4, tensor=2))
  assert dict(loaded.params['trunk']['embedding'].sharding.mesh.shape) == {
      'slice': 1, 'data': 1, 'fsdp': 4, 'seq': 1, 'tensor': 2}
