"""A prepared set is written to a bucket: it is assembled on the disk and uploaded, manifest last.

What is there is replaced if this program made it, by the rules of storage/owned.py: the marker
lists every object with its size, and documents also with their SHA-256. While objects are replaced,
the marker lists their names alone, so that an interrupted upload can be continued; an object that
is there already, by its size and checksum, is not sent again. Without its manifest.json a set is
no set, so readers see the old one, none, or the new one.
"""

from collections.abc import Callable
import hashlib
import pathlib
from typing import Any

from ttt_jax.data import store
from ttt_jax.errors import UserError
from ttt_jax.storage import owned, remote, url_path

_PROBE = '.ttt-jax.probe'
_DOCUMENTS = ('.json', '.jsonl')


def check(url: str, kind: str, where: str, sign: str) -> None:
  """UserError unless a set may be written to ``url``.

  Args:
    url: of the set.
    kind: of the folder: 'a prepared set'.
    where: what names it, for the sentence: 'config key data.path'.
    sign: what the list of rejected records beside the set holds.
  """
  if remote.parent(url) == url:
    raise UserError(f'{where} is {url}, a whole bucket; name a folder in it, such as {url}/data.')
  if remote.exists(url):
    raise UserError(f'{where}: {url} exists and is not {kind} but an object; choose another name.')
  found = remote.files(url)
  marker = _marker(url, found)
  if marker.get('kind', kind) != kind:
    raise UserError(f'{where}: {url} exists and is not {kind} but {marker["kind"]} of ttt-jax; '
                    'choose another name.')
  proven = set() if marker or not found else store.proven_files(url_path.place(url))
  for name, entry in found.items():
    if not (name == owned.MARKER and marker or name == _PROBE or name in proven
            or _is_listed(url, name, entry, marker)):
      raise UserError(f'{where}: {url} exists and is not {kind} that ttt-jax made: {name} is not '
                      'one of its files, or was changed; move it or choose another name.')
  rejects = rejects_url(url)
  if remote.exists(rejects) and sign.encode() not in remote.read_bytes(rejects)[:2**16]:
    raise UserError(f'{where}: {rejects} exists and was not written by ttt-jax; move it, or choose '
                    'another name.')
  remote.write_bytes(remote.join(url, _PROBE), b'ttt-jax')  # before the work: may it be written?
  remote.remove(remote.join(url, _PROBE))


def rejects_url(url: str) -> str:
  """The URL of the list of rejected records beside a set."""
  return f'{url}.rejects.jsonl'


def publish(folder: pathlib.Path, url: str, progress: Callable[[int, int], None]) -> None:
  """Make the objects below ``url`` those of a folder that ``check`` allows to be replaced.

  Args:
    folder: the complete set, with its marker.
    url: of the set.
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
  last = [name for name in (owned.MARKER, store.MANIFEST) if name in here]
  names = dict.fromkeys([*here, *there])
  names.pop(owned.MARKER, None)
  remote.write_bytes(remote.join(url, owned.MARKER), owned.marker_text(
      {'kind': owned.read_marker(folder)['kind'], 'files': names}).encode())
  remote.remove(remote.join(url, store.MANIFEST))
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
