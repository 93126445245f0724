"""Runs with a workdir in a bucket: training, resuming on another machine, readers, two writers."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests import small_run
from tests.storage import proxy as proxies, servers
from ttt_jax import api
from ttt_jax.cli import main as cli
from ttt_jax.errors import UserError
from ttt_jax.runs import status
from ttt_jax.storage import bucket_lease, mirror, outages, remote
from ttt_jax.train import checkpoint, metrics, status_file, train

pytestmark = pytest.mark.usefixtures('one_device')
ROOT = pathlib.Path(__file__).parents[2]


def arrays(directory, step):
  """All arrays of a checkpoint."""
  with checkpoint.Checkpoints(directory) as checkpoints:
    stored = checkpoints.stored(step)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype,
                                                            sharding=sharding), stored)
    from orbax.checkpoint import v1 as ocp
    found = ocp.load_checkpointables(checkpoints.place(step), {
        'params': target['params'],
        'optimizer': {key: value for key, value in target.items() if key != 'params'}})
  return jax.tree.map(np.asarray, found)


def assert_equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def machine(monkeypatch, tmp_path, number):
  monkeypatch.setenv('TTT_JAX_CACHE', str(tmp_path / f'machine{number}'))


@pytest.fixture
def config(small_config):
  return small_config


def test_a_run_goes_on_in_a_bucket_from_the_newest_good_checkpoint(
    gs_bucket, config, ten_steps, monkeypatch, tmp_path, capsys):
  """A run that was copied there, one of whose objects is lost."""
  url = gs_bucket + '/run'
  names = remote.upload_folder(ten_steps, url)
  remote.remove(url + '/' + next(name for name in names
                                 if name.startswith('checkpoints/10/params/d/')))
  train.train(config, url)
  assert_equal(arrays(url + '/checkpoints', 10), arrays(ten_steps / 'checkpoints', 10))
  machine(monkeypatch, tmp_path, 2)
  assert cli.main(['status', '--workdir', url]) == 0
  shown = capsys.readouterr().out
  assert 'run: done' in shown and 'checkpoint 10 is corrupt' in shown, shown
  lines = metrics.read(mirror.folder_of(url))
  assert [line['step'] for line in lines if 'loss' in line] == list(range(1, 11))


@pytest.mark.storage
@pytest.mark.slow
def test_a_run_goes_on_elsewhere_from_the_newest_good_checkpoint(
    gs_bucket, config, ten_steps, monkeypatch, tmp_path, capsys):
  url = gs_bucket + '/run'
  machine(monkeypatch, tmp_path, 1)
  train.train(config, url)
  found = remote.files(url)
  assert {'config.json', 'status.json', 'metrics.jsonl', 'checkpoints/5/seal.json',
          'checkpoints/10/seal.json'} <= set(found)
  assert any(name.startswith('tensorboard/') for name in found)
  assert_equal(arrays(url + '/checkpoints', 10), arrays(ten_steps / 'checkpoints', 10))
  damaged = next(name for name in found if name.startswith('checkpoints/10/params/') and '/d/' in
                 name)
  remote.remove(f'{url}/{damaged}')

  machine(monkeypatch, tmp_path, 2)
  train.train(config, url)
  assert_equal(arrays(url + '/checkpoints', 10), arrays(ten_steps / 'checkpoints', 10))
  machine(monkeypatch, tmp_path, 3)
  assert cli.main(['status', '--workdir', url]) == 0
  shown = capsys.readouterr().out
  assert 'run: done' in shown and 'checkpoint 10 is corrupt' in shown, shown
  lines = metrics.read(mirror.folder_of(url))
  assert [line['step'] for line in lines if 'loss' in line] == list(range(1, 11))
  assert servers.SECRET not in b''.join(
      remote.read_bytes(f'{url}/{name}') for name in remote.files(url)).decode('latin1')
  from ttt_jax.train import restore
  step = restore.initial(url, lambda checkpoints, step: step, 'checksums')
  assert step == restore.initial(f'{url}/checkpoints/10', lambda checkpoints, step: step, 'sizes')
  with pytest.raises(UserError, match='no complete checkpoint'):
    restore.initial(gs_bucket + '/nothing', lambda checkpoints, step: step, 'checksums')


def test_two_runs_are_refused(gs_bucket, config):
  url = gs_bucket + '/run'
  with bucket_lease.BucketLease(url):
    with pytest.raises(UserError, match=f'workdir {url} is in use by process'):
      train.train(config, url)
  assert 'checkpoints' not in ''.join(remote.files(url))


@pytest.mark.storage
@pytest.mark.slow
def test_a_store_that_is_down_for_a_while_does_not_stop_a_run(gs_bucket, gcs_server, config,
                                                              monkeypatch, tmp_path):
  """Only the small files: metrics and status are copied later, and the status says so."""
  monkeypatch.setattr(mirror, 'EVERY', 0.2)
  monkeypatch.setattr(outages, 'RETRY_SECONDS', 0.5)
  url = gs_bucket + '/run'
  proxy = proxies.Proxy(gcs_server.address)
  failed = 0

  def no_metrics(method, path):
    nonlocal failed
    if method == 'POST' and path.startswith('/upload') and failed < 30:
      failed += 1
      return 503
  config = small_run.replace(config, 'train', checkpoint_every=1000, steps=200)
  with servers.used(gcs_server, monkeypatch, proxy.address):
    real = status_file.Status.update
    def update(self, **values):
      if values.get('step', 0) == 3:
        proxy.disturb = no_metrics
      real(self, **values)
    monkeypatch.setattr(status_file.Status, 'update', update)
    train.train(config, url)
    events = [event['text'] for event in json.loads(
        remote.read_bytes(url + '/status.json'))['errors']]
  assert any('tried again every' in event for event in events), events
  assert len(remote.read_bytes(url + '/metrics.jsonl').splitlines()) == 200
  proxy.close()


# -- processes ----------------------------------------------------------------------------------


def start(server, tmp_path, number, *words):
  environment = os.environ | server.environment | {
      'TTT_JAX_CACHE': str(tmp_path / f'machine{number}'), 'PYTHONPATH': str(ROOT),
      'XLA_FLAGS': '', 'JAX_COMPILATION_CACHE_DIR': os.environ['JAX_COMPILATION_CACHE_DIR']}
  return subprocess.Popen([sys.executable, '-m', 'ttt_jax.cli', *words], env=environment,
                          cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(*args):
  process = start(*args)
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err


@pytest.fixture(params=[pytest.param('gs', marks=[pytest.mark.storage, pytest.mark.slow]),
                        pytest.param('s3', marks=[pytest.mark.storage, pytest.mark.slow])])
def store(request):
  """(server, URL of an empty folder)."""
  url = request.getfixturevalue(f'{request.param}_bucket')
  return request.getfixturevalue({'gs': 'gcs_server', 's3': 's3_server'}[request.param]), url


def settings(tmp_path, config, **train):
  (tmp_path / 'config.json').write_text(json.dumps(cli.config_lib.to_dict(
      small_run.replace(config, 'train', **train))))
  return str(tmp_path / 'config.json')


def test_a_killed_run_resumes_on_another_machine(store, config, tmp_path, monkeypatch):
  """SIGKILL at three moments, each time another cache folder; the end is that of one run."""
  server, url = store
  url += '/run'
  file = settings(tmp_path, config, steps=30, checkpoint_every=3, keep=2)
  words = ('train', '--config', file, '--workdir', url, '--devices', '1')
  silence = bucket_lease.SILENCE
  assert silence > 10
  said = []
  for number, wanted in enumerate((3, 12, 21)):
    process = start(server, tmp_path, number, *words)
    until = time.monotonic() + 200
    while time.monotonic() < until and process.poll() is None and not any(
        int(match.group(1)) >= wanted for name in remote.files(url) if (match := re.match(
            r'checkpoints/(\d+)/seal.json', name))):
      time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    out, err = process.communicate()
    said.append(out + err)
    assert process.returncode == -signal.SIGKILL, err
  code, out, err = run(server, tmp_path, 9, *words)
  said.append(out + err)
  assert code == 0 and 'resuming from checkpoint' in err, err
  code, out, err = run(server, tmp_path, 10, 'train', '--config', file, '--workdir',
                       str(tmp_path / 'local'), '--devices', '1')
  assert code == 0, err
  assert_equal(arrays(url + '/checkpoints', 30), arrays(tmp_path / 'local/checkpoints', 30))
  assert servers.SECRET not in ''.join(said)
  for path in tmp_path.rglob('*'):
    assert not path.is_file() or servers.SECRET.encode() not in path.read_bytes(), path
  for name in remote.files(url):
    assert servers.SECRET.encode() not in remote.read_bytes(f'{url}/{name}'), name


def test_every_command_takes_a_url(store, tmp_path):
  server, url = store
  url += '/run'
  base = small_run.config(steps=6, checkpoint_every=3)
  file = settings(tmp_path, base)
  for number, words in enumerate((
      ['prepare', '--config', file], ['train', '--devices', '1'], ['status'],
      ['evaluate', '--devices', '1'], ['score', '--config.score.items=2'],
      ['generate', '--task', 'tts', '--text', 'one two', '--out', str(tmp_path / 'answers')],
      ['inspect', '--document', '1'], ['report'],
      ['evaluate', '--devices', '1'],  # replaces what the first one wrote
      ['export-hf', '--out', str(tmp_path / 'export')])):
    code, out, err = run(server, tmp_path, number, *words, '--workdir', url)
    assert code == 0, (words, out, err)
    assert str(tmp_path / f'machine{number}') not in err or code == 0
  names = set(remote.files(url))
  assert {'data/manifest.json', 'config.json', 'evaluation.json', 'scores.json',
          'report.html'} <= names, names
  code, out, err = run(server, tmp_path, 20, 'train', '--workdir', url, '--devices', '1',
                       '--config.train.steps=8')
  assert code == 0 and 'resuming from checkpoint 6' in err, err


def test_a_sweep(store, tmp_path):
  server, url = store
  file = settings(tmp_path, small_run.config(steps=4, checkpoint_every=2))
  (tmp_path / 'rates.py').write_text(
      'from ttt_jax.runs import sweep\n\n\ndef get_sweep():\n'
      "  return sweep.product({'optimizer.learning_rate': [1e-3, 2e-3]})\n")
  words = ('sweep', '--sweep', str(tmp_path / 'rates.py'), '--config', file, '--workdir',
           url + '/rates')
  code, out, err = run(server, tmp_path, 1, *words)
  assert code == 0, err
  code, out, err = run(server, tmp_path, 2, 'status', '--workdir', url + '/rates')
  assert code == 0 and 'a sweep of 2 members, 2 done' in out, out
  names = set(remote.files(url + '/rates'))
  assert {'sweep.json', 'sweep.csv', 'report.html', 'data/manifest.json',
          'learning_rate=0.001/member.json', 'learning_rate=0.002/checkpoints/4/seal.json'} <= names
  code, out, err = run(server, tmp_path, 3, *words)
  assert code == 0 and '2 done' in out, err


def test_two_processes(store, config, tmp_path):
  server, url = store
  url += '/run'
  file = settings(tmp_path, config, steps=6, checkpoint_every=3)
  port = servers.free_port()
  both = [start(server, tmp_path, number, 'train', '--config', file, '--workdir', url, '--devices',
                '1', '--processes', '2', '--process', str(number), '--coordinator',
                f'127.0.0.1:{port}') for number in range(2)]
  for process in both:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
  assert {'checkpoints/3/seal.json', 'checkpoints/6/seal.json', 'metrics.jsonl'} <= set(
      remote.files(url))
  machine_status = json.loads(remote.read_bytes(url + '/status.json'))
  assert machine_status['state'] == 'done' and machine_status['process_count'] == 2
  assert 'run: done' in status.status(mirror.copied(url))
  assert api.load(url).vocab.size > 256


def test_errors_are_one_sentence(store, tmp_path):
  server, url = store
  for words, says in (
      (['train', '--workdir', url + '/nothing'], f'{url}/nothing/config.json does not exist'),
      (['status', '--workdir', url + '/nothing'], f'workdir {url}/nothing does not exist'),
      (['status', '--workdir', url.replace('://bucket', '://nobody')], 'does not exist'),
      (['status', '--workdir', 'gcs://bucket/run'], 'gs'),
      (['status', '--workdir', url + '/../x'], "'..'")):
    code, out, err = run(server, tmp_path, 1, *words)
    assert code == 2 and says in err and 'Traceback' not in err and err.count('\n') == 1, err
