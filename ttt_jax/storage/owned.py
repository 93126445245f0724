"""Ownership of folders: nothing is replaced or removed that this program did not make.

A folder that this program makes holds a marker, .ttt-jax.json: the kind of the folder, the names
and sizes of all its files, the SHA-256 of those that a person might edit, and a SHA-256 of the
marker itself. A folder may be replaced or removed if every entry in it is listed and unchanged.
Versions without markers listed their files in other ways; ``earlier`` of the functions below says
which files those prove.

  Building   a folder that is made in a temporary place and replaces the one at its target
  Output     a folder that takes files beside others, which may be a user's
  check_json a single file with a known name in a folder of the user's choice
"""

from collections.abc import Callable, Collection, Iterator, Mapping
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
import stat
import tempfile
from typing import Any

from ttt_jax.errors import UserError
from ttt_jax.storage import files
from ttt_jax.storage.process import this

_LOG = logging.getLogger(__name__)
MARKER = '.ttt-jax.json'
_AUTHOR = 'ttt-jax'
_HASHED = 16 * 2**20  # bytes; larger files are compared by their size alone

Earlier = Callable[[pathlib.Path], Collection[str]]  # folder -> names of files proven to be ours


# -- the marker -------------------------------------------------------------------------------


def _signature(body: Mapping[str, Any]) -> str:
  return hashlib.sha256(json.dumps([_AUTHOR, body], sort_keys=True).encode()).hexdigest()


def marker_text(body: Mapping[str, Any]) -> str:
  """The marker of a folder: {'kind', 'files': {name: entry, or None while it is written}}."""
  return json.dumps({'written_by': _AUTHOR, **body, 'signature': _signature(body)}, indent=0,
                    ensure_ascii=True, sort_keys=True) + '\n'


def _write_marker(folder: pathlib.Path, body: dict[str, Any]) -> None:
  files.write_text(folder / MARKER, marker_text(body))


def read_marker(folder: pathlib.Path) -> dict[str, Any]:
  """The body of a folder's marker; {} without one that is whole."""
  try:
    values = json.loads((folder / MARKER).read_text(encoding='utf-8'))
    body = {key: value for key, value in values.items() if key not in ('written_by', 'signature')}
    whole = values['signature'] == _signature(body) and isinstance(body.get('files', {}), dict)
    return body if whole else {}
  except (OSError, ValueError, KeyError, AttributeError, RecursionError):
    return {}


def entry(size: int, sha256: Callable[[], str]) -> dict[str, Any]:
  """What a marker says of a file of so many bytes; ``sha256`` is called if it has the hash."""
  return {'bytes': size} | ({'sha256': sha256()} if size <= _HASHED else {})


def _entry(path: pathlib.Path) -> dict[str, Any]:
  return entry(path.stat().st_size, lambda: files.sha256(path))


def _walk(folder: pathlib.Path) -> Iterator[pathlib.PurePosixPath]:
  """Everything in a folder that is no folder, and folders without entries; names relative to it."""
  for base, folders, names in os.walk(folder, onerror=_raise):
    here = pathlib.Path(base)
    links = [name for name in folders if (here / name).is_symlink()]
    for name in sorted([*names, *links]):
      yield pathlib.PurePosixPath((here / name).relative_to(folder).as_posix())
    if not folders and not names and here != folder:
      yield pathlib.PurePosixPath(here.relative_to(folder).as_posix())


def _raise(error: OSError) -> None:
  raise error


def mark(folder: str | os.PathLike, kind: str,
         elsewhere: Mapping[str, dict[str, Any]] | None = None) -> None:
  """Write the marker of a folder whose every file this program has just made.

  Args:
    folder: holds the files.
    kind: of the folder.
    elsewhere: files that belong to it and are not on this disk: name -> ``entry``.
  """
  folder = pathlib.Path(folder)
  _write_marker(folder, {'kind': kind, 'files': {
      str(name): _entry(folder / name) for name in _walk(folder) if str(name) != MARKER} | dict(
          elsewhere or {})})


def _is_listed(path: pathlib.Path, entry: Any) -> bool:
  """Whether a file is the one that an entry of a marker describes."""
  try:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
      return False
    if entry is None:  # it was being written when the process ended
      return True
    return found.st_size == entry['bytes'] and (
        'sha256' not in entry or files.sha256(path) == entry['sha256'])
  except (OSError, TypeError, KeyError):
    return False


def foreign(folder: str | os.PathLike, earlier: Earlier | None = None) -> str | None:
  """The first entry of a folder that this program cannot prove to have made, or None.

  Args:
    folder: with or without a marker.
    earlier: what proves files of a folder without a marker.
  """
  folder = pathlib.Path(folder)
  marker = read_marker(folder)
  proven = set() if marker or earlier is None else set(earlier(folder))
  for name in _walk(folder):
    if str(name) == MARKER and marker:
      continue
    if str(name) in marker.get('files', {}):
      if _is_listed(folder / name, marker['files'][str(name)]):
        continue
    elif str(name) in proven and stat.S_ISREG((folder / name).lstat().st_mode):
      continue
    return str(name)
  return None


def remove(folder: str | os.PathLike) -> str | None:
  """Remove a folder if all of it is proven to be ours; else the name of the first entry that is
  not, and nothing is removed."""
  folder = pathlib.Path(folder)
  found = foreign(folder)
  if found is None:
    _remove_proven(folder, None)
  return found


def _remove_proven(folder: pathlib.Path, earlier: Earlier | None) -> None:
  """Remove the files that are proven to be ours, and the folders that are empty then."""
  marker = read_marker(folder)
  names = set(marker.get('files', {})) if marker else set(earlier(folder) if earlier else ())
  for name in _walk(folder):
    if str(name) in names and (not marker or _is_listed(
        folder / name, marker['files'][str(name)])):
      (folder / name).unlink()
  if marker:
    (folder / MARKER).unlink()
  for base, _, _ in os.walk(folder, topdown=False):
    with contextlib.suppress(OSError):  # not empty: something that is not ours
      os.rmdir(base)


# -- folders that are replaced as a whole -------------------------------------------------------


class Building:
  """A folder that is made beside its target and replaces it at the end; a context manager.

    with owned.Building(target, 'a prepared set', 'config key data.path', earlier) as building:
      ...                     # write into building.folder
      building.commit()

  The target is complete or as it was before. A symbolic link stays, and the folder that it points
  to is replaced. A later ``Building`` of the same target removes what a killed process has left.
  """

  def __init__(self, target: str | os.PathLike, kind: str, where: str,
               earlier: Earlier | None = None):
    """Checks the target; nothing is written before ``__enter__``.

    Args:
      target: the folder to make; it may exist.
      kind: of the folder, with its article: 'a prepared set'.
      where: what names the folder, for the sentence: 'config key data.path', '--out'.
      earlier: what proves files of a folder without a marker.

    Raises:
      UserError: the target holds something that this program has not made, or cannot be replaced.
    """
    self._named, self._kind, self._where, self._earlier = (
        pathlib.Path(target), kind, where, earlier)
    self.target = resolve(target)
    with files.writing(self._named):
      if not os.path.ismount(self.target):  # / has no name
        self._recover()
    self.check()

  def check(self) -> None:
    """Raise UserError unless the target may be replaced."""
    named, where = self._named, self._where
    with files.writing(named):
      if not self.target.exists():
        return
      if not self.target.is_dir():
        raise UserError(f'{where}: {named} exists and is not {self._kind} but a file; choose '
                        'another path.')
      if os.path.ismount(self.target):
        raise UserError(f'{where}: {named} is a mount point, which cannot be replaced; choose a '
                        'folder in it.')
      found = foreign(self.target, self._earlier)
      kind = read_marker(self.target).get('kind', self._kind)
    if kind != self._kind:  # ours, but made for something else: a set is not replaced by an export
      raise UserError(f'{where}: {named} exists and is not {self._kind} but {kind} of ttt-jax; '
                      'choose another path.')
    if found is not None:
      raise UserError(f'{where}: {named} exists and is not {self._kind} that ttt-jax made: '
                      f'{found} is not one of its files, or was changed; move it or choose another '
                      'path.')

  def __enter__(self) -> 'Building':
    with files.writing(self._named):
      self.target.parent.mkdir(parents=True, exist_ok=True)
      self._remove_leftovers()
      self.folder = pathlib.Path(tempfile.mkdtemp(
          prefix=self._prefix(os.getpid()), suffix='.new', dir=self.target.parent))
      _write_marker(self.folder, {'kind': self._kind})
    return self

  def __exit__(self, *unused) -> None:
    shutil.rmtree(self.folder, ignore_errors=True)

  def commit(self, elsewhere: Mapping[str, dict[str, Any]] | None = None) -> None:
    """Let the folder replace the target.

    Args:
      elsewhere: see ``mark``.

    Raises:
      UserError: something that is not ours has appeared in the target, or it cannot be replaced.
    """
    self.check()
    old = self._old()
    with files.writing(self._named):
      mark(self.folder, self._kind, elsewhere)
      os.chmod(self.folder, 0o777 & ~_umask())  # mkdtemp's folders are its owner's alone
      replaced = self.target.exists()
      if replaced:
        os.rename(self.target, old)
      try:
        os.rename(self.folder, self.target)
      except OSError:
        if replaced:
          os.rename(old, self.target)
        raise
    if replaced:
      try:
        _remove_proven(old, self._earlier)
      except OSError as error:
        _LOG.warning('%s, which was replaced, could not be removed (%s).', old, error.strerror)
      if old.exists():
        _LOG.warning('%s keeps what ttt-jax did not make.', old)

  def _prefix(self, pid: int | str) -> str:
    """How the names of this target's temporary folders begin, on this machine."""
    system = hashlib.sha256(f'{this().machine} {this().space}'.encode()).hexdigest()[:8]
    return f'.{self.target.name}-{system}-{pid}-'

  def _old(self) -> pathlib.Path:
    """A free name for the folder that is replaced."""
    base = self.target.with_name(f'.{self.target.name}.old')
    names = [base, *(base.with_name(f'{base.name}-{number}') for number in range(2, 1000))]
    return next(path for path in names if not path.exists())

  def _recover(self) -> None:
    """Undo half a replacement: a process was killed between its two renames."""
    old = self.target.with_name(f'.{self.target.name}.old')
    if not self.target.exists() and old.is_dir() and foreign(old, self._earlier) is None:
      os.rename(old, self.target)

  def _remove_leftovers(self) -> None:
    """Remove temporary folders of this target whose process has ended."""
    form = re.compile(re.escape(self._prefix('#')).replace('\\#', r'(\d+)') + r'\w+\.new')
    for folder in self.target.parent.iterdir():
      found = form.fullmatch(folder.name)
      if found and read_marker(folder) and dataclasses.replace(
          this(), pid=int(found.group(1)), started='').is_gone():
        shutil.rmtree(folder, ignore_errors=True)
    old = self.target.with_name(f'.{self.target.name}.old')
    if self.target.exists() and old.is_dir() and foreign(old, self._earlier) is None:
      with contextlib.suppress(OSError):
        _remove_proven(old, self._earlier)


def resolve(path: str | os.PathLike) -> pathlib.Path:
  """The folder that a path names, behind symbolic links; it need not exist.

  Raises:
    UserError: a link to a place whose parent does not exist, such as a disk that is not mounted,
      or links that form a loop.
  """
  path = pathlib.Path(path)
  real = pathlib.Path(os.path.realpath(path))
  with files.writing(path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
    path.stat()  # a loop, which realpath does not report
  if path.is_symlink() and not real.parent.is_dir():
    raise UserError(f'{path} is a link to {real}, whose disk or folder does not exist; mount it, '
                    'or correct the link.')
  return real


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask


# -- folders that take files beside others --------------------------------------------------------


class Output:
  """A folder of the user's choice that takes files: ``claim`` their names, then write them.

    out = owned.Output('answers', 'answers', '--out')
    out.claim('text1.wav', 'answers.json')
    ...                     # write them
    out.finish()
  """

  def __init__(self, folder: str | os.PathLike, kind: str, where: str,
               earlier: Earlier | None = None):
    """Creates the folder if needed and checks that it can be written.

    Args:
      folder, kind, where, earlier: as for ``Building``; other files in the folder stay.

    Raises:
      UserError: it cannot be written, or it was made as something else, such as a prepared set.
    """
    self.folder = pathlib.Path(folder)
    self._kind, self._where = kind, where
    marker = read_marker(self.folder)
    if marker.get('kind', kind) != kind:
      raise UserError(f'{where}: {folder} holds {marker["kind"]} that ttt-jax made; choose another '
                      'folder.')
    files.require_writable(self.folder)
    self._known: dict[str, Any] = dict(marker.get('files', {}))
    if not marker and earlier is not None:
      self._known = dict.fromkeys(earlier(self.folder))
    self._claimed: set[str] = set()

  def claim(self, *names: str) -> None:
    """Announce files that will be written; the names are relative to the folder.

    Raises:
      UserError: such a file exists and this program has not made it.
    """
    new = [name for name in names if name not in self._claimed]
    for name in new:
      path = self.folder / name
      if os.path.lexists(path) and not (
          name in self._known and _is_listed(path, self._known[name])):
        raise UserError(f'{self._where}: {path} exists, and ttt-jax did not make it or it was '
                        'changed since; move it, or choose another folder.')
    self._claimed.update(new)
    if new:
      # First the names, without sizes: what a killed process has half written is ours, too.
      self._write(dict.fromkeys(self._claimed))

  def finish(self) -> None:
    """List the files as they are now; a folder without any is removed."""
    self._write({name: _entry(self.folder / name) for name in self._claimed
                 if (self.folder / name).is_file()})
    if not self._known:
      with contextlib.suppress(OSError):
        (self.folder / MARKER).unlink()
        self.folder.rmdir()

  def _write(self, entries: Mapping[str, Any]) -> None:
    with files.writing(self.folder):
      self._known = {name: entry for name, entry in self._known.items()
                     if (self.folder / name).is_file()} | dict(entries)
      _write_marker(self.folder, {'kind': self._kind, 'files': self._known})


# -- single files -------------------------------------------------------------------------------


def check_json(path: str | os.PathLike, *keys: str, where: str = '--workdir') -> None:
  """Check that a file that is about to be replaced was written by this program.

  Args:
    path: it need not exist; an empty file, which a power failure leaves, may be replaced.
    keys: that an object has which this program wrote (or each object of a list).
    where: what names its folder, for the sentence.

  Raises:
    UserError: it is something else, such as another program's config.json.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    if path.is_dir():
      raise UserError(f'{where}: {path} is a folder; choose another folder, or move it.')
    return
  try:
    text = path.read_bytes().strip(b'\0 \r\n\t')
    values = json.loads(text) if text else None
  except (ValueError, RecursionError):
    values = ''
  except OSError as error:
    raise UserError(f'{path} could not be read: {error.strerror}; change its permissions.'
                    ) from error
  objects = values if isinstance(values, list) else [values]
  if values is not None and not all(
      isinstance(one, dict) and set(keys) <= one.keys() for one in objects):
    raise UserError(f'{where}: {path} exists and was not written by ttt-jax; move it, or choose '
                    'another folder.')


def check_text(path: str | os.PathLike, sign: str, where: str = '--workdir') -> None:
  """``check_json`` for a text file, which holds ``sign`` if this program wrote it."""
  path = pathlib.Path(path)
  if path.is_dir():
    raise UserError(f'{where}: {path} is a folder; choose another folder, or move it.')
  if not path.is_file():
    return
  with files.writing(path):
    text = path.read_bytes()
  if text.strip(b'\0 \r\n\t') and sign.encode() not in text:
    raise UserError(f'{where}: {path} exists and was not written by ttt-jax; move it, or choose '
                    'another folder.')
