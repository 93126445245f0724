"""Classes of the user that settings name as 'module:Class', such as a codec.

Importing a module runs its code, and a module may stand in the current folder. So a name is only
imported if the user gave it: in a Python config, on the command line, in a program, or in the
environment variable TTT_JAX_CODECS. A name in a stored file (config.json of a workdir, codec.json
of a data set), which may come from elsewhere, is ``Stored``; it is imported if the user gave the
same name before on this account: the command line keeps these names in ~/.config/ttt_jax/codecs.
"""

import functools
import importlib
import logging
import os
import pathlib
import sys
from typing import Any

from ttt_jax.config.settings import CodecConfig
from ttt_jax.errors import UserError
from ttt_jax.storage import files

VARIABLE = 'TTT_JAX_CODECS'  # more names, separated by commas
_KEYS = ('name', 'decoder')  # of section codec
_log = logging.getLogger(__name__)


class Stored(str):
  """A name from a stored file; a name that the user gave is a plain str."""


def as_stored(values: dict[str, Any]) -> dict[str, Any]:
  """Settings of a stored file, with the names of classes marked as ``Stored``."""
  codec = values.get('codec')
  if not isinstance(codec, dict):
    return values
  return {**values, 'codec': {key: Stored(value) if key in _KEYS and isinstance(value, str)
                              else value for key, value in codec.items()}}


def given(config: CodecConfig) -> tuple[str, ...]:
  """The classes that a config names and the user gave."""
  names = [getattr(config, key) for key in _KEYS]
  return tuple(name for name in names if ':' in name and not isinstance(name, Stored))


def check(name: str, where: str, key: str, imported: bool = False) -> None:
  """Raises a UserError unless the class 'module:Class' may be imported.

  Args:
    name: any, if it is not ``Stored``; a stored one must be known.
    where: what has this value, for error messages.
    key: the config key with which the user gives such a name.
    imported: a stored name may be that of a module that the program has imported already, since
      what it is gets checked before it is used.
  """
  if not isinstance(name, Stored) or imported and name.partition(':')[0] in sys.modules:
    return
  if name not in _known():
    raise UserError(
        f'{where} is {str(name)!r}, a class that a stored file names; importing it runs its code, '
        f'so give the name yourself if it is yours: --config.{key}={name} (once; {_file()} keeps '
        f'it), or {VARIABLE}={name}.')


def load(name: str, where: str, key: str, imported: bool = False) -> Any:
  """What 'module:Class' stands for; arguments as in ``check``.

  Raises:
    UserError: as ``check``, or it cannot be imported.
  """
  check(name, where, key, imported)
  module, _, path = name.partition(':')
  try:
    return functools.reduce(getattr, path.split('.'), importlib.import_module(module))
  except Exception as error:  # the module is the user's code
    kind = '' if isinstance(error, (ImportError, AttributeError, ValueError)) else (
        f'{type(error).__name__}: ')
    raise UserError(f'{where} is {str(name)!r}, which cannot be imported: {kind}{error}; the '
                    'module\'s folder must be on PYTHONPATH.') from error


def remember(config: CodecConfig) -> None:
  """Keep the names that the user gave, for commands that read them from stored files."""
  new = [name for name in given(config) if name not in _known()]
  if not new:
    return
  try:
    path = _file()
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, ''.join(f'{name}\n' for name in (*_remembered(), *new)))
  except (OSError, UserError) as error:
    _log.warning('%s cannot be kept in %s (%s); later commands need --config or %s.',
                 ', '.join(new), _file(), error, VARIABLE)


def _known() -> set[str]:
  return {*_remembered(), *os.environ.get(VARIABLE, '').replace(',', ' ').split()}


def _remembered() -> list[str]:
  try:
    return _file().read_text(encoding='utf-8').split()
  except (OSError, UnicodeDecodeError):
    return []


def _file() -> pathlib.Path:
  home = os.environ.get('XDG_CONFIG_HOME') or os.path.expanduser('~/.config')
  return pathlib.Path(home) / 'ttt_jax' / 'codecs'
