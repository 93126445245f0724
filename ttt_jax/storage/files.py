"""Files: replaced atomically, appended to by several processes; hashes.

Every OSError of a write becomes the same kind of sentence: see ``writing``.
"""

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import hashlib
import os
import pathlib
import re
import secrets
import stat
import time
from typing import IO, Any

from ttt_jax.errors import RetryableError, UserError
from ttt_jax.storage import process

FULL = {errno.ENOSPC: 'the disk is full', errno.EDQUOT: 'the quota of the disk is used up',
        errno.EFBIG: 'a file there would grow beyond its limit'}
_FREE = 'free some space'
_ELSEWHERE = 'change the permissions, or choose another folder'
# What helps, by errno; where nothing is known: look at the disk.
_REMEDIES = {
    errno.ENOSPC: _FREE, errno.EDQUOT: _FREE, errno.EFBIG: 'raise the limit (ulimit -f)',
    errno.EACCES: _ELSEWHERE, errno.EPERM: _ELSEWHERE, errno.EROFS: 'choose another folder',
    errno.ENOTDIR: 'choose another path', errno.EISDIR: 'choose another path',
    errno.EEXIST: 'choose another path', errno.ENAMETOOLONG: 'choose a shorter name',
    errno.ELOOP: 'correct the symbolic link', errno.ENOENT: 'create the folder',
    errno.EMFILE: 'raise the limit (ulimit -n)'}
_TENSORSTORE = re.compile(r"os_error_code='(\d+)'")  # how TensorStore reports an errno
_NAME_BYTES = 255   # of a file name, on all common file systems
_PROBE = b'\0' * 4096
_OLD = 600.0        # seconds; a younger temporary file may be in use on another machine


# -- errors -----------------------------------------------------------------------------------


def cannot_write(path: str | os.PathLike, error: BaseException, kept: str = '') -> UserError:
  """The error for a failed write to ``path``; ``kept`` says what is not lost."""
  code = system_code(error)
  why = FULL.get(code) or (os.strerror(code) if code else str(error))
  remedy = _REMEDIES.get(code, 'check the disk')
  return UserError(f'{path} could not be written: {why}; {kept}{"; " if kept else ""}{remedy}, '
                   'then run the same command again.')


def cannot_use(error: OSError) -> UserError:
  """The error for a failed read or write, of which no more is known than the exception says."""
  why = FULL.get(error.errno or 0) or error.strerror
  remedy = _REMEDIES.get(error.errno or 0, 'check the disk')
  return UserError(f'{error.filename} could not be read or written: {why}; {remedy}, then run the '
                   'same command again.')


@contextlib.contextmanager
def writing(path: str | os.PathLike, kept: str = '') -> Iterator[None]:
  """A context in which an error of the file system becomes a UserError that names ``path``.

  Args:
    path: what is written.
    kept: what is not lost, for the sentence.
  """
  try:
    yield
  except (UserError, RetryableError):  # the latter may come from an OSError of a network
    raise
  except Exception as error:  # libraries wrap an OSError in errors of their own
    if not system_code(error):
      raise
    raise cannot_write(path, error, kept) from error


def system_code(error: BaseException | None) -> int:
  """The errno of an exception or of one of its causes; 0 if none has one."""
  while error is not None:
    if isinstance(error, OSError) and error.errno:
      return error.errno
    reported = _TENSORSTORE.search(str(error))
    if reported:
      return int(reported.group(1))
    error = error.__cause__ or error.__context__
  return 0


def require_writable(folder: str | os.PathLike) -> None:
  """Create ``folder`` if needed, and a file in it, which is removed again: before the work.

  Raises:
    UserError: no permission, a read-only or full disk, or a part of the path is a file.
  """
  folder = pathlib.Path(folder)
  with writing(folder):
    make_folder(folder)
    probe = temporary(folder / 'probe')
    try:
      with probe.open('xb') as file:
        file.write(_PROBE)
    finally:
      probe.unlink(missing_ok=True)


def require_writable_file(path: str | os.PathLike) -> None:
  """``require_writable`` for the folder of a file; ``path`` itself must not be a folder."""
  path = pathlib.Path(path)
  if path.is_dir():
    raise UserError(f'{path} is a folder; name a file.')
  if not _is_special(path):
    require_writable(_target(path).parent)


def make_folder(folder: pathlib.Path) -> None:
  """``mkdir -p``; a folder behind a symbolic link is created where the link points to."""
  real = pathlib.Path(os.path.realpath(folder))
  if folder.is_symlink() and not real.parent.is_dir():
    raise UserError(f'{folder} is a link to {real}, whose disk or folder does not exist; mount it, '
                    'or correct the link.')
  if real.exists() and not real.is_dir():
    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
  real.mkdir(parents=True, exist_ok=True)


# -- replacing --------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path: str | os.PathLike, mode: str = 'w', *, durable: bool = False
              ) -> Iterator[Any]:
  """A file to write, which replaces the one at ``path`` atomically at the end of the context.

  A reader sees the old file or the new one; if anything fails, the old one stays. Behind a
  symbolic link, the file that it points to is replaced. Devices and pipes are written directly.

  Args:
    path: in a folder that exists.
    mode: 'w' (UTF-8), 'wb' or 'w+b'.
    durable: wait for fsync, so that the file survives a power failure.

  Raises:
    UserError: it cannot be written.
  """
  path = pathlib.Path(path)
  encoding = None if 'b' in mode else 'utf-8'
  with writing(path):
    if _is_special(path):
      with path.open(mode.replace('+', ''), encoding=encoding) as file:
        yield file
      return
    target = _target(path)
    partial = temporary(target)
    done = False
    try:
      with partial.open(mode.replace('w', 'x'), encoding=encoding) as file:
        yield file
        file.flush()
        if durable:
          os.fsync(file.fileno())
      os.replace(partial, target)
      done = True
    finally:
      if not done:
        with contextlib.suppress(OSError):
          partial.unlink()


def write_text(path: str | os.PathLike, text: str, *, durable: bool = False) -> None:
  """Replace the file at ``path`` by ``text`` in UTF-8; as ``replacing``.

  A lone surrogate, which JSON may hold and UTF-8 cannot, is written as JSON writes it: \\ud800.
  """
  with replacing(path, durable=durable) as file:
    file.write(text.encode('utf-8', 'backslashreplace').decode('utf-8'))


def _target(path: pathlib.Path) -> pathlib.Path:
  return pathlib.Path(os.path.realpath(path)) if path.is_symlink() else path


def _is_special(path: pathlib.Path) -> bool:
  """Whether ``path`` is a device or a pipe: it must be written, not replaced."""
  try:
    mode = path.stat().st_mode
  except OSError:
    return False
  return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def temporary(path: pathlib.Path) -> pathlib.Path:
  """A name beside ``path`` that no other process uses; ``remove_partials`` knows its form."""
  end = f'.{os.getpid()}-{secrets.token_hex(4)}.partial'
  head = f'.{path.name}'.encode()[:_NAME_BYTES - len(end)].decode(errors='ignore')
  return path.with_name(head + end)


def remove_partials(folder: str | os.PathLike) -> None:
  """Remove old temporary files that processes which were killed left in ``folder``."""
  here = process.this()
  for path in pathlib.Path(folder).glob('.*.partial'):
    found = re.fullmatch(r'\..+\.(\d+)-[0-9a-f]{8}\.partial', path.name)
    if found and path.is_file() and not path.is_symlink() and process.Process(
        here.host, here.machine, here.space, int(found.group(1)), '').is_gone():
      with contextlib.suppress(OSError):
        if time.time() - path.stat().st_mtime > _OLD:
          path.unlink()


# -- appending --------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(file: IO[Any], seconds: float = 1.0) -> Iterator[None]:
  """A context in which this process alone appends to or replaces a file.

  On a network file system the lock also makes the size known that another machine has written. It
  is advice: after ``seconds`` of waiting, or where there are no locks, the work goes on without.
  """
  until = time.monotonic() + seconds
  held = False
  while not held:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      held = True
    except BlockingIOError:
      if time.monotonic() > until:
        break
      time.sleep(0.01)
    except OSError:
      break
  try:
    yield
  finally:
    if held:
      fcntl.flock(file, fcntl.LOCK_UN)


class Appender:
  """Adds lines to a file that other processes add to as well, and that its owner may replace."""

  def __init__(self, path: str | os.PathLike):
    """Raises UserError if the file cannot be opened; it is created if needed."""
    self.path = pathlib.Path(path)
    with writing(self.path):
      self._file = self.path.open('ab', buffering=0)

  def write(self, line: str) -> None:
    """Add a line, which ends with a line break, in one piece.

    Raises:
      UserError: it cannot be written.
    """
    with writing(self.path):
      while True:
        with locked(self._file):
          if self._is_current():
            # What a crash has cut off would swallow this line, too.
            text = ('\n' if self._is_cut_off() else '') + line
            left = memoryview(text.encode())
            while left:
              left = left[self._file.write(left):]
            return
        self._file.close()
        self._file = self.path.open('ab', buffering=0)

  def _is_current(self) -> bool:
    """Whether the open file is still the one at ``path``."""
    try:
      there, mine = os.stat(self.path), os.fstat(self._file.fileno())
    except FileNotFoundError:
      return False
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)

  def _is_cut_off(self) -> bool:
    """Whether the file ends within a line."""
    if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
      return False
    size = os.fstat(self._file.fileno()).st_size
    if not size:
      return False
    with self.path.open('rb') as file:
      file.seek(size - 1)
      return file.read(1) not in (b'\n', b'')

  def close(self) -> None:
    with writing(self.path):  # closing may flush what the disk had no room for
      self._file.close()


# -- reading ----------------------------------------------------------------------------------


def sha256(path: str | os.PathLike) -> str:
  """Hex digest of the bytes of a file, or of an object that a url_path.UrlPath names."""
  source: Any = path if hasattr(path, 'open') else pathlib.Path(path)
  with source.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
