"""The codec interface, and the registry that creates, saves and loads codecs.

A codec turns a waveform float32 [N] into codes int32 [n] in 0..codebook_size-1 and back.
Three are built in: 'mel' (fitted to the corpus by `prepare`), 'codec2' (any voice, no
fitting) and 'glm4_voice' (published weights, in JAX; imported on demand). 'module:Class' imports
a user's subclass of Codec, which needs name, codebook_size, sample_rate, tokens_per_second,
encode and decode (docs/data.md has an example).
"""

import abc
import difflib
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, Self
import zipfile

import numpy as np

from ttt_jax.audio import io
from ttt_jax.audio.streaming import Stream
from ttt_jax.config import CodecConfig, user_classes
from ttt_jax.errors import UserError
from ttt_jax.storage import files, schema, url_path

FILE = 'codec.json'  # in a saved codec's directory: its kind, its name, its settings
ARRAYS = 'codec.npz'
_MOST_BYTES = 2**29  # of one array of a codec: a thousand times the demo's codebook
_REMEDY = 'restore the codec.json and codec.npz of one codec, or prepare the data again'
_BUILT_IN = {'mel': 'ttt_jax.audio.mel_codec:MelCodec',
             'codec2': 'ttt_jax.audio.codec2:Codec2',
             'glm4_voice': 'ttt_jax.audio.glm4.codec:Glm4Voice'}


class CodecFile(schema.Kind):
  """codec.json."""
  kind: str
  name: str
  arrays: list[schema.Name]
  settings: dict[str, Any]


class Codec(abc.ABC):
  """Waveforms to codes and back.

  Attributes:
    name: identity, part of the vocabulary. A fitted codec's name ends in a hash of its
      codebook, since the same code is another sound in another codebook.
    codebook_size: number of codes.
    sample_rate: of decoded waveforms, in Hz.
    tokens_per_second: codes per second of speech.
    silence: codes of one patch of silence; () if the codec has no such patch.
    group: codes of the same moment, one per codebook; 1 for a single codebook.
    own_devices: encode_many uses all accelerators or cores by itself, so one process calls it.
    class_settings: keys of ``settings`` that name classes, 'module:Class'.
    at_once: recordings per job of `prepare`; more fill batches better, but an interrupted run
      repeats more work.
  """
  name: str
  codebook_size: int
  sample_rate: int
  tokens_per_second: float
  silence: tuple[int, ...] = ()
  group: int = 1
  own_devices: bool = False
  class_settings: tuple[str, ...] = ()
  at_once: int = 256

  @property
  def frame_rate(self) -> float:
    """Groups of codes (frames, patches) per second of speech."""
    return self.tokens_per_second / self.group

  @classmethod
  def create(cls, config: CodecConfig, recordings: Iterable[tuple[np.ndarray, int]]) -> Self:
    """A new codec; a codec that is fitted reads (waveform, rate) pairs from `recordings`."""
    return cls()

  @classmethod
  def planned_codebook_size(cls, config: CodecConfig) -> int:
    """The codebook_size that ``create(config, ...)`` gives, without creating or fitting anything.

    Raises:
      UserError: settings that cannot work, or a size that only the created codec knows.
    """
    size = getattr(cls, 'codebook_size', None)
    if not isinstance(size, (int, np.integer)):
      raise UserError(f'config key codec.name is {config.name!r}, a class whose codebook_size is '
                      'not known before the codec is created.')
    return int(size)

  @abc.abstractmethod
  def encode(self, waveform: np.ndarray, rate: int) -> np.ndarray:
    """float32 [N] at `rate` Hz -> codes int32 [n], n >= 1.

    Raises:
      UserError: the waveform is empty, silent or not finite, or the rate is out of range.
    """

  def encode_many(self, recordings: Iterable[tuple[np.ndarray, int]]
                  ) -> Iterator[np.ndarray | UserError]:
    """Yields ``encode`` of each (waveform, rate), in order; recordings are read lazily.

    A recording that cannot be encoded yields its error instead of codes. A codec that runs on
    accelerators computes many at once; the codes are the same.
    """
    for waveform, rate in recordings:
      try:
        yield checked(self.encode(waveform, rate), self)
      except UserError as error:
        yield error

  @abc.abstractmethod
  def decode(self, codes: np.ndarray) -> np.ndarray:
    """Codes [n] -> float32 [m] in [-1, 1] at `sample_rate`; no codes give no samples.

    The audio is finite for any codes that a model may generate, in any order and number.

    Raises:
      UserError: a code outside the codebook.
    """

  def sound(self, codes: np.ndarray) -> np.ndarray:
    """``decode`` with a check of its result.

    Raises:
      UserError: as decode does, or the result is not finite float32 [m].
    """
    waveform = np.asarray(self.decode(codes))
    wrong = (f'{waveform.dtype} {list(waveform.shape)}'
             if waveform.ndim != 1 or not np.issubdtype(waveform.dtype, np.floating) else
             'numbers that are not finite' if not np.isfinite(waveform).all() else '')
    if wrong:
      raise UserError(f'codec {self.name} decoded {len(codes)} codes to {wrong}; its decode must '
                      'give finite float32 [samples].')
    return waveform.astype(np.float32, copy=False)

  def stream(self) -> Stream:
    """Incremental ``decode`` of one utterance, while its codes are generated.

    The default overlaps pieces and works for any codec. A codec whose decoder has a state may
    return its own object with the methods of Stream.
    """
    return Stream(self)

  def settings(self) -> dict[str, Any]:
    """JSON-ready settings that `restore` needs beside the arrays."""
    return {}

  def arrays(self) -> dict[str, np.ndarray]:
    """Fitted arrays by name; empty unless the codec is fitted."""
    return {}

  @classmethod
  def restore(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
    """The codec with these settings and arrays."""
    return cls(**settings)

  def save(self, directory: str | os.PathLike) -> None:
    """Writes codec.json and, for a fitted codec, codec.npz; the json last, by rename."""
    directory = pathlib.Path(directory)
    with files.writing(directory):
      files.make_folder(directory)
    arrays: dict[str, Any] = self.arrays()
    if arrays:
      with files.replacing(directory / ARRAYS, 'wb') as file:
        np.savez_compressed(file, **arrays)
    text = json.dumps({'kind': kind_of(type(self)), 'name': self.name,
                       'arrays': sorted(arrays), 'settings': self.settings()}, indent=1)
    files.write_text(directory / FILE, text + '\n')


def kind_of(cls: type[Codec]) -> str:
  """'mel', 'codec2' or 'glm4_voice' for a built-in class, else 'module:Class'."""
  path = f'{cls.__module__}:{cls.__qualname__}'
  return next((kind for kind, known in _BUILT_IN.items() if known == path), path)


def _class_of(kind: str, where: str) -> type[Codec]:
  if ':' not in kind and kind not in _BUILT_IN:
    close = difflib.get_close_matches(kind, _BUILT_IN, n=1, cutoff=0.4)
    hint = f'did you mean {close[0]!r}?' if close else (
        "use 'mel', 'codec2', 'glm4_voice' or 'module:Class'.")
    raise UserError(f'{where} is {kind!r}, which is not a known codec; {hint}')
  cls = user_classes.load(_BUILT_IN.get(kind, kind), where, 'codec.name', imported=True)
  if not (isinstance(cls, type) and issubclass(cls, Codec)):
    raise UserError(f'{where} is {kind!r}, which is not a subclass of ttt_jax.audio.codec.Codec.')
  if missing := sorted(cls.__abstractmethods__):
    raise UserError(f'{where} is {kind!r}, a class without {" and ".join(missing)}; a codec needs '
                    'encode(waveform, rate) and decode(codes).')
  return cls


def _complete(codec: Codec) -> Codec:
  """The codec, after a check of the attributes that it must define."""
  integer = lambda least: lambda x: isinstance(x, (int, np.integer)) and x >= least
  wanted = {
      'name': ('a non-empty string', lambda x: isinstance(x, str) and x),
      'codebook_size': ('an integer from 1', integer(1)),
      'sample_rate': (f'an integer in Hz from {io.LOWEST_RATE} to {io.HIGHEST_RATE}',
                      lambda x: integer(io.LOWEST_RATE)(x) and x <= io.HIGHEST_RATE),
      'tokens_per_second': ('a positive number', lambda x: isinstance(
          x, (int, float, np.number)) and 0 < x < float('inf')),
      'group': ('an integer from 1', integer(1)),
      'silence': ('a tuple of its codes', lambda x: isinstance(x, tuple) and all(
          integer(0)(code) and code < codec.codebook_size for code in x)),
  }
  for name, (what, right) in wanted.items():
    value = getattr(codec, name, None)
    if not right(value):
      raise UserError(f'codec {kind_of(type(codec))} has {name}={value!r}; it must be {what}.')
  return codec


def create(config: CodecConfig, recordings: Iterable[tuple[np.ndarray, int]] = ()) -> Codec:
  """The codec of a config.

  Args:
    config: its name and settings.
    recordings: (waveform float32 [N], rate) pairs for a codec that is fitted ('mel'); read
      once, in order, only as many as the codec needs, so shuffle them.

  Raises:
    UserError: unknown name, settings that cannot work, or too little to fit on.
  """
  return _complete(_class_of(config.name, 'config key codec.name').create(config, recordings))


def planned_codebook_size(config: CodecConfig) -> int:
  """The number of codes that ``create(config, ...)`` gives, without creating anything.

  Raises:
    UserError: unknown name, settings that cannot work, or a class that does not know it yet.
  """
  return _class_of(config.name, 'config key codec.name').planned_codebook_size(config)


def load(directory: str | os.PathLike, config: CodecConfig | None = None) -> Codec:
  """The codec saved in a directory.

  Args:
    directory: with codec.json; it may come from elsewhere.
    config: names the user's own classes; others are not imported, see config/user_classes.py.

  Raises:
    UserError: no codec there, files of different codecs, or a class that the user did not name.
  """
  directory = url_path.place(directory)
  path = directory / FILE
  if not path.exists():
    raise UserError(f'no codec in {directory}: {FILE} is missing; `ttt-jax prepare` writes it.')
  saved = schema.read(path, CodecFile, _REMEDY)
  arrays = read_arrays(directory / ARRAYS, saved['arrays']) if saved['arrays'] else {}
  try:
    named = user_classes.given(config) if config else ()
    mark = lambda text: text if text in named else user_classes.Stored(text)
    cls, settings = _class_of(mark(saved['kind']), f'"kind" in {path}'), dict(saved['settings'])
    settings |= {key: mark(settings[key]) for key in cls.class_settings if key in settings}
    codec = _complete(cls.restore(settings, arrays))
  except UserError as error:
    raise UserError(f'the codec in {directory} cannot be used: {error}') from error
  except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
    raise UserError(f'the codec in {directory} cannot be used: {saved["kind"]} does not take its '
                    f'settings and arrays ({error!r}); {_REMEDY}.') from error
  if codec.name != saved['name']:
    raise UserError(f'the codec in {directory} is named {saved["name"]}, but its arrays are those '
                    f'of {codec.name}; {_REMEDY}.')
  return codec


def read_arrays(path: pathlib.Path, names: list[str]) -> dict[str, np.ndarray]:
  """Arrays of numbers from a file that np.savez_compressed wrote.

  Nothing is unpickled, and memory is taken only once a header agrees with the size of its entry.

  Raises:
    UserError: a missing or damaged file, or an array that is missing or longer than _MOST_BYTES.
  """
  try:
    with path.open('rb') as stored, zipfile.ZipFile(stored) as file:
      return {name: _read_array(file, name) for name in names}
  except FileNotFoundError as error:
    raise UserError(f'{path} is missing; {_REMEDY}.') from error
  except Exception as error:  # zipfile, zlib and numpy raise about ten kinds for damaged bytes
    why = str(error) or type(error).__name__
    raise UserError(f'{path} cannot be read ({why}); {_REMEDY}.') from error


def _read_array(file: zipfile.ZipFile, name: str) -> np.ndarray:
  try:
    entry = file.getinfo(f'{name}.npy')
  except KeyError as error:
    raise ValueError(f'it has no array {name!r}') from error
  if entry.file_size > _MOST_BYTES:
    raise ValueError(f'array {name!r} has {entry.file_size:,} bytes; at most {_MOST_BYTES:,} '
                     'are read')
  with file.open(entry) as stream:
    version = np.lib.format.read_magic(stream)
    header = {(1, 0): np.lib.format.read_array_header_1_0,
              (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, _, dtype = header(stream)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != entry.file_size - stream.tell():
      raise ValueError(f'array {name!r} has another size than its header says')
  with file.open(entry) as stream:
    return np.lib.format.read_array(stream, allow_pickle=False)


def checked(codes: Any, codec: Codec, what: str = 'a recording') -> np.ndarray:
  """The result of a codec's encode as int32 [n]; ``what`` names the input in the message.

  Raises:
    UserError: not integers, not 1-D, empty, or outside the codebook.
  """
  found = np.asarray(codes)
  wrong = ''
  if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
    wrong = f'{found.dtype} {list(found.shape)}'
  elif not found.size:
    wrong = 'no codes'
  elif found.min() < 0 or found.max() >= codec.codebook_size:
    wrong = f'the code {found.min() if found.min() < 0 else found.max()}'
  if wrong:
    raise UserError(f'codec {codec.name} encoded {what} to {wrong}; its encode must give '
                    f'integers [n], at least one, from 0 to {codec.codebook_size - 1}.')
  return found.astype(np.int32, copy=False)


def check_codes(codes: np.ndarray, codec: Codec) -> np.ndarray:
  """Codes as int64 [n]; a code outside the codebook raises a UserError."""
  codes = np.asarray(codes)
  if codes.size and not np.issubdtype(codes.dtype, np.integer):
    raise UserError(f'audio codes must be integers, not {codes.dtype}.')
  codes = codes.astype(np.int64).reshape(-1)
  bad = codes[(codes < 0) | (codes >= codec.codebook_size)]
  if bad.size:
    raise UserError(f'audio code {int(bad[0])} is outside the codebook of {codec.name} '
                    f'(0..{codec.codebook_size - 1}).')
  return codes
