"""From hidden states to choices: sampling, confidence and scores, where a token is needed.

In a step only some positions of a batch need a token: the masked ones of each open block and
the last one of each text row. They are compacted and scored in parts of a fitting size
(output_head.py), so that a step costs the positions that are wanted, not rows times window.

N = positions, E = width, V = rows of the output head, C = positions of one part,
G = groups of g ids.
"""

import dataclasses
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax
import numpy as np

from ttt_jax.generate import output_head
from ttt_jax.generate.sampling_params import SamplingParams, SCORES
from ttt_jax.model.types import Array
from ttt_jax.tokens.vocab import Vocabulary


@dataclasses.dataclass(frozen=True)
class Rules:
  """The static part of choosing; hashable.

  Attributes:
    vocab: decides which ids are allowed where.
    mode: 'hybrid' allows audio ids inside spans and text ids outside; the baselines 'ar' and
      'nar' allow every id that can occur in a sequence.
    published: the loop of the published code (generate.preset): outside spans every id is allowed,
      inside every id but im_end, which also leaves the softmax there.
    causal_prompt: audio of prompts is not bidirectional; read by the published loop.
    softmax: the support of the confidence's softmax: 'full', the complete vocabulary, as
      published; or 'audio', the ids that are allowed in a span, which avoids most of the head
      for positions in spans.
    sizes: possible numbers of positions in a part, rising; a part has the smallest size that
      holds what is left. See ``Rules.fitting``.
    dense: up to this size a part's logits are all in memory at once; only such parts can sample.
    tile: logits in memory at once in larger parts: about what a core's cache holds. None: all.
  """
  vocab: Vocabulary
  mode: str = 'hybrid'
  published: bool = False
  causal_prompt: bool = False
  softmax: str = 'full'
  sizes: tuple[int, ...] = (1, 8, 16, 24, 32, 64, 128)
  dense: int = 16
  tile: int | None = 2**17

  @classmethod
  def fitting(cls, vocab: Vocabulary, mode: str, softmax: str, platform: str,
              mesh: bool) -> 'Rules':
    """Rules with the sizes for a platform.

    On a CPU the time grows with the positions, but a small vocabulary does not pay for compiling
    several sizes. On an accelerator reading the table dominates, so one size is enough. On a
    mesh the table is sharded and cannot be tiled.
    """
    if platform != 'cpu' or vocab.size <= 4096:
      return cls(vocab, mode, softmax=softmax, sizes=(64,), dense=64, tile=None)
    if mesh:
      return cls(vocab, mode, softmax=softmax, sizes=(16,), dense=16, tile=None)
    return cls(vocab, mode, softmax=softmax)


class Head(NamedTuple):
  """The output head; see ``make_head``.

  Attributes:
    table: [V, E] in the compute dtype, padding rows included.
    audio: a copy of its rows from ``_first_audio`` on; None unless softmax is 'audio'.
    prior: float32 [V], log probability of each id without a prefix; read by rule 'prior'.
  """
  table: Array
  audio: Array | None
  prior: Array


def make_head(rules: Rules, table: Array) -> Head:
  """The output head of a model whose table [V, E], padding included, is ``table``."""
  narrow = rules.softmax == 'audio' and rules.mode == 'hybrid'
  return Head(table, table[_first_audio(rules, table.shape[0]):] if narrow else None,
              jnp.zeros(table.shape[0], jnp.float32))


def _first_audio(rules: Rules, rows: int) -> int:
  """The first row of the first group that has audio ids."""
  size = output_head.group_size(rows)
  return rules.vocab.audio_threshold // size * size


class Place(NamedTuple):
  """Constraints on the choice at a position, and the names of its random draw; arrays [N].

  Attributes:
    in_span: bool, the position lies in a span.
    may_end: bool, an end token is allowed if it does.
    may_begin: bool, a begin token is allowed if it does not.
    span, block, step, position: int32, folded into the key of the draw.
  """
  in_span: Array
  may_end: Array
  may_begin: Array
  span: Array
  block: Array
  step: Array
  position: Array


class Choice(NamedTuple):
  """The chosen tokens; arrays [N], float32 but for the token.

  Attributes:
    token: int32.
    confidence: softmax probability of the token, at temperature 1.
    score: the key that ranks masked positions (sampling_params.SCORES).
    entropy: of the same softmax, nats; 0 where no rule reads it.
  """
  token: Array
  confidence: Array
  score: Array
  entropy: Array


def choose(rules: Rules, head: Head, sampling_params: SamplingParams, hidden_NxE: Array,
           uncond_NxE: Array | None, want: Array, place: Place) -> Choice:
  """A choice [N] at every wanted position; zeros elsewhere.

  As in LLaDA (arXiv 2502.09992) a token is sampled by Gumbel-max at the request's temperature,
  and its confidence is its probability at temperature 1.

  Args:
    rules, head: of the model.
    sampling_params: arrays [N], of each position's request.
    hidden_NxE: final hidden states.
    uncond_NxE: those of guidance's unconditional pass; None if no request is guided.
    want: bool [N].
    place: arrays [N].
  """
  n = want.size
  chex.assert_rank(hidden_NxE, 2)
  chex.assert_shape([want, *place, *sampling_params], (n,))
  chex.assert_type(want, bool)
  if uncond_NxE is not None:
    chex.assert_equal_shape([hidden_NxE, uncond_NxE])
  hidden = hidden_NxE
  if uncond_NxE is not None:
    hidden = _guided(sampling_params, hidden_NxE, uncond_NxE, place)
  out = Choice(jnp.zeros(n, jnp.int32), *(jnp.zeros(n, jnp.float32) for _ in range(3)))
  if head.audio is None:
    return _compacted(rules, head.table, 0, head, sampling_params, hidden, want, place, out)
  first = _first_audio(rules, head.table.shape[0])
  out = _compacted(rules, head.audio, first, head, sampling_params, hidden, want & place.in_span,
                   place, out)
  return _compacted(rules, head.table, 0, head, sampling_params, hidden, want & ~place.in_span,
                    place, out)


def _guided(sampling_params: SamplingParams, hidden: Array, uncond: Array,
            place: Place) -> Array:
  """Hidden states whose logits are uncond + (1 + w)(cond - uncond), classifier-free guidance
  (arXiv 2207.12598) as in LLaDA. The head is linear, so it is applied once to the mixture."""
  guided = place.in_span & (sampling_params.guidance > 0)
  cond, uncond = hidden.astype(jnp.float32), uncond.astype(jnp.float32)
  mixed = uncond + (1.0 + sampling_params.guidance[:, None]) * (cond - uncond)
  return jnp.where(guided[:, None], mixed, cond).astype(hidden.dtype)


def _compacted(rules, table, first, head, sampling_params, hidden, want, place, out) -> Choice:
  """``out`` with the choices of the wanted positions, part by part.

  Args:
    table: [V', E], head.table or head.audio; its rows score the ids from ``first`` on.
    hidden, want, place, sampling_params: as in ``choose``.
    out: Choice [N].
  """
  n = want.size
  narrow = table is head.audio
  sizes = [size for size in rules.sizes if size < n]
  sizes += [n] if n <= rules.sizes[-1] else []  # instead of the next size, which would be padding
  largest = sizes[-1]
  # order[k] is the k-th wanted position.
  at = jnp.cumsum(want, dtype=jnp.int32) - 1
  count = at[-1] + 1
  order = jnp.zeros(n + largest, jnp.int32).at[jnp.where(want, at, n + largest)].set(
      jnp.arange(n, dtype=jnp.int32), mode='drop')
  # Only the smallest and the largest dense size can sample: it is slow to compile.
  dense = [size for size in sizes if size <= rules.dense] or sizes[:1]
  drawn = sorted({dense[0], dense[-1]})
  draws = jnp.any(want & (_temperature(sampling_params, place) > 0))

  def part(size, draw, done):
    rows = lax.dynamic_slice(order, (done,), (size,))
    take = lambda x: x[rows]
    tile = None if size in dense or rules.tile is None else rules.tile // size
    scored = _score(rules, table, first, take(hidden), tile,
                    jax.tree.map(take, sampling_params), jax.tree.map(take, place), draw)
    if len(sizes) == 1:
      return scored
    # Padded to the largest size, so that ``_choose`` is compiled once, not per size.
    scored = scored._replace(logits=None)
    return jax.tree.map(
        lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, largest - size)], 'edge'), scored)

  parts = [functools.partial(part, size, False) for size in sizes]
  parts += [functools.partial(part, size, True) for size in drawn]

  def turn(carry):
    done, out = carry
    fits = jnp.sum(count - done > np.array(sizes[:-1]), dtype=jnp.int32)
    which = jnp.where(draws, len(sizes) + jnp.where(fits > 0, len(drawn) - 1, 0), fits)
    if len(sizes) == 1:
      scored = part(largest, draws, done)
    else:
      scored = lax.switch(which, parts, done)
    rows = lax.dynamic_slice(order, (done,), (largest,))
    take = lambda x: x[rows]
    choice = _choose(rules, table, first, narrow, head, jax.tree.map(take, sampling_params),
                     take(hidden), jax.tree.map(take, place), scored)
    size = jnp.array(sizes + drawn)[which]
    index = jnp.arange(largest)
    target = jnp.where((index < size) & (done + index < count), rows, n)
    out = jax.tree.map(lambda all, new: all.at[target].set(new, mode='drop'), out, choice)
    return done + size, out

  return lax.while_loop(lambda carry: carry[0] < count, turn, (jnp.int32(0), out))[1]


class _Scored(NamedTuple):
  """One part's scores.

  Attributes:
    groups: summaries of all groups of ids.
    special: logits [S, g, C] of the S groups that ``_mixed`` lists.
    token, logit: [C], sampled ids and their logits; the id is -1 where temperature is 0.
    logits: [G, g, C], or None after a sweep in tiles.
  """
  groups: output_head.Groups
  special: Array
  token: Array
  logit: Array
  logits: Array | None


def _score(rules, table, first, hidden, tile, sampling_params, place, draw) -> _Scored:
  """Sweep the head for C positions; ``draw``, a bool or a traced bool: whether to sample."""
  swept = output_head.sweep(table, hidden, _ranked(sampling_params), tile)
  ids = first + np.arange(table.shape[0]).reshape(-1, swept.group)
  none = jnp.full(len(hidden), -1, jnp.int32), jnp.zeros(len(hidden), jnp.float32)
  token, logit = none
  if draw is not False:
    token, logit = lax.cond(draw,
                            lambda: _drawn(rules, swept.logits, first, sampling_params, place),
                            lambda: none)
  return _Scored(swept.groups, swept.of_all(_mixed(rules, ids)), token, logit, swept.logits)


def _ranked(sampling_params: SamplingParams) -> Array:
  """Whether some position is ranked by anything but its confidence."""
  return jnp.any(sampling_params.score != SCORES.index('confidence'))


def _choose(rules, table, first, narrow, head, sampling_params, hidden, place, scored) -> Choice:
  """Choice [C] of one part; ``narrow``: the softmax is over the ids allowed in a span."""
  swept = output_head.Swept(scored.groups, table, hidden, scored.logits)
  size = swept.group
  ids = first + np.arange(table.shape[0]).reshape(-1, size)
  mixed, other = _mixed(rules, ids), _ranked(sampling_params)

  def counted(rule, weigh):
    # In most groups all ids are of one kind, so the rule for the first id holds for the group;
    # the mixed groups are summarised again from their logits.
    apart = output_head.summary(
        jnp.where(rule(ids[list(mixed)][..., None]), scored.special, -jnp.inf), weigh)
    uniform = scored.groups._replace(
        top=jnp.where(rule(ids[:, :1]), scored.groups.top, -jnp.inf))
    return jax.tree.map(lambda all, some: all.at[np.array(mixed)].set(some), uniform, apart)

  allowed = lambda ids: _allowed(rules, ids, place)
  # The first group of the audio rows may also have text ids.
  real = allowed if narrow else lambda ids: jnp.asarray(ids < rules.vocab.size)
  space = counted(allowed if rules.published else real, other)
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
  mixed = np.flatnonzero((kinds != kinds[..., :1]).any((0, 2)))
  return tuple(int(group) for group in mixed) or (0,)


def _allowed(rules: Rules, ids: Array, place: Place) -> Array:
  """bool [..., C]: whether the ids [..., 1 or C] may be chosen at each position."""
  vocab = rules.vocab
  if rules.published:
    return (ids < vocab.size) & ~((ids == vocab.im_end) & place.in_span)
  # Neither the mask nor the audio threshold is ever generated.
  real = (ids < vocab.audio_threshold) | vocab.is_code(ids) | vocab.is_end(ids)
  if rules.mode == 'hybrid':
    side = real & (vocab.is_audio(ids) == place.in_span)
    end, begin = vocab.is_end(ids), vocab.is_begin(ids)
  else:
    side = real & jnp.ones_like(place.in_span)
    end, begin = ids == vocab.im_end, np.False_
  return side & (~end | place.may_end | ~place.in_span) & (
      ~begin | place.may_begin | place.in_span)


def _temperature(sampling_params: SamplingParams, place: Place) -> Array:
  return jnp.where(place.in_span, sampling_params.audio_temperature, sampling_params.temperature)


def _drawn(rules, logits, first, sampling_params: SamplingParams,
           place: Place) -> tuple[Array, Array]:
  """(ids, their logits) [C], sampled from logits [G, g, C]; the id is -1 at temperature 0."""
  logits = logits.reshape(-1, place.in_span.size).T
  ids = first + np.arange(logits.shape[1])[:, None]
  masked = jnp.where(_allowed(rules, ids, place).T, logits, -jnp.inf)
  temperature = _temperature(sampling_params, place)
  token = _sampled(rules, masked, temperature, sampling_params, place)
  logit = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
  return jnp.where(temperature > 0, first + token, -1), logit


def _sampled(rules, masked, temperature, sampling_params: SamplingParams, place: Place) -> Array:
  """int32 [C], samples by Gumbel-max: argmax of logits / temperature + Gumbel noise."""
  scaled = masked / jnp.maximum(temperature, 1e-6)[:, None]
  cut = ~place.in_span & ((sampling_params.top_k > 0) | (sampling_params.top_p < 1))
  within = lambda: jnp.where(cut[:, None], _nucleus(rules, scaled, sampling_params), scaled)
  noisy = lax.cond(jnp.any(cut), within, lambda: scaled)
  names = jnp.stack([sampling_params.number, place.span, place.block, place.step, place.position],
                    1)

  def noise(seed, names):
    fold = lambda key, name: (jax.random.fold_in(key, name), None)
    # A scan, because each threefry call is slow to compile.
    key, _ = lax.scan(fold, jax.random.key(seed), names)
    # mode='high': by default float32 Gumbels end at about 16, which never draws ids of
    # probability below 1e-7.
    return jax.random.gumbel(key, masked.shape[1:], jnp.float32, mode='high')

  return jnp.argmax(noisy + jax.vmap(noise)(sampling_params.seed, names),
                    axis=-1).astype(jnp.int32)


def _nucleus(rules: Rules, scaled: Array, sampling_params: SamplingParams) -> Array:
  """-inf outside the top_k ids, and of those the fewest that hold top_p of the probability
  (nucleus sampling, arXiv 1904.09751). The published loop does not renormalise between the two:
  there top_p is a share of the probability of all ids."""
  descending = jnp.sort(scaled, axis=-1)[:, ::-1]
  place = jnp.arange(descending.shape[-1])
  keep = (sampling_params.top_k[:, None] == 0) | (place < sampling_params.top_k[:, None])
  kept = descending if rules.published else jnp.where(keep, descending, -jnp.inf)
  probability = jax.nn.softmax(kept, axis=-1)
  keep &= jnp.cumsum(probability, axis=-1) - probability < sampling_params.top_p[:, None]
  floor = jnp.min(jnp.where(keep, descending, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(scaled >= floor, scaled, -jnp.inf)
