"""Workers of `prepare --worker K/N`: one set, whoever computes what, ends or comes late."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.data.prepare import test_phases
from tests.data.prepare.test_jobs import Job, square
from tests.data.prepare.test_phases import config, contents
from ttt_jax import config as config_lib
from ttt_jax.cli import prepare as cli_prepare
from ttt_jax.config import Source
from ttt_jax.data.prepare import board, jobs as jobs_lib, prepare, team as team_lib
from ttt_jax.data.prepare.local_pool import LocalPool
from ttt_jax.data.prepare.folder_results import FolderResults
from ttt_jax.data.prepare.team import Team, Worker
from ttt_jax.errors import RetryableError, UserError
from ttt_jax.storage import lease, owned, process, remote

corpus, small = test_phases.corpus, test_phases.small  # fixtures
ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(board.Board, 'look', 0.02)
  monkeypatch.setattr(team_lib, '_POLL', 0.02)


def at_once(*calls):
  """What each call returned or raised; each runs in a thread of its own."""
  out = [None] * len(calls)
  def call(i):
    try:
      out[i] = calls[i]()
    except Exception as error:
      out[i] = error
  threads = [threading.Thread(target=call, args=(i,)) for i in range(len(calls))]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return out


def work_on(folder, jobs, number, count, function=square, identity='x', pool=None):
  """The results of a worker's view of some jobs."""
  results = FolderResults(folder)
  team = Team(results, Worker(number, count), identity, folder / 'manifest')
  with jobs_lib.Work(results, pool or LocalPool(1), team) as work:
    return [one.info for one in work.run(function, jobs, lambda done: None, pool is not None)]


def counted(job, folder):
  """As ``square``, and keeps who called it."""
  (folder.parent / f'by-{threading.get_ident()}-{job.number}').touch()
  return square(job, folder)


def dead_worker(folder, name='1-dead'):
  """The lease of a worker that was killed."""
  note = {'token': 't', 'process': dataclasses.replace(
      process.this(), pid=2**22 + 1, started='1').to_dict()}
  (folder / 'workers' / name).mkdir(parents=True)
  (folder / 'workers' / name / lease.NOTE).write_text(json.dumps(note))
  return name


def test_three_workers_make_the_set_of_one_process(corpus, tmp_path, small):
  whole = prepare.prepare(config(corpus), tmp_path / 'one')
  setup, folder = config(corpus), tmp_path / 'three'
  found = at_once(*(lambda k=k: prepare.prepare(setup, folder, worker=Worker(k, 3))
                    for k in range(3)))
  assert found == [whole] * 3
  assert contents(folder / 'data') == contents(tmp_path / 'one' / 'data')
  assert [path.name for path in (folder / '.data-work').iterdir()] == ['done.json']
  made = (folder / 'data').stat().st_ino
  assert prepare.prepare(setup, folder, worker=Worker(2, 3)) == whole  # it comes late
  assert (folder / 'data').stat().st_ino == made
  assert prepare.prepare(setup, folder) == whole  # without --worker it is made again
  assert not (folder / '.data-work').exists() and (folder / 'data').stat().st_ino != made
  (folder / '.data-work').mkdir()
  (folder / '.data-work' / 'done.json').write_text('{"iden')  # of another set, or damaged
  assert prepare.prepare(setup, folder, worker=Worker(0, 1)) == whole


@pytest.mark.storage
def test_workers_share_a_bucket_alone(bucket, corpus, tmp_path):
  whole = prepare.prepare(config(corpus), tmp_path / 'one')
  url = f'{bucket}/data'
  def work(k):
    return prepare.prepare(config(corpus, path=url), pathlib.Path('run'), worker=Worker(k, 2))
  assert at_once(*(lambda k=k: work(k) for k in range(2))) == [whole] * 2
  remote.download_folder(url, tmp_path / 'copy')
  found = contents(tmp_path / 'copy')
  assert found.pop(owned.MARKER) and found == {
      name: data for name, data in contents(tmp_path / 'one' / 'data').items()
      if name != owned.MARKER}
  assert set(remote.files(f'{bucket}/.data-work')) == {'done.json'}
  made = remote.files(url)
  assert work(1) == whole and remote.files(url) == made  # it comes late
  assert not pathlib.Path('run').exists() and not list((tmp_path / 'cache' / 'prepare').iterdir())


def test_jobs_are_computed_once_by_whoever_has_time(tmp_path):
  jobs = [Job(n, 'slow' if n % 2 else '') for n in range(8)]
  found = at_once(*(lambda k=k: work_on(tmp_path / 'w', jobs, k, 2, counted) for k in range(2)))
  assert found == [[{'square': n * n, 'units': n} for n in range(8)]] * 2
  by = [path.name.split('-')[1:] for path in (tmp_path / 'w').glob('by-*')]
  assert sorted(int(number) for _, number in by) == list(range(8))
  assert len({who for who, number in by if int(number) % 2}) == 2  # worker 0 helped with the slow
  assert not list((tmp_path / 'w').glob('*.claim')) and not list((tmp_path / 'w').glob('*/.owner*'))


def test_jobs_of_workers_that_never_come_are_computed(tmp_path):
  assert len(work_on(tmp_path / 'w', [Job(n) for n in range(5)], 1, 4)) == 5


@pytest.mark.parametrize('claim', ['1-dead', 'gone', ''])
def test_jobs_of_a_worker_that_was_killed_are_taken_over(tmp_path, claim):
  jobs = [Job(n) for n in range(4)]
  folder = tmp_path / 'w'
  dead_worker(folder)
  (folder / f'{jobs_lib.key(square, jobs[1])}.claim').write_text(claim)
  assert [one['square'] for one in work_on(folder, jobs, 0, 2)] == [0, 1, 4, 9]


def test_a_worker_that_lives_is_waited_for(tmp_path):
  job, folder = Job(3), tmp_path / 'w'
  path = folder / jobs_lib.key(counted, job)
  with lease.Lease(folder / 'workers' / '1-slow', 'worker'):
    path.with_name(f'{path.name}.claim').write_text('1-slow')
    (folder / 'workers' / '1-slow' / 'plan.json').write_text('{"identity": "x", "worker": "1/2"}')
    began = time.monotonic()
    def slow():
      time.sleep(0.3)
      jobs_lib.do(square, job, str(folder), path.name)
    _, found = at_once(slow, lambda: work_on(folder, [job], 0, 2, counted))
    assert found == [{'square': 9, 'units': 3}] and time.monotonic() - began >= 0.3
  assert not list(folder.glob('by-*'))


def test_an_error_of_one_ends_all_with_its_sentence(tmp_path):
  jobs = [Job(0, 'slow'), Job(1, 'refuse'), *(Job(n, 'slow') for n in range(2, 6))]
  errors = at_once(*(lambda k=k: work_on(tmp_path / 'w', jobs, k, 3) for k in range(3)))
  assert [(type(error), str(error)) for error in errors] == [(UserError, '1 is refused.')] * 3
  assert len(work_on(tmp_path / 'w', [Job(1)], 0, 3)) == 1  # the next start is a new one


def test_a_pool_that_died_is_the_end_of_one_worker(tmp_path):
  jobs = [Job(n, 'kill') for n in range(2)]
  with pytest.raises(RetryableError, match='died, perhaps of too little memory'):
    work_on(tmp_path / 'w', jobs, 0, 2, pool=LocalPool(2))
  assert not (tmp_path / 'w' / 'failed.json').exists()


def test_workers_of_another_set_and_a_plain_prepare_are_refused(tmp_path):
  folder = tmp_path / 'w'
  with Team_at(folder):
    with pytest.raises(UserError, match='worker 0/2 was started with another config'):
      work_on(folder, [Job(1)], 0, 2, identity='y')
    with pytest.raises(UserError, match='another number of workers'):
      work_on(folder, [Job(1)], 0, 3)
    with pytest.raises(UserError, match='workers of `ttt-jax prepare --worker` are running'):
      with jobs_lib.Work(FolderResults(folder), LocalPool(1)) as work:
        list(work.run(square, [Job(1)], lambda done: None, False))
  with jobs_lib.Work(FolderResults(folder), LocalPool(1)) as work:
    list(work.run(square, [Job(1)], lambda done: None, False))
    with pytest.raises(UserError, match='without --worker, is running'):
      work_on(folder, [Job(1)], 0, 2)


class Team_at:
  """Worker 1/2 of identity 'x', for as long as the context lasts."""

  def __init__(self, folder):
    self.team = Team(FolderResults(folder), Worker(1, 2), 'x', folder / 'manifest')

  def __enter__(self):
    self.team.join()

  def __exit__(self, *unused):
    self.team.leave(None)


@pytest.mark.parametrize('text', ['', '1', '2/2', '-1/2', '1/2/3', 'a/b', '0/0'])
def test_a_worker_is_k_of_n(text):
  with pytest.raises(UserError, match='--worker is .* it must be K/N'):
    cli_prepare._worker(text)


def test_a_failed_source_ends_all_workers(corpus, tmp_path):
  (tmp_path / 'bad.jsonl').write_text((corpus / 'b.jsonl').read_text() + '{"mess\n')
  setup = config(corpus, sources=(Source(str(corpus / 'a.jsonl')), Source('bad.jsonl')))
  found = at_once(*(lambda k=k: prepare.prepare(setup, tmp_path, worker=Worker(k, 2))
                    for k in range(2)))
  assert len({str(one) for one in found}) == 1 and 'bad.jsonl:151' in str(found[0])
  assert isinstance(found[0], UserError) and not (tmp_path / 'data').exists()


PROGRAM = f"""if __name__ == '__main__':
  import sys
  sys.path.insert(0, {str(ROOT)!r})
  from ttt_jax.cli import main
  sys.exit(main.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_one_of_three_processes_is_killed(tmp_path):
  """20 MB of records in 40 pieces; one worker ends by SIGKILL after its first results."""
  from benchmarks import prepare as bench
  folder = tmp_path / 'sources'
  folder.mkdir()
  for i in range(40):
    (folder / f'{i}.jsonl').write_bytes(b''.join(bench.lines(100, seed=i)))
  setup = dataclasses.replace(
      test_phases.config(folder, sources=(Source(f'{folder}/*.jsonl'),), seq_len=2048, workers=1),
      codec=config_lib.CodecConfig('glm4_voice'))
  config_lib.save(setup, folder)
  def command(workdir, *more):
    return [sys.executable, '-m', 'ttt_jax.cli', 'prepare', '--config',
            str(folder / 'config.json'), '--workdir', str(workdir), *more]
  env = os.environ | {'PYTHONPATH': str(ROOT)}
  subprocess.run(command(tmp_path / 'one'), check=True, env=env)
  workers = [subprocess.Popen(command(tmp_path / 'three', '--worker', f'{k}/3'), env=env,
                              stderr=subprocess.PIPE, text=True) for k in range(3)]
  work = tmp_path / 'three' / '.data-work'
  while not list(work.glob('*.claim')):
    time.sleep(0.01)
  while True:  # in the middle: it computes a job right now
    mine = [path for path in work.glob('*.claim') if path.read_text().startswith('1-')]
    if mine and len(list(work.glob('*/info.json'))) > 20:
      break
    assert workers[1].poll() is None
    time.sleep(0.005)
  os.kill(workers[1].pid, signal.SIGKILL)
  said = [worker.communicate()[1] for worker in workers]
  assert [worker.returncode for worker in workers] == [0, -signal.SIGKILL, 0], said
  assert contents(tmp_path / 'three' / 'data') == contents(tmp_path / 'one' / 'data')
  assert [path.name for path in work.iterdir()] == ['done.json']
