"""Adapters: no effect when new, equal when merged, trained alone, and equal to PEFT's."""

import dataclasses
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import small_run
from tests.hf import directories
from tests.reference import batches, quick
from ttt_jax.cli import main
from ttt_jax.config import Config, LoraConfig, MeshConfig, ModelConfig, load, to_dict
from ttt_jax.data import store
from ttt_jax.data.prepare.prepare import prepare
from ttt_jax.errors import UserError
from ttt_jax.hf import export_hf, import_hf, peft, tensor_names
from ttt_jax.model import lora, sharding
from ttt_jax.model.transformer import Model
from ttt_jax.train import (
    optimizer as optimizers, state as train_state, step as train_step, trained_model)

V = batches.VOCAB
SIZE = ModelConfig(**directories.SMALL,
                   tie_word_embeddings=False,
                   lora=LoraConfig(rank=3, alpha=5.0))


def noisy(params, seed=0, size=0.3):
  """Adapters whose B is not zero."""
  rng = np.random.default_rng(seed)
  return lora.join(params, jax.tree.map(
      lambda leaf: size * rng.standard_normal(leaf.shape).astype(np.float32),
      lora.adapters(params)))


def forward(config, params):
  model = Model(config, V.size)
  ids = np.arange(12)[None] % V.size
  return quick.jit(lambda params: model.logits(params, model.hidden(
      params, ids, np.arange(12)[None], np.zeros((1, 12), np.int32), 1 + np.arange(12)[None])))(
          params)


def test_merged_is_unmerged():
  model = Model(SIZE, V.size)
  fresh = model.init(jax.random.key(0))
  params = noisy(fresh, size=0.1)
  plain = dataclasses.replace(SIZE, lora=LoraConfig())
  want = forward(SIZE, params)
  merged = lora.merge(params, SIZE.lora)
  assert jax.tree.structure(merged) == jax.tree.structure(Model(plain, V.size).init(
      jax.random.key(0)))
  np.testing.assert_allclose(forward(plain, merged), want, atol=1e-5)
  base = forward(plain, lora.without(fresh))
  np.testing.assert_array_equal(forward(SIZE, fresh), base)  # B is zero at first
  assert np.abs(base - want).max() > 0.1


def test_targets_decide_who_has_an_adapter():
  some = dataclasses.replace(SIZE, lora=LoraConfig(rank=2, targets=('k', 'down')))
  found = lora.adapters(jax.eval_shape(Model(some, V.size).init, jax.random.key(0)))
  shapes = {tuple(key.key for key in path): leaf.shape
            for path, leaf in jax.tree_util.tree_flatten_with_path(found)[0]}
  assert shapes == {
      ('layers', 'attention', 'k', 'lora_a'): (2, 32, 2),
      ('layers', 'attention', 'k', 'lora_b'): (2, 2, 16),
      ('layers', 'mlp', 'down', 'lora_a'): (2, 48, 2),
      ('layers', 'mlp', 'down', 'lora_b'): (2, 2, 32)}


def settings(dropout=0.0, **train):
  config = Config(model=dataclasses.replace(SIZE, lora=dataclasses.replace(
      SIZE.lora, dropout=dropout)))
  return small_run.replace(config, 'train', **train)


def gradients_of(config, mesh=None, params=None):
  model = Model(config.model, V.size)
  params = noisy(model.init(jax.random.key(1))) if params is None else params
  _, batch = batches.packed(np.random.default_rng(2), rows=8, seq_len=64)
  key = jax.random.fold_in(train_step.run_key(0), 0)
  run = quick.jit(lambda params: train_step.gradients(config, model, V, params, batch, key))
  if mesh is None:
    return run(params)
  where = sharding.shardings(mesh, model.axes(), params)
  with jax.set_mesh(mesh):
    return run(jax.tree.map(jax.device_put, params, where))


@pytest.mark.slow
def test_gradients_are_those_of_the_merged_model_by_the_chain_rule():
  config = settings()
  grads, sums = gradients_of(config)
  assert jax.tree.structure(grads) == jax.tree.structure(lora.adapters(Model(
      config.model, V.size).init(jax.random.key(0))))
  params = noisy(Model(config.model, V.size).init(jax.random.key(1)))
  plain = dataclasses.replace(config, model=dataclasses.replace(config.model, lora=LoraConfig()))
  full, plain_sums = gradients_of(plain, params=lora.merge(params, SIZE.lora))
  np.testing.assert_allclose(sums.ar, plain_sums.ar, rtol=1e-5)
  for name, (_, path) in tensor_names.PROJECTIONS.items():
    kernel = np.asarray(tensor_names.leaf(full, path)['kernel'])
    leaf = tensor_names.leaf(params, path)
    a, b = np.asarray(leaf['lora_a']), np.asarray(leaf['lora_b'])
    found = tensor_names.leaf(grads, path)
    scale = SIZE.lora.scale
    np.testing.assert_allclose(found['lora_a'], scale * kernel @ b.swapaxes(1, 2), rtol=1e-3,
                               atol=1e-6, err_msg=name)
    np.testing.assert_allclose(found['lora_b'], scale * a.swapaxes(1, 2) @ kernel, rtol=1e-3,
                               atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_dropout_is_the_same_on_every_mesh():
  config = settings(dropout=0.5)
  one, _ = gradients_of(config)
  many, _ = gradients_of(config, sharding.make_mesh(MeshConfig(fsdp=4, tensor=2),
                                                    jax.devices()[:8]))
  chex.assert_trees_all_close(one, many, rtol=1e-3, atol=1e-5)
  none, _ = gradients_of(settings())
  norm = lambda tree: float(optax.tree.norm(tree))
  difference = jax.tree.map(jnp.subtract, one, none)
  assert norm(difference) > 0.1 * norm(none)


def test_dropout_keeps_the_mean():
  drop = lora.Dropout(jax.random.key(0), 0.25)
  x = jnp.ones((200, 200))
  first, second = drop(x), drop(x)
  assert set(np.unique(first)) == {0.0, np.float32(1 / 0.75)}
  assert abs(float(first.mean()) - 1) < 0.02
  assert (first != second).any(), 'every projection has a mask of its own'
  assert lora.dropout_key(jax.random.key(0), LoraConfig(rank=2)) is None


@pytest.mark.parametrize('name', ['adamw', 'adafactor', 'muon'])
def test_the_optimizer_knows_adapters_alone(name):
  config = settings()
  model = Model(config.model, V.size)
  optimizer = optimizers.make(dataclasses.replace(config.optimizer, name=name), 10)
  mesh = sharding.make_mesh(MeshConfig(fsdp=4, tensor=2), jax.devices()[:8])
  target = train_state.abstract(model, optimizer, mesh)
  arrays = [leaf for leaf in jax.tree.leaves(target.opt_state) if leaf.ndim > 1]
  adapters = jax.tree.leaves(lora.adapters(target.params))
  assert arrays and {leaf.shape for leaf in arrays} <= {
      shape for leaf in adapters for shape in (leaf.shape, leaf.shape[:2], leaf.shape[::2])}


@pytest.mark.parametrize('values, expected', [
    ({'rank': -1}, 'model.lora.rank is -1'), ({'dropout': 1.0}, 'model.lora.dropout is 1.0'),
    ({'targets': ('q', 'x')}, "model.lora.targets is 'x'; use 'q'"),
    ({'rank': 2, 'targets': ()}, 'model.lora.targets is empty')])
def test_settings_are_checked(values, expected):
  with pytest.raises(UserError, match=expected):
    LoraConfig(**values)


# -- a run, and PEFT ----------------------------------------------------------------------


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """(workdir, config) of two steps of adapters on an imported base."""
  workdir = tmp_path_factory.mktemp('lora')
  config = small_run.config(steps=2)
  prepare(config, workdir)
  config = small_run.replace(small_run.replace(config, 'data', path=str(workdir / 'data')), 'model',
                        lora=LoraConfig(rank=4, alpha=8.0, dropout=0.1, targets=('q', 'v', 'up')))
  directories.write(workdir / 'm', config.model, store.vocabulary(workdir / 'data').size)
  (workdir / 'c.json').write_text(json.dumps(to_dict(config)))
  assert main.main(['import-hf', '--hf', str(workdir / 'm'), '--config', str(workdir / 'c.json'),
                   '--workdir', str(workdir)]) == 0
  assert main.main(['train', '--workdir', str(workdir)]) == 0
  return workdir, load(workdir / 'config.json', {})


@pytest.mark.slow
def test_a_run_changes_its_adapters_alone(run):
  workdir, config = run
  end = trained_model.load(config, workdir)
  begin, _ = import_hf.load(workdir / 'm', end.model, jax.tree.leaves(
      end.params)[0].sharding.mesh)
  chex.assert_trees_all_equal(lora.without(end.params), begin)
  b = end.params['layers']['attention']['q']['lora_b']
  assert 0 < np.abs(b).max() < 0.1


@pytest.mark.slow
def test_merged_base_and_adapter_leave_and_come_back(run, tmp_path, capsys):
  workdir, config = run
  for part in ('merged', 'base', 'adapter'):
    assert main.main(['export-hf', '--workdir', str(workdir), '--out', str(tmp_path / part),
                     '--part', part]) == 0
  assert 'adapter_config.json names no base: the adapter fits what' in capsys.readouterr().out
  assert json.loads((tmp_path / 'adapter' / peft.CONFIG).read_text())[
      'base_model_name_or_path'] is None, 'the imported directory has fewer rows'
  named = ['export-hf', '--workdir', str(workdir), '--out', str(tmp_path / 'named'),
           '--part', 'adapter', '--base']
  assert main.main([*named, str(tmp_path / 'merged')]) == 2
  assert "the adapter needs the part 'base'" in capsys.readouterr().err
  assert main.main([*named, str(tmp_path / 'base')]) == 0
  assert json.loads((tmp_path / 'named' / peft.CONFIG).read_text())[
      'base_model_name_or_path'] == str(tmp_path / 'base')
  end = trained_model.load(config, workdir)
  want = export_hf.probe(end.model, end.params, end.vocab)
  size, vocab, merged = import_hf.read(tmp_path / 'merged')
  np.testing.assert_allclose(export_hf.probe(Model(size, vocab.size), merged, vocab), want,
                             atol=1e-5)
  base = tmp_path / 'base' / 'model.safetensors'
  assert base.read_bytes() == (workdir / 'm' / 'model.safetensors').read_bytes()

  again = tmp_path / 'again'
  words = ['import-hf', '--hf', str(tmp_path / 'base'), '--adapter', str(tmp_path / 'adapter'),
           '--config', str(workdir / 'config.json'), '--workdir', str(again)]
  assert main.main(words) == 0
  found = trained_model.load(config, again)
  chex.assert_trees_all_equal(found.params, end.params)
  shutil.rmtree(again)
  capsys.readouterr()
  assert main.main([*words, '--config.model.lora.rank=8']) == 2
  assert 'config key model.lora.rank is 8, but' in capsys.readouterr().err
  assert main.main([*words, '--config.model.lora.rank=0']) == 2
  assert 'config key model.lora.rank is 0, but' in capsys.readouterr().err


PLAIN = ModelConfig(**directories.SMALL,
                    lora=LoraConfig(rank=4, alpha=8.0, targets=('q', 'v', 'up')))


def adapter(folder, changes, params=None):
  """A PEFT directory of ``PLAIN`` with other fields in its configuration; its model."""
  model = Model(PLAIN, V.size)
  params = lora.adapters(model.init(jax.random.key(0))) if params is None else params
  peft.save(folder, model, params, 'org/base')
  path = folder / peft.CONFIG
  values = json.loads(path.read_text()) | changes
  path.write_text(json.dumps({key: value for key, value in values.items() if value != 'absent'}))
  return model


@pytest.mark.parametrize('changes, expected', [
    ({'lora_alpha': 3}, 'model.lora.alpha is 8.0, but .* has 3'),
    ({'target_modules': ['q_proj']}, r"model.lora.targets is \['q', 'up', 'v'\], but .* \['q'\]"),
    ({'target_modules': '.*proj'}, "has target_modules = '.*proj'; only a list"),
    ({'target_modules': ['q_proj', 'lm_head']}, "has 'lm_head' in target_modules; adapters can"),
    ({'target_modules': 'absent'}, 'has no target_modules'),
    ({'use_dora': True}, 'has use_dora = True'), ({'bias': 'all'}, "has bias = 'all'"),
    ({'r': None}, 'has r = None; it must be an integer from 1'),
    ({'r': -1}, 'has r = -1'), ({'r': 10**400}, 'has r = a int|has r = 1000'),
    ({'lora_alpha': 'wide'}, "has lora_alpha = 'wide'"), ({'peft_type': 'LOHA'}, 'only .LORA. can'),
    ({'init_lora_weights': 'pissa'}, "'pissa'; only True can be .* it changes the base weights"),
    ({'init_lora_weights': 'pissa_niter_4'}, 'it changes the base weights'),
    ({'init_lora_weights': 'olora'}, 'it changes the base weights'),
    ({'init_lora_weights': 'corda'}, 'it changes the base weights'),
    ({'init_lora_weights': 'loftq'}, 'it changes the base weights'),
    ({'init_lora_weights': 1}, 'has init_lora_weights = 1'),
    ({'layer_replication': [[0, 2], [1, 2]]}, 'it changes the layers of the base'),
    ({'use_rslora': True}, 'has use_rslora = True'), ({'lora_bias': True}, 'has lora_bias = True'),
    ({'trainable_token_indices': [1]}, 'has trainable_token_indices = '),
    ({'alora_invocation_tokens': [1]}, 'has alora_invocation_tokens = '),
    ({'modules_to_save': ['lm_head']}, 'has modules_to_save = '),
    ({'exclude_modules': ['k_proj']}, 'has exclude_modules = '),
    ({'rank_pattern': {'q_proj': 8}}, 'has rank_pattern = '),
    ({'a_setting_of_the_future': 3}, 'has a_setting_of_the_future = 3; only None can be imported'),
])
def test_adapters_of_another_kind_are_named(tmp_path, one_device, changes, expected):
  model = adapter(tmp_path, changes)
  with pytest.raises(UserError, match=expected):
    peft.load(tmp_path, model, sharding.make_mesh(MeshConfig()), {})


@pytest.mark.parametrize('changes', [
    {}, {'init_lora_weights': 'gaussian'}, {'init_lora_weights': 'absent'}, {'r': 4},
    {'target_modules': ['self_attn.q_proj', 'v_proj', 'up_proj']}, {'peft_version': '0.19.0'},
    {'a_setting_of_the_future': None, 'another': False, 'third': {}}])
def test_plain_adapters_are_read(tmp_path, one_device, changes):
  model = adapter(tmp_path, changes)
  found, base = peft.load(tmp_path, model, sharding.make_mesh(MeshConfig()), {})
  chex.assert_trees_all_equal(found, lora.adapters(model.init(jax.random.key(0))))
  assert base == 'org/base'


def test_adapters_that_are_not_finite_are_named(tmp_path, one_device):
  params = lora.adapters(Model(PLAIN, V.size).init(jax.random.key(0)))
  params['layers']['mlp']['up']['lora_b'] = np.full_like(
      params['layers']['mlp']['up']['lora_b'], np.inf)
  model = adapter(tmp_path, {}, params)
  with pytest.raises(UserError, match='tensor .*up_proj.lora_B.weight in .* are NaN or infinite'):
    peft.load(tmp_path, model, sharding.make_mesh(MeshConfig()), {})


@pytest.mark.slow
def test_peft_computes_the_same(run, tmp_path):
  """The package `peft` on transformers' own Qwen2, with what we exported."""
  library = pytest.importorskip('peft')
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  workdir, config = run
  end = trained_model.load(config, workdir)
  noise = noisy(end.params)
  peft.save(tmp_path, end.model, noise, str(workdir / 'm'))
  ids = np.arange(20)[None] * 7 % end.vocab.text_ranks
  place = np.arange(20)[None]
  want = end.model.logits(noise, end.model.hidden(noise, ids, place, np.zeros_like(place),
                                                  1 + place))
  base = transformers.Qwen2ForCausalLM.from_pretrained(workdir / 'm', dtype=torch.float32)
  with torch.no_grad():
    plain = base(torch.tensor(ids)).logits.numpy()
    found = library.PeftModel.from_pretrained(base, tmp_path)(torch.tensor(ids)).logits.numpy()
  assert np.abs(plain - found).max() > 0.1
  np.testing.assert_allclose(found, want, atol=1e-4)
