"""Runs that are stopped, poisoned, moved or stuck end like runs that nothing happened to."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests import small_run
from tests.conftest import QUICK
from ttt_jax.cli import train as cli_train
from ttt_jax.config import MeshConfig, TrainConfig
from ttt_jax.data import loader, store
from ttt_jax.errors import UserError
from ttt_jax.model import sharding
from ttt_jax.model.transformer import Model
from ttt_jax.train import (
    checkpoint, fault_injection, metrics, optimizer as optimizers, preemption,
    state as train_state, status_file, step as train_step, train, watchdog)
from ttt_jax.train.loop import RunProgress

ROOT = pathlib.Path(__file__).parents[2]
ONE = MeshConfig(data=1, fsdp=1)


@pytest.fixture
def data_dir(prepared):
  return prepared


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """One device is enough where nothing is said of meshes, and compiles fastest."""
  devices = jax.devices()
  make = sharding.make_mesh
  monkeypatch.setattr(sharding, 'make_mesh', lambda config, chosen=None: make(
      config, chosen or (devices[:1] if config == ONE else devices)))


@pytest.fixture
def config(data_dir):
  base = small_run.config(checkpoint_every=4, tensorboard=False, nonfinite_limit=3, keep=3)
  return dataclasses.replace(small_run.replace(base, 'data', path=str(data_dir)), mesh=ONE)


class StopAt(preemption.Stop):
  """Asked to stop when the loop looks for the n-th time: once before, then once per step."""

  def __init__(self, looks, asked=preemption.PREEMPTED):
    self.looks, self.asked = looks, asked
    super().__init__()

  @property
  def level(self):
    self.looks -= 1
    return self.asked if self.looks <= 0 else preemption.NONE

  @level.setter
  def level(self, value):
    pass


def lines(workdir, name='loss'):
  return {line['step']: line[name] for line in metrics.read(workdir) if name in line}


def last(config, workdir):
  """(arrays, note) of the newest checkpoint, which must be good."""
  model = Model(config.model, store.vocabulary(config.data.path).size)
  target = train_state.abstract(model, optimizers.make(config.optimizer, config.train.steps),
                                sharding.make_mesh(config.mesh))
  with checkpoint.open_existing(workdir / 'checkpoints') as saved:
    step = saved.newest_good()
    return jax.tree.leaves(jax.tree.map(np.asarray, saved.restore(step, target))), saved.meta(step)


def assert_same_end(config, one, other):
  (mine, note), (theirs, wanted) = last(config, one), last(config, other)
  assert (note['data'], note['progress']) == (wanted['data'], wanted['progress'])
  for a, b in zip(mine, theirs):
    np.testing.assert_array_equal(a, b)
  np.testing.assert_equal(lines(one), lines(other))
  np.testing.assert_equal(lines(one, 'eval/loss'), lines(other, 'eval/loss'))


def test_stopped_anywhere_the_run_is_the_same(config, tmp_path):
  config = small_run.replace(config, 'train', eval_every=3, eval_batches=2, keep_best='text_nll')
  train.train(config, tmp_path / 'whole')
  asked = StopAt(4)
  train.train(config, tmp_path / 'cut', asked)
  assert asked.agreed == preemption.PREEMPTED
  status = status_file.read(tmp_path / 'cut')
  assert (status['state'], status['step'], status['last_good_checkpoint']) == ('preempted', 3, 3)
  before = StopAt(1)
  train.train(config, tmp_path / 'cut', before)  # told before the first step: nothing happens
  assert before.agreed == preemption.PREEMPTED and max(lines(tmp_path / 'cut')) == 3
  again = StopAt(5, preemption.INTERRUPTED)
  train.train(config, tmp_path / 'cut', again)
  assert again.agreed == preemption.INTERRUPTED
  train.train(config, tmp_path / 'cut')
  assert_same_end(config, tmp_path / 'whole', tmp_path / 'cut')
  status = status_file.read(tmp_path / 'cut')
  assert (status['state'], status['step'], status['last_good_checkpoint']) == ('done', 10, 10)
  assert sum(status['time_split'].values()) > 0 and status['process_count'] == 1
  scores = lines(tmp_path / 'whole', 'eval/text_nll')
  assert sorted(scores) == [3, 6, 9] and len(set(scores.values())) == 3
  with checkpoint.Checkpoints(tmp_path / 'whole' / 'checkpoints') as saved:
    best = min(scores, key=scores.get)
    assert saved.scores(best)['text_nll'] == scores[best]
    assert saved.meta(10)['progress']['best'] == scores[best]
    assert {'revision', 'version', 'fingerprint', 'config'} <= set(saved.meta(10))


def test_minutes_save_and_end_a_run(config, tmp_path):
  often = small_run.replace(config, 'train', checkpoint_every=100, checkpoint_minutes=1e-6, keep=20)
  train.train(often, tmp_path / 'often')
  with checkpoint.Checkpoints(tmp_path / 'often' / 'checkpoints', keep=20) as saved:
    assert saved.steps() == list(range(1, 11))
  short = small_run.replace(config, 'train', max_minutes=1e-6)
  assert int(train.train(short, tmp_path / 'short').step) == 1
  assert status_file.read(tmp_path / 'short')['last_good_checkpoint'] == 1


def test_a_poisoned_step_changes_nothing_but_its_number(config, data_dir):
  vocab = store.vocabulary(data_dir)
  model = Model(config.model, vocab.size)
  optimizer = optimizers.make(config.optimizer, 10)
  mesh = sharding.make_mesh(ONE)
  batches = loader.Loader(data_dir, config.data, 8, 0, vocab)
  bad = fault_injection.Faults(poison=frozenset([1]))
  with jax.set_mesh(mesh):
    state = train_state.init_sharded(model, optimizer, mesh, 0)
    step = train_step.make_train_step(config, model, vocab, optimizer, mesh,
                                      fault_injection.poisoned)
    put = lambda index: sharding.put_batch(mesh, bad.apply(index, batches.batch_at(index)))
    step = step.lower(state, put(0)).compile()
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert step.memory_analysis().alias_size_in_bytes >= 0.99 * held, 'a second copy of the state'
    state, found = step(state, put(0))
    assert found['skipped'] == 0
    before = jax.tree.map(np.array, state)
    given = state
    state, found = step(state, put(1))
    assert found['skipped'] == 1 and np.isnan(found['loss']) and np.isnan(
        found['grad_norm'])
    assert state.step == 2
    for a, b in zip(jax.tree.leaves(before[1:]), jax.tree.leaves(state[1:])):
      np.testing.assert_array_equal(a, b)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given.params)), 'not donated'


def test_two_bad_steps_are_skipped_three_roll_back(config, tmp_path):
  some = fault_injection.Faults(poison=frozenset([4, 5]))
  train.train(config, tmp_path / 'some', faults=some)
  _, note = last(config, tmp_path / 'some')
  assert RunProgress.read(note['progress']) == RunProgress(step=10, skipped=2)
  skipped = lines(tmp_path / 'some', 'skipped')
  assert [skipped[step] for step in (4, 5, 6, 10)] == [0, 1, 2, 2]

  many = fault_injection.Faults(poison=frozenset([6, 7, 8]))  # steps 7, 8, 9; saved: 4, 8 (bad)
  train.train(config, tmp_path / 'many', faults=many)
  _, note = last(config, tmp_path / 'many')
  assert RunProgress.read(note['progress']) == RunProgress(10, offset=5, skipped=3, rollbacks=1)
  assert note['data'] == {'next': 15}
  found = lines(tmp_path / 'many')
  assert sorted(found) == list(range(1, 11)) and not np.isnan(list(found.values())).any()
  event = status_file.read(tmp_path / 'many')['errors'][-1]
  assert 'up to step 9: rolled back to checkpoint 4, continuing with batch 9' in event['text']

  # Stopped in the bad stretch, with a bad state on the disk, and once more behind it.
  train.train(config, tmp_path / 'cut', StopAt(9), many)
  assert lines(tmp_path / 'cut', 'skipped')[8] == 2
  train.train(config, tmp_path / 'cut', StopAt(6), many)
  train.train(config, tmp_path / 'cut', faults=many)
  assert_same_end(config, tmp_path / 'many', tmp_path / 'cut')


def test_a_run_that_cannot_recover_fails_with_a_reason(config, tmp_path):
  always = fault_injection.Faults(poison=frozenset(range(5, 1000)))
  with pytest.raises(UserError, match='rolled back 2 times already .*train.rollback_limit'):
    train.train(small_run.replace(config, 'train', rollback_limit=2),
                tmp_path / 'late',
                faults=always)
  status = status_file.read(tmp_path / 'late')
  assert status['state'] == 'failed' and 'rolled back 2 times' in status['errors'][-1]['text']
  assert checkpoint.Checkpoints(tmp_path / 'late' / 'checkpoints').latest() == 4
  first = fault_injection.Faults(poison=frozenset(range(1000)))
  with pytest.raises(UserError, match='there is no checkpoint to roll back to'):
    train.train(config, tmp_path / 'first', faults=first)


@pytest.mark.slow  # test_train.py compares meshes; `make faults` moves real runs between them
def test_half_the_run_on_another_mesh(config, tmp_path):
  one = dataclasses.replace(config, mesh=MeshConfig(fsdp=8))
  other = dataclasses.replace(config, mesh=MeshConfig(fsdp=4, tensor=2))
  train.train(one, tmp_path / 'whole')
  train.train(one, tmp_path / 'moved', StopAt(6))
  train.train(other, tmp_path / 'moved')
  mine, wanted = lines(tmp_path / 'moved'), lines(tmp_path / 'whole')
  assert [mine[step] for step in range(1, 6)] == [wanted[step] for step in range(1, 6)]
  np.testing.assert_allclose([mine[step] for step in range(1, 11)],
                             [wanted[step] for step in range(1, 11)], rtol=1e-5)
  assert last(other, tmp_path / 'moved')[1]['data'] == {'next': 10}


def test_the_watchdog_writes_the_stacks_of_all_threads(tmp_path):
  heard = []
  with watchdog.Watchdog(0.001, tmp_path, 3, heard.append):
    until = time.monotonic() + 60
    while not heard and time.monotonic() < until:
      time.sleep(0.01)
  text = (tmp_path / 'stacks-3.txt').read_text()
  assert 'test_the_watchdog_writes_the_stacks_of_all_threads' in text
  assert len(heard) == 1 and 'stacks-3.txt' in heard[0]
  with watchdog.Watchdog(0, tmp_path, 4, heard.append):
    pass
  assert not (tmp_path / 'stacks-4.txt').exists()


@pytest.mark.parametrize('values, words', [
    ({'keep_best': 'wer'}, "train.keep_best is 'wer'; use 'loss', 'text_nll' or 'masked_nll'"),
    ({'keep_best': 'loss'}, "which needs train.eval_every"),
    ({'checkpoint_minutes': -1.0}, 'train.checkpoint_minutes is -1.0; it must be at least 0'),
    ({'nonfinite_limit': 0}, 'train.nonfinite_limit is 0; it must be at least 1')])
def test_settings_that_make_no_sense(values, words):
  with pytest.raises(UserError, match=words):
    TrainConfig(**values)


def test_the_syntax_of_injected_faults():
  assert fault_injection.parse('') is None
  assert fault_injection.parse('nan:7-9,stall:12:90') == fault_injection.Faults(
      frozenset([7, 8, 9]), ((12, 90.0),))
  with pytest.raises(UserError, match='TTT_JAX_FAULT is .*such as nan:7-9'):
    fault_injection.parse('nan:x')


def test_signals_request_a_stop_and_handlers_are_removed():
  stop = preemption.Stop()
  before = signal.getsignal(signal.SIGTERM)
  with cli_train.signal_handlers(stop):
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.level == preemption.INTERRUPTED
    os.kill(os.getpid(), signal.SIGUSR1)
    assert stop.level == preemption.PREEMPTED
  assert signal.getsignal(signal.SIGTERM) is before


def start(config, workdir, fault=''):
  """A real `ttt-jax train`."""
  workdir.mkdir()
  (workdir / 'config.json').write_text(json.dumps(train.to_dict(config)))
  environment = os.environ | {'PYTHONPATH': str(ROOT), 'XLA_FLAGS': QUICK, 'TTT_JAX_FAULT': fault}
  return subprocess.Popen([sys.executable, '-m', 'ttt_jax.cli', 'train', '--workdir', str(workdir)],
                          env=environment, stderr=subprocess.PIPE, text=True)


def test_ctrl_c_twice_and_a_stuck_run(config, tmp_path):
  """The stalls are longer than the test: who leaves does so at once."""
  stuck = start(small_run.replace(config, 'train', stuck_minutes=0.1, stuck_exit=True),
                tmp_path / 'stuck', 'stall:2:3000')
  waiting = start(config, tmp_path / 'waiting', 'stall:2:3000')
  while status_file.read(tmp_path / 'waiting').get('state') != 'running':
    assert waiting.poll() is None, waiting.stderr.read()
    time.sleep(0.05)
  for _ in range(2):
    waiting.send_signal(signal.SIGINT)
    time.sleep(0.5)
  assert waiting.wait(timeout=300) == 130
  assert 'exiting without saving' in waiting.stderr.read()
  assert stuck.wait(timeout=300) == 1
  assert 'most recent call first' in (tmp_path / 'stuck' / 'stacks-0.txt').read_text()
  assert 'the stacks of all' in status_file.read(tmp_path / 'stuck')['errors'][-1]['text']


@pytest.mark.slow  # `make faults` is the long one
def test_a_short_campaign(tmp_path):
  """Real processes, real signals, damaged files; `make faults` is the long one."""
  done = subprocess.run(
      [sys.executable, str(ROOT / 'tools' / 'faults.py'), '--out', str(tmp_path / 'faults'),
       '--kills', '1', '--corruptions', '1', '--steps', '16', '--only', 'kills', 'damage',
       '--json', str(tmp_path / 'faults.json')], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout + done.stderr[-2000:]
  for result in json.loads((tmp_path / 'faults.json').read_text()):
    assert result['tried'] == result['survived'] and result['equal'] and not result['lost_steps']
