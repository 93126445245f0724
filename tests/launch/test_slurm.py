"""A real SLURM: two nodes train one model, are preempted and timed out, and end as if nothing was.

Needs sbatch with two idle nodes; `make test-slurm` runs it, in five to fifteen minutes on 2 cores.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import pytest

from tests import small_run
from ttt_jax import config as config_lib
from ttt_jax.runs import sweep_table
from ttt_jax.train import metrics

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 400
LIMIT = 1800  # seconds; only turns a hang into a failure

pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    shutil.which('sbatch') is None, reason='there is no SLURM on this machine (no sbatch)')]


def call(*words, **settings):
  return subprocess.run([str(word) for word in words], capture_output=True, text=True, check=True,
                        cwd=ROOT, **settings).stdout.strip()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Prepared rows, a config, and a `ttt-jax` on PATH for the jobs."""
  folder = tmp_path_factory.mktemp('slurm')
  program = folder / 'bin' / 'ttt-jax'
  program.parent.mkdir()
  program.write_text(f'#!/bin/sh\nexec {sys.executable} -m ttt_jax.cli "$@"\n')
  program.chmod(0o755)
  config_lib.save(small_run.config(steps=STEPS, checkpoint_every=10 * STEPS), folder)
  call(sys.executable, '-m', 'ttt_jax.cli', 'prepare', '--config', folder / 'config.json',
       '--workdir', folder)
  return folder


def environment(folder):
  return os.environ | {'PATH': f'{folder / "bin"}:{os.environ["PATH"]}', 'XLA_FLAGS': '',
                       'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1',
                       'TTT_JAX_CACHE': str(folder / 'cache')}


def flags(folder):
  return ['--config', folder / 'config.json', f'--config.data.path={folder / "data"}']


def until(condition, what):
  end = time.monotonic() + LIMIT
  while not condition():
    assert time.monotonic() < end, f'waited too long for {what}'
    time.sleep(0.5)


def job(number):
  """What scontrol says about a job: {'JobState': 'RUNNING', 'Restarts': '1', ...}."""
  return dict(re.findall(r'(\w+)=(\S*)', call('scontrol', 'show', 'job', number)))


def step_of(workdir):
  path = workdir / 'status.json'
  return json.loads(path.read_text())['step'] if path.is_file() else 0


def hurry(number, since):
  """A job that was queued again waits for two minutes by SLURM's own rule; the first twenty
  seconds of them are needed, or the nodes still refuse it.

  Args:
    number: of the job.
    since: restarts -> when they were first seen; changed here.
  """
  state = job(number)
  if state['JobState'] == 'PENDING' and state['Restarts'] != '0':
    first = since.setdefault(state['Restarts'], time.monotonic())
    if time.monotonic() - first > 20:
      subprocess.run(['scontrol', 'update', f'JobId={number}', 'StartTime=now'], check=False,
                     capture_output=True)


def losses(workdir):
  return {line['step']: (line['loss'], line['grad_norm']) for line in metrics.read(workdir)
          if 'loss' in line}


def test_two_nodes_preempted_and_timed_out_end_like_an_uninterrupted_run(folder):
  straight, broken = folder / 'straight', folder / 'broken'
  call('ttt-jax', 'supervise', '--workdir', straight, '--processes', 2, '--', 'ttt-jax', 'train',
       '--workdir', straight, *flags(folder), env=environment(folder))

  # Two minutes are too short for this run: it meets its time limit, too.
  number = call('sbatch', '--parsable', '--nodes=2', '--time=2', '--signal=TERM@30',
                f'--output={folder}/job.log', 'launch/slurm.sh', broken, *flags(folder),
                env=environment(folder))
  began, since = time.monotonic(), {}

  def far_enough():
    hurry(number, since)
    return step_of(broken) >= 50

  def over():
    """On its way back to the queue a job looks as if it had ended, for a moment."""
    hurry(number, since)
    for _ in range(10):
      if job(number)['JobState'] in ('PENDING', 'RUNNING', 'COMPLETING', 'CONFIGURING', 'REQUEUED'):
        return False
      time.sleep(1)
    return True

  until(far_enough, 'step 50')
  call('scancel', '--signal=TERM', number)
  until(over, 'the end of the job')
  log = (folder / 'job.log').read_text()
  assert job(number)['JobState'] == 'COMPLETED', log
  restarts = int(job(number)['Restarts'])
  assert restarts >= 2 and log.count('requeueing') == restarts, log
  resumed = re.findall(r'resuming from checkpoint (\d+)', log)
  print(f'{restarts} restarts, at steps {resumed}; {time.monotonic() - began:.0f} s')
  assert losses(broken) == losses(straight)
  assert sorted(losses(broken)) == list(range(1, STEPS + 1))


def test_a_sweep_as_an_array(folder):
  """Two members on a node each, one of which fails; the table has both."""
  path = folder / 'members.py'
  path.write_text("def get_sweep():\n  return {'good': {'seed': 1}, "
                  "'bad': {'train.init_from': 'nowhere'}}\n")
  work = folder / 'sweep'
  words = ['ttt-jax', 'sweep', '--sweep', path, '--workdir', work, '--launcher', 'slurm',
           f'--sbatch=--output={folder}/sweep-%a.log', *flags(folder), '--config.train.steps=5']
  said = call(*words, env=environment(folder))
  assert '2 members are queued' in said
  again = subprocess.run([str(word) for word in words], env=environment(folder), cwd=ROOT,
                         capture_output=True, text=True, check=False)
  assert again.returncode == 2 and 'already queued as job' in again.stderr
  until(lambda: not call('squeue', '--noheader'), 'an empty queue')
  rows = {row['member']: row for row in sweep_table.rows(work)}
  assert rows['good']['state'] == 'done' and rows['good']['step'] == 5
  assert rows['bad']['state'] == 'failed' and 'nowhere' in rows['bad']['error']
  assert (work / 'sweep.csv').read_text().count('\n') == 3
  said = call(*words, env=environment(folder))
  assert '1 member is queued' in said
  until(lambda: not call('squeue', '--noheader'), 'an empty queue')
