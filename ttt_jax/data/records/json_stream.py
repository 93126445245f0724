"""Records of a .json file: a list, {"data": [...]}, or one object after another."""

import io
import json
import pathlib
import re
from typing import Any, Iterator

from ttt_jax.data.records import compression, limits
from ttt_jax.errors import UserError

_PIECE = 2**20
_SPACE = re.compile(r'\s*')
_DATA = re.compile(r'\{\s*"data"\s*:\s*\[')


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """An object; JSON readers would take the last of two values of a key."""
  found = dict(pairs)
  if len(found) != len(pairs):
    keys = [key for key, _ in pairs]
    double = next(key for key in keys if keys.count(key) > 1)
    raise ValueError(f'the key {double[:40]!r} is there twice')
  return found


DECODER = json.JSONDecoder(object_pairs_hook=_unique)  # of records


def encoding(file: io.BufferedReader) -> str:
  """The encoding of a text file, by its byte order mark; UTF-8 without one."""
  head = file.peek(4)[:4]
  utf16 = head[:2] in (b'\xff\xfe', b'\xfe\xff') and head[2:] != b'\0\0'
  return 'utf-16' if utf16 else 'utf-8-sig'


def values(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
  """('file:number', value) of every record; numbers count from 1.

  Raises:
    UserError: a file that is unreadable from some place on.
  """
  with compression.opened(path) as file:
    stream = _Values(io.TextIOWrapper(file, encoding=encoding(file), newline=''), path)
    listed = stream.start()
    number = 0
    while not stream.ended(number):
      number += 1
      value = stream.value(f'{path}:{number}')
      inner = value.get('data') if isinstance(value, dict) and not listed and number == 1 else None
      if isinstance(inner, list) and stream.ended(number):
        yield from ((f'{path}:{i}', one) for i, one in enumerate(inner, 1))
        return
      yield f'{path}:{number}', value


def elements(path: pathlib.Path, key: str) -> Iterator[tuple[int, int, Any]]:
  """(first byte, last + 1, value) of each element of the list ``key`` of the object in a file.

  The text is decoded as Latin-1, in which a character is a byte: strings of the values are as
  written only if they are ASCII. ``joined`` reads the bytes properly.

  Raises:
    UserError: there is no such list, or the file is no JSON from some place on.
  """
  with compression.opened(path) as file:
    yield from _Values(io.TextIOWrapper(file, encoding='latin-1', newline=''), path, _PLAIN
                       ).elements(key)


_PLAIN = json.JSONDecoder()  # twice as fast as DECODER


def joined(data: bytes, where: str) -> Iterator[Any]:
  """The values of bytes of a file that ``elements`` found, separated by commas.

  Raises:
    UserError: broken JSON, or bytes that are not UTF-8.
  """
  try:
    text = data.decode('utf-8')
    at = 0
    while at < len(text):
      value, at = DECODER.raw_decode(text, at)
      yield value
      while at < len(text) and text[at] in ', \t\r\n':
        at += 1
  except UnicodeDecodeError as error:
    raise UserError(f'{where}: not UTF-8 ({error.reason}); save it as UTF-8.') from error
  except (ValueError, RecursionError) as error:
    raise UserError(f'{where}: broken JSON ({str(error)[:80]}).') from error


class _Values:
  """Incremental parser; ``_at`` is the position in the text read so far."""

  def __init__(self, file: io.TextIOBase, path: pathlib.Path,
               decoder: json.JSONDecoder = DECODER):
    self._file, self._path, self._buffer, self._at = file, path, '', 0
    self._before, self._decoder = 0, decoder  # characters before the buffer
    self._listed, self._inside = True, False  # in a list, which is in an object

  def _more(self) -> bool:
    self._before += self._at
    self._buffer, self._at = self._buffer[self._at:], 0
    try:
      size = min(len(self._buffer), limits.LONGEST + 1 - len(self._buffer))
      piece = self._file.read(max(_PIECE, size))
    except UnicodeError as error:
      raise UserError(f'data file {self._path}: not UTF-8 ({getattr(error, "reason", error)}); '
                      'save it as UTF-8.') from error
    self._buffer += piece
    return bool(piece)

  def _next(self) -> str:
    """The next non-space character, without consuming it; '' at the end."""
    while True:
      space = _SPACE.match(self._buffer, self._at)
      assert space is not None, 'the pattern matches the empty string'
      self._at = space.end()
      if self._at < len(self._buffer) or not self._more():
        return self._buffer[self._at:self._at + 1]

  def start(self) -> bool:
    """Consumes the bracket that opens the list, if there is one; whether there is."""
    first = self._next()
    if first == '{':
      while len(self._buffer) - self._at < 64 and self._more():
        pass
      found = _DATA.match(self._buffer, self._at)
      self._listed = self._inside = bool(found)
      self._at = found.end() if found else self._at
      return self._listed
    if first != '[':
      raise UserError(f'data file {self._path}: a file of records starts with {{ or [, as in '
                      '[{...}, ...], {"data": [...]}, or one object after another; this one '
                      f'{f"starts with {first!r}" if first else "is empty"}.')
    self._at += 1
    self._inside = False
    return True

  def elements(self, key: str) -> Iterator[tuple[int, int, Any]]:
    """See the function ``elements``."""
    if self._next() == '\xef' and self._buffer.startswith('\xef\xbb\xbf'):  # byte order mark
      self._at = 3
    where = str(self._path)
    self._take('{', f'data file {where} must be one JSON object with a list {key!r}')
    while self._next() == '"':
      name = self.value(where)
      self._take(':', f'{where}: broken JSON after the key {name!r}')
      if name != key:
        self._next()
        self.value(where)
        if self._next() == ',':
          self._at += 1
        continue
      self._take('[', f'{where}: {key!r} must be a list')
      number = 0
      while (mark := self._next()) != ']':
        start, number = self._before + self._at, number + 1
        value = self.value(f'{where}: element {number} of {key!r}')
        yield start, self._before + self._at, value
        mark = self._next()
        if mark not in (',', ']'):
          said = 'a comma or ] must follow' if mark else 'the file ends after'
          raise UserError(f'{where}: {said} element {number} of {key!r}; the file is truncated or '
                          'broken JSON.')
        self._at += mark == ','
      return
    raise UserError(f'data file {where} has no list {key!r}; it is another file, or truncated.')

  def _take(self, mark: str, wrong: str) -> None:
    if self._next() != mark:
      raise UserError(f'{wrong}.')
    self._at += 1

  def ended(self, number: int) -> bool:
    """Whether the records end here; consumes the comma after value ``number``."""
    mark = self._next()
    if not self._listed:
      return not mark
    if mark == ']':
      self._at += 1
      return self._closed(number)
    if number and mark == ',':
      self._at += 1
      mark = self._next()
    elif number and mark:
      raise UserError(f'{self._path}:{number}: a comma or ] must follow the record.')
    if not mark:
      raise UserError(f'data file {self._path} ends inside its list, after record {number}; it is '
                      'truncated.')
    return False

  def _closed(self, number: int) -> bool:
    """Whether nothing follows a list; consumes the rest of its object, and the start of another
    list, as in files that were joined."""
    where = f'{self._path}:{number}'
    while self._inside and self._next() != '}':
      for mark in ',:':  # a comma and a key, a colon and a value
        if self._next() != mark:
          raise UserError(f'{where}: the object around the list of records does not end after it; '
                          'the file is truncated or broken JSON.')
        self._at += 1
        self._next()
        self.value(where)
    self._at += self._inside
    mark = self._next()
    if not mark:
      return True
    if mark not in '[{' or not self.start():
      raise UserError(f'{where}: the list of records ends, but {mark!r} follows; a file has one '
                      'list of records, or several lists.')
    return self.ended(0)

  def value(self, where: str) -> Any:
    while True:
      rest = len(self._buffer) - self._at
      if rest > limits.UNCHECKED and limits.values(self._buffer[self._at:]) > limits.VALUES:
        raise UserError(f'{where}: the record has more than {limits.VALUES:,} values.')
      try:
        value, self._at = self._decoder.raw_decode(self._buffer, self._at)
        return value
      except (ValueError, RecursionError) as error:
        # The value may continue in text that is not read yet.
        if rest > limits.LONGEST:
          raise UserError(f'{where}: the record is longer than {limits.LONGEST // 2**20} MiB, or '
                          f'broken JSON ({str(error)[:80]}).') from error
        if isinstance(error, RecursionError) or not self._more():
          raise UserError(f'{where}: broken JSON ({str(error)[:80]}).') from error
