"""Folders are written to a bucket: made on the disk and uploaded, first a marker, the head last.

What is there is replaced if this program made it, by the rules of storage/owned.py: the marker
lists every object with its size, and documents also with their SHA-256. While objects are replaced,
the marker lists their names alone, so that an interrupted upload can be continued; an object that
is there already, by its size and checksum, is not sent again. Without its head a folder is none of
its kind (a set without manifest.json, a model without config.json), so readers see the old one,
none, or the new one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import hashlib
import logging
import os
import pathlib
from typing import Any, NamedTuple

from ttt_jax.errors import RetryableError, UserError
from ttt_jax.storage import bucket_lease, owned, remote, url_path

_LOG = logging.getLogger(__name__)
_PROBE = '.ttt-jax.probe'
_LEASE = (bucket_lease.NOTE, bucket_lease.CLOCK)  # of the process that writes the folder
_DOCUMENTS = ('.json', '.jsonl', '.md', '.py')


class Copy(NamedTuple):
  """A file of a folder that is an object of the same bucket already; the store copies it."""
  url: str
  size: int
  sha256: str


def check(url: str, kind: str, where: str, earlier: owned.Earlier, example: str,
          probe: bool = True) -> None:
  """UserError unless a folder may be written to ``url``.

  Args:
    url: of the folder.
    kind: of the folder: 'a prepared set'.
    where: what names it, for the sentence: 'config key data.path'.
    earlier: what proves files of a folder without a marker; takes a place (see url_path.py).
    example: a good name in the bucket: 'data'.
    probe: whether to try to write there, too.
  """
  if remote.parent(url) == url:
    raise UserError(f'{where} is {url}, a whole bucket; name a folder in it, such as '
                    f'{url}/{example}.')
  if remote.exists(url):
    raise UserError(f'{where}: {url} exists and is not {kind} but an object; choose another name.')
  found = _files(url)
  marker = _marker(url, found)
  if marker.get('kind', kind) != kind:
    raise UserError(f'{where}: {url} exists and is not {kind} but {marker["kind"]} of ttt-jax; '
                    'choose another name.')
  proven = set() if marker or not found else set(earlier(url_path.place(url)))
  for name, entry in found.items():
    if not (name == owned.MARKER and marker or name == _PROBE or name in proven
            or _is_listed(url, name, entry, marker)):
      raise UserError(f'{where}: {url} exists and is not {kind} that ttt-jax made: {name} is not '
                      'one of its files, or was changed; move it or choose another name.')
  if not probe:
    return
  remote.write_bytes(remote.join(url, _PROBE), b'ttt-jax')  # before the work: may it be written?
  remote.remove(remote.join(url, _PROBE))


@contextlib.contextmanager
def leased(url: str, what: str) -> Iterator[bucket_lease.BucketLease]:
  """A context in which no other process writes the folder at ``url``.

  Args:
    url: of the folder, which may not exist.
    what: names it, for the sentence: '--out gs://bucket/export'.

  Raises:
    lease.InUse: another process does.
    UserError, RetryableError: the bucket cannot be written.
  """
  lease = bucket_lease.BucketLease(url, what, say=_LOG.warning)
  lease.acquire()
  try:
    yield lease
  finally:
    lease.release()
    with contextlib.suppress(UserError, RetryableError):
      for name in _LEASE:
        remote.remove(remote.join(url, name))


def assembly(url: str, process: int = 0) -> pathlib.Path:
  """Where on the disk the folder at ``url`` may be made: below $TTT_JAX_CACHE/uploads.

  Args:
    url: of the folder in the bucket.
    process: of several that make it, each its own files.
  """
  root = pathlib.Path(os.path.abspath(remote.cache_folder() / 'uploads'))
  # No two URLs share a folder, also if one is in the other.
  name = hashlib.sha256(url.encode()).hexdigest()[:16] + (f'-{process}' if process else '')
  return root / name / remote.name(url)


def publish(folder: pathlib.Path, url: str, heads: Sequence[str],
            progress: Callable[[int, int], None] = lambda done, total: None,
            copies: Mapping[str, Copy] | None = None) -> None:
  """Make the objects below ``url`` those of a folder that ``check`` allows to be replaced.

  Args:
    folder: complete, with its marker.
    url: of the folder in the bucket.
    heads: names of the files without which it is none of its kind; removed first, sent last, in
      this order. A folder need not have all of them.
    progress: called with (bytes sent, bytes to send).
    copies: files of the folder that its marker lists and that are not on the disk, by name.
  """
  upload = Upload(url, owned.read_marker(folder), heads, copies)
  new = upload.new(folder)
  if not new and upload.is_there():
    return
  upload.begin()
  upload.send(folder, new, progress)
  upload.finish(folder)


class Upload:
  """The objects below a URL become the files of a folder, or of those of several processes.

  One process calls ``begin``, then each ``send`` with its folder, then one ``finish``.
  """

  def __init__(self, url: str, body: Mapping[str, Any], heads: Sequence[str],
               copies: Mapping[str, Copy] | None = None):
    """
    Args:
      url: of the folder in the bucket; listed here.
      body: of its marker: 'kind', and 'files' of all folders with their entries.
      heads, copies: as of ``publish``.
    """
    self._url, self._body, self._heads = url, dict(body), heads
    self._copies = dict(copies or {})
    self._there = _files(url)
    self._old = [name for name in self._there
                 if name not in body['files'] and name != owned.MARKER]

  def new(self, folder: pathlib.Path) -> list[str]:
    """The files of a folder that are not in the bucket."""
    return [name for name in self._body['files']
            if (name in self._copies or (folder / name).is_file())
            and not self._is_same(folder / name, name)]

  def _is_same(self, path: pathlib.Path, name: str) -> bool:
    found = self._there.get(name)
    if found is None or name not in self._copies:
      return found is not None and remote.is_copy(path, self._url, found)
    source = remote.stat(self._copies[name].url)
    return source is not None and (source.size, source.checksum) == (found.size, found.checksum)

  def is_there(self) -> bool:
    """Whether nothing must be removed, and the marker is in place."""
    return not self._old and owned.MARKER in self._there and remote.read_bytes(
        self._at(owned.MARKER)) == self._marker()

  def _at(self, name: str) -> str:
    return remote.join(self._url, name)

  def _marker(self) -> bytes:
    return owned.marker_text(self._body).encode()

  def begin(self) -> None:
    """What is there is none of its kind from here on."""
    names = dict.fromkeys([*self._body['files'], *self._there])
    names.pop(owned.MARKER, None)
    remote.write_bytes(self._at(owned.MARKER), owned.marker_text(
        self._body | {'files': names}).encode())
    for name in self._heads:
      remote.remove(self._at(name))

  def send(self, folder: pathlib.Path, new: Sequence[str],
           progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Upload what is ``new`` of a folder, but for the heads."""
    names = [name for name in new if name not in self._heads]
    sizes = {name: self._copies[name].size if name in self._copies
             else (folder / name).stat().st_size for name in names}
    total, done = sum(sizes.values()), 0
    def one(name: str) -> None:
      nonlocal done
      if name in self._copies:
        remote.copy(self._copies[name].url, self._at(name))
      else:
        remote.upload(folder / name, self._at(name))
      done += sizes[name]
      progress(done, total)
    remote.each(names, one)

  def finish(self, folder: pathlib.Path) -> None:
    """Remove what does not belong to the folder, and complete it; ``folder`` has the heads."""
    remote.each(self._old, lambda name: remote.remove(self._at(name)))
    remote.write_bytes(self._at(owned.MARKER), self._marker())
    for name in self._heads:
      if name in self._body['files']:
        remote.upload(folder / name, self._at(name))


def _files(url: str) -> dict[str, Any]:
  return {name: entry for name, entry in remote.files(url).items() if name not in _LEASE}


def _marker(url: str, found: dict[str, Any]) -> dict[str, Any]:
  return owned.read_marker(url_path.place(url)) if owned.MARKER in found else {}


def _is_listed(url: str, name: str, entry: Any, marker: dict[str, Any]) -> bool:
  """Whether an object is the one that the marker describes."""
  files = marker.get('files', {})
  if name not in files:
    return False
  listed = files[name]
  if listed is None:  # it was being replaced when the process ended
    return True
  if not isinstance(listed, dict) or listed.get('bytes') != entry.size:
    return False
  return 'sha256' not in listed or not name.endswith(_DOCUMENTS) or (
      hashlib.sha256(remote.read_bytes(remote.join(url, name))).hexdigest() == listed['sha256'])
