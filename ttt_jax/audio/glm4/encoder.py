"""The tokenizer's network as pure functions over a plain dict of arrays.

NNX modules are split once into a static graph and a dict. Layer parameters are stacked on a
leading axis for ``lax.scan``; its body merges one layer's graph with its slice.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ttt_jax.audio.glm4 import layers
from ttt_jax.tokens.vocab import GLM4_CODEBOOK_SIZE

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Shape:
  """Sizes; the defaults are those of the published tokenizer."""
  mels: int = 128
  width: int = 1280
  heads: int = 20
  ffn: int = 5120
  layers: int = 16        # layers before the quantizer; later ones are not used
  positions: int = 1500   # maximum frames of a segment (50 Hz)
  block: int = 200        # frames of a block with bidirectional attention: 4 s
  pool: int = 4           # frames per token
  codes: int = GLM4_CODEBOOK_SIZE

  @property
  def longest(self) -> int:
    """Maximum tokens of a segment."""
    return self.positions // self.pool


class Encoder:
  """The network of one size; holds no arrays.

  Params: {'stem': {...}, 'layers': {... [L, ...]}, 'codebook': {'codes' [C, E],
  'squares' [C]}}, all float32; squares are the codes' squared lengths.
  """

  def __init__(self, shape: Shape):
    self.shape = s = shape
    self._make_stem = lambda rngs: layers.Stem(s.mels, s.width, s.positions, rngs)
    self._make_layer = lambda rngs: layers.Layer(s.width, s.heads, s.ffn, s.block, rngs)
    graph = lambda make: nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param)[0]
    self._stem, self._layer = graph(self._make_stem), graph(self._make_layer)

  def init(self, key: jax.Array) -> Params:
    """Random parameters, for tests and benchmarks; pure, so it runs under eval_shape."""
    stem, layer, codes = jax.random.split(key, 3)
    pure = lambda module: nnx.to_pure_dict(nnx.state(module, nnx.Param))
    book = jax.random.normal(codes, (self.shape.codes, self.shape.width))
    return {
        'stem': pure(self._make_stem(nnx.Rngs(params=stem))),
        'layers': jax.vmap(lambda key: pure(self._make_layer(nnx.Rngs(params=key))))(
            jax.random.split(layer, self.shape.layers)),
        'codebook': {'codes': book, 'squares': jnp.sum(book * book, axis=1)},
    }

  def abstract(self) -> Params:
    """The tree of ``init`` as shapes."""
    return jax.eval_shape(self.init, jax.random.key(0))

  def hidden(self, params: Params, features_BxFxM: jax.Array, valid: jax.Array) -> jax.Array:
    """Hidden states before the quantizer.

    Args:
      params: as from ``init``.
      features_BxFxM: log-mel frames; F a multiple of 2 * pool, at most 2 * positions.
      valid: int32 [B], frames at 50 Hz that begin before the segment's end:
        ceil(samples / 320). Later frames are masked.

    Returns:
      float32 [B, F / (2 pool), E].
    """
    s = self.shape
    assert features_BxFxM.shape[1] % (2 * s.pool) == 0, features_BxFxM.shape
    assert features_BxFxM.shape[1] <= 2 * s.positions, features_BxFxM.shape
    with jax.default_matmul_precision('highest'):
      x = nnx.merge(self._stem, params['stem'])(features_BxFxM)
      body = lambda x, layer: (nnx.merge(self._layer, layer)(x, valid), None)
      x, _ = jax.lax.scan(body, x, params['layers'])
    return jnp.mean(x.reshape(x.shape[0], -1, s.pool, s.width), axis=2)

  def quantize(self, params: Params, hidden: jax.Array) -> jax.Array:
    """[..., E] -> int32 [...]: the nearest code, the lowest of equals.

    |c|^2 - 2 x.c is a small difference of large numbers, so the two best codes are compared
    again by |x - c|^2. At the published size, the product alone may choose a code that is farther
    away by 3e-4 of the distance.
    """
    codes, squares = params['codebook']['codes'], params['codebook']['squares']
    x = hidden.reshape(-1, hidden.shape[-1])
    with jax.default_matmul_precision('highest'):
      distance = squares - 2 * x @ codes.T  # |x|^2 is the same for all
    first = jnp.argmin(distance, axis=1)
    others = jnp.where(jnp.arange(len(codes)) == first[:, None], jnp.inf, distance)
    second = jnp.argmin(others, axis=1)
    exact = lambda code: jnp.sum((x - codes[code]) ** 2, axis=1)
    a, b = exact(first), exact(second)
    better = (b < a) | ((b == a) & (second < first))
    return jnp.where(better, second, first).astype(jnp.int32).reshape(hidden.shape[:-1])

  def tokens(self, params: Params, features_BxFxM: jax.Array, valid: jax.Array) -> jax.Array:
    """``quantize`` of ``hidden``: int32 [B, F / (2 pool)]; the caller removes the padding."""
    return self.quantize(params, self.hidden(params, features_BxFxM, valid))
