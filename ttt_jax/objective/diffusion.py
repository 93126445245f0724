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

from ttt_jax.model.types import Array

# The "position" that names the draws of a document; no token has it.
_DOCUMENT_DRAW = 2**31 - 1


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
