"""Processes of this machine that compute jobs: concurrent.futures, and what it lacks.

It lacks a count of what jobs report while they run, and an end of its processes with their parent.
"""

import concurrent.futures
from concurrent.futures.process import BrokenProcessPool
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading

from ttt_jax.data.prepare import jobs
from ttt_jax.errors import UserError


class Died(UserError):
  """A process of this machine has died."""


class LocalPool(jobs.Pool):
  """One process per core. They are started by 'spawn', so a script that uses this needs
  ``if __name__ == '__main__':`` around its own code."""

  def __init__(self, processes: int = 0):
    """
    Args:
      processes: maximum; 0 = one per core.
    """
    self._processes = processes or cores()
    self._executor: concurrent.futures.ProcessPoolExecutor | None = None

  @property
  def width(self) -> int:
    return self._processes

  def begin(self, devices: bool) -> None:
    if self._executor is None:
      self._others = set(multiprocessing.active_children())  # the caller's own
      context = multiprocessing.get_context('spawn')
      self._units = context.Value('q', 0)
      self._executor = concurrent.futures.ProcessPoolExecutor(
          self._processes, context, initializer=_settle, initargs=(self._units,))
    with self._units.get_lock():
      self._units.value = 0

  def submit(self, function, job, root, name, devices) -> concurrent.futures.Future:
    assert self._executor is not None, 'begin() comes first'
    return self._executor.submit(jobs.do, function, job, root, name)

  def count(self) -> int:
    return self._units.value

  def explain(self, error: BaseException) -> Exception | None:
    if not isinstance(error, BrokenProcessPool):
      return None
    return Died('a process of `ttt-jax prepare` died, perhaps of too little memory; set '
                f'data.workers below {self._processes} and run it again: {jobs.STORED}.')

  def close(self, at_once: bool) -> None:
    if self._executor is None:
      return
    if at_once:
      for process in set(multiprocessing.active_children()) - self._others:
        process.terminate()
    self._executor.shutdown(cancel_futures=True)
    self._executor = None


def cores() -> int:
  """CPU cores that this process may use; all cores where the system cannot tell."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _settle(units) -> None:
  """Set-up of a process: ignores Ctrl-C (the parent handles it), dies with its parent."""
  def count(n: int) -> None:
    with units.get_lock():
      units.value += n
  jobs.counting(count)
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  assert parent is not None, 'runs in a process of the pool'
  def watch():
    multiprocessing.connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
  threading.Thread(target=watch, daemon=True).start()
