"""Qwen2.5's decoder as pure functions over a plain dict of arrays.

The NNX modules are split once, here, into a static graph and a dict; everything outside
model/ sees only ``Model``'s functions and that dict. Layer weights are stacked on a
leading axis and run under ``lax.scan``, one layer's graph merged in the body.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ttt_jax.config import ModelConfig
from ttt_jax.model import attention, layers

Params = dict[str, Any]


class Model:
  """A decoder of one size over one vocabulary; holds no arrays.

  Params: {'trunk': {'embedding' [V', E], 'norm': {...}, 'head'?}, 'layers': {... [L, ...]}}
  where V' is the vocabulary padded to ``config.vocab_multiple``.
  """

  def __init__(self, config: ModelConfig, vocab_size: int):
    self.config = config
    self.vocab_size = vocab_size
    self.rows = -(-vocab_size // config.vocab_multiple) * config.vocab_multiple
    self._block = nnx.split(nnx.eval_shape(lambda: layers.Block(config, nnx.Rngs(0))), nnx.Param)
    self._trunk = nnx.split(
        nnx.eval_shape(lambda: layers.Trunk(config, self.rows, nnx.Rngs(0))), nnx.Param)

  def init(self, key: jax.Array) -> Params:
    """Random parameters, float32; a pure function, so it can run under jit and eval_shape."""
    trunk_key, layer_key = jax.random.split(key)
    pure = lambda module: nnx.to_pure_dict(nnx.state(module, nnx.Param))
    block = lambda key: pure(layers.Block(self.config, nnx.Rngs(params=key)))
    return {
        'trunk': pure(layers.Trunk(self.config, self.rows, nnx.Rngs(params=trunk_key))),
        'layers': jax.vmap(block)(jax.random.split(layer_key, self.config.layers)),
    }

  def axes(self) -> dict[str, Any]:
    """The logical axes of every parameter: a tree like Params, of tuples of names."""
    names = lambda state, lead: jax.tree.map(
        lambda variable: lead + variable.get_metadata()['axes'], state,
        is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    return {'trunk': nnx.to_pure_dict(names(self._trunk[1], ())),
            'layers': nnx.to_pure_dict(names(self._block[1], ('layers',)))}

  def hidden(self, params: Params, token: jax.Array, position: jax.Array,
             k_start: jax.Array, k_end: jax.Array) -> jax.Array:
    """Final-norm hidden states.

    Args:
      params: as from ``init``.
      token, position: int32 [B, T].
      k_start, k_end: int32 [B, T], the staircase (model/staircase.py).

    Returns:
      [B, T, E] in the compute dtype.
    """
    attend = functools.partial(attention.attend, k_start=k_start, k_end=k_end)
    trunk = nnx.merge(self._trunk[0], params['trunk'])
    rope = layers.rope_table(position, self.config.head_dim, self.config.rope_theta)

    def body(x, layer):
      return nnx.merge(self._block[0], layer)(x, rope, attend), None

    if self.config.remat == 'full':
      body = jax.checkpoint(body, prevent_cse=False)
    x, _ = jax.lax.scan(body, trunk.embed(token), params['layers'],
                        unroll=min(self.config.scan_unroll, self.config.layers))
    return trunk.norm(x)

  def head_table(self, params: Params) -> jax.Array:
    """[V', E] float32: the output head's rows, padding included."""
    return nnx.merge(self._trunk[0], params['trunk']).head_table()

  def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
    """float32 [..., vocab_size]; the padding rows are cut off."""
    table = self.head_table(params)[:self.vocab_size].astype(self.config.dtype)
    return jnp.einsum('...e,ve->...v', hidden, table, preferred_element_type=jnp.float32)
