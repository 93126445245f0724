"""Qwen2.5's decoder as pure functions over a plain dict of arrays.

The NNX modules are split once, here, into a static graph and a dict; code outside model/ uses
only the methods of ``Model`` and that dict. The weights of all layers are stacked on a leading
axis and run under ``lax.scan``, so that one layer is compiled, whatever their number.

B = rows, T = tokens, W = window, E = width, V = vocabulary, L = layers, S = slots, K = key heads,
D = head dim.
"""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from ttt_jax.config import ModelConfig
from ttt_jax.model import attention, kv_cache, layers, lora, remat, sharding
from ttt_jax.model.types import Array

Params = dict[str, Any]


class Model:
  """A decoder of one size over one vocabulary; holds no arrays.

  Params: {'trunk': {'embedding' [V', E], 'norm': {...}, 'head'?}, 'layers': {... [L, ...]}}
  where V' is the vocabulary padded to ``config.vocab_multiple``.
  """

  def __init__(self, config: ModelConfig, vocab_size: int, platform: str | None = None):
    """Args:
      config, vocab_size: the size; attention and remat by name.
      platform: 'cpu', 'gpu' or 'tpu', for which the attention form is chosen; default: the
        platform JAX runs on. The planner compiles for others.
    """
    self.config = config
    self.platform = platform or jax.default_backend()
    self.vocab_size = vocab_size
    self.rows = -(-vocab_size // config.vocab_multiple) * config.vocab_multiple
    self._block = nnx.split(nnx.eval_shape(lambda: layers.Block(config, nnx.Rngs(0))), nnx.Param)
    self._trunk = nnx.split(
        nnx.eval_shape(lambda: layers.Trunk(config, self.rows, nnx.Rngs(0))), nnx.Param)
    self._layer_axes = self._names(self._block[1])

  def init(self, key: jax.Array) -> Params:
    """Random parameters, float32; a pure function, so it can run under jit and eval_shape."""
    trunk_key, layer_key = jax.random.split(key)
    pure = lambda module: nnx.to_pure_dict(nnx.state(module, nnx.Param))
    block = lambda key: pure(layers.Block(self.config, nnx.Rngs(params=key)))
    return {
        'trunk': pure(layers.Trunk(self.config, self.rows, nnx.Rngs(params=trunk_key))),
        'layers': jax.vmap(block)(jax.random.split(layer_key, self.config.num_layers)),
    }

  def axes(self) -> dict[str, Any]:
    """The logical axes of every parameter: a tree like Params, of tuples of names."""
    stacked = jax.tree.map(lambda names: ('layers', *names), self._layer_axes,
                           is_leaf=lambda leaf: isinstance(leaf, tuple))
    return {'trunk': self._names(self._trunk[1]), 'layers': stacked}

  def _names(self, state: nnx.State) -> dict[str, Any]:
    names = jax.tree.map(lambda variable: variable.get_metadata()['axes'], state,
                         is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    return nnx.to_pure_dict(names)

  def hidden(self, params: Params, token: Array, position: Array,
             k_start: Array, k_end: Array, dropout: jax.Array | None = None) -> jax.Array:
    """Final-norm hidden states.

    Args:
      params: as from ``init``.
      token, position: int32 [B, T].
      k_start, k_end: int32 [B, T], the staircase (model/staircase.py).
      dropout: key of the adapters' dropout masks; None = no dropout.

    Returns:
      [B, T, E] in the compute dtype.
    """
    c = self.config
    chex.assert_rank(token, 2)
    chex.assert_equal_shape([token, position, k_start, k_end])
    chex.assert_type([token, position, k_start, k_end], int)
    attend = functools.partial(
        attention.attend, k_start=k_start, k_end=k_end, block=c.attention_block,
        kind=attention.choose(c.attention, self.platform, token.shape[1]))
    trunk = nnx.merge(self._trunk[0], params['trunk'])
    rope = layers.rope_table(position, c.head_dim, c.rope_theta)

    def body(x, layer_and_key):
      layer, key = layer_and_key
      drop = None if key is None else lora.Dropout(key, c.lora.dropout)
      x = remat.named(sharding.constrain(x, ('rows', 'length', 'width')), remat.INPUT)
      return nnx.merge(self._block[0], self._gathered(layer))(x, rope, attend, drop), None

    body = remat.wrap(body, c.remat, sharding.in_use())
    keys = None if dropout is None else jax.random.split(dropout, c.num_layers)
    embedded = trunk.embed(token)
    with jax.named_scope('layers'):
      x, _ = jax.lax.scan(body, embedded, (params['layers'], keys),
                          unroll=min(c.scan_unroll, c.num_layers))
    with jax.named_scope('final_norm'):
      return trunk.norm(sharding.constrain(x, ('rows', 'length', 'width')))

  def extend(self, params: Params, cache: kv_cache.Cache, slots: Array | None, known: Array,
             token: Array, position: Array, k_end: Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Final-norm hidden states of a window that follows the cached tokens.

    Args:
      params: as from ``init``.
      cache: keys and values of the prefixes; read, not written.
      slots, known, k_end: see ``kv_cache.attend``.
      token, position: int32 [B, W].

    Returns:
      (hidden [B, W, E], keys, values): those of the window, [L, B, K, W, D] each, for
      ``kv_cache.write``.
    """
    c = self.config
    chex.assert_rank(token, 2)
    chex.assert_equal_shape([token, position, k_end])
    chex.assert_type([token, position, k_end, known], int)
    trunk = nnx.merge(self._trunk[0], params['trunk'])
    rope = layers.rope_table(position, c.head_dim, c.rope_theta)

    def body(x, numbered):
      number, layer = numbered
      attend = kv_cache.attend(cache, number, slots, known, k_end)
      made = []
      def remember(q, k, v):
        made.extend((k.swapaxes(1, 2), v.swapaxes(1, 2)))
        return attend(q, k, v)
      return nnx.merge(self._block[0], self._gathered(layer))(x, rope, remember), tuple(made)

    embedded = trunk.embed(token)
    with jax.named_scope('layers'):
      x, (k, v) = jax.lax.scan(body, embedded, (jnp.arange(c.num_layers), params['layers']))
    with jax.named_scope('final_norm'):
      return trunk.norm(x), k, v

  def _gathered(self, layer: Params) -> Params:
    """One layer's matrices in the compute dtype, gathered along fsdp. They are cast before the
    all-gather, which halves its bytes in bfloat16. Vectors stay as they are."""
    def one(weight, axes):
      if weight.ndim < 2:
        return weight
      return remat.named(sharding.gather(weight.astype(self.config.dtype), axes), remat.WEIGHT)
    if not sharding.in_use():
      return layer
    return jax.tree.map(one, layer, self._layer_axes)

  def head_table(self, params: Params) -> jax.Array:
    """[V', E] float32: the output head's rows, padding included."""
    return nnx.merge(self._trunk[0], params['trunk']).head_table()

  @jax.named_scope('logits')
  def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
    """float32 logits [..., vocab_size] of hidden states [..., E], without padding rows."""
    chex.assert_axis_dimension(hidden, -1, self.config.hidden_size)
    table = self.head_table(params)[:self.vocab_size].astype(self.config.dtype)
    return jnp.einsum('...e,ve->...v', hidden, table, preferred_element_type=jnp.float32)
