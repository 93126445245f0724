"""The small files of a workdir in a bucket: a local folder, and copies of what changes.

A workdir gs://bucket/run has a local folder, $TTT_JAX_CACHE/workdirs/gs/bucket/run. Commands read
and write their files there as in any workdir: config.json, status.json, metrics.jsonl, reports,
samples. ``Mirror`` downloads them first and copies what changed to the bucket, every few seconds
and at the end. Not copied: checkpoints, prepared data and exports, which are read and written in
the bucket itself, and hidden files but the marks of folders (storage/owned.py).

  run/status.json          a file is one object, replaced as a whole
  run/metrics.jsonl        of a file that grows: its first MiB
  run/metrics.jsonl.0001   ... its second, and so on: nothing can be appended to an object, so its
                           last part is written again; ``cat metrics.jsonl*`` gives the file

Every write names the version that it replaces, so that a process learns when another one has
written. Beside the folder, workdirs.sync/ notes which version of an object a local file equals.
"""

from collections.abc import Callable, Collection, Iterator
import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import pathlib
import re
import shutil
import threading
import zlib

from ttt_jax.errors import RetryableError, UserError
from ttt_jax.storage import buckets, files, folder_copies, outages, owned, remote
from ttt_jax.storage.remote import Entry

_LOG = logging.getLogger(__name__)
EVERY = 15.0         # seconds between two copies
PART = 2**20         # bytes of an object of a file that grows
_GROWING = re.compile(r'.*\.(jsonl|log)|(.*/)?events\.out\.tfevents\..*')
_PART_NAME = re.compile(r'(.+)\.([0-9]{4,})')
_NOT_COPIED = 'checkpoints'
_PREPARED = 'manifest.json'   # in every folder of prepared data
_EXPORTED = 'training.json'   # in every export
_RUN = 'status.json'          # only the run writes it
_WORKDIRS, _NOTES = 'workdirs', 'workdirs.sync'


# -- names --------------------------------------------------------------------------------------


def _root(kind: str = _WORKDIRS) -> pathlib.Path:
  return pathlib.Path(os.path.abspath(remote.cache_folder() / kind))


def folder_of(url: str) -> pathlib.Path:
  """The local folder of a workdir in a bucket; of a local path that path."""
  if not remote.is_url(url):
    return pathlib.Path(url)
  scheme, _, rest = url.rstrip('/').partition('://')
  return _root() / scheme / rest


def url_of(path: str | os.PathLike) -> str | None:
  """The URL that a local path is the copy of; None for other paths."""
  if remote.is_url(path):
    return str(path)
  root = str(_root()) + '/'
  path = os.path.abspath(path)
  if not path.startswith(root):
    return None
  scheme, _, rest = path[len(root):].partition('/')
  return f'{scheme}://{rest}' if rest else None


def copied(url: str) -> pathlib.Path:
  """The local folder of a workdir in a bucket, with its small files as they are there."""
  copies = Mirror(folder_of(url))
  copies.download()
  return copies.folder


def named(path: str | os.PathLike) -> str:
  """How a user names a path: by its URL if it is a copy."""
  return url_of(path) or str(path)


def in_urls(text: str) -> str:
  """A text with URLs in place of the paths of local folders."""
  text = folder_copies.in_urls(text)
  return text.replace(f'{_root()}/gs/', 'gs://').replace(f'{_root()}/s3/', 's3://')


# -- what a local file equals -------------------------------------------------------------------


@dataclasses.dataclass
class _Note:
  """The versions of the objects that a local file was last equal to."""
  inode: int = 0
  mtime: int = 0
  size: int = -1
  parts: list[tuple[Entry, int]] = dataclasses.field(default_factory=list)  # (version, CRC-32)

  def is_current(self, path: pathlib.Path) -> bool:
    """Whether the file has not changed since."""
    try:
      found = path.stat()
    except OSError:
      return False
    return (found.st_mtime_ns, found.st_size) == (self.mtime, self.size)

  def set(self, found: os.stat_result) -> None:
    self.inode, self.mtime, self.size = found.st_ino, found.st_mtime_ns, found.st_size

  def to_json(self) -> str:
    parts = [[*dataclasses.astuple(entry), crc] for entry, crc in self.parts]
    return json.dumps([self.inode, self.mtime, self.size, parts])

  @classmethod
  def from_json(cls, text: str) -> '_Note':
    try:
      inode, mtime, size, parts = json.loads(text)
      return cls(inode, mtime, size, [(Entry(*part[:4]), part[4]) for part in parts])
    except (ValueError, TypeError, IndexError):
      return cls()


def _part_url(url: str, number: int) -> str:
  return url if number == 0 else f'{url}.{number:04d}'


class Lost(UserError):
  """Another process writes this run's files."""


class Mirror:
  """Keeps the local folder and the bucket equal. As a context manager it copies in a thread."""

  def __init__(self, folder: str | os.PathLike, *, is_run: bool = False,
               every: float | None = None, say: Callable[[str], None] = _LOG.warning):
    """Nothing is copied yet.

    Args:
      folder: of ``folder_of``.
      is_run: whether this process owns the workdir: it alone copies status.json, and another
        version of it in the bucket means that another run has taken the workdir over.
      every: seconds between two copies; None: ``EVERY``.
      say: takes a sentence when copies begin to fail, and when they succeed again.
    """
    self.folder = pathlib.Path(folder)
    url = url_of(folder)
    assert url is not None, folder
    self.url, self._is_run, self._every = url, is_run, every or EVERY
    self._say = say
    self.lost = ''      # the sentence, once another run has taken the workdir over
    self._copied: set[str] = set()   # names that this object has seen on both sides
    self._over = threading.Event()
    self._busy = threading.Lock()
    self._thread: threading.Thread | None = None

  # -- down -----------------------------------------------------------------------------

  def download(self, keep_changes: bool = True,
               check: Callable[[Collection[str]], None] = lambda names: None) -> None:
    """Make the local files equal to the bucket's.

    Args:
      keep_changes: whether a file that changed on both sides stays as it is here.
      check: called first with the names of all objects, also of those that are not copied; what
        it raises ends this.

    Raises:
      UserError, RetryableError: the bucket cannot be read.
    """
    listed = remote.files(self.url)
    if not listed and remote.parent(self.url) != self.url and remote.exists(self.url):
      # A folder of this name would hide the object from the workdir that it belongs to.
      raise UserError(f'workdir {self.url} is an object; name a folder, such as '
                      f'{remote.parent(self.url)}.')
    check(listed)
    with files.writing(self.folder):
      self.folder.mkdir(parents=True, exist_ok=True)
    found = _without_data(listed)
    self._check_room(found)
    grouped: dict[str, list[str]] = {}
    for name in found:
      match = _PART_NAME.fullmatch(name)
      if match and match.group(1) in found and _GROWING.fullmatch(match.group(1)):
        continue
      grouped[name] = [name]
      while _GROWING.fullmatch(name) and (part := _part_url(name, len(grouped[name]))) in found:
        grouped[name].append(part)
    remote.each(grouped, lambda name: self._download(
        name, [found[part] for part in grouped[name]], keep_changes))
    for name, _ in list(self._local(everything=True)):
      if name not in grouped:
        self._forget(name)

  def _check_room(self, found: dict[str, Entry]) -> None:
    new = sum(entry.size for name, entry in found.items() if not (self.folder / name).exists())
    free = shutil.disk_usage(self.folder).free
    if new > free:
      raise UserError(f'workdir {self.url} has {new / 1e9:,.1f} GB of files beside checkpoints and '
                      f'data, but {self.folder} has room for {free / 1e9:,.1f} GB; name the folder '
                      'of a run, or set TTT_JAX_CACHE to a folder on a larger disk.')

  def _forget(self, name: str) -> None:
    """Remove the copy of a file that is not in the bucket any more; one of our own stays."""
    with self._note(name) as note:
      if note.parts and note.is_current(self.folder / name):
        (self.folder / name).unlink()
      note.parts.clear()
      note.size = -1

  def _download(self, name: str, entries: list[Entry], keep_changes: bool) -> None:
    path = self.folder / name
    with self._note(name) as note:
      known = [entry for entry, _ in note.parts]
      if note.is_current(path):
        if [_version(entry) for entry in known] == [_version(entry) for entry in entries]:
          return
      elif path.exists() and (keep_changes or list(map(_version, known)) == list(
          map(_version, entries))):
        return  # newer here
      parts = [remote.read_bytes(_part_url(remote.join(self.url, name), number))
               for number in range(len(entries))]
      with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
      with files.replacing(path, 'wb') as file:
        for part in parts:
          file.write(part)
      note.set(path.stat())
      # A part that another process has written since the listing is refused at the next copy.
      note.parts = [(entry, zlib.crc32(part)) for entry, part in zip(entries, parts)]

  # -- up -------------------------------------------------------------------------------

  def upload(self) -> list[str]:
    """Copy what changed here; returns the names.

    Raises:
      Lost: another run writes to this workdir.
      UserError, RetryableError: the bucket cannot be written.
    """
    with self._free():
      here = dict(self._local())
      sent = [name for name in here if self._changed(name)]
      last = [name for name in sent if name == _RUN]  # it speaks of the others
      remote.each([name for name in sent if name not in last], self._upload)
      for name in last:
        self._upload(name)
      remote.each(self._copied - set(here), self._remove)
      self._copied = set(here)
      return sent

  @contextlib.contextmanager
  def _free(self) -> Iterator[None]:
    """A context in which this thread alone copies; a thread that waits for a silent store does not
    keep others from learning that."""
    while not self._busy.acquire(timeout=0.5):
      if outages.of(self.url).is_silent():
        remote.stat(self.url)  # raises
    try:
      yield
    finally:
      self._busy.release()

  def _local(self, everything: bool = False) -> Iterator[tuple[str, pathlib.Path]]:
    """The files that this object copies to the bucket, or ``everything`` that any does:
    (name, path)."""
    for top, folders, names in os.walk(self.folder):
      if _PREPARED in names or _EXPORTED in names and top != str(self.folder):
        folders.clear()
        continue
      folders[:] = sorted(name for name in folders
                          if not name.startswith('.') and name != _NOT_COPIED)
      for name in sorted(names):
        path = pathlib.Path(top) / name
        relative = str(path.relative_to(self.folder))
        if not _is_hidden(name) and path.is_file() and not path.is_symlink() and (
            everything or self._is_run or name != _RUN):
          yield relative, path

  def _changed(self, name: str) -> bool:
    try:
      note = _Note.from_json(self._note_path(name).read_text(encoding='utf-8'))
    except OSError:
      return True
    return not note.is_current(self.folder / name)

  def _upload(self, name: str) -> None:
    path, url = self.folder / name, remote.join(self.url, name)
    with self._note(name) as note:
      try:
        found = path.stat()
        if note.is_current(path):
          return  # another process of this machine has copied it
        size = PART if _GROWING.fullmatch(name) else max(found.st_size, 1)
        count = max(-(-found.st_size // size), 1)
        grown = found.st_ino == note.inode and found.st_size >= note.size
        first = max(len(note.parts) - 1, 0) if grown and size == PART else 0
        with path.open('rb') as file:
          for number in range(first, count):
            file.seek(number * size)
            data = file.read(min(size, found.st_size - number * size))
            self._upload_part(name, _part_url(url, number), number, data, note)
      except FileNotFoundError:
        return  # replaced or removed meanwhile
      for number in range(count, len(note.parts)):
        remote.remove(_part_url(url, number))
      del note.parts[count:]
      note.set(found)

  def _upload_part(self, name: str, url: str, number: int, data: bytes, note: _Note) -> None:
    crc = zlib.crc32(data)
    known = note.parts[number] if number < len(note.parts) else None
    if known and known[1] == crc and known[0].size == len(data):
      return
    written = remote.write_version(url, data, known[0] if known else None)
    while written is None:  # another process has written it
      there = remote.stat(url)
      theirs = remote.read_bytes(url) if there else b''
      if there is not None and theirs == data:
        written = there
      elif there is not None and self._is_run and name == _RUN:
        raise Lost(f'workdir {self.url} was taken over by another run, which has written '
                   f'{_RUN}; nothing more is written there.')
      else:
        if name.endswith('.jsonl'):
          ours = set(_lines(data, number))
          data += self._take_lines(name, [line for line in _lines(theirs, number)
                                          if line not in ours])
          crc = zlib.crc32(data)
        written = remote.write_version(url, data, there)
    note.parts[number:number + 1] = [(written, crc)]

  def _take_lines(self, name: str, lines: list[bytes]) -> bytes:
    """Add lines that another process has added in the bucket, such as those of an evaluation."""
    text = b''.join(lines)
    if text:
      with contextlib.closing(files.Appender(self.folder / name)) as file:
        file.write(text.decode(errors='replace'))
    return text

  def _remove(self, name: str) -> None:
    with self._note(name) as note:
      if (self.folder / name).exists():
        return
      for number in range(max(len(note.parts), 1)):
        remote.remove(_part_url(remote.join(self.url, name), number))
      note.parts.clear()
      note.size = -1

  # -- notes ----------------------------------------------------------------------------

  def _note_path(self, name: str) -> pathlib.Path:
    return _root(_NOTES) / (self.folder / name).relative_to(_root())

  @contextlib.contextmanager
  def _note(self, name: str) -> Iterator[_Note]:
    """The note of a file, written at the end; other processes wait."""
    path = self._note_path(name).with_name(self._note_path(name).name)
    with files.writing(path):
      path.parent.mkdir(parents=True, exist_ok=True)
      file = path.open('a+', encoding='utf-8')
    with file:
      fcntl.flock(file, fcntl.LOCK_EX)
      file.seek(0)
      note = _Note.from_json(file.read())
      before = note.to_json()
      try:
        yield note
      finally:  # also of a copy that ended half way: its parts are there
        if note.to_json() != before:
          with files.writing(path):
            file.truncate(0)
            file.write(note.to_json())
            file.flush()

  # -- in the background ----------------------------------------------------------------

  def __enter__(self) -> 'Mirror':
    self._copied = {name for name, _ in self._local()}
    self._thread = threading.Thread(target=self._run, name='mirror', daemon=True)
    self._thread.start()
    return self

  def __exit__(self, kind, error, _) -> None:
    if error is not None and buckets.kind(error) == 'transient':  # perhaps of Orbax
      outages.of(self.url).give_up()
    self.stop()
    try:
      self.upload()
    except (UserError, RetryableError) as failure:
      if kind is None:
        raise
      # The other error ends the command, and may be of the same store.
      if not (isinstance(failure, RetryableError) and isinstance(error, RetryableError)):
        _LOG.warning('%s', failure)

  def stop(self) -> None:
    """End the thread, without a last copy."""
    self._over.set()
    while self._thread is not None and self._thread.is_alive():
      self._thread.join(0.5)
      if outages.of(self.url).is_silent():
        break
    self._thread = None

  def _run(self) -> None:
    with outages.in_background(self._over):
      self._copy_again_and_again()

  def _copy_again_and_again(self) -> None:
    failing = False
    while not self._over.wait(self._every):
      try:
        self.upload()
        if failing:
          self._say(f'files of {self.url} are copied again.')
        failing = False
      except Lost as error:
        self.lost = str(error)
        return
      except (UserError, RetryableError) as error:
        if not failing and not self._over.is_set():
          what = str(error).rstrip('.').removesuffix('; run the same command again')
          self._say(f'{what}; the work goes on, and copying is tried again every '
                    f'{self._every:g} seconds.')
        failing = True


def _version(entry: Entry) -> tuple[int, str]:
  return entry.generation, entry.checksum


def _is_hidden(name: str) -> bool:
  return name.startswith('.') and name != owned.MARKER  # which says that a folder is ours


def _without_data(found: dict[str, Entry]) -> dict[str, Entry]:
  """The objects of a listing that are copied."""
  sets = {os.path.dirname(name) for name in found if os.path.basename(name) == _PREPARED
          or name.endswith(f'/{_EXPORTED}')}
  def is_copied(name: str) -> bool:
    parts = name.split('/')
    return not (any(map(_is_hidden, parts)) or _NOT_COPIED in parts[:-1] or any(
        '/'.join(parts[:depth]) in sets for depth in range(len(parts))))
  return {name: entry for name, entry in found.items() if is_copied(name)}


def _lines(data: bytes, number: int) -> list[bytes]:
  """The whole lines of part ``number`` of a file."""
  lines = data.splitlines(keepends=True)[1 if number else 0:]
  return [line for line in lines if line.endswith(b'\n')]
