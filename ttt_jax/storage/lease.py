"""Leases: one process at a time owns a folder, and a process that has ended owns nothing.

  FOLDER/.owner.lock   flock'ed by the owner: the system releases it when the process ends
  FOLDER/.owner.json   who that is, since when; written again every few seconds

The first rule that applies to an earlier owner's note decides whether the owner has ended:

  1. it is a process of this machine and container   it has ended if there is no such process of
                                                     that number and start time
  2. of another container of this machine            it has ended if its lock is free
  3. of an earlier start of the same SLURM job       it has ended: SLURM starts a job again only
                                                     after that
  4. of another machine                              it has ended if its note is older than
                                                     ``SILENCE``, by the clock of the file system.
                                                     It lives once its note is written again; a new
                                                     owner waits until it knows

Rule 4 needs no locks, which some shared file systems lack or keep for machines that are gone. Of
several processes that find an owner gone at the same time, one gets the lease: the note is created
under its name exclusively. Without locks it counts once it has stood for ``SETTLE``: a process that
was about to remove the earlier note may remove the new one, and while it puts that back, a third
one may create its own. An owner whose note was taken by another (it was suspended for longer than
``SILENCE``) learns it from ``check`` before it writes again.
"""

from collections.abc import Callable, Iterator
import contextlib
import errno
import fcntl
import json
import logging
import os
import pathlib
import shutil
import threading
import time
from typing import Any
import uuid

from ttt_jax.errors import UserError
from ttt_jax.storage import files
from ttt_jax.storage.process import Process, this

_LOG = logging.getLogger(__name__)
LOCK, NOTE = '.owner.lock', '.owner.json'
BEAT = 5.0       # seconds between two writes of the note
SILENCE = 60.0   # seconds after which an owner on another machine has ended
ENDING = 300.0   # seconds that a new owner waits for one that saves and exits
SETTLE = 0.5     # seconds after which a note that was written without a lock counts
_POLL = 0.2
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EOPNOTSUPP)


class InUse(UserError):
  """Another process owns the folder."""


class Lease:
  """The lease of a folder; a context manager. ``acquire`` is called on entry."""

  def __init__(self, folder: str | os.PathLike, what: str, *,
               say: Callable[[str], None] = lambda sentence: None,
               is_ending: Callable[[], bool] = lambda: False,
               beat: float = BEAT, silence: float = SILENCE, ending: float = ENDING):
    """
    Args:
      folder: created if needed.
      what: is owned, for sentences: 'workdir demo'.
      say: takes a sentence about a wait.
      is_ending: whether the owner saves and exits; a process that wants the lease waits then.
      beat, silence, ending: seconds, as the constants of this module.
    """
    self.folder = pathlib.Path(folder)
    self._what, self._say, self._is_ending = what, say, is_ending
    self._beat, self._silence, self._ending = beat, silence, ending
    self._token = uuid.uuid4().hex
    self._since = time.time()
    self._lock: Any = None
    self._over = threading.Event()
    self._thread: threading.Thread | None = None
    self._lost = ''  # the sentence, once another process has the lease

  def __enter__(self) -> 'Lease':
    self.acquire()
    return self

  def __exit__(self, *unused) -> None:
    self.release()

  # -- acquiring ----------------------------------------------------------------------------

  def acquire(self) -> None:
    """Take the lease.

    Raises:
      InUse: another process has it, and that process lives.
      UserError: the folder cannot be written.
    """
    try:
      with files.writing(self.folder):
        self._wait()
    finally:
      if self._thread is None and self._lock is not None:  # not taken
        self._lock.close()
        self._lock = None

  def _wait(self) -> None:
    files.require_writable(self.folder)
    self._lock = (self.folder / LOCK).open('a')
    until, told, starting, first = time.monotonic() + self._ending, False, 10, None
    while (found := self._try()) is not None:
      first = first or self._written()
      if found.get('process') is None and starting:  # its note may come in a moment
        starting -= 1
      elif not (found.get('ending') or self._may_be_gone(found, first)) or (
          time.monotonic() > until):
        raise self._in_use(found)
      elif not told:
        told = True
        self._say(f'{self._what} belongs to {owner(found)}, '
                  + ('which is saving and exits; waiting for it.' if found.get('ending') else
                     f'which has ended if it is silent for {self._silence:.0f} s; waiting.'))
      time.sleep(_POLL)
    self._thread = threading.Thread(target=self._keep, name='lease', daemon=True)
    self._thread.start()

  def _try(self) -> dict[str, Any] | None:
    """None once the lease is ours; else the note of the owner, which lives or may live."""
    free = self._flock()
    note = self._read()
    if note.get('token') == self._token:
      return None
    if note and not self._is_gone(note, free):
      return note
    if not note and (free is False or (self.folder / NOTE).exists() and self._age() < self._beat):
      return {'process': None}  # it has not written its note yet
    if self._replace(note):
      if free:
        return None
      time.sleep(SETTLE)
      if self._read().get('token') == self._token:
        return None
    return self._read() or {'process': None}

  def _flock(self) -> bool | None:
    """Whether the lock is ours; None if the file system has no locks."""
    try:
      fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      return True
    except BlockingIOError:
      return False
    except OSError:
      return None

  def _read(self) -> dict[str, Any]:
    return _parsed(self.folder / NOTE)

  def _is_gone(self, note: dict[str, Any], free: bool | None) -> bool:
    """The rules of the module's docstring."""
    owner = Process.from_dict(note.get('process'))
    if owner is not None:
      gone = owner.is_gone()
      if gone is not None:
        return gone
      if owner.is_local and free is not None:
        return free
    job, start = slurm()
    if job and note.get('job') == job and isinstance(note.get('start'), int) and (
        note['start'] < start):
      return True
    return self._age() > self._silence

  def _may_be_gone(self, note: dict[str, Any], first: int) -> bool:
    """Whether to look again: the owner cannot be looked at, and has not written its note since
    the time stamp ``first``."""
    owner = Process.from_dict(note.get('process'))
    return owner is not None and owner.is_gone() is None and self._written() == first

  def _written(self) -> int:
    """Time stamp of the note; 0 without one."""
    try:
      with (self.folder / NOTE).open('rb') as note:  # opening it makes a network disk look again
        return os.fstat(note.fileno()).st_mtime_ns
    except OSError:
      return 0

  def _age(self) -> float:
    """Seconds since the note was written, by the clock of the file system."""
    try:
      os.utime(self.folder / LOCK)
      return (self.folder / LOCK).stat().st_mtime - self._written() / 1e9
    except OSError:
      return 0.0

  def _replace(self, old: dict[str, Any]) -> bool:
    """Put our note in place of the one of an owner that has ended; False if another did."""
    note, mine = self.folder / NOTE, self.folder / f'{NOTE}.{self._token}'
    gone = self.folder / f'{NOTE}.{self._token}.gone'
    try:
      mine.write_text(self._text(), encoding='utf-8')
      if old or note.exists():
        try:
          os.rename(note, gone)
        except FileNotFoundError:
          return False
        moved = _parsed(gone)
        if moved and moved['token'] != old.get('token'):  # another was faster: it gets it back
          with contextlib.suppress(OSError):
            create(note, gone.read_text(encoding='utf-8'), gone)
          return False
      return create(note, self._text(), mine)
    finally:
      for path in (mine, gone):
        path.unlink(missing_ok=True)

  def _text(self) -> str:
    job, start = slurm()
    return json.dumps({'token': self._token, 'process': this().to_dict(), 'since': self._since,
                       'job': job, 'start': start, 'ending': bool(self._is_ending())}) + '\n'

  def _in_use(self, note: dict[str, Any]) -> InUse:
    since = note.get('since')
    when = time.strftime(' since %Y-%m-%d %H:%M:%S', time.localtime(since)) if isinstance(
        since, (int, float)) else ''
    return InUse(f'{self._what} is in use by {owner(note)}{when}; wait for it, stop it, or use '
                 'another folder.')

  # -- keeping ------------------------------------------------------------------------------

  def _keep(self) -> None:
    """In a thread: write the note again and again, and notice when it is another's."""
    written, ending = time.monotonic(), False
    while not self._over.wait(min(self._beat, 0.5)):
      now_ending = bool(self._is_ending())
      if time.monotonic() - written < self._beat and now_ending == ending:
        continue
      written, ending = time.monotonic(), now_ending
      self._renew()

  def _renew(self) -> None:
    """One beat. A disk that is full or away for a moment is no reason to give the lease up."""
    try:
      note = self._read()
      if note and note['token'] != self._token:
        self._lost = (f'{self._what} was taken over by {owner(note)} while this process did not '
                      'run; nothing more is written there.')
      elif note:
        files.write_text(self.folder / NOTE, self._text())
      elif (self.folder / NOTE).exists() or self.folder.is_dir():
        create(self.folder / NOTE, self._text(), None)
    except (OSError, UserError):
      with contextlib.suppress(OSError):
        os.utime(self.folder / NOTE)

  def check(self) -> None:
    """Raise UserError if another process has taken the lease."""
    if self._lost:
      raise UserError(self._lost)

  def stop(self) -> None:
    """Write the note no more, but keep the lease: before the folder is removed."""
    self._over.set()
    if self._thread is not None:
      self._thread.join()
      self._thread = None

  def release(self) -> None:
    """Give the lease back."""
    self.stop()
    if self._lock is None:
      return
    if self._read().get('token') == self._token:
      with contextlib.suppress(OSError):
        (self.folder / NOTE).unlink()
    self._lock.close()  # releases it; the file stays, for others may have it open
    self._lock = None


@contextlib.contextmanager
def beside(folder: str | os.PathLike, what: str) -> Iterator[Lease]:
  """A context in which no other process makes or replaces ``folder``. The lease is beside it, in
  .NAME.lease, which is removed at the end.

  Args:
    folder: whose parent can be written.
    what: as of ``Lease``.

  Raises:
    InUse: another process does.
    UserError: the parent cannot be written.
  """
  folder = pathlib.Path(folder)
  lease = Lease(folder.with_name(f'.{folder.name}.lease'), what, say=_LOG.warning)
  with lease:
    try:
      yield lease
    finally:
      lease.stop()
      shutil.rmtree(lease.folder, ignore_errors=True)


def has_ended(folder: str | os.PathLike, silence: float = SILENCE) -> bool:
  """Whether no process that lives has the lease of a folder, by the rules above.

  Args:
    folder: as of ``Lease``; its lease is left as it is.
    silence: seconds, as the constant of this module.
  """
  lease = Lease(folder, '', silence=silence)
  note = lease._read()
  if not note:
    return True
  try:
    lease._lock = (lease.folder / LOCK).open('a')
  except OSError:  # it is being removed
    return True
  with lease._lock:
    return lease._is_gone(note, lease._flock())


def _parsed(path: pathlib.Path) -> dict[str, Any]:
  """A note; {} if there is none, or none that can be read."""
  try:
    values = json.loads(path.read_text(encoding='utf-8'))
    return values if isinstance(values, dict) and isinstance(values.get('token'), str) else {}
  except (OSError, ValueError, RecursionError):
    return {}


def owner(note: dict[str, Any]) -> str:
  """Who owns the folder of a note, for a sentence."""
  process = Process.from_dict(note.get('process'))
  return 'another process' if process is None else f'process {process.pid} on {process.host}'


def slurm() -> tuple[str, int]:
  """(job, how often SLURM has started it again) of this process; ('', 0) outside of SLURM."""
  start = os.environ.get('SLURM_RESTART_COUNT', '0')
  return os.environ.get('SLURM_JOB_ID', ''), int(start) if start.isdecimal() else 0


def create(path: pathlib.Path, text: str, source: pathlib.Path | None) -> bool:
  """Create a file unless it exists; False if it does.

  Args:
    path: of the file.
    text: its contents.
    source: a file with the same contents, whose link is created: a reader never sees half of it.
  """
  if source is not None:
    try:
      os.link(source, path)
      return True
    except FileExistsError:
      return False
    except OSError as error:
      if error.errno not in _NO_LINKS:
        raise
  try:
    with path.open('x', encoding='utf-8') as file:
      file.write(text)
    return True
  except FileExistsError:
    return False
