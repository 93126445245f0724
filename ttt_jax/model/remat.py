"""Rematerialisation: what the forward pass saves for the backward pass (config key model.remat).

  name       saved per layer                                recomputed
  none       everything                                     nothing
  dots       results of the matrix products                 norms, activations, RoPE
  attention  its input, attention's output and log-sum-exp  all but attention itself
  full       its input                                      the complete layer
  offload    as attention, but in the host's memory         all but attention itself

Gathered copies of the weights are never saved: each device has its shard and gathers again.
The idea is that of arXiv 1604.06174 (gradient checkpointing).
"""

from typing import Any, Callable

import jax
from jax.ad_checkpoint import checkpoint_name

# Names that layers and kernels give to their values.
INPUT = 'layer_input'
ATTENTION = ('attention_out', 'attention_lse')
WEIGHT = 'gathered_weight'


def named(x: jax.Array, name: str) -> jax.Array:
  """``x`` under a name that policies refer to."""
  return checkpoint_name(x, name)


def wrap(body: Callable[..., Any], policy: str, gathers: bool) -> Callable[..., Any]:
  """A scan body under jax.checkpoint with the policy of that name.

  Args:
    body: (carry, layer) -> (carry, None).
    policy: one of config.settings.REMATS.
    gathers: whether weights are gathered from other devices inside the body.
  """
  policies = jax.checkpoint_policies
  if policy == 'none' and not gathers:
    return body
  keep = {
      'none': policies.save_anything_except_these_names(WEIGHT),
      'dots': policies.dots_with_no_batch_dims_saveable,
      'attention': policies.save_only_these_names(*ATTENTION),
      'full': policies.nothing_saveable,
      'offload': policies.save_and_offload_only_these_names(
          names_which_can_be_saved=[], names_which_can_be_offloaded=[INPUT, *ATTENTION],
          offload_src='device', offload_dst='pinned_host'),
  }[policy]
  return jax.checkpoint(body, policy=keep, prevent_cse=False)
