"""Compiled programs on disk, so that a server starts without tracing and lowering them again.

JAX's compilation cache keeps what the compiler made, but finding it needs the lowered program, half
a second of Python for each. Here a program is named by what determines it (``key_of``): the sources
of this package, versions, devices, sizes and settings. A folder holds the programs of one key:

  JAX_COMPILATION_CACHE_DIR/programs/<key>/<program>.bin

JAX serialises executables as pickles, so a folder is only read if it belongs to this user and
nobody else may write to it. What cannot be read is compiled, and so is what fails when it runs
(``distrust``).
"""

from collections.abc import Callable, Iterator, Sequence
import concurrent.futures
import contextlib
import functools
import hashlib
import importlib.metadata
import logging
import os
import pathlib
import pickle
import platform
import shutil
import threading
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from ttt_jax.storage import files

_LOG = logging.getLogger(__name__)
_READERS = 8  # threads
_COMPILING = threading.Lock()  # _without_compilation_cache changes settings of the process
_KEPT = 4  # keys; the least recently used ones are removed


class ProgramStore:
  """The programs of one key, in memory and, if there is a local compilation cache, on disk."""

  def __init__(self, key: str):
    """Reads nothing yet; ``key`` is of ``key_of``."""
    self._programs: dict[str, Any] = {}
    self._was_read: set[str] = set()
    self._reading: dict[str, concurrent.futures.Future[None]] = {}
    self._key = key

  @functools.cached_property
  def _folder(self) -> pathlib.Path | None:
    return _folder(self._key)

  def get(self, name: str) -> Any | None:
    """The compiled program of a name; None if it was not asked for. Waits for one that ``read``
    has begun."""
    if reading := self._reading.get(name):
      concurrent.futures.wait([reading])
    return self._programs.get(name)

  def read(self, programs: Sequence[tuple[str, Callable[[], None]]]) -> set[str]:
    """Begin to read the programs that are on disk, several at once, in this order.

    Args:
      programs: (name, function that calls ``ensure`` for it), for files that cannot be read.

    Returns:
      The names that are being read.
    """
    found = [(name, make) for name, make in programs
             if name not in self._programs and (path := self._path(name)) and path.is_file()]
    pool = concurrent.futures.ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1), 'programs')
    self._reading |= {name: pool.submit(make) for name, make in found}
    pool.shutdown(wait=False)
    return {name for name, _ in found}

  def ensure(self, name: str, function: Any, *args: Any) -> None:
    """Make a program available: read it, or compile a jitted function for ``args``.

    Args:
      name: letters, digits, spaces and '-'.
      function: jitted.
      args: static ones included; nothing is run.
    """
    if name in self._programs:
      return
    path = self._path(name)
    program = _read(path) if path else None
    if program is not None:
      self._was_read.add(name)
    elif path:
      with _COMPILING, _without_compilation_cache():
        program = function.lower(*args).compile()
      _write(path, program)
    else:
      program = function.lower(*args).compile()
    self._programs[name] = program

  def distrust(self) -> int:
    """Forget and delete the programs that were read from disk; returns how many. Called when one
    has failed. They are compiled when they are needed again."""
    concurrent.futures.wait(self._reading.values())
    for name in self._was_read:
      del self._programs[name]
      if path := self._path(name):
        with contextlib.suppress(OSError):
          path.unlink(missing_ok=True)
    count = len(self._was_read)
    self._was_read = set()
    return count

  def _path(self, name: str) -> pathlib.Path | None:
    return self._folder and self._folder / f'{name.replace(" ", "_")}.bin'


@contextlib.contextmanager
def _without_compilation_cache() -> Iterator[None]:
  """Compiles anew: XLA loses functions of a CPU program that came from JAX's compilation cache
  when the program is serialised again ('Function wrapped_iota not found' when it runs)."""
  before = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
  try:
    jax.config.update('jax_enable_compilation_cache', False)
    compilation_cache.reset_cache()  # JAX remembers whether the cache is used
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', before)
    compilation_cache.reset_cache()


def key_of(*parts: Any) -> str:
  """A name for all that determines the programs of an engine.

  Args:
    parts: what distinguishes engines; their text is used.
  """
  devices = [(d.platform, d.device_kind, d.id) for d in jax.devices()]
  text = repr((_sources(), [importlib.metadata.version(name) for name in ('jax', 'jaxlib')],
               platform.python_version(), _cpu(), os.environ.get('XLA_FLAGS', ''), devices, parts))
  return hashlib.sha256(text.encode()).hexdigest()[:24]


@functools.cache
def _sources() -> str:
  """A hash of the package's modules."""
  digest = hashlib.sha256()
  root = pathlib.Path(__file__).parents[1]
  for path in sorted(root.rglob('*.py')):
    digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
  return digest.hexdigest()


def _cpu() -> str:
  """What the processor can do: code for another one may not run here."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8').split('\n')
  except OSError:
    return platform.processor()
  return '\n'.join(sorted({line for line in lines if line.split(':')[0].strip() in (
      'flags', 'Features', 'model name', 'CPU part')}))


def _folder(key: str) -> pathlib.Path | None:
  """The folder of a key, made if it does not exist; None if there is no safe local place."""
  cache = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
  if not cache or '://' in cache or not hasattr(os, 'getuid'):
    return None
  root = pathlib.Path(cache) / 'programs'
  try:
    for folder in (root, root / key):
      folder.mkdir(mode=0o700, parents=True, exist_ok=True)
      found = folder.stat()
      if found.st_uid != os.getuid() or found.st_mode & 0o022:
        _LOG.warning('%s belongs to another user or may be written by others, so compiled programs '
                     'are not kept there.', folder)
        return None
    os.utime(root / key)
    old = sorted(root.iterdir(), key=lambda path: path.stat().st_mtime)[:-_KEPT]
    for folder in old:
      shutil.rmtree(folder, ignore_errors=True)
  except OSError:
    return None  # a full or read-only disk: the programs are compiled
  return root / key


def _devices(program: Any) -> list[int]:
  """Numbers of the devices that a program runs on, in the order of its mesh."""
  shardings = jax.tree.leaves(program.input_shardings)
  for sharding in shardings:
    if isinstance(sharding, jax.sharding.NamedSharding) and sharding.mesh.devices is not None:
      return [device.id for device in sharding.mesh.devices.flat]
  return sorted({device.id for sharding in shardings for device in sharding.device_set})


def _read(path: pathlib.Path) -> Any | None:
  try:
    with open(path, 'rb') as file:
      numbers, *stored = pickle.load(file)
    devices = {device.id: device for device in jax.devices()}
    # Without them the program is loaded for all devices of the process.
    return serialize_executable.deserialize_and_load(
        *stored, execution_devices=[devices[number] for number in numbers])
  except FileNotFoundError:
    return None
  except Exception as error:  # a damaged file: pickle and XLA raise many kinds
    _LOG.warning('%s cannot be read (%s); it is compiled again.', path, type(error).__name__)
    return None


def _write(path: pathlib.Path, program: Any) -> None:
  try:
    data = pickle.dumps((_devices(program), *serialize_executable.serialize(program)))
    with files.replacing(path, 'wb') as file:
      file.write(data)
  except Exception as error:  # devices that cannot serialise, a full disk
    _LOG.warning('the compiled program %s is not kept (%s).', path.stem, type(error).__name__)
