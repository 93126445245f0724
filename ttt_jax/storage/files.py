"""Small files: written atomically, by rename; JSON; hashes; errors of a full disk."""

import errno
import hashlib
import json
import os
import pathlib
import re
from typing import Any

from ttt_jax.errors import UserError

FULL = {errno.ENOSPC: 'the disk is full', errno.EDQUOT: 'the quota of the disk is used up',
        errno.EFBIG: 'a file there would grow beyond its limit'}
_TENSORSTORE = re.compile(r"os_error_code='(\d+)'")  # how TensorStore reports an errno


def write_text(path: str | os.PathLike, text: str, *, durable: bool = False) -> None:
  """Replace the file at ``path`` atomically: a reader sees the old text or the new text.

  Args:
    path: in a folder that exists.
    text: of the file, written as UTF-8.
    durable: wait for fsync, so that the text survives a power failure.

  Raises:
    UserError: it cannot be written, as when the disk is full; the old file stays.
  """
  path = pathlib.Path(path)
  partial = path.with_name(f'{path.name}.partial')
  try:
    with partial.open('w', encoding='utf-8') as file:
      file.write(text)
      if durable:
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
  except OSError as error:
    partial.unlink(missing_ok=True)
    raise cannot_write(path, error) from error


def read_json(path: str | os.PathLike) -> dict[str, Any]:
  """A JSON object, or {} if there is no such file; another process may be replacing it.

  Raises:
    UserError: the file is not JSON, or not an object.
  """
  path = pathlib.Path(path)
  try:
    values = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    return {}
  except ValueError as error:
    raise UserError(f'{path} is not JSON ({error}); delete it and run the command that writes it '
                    'again.') from error
  if not isinstance(values, dict):
    raise UserError(f'{path} is not a JSON object; delete it and run the command that writes it '
                    'again.')
  return values


def sha256(path: str | os.PathLike) -> str:
  """Hex digest of a file's bytes."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def cannot_write(path: str | os.PathLike, error: BaseException,
                 kept: str = 'older checkpoints are intact') -> UserError:
  """The error for a failed write to ``path``; ``kept`` says what is not lost."""
  code = system_code(error)
  why = FULL.get(code) or (os.strerror(code) if code else str(error))
  return UserError(f'{path} could not be written: {why}; {kept}; free some space '
                   'or change the permissions, then run the same command again.')


def system_code(error: BaseException | None) -> int:
  """The errno of an exception or of one of its causes; 0 if none has one."""
  while error is not None:
    if isinstance(error, OSError) and error.errno:
      return error.errno
    reported = _TENSORSTORE.search(str(error))
    if reported:
      return int(reported.group(1))
    error = error.__cause__ or error.__context__
  return 0
