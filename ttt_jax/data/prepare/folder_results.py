"""Results on a disk that all processes see: each is a folder that holds info.json.

It is written under a temporary name and renamed.
"""

import contextlib
import json
import os
import pathlib
import re
import secrets
import shutil

import numpy as np

from ttt_jax.data.prepare.board import ASSEMBLY, DONE, FAILED, WORKERS, FolderBoard, delete
from ttt_jax.data.prepare.results import Result, Results, damaged
from ttt_jax.storage import files
from ttt_jax.storage.lease import LOCK, Lease

INFO = 'info.json'
_NAME = re.compile(r'[0-9a-f]{24}')
# Everything else in the folder is a user's, and stays.
_OURS = re.compile(
    r'[0-9a-f]{24}(\.part-[0-9a-f-]+|\.claim)?|codec|tokenizer\.json|lock|\..+\.partial|'
    + '|'.join(map(re.escape, (WORKERS, ASSEMBLY, DONE, FAILED))))


class FolderResults(Results):
  """See the module."""

  def __init__(self, folder: pathlib.Path):
    self._folder = self.disk = folder
    self.where = self.root = str(folder)
    self.board = FolderBoard(folder)

  def open(self, alone=False):
    files.require_writable(self._folder)
    if alone:
      for stale in self._folder.glob('*.part-*'):
        if _OURS.fullmatch(stale.name):
          delete(stale)

  def lacks(self):
    if (self._folder / LOCK).exists():
      return ''
    return (f'does not see the folder {self._folder}; put workdir, sources and the folder that you '
            'start in on a disk that all nodes share, or data.path into a bucket.')

  def names(self):
    try:
      return {name for name in os.listdir(self._folder) if _NAME.fullmatch(name)}
    except (FileNotFoundError, NotADirectoryError):
      return set()

  def stored(self, names):
    return {name: found for name in names if (found := self._stored(name))}

  def _stored(self, name: str) -> Result | None:
    try:
      return Result(name, json.loads((self._folder / name / INFO).read_text(encoding='utf-8')))
    except (FileNotFoundError, NotADirectoryError):
      return None
    except ValueError:
      delete(self._folder / name)
      raise damaged(f'{self._folder / name / INFO} is not JSON') from None

  def do(self, function, job, name):
    folder = self._folder / name
    # A process of another machine may have the same number.
    partial = folder.with_name(f'{name}.part-{os.getpid()}-{secrets.token_hex(4)}')
    try:
      partial.mkdir()
      info = function(job, partial)
      with (partial / INFO).open('w', encoding='utf-8') as file:
        json.dump(info, file)
      _flush(partial)
      try:
        os.rename(partial, folder)
      except OSError:
        if not (folder / INFO).is_file():  # else another process stored the same result
          raise
    finally:
      shutil.rmtree(partial, ignore_errors=True)
    return Result(name, info)

  def read(self, name, file, start=0, size=-1):
    with (self._folder / name / file).open('rb') as opened:
      opened.seek(start)
      return opened.read(size)

  def array(self, name, file, start=0, count=-1):
    path = self._folder / name / file
    if count < 0 and not start:
      return np.memmap(path, np.int32, 'r')
    return np.fromfile(path, np.int32, count, offset=4 * start)

  def file(self, name, file):
    return self._folder / name / file

  @contextlib.contextmanager
  def folder(self, name):
    yield self._folder / name

  def address(self, name):
    return str(self._folder / name)

  def put(self, name, text):
    files.write_text(self._folder / name, text)
    return str(self._folder / name)

  def clear(self, keep=()):
    for path in self._folder.iterdir():
      if _OURS.fullmatch(path.name) and path.name not in keep:
        delete(path)

  def remove(self, lease: Lease):
    lease.stop()
    self.clear()
    lease.release()
    delete(self._folder / LOCK)
    with contextlib.suppress(OSError):
      self._folder.rmdir()

  def close(self):
    pass


def _flush(folder: pathlib.Path) -> None:
  """Forces files to disk, so that after a power failure a renamed folder is complete."""
  for path in folder.iterdir():
    with path.open('rb') as file:
      os.fsync(file.fileno())
