"""Results of jobs in a bucket: whole or not at all, compared when read, and nothing left behind."""

import json
import os
import time

import numpy as np
import pytest

from tests.data.prepare.test_jobs import Job, square
from ttt_jax.data.prepare import addresses, bucket_results, jobs as jobs_lib
from ttt_jax.data.prepare.bucket_results import BucketResults
from ttt_jax.data.prepare.local_pool import LocalPool
from ttt_jax.errors import RetryableError, UserError
from ttt_jax.storage import remote

pytestmark = pytest.mark.storage
NUMBERS = np.arange(300, dtype=np.int32)


def numbers(job, folder):
  """A file of three chunks and an empty one."""
  (folder / 'numbers').write_bytes((NUMBERS + job.number).tobytes())
  (folder / 'empty').touch()
  if job.what == 'fail':
    raise UserError('it failed.')
  return {'number': job.number}


@pytest.fixture
def url(bucket, monkeypatch):
  monkeypatch.setattr(bucket_results, 'CHUNK', 512)
  yield f'{bucket}/.data-work'
  bucket_results._files.cache_clear()


@pytest.fixture
def opened(url):
  out = BucketResults(url)
  assert not out.names() and not out.stored(['x']) and not remote.files(url)
  out.open()
  yield out
  out.close()
  folder = bucket_results.disk()
  assert not folder.exists() or not list(folder.iterdir())


def commit(results, name):
  return json.loads(remote.read_bytes(f'{results.root}/jobs/{name}.json'))


def test_what_is_stored_is_read_by_any_machine(opened):
  made = opened.do(numbers, Job(5), 'a' * 24)
  other = addresses.at(opened.root)  # as a function of a job sees it
  assert other is not opened and other.stored(['a' * 24, 'b' * 24]) == {'a' * 24: made}
  assert opened.names() == {'a' * 24} and made.info == {'number': 5}
  whole = (NUMBERS + 5).tobytes()
  for start, size in ((0, -1), (0, 3), (510, 4), (512, 512), (1190, 100), (700, 0)):
    assert other.read('a' * 24, 'numbers', start, size) == whole[start:][:size % 10_000]
  assert other.read('a' * 24, 'empty') == b''
  assert other.array('a' * 24, 'numbers', 130, 20).tolist() == list(range(135, 155))
  assert addresses.read_at(other.address('a' * 24), 'numbers', 4, 4) == whole[4:8]
  with addresses.folder_at(other.address('a' * 24)) as folder:
    assert (folder / 'numbers').read_bytes() == whole and (folder / 'empty').read_bytes() == b''
  assert not folder.exists()
  assert opened.file('a' * 24, 'numbers').read_bytes() == whole
  assert remote.read_bytes(opened.url('a' * 24, 'numbers')) == whole


def test_half_a_result_is_no_result_and_the_second_one_is_dropped(opened):
  with pytest.raises(UserError, match='it failed'):
    opened.do(numbers, Job(1, 'fail'), 'a' * 24)
  remote.write_bytes(f'{opened.root}/parts/{"a" * 24}-killed/numbers', b'half')
  assert not opened.names()
  opened.do(numbers, Job(1), 'a' * 24)
  before = commit(opened, 'a' * 24)
  assert opened.do(numbers, Job(1), 'a' * 24).info == {'number': 1}
  assert commit(opened, 'a' * 24) == before
  assert len(remote.children(f'{opened.root}/parts')) == 2  # the one of the killed process stays


@pytest.mark.parametrize('text', [b'{"info": ', b'[]', b'{}'])
def test_a_damaged_commit_is_computed_again(opened, text):
  opened.do(numbers, Job(5), 'a' * 24)
  for read in (lambda: opened.stored(['a' * 24]), lambda: opened.array('a' * 24, 'numbers')):
    remote.write_bytes(f'{opened.root}/jobs/{"a" * 24}.json', text)
    with pytest.raises(RetryableError, match='is damaged .*json has other bytes.*; it was removed'):
      read()
    assert not opened.names()
  opened.do(numbers, Job(5), 'a' * 24)
  assert opened.array('a' * 24, 'numbers').tolist() == (NUMBERS + 5).tolist()


@pytest.mark.parametrize('harm', ['change', 'remove'])
def test_a_damaged_result_is_computed_again(opened, harm):
  opened.do(numbers, Job(5), 'a' * 24)
  url = opened.url('a' * 24, 'numbers')
  if harm == 'change':
    data = remote.read_bytes(url)
    remote.write_bytes(url, data[:600] + b'x' + data[601:])
    assert opened.read('a' * 24, 'numbers', 0, 512) == data[:512]  # another chunk
  else:
    remote.remove(url)
  with pytest.raises(RetryableError, match=f'is damaged .*{url}.*; it was removed, and the same'):
    opened.array('a' * 24, 'numbers')
  assert not opened.names()
  opened.do(numbers, Job(5), 'a' * 24)
  assert opened.array('a' * 24, 'numbers').tolist() == (NUMBERS + 5).tolist()


def test_one_run_at_a_time_resumes_and_leaves_nothing(url):
  jobs = [Job(n) for n in range(20)]
  def run(jobs):
    with jobs_lib.Work(BucketResults(url), LocalPool(1)) as work:
      yield from (one.info['square'] for one in work.run(square, jobs, lambda done: None, False))
      with work.assembling() as mine:
        assert mine
  first = run([*jobs[:3], Job(3, 'refuse')])
  assert [next(first) for _ in range(3)] == [0, 1, 4]
  with pytest.raises(UserError, match=r'another `ttt-jax prepare` is running: .*/\.data-work is'):
    next(run(jobs))
  with pytest.raises(UserError, match='3 is refused'):
    next(first)
  kept = BucketResults(url)
  assert len(kept.names()) == 3
  remote.write_bytes(f'{url}/notes.txt', b'mine')
  made = {name: commit(kept, name)['part'] for name in kept.names()}
  second = run(jobs)
  assert [next(second) for _ in range(20)] == [n * n for n in range(20)]
  assert {name: commit(kept, name)['part'] for name in made} == made
  assert not list(second) and set(remote.files(url)) == {'notes.txt'}


def test_results_of_a_suspended_process_are_in_a_folder_that_nobody_reads(opened):
  opened.do(numbers, Job(1), 'a' * 24)
  suspended = addresses.at(opened.root)
  opened.clear()
  again = BucketResults(opened.where)
  again.open()
  suspended.do(numbers, Job(2), 'b' * 24)
  assert not again.names() and again.root != suspended.root
  again.clear()
  assert not remote.files(opened.where)


def test_folders_of_killed_processes_are_removed(opened):
  old, new = bucket_results.disk() / 'old', bucket_results.disk() / 'new'
  for folder in (old, new):
    folder.mkdir(parents=True)
    (folder / '.lock').touch()
    (folder / 'half').touch()
  os.utime(old / '.lock', (time.time() - 100,) * 2)
  with bucket_results._scratch() as mine:
    assert mine.exists() and not old.exists() and new.exists()
    os.utime(mine / '.lock', (time.time() - 100,) * 2)
    with bucket_results._scratch():
      assert mine.exists()
  for path in (new / '.lock', new / 'half'):
    path.unlink()
  new.rmdir()
  assert not mine.exists()


def test_a_machine_that_cannot_use_the_bucket_says_why(opened, monkeypatch):
  assert opened.lacks() == ''
  monkeypatch.setattr(remote, 'check', lambda url: (_ for _ in ()).throw(UserError(
      'gs:// needs the package gcsfs.')))
  assert opened.lacks() == 'cannot use the bucket: gs:// needs the package gcsfs.'


def test_claims_are_taken_over_by_one(url):
  one, other = BucketResults(url).board, BucketResults(url).board
  assert one.claim('job', 'a', None) and not other.claim('job', 'b', None)
  assert other.claimant('job') == 'a' and one.claims() == {'job'}
  assert not other.claim('job', 'b', 'c')  # another worker took it over meanwhile
  assert other.claim('job', 'b', 'a') and one.claimant('job') == 'b'
  one.release('job', 'a')
  assert one.claims() == {'job'}
  other.release('job', 'b')
  assert not one.claims() and not one.claim('job', 'a', 'b')
  assert one.claim('job', 'a', '')
