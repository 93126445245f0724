"""Qwen2.5's decoder layer in Flax NNX: linear layers, norms, rotary embeddings, attention, MLP.

B = rows, T = tokens, E = width, H/K = query/key heads, D = head dim, F = ffn.
Every parameter has metadata ``axes``, the logical names that sharding.py maps to the mesh.
"""

import math
from typing import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ttt_jax.config import LoraConfig, ModelConfig
from ttt_jax.model import sharding
from ttt_jax.model.lora import Dropout
from ttt_jax.model.types import Array

# attend(q [B,T,H,D], k [B,T,K,D], v [B,T,K,D]) -> [B,T,H,D]; the caller binds mask and cache.
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Linear(nnx.Module):
  """y = x W + b with float32 weights, computed in ``dtype``; with an adapter if ``lora`` is set."""

  def __init__(self, n_in: int, n_out: int, axes: tuple[str, str], rngs: nnx.Rngs, *,
               bias: bool = False, scale: float = 1.0, dtype: str, lora: LoraConfig | None):
    init = jax.nn.initializers.truncated_normal(scale / math.sqrt(n_in))
    self.kernel = nnx.Param(init(rngs.params(), (n_in, n_out), jnp.float32), axes=axes)
    if bias:
      self.bias = nnx.Param(jnp.zeros((n_out,), jnp.float32), axes=axes[1:])
    if lora:  # B = 0, so a new adapter does not change the output
      spread = n_in ** -0.5
      self.lora_a = nnx.Param(jax.random.uniform(rngs.params(), (n_in, lora.rank), jnp.float32,
                                                 -spread, spread), axes=(axes[0], 'rank'))
      self.lora_b = nnx.Param(jnp.zeros((lora.rank, n_out), jnp.float32), axes=('rank', axes[1]))
    self.has_bias = bias
    self.lora_scale = lora.scale if lora else 0.0
    self.dtype = dtype

  def __call__(self, x: jax.Array, drop: Dropout | None = None) -> jax.Array:
    y = _matmul(x, self.kernel[...].astype(self.dtype))
    if self.lora_scale:
      inner = _matmul(x if drop is None else drop(x), self.lora_a[...].astype(self.dtype))
      y = y + self.lora_scale * _matmul(inner, self.lora_b[...].astype(self.dtype))
    return y + self.bias[...].astype(self.dtype) if self.has_bias else y


def _adapter(config: ModelConfig, name: str) -> LoraConfig | None:
  return config.lora if config.lora.rank and name in config.lora.targets else None


def _matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """x [..., n] @ kernel [n, m]. XLA's CPU backend trains twice as fast on 2-D inputs; on a mesh
  with a seq axis flattening would need an all-gather, so accelerators keep the shape."""
  flat = lambda x, w: (x.reshape(-1, x.shape[-1]) @ w).reshape(*x.shape[:-1], w.shape[-1])
  return jax.lax.platform_dependent(x, kernel, cpu=flat, default=jnp.matmul)


class RMSNorm(nnx.Module):
  """x / rms(x) * scale, in float32 inside (arXiv 1910.07467)."""

  def __init__(self, width: int, eps: float, dtype: str):
    self.scale = nnx.Param(jnp.ones((width,), jnp.float32), axes=('norm',))
    self.eps = eps
    self.dtype = dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
    return (x * self.scale[...]).astype(self.dtype)


def rope_table(position: Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
  """cos and sin [B, T, 1, head_dim / 2] of rotary embeddings (arXiv 2104.09864)."""
  angle = position[..., None].astype(jnp.float32) * rope_frequencies(head_dim, theta)
  return jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]


def rope_frequencies(head_dim: int, theta: float) -> np.ndarray:
  """float32 [head_dim / 2], 1 / theta^(2i / head_dim), rounded as in transformers' Qwen2.

  There exponent, power and quotient are each rounded to float32. At position 2,047 the last bit of
  a frequency is 1e-4 of a radian, so another order of operations gives other logits. The power
  is taken in float64 and rounded, because NumPy and XLA differ in the last bit of float32 powers.
  """
  exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
  power = np.power(np.float64(theta), exponent.astype(np.float64)).astype(np.float32)
  return np.float32(1) / power


def rotate(x_BxTxHxD: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Rotate pairs (d, d + D/2), the half-split convention of Qwen2.5's weights."""
  a, b = jnp.split(x_BxTxHxD.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_BxTxHxD.dtype)


class Attention(nnx.Module):
  """Grouped-query attention, bias on q, k and v only."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    c, d = config, config.head_dim
    self.q = Linear(c.hidden_size,
                    c.num_attention_heads * d, ('embed', 'heads'),
                    rngs,
                    bias=True,
                    dtype=c.dtype,
                    lora=_adapter(c, 'q'))
    self.k = Linear(c.hidden_size,
                    c.num_key_value_heads * d, ('embed', 'kv_heads'),
                    rngs,
                    bias=True,
                    dtype=c.dtype,
                    lora=_adapter(c, 'k'))
    self.v = Linear(c.hidden_size,
                    c.num_key_value_heads * d, ('embed', 'kv_heads'),
                    rngs,
                    bias=True,
                    dtype=c.dtype,
                    lora=_adapter(c, 'v'))
    self.o = Linear(c.num_attention_heads * d, c.hidden_size, ('heads', 'embed'), rngs,
                    scale=(2 * c.num_layers) ** -0.5, dtype=c.dtype, lora=_adapter(c, 'o'))
    self.head_dim = d

  def __call__(self, x_BxTxE: jax.Array, rope: tuple[jax.Array, jax.Array],
               attend: Attend, drop: Dropout | None = None) -> jax.Array:
    heads = lambda linear: linear(x_BxTxE, drop).reshape(*x_BxTxE.shape[:2], -1, self.head_dim)
    with jax.named_scope('qkv'):
      q, k, v = heads(self.q), heads(self.k), heads(self.v)
    with jax.named_scope('rope'):
      q, k = rotate(q, *rope), rotate(k, *rope)
    with jax.named_scope('scores'):
      out = attend(q, k, v)
    with jax.named_scope('out'):
      return self.o(out.reshape(*out.shape[:2], -1), drop)


class MLP(nnx.Module):
  """SwiGLU: (silu(x Wg) * x Wu) Wd (arXiv 2002.05202)."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    c = config
    self.gate = Linear(c.hidden_size, c.intermediate_size, ('embed', 'mlp'), rngs, dtype=c.dtype,
                       lora=_adapter(c, 'gate'))
    self.up = Linear(c.hidden_size,
                     c.intermediate_size, ('embed', 'mlp'),
                     rngs,
                     dtype=c.dtype,
                     lora=_adapter(c, 'up'))
    self.down = Linear(c.intermediate_size, c.hidden_size, ('mlp', 'embed'), rngs,
                       scale=(2 * c.num_layers) ** -0.5, dtype=c.dtype, lora=_adapter(c, 'down'))

  def __call__(self, x: jax.Array, drop: Dropout | None = None) -> jax.Array:
    return self.down(jax.nn.silu(self.gate(x, drop)) * self.up(x, drop), drop)


class Block(nnx.Module):
  """One pre-norm decoder layer."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.dtype)
    self.attention = Attention(config, rngs)
    self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.dtype)
    self.mlp = MLP(config, rngs)

  def __call__(self, x_BxTxE: jax.Array, rope: tuple[jax.Array, jax.Array],
               attend: Attend, drop: Dropout | None = None) -> jax.Array:
    with jax.named_scope('attention'):
      x = x_BxTxE + self.attention(self.attention_norm(x_BxTxE), rope, attend, drop)
    with jax.named_scope('mlp'):
      return x + self.mlp(self.mlp_norm(x), drop)


class Trunk(nnx.Module):
  """Everything but the layers: embedding table, final norm, output head."""

  def __init__(self, config: ModelConfig, rows: int, rngs: nnx.Rngs):
    # A tied table is also the head: this scale gives logits of unit variance at initialisation.
    init = jax.nn.initializers.normal(config.hidden_size ** -0.5)
    self.embedding = nnx.Param(init(rngs.params(), (rows, config.hidden_size), jnp.float32),
                               axes=('vocab', 'embed'))
    self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.dtype)
    if not config.tie_word_embeddings:
      self.head = nnx.Param(init(rngs.params(), (rows, config.hidden_size), jnp.float32),
                            axes=('vocab', 'embed'))
    self.tied = config.tie_word_embeddings
    self.dtype = config.dtype

  @jax.named_scope('embedding')
  def embed(self, token: Array) -> jax.Array:
    """[B, T, E]. On a mesh every device looks up its columns for all rows of its fsdp group, then
    an all-to-all exchanges rows for columns: the table is never gathered, and its gradient is
    summed in float32 where it is stored."""
    token = sharding.constrain(token, ('row_groups', 'length'))
    x = sharding.constrain(self.embedding[...][token], ('row_groups', 'length', 'embed'))
    return sharding.constrain(x.astype(self.dtype), ('rows', 'length', 'width'))

  def head_table(self) -> jax.Array:
    """[rows, E]; row v scores token v."""
    return (self.embedding if self.tied else self.head)[...]
