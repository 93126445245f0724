"""Sounds inside records: bytes and waveforms of columns, base64 and data: URIs; and file: URIs.

A part names its sound by one string, ``Part.source``: the path of a file, or a data: URI in base64,
so that every record is plain JSON. Accepted forms of a value:

  'a.wav', 'file:///x/a.wav', 'gs://bucket/a.wav'      a file
  {'bytes': b'...', 'path': 'a.wav'}, b'...'           a column of Hugging Face
  {'array': [0.1, ...], 'sampling_rate': 16000}        the same, decoded
  'data:audio/wav;base64,UklGR...', 'UklGR...'         base64, known by its first bytes
  {'data': 'UklGR...', 'format': 'wav'}                as in requests to chat models
"""

import base64
import binascii
import hashlib
import re
import struct
from typing import Any
import urllib.parse

import numpy as np

from ttt_jax.audio import containers
from ttt_jax.data.records import tables
from ttt_jax.errors import UserError
from ttt_jax.storage import url_path

_URI = 'data:audio/*;base64,'
_KEY = 'sha256:'
_BASE64 = re.compile(r'[A-Za-z0-9+/_\s-]+={0,2}\s*')
_SCHEME = re.compile(r'[A-Za-z][A-Za-z0-9+.-]{1,20}:/?/')
_LONGEST_PATH = 4096
_SHORTEST = 64        # characters of base64: the header of a file
_CONTENTS = ('data', 'base64', 'audio_base64', 'b64')


def reference(value: Any, at: str) -> str | None:
  """The sound of a value: a path, or a data: URI; None if the value is no form of this module.

  Args:
    value: of a key such as "audio".
    at: its place, for error messages.

  Raises:
    UserError: an address on the network, a command, contents that are not base64 or no sound.
  """
  if isinstance(value, (bytes, bytearray, memoryview)):
    return _uri(bytes(value), at)
  if isinstance(value, dict):
    return _of_object(value, at)
  if not isinstance(value, str):
    return None
  head = value[:40].lower().lstrip()
  if head.startswith('data:'):
    return _of_data(value.strip(), at)
  if head.startswith('file:'):
    try:
      found = urllib.parse.urlsplit(value.strip())
    except ValueError as error:
      raise UserError(f'{at} is {_short(value)}, no URI ({error}); name a path.') from error
    if found.netloc not in ('', 'localhost'):
      raise UserError(f'{at} is {_short(value)}, a file of the machine {found.netloc!r}; name a '
                      'local file.')
    return urllib.parse.unquote(found.path, errors='surrogateescape')
  if url_path.is_url(value):
    return value
  if _SCHEME.match(value):
    raise UserError(f'{at} is the address {_short(value)}; download the file and name its path, or '
                    'put it into a bucket (gs://, s3://).')
  if value.rstrip().endswith('|'):
    raise UserError(f'{at} is the command {_short(value)}; commands are not run: write the file '
                    'and name its path.')
  if len(value) >= _SHORTEST and (found := _of_base64(value)) is not None:
    return _uri(found, at)
  if len(value) > _LONGEST_PATH:
    raise UserError(f'{at} has {len(value):,} characters ({_short(value)}): neither a path nor a '
                    'sound in base64.')
  return value


def is_embedded(source: str) -> bool:
  """Whether a part's source holds the sound itself."""
  return source.startswith(_URI)


def is_column(value: Any) -> bool:
  """Whether a value is of an audio column of Hugging Face, rather than of one of images."""
  if not isinstance(value, dict):
    return False
  data = value.get('bytes')
  if list(value) == ['path']:
    return isinstance(value['path'], str) and bool(tables.SOUND.search(value['path']))
  if isinstance(data, (bytes, bytearray)) and data:
    return containers.is_sound(bytes(data[:16]))
  return 'array' in value and ('sampling_rate' in value or 'sample_rate' in value)


def contents(source: str) -> bytes:
  """The file in the source of an embedded sound."""
  return base64.b64decode(source[len(_URI):])


def key(data: bytes) -> str:
  """The name of an embedded sound in place of a path: equal contents have equal names."""
  return _KEY + hashlib.sha256(data).hexdigest()


def is_key(path: str) -> bool:
  """Whether the path of a Clip is a name that ``key`` made."""
  return path.startswith(_KEY)


def _uri(data: bytes, at: str) -> str:
  if not data:
    raise UserError(f'{at} is empty: it has no bytes.')
  return _URI + base64.b64encode(data).decode('ascii')


def _of_object(value: dict[str, Any], at: str) -> str | None:
  data = value.get('bytes')
  if isinstance(data, str) and data:
    found = _decoded(data)
    if found is None:
      raise UserError(f'{at}.bytes is {_short(data)}; it must be a file in base64.')
    return _uri(found, at)
  if isinstance(data, list) and data:
    try:
      return _uri(bytes(data), at)
    except (ValueError, TypeError) as error:
      raise UserError(f'{at}.bytes must be integers from 0 to 255.') from error
  if isinstance(data, (bytes, bytearray)) and data:
    return _uri(bytes(data), at)
  if value.get('array') is not None:
    return _of_array(value['array'], value.get('sampling_rate', value.get('sample_rate')), at)
  for name in _CONTENTS:
    found = value.get(name)
    if isinstance(found, (bytes, bytearray)):
      return _uri(bytes(found), f'{at}.{name}')
    if isinstance(found, str) and found:
      if str(value.get('format', '')).lower() in ('pcm', 'pcm16', 's16le', 'raw', 'f32le'):
        raise UserError(f'{at} is raw samples of the format {value["format"]!r}; give a WAV.')
      return reference(found, f'{at}.{name}')
  return None


def _of_array(array: Any, rate: Any, at: str) -> str:
  """A decoded audio column: float samples [N], or [channels, N], in [-1, 1]."""
  try:
    samples = np.asarray(array, np.float32)
  except (ValueError, TypeError) as error:
    raise UserError(f'{at}.array must be a list of numbers.') from error
  if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
    samples = samples.T
  if not isinstance(rate, int) or isinstance(rate, bool) or not 0 < rate < 2**31 or (
      samples.ndim not in (1, 2) or not samples.size or samples.ndim == 2 and (
          samples.shape[1] > 1024)):
    raise UserError(f'{at} needs "array", samples in [-1, 1], and "sampling_rate", an integer.')
  # libsndfile would write the time into a chunk PEAK, but equal sounds are equal bytes here.
  channels, data = samples.shape[1] if samples.ndim == 2 else 1, samples.astype('<f4').tobytes()
  form = struct.pack('<HHIIHH', 3, channels, rate, min(4 * channels * rate, 2**32 - 1),
                     4 * channels, 32)
  body = b'WAVEfmt ' + struct.pack('<I', len(form)) + form + b'data' + struct.pack('<I', len(data))
  return _uri(b'RIFF' + struct.pack('<I', len(body) + len(data)) + body + data, at)


def _of_data(text: str, at: str) -> str:
  head, comma, body = text.partition(',')
  kind = head[5:].split(';')[0].strip().lower()
  if not comma or kind and not kind.startswith(('audio/', 'video/', 'application/')):
    raise UserError(f'{at} is {_short(text)}; it must be data:audio/...;base64, and the file.')
  if ';base64' in head.lower():
    found = _decoded(urllib.parse.unquote(body) if '%' in body[:1000] else body)
  else:
    found = urllib.parse.unquote_to_bytes(body)
  if not found:
    raise UserError(f'{at} is {_short(text)}, which is not base64 of a file.')
  return _uri(found, at)


def _of_base64(text: str) -> bytes | None:
  """The contents of a string of base64 that starts as a sound file does; else None."""
  try:
    start = base64.b64decode(text[:32].translate(_STANDARD))
  except ValueError:
    return None
  if not containers.is_sound(start) or not _BASE64.fullmatch(text):
    return None
  return _decoded(text)


_STANDARD = str.maketrans('-_', '+/')


def _decoded(text: str) -> bytes | None:
  text = ''.join(text.split()).translate(_STANDARD).rstrip('=')
  try:
    return base64.b64decode(text + '=' * (-len(text) % 4), validate=True)
  except (binascii.Error, ValueError):
    return None


def _short(text: str) -> str:
  return repr(text if len(text) <= 60 else f'{text[:50]}...')
