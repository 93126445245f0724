"""Jobs whose results are stored on disk and returned in order.

A job is a frozen dataclass; its result depends on its fields only. The result is a folder that is
named by the hash of the fields and holds info.json. It is written under a temporary name and
renamed. So an interrupted run resumes, no result of other fields is ever taken for its own, and
it does not matter which process on which machine computes a job, nor how often.

  Work   the folder of results: its jobs are computed by this process, or by
  Pool   other processes: of this machine (local_pool.py) or of a Ray cluster (ray_pool.py)
  Team   several ``Work`` of one folder that share the jobs (team.py)
"""

import abc
import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import re
import secrets
import shutil
from typing import Any, Callable, Iterator, Protocol, Sequence

from ttt_jax.errors import UserError
from ttt_jax.storage import files
from ttt_jax.storage.lease import LOCK, InUse, Lease, has_ended

FORMAT = 3   # part of every hash; increase it when the meaning of a result changes
INFO = 'info.json'
STORED = 'finished work is stored'
AHEAD = 4    # submitted jobs per process; results are in order, so a slow one delays the rest
WORKERS, ASSEMBLY, DONE, FAILED = 'workers', 'assembly', 'done.json', 'failed.json'  # of a Team
# Everything else in the folder is a user's, and stays.
_OURS = re.compile(
    r'[0-9a-f]{24}(\.part-[0-9a-f-]+|\.claim)?|codec|tokenizer\.json|lock|\..+\.partial|'
    + '|'.join(map(re.escape, (WORKERS, ASSEMBLY, DONE, FAILED))))
_POLL = 0.2  # seconds between progress updates

Function = Callable[[Any, pathlib.Path], dict[str, Any]]  # (job, its folder) -> JSON-ready info
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


@dataclasses.dataclass(frozen=True)
class Result:
  """The result of a job: its folder, and what its function returned."""
  folder: pathlib.Path
  info: dict[str, Any]


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
  def submit(self, function: Function, job: Any, folder: pathlib.Path, devices: bool
             ) -> concurrent.futures.Future[Result]:
    """Starts ``do(function, job, folder)``; ``devices``: it uses the accelerators of a process."""

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
  """How several processes share the jobs of a folder; see team.Team."""

  def join(self) -> None: ...
  def compute(self, function: Function, jobs: Sequence[Any], folders: Sequence[pathlib.Path],
              pool: Pool | None, devices: bool, progress: Progress) -> None: ...
  def assembling(self) -> contextlib.AbstractContextManager[bool]: ...
  def finish(self) -> None: ...
  def leave(self, error: BaseException | None) -> None: ...


class Work:
  """A folder of results, and the processes that compute them; a context manager.

  A full or forbidden disk raises a UserError on exit.
  """

  def __init__(self, folder: pathlib.Path, pool: Pool, team: Sharing | None = None):
    """
    Args:
      folder: created by the first ``run``; locked, since one run at a time may use it.
      pool: computes jobs that are worth it; closed on exit.
      team: shares the jobs with other processes, instead of the lock; left on exit.
    """
    self.folder = folder
    self.pool = pool
    self._team = team
    self._opened = False
    self._lease: Lease | None = None

  def __enter__(self) -> 'Work':
    return self

  def __exit__(self, kind, error, trace) -> None:
    self.pool.close(bool(kind and not issubclass(kind, UserError)))
    if isinstance(error, OSError) and (
        error.errno in files.FULL or str(error.filename or '').startswith(str(self.folder))):
      wrong = files.cannot_write(self.folder, error, STORED)
    else:
      wrong = None
    if self._team:
      self._team.leave(wrong or error)
    if self._lease and not any(self.folder.glob(f'*/{INFO}')):
      self.remove()
    if self._lease:
      self._lease.release()
      self._lease = None
    if wrong:
      raise wrong from error

  def remove(self) -> None:
    """Deletes the results, and the folder if it holds nothing else."""
    if self._lease is None:
      return
    self._lease.stop()
    clear(self.folder)
    self._lease.release()
    self._lease = None
    delete(self.folder / LOCK)
    with contextlib.suppress(OSError):
      self.folder.rmdir()

  @contextlib.contextmanager
  def assembling(self) -> Iterator[bool]:
    """A context in which the set is assembled: True in one process of a team, False in those that
    have waited for it. Then the results are deleted."""
    if self._team is None:
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
    folders = [self.folder / key(function, job) for job in jobs]
    waiting = [i for i, folder in enumerate(folders) if not (folder / INFO).is_file()]
    if devices:
      apart = self.pool.has_devices
    pool = self.pool if apart and (devices or len(waiting) > 1 and (
        self.pool.has_devices or self.pool.width > 1)) else None
    if self._team and waiting:
      self._team.compute(function, jobs, folders, pool, devices, progress)
      waiting, progress = [], lambda done: None
    if pool and waiting:
      yield from self._run_apart(pool, function, jobs, folders, set(waiting), devices, progress)
      return
    done = 0
    def count(n):
      nonlocal done
      done += n
      progress(done)
    for job, folder in zip(jobs, folders):
      result = stored(folder)
      if result:
        count(result.info.get('units', 0))
      else:
        result = do_here(function, job, folder, count)
      yield result

  def _open(self) -> None:
    """Creates and locks the folder; the lock of a dead process is released by the system."""
    if self._opened:
      return
    self._opened = True
    if self._team:
      self._team.join()
      return
    lease = Lease(self.folder, str(self.folder))
    try:
      lease.acquire()
    except InUse as error:
      raise in_use(error) from error
    self._lease = lease
    if not all(has_ended(one) for one in self.folder.glob(f'{WORKERS}/*')):
      raise UserError(f'workers of `ttt-jax prepare --worker` are running in {self.folder}; '
                      'wait for them, stop them, or set data.path to another folder.')
    for stale in self.folder.glob('*.part-*'):
      if _OURS.fullmatch(stale.name):
        delete(stale)

  def _run_apart(self, pool: Pool, function, jobs, folders, waiting, devices, progress
                 ) -> Iterator[Result]:
    pool.begin(devices)
    known = 0  # units of results that were stored before
    in_flight: collections.deque = collections.deque()
    order = iter(range(len(jobs)))
    try:
      while True:
        for i in itertools.islice(order, max(0, AHEAD * pool.width - len(in_flight))):
          in_flight.append((i, pool.submit(function, jobs[i], folders[i], devices)
                            if i in waiting else None))
        if not in_flight:
          return
        i, future = in_flight.popleft()
        if future is None:
          result = stored(folders[i])
          assert result is not None, folders[i]
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


def clear(folder: pathlib.Path, keep: tuple[str, ...] = ()) -> None:
  """Deletes everything of ours in a folder of results, but for the names in ``keep``."""
  for path in folder.iterdir():
    if _OURS.fullmatch(path.name) and path.name not in keep:
      delete(path)


def delete(path: pathlib.Path) -> None:
  """Deletes a file or folder; errors are ignored for folders."""
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)


def key(function: Function, job: Any) -> str:
  """Name of the folder of a job's result."""
  text = repr((FORMAT, function.__module__, function.__name__, dataclasses.astuple(job)))
  return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:24]


def stored(folder: pathlib.Path) -> Result | None:
  """A result that is stored; None if there is none."""
  try:
    return Result(folder, json.loads((folder / INFO).read_text(encoding='utf-8')))
  except (FileNotFoundError, NotADirectoryError):
    return None


def do(function: Function, job: Any, folder: pathlib.Path) -> Result:
  """Computes a job and stores its result."""
  # A process of another machine may have the same number.
  partial = folder.with_name(f'{folder.name}.part-{os.getpid()}-{secrets.token_hex(4)}')
  try:
    partial.mkdir()
    info = function(job, partial)
    with (partial / INFO).open('w', encoding='utf-8') as file:
      json.dump(info, file)
    _flush(partial)
    try:
      os.rename(partial, folder)
    except OSError:
      if not (folder / INFO).is_file():  # else another process stored the same result
        raise
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return Result(folder, info)


def do_here(function: Function, job: Any, folder: pathlib.Path, count: Progress) -> Result:
  """``do`` in this process; ``count`` is called with units as they are finished."""
  counting(count)
  try:
    return do(function, job, folder)
  finally:
    counting(None)


def _flush(folder: pathlib.Path) -> None:
  """Forces files to disk, so that after a power failure a renamed folder is complete."""
  for path in folder.iterdir():
    with path.open('rb') as file:
      os.fsync(file.fileno())
