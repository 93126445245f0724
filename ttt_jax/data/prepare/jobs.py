"""Jobs in several processes, with results that are stored on disk and returned in order.

A job is a frozen dataclass; its result depends on its fields only. The result is a folder that is
named by the hash of the fields and holds info.json. It is written under a temporary name and
renamed. So an interrupted run resumes, and no result of other fields is ever taken for its own.
"""

import collections
import concurrent.futures
from concurrent.futures.process import BrokenProcessPool
import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import re
import shutil
import signal
import threading
from typing import Any, Callable, Iterator, Sequence

from ttt_jax.errors import UserError
from ttt_jax.storage import files
from ttt_jax.storage.lease import LOCK, InUse, Lease

FORMAT = 3   # part of every hash; increase it when the meaning of a result changes
_INFO = 'info.json'
_AHEAD = 4   # submitted jobs per process; results are in order, so a slow one delays the rest
_STORED = 'finished work is stored'
# Everything else in the folder is a user's, and stays.
_OURS = re.compile(r'[0-9a-f]{24}(\.part-\d+)?|codec|tokenizer\.json|lock|\..+\.partial')
_POLL = 0.2  # seconds between progress updates

Function = Callable[[Any, pathlib.Path], dict[str, Any]]  # (job, its folder) -> JSON-ready info
_count: Any = None  # what ``tick`` updates: a counter shared with the parent, or a callback


def tick(n: int = 1) -> None:
  """Called by a job to report ``n`` more finished units."""
  if callable(_count):
    _count(n)
  elif _count is not None:
    with _count.get_lock():
      _count.value += n


@dataclasses.dataclass(frozen=True)
class Result:
  """The result of a job: its folder, and what its function returned."""
  folder: pathlib.Path
  info: dict[str, Any]


class Work:
  """A folder of results and a pool of processes that compute them; a context manager.

  A full or forbidden disk raises a UserError on exit. Processes are started by 'spawn', so a script
  that uses this needs ``if __name__ == '__main__':`` around its own code.
  """

  def __init__(self, folder: pathlib.Path, processes: int):
    """
    Args:
      folder: created by the first ``run``; locked, since one run at a time may use it.
      processes: maximum; 0 = one per core.
    """
    self.folder = folder
    self._processes = processes or _cores()
    self._pool: concurrent.futures.ProcessPoolExecutor | None = None
    self._lease: Lease | None = None

  def __enter__(self) -> 'Work':
    return self

  def __exit__(self, kind, error, trace) -> None:
    if self._pool:
      if kind and not issubclass(kind, UserError):  # interrupted: do not wait for the rest
        for process in set(multiprocessing.active_children()) - self._others:
          process.terminate()
      self._pool.shutdown(cancel_futures=True)
    if self._lease and not any(self.folder.glob(f'*/{_INFO}')):
      self.remove()
    if self._lease:
      self._lease.release()
      self._lease = None
    if isinstance(error, OSError) and (
        error.errno in files.FULL or str(error.filename or '').startswith(str(self.folder))):
      raise files.cannot_write(self.folder, error, _STORED) from error

  def remove(self) -> None:
    """Deletes the results, and the folder if it holds nothing else."""
    if self._lease is None:
      return
    self._lease.stop()
    for path in self.folder.iterdir():
      if _OURS.fullmatch(path.name):
        _remove(path)
    self._lease.release()
    self._lease = None
    _remove(self.folder / LOCK)
    with contextlib.suppress(OSError):
      self.folder.rmdir()

  def run(self, function: Function, jobs: Sequence[Any], progress: Callable[[int], None],
          apart: bool) -> Iterator[Result]:
    """Yields the results of jobs in their order; a job's error is raised in place of its result.

    Args:
      function: importable by name; called with (job, folder), writes into the folder.
      jobs: frozen dataclasses.
      progress: called with the number of finished units, those of stored results included
        (their info's 'units').
      apart: use other processes if more than one job is to do; False = run in this process.

    Raises:
      UserError: a job's error, another run in the folder, or a process that died.
    """
    if not jobs:
      return
    self._open()
    folders = [self.folder / _key(function, job) for job in jobs]
    waiting = [i for i, folder in enumerate(folders) if not (folder / _INFO).is_file()]
    if apart and self._processes > 1 and len(waiting) > 1:
      yield from self._run_apart(function, jobs, folders, set(waiting), progress)
      return
    global _count
    done = 0
    def count(n):
      nonlocal done
      done += n
      progress(done)
    for job, folder in zip(jobs, folders):
      result = _stored(folder)
      if result:
        count(result.info.get('units', 0))
      else:
        _count = count
        try:
          result = _do(function, job, folder)
        finally:
          _count = None
      yield result

  def _open(self) -> None:
    """Creates and locks the folder; the lock of a dead process is released by the system."""
    if self._lease:
      return
    lease = Lease(self.folder, str(self.folder))
    try:
      lease.acquire()
    except InUse as error:
      raise UserError(f'another `ttt-jax prepare` is running: {str(error).rpartition(";")[0]}; '
                      'wait for it, or set data.path to another folder.') from error
    self._lease = lease
    for stale in self.folder.glob('*.part-*'):
      if _OURS.fullmatch(stale.name):
        _remove(stale)

  def _run_apart(self, function, jobs, folders, waiting, progress) -> Iterator[Result]:
    pool = self._pool
    if pool is None:
      self._others = set(multiprocessing.active_children())  # the caller's own
      context = multiprocessing.get_context('spawn')
      self._shared = context.Value('q', 0)
      pool = self._pool = concurrent.futures.ProcessPoolExecutor(
          self._processes, context, initializer=_settle, initargs=(self._shared,))
    with self._shared.get_lock():
      self._shared.value = 0
    known = 0  # units of results that were stored before
    in_flight: collections.deque = collections.deque()
    order = iter(range(len(jobs)))
    def start():
      for i in order:
        in_flight.append((i, pool.submit(_do, function, jobs[i], folders[i])
                       if i in waiting else None))
        return
    for _ in range(_AHEAD * self._processes):
      start()
    try:
      while in_flight:
        i, future = in_flight.popleft()
        if future is None:
          result = _stored(folders[i])
          assert result is not None, folders[i]
          known += result.info.get('units', 0)
        else:
          while not concurrent.futures.wait([future], _POLL).done:
            progress(known + self._shared.value)
          result = future.result()
        progress(known + self._shared.value)
        yield result
        start()
    except BrokenProcessPool as error:
      raise UserError('a process of `ttt-jax prepare` died, perhaps of too little memory; set '
                      f'data.workers below {self._processes} and run it again: finished work is '
                      'stored.') from error
    finally:
      for _, future in in_flight:
        if future:
          future.cancel()


def _remove(path: pathlib.Path) -> None:
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)


def _cores() -> int:
  """CPU cores that this process may use; all cores where the system cannot tell."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _key(function: Function, job: Any) -> str:
  text = repr((FORMAT, function.__module__, function.__name__, dataclasses.astuple(job)))
  return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:24]


def _stored(folder: pathlib.Path) -> Result | None:
  try:
    return Result(folder, json.loads((folder / _INFO).read_text(encoding='utf-8')))
  except (FileNotFoundError, NotADirectoryError):
    return None


def _do(function: Function, job: Any, folder: pathlib.Path) -> Result:
  """Runs a job and stores its result."""
  partial = folder.with_name(f'{folder.name}.part-{os.getpid()}')
  shutil.rmtree(partial, ignore_errors=True)
  try:
    partial.mkdir()
    info = function(job, partial)
    with (partial / _INFO).open('w', encoding='utf-8') as file:
      json.dump(info, file)
    _flush(partial)
    try:
      os.rename(partial, folder)
    except OSError:
      if not (folder / _INFO).is_file():  # else another process stored the same result
        raise
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return Result(folder, info)


def _flush(folder: pathlib.Path) -> None:
  """Forces files to disk, so that after a power failure a renamed folder is complete."""
  for path in folder.iterdir():
    with path.open('rb') as file:
      os.fsync(file.fileno())


def _settle(shared) -> None:
  """Set-up of a worker process: ignores Ctrl-C (the parent handles it), dies with its parent."""
  global _count
  _count = shared
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  assert parent is not None, 'runs in a worker process'
  def watch():
    multiprocessing.connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
  threading.Thread(target=watch, daemon=True).start()
