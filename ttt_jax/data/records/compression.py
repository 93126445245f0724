"""Reading compressed files (.gz, .zst); truncated files and decompression bombs are errors."""

import contextlib
import gzip
import io
import pathlib
from typing import IO, BinaryIO, Iterator, cast
import zlib

from ttt_jax.data.records import limits
from ttt_jax.errors import UserError

ENDINGS = ('.gz', '.zst')
_PIECE = 2**20
_BITE = 2**10  # compressed bytes; Zstandard makes up to 32 MiB of them


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[io.BufferedReader]:
  """Opens a file for reading its decompressed bytes.

  Raises:
    UserError: while reading: a damaged or truncated file, or one that expands more than
      limits.RATIO times.
  """
  ending = path.suffix.lower()
  try:
    with path.open('rb') as file:
      if ending == '.gz':
        with gzip.GzipFile(fileobj=file) as inner:
          yield io.BufferedReader(_Bounded(cast(IO[bytes], inner), file), _PIECE)
      elif ending == '.zst':
        yield io.BufferedReader(_Bounded(io.BufferedReader(_Zst(file), _PIECE), file), _PIECE)
      else:
        yield file
  except _Bomb as error:
    raise UserError(f'data file {path} {error}.') from error
  except (EOFError, gzip.BadGzipFile, zlib.error, _Broken) as error:
    raise UserError(f'data file {path} is damaged or truncated ({error}); copy it again.'
                    ) from error
  except OSError as error:
    raise UserError(f'data file {path} cannot be read: {error.strerror or error}.') from error


class _Broken(ValueError):
  """A .zst that cannot be decompressed to its end."""


class _Bomb(ValueError):
  """A file that expands too much."""


class _Bounded(io.RawIOBase):
  """A decompressed stream that counts its bytes."""

  def __init__(self, stream: IO[bytes], file: BinaryIO):
    self._stream, self._file, self._count = stream, file, 0

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    data = self._stream.read(len(buffer))
    self._count += len(data)
    if self._count > limits.FREE and self._count > limits.RATIO * self._file.tell():
      raise _Bomb(f'expands to more than {limits.RATIO} times its size, which no file of records '
                  'does; decompress it yourself if it is one')
    buffer[:len(data)] = data
    return len(data)


class _Zst(io.RawIOBase):
  """A stream of Zstandard frames; unlike zstandard's own reader it detects truncation."""

  def __init__(self, file: BinaryIO):
    import zstandard
    self._new = zstandard.ZstdDecompressor().decompressobj
    self._error = zstandard.ZstdError
    self._file, self._frame = file, None
    self._ready = memoryview(b'')

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    while not self._ready:
      data = self._frame.unused_data if self._frame and self._frame.eof else b''
      data = data or self._file.read(_BITE)
      if not data:
        if self._frame and not self._frame.eof:
          raise _Broken('the last frame does not end')
        return 0
      if self._frame is None or self._frame.eof:
        self._frame = self._new()
      try:
        self._ready = memoryview(self._frame.decompress(data))
      except self._error as error:
        raise _Broken(str(error)) from error
    size = min(len(buffer), len(self._ready))
    buffer[:size], self._ready = self._ready[:size], self._ready[size:]
    return size
