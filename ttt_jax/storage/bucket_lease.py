"""Leases of workdirs in buckets: one process at a time owns one; see storage/lease.py.

  URL/.owner.json   who owns it, written again every ``BEAT`` seconds

A bucket has no locks. The note is created exclusively, and every later write names the version
that it replaces, so of two processes one succeeds. An owner has ended if its note says so, if it
was a process of this machine that is gone, if it was an earlier start of the same SLURM job, or if
its note is older than ``SILENCE`` by the clock of the store.
"""

from collections.abc import Callable, Iterator
import contextlib
import json
import os
import threading
import time
from typing import Any
import uuid

from ttt_jax.errors import RetryableError, UserError
from ttt_jax.storage import lease, mirror, outages, remote
from ttt_jax.storage.process import Process, this
from ttt_jax.storage.remote import Entry

NOTE = '.owner.json'
CLOCK = '.owner.clock'  # written to learn the store's time
BEAT = 10.0
SILENCE = 60.0
_POLL = 1.0


class BucketLease:
  """The lease of a workdir at a URL; the methods of lease.Lease."""

  def __init__(self, url: str, what: str = '', *,
               say: Callable[[str], None] = lambda sentence: None,
               is_ending: Callable[[], bool] = lambda: False, beat: float | None = None,
               silence: float | None = None, ending: float = lease.ENDING):
    """
    Args:
      url: of the workdir, or of another folder.
      what: is owned, for sentences; '' = the workdir.
      say, is_ending: as in lease.Lease.
      beat, silence: seconds, as the constants of this module.
      ending: seconds that a new owner waits for one that saves and exits.
    """
    self.url, self._note_url = url, remote.join(url, NOTE)
    self._what, self._say, self._is_ending = what or f'workdir {url}', say, is_ending
    self._beat, self._silence = beat or BEAT, silence or SILENCE
    self._ending = ending
    self._token, self._since = uuid.uuid4().hex, time.time()
    self._entry: Entry | None = None  # of our note
    self._lost = ''
    self._over = threading.Event()
    self._writing = threading.Lock()
    self._thread: threading.Thread | None = None

  def __enter__(self) -> 'BucketLease':
    self.acquire()
    return self

  def __exit__(self, *unused) -> None:
    self.release()

  # -- acquiring ------------------------------------------------------------------------

  def acquire(self) -> None:
    """Take the lease.

    Raises:
      lease.InUse: another process has it, and that process lives.
      UserError, RetryableError: the bucket cannot be written.
    """
    until, told, first = time.monotonic() + self._ending, False, None
    while not self._try():
      entry, note = self._read()
      if entry is None or not note.get('token'):
        continue
      first = first or entry
      may_be_gone = _process(note) is None and entry == first
      if not (note.get('ending') or may_be_gone) or time.monotonic() > until:
        raise self._in_use(note)
      if not told:
        told = True
        self._say(f'{self._what} belongs to {lease.owner(note)}, '
                  + ('which is saving and exits; waiting for it.' if note.get('ending') else
                     f'which has ended if it is silent for {self._silence:.0f} s; waiting.'))
      time.sleep(min(_POLL, self._silence / 4))
    self._thread = threading.Thread(target=self._keep, name='lease', daemon=True)
    self._thread.start()

  def _try(self) -> bool:
    entry, note = self._read()
    if entry is not None and note.get('token') and not self._is_gone(entry, note):
      return False
    self._entry = remote.write_version(self._note_url, self._text(), entry)
    return self._entry is not None

  def _read(self) -> tuple[Entry | None, dict[str, Any]]:
    entry = remote.stat(self._note_url)
    if entry is None:
      return None, {}
    try:
      values = json.loads(remote.read_bytes(self._note_url))
    except (ValueError, UserError):  # not ours, or removed meanwhile
      values = {}
    return entry, values if isinstance(values, dict) else {}

  def _is_gone(self, entry: Entry, note: dict[str, Any]) -> bool:
    gone = _process(note)
    if gone is not None:
      return gone
    job, start = lease.slurm()
    if job and note.get('job') == job and isinstance(note.get('start'), int) and (
        note['start'] < start):
      return True
    clock = remote.join(self.url, CLOCK)
    remote.write_bytes(clock, b'\n')
    now = remote.stat(clock)
    return now is not None and now.time - entry.time > self._silence

  def _text(self) -> bytes:
    job, start = lease.slurm()
    return (json.dumps({
        'token': self._token, 'process': this().to_dict(), 'since': self._since, 'job': job,
        'start': start, 'ending': bool(self._is_ending()), 'beat': time.time()}) + '\n').encode()

  def _in_use(self, note: dict[str, Any]) -> lease.InUse:
    since = note.get('since')
    when = time.strftime(' since %Y-%m-%d %H:%M:%S', time.localtime(since)) if isinstance(
        since, (int, float)) else ''
    return lease.InUse(f'{self._what} is in use by {lease.owner(note)}{when}; wait for it, stop '
                       'it, or use another folder.')

  # -- keeping --------------------------------------------------------------------------

  def _keep(self) -> None:
    written, ending = time.monotonic(), False
    while not self._over.wait(min(self._beat, 0.5)):
      now_ending = bool(self._is_ending())
      if time.monotonic() - written < self._beat and now_ending == ending:
        continue
      written, ending = time.monotonic(), now_ending
      with contextlib.suppress(UserError, RetryableError), outages.tried_once():
        self._renew(self._text())  # the store may be out of reach for a while

  def _renew(self, text: bytes) -> None:
    with self._writing:
      if self._lost:
        return
      written = remote.write_version(self._note_url, text, self._entry)
      if written is not None:
        self._entry = written
        return
      entry, note = self._read()
      if entry is None or note.get('token') == self._token:  # removed by a person
        self._entry = entry
        return
      self._lost = (f'{self._what} was taken over by {lease.owner(note)} while this process did '
                    'not run; nothing more is written there.')

  def check(self) -> None:
    """Raise UserError if another process is known to have taken the lease."""
    if self._lost:
      raise UserError(self._lost)

  def confirm(self) -> None:
    """``check`` after a write of the note: before something that nobody else may write.

    Raises:
      UserError: another process has taken the lease.
      RetryableError: the store is out of reach.
    """
    self._renew(self._text())
    self.check()

  def release(self, remove: bool = False) -> None:
    """Give the lease back. The note stays, and says so: a conditional removal does not exist.

    Args:
      remove: delete the note instead. While it is there nobody else writes it, unless this process
        was suspended for longer than ``SILENCE``.
    """
    self._over.set()
    if self._thread is None:
      return
    outage = outages.of(self.url)
    while self._thread.is_alive() and not outage.is_silent():
      self._thread.join(0.5)
    self._thread = None
    if outage.is_silent():  # the thread may wait for it and hold the lock
      return
    with contextlib.suppress(UserError, RetryableError):
      if remove and not self._lost:
        remote.remove(self._note_url)
        return
      self._renew(json.dumps({'token': '', 'ended': time.time()}).encode() + b'\n')


def has_ended(url: str) -> bool:
  """Whether no process that lives has the lease of a folder, by the rules of the module."""
  looked = BucketLease(url)
  entry, note = looked._read()
  return entry is None or not note.get('token') or looked._is_gone(entry, note)


def _process(note: dict[str, Any]) -> bool | None:
  """Whether the process of a note has ended; None if it cannot be seen from here."""
  process = Process.from_dict(note.get('process'))
  return process.is_gone() if process is not None else None


@contextlib.contextmanager
def of_workdir(workdir: str | os.PathLike, *, say: Callable[[str], None] = lambda sentence: None,
               is_ending: Callable[[], bool] = lambda: False
               ) -> Iterator[lease.Lease | BucketLease]:
  """The lease of a workdir: of the local folder and, if that is a copy, of the one in the bucket.

  Raises:
    lease.InUse: another process has it.
    UserError, RetryableError: it cannot be written.
  """
  url = mirror.url_of(workdir)
  local = lease.Lease(workdir, f'workdir {mirror.named(workdir)}', say=say, is_ending=is_ending)
  with local:
    if url is None:
      yield local
      return
    with BucketLease(url, say=say, is_ending=is_ending) as other:
      yield other
