"""Folders and files in buckets for code and libraries that need a disk: weights, tokenizers.

``folder`` gives a folder of links to checked copies in the object cache (object_cache.py), which
all processes of a machine share. It is $TTT_JAX_CACHE/folders/VERSION/gs/BUCKET/NAME, where VERSION
identifies the contents: what is there never changes, and a folder that changes in the bucket gets
another one. Who opens a file within an hour, the time for which the cache keeps what was just used,
can read it to its end.
"""

from collections.abc import Sequence
import contextlib
import fnmatch
import hashlib
import json
import os
import pathlib
import re
import shutil
import tempfile

from ttt_jax.errors import UserError
from ttt_jax.storage import files, object_cache, remote


def _root() -> pathlib.Path:
  return pathlib.Path(os.path.abspath(remote.cache_folder() / 'folders'))


def folder(path: str | os.PathLike, patterns: Sequence[str], where: str = '') -> pathlib.Path:
  """The folder on the disk of a folder that may be in a bucket; fetches what is missing.

  Args:
    path: of the folder, which is returned as it is, or its URL.
    patterns: of the names to fetch, as in fnmatch; folders in it are left out.
    where: what names it, for sentences: '--hf'.

  Raises:
    UserError: no such folder or bucket, no permission, or no room for it on the disk.
    RetryableError: the bucket cannot be reached.
  """
  if not remote.is_url(path):
    return pathlib.Path(path)
  url = remote.check(str(path), where)
  prefix = f'{where}: ' if where else ''
  listed = remote.children(url)
  if not listed:
    raise UserError(f'{prefix}{url} ' + ('is an object; name the folder that it is in.'
                                         if remote.exists(url) else 'does not exist.'))
  found = {name: entry for name, entry in listed.items()
           if entry and any(fnmatch.fnmatchcase(name, one) for one in patterns)}
  urls = {name: remote.join(url, name) for name in found}
  copies: dict[str, pathlib.Path] = {}
  def fetch(name: str) -> None:
    copies[name] = object_cache.fetch(urls[name], found[name].size, version=found[name].checksum)
  missing = [name for name, entry in found.items()
             if not object_cache.has(urls[name], entry.size, version=entry.checksum)]
  remote.each([name for name in found if name not in missing], fetch)  # first: keeps them
  if missing:
    with files.writing(object_cache.folder()):
      # For all at once: each alone would not know of the others.
      object_cache.make_room(sum(found[name].size for name in missing), url)
  remote.each(missing, fetch)
  contents = json.dumps([url, sorted((name, entry.size, entry.checksum)
                                     for name, entry in found.items())])
  version = hashlib.sha256(contents.encode()).hexdigest()[:16]
  target = _root() / version / url.replace('://', '/')
  if not target.is_dir():
    with files.writing(target):
      _link(copies, target)
  return target


def _link(copies: dict[str, pathlib.Path], target: pathlib.Path) -> None:
  """Make a folder of links, which appears whole; another process may do the same."""
  target.parent.mkdir(parents=True, exist_ok=True)
  partial = pathlib.Path(tempfile.mkdtemp(prefix='.', dir=target.parent))
  try:
    for name, copy in copies.items():
      (partial / name).symlink_to(os.path.relpath(os.path.abspath(copy), target))
    with contextlib.suppress(FileExistsError):
      os.rename(partial, target)
  except OSError:
    if not target.is_dir():
      raise
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def file(path: str | os.PathLike, where: str = '') -> pathlib.Path:
  """As ``folder``, for one file that may be in a bucket. A path need not exist.

  Raises:
    UserError: no such object or bucket, no permission, or no room for it on the disk.
    RetryableError: the bucket cannot be reached.
  """
  if not remote.is_url(path):
    return pathlib.Path(path)
  url = remote.check(str(path), where)
  entry = remote.stat(url)
  if entry is None:
    raise UserError((f'{where}: ' if where else '') + f'{url} ' + (
        'is a folder; name a file in it.' if remote.is_folder(url) else 'does not exist.'))
  return object_cache.fetch(url, entry.size, version=entry.checksum)


def in_urls(text: str) -> str:
  """A text with URLs in place of the paths of local folders."""
  return re.sub(re.escape(f'{_root()}/') + '[0-9a-f]{16}/(gs|s3)/', r'\1://', text)
