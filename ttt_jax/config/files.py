"""Config files and command-line overrides -> the dataclasses of settings.py, and back."""

import ast
import dataclasses
import difflib
import importlib.util
import json
import math
import os
import pathlib
import traceback
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeGuard, TypeVar

import ml_collections

from ttt_jax.config import data_config, paths, user_classes
from ttt_jax.config.settings import Config, with_preset
from ttt_jax.errors import UserError
from ttt_jax.storage import files, owned, schema
from ttt_jax.storage.schema import key_text, shown

if typing.TYPE_CHECKING:
  from _typeshed import DataclassInstance

T = TypeVar('T', bound='DataclassInstance')
_LONGEST = 400  # characters of an exception's message

# Keys of version 0.1 -> their present names. In a user's own file an old key is an error that
# names the new one; files that version 0.1 wrote (config.json, notes of checkpoints) are read.
RENAMED = {
    'model.layers': 'model.num_layers',
    'model.width': 'model.hidden_size',
    'model.q_heads': 'model.num_attention_heads',
    'model.kv_heads': 'model.num_key_value_heads',
    'model.ffn': 'model.intermediate_size',
    'model.norm_eps': 'model.rms_norm_eps',
    'model.tied': 'model.tie_word_embeddings',
    'data.row_length': 'data.seq_len',
    'train.batch_rows': 'train.batch_size',
    'train.microbatches': 'train.grad_accum_steps',
    'optimizer.warmup_fraction': 'optimizer.warmup_ratio',
    'optimizer.clip_norm': 'optimizer.max_grad_norm',
}


class UnknownKey(UserError):
  """A key that no group of settings has."""


def from_dict(cls: type[T], values: Any, where: str = '') -> T:
  """Build dataclass ``cls`` from nested mappings.

  Raises:
    UserError: an unknown key (``UnknownKey``), or a value of the wrong type; the sentence names
      the key.
  """
  if isinstance(values, cls):
    return values
  if not hasattr(values, 'items'):
    some = ', '.join(field.name for field in dataclasses.fields(cls)[:3])
    raise UserError(f'config key {where or "(top)"} is {shown(values)}; it must be a group of '
                    f'settings such as {{{some}, ...}}.')
  hints = typing.get_type_hints(cls)
  given = {}
  for key, value in values.items():
    path = f'{where}.{key}' if where else str(key)
    if key not in hints:
      raise UnknownKey(f'config key {key_text(path)} is unknown; '
                       f'{_suggest(str(key), hints, where)}')
    given[key] = _coerce(hints[key], value, path)
  return cls(**given)


def _suggest(key: str, fields: dict[str, Any], where: str) -> str:
  new = RENAMED.get(f'{where}.{key}')
  if new:
    return f'since version 0.2 it is called {new}.'
  close = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
  prefix = f'{where}.' if where else ''
  if close:
    return f'did you mean {prefix}{close[0]}?'
  for path in _paths(Config):
    if path.rsplit('.', 1)[-1] == key:
      return f'did you mean {path}?'
  return f'known here: {", ".join(fields)}.'


def _paths(cls: type, prefix: str = '') -> list[str]:
  out = []
  for name, hint in typing.get_type_hints(cls).items():
    out += _paths(hint, f'{prefix}{name}.') if _is_group(hint) else [prefix + name]
  return out


def _is_group(hint: Any) -> TypeGuard['type[DataclassInstance]']:
  return dataclasses.is_dataclass(hint)


def _coerce(hint: Any, value: Any, path: str) -> Any:
  if _is_group(hint):
    return from_dict(hint, value, path)
  if isinstance(hint, types.UnionType):
    if value is None:
      return None
    hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
  if typing.get_origin(hint) is Mapping:
    if not hasattr(value, 'items'):
      raise UserError(f'config key {path} is {shown(value)}; it must be names with their values, '
                      "such as {'asr': 2, 'tts': 1}.")
    return {str(name): _coerce(typing.get_args(hint)[1], item, f'{path}.{key_text(str(name))}')
            for name, item in value.items()}
  if typing.get_origin(hint) is tuple:
    item = typing.get_args(hint)[0]
    if isinstance(value, (str, bytes)) or not hasattr(value, '__iter__'):
      raise UserError(f'config key {path} is {shown(value)}; it must be a list.')
    return tuple(_coerce(item, v, f'{path}[{i}]') for i, v in enumerate(value))
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value) if abs(value) < 2**1000 else math.inf if value > 0 else -math.inf
  if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
    raise UserError(f'config key {path} is {shown(value)} ({type(value).__name__}); it must be '
                    f'{hint.__name__}.')
  if isinstance(value, str) and '\0' in value:
    raise UserError(f'config key {path} is {shown(value)}; it must have no NUL character.')
  return value


def load(path: str | os.PathLike, overrides: dict[str, str] | None = None) -> Config:
  """Read a config file and apply overrides.

  A file may hold ``presets``: hardware name -> the settings that differ there (mesh, rows,
  remat ...). ``hardware`` names the one to take; the order is defaults, file, preset,
  command line. ``generate.preset`` is overridden by what stands beside it in the file, or beside it
  on the command line.

  Args:
    path: a Python file with ``get_config() -> ml_collections.ConfigDict`` (or a dict), or a
      config.json that ``save`` wrote, whose classes are imported only if the user gave their
      names (user_classes.py).
    overrides: dotted key -> text, e.g. {'model.num_layers': '4'}; text is read as a Python
      literal where the key's type is not str.

  Raises:
    UserError: no such file, no get_config, unknown key, ill-typed value.
  """
  path = paths.local(str(path), '--config')
  values, known = _read(path)
  stored = values.get('hardware', '')
  hardware = (overrides or {}).get('hardware', stored)
  if hardware and known:
    if not isinstance(hardware, str) or hardware not in known:
      raise UserError(f'config key hardware is {shown(hardware)}, but {path} has presets for '
                      + ', '.join(known) + '.')
    _merge(values, known[hardware])
  elif (overrides or {}).get('hardware') and hardware != stored:
    raise UserError(f'config key hardware is {hardware!r}, but {path} has no presets; name the '
                    'Python file that has them with --config.')
  try:
    return of_values(values, overrides)
  except UnknownKey as error:  # unknown keys of the command line are found above
    raise UserError(f'config file {path}: {error}') from error


def of_values(values: dict[str, Any], overrides: dict[str, str] | None = None) -> Config:
  """A config from nested dicts, which are changed, and overrides as for ``load``.

  Raises:
    UserError: as ``load``.
  """
  _apply_generate_preset(values, overrides or {})
  for key, text in (overrides or {}).items():
    _override(values, key, text)
  data = values.get('data')
  if isinstance(data, dict) and 'sources' in data:  # from_dict names anything else
    values['data'] = {**data, 'sources': data_config.expanded(data['sources'])}
  return _with_local_paths(from_dict(Config, values))


def _with_local_paths(config: Config) -> Config:
  """``config`` with ``~`` expanded in every path; UserError for an address of the network."""
  def one(settings: Any, prefix: str, *names: str, bucket: bool = False) -> Any:
    found = {name: paths.local(getattr(settings, name), f'config key {prefix}.{name}', bucket)
             for name in names}
    return dataclasses.replace(settings, **found)
  sources = tuple(one(source, f'data.sources[{number}]', 'path', bucket=True)
                  for number, source in enumerate(config.data.sources))
  roots = tuple(paths.local(root, 'config key data.audio_roots', True)
                for root in config.data.audio_roots)
  data = dataclasses.replace(one(config.data, 'data', 'path', 'root', bucket=True),
                             sources=sources, audio_roots=roots)
  return dataclasses.replace(
      config, vocab=one(config.vocab, 'vocab', 'tokenizer', bucket=True),
      codec=one(config.codec, 'codec', 'weights', 'decoder_weights', bucket=True), data=data,
      train=one(config.train, 'train', 'init_from', bucket=True),
      evaluate=one(one(config.evaluate, 'evaluate', 'transcripts'), 'evaluate', 'judge_model',
                   'dnsmos', 'speaker_model', bucket=True))


def _apply_generate_preset(values: dict[str, Any], overrides: dict[str, str]) -> None:
  """Put the values of the preset that the file or the command line names into ``values``."""
  group = values.get('generate', {})
  if isinstance(group, Mapping):  # from_dict names anything else
    group = with_preset({}, group)
    if 'generate.preset' in overrides:
      group = with_preset(group, {'preset': overrides['generate.preset']})
    if group:
      values['generate'] = group


def presets(path: str | os.PathLike) -> list[str]:
  """The names of the hardware presets of a config file."""
  return list(_read(path)[1])


def _read(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
  """(settings, presets) of a config file."""
  file = pathlib.Path(path)
  if not file.is_file():
    raise UserError(f'config file {path} '
                    + ('is a folder; name a file.' if file.is_dir() else 'does not exist.'))
  if file.suffix not in ('.json', '.py'):
    raise UserError(f'config file {path} is neither a Python file (.py) with get_config() nor a '
                    'config.json that ttt-jax wrote.')
  values = (user_classes.as_stored(_from_json(file)) if file.suffix == '.json'
            else _from_python(file))
  if 'model_type' in values or 'architectures' in values:
    raise UserError(f'config file {path} is that of a Hugging Face model, such as export-hf '
                    'writes; name the workdir of a run, or make one of the model with import-hf.')
  known = values.pop('presets', {})
  if not isinstance(known, dict) or not all(isinstance(one, dict) for one in known.values()):
    raise UserError(f'config file {path}: presets is {shown(known)}; it must be a dict from names '
                    'of hardware to dicts of settings.')
  return values, known


def _merge(values: dict[str, Any], changes: dict[str, Any]) -> None:
  for key, value in changes.items():
    if isinstance(value, dict) and isinstance(values.get(key), dict):
      _merge(values[key], value)
    else:
      values[key] = value


def _from_python(file: pathlib.Path) -> dict[str, Any]:
  values = call(file, 'get_config', 'config file')
  if not isinstance(values, (Mapping, ml_collections.ConfigDict)):
    raise UserError(f'config file {file}: get_config() returns {_kind(values)}; it must '
                    'return an ml_collections.ConfigDict or a dict.')
  return _plain(values)


def _kind(value: Any) -> str:
  return 'None' if value is None else type(value).__name__


def _plain(values: Any) -> Any:
  """Nested dicts of ConfigDicts, other mappings and groups of settings."""
  if isinstance(values, ml_collections.ConfigDict):
    values = values.to_dict()
  if _is_group(type(values)):
    values = dataclasses.asdict(values)
  if isinstance(values, Mapping):
    return {str(key): _plain(value) for key, value in values.items()}
  return values


def call(file: pathlib.Path, name: str, kind: str) -> Any:
  """Calls the function ``name`` of a user's Python file and returns its result.

  Args:
    file: an existing file.
    name: of a function without arguments.
    kind: name of the kind of file in error messages.

  Raises:
    UserError: the file cannot be run, or has no such function, or the function raises.
  """
  spec = importlib.util.spec_from_file_location(f'ttt_jax_user_{name}', file)
  if spec is None or spec.loader is None:
    raise UserError(f'{kind} {file} is not a Python file (.py) with {name}().')
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if function is not None:
      return function()
  except UserError:
    raise  # of our own helpers, called in the file
  except SyntaxError as error:
    own = error.filename in (None, spec.origin)
    where = file if own else f'{file} imports {error.filename}'
    line = f', line {error.lineno}' if error.lineno else ''
    raise UserError(f'{kind} {where}{line}: {error.msg}.') from error
  except (Exception, SystemExit) as error:
    raise UserError(f'{kind} {file}{_line_in(spec.origin, error)}: {_words(error)}.') from error
  raise UserError(f'{kind} {file} has no {name}() function.')


def _line_in(file: str | None, error: BaseException) -> str:
  """', line N': the last line of ``file`` that an exception passed."""
  lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
           if frame.filename == file]
  return f', line {lines[-1]}' if lines else ''


def _words(error: BaseException) -> str:
  """An exception as one line; its type where the message alone does not say what happened."""
  try:
    text = ' '.join(str(error).split()).rstrip('.')
    text = text if len(text) <= _LONGEST else f'{text[:_LONGEST]} ...'
  except Exception:  # the user's class of exceptions is itself wrong
    text = 'its message cannot be read'
  named = (NameError, ImportError, AttributeError)
  return text if ' ' in text and isinstance(error, named) else f'{type(error).__name__}: {text}'


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
  """Settings that version 0.1 or later stored, under the names of this version."""
  out = {group: dict(keys) if isinstance(keys, dict) else keys for group, keys in values.items()}
  for old, new in RENAMED.items():
    group, key = old.split('.')
    if isinstance(out.get(group), dict) and key in out[group]:
      out[group][new.split('.')[1]] = out[group].pop(key)
  return out


def _from_json(file: pathlib.Path) -> dict[str, Any]:
  values = schema.read(file, None, 'it must be one that ttt-jax wrote, so restore it from a copy, '
                       'or name a Python file with get_config()')
  return upgraded(values)


def check_saved(workdir: str | os.PathLike) -> None:
  """UserError if workdir/config.json is another program's: ``save`` would replace it."""
  owned.check_json(pathlib.Path(workdir) / 'config.json', 'model', 'data', 'train')


def save(config: Config, workdir: str | os.PathLike) -> None:
  """Write the resolved config to workdir/config.json, by rename."""
  folder = pathlib.Path(workdir)
  check_saved(folder)
  with files.writing(folder):
    files.make_folder(folder)
  files.write_text(folder / 'config.json', json.dumps(to_dict(config), indent=2) + '\n')


def _override(values: dict[str, Any], key: str, text: str) -> None:
  """Set one dotted key; the type comes from the dataclass, so '4' stays text for a str."""
  parts, cls, where = key.split('.'), Config, ''
  for i, part in enumerate(parts):
    hints = typing.get_type_hints(cls)
    path = f'{where}.{part}' if where else part
    if part not in hints:
      raise UserError(f'config key {path} is unknown; {_suggest(part, hints, where)}')
    hint = hints[part]
    last = i == len(parts) - 1
    if dataclasses.is_dataclass(hint) and not last:
      values = values.setdefault(part, {})
      if not isinstance(values, dict):
        raise UserError(f'config key {path} is {shown(values)}; it must be a group of settings.')
      cls, where = hint, path
    elif last and not dataclasses.is_dataclass(hint):
      values[part] = text if hint is str else _literal(text, path)
    elif last:
      raise UserError(f'config key {key} is a group; name one setting of it, such as '
                      f'{key}.{dataclasses.fields(hint)[0].name}.')
    else:
      raise UserError(f'config key {key} has too many parts; {path} is a setting, not a group.')


def _literal(text: str, path: str) -> Any:
  special = {'true': True, 'false': False, 'none': None}
  if text.lower() in special:
    return special[text.lower()]
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text  # the type check that follows names the key and the value


def to_dict(config: Any) -> dict[str, Any]:
  """Nested plain dict, JSON-ready; ``from_dict(Config, to_dict(c)) == c``."""
  return json.loads(json.dumps(dataclasses.asdict(config)))


def flat(config: Any) -> dict[str, Any]:
  """Dotted key -> value of every setting, JSON-ready."""
  def walk(values, prefix):
    for key, value in values.items():
      if isinstance(value, dict):
        yield from walk(value, f'{prefix}{key}.')
      else:
        yield prefix + key, value
  return dict(walk(to_dict(config), ''))
