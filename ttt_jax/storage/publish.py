"""Folders are written to a bucket: made on the disk and uploaded, first a marker, the head last.

What is there is replaced if this program made it, by the rules of storage/owned.py: the marker
lists every object with its size, and documents also with their SHA-256. While objects are replaced,
the marker lists their names alone, so that an interrupted upload can be continued; an object that
is there already, by its size and checksum, is not sent again. Without its head a folder is none of
its kind (a set without manifest.json, a model without config.json), so readers see the old one,
none, or the new one.
"""

from collections.abc import Callable, Sequence
import hashlib
import os
import pathlib
from typing import Any

from ttt_jax.errors import UserError
from ttt_jax.storage import owned, remote, url_path

_PROBE = '.ttt-jax.probe'
_DOCUMENTS = ('.json', '.jsonl', '.md', '.py')


def check(url: str, kind: str, where: str, earlier: owned.Earlier, example: str) -> None:
  """UserError unless a folder may be written to ``url``.

  Args:
    url: of the folder.
    kind: of the folder: 'a prepared set'.
    where: what names it, for the sentence: 'config key data.path'.
    earlier: what proves files of a folder without a marker; takes a place (see url_path.py).
    example: a good name in the bucket: 'data'.
  """
  if remote.parent(url) == url:
    raise UserError(f'{where} is {url}, a whole bucket; name a folder in it, such as '
                    f'{url}/{example}.')
  if remote.exists(url):
    raise UserError(f'{where}: {url} exists and is not {kind} but an object; choose another name.')
  found = remote.files(url)
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
  remote.write_bytes(remote.join(url, _PROBE), b'ttt-jax')  # before the work: may it be written?
  remote.remove(remote.join(url, _PROBE))


def assembly(url: str) -> pathlib.Path:
  """Where on the disk the folder at ``url`` may be made: below $TTT_JAX_CACHE/uploads."""
  root = pathlib.Path(os.path.abspath(remote.cache_folder() / 'uploads'))
  # No two URLs share a folder, also if one is in the other.
  return root / hashlib.sha256(url.encode()).hexdigest()[:16] / remote.name(url)


def publish(folder: pathlib.Path, url: str, heads: Sequence[str],
            progress: Callable[[int, int], None] = lambda done, total: None) -> None:
  """Make the objects below ``url`` those of a folder that ``check`` allows to be replaced.

  Args:
    folder: complete, with its marker.
    url: of the folder in the bucket.
    heads: names of the files without which it is none of its kind; removed first, sent last, in
      this order. A folder need not have all of them.
    progress: called with (bytes sent, bytes to send).
  """
  there = remote.files(url)
  here = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob('*'))
          if path.is_file()}
  new = [name for name, path in here.items()
         if name not in there or not remote.is_copy(path, url, there[name])]
  old = [name for name in there if name not in here]
  if not new and not old:
    return
  last = [name for name in (owned.MARKER, *heads) if name in here]
  names = dict.fromkeys([*here, *there])
  names.pop(owned.MARKER, None)
  remote.write_bytes(remote.join(url, owned.MARKER), owned.marker_text(
      {'kind': owned.read_marker(folder)['kind'], 'files': names}).encode())
  for name in heads:
    remote.remove(remote.join(url, name))
  total, done = sum(here[name].stat().st_size for name in new), 0
  def send(name: str) -> None:
    nonlocal done
    remote.upload(here[name], remote.join(url, name))
    done += here[name].stat().st_size
    progress(done, total)
  remote.each([name for name in new if name not in last], send)
  remote.each([name for name in old if name != owned.MARKER],
              lambda name: remote.remove(remote.join(url, name)))
  for name in last:
    remote.upload(here[name], remote.join(url, name))


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
