"""One process owns a folder; a process that has ended owns nothing."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from ttt_jax.errors import UserError
from ttt_jax.storage import lease as leases
from ttt_jax.storage.lease import InUse, Lease

HOLD = """
import sys, time
from ttt_jax.storage.lease import Lease
with Lease(sys.argv[1], 'workdir two'):
  print('held', flush=True)
  time.sleep(600)
"""


@contextlib.contextmanager
def holder(folder, kill=True):
  process = subprocess.Popen([sys.executable, '-c', HOLD, str(folder)], stdout=subprocess.PIPE,
                             text=True)
  try:
    assert process.stdout is not None and process.stdout.readline() == 'held\n'
    yield process
  finally:
    process.kill()
    process.wait()


def note(folder):
  return json.loads((folder / leases.NOTE).read_text())


def forge(folder, age=0.0, **process):
  """A note of a process on another machine, ``age`` seconds old."""
  values = note(folder)
  values['token'] = 'another'
  values['process'] |= {'host': 'far', 'machine': 'another', **process}
  (folder / leases.NOTE).write_text(json.dumps(values))
  at = time.time() - age
  os.utime(folder / leases.NOTE, (at, at))


def test_the_second_is_refused_and_a_killed_owner_is_not_waited_for(tmp_path):
  with holder(tmp_path) as process:
    sentence = (rf'^workdir two is in use by process {process.pid} on \S+ since '
                r'\d+-\d\d-\d\d \d\d:\d\d:\d\d; wait for it')
    with pytest.raises(InUse, match=sentence):
      Lease(tmp_path, 'workdir two').acquire()
    process.kill()
    deadline = time.monotonic() + 60
    while note(tmp_path) and time.monotonic() < deadline:  # killed, perhaps not yet ended
      with contextlib.suppress(InUse), Lease(tmp_path, 'workdir two', silence=1e9):
        assert note(tmp_path)['process']['pid'] == os.getpid()
        break
    else:
      pytest.fail('the lease of a killed process was not given')
  assert [path.name for path in tmp_path.iterdir()] == [leases.LOCK]
  with pytest.raises(InUse), Lease(tmp_path, 'x'), Lease(tmp_path, 'x'):
    pass  # nor twice in one process


def test_a_number_that_another_process_has_now_is_not_the_owner(tmp_path):
  with Lease(tmp_path, 'x'):
    values = note(tmp_path)
  values['token'], values['process']['started'] = 'old', '1'
  (tmp_path / leases.NOTE).write_text(json.dumps(values))
  with Lease(tmp_path, 'x', silence=1e9):
    pass


@contextlib.contextmanager
def beating(folder):
  """Another machine writes the note again and again."""
  over = threading.Event()
  def beat():
    while not over.wait(0.1):
      os.utime(folder / leases.NOTE)
  thread = threading.Thread(target=beat)
  thread.start()
  try:
    yield
  finally:
    over.set()
    thread.join()


def test_an_owner_on_another_machine_is_known_by_its_silence(tmp_path):
  said = []
  with Lease(tmp_path, 'x') as mine:
    mine.stop()
    forge(tmp_path)
    with beating(tmp_path), pytest.raises(InUse, match='on far'):
      Lease(tmp_path, 'x').acquire()
    with pytest.raises(UserError, match='taken over by process .* on far'):
      mine._renew()
      mine.check()
    forge(tmp_path, age=61)
  with Lease(tmp_path, 'x') as mine:
    mine.stop()
    forge(tmp_path)  # it may have ended this moment: wait until that is known
  with Lease(tmp_path, 'x', say=said.append, silence=1.0) as mine:
    mine.check()
  assert len(said) == 1 and 'on far, which has ended if it is silent for 1 s' in said[0]


def test_a_requeued_job_takes_over_at_once(tmp_path, monkeypatch):
  monkeypatch.setenv('SLURM_JOB_ID', '77')
  with Lease(tmp_path, 'x') as mine:
    mine.stop()
    forge(tmp_path)
  monkeypatch.setenv('SLURM_RESTART_COUNT', '1')
  with Lease(tmp_path, 'x', say=pytest.fail) as mine:
    mine.stop()
    forge(tmp_path)
  for job in ('77', '78'):  # the same start: two steps of one job; and another job
    monkeypatch.setenv('SLURM_JOB_ID', job)
    with beating(tmp_path), pytest.raises(InUse):
      Lease(tmp_path, 'x').acquire()


def test_an_owner_that_saves_and_exits_is_waited_for(tmp_path):
  said, ending = [], threading.Event()
  first = Lease(tmp_path, 'x', is_ending=ending.is_set)
  first.acquire()
  ending.set()
  deadline = time.monotonic() + 60
  while not note(tmp_path)['ending'] and time.monotonic() < deadline:
    time.sleep(0.05)
  threading.Timer(0.5, first.release).start()
  with Lease(tmp_path, 'workdir x', say=said.append):
    pass
  assert 'workdir x belongs to process' in said[0] and 'is saving and exits' in said[0]


def test_without_locks_a_note_that_was_replaced_at_once_does_not_count(tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(38, 'no locks')
  monkeypatch.setattr(leases.fcntl, 'flock', refuse)
  # A third process puts its note there while another puts an earlier one back.
  monkeypatch.setattr(leases.time, 'sleep', lambda seconds: forge(tmp_path))
  with pytest.raises(InUse, match='in use by process .* on far'):
    Lease(tmp_path, 'x', ending=0).acquire()


@pytest.mark.parametrize('locks', [True, False])
def test_of_many_one_gets_it(tmp_path, monkeypatch, locks):
  """With the note of an owner that is gone, with and without locks of the file system."""
  if not locks:
    def refuse(*_):
      raise OSError(38, 'no locks')
    monkeypatch.setattr(leases.fcntl, 'flock', refuse)
  with Lease(tmp_path, 'x') as mine:
    mine.stop()
    forge(tmp_path, age=1000)
  got, start = [], threading.Barrier(16)
  def race():
    lease = Lease(tmp_path, 'x')
    start.wait()
    with contextlib.suppress(InUse):
      lease.acquire()
      got.append(lease)
  threads = [threading.Thread(target=race) for _ in range(16)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(got) == 1 and note(tmp_path)['token'] == got[0]._token
  got[0].release()
  assert [path.name for path in tmp_path.iterdir()] == [leases.LOCK]


@pytest.mark.parametrize('text', ['', '{', '[]', '{"token": 3}', '[' * 100_000])
def test_a_damaged_note_is_no_owner(tmp_path, text):
  (tmp_path / leases.NOTE).write_text(text)
  os.utime(tmp_path / leases.NOTE, (1, 1))
  with Lease(tmp_path, 'x'):
    assert note(tmp_path)['process']['pid'] == os.getpid()
