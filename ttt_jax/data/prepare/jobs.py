"""Jobs whose results are stored and returned in order.

A job is a frozen dataclass; its result depends on its fields only, and is stored under the hash of
the fields (results.py). So an interrupted run resumes, no result of other fields is ever taken for
its own, and it does not matter which process on which machine computes a job, nor how often.

  Work   the jobs of one set: computed by this process, or by
  Pool   other processes: of this machine (local_pool.py) or of a Ray cluster (ray_pool.py)
  Team   several ``Work`` with the same results that share the jobs (team.py)
"""

import abc
import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
from typing import Any, Callable, Iterator, Protocol, Sequence

from ttt_jax.data.prepare import addresses
from ttt_jax.data.prepare.board import WORKERS
from ttt_jax.data.prepare.results import Function, Result, Results
from ttt_jax.errors import RetryableError, UserError
from ttt_jax.storage import files
from ttt_jax.storage.lease import InUse

FORMAT = 3   # part of every hash; increase it when the meaning of a result changes
STORED = 'finished work is stored'
AHEAD = 4    # submitted jobs per process; results are in order, so a slow one delays the rest
_POLL = 0.2  # seconds between progress updates

Progress = Callable[[int], None]  # takes the number of finished units
_count: Any = None  # what ``tick`` calls


def tick(n: int = 1) -> None:
  """Called by a job to report ``n`` more finished units."""
  if _count is not None:
    _count(n)


def counting(count: Callable[[int], None] | None) -> None:
  """From now on ``tick`` calls ``count``; None = nothing."""
  global _count
  _count = count


class Pool(abc.ABC):
  """Processes that compute jobs. They are started by the first ``submit``.

  Attributes:
    has_devices: whether jobs that use accelerators are computed there too; else they are computed
      in the process that asks.
  """
  has_devices = False

  @property
  @abc.abstractmethod
  def width(self) -> int:
    """Jobs that are computed at once."""

  @abc.abstractmethod
  def submit(self, function: Function, job: Any, root: str, name: str, devices: bool
             ) -> concurrent.futures.Future[Result]:
    """Starts ``do`` with the first four; ``devices``: it uses the accelerators of a process."""

  @abc.abstractmethod
  def begin(self, devices: bool) -> None:
    """Sets ``count`` to 0: before the jobs of a phase, which use accelerators or not."""

  @abc.abstractmethod
  def count(self) -> int:
    """Units that jobs have reported by ``tick`` since ``begin``."""

  @abc.abstractmethod
  def explain(self, error: BaseException) -> Exception | None:
    """The sentence for an error of the processes themselves; None for any other error."""

  @abc.abstractmethod
  def close(self, at_once: bool) -> None:
    """Ends the processes; ``at_once``: without waiting for the jobs that they compute."""

  def call(self, function: Callable, *arguments: Any) -> Any:
    """What a function returns where jobs with ``devices`` are computed."""
    return function(*arguments)


class Sharing(Protocol):
  """How several processes share the jobs of a set; see team.Team."""

  def join(self) -> None: ...
  def compute(self, function: Function, jobs: Sequence[Any], names: Sequence[str],
              pool: Pool | None, devices: bool, progress: Progress) -> dict[str, Result]: ...
  def assembling(self) -> contextlib.AbstractContextManager[bool]: ...
  def finish(self) -> None: ...
  def leave(self, error: BaseException | None) -> None: ...


class Work:
  """The results of a set's jobs, and the processes that compute them; a context manager.

  A full or forbidden disk raises a UserError on exit.
  """

  def __init__(self, results: Results, pool: Pool, team: Sharing | None = None):
    """
    Args:
      results: opened by the first ``run``; leased, since one run at a time may use them.
      pool: computes jobs that are worth it; closed on exit.
      team: shares the jobs with other processes, instead of the lease; left on exit.
    """
    self.results = results
    self.pool = pool
    self._team = team
    self._opened = False
    self._lease: Any = None

  def __enter__(self) -> 'Work':
    return self

  def __exit__(self, kind, error, trace) -> None:
    self.pool.close(bool(kind and not issubclass(kind, UserError)))
    if isinstance(error, OSError) and (
        error.errno in files.FULL
        or str(error.filename or '').startswith(str(self.results.disk))):
      wrong = files.cannot_write(self.results.disk, error, STORED)
    else:
      wrong = None
    try:
      if self._team:
        self._team.leave(wrong or error)
      if self._lease and not self.results.names():
        self.remove()
    except (UserError, RetryableError):  # the bucket cannot be reached
      if error is None:
        raise
    finally:
      if self._lease:
        self._lease.release()
        self._lease = None
      self.results.close()
    if wrong:
      raise wrong from error

  def remove(self) -> None:
    """Deletes the results, and their folder if it holds nothing else."""
    if self._lease is None:
      return
    self.results.remove(self._lease)
    self._lease = None

  @contextlib.contextmanager
  def assembling(self) -> Iterator[bool]:
    """A context in which the set is assembled: True in one process of a team, False in those that
    have waited for it. Then the results are deleted."""
    if self._team is None:
      if self._lease:
        self._lease.check()  # another run may have replaced one that was suspended
      yield True
      self.remove()
      return
    with self._team.assembling() as mine:
      yield mine
      if mine:
        self._team.finish()

  def run(self, function: Function, jobs: Sequence[Any], progress: Progress, apart: bool,
          devices: bool = False) -> Iterator[Result]:
    """Yields the results of jobs in their order; a job's error is raised in place of its result.

    Args:
      function: importable by name; called with (job, folder), writes into the folder.
      jobs: frozen dataclasses.
      progress: called with the number of finished units, those of stored results included
        (their info's 'units').
      apart: use other processes if more than one job is to do; False = run in this process.
      devices: the jobs use accelerators.

    Raises:
      UserError: a job's error, another run in the folder, or a process that died.
    """
    if not jobs:
      return
    self._open()
    names = [key(function, job) for job in jobs]
    found = self.results.stored(dict.fromkeys(names))
    waiting = len({name for name in names if name not in found})
    if devices:
      apart = self.pool.has_devices
    pool = self.pool if apart and (devices or waiting > 1 and (
        self.pool.has_devices or self.pool.width > 1)) else None
    if self._team and waiting:
      found |= self._team.compute(function, jobs, names, pool, devices, progress)
      waiting, progress = 0, lambda done: None
    if pool and waiting:
      yield from self._run_apart(pool, function, jobs, names, found, devices, progress)
      return
    done = 0
    def count(n):
      nonlocal done
      done += n
      progress(done)
    for job, name in zip(jobs, names):
      if name in found:
        count(found[name].info.get('units', 0))
      else:
        found[name] = do_here(function, job, self.results.root, name, count)
      yield found[name]

  def _open(self) -> None:
    """Opens and leases the results."""
    if self._opened:
      return
    self._opened = True
    if self._team:
      self._team.join()
      return
    board = self.results.board
    lease = board.lease('', self.results.where)
    try:
      lease.acquire()
    except InUse as error:
      raise in_use(error) from error
    self._lease = lease
    if not all(board.has_ended(f'{WORKERS}/{one}') for one in board.folders(WORKERS)):
      raise UserError('workers of `ttt-jax prepare --worker` are running in '
                      f'{self.results.where}; wait for them, stop them, or set data.path to '
                      'another folder.')
    self.results.open(alone=True)

  def _run_apart(self, pool: Pool, function, jobs, names, found, devices, progress
                 ) -> Iterator[Result]:
    pool.begin(devices)
    known = 0  # units of results that were stored before
    in_flight: collections.deque = collections.deque()
    order = iter(range(len(jobs)))
    try:
      while True:
        for i in itertools.islice(order, max(0, AHEAD * pool.width - len(in_flight))):
          in_flight.append((i, None if names[i] in found else pool.submit(
              function, jobs[i], self.results.root, names[i], devices)))
        if not in_flight:
          return
        i, future = in_flight.popleft()
        if future is None:
          result = found[names[i]]
          known += result.info.get('units', 0)
        else:
          while not concurrent.futures.wait([future], _POLL).done:
            progress(known + pool.count())
          result = future.result()
        progress(known + pool.count())
        yield result
    except Exception as error:
      if explained := pool.explain(error):
        raise explained from error
      raise
    finally:
      for _, future in in_flight:
        if future:
          future.cancel()


def in_use(error: InUse) -> UserError:
  """The sentence for a folder of results that another run uses."""
  return UserError(f'another `ttt-jax prepare` is running: {str(error).rpartition(";")[0]}; '
                   'wait for it, or set data.path to another folder.')


def key(function: Function, job: Any) -> str:
  """Name of a job's result."""
  text = repr((FORMAT, function.__module__, function.__name__, dataclasses.astuple(job)))
  return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:24]


def do(function: Function, job: Any, root: str, name: str) -> Result:
  """Computes a job and stores its result.

  Args:
    function, job: see Work.run.
    root: of the results.
    name: of the job's result.
  """
  return addresses.at(root).do(function, job, name)


def do_here(function: Function, job: Any, root: str, name: str, count: Progress) -> Result:
  """``do`` in this process; ``count`` is called with units as they are finished."""
  counting(count)
  try:
    return do(function, job, root, name)
  finally:
    counting(None)
