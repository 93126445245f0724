"""The published safetensors -> the encoder's dict of arrays.

Two layouts exist: names with the prefix 'model.encoder.' (the complete Whisper model) and names
without a prefix (the encoder alone). Tensors that do not affect the tokens are not read: the
decoder, layers after the quantizer, its moving averages, the second position table.
"""

import dataclasses
import hashlib
import os
import pathlib
from typing import Annotated, Any, Callable

import numpy as np

from ttt_jax.audio.glm4.encoder import Params, Shape
from ttt_jax.errors import UserError
from ttt_jax.storage import folder_copies, schema
from ttt_jax.storage.safetensors_io import Folder

PREFIXES = ('', 'model.encoder.')
_KEY = 'config key codec.weights'
# Shape field -> key of config.json. Without the file or a key the published size is used.
_SIZES = {'mels': 'num_mel_bins', 'width': 'd_model', 'heads': 'encoder_attention_heads',
          'ffn': 'encoder_ffn_dim', 'layers': 'quantize_position',
          'positions': 'max_source_positions', 'block': 'quantize_causal_block_size',
          'codes': 'quantize_vocab_size'}
# Settings of the published network; another value means a network that is not implemented.
_FIXED = {'encoder_causal_convolution': True, 'encoder_causal_attention': False,
          'quantize_causal_encoder': False, 'scale_embedding': False, 'pooling_type': 'avg',
          'pooling_kernel_size': 4, 'activation_function': 'gelu'}
_LINEAR = {'q': 'self_attn.q_proj', 'k': 'self_attn.k_proj', 'v': 'self_attn.v_proj',
           'out': 'self_attn.out_proj', 'fc1': 'fc1', 'fc2': 'fc2'}
_NORM = {'attention_norm': 'self_attn_layer_norm', 'ffn_norm': 'final_layer_norm'}


@dataclasses.dataclass(frozen=True)
class Place:
  """A published tensor and its place in Params.

  Attributes:
    name: without prefix.
    shape: as published.
    path: keys into Params; arrays under 'layers' are stacked.
    layer: index into the stack, or None.
    turn: converts the published layout to ours.
  """
  name: str
  shape: tuple[int, ...]
  path: tuple[str, ...]
  layer: int | None
  turn: Callable[[np.ndarray], np.ndarray]


def _same(array: np.ndarray) -> np.ndarray:
  return array


def _convolution(array: np.ndarray) -> np.ndarray:
  """[out, in, 3] -> [3 in, out], oldest frame first."""
  return array.transpose(2, 1, 0).reshape(-1, array.shape[0])


def places(shape: Shape) -> list[Place]:
  """Every tensor that the encoder needs."""
  s, e = shape, shape.width
  out = [Place('embed_positions.weight', (s.positions, e), ('stem', 'positions'), None, _same),
         Place('codebook.weight', (s.codes, e), ('codebook', 'codes'), None, _same)]
  for name, n_in in (('conv1', s.mels), ('conv2', e)):
    at = ('stem', name, 'linear')
    out += [Place(f'{name}.weight', (e, n_in, 3), (*at, 'kernel'), None, _convolution),
            Place(f'{name}.bias', (e,), (*at, 'bias'), None, _same)]
  for i in range(s.layers):
    for ours, theirs in _LINEAR.items():
      n_in, n_out = {'fc1': (e, s.ffn), 'fc2': (s.ffn, e)}.get(ours, (e, e))
      name, at = f'layers.{i}.{theirs}', ('layers', ours)
      out.append(Place(f'{name}.weight', (n_out, n_in), (*at, 'kernel'), i, np.transpose))
      if ours != 'k':
        out.append(Place(f'{name}.bias', (n_out,), (*at, 'bias'), i, _same))
    for ours, theirs in _NORM.items():
      name, at = f'layers.{i}.{theirs}', ('layers', ours)
      out += [Place(f'{name}.weight', (e,), (*at, 'scale'), i, _same),
              Place(f'{name}.bias', (e,), (*at, 'bias'), i, _same)]
  return out


class Checkpoint:
  """A folder with the published tokenizer; arrays are read by ``read``."""

  def __init__(self, directory: str | os.PathLike):
    """Reads config.json and the headers of the safetensors.

    Raises:
      UserError: no such folder, a missing tensor or one of another shape, or settings of
        another network; the sentence names it.
    """
    self.directory = folder_copies.folder(directory, ('*.json', '*.safetensors'), _KEY)
    if not self.directory.is_dir():
      raise UserError(f'{_KEY} is {str(directory)!r}, which is not a folder; name the one with the '
                      "tokenizer's config.json and model.safetensors.")
    self.shape = shape_of(self.directory / 'config.json')
    self._folder = Folder(self.directory)
    prefix = next((p for p in PREFIXES if f'{p}codebook.weight' in self._folder), None)
    if prefix is None:
      raise UserError(f'{_KEY}: {self.directory} has no tensor codebook.weight or '
                      'model.encoder.codebook.weight; it is not a GLM-4-Voice tokenizer (its '
                      'decoder and its language model are other folders).')
    self._prefix = prefix
    missing = [p.name for p in places(self.shape) if self._prefix + p.name not in self._folder]
    if missing:
      more = f' and {len(missing) - 1} more' if len(missing) > 1 else ''
      raise UserError(f'{_KEY}: {self.directory} lacks tensor {self._prefix}{missing[0]}{more}; '
                      'the download is incomplete, or it is another model.')
    for place in places(self.shape):
      found = self._folder[self._prefix + place.name].shape
      if found != place.shape:
        raise UserError(f'{_KEY}: tensor {self._prefix}{place.name} in {self.directory} has shape '
                        f'{list(found)}, but its config.json (or the published size, where it has '
                        f'no such key) needs {list(place.shape)}.')

  def digest(self) -> str:
    """16 hex digits that identify the codebook."""
    codes = self._read('codebook.weight')
    return hashlib.sha256(codes.astype('<f4').tobytes()).hexdigest()[:16]

  def read(self) -> Params:
    """All arrays, float32, in numpy: see ``Encoder``.

    Raises:
      UserError: numbers that are not finite, or a truncated file.
    """
    params: Params = {}
    for place in places(self.shape):
      array = place.turn(self._read(place.name))
      at: dict[str, Any] = params
      for key in place.path[:-1]:
        at = at.setdefault(key, {})
      if place.layer is None:
        at[place.path[-1]] = np.ascontiguousarray(array)
      else:
        stack = at.setdefault(place.path[-1],
                              np.empty((self.shape.layers, *array.shape), np.float32))
        stack[place.layer] = array
    codes = params['codebook']['codes']
    params['codebook']['squares'] = np.einsum(
        'ce,ce->c', codes, codes, dtype=np.float64).astype(np.float32)
    return params

  def _read(self, name: str) -> np.ndarray:
    array = self._folder.read(self._prefix + name).astype(np.float32)
    if not np.isfinite(array).all():
      raise UserError(f'{_KEY}: tensor {self._prefix}{name} in {self.directory} has numbers that '
                      'are not finite; the file is damaged, download it again.')
    return array


def shape_of(path: pathlib.Path) -> Shape:
  """The sizes in a config.json; the published ones without such a file."""
  if not path.exists():
    return Shape()
  values = schema.read(path, None, 'download it again')
  sizes = {key: values[key] for key in _SIZES.values() if key in values}
  # Every size is far below the bound, and the number of layers decides how many tensors are named.
  schema.check(sizes, dict[str, Annotated[int, schema.Range(1, 2**17)]], str(path),
               'download it again')
  found = {ours: sizes[theirs] for ours, theirs in _SIZES.items() if theirs in sizes}
  if found.get('layers', 1) > 1024:
    raise UserError(f'{path} has {_SIZES["layers"]} = {found["layers"]:,}; it must be at most '
                    '1,024.')
  for key, wanted in _FIXED.items():
    if values.get(key, wanted) != wanted:
      raise UserError(f'{path} has {key} = {schema.shown(values[key])}; only '
                      f'{wanted!r} is implemented.')
  shape = Shape(**found)
  if shape.width % shape.heads or shape.positions % shape.pool:
    raise UserError(f'{path} has d_model {shape.width} for {shape.heads} heads and '
                    f'{shape.positions} positions for pools of {shape.pool}; they must divide.')
  return shape
