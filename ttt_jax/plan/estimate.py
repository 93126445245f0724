"""Memory, traffic and collectives of a step from formulas.

For hardware that nothing can be compiled for here (GPUs, or TPUs without libtpu), and to exclude
remat policies that cannot fit without compiling them. Parameters and optimizer state are exact;
the rest follows from what a layer saves (model/remat.py) and is accurate to about 25 %.

Bytes per token and layer, b = bytes of the compute dtype, t = mesh.tensor:

  input       b E
  attention   b H D / t + 4 H / t                 output, log-sum-exp
  products    b ((H + 2K) D + 2 F) / t + 2 b E    of the weight products
  the rest    b ((2H + K) D + 3 F) / t + 16 E     rotated heads, SwiGLU, norms in float32
"""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from ttt_jax.config import Config
from ttt_jax.model import flops
from ttt_jax.plan.batch_stats import Sample
from ttt_jax.plan.collectives import Collective

_PADDING_WASTE = 1.1  # of activations: tiles, alignment, fragments


class Estimate(NamedTuple):
  """Per device.

  Attributes:
    memory: bytes by part, at the peak.
    traffic: bytes to and from main memory in a step.
    collectives: of a step, in the order fsdp, data, tensor, seq.
  """
  memory: dict[str, float]
  traffic: float
  collectives: list[Collective]

  @property
  def bytes(self) -> float:
    return sum(self.memory.values())


def shard_bytes(tree: Any) -> float:
  """Bytes per device of a tree of ShapeDtypeStructs with shardings."""
  return float(sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
                   for leaf in jax.tree.leaves(tree)))


def estimate(config: Config, state: Any, mesh: Any, head_rows: int,
             sample: Sample) -> Estimate:
  """The formulas, filled in.

  Args:
    config: model, remat policy, batch.
    state: abstract TrainState with shardings on ``mesh``.
    mesh: with or without devices; only its shape matters.
    head_rows: rows of the vocabulary, padding included.
    sample: of the data.
  """
  c, shape = config.model, mesh.shape
  b = 2 if c.dtype == 'bfloat16' else 4
  tensor = shape['tensor']
  parts = math.prod(shape[axis] for axis in ('slice', 'data', 'fsdp', 'seq'))
  tokens = config.train.batch_size * config.data.seq_len / (config.train.grad_accum_steps * parts)
  kept = _kept(config, b, tensor)
  everything = _kept(config, b, tensor, 'none')
  layer = sum(flops.layer_products(c).values()) / tensor
  table = head_rows * c.hidden_size / tensor
  chunk = min(config.objective.loss_chunk, tokens)
  parameters = shard_bytes(state.params)
  pieces = 2 if _passes(config) > 1 else 1
  memory = {
      'parameters': parameters,
      'optimizer': shard_bytes(state.opt_state),
      'gradients': parameters * pieces,
      'kept for backward': c.num_layers * tokens * kept * _PADDING_WASTE,
      'one layer at work': tokens * everything + (2 * b + 4) * layer,
      # The devices of an fsdp group score each other's chunks, each on its part of the table.
      'logits': chunk * head_rows / tensor * (8 + b) + (4 + b) * table / shape['fsdp'],
  }
  scored = tokens * sample.scored / config.data.seq_len * _passes(config)
  return Estimate(memory, _traffic(config, state, tokens, b, layer, everything,
                                   scored * head_rows / tensor),
                  _collectives(config, mesh, tokens, b, layer, scored, table))


def _passes(config: Config) -> int:
  """Forward and backward passes of a step, one after the other."""
  return config.train.grad_accum_steps * config.objective.passes


def _kept(config: Config, b: int, tensor: int, policy: str | None = None) -> float:
  """Bytes per token and layer on the device until the backward pass."""
  c, policy = config.model, policy or config.model.remat
  entry = b * c.hidden_size
  attention = (b * c.head_dim + 4) * c.num_attention_heads / tensor
  products = b * ((c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim +
                  2 * c.intermediate_size) / tensor + 2 * entry
  rest = b * ((2 * c.num_attention_heads + c.num_key_value_heads) * c.head_dim +
              3 * c.intermediate_size) / tensor + 16 * c.hidden_size
  return {'none': entry + attention + products + rest,
          'dots': entry + products,
          'attention': entry + attention,
          'full': entry,
          'offload': 0.0}[policy]


def _traffic(config, state, tokens, b, layer, everything, logits) -> float:
  """Weights are read forward and backward, activations written, read, and made again."""
  c, pieces = config.model, _passes(config)
  again = c.remat not in ('none', 'dots')
  weights = c.num_layers * layer * b * (4 + again) * pieces
  activations = c.num_layers * tokens * everything * (3 + again) * pieces
  optimizer = 2 * shard_bytes(state) + 3 * shard_bytes(state.params)
  return weights + activations + optimizer + (8 + 2 * b) * logits


def _collectives(config, mesh, tokens, b, layer, scored, table) -> list[Collective]:
  """What the sharding table implies; XLA may do better or worse."""
  c, pieces, shape = config.model, _passes(config), mesh.shape
  grid = np.arange(mesh.size).reshape(tuple(shape.values()))
  out = []

  def add(axes, kind, size, times, asynchronous=True):
    if math.prod(shape[axis] for axis in axes) > 1:
      at = tuple(slice(None) if axis in axes else 0 for axis in shape)
      out.append(Collective(kind, size, times, tuple(grid[at].ravel().tolist()), asynchronous, '',
                            'estimated'))

  add(('fsdp',), 'all-gather', b * layer, 2 * c.num_layers * pieces)
  add(('fsdp',), 'reduce-scatter', b * layer, c.num_layers * pieces)
  add(('fsdp',), 'all-gather', b * scored * c.hidden_size * shape['fsdp'], 1, False)
  add(('fsdp',), 'reduce-scatter', 4 * scored * c.hidden_size * shape['fsdp'], 1, False)
  add(('fsdp',), 'all-to-all', b * tokens * c.hidden_size, 2 * pieces, False)
  add(('slice', 'data'), 'all-reduce', 4 * (c.num_layers * layer + table) / shape['fsdp'], 1)
  add(('tensor',), 'all-reduce', b * tokens * c.hidden_size, 4 * c.num_layers * pieces, False)
  heads = c.num_key_value_heads * c.head_dim / shape['tensor']
  add(('seq',), 'all-gather', 2 * b * tokens * shape['seq'] * heads, 2 * c.num_layers * pieces,
      False)
  add(('seq',), 'reduce-scatter', 8 * tokens * shape['seq'] * heads, c.num_layers * pieces, False)
  return out
