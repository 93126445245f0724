"""Weights at URLs of buckets: what goes in and out is what goes in and out on a disk."""

import json
import os

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
from ttt_jax.errors import RetryableError
from ttt_jax.hf import import_hf
from ttt_jax.storage import mirror, publish, remote
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


def files(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_export(bucket, model, tmp_path, capsys):
  workdir, url = tmp_path / 'run', f'{bucket}/exports/a'
  assert import_(*model, workdir) == 0
  def export(out, *more):
    return run('export-hf', '--workdir', workdir, '--out', out, *more)
  assert export(tmp_path / 'here', '--shard-gb', '3e-5') == 0
  assert export(url, '--shard-gb', '3e-5') == 0
  assert f'{url}: step 0' in capsys.readouterr().out
  remote.download_folder(url, tmp_path / 'there')
  assert files(tmp_path / 'there') == files(tmp_path / 'here')
  assert [*(remote.cache_folder() / 'uploads').rglob('*.json')] == []
  assert import_(url, model[1], tmp_path / 'again') == 0
  chex.assert_trees_all_equal(params(tmp_path / 'again'), params(workdir))
  capsys.readouterr()
  assert export(url) == 2
  assert f'{url} holds an earlier export; add --overwrite' in capsys.readouterr().err
  assert export(url, '--overwrite') == 0  # in one file: those of the shards are removed
  assert [name for name in remote.files(url) if 'safetensors' in name] == ['model.safetensors']
  remote.write_bytes(f'{url}/notes.txt', b'mine')
  there = remote.files(url)
  assert export(url, '--overwrite') == 2
  assert 'notes.txt is not one of its files' in capsys.readouterr().err
  assert remote.files(url) == there
  assert export(f'{bucket.split("://")[0]}://no-such-bucket/a') == 2
  assert 'bucket' in capsys.readouterr().err
  assert export(url.partition('/exports')[0].rpartition('/')[0]) == 2
  assert 'a whole bucket; name a folder in it' in capsys.readouterr().err


def test_an_interrupted_upload_is_continued(gs_bucket, model, tmp_path, monkeypatch, capsys):
  workdir, url = tmp_path / 'run', f'{gs_bucket}/a'
  assert import_(*model, workdir) == 0
  upload, sent = remote.upload, []
  def broken(path, place):
    sent.append(remote.name(place))
    if sent[-1] == 'config.json' and fails:
      raise RetryableError('the server is down')
    upload(path, place)
  monkeypatch.setattr(remote, 'upload', broken)
  command = ['export-hf', '--workdir', workdir, '--out', url]
  fails = True
  assert run(*command) == 1 and 'model.safetensors' in sent
  assert not remote.exists(f'{url}/config.json')
  assert import_(url, model[1], tmp_path / 'none') == 2
  capsys.readouterr()
  fails = False
  sent.clear()
  assert run(*command) == 0
  assert sent == ['config.json', 'training.json']  # the others had arrived


def test_an_export_in_its_workdir(gs_bucket, model, tmp_path):
  workdir = f'{gs_bucket}/run'
  assert import_(*model, workdir) == 0
  assert run('export-hf', '--workdir', workdir, '--out', f'{workdir}/export') == 0
  assert run('status', '--workdir', workdir) == 0
  assert run('export-hf', '--workdir', workdir, '--out', f'{workdir}/export', '--overwrite') == 0
  assert remote.exists(f'{workdir}/export/model.safetensors')
  assert not (mirror.folder_of(workdir) / 'export').exists()


def test_adapter(bucket, model, tmp_path, capsys):
  folder, config = model
  lora = ('--config.model.lora.rank=2', '--config.model.lora.alpha=4')
  assert import_(folder, config, tmp_path / 'a', *lora) == 0
  url = f'{bucket}/adapter'
  assert run('export-hf', '--workdir', tmp_path / 'a', '--out', url, '--part', 'adapter') == 0
  assert 'adapter_config.json' in remote.files(url) and 'config.json' not in remote.files(url)
  assert import_(folder, config, tmp_path / 'b', '--adapter', url, *lora) == 0
  assert f'the adapter in {url} names no base' in capsys.readouterr().out
  chex.assert_trees_all_equal(params(tmp_path / 'a'), params(tmp_path / 'b'))
  assert import_(folder, config, tmp_path / 'c', '--adapter', f'{url}/no', *lora) == 2
  assert f'--adapter: {url}/no does not exist' in capsys.readouterr().err


def test_the_base_of_an_adapter(gs_bucket, model, tmp_path, capsys):
  folder, config = model
  lora = ('--config.model.lora.rank=2', '--config.model.lora.alpha=4')
  assert import_(folder, config, tmp_path / 'a', *lora) == 0
  def export(out, *more):
    return run('export-hf', '--workdir', tmp_path / 'a', '--out', out, *more)
  base, whole = f'{gs_bucket}/base', f'{gs_bucket}/merged'
  assert export(base, '--part', 'base') == 0 and export(whole) == 0
  adapter = ('--part', 'adapter', '--base')
  assert export(tmp_path / 'x', *adapter, base) == 0
  named = json.loads((tmp_path / 'x' / 'adapter_config.json').read_text())
  assert named['base_model_name_or_path'] == base
  assert export(tmp_path / 'y', *adapter, f'{gs_bucket}/later') == 0
  capsys.readouterr()
  for wrong, said in ((whole, f"--base {whole} is the part 'merged' of a model"),
                      ('gs://no-such-bucket/a', 'the bucket of gs://no-such-bucket/a does not'),
                      (base.replace('://', ':/'), f'write {base}'),
                      ('https://a.org/base', '--base is https://a.org/base, which is not a path')):
    assert export(tmp_path / 'z', *adapter, wrong) == 2
    assert said in capsys.readouterr().err
  assert not (tmp_path / 'z').exists()


def test_one_export_at_a_time(gs_bucket, model, tmp_path, capsys):
  """The first one is another process, which lives."""
  assert import_(*model, tmp_path / 'w') == 0
  url = f'{gs_bucket}/out'
  with publish.leased(url, '--out'):
    capsys.readouterr()
    assert run('export-hf', '--workdir', tmp_path / 'w', '--out', url) == 2
    assert f'--out {url} is in use by process {os.getpid()}' in capsys.readouterr().err
  assert run('export-hf', '--workdir', tmp_path / 'w', '--out', url) == 0
  assert not [name for name in remote.files(url) if 'owner' in name]


def test_load(gs_bucket, model):
  folder, _ = model
  remote.upload_folder(folder, f'{gs_bucket}/m')
  here, there = ttt_jax.load(folder), ttt_jax.load(f'{gs_bucket}/m')
  ids = here.prompt('What?')
  np.testing.assert_array_equal(here.logits(ids), there.logits(ids))
  jax.tree.map(np.testing.assert_array_equal, here.params, there.params)
