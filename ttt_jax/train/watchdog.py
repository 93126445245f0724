"""A thread that reports a stuck run: it writes the stacks of all threads to a file."""

from collections.abc import Callable
import faulthandler
import os
import pathlib
import sys
import threading
import time


class Watchdog:
  """Reports when ``beat`` has not been called for too long. Use as a context manager.

  It reports once until the next ``beat``; the callback ``stuck`` decides what follows.
  """

  def __init__(self, minutes: float, folder: str | os.PathLike, process: int,
               stuck: Callable[[str], None]):
    """Start watching.

    Args:
      minutes: without a beat, after which it reports; 0 = never.
      folder: gets stacks-<process>.txt; standard error gets the same.
      process: index of this process.
      stuck: takes one sentence; called in the watchdog's thread.
    """
    self._seconds, self._stuck = 60 * minutes, stuck
    self._file = pathlib.Path(folder) / f'stacks-{process}.txt'
    self._last, self._reported = time.monotonic(), False
    self._over = threading.Event()
    self._thread = threading.Thread(target=self._watch, name='watchdog', daemon=True)
    if minutes:
      self._thread.start()

  def beat(self) -> None:
    """Record progress: a step, save or evaluation has finished."""
    self._last, self._reported = time.monotonic(), False

  def close(self) -> None:
    """Stop watching."""
    self._over.set()
    if self._thread.is_alive():
      self._thread.join()

  def __enter__(self) -> 'Watchdog':
    return self

  def __exit__(self, *unused) -> None:
    self.close()

  def _watch(self) -> None:
    while not self._over.wait(min(self._seconds / 10, 10.0)):
      idle = time.monotonic() - self._last
      if idle > self._seconds and not self._reported:
        self._reported = True
        self._report(idle)

  def _report(self, idle: float) -> None:
    where = str(self._file)
    try:
      with self._file.open('w', encoding='utf-8') as file:
        file.write(f'{time.strftime("%Y-%m-%d %H:%M:%S")}: nothing finished for {idle:.0f} s\n\n')
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
    except OSError as error:  # a full disk may be what blocks the run
      where = f'standard error ({self._file}: {error.strerror})'
    if sys.__stderr__ is not None:  # None without a console, as under pythonw
      faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
    self._stuck(f'no step, save or evaluation has finished for {idle:.0f} s; the stacks of all '
                f'threads are in {where}.')
