"""Objects in buckets: gs://BUCKET/NAME by gcsfs, s3://BUCKET/NAME by s3fs.

A bucket has neither folders nor renames nor appending. An object appears whole when its last byte
has arrived, and a listing tells size and checksum. ``create`` and ``write_bytes_if`` are the only
operations on which two writers can agree.

Every call retries what may pass (5xx, 429, timeouts, broken connections) for a minute (outages.py)
and then raises RetryableError. A refused permission or a missing bucket is a UserError at once.
Credentials come from the usual places of the two libraries and are in no message. Listings are
never cached, since other machines write, too.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import contextvars
import io
import os
import pathlib
import re
import threading
from typing import Any, BinaryIO, TypeVar, cast
import unicodedata

from ttt_jax.errors import UserError
from ttt_jax.storage import buckets, files as local_files, outages
from ttt_jax.storage.buckets import Bucket, Denied, Entry, Exists, Missing, connect

_BLOCK = 4 * 2**20           # bytes of a ranged read
_AT_ONCE = 16                # requests
_URL = re.compile(r'([A-Za-z][A-Za-z0-9+.-]*)://(.*)', re.S)
_BUCKET = re.compile(r'[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]')
_SCHEMES = ('gs', 's3')
T = TypeVar('T')

__all__ = ['Entry', 'cache_folder', 'check', 'children', 'copy', 'create', 'download',
           'download_folder', 'each', 'exists', 'files', 'find_bytes', 'is_copy', 'is_folder',
           'is_url', 'join', 'name', 'open_reader', 'parent', 'read_bytes', 'read_range', 'remove',
           'remove_folder', 'shown', 'stat', 'upload', 'upload_folder', 'write_bytes',
           'write_bytes_if', 'write_version']


# -- names --------------------------------------------------------------------------------------


def is_url(path: str | os.PathLike) -> bool:
  """Whether ``path`` is a URL of any scheme, and no local path."""
  return isinstance(path, str) and _URL.fullmatch(path) is not None


def join(url: str, *names: str) -> str:
  """The URL of an object or folder below ``url``."""
  return '/'.join([url.rstrip('/'), *(name.strip('/') for name in names if name.strip('/'))])


def name(url: str) -> str:
  """The last component: 'c' of gs://a/b/c."""
  return url.rstrip('/').rpartition('/')[2]


def parent(url: str) -> str:
  """The folder of an object: gs://a/b of gs://a/b/c; a bucket is its own parent."""
  above = url.rstrip('/').rpartition('/')[0]
  return url.rstrip('/') if above.endswith('/') else above


def check(url: str, what: str = '', connected: bool = True) -> str:
  """A URL of the user, without '/' at its end.

  Args:
    url: what the user wrote.
    what: where, for the sentence, such as '--workdir'.
    connected: whether to try the package and the credentials, too, which takes a while.

  Raises:
    UserError: another scheme, no valid bucket or name, or the package for it is not installed.
  """
  found = _URL.fullmatch(url)
  assert found, url
  scheme, rest = found.groups()
  start = f'{what} = ' if what else ''
  if scheme not in _SCHEMES:
    like = {'gs': 'gs', 'gcs': 'gs', 's3': 's3', 's3a': 's3', 's3n': 's3'}.get(scheme.lower())
    help_ = f'write {like}://{rest}' if like else 'gs://BUCKET/NAME, s3://BUCKET/NAME and local ' \
        'paths are supported'
    raise UserError(f'{start}{shown(url)} has the scheme {scheme}://; {help_}.')
  # os.fsdecode gives bytes that are not UTF-8 as surrogates (Cs).
  if any(unicodedata.category(char) in ('Cc', 'Cs') for char in rest):
    raise UserError(f'{start}{shown(url)!r} has a control character, or bytes that are not UTF-8; '
                    'write a name without them.')
  bucket, _, key = rest.partition('/')
  if '@' in bucket:
    raise UserError(f'{start}{scheme}://...@... holds a user name or key; credentials come from '
                    'the environment or the files of the cloud SDK, not from the URL.')
  if not _BUCKET.fullmatch(bucket):
    raise UserError(f'{start}{shown(url)} has no valid bucket name ({bucket!r}); write '
                    f'{scheme}://BUCKET/NAME.')
  key = key.rstrip('/')
  if any(part in ('', '.', '..') for part in key.split('/')) and key:
    raise UserError(f"{start}{shown(url)} has an empty part, '.' or '..' in its name, which an "
                    'object store takes literally; write the whole name.')
  if connected:
    connect(scheme)
  return f'{scheme}://{bucket}/{key}'.rstrip('/')


def shown(url: str) -> str:
  """A URL for a message, without what could be a password."""
  return re.sub(r'^(\s*[A-Za-z0-9+.-]*:?/*)[^/]*@', r'\1...@', url)


def _split(url: str) -> tuple[Bucket, str]:
  """(the bucket, the object's name)."""
  found = _URL.fullmatch(url)
  if not found or found.group(1) not in _SCHEMES:
    check(url)
    raise AssertionError(url)
  bucket, _, key = found.group(2).partition('/')
  return Bucket(connect(found.group(1)), found.group(1), bucket), key.rstrip('/')


# -- requests -----------------------------------------------------------------------------------


def _asked(doing: str, url: str, request: Callable[[], T]) -> T:
  """The result of a request, repeated while its errors may pass.

  Raises:
    Missing, Exists: the store's answer, for the caller.
    UserError: no permission, no credentials or no bucket.
    RetryableError: it still fails; see outages.py.
  """
  try:
    return outages.of(url).repeated(f'{url} could not be {doing}', request)
  except Denied as error:
    raise UserError(f'{url} could not be {doing}: {error}.') from None


def _gone(url: str, doing: str) -> UserError:
  return UserError(f'{url} could not be {doing}: it does not exist.')


# -- looking ------------------------------------------------------------------------------------


def files(url: str) -> dict[str, Entry]:
  """All objects below a folder by their relative names, sorted; {} if there are none.

  One request per 1,000 objects.
  """
  bucket, key = _split(url)
  prefix = key + '/' if key else ''
  try:
    found = _asked('listed', url, lambda: bucket.list(prefix))
  except Missing:
    raise _no_bucket(url) from None
  return {name[len(prefix):]: entry for name, entry in sorted(found.items())
          if not name.endswith('/')}


def children(url: str) -> dict[str, Entry | None]:
  """The objects in a folder, not below it, and its folders, whose value is None; sorted.

  One request per 1,000 of them.
  """
  bucket, key = _split(url)
  prefix = key + '/' if key else ''
  try:
    found = _asked('listed', url, lambda: bucket.children(prefix))
  except Missing:
    raise _no_bucket(url) from None
  return {name[len(prefix):].rstrip('/'): entry for name, entry in sorted(found.items())
          if name != prefix}


def _no_bucket(url: str) -> UserError:
  scheme, rest = url.split('://')
  return UserError(f'the bucket of {url} does not exist: {scheme}://{rest.split("/")[0]}; create '
                   'it, or correct the name.')


def stat(url: str) -> Entry | None:
  """Size, time and checksum of an object; None if there is none of this name."""
  bucket, key = _split(url)
  if not key:
    return None
  try:
    return _asked('read', url, lambda: bucket.stat(key))
  except Missing:
    return None


def exists(url: str) -> bool:
  """Whether there is an object of this name; a folder is none."""
  return stat(url) is not None


def is_folder(url: str) -> bool:
  """Whether there are objects below ``url``."""
  bucket, key = _split(url)
  try:
    return bool(_asked('listed', url, lambda: bucket.list(key + '/' if key else '', most=1)))
  except Missing:
    raise _no_bucket(url) from None


# -- reading ------------------------------------------------------------------------------------


def read_bytes(url: str) -> bytes:
  """The content of an object.

  Raises:
    UserError: there is no such object.
  """
  found = find_bytes(url)
  if found is None:
    raise _gone(url, 'read')
  return found


def find_bytes(url: str) -> bytes | None:
  """The content of an object; None if there is none of this name."""
  bucket, key = _split(url)
  try:
    return _asked('read', url, lambda: bucket.read(key))
  except Missing:
    return None


def read_range(url: str, start: int, stop: int) -> bytes:
  """Bytes start to stop of an object, which has them.

  Raises:
    UserError: there is no such object.
  """
  bucket, key = _split(url)
  version = Entry(0, 0.0, '')  # any
  try:
    return _asked('read', url, lambda: bucket.read_range(key, start, stop, version))
  except Missing:
    raise _gone(url, 'read') from None


def open_reader(url: str, block: int = _BLOCK, entry: Entry | None = None) -> BinaryIO:
  """A seekable, buffered reader; every ``block`` bytes read in order cost one request.

  Args:
    url: of the object.
    block: bytes of a request.
    entry: of the object, where it is known: saves a request.

  Raises:
    UserError: there is no such object.
  """
  bucket, key = _split(url)
  entry = entry or stat(url)
  if entry is None:
    raise _gone(url, 'read')
  raw = _Reader(bucket, key, url, entry)
  return cast(BinaryIO, io.BufferedReader(raw, max(1, min(block, entry.size))))


class _Reader(io.RawIOBase):
  """Ranged reads of one version of an object."""

  def __init__(self, bucket: Bucket, key: str, url: str, entry: Entry):
    self._bucket, self._key, self._url, self._entry = bucket, key, url, entry
    self._at = 0
    self.name = url

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
    start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._entry.size}[whence]
    if start + offset < 0:
      raise ValueError(f'negative position {start + offset}')
    self._at = start + offset
    return self._at

  def tell(self) -> int:
    return self._at

  def readinto(self, buffer: Any) -> int:
    end = min(self._at + len(buffer), self._entry.size)
    if end <= self._at:
      return 0
    try:
      data = _asked('read', self._url,
                    lambda: self._bucket.read_range(self._key, self._at, end, self._entry))
    except (Missing, Exists):
      raise UserError(f'{self._url} was replaced or removed while it was read; run the same '
                      'command again.') from None
    buffer[:len(data)] = data
    self._at += len(data)
    return len(data)


# -- writing ------------------------------------------------------------------------------------


def write_bytes(url: str, data: bytes) -> Entry:
  """Replace an object: readers see the old or the new content. Returns what was written."""
  bucket, key = _split(url)
  with _writing(url):
    return _asked('written', url, lambda: bucket.write(key, data))


def create(url: str, data: bytes) -> bool:
  """Write an object that must not exist yet; False if it does. One of two writers
  wins, if their data differ; see ``write_version``."""
  return write_version(url, data, None) is not None


def write_bytes_if(url: str, data: bytes, entry: Entry) -> bool:
  """Replace the version of an object that ``entry`` describes; False if another is there by now."""
  return write_version(url, data, entry) is not None


def write_version(url: str, data: bytes, entry: Entry | None) -> Entry | None:
  """Replace the version ``entry`` of an object, or create it if that is None.

  Args:
    url: of the object.
    data: differs from what another process would write, for example by a token: an object with
      these bytes counts as written.
    entry: the version that is replaced.

  Returns:
    The new version; None if another one is there: another process has written it.
  """
  bucket, key = _split(url)
  try:
    with _writing(url):
      return _asked('written', url, lambda: bucket.create(key, data) if entry is None
                    else bucket.write_if(key, data, entry))
  except Exists:
    # An earlier try, of this function or of a library, may have succeeded without its answer
    # arriving.
    found = stat(url)
    return found if found is not None and find_bytes(url) == data else None


@contextlib.contextmanager
def _writing(url: str) -> Iterator[None]:
  try:
    yield
  except Missing:
    raise _no_bucket(url) from None


def remove(url: str) -> None:
  """Remove one object; nothing happens if it is not there."""
  bucket, key = _split(url)
  with contextlib.suppress(Missing):
    _asked('removed', url, lambda: bucket.remove(key))


def remove_folder(url: str, first: Iterable[str] = (), last: Iterable[str] = ()) -> None:
  """Remove all objects below ``url``: those named ``first`` one after the other, then the others,
  then those named ``last``."""
  first, last = list(first), list(last)
  rest = [name for name in files(url) if name not in (*first, *last)]
  for relative in first:
    remove(join(url, relative))
  each(rest, lambda relative: remove(join(url, relative)))
  for relative in last:
    remove(join(url, relative))


# -- copies -------------------------------------------------------------------------------------


def download(url: str, path: str | os.PathLike, entry: Entry | None = None) -> None:
  """Copy an object to a file, which appears whole; its size and checksum are compared.

  Args:
    url: of the object.
    path: of the file; its folder is created.
    entry: of the object, where it is known from a listing: saves a request.

  Raises:
    UserError: there is no such object, or the disk refuses the file.
  """
  bucket, key = _split(url)
  target = pathlib.Path(path)
  known = entry or stat(url)
  if known is None:
    raise _gone(url, 'read')
  with local_files.writing(target):
    target.parent.mkdir(parents=True, exist_ok=True)
  partial = local_files.temporary(target)
  try:
    with local_files.writing(target):
      _asked('read', url, lambda: bucket.download(key, partial, known))
      os.replace(partial, target)
  except (Missing, Exists):
    raise UserError(f'{url} was replaced or removed while it was read; run the same command '
                    'again.') from None
  finally:
    with contextlib.suppress(OSError):
      partial.unlink()


def upload(path: str | os.PathLike, url: str) -> None:
  """Copy a file to an object, which appears whole."""
  bucket, key = _split(url)
  with _writing(url):
    _asked('written', url, lambda: bucket.upload(key, pathlib.Path(path)))


def copy(url: str, other: str) -> None:
  """Copy an object to another one of the same bucket; the store does it.

  Raises:
    UserError: there is no such object.
  """
  bucket, key = _split(url)
  target, other_key = _split(other)
  assert target == bucket, (url, other)
  try:
    _asked('copied', url, lambda: bucket.copy(key, other_key))
  except Missing:
    raise _gone(url, 'copied') from None


def download_folder(url: str, folder: str | os.PathLike) -> list[str]:
  """Copy all objects below ``url`` into a folder; returns their relative names."""
  found = files(url)
  each(found, lambda relative: download(join(url, relative), pathlib.Path(folder) / relative,
                                         found[relative]))
  return list(found)


def upload_folder(folder: str | os.PathLike, url: str,
                  last: Iterable[str] = ('manifest.json',)) -> list[str]:
  """Copy all files of a folder below ``url``: those named ``last`` in this order after the others.

  Returns:
    Their relative names.
  """
  root = pathlib.Path(folder)
  names = [str(path.relative_to(root)) for path in sorted(root.rglob('*')) if path.is_file()]
  end = [relative for relative in last if relative in names]
  each([relative for relative in names if relative not in end],
        lambda relative: upload(root / relative, join(url, relative)))
  for relative in end:
    upload(root / relative, join(url, relative))
  return names


def is_copy(path: pathlib.Path, url: str, entry: Entry) -> bool:
  """Whether an object below ``url`` has the bytes of a file, by its size and checksum."""
  if path.stat().st_size != entry.size:
    return False
  scheme = url.partition(':')[0]
  return entry.checksum in (buckets.etags(path) if scheme == 's3' else (buckets.crc32c(path),))


def each(names: Iterable[str], action: Callable[[str], object]) -> None:
  """``action`` for every name, several at once; the first error ends it."""
  todo = list(names)
  left, errors, lock = iter(todo), list[BaseException](), threading.Lock()

  def work() -> None:
    while not errors:
      with lock:
        one = next(left, None)
      if one is None:
        return
      try:
        action(one)
      except BaseException as error:
        errors.append(error)

  # Daemons: a process that ends does not wait for a store that is silent.
  threads = [threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True)
             for _ in range(min(_AT_ONCE, len(todo)))]
  for thread in threads:
    thread.start()
  try:
    for thread in threads:
      thread.join()
  except BaseException as error:  # Ctrl-C
    errors.append(error)
    raise
  if errors:
    raise errors[0]


def cache_folder() -> pathlib.Path:
  """The folder of this account for copies of objects: $TTT_JAX_CACHE or ~/.cache/ttt_jax."""
  return pathlib.Path(os.environ.get('TTT_JAX_CACHE') or '~/.cache/ttt_jax').expanduser()
