"""--workdir gs://BUCKET/NAME, s3://BUCKET/NAME: commands work on a local copy of its small files.

See storage/mirror.py. Checkpoints and prepared data are read and written in the bucket itself.
"""

import argparse
from collections.abc import Iterator
import contextlib
import functools
import os

from ttt_jax.cli import workdirs
from ttt_jax.config import paths
from ttt_jax.errors import UserError
from ttt_jax.storage import buckets, mirror, remote

# `train` and `import-hf` copy their files as the owner of the workdir; `status` writes nothing, and
# `profile` writes to the bucket itself.
_NO_COPIES = ('train', 'import-hf', 'status', 'profile')


def local(workdir: str, flag: str) -> str:
  """The local folder of --workdir: that of a URL, or the path itself.

  Raises:
    UserError: it is neither a path nor a URL of a folder in a bucket, or the package for it is
      missing.
  """
  found = paths.local(workdir, flag, bucket=True)
  if remote.is_url(found) and remote.parent(found) == found:
    raise UserError(f'{flag} is {found}, a whole bucket; name a folder in it, such as '
                    f'{found}/demo.')
  return str(mirror.folder_of(found)) if remote.is_url(found) else found


@contextlib.contextmanager
def opened(args: argparse.Namespace) -> Iterator[None]:
  """A context in which the local folders of workdirs in buckets are as the bucket, and what the
  command changes there is copied to it.

  Raises:
    UserError: the command cannot use a workdir (cli/workdirs.py).
    UserError, RetryableError: a bucket cannot be read or written.
  """
  with contextlib.ExitStack() as stack:
    for workdir in _workdirs(args):
      if mirror.url_of(workdir) is None:
        workdirs.check(args, workdir, workdirs.names_in(workdir))
        continue
      copies = mirror.Mirror(workdir)
      copies.download(check=functools.partial(workdirs.check, args, workdir))
      if args.verb not in _NO_COPIES:
        stack.enter_context(copies)
    yield


def _workdirs(args: argparse.Namespace | None) -> list[str]:
  found = getattr(args, 'workdirs', None) or [getattr(args, 'workdir', None)]
  return [one for one in dict.fromkeys(found) if one]


def _in_buckets(args: argparse.Namespace | None) -> list[str]:
  return [one for one in _workdirs(args) if mirror.url_of(one)]


def explain(error: Exception, args: argparse.Namespace | None) -> BaseException | None:
  """The sentence for an exception of a library that reads or writes a bucket; None for others."""
  for workdir in _in_buckets(args):
    known = buckets.explained(error, f'workdir {mirror.named(os.fspath(workdir))}',
                              'read or written')
    return known if known is not error else None
  return None
