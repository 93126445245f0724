"""From logits to a token and its confidence. B = requests, W = positions, V = vocabulary."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ttt_jax.config import GenerateConfig
from ttt_jax.vocab import Vocabulary


class Choice(NamedTuple):
  token: jax.Array        # int32 [B, W]
  confidence: jax.Array   # float32 [B, W]: full-vocabulary softmax probability of the token


def choose(logits_BxWxV: jax.Array, vocab: Vocabulary, config: GenerateConfig, mode: str,
           in_span: jax.Array, draw: jax.Array) -> Choice:
  """Choose a token at each position.

  Args:
    logits_BxWxV: float32.
    vocab: decides which ids are allowed where.
    config: temperatures, top_k, top_p (text only), seed.
    mode: 'hybrid' keeps audio ids inside spans and text ids outside; the baselines may
      choose any id that can stand in a sequence.
    in_span: bool [B].
    draw: int32 [B, 4]: request, span, block, step; names the random numbers.
  """
  ids = jnp.arange(logits_BxWxV.shape[-1])
  sayable = (ids < vocab.audio_threshold) | vocab.is_code(ids) | vocab.is_end(ids)
  if mode == 'hybrid':
    allowed = sayable & (vocab.is_audio(ids) == in_span[:, None, None])
  else:
    allowed = jnp.broadcast_to(sayable, (in_span.shape[0], 1, ids.size))
  masked = jnp.where(allowed, logits_BxWxV, -jnp.inf)
  token = jnp.argmax(masked, axis=-1)
  if config.temperature > 0 or config.audio_temperature > 0:
    temperature = jnp.where(in_span, config.audio_temperature, config.temperature)[:, None]
    sampled = jnp.argmax(_noisy(masked, temperature, config, in_span, draw), axis=-1)
    token = jnp.where(temperature > 0, sampled, token)
  log_p = jax.nn.log_softmax(logits_BxWxV, axis=-1)
  confidence = jnp.exp(jnp.take_along_axis(log_p, token[..., None], axis=-1)[..., 0])
  return Choice(token.astype(jnp.int32), confidence)


def _noisy(masked: jax.Array, temperature: jax.Array, config: GenerateConfig, in_span: jax.Array,
           draw: jax.Array) -> jax.Array:
  """Gumbel-max: argmax of this is a sample at ``temperature`` [B, 1]."""
  scaled = masked / jnp.maximum(temperature, 1e-6)[..., None]
  if config.top_k or config.top_p < 1:
    scaled = jnp.where(in_span[:, None, None], scaled, _nucleus(scaled, config))

  def gumbel(names):
    key = jax.random.key(config.seed)
    for name in names:
      key = jax.random.fold_in(key, name)
    # mode='high': the default cuts the tail of float32 Gumbels at about 16.
    return jax.random.gumbel(key, masked.shape[1:], jnp.float32, mode='high')

  return scaled + jax.vmap(gumbel)(draw)


def _nucleus(scaled: jax.Array, config: GenerateConfig) -> jax.Array:
  """Keep the top_k ids, and of those the fewest that hold top_p of the probability."""
  descending = jnp.sort(scaled, axis=-1)[..., ::-1]
  keep = jnp.ones_like(descending, dtype=bool)
  if config.top_k:
    keep &= jnp.arange(descending.shape[-1]) < config.top_k
  probability = jax.nn.softmax(jnp.where(keep, descending, -jnp.inf), axis=-1)
  keep &= jnp.cumsum(probability, axis=-1) - probability < config.top_p
  floor = jnp.min(jnp.where(keep, descending, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(scaled >= floor, scaled, -jnp.inf)
