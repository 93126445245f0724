"""In, trained, out: what comes back is what went in, and what was trained computes the same."""

import dataclasses
import json
import os
import shutil

import chex
import jax
import numpy as np
import pytest

from tests import small_run
from tests.hf import directories
from ttt_jax.cli import main
from ttt_jax.config import LoraConfig, load, to_dict
from ttt_jax.data import store
from ttt_jax.errors import UserError
from ttt_jax.hf import export_hf, import_hf, peft, qwen_config, tensor_names
from ttt_jax.model.transformer import Model
from ttt_jax.storage import lease, safetensors_io
from ttt_jax.train import (
    checkpoint, checksums, optimizer as optimizers, state as train_state, trained_model)

NEW = 60  # ids that the imported directory lacks


@pytest.fixture(scope='module')
def imported(tmp_path_factory, prepared):
  """(workdir, config, tensors of the directory): imported, untied, with new rows."""
  workdir = tmp_path_factory.mktemp('imported')
  config = small_run.replace(small_run.config(steps=2), 'model', tie_word_embeddings=False)
  config = small_run.replace(config, 'data', path=str(prepared))
  vocab = store.vocabulary(prepared)
  values = directories.write(workdir / 'm', config.model, vocab.size - NEW, 'bfloat16',
                             max_position_embeddings=77)
  (workdir / 'c.json').write_text(json.dumps(to_dict(config)))
  assert main.main(['import-hf', '--hf', str(workdir / 'm'), '--config', str(workdir / 'c.json'),
                   '--workdir', str(workdir)]) == 0
  return workdir, load(workdir / 'config.json', {}), values


@pytest.fixture(scope='module')
def after_training(imported, tmp_path_factory):
  """(workdir, config) of the same run at step 2, with a complete state, as the loop saves it; the
  compiling of a step is left to a slow test, and to that of adapters."""
  workdir, config = tmp_path_factory.mktemp('trained'), imported[1]
  shutil.copytree(imported[0], workdir, dirs_exist_ok=True)
  run = trained_model.load(config, workdir)
  optimizer = optimizers.make(config.optimizer, 2)
  mesh = jax.tree.leaves(run.params)[0].sharding.mesh
  state = train_state.begin(run.params, optimizer, train_state.abstract(run.model, optimizer, mesh))
  moved = jax.tree.map(lambda leaf: leaf * 1.01, state.params)
  with checkpoint.open_existing(workdir / 'checkpoints') as found:
    found.save(2, state._replace(params=moved), found.meta(0))
  (workdir / 'metrics.jsonl').write_text('{"step": 2, "loss": 1.5}\n{"step": 4, "loss": 0.5}\n')
  return workdir, config


def test_an_imported_checkpoint_is_a_sealed_one_with_weights_alone(imported):
  workdir, config, _ = imported
  checksums.check(workdir / 'checkpoints' / '0')
  with checkpoint.open_existing(workdir / 'checkpoints') as found:
    assert found.steps() == [0]
    assert set(found.stored(0)) == {'params'}
    note = found.meta(0)['imported']
    assert note['kept'] + NEW == note['size']
  wide = trained_model.load(config, workdir)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(wide.params)} == {'float32'}
  with pytest.raises(UserError, match='has checkpoint 0 already'):
    import_hf.import_hf(config, workdir, workdir / 'm')


def test_an_adapter_is_compared_before_weights_are_read(imported, tmp_path):
  workdir, config, _ = imported
  shutil.copytree(workdir / 'm', tmp_path / 'm')
  (tmp_path / 'm' / safetensors_io.SINGLE).unlink()
  (tmp_path / peft.CONFIG).write_text(json.dumps(
      {'peft_type': 'LORA', 'r': 4, 'lora_alpha': 8, 'target_modules': 'all-linear'}))
  config = small_run.replace(config, 'model', lora=LoraConfig(rank=8))
  with pytest.raises(UserError, match='config key model.lora.rank is 8, but .* has 4'):
    import_hf.import_hf(config, tmp_path / 'w', tmp_path / 'm', tmp_path)
  assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize('shard_bytes', [2**40, 30_000])
def test_export_of_import_has_the_same_bits(imported, tmp_path, shard_bytes):
  workdir, config, values = imported
  out = tmp_path / 'out'
  facts = export_hf.export_hf(config, workdir, out, shard_bytes=shard_bytes)
  assert (len(facts['files']) > 1) == (shard_bytes < 2**40) and facts['dtype'] == 'bfloat16'
  assert sorted(path.name for path in out.glob('*.safetensors')) == sorted(facts['files'])
  found = safetensors_io.Folder(out)
  assert set(found) == set(values)
  for name, value in values.items():
    again = found.read(name)
    if name in (tensor_names.EMBEDDING, tensor_names.HEAD):
      assert len(again) == len(value) + NEW
      again = again[:len(value)]
    assert again.dtype == value.dtype and again.tobytes() == value.tobytes(), name
  once_more, _ = import_hf.load(out, *_model_and_mesh(config, workdir))
  chex.assert_trees_all_equal(once_more, trained_model.load(config, workdir, dtype=None).params,
                              strict=True)


def _model_and_mesh(config, workdir):
  run = trained_model.load(config, workdir)
  return run.model, jax.tree.leaves(run.params)[0].sharding.mesh


@pytest.mark.slow
def test_training_starts_from_the_imported_weights(imported, tmp_path):
  source, config, values = imported
  workdir = tmp_path / 'run'
  shutil.copytree(source, workdir)
  assert main.main(['train', '--workdir', str(workdir)]) == 0
  run = trained_model.load(config, workdir)
  assert run.step == 2
  old = values[tensor_names.EMBEDDING].astype(np.float32)
  change = np.abs(np.asarray(run.params['trunk']['embedding'])[:len(old)] - old).max()
  assert 0 < change < 0.05, 'two small steps away from the imported weights'


def test_export_of_a_trained_model(after_training, tmp_path, capsys):
  workdir, config = after_training
  out = tmp_path / 'a' / 'out'
  words = ['export-hf', '--workdir', str(workdir), '--out', str(out)]
  assert main.main(words) == 0
  assert 'step 2, 27 tensors' in capsys.readouterr().out
  run = trained_model.load(config, workdir)
  size, vocab, params = import_hf.read(out)
  assert vocab == run.vocab
  expected = export_hf.probe(run.model, run.params, vocab)
  found = export_hf.probe(Model(size, vocab.size), params, vocab)  # on another mesh
  np.testing.assert_allclose(found, expected, atol=1e-5)
  values = json.loads((out / 'config.json').read_text())
  assert values['max_position_embeddings'] == 77, 'kept from the imported directory'
  assert (values['audio_token_id_start'], values['mask_token'], values['vocab_size']) == (
      vocab.audio_threshold, vocab.mask, vocab.size)
  card = (out / 'README.md').read_text()
  assert '2 of 2 steps' in card and '| last loss | 1.5000 |' in card and '| base | m |' in card
  assert {path.name for path in export_hf.CODE.glob('*.py')} <= set(os.listdir(out))

  assert main.main(words) == 2
  assert 'holds an earlier export; add --overwrite' in capsys.readouterr().err
  assert main.main([*words, '--overwrite', '--dtype', 'bfloat16']) == 0
  assert json.loads((out / 'config.json').read_text())['dtype'] == 'bfloat16'
  assert os.listdir(out.parent) == ['out'], 'no other file is left'
  rounded = import_hf.load(out, *_model_and_mesh(config, workdir))[0]['layers']['mlp']['up']
  np.testing.assert_array_equal(
      np.asarray(rounded['kernel'], np.float32),
      np.asarray(run.params['layers']['mlp']['up']['kernel'].astype('bfloat16'), np.float32))


def test_a_folder_of_yours_is_never_replaced(after_training, tmp_path, capsys):
  workdir, _ = after_training
  (tmp_path / 'thesis.txt').write_text('x')
  assert main.main(['export-hf', '--workdir', str(workdir), '--out', str(tmp_path),
                   '--overwrite']) == 2
  assert 'exists and is not an earlier export' in capsys.readouterr().err
  assert os.listdir(tmp_path) == ['thesis.txt']


@pytest.mark.parametrize('words, expected', [
    (['--part', 'adapter'], 'model.lora.rank is 0, so there is no adapter to export'),
    (['--shard-gb', '0'], '--shard-gb is 0; it must be above 0'),
    (['--shard-gb', 'nan'], '--shard-gb is nan'), (['--shard-gb', 'inf'], '--shard-gb is inf'),
])
def test_other_mistakes(after_training, tmp_path, capsys, words, expected):
  workdir, _ = after_training
  assert main.main(['export-hf', '--workdir', str(workdir), '--out', str(tmp_path / 'o'),
                   *words]) == 2
  assert expected in capsys.readouterr().err


def test_one_export_at_a_time(after_training, tmp_path):
  workdir, config = after_training
  with lease.beside(tmp_path / 'out', '--out'), pytest.raises(
      UserError, match=rf'--out {tmp_path}/out is in use by process {os.getpid()} on'):
    export_hf.export_hf(config, workdir, tmp_path / 'out')
  assert os.listdir(tmp_path) == []


def test_a_damaged_export_is_found(after_training, tmp_path, monkeypatch):
  """A byte that changes between writing and reading back fails the export, and no file is left."""
  workdir, config = after_training
  write = safetensors_io.Writer.write

  def damaging(self, *args, **more):
    write(self, *args, **more)
    path = self.directory / self.names()[-1]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
  monkeypatch.setattr(safetensors_io.Writer, 'write', damaging)
  with pytest.raises(UserError, match='differs from what was written'):
    export_hf.export_hf(config, workdir, tmp_path / 'out')
  assert os.listdir(tmp_path) == []


def test_a_full_disk_is_one_sentence(after_training, tmp_path, monkeypatch):
  workdir, config = after_training
  def full(self, *args, **more):
    raise OSError(28, 'No space left on device')
  monkeypatch.setattr(safetensors_io.Writer, 'write', full)
  with pytest.raises(UserError, match='out could not be written: the disk is full'):
    export_hf.export_hf(config, workdir, tmp_path / 'out')
  assert os.listdir(tmp_path) == []


def test_size_of_an_export_is_that_of_the_run(after_training):
  """config.json and back: the same decoder."""
  workdir, config = after_training
  values = qwen_config.write(config, store.vocabulary(config.data.path), 'float32')
  qwen_config.compare(values, config.model, 'there')
  assert dataclasses.replace(config.model, **qwen_config.size(values)) == config.model
