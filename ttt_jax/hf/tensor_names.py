"""ONE table between the tensors of a Qwen2 directory and our parameters, for import and export.

transformers stores a matrix as [out, in], we store it as [in, out]; it has one tensor per layer, we
stack layers along a leading axis. Names and shapes are those of Qwen2ForCausalLM.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax

from ttt_jax.model.transformer import Model

EMBEDDING = 'model.embed_tokens.weight'
HEAD = 'lm_head.weight'
LAYER = 'model.layers.{}.'

# (name, path of the parameter, whether it is transposed)
TRUNK = (
    (EMBEDDING, ('trunk', 'embedding'), False),
    ('model.norm.weight', ('trunk', 'norm', 'scale'), False),
    (HEAD, ('trunk', 'head'), False),  # absent when tied
)
# Projection -> (module of Qwen2, path of ours); also the matrices that may have an adapter.
PROJECTIONS = {
    'q': ('self_attn.q_proj', ('layers', 'attention', 'q')),
    'k': ('self_attn.k_proj', ('layers', 'attention', 'k')),
    'v': ('self_attn.v_proj', ('layers', 'attention', 'v')),
    'o': ('self_attn.o_proj', ('layers', 'attention', 'o')),
    'gate': ('mlp.gate_proj', ('layers', 'mlp', 'gate')),
    'up': ('mlp.up_proj', ('layers', 'mlp', 'up')),
    'down': ('mlp.down_proj', ('layers', 'mlp', 'down')),
}
LAYERS = (
    ('input_layernorm.weight', ('layers', 'attention_norm', 'scale'), False),
    ('post_attention_layernorm.weight', ('layers', 'mlp_norm', 'scale'), False),
    *((f'{module}.weight', (*path, 'kernel'), True) for module, path in PROJECTIONS.values()),
    *((f'{PROJECTIONS[name][0]}.bias', (*PROJECTIONS[name][1], 'bias'), False) for name in 'qkv'),
)


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One tensor of a directory.

  Attributes:
    name: as in the directory.
    path: keys of our parameter.
    layer: index into the stacked parameter; None outside the layers.
    shape: as in the directory; an embedding table is without our padding rows.
    transposed: whether it is the transpose of ours.
  """
  name: str
  path: tuple[str, ...]
  layer: int | None
  shape: tuple[int, ...]
  transposed: bool

  @property
  def is_table(self) -> bool:
    """Whether its rows are ids."""
    return self.name in (EMBEDDING, HEAD)


def tensors(model: Model) -> dict[str, Tensor]:
  """Every tensor of a directory that holds ``model``, by name, in the order of the layers."""
  return {tensor.name: tensor for tensor in _tensors(model)}


def _tensors(model: Model) -> Iterator[Tensor]:
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  for name, path, transposed in TRUNK:
    if name == HEAD and model.config.tie_word_embeddings:
      continue
    shape = leaf(shapes, path).shape
    yield Tensor(name, path, None,
                 (model.vocab_size, *shape[1:]) if name in (EMBEDDING, HEAD) else shape, transposed)
  for layer in range(model.config.num_layers):
    for name, path, transposed in LAYERS:
      stacked = leaf(shapes, path).shape[1:]
      yield Tensor(LAYER.format(layer) + name, path, layer,
                   stacked[::-1] if transposed else stacked, transposed)


def leaf(tree: Any, path: tuple[str, ...]) -> Any:
  """The value at a path of nested dicts."""
  return functools.reduce(lambda branch, key: branch[key], path, tree)


def nested(leaves: dict[tuple[str, ...], Any]) -> dict[str, Any]:
  """Nested dicts from a dict of paths and values; the inverse of flattening."""
  tree: dict[str, Any] = {}
  for path, value in leaves.items():
    functools.reduce(lambda branch, key: branch.setdefault(key, {}), path[:-1], tree)[
        path[-1]] = value
  return tree

