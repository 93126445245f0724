"""Absorbing diffusion: the schedule and the forward process.

t ~ U(0, 1), p = (1 - eps) t + eps is the probability that a token is replaced by the
mask; the loss of a masked token is weighted 1 / p (TTT.md section 4; LLaDA, 2502.09992).
"""

import jax

# Draws that belong to a whole document are made at this "position", which no token has.
_DOCUMENT_DRAW = 2**31 - 1


def mask_probability(t: jax.Array, floor: float) -> jax.Array:
  """The schedule: p = (1 - floor) t + floor."""
  return (1.0 - floor) * t + floor


def document_uniforms(key: jax.Array, document: jax.Array, count: int) -> jax.Array:
  """U(0,1) numbers [..., count] that depend on (key, document id) alone.

  Equal ids get equal numbers, so every token of a document sees its document's draws
  without any gather, wherever the document lies in the batch.
  """
  def draw(number):
    return jax.random.uniform(
        jax.random.fold_in(jax.random.fold_in(key, number), _DOCUMENT_DRAW), (count,))
  flat = jax.vmap(draw)(document.reshape(-1))
  return flat.reshape(*document.shape, count)


def token_uniforms(key: jax.Array, document: jax.Array, position: jax.Array) -> jax.Array:
  """U(0,1) numbers, one per token, that depend on (key, document id, position) alone."""
  def draw(number, place):
    return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, number), place))
  flat = jax.vmap(draw)(document.reshape(-1), position.reshape(-1))
  return flat.reshape(document.shape)
