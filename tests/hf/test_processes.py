"""import-hf and export-hf by two processes: what one process makes; what one cannot, none does."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import chex
import pytest

from tests import small_run
from tests.hf import directories
from ttt_jax.cli import main
from ttt_jax.config import load, save
from ttt_jax.data import store
from ttt_jax.hf import export_target
from ttt_jax.storage import owned, remote
from ttt_jax.train import trained_model

pytestmark = pytest.mark.slow  # processes of JAX
ROOT = pathlib.Path(__file__).parents[2]
MEMBER = """
import os, sys
{before}
from ttt_jax.cli import main
sys.exit(main.main(sys.argv[1:]))
"""
# What a process does before, so that it fails.
FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
"""
WAITS = """
import pathlib, time
from ttt_jax.hf import write_weights
gather = write_weights._Gather.get
calls = []
def slow(self, name):
  calls.append(name)
  if len(calls) == 3:
    pathlib.Path(os.environ['HERE']).touch()
    time.sleep(600)
  return gather(self, name)
write_weights._Gather.get = slow
"""


def start(words, before=('', ''), devices=1, environments=({}, {}), only_second=()):
  """The two processes of a command; process 1 has more words."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  environment = os.environ | {
      'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}'}
  return [subprocess.Popen(
      [sys.executable, '-c', MEMBER.replace('{before}', before[rank]), *map(str, words),
       *map(str, only_second if rank else ()), '--processes', '2', '--process', str(rank),
       '--coordinator', f'127.0.0.1:{port}'],
      env=environment | environments[rank], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      text=True) for rank in range(2)]


def two(*words, **more):
  """[(exit code, standard output, standard error)] of the two processes of a command."""
  processes = start(words, **more)
  return [(process.returncode, *said) for process in processes
          for said in [process.communicate(timeout=600)]]


def codes(ended):
  return [code for code, *_ in ended]


def files(folder):
  """Contents by name; of what names the revision of the code, which may change meanwhile, all
  else."""
  out = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*')
         if path.is_file()}
  if facts := json.loads(out.pop(export_target.FACTS, b'{}')):
    del facts['revision']
    out.update({export_target.FACTS: facts, 'README.md': 'README.md' in out})
    out[owned.MARKER] = list(owned.read_marker(folder)['files'])
  return out


def params(workdir):
  return trained_model.load(load(workdir / 'config.json', {}), workdir, dtype=None).params


@pytest.fixture(scope='module')
def model(tmp_path_factory, prepared):
  """(folder with config.json and weights of fewer ids than the data has, the config's file)."""
  folder = tmp_path_factory.mktemp('model')
  config = small_run.replace(small_run.config(steps=2), 'data', path=str(prepared))
  directories.write(folder / 'm', config.model, store.vocabulary(prepared).size - 60, 'bfloat16',
                    shard_bytes=30_000)
  save(config, folder)
  return folder / 'm', folder / 'config.json'


@pytest.fixture(scope='module')
def run(tmp_path_factory, model):
  """A workdir that one process has imported."""
  workdir = tmp_path_factory.mktemp('run') / 'w'
  assert main.main(['import-hf', '--hf', str(model[0]), '--config', str(model[1]), '--workdir',
                    str(workdir)]) == 0
  return workdir


@pytest.fixture(scope='module')
def exported(run):
  out = run.parent / 'out'
  assert main.main(['export-hf', '--workdir', str(run), '--out', str(out), '--shard-gb',
                    '3e-5']) == 0
  return out


@pytest.mark.parametrize('devices', [1, 2])
def test_both_ways(model, run, exported, tmp_path, devices):
  hf, config = model
  ended = two('import-hf', '--hf', hf, '--config', config, '--workdir', tmp_path / 'w',
              devices=devices)
  assert codes(ended) == [0, 0], ended
  assert 'ids 0 to' in ended[0][1] and 'ids' not in ended[1][1]
  chex.assert_trees_all_equal(params(tmp_path / 'w'), params(run))
  assert files(tmp_path / 'w' / 'imported') == files(run / 'imported')
  ended = two('export-hf', '--workdir', tmp_path / 'w', '--out', tmp_path / 'out', '--shard-gb',
              '3e-5', devices=devices)
  assert codes(ended) == [0, 0], ended
  assert 'verified' in ended[0][1] and 'verified' not in ended[1][1]
  assert files(tmp_path / 'out') == files(exported)
  assert sorted(os.listdir(tmp_path)) == ['out', 'w']


def test_a_full_disk_of_one_process(run, tmp_path):
  ended = two('export-hf', '--workdir', run, '--out', tmp_path / 'out', '--shard-gb', '3e-5',
              before=('', FULL))
  assert codes(ended) == [2, 2], ended
  assert 'out could not be written: a file there would grow beyond its limit' in ended[1][2]
  assert f'process 1 on {socket.gethostname()} failed: ' in ended[0][2]
  assert 'Traceback' not in ended[0][2] + ended[1][2]
  assert os.listdir(tmp_path) == []


def test_an_import_that_one_process_cannot_save(model, run, tmp_path):
  words = ('import-hf', '--hf', model[0], '--config', model[1], '--workdir', tmp_path / 'w')
  ended = two(*words, before=('', FULL))
  assert codes(ended) == [2, 2], ended
  assert 'checkpoints/0 could not be written: a file there would grow' in ended[1][2]
  assert f'process 1 on {socket.gethostname()} failed: ' in ended[0][2]
  assert 'Traceback' not in ended[0][2] + ended[1][2]
  assert codes(two(*words)) == [0, 0]
  chex.assert_trees_all_equal(params(tmp_path / 'w'), params(run))


def test_a_disk_that_is_not_shared(run, tmp_path):
  """Process 1 sees another folder of the same name."""
  apart = ("from ttt_jax.train import together\n"
           "wait = together._wait_for\n"
           "together._SEEN = 1\n"
           "together._wait_for = lambda probe, *more: wait(probe.with_name('x'), *more)\n")
  ended = two('export-hf', '--workdir', run, '--out', tmp_path / 'out', before=('', apart))
  assert codes(ended) == [2, 2], ended
  assert 'on a disk that all processes share, or a URL of a bucket' in ended[0][2] + ended[1][2]
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('more, words', [
    (('--dtype', 'float32'), '--dtype is not given for process 0 on {host}, but float32 for'),
    (('--shard-gb', 1e-5), '--shard-gb is 5.0 for process 0 on {host}, but 1e-05 for process 1'),
    (('--config.model.num_layers=9',), 'config key model.num_layers is ')])
def test_processes_with_different_commands(run, tmp_path, more, words):
  ended = two('export-hf', '--workdir', run, '--out', tmp_path / 'out', only_second=more)
  assert codes(ended) == [2, 2], ended
  for _, _, said in ended:
    assert words.format(host=socket.gethostname()) in said and 'same command' in said, said
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('killed', [0, 1])
def test_a_killed_process_leaves_nothing_half_done(run, exported, tmp_path, killed):
  words = ('export-hf', '--workdir', run, '--out', tmp_path / 'out', '--shard-gb', '3e-5')
  here = {'HERE': str(tmp_path / 'here')}
  processes = start(words, before=(WAITS, '') if killed == 0 else ('', WAITS),
                    environments=(here, here))
  until = time.monotonic() + 300
  while not (tmp_path / 'here').exists() and time.monotonic() < until:
    time.sleep(0.1)
  assert list(tmp_path.glob('.out-*.new')), 'they are writing'
  processes[killed].send_signal(signal.SIGKILL)
  other = processes[1 - killed]
  said = other.communicate(timeout=60)[1]
  assert other.returncode not in (0, 2) and 'Traceback' not in said, said
  assert not (tmp_path / 'out').exists()
  assert codes(two(*words)) == [0, 0]
  assert files(tmp_path / 'out') == files(exported)
  assert sorted(os.listdir(tmp_path)) == ['here', 'out'], 'what was left is removed'


@pytest.mark.storage
def test_in_a_bucket(bucket, model, run, exported, tmp_path):
  """Each process has a cache of its own, as on two hosts."""
  caches = tuple({'TTT_JAX_CACHE': str(tmp_path / f'cache-{rank}')} for rank in range(2))
  hf, config = model
  remote.upload_folder(hf, f'{bucket}/m')
  ended = two('import-hf', '--hf', f'{bucket}/m', '--config', config, '--workdir', f'{bucket}/w',
              environments=caches)
  assert codes(ended) == [0, 0], ended
  assert not [*tmp_path.rglob('*.safetensors')], 'ranges are read, no copies'
  words = ('export-hf', '--workdir', f'{bucket}/w', '--out', f'{bucket}/out', '--shard-gb', '3e-5')
  ended = two(*words, environments=caches)
  assert codes(ended) == [0, 0], ended
  remote.download_folder(f'{bucket}/out', tmp_path / 'there')
  assert set(files(tmp_path / 'there')) == set(files(exported))
  assert files(tmp_path / 'there') == files(exported)
  assert codes(two(*words, environments=caches)) == [2, 2]
  ended = two(*words, '--overwrite', environments=caches, before=('', FULL))
  assert codes(ended) == [2, 2], ended
  assert remote.exists(f'{bucket}/out/training.json'), 'nothing was uploaded'
