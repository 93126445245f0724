"""Paths of files that are read: on a disk, or in a bucket (gs://, s3://).

``place`` gives a pathlib.Path for a path, and for a URL an object with the methods of pathlib.Path
that reading needs. What writes, renames or removes is missing there on purpose: storage/remote.py
has the operations of buckets.
"""

import errno
import fnmatch
import hashlib
import os
import pathlib
import posixpath
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, cast

from ttt_jax.storage import remote

_URL = re.compile(r'(gs|s3)://')
_MAGIC = re.compile(r'[*?\[]')


class Status(NamedTuple):
  """What pathlib's stat says, of an object; ``version`` identifies its contents."""
  st_size: int
  st_mtime: float
  version: str

  @property
  def st_mtime_ns(self) -> int:
    return int(self.st_mtime * 1e9)


class UrlPath:
  """The name of an object, or of the folder that its name implies; '..' is resolved."""
  __slots__ = ('_scheme', '_pure', '_entry', '_folder')

  def __init__(self, url: str, entry: Any = None, folder: bool = False):
    """
    Args:
      url: such as gs://bucket/folder/name.
      entry: of the object (see remote.Entry), if a listing has just given it.
      folder: whether a listing has just shown it as a folder.
    """
    self._scheme, _, rest = str(url).partition('://')
    self._pure = pathlib.PurePosixPath(posixpath.normpath(f'/{rest.lstrip("/")}'))
    self._entry, self._folder = entry, folder

  # -- names ----------------------------------------------------------------------------

  def __str__(self) -> str:
    return f'{self._scheme}:/{self._pure}'

  def __repr__(self) -> str:
    return f'UrlPath({str(self)!r})'

  def __eq__(self, other: object) -> bool:
    return isinstance(other, UrlPath) and str(self) == str(other)

  def __lt__(self, other: object) -> bool:
    return str(self) < str(other)

  def __hash__(self) -> int:
    return hash(str(self))

  def __truediv__(self, name: str | os.PathLike) -> Any:
    return join(self, name)

  name = property(lambda self: self._pure.name)
  stem = property(lambda self: self._pure.stem)
  suffix = property(lambda self: self._pure.suffix)
  suffixes = property(lambda self: self._pure.suffixes)

  @property
  def parent(self) -> 'UrlPath':
    return UrlPath(f'{self._scheme}:/{self._pure.parent}')

  def with_name(self, name: str) -> 'UrlPath':
    return UrlPath(f'{self._scheme}:/{self._pure.with_name(name)}')

  def relative_to(self, other: Any) -> pathlib.PurePosixPath:
    """As pathlib's; ``other`` is a UrlPath."""
    if not self.is_relative_to(other):
      raise ValueError(f'{self} is not in {other}')
    return self._pure.relative_to(other._pure)

  def is_relative_to(self, other: Any) -> bool:
    return (isinstance(other, UrlPath) and other._scheme == self._scheme
            and self._pure.is_relative_to(other._pure))

  def as_posix(self) -> str:
    return str(self)

  def is_absolute(self) -> bool:
    return True

  def absolute(self) -> 'UrlPath':
    return self

  resolve = absolute

  def samefile(self, other: Any) -> bool:
    return self == other

  def is_symlink(self) -> bool:
    return False

  # -- what is there --------------------------------------------------------------------

  def _found(self) -> Any:
    return self._entry if self._entry or self._folder else remote.stat(str(self))

  def is_file(self) -> bool:
    return self._found() is not None

  def is_dir(self) -> bool:
    return self._folder or self._entry is None and remote.is_folder(str(self))

  def exists(self) -> bool:
    return self.is_file() or self.is_dir()

  def stat(self) -> Status:
    """Raises FileNotFoundError unless it is an object or a folder."""
    entry = self._found()
    if entry is None:
      if self.is_dir():
        return Status(0, 0.0, '')
      raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
    return Status(entry.size, entry.time, entry.checksum)

  def iterdir(self) -> 'Iterator[UrlPath]':
    for name, entry in remote.children(str(self)).items():
      yield UrlPath(f'{self}/{name}', entry, entry is None)

  def glob(self, pattern: str) -> 'Iterator[UrlPath]':
    """What matches a pattern of *, ?, [...] and **, as pathlib matches; in no order."""
    head, *rest = pattern.split('/')
    if head == '**':
      match = re.compile(_recursive(pattern)).fullmatch
      for name, entry in remote.files(str(self)).items():
        if match(name):
          yield UrlPath(f'{self}/{name}', entry)
      return
    if not _MAGIC.search(head):
      inner = self / head
      if rest:
        yield from inner.glob('/'.join(rest))
      elif inner.exists():
        yield inner
      return
    for inner in self.iterdir():
      if fnmatch.fnmatchcase(inner.name, head):
        if not rest:
          yield inner
        elif inner.is_dir():
          yield from inner.glob('/'.join(rest))

  # -- contents -------------------------------------------------------------------------

  def open(self, mode: str = 'rb', **unused: Any) -> BinaryIO:
    """A buffered reader, which fetches ranges.

    Raises:
      FileNotFoundError: there is no such object.
      UserError, RetryableError: it cannot be read; see remote.py.
    """
    assert mode == 'rb', mode
    entry = self._found()
    if entry is None:
      raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
    return remote.open_reader(str(self), entry=entry)

  def read_bytes(self) -> bytes:
    return remote.read_bytes(str(self))

  def read_text(self, encoding: str = 'utf-8', errors: str = 'strict') -> str:
    return self.read_bytes().decode(encoding, errors)


_TOKEN = re.compile(r'\*\*/|\*\*|\*|\?|\[[!^]?\]?[^\]]*\]|.', re.DOTALL)


def _recursive(pattern: str) -> str:
  """The regular expression of a pattern; ** stands for any number of folders."""
  known = {'**/': '(?:[^/]+/)*', '**': '.*', '*': '[^/]*', '?': '[^/]'}
  def one(token: str) -> str:
    if token[0] == '[' and len(token) > 2:
      inner = token[1:-1].replace('\\', '\\\\')
      return f'[^/{inner[1:]}]' if inner[0] in '!^' else f'[{inner}]'
    return known.get(token) or re.escape(token)
  return ''.join(one(found[0]) for found in _TOKEN.finditer(pattern))


# -- functions of both kinds of paths ------------------------------------------------------------


def place(path: Any) -> pathlib.Path:
  """A pathlib.Path, or a UrlPath for a URL.

  The type is that of the methods that both have, so that one function reads from disks and buckets.
  """
  if isinstance(path, UrlPath):
    return cast(pathlib.Path, path)
  if isinstance(path, str) and _URL.match(path):
    return cast(pathlib.Path, UrlPath(path))
  return pathlib.Path(path)


def is_url(path: Any) -> bool:
  """Whether ``path`` is a URL of a bucket, as a string or as a UrlPath."""
  return isinstance(path, UrlPath) or isinstance(path, str) and bool(_URL.match(path))


def pinned(path: pathlib.Path) -> pathlib.Path:
  """The path; of an object, with the version that is there now, of which all ranges are read where
  the store can refuse others."""
  return place(UrlPath(str(path), remote.stat(str(path)))) if is_url(path) else path


def join(folder: Any, *names: Any) -> pathlib.Path:
  """``folder / name / ...``, where a name may be absolute or a URL."""
  out = place(folder)
  for name in names:
    if is_url(name) or os.path.isabs(name):
      out = place(name)
    elif isinstance(out, UrlPath):
      out = place(f'{out}/{os.fspath(name)}')
    else:
      out = out / name
  return out


def is_same(one: pathlib.Path, other: pathlib.Path) -> bool:
  """Whether two paths name the same file, which exists."""
  return is_url(one) == is_url(other) and one.samefile(other)


def is_within(path: pathlib.Path, folder: pathlib.Path) -> bool:
  """Whether a resolved path is in a resolved folder."""
  return is_url(path) == is_url(folder) and path.is_relative_to(folder)


def stamp(path: Any) -> tuple[int, int]:
  """(bytes, mtime in ns) of a file, or (bytes, hash of the checksum) of an object: what
  identifies a version of its contents; (0, 0) if there is none."""
  try:
    found = place(path).stat()
  except (OSError, ValueError):  # ValueError: a name with a NUL
    return 0, 0
  return found.st_size, version_of(found)


def version_of(status: Any) -> int:
  """The second number of ``stamp``."""
  if isinstance(status, Status):
    return int.from_bytes(hashlib.sha256(status.version.encode()).digest()[:7], 'big')
  return status.st_mtime_ns
