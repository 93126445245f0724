"""From hidden states to choices: logits of the positions that need them, and no others.

N = positions, E = width, V = rows of the output head, C = positions scored at once.

In a step few positions of a batch need a token: the masked ones of each open block and the
last one of each text row. They are compacted, and their logits made a chunk at a time, so
that a step costs what is asked, not rows times window.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ttt_jax.generate.policy import SCORES, Policy
from ttt_jax.vocab import Vocabulary


@dataclasses.dataclass(frozen=True)
class Rules:
  """What shapes the program, hashable.

  Attributes:
    vocab: decides which ids may stand where.
    mode: 'hybrid' keeps audio ids inside spans and text ids outside; the baselines 'ar' and
      'nar' may choose any id that can stand in a sequence.
    softmax: whose probability the confidence is: 'full', over the whole vocabulary, as
      published; or 'audio', over the ids that can stand in a span, which spares their
      positions most of the head.
    chunk: C.
  """
  vocab: Vocabulary
  mode: str = 'hybrid'
  softmax: str = 'full'
  chunk: int = 16


class Head(NamedTuple):
  """The output head; see ``make_head``.

  Attributes:
    table: [V, E] in the compute dtype, padding rows included.
    audio: its rows from the audio threshold on, a copy; None unless softmax is 'audio'.
    prior: float32 [V], log probability of each id where nothing is known.
  """
  table: jax.Array
  audio: jax.Array | None
  prior: jax.Array


class Place(NamedTuple):
  """What a position may hold, and the names of its draw; arrays [N].

  Attributes:
    in_span, may_end, may_begin: bool; an end token in a span, a begin token in text.
    span, block, step, position: int32.
  """
  in_span: jax.Array
  may_end: jax.Array
  may_begin: jax.Array
  span: jax.Array
  block: jax.Array
  step: jax.Array
  position: jax.Array


class Choice(NamedTuple):
  """Arrays [N], float32 but for the token.

  Attributes:
    token: int32.
    confidence: softmax probability of the token, without temperature.
    score: what the position is ranked by (policy.SCORES).
    entropy: of the same softmax, nats; 0 where no rule reads it.
  """
  token: jax.Array
  confidence: jax.Array
  score: jax.Array
  entropy: jax.Array


def choose(rules: Rules, head: Head, policy: Policy, hidden_NxE: jax.Array,
           null_NxE: jax.Array | None, want: jax.Array, place: Place) -> Choice:
  """A choice at every position of ``want`` (bool [N]); zeros elsewhere.

  Args:
    rules, head: of the run.
    policy: arrays [N], of each position's request.
    hidden_NxE: final hidden states.
    null_NxE: those without context, for guidance; None if no request is guided.
    want, place: arrays [N].
  """
  n = want.size
  out = Choice(jnp.zeros(n, jnp.int32), *(jnp.zeros(n, jnp.float32) for _ in range(3)))
  if rules.softmax == 'full' or rules.mode != 'hybrid':
    return _compacted(rules, head.table, 0, head, policy, hidden_NxE, null_NxE, want, place, out)
  first = rules.vocab.audio_threshold
  out = _compacted(rules, head.audio, first, head, policy, hidden_NxE, null_NxE,
                   want & place.in_span, place, out)
  return _compacted(rules, head.table, 0, head, policy, hidden_NxE, None,
                    want & ~place.in_span, place, out)


def _compacted(rules, table, first, head, policy, hidden, null, want, place, out) -> Choice:
  """The same with the rows of ``table``, which score the ids from ``first`` on."""
  n = want.size
  chunk = min(rules.chunk, n)
  at = jnp.cumsum(want, dtype=jnp.int32) - 1
  count = at[-1] + 1
  padded = -(-n // chunk) * chunk
  order = jnp.zeros(padded, jnp.int32).at[jnp.where(want, at, padded)].set(
      jnp.arange(n, dtype=jnp.int32), mode='drop')

  def turn(number, out):
    rows = lax.dynamic_slice(order, (number * chunk,), (chunk,))
    real = number * chunk + jnp.arange(chunk) < count
    take = lambda x: x[rows]
    found = _choose(rules, table, first, head, jax.tree.map(take, policy), take(hidden),
                    None if null is None else take(null), jax.tree.map(take, place))
    target = jnp.where(real, rows, n)
    return jax.tree.map(lambda all, new: all.at[target].set(new, mode='drop'), out, found)

  return lax.fori_loop(0, (count + chunk - 1) // chunk, turn, out)


def _choose(rules, table, first, head, policy, hidden, null, place) -> Choice:
  """One chunk, [C] positions."""
  ids = first + jnp.arange(table.shape[0])
  score = lambda x: jnp.einsum('ce,ve->cv', x, table, preferred_element_type=jnp.float32)
  logits = score(hidden)
  if null is not None:
    guided = place.in_span & (policy.guidance > 0)
    blind = lax.cond(jnp.any(guided), lambda: score(null), lambda: jnp.zeros_like(logits))
    logits = jnp.where(guided[:, None],
                       blind + (1.0 + policy.guidance[:, None]) * (logits - blind), logits)
  logits = jnp.where(ids < rules.vocab.size, logits, -jnp.inf)
  masked = jnp.where(_allowed(rules, ids, place), logits, -jnp.inf)
  token = jnp.argmax(masked, axis=-1)
  temperature = jnp.where(place.in_span, policy.audio_temperature, policy.temperature)
  token = lax.cond(jnp.any(temperature > 0),
                   lambda: _sampled(masked, temperature, policy, place, token), lambda: token)
  # The copy of the audio rows has ids that cannot stand in a span, too.
  space = masked if first else logits
  total = jax.nn.logsumexp(space, axis=-1)
  pick = lambda x, i: jnp.take_along_axis(x, i[:, None], axis=-1)[:, 0]
  log_p = pick(logits, token) - total
  confidence = jnp.exp(log_p)
  plain = lambda: (confidence, jnp.zeros_like(confidence))
  ranked, entropy = lax.cond(
      jnp.any(policy.score != SCORES.index('confidence')),
      lambda: _scores(space, masked, total, log_p, policy, head.prior[first + token]), plain)
  return Choice((first + token).astype(jnp.int32), confidence, ranked, entropy)


def _allowed(rules: Rules, ids: jax.Array, place: Place) -> jax.Array:
  """bool [C, V]: the ids that may be chosen at each position."""
  vocab = rules.vocab
  column = lambda x: x[:, None]
  sayable = (ids < vocab.audio_threshold) | vocab.is_code(ids) | vocab.is_end(ids)
  if rules.mode == 'hybrid':
    side = sayable & (vocab.is_audio(ids) == column(place.in_span))
    end, begin = vocab.is_end(ids), vocab.is_begin(ids)
  else:
    side = jnp.broadcast_to(sayable, (place.in_span.size, ids.size))
    end, begin = ids == vocab.im_end, jnp.zeros_like(sayable)
  return side & (~end | column(place.may_end | ~place.in_span)) & (
      ~begin | column(place.may_begin | place.in_span))


def _sampled(masked, temperature, policy: Policy, place: Place, greedy) -> jax.Array:
  """Gumbel-max samples at ``temperature`` [C]; ``greedy`` where it is 0."""
  scaled = masked / jnp.maximum(temperature, 1e-6)[:, None]
  cut = ~place.in_span & ((policy.top_k > 0) | (policy.top_p < 1))
  scaled = lax.cond(jnp.any(cut), lambda: jnp.where(cut[:, None], _nucleus(scaled, policy), scaled),
                    lambda: scaled)

  names = jnp.stack([policy.number, place.span, place.block, place.step, place.position], 1)

  def noise(seed, names):
    fold = lambda key, name: (jax.random.fold_in(key, name), None)
    key, _ = lax.scan(fold, jax.random.key(seed), names)  # a loop: threefry is long to compile
    # mode='high': the default cuts the tail of float32 Gumbels at about 16.
    return jax.random.gumbel(key, masked.shape[1:], jnp.float32, mode='high')

  gumbel = jax.vmap(noise)(policy.seed, names)
  return jnp.where(temperature > 0, jnp.argmax(scaled + gumbel, axis=-1), greedy)


def _nucleus(scaled: jax.Array, policy: Policy) -> jax.Array:
  """Keep the top_k ids, and of those the fewest that hold top_p of the probability."""
  descending = jnp.sort(scaled, axis=-1)[:, ::-1]
  place = jnp.arange(descending.shape[-1])
  keep = (policy.top_k[:, None] == 0) | (place < policy.top_k[:, None])
  probability = jax.nn.softmax(jnp.where(keep, descending, -jnp.inf), axis=-1)
  keep &= jnp.cumsum(probability, axis=-1) - probability < policy.top_p[:, None]
  floor = jnp.min(jnp.where(keep, descending, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(scaled >= floor, scaled, -jnp.inf)


def _scores(space, masked, total, log_p, policy: Policy, prior) -> tuple[jax.Array, jax.Array]:
  """(what ranks, entropy), float32 [C], for whatever rules the rows have."""
  p = jnp.exp(space - total[:, None])
  entropy = total - jnp.sum(jnp.where(p > 0, p * space, 0.0), axis=-1)
  best = jnp.argmax(masked, axis=-1)
  others = jnp.where(jnp.arange(masked.shape[-1]) == best[:, None], -jnp.inf, masked)
  margin = jnp.exp(masked.max(-1) - total) - jnp.exp(others.max(-1) - total)
  every = jnp.stack([jnp.exp(log_p), margin, -entropy, log_p - prior])
  return jnp.take_along_axis(every, policy.score[None], axis=0)[0], entropy
