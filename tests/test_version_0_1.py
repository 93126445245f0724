"""A workdir that version 0.1 trained still evaluates, generates, exports and resumes."""

import json
import pathlib
import tarfile

import numpy as np
import pytest

import ttt_jax
from tests import small_run
from ttt_jax import config as config_lib
from ttt_jax.errors import UserError
from ttt_jax.evaluate.evaluate import evaluate
from ttt_jax.generate.generate_files import generate_files
from ttt_jax.hf import export_hf
from ttt_jax.train import checkpoint
from ttt_jax.train.train import train

ARCHIVE = pathlib.Path(__file__).parent / 'fixtures' / 'workdir_0_1.tar.gz'


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """The tests below change it in their order: train comes last."""
  folder = tmp_path_factory.mktemp('version_0_1')
  with tarfile.open(ARCHIVE) as archive:
    archive.extractall(folder, filter='data')
  with small_run.one_device():  # as it was trained
    yield folder / 'workdir_0_1'


def test_it_evaluates_as_it_did(workdir):
  before = json.loads((workdir / 'evaluation.json').read_text())['summary']
  now = evaluate(config_lib.load(workdir / 'config.json'), workdir)['summary']
  assert now.keys() >= before.keys()
  for name, value in before.items():
    assert now[name] == pytest.approx(value, rel=1e-4), name


def test_it_generates_as_it_did(workdir, tmp_path):
  config = config_lib.load(workdir / 'config.json', {
      'generate.temperature': '1.0', 'generate.seed': '1', 'generate.max_tokens': '96'})
  inputs = {'task': 'tts', 'text': ['3 1 4'], 'audio': [], 'records': []}
  answers = generate_files(config, workdir, inputs, tmp_path / 'answers')
  before = json.loads((workdir / 'answers.json').read_text())
  assert [one['ids'] for one in answers] == [one['ids'] for one in before]


def test_it_exports(workdir, tmp_path):
  export_hf.export_hf(config_lib.load(workdir / 'config.json'), workdir, tmp_path / 'export')
  ours, exported = ttt_jax.load(workdir), ttt_jax.load(tmp_path / 'export')
  ids = ours.prompt('3 1 4')
  np.testing.assert_allclose(exported.logits(ids), ours.logits(ids), atol=1e-5)


def test_it_resumes(workdir):
  config = config_lib.load(workdir / 'config.json', {'train.steps': '9'})
  assert int(train(config, workdir).step) == 9
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  assert [line['step'] for line in lines if 'loss' in line] == list(range(1, 10))
  with checkpoint.open_existing(workdir / 'checkpoints') as checkpoints:
    assert checkpoints.meta(8)['progress']['step'] == 8
    assert checkpoints.meta(8)['config']['train']['batch_size'] == 4


@pytest.mark.parametrize('old, new', config_lib.RENAMED.items())
def test_an_old_key_names_the_new_one(tmp_path, old, new):
  group, key = old.split('.')
  file = tmp_path / 'config.py'
  file.write_text(f'def get_config():\n  return {{{group!r}: {{{key!r}: 1}}}}\n')
  with pytest.raises(UserError, match=f'config key {old} is unknown; since version 0.2 it is '
                                      f'called {new}'):
    config_lib.load(file)
  file.write_text('def get_config():\n  return {}\n')
  with pytest.raises(UserError, match=f'called {new}'):
    config_lib.load(file, {old: '1'})
