"""The data config of the published code: a JSON list of inputs, as values of ``data.sources``.

  [{"path": "asr_tts.json", "sample_ratio": 1, "data_type": "IT"}, ...]

A string '@FILE' stands for the entries of such a file: in place of ``data.sources``, or inside it.

  path           path of a source; relative paths are those of the published code, from the current
                 folder, and are looked up as all paths of sources are
  sample_ratio   repeat, by default 1
  data_type      type, 'IT' or 'PT', by default 'IT'
"""

import difflib
import math
import pathlib
from typing import Any

from ttt_jax.config import paths
from ttt_jax.errors import UserError
from ttt_jax.storage import schema, url_path
from ttt_jax.storage.schema import key_text, shown

MARK = '@'
_KEYS = ('path', 'sample_ratio', 'data_type')
_TYPES = ('IT', 'PT')
_REMEDY = 'a data config is a JSON list of {"path", "sample_ratio", "data_type"}'


def expanded(sources: Any) -> Any:
  """The value of ``data.sources`` with the entries of files in place of '@FILE'.

  Raises:
    UserError: no such file, or an entry that cannot be used; the sentence names file and entry.
  """
  if isinstance(sources, str) and sources.startswith(MARK):
    return tuple(_entries(sources))
  if not isinstance(sources, (list, tuple)):
    return sources
  return tuple(entry for one in sources for entry in (
      _entries(one) if isinstance(one, str) and one.startswith(MARK) else (one,)))


def _entries(name: str) -> list[dict[str, Any]]:
  path = url_path.place(paths.local(name[len(MARK):], 'config key data.sources', True))
  if not path.is_file():
    raise UserError(f'config key data.sources is {name!r}, but '
                    + (f'{path} is a folder; name a file.' if path.is_dir() else
                       f'there is no file {str(path)!r}'
                       + ('.' if url_path.is_url(path) else f' in {pathlib.Path.cwd()}.')))
  what = f'data config {path}'
  data = schema.read_bytes(path, _REMEDY)
  found = schema.parse(data or b'', what, _REMEDY, unique=True)
  if not isinstance(found, list):
    raise UserError(f'{what} is {shown(found)}; {_REMEDY}.')
  if not found:
    raise UserError(f'{what} is an empty list; it needs at least one entry with "path".')
  return [_source(entry, f'{what}[{number}]') for number, entry in enumerate(found)]


def _source(entry: Any, where: str) -> dict[str, Any]:
  """An entry as keys of a source."""
  if not isinstance(entry, dict):
    raise UserError(f'{where} is {shown(entry)}; it must be an object with "path", '
                    '"sample_ratio" and "data_type".')
  for key in entry:
    if key not in _KEYS:
      close = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.5)
      raise UserError(f'{where} has the key {key_text(key)!r}; '
                      + (f'did you mean {close[0]!r}?' if close else
                         f'the keys are {", ".join(_KEYS)}.'))
  path, ratio, kind = entry.get('path'), entry.get('sample_ratio', 1), entry.get('data_type', 'IT')
  if not isinstance(path, str) or not path:
    raise UserError(f'{where} has the path {shown(path)}; it must name a file of records.'
                    if 'path' in entry else f'{where} has no "path".')
  if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not (
      0 <= ratio < 2**53 and math.isfinite(ratio)):
    raise UserError(f'{where} has the sample_ratio {shown(ratio)}; it must be a number of at '
                    'least 0.')
  if kind not in _TYPES:
    raise UserError(f"{where} has the data_type {shown(kind)}; use 'IT' or 'PT'.")
  return {'path': paths.local(path, f'{where}: path', True), 'repeat': float(ratio), 'type': kind}
