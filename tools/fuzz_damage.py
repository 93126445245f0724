"""Damage to files, drawn from a seed: JSON of another kind, truncation, flipped bytes, lies."""

import io
import json
import pathlib
import random
import shutil
from typing import Any
import zipfile
import zlib

import numpy as np

_DEEP, _LONG = '@deep@', '@long@'  # replaced in the text: json.dumps cannot write them
VALUES = (
    None, True, False, 0, -1, 1, 2, 7, 1000, 2**31, 2**63, -2**63, 10**30, 10**400, 0.5, -0.5,
    1e308, float('nan'), float('inf'), float('-inf'), '', 'x', '1', '../x', '/etc/passwd', 'a/b',
    '.', '..', 'os:system', 'a\0b', '\ud800', 'ä' * 3, 'x' * 10_000, [], {}, [[]], [None], [1],
    ['x'], {'': None}, {'x': {'x': 1}}, [0] * 1000, _DEEP, _LONG)
NAMES = ('²', '٣', '007', '-1', '+5', ' 5', '5 ', '1e3', '0x10', '9' * 18, '9' * 200, '2147483648',
         'ä', '\ud800', '5\n', '5.damaged', '5.orbax-checkpoint-tmp-0', '.5', '5.', 'NaN')


def harm(path: pathlib.Path, kind: str, dice: random.Random) -> str:
  """Damage one file; returns what was done.

  Args:
    path: an intact file.
    kind: 'json', 'lines' (JSON lines), 'signed' (a CRC and JSON), 'npz', 'safetensors', 'text',
      or 'folder': its entries get odd names.
    dice: draws the damage.
  """
  if kind == 'folder':
    return _odd_names(path, dice)
  if dice.random() < 0.15:
    return _replaced(path, dice)
  data = path.read_bytes()
  if kind in ('text',) or dice.random() < 0.25:
    data, what = _bytes(data, dice)
  else:
    data, what = {'json': _json, 'lines': _lines, 'signed': _signed, 'npz': _npz,
                  'safetensors': _safetensors}[kind](data, dice)
  path.write_bytes(data)
  return what


def _replaced(path: pathlib.Path, dice: random.Random) -> str:
  path.unlink()
  what = dice.choice(('missing', 'a folder', 'a dangling link', 'a link to itself', 'empty'))
  if what == 'a folder':
    path.mkdir()
  elif what == 'a dangling link':
    path.symlink_to(path.with_name('nowhere'))
  elif what == 'a link to itself':
    path.symlink_to(path.name)
  elif what == 'empty':
    path.write_bytes(b'')
  return what


def _odd_names(folder: pathlib.Path, dice: random.Random) -> str:
  name = dice.choice(NAMES)
  entries = sorted(entry for entry in folder.iterdir())
  how = dice.choice(('an empty folder', 'a file', 'a copy', 'renamed'))
  try:
    if how == 'an empty folder':
      (folder / name).mkdir()
    elif how == 'a file':
      (folder / name).write_text('x')
    elif how == 'a copy':
      shutil.copytree(entries[-1], folder / name)
    else:
      entries[-1].rename(folder / name)
  except (OSError, UnicodeError):
    pass  # a name that this file system does not take
  return f'{how} called {name!r:.40}'


def _bytes(data: bytes, dice: random.Random) -> tuple[bytes, str]:
  at, count = dice.randrange(len(data) + 1), dice.choice((1, 1, 4, 64))
  noise = dice.randbytes(count)
  return dice.choice((
      (data[:at], f'cut at {at}'),
      (data[:at] + noise + data[at + count:], f'{count} bytes at {at}'),
      (data[:at] + noise + data[at:], f'{count} more bytes at {at}'),
      (data[:at] + data[at + count:], f'{count} bytes less at {at}'),
      (bytes(len(data)), 'zeros'), (data + data, 'twice'), (data + noise, 'bytes at the end'),
      (b'\xef\xbb\xbf' + data, 'a byte order mark'), (data.decode('latin-1').encode('utf-16'),
                                                       'UTF-16')))


# -- JSON ---------------------------------------------------------------------------------


def _json(data: bytes, dice: random.Random) -> tuple[bytes, str]:
  values, what = change(json.loads(data), dice)
  return text(values), what


def text(values: Any) -> bytes:
  """JSON with the placeholders replaced, which Python's writer has no values for."""
  found = json.dumps(values)
  deep = '[' * 100_000 + ']' * 100_000
  return found.replace(f'"{_DEEP}"', deep).replace(f'"{_LONG}"', '9' * 5000).encode()


def change(values: Any, dice: random.Random) -> tuple[Any, str]:
  """One change somewhere in a tree of JSON values."""
  places = list(_places(values, ''))
  if not places or dice.random() < 0.05:
    new = dice.choice(VALUES)
    return new, f'all = {new!r:.40}'
  parent, key, name = dice.choice(places)
  new = dice.choice(VALUES)
  what = dice.choice(('set', 'set', 'set', 'set', 'drop', 'add', 'wrap', 'rename'))
  if what == 'drop':
    del parent[key]
  elif what == 'add':
    if isinstance(parent, dict):
      parent[dice.choice(('x', '../x', '__metadata__', 'a\0b', '\ud800', 'step', ''))] = new
    else:
      parent.append(new)
  elif what == 'wrap':
    parent[key] = [parent[key]]
  elif what == 'rename' and isinstance(parent, dict):
    parent[dice.choice(('x', '../x', '', 'a\0b', 'q' * 3000))] = parent.pop(key)
  else:
    parent[key] = new
  return values, f'{what} {name} {new!r:.40}'


def _places(values: Any, name: str):
  """(parent, key, dotted name) of every value in a tree."""
  items = values.items() if isinstance(values, dict) else (
      enumerate(values) if isinstance(values, list) else ())
  for key, value in list(items):
    yield values, key, f'{name}.{key}'
    yield from _places(value, f'{name}.{key}')


def _lines(data: bytes, dice: random.Random) -> tuple[bytes, str]:
  lines = data.splitlines()
  at = dice.randrange(len(lines))
  lines[at], what = _json(lines[at], dice)
  return b'\n'.join(lines) + b'\n', f'line {at}: {what}'


def _signed(data: bytes, dice: random.Random) -> tuple[bytes, str]:
  """A lie with the right checksum."""
  body, what = _json(data.rstrip(b'\n').partition(b' ')[2], dice)
  return b'%08x ' % zlib.crc32(body) + body + b'\n', f'{what} with the right checksum'


# -- arrays -------------------------------------------------------------------------------


def _npz(data: bytes, dice: random.Random) -> tuple[bytes, str]:
  with np.load(io.BytesIO(data)) as file:
    arrays = dict(file)
  name = dice.choice(sorted(arrays))
  array, out = arrays[name], io.BytesIO()
  what = dice.choice(('shape', 'dtype', 'pickle', 'name', 'header', 'bomb', 'nan', 'empty'))
  if what == 'header':
    _forged(out, name, array, dice)
  elif what == 'bomb':
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as file:
      with file.open(f'{name}.npy', 'w', force_zip64=True) as stream:
        np.lib.format.write_array_header_1_0(stream, {
            'descr': '<f2', 'fortran_order': False, 'shape': (1, 2**27)})
        for _ in range(16):
          stream.write(bytes(2**24))
  else:
    arrays[name] = {
        'shape': lambda: array.reshape(-1) if array.ndim > 1 else array[None],
        'dtype': lambda: array.astype(dice.choice(('<i8', '<c8', 'U8', '?', '<f8', 'S3'))),
        'pickle': lambda: np.array([{'x': 1}], object), 'name': lambda: array,
        'nan': lambda: np.full_like(array, np.nan), 'empty': lambda: array[:0]}[what]()
    if what == 'name':
      arrays = {'other': array}
    np.savez_compressed(out, **arrays)
  return out.getvalue(), f'{what} of {name}'


def _forged(out: io.BytesIO, name: str, array: np.ndarray, dice: random.Random) -> None:
  """A header that promises another array than the bytes hold."""
  shape = dice.choice(("(1000000000000,)", "(-1,)", "(2**60, 2**60)", "'x'", '()', "(1, 8, 1.5)",
                       "(True, 8)", '[' * 2000, "(99999999999999999999999,)"))
  kind = dice.choice(("'<f2'", "'|O'", "'x'", '[' * 200, "'<f99'", '3', "[('a', '<f2')]"))
  header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".encode() + b'\n'
  with zipfile.ZipFile(out, 'w') as file:
    file.writestr(f'{name}.npy', b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little') + header
                  + array.tobytes())


def _safetensors(data: bytes, dice: random.Random) -> tuple[bytes, str]:
  """A header that lies about the tensors."""
  length = int.from_bytes(data[:8], 'little')
  values, rest = json.loads(data[8:8 + length]), data[8 + length:]
  what = dice.choice(('tree', 'tree', 'offsets', 'length', 'twice', 'nan', 'long'))
  names = [name for name in values if name != '__metadata__']
  if what == 'tree':
    values, what = change(values, dice)
  elif what == 'offsets':
    one, other = values[dice.choice(names)], values[dice.choice(names)]
    one['data_offsets'] = dice.choice((
        other['data_offsets'], [-8, 0], [8, 0], [2**40, 2**40 + 8], [0, 10**30], [0], [0.0, 8.0]))
  elif what == 'nan':
    rest = b'\xff' * len(rest)
  body = text(values)
  if what == 'twice':
    first = json.dumps({names[0]: values[names[0]]}).encode()[1:-1]
    body = b'{' + first + b', ' + body[1:]
  size = len(body) if what not in ('length', 'long') else dice.choice((0, 1, 2**62, len(data) + 9))
  if what == 'long':
    rest += dice.randbytes(8)
    size = len(body)
  return size.to_bytes(8, 'little') + body + rest, what
