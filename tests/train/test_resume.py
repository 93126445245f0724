"""A resumed run: every setting that decides a result is compared with the checkpoint's note."""

import dataclasses
import json
import shutil

import pytest

from tests import small_run
from ttt_jax.config import Config, Stage, flat
from ttt_jax.data import store
from ttt_jax.errors import UserError
from ttt_jax.model import sharding
from ttt_jax.model.transformer import Model
from ttt_jax.train import (
    checkpoint, checksums, optimizer as optimizers, restore, resume, state as train_state,
    status_file, train)
from ttt_jax.train.loop import RunProgress

pytestmark = pytest.mark.usefixtures('one_device')


@pytest.fixture
def config(small_config):
  return small_config


def changed(config, **keys):
  """``config`` with 'group__key' changed."""
  for key, value in keys.items():
    group, _, name = key.rpartition('__')
    config = (small_run.replace(config, group, **{name: value}) if group
              else dataclasses.replace(config, **{name: value}))
  return config


def said(config, workdir, step=10, dataset=None):
  """What a resume from a checkpoint says; UserError if it refuses to."""
  with checkpoint.open_existing(workdir / 'checkpoints') as checkpoints:
    rows = store.fingerprints(config.data.path) if dataset is None else dataset
    vocab = store.vocabulary(config.data.path)
    mesh = sharding.make_mesh(config.mesh)
    target = train_state.abstract(Model(config.model, vocab.size), optimizers.make(
        config.optimizer, config.train.steps), mesh)
    resume.check(checkpoints, step, config, target)
    return list(resume.sentences(checkpoints, step, config, rows))


def test_every_setting_has_a_place():
  tables = [*resume.SIZES, *resume.CONSTANTS, *resume.ADAPTERS, *resume.OPTIMIZER,
            *resume.ARRAYS, *resume.SCHEDULE, *resume.SAID, *resume.FREE]
  for key in flat(Config()):
    parts = key.split('.')
    place = [name for name in tables if name in (key, parts[0] if len(parts) > 1 else '')]
    assert place, f'{key}: say in train/resume.py what its change does to a resumed run'
  assert set(tables) <= {*flat(Config()), *vars(Config())}


def test_the_same_settings_say_nothing(config, ten_steps):
  assert said(config, ten_steps) == []
  free = changed(config, mesh__fsdp=8, train__log_every=7, model__remat='full', name='other',
                 data__threads=0, generate__steps=2)
  assert said(free, ten_steps) == []


@pytest.mark.parametrize('keys, expected', [
    ({'seed': 7}, 'config key seed was 0 when checkpoint 10 was written and is 7 now; the order'),
    ({'train__batch_size': 4}, 'train.batch_size was 8 when checkpoint 10'),
    ({'data__stages': (Stage('train', 3), Stage())}, 'rows may repeat or be left out'),
    ({'data__sst': 0.0}, 'data.sst was 0.5'),
    ({'objective__banom': 0.0}, 'losses cannot be compared'),
    ({'optimizer__weight_decay': 0.5}, 'optimizer.weight_decay was 0.01'),
    ({'optimizer__max_grad_norm': 2.0}, 'optimizer.max_grad_norm was 1.0'),
    ({'model__dtype': 'bfloat16'}, "model.dtype was 'float32'"),
    ({'train__init_from': 'nowhere'}, 'train.init_from=nowhere is not read: the run goes on from '
                                      'checkpoint 10'),
    ({'train__steps': 40}, 'train.steps was 10 when checkpoint 10 was written and is 40 now: the '
     'learning rate of the next step is 0.00297 instead of 0; optimizer.schedule_steps=10 keeps'),
    ({'optimizer__learning_rate': 1e-3, 'train__steps': 12, 'optimizer__schedule_steps': 10,
      'optimizer__final_fraction': 0.5}, 'the learning rate of the next step is 0.0005 instead of '
     '0.'),
])
def test_what_changes_a_result_is_said(config, ten_steps, keys, expected):
  found = said(changed(config, **keys), ten_steps)
  assert len(found) == 1 and expected in found[0]


def test_the_earlier_schedule_can_be_kept(config, ten_steps):
  longer = changed(config, train__steps=40, optimizer__schedule_steps=10)
  assert said(longer, ten_steps) == []
  rates = [optimizers.schedule(c.optimizer, c.train.steps) for c in (config, longer)]
  assert [float(rates[0](n)) for n in range(12)] == [float(rates[1](n)) for n in range(12)]


def test_rows_that_were_prepared_anew_are_noticed(config, ten_steps):
  rows = store.fingerprints(config.data.path)
  assert said(config, ten_steps, dataset=rows | {'heldout': 'x'}) == []
  found, = said(config, ten_steps, dataset=rows | {'train': 'x'})
  assert "the rows of split 'train'" in found and 'prepared anew' in found


@pytest.mark.parametrize('keys, expected', [
    ({'model__rope_theta': 100.0}, r'model.rope_theta was 1000000.0 and is 100.0; use the values '
     r'of the checkpoint, or another workdir with train.init_from=.*/checkpoints/10\.$'),
    ({'model__num_attention_heads': 2, 'model__num_key_value_heads': 1, 'model__head_dim': 16},
     r'model.num_attention_heads was 4 and is 2; .*head_dim was 8 and is 16; use the values of the '
     r'checkpoint, or another workdir\.$'),
    ({'optimizer__name': 'adafactor'}, "optimizer.name was 'adamw' and is 'adafactor'; opt_state"
                                       r'.* and \d+ more arrays; .* with train.init_from='),
    ({'optimizer__max_grad_norm': 0.0}, r'optimizer.max_grad_norm was 1.0 and is 0.0; opt_state'),
    ({'model__lora': dataclasses.replace(Config().model.lora, rank=4)},
     r'model.lora.rank was 0 and is 4; .* and \d+ more arrays; .* with train.init_from='),
    ({'model__hidden_size': 48}, r'model.hidden_size was 32 and is 48; params.*another workdir\.$'),
])
def test_a_model_that_differs_ends_the_run(config, ten_steps, keys, expected):
  with pytest.raises(UserError, match=expected) as error:
    said(changed(config, **keys), ten_steps)
  assert len(str(error.value)) < 900 and str(error.value).count('checkpoint has') <= 3


def without_fields(workdir, target, step, *names):
  """A copy of a run whose checkpoint lacks some fields of its note, as earlier versions wrote."""
  folder = target / 'checkpoints' / str(step)
  shutil.copytree(workdir / 'checkpoints' / str(step), folder)
  metadata = checksums.read_metadata(folder)
  for name in names:
    metadata['meta'].pop(name)
  seal = checksums._read_signed(folder / checksums.SEAL, checksums.SealFile)
  checksums._write_signed(folder / checksums.SEAL, seal | {'notes': metadata})


def test_notes_of_earlier_versions_resume(config, ten_steps, tmp_path):
  without_fields(ten_steps, tmp_path / 'a', 10, 'dataset')
  assert said(config, tmp_path / 'a') != []  # data.path was relative when it was written
  assert 'if the rows are others' in said(config, tmp_path / 'a')[0]
  without_fields(ten_steps, tmp_path / 'b', 10, 'dataset', 'config')
  assert said(config, tmp_path / 'b') == []
  assert RunProgress.read({'step': 3, 'of_another_version': 1}) == RunProgress(step=3)


def test_a_run_that_has_all_its_steps_is_left_alone(config, ten_steps, tmp_path, caplog):
  caplog.set_level('INFO', 'ttt_jax')
  shutil.copytree(ten_steps, tmp_path / 'run')
  before = {path: path.read_bytes() for path in (tmp_path / 'run').rglob('*')
            if path.is_file() and path.name != status_file.FILE}
  fewer = changed(config, train__steps=6, seed=3)
  assert int(train.train(fewer, tmp_path / 'run').step) == 10
  assert 'checkpoint 10 has all 6 steps' in caplog.text
  assert before == {path: path.read_bytes() for path in before}
  status = status_file.read(tmp_path / 'run')
  assert (status['state'], status['step'], status['steps']) == ('done', 10, 10)
  assert 'seed was 0' in json.dumps(status['errors'])


@pytest.mark.parametrize('place', ['', 'checkpoints', 'checkpoints/5', 'checkpoints/10'])
def test_init_from_takes_a_run_its_checkpoints_or_one(ten_steps, place):
  source, step = restore.initial(str(ten_steps / place), lambda *found: found, 'checksums')
  assert step == (5 if place.endswith('/5') else 10)
  assert source.directory == ten_steps / 'checkpoints'


def test_a_workdir_may_have_the_characters_of_patterns(ten_steps, tmp_path):
  shutil.copytree(ten_steps / 'checkpoints' / '5', tmp_path / 'run[1]' / 'checkpoints' / '5')
  source, step = restore.initial(str(tmp_path / 'run[1]'), lambda *found: found, 'checksums')
  assert step == 5 and 'opt_state' in source.stored(5)


def test_init_from_of_something_else_is_a_sentence(ten_steps, tmp_path):
  for path in (tmp_path, tmp_path / 'none', ten_steps / 'checkpoints' / '7'):
    with pytest.raises(UserError, match='config key train.init_from is .*; name the workdir'):
      restore.initial(str(path), lambda *found: found, 'sizes')
  for name in ('\u00b2', '005'):  # digits, but not the names that checkpoints have
    shutil.copytree(ten_steps / 'checkpoints' / '5', tmp_path / name)
    with pytest.raises(UserError, match='config key train.init_from is .*; name the workdir'):
      restore.initial(str(tmp_path / name), lambda *found: found, 'sizes')
  (tmp_path / 'best').symlink_to(ten_steps / 'checkpoints' / '5')
  assert restore.initial(str(tmp_path / 'best'), lambda *found: found, 'sizes')[1] == 5
  (tmp_path / 'model.safetensors').touch()
  with pytest.raises(UserError, match='import it with `ttt-jax import-hf --hf'):
    restore.initial(str(tmp_path), lambda *found: found, 'sizes')
  shutil.copytree(ten_steps / 'checkpoints' / '5', tmp_path / '5')
  file = max((tmp_path / '5' / 'params').rglob('*'), key=lambda path: path.stat().st_size)
  file.write_bytes(file.read_bytes()[:-1])
  with pytest.raises(UserError, match='checkpoint .*/5 is corrupt'):
    restore.initial(str(tmp_path / '5'), lambda *found: found, 'sizes')


def test_init_from_compares_vocabularies(config, prepared, ten_steps, tmp_path):
  shutil.copytree(prepared, tmp_path / 'data')
  small_run.name_codec(tmp_path / 'data', 'another-codec')
  start = changed(config, data__path='data', train__init_from=str(ten_steps))
  with pytest.raises(UserError, match='was trained with vocabulary .*prepare the data with its'):
    train.train(start, tmp_path)


def test_epochs_give_the_number_of_steps(config, prepared, caplog):
  caplog.set_level('INFO', 'ttt_jax')
  rows = store.read_manifest(prepared)['splits']['train']['rows']
  found = train.with_steps(changed(config, train__epochs=2.5), prepared)
  assert found.train.steps == -(-5 * rows // (2 * 8)) and f'{rows:,} rows' in caplog.text
  assert train.with_steps(found, prepared) == found
  with pytest.raises(UserError, match='train.epochs is 1, but data.stages has several stages'):
    train.with_steps(changed(config, train__epochs=1.0, data__stages=(Stage('train', 3), Stage())),
                     prepared)
  with pytest.raises(UserError, match='has a mix'):
    train.with_steps(changed(config, train__epochs=1.0, data__stages=(
        Stage(mix={'train': 1.0, 'heldout': 1.0}),)), prepared)


def test_early_stopping_counts_evaluations_without_a_better_score():
  progress, patience = RunProgress(), []
  for step, score in enumerate([5.0, 4.0, 3.99, 4.5, float('nan'), 3.0], 1):
    progress.add_score(score, step, threshold=0.1)
    patience.append((progress.no_better, progress.best_step))
  assert patience == [(0, 1), (0, 2), (1, 3), (2, 3), (3, 3), (0, 6)]
  with pytest.raises(UserError, match='early_stopping_patience is 2, which needs train.keep_best'):
    small_run.config(early_stopping_patience=2)


def test_a_run_stops_early_also_when_it_was_interrupted(config, tmp_path):
  """At a rate of nothing no score gets better: the run ends after the first evaluation and two
  more, of which the last follows a resume."""
  still = changed(config, optimizer__learning_rate=1e-30, train__steps=9, train__eval_every=1,
                  optimizer__schedule_steps=9, train__eval_batches=1, train__keep_best='loss',
                  train__keep=1, train__checkpoint_every=100, train__early_stopping_patience=2,
                  train__early_stopping_threshold=1e-3, train__tensorboard=False)
  assert int(train.train(changed(still, train__steps=2), tmp_path).step) == 2
  assert int(train.train(still, tmp_path).step) == 3
  assert status_file.read(tmp_path)['state'] == 'done'
  with checkpoint.open_existing(tmp_path / 'checkpoints') as checkpoints:
    progress = checkpoints.meta(3)['progress']
    assert progress['no_better'] == 2 and progress['best_step'] in checkpoints.steps()
  assert int(train.train(still, tmp_path).step) == 3, 'the same command again'
