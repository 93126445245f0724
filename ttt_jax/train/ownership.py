"""A run's ownership of its workdir: process 0 holds the lease, for all processes of the run."""

from collections.abc import Callable, Iterator
import contextlib
import logging
import os
import pathlib
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from ttt_jax.errors import RetryableError, UserError
from ttt_jax.storage import files, mirror
from ttt_jax.storage.bucket_lease import BucketLease, of_workdir

_LOG = logging.getLogger(__name__)


class Owner:
  """What a run may do to its workdir. Processes other than 0 write nothing and are never refused.

  Attributes:
    say: takes a sentence about copies to a bucket that fail; from another thread.
  """

  def __init__(self, lease: Any = None, copies: mirror.Mirror | None = None):
    self._lease, self._copies = lease, copies
    self.say: Callable[[str], None] = _LOG.warning

  def check(self) -> None:
    """Raise UserError if another run is known to have taken the workdir over."""
    if self._lease is not None:
      self._lease.check()
    if self._copies is not None and self._copies.lost:
      raise UserError(self._copies.lost)

  def confirm(self) -> None:
    """``check`` before a checkpoint becomes complete; in a bucket, after asking the store."""
    self.check()
    if isinstance(self._lease, BucketLease):
      self._lease.confirm()


@contextlib.contextmanager
def owned(workdir: str | os.PathLike, is_ending: Callable[[], bool] = lambda: False
          ) -> Iterator[Owner]:
  """A context in which no other run writes to ``workdir``; see storage.lease.

  All processes of a run enter it together. In a bucket, process 0 downloads the small files of the
  workdir once it owns it, and copies what changes back (storage/mirror.py).

  Args:
    workdir: created if needed.
    is_ending: whether this run saves and exits: the next one waits then, and is not refused.

  Raises:
    UserError: another run, which lives, has it, or it cannot be written.
    RetryableError: the bucket is out of reach.
  """
  with contextlib.ExitStack() as stack:
    owner, problem = Owner(), None
    if jax.process_index() == 0:
      try:
        owner = _take(workdir, is_ending, stack)
      except (UserError, RetryableError) as error:
        problem = error
    refused = problem is not None
    if jax.process_count() > 1:
      refused = bool(multihost_utils.broadcast_one_to_all(np.int32(refused)))
    if refused:
      raise problem or UserError(f'process 0 of this run could not take workdir '
                                 f'{mirror.named(workdir)}; see its log.')
    yield owner


def _take(workdir: str | os.PathLike, is_ending: Callable[[], bool],
          stack: contextlib.ExitStack) -> Owner:
  lease = stack.enter_context(of_workdir(workdir, say=_LOG.warning, is_ending=is_ending))
  files.remove_partials(workdir)
  files.remove_partials(pathlib.Path(workdir) / 'checkpoints')
  if mirror.url_of(workdir) is None:
    return Owner(lease)
  copies = mirror.Mirror(workdir, is_run=True, say=lambda text: owner.say(text))
  copies.download(keep_changes=False)
  owner = Owner(lease, stack.enter_context(copies))
  return owner
