"""Weights at URLs of buckets: what goes in and out is what goes in and out on a disk."""

import json

import chex
import jax
import numpy as np
import pytest

import ttt_jax
from tests import small_run
from tests.hf import directories
from ttt_jax.cli import main
from ttt_jax.config import to_dict
from ttt_jax.data import store
from ttt_jax.hf import import_hf
from ttt_jax.storage import remote
from ttt_jax.train import trained_model

pytestmark = [pytest.mark.storage, pytest.mark.slow]


@pytest.fixture(scope='module')
def model(tmp_path_factory, prepared):
  """(folder with config.json and weights, the config's file)."""
  folder = tmp_path_factory.mktemp('model')
  config = small_run.replace(small_run.config(steps=2), 'data', path=str(prepared))
  vocab = store.vocabulary(prepared)
  directories.write(folder / 'm', config.model, vocab.size, shard_bytes=30_000,
                    audio_token_id_start=vocab.audio_threshold, mask_token=vocab.mask)
  (folder / 'c.json').write_text(json.dumps(to_dict(config)))
  return folder / 'm', folder / 'c.json'


def run(*words):
  return main.main([str(word) for word in words])


def import_(hf, config, workdir, *more):
  return run('import-hf', '--hf', hf, '--config', config, '--workdir', workdir, *more)


def params(workdir):
  return trained_model.load(ttt_jax.config.load(workdir / 'config.json', {}), workdir).params


def test_import(bucket, model, tmp_path, capsys):
  folder, config = model
  url = f'{bucket}/models/m'
  remote.upload_folder(folder, url)
  assert import_(url, config, tmp_path / 'there') == 0
  assert f'from {url}' in capsys.readouterr().out
  assert import_(folder, config, tmp_path / 'here') == 0
  chex.assert_trees_all_equal(params(tmp_path / 'there'), params(tmp_path / 'here'))
  report = json.loads((tmp_path / 'there' / import_hf.ORIGIN / import_hf.IMPORT).read_text())
  assert report['directory'] == url
  remote.remove(f'{url}/{next(folder.glob("*.safetensors")).name}')
  assert import_(url, config, tmp_path / 'again') == 2
  said = capsys.readouterr().err
  assert f'{url}/model.safetensors.index.json names the file' in said and 'cache' not in said


def test_load(gs_bucket, model):
  folder, _ = model
  remote.upload_folder(folder, f'{gs_bucket}/m')
  here, there = ttt_jax.load(folder), ttt_jax.load(f'{gs_bucket}/m')
  ids = here.prompt('What?')
  np.testing.assert_array_equal(here.logits(ids), there.logits(ids))
  jax.tree.map(np.testing.assert_array_equal, here.params, there.params)
