"""The tokenizer's encoder in Flax NNX: Whisper's layers with causal convolutions and blocks.

B = segments, F = log-mel frames (100 Hz), T = F / 2 frames (50 Hz), E = width, H = heads.
All float32, matrix products on accelerators included (encoder.py sets the precision), since a
token is the nearest of 16,384 codes and rounding may select another one.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

EPS = 1e-5


class Linear(nnx.Module):
  """y = x W + b."""

  def __init__(self, n_in: int, n_out: int, rngs: nnx.Rngs, bias: bool = True):
    self.kernel = nnx.Param(jax.random.normal(rngs.params(), (n_in, n_out)) * n_in ** -0.5)
    if bias:
      self.bias = nnx.Param(jnp.zeros((n_out,)))
    self.has_bias = bias

  def __call__(self, x: jax.Array) -> jax.Array:
    # Flattened, so that XLA's CPU backend computes one large product.
    y = (x.reshape(-1, x.shape[-1]) @ self.kernel[...]).reshape(*x.shape[:-1], -1)
    return y + self.bias[...] if self.has_bias else y


class LayerNorm(nnx.Module):
  """(x - mean) / sd * scale + bias over the last axis."""

  def __init__(self, width: int):
    self.scale = nnx.Param(jnp.ones((width,)))
    self.bias = nnx.Param(jnp.zeros((width,)))

  def __call__(self, x: jax.Array) -> jax.Array:
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPS)
    return x * self.scale[...] + self.bias[...]


class Convolution(nnx.Module):
  """Kernel 3, two zeros on the left and none on the right, then GELU.

  The kernel is [3 n_in, n_out], oldest frame first: a product with three frames side by side.
  """

  def __init__(self, n_in: int, n_out: int, stride: int, rngs: nnx.Rngs):
    self.linear = Linear(3 * n_in, n_out, rngs)
    self.stride = stride

  def __call__(self, x: jax.Array) -> jax.Array:
    length = x.shape[1]
    x = jnp.pad(x, ((0, 0), (2, 0), (0, 0)))
    taps = [x[:, i:i + length:self.stride] for i in range(3)]
    return gelu(self.linear(jnp.concatenate(taps, axis=-1)))


class Stem(nnx.Module):
  """Log-mel frames [B, F, mels] -> [B, F / 2, E] with positions."""

  def __init__(self, mels: int, width: int, positions: int, rngs: nnx.Rngs):
    self.conv1 = Convolution(mels, width, 1, rngs)
    self.conv2 = Convolution(width, width, 2, rngs)
    self.positions = nnx.Param(jax.random.normal(rngs.params(), (positions, width)))

  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.conv2(self.conv1(x))
    return x + self.positions[...][:x.shape[1]]


class Layer(nnx.Module):
  """x + attention(norm x), then x + fc2(gelu(fc1(norm x))); k has no bias."""

  def __init__(self, width: int, heads: int, ffn: int, block: int, rngs: nnx.Rngs):
    self.attention_norm = LayerNorm(width)
    self.q = Linear(width, width, rngs)
    self.k = Linear(width, width, rngs, bias=False)
    self.v = Linear(width, width, rngs)
    self.out = Linear(width, width, rngs)
    self.ffn_norm = LayerNorm(width)
    self.fc1 = Linear(width, ffn, rngs)
    self.fc2 = Linear(ffn, width, rngs)
    self.heads, self.block = heads, block

  def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
    y = self.attention_norm(x)
    split = lambda z: z.reshape(*z.shape[:2], self.heads, -1).swapaxes(1, 2)
    q, k, v = split(self.q(y)), split(self.k(y)), split(self.v(y))
    mixed = attend(q * q.shape[-1] ** -0.5, k, v, valid, self.block)
    x = x + self.out(mixed.swapaxes(1, 2).reshape(x.shape))
    return x + self.fc2(gelu(self.fc1(self.ffn_norm(x))))


def attend(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array, block: int) -> jax.Array:
  """Attention to the past and to the end of the query's own block.

  Query i attends to key j iff j < valid and (j <= i or i // block == j // block). So all queries
  of a block attend to the same keys, those before the block's end:

    block = 2, valid = 5        11....
                                11....
                                1111..
                                1111..
                                11111.
                                11111.

  So blocks are computed one after another, without keys beyond their end. On a CPU heads are
  computed one after another as well: a head then fits into the cache, which takes less than
  half the time.

  Args:
    q, k, v: [B, H, T, D], q already scaled.
    valid: int32 [B], frames that are not padding.
    block: frames of a block.

  Returns:
    [B, H, T, D].
  """
  real = jnp.arange(q.shape[2]) < valid[:, None]  # [B, T]
  serial, parallel = (functools.partial(form, block=block) for form in (one_by_one, all_at_once))
  return jax.lax.platform_dependent(q, k, v, real, cpu=serial, default=parallel)


def all_at_once(q: jax.Array, k: jax.Array, v: jax.Array, real: jax.Array,
                block: int) -> jax.Array:
  """``attend`` for accelerators, vmapped over segments and heads; real is bool [B, T]."""
  head = functools.partial(_attend, block=block)
  return jax.vmap(jax.vmap(head, (0, 0, 0, None)))(q, k, v, real)


def one_by_one(q: jax.Array, k: jax.Array, v: jax.Array, real: jax.Array, block: int) -> jax.Array:
  """``attend`` for CPUs: one head after the other; real is bool [B, T]."""
  def segment(row):
    *qkv, real = row
    return jax.lax.map(lambda head: _attend(head[0], head[1], head[2], real, block),
                       tuple(qkv))
  return jax.lax.map(segment, (q, k, v, real))


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, real: jax.Array, block: int) -> jax.Array:
  """One head of one segment: q, k, v [T, D], real bool [T] -> [T, D]."""
  out = []
  for start in range(0, len(q), block):
    end = min(start + block, len(q))
    scores = jnp.where(real[:end], q[start:end] @ k[:end].T, jnp.finfo(q.dtype).min)
    weight = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    out.append(weight @ v[:end] / jnp.sum(weight, axis=-1, keepdims=True))
  return jnp.concatenate(out)


def gelu(x: jax.Array) -> jax.Array:
  """Exact GELU, with erf."""
  return jax.nn.gelu(x, approximate=False)
