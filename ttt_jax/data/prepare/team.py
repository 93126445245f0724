"""Several `prepare --worker K/N` that share the jobs of one set, through a disk or a bucket.

On a board (board.py), which is in the folder or below the URL of the results:

  workers/K-TOKEN/   a lease, which says whether that worker lives; plan.json says what it prepares
  a claim of a job   a worker computes it; names its folder under workers/
  assembly/          the lease of the worker that assembles the set
  failed.json        the sentence with which all workers end
  done.json          the set is complete; the only file that stays

Every worker runs the same phases. In each it computes the list of jobs from the results of the
phase before, so nobody distributes anything. Worker K of N begins with the jobs i where
i mod N = K; whoever has none left takes those that nobody has claimed, from the end, and those
whose claim is of a worker that has ended. So workers may start late, end early or be slow. A result
does not depend on who computes it: where two workers compute the same job, because a disk showed
one of them an old listing or because one was suspended for longer than a lease, the second result
is dropped.
"""

import collections
from collections.abc import Iterable, Iterator, Sequence
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import pathlib
import secrets
import time
from typing import Any

from ttt_jax.data.prepare import jobs as jobs_lib
from ttt_jax.data.prepare.board import ASSEMBLY, DONE, FAILED, WORKERS, Board
from ttt_jax.data.prepare.jobs import Pool, Progress
from ttt_jax.data.prepare.local_pool import Died
from ttt_jax.data.prepare.results import Function, Result, Results
from ttt_jax.errors import RetryableError, UserError
from ttt_jax.storage.lease import InUse

_PLAN = 'plan.json'
_SHARE = 20    # times the duration of a look at the results, at least, until the next one
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


def wait_for_assembly(board: Board) -> None:
  """Returns when no worker assembles a set: until then it may be moved any time."""
  while not board.has_ended(ASSEMBLY):
    time.sleep(board.look)


class Team:
  """This worker's view of the results."""

  def __init__(self, results: Results, worker: Worker, identity: str, manifest: pathlib.Path):
    """
    Args:
      results: where all workers see them.
      worker: which one this is.
      identity: of the set to prepare; all workers must have the same.
      manifest: the file that the complete set has.
    """
    self.results, self.board = results, results.board
    self.worker, self.identity, self.manifest = worker, identity, manifest
    self.name = f'{worker.number}-{secrets.token_hex(4)}'
    self._mine = f'{WORKERS}/{self.name}'
    self._lease: Any = None
    self._next_check = 0.0

  # -- joining and leaving ------------------------------------------------------------------

  def finished(self) -> bool:
    """Whether workers have completed the set, and it is still there."""
    done = self._read(DONE)
    return done.get('identity') == self.identity and self.manifest.is_file() and (
        self._digest() == done.get('manifest'))

  def _digest(self) -> str:
    """SHA-256 of the manifest, which may be an object in a bucket."""
    return hashlib.sha256(self.manifest.read_bytes()).hexdigest()

  def _read(self, name: str) -> dict[str, Any]:
    """A note, a JSON object; {} if there is none or half of one."""
    try:
      found = json.loads(self.board.note(name) or '{}')
      return found if isinstance(found, dict) else {}
    except ValueError:
      return {}

  def join(self) -> None:
    """Announces this worker.

    Raises:
      UserError: a plain `prepare` is running there, or workers that prepare something else.
      Over: the set is complete.
    """
    if self.finished():
      raise Over
    self.results.open()
    lease = self.board.lease(self._mine, f'worker {self.worker}')
    lease.acquire()
    self._lease = lease
    self.board.write(f'{self._mine}/{_PLAN}', json.dumps(
        {'identity': self.identity, 'worker': str(self.worker)}))
    if not self.board.has_ended(''):
      raise UserError('another `ttt-jax prepare`, without --worker, is running in '
                      f'{self.results.where}; wait for it, or set data.path to another folder.')
    others = [one for one in self._others() if not self.board.has_ended(f'{WORKERS}/{one}')]
    for one in others:
      plan = self._read(f'{WORKERS}/{one}/{_PLAN}')
      if plan and (plan.get('identity') != self.identity
                   or plan['worker'].split('/')[1] != str(self.worker.count)):
        raise UserError(
            f'worker {self.worker} was started with another config, other sources, another number '
            f'of workers or in another folder than worker {plan["worker"]}, which is running in '
            f'{self.results.where}; start all workers with the same command, but for --worker. '
            'Local sources have the same sizes and times on all machines.')
    if not others:  # what is there is of an earlier start
      self.board.discard(FAILED)
      self._delete_ended()
    if self._read(DONE) and not self.finished():  # of an earlier set
      self.board.discard(DONE)

  def _others(self) -> list[str]:
    return [one for one in self.board.folders(WORKERS) if one != self.name]

  def _delete_ended(self) -> None:
    """Deletes what workers that were killed have left; one without a lease is just coming."""
    for one in self._others():
      name = f'{WORKERS}/{one}'
      if self.board.has_begun(name) and self.board.has_ended(name):
        self.board.discard(name)

  def check(self) -> None:
    """Raises the error of another worker, or Over if the set is complete; looks only now and then.
    """
    if time.monotonic() < self._next_check:
      return
    sentence = self._read(FAILED).get('sentence')
    if sentence:
      raise UserError(sentence)
    if self.finished():
      raise Over
    self._next_check = time.monotonic() + self.board.look

  def leave(self, error: BaseException | None) -> None:
    """Ends this worker's membership; an error in the data or the config ends all the others."""
    if self._lease is None:
      return
    with contextlib.suppress(OSError, UserError, RetryableError):
      if isinstance(error, UserError) and not isinstance(error, Died) and not self.finished():
        self.board.create(FAILED, json.dumps({'sentence': str(error)}))
    self._lease.release()
    self._lease = None
    with contextlib.suppress(OSError, UserError, RetryableError):  # others are about to leave
      self.board.discard(self._mine)
      if self.finished():
        self._delete_ended()
        self.board.discard(ASSEMBLY)
        self.board.tidy(WORKERS)

  # -- jobs ---------------------------------------------------------------------------------

  def compute(self, function: Function, jobs: Sequence[Any], names: Sequence[str],
              pool: Pool | None, devices: bool, progress: Progress) -> dict[str, Result]:
    """The results of all jobs, by name, once they are there, whoever has computed them.

    Args:
      function, jobs: see jobs.Work.
      names: of their results.
      pool: computes the jobs of this worker; None = this process does.
      devices: see Pool.submit.
      progress: called with the units of all workers' results, and this one's running jobs.

    Raises:
      UserError: an error of a job, of this or another worker.
      RetryableError: a process of the pool died.
      Over: the set is complete.
    """
    return _Phase(self, function, jobs, names, pool, devices, progress).run()

  def claimant_ended(self, job: str, known: dict[str, bool]) -> str | None:
    """The worker that claims a job, if it has ended; ``known`` stores answers by name."""
    name = self.board.claimant(job)
    if name == self.name:
      return None
    if name not in known:
      known[name] = not name or self.board.has_ended(f'{WORKERS}/{name}')
    return name if known[name] else None

  # -- assembly -----------------------------------------------------------------------------

  @contextlib.contextmanager
  def assembling(self) -> Iterator[bool]:
    """True in the first worker that comes here; in the others False, once the set is complete. If
    the first one ends before that, the next one assembles the set."""
    lease = self.board.lease(ASSEMBLY, 'the assembly')
    while True:
      try:
        self._next_check = 0.0
        self.check()
        if self.board.has_ended(ASSEMBLY):
          lease.acquire()
          break
      except Over:
        yield False
        return
      except InUse:
        pass
      time.sleep(self.board.look)
    try:
      yield True
    finally:
      lease.release()

  def finish(self) -> None:
    """The set is complete: tells the others, and deletes all results."""
    self.board.write(DONE, json.dumps({'identity': self.identity, 'manifest': self._digest()}))
    self.results.clear(keep=(DONE, WORKERS, ASSEMBLY))


class _Phase:
  """One call of Team.compute."""

  def __init__(self, team: Team, function: Function, jobs: Sequence[Any],
               names: Sequence[str], pool: Pool | None, devices: bool, progress: Progress):
    self._team, self._function, self._jobs, self._names = team, function, jobs, names
    self._results, self._board = team.results, team.board
    self._pool, self._devices, self._progress = pool, devices, progress
    self._number = {name: i for i, name in enumerate(names)}
    mine = [i for i in range(len(jobs)) if i % team.worker.count == team.worker.number]
    self._own = collections.deque(mine)
    # From the end, where their own workers come last.
    self._others = collections.deque(sorted(set(range(len(jobs))) - set(mine), reverse=True))
    self._found: dict[str, Result] = {}
    self._open = set(self._number.values())  # jobs without a result
    self._claimed: set[int] = set()         # by anybody
    self._running: dict[concurrent.futures.Future, int] = {}
    self._units = 0                         # of all results
    self._next_look = 0.0
    self._looked = False    # since the claims were last read
    self._reported = 0      # units of the pool's finished jobs

  def run(self) -> dict[str, Result]:
    team, pool = self._team, self._pool
    if pool:
      pool.begin(self._devices)
    try:
      while True:
        team.check()
        self._look()
        if not self._open:
          return self._found
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
        self._board.release(self._names[i], team.name)

  def _counted(self) -> int:
    """Units that running jobs have reported."""
    assert self._pool is not None
    return max(0, self._pool.count() - self._reported)

  def _look(self) -> None:
    """Reads what others have done, unless that was done just now."""
    now = time.monotonic()
    if now < self._next_look:
      return
    self._claimed, self._looked = {self._number[name] for name in self._board.claims()
                                   if name in self._number}, True
    there = self._results.names()
    self._finish([name for name in self._number if name not in self._found and name in there])
    after = time.monotonic()
    self._next_look = after + max(self._board.look, _SHARE * (after - now))

  def _finish(self, names: Sequence[str]) -> None:
    """Notes the results that are stored of those without one."""
    if names:
      self._note(self._results.stored(names).values())

  def _note(self, results: Iterable[Result]) -> None:
    for result in results:
      if result.name not in self._found:
        self._found[result.name] = result
        self._open.remove(self._number[result.name])
        self._units += result.info.get('units', 0)

  def _start(self) -> bool:
    """Starts jobs, or computes one in this process; False if there is none for it."""
    if self._pool is None:
      i = self._claim_next()
      if i is None:
        return False
      before = self._units
      try:
        result = jobs_lib.do_here(self._function, self._jobs[i], self._results.root,
                                  self._names[i], self._tick)
      finally:
        self._units = before
        self._board.release(self._names[i], self._team.name)
      self._note([result])
      return True
    started = False
    while len(self._running) <= self._pool.width:  # one more than are computed at once
      i = self._claim_next(own=len(self._running) == self._pool.width)
      if i is None:
        break
      future = self._pool.submit(self._function, self._jobs[i], self._results.root,
                                 self._names[i], self._devices)
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
      result = future.result()
      self._reported += result.info.get('units', 0)
      del self._running[future]
      self._board.release(self._names[i], self._team.name)
      self._note([result])

  def _claim_next(self, own: bool = False) -> int | None:
    """A job that is claimed for this worker now; ``own``: only one of its share."""
    for waiting in (self._own,) if own else (self._own, self._others):
      while waiting:
        i = waiting.popleft()
        if i in self._open and i not in self._claimed and self._claim(i, None):
          return i
    if own or not self._looked:
      return None
    self._looked = False
    ended: dict[str, bool] = {}
    mine = set(self._running.values())
    for i in sorted(self._open - mine):
      gone = self._team.claimant_ended(self._names[i], ended) if i in self._claimed else None
      if i not in self._claimed or gone is not None:
        if self._claim(i, gone):
          return i
    return None

  def _claim(self, i: int, instead_of: str | None) -> bool:
    if not self._board.claim(self._names[i], self._team.name, instead_of):
      self._claimed.add(i)
      return False
    self._finish([self._names[i]])  # it may have got its result after the last look
    if i not in self._open:
      self._board.release(self._names[i], self._team.name)
      return False
    return True
