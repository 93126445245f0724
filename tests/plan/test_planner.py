"""Complete plans, mostly through the command line."""

import json
import os
import re
import subprocess
import sys

import jax
import pytest

from tests import small_run
from ttt_jax import config as config_lib
from ttt_jax.cli import main
from ttt_jax.config import Config, MeshConfig, ModelConfig, ObjectiveConfig, TrainConfig, load
from ttt_jax.config.settings import REMATS
from ttt_jax.errors import UserError
from ttt_jax.model import sharding
from ttt_jax.plan import advice, aot_compile, child_process, planner, summary
from ttt_jax.system import hardware

KEYS = {'hbm_bytes_per_chip', 'hbm_limit_bytes', 'fits', 'remat', 'useful_flops', 'executed_flops',
        'collectives', 'step_seconds_bound', 'mfu_bound', 'compile_seconds'}
needs_libtpu = pytest.mark.skipif(
    not aot_compile.available(),
    reason="libtpu is not installed: pip install 'ttt_jax[plan]' compiles for TPUs without one")


def config_file(folder, **sections):
  values = {
      'name': 'small',
      'data': {
          'seq_len': 256
      },
      'model': {
          'num_layers': 2,
          'hidden_size': 128,
          'num_attention_heads': 1,
          'num_key_value_heads': 1,
          'head_dim': 128,
          'intermediate_size': 256,
          'dtype': 'bfloat16',
          'remat': 'attention',
          'attention_block': 128
      },
      'train': {
          'batch_size': 8
      },
      'objective': {
          'loss_chunk': 128
      }
  }
  for name, settings in sections.items():
    values[name] = values.get(name, {}) | settings
  path = folder / 'small.py'
  path.write_text(f'def get_config():\n  return {values!r}\n')
  return str(path)


def plan(capsys, folder, *words, code=0):
  """(plan, table, progress) of `ttt-jax plan`."""
  file = folder / 'out' / 'plan.json'
  assert main.main(['plan', *words, '--json', str(file)]) == code
  out, err = capsys.readouterr()
  return (json.loads(file.read_text()) if file.exists() else None), out, err


def test_a_gpu_plan_uses_formulas_and_says_so(tmp_path, capsys):
  made, out, err = plan(capsys, tmp_path, '--config', config_file(tmp_path), '--topology', 'h100:8')
  assert KEYS <= set(made)
  assert made['fits'] is True and made['compiled'] is False and made['remat'] == 'attention'
  assert 0 < made['useful_flops'] < made['executed_flops']
  assert 0 < made['mfu_bound'] < 1 and made['step_seconds_bound'] > 0
  assert made['mesh']['fsdp'] == 8 and set(made['collectives']) >= {'all-gather', 'reduce-scatter'}
  # Parameters and AdamW's two moments are exact: 4 and 8 bytes each, an eighth per device.
  assert made['hbm_parts']['parameters'] == pytest.approx(made['parameters'] * 4 / 8, rel=0.02)
  assert made['hbm_parts']['optimizer'] == pytest.approx(made['parameters'] * 8 / 8, rel=0.02)
  assert 'can only be compiled on a machine with that GPU' in re.sub(r'\s+', ' ', out)
  assert 'fits, estimated' in out and 'synthetic documents' in out
  assert max(map(len, out.splitlines())) <= 80
  assert err == 'counting a sample of rows\n'
  assert summary.text(made) + '\n' == out


def test_a_plan_that_does_not_fit_gives_advice_and_exits_with_0(tmp_path, capsys):
  config = config_file(tmp_path,
                       model={
                           'num_layers': 48,
                           'hidden_size': 8192,
                           'num_attention_heads': 64,
                           'intermediate_size': 28672
                       },
                       data={'seq_len': 2048})
  made, out, _ = plan(capsys, tmp_path, '--config', config, '--topology', 'a100-40:8')
  assert made['fits'] is False and made['hbm_bytes_per_chip'] > made['hbm_limit_bytes']
  assert made['advice'][0].startswith('--config.model.remat=full')
  assert 'does not fit. Change one of these' in out and made['advice'][0] in out


def test_auto_takes_the_first_policy_that_fits(tmp_path):
  # Activations of 24 layers, without remat several times the memory of an A100.
  config = load(
      config_file(tmp_path,
                  model={
                      'num_layers': 24,
                      'hidden_size': 2048,
                      'num_attention_heads': 16,
                      'intermediate_size': 8192
                  },
                  data={'seq_len': 2048},
                  train={'batch_size': 128}))
  made = planner.plan(config, hardware.parse_topology('a100-40:8'), 'auto')
  tried = [one['remat'] for one in made['tried']]
  assert made['fits'] and made['remat'] == tried[-1] and len(tried) > 1
  assert tried == list(REMATS[:len(tried)])
  assert [one['fits'] for one in made['tried']] == [False] * (len(tried) - 1) + [True]
  out = summary.text(made)
  assert 'does not fit' in out and out.endswith(f'with remat {made["remat"]!r}.')


def test_the_topology_chooses_the_preset(tmp_path):
  path = config_file(tmp_path, presets={
      'h100-8': {'train': {'batch_size': 16}}, 'h100-1': {'train': {'batch_size': 2}}})
  for words, rows in ((['h100:8'], 16), (['h100'], 2), (['h100:4'], 8),
                      (['h100:8', '--config.hardware=h100-1', '--config.train.batch_size=24'], 24)):
    args, overrides = main._parse(['plan', '--config', path, '--topology', *words])
    assert main._load_config(args, overrides).train.batch_size == rows


def test_prepared_data_is_sampled(prepared, tmp_path):
  (tmp_path / 'data').symlink_to(prepared)
  config_lib.save(small_run.config(), tmp_path)
  words = ['plan', '--workdir', str(tmp_path), '--topology', 'h100']
  made = planner.plan(main._load_config(*main._parse(words)), hardware.parse_topology('h100'),
                      workdir=str(tmp_path))
  assert made['sample']['source'] == str(tmp_path / 'data')
  assert made['vocabulary'] == 256 + 41 + 1 + 512 + 3 and made['config'] == 'test'


@pytest.mark.parametrize('words, expected', [
    (['--topology', 'v5q:4x4x4'], 'did you mean v5p'),
    (['--topology', 'h100:8', '--slices', '2'], 'name all GPUs at once'),
    (['--topology', 'h100:8', '--remat', 'most'], "invalid choice: 'most'"),
    (['--topology', 'h100:3'], 'do not divide over the 3 devices'),
    (['--topology', 'h100:8', '--config.model.layer=3'], 'did you mean model.num_layers?'),
    ([], 'required: --topology'),
])
def test_bad_arguments_are_rejected_in_one_sentence(tmp_path, capsys, words, expected):
  _, out, err = plan(capsys, tmp_path, '--config', config_file(tmp_path), *words, code=2)
  assert expected in err and err.count('\n') == 1 and out == ''
  assert not list(tmp_path.glob('out/*'))


@pytest.mark.parametrize('override, workdir, expected', [
    ({'mesh.fsdp': '3'}, None, 'does not fit 8 devices'),
    ({
        'mesh.tensor': '8',
        'mesh.fsdp': '1'
    }, None, 'mesh.tensor=8 must divide model.num_attention_heads=1'),
    ({'mesh.seq': '8', 'mesh.fsdp': '1', 'data.seq_len': '100'}, None, 'does not divide over'),
    ({'model.hidden_size': '132'}, None, "'fsdp' of 8 devices does not divide"),
    ({'codec.name': 'mine:Codec'}, None, 'with --workdir'),
    ({}, 'nowhere', 'no prepared data in nowhere'),
    ({'model.attention': 'pallas'}, None, 'runs on TPUs only'),
])
def test_settings_that_do_not_fit_together_are_rejected(tmp_path, override, workdir, expected):
  """As in the child process, which passes the sentence on."""
  with pytest.raises(UserError) as error:
    planner.plan(load(config_file(tmp_path), override), hardware.parse_topology('h100:8'),
                 workdir=workdir)
  assert expected in str(error.value) and '\n' not in str(error.value)


def test_no_config_is_named(tmp_path, capsys):
  _, _, err = plan(capsys, tmp_path, '--topology', 'h100', code=2)
  assert 'no config; add --config FILE' in err


# -- TPUs ------------------------------------------------------------------------------


@needs_libtpu
def test_the_real_step_compiles_for_a_tpu(tmp_path, capsys):
  path = config_file(tmp_path, presets={'v5e-4': {'mesh': {'fsdp': 4}}})
  made, out, err = plan(capsys, tmp_path, '--config', path, '--topology', 'v5e:2x2')
  assert KEYS <= set(made) and made['compiled'] is True and made['fits'] is True
  assert made['hardware'] == 'v5e-4' and made['attention'] == 'pallas'
  assert made['compile_seconds'] > 0
  # Float32 parameters and moments, a quarter on each device, and the rows' five vectors.
  state = 12 * made['parameters'] / 4 + 5 * 4 * 2 * 256
  assert made['hbm_parts']['arguments'] == pytest.approx(state, rel=0.2)
  assert made['hbm_bytes_per_chip'] >= made['hbm_parts']['arguments']
  # Each layer's seven matrices are gathered in bfloat16, forward and backward; the rest
  # (hidden states of the loss, tokens) is smaller than that here.
  matrices = 2 * 2 * (4 * 128 * 128 + 3 * 128 * 256)
  assert 2 * matrices <= made['collectives']['all-gather'] < 5 * matrices
  assert 'compiling the train step for v5e:2x2' in err
  assert 'from the compiler' in out and out.rstrip().endswith("fits, with remat 'attention'.")
  assert max(map(len, out.splitlines())) <= 80


@needs_libtpu
def test_a_topology_that_libtpu_rejects(tmp_path):
  path = config_file(tmp_path)
  with pytest.raises(UserError) as error:
    child_process.plan(load(path, {'train.batch_size': '15'}), hardware.parse_topology('v5p:3x5x1'))
  assert 'v5p:3x5x1' in str(error.value) and '\n' not in str(error.value)


def test_a_failed_child_process_is_explained():
  topology = hardware.parse_topology('v5e:4x4')
  aborted = child_process._failure(-6, 'I0000 hello\nF0000 00:00 Check failed: no such pod\n',
                                   topology)
  assert isinstance(aborted, UserError) and 'Check failed: no such pod' in str(aborted)
  assert 'v5e:4x4' in str(aborted) and '\n' not in str(aborted)
  ours = child_process._failure(1, 'Traceback\nKeyError: 3\n', topology)
  assert not isinstance(ours, UserError) and 'KeyError: 3' in str(ours)


def test_without_libtpu_a_tpu_plan_uses_formulas(tmp_path):
  """In a process without libtpu, whether this machine has it or not."""
  code = (
      'import json, sys\n'
      'from ttt_jax.plan import aot_compile, planner\n'
      'from ttt_jax.config import load\nfrom ttt_jax.system.hardware import parse_topology\n'
      'aot_compile.available = lambda: False\n'
      'made = planner.plan(load(sys.argv[1]), parse_topology("v5e:2x4"))\n'
      'print(json.dumps(made))')
  result = subprocess.run([sys.executable, '-c', code, config_file(tmp_path)], check=True,
                          text=True, capture_output=True,
                          env=child_process.environment())
  made = json.loads(result.stdout)
  assert made['compiled'] is False and 'libtpu is not installed' in made['not_compiled_because']
  assert made['fits'] and made['attention'] == 'pallas' and made['roofline']['ici'] > 0


@pytest.mark.parametrize('message, expected', [
    ('RESOURCE_EXHAUSTED: ... Used 19.08G of 15.75G hbm. Exceeded', 19.08 * 2**30),
    ('RESOURCE_EXHAUSTED: Used 900.5M of 15.75G hbm.', 900.5 * 2**20),
    ('RESOURCE_EXHAUSTED: required for HLO temporaries (1.25T) exceeds available HBM (15.75G).',
     1.25 * 2**40),
    ('RESOURCE_EXHAUSTED: something else', 0)])
def test_the_size_of_a_program_that_is_too_large(message, expected):
  assert aot_compile.memory_needed(message) == expected


def test_advice_names_settings_that_exist():
  mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=4), jax.devices()[:8])
  topology = hardware.parse_topology('v5e:2x4')
  config = Config(model=ModelConfig(remat='attention'), train=TrainConfig(batch_size=64),
                  objective=ObjectiveConfig(loss_chunk=1024))
  found = advice.advice(config, mesh, topology, False)
  assert found == ['--config.model.remat=full, or --remat auto to choose',
                   '--config.train.grad_accum_steps=2', '--config.mesh.data=1 --config.mesh.fsdp=8',
                   '--config.optimizer.name=adafactor', '--config.objective.loss_chunk=512']
  for change in found:
    args = re.findall(r'--config\.([\w.]+)=(\w+)', change)
    assert args and load_with({'train.batch_size': '64'} | dict(args))
  full = Config(model=ModelConfig(remat='full'),
                train=TrainConfig(batch_size=24, grad_accum_steps=2))
  assert '--config.train.batch_size=16' in advice.advice(full, mesh, topology, True)


def load_with(overrides):
  return load(os.path.join(os.path.dirname(__file__), '../../configs/demo.py'), overrides)


def test_coordinates_without_libtpu():
  assert [planner._coordinates(at, (2, 3)) for at in range(6)] == [
      (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
