"""Profiles of a run: the steps that train.profile names, and what `ttt-jax profile` asks for.

A thread of every process looks for requests (profile_files.py). It, and not the loop, records what
is asked for, so a step that takes minutes, or hangs, can be looked into. Python's calls are not
traced: they would be most of a trace and slow the run down. Traces are written to a hidden folder
and renamed, so that a trace that exists is complete.
"""

from collections.abc import Callable
import logging
import os
import pathlib
import shutil
import socket
import threading
import time
from typing import Any

import jax

from ttt_jax.errors import RetryableError, UserError
from ttt_jax.storage import files, mirror
from ttt_jax.train import profile_files
from ttt_jax.train.profile_files import Answer, Request

POLL = 1.0  # seconds between two looks for a request
POLL_BUCKET = 5.0  # in a bucket, where each look is a request that is paid for
_LOG = logging.getLogger(__name__)


class Profiler:
  """Records profiles of this process. Use as a context manager."""

  def __init__(self, workdir: str | os.PathLike, steps: tuple[int, int] | None = None,
               process: int = 0, processes: int = 1,
               say: Callable[[str], None] = _LOG.warning, poll: float | None = None):
    """Nothing is recorded yet.

    Args:
      workdir: of the run.
      steps: (after, until): trace from when ``after`` steps of this start were given to the device
        until ``until`` are done; None = no steps.
      process, processes: index and count.
      say: takes sentences about profiles that could not be made.
      poll: seconds between two looks for a request; None: POLL, or POLL_BUCKET.
    """
    self.workdir, self._say = pathlib.Path(workdir), say
    self._process = process
    self._poll = poll or (POLL if mirror.url_of(workdir) is None else POLL_BUCKET)
    self._host = socket.gethostname() + (f'-p{process}' if processes > 1 else '')
    self._after, self._until = steps or (-1, -1)
    self._recording = False           # of train.profile
    self._date = ''
    self._lock = threading.Lock()     # JAX records one trace at a time
    self._over = threading.Event()
    self._seen: Any = None            # version of the request that was looked at last
    self._last = ''                   # id of the last request
    self._thread = threading.Thread(target=self._serve, name='profile', daemon=True)

  def __enter__(self) -> 'Profiler':
    self._thread.start()
    return self

  def __exit__(self, *unused) -> None:
    self._over.set()
    self._thread.join()
    if self._recording:
      self.stop()

  # -- train.profile ------------------------------------------------------------------------

  def due(self, done: int) -> bool:
    """Whether ``switch`` is to be called before the next step; ``done``: steps of this start."""
    return done == (self._until if self._recording else self._after)

  def switch(self, date: str) -> None:
    """Begin to trace, or end; the device must be idle. ``date``: name of the trace's folder."""
    if self._recording:
      self.stop()
    elif self._lock.acquire(blocking=False):  # else a trace was asked for just now
      self._date = date
      try:
        self._start()
        self._recording = True
      except Exception as error:
        self._lock.release()
        self._say(f'train.profile: the steps could not be traced: {_sentence(error)}')
      if not self._recording:
        self._after = -1
    else:
      self._after = -1
      self._say('train.profile: the steps were not traced, because `ttt-jax profile` records a '
                'trace.')

  def stop(self) -> None:
    """End the trace of train.profile."""
    self._recording, self._after = False, -1
    try:
      path, _ = self._stop(self._date)
      profile_files.publish(self.workdir, path)
      _LOG.info('train.profile: wrote %s; open it with `%s`.', mirror.named(path),
                profile_files.viewer(self.workdir))
    except Exception as error:  # a profile is not worth a run
      self._say(f'train.profile: the trace could not be written: {_sentence(error)}')
    finally:
      self._lock.release()

  # -- requests -----------------------------------------------------------------------------

  def _serve(self) -> None:
    while not self._over.wait(self._poll):
      request = self._new_request()
      if request is not None:
        self._answer(request)

  def _new_request(self) -> Request | None:
    """A request to this process that has not been answered."""
    try:
      seen = profile_files.version(self.workdir)
      if seen is None or seen == self._seen:
        return None
      request = profile_files.read_request(self.workdir)
      self._seen = seen
    except (OSError, UserError, RetryableError):  # not one of ours, or out of reach for a while
      return None
    if request is None or request.id == self._last or time.time() > request.expires or (
        request.process not in (self._process, profile_files.ALL)):
      return None
    self._last = request.id
    return request

  def _answer(self, request: Request) -> None:
    def tell(state: str, **more) -> None:
      profile_files.write_answer(self.workdir, Answer(
          request.id, self._process, socket.gethostname(), state, **more))
    try:
      with self._lock:
        make = self._memory if request.kind == profile_files.MEMORY else self._trace
        path, size = make(request, tell)
      profile_files.publish(self.workdir, path)
      tell(profile_files.DONE, bytes=size,
           file=str(path.relative_to(profile_files.folder(self.workdir))))
    except Exception as error:  # a profile is not worth a run
      try:
        tell(profile_files.FAILED, error=_sentence(error))
      except (UserError, RetryableError) as other:
        self._say(f'`ttt-jax profile` got no answer: {other}')

  def _trace(self, request: Request, tell: Callable[[str], None]) -> tuple[pathlib.Path, int]:
    tell(profile_files.RECORDING)
    self._start()
    try:
      self._over.wait(request.seconds)
      tell(profile_files.WRITING)
    finally:
      found = self._stop(request.date)
    return found

  def _memory(self, request: Request, tell: Callable[[str], None]) -> tuple[pathlib.Path, int]:
    tell(profile_files.WRITING)
    target = (profile_files.folder(self.workdir) / 'memory' / request.date
              / f'{self._host}.memory.pb.gz')
    with files.replacing(_made(target), 'wb') as file:
      file.write(jax.profiler.device_memory_profile())
    return target, target.stat().st_size

  # -- JAX's profiler -----------------------------------------------------------------------

  @property
  def _hidden(self) -> pathlib.Path:
    return profile_files.folder(self.workdir) / f'.recording-{self._host}'

  def _start(self) -> None:
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with files.writing(self._hidden):  # before the work: a full or read-only disk
      shutil.rmtree(self._hidden, ignore_errors=True)
      self._hidden.mkdir(parents=True)
    jax.profiler.start_trace(self._hidden, profiler_options=options)

  def _stop(self, date: str) -> tuple[pathlib.Path, int]:
    """Write the trace; its path and size."""
    target = profile_files.folder(self.workdir) / 'plugins' / 'profile' / date
    try:
      with files.writing(target):
        jax.profiler.stop_trace()
        source = next(self._hidden.rglob('*.xplane.pb'), None)
        if source is None:
          raise UserError(f'JAX wrote no trace to {self._hidden}; check the disk, then try again.')
        path = _made(target / f'{self._host}.xplane.pb')
        os.replace(source, path)
        return path, path.stat().st_size
    finally:
      shutil.rmtree(self._hidden, ignore_errors=True)


def _made(path: pathlib.Path) -> pathlib.Path:
  """``path``, in a folder that exists."""
  with files.writing(path):
    files.make_folder(path.parent)
  return path


def _sentence(error: Exception) -> str:
  text = ' '.join(str(error).split()) or type(error).__name__
  return text if text.endswith('.') else text + '.'
