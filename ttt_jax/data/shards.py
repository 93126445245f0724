"""The files of a split in a bucket, as copies on the local disk (storage/object_cache.py).

A file is fetched when one of its rows is read, or before, in the order of ``fetch_ahead``. The
manifest says which bytes are right: a copy with another SHA-256 is never read.
"""

from collections.abc import Iterable, Sequence
import bisect
import collections
import itertools
import pathlib
import threading
from typing import Any, NamedTuple
import weakref

from ttt_jax.errors import RetryableError, UserError
from ttt_jax.storage import object_cache, outages, url_path

_AHEAD = 8  # files fetched at once
_NEVER = threading.Event()


class Instruction(NamedTuple):
  """A file as array_record takes it, so that it is opened when its first row is read."""
  filename: str
  skip: int
  take: int
  examples_in_shard: int


class Shards:
  """Local copies of the files of one split."""

  def __init__(self, folder: pathlib.Path, entries: Sequence[dict[str, Any]]):
    """Compares the bucket's listing with the manifest; no file is fetched yet.

    Args:
      folder: the set, a URL.
      entries: the files of the split in its manifest.

    Raises:
      UserError: a file is missing or has another size, or the disk has no room for the copies.
    """
    listed = {path.name: path.stat() for path in folder.iterdir() if path.is_file()}
    self._files = []
    for entry in entries:
      path, found = folder / entry['name'], listed.get(entry['name'])
      check(path, found and found.st_size, entry)
      assert found is not None, 'checked'
      self._files.append((str(path), entry['bytes'], entry.get('sha256', ''),
                          str(url_path.version_of(found))))
    self._ready = [False] * len(entries)
    self._stops = list(itertools.accumulate(entry.get('rows', 0) for entry in entries))
    self._waiting: collections.deque[int] = collections.deque()
    missing = sum(one[1] for one in self._files if not object_cache.has(*one))
    room = object_cache.room()
    if missing > room:
      raise UserError(
          f'the rows of {folder} have {missing / 1e9:,.1f} GB that are not on this machine yet, '
          f'but {object_cache.folder()} has room for {max(0, room) / 1e9:,.1f} GB; set '
          'TTT_JAX_CACHE to a folder on a larger disk.')
    # Files of version 0.1 may have no number of rows: they are opened to count them.
    self.paths: list[Any] = [str(object_cache.path_of(*one)) for one in self._files]
    if all('rows' in entry for entry in entries):
      self.paths = [Instruction(path, 0, entry['rows'], entry['rows'])
                    for path, entry in zip(self.paths, entries)]
    else:
      for number in range(len(entries)):
        self._fetch(number)

  def require(self, row: int) -> None:
    """Fetch the file of a row unless it is there.

    Raises:
      UserError, RetryableError: see object_cache.fetch.
    """
    number = bisect.bisect_right(self._stops, row)
    if not self._ready[number]:
      self._fetch(number)

  def lost(self, row: int) -> bool:
    """Whether the copy of a row's file has been removed; it is fetched again then."""
    number = bisect.bisect_right(self._stops, row)
    if object_cache.has(*self._files[number]):
      return False
    self._fetch(number)
    return True

  def _fetch(self, number: int) -> None:
    object_cache.fetch(*self._files[number])
    self._ready[number] = True

  def fetch_ahead(self, rows: Iterable[int]) -> None:
    """Fetch all files in the background: first those of ``rows``, in their order."""
    order: dict[int, None] = {}
    for row in rows:
      order[bisect.bisect_right(self._stops, row)] = None
      if len(order) == len(self._files):
        break
    order |= dict.fromkeys(range(len(self._files)))
    self._waiting = collections.deque(number for number in order if not self._ready[number])
    for _ in range(min(_AHEAD, len(self._waiting))):
      threading.Thread(target=_work, args=(weakref.ref(self),), daemon=True,
                       name='shards').start()


def _work(shards: 'weakref.ref[Shards]') -> None:
  """Fetch files until none is waiting or nobody reads them any more."""
  while (mine := shards()) is not None:
    try:
      number = mine._waiting.popleft()
      if not mine._ready[number]:
        with outages.in_background(_NEVER):
          mine._fetch(number)
    except IndexError:
      return
    except (UserError, RetryableError, OSError):
      pass  # raised again where a row of the file is read
    del mine


def check(path: Any, size: int | None, entry: dict[str, Any]) -> None:
  """UserError unless a file of ``size`` bytes, None = missing, is the one of the manifest."""
  if size is None:
    raise UserError(f'{path} is missing from the prepared set; run `ttt-jax prepare` again.')
  if size != entry['bytes']:
    raise UserError(f'{path} has {size:,} bytes but the manifest says {entry["bytes"]:,}; copy it '
                    'again, or run `ttt-jax prepare` again.')
