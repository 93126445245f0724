"""Floating-point operations of a training step, for the planner and for the MFU metric.

A product of [m, k] and [k, n] is 2 m k n operations; a training step does every product of
the forward pass three times: once forward, twice backward. Two counts:

  useful    what the method needs: products of the layers for real tokens, attention for the
            (query, key) pairs that the mask allows, logits at scored positions
  executed  what the device does: also padding, complete blocks of attention, complete chunks of
            logits, padding rows of the vocabulary, and what remat recomputes

MFU (model FLOPs utilization, arXiv 2204.02311) is useful operations per second over the chips'
peak. Elementwise operations, the optimizer and embedding look-ups are in neither count: they are
bound by memory and amount to a percent or two.
"""

from typing import NamedTuple

from ttt_jax.config import ModelConfig

# Products of attention, in units of one [pairs, head_dim] product of every head. Forward: scores,
# and weights times values. Backward: four (dq, dk, dv and the weights' gradient); forms that do
# not save the weights recompute the scores (5), and forms with separate passes for dq and for
# dk, dv compute the scores and the weights' gradient twice (7).
_FORWARD = 2
_BACKWARD = {'dense': 4, 'blockwise': 5, 'pallas': 7, 'tokamax': 7}

# Products of a layer that the backward pass recomputes, by remat policy; 'down' is never needed.
_AGAIN = {
    'none': (),
    'dots': ('attention',),
    'attention': ('qkv', 'o', 'gate_up'),
    'offload': ('qkv', 'o', 'gate_up'),
    'full': ('qkv', 'o', 'gate_up', 'attention'),
}


class Flops(NamedTuple):
  """Attributes: useful, executed: FLOPs of a step over all devices; parts: executed, by part."""
  useful: float
  executed: float
  parts: dict[str, float]


def layer_products(model: ModelConfig) -> dict[str, int]:
  """Multiplications per token in the weight products of one layer, by product."""
  c = model
  return {'qkv': c.hidden_size * (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim,
          'o': c.num_attention_heads * c.head_dim * c.hidden_size,
          'gate_up': 2 * c.hidden_size * c.intermediate_size,
          'down': c.intermediate_size * c.hidden_size}


def parameters(model: ModelConfig, vocab_rows: int) -> int:
  """Number of parameters with ``vocab_rows`` embedding rows (padding included)."""
  c = model
  biases = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
  layer = sum(layer_products(c).values()) + biases + 2 * c.hidden_size
  tables = 1 if c.tie_word_embeddings else 2
  return c.num_layers * layer + tables * vocab_rows * c.hidden_size + c.hidden_size


def useful(model: ModelConfig, vocab_size: int, *, tokens: float, scored: float,
           mask_pairs: float) -> float:
  """FLOPs that a training step needs, forward and backward.

  Args:
    model: the size.
    vocab_size: ids, without padding.
    tokens: real tokens (not padding).
    scored: positions with a loss.
    mask_pairs: (query, key) pairs that the mask allows: the sum of k_end - k_start.
  """
  c = model
  weights = c.num_layers * sum(layer_products(c).values()) * tokens
  attention = c.num_layers * _FORWARD * c.num_attention_heads * c.head_dim * mask_pairs
  return 3 * 2 * (weights + attention + scored * c.hidden_size * vocab_size)


def step_flops(model: ModelConfig, vocab_size: int, *, tokens: float, scored: float,
               mask_pairs: float, slots: float | None = None, logit_rows: float | None = None,
               visited_pairs: float | None = None, backward_pairs: float | None = None,
               vocab_rows: int | None = None, attention: str = 'dense') -> Flops:
  """Useful and executed FLOPs of one training step, summed over the batch and all devices.

  Args:
    model: the size and the remat policy.
    vocab_size, tokens, scored, mask_pairs: as for ``useful``.
    slots: tokens with padding; default: no padding.
    logit_rows: positions for which logits are computed; default: the scored ones.
    visited_pairs: pairs in the blocks of attention that are computed (for the dense form
      T x T of every row); default: ``mask_pairs``.
    backward_pairs: the same of the backward pass; default: ``visited_pairs``.
    vocab_rows: rows of the head, padding included; default: ``vocab_size``.
    attention: the form that runs: 'dense', 'blockwise', 'pallas' or 'tokamax'.
  """
  c = model
  slots = tokens if slots is None else slots
  logit_rows = scored if logit_rows is None else logit_rows
  visited_pairs = mask_pairs if visited_pairs is None else visited_pairs
  backward_pairs = visited_pairs if backward_pairs is None else backward_pairs
  vocab_rows = vocab_size if vocab_rows is None else vocab_rows
  products = layer_products(c)
  again = _AGAIN[c.remat]
  # The TPU kernel pads a head to whole lanes of 128.
  head = -(-c.head_dim // 128) * 128 if attention == 'pallas' else c.head_dim
  per_pair = 2 * c.num_layers * c.num_attention_heads * head
  # The dense form saves only its output by name, so its weights need the scores again.
  scores = _FORWARD if 'attention' in again else int(attention == 'dense' and 'qkv' in again)
  parts = {
      'layers': 3 * 2 * c.num_layers * sum(products.values()) * slots,
      'attention': per_pair * (_FORWARD * visited_pairs + _BACKWARD[attention] * backward_pairs),
      'logits': 3 * 2 * logit_rows * c.hidden_size * vocab_rows,
      'recomputed': (2 * c.num_layers * slots * sum(products.get(name, 0) for name in again)
                     + per_pair * scores * visited_pairs),
  }
  needed = useful(c, vocab_size, tokens=tokens, scored=scored, mask_pairs=mask_pairs)
  return Flops(needed, sum(parts.values()), parts)
