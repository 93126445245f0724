"""Where an export goes: a folder on a disk, or in a bucket, made by one process or by several.

  on a disk     process 0 makes a temporary folder beside OUT, all write their files into it, and
                process 0 renames it last
  in a bucket   every process makes its files in its own cache and uploads them, and process 0
                completes the folder (storage/publish.py)

One export at a time goes to a place. It is read back before it is complete. A single process reads
the files on its disk; in a bucket that several have filled, all read their ranges of the objects.
"""

from collections.abc import Callable, Iterator
import contextlib
import json
import os
import pathlib
from typing import Any

import jax

from ttt_jax.errors import UserError
from ttt_jax.hf import peft, qwen_config
from ttt_jax.storage import files, lease, owned, publish, remote, safetensors_io, schema, url_path
from ttt_jax.train import together

FACTS = 'training.json'  # its presence identifies a folder as an export
CODE = pathlib.Path(__file__).with_name('torch_code')
_KIND = 'an earlier export'
# Uploaded last: without them a folder is no model, and without FACTS no export that is complete.
_HEADS = (peft.CONFIG, qwen_config.CONFIG, FACTS)
_SMALL = {FACTS, 'README.md', qwen_config.CONFIG, 'generation_config.json', 'tokenizer.json',
          'tokenizer_config.json', safetensors_io.INDEX, peft.CONFIG}


class EarlierFacts(schema.Kind):
  """The fields of training.json that every version wrote."""
  step: schema.Count
  part: str
  dtype: str
  files: list[schema.Name]


def _earlier(folder: pathlib.Path) -> set[str]:
  """The files of an export without a marker that its training.json proves to be ours."""
  try:
    facts = schema.read(folder / FACTS, EarlierFacts, '')
  except UserError:
    return set()
  named = set(facts['files'])
  return named and named | _SMALL | {path.name for path in CODE.glob('*.py')}


class Target:
  """The place of one export; see ``opened``.

  Attributes:
    folder: where this process writes its files.
  """
  folder: pathlib.Path

  def __init__(self, out: str | os.PathLike, overwrite: bool):
    """Nothing is looked at before ``take``."""
    self._url = remote.check(str(out), '--out') if remote.is_url(out) else ''
    self._overwrite = overwrite
    self._disk = (publish.assembly(self._url, jax.process_index()) if self._url
                  else pathlib.Path(out).absolute())
    self._building: owned.Building | None = None
    self._lease: Any = None
    self.place = self._url or str(self._disk)  # for sentences

  def take(self, stack: contextlib.ExitStack) -> None:
    """In process 0: check the place, and own it until the end of ``stack``."""
    what = f'--out {self.place}'
    if self._url:
      self._check_bucket()
      self._lease = stack.enter_context(publish.leased(self._url, what))
      self._check_bucket()  # another export may have ended meanwhile
    else:
      target = owned.Building(self._disk, _KIND, '--out', _earlier).target
      self._check_free()
      files.require_writable(target.parent)
      self._lease = stack.enter_context(lease.beside(target, what))
    self._check_free()

  def _check_bucket(self) -> None:
    publish.check(self._url, _KIND, '--out', _earlier, 'export')

  def _check_free(self) -> None:
    place = url_path.place(self.place)
    if (place / FACTS).exists() and not self._overwrite:
      raise UserError(f'{place} holds an earlier export; add --overwrite to replace it, or choose '
                      'another --out.')

  def begin(self, stack: contextlib.ExitStack) -> None:
    """Make the folder that this process writes to, if it is not that of process 0."""
    if self._url or together.is_first():
      self._building = stack.enter_context(owned.Building(self._disk, _KIND, '--out', _earlier))
      self.folder = self._building.folder

  def share(self) -> None:
    """All processes write into the folder of process 0."""
    if not self._url and not together.single():
      self.folder = pathlib.Path(together.from_first(
          str(self.folder) if together.is_first() else ''))
      together.shared(self.folder, '--out')

  def writing(self) -> contextlib.AbstractContextManager[None]:
    """A context in which an error of the disk becomes a sentence."""
    return files.writing(self._disk, 'the export is made there before it is uploaded '
                         '(TTT_JAX_CACHE)' if self._url else '')

  def finish(self, verify: Callable[[pathlib.Path], None]) -> None:
    """Complete the export; all processes call this.

    Args:
      verify: reads the export at a place and raises if it is not what was written, in all
        processes.
    """
    if self._url and not together.single():
      self._finish_bucket(verify)
      return
    verify(self.folder)
    together.run_in_first(self._commit)

  def _commit(self) -> None:
    assert self._building is not None
    self._lease.check()
    self._building.commit()
    if self._url:
      try:
        self._lease.confirm()
        publish.publish(self._disk, self._url, _HEADS)
      finally:
        owned.remove(self._disk)

  def _finish_bucket(self, verify: Callable[[pathlib.Path], None]) -> None:
    """Several processes have made their files, each in a folder of its own."""
    assert self._building is not None
    try:
      own = together.run(self._entries)
      found = [json.loads(data) for data in together.exchange(json.dumps(own).encode())]
      body = {'kind': _KIND, 'files': {name: entry for one in found for name, entry in one.items()}}
      upload = together.run(lambda: publish.Upload(self._url, body, _HEADS))
      new = together.run(lambda: upload.new(self._disk))
      together.run_in_first(upload.begin)
      together.run(lambda: upload.send(self._disk, new))
      verify(url_path.place(self._url))
      together.run_in_first(lambda: self._lease.confirm())
      together.run_in_first(lambda: upload.finish(self._disk))
    finally:
      if self._disk.exists():
        owned.remove(self._disk)

  def _entries(self) -> dict[str, Any]:
    """The entries of this process' files in the marker."""
    assert self._building is not None
    self._building.commit()
    self.folder = self._disk
    return owned.read_marker(self._disk)['files']


@contextlib.contextmanager
def opened(out: str | os.PathLike, overwrite: bool) -> Iterator[Target]:
  """A context in which an export is made; without ``finish``, nothing of it stays on the disk, and
  in a bucket nothing that is complete. All processes enter it.

  Args:
    out: a folder that does not exist, or is empty; or its URL.
    overwrite: replace an earlier export there.

  Raises:
    UserError: ``out`` is not empty, cannot be written, or another export goes there.
    RetryableError: the bucket cannot be reached.
  """
  with contextlib.ExitStack() as stack:
    target = together.run(lambda: Target(out, overwrite))
    together.run_in_first(lambda: target.take(stack))
    together.run(lambda: target.begin(stack))
    try:
      target.share()
      yield target
    except Exception as error:
      if together.is_agreed(error):
        together.barrier()  # until nobody writes into the folder, which is removed now
      raise
