"""Jobs in processes: order, stored results, and processes that die."""

import dataclasses
import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from ttt_jax.data.prepare import jobs as workers
from ttt_jax.data.prepare.local_pool import LocalPool
from ttt_jax.data.prepare.folder_results import FolderResults
from ttt_jax.errors import RetryableError, UserError

ROOT = pathlib.Path(__file__).parents[3]


@dataclasses.dataclass(frozen=True)
class Job:
  number: int
  what: str = ''


def square(job, folder):
  """Leaves a file and its square; does what the job says otherwise."""
  if job.what == 'kill':
    os.kill(os.getpid(), signal.SIGKILL)
  if job.what == 'refuse':
    raise UserError(f'{job.number} is refused.')
  if job.what == 'full':
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'some file')
  if job.what == 'slow':
    time.sleep(0.3)
  if job.what == 'race':  # another process finishes the same job first
    final = folder.with_name(folder.name.split('.part')[0])
    final.mkdir()
    (final / 'made').write_text(str(job.number))
    (final / 'info.json').write_text(json.dumps({'square': job.number**2}))
  if job.what == 'wait':
    time.sleep(60)
  (folder / 'made').write_text(str(job.number))
  workers.tick(job.number)
  return {'square': job.number**2, 'units': job.number}


def squares(folder, jobs, processes=2, apart=True):
  """([squares], [progress])."""
  seen = []
  with workers.Work(FolderResults(folder), LocalPool(processes)) as work:
    results = list(work.run(square, jobs, seen.append, apart))
  assert all((folder / one.name / 'made').read_text() == str(job.number)
             for one, job in zip(results, jobs))
  return [one.info['square'] for one in results], seen


def made_at(folder):
  return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob('*/made')}


def test_results_are_in_order_and_stored_with_and_without_processes(tmp_path):
  jobs = [Job(n, 'slow' if n == 0 else '') for n in range(12)]
  wanted = [n * n for n in range(12)]
  here, seen = squares(tmp_path / 'a', jobs, apart=False)
  assert here == wanted and seen[-1] == sum(range(12)) and seen == sorted(seen)
  apart, seen = squares(tmp_path / 'b', jobs)
  assert apart == wanted and seen[-1] == sum(range(12))
  before = made_at(tmp_path / 'b')
  again, seen = squares(tmp_path / 'b', [*jobs, Job(12), Job(13)], apart=False)
  assert again == [*wanted, 144, 169] and seen[-1] == sum(range(14))
  more, seen = squares(tmp_path / 'b', [*jobs, *map(Job, range(12, 16))])
  assert more == [n * n for n in range(16)] and seen[-1] == sum(range(16))
  after = made_at(tmp_path / 'b')
  assert len(before) == 12 and len(after) == 16 and before.items() <= after.items()


@pytest.mark.parametrize('apart', [False, True])
def test_the_first_error_in_order_is_raised_and_finished_work_is_stored(tmp_path, apart):
  jobs = [Job(1), Job(2, 'slow'), Job(3, 'refuse'), Job(4, 'refuse'), Job(5)]
  with pytest.raises(UserError, match='^3 is refused'):
    squares(tmp_path / 'w', jobs, apart=apart)
  assert len(made_at(tmp_path / 'w')) >= 2
  assert not list((tmp_path / 'w').glob('*.part-*'))


def test_nothing_done_leaves_no_folder(tmp_path):
  with pytest.raises(UserError):
    squares(tmp_path / 'w', [Job(3, 'refuse')])
  assert not (tmp_path / 'w').exists()


def test_a_process_that_is_killed_is_one_sentence(tmp_path):
  with pytest.raises(UserError, match='died, perhaps of too little memory; set data.workers below'):
    squares(tmp_path / 'w', [Job(1), Job(2), Job(3, 'kill'), Job(4)])


def test_a_full_disk_is_one_sentence(tmp_path):
  with pytest.raises(UserError, match='w could not be written: the disk is full; finished work'):
    squares(tmp_path / 'w', [Job(1), Job(2, 'full')], apart=False)
  assert len(made_at(tmp_path / 'w')) == 1 and not list((tmp_path / 'w').glob('*.part-*'))


def test_one_run_at_a_time(tmp_path):
  with workers.Work(FolderResults(tmp_path / 'w'), LocalPool(1)) as work:
    list(work.run(square, [Job(1)], lambda done: None, False))
    with pytest.raises(UserError, match='another `ttt-jax prepare` is running'):
      squares(tmp_path / 'w', [Job(2)])
  assert squares(tmp_path / 'w', [Job(2)])[0] == [4]  # the first one is over


def test_half_a_result_is_no_result(tmp_path):
  squares(tmp_path / 'w', [Job(3)])
  (folder,) = (path.parent for path in (tmp_path / 'w').glob('*/made'))
  os.rename(folder, folder.with_name(f'{folder.name}.part-77'))  # killed before the rename
  assert squares(tmp_path / 'w', [Job(3)])[0] == [9]
  assert not list((tmp_path / 'w').glob('*.part-*'))


def test_a_damaged_result_is_computed_again(tmp_path):
  squares(tmp_path / 'w', [Job(3)])
  (path,) = (tmp_path / 'w').glob('*/info.json')
  path.write_bytes(b'{"square": ')
  with pytest.raises(RetryableError, match='is damaged .*info.json is not JSON.; it was removed'):
    squares(tmp_path / 'w', [Job(3)])
  assert squares(tmp_path / 'w', [Job(3)])[0] == [9]


def test_a_result_that_is_there_already_is_as_good(tmp_path):
  assert squares(tmp_path / 'w', [Job(3, 'race'), Job(4)], apart=False)[0] == [9, 16]
  assert not list((tmp_path / 'w').glob('*.part-*'))


def test_no_process_outlives_a_parent_that_is_killed(tmp_path):
  code = f"""if __name__ == '__main__':
  import pathlib
  from tests.data.prepare.test_jobs import Job, square
  from ttt_jax.data.prepare import jobs as workers
  from ttt_jax.data.prepare.local_pool import LocalPool
  from ttt_jax.data.prepare.folder_results import FolderResults
  with workers.Work(FolderResults(pathlib.Path({str(tmp_path / 'w')!r})), LocalPool(2)) as work:
    jobs = [Job(1), Job(2), Job(3, 'wait'), Job(4, 'wait')]
    list(work.run(square, jobs, lambda done: None, True))
"""
  script = tmp_path / 'run.py'
  script.write_text(code)
  process = subprocess.Popen([sys.executable, str(script)], cwd=ROOT,
                             env={**os.environ, 'PYTHONPATH': str(ROOT)})
  deadline = time.monotonic() + 60
  while len(made_at(tmp_path / 'w')) < 2 and time.monotonic() < deadline:
    time.sleep(0.05)
  children = [int(child) for task in pathlib.Path(f'/proc/{process.pid}/task').iterdir()
              for child in (task / 'children').read_text().split()]
  process.kill()
  process.wait()
  assert len(children) >= 2
  def alive(pid):
    try:
      return pathlib.Path(f'/proc/{pid}/stat').read_text().split()[2] != 'Z'
    except (FileNotFoundError, ProcessLookupError):
      return False
  while any(map(alive, children)) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not any(map(alive, children))
  info = json.loads(next((tmp_path / 'w').glob('*/info.json')).read_text())
  assert info['square'] in (1, 4)
