"""LoRA adapters in the format of `peft`: adapter_config.json and adapter_model.safetensors.

  base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight   [rank, in]   lora_a transposed
  base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight   [out, rank]  lora_b transposed
"""

import json
import os
import pathlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ttt_jax.config import LoraConfig
from ttt_jax.errors import UserError
from ttt_jax.hf import tensor_names
from ttt_jax.model import lora, sharding
from ttt_jax.model.transformer import Model, Params
from ttt_jax.storage import safetensors_io

CONFIG = 'adapter_config.json'
WEIGHTS = 'adapter_model.safetensors'
_PREFIX = 'base_model.model.'
_LETTER = {'A': lora.A, 'B': lora.B}
# Settings of a peft adapter, with the values that plain LoRA has. Other values are rejected.
_ONLY = {'peft_type': ('LORA',), 'bias': ('none',), 'use_rslora': (False, None),
         'use_dora': (False, None), 'fan_in_fan_out': (False, None),
         'modules_to_save': (None, []), 'rank_pattern': ({}, None), 'alpha_pattern': ({}, None),
         'layers_to_transform': (None, [])}


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


def save(directory: pathlib.Path, model: Model, params: Params, base: str) -> int:
  """Write the adapters of ``params`` into an existing directory; returns the number of tensors.

  Args:
    directory: to write to.
    model, params: with adapters.
    base: base_model_name_or_path of adapter_config.json.
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


def _values(config: LoraConfig, base: str) -> dict[str, Any]:
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


def load(directory: str | os.PathLike, model: Model, mesh: Mesh, params: Params) -> Params:
  """``params`` with the adapters of a PEFT directory.

  Raises:
    UserError: not such a directory, or an adapter that ``model.config.lora`` does not describe.
  """
  path = pathlib.Path(directory) / CONFIG
  if not path.is_file():
    raise UserError(f'{path} does not exist; name the folder of a PEFT adapter, with its {CONFIG} '
                    f'and {WEIGHTS}.')
  try:
    values = json.loads(path.read_text(encoding='utf-8'))
    wanted = {key: values[key] for key in ('target_modules', 'r', 'lora_alpha')}
  except (ValueError, TypeError, KeyError) as error:
    raise UserError(f'{path} is not the configuration of a LoRA adapter ({error}).') from error
  _check(values | wanted, model.config.lora, path)
  folder = safetensors_io.Folder(directory, WEIGHTS, WEIGHTS + '.index.json')
  planned = plan(model)
  names = {name for name, *_ in planned}
  for problem, found in (('lacks', sorted(names - set(folder))),
                         ('also has', sorted(set(folder) - names))):
    if found:
      raise UserError(f'{directory} {problem} tensor {found[0]}; the adapter belongs to another '
                      'model or to other config keys model.lora.targets.')
  leaves: dict[tuple[str, ...], list[np.ndarray]] = {}
  for name, leaf_path, _, shape in planned:
    if folder[name].shape != shape:
      raise UserError(f'tensor {name} in {folder[name].file} has shape {list(folder[name].shape)}; '
                      f'the model asks for {list(shape)}.')
    leaves.setdefault(leaf_path, []).append(folder.read(name).astype(np.float32).T)
  stacked = tensor_names.nested({path: np.stack(layers) for path, layers in leaves.items()})
  places = sharding.shardings(mesh, lora.adapters(model.axes()), stacked)
  put = lambda array, place: jax.make_array_from_callback(
      array.shape, place, lambda index: array[index])
  return lora.join(params, jax.tree.map(put, stacked, places))


def _check(values: dict[str, Any], config: LoraConfig, path: pathlib.Path) -> None:
  for key, allowed in _ONLY.items():
    if values.get(key, allowed[0]) not in allowed:
      raise UserError(f'{path} has {key} = {values[key]!r}; only {allowed[0]!r} can be imported.')
  modules = values['target_modules']
  if isinstance(modules, str) and modules != 'all-linear':
    raise UserError(f'{path} has target_modules = {modules!r}; only a list of modules or '
                    "'all-linear' can be imported.")
  targets = {name for name, (module, _) in tensor_names.PROJECTIONS.items()
             if modules == 'all-linear' or module.split('.')[1] in modules}
  for key, ours, theirs in (('rank', config.rank, values['r']),
                            ('alpha', config.alpha, values['lora_alpha']),
                            ('targets', sorted(config.targets), sorted(targets))):
    if ours != theirs:
      raise UserError(f'config key model.lora.{key} is {ours}, but {path} has {theirs}; set the '
                      'key to that.')
