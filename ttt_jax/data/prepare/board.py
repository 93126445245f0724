"""What processes that share the jobs of a set tell each other: notes, claims of jobs, leases.

  FolderBoard   on a disk that all see
  bucket_results.BucketBoard   in a bucket
"""

import abc
from collections.abc import Collection
import contextlib
import logging
import pathlib
import secrets
import shutil
from typing import Any

from ttt_jax.storage import files
from ttt_jax.storage.lease import NOTE, Lease, create, has_ended

WORKERS, ASSEMBLY, DONE, FAILED = 'workers', 'assembly', 'done.json', 'failed.json'
_CLAIM = '.claim'
LOG = logging.getLogger(__name__)


class Board(abc.ABC):
  """Notes have names like 'done.json' and 'workers/0-1f/plan.json'. A folder of such names may have
  a lease, whose note this class hides.

  Attributes:
    look: seconds between two looks at it, at least.
  """
  look = 0.5

  @abc.abstractmethod
  def note(self, name: str) -> str:
    """The text of a note; '' if there is none."""

  @abc.abstractmethod
  def write(self, name: str, text: str) -> None:
    """Replaces a note."""

  @abc.abstractmethod
  def create(self, name: str, text: str) -> bool:
    """Writes a note unless there is one; False if there is."""

  @abc.abstractmethod
  def discard(self, name: str) -> None:
    """Deletes a note, or a folder of notes, if it is there."""

  @abc.abstractmethod
  def tidy(self, name: str) -> None:
    """Deletes a folder of notes if it is there and empty."""

  @abc.abstractmethod
  def folders(self, name: str) -> list[str]:
    """Names of the folders in a folder of notes."""

  @abc.abstractmethod
  def claims(self) -> Collection[str]:
    """Names of the jobs that are claimed."""

  @abc.abstractmethod
  def claimant(self, job: str) -> str:
    """Who claims a job; '' = nobody."""

  @abc.abstractmethod
  def claim(self, job: str, who: str, instead_of: str | None) -> bool:
    """Claims a job.

    Args:
      job: its name.
      who: a name that no other process has.
      instead_of: whose claim is replaced; None = there must be none.

    Returns:
      False if another process was faster.
    """

  def release(self, job: str, who: str) -> None:
    """Gives up the claim of a job, if it is still the one of ``who``."""
    if self.claimant(job) == who:
      self._unclaim(job)

  @abc.abstractmethod
  def _unclaim(self, job: str) -> None: ...

  @abc.abstractmethod
  def lease(self, name: str, what: str) -> Any:
    """The lease of a folder of notes, '' = of everything, for ``acquire`` and ``release``; see
    storage/lease.py.

    Args:
      name: of the folder.
      what: what is leased, for sentences.
    """

  @abc.abstractmethod
  def has_begun(self, name: str) -> bool:
    """Whether a lease of the folder was taken at some time."""

  @abc.abstractmethod
  def has_ended(self, name: str) -> bool:
    """Whether no process that lives has the lease of a folder."""


class FolderBoard(Board):
  """Files of a folder; the claim of job X is X.claim."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder

  def note(self, name):
    try:
      return (self._folder / name).read_text(encoding='utf-8')
    except OSError:
      return ''

  def write(self, name, text):
    files.write_text(self._folder / name, text, durable=True)

  def create(self, name, text):
    path = self._folder / name
    whole = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.partial')
    try:
      whole.write_text(text, encoding='utf-8')
      return create(path, text, whole)
    finally:
      whole.unlink(missing_ok=True)

  def discard(self, name):
    delete(self._folder / name)

  def tidy(self, name):
    with contextlib.suppress(OSError):
      (self._folder / name).rmdir()

  def folders(self, name):
    try:
      return sorted(path.name for path in (self._folder / name).iterdir())
    except FileNotFoundError:
      return []

  def claims(self):
    return {path.name.removesuffix(_CLAIM) for path in self._folder.glob(f'*{_CLAIM}')}

  def claimant(self, job):
    return self.note(job + _CLAIM)

  def claim(self, job, who, instead_of):
    if instead_of is not None:
      self._unclaim(job)
    return self.create(job + _CLAIM, who)

  def _unclaim(self, job):
    (self._folder / (job + _CLAIM)).unlink(missing_ok=True)

  def lease(self, name, what):
    return Lease(self._folder / name, what, say=LOG.warning)

  def has_begun(self, name):
    return (self._folder / name / NOTE).exists()

  def has_ended(self, name):
    return has_ended(self._folder / name)


def delete(path: pathlib.Path) -> None:
  """Deletes a file or folder; errors are ignored for folders."""
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)
