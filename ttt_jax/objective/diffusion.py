"""Absorbing discrete diffusion: the noise schedule and the draws of the forward process.

Draw t ~ U(0, 1) and replace every maskable token by the mask, independently, with probability
p = (1 - eps) t + eps (linear schedule). The loss of a masked token is weighted by 1 / p:

    L(x) = E over t and masks of  1/p * sum over masked i of  -log p(x_i | noisy x)

With eps -> 0 this is the negative ELBO of absorbing diffusion with a linear schedule, whose
weight -alpha'(t) / (1 - alpha(t)) is 1 / t (MDLM, arXiv 2406.07524; LLaDA, arXiv 2502.09992), and
equals the NLL of an any-order autoregressive model in expectation over orders (arXiv 2406.03736).
So L(x) >= -log p(x); added to the AR terms of the text it bounds the NLL of the partially
ordered joint (Text-to-Talk, arXiv 2509.20072, section 3). eps > 0 (paper: 1e-3) caps the weight
and so the variance.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import betainc
import numpy as np

from ttt_jax.model.types import Array

# The "position" that names the draws of a document; no token has it.
_DOCUMENT_DRAW = 2**31 - 1
# Strides of low-discrepancy sequences in units of 2**-32: the golden ratio's and the silver ratio's
# fractional parts, whose multiples fill the unit interval most evenly.
_STRIDES = (2_654_435_769, 1_779_033_704)
_RARE = 1e-30  # probabilities that float32 cannot divide by each other any more


def mask_probability(t: jax.Array, floor: float) -> jax.Array:
  """p = (1 - floor) t + floor, elementwise; t in [0, 1]."""
  return (1.0 - floor) * t + floor


def document_uniforms(key: jax.Array, document: Array, count: int) -> jax.Array:
  """float32 [..., count] from U(0, 1), a function of (key, document id) alone.

  Equal ids get equal numbers. So every token has its document's draws without a gather, and
  they do not depend on where packing put the document.

  Args:
    key: of the step.
    document: int32 [...], document ids.
    count: draws per document.
  """
  def draw(number):
    return jax.random.uniform(
        jax.random.fold_in(jax.random.fold_in(key, number), _DOCUMENT_DRAW), (count,))
  flat = jax.vmap(draw)(document.reshape(-1))
  return flat.reshape(*document.shape, count)


def token_uniforms(key: jax.Array, document: Array, position: Array) -> jax.Array:
  """float32 [...] from U(0, 1), one per token, a function of (key, document id, position) alone.

  Args:
    key: of the step.
    document, position: int32 [...].
  """
  def draw(number, place):
    return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, number), place))
  flat = jax.vmap(draw)(document.reshape(-1), position.reshape(-1))
  return flat.reshape(document.shape)


def mirrored(uniform: jax.Array, twin: Array | int) -> jax.Array:
  """``uniform``, or its reflection 1 - u for a ``twin`` of 1, among the 2**23 values of a draw."""
  return jnp.where(jnp.asarray(twin) > 0, (1.0 - 2.0 ** -23) - uniform, uniform)


def spread(uniform: jax.Array, visit: Array | int, place: Array | int) -> jax.Array:
  """float32 [...] in [0, 1): the element (visit, place) of a sequence that starts at ``uniform``.

  The elements of a fixed place over consecutive visits, and those of a fixed visit over
  consecutive places, are spread evenly over [0, 1) (Kronecker sequences); each element alone is as
  uniform as ``uniform``. The multiples are whole numbers modulo 2**32, so a late visit has no
  rounding error.

  Args:
    uniform: float32 [...] in [0, 1).
    visit, place: whole numbers of at least 0 that broadcast to ``uniform``'s shape.
  """
  turns = jnp.uint32(0)
  for number, stride in zip((visit, place), _STRIDES):
    turns += jnp.asarray(number).astype(jnp.uint32) * jnp.uint32(stride)
  # 23 bits, as the draws have: so the sum of the two is exact.
  moved = uniform + (turns >> 9).astype(jnp.float32) * 2.0 ** -23
  return moved - jnp.floor(moved)


def importance(uniform: jax.Array, density: tuple[float, ...]) -> tuple[jax.Array, jax.Array]:
  """(t, weight) float32 [...]: t with a density that is constant on K equal parts of [0, 1), and
  1 / density(t), with which means over t are those of a uniform t.

  Args:
    uniform: float32 [...] in [0, 1).
    density: K positive numbers, up to a common factor.
  """
  share = np.array(density) / np.sum(density)   # probability of each part
  ends = np.cumsum(share)
  part = jnp.sum(uniform[..., None] >= ends[:-1].astype(np.float32), axis=-1)
  inside = (uniform - jnp.float32(ends - share)[part]) / jnp.float32(share)[part]
  t = (part + jnp.clip(inside, 0.0, 1.0)) / len(share)
  return t, jnp.float32(1.0 / (len(share) * share))[part]


def count_weight(masked: jax.Array, maskable: jax.Array, floor: float) -> jax.Array:
  """E[1 / p | k of n tokens are masked], float32, elementwise; 1 where nothing is masked.

  With p uniform on [f, 1] (f the floor) the posterior of p is a Beta(k + 1, n - k + 1)
  distribution cut off at f. With Q(a, b) the probability of a Beta(a, b) variable above f,

      E[1 / p | k] = (n + 1) / k * Q(k, n - k + 1) / Q(k + 1, n - k + 1),

  which is (n + 1) / k for f = 0 and between 1 and 1 / f always.

  Args:
    masked, maskable: float32 [...]: k and n, 0 <= k <= n.
    floor: f, in (0, 1).
  """
  k, rest = jnp.maximum(masked, 1.0), maskable - masked + 1.0
  above = lambda a: betainc(rest, a, 1.0 - floor)
  chance = above(k + 1.0)
  ratio = (maskable + 1.0) / k * above(k) / jnp.maximum(chance, _RARE)
  # So few masks are all but impossible; then p is next to the floor.
  ratio = jnp.where(chance > _RARE, ratio, 1.0 / floor)
  return jnp.where(masked > 0, jnp.clip(ratio, 1.0, 1.0 / floor), 1.0)
