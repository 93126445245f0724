"""Local copies of objects of a bucket, shared by the processes and runs of a machine.

They are in $TTT_JAX_CACHE/objects (default ~/.cache/ttt_jax/objects), named by what identifies
their contents. A copy is compared with its SHA-256, where the caller knows it, once in every
process that uses it, so that a damaged one is fetched again; without one the bucket's checksum is
part of the name and the size is compared. One process of a machine fetches an object, and the
others wait.

The copies may take $TTT_JAX_CACHE_GB, by default nine tenths of the disk. Beyond that those are
removed that were not used for longest, but for those of the last hour.
"""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
import time
from collections.abc import Iterator

from ttt_jax.errors import UserError
from ttt_jax.storage import files, remote

_FOLDER, _GB = 'TTT_JAX_CACHE', 'TTT_JAX_CACHE_GB'
_SHARE = 0.9      # of the disk
_RECENT = 3600.0  # seconds
# Copies that were compared -> _identity.
_known: dict[pathlib.Path, tuple[int, int, int] | None] = {}


def folder() -> pathlib.Path:
  """Where the copies are."""
  return remote.cache_folder() / 'objects'


def path_of(url: str, size: int, sha256: str = '', version: str = '') -> pathlib.Path:
  """Where the copy of an object is or will be; arguments as for ``fetch``."""
  name = sha256 or hashlib.sha256(f'{url}\n{size}\n{version}'.encode()).hexdigest()
  return folder() / name[:2] / f'{name}{pathlib.PurePosixPath(url).suffix}'


def has(url: str, size: int, sha256: str = '', version: str = '') -> bool:
  """Whether there is a copy of the right size; its contents are not compared."""
  try:
    return path_of(url, size, sha256, version).stat().st_size == size
  except OSError:
    return False


def fetch(url: str, size: int, sha256: str = '', version: str = '') -> pathlib.Path:
  """The local copy of an object, fetched if there is none.

  Args:
    url: of the object.
    size: in bytes.
    sha256: of its contents, from a file that lists it; '' = not known.
    version: the bucket's checksum or generation, where the SHA-256 is not known.

  Raises:
    UserError: there is no such object, it may not be read, it has other contents, or the disk has
      no room for it.
    RetryableError: the server cannot be reached.
  """
  path = path_of(url, size, sha256, version)
  if _known.get(path) == _identity(path) is not None:
    return path
  with files.writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(f'{path.name}.lock')):
      if _identity(path) is None or not _is_right(path, size, sha256):
        _fetch(url, path, size, sha256)
      found = path.stat()
      os.utime(path, ns=(time.time_ns(), found.st_mtime_ns))
      _known[path] = _identity(path)
  return path


def _fetch(url: str, path: pathlib.Path, size: int, sha256: str) -> None:
  with contextlib.suppress(OSError):
    path.unlink()  # a damaged one
  make_room(size, url)
  for attempt in range(2):  # an object may be replaced while it is read
    remote.download(url, path)
    if _is_right(path, size, sha256):
      return
    found = f'{path.stat().st_size:,} bytes' if path.stat().st_size != size else (
        f'the SHA-256 {files.sha256(path)[:16]}...')
    path.unlink()
  expected = f'{size:,} bytes' if 'bytes' in found else f'{sha256[:16]}...'
  raise UserError(f'{url} has {found}, but the manifest beside it says {expected}; upload the '
                  'folder again, or run `ttt-jax prepare` again.')


def _is_right(path: pathlib.Path, size: int, sha256: str) -> bool:
  return path.stat().st_size == size and (not sha256 or files.sha256(path) == sha256)


def _identity(path: pathlib.Path) -> tuple[int, int, int] | None:
  """What changes if a file is replaced or written; None if there is none."""
  try:
    found = path.stat()
  except OSError:
    return None
  return found.st_ino, found.st_size, found.st_mtime_ns


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
  """A context in which one thread of one process of this machine fetches an object."""
  with path.open('ab') as file:
    with contextlib.suppress(OSError):  # a file system without locks: at worst both fetch it
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


# -- room ---------------------------------------------------------------------------------


def room() -> int:
  """Bytes that copies which are not there yet may take, if nothing else is removed than what was
  not used in the last hour."""
  return _limit() - sum(size for size, used, _ in _copies() if used > time.time() - _RECENT)


def _limit() -> int:
  """Bytes that all copies may take."""
  given = os.environ.get(_GB)
  if given:
    try:
      return int(float(given) * 1e9)
    except ValueError:
      raise UserError(f'the environment variable {_GB} is {given!r}; it must be a number of '
                      'gigabytes.') from None
  folder().mkdir(parents=True, exist_ok=True)
  disk = shutil.disk_usage(folder())
  return int(disk.free - (1 - _SHARE) * disk.total) + sum(size for size, *_ in _copies())


def _copies() -> list[tuple[int, float, pathlib.Path]]:
  """(bytes, time of the last use, path) of every copy."""
  out = []
  for path in folder().glob('??/*'):
    with contextlib.suppress(OSError):
      found = path.stat()
      if not path.name.endswith('.lock'):
        out.append((found.st_size, found.st_atime, path))
  return out


def make_room(size: int, url: str) -> None:
  """Remove what was not used for longest until ``size`` more bytes, of ``url``, have room.

  Raises:
    UserError: there is not enough that may be removed.
  """
  copies, limit = _copies(), _limit()
  excess = sum(one for one, *_ in copies) + size - limit
  for one, used, path in sorted(copies, key=lambda copy: copy[1]):
    if excess <= 0:
      return
    if used < time.time() - _RECENT:
      with contextlib.suppress(OSError):
        path.unlink()
        path.with_name(f'{path.name}.lock').unlink()
        excess -= one
  if excess > 0:
    raise UserError(f'{url} has {size:,} bytes, but its local copy would take {excess:,} bytes '
                    f'more than there is room for in {folder()}; set {_FOLDER} to a folder on a '
                    f'larger disk, or {_GB} to more gigabytes.')
