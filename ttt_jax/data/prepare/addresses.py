"""Results by what jobs call them: the root of all, or the address of one.

A root is a folder or a URL. The address of a result is its folder, or the URL of the object that
makes it a result.
"""

from collections.abc import Iterator
import contextlib
import functools
import pathlib

from ttt_jax.data.prepare import bucket_results
from ttt_jax.data.prepare.folder_results import FolderResults
from ttt_jax.data.prepare.results import Results
from ttt_jax.storage import url_path


@functools.lru_cache(8)
def at(root: str) -> Results:
  """The results with this root."""
  if url_path.is_url(root):
    return bucket_results.of_root(root)
  return FolderResults(pathlib.Path(root))


@contextlib.contextmanager
def folder_at(address: str) -> Iterator[pathlib.Path]:
  """The files of a result by its address; any other folder or URL is returned as it is."""
  if (found := _in_bucket(address)) is None:
    yield url_path.place(address)
    return
  results, name = found
  with results.folder(name) as folder:
    yield folder


def read_at(address: str, file: str, start: int, size: int) -> bytes:
  """``Results.read`` of a result by its address."""
  if (found := _in_bucket(address)) is None:
    path = pathlib.Path(address)
    return FolderResults(path.parent).read(path.name, file, start, size)
  results, name = found
  return results.read(name, file, start, size)


def _in_bucket(address: str) -> tuple[Results, str] | None:
  if not url_path.is_url(address) or not address.endswith('.json'):
    return None
  root, _, name = address.removesuffix('.json').rsplit('/', 2)
  return at(root), name
