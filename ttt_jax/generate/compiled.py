"""The compiled programs of generation: reading a prompt, and making steps until an event.

A program of ``steps`` is determined by its static arguments (``Setup`` and ``Launch``) and
its number of rows B (``rows``). Prefix lengths, sampling parameters and phases are data.

S = slots, B = rows, W = positions of the window, T = tokens of a slot.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ttt_jax.generate import decode_step, sampling
from ttt_jax.generate.decode_step import State
from ttt_jax.generate.sampling_params import SamplingParams
from ttt_jax.model import kv_cache
from ttt_jax.model.transformer import Model, Params
from ttt_jax.model.types import Array


class NullContext(NamedTuple):
  """The context of guidance's unconditional pass.

  Attributes:
    kind: '' for no pass; 'published', every id up to the begin token becomes a mask; 'begin', the
      span alone, after its begin token (config key generate.guidance_context).
    length: tokens of a row of the 'published' pass, which has no cache; else 0.
  """
  kind: str = ''
  length: int = 0


class Setup(NamedTuple):
  """The static arguments that an engine never changes.

  Attributes:
    model: the decoder.
    rules: of the output head.
    mixed: rows with a window of one token stay in a launch with a wider window.
  """
  model: Model
  rules: sampling.Rules
  mixed: bool


class Launch(NamedTuple):
  """The static arguments of one call: each new value is a new program.

  Attributes:
    width: W; no row's window may be longer.
    null: the unconditional pass.
  """
  width: int
  null: NullContext


class Weights(NamedTuple):
  """The arrays of a model: parameters, and its output head as ``sampling`` wants it."""
  params: Params
  head: sampling.Head


class Pool(NamedTuple):
  """The arrays of all S slots."""
  state: State
  cache: kv_cache.Cache
  sampling_params: SamplingParams


def widths(tokens: int, block: int = 32, begin: int = 0) -> tuple[int, ...]:
  """Window sizes up to one that holds ``tokens``: 1, 32, 64, 128, ...

  Args:
    tokens: of the longest window.
    block: the second size, without ``begin``.
    begin: tokens that every size but the first has beside the blocks: 1 makes 1, 33, 65, 129, ...,
      which hold a begin token and 1, 2, 4, ... blocks.
  """
  out, blocks = [1], 1
  while out[-1] < tokens:
    out.append(begin + blocks * block)
    blocks *= 2
  return tuple(out)


def rows(count: int, slots: int, growth: int = 4) -> int:
  """Rows of a program for ``count`` requests: 1, 4, 16, ..., at most all slots. Compiling more
  sizes would take longer than idle rows cost, unless the programs are used for hours: then a
  smaller ``growth`` than 4 pays."""
  out = 1
  while out < count:
    out *= growth
  return min(out, slots)


def piece_end(ends: np.ndarray, at: int, end: int, longest: int) -> int:
  """Where a piece of a document that starts at ``at`` ends: after at most ``longest`` tokens, but
  never inside a bidirectional group, unless the group alone is longer.

  Args:
    ends: int [n], token i attends to tokens 0 .. ends[i]-1.
    at, end: first token of the piece, and end of what is to be read.
    longest: tokens.
  """
  stop = min(end, at + longest)
  back = stop
  while back > at and ends[back - 1] > back:
    back -= 1
  return back if back > at else min(end, int(ends[stop - 1]))


def ends_of(group: np.ndarray) -> np.ndarray:
  """int32 [n]: token i of a document attends to tokens 0 .. ends[i]-1.

  Args:
    group: int32 [n], see staircase.bidirectional_group.
  """
  index = np.arange(group.size, dtype=np.int32)
  edges = np.append(np.flatnonzero(np.diff(group)) + 1, group.size)
  last = edges[np.searchsorted(edges, index, side='right')]
  return np.where(group > 0, last, index + 1).astype(np.int32)


@functools.partial(jax.jit, static_argnames='model', donate_argnames='cache')
def prefill(model: Model, params: Params, cache: kv_cache.Cache, slots: jax.Array,
            known: jax.Array, token: jax.Array, k_end: jax.Array) -> kv_cache.Cache:
  """Read a piece of prompts into the cache.

  Args:
    model, params: the decoder.
    cache: of all slots; donated.
    slots: int32 [B].
    known: int32 [B], how many tokens of each slot are cached already.
    token, k_end: int32 [B, W]; k_end relative to the window, 0 beyond the piece's end.
  """
  position = known[:, None] + jnp.arange(token.shape[1])
  _, k, v = model.extend(params, cache, slots, known, token, position, k_end)
  return kv_cache.write(cache, slots, known, jnp.sum(k_end > 0, axis=1), k, v)


@functools.partial(jax.jit, donate_argnames='pool')
def admit(pool: Pool, slot: jax.Array, row: State, sampling_params: SamplingParams) -> Pool:
  """Put one request into a slot.

  Args:
    pool: donated.
    slot: int32 scalar.
    row, sampling_params: of the request, without the leading axis.
  """
  put = lambda all, one: all.at[slot].set(one)
  return pool._replace(state=jax.tree.map(put, pool.state, row),
                       sampling_params=jax.tree.map(put, pool.sampling_params, sampling_params))


@functools.partial(jax.jit, donate_argnames='pool')
def release(pool: Pool, slot: jax.Array) -> Pool:
  """Make the row of a slot idle.

  Args:
    pool: donated.
    slot: int32 scalar.
  """
  state = pool.state
  phase = jnp.asarray(state.phase).at[slot].set(decode_step.IDLE)
  return pool._replace(state=state._replace(phase=phase))


@functools.partial(jax.jit, static_argnames=('setup', 'launch'), donate_argnames='pool')
def steps(setup: Setup, launch: Launch, weights: Weights, pool: Pool, slots: jax.Array | None,
          max_steps: jax.Array, stop_at: jax.Array) -> tuple[Pool, State]:
  """Decode steps of some rows until one of them needs the host.

  A row needs the host when its request is done, when it has an event of ``stop_at``, when its
  window outgrows W, or (unless ``setup.mixed``) when a narrower window would do. The loop ends
  after ``max_steps`` steps at the latest.

  Args:
    setup, launch: static.
    weights: of the model.
    pool: donated.
    slots: int32 [B], each slot at most once; S fills unused rows. None: all slots are rows.
    max_steps: int32 scalar.
    stop_at: int32 scalar, bits of decode_step's events.

  Returns:
    (pool, state of the B rows).
  """
  (model, rules, mixed), width = setup, launch.width
  count = pool.state.length.shape[0]
  chex.assert_tree_shape_prefix((pool.state, pool.sampling_params), (count,))
  chex.assert_axis_dimension(pool.cache.k, 1, count)
  if slots is not None:
    chex.assert_rank(slots, 1)
  if slots is None:
    rows, settings, real = pool.state, pool.sampling_params, jnp.ones(count, bool)
  else:
    real = slots < count
    take = lambda x: x[jnp.minimum(slots, count - 1)]
    rows, settings = jax.tree.map(take, (pool.state, pool.sampling_params))
  busy = real & (rows.phase != decode_step.IDLE)
  rows = rows._replace(phase=jnp.where(real, rows.phase, decode_step.IDLE),
                       event=jnp.zeros_like(rows.event))

  def stay(carry):
    number, rows, _ = carry
    size = rows.length - rows.known
    leaves = (rows.phase == decode_step.IDLE) | (size > width) | (
        rows.event & stop_at > 0)
    if width > 1 and not mixed:
      leaves |= size == 1
    return (number < max_steps) & ~jnp.any(busy & leaves)

  def step(carry):
    number, rows, cache = carry
    token, position, k_end = decode_step.window(rows, rules, width)
    active = rows.phase != decode_step.IDLE
    k_end = jnp.where(active[:, None], k_end, 0)
    hidden, k, v = model.extend(weights.params, cache, slots, jnp.where(active, rows.known, 0),
                                token, position, k_end)
    want = decode_step.wanted(rows, rules.vocab, token, position) & active[:, None]
    uncond = None
    if launch.null.kind == 'published':
      guided = (rows.phase == decode_step.SPAN) & (settings.guidance > 0)
      uncond = _over_masks(setup, launch.null.length, weights.params, rows, guided, position)
    elif launch.null.kind == 'begin':
      uncond, _, _ = model.extend(weights.params, cache, slots, jnp.zeros_like(rows.known), token,
                                  position, k_end)
    choice = decode_step.score(rules, weights.head, settings, rows, hidden, uncond, position, want)
    after = decode_step.advance(rows, settings, rules, width, choice, want)
    # Only what is final is cached: a text row's window. An open span is computed anew.
    final = jnp.where(rows.phase == decode_step.TEXT, after.known - rows.known, 0)
    cache = kv_cache.write(cache, slots, rows.known, final, k, v)
    return number + 1, after, cache

  _, rows, cache = jax.lax.while_loop(stay, step, (jnp.int32(0), rows, pool.cache))
  if slots is None:
    return pool._replace(state=rows, cache=cache), rows
  put = lambda all, some: all.at[slots].set(some, mode='drop')
  return pool._replace(state=jax.tree.map(put, pool.state, rows), cache=cache), rows


def _over_masks(setup: Setup, length: int, params: Params, rows: State, guided: Array,
                position: Array) -> jax.Array:
  """Hidden states [B, W, E] of the windows with every id up to the begin token masked; in the
  published loop every id before the open block.

  This is the unconditional pass of the paper's guidance (arXiv 2509.20072). Masks are audio, so
  prefix and span form one bidirectional run: nothing can be cached, and all ``length`` tokens
  are computed at every step that has a guided row.
  """
  model, rules, _ = setup
  index = jnp.broadcast_to(jnp.arange(length), (rows.length.size, length))
  size = rows.length[:, None]
  first = rows.block_at[:, None] if rules.published else rows.begin[:, None] + 1
  ids = jnp.where(index < first, rules.vocab.mask, rows.token[:, :length])
  end = size
  if rules.published:  # a text id in the open block ends the run
    end = decode_step.run_ends(rules, ids, index, jnp.zeros_like(size), size)
  end = jnp.where((index < size) & guided[:, None], end, 0)

  def run():
    hidden = model.hidden(params, ids, index, jnp.zeros_like(index), end)
    at = jnp.minimum(position, length - 1)
    return jnp.take_along_axis(hidden, at[..., None], axis=1)

  shape = (*position.shape, model.config.hidden_size)
  return jax.lax.cond(jnp.any(guided), run, lambda: jnp.zeros(shape, model.config.dtype))
