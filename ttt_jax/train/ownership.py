"""A run's ownership of its workdir: process 0 holds the lease, for all processes of the run."""

from collections.abc import Callable, Iterator
import contextlib
import logging
import os
import pathlib

import jax
from jax.experimental import multihost_utils
import numpy as np

from ttt_jax.errors import UserError
from ttt_jax.storage import files
from ttt_jax.storage.lease import Lease

_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def owned(workdir: str | os.PathLike, is_ending: Callable[[], bool] = lambda: False
          ) -> Iterator[Callable[[], None]]:
  """A context in which no other run writes to ``workdir``; see storage.lease.

  All processes of a run enter it together.

  Args:
    workdir: created if needed.
    is_ending: whether this run saves and exits: the next one waits then, and is not refused.

  Yields:
    A function that raises UserError if another run has taken the workdir over.

  Raises:
    UserError: another run, which lives, has it, or it cannot be written.
  """
  lease, problem = Lease(workdir, f'workdir {workdir}', say=_LOG.warning, is_ending=is_ending), None
  if jax.process_index() == 0:
    try:
      lease.acquire()
      files.remove_partials(workdir)
      files.remove_partials(pathlib.Path(workdir) / 'checkpoints')
    except UserError as error:
      problem = error
  refused = problem is not None
  if jax.process_count() > 1:
    refused = bool(multihost_utils.broadcast_one_to_all(np.int32(refused)))
  if refused:
    raise problem or UserError(f'process 0 of this run could not take workdir {workdir}; see its '
                               'log.')
  try:
    yield lease.check
  finally:
    lease.release()
