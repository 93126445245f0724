"""JSON files that are read back: parsed within limits, then compared with the type of their kind.

A kind of file is a TypedDict beside the code that writes it. ``read`` compares a file with it once,
where the file enters the program; after that its values are what the type says. Keys that the type
does not name are kept and not compared, so that a file of a newer version can be read.

  class Status(schema.Kind, total=False):
    state: str
    step: Annotated[int, schema.Range(0)]
    errors: list[Event]                     # a TypedDict inside

Numbers are finite unless they are marked with ANY_NUMBER, and integers fit 64 bits, because JSON
allows numbers of any length. A string has no NUL, which no file name can hold.
"""

from collections.abc import Mapping
import dataclasses
import json
import math
import os
import re
import types
import typing
from typing import Annotated, Any, TypedDict

from ttt_jax.errors import UserError
from ttt_jax.storage import url_path

MOST_BYTES = 2**28  # of a JSON file that is read as one
_PRESENCE = (typing.Required, typing.NotRequired)
_UNIONS = (types.UnionType, typing.Union)
_SHOWN = 60         # characters of a wrong value in a sentence


class Kind(TypedDict, total=False):
  """Base of the types of JSON objects."""


@dataclasses.dataclass(frozen=True)
class Range:
  """Inclusive bounds of a number."""
  least: float = -2**63
  most: float = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class Pattern:
  """A regular expression for the whole string, and what it describes."""
  regex: str
  what: str


@dataclasses.dataclass(frozen=True)
class _AnyNumber:
  """NaN and infinity are numbers, too."""


ANY_NUMBER = _AnyNumber()
Count = Annotated[int, Range(0)]
# A name in a folder: no path that leaves it.
Name = Annotated[str, Pattern(r'(?!\.{1,2}$)[^/\\]+', 'a name without / and \\')]


# -- parsing ------------------------------------------------------------------------------


def parse(data: bytes, what: str, remedy: str, unique: bool = False) -> Any:
  """The value of a JSON text.

  Args:
    data: UTF-8, with or without a byte order mark.
    what: names it in a sentence, such as its path.
    remedy: how the sentence ends.
    unique: whether a key that an object has twice is an error; else its last value counts.

  Raises:
    UserError: not UTF-8, not JSON, or nested too deep.
  """
  try:
    return json.loads(data.decode('utf-8-sig'),
                      object_pairs_hook=_unique_pairs if unique else None)
  except UnicodeDecodeError as error:
    why = f'byte {error.start} is not UTF-8'
  except RecursionError:
    why = 'it is nested too deep'
  except ValueError as error:  # also an integer of thousands of digits
    why = 'it is empty' if not data.strip() else str(error)
  raise UserError(f'{what} is not JSON ({why}); {remedy}.')


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  values = dict(pairs)
  if len(values) != len(pairs):
    seen: set[str] = set()
    twice = next(key for key, _ in pairs if key in seen or seen.add(key))
    raise ValueError(f'key {shown(twice)} appears twice')
  return values


def read(path: str | os.PathLike, kind: type[Mapping[str, Any]] | None, remedy: str, *,
         optional: bool = False, unique: bool = False) -> dict[str, Any]:
  """A file with one JSON object.

  Args:
    path: of the file; another process may be replacing it.
    kind: its type; None = any object.
    remedy: how sentences end: what the user can do about a damaged file.
    optional: whether a missing file is an empty object.
    unique: as for ``parse``.

  Raises:
    UserError: the file is missing, unreadable, not JSON, or has a key of another type or range.
  """
  data = read_bytes(path, remedy, optional)
  if data is None:
    return {}
  values = parse(data, str(path), remedy, unique)
  if not isinstance(values, dict):
    raise UserError(f'{path} is {shown(values)}; it must be a JSON object; {remedy}.')
  if kind is not None:
    check(values, kind, str(path), remedy)
  return values


def read_bytes(path: str | os.PathLike, remedy: str, optional: bool = False) -> bytes | None:
  """The bytes of a small file; None if it is ``optional`` and missing.

  Raises:
    UserError: it is missing, a folder, longer than MOST_BYTES, or not readable.
  """
  path = url_path.place(path)
  try:
    with path.open('rb') as file:
      data = file.read(MOST_BYTES + 1)
  except FileNotFoundError as error:
    if optional:
      return None
    raise UserError(f'{path} does not exist; {remedy}.') from error
  except (OSError, ValueError) as error:  # ValueError: a NUL in the path
    why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    raise UserError(f'{path} cannot be read ({why.lower()}); {remedy}.') from error
  if len(data) > MOST_BYTES:
    raise UserError(f'{path} is longer than {MOST_BYTES:,} bytes; {remedy}.')
  return data


# -- comparing ----------------------------------------------------------------------------


def check(values: Any, kind: Any, what: str, remedy: str) -> None:
  """Compare a value with a type.

  Args:
    values: from JSON.
    kind: a TypedDict or another type that the module's docstring shows.
    what, remedy: as for ``parse``.

  Raises:
    UserError: the first key that is missing or has another type or range.
  """
  wrong = _wrong(values, kind, '')
  if wrong:
    raise UserError(f'{what} {wrong}; {remedy}.')


def fits(values: Any, kind: Any) -> bool:
  """Whether ``check`` accepts a value."""
  return not _wrong(values, kind, '')


def shown(value: Any) -> str:
  """A value in a sentence, at most a few words long."""
  try:
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
  except (RecursionError, ValueError):  # ValueError: an integer of thousands of digits
    text = f'a {type(value).__name__}'
  return text if len(text) <= _SHOWN else text[:_SHOWN - 3] + '...'


def key_text(key: str) -> str:
  """A key in a sentence: itself, unless it is long or unprintable."""
  return key if key.isprintable() and len(key) <= _SHOWN else shown(key)


def _wrong(value: Any, kind: Any, key: str) -> str:
  """What is wrong with a value, as the rest of a sentence about its file; '' if nothing is."""
  marks: list[Any] = []
  if typing.get_origin(kind) is Annotated:
    kind, *marks = typing.get_args(kind)
  if kind is Any:
    return ''
  if typing.get_origin(kind) in _UNIONS:
    options: list[Any] = list(typing.get_args(kind))
    found = [_wrong(value, option, key) for option in options]
    if not all(found):
      return ''
    if value is None or len(options) > 2 or type(None) not in options:
      return _sentence(key, value, ' or '.join(map(_name, options)))
    return found[options[0] is type(None)]  # the message of X in X | None
  if typing.is_typeddict(kind):
    return _wrong_object(value, kind, key)
  origin = typing.get_origin(kind) or kind
  if origin is list or origin is tuple:
    items: list[Any] = list(typing.get_args(kind))
    if not isinstance(value, list) or (origin is tuple and len(value) != len(items)):
      return _sentence(key, value, _name(kind))
    return next((found for at, one in enumerate(value) if (found := _wrong(
        one, items[at if origin is tuple else 0], f'{key}[{at}]'))), '')
  if origin is dict:
    if not isinstance(value, dict):
      return _sentence(key, value, _name(kind))
    names, item = typing.get_args(kind)
    return next((found for at, one in value.items() if (
        found := _wrong(at, names, f'{key}, a key,') or _wrong(one, item, _join(key, at)))), '')
  return _wrong_scalar(value, kind, marks, key)


def _wrong_object(value: Any, kind: Any, key: str) -> str:
  if not isinstance(value, dict):
    return _sentence(key, value, 'a JSON object')
  for name, hint in _hints(kind).items():
    if name in value:
      if found := _wrong(value[name], hint, _join(key, name)):
        return found
    elif name in kind.__required_keys__:
      return f'has no {_join(key, name)}, which must be {_name(hint)}'
  return ''


def _hints(kind: Any) -> dict[str, Any]:
  found = _HINTS.get(kind)
  if found is None:
    found = _HINTS[kind] = {
        name: typing.get_args(hint)[0] if typing.get_origin(hint) in _PRESENCE else hint
        for name, hint in typing.get_type_hints(kind, include_extras=True).items()}
  return found


_HINTS: dict[Any, dict[str, Any]] = {}


def _wrong_scalar(value: Any, kind: Any, marks: list[Any], key: str) -> str:
  bounds = next((mark for mark in marks if isinstance(mark, Range)), Range())
  if kind in (int, float) and isinstance(value, int) and not isinstance(value, bool):
    right = bounds.least <= value <= bounds.most
  elif isinstance(value, bool) and kind is not bool or not isinstance(value, kind):
    right = False
  elif kind is float:
    right = ANY_NUMBER in marks or (math.isfinite(value)
                                    and bounds.least <= value <= bounds.most)
  elif isinstance(value, str):
    right = '\0' not in value and all(
        re.fullmatch(mark.regex, value) for mark in marks if isinstance(mark, Pattern))
  else:
    right = True
  return '' if right else _sentence(key, value, _name(Annotated[kind, *marks] if marks else kind))


def _sentence(key: str, value: Any, name: str) -> str:
  return f'has {key or "a value"} = {shown(value)}; it must be {name}'


def _name(kind: Any) -> str:
  """A type in a sentence."""
  if typing.get_origin(kind) is Annotated:
    kind, *marks = typing.get_args(kind)
    for mark in marks:
      if isinstance(mark, Pattern):
        return mark.what
      if isinstance(mark, Range):
        return _name(kind) + (
            f' from {mark.least:,}' if mark.most == Range.most else
            f' of at most {mark.most:,}' if mark.least == Range.least else
            f' from {mark.least:,} to {mark.most:,}')
    return _name(kind)
  if typing.get_origin(kind) in _UNIONS:
    return ' or '.join(map(_name, typing.get_args(kind)))
  if typing.is_typeddict(kind):
    return 'a JSON object'
  origin = typing.get_origin(kind) or kind
  return {str: 'a string', int: 'an integer', float: 'a number', bool: 'true or false',
          list: 'a list', tuple: f'a list of {len(typing.get_args(kind))}',
          dict: 'a JSON object', type(None): 'null'}.get(origin, 'a value')


def _join(key: str, name: Any) -> str:
  return f'{key}.{key_text(name)}' if key else key_text(name)
