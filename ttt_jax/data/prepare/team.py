"""Several `prepare --worker K/N` that share the jobs of one set through a shared disk.

  WORK/workers/K-TOKEN/   a lease (storage/lease.py), which says whether that worker lives
  WORK/JOB.claim          a worker computes this job; names its folder under workers/
  WORK/JOB/               the result of a job
  WORK/assembly/          the lease of the worker that assembles the set
  WORK/failed.json        the sentence with which all workers end
  WORK/done.json          the set is complete; the only file that stays

Every worker runs the same phases. In each it computes the list of jobs from the results of the
phase before, so nobody distributes anything. Worker K of N begins with the jobs i where
i mod N = K; whoever has none left takes those that nobody has claimed, from the end, and those
whose claim is of a worker that has ended. So workers may start late, end early or be slow. A result
does not depend on who computes it: where two workers compute the same job, because a disk showed
one of them an old listing or because one was suspended for longer than a lease, the second result
is dropped.
"""

import collections
from collections.abc import Iterator, Sequence
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import secrets
import time
from typing import Any

from ttt_jax.data.prepare import jobs as jobs_lib
from ttt_jax.data.prepare.jobs import ASSEMBLY, DONE, FAILED, WORKERS, Function, Pool, Progress
from ttt_jax.data.prepare.local_pool import Died
from ttt_jax.errors import RetryableError, UserError
from ttt_jax.storage import files
from ttt_jax.storage.lease import NOTE, InUse, Lease, create, has_ended

CLAIM, _PLAN = '.claim', 'plan.json'
LOOK = 0.5     # seconds between two listings of the work folder, at least
_SHARE = 20    # times the duration of a listing, at least, until the next one
_POLL = 0.2    # seconds between progress updates


@dataclasses.dataclass(frozen=True)
class Worker:
  """Worker ``number`` (from 0) of ``count``."""
  number: int
  count: int

  def __str__(self) -> str:
    return f'{self.number}/{self.count}'


class Over(Exception):
  """The set is complete: others have finished it."""


def wait_for_assembly(folder: pathlib.Path) -> None:
  """Returns when no worker assembles a set: until then it may be moved any time.

  Args:
    folder: of the results.
  """
  while not has_ended(folder / ASSEMBLY):
    time.sleep(LOOK)


class Team:
  """This worker's view of the work folder."""

  def __init__(self, folder: pathlib.Path, worker: Worker, identity: str, manifest: pathlib.Path):
    """
    Args:
      folder: of the results, on a disk that all workers share.
      worker: which one this is.
      identity: of the set to prepare; all workers must have the same.
      manifest: the file that the complete set has.
    """
    self.folder, self.worker, self.identity, self.manifest = folder, worker, identity, manifest
    self._name = f'{worker.number}-{secrets.token_hex(4)}'
    self._mine = folder / WORKERS / self._name
    self._lease: Lease | None = None

  # -- joining and leaving ------------------------------------------------------------------

  def finished(self) -> bool:
    """Whether workers have completed the set, and it is still there."""
    done = _read(self.folder / DONE)
    return done.get('identity') == self.identity and self.manifest.is_file() and (
        self._digest() == done.get('manifest'))

  def _digest(self) -> str:
    """SHA-256 of the manifest, which may be an object in a bucket."""
    return hashlib.sha256(self.manifest.read_bytes()).hexdigest()

  def join(self) -> None:
    """Announces this worker.

    Raises:
      UserError: a plain `prepare` is running there, or workers that prepare something else.
      Over: the set is complete.
    """
    if self.finished():
      raise Over
    files.require_writable(self.folder)
    lease = Lease(self._mine, f'worker {self.worker}')
    lease.acquire()
    self._lease = lease
    (self._mine / CLAIM).write_text(self._name, encoding='utf-8')
    files.write_text(self._mine / _PLAN, json.dumps(
        {'identity': self.identity, 'worker': str(self.worker)}))
    if not has_ended(self.folder):
      raise UserError(f'another `ttt-jax prepare`, without --worker, is running in {self.folder}; '
                      'wait for it, or set data.path to another folder.')
    others = [one for one in self._others() if not has_ended(one)]
    for one in others:
      plan = _read(one / _PLAN)
      if plan and (plan.get('identity') != self.identity
                   or plan['worker'].split('/')[1] != str(self.worker.count)):
        raise UserError(
            f'worker {self.worker} was started with another config, other sources, another number '
            f'of workers or in another folder than worker {plan["worker"]}, which is running in '
            f'{self.folder}; start all workers with the same command, but for --worker.')
    if not others:  # what is there is of an earlier start
      jobs_lib.delete(self.folder / FAILED)
      self._delete_ended()
    if _read(self.folder / DONE) and not self.finished():  # of an earlier set
      jobs_lib.delete(self.folder / DONE)

  def _others(self) -> list[pathlib.Path]:
    return [one for one in (self.folder / WORKERS).iterdir() if one != self._mine]

  def _delete_ended(self) -> None:
    """Deletes what workers that were killed have left; one without a note is just coming."""
    for one in self._others():
      if (one / NOTE).exists() and has_ended(one):
        jobs_lib.delete(one)

  def check(self) -> None:
    """Raises the error of another worker, or Over if the set is complete."""
    sentence = _read(self.folder / FAILED).get('sentence')
    if sentence:
      raise UserError(sentence)
    if self.finished():
      raise Over

  def leave(self, error: BaseException | None) -> None:
    """Ends this worker's membership; an error in the data or the config ends all the others."""
    if self._lease is None:
      return
    with contextlib.suppress(OSError, UserError):
      if isinstance(error, UserError) and not isinstance(error, Died) and not self.finished():
        create(self.folder / FAILED, json.dumps({'sentence': str(error)}), None)
    self._lease.release()
    self._lease = None
    jobs_lib.delete(self._mine)
    with contextlib.suppress(OSError):  # others are about to leave
      if self.finished():
        self._delete_ended()
        jobs_lib.delete(self.folder / ASSEMBLY)
        (self.folder / WORKERS).rmdir()

  # -- jobs ---------------------------------------------------------------------------------

  def compute(self, function: Function, jobs: Sequence[Any], folders: Sequence[pathlib.Path],
              pool: Pool | None, devices: bool, progress: Progress) -> None:
    """Returns when all jobs have results, whoever has computed them.

    Args:
      function, jobs, folders: see jobs.Work.
      pool: computes the jobs of this worker; None = this process does.
      devices: see Pool.submit.
      progress: called with the units of all workers' results, and this one's running jobs.

    Raises:
      UserError: an error of a job, of this or another worker.
      RetryableError: a process of the pool died.
      Over: the set is complete.
    """
    _Phase(self, function, jobs, folders, pool, devices, progress).run()

  def claim(self, folder: pathlib.Path, stale: bool) -> bool:
    """Claims a job; ``stale``: instead of a worker that has ended. False if another did."""
    path = folder.with_name(folder.name + CLAIM)
    if stale:
      path.unlink(missing_ok=True)
    return create(path, self._name, self._mine / CLAIM)

  def release(self, folder: pathlib.Path) -> None:
    """Gives up the claim of a job."""
    path = folder.with_name(folder.name + CLAIM)
    if _text(path) == self._name:
      path.unlink(missing_ok=True)

  def claimant_ended(self, folder: pathlib.Path, known: dict[str, bool]) -> bool:
    """Whether the worker that claims a job has ended; ``known`` stores answers by name."""
    name = _text(folder.with_name(folder.name + CLAIM))
    if name == self._name:
      return False
    if name not in known:
      known[name] = not name or has_ended(self.folder / WORKERS / name)
    return known[name]

  # -- assembly -----------------------------------------------------------------------------

  @contextlib.contextmanager
  def assembling(self) -> Iterator[bool]:
    """True in the first worker that comes here; in the others False, once the set is complete. If
    the first one ends before that, the next one assembles the set."""
    lease = Lease(self.folder / ASSEMBLY, 'the assembly')
    while True:
      try:
        self.check()
        if has_ended(self.folder / ASSEMBLY):
          lease.acquire()
          break
      except Over:
        yield False
        return
      except InUse:
        pass
      time.sleep(LOOK)
    try:
      yield True
    finally:
      lease.release()

  def finish(self) -> None:
    """The set is complete: tells the others, and deletes all results."""
    files.write_text(self.folder / DONE, json.dumps(
        {'identity': self.identity, 'manifest': self._digest()}), durable=True)
    jobs_lib.clear(self.folder, keep=(DONE, WORKERS, ASSEMBLY))


class _Phase:
  """One call of Team.compute."""

  def __init__(self, team: Team, function: Function, jobs: Sequence[Any],
               folders: Sequence[pathlib.Path], pool: Pool | None, devices: bool,
               progress: Progress):
    self._team, self._function, self._jobs, self._folders = team, function, jobs, folders
    self._pool, self._devices, self._progress = pool, devices, progress
    self._number = {folder.name: i for i, folder in enumerate(folders)}
    mine = [i for i in range(len(jobs)) if i % team.worker.count == team.worker.number]
    self._own = collections.deque(mine)
    # From the end, where their own workers come last.
    self._others = collections.deque(sorted(set(range(len(jobs))) - set(mine), reverse=True))
    self._open = set(range(len(jobs)))      # jobs without a result
    self._claimed: set[int] = set()         # by anybody
    self._running: dict[concurrent.futures.Future, int] = {}
    self._units = 0                         # of all results
    self._next_look = 0.0
    self._looked = False    # since the claims were last read
    self._reported = 0      # units of the pool's finished jobs

  def run(self) -> None:
    team, pool = self._team, self._pool
    if pool:
      pool.begin(self._devices)
    try:
      while True:
        team.check()
        self._look()
        if not self._open:
          return
        started = self._start()
        if self._running:
          self._collect()
        elif not started:  # others compute the rest
          time.sleep(_POLL)
        self._progress(self._units + (self._counted() if pool else 0))
    except Exception as error:
      if pool and (explained := pool.explain(error)):
        if isinstance(explained, Died):  # of this machine alone; the others go on
          raise RetryableError(str(explained)) from error
        raise explained from error
      raise
    finally:
      for future, i in self._running.items():
        future.cancel()
        team.release(self._folders[i])

  def _counted(self) -> int:
    """Units that running jobs have reported."""
    assert self._pool is not None
    return max(0, self._pool.count() - self._reported)

  def _look(self) -> None:
    """Reads the folder, unless that was done just now."""
    now = time.monotonic()
    if now < self._next_look:
      return
    self._claimed, self._looked = set(), True
    for name in os.listdir(self._team.folder):
      base, claim, _ = name.partition(CLAIM)
      i = self._number.get(base)
      if i is None:
        continue
      if claim:
        self._claimed.add(i)
      else:
        self._finish(i)
    after = time.monotonic()
    self._next_look = after + max(LOOK, _SHARE * (after - now))

  def _finish(self, i: int) -> None:
    if i in self._open and (result := jobs_lib.stored(self._folders[i])):
      self._open.remove(i)
      self._units += result.info.get('units', 0)

  def _start(self) -> bool:
    """Starts jobs, or computes one in this process; False if there is none for it."""
    if self._pool is None:
      i = self._claim_next()
      if i is None:
        return False
      before = self._units
      try:
        jobs_lib.do_here(self._function, self._jobs[i], self._folders[i], self._tick)
      finally:
        self._units = before
        self._team.release(self._folders[i])
      self._finish(i)
      return True
    started = False
    while len(self._running) <= self._pool.width:  # one more than are computed at once
      i = self._claim_next(own=len(self._running) == self._pool.width)
      if i is None:
        break
      future = self._pool.submit(self._function, self._jobs[i], self._folders[i], self._devices)
      self._running[future] = i
      started = True
    return started

  def _tick(self, n: int) -> None:
    self._units += n
    self._progress(self._units)

  def _collect(self) -> None:
    """Waits a moment for running jobs."""
    finished = concurrent.futures.wait(
        self._running, _POLL, concurrent.futures.FIRST_COMPLETED).done
    for future in finished:
      i = self._running[future]
      self._reported += future.result().info.get('units', 0)
      del self._running[future]
      self._team.release(self._folders[i])
      self._finish(i)

  def _claim_next(self, own: bool = False) -> int | None:
    """A job that is claimed for this worker now; ``own``: only one of its share."""
    for waiting in (self._own,) if own else (self._own, self._others):
      while waiting:
        i = waiting.popleft()
        if i in self._open and i not in self._claimed and self._claim(i, stale=False):
          return i
    if own or not self._looked:
      return None
    self._looked = False
    ended: dict[str, bool] = {}
    mine = set(self._running.values())
    for i in sorted(self._open - mine):
      if i not in self._claimed or self._team.claimant_ended(self._folders[i], ended):
        if self._claim(i, stale=i in self._claimed):
          return i
    return None

  def _claim(self, i: int, stale: bool) -> bool:
    if not self._team.claim(self._folders[i], stale):
      self._claimed.add(i)
      return False
    self._finish(i)  # it may have got its result after the folder was read
    if i not in self._open:
      self._team.release(self._folders[i])
      return False
    return True


def _text(path: pathlib.Path) -> str:
  try:
    return path.read_text(encoding='utf-8')
  except OSError:
    return ''


def _read(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object; {} if there is none or half of one."""
  try:
    found = json.loads(_text(path) or '{}')
    return found if isinstance(found, dict) else {}
  except ValueError:
    return {}
