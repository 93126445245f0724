"""Reading compressed files (.gz, .zst); a truncated file is an error."""

import contextlib
import gzip
import io
import pathlib
from typing import IO, BinaryIO, Iterator, cast
import zlib

from ttt_jax.errors import UserError

ENDINGS = ('.gz', '.zst')
_PIECE = 2**20


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[IO[bytes]]:
  """Opens a file for reading its decompressed bytes.

  Raises:
    UserError: while reading: a damaged or truncated file.
  """
  try:
    if path.suffix.lower() == '.gz':
      with gzip.open(path) as file:
        yield cast(IO[bytes], file)
    elif path.suffix.lower() == '.zst':
      with path.open('rb') as file:
        yield io.BufferedReader(_Zst(file), _PIECE)
    else:
      with path.open('rb') as file:
        yield file
  except (EOFError, gzip.BadGzipFile, zlib.error, _Broken) as error:
    raise UserError(f'data file {path} is damaged or truncated ({error}); copy it again.'
                    ) from error
  except OSError as error:
    raise UserError(f'data file {path} cannot be read: {error.strerror}.') from error


class _Broken(ValueError):
  """A .zst that cannot be decompressed to its end."""


class _Zst(io.RawIOBase):
  """A stream of Zstandard frames; unlike zstandard's own reader it detects truncation."""

  def __init__(self, file: BinaryIO):
    import zstandard
    self._new = zstandard.ZstdDecompressor().decompressobj
    self._error = zstandard.ZstdError
    self._file, self._frame, self._ready = file, None, b''

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    while not self._ready:
      data = self._frame.unused_data if self._frame and self._frame.eof else b''
      data = data or self._file.read(_PIECE)
      if not data:
        if self._frame and not self._frame.eof:
          raise _Broken('the last frame does not end')
        return 0
      if self._frame is None or self._frame.eof:
        self._frame = self._new()
      try:
        self._ready = self._frame.decompress(data)
      except self._error as error:
        raise _Broken(str(error)) from error
    size = min(len(buffer), len(self._ready))
    buffer[:size], self._ready = self._ready[:size], self._ready[size:]
    return size
