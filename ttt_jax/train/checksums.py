"""Checksums of a checkpoint: what tells a complete one from an unfinished or a corrupt one.

  checkpoints/40/...          the files that Orbax wrote and committed by rename
  checkpoints/40/seal.json    by process 0: names and sizes of these files, and metadata
  checkpoints/40/sums.P.json  by process P: the CRC-32 of its share of them

A checkpoint is complete, and can be restored, once seal.json and the sums of all processes exist.
Each of these files is written by rename and starts with the CRC-32 of its own text. A byte that
is flipped or missing anywhere in the folder is therefore found.
"""

from collections.abc import Callable
from concurrent import futures
import json
import pathlib
import time
from typing import Annotated, Any, NotRequired
import zlib

from ttt_jax.errors import UserError
from ttt_jax.storage import files, schema

SEAL = 'seal.json'
_CHUNK = 4 * 2**20  # bytes read at once
_THREADS = 4        # zlib.crc32 releases the interpreter lock
_TIMEOUT = 600.0    # seconds that processes wait for each other's files


# A path below the checkpoint's folder.
_Inside = Annotated[str, schema.Pattern(r'(?!(.*/)?\.{0,2}(/|$))[^\\]+',
                                        'a path inside the folder')]


class Notes(schema.Kind, total=False):
  """The metadata of a checkpoint."""
  meta: dict[str, Any]
  clean: bool
  scores: dict[str, Annotated[float, schema.ANY_NUMBER]]
  saved: float


class SealFile(schema.Kind):
  """seal.json."""
  processes: Annotated[int, schema.Range(1, 2**20)]
  files: dict[_Inside, schema.Count]
  notes: Notes
  sums: NotRequired[dict[_Inside, str]]  # of the store, in a checkpoint that was in a bucket


SumsFile = dict[str, Annotated[int, schema.Range(0, 2**32 - 1)]]


class CorruptCheckpoint(Exception):
  """The files of a checkpoint are not what was written; the sentence names the file."""


def sums_name(process: int) -> str:
  """File name of the checksums that a process wrote."""
  return f'sums.{process}.json'


# -- writing ------------------------------------------------------------------------------


def write(folder: pathlib.Path, process: int, processes: int, metadata: dict[str, Any]) -> None:
  """Write the checksums of a committed checkpoint; every process calls this.

  Process 0 returns once the checkpoint is complete, the others once they have done their share.

  Args:
    folder: of the checkpoint.
    process, processes: index and count; each process reads its share of the files.
    metadata: JSON-ready; that of process 0 is stored.

  Raises:
    UserError: the disk is full, or another process did not do its share in time.
  """
  if process == 0:
    sizes = {str(path.relative_to(folder)): path.stat().st_size
             for path in sorted(folder.rglob('*')) if path.is_file()}
    # 'notes' is the name that version 0.1 wrote.
    _write_signed(folder / SEAL, {'processes': processes, 'files': sizes, 'notes': metadata})
  _wait_for(folder / SEAL)
  names = sorted(_read_seal(folder)['files'])[process::processes]
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    sums = dict(zip(names, pool.map(lambda name: _checksum(folder / name), names)))
  _write_signed(folder / sums_name(process), sums)
  if process == 0:
    for other in range(processes):
      _wait_for(folder / sums_name(other))


def _write_signed(path: pathlib.Path, body: Any) -> None:
  files.write_text(path, signed(body).decode(), durable=True)


def signed(body: Any) -> bytes:
  """JSON after the CRC-32 of its own text."""
  text = json.dumps(body, sort_keys=True)
  return f'{zlib.crc32(text.encode()):08x} {text}\n'.encode()


def _wait_for(path: pathlib.Path) -> None:
  """Poll the shared disk until another process has written ``path``."""
  deadline = time.monotonic() + _TIMEOUT
  while not path.exists():
    if time.monotonic() > deadline:
      raise UserError(f'{path} did not appear within {_TIMEOUT:.0f} s; --workdir must be on a '
                      'disk that all processes of the run share.')
    time.sleep(0.02)


def _checksum(path: pathlib.Path) -> int:
  """CRC-32 of a file."""
  total = 0
  with path.open('rb') as file:
    while chunk := file.read(_CHUNK):
      total = zlib.crc32(chunk, total)
  return total


# -- reading ------------------------------------------------------------------------------


def is_complete(folder: pathlib.Path) -> bool:
  """Whether all checksum files of a checkpoint exist; ``check`` compares them."""
  if not (folder / SEAL).is_file():
    # Sums are written after the seal: one without the other was lost, so ``check`` must see it.
    return (folder / sums_name(0)).is_file()
  try:
    seal = _read_seal(folder)
  except CorruptCheckpoint:
    return True
  processes = 0 if 'sums' in seal else seal['processes']
  return all((folder / sums_name(process)).is_file() for process in range(processes))


def read_metadata(folder: pathlib.Path) -> dict[str, Any]:
  """The metadata that ``write`` stored, with empty 'meta', 'scores' and a true 'clean' if they
  are missing.

  Raises:
    CorruptCheckpoint: seal.json is corrupt.
  """
  return {'meta': {}, 'clean': True, 'scores': {}} | _read_seal(folder)['notes']


def check(folder: pathlib.Path, process: int = 0, processes: int = 1, *, verify: str = 'checksums',
          wanted: Callable[[str], bool] = lambda name: True) -> int:
  """Compare files with what was written.

  Args:
    folder: of a complete checkpoint.
    process, processes: index and count of the readers, which may differ from the writers; each
      compares its share of the files.
    verify: 'checksums' reads every byte; 'sizes' compares names and sizes alone.
    wanted: which files to compare, by their name relative to ``folder``.

  Returns:
    Bytes that this process read.

  Raises:
    CorruptCheckpoint: a file is missing, has another size, or has other bytes.
  """
  seal = _read_seal(folder)
  sums: dict[str, int] = {}
  if 'sums' in seal:  # copied from a bucket, whose checksums are of another kind
    verify, sums = 'sizes', dict.fromkeys(seal['files'], 0)
  else:
    for writer in range(seal['processes']):
      sums |= _read_signed(folder / sums_name(writer), SumsFile)
  missing = sorted(set(seal['files']) - set(sums))
  if missing:
    raise CorruptCheckpoint(f'no process has written a checksum for {folder / missing[0]}')
  names = sorted(filter(wanted, seal['files']))[process::processes]
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    return sum(pool.map(lambda name: _compare(
        folder / name, seal['files'][name], sums[name] if verify == 'checksums' else None), names))


def _compare(path: pathlib.Path, size: int, crc: int | None) -> int:
  """Bytes read; a ``crc`` of None compares the size alone."""
  try:
    found_size = path.stat().st_size
    if found_size != size:
      raise CorruptCheckpoint(f'{path} has {found_size} bytes instead of {size}')
    if crc is None:
      return 0
    found = _checksum(path)
  except OSError as error:
    raise CorruptCheckpoint(f'{path} cannot be read ({error.strerror})') from error
  if found != crc:
    raise CorruptCheckpoint(f'{path} has checksum {found:08x} instead of {crc:08x}')
  return size


def _read_seal(folder: pathlib.Path) -> dict[str, Any]:
  return _read_signed(folder / SEAL, SealFile)


def _read_signed(path: pathlib.Path, kind: Any) -> dict[str, Any]:
  try:
    text = path.read_bytes()
  except OSError as error:
    raise CorruptCheckpoint(f'{path} cannot be read ({error.strerror})') from error
  return parse_signed(text, str(path), kind)


def parse_signed(text: bytes, path: str, kind: Any) -> dict[str, Any]:
  """The values of a file that ``signed`` made.

  Args:
    text: of the file.
    path: of the file, for messages.
    kind: the schema of its values.

  Raises:
    CorruptCheckpoint: it is not what was written.
  """
  try:
    signature, _, body = text.rstrip(b'\n').partition(b' ')
    if text[-1:] != b'\n' or signature != b'%08x' % zlib.crc32(body):
      raise CorruptCheckpoint(f'{path} does not match the checksum at its start')
    values = schema.parse(body, path, 'it was not written by ttt-jax')
    schema.check(values, kind, path, 'it was not written by ttt-jax')
  except UserError as error:
    raise CorruptCheckpoint(str(error).rstrip('.')) from error
  return values
