"""Profiles: of the steps that were named, and of a live run from another process."""

import gzip
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from tests import docs, small_run
from ttt_jax.cli import main
from ttt_jax.config import MeshConfig, TrainConfig
from ttt_jax.errors import RetryableError, UserError
from ttt_jax.model import sharding
from ttt_jax.model.transformer import Model
from ttt_jax.runs import live_profile
from ttt_jax.storage import mirror, remote
from ttt_jax.tokens.vocab import Vocabulary
from ttt_jax.train import (
    optimizer as optimizers, profile_files, profiling, state as train_state, step as train_step,
    train)

VOCAB = Vocabulary('bytes', 256, 'mel', 64)


def events(path):
  """(name, its numbers) of all events of the host in a trace."""
  planes = jax.profiler.ProfileData.from_file(str(path)).planes
  return [(event.name, dict(event.stats)) for plane in planes if plane.name == '/host:CPU'
          for line in plane.lines for event in line.events]


def steps_in(path):
  return [numbers['step_num'] for name, numbers in events(path) if name == 'train']


def traces(workdir):
  return sorted((workdir / 'profile').glob('plugins/profile/*/*.xplane.pb'))


# -- train.profile ------------------------------------------------------------------------


def test_the_named_steps_of_every_start_are_traced(fake_run, tmp_path):
  config, device = fake_run
  config = small_run.replace(config, 'train', profile='1:3')
  device.steps = 3
  train.train(small_run.replace(config, 'train', steps=3), tmp_path)
  (path,) = traces(tmp_path)
  assert re.fullmatch(r'(\d+_){5}\d+', path.parent.name) and path.name == (
      f'{socket.gethostname()}.xplane.pb')
  assert steps_in(path) == [2, 3]
  assert not list((tmp_path / 'profile').glob('.recording*'))
  path.unlink()
  device.steps, device.given = 6, 3
  train.train(config, tmp_path)  # goes on after step 3
  (path,) = traces(tmp_path)
  assert steps_in(path) == [5, 6]
  assert {'batch', 'wait for the device'} <= {name for name, _ in events(path)}


def test_a_trace_that_cannot_be_written_is_not_worth_a_run(fake_run, tmp_path):
  config, device = fake_run
  tmp_path.joinpath('profile').write_text('in the way')
  train.train(small_run.replace(config, 'train', profile='1:3'), tmp_path)
  status = json.loads((tmp_path / 'status.json').read_text())
  assert status['state'] == 'done'
  assert 'train.profile: the steps could not be traced' in status['errors'][0]['text']


@pytest.mark.parametrize('value, what', [
    ('10', 'AFTER:UNTIL'), ('a:b', 'AFTER:UNTIL'), ('-1:3', 'AFTER:UNTIL'),
    ('1:2:3', 'AFTER:UNTIL'), ('0:5', 'at least 1'), ('5:5', 'larger than AFTER'),
    ('6:5', 'larger than AFTER'),
    ('1:102', 'by at most 100')])
def test_a_wrong_range_is_a_sentence(value, what):
  with pytest.raises(UserError, match=f"train.profile is '{value}'.*{what}"):
    TrainConfig(profile=value)


def test_a_right_range():
  assert TrainConfig(profile='10:15').profile_range == (10, 15)
  assert TrainConfig(profile='1:101').profile_range == (1, 101)
  assert TrainConfig().profile_range is None


def test_the_parts_of_the_step_have_names():
  config = small_run.replace(small_run.config(), 'model', num_layers=1)
  model, optimizer = Model(config.model, VOCAB.size), optimizers.make(config.optimizer, 10)
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  with jax.set_mesh(mesh):
    traced = train_step.make_train_step(config, model, VOCAB, optimizer, mesh).trace(
        train_state.abstract(model, optimizer, mesh), sharding.abstract_batch(mesh, 8, 32))
  text = traced.lower().as_text(debug_info=True)
  for name in ('noise', 'mask', 'jvp(embedding)', 'jvp(layers)', 'attention/qkv',
               'attention/rope', 'attention/scores', 'attention/out', 'mlp', 'final_norm', 'loss',
               'transpose(jvp(layers))', 'optimizer', 'metrics'):
    assert name in text, name


# -- on request ---------------------------------------------------------------------------


def live(folder, **changes):
  """status.json of a run that is alive in this process."""
  values = {'state': 'running', 'step': 7, 'steps': 10, 'time': time.time(), 'pid': os.getpid(),
            'host': socket.gethostname(), 'process_count': 1} | changes
  folder.mkdir(exist_ok=True)
  (folder / 'status.json').write_text(json.dumps(values))
  return folder


def profiler(folder, process=0, processes=1):
  return profiling.Profiler(folder, None, process, processes, poll=0.01)


@pytest.fixture
def busy():
  """A thread that computes all the time, as a run does."""
  over, times = threading.Event(), jax.jit(lambda x: x * 2)

  def work():
    while not over.wait(0.001):
      with jax.profiler.StepTraceAnnotation('train', step_num=1):
        times(jnp.ones(4)).block_until_ready()
  thread = threading.Thread(target=work)
  thread.start()
  yield
  over.set()
  thread.join()


@pytest.mark.usefixtures('busy')
def test_a_live_run_is_traced_and_its_memory_is_shown(tmp_path, capsys):
  run = live(tmp_path / 'run', process_count=2)
  with profiler(run, 0, 2), profiler(run, 1, 2):
    assert not main.main(['profile', '--workdir', str(run), '--seconds', '0.1', '--process', '1'])
    said = capsys.readouterr()
    (path,) = traces(run)
    assert path.name == f'{socket.gethostname()}-p1.xplane.pb' and 1 in steps_in(path)
    assert said.out.startswith(f'{path} (') and f'xprof --logdir {run}/profile' in said.out
    assert 'process 1' in said.err
    assert not main.main(['profile', '--workdir', str(run), '--memory', '--process', 'all'])
  found = sorted((run / 'profile' / 'memory').glob('*/*'))
  assert [file.name for file in found] == [
      f'{socket.gethostname()}-p{process}.memory.pb.gz' for process in (0, 1)]
  assert b'buffer' in gzip.decompress(found[0].read_bytes())
  assert 'pprof -http=127.0.0.1:8792 ' in capsys.readouterr().out
  left = {file.name for file in (run / 'profile').iterdir()}
  assert left == {'answer.0.json', 'answer.1.json', 'memory', 'plugins'}


def test_a_run_whose_workdir_is_in_a_bucket(bucket, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('TTT_JAX_CACHE', str(tmp_path / 'cache'))
  url = f'{bucket}/run'
  run = live(tmp_path / 'local')
  assert main.main(['profile', '--workdir', url]) == 2
  assert 'nothing was trained there (or its run began in the last 15' in capsys.readouterr().err
  remote.write_bytes(f'{url}/status.json', (run / 'status.json').read_bytes())
  with profiler(mirror.folder_of(url)):
    assert not main.main(['profile', '--workdir', url, '--seconds', '0.01'])
    said = capsys.readouterr().out
    assert not main.main(['profile', '--workdir', url, '--memory'])
  name = f'{socket.gethostname()}.memory.pb.gz'
  assert capsys.readouterr().out.endswith(
      f'Copy it to a disk and open it with: pprof -http=127.0.0.1:8792 {name}\n')
  path = said.split(' (')[0]
  assert path.startswith(f'{url}/profile/plugins/profile/') and remote.stat(path).size > 100
  assert f'xprof --logdir {url}/profile' in said
  assert not remote.exists(f'{url}/profile/request.json')


def test_a_run_that_ends_writes_what_it_has(tmp_path):
  run, found = live(tmp_path / 'run'), []
  with profiler(run):
    asking = threading.Thread(target=lambda: found.extend(live_profile.profile(run, seconds=60)))
    asking.start()
    while not (run / 'profile' / 'answer.0.json').exists():
      time.sleep(0.01)
  asking.join()
  assert [(path, path.stat().st_size) for path, _ in found] == found


def test_a_profile_that_fails_says_why(tmp_path, monkeypatch):
  run = live(tmp_path / 'run')

  def full(*unused, **more):
    raise OSError(28, 'No space left on device')
  monkeypatch.setattr(jax.profiler, 'start_trace', full)
  with profiler(run), pytest.raises(UserError, match='process 0 on .*No space left'):
    live_profile.profile(run, seconds=0.1)


def gone_pid():
  process = subprocess.Popen([sys.executable, '-c', ''])
  process.wait()
  return process.pid


@pytest.mark.parametrize('changes, process, what', [
    ({'state': 'done'}, 0, 'not live: it was done at step 7'),
    ({'state': 'failed'}, 0, 'not live: it failed at step 7'),
    ({'pid': 'gone'}, 0, 'not live: its process .* is gone'),
    ({}, 1, '--process is 1, but the run has 1 process, number 0'),
    ({'process_count': 2}, 2, 'has 2 processes, 0 to 1')])
def test_a_run_that_cannot_answer_is_a_sentence(tmp_path, changes, process, what):
  if changes.get('pid') == 'gone':
    changes = {'pid': gone_pid()}
  with pytest.raises(UserError, match=what):
    live_profile.profile(live(tmp_path / 'run', **changes), process=process)


def test_no_run_is_a_sentence(tmp_path):
  with pytest.raises(UserError, match='does not exist'):
    live_profile.profile(tmp_path / 'nowhere')
  with pytest.raises(UserError, match='has no status.json'):
    live_profile.profile(tmp_path)


def test_nobody_answers(tmp_path):
  run = live(tmp_path / 'run')
  with pytest.raises(RetryableError, match='process 0 .*has not answered within 0.1 s'):
    live_profile.profile(run, timeout=0.1)
  assert not (run / 'profile' / 'request.json').exists()


def test_one_request_at_a_time(tmp_path):
  run, now = live(tmp_path / 'run'), time.time()
  request = profile_files.Request('a', profile_files.TRACE, 0, 5.0, now - 9, now + 60, 'then')
  assert profile_files.write_request(run, request)
  assert not profile_files.write_request(run, request)
  with pytest.raises(RetryableError, match='was written 9 s ago'):
    live_profile.profile(run, timeout=0.1)
  profile_files.remove_request(run, request)
  old = profile_files.Request('b', profile_files.TRACE, 0, 5.0, now - 900, now - 840, 'then')
  assert profile_files.write_request(run, old)  # of a command that was killed
  with pytest.raises(RetryableError, match='has not answered'):
    live_profile.profile(run, timeout=0.1)


@pytest.mark.parametrize('flags, what', [
    (['--seconds', '0'], '--seconds is 0'), (['--seconds', '1e9'], 'at most 600'),
    (['--seconds', 'nan'], '--seconds is nan'), (['--process', '-1'], "--process is '-1'"),
    (['--process', 'one'], "--process is 'one'"), (['--timeout', '0'], '--timeout is 0')])
def test_wrong_flags_are_sentences(tmp_path, capsys, flags, what):
  (tmp_path / 'config.json').write_text('{}')
  assert main.main(['profile', '--workdir', str(tmp_path), *flags]) == 2
  assert what in capsys.readouterr().err


# -- with the viewer ----------------------------------------------------------------------

CONVERT = '''
import json, sys
from xprof.convert import raw_to_tool_data
names = raw_to_tool_data.xspace_to_tool_names(sys.argv[1:])
text, _ = raw_to_tool_data.xspace_to_tool_data(sys.argv[1:], 'trace_viewer@', {})
found = {event.get('name') for event in json.loads(text)['traceEvents']}
print(json.dumps({'tools': list(names), 'names': sorted(map(str, found))}))
'''


@pytest.mark.slow  # compiles, and xprof is an extra
def test_xprof_opens_a_trace_of_a_real_run(prepared, tmp_path):
  """XPROF_PYTHON: an interpreter with the package xprof; default: this one."""
  python = os.environ.get('XPROF_PYTHON') or sys.executable
  if subprocess.run([python, '-c', 'import xprof'], capture_output=True).returncode:
    pytest.skip('the package xprof is not installed; `make test-profile` does')
  config = small_run.replace(small_run.config(steps=6, profile='3:5'), 'data', path=str(prepared))
  # Programs of the cache have the names of the code that compiled them, unless the key has these.
  jax.config.update('jax_compilation_cache_include_metadata_in_key', True)
  try:
    with small_run.one_device():
      train.train(config, tmp_path)
  finally:
    jax.config.update('jax_compilation_cache_include_metadata_in_key', False)
  (path,) = traces(tmp_path)
  assert steps_in(path) == [4, 5]
  assert b'jvp(layers)/while/body/closed_call/attention/qkv' in path.read_bytes()
  done = subprocess.run([python, '-c', CONVERT, str(path)], capture_output=True, text=True,
                        cwd=docs.ROOT, check=True)
  found = json.loads(done.stdout.splitlines()[-1])
  assert {'trace_viewer@', 'hlo_stats', 'overview_page'} <= set(found['tools'])
  assert {'train 4', 'train 5', 'batch', 'wait for the device'} <= set(found['names'])
