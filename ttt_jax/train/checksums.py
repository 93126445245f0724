"""Seals: how a finished checkpoint is told from a half-written and from a damaged one.

  checkpoints/40/...          what Orbax wrote, committed by rename
  checkpoints/40/seal.json    by process 0: the names and sizes of these files, and notes
  checkpoints/40/sums.P.json  by process P: the CRC-32 of its share of them

A checkpoint is sealed, and counts, once seal.json and the sums of all processes are there.
Each of these files is written by rename and carries the CRC-32 of its own text, so a byte
that is flipped or cut off anywhere in the folder is found.
"""

from concurrent import futures
import json
import pathlib
import time
from typing import Any
import zlib

from ttt_jax.errors import UserError
from ttt_jax.storage import files

SEAL = 'seal.json'
_CHUNK = 4 * 2**20  # bytes read at once
_READERS = 4        # threads; a CRC does not hold the interpreter
_PATIENCE = 600.0   # seconds that processes wait for each other's files


class CorruptCheckpoint(Exception):
  """A checkpoint is not what was written; the text is one sentence that names the file."""


def sums_name(process: int) -> str:
  return f'sums.{process}.json'


# -- writing ------------------------------------------------------------------------------


def write(folder: pathlib.Path, process: int, processes: int, notes: dict[str, Any]) -> None:
  """Seal a committed checkpoint; every process calls this, and process 0 returns last.

  Args:
    folder: of the checkpoint.
    process, processes: which of how many this is; each reads back its share of the files.
    notes: JSON-ready, kept in the seal (process 0's count).

  Raises:
    UserError: the disk is full, or another process never did its part.
  """
  if process == 0:
    sizes = {str(path.relative_to(folder)): path.stat().st_size
             for path in sorted(folder.rglob('*')) if path.is_file()}
    _write_signed(folder / SEAL, {'processes': processes, 'files': sizes, 'notes': notes})
  _await(folder / SEAL)
  names = sorted(_read_signed(folder / SEAL)['files'])[process::processes]
  with futures.ThreadPoolExecutor(_READERS) as pool:
    sums = dict(zip(names, pool.map(lambda name: _checksum(folder / name)[0], names)))
  _write_signed(folder / sums_name(process), sums)
  if process == 0:
    for other in range(processes):
      _await(folder / sums_name(other))


def _write_signed(path: pathlib.Path, body: Any) -> None:
  text = json.dumps(body, sort_keys=True)
  files.write_text(path, f'{zlib.crc32(text.encode()):08x} {text}\n', durable=True)


def _await(path: pathlib.Path) -> None:
  """Until another process has written ``path`` on the disk that all share."""
  until = time.monotonic() + _PATIENCE
  while not path.exists():
    if time.monotonic() > until:
      raise UserError(f'{path} did not appear within {_PATIENCE:.0f} s; --workdir must be on a '
                      'disk that all processes of the run share.')
    time.sleep(0.02)


def _checksum(path: pathlib.Path) -> tuple[int, int]:
  """(CRC-32, bytes) of a file."""
  total = size = 0
  with path.open('rb') as file:
    while chunk := file.read(_CHUNK):
      total = zlib.crc32(chunk, total)
      size += len(chunk)
  return total, size


# -- reading ------------------------------------------------------------------------------


def is_sealed(folder: pathlib.Path) -> bool:
  """Whether all of the seal is there; ``check`` says whether it holds."""
  if not (folder / SEAL).is_file():
    return (folder / sums_name(0)).is_file()  # lost: no process writes its sums before it
  try:
    processes = _read_signed(folder / SEAL)['processes']
  except CorruptCheckpoint:
    return True
  return all((folder / sums_name(process)).is_file() for process in range(processes))


def notes(folder: pathlib.Path) -> dict[str, Any]:
  """What the seal was given to keep.

  Raises:
    CorruptCheckpoint: the seal is broken.
  """
  return _read_signed(folder / SEAL)['notes']


def check(folder: pathlib.Path, process: int = 0, processes: int = 1) -> None:
  """Compare every file with the seal.

  Args:
    folder: of a sealed checkpoint.
    process, processes: of those that read, which may be other than those that wrote; each
      compares its share of the files.

  Raises:
    CorruptCheckpoint: a file is missing, longer or shorter, or has other bytes.
  """
  seal = _read_signed(folder / SEAL)
  sums = {}
  for writer in range(seal['processes']):
    sums |= _read_signed(folder / sums_name(writer))
  missing = sorted(set(seal['files']) - set(sums))
  if missing:
    raise CorruptCheckpoint(f'nobody wrote down a checksum for {folder / missing[0]}')
  names = sorted(seal['files'])[process::processes]
  with futures.ThreadPoolExecutor(_READERS) as pool:
    for _ in pool.map(lambda name: _compare(folder / name, seal['files'][name], sums[name]), names):
      pass


def _compare(path: pathlib.Path, size: int, crc: int) -> None:
  try:
    found_size = path.stat().st_size
    if found_size != size:
      raise CorruptCheckpoint(f'{path} has {found_size} bytes instead of {size}')
    found, _ = _checksum(path)
  except OSError as error:
    raise CorruptCheckpoint(f'{path} cannot be read ({error.strerror})') from error
  if found != crc:
    raise CorruptCheckpoint(f'{path} has checksum {found:08x} instead of {crc:08x}')


def _read_signed(path: pathlib.Path) -> Any:
  try:
    text = path.read_bytes()
    signature, _, body = text.rstrip(b'\n').partition(b' ')
    if text[-1:] != b'\n' or signature != b'%08x' % zlib.crc32(body):
      raise CorruptCheckpoint(f'{path} does not have the checksum that it carries')
    return json.loads(body)
  except OSError as error:
    raise CorruptCheckpoint(f'{path} cannot be read ({error.strerror})') from error
