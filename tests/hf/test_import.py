"""A directory becomes parameters: every tensor in its place, new rows, mistakes named."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest

from tests import small_run
from tests.hf import directories
from ttt_jax.cli import main
from ttt_jax.config import MeshConfig, ModelConfig, to_dict
from ttt_jax.data import store
from ttt_jax.errors import UserError
from ttt_jax.hf import import_hf, qwen_config, read_weights, tensor_names
from ttt_jax.model import sharding
from ttt_jax.model.transformer import Model
from ttt_jax.storage import safetensors_io
from ttt_jax.tokens import bpe_ranks
from ttt_jax.tokens.vocab import Vocabulary

V = Vocabulary('bytes', 256, 'codes-20', 20)
EXTENDED = {'audio_token_id_start': V.audio_threshold, 'mask_token': V.mask}
SIZE = ModelConfig(**directories.SMALL)


def mesh_of(**axes):
  return sharding.make_mesh(MeshConfig(**axes), jax.devices()[:8] if axes else jax.devices()[:1])


@pytest.mark.parametrize('axes', [{}, {'fsdp': 4, 'tensor': 2}], ids=['one device', 'mesh'])
@pytest.mark.parametrize('tied, dtype, shard_bytes', [
    (True, 'float32', 2**40), (False, 'bfloat16', 9000)])
def test_every_tensor_has_its_place(tmp_path, axes, tied, dtype, shard_bytes):
  config = dataclasses.replace(SIZE, tie_word_embeddings=tied)
  values = directories.write(tmp_path, config, V.size, dtype, shard_bytes=shard_bytes, **EXTENDED)
  model = Model(config, V.size)
  params, report = import_hf.load(tmp_path, model, mesh_of(**axes))
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, shapes)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
  for name, tensor in tensor_names.tensors(model).items():
    found = np.asarray(tensor_names.leaf(params, tensor.path))
    found = found[:V.size] if tensor.layer is None else found[tensor.layer]
    np.testing.assert_array_equal(found.T if tensor.transposed else found, values[name])
  assert (report.tensors, report.dtype, report.kept) == (len(values), dtype, V.size)
  assert report.lines()[-1] == f'all {V.size} ids have the rows of the directory'
  if axes:
    gate = params['layers']['mlp']['gate']['kernel']
    assert {shard.data.shape for shard in gate.addressable_shards} == {(2, 8, 24)}


def test_new_rows_are_near_the_old_ones(tmp_path):
  values = directories.write(tmp_path, SIZE, 300)
  model = Model(SIZE, V.size)
  params, report = import_hf.load(tmp_path, model, mesh_of())
  table, old = np.asarray(params['trunk']['embedding']), values[tensor_names.EMBEDDING]
  np.testing.assert_array_equal(table[:300], old)
  new = table[300:V.size]
  assert np.abs((new - old.mean(0)) / old.std(0)).max() < 6 * read_weights.NOISE
  assert len(np.unique(new, axis=0)) == V.size - 300, 'no two new tokens are alike'
  assert (table[V.size:] == 0).all()
  assert 'ids 0 to 299 have the rows of the directory, the new ones from 300 to' in '\n'.join(
      report.lines())
  again, _ = import_hf.load(tmp_path, model, mesh_of(fsdp=4, tensor=2))
  np.testing.assert_array_equal(again['trunk']['embedding'], table)


def test_rows_that_belong_to_no_token_are_left_out(tmp_path):
  values = directories.write(tmp_path, SIZE, V.size + 7)
  params, report = import_hf.load(tmp_path, Model(SIZE, V.size), mesh_of())
  np.testing.assert_array_equal(params['trunk']['embedding'][:V.size],
                                values[tensor_names.EMBEDDING][:V.size])
  assert f'its rows from {V.size} to {V.size + 6} belong to no token' in '\n'.join(report.lines())


def test_read_finds_size_and_vocabulary(tmp_path):
  directories.write(tmp_path, SIZE, V.size, **EXTENDED)
  config, vocab, params = import_hf.read(tmp_path)
  assert config == dataclasses.replace(SIZE, vocab_multiple=config.vocab_multiple)
  assert vocab == V
  assert params['trunk']['embedding'].dtype == np.float32


def test_a_head_that_repeats_the_embedding_is_no_mistake(tmp_path):
  values = directories.write(tmp_path, SIZE, V.size, **EXTENDED)
  both = values | {tensor_names.HEAD: values[tensor_names.EMBEDDING]}
  rewrite(tmp_path, both)
  import_hf.load(tmp_path, Model(SIZE, V.size), mesh_of())
  rewrite(tmp_path, both | {tensor_names.HEAD: values[tensor_names.EMBEDDING] + 1})
  with pytest.raises(UserError, match='also has tensor lm_head.weight'):
    import_hf.load(tmp_path, Model(SIZE, V.size), mesh_of())


def rewrite(directory, values):
  safetensors_io.Writer(directory, (safetensors_io.Plan(name, value.shape, value.dtype)
                             for name, value in values.items()), 2**40).write(values.get)


def changed(directory, **more):
  """Change fields of config.json."""
  path = directory / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | more))


NORM = 'model.layers.1.input_layernorm.weight'
DOWN = 'model.layers.0.mlp.down_proj.weight'


@pytest.mark.parametrize('change, expected', [
    (lambda v: v.pop(NORM), f'lacks tensor {NORM}; the download is incomplete'),
    (lambda v: [v.pop(NORM), v.pop(DOWN)], f'lacks tensor {DOWN} and 1 more'),
    (lambda v: v.update(extra=v[NORM]), 'also has tensor extra, which'),
    (lambda v: v.update({DOWN: v[DOWN].T}),
     rf'tensor {DOWN} in .*model.safetensors has shape \[48, 32\]; its config.json asks for '
     r'\[32, 48\]'),
    (lambda v: v.update({tensor_names.EMBEDDING: v[tensor_names.EMBEDDING][:, :9]}),
     r'has shape \[\d+, 9\]'),
])
def test_wrong_tensors_are_named(tmp_path, change, expected):
  values = directories.write(tmp_path, SIZE, V.size, **EXTENDED)
  change(values)
  rewrite(tmp_path, values)
  with pytest.raises(UserError, match=expected):
    import_hf.read(tmp_path)


@pytest.mark.parametrize('more, expected', [
    ({'architectures': ['LlamaForCausalLM']}, 'describes LlamaForCausalLM; only Qwen2 decoders'),
    ({'model_type': 'qwen3', 'architectures': None}, "describes model_type 'qwen3'"),
    ({'hidden_act': 'gelu'}, "has hidden_act = 'gelu'; only 'silu' can be imported"),
    ({'use_sliding_window': True}, 'has use_sliding_window = True'),
    ({'rope_scaling': {'type': 'yarn'}}, 'has rope_scaling = '),
    ({'rope_scaling': 'yarn'}, "has rope_scaling = 'yarn'; it must be a JSON object"),
    ({'rope_parameters': {'rope_type': 'yarn', 'rope_theta': 1e6}}, 'has rope_parameters = '),
    ({'rope_parameters': {'full_attention': {'rope_theta': 1e6}}}, 'has rope_parameters = '),
    ({'rope_parameters': {'rope_theta': -1}}, 'rope_parameters in .* has rope_theta = -1; it must'),
    ({'layer_types': ['full_attention', 'sliding_attention']}, 'has layer_types = '),
    ({'hidden_size': 'wide'}, "has hidden_size = 'wide'; it must be an integer"),
    ({'hidden_size': 32.0}, 'has hidden_size = 32.0; it must be an integer'),
    ({'hidden_size': True}, 'has hidden_size = True; it must be an integer'),
    ({'num_hidden_layers': None}, 'has num_hidden_layers = None'),
    ({'num_hidden_layers': 10**9}, 'num_hidden_layers = 1000000000; it must be .* 1 to 4,096'),
    ({'num_attention_heads': 0}, 'has num_attention_heads = 0; it must be an integer from 1'),
    ({'num_attention_heads': 3}, 'num_attention_heads = 3 and num_key_value_heads = 2; the first'),
    ({'head_dim': None, 'num_attention_heads': 64}, 'has heads of width 0'),
    ({'vocab_size': -1}, 'has vocab_size = -1'), ({'rms_norm_eps': '1e-6'}, 'has rms_norm_eps = '),
    ({'tie_word_embeddings': 'yes'}, 'has tie_word_embeddings = '),
    ({'vocab_size': V.size + 1}, 'asks for vocab_size = 322 rows'),
    ({'vocab_size': V.size - 1}, 'has vocab_size = 320, but its vocabulary has 321 ids'),
    ({'mask_token': 10**7}, 'has vocab_size = 321, but its vocabulary has 10,000,003 ids'),
    ({'architectures': 'Qwen2ForCausalLM'}, 'describes Qwen2ForCausalLM; only Qwen2 decoders'),
    ({'audio_token_id_start': 12, 'mask_token': 30}, 'has audio_token_id_start = 12'),
    ({'ttt_vocabulary': {'text': 'bytes'}}, 'has no ttt_vocabulary.text_ranks'),
    ({'audio_token_id_start': None}, 'has vocab_size = 321 and neither audio_token_id_start'),
])
def test_wrong_configs_are_named(tmp_path, more, expected):
  directories.write(tmp_path, SIZE, V.size, **EXTENDED)
  changed(tmp_path, **more)
  with pytest.raises(UserError, match=expected) as error:
    import_hf.read(tmp_path)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('more', [
    {'architectures': ['Qwen2ForARDiffLM']}, {'architectures': None}, {'rope_scaling': {}},
    {'rope_scaling': {'type': 'default'}}, {'layer_types': ['full_attention'] * 2},
    {'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e6}, 'rope_theta': None}])
def test_configs_of_other_versions_are_read(tmp_path, more):
  directories.write(tmp_path, SIZE, V.size, **EXTENDED | more)
  values = qwen_config.read(tmp_path)
  assert qwen_config.vocabulary(values, tmp_path) == V
  qwen_config.compare(values, SIZE, tmp_path)


@pytest.mark.parametrize('harm, expected', [
    (lambda d: (d / 'config.json').unlink(), 'config.json does not exist'),
    (lambda d: (d / 'config.json').write_text('{'), 'is not JSON'),
    (lambda d: (d / 'config.json').write_text('[]'), 'must be a JSON object'),
    (lambda d: (d / 'config.json').write_bytes(b'\xff'), 'is not JSON .byte 0 is not UTF-8'),
    (lambda d: (d / 'config.json').write_text('[' * 10**5), 'it is nested too deep'),
    (lambda d: ((d / 'config.json').unlink(), (d / 'config.json').mkdir()), 'cannot be read'),
    (lambda d: shutil.rmtree(d), 'is not a directory'),
])
def test_not_a_model(tmp_path, harm, expected):
  directories.write(tmp_path / 'm', SIZE, V.size)
  harm(tmp_path / 'm')
  with pytest.raises(UserError, match=expected):
    import_hf.read(tmp_path / 'm')


# -- the command -----------------------------------------------------------------------------


@pytest.fixture(scope='module')
def settings(small_config):
  return small_config, store.vocabulary(small_config.data.path)


def command(tmp_path, config, *words):
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(to_dict(config)))
  return main.main(['import-hf', '--hf', str(tmp_path / 'm'), '--config', str(path),
                   '--workdir', str(tmp_path / 'run'), *words])


@pytest.mark.parametrize('change, expected', [
    ({
        'hidden_size': 64,
        'head_dim': 16
    }, 'config key model.hidden_size is 64 where hidden_size is 32, config '
     'key model.head_dim is 16 where head_dim is 8; use'),
    ({'rope_theta': 1e4}, 'model.rope_theta is 10000.0 where rope_theta is 1000000.0'),
    ({'rms_norm_eps': 1e-5}, 'model.rms_norm_eps is 1e-05 where rms_norm_eps is 1e-06'),
    ({
        'tie_word_embeddings': False
    }, 'model.tie_word_embeddings is False where tie_word_embeddings is True; use the config of '
     'that model, or --config.model.tie_word_embeddings=True'),
    ({'num_layers': 3}, 'model.num_layers is 3 where num_hidden_layers is 2'),
])
def test_a_config_of_another_size_is_named(tmp_path, settings, capsys, change, expected):
  config, vocab = settings
  directories.write(tmp_path / 'm', config.model, vocab.size)
  config = dataclasses.replace(config, model=dataclasses.replace(config.model, **change))
  assert command(tmp_path, config) == 2
  assert expected in capsys.readouterr().err
  assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_another_vocabulary_is_named(tmp_path, settings, capsys):
  config, vocab = settings
  directories.write(tmp_path / 'm', config.model, vocab.size, mask_token=vocab.mask - 1)
  assert command(tmp_path, config) == 2
  assert (f'has mask_token = {vocab.mask - 1}, but in the vocabulary of the prepared data it is '
          f'{vocab.mask}') in capsys.readouterr().err


def test_weights_that_are_not_finite_are_named(tmp_path):
  values = directories.write(tmp_path, SIZE, V.size, **EXTENDED)
  values[DOWN][0, 0] = np.nan
  rewrite(tmp_path, values)
  with pytest.raises(UserError, match=f'tensor {DOWN} in .* has 1 of 1,536 numbers that are NaN'):
    import_hf.read(tmp_path)


def tokenizer_json(directory, tokens):
  definition = bpe_ranks.definition({f'{one}': one for one in range(tokens)}, [])
  (directory / 'tokenizer.json').write_text(json.dumps(definition))


@pytest.mark.parametrize('rows, tokens, expected', [
    (151_936, None, "has vocab_size = 151,936, the size of Qwen2.5's text vocabulary, but the"),
    (300, 300, 'the tokenizer in .* has 300 text ids, but the prepared data has 256'),
    (255, None, 'has vocab_size = 255, but the vocabulary of the prepared data has 256 ids'),
    (151_936, 300, "the size of Qwen2.5's text vocabulary"),
])
def test_another_text_vocabulary_is_refused(tmp_path, settings, capsys, rows, tokens, expected):
  config, vocab = settings
  directories.write(tmp_path / 'm', config.model, vocab.size)
  changed(tmp_path / 'm', vocab_size=rows)
  if tokens:
    tokenizer_json(tmp_path / 'm', tokens)
  assert command(tmp_path, config) == 2
  assert re.search(expected, capsys.readouterr().err)
  assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_codes_of_another_codec_are_refused(tmp_path, settings, capsys):
  config, vocab = settings
  other = vocab.to_dict() | {'codec': 'another'}
  directories.write(tmp_path / 'm', config.model, vocab.size, ttt_vocabulary=other)
  assert command(tmp_path, config) == 2
  assert 'has ttt_vocabulary.codec = another, but the codec of' in capsys.readouterr().err


@pytest.mark.parametrize('place', ['', 'sub'])
def test_what_is_imported_is_never_replaced(tmp_path, settings, capsys, place):
  config, vocab = settings
  source = tmp_path / 'run' / import_hf.ORIGIN / place
  directories.write(source, config.model, vocab.size)
  directories.write(tmp_path / 'm', config.model, vocab.size)
  before = sorted(path.name for path in source.iterdir())
  assert command(tmp_path, config, '--hf', str(source)) == 2
  assert 'would be replaced by the small files of the import' in capsys.readouterr().err
  assert command(tmp_path, config) == 2, 'nor when it is only in the way'
  assert sorted(path.name for path in source.iterdir()) == before


def test_without_data(tmp_path, settings, capsys):
  config, vocab = settings
  directories.write(tmp_path / 'm', config.model, vocab.size)
  assert command(tmp_path, small_run.replace(config, 'data', path='nothing')) == 2
  assert 'ttt-jax prepare' in capsys.readouterr().err


def test_derived_names_cover_the_model():
  """The table names every parameter of the model, once."""
  model = Model(dataclasses.replace(SIZE, tie_word_embeddings=False), V.size)
  paths = {tensor.path for tensor in tensor_names.tensors(model).values()}
  leaves = jax.tree_util.tree_flatten_with_path(jax.eval_shape(model.init, jax.random.key(0)))[0]
  assert paths == {tuple(key.key for key in path) for path, _ in leaves}
  assert qwen_config.size(directories.config_json(model.config,
                                                  V.size))['tie_word_embeddings'] is False
