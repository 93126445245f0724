"""From hidden states to choices: logits of the positions that need them, and no others.

N = positions, E = width, V = rows of the output head, C = positions scored at once.

In a step few positions of a batch need a token: the masked ones of each open block and the
last one of each text row. They are compacted, and scored in parts of the size that fits
(head.py), so that a step costs what is asked, not rows times window.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
import numpy as np

from ttt_jax.generate import output_head
from ttt_jax.generate.sampling_params import SamplingParams, SCORES
from ttt_jax.tokens.vocab import Vocabulary


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
    sizes: positions that may be scored at once, rising; a part takes the smallest size that
      holds what is left. See ``Rules.fitting``.
    whole: positions up to which all their logits are made at once; only then can any of
      them be sampled.
    tile: logits that are made at once for more positions than that: about what the cache of a
      core holds. None: all.
  """
  vocab: Vocabulary
  mode: str = 'hybrid'
  softmax: str = 'full'
  sizes: tuple[int, ...] = (1, 8, 16, 24, 32, 64, 128)
  whole: int = 16
  tile: int | None = 2**17

  @classmethod
  def fitting(cls, vocab: Vocabulary, mode: str, softmax: str, platform: str,
              mesh: bool) -> 'Rules':
    """Sizes for a machine. A CPU pays for every position, but a small vocabulary is not worth
    compiling several sizes; an accelerator pays for reading the table; over a mesh the
    table has no tiles."""
    if platform != 'cpu' or vocab.size <= 4096:
      return cls(vocab, mode, softmax, (64,), 64, None)
    if mesh:
      return cls(vocab, mode, softmax, (16,), 16, None)
    return cls(vocab, mode, softmax)


class Head(NamedTuple):
  """The output head; see ``make_head``.

  Attributes:
    table: [V, E] in the compute dtype, padding rows included.
    audio: its rows from ``first_audio`` on, a copy; None unless softmax is 'audio'.
    prior: float32 [V], log probability of each id where nothing is known.
  """
  table: jax.Array
  audio: jax.Array | None
  prior: jax.Array


def make_head(rules: Rules, table: jax.Array) -> Head:
  """The head of a run whose table, padding included, is ``table``."""
  narrow = rules.softmax == 'audio' and rules.mode == 'hybrid'
  return Head(table, table[_first_audio(rules, table.shape[0]):] if narrow else None,
              jnp.zeros(table.shape[0], jnp.float32))


def _first_audio(rules: Rules, rows: int) -> int:
  """Where the whole groups of ids that hold the audio ids start."""
  size = output_head.group_size(rows)
  return rules.vocab.audio_threshold // size * size


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
    score: what the position is ranked by (sampling_params.SCORES).
    entropy: of the same softmax, nats; 0 where no rule reads it.
  """
  token: jax.Array
  confidence: jax.Array
  score: jax.Array
  entropy: jax.Array


def choose(rules: Rules, head: Head, sampling_params: SamplingParams, hidden_NxE: jax.Array,
           null_NxE: jax.Array | None, want: jax.Array, place: Place) -> Choice:
  """A choice at every position of ``want`` (bool [N]); zeros elsewhere.

  Args:
    rules, head: of the run.
    sampling_params: arrays [N], of each position's request.
    hidden_NxE: final hidden states.
    null_NxE: those without context, for guidance; None if no request is guided.
    want, place: arrays [N].
  """
  n = want.size
  hidden = hidden_NxE if null_NxE is None else _guided(sampling_params, hidden_NxE, null_NxE, place)
  out = Choice(jnp.zeros(n, jnp.int32), *(jnp.zeros(n, jnp.float32) for _ in range(3)))
  if head.audio is None:
    return _compacted(rules, head.table, 0, head, sampling_params, hidden, want, place, out)
  first = _first_audio(rules, head.table.shape[0])
  out = _compacted(rules, head.audio, first, head, sampling_params, hidden, want & place.in_span,
                   place, out)
  return _compacted(rules, head.table, 0, head, sampling_params, hidden, want & ~place.in_span,
                    place, out)


def _guided(sampling_params: SamplingParams, hidden: jax.Array, null: jax.Array,
            place: Place) -> jax.Array:
  """Hidden states whose logits are uncond + (1 + w)(cond - uncond): the head is linear, so
  one product with it does for both."""
  guided = place.in_span & (sampling_params.guidance > 0)
  cond, uncond = hidden.astype(jnp.float32), null.astype(jnp.float32)
  mixed = uncond + (1.0 + sampling_params.guidance[:, None]) * (cond - uncond)
  return jnp.where(guided[:, None], mixed, cond).astype(hidden.dtype)


def _compacted(rules, table, first, head, sampling_params, hidden, want, place, out) -> Choice:
  """The same with the rows of ``table``, which score the ids from ``first`` on."""
  n = want.size
  narrow = table is head.audio
  sizes = [size for size in rules.sizes if size < n]
  sizes += [size for size in rules.sizes if size >= n][:1]
  most = sizes[-1]
  at = jnp.cumsum(want, dtype=jnp.int32) - 1
  count = at[-1] + 1
  order = jnp.zeros(n + most, jnp.int32).at[jnp.where(want, at, n + most)].set(
      jnp.arange(n, dtype=jnp.int32), mode='drop')
  # Few of the sizes can sample: that is long to compile.
  whole = [size for size in sizes if size <= rules.whole] or sizes[:1]
  drawn = sorted({whole[0], whole[-1]})
  draws = jnp.any(want & (_temperature(sampling_params, place) > 0))

  def part(size, draw, done):
    rows = lax.dynamic_slice(order, (done,), (size,))
    take = lambda x: x[rows]
    tile = None if size in whole or rules.tile is None else rules.tile // size
    scored = _score(rules, table, first, take(hidden), tile,
                    jax.tree.map(take, sampling_params), jax.tree.map(take, place), draw)
    if len(sizes) == 1:
      return scored
    # What follows is compiled once: for the largest size, whatever the part's is.
    scored = scored._replace(logits=None)
    return jax.tree.map(
        lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, most - size)], 'edge'), scored)

  parts = [functools.partial(part, size, False) for size in sizes]
  parts += [functools.partial(part, size, True) for size in drawn]

  def turn(carry):
    done, out = carry
    fits = jnp.sum(count - done > np.array(sizes[:-1]), dtype=jnp.int32)
    which = jnp.where(draws, len(sizes) + jnp.where(fits > 0, len(drawn) - 1, 0), fits)
    if len(sizes) == 1:
      scored = part(most, draws, done)
    else:
      scored = lax.switch(which, parts, done)
    rows = lax.dynamic_slice(order, (done,), (most,))
    take = lambda x: x[rows]
    found = _choose(rules, table, first, narrow, head, jax.tree.map(take, sampling_params),
                    take(hidden), jax.tree.map(take, place), scored)
    size = jnp.array(sizes + drawn)[which]
    index = jnp.arange(most)
    target = jnp.where((index < size) & (done + index < count), rows, n)
    out = jax.tree.map(lambda all, new: all.at[target].set(new, mode='drop'), out, found)
    return done + size, out

  return lax.while_loop(lambda carry: carry[0] < count, turn, (jnp.int32(0), out))[1]


class _Scored(NamedTuple):
  """Attributes:
    groups: of all ids.
    special: logits [S, g, C] of the groups that ``_mixed`` names.
    token, logit: [C], ids that were drawn and their logits; -1 where none was.
    logits: [G, g, C] or None.
  """
  groups: output_head.Groups
  special: jax.Array
  token: jax.Array
  logit: jax.Array
  logits: jax.Array | None


def _score(rules, table, first, hidden, tile, sampling_params, place, draw) -> _Scored:
  """Sweep the head for C positions; ``draw``: a bool, or a traced one, whether to sample."""
  swept = output_head.sweep(table, hidden, _ranked(sampling_params), tile)
  ids = first + np.arange(table.shape[0]).reshape(-1, swept.group)
  none = jnp.full(len(hidden), -1, jnp.int32), jnp.zeros(len(hidden), jnp.float32)
  token, logit = none
  if draw is not False:
    token, logit = lax.cond(draw,
                            lambda: _drawn(rules, swept.logits, first, sampling_params, place),
                            lambda: none)
  return _Scored(swept.groups, swept.of_all(_mixed(rules, ids)), token, logit, swept.logits)


def _ranked(sampling_params: SamplingParams) -> jax.Array:
  """Whether some position is ranked by more than its confidence."""
  return jnp.any(sampling_params.score != SCORES.index('confidence'))


def _choose(rules, table, first, narrow, head, sampling_params, hidden, place, scored) -> Choice:
  """One part, [C] positions; ``narrow``: the softmax is over what can stand in a span."""
  swept = output_head.Swept(scored.groups, table, hidden, scored.logits)
  size = swept.group
  ids = first + np.arange(table.shape[0]).reshape(-1, size)
  mixed, other = _mixed(rules, ids), _ranked(sampling_params)

  def counted(rule, weigh):
    # Most groups are of one kind, and their first id speaks for them; the others are looked at.
    apart = output_head.summary(
        jnp.where(rule(ids[list(mixed)][..., None]), scored.special, -jnp.inf), weigh)
    whole = scored.groups._replace(
        top=jnp.where(rule(ids[:, :1]), scored.groups.top, -jnp.inf))
    return jax.tree.map(lambda all, some: all.at[np.array(mixed)].set(some), whole, apart)

  allowed = lambda ids: _allowed(rules, ids, place)
  # The copy of the audio rows has ids that cannot stand in a span, too.
  real = allowed if narrow else lambda ids: jnp.asarray(ids < rules.vocab.size)
  space = counted(real, other)
  total = space.log_sum()
  best = counted(allowed, False).top
  group = jnp.argmax(best, axis=0).astype(jnp.int32)
  start = first + group * size
  near = jnp.where(allowed(start + jnp.arange(size)[:, None]), swept.of_each(group), -jnp.inf)
  within = jnp.argmax(near, axis=0).astype(jnp.int32)
  top = near.max(0)
  drawn = scored.token >= 0
  token = jnp.where(drawn, scored.token, start + within)
  log_p = jnp.where(drawn, scored.logit, top) - total
  confidence = jnp.exp(log_p)

  def scores():
    beside = jnp.where(jnp.arange(size)[:, None] == within, -jnp.inf, near).max(0)
    others = jnp.where(jnp.arange(len(best))[:, None] == group, -jnp.inf, best).max(0)
    margin = jnp.exp(top - total) - jnp.exp(jnp.maximum(beside, others) - total)
    entropy = space.entropy(total)
    every = jnp.stack([confidence, margin, -entropy, log_p - head.prior[token]])
    return jnp.take_along_axis(every, sampling_params.score[None], axis=0)[0], entropy

  ranked, entropy = lax.cond(other, scores, lambda: (confidence, jnp.zeros_like(confidence)))
  return Choice(token, confidence, ranked, entropy)


def _mixed(rules: Rules, ids: np.ndarray) -> tuple[int, ...]:
  """The groups of ``ids`` [G, g] whose ids are not all treated alike; at least one."""
  vocab = rules.vocab
  kinds = np.stack([ids < vocab.size, vocab.is_audio(ids), vocab.is_code(ids), vocab.is_end(ids),
                    vocab.is_begin(ids), ids == vocab.im_end])
  found = np.flatnonzero((kinds != kinds[..., :1]).any((0, 2)))
  return tuple(int(group) for group in found) or (0,)


def _allowed(rules: Rules, ids: jax.Array, place: Place) -> jax.Array:
  """bool [..., C]: whether the ids [..., 1 or C] may be chosen at each position."""
  vocab = rules.vocab
  sayable = (ids < vocab.audio_threshold) | vocab.is_code(ids) | vocab.is_end(ids)
  if rules.mode == 'hybrid':
    side = sayable & (vocab.is_audio(ids) == place.in_span)
    end, begin = vocab.is_end(ids), vocab.is_begin(ids)
  else:
    side = sayable & jnp.ones_like(place.in_span)
    end, begin = ids == vocab.im_end, np.False_
  return side & (~end | place.may_end | ~place.in_span) & (
      ~begin | place.may_begin | place.in_span)


def _temperature(sampling_params: SamplingParams, place: Place) -> jax.Array:
  return jnp.where(place.in_span, sampling_params.audio_temperature, sampling_params.temperature)


def _drawn(rules, logits, first, sampling_params: SamplingParams,
           place: Place) -> tuple[jax.Array, jax.Array]:
  """(ids, their logits) [C], sampled from logits [G, g, C]; ids of -1 where temperature is 0."""
  logits = logits.reshape(-1, place.in_span.size).T
  ids = first + np.arange(logits.shape[1])[:, None]
  masked = jnp.where(_allowed(rules, ids, place).T, logits, -jnp.inf)
  temperature = _temperature(sampling_params, place)
  token = _sampled(masked, temperature, sampling_params, place)
  logit = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
  return jnp.where(temperature > 0, first + token, -1), logit


def _sampled(masked, temperature, sampling_params: SamplingParams, place: Place) -> jax.Array:
  """Gumbel-max samples at ``temperature`` [C], int32."""
  scaled = masked / jnp.maximum(temperature, 1e-6)[:, None]
  cut = ~place.in_span & ((sampling_params.top_k > 0) | (sampling_params.top_p < 1))
  scaled = lax.cond(jnp.any(cut),
                    lambda: jnp.where(cut[:, None], _nucleus(scaled, sampling_params), scaled),
                    lambda: scaled)
  names = jnp.stack([sampling_params.number, place.span, place.block, place.step, place.position],
                    1)

  def noise(seed, names):
    fold = lambda key, name: (jax.random.fold_in(key, name), None)
    key, _ = lax.scan(fold, jax.random.key(seed), names)  # a loop: threefry is long to compile
    # mode='high': the default cuts the tail of float32 Gumbels at about 16.
    return jax.random.gumbel(key, masked.shape[1:], jnp.float32, mode='high')

  return jnp.argmax(scaled + jax.vmap(noise)(sampling_params.seed, names),
                    axis=-1).astype(jnp.int32)


def _nucleus(scaled: jax.Array, sampling_params: SamplingParams) -> jax.Array:
  """Keep the top_k ids, and of those the fewest that hold top_p of the probability."""
  descending = jnp.sort(scaled, axis=-1)[:, ::-1]
  place = jnp.arange(descending.shape[-1])
  keep = (sampling_params.top_k[:, None] == 0) | (place < sampling_params.top_k[:, None])
  probability = jax.nn.softmax(jnp.where(keep, descending, -jnp.inf), axis=-1)
  keep &= jnp.cumsum(probability, axis=-1) - probability < sampling_params.top_p[:, None]
  floor = jnp.min(jnp.where(keep, descending, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(scaled >= floor, scaled, -jnp.inf)
