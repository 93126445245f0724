"""LoRA adapters in the format of `peft`: adapter_config.json and adapter_model.safetensors.

  base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight   [rank, in]   lora_a transposed
  base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight   [out, rank]  lora_b transposed
"""

import json
import os
import pathlib
from typing import Annotated, Any, Required

import jax
import numpy as np
from jax.sharding import Mesh

from ttt_jax.config import LoraConfig
from ttt_jax.errors import UserError
from ttt_jax.hf import tensor_names
from ttt_jax.model import lora, sharding
from ttt_jax.model.transformer import Model, Params
from ttt_jax.storage import safetensors_io, schema
from ttt_jax.storage.safetensors_io import Folder
from ttt_jax.train import together

CONFIG = 'adapter_config.json'
WEIGHTS = 'adapter_model.safetensors'
PATTERNS = ('adapter_*',)  # the names of its files
_PREFIX = 'base_model.model.'
_LETTER = {'A': lora.A, 'B': lora.B}
_INDEX = WEIGHTS + '.index.json'
# An adapter is imported if every setting of its adapter_config.json is listed here or is off. These
# have a value that plain LoRA has:
_PLAIN = {
    'peft_type': ('LORA',), 'task_type': ('CAUSAL_LM', None), 'bias': ('none', None),
    # The start of training. 'pissa', 'olora', 'corda', 'loftq' and 'lora_ga' are missing because
    # they move a part of the base weights into the adapter.
    'init_lora_weights': (True, False, None, 'gaussian', 'orthogonal', 'eva'),
}
# These change nothing of what a trained adapter computes, or are compared with the config:
_FREE = ('base_model_name_or_path', 'revision', 'auto_mapping', 'peft_version', 'inference_mode',
         'r', 'lora_alpha', 'target_modules', 'lora_dropout', 'runtime_config', 'megatron_core',
         'loftq_config', 'corda_config', 'eva_config', 'lora_ga_config', 'qalora_group_size')
_OFF = (None, False, [], {}, '')
_WHY = {
    'init_lora_weights': 'it changes the base weights, so the adapter does not fit the original '
                         'base; save it with path_initial_model_for_weight_conversion, which makes '
                         'plain LoRA of it',
    'layer_replication': 'it changes the layers of the base',
}


class AdapterFile(schema.Kind, total=False):
  """The fields of adapter_config.json that are read."""
  peft_type: Required[str]
  base_model_name_or_path: str | None
  r: Required[Annotated[int, schema.Range(1, 2**20)]]
  lora_alpha: Required[Annotated[float, schema.Range(-1e9, 1e9)]]
  target_modules: Required[list[str] | str]


def plan(model: Model) -> list[tuple[str, tuple[str, ...], int, tuple[int, ...]]]:
  """(name, path of our stacked leaf, layer, shape) of every tensor of an adapter directory."""
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  out = []
  for layer in range(model.config.num_layers):
    for name in model.config.lora.targets:
      module, path = tensor_names.PROJECTIONS[name]
      for letter, key in _LETTER.items():
        shape = tensor_names.leaf(shapes, (*path, key)).shape[:0:-1]
        out.append((f'{_PREFIX}{tensor_names.LAYER.format(layer)}{module}.lora_{letter}.weight',
                    (*path, key), layer, shape))
  return out


# -- export ----------------------------------------------------------------------------------


def save(directory: pathlib.Path, model: Model, params: Params, base: str | None) -> int:
  """Write the adapters of ``params`` into an existing directory; returns the number of tensors.

  Args:
    directory: to write to.
    model, params: with adapters.
    base: base_model_name_or_path of adapter_config.json; None leaves it empty.
  """
  config = model.config.lora
  planned = {name: (path, layer, shape) for name, path, layer, shape in plan(model)}
  def get(name: str) -> np.ndarray:
    path, layer, _ = planned[name]
    return np.asarray(tensor_names.leaf(params, path)[layer], np.float32).T
  writer = safetensors_io.Writer(directory, (safetensors_io.Plan(name, shape, np.dtype(np.float32))
                                      for name, (_, _, shape) in planned.items()), 2**62)
  writer.write(get, WEIGHTS)
  (directory / CONFIG).write_text(json.dumps(_values(config, base), indent=2) + '\n',
                                  encoding='utf-8')
  return len(planned)


def _values(config: LoraConfig, base: str | None) -> dict[str, Any]:
  return {
      'peft_type': 'LORA',
      'task_type': 'CAUSAL_LM',
      'base_model_name_or_path': base,
      'r': config.rank,
      'lora_alpha': config.alpha,
      'lora_dropout': config.dropout,
      'target_modules': [
          tensor_names.PROJECTIONS[name][0].split('.')[1] for name in config.targets
      ],
      'bias': 'none',
      'fan_in_fan_out': False,
      'inference_mode': True,
      'use_rslora': False,
      'use_dora': False,
      'modules_to_save': None,
      'init_lora_weights': True,
      'rank_pattern': {},
      'alpha_pattern': {},
      'layers_to_transform': None
  }


# -- import -----------------------------------------------------------------------------------


def check(directory: str | os.PathLike, model: Model) -> tuple[dict[str, Any], Folder]:
  """Compare a PEFT directory with the model; its tensors are not read.

  Returns:
    (its adapter_config.json, its tensors).

  Raises:
    UserError: not such a directory, an adapter of another kind than LoRA on unchanged base
      weights, or one that ``model.config.lora`` does not describe.
  """
  values = read_config(directory)
  _check(values, model.config.lora, pathlib.Path(directory) / CONFIG)
  folder = Folder(directory, WEIGHTS, _INDEX)
  planned = plan(model)
  names = {name for name, *_ in planned}
  for problem, found in (('lacks', sorted(names - set(folder))),
                         ('also has', sorted(set(folder) - names))):
    if found:
      raise UserError(f'{directory} {problem} tensor {found[0]}; the adapter belongs to another '
                      'model or to other config keys model.lora.targets.')
  for name, _, _, shape in planned:
    if folder[name].shape != shape:
      raise UserError(f'tensor {name} in {folder[name].file} has shape {list(folder[name].shape)}; '
                      f'the model asks for {list(shape)}.')
  return values, folder


def load(directory: str | os.PathLike, model: Model, mesh: Mesh,
         params: Params) -> tuple[Params, str]:
  """The adapters of a PEFT directory; every process reads all of them.

  Returns:
    (``params`` with the adapters, the name of the base that they were trained on or '').

  Raises:
    UserError: as ``check``, or numbers that are not finite.
  """
  values, stacked = together.run(lambda: read(directory, model))
  places = sharding.shardings(mesh, lora.adapters(model.axes()), stacked)
  put = lambda array, place: jax.make_array_from_callback(
      array.shape, place, lambda index: array[index])
  return (lora.join(params, jax.tree.map(put, stacked, places)),
          values.get('base_model_name_or_path') or '')


def read(directory: str | os.PathLike, model: Model) -> tuple[dict[str, Any], Params]:
  """(adapter_config.json, adapters on the host) of a PEFT directory that fits ``model``."""
  values, folder = check(directory, model)
  leaves: dict[tuple[str, ...], list[np.ndarray]] = {}
  for name, leaf_path, _, _ in plan(model):
    leaves.setdefault(leaf_path, []).append(folder.read_finite(name).astype(np.float32).T)
  return values, tensor_names.nested({path: np.stack(layers) for path, layers in leaves.items()})


def read_config(directory: str | os.PathLike) -> dict[str, Any]:
  """adapter_config.json of a directory: plain LoRA on unchanged base weights.

  Raises:
    UserError: no such file, a field missing or of another type, or a setting that changes what
      the adapter or its base computes.
  """
  path = pathlib.Path(directory) / CONFIG
  if not path.exists():
    raise UserError(f'{path} does not exist; name the folder of a PEFT adapter, with its {CONFIG} '
                    f'and {WEIGHTS}.')
  remedy = 'it must be the configuration of a LoRA adapter'
  values = schema.read(path, AdapterFile, remedy)
  for key, value in values.items():
    if key in _FREE:
      continue
    # By type as well, because 0 == False.
    plain = _PLAIN.get(key, _OFF)
    if not any(type(value) is type(one) and value == one for one in plain):
      why = f'; {_WHY[key]}' if key in _WHY else ''
      raise UserError(f'{path} has {schema.key_text(key)} = {schema.shown(value)}; only '
                      f'{plain[0]!r} can be imported{why}.')
  return values


def _check(values: dict[str, Any], config: LoraConfig, path: pathlib.Path) -> None:
  modules = values['target_modules']
  if isinstance(modules, str) and modules != 'all-linear':
    raise UserError(f'{path} has target_modules = {schema.shown(modules)}; only a list of modules '
                    "or 'all-linear' can be imported.")
  known: dict[str, str] = {}
  for name, (module, _) in tensor_names.PROJECTIONS.items():
    known |= {module: name, module.split('.')[1]: name}
  for module in modules if isinstance(modules, list) else ():
    if module not in known:
      raise UserError(f'{path} has {schema.shown(module)} in target_modules; adapters can be on '
                      f'{", ".join(name for name in known if "." not in name)} alone.')
  targets = set(known.values() if modules == 'all-linear' else map(known.__getitem__, modules))
  for key, ours, theirs in (('rank', config.rank, values['r']),
                            ('alpha', config.alpha, values['lora_alpha']),
                            ('targets', sorted(config.targets), sorted(targets))):
    if ours != theirs:
      raise UserError(f'config key model.lora.{key} is {ours}, but {path} has '
                      f'{schema.shown(theirs)}; set the key to that.')
