"""Results of jobs in a bucket, for machines that share no disk.

  URL/current                   TOKEN, the folder of the results; created once, removed first
  URL/TOKEN/jobs/NAME.json      a result: its info, and the sizes and SHA-256 of its files. Created
                                last and exclusively, so a result is there whole or not at all
  URL/TOKEN/parts/NAME-X/FILE   the files of an attempt; nobody reads those that no result names
  URL/workers/K-X/ ...          the board: see team.py; claims/NAME claims a job

Nothing is renamed or replaced, but notes and claims, which name the version that they replace. In a
folder TOKEN nothing is deleted while jobs run. When the set is complete all is deleted, ``current``
first: what a process that was suspended stores afterwards is in a folder that nobody reads.

Files are read by range, without copies on the disk; every ``CHUNK`` bytes have a SHA-256, which
is compared. On the disk is what a running job writes, in $TTT_JAX_CACHE/prepare; it is removed
after the job, and what a killed process leaves by the next one.
"""

from collections.abc import Iterator
from concurrent import futures
import contextlib
import fcntl
import functools
import hashlib
import json
import pathlib
import re
import secrets
import shutil
import tempfile
import time
from typing import Any

import numpy as np

from ttt_jax.data.prepare.board import ASSEMBLY, DONE, FAILED, LOG, WORKERS, Board
from ttt_jax.data.prepare.results import Result, Results, damaged
from ttt_jax.errors import RetryableError, UserError
from ttt_jax.storage import bucket_lease, files, remote
from ttt_jax.storage.bucket_lease import BucketLease

CHUNK = 2**18   # bytes with one SHA-256: what a small read fetches at least
_AT_ONCE = 16   # requests
_CURRENT, _JOBS, _PARTS, _CLAIMS = 'current', 'jobs', 'parts', 'claims'
_LOCK = '.lock'
_NEW = 60.0     # seconds
# Everything else below the URL is a user's, and stays.
_OURS = re.compile('[0-9a-f]{16}|' + '|'.join(map(re.escape, (
    _CURRENT, _CLAIMS, WORKERS, ASSEMBLY, DONE, FAILED, bucket_lease.CLOCK))))


def of_root(root: str) -> 'BucketResults':
  """The opened results that jobs name by ``root``."""
  out = BucketResults(remote.parent(root))
  out.root = root
  return out


class BucketResults(Results):
  """See the module."""

  def __init__(self, url: str):
    self.where, self.root, self.disk = url, '', disk()
    self.board = BucketBoard(url)
    self._disk = contextlib.ExitStack()

  def open(self, alone=False):
    # What killed processes have left stays until the end: one that still runs may complete it.
    if not self._find():
      remote.create(self._current, secrets.token_hex(8).encode())
      self._find()

  @property
  def _current(self) -> str:
    return remote.join(self.where, _CURRENT)

  def _find(self) -> bool:
    """Learns ``root``; False if nothing was opened yet."""
    if not self.root and (found := remote.find_bytes(self._current)) is not None:
      token = found.decode('ascii', 'replace')
      if not re.fullmatch('[0-9a-f]{16}', token):
        raise UserError(f'{self._current} was not written by ttt-jax; remove it, or choose another '
                        'data.path.')
      self.root = remote.join(self.where, token)
    return bool(self.root)

  def lacks(self):
    try:
      remote.check(self.where)
      remote.write_bytes(remote.join(self.root, _PARTS, 'probe'), b'ttt-jax')
      return ''
    except (UserError, RetryableError) as error:
      return f'cannot use the bucket: {error}'

  # -- results ------------------------------------------------------------------------------

  def names(self):
    if not self._find():
      return set()
    return {name.removesuffix('.json') for name in remote.files(remote.join(self.root, _JOBS))}

  def stored(self, names):
    names, found = list(names), {}
    if not self._find():
      return {}
    if len(names) > _AT_ONCE:
      there = self.names()
      names = [name for name in names if name in there]
    def read(name: str) -> None:
      if (text := remote.find_bytes(self._url(name))) is not None:
        found[name] = Result(name, _commit(self._url(name), text)['info'])
    remote.each(names, read)
    return {name: found[name] for name in names if name in found}

  def do(self, function, job, name):
    part = f'{name}-{secrets.token_hex(8)}'
    there = remote.join(self.root, _PARTS, part)
    entries: dict[str, dict[str, Any]] = {}
    with _scratch() as folder:
      info = function(job, folder)
      def send(file: str) -> None:
        path = folder / file
        with files.writing(path):
          entries[file] = {'bytes': path.stat().st_size, 'sha256': _digests(path)}
        remote.upload(path, remote.join(there, file))
      remote.each(sorted(path.name for path in folder.iterdir() if path.name != _LOCK), send)
    text = json.dumps({'info': info, 'part': part, 'files': entries})
    if remote.create(self._url(name), text.encode()):
      return Result(name, info)
    remote.remove_folder(there)  # another process stored the same result
    return self.stored([name])[name]

  def read(self, name, file, start=0, size=-1):
    entry = _files(self._url(name))[file]
    stop = entry['bytes'] if size < 0 else min(start + size, entry['bytes'])
    first = start // CHUNK
    begin, end = first * CHUNK, min(-(-stop // CHUNK) * CHUNK, entry['bytes'])
    if end <= begin:
      return b''
    url = remote.join(self.root, _PARTS, entry['part'], file)
    try:
      data = remote.read_range(url, begin, end)
    except UserError as error:
      raise _damaged(self._url(name), str(error).rstrip('.')) from error
    for number, wanted in enumerate(entry['sha256'][first:-(-end // CHUNK)]):
      if hashlib.sha256(data[number * CHUNK:(number + 1) * CHUNK]).hexdigest() != wanted:
        raise _damaged(self._url(name), f'{url} has other bytes than were stored')
    return data[start - begin:stop - begin]

  def array(self, name, file, start=0, count=-1):
    return np.frombuffer(self.read(name, file, 4 * start, 4 * count if count >= 0 else -1),
                         np.int32)

  def file(self, name, file):
    path = self._copies / f'{name}-{file}'
    if not path.exists():
      self._copy(name, file, path)
    return path

  @contextlib.contextmanager
  def folder(self, name):
    with _scratch() as folder:
      for file in _files(self._url(name)):
        self._copy(name, file, folder / file)
      yield folder

  def _copy(self, name: str, file: str, path: pathlib.Path) -> None:
    size = _files(self._url(name))[file]['bytes']
    with files.writing(path), path.open('wb') as out:
      for start in range(0, size, 64 * CHUNK):
        out.write(self.read(name, file, start, 64 * CHUNK))

  @functools.cached_property
  def _copies(self) -> pathlib.Path:
    return self._disk.enter_context(_scratch())

  def url(self, name, file):
    return remote.join(self.root, _PARTS, _files(self._url(name))[file]['part'], file)

  def address(self, name):
    return self._url(name)

  def put(self, name, text):
    url = remote.join(self.root, name)
    if not remote.exists(url):
      remote.create(url, text.encode('utf-8', 'surrogatepass'))
    return url

  def each(self, function, items):
    with futures.ThreadPoolExecutor(_AT_ONCE) as pool:
      yield from pool.map(function, items)

  def _url(self, name: str) -> str:
    return remote.join(self.root, _JOBS, f'{name}.json')

  # -- all of it ----------------------------------------------------------------------------

  def clear(self, keep=()):
    remote.remove(self._current)
    for name, entry in remote.children(self.where).items():
      if not _OURS.fullmatch(name) or name in keep or name == bucket_lease.CLOCK:
        continue
      if entry is None:
        remote.remove_folder(remote.join(self.where, name))
      else:
        remote.remove(remote.join(self.where, name))
    self.root = ''

  def remove(self, lease: BucketLease):
    self.clear()
    remote.remove(remote.join(self.where, bucket_lease.CLOCK))
    lease.release(remove=True)

  def folder_for(self, folder):
    return self._copies / folder.name

  def close(self):
    self._disk.close()


@functools.lru_cache(4096)
def _files(url: str) -> dict[str, dict[str, Any]]:
  """The files of a result by the URL of its commit: {name: {'bytes', 'sha256', 'part'}}."""
  found = _commit(url, remote.read_bytes(url))
  return {name: entry | {'part': found['part']} for name, entry in found['files'].items()}


def _commit(url: str, text: bytes) -> dict[str, Any]:
  """The contents of the object that makes a result."""
  try:
    found = json.loads(text)
    if found.keys() == {'info', 'part', 'files'}:
      return found
  except (ValueError, AttributeError):
    pass
  raise _damaged(url, f'{url} has other bytes than were stored')


def _damaged(commit: str, what: str) -> RetryableError:
  """The error for a result that cannot be read; it counts as not stored from now on."""
  remote.remove(commit)
  _files.cache_clear()
  return damaged(what)


def _digests(path: pathlib.Path) -> list[str]:
  """SHA-256 of every CHUNK bytes of a file."""
  with path.open('rb') as file:
    return [hashlib.sha256(data).hexdigest() for data in iter(lambda: file.read(CHUNK), b'')]


# -- the disk of this machine -----------------------------------------------------------------


def disk() -> pathlib.Path:
  """Where running jobs write."""
  return remote.cache_folder() / 'prepare'


@contextlib.contextmanager
def _scratch() -> Iterator[pathlib.Path]:
  """An empty folder, apart from its lock, for as long as the context lasts."""
  root = disk()
  with files.writing(root):
    root.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    folder = pathlib.Path(tempfile.mkdtemp(dir=root))
  try:
    with (folder / _LOCK).open('w', encoding='utf-8') as lock:
      with contextlib.suppress(OSError):  # without locks it stays if this process is killed
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      yield folder
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def _sweep(root: pathlib.Path) -> None:
  """Removes the folders of processes that have ended."""
  for lock in root.glob(f'*/{_LOCK}'):
    with contextlib.suppress(OSError), lock.open('r+', encoding='utf-8') as file:
      if time.time() - lock.stat().st_mtime < _NEW:
        continue  # its process may be about to lock it
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      shutil.rmtree(lock.parent, ignore_errors=True)


# -- the board --------------------------------------------------------------------------------


class BucketBoard(Board):
  """Objects below the URL of the results."""
  look = 2.0

  def __init__(self, url: str):
    self._root = url

  def _url(self, name: str) -> str:
    return remote.join(self._root, name)

  def note(self, name):
    return (remote.find_bytes(self._url(name)) or b'').decode('utf-8', 'replace')

  def write(self, name, text):
    remote.write_bytes(self._url(name), text.encode('utf-8', 'replace'))

  def create(self, name, text):
    return remote.create(self._url(name), text.encode('utf-8', 'replace'))

  def discard(self, name):
    remote.remove(self._url(name))
    remote.remove_folder(self._url(name))

  def tidy(self, name):
    pass  # there are no empty folders

  def folders(self, name):
    return [one for one, entry in remote.children(self._url(name)).items() if entry is None]

  def claims(self):
    return set(remote.files(self._url(_CLAIMS)))

  def claimant(self, job):
    return self.note(f'{_CLAIMS}/{job}')

  def claim(self, job, who, instead_of):
    name = f'{_CLAIMS}/{job}'
    if instead_of is None:
      return self.create(name, who)
    entry = remote.stat(self._url(name))  # before it is read
    if self.note(name) != instead_of:
      return False
    return remote.write_version(self._url(name), who.encode(), entry) is not None

  def _unclaim(self, job):
    remote.remove(self._url(f'{_CLAIMS}/{job}'))

  def lease(self, name, what):
    return BucketLease(self._url(name), what=what, say=LOG.warning)

  def has_begun(self, name):
    return remote.exists(self._url(f'{name}/{bucket_lease.NOTE}'))

  def has_ended(self, name):
    return bucket_lease.has_ended(self._url(name))
