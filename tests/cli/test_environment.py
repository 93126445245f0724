"""What the environment lacks is a sentence: memory, devices, compiler flags, other processes."""

import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from tests import small_run
from ttt_jax.cli import environment, main
from ttt_jax.config import Config
from ttt_jax.errors import UserError
from ttt_jax.system import hardware

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = 'def get_config():\n  return {}\n'


def raised(function):
  with pytest.raises(Exception) as error:
    function()
  return error.value


@pytest.mark.parametrize('verb, allocate, expected', [
    ('train', lambda: jnp.zeros(2**46, jnp.uint8).block_until_ready(),
     'out of memory: 7.04e+04 GB were asked for; try, cheapest first, train.grad_accum_steps=2 (or '
     'more), model.remat=full, a smaller train.batch_size, more devices along mesh.fsdp, '
     'optimizer.name=adafactor'),
    ('evaluate', lambda: np.zeros(2**60, np.uint8), 'out of memory: 1.00 EiB were asked for; try, '
     'cheapest first, a smaller evaluate.batch'),
    ('prepare', lambda: bytearray(2**62), 'out of memory; try, cheapest first, a smaller data.w')])
def test_out_of_memory_names_the_remedies(verb, allocate, expected):
  """Real exceptions of XLA, NumPy and Python."""
  assert str(environment.explain(raised(allocate), verb, Config())).startswith(expected)


def test_remedies_that_are_in_use_are_not_named():
  config = small_run.replace(small_run.config(grad_accum_steps=8), 'model', remat='full',
                             attention='dense')
  text = str(environment.explain(MemoryError(), 'train', config))
  assert 'grad_accum_steps' not in text and 'remat' not in text
  assert 'model.attention=blockwise, a smaller train.batch_size' in text


def test_a_bug_keeps_its_traceback(monkeypatch, tmp_path):
  assert environment.explain(RuntimeError('x'), 'train', None) is None
  assert environment.explain(AssertionError(), 'train', None) is None

  def bug(args, config):
    raise ZeroDivisionError
  monkeypatch.setitem(main.VERBS, 'report', bug)
  (tmp_path / 'config.json').touch()
  with pytest.raises(ZeroDivisionError):
    main.main(['report', '--workdir', str(tmp_path)])


def start(*words, code='', **env):
  """A process of the command line, with its standard error."""
  given = {key: value for key, value in os.environ.items() if not key.startswith('SLURM_')} | env
  return subprocess.Popen(
      [sys.executable, '-c', f'import sys; from ttt_jax.cli import cluster, main\n{code}\n'
       'sys.exit(main.main(sys.argv[1:]))', *words], env=given, stderr=subprocess.PIPE, text=True,
      cwd=ROOT)


def test_a_backend_that_is_missing_is_a_sentence(prepared, tmp_path):
  (tmp_path / 'c.py').write_text(CONFIG)
  found = start('train', '--config', str(tmp_path / 'c.py'), '--workdir', str(tmp_path),
                f'--config.data.path={prepared}', '--config.data.seq_len=256',
                JAX_PLATFORMS='cuda', XLA_FLAGS='')
  error = found.communicate()[1].splitlines()[-1]
  assert found.returncode == 2
  assert error.startswith("ttt-jax: error: JAX_PLATFORMS is 'cuda', but JAX cannot start")


def test_an_unknown_compiler_flag_is_a_sentence():
  known = '--xla_cpu_enable_fast_math=false --xla_force_host_platform_device_count=2'
  environment.check_xla_flags({**os.environ, 'XLA_FLAGS': known})
  with pytest.raises(UserError, match='XLA_FLAGS has --xla_of_another_version=1, which this'):
    environment.check_xla_flags({**os.environ, 'XLA_FLAGS': f'{known} --xla_of_another_version=1'})


@pytest.mark.parametrize('env, expected', [
    ({'CUDA_VISIBLE_DEVICES': '0,1'}, ['0', '1']), ({'CUDA_VISIBLE_DEVICES': '-1'}, []),
    ({'CUDA_VISIBLE_DEVICES': ''}, []), ({'CUDA_VISIBLE_DEVICES': '2,-1,3'}, ['2']),
    ({'CUDA_VISIBLE_DEVICES': '0', 'JAX_PLATFORMS': 'cpu'}, []),
    ({'CUDA_VISIBLE_DEVICES': 'GPU-7f, MIG-2'}, ['GPU-7f', 'MIG-2'])])
def test_visible_gpus(env, expected):
  assert environment.gpu_names(env) == expected


@pytest.mark.parametrize('files, plugins, cpu', [
    (False, [], True), (True, [], False), (False, ['xla_cuda13'], False)])
def test_jax_is_asked_where_it_may_have_a_device(monkeypatch, files, plugins, cpu):
  """Without device files, as in WSL2, an installed plugin alone says that JAX may find a GPU."""
  monkeypatch.setattr(environment, 'has_accelerator_files', lambda: files)
  monkeypatch.setattr(environment, 'accelerator_plugins', lambda: plugins)
  with monkeypatch.context() as patch:
    patch.setattr(os, 'environ', {'HOME': '/tmp'})
    patch.setattr(main, '_keep_freed_memory', lambda: None)
    main._configure_process(None)
    assert os.environ.get('JAX_PLATFORMS') == ('cpu' if cpu else None)


def test_devices_are_counted_by_kind():
  import jax
  assert hardware.describe(jax.devices()[:3]) == '3 x cpu'


# -- waiting for other processes ----------------------------------------------------


JOIN = ('--processes', '2', '--coordinator')


def test_waiting_is_said_and_ends_on_a_signal_and_in_time(tmp_path):
  (tmp_path / 'c.py').write_text(CONFIG)
  with socket.socket() as free, socket.socket(socket.AF_INET6) as taken:
    free.bind(('127.0.0.1', 0))
    taken.bind(('::', 0))
    taken.listen()
    nobody, used = (f'127.0.0.1:{one.getsockname()[1]}' for one in (free, taken))
    words = ('train', '--config', str(tmp_path / 'c.py'), '--workdir', str(tmp_path))
    soon = 'cluster.TELL_AFTER = 0.0'
    signalled = start(*words, *JOIN, nobody, '--process', '1', code=soon)
    interrupted = start(*words, *JOIN, nobody, '--process', '1', code=soon)
    late = start(*words, *JOIN, nobody, '--process', '1', '--join-minutes', '0.02')
    no_port = start(*words, *JOIN, used, '--process', '0')
    for process, number, code in ((signalled, signal.SIGTERM, 77),
                                  (interrupted, signal.SIGINT, 130)):
      said = process.stderr.readline()
      assert said == (f'ttt-jax: process 1 waits for 1 other process at {nobody}, for 30 min at '
                      'most; `--processes 1` runs alone.\n')
      process.send_signal(number)
      assert 'Traceback' not in process.communicate()[1]
      assert process.returncode == code
    error = late.communicate()[1]
    assert late.returncode == 1 and 'Traceback' not in error
    assert f'process 1 of 2 could not connect to the others at {nobody} within 0.02 min' in error
    error = no_port.communicate()[1]
    assert no_port.returncode == 1 and 'Traceback' not in error
    assert f'process 0 of 2 cannot listen at {used}: the port is in use' in error
