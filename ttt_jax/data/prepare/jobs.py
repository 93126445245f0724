"""Jobs in several processes: results in order, each kept on disk until all are there.

A job is a frozen dataclass, and what it gives depends on nothing but its fields. Its result
is a folder named by their hash, with info.json in it, written under another name and renamed.
So a run that was killed goes on where it was, and nothing stale is ever taken for a result.
"""

import collections
import concurrent.futures
from concurrent.futures.process import BrokenProcessPool
import dataclasses
import fcntl
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import shutil
import signal
import threading
from typing import Any, Callable, Iterator, Sequence

from ttt_jax.errors import UserError
from ttt_jax.storage import files

FORMAT = 2   # goes into every hash: change it when a job's result changes its meaning
_INFO = 'info.json'
_AHEAD = 4   # jobs per process that wait; their order decides, so a slow one holds up the rest
_KEPT = 'what is done is kept'
_LOOK = 0.2  # seconds between looks at the count

Function = Callable[[Any, pathlib.Path], dict[str, Any]]  # (job, its folder) -> JSON-ready info
_count: Any = None  # where ``tick`` counts: shared with the parent, or its callback


def tick(n: int = 1) -> None:
  """Called by a job: ``n`` more of its units are done."""
  if callable(_count):
    _count(n)
  elif _count is not None:
    with _count.get_lock():
      _count.value += n


@dataclasses.dataclass(frozen=True)
class Result:
  """What a job left: its folder, and what its function returned."""
  folder: pathlib.Path
  info: dict[str, Any]


class Work:
  """A folder of results, and the processes that make them; a context manager.

  A full disk inside of it, wherever it is met, leaves it as a UserError.

  The processes are new interpreters: a script that gets here needs the usual
  ``if __name__ == '__main__':`` around its own code.
  """

  def __init__(self, folder: pathlib.Path, processes: int):
    """
    Args:
      folder: made when the first result is kept; one run at a time uses it.
      processes: at most; 0 = one for each core.
    """
    self.folder = folder
    self._processes = processes or _cores()
    self._pool: concurrent.futures.ProcessPoolExecutor | None = None
    self._lock = None

  def __enter__(self) -> 'Work':
    return self

  def __exit__(self, kind, error, trace) -> None:
    if self._pool:
      if kind and not issubclass(kind, UserError):  # interrupted: nobody waits for the rest
        for process in set(multiprocessing.active_children()) - self._others:
          process.terminate()
      self._pool.shutdown(cancel_futures=True)
    if self._lock:
      if not any(self.folder.glob(f'*/{_INFO}')):
        self.remove()
      self._lock.close()
    if isinstance(error, OSError) and error.errno in files.FULL:
      raise files.cannot_write(self.folder, error, _KEPT) from error

  def remove(self) -> None:
    """Nothing in the folder is needed any more."""
    shutil.rmtree(self.folder, ignore_errors=True)

  def run(self, function: Function, jobs: Sequence[Any], progress: Callable[[int], None],
          apart: bool) -> Iterator[Result]:
    """The results of jobs, in their order; an error is raised when its turn comes.

    Args:
      function: importable by name; it writes into the folder it is given.
      jobs: frozen dataclasses.
      progress: called now and then with the units done so far, those of kept results too
        (their info's 'units').
      apart: use processes, if there is more than one job; False = here, one after another.

    Raises:
      UserError: that of a job, another run in the folder, a process that was killed.
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
      kept = _kept(folder)
      if kept:
        count(kept.info.get('units', 0))
      else:
        _count = count
        try:
          kept = _do(function, job, folder)
        finally:
          _count = None
      yield kept

  def _open(self) -> None:
    """Make the folder, and see that nobody else works there; a dead process holds no lock."""
    if self._lock:
      return
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      self._lock = (self.folder / 'lock').open('w')
    except OSError as error:
      raise files.cannot_write(self.folder, error, _KEPT) from error
    try:
      fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UserError(f'another `ttt-jax prepare` is at work in {self.folder}; wait for it, or set '
                      'data.path to another folder.') from error
    except OSError:
      pass  # a file system without locks
    for stale in self.folder.glob('*.part-*'):
      shutil.rmtree(stale, ignore_errors=True)

  def _run_apart(self, function, jobs, folders, waiting, progress) -> Iterator[Result]:
    if self._pool is None:
      self._others = set(multiprocessing.active_children())  # of whoever called us
      context = multiprocessing.get_context('spawn')
      self._shared = context.Value('q', 0)
      self._pool = concurrent.futures.ProcessPoolExecutor(
          self._processes, context, initializer=_settle, initargs=(self._shared,))
    with self._shared.get_lock():
      self._shared.value = 0
    known = 0  # units of results that were there before
    flying: collections.deque = collections.deque()
    order = iter(range(len(jobs)))
    def start():
      for i in order:
        flying.append((i, self._pool.submit(_do, function, jobs[i], folders[i])
                       if i in waiting else None))
        return
    for _ in range(_AHEAD * self._processes):
      start()
    try:
      while flying:
        i, future = flying.popleft()
        if future is None:
          result = _kept(folders[i])
          known += result.info.get('units', 0)
        else:
          while not concurrent.futures.wait([future], _LOOK).done:
            progress(known + self._shared.value)
          result = future.result()
        progress(known + self._shared.value)
        yield result
        start()
    except BrokenProcessPool as error:
      raise UserError('a process of `ttt-jax prepare` was killed, perhaps for want of memory; set '
                      f'data.workers below {self._processes} and start it again: what is done is '
                      'kept.') from error
    finally:
      for _, future in flying:
        if future:
          future.cancel()


def _cores() -> int:
  """Those that this process may use, where the system tells them from all there are."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _key(function: Function, job: Any) -> str:
  text = repr((FORMAT, function.__module__, function.__name__, dataclasses.astuple(job)))
  return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:24]


def _kept(folder: pathlib.Path) -> Result | None:
  try:
    return Result(folder, json.loads((folder / _INFO).read_text(encoding='utf-8')))
  except (FileNotFoundError, NotADirectoryError):
    return None


def _do(function: Function, job: Any, folder: pathlib.Path) -> Result:
  """Run a job and keep its result."""
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
      if not (folder / _INFO).is_file():  # else a process that outlived its parent was faster
        raise
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return Result(folder, info)


def _flush(folder: pathlib.Path) -> None:
  """To the disk itself, so that after a power cut a folder with its final name is whole."""
  for path in folder.iterdir():
    with path.open('rb') as file:
      os.fsync(file.fileno())


def _settle(shared) -> None:
  """In a new process: Ctrl-C is the parent's affair, and without a parent there is no work."""
  global _count
  _count = shared
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process().sentinel
  def watch():
    multiprocessing.connection.wait([parent])
    os.kill(os.getpid(), signal.SIGKILL)
  threading.Thread(target=watch, daemon=True).start()
