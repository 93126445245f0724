"""The checkpoints of a run in a bucket; train/checkpoint_folders.py has those on a disk.

  40/...               a checkpoint, complete once it has seal.json
  40/DAMAGED           set aside: not read; replaced when the run saves this step again
  40/DELETING          half removed: its seal goes first
  .saving.json         names the step that is being saved
  .reading-40-*.json   a process reads checkpoint 40

Nothing can be renamed there, so marks are objects. One listing shows everything.
"""

from collections.abc import Callable, Iterator
import contextlib
import json
import re
import time
import uuid

from ttt_jax.errors import RetryableError, UserError
from ttt_jax.storage import remote
from ttt_jax.storage.process import Process, this
from ttt_jax.train.checkpoint_folders import step_of
from ttt_jax.train.checksums import SEAL

DAMAGED, DELETING = 'DAMAGED', 'DELETING'
_PIN = re.compile(r'\.reading-([0-9]+)-[0-9a-f]{32}\.json')
_SAVING = '.saving.json'
_PIN_SECONDS = 3600.0
_FAILED = (UserError, RetryableError)  # of remote.py


class BucketFolders:
  """The methods of checkpoint_folders.Folders, for a URL."""

  def __init__(self, directory: str, log: Callable[[str], None]):
    self.directory, self._log = directory, log
    self._told: set[str] = set()
    self._pins: dict[int, str] = {}

  def path(self, step: int) -> str:
    """The URL of a step."""
    return remote.join(self.directory, str(step))

  def steps(self) -> list[int]:
    """The steps that have objects and are neither set aside nor half removed, ascending."""
    return self._steps(lambda names: not {DAMAGED, DELETING} & names)

  def complete(self) -> list[int]:
    """The steps that have a seal, ascending."""
    return self._steps(lambda names: not {DAMAGED, DELETING} & names and SEAL in names)

  def _steps(self, wanted: Callable[[set[str]], bool]) -> list[int]:
    found: dict[int, set[str]] = {}
    for name in remote.files(self.directory):
      first, _, rest = name.partition('/')
      step = step_of(first)
      if step is not None and rest:
        found.setdefault(step, set()).add(rest)
    return sorted(step for step, names in found.items() if wanted(names))

  def exists(self, step: int) -> bool:
    """Whether a step has objects."""
    return remote.is_folder(self.path(step))

  def saved_at(self, step: int) -> float | None:
    """When a step became complete, seconds since the epoch; None if it is not."""
    entry = remote.stat(remote.join(self.path(step), SEAL))
    return entry.time if entry else None

  def damaged(self) -> bool:
    """Whether a checkpoint was set aside because it is corrupt."""
    return any(remote.read_bytes(remote.join(self.path(step), DAMAGED)).startswith(b'damaged')
               for step in self._steps(lambda names: DAMAGED in names))

  # -- removing and setting aside ---------------------------------------------------------

  def create(self) -> None:
    """A bucket has no folders."""

  def remove_leftovers(self) -> None:
    """Go on with removals that were interrupted."""
    for step in self._steps(lambda names: DELETING in names):
      self.remove(step)

  def remove_unfinished(self, step: int) -> bool:
    """Nothing: a save has failed, and so would this. The next start removes it."""
    return False

  def remove(self, step: int) -> None:
    """Remove a checkpoint: the seal first, so that no half of it counts."""
    url = self.path(step)
    try:
      mark = remote.join(url, DELETING)
      remote.write_bytes(mark, b'\n')
      remote.remove_folder(url, first=[SEAL], last=[DELETING])
    except _FAILED as error:
      self._warn(f'checkpoint {step}', error)

  def _warn(self, what: str, error: Exception) -> None:
    if what not in self._told:
      self._told.add(what)
      self._log(f'{what} could not be removed ({str(error).rstrip(".")}); it is tried again later.')

  def set_aside(self, step: int, why: str) -> None:
    """Mark a step: it is not read any more."""
    try:
      remote.write_bytes(remote.join(self.path(step), DAMAGED), f'{why}\n'.encode())
    except _FAILED as error:
      self._log(f'checkpoint {step} could not be marked as {why} ({str(error).rstrip(".")}).')

  # -- which unfinished folder is ours ----------------------------------------------------

  def begin(self, step: int) -> None:
    """Note that ``step`` is being saved; what else is at its place is removed."""
    if self.exists(step):
      self.remove(step)
    remote.write_bytes(remote.join(self.directory, _SAVING),
                       json.dumps({'step': step}).encode() + b'\n')

  def done(self) -> None:
    """Note that nothing is being saved."""
    with contextlib.suppress(*_FAILED):
      remote.remove(remote.join(self.directory, _SAVING))

  def saving(self) -> int | None:
    """The step whose save a process began and did not finish."""
    url = remote.join(self.directory, _SAVING)
    if not remote.exists(url):
      return None
    try:
      step = json.loads(remote.read_bytes(url))['step']
      return step if type(step) is int else None
    except (UserError, ValueError, KeyError, TypeError):
      return None

  # -- readers ------------------------------------------------------------------------------

  def pin(self, step: int) -> None:
    """Ask the run to keep a checkpoint while this process reads it."""
    url = remote.join(self.directory, f'.reading-{step}-{uuid.uuid4().hex}.json')
    with contextlib.suppress(*_FAILED):  # whoever may not write must cope with a removal
      remote.write_bytes(url, json.dumps(this().to_dict()).encode())
      self._pins[step] = url

  def unpin(self) -> None:
    """Take back all pins of this object."""
    for url in self._pins.values():
      with contextlib.suppress(*_FAILED):
        remote.remove(url)
    self._pins.clear()

  def pinned(self) -> set[int]:
    """The steps that some process reads; pins of processes that have ended are removed."""
    return set(self._pinned())

  def _pinned(self) -> Iterator[int]:
    for name, entry in remote.files(self.directory).items():
      match = _PIN.fullmatch(name)
      if match is None:
        continue
      url = remote.join(self.directory, name)
      try:
        reader = Process.from_dict(json.loads(remote.read_bytes(url)))
        gone = reader.is_gone() if reader else None
      except (*_FAILED, ValueError):
        gone = None
      if gone or gone is None and time.time() - entry.time > _PIN_SECONDS:
        remote.remove(url)
      else:
        yield int(match.group(1))
