"""Checksums of a checkpoint in a bucket; train/checksums.py has those on a disk.

  checkpoints/40/...         the objects that Orbax wrote, under their final names
  checkpoints/40/seal.json   by process 0, last: names, sizes and checksums of these objects, and
                             metadata

An object appears whole, and a listing tells the checksum that the store computed when it arrived
(CRC32C, or the ETag of S3). So nothing is read back: sealing is one listing and one write, checking
is one read and one listing. A checkpoint is complete once it has a seal.
"""

from collections.abc import Callable
import re
from typing import Any

from ttt_jax.errors import UserError
from ttt_jax.storage import remote
from ttt_jax.train import checksums
from ttt_jax.train.checksums import CorruptCheckpoint, SEAL

_MARKS = ('DAMAGED', 'DELETING')
_SUMS = re.compile(r'sums\.[0-9]+\.json')  # of a checkpoint that was copied from a disk


def _is_data(name: str) -> bool:
  return name != SEAL and name not in _MARKS and not _SUMS.fullmatch(name)


def write(folder: str, process: int, processes: int, metadata: dict[str, Any]) -> None:
  """Seal a checkpoint that Orbax has committed; process 0 alone does it.

  Args:
    folder: URL of the checkpoint.
    process, processes: index and count of the run's processes.
    metadata: JSON-ready.

  Raises:
    UserError, RetryableError: the bucket cannot be read or written.
  """
  if process:
    return
  found = {name: entry for name, entry in remote.files(folder).items() if _is_data(name)}
  remote.write_bytes(remote.join(folder, SEAL), checksums.signed({
      'processes': processes, 'files': {name: entry.size for name, entry in found.items()},
      'notes': metadata, 'sums': {name: entry.checksum for name, entry in found.items()}}))


def read_seal(folder: str) -> dict[str, Any]:
  """The fields of seal.json.

  Raises:
    CorruptCheckpoint: it is missing or corrupt.
  """
  url = remote.join(folder, SEAL)
  try:
    text = remote.read_bytes(url)
  except UserError as error:
    raise CorruptCheckpoint(str(error).rstrip('.')) from error
  return checksums.parse_signed(text, url, checksums.SealFile)


def read_metadata(folder: str) -> dict[str, Any]:
  """As checksums.read_metadata."""
  return {'meta': {}, 'clean': True, 'scores': {}} | read_seal(folder)['notes']


def check(folder: str, process: int = 0, processes: int = 1, *, verify: str = 'checksums',
          wanted: Callable[[str], bool] = lambda name: True) -> int:
  """As checksums.check, of a checkpoint in a bucket; every process lists all of it.

  A checkpoint that was copied from a disk, whose seal has no sums of the store, is compared by
  sizes.

  Returns:
    0: no data is read.
  """
  seal = read_seal(folder)
  sums = seal.get('sums', {}) if verify == 'checksums' else {}
  found = remote.files(folder)
  for name in filter(wanted, seal['files']):
    url, entry = remote.join(folder, name), found.get(name)
    if entry is None:
      raise CorruptCheckpoint(f'{url} is missing')
    if entry.size != seal['files'][name]:
      raise CorruptCheckpoint(f'{url} has {entry.size} bytes instead of {seal["files"][name]}')
    if sums and entry.checksum != sums.get(name):
      raise CorruptCheckpoint(f'{url} has checksum {entry.checksum} instead of {sums.get(name)}')
  return 0
