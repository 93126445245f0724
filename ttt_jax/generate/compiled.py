"""What is compiled for generation: reading a prompt, and making steps until an event.

A program is known by its shapes: rows B (``rows``), window W (``widths``) and the kind
of guidance. Prefix lengths, sampling parameters and phases are data.

S = slots, B = rows, W = positions of the window, T = tokens of a slot.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ttt_jax.generate import decode_step, sampling
from ttt_jax.generate.decode_step import State
from ttt_jax.generate.sampling_params import SamplingParams
from ttt_jax.model import kv_cache
from ttt_jax.model.transformer import Model, Params


def widths(most: int) -> tuple[int, ...]:
  """Window sizes up to one that holds ``most`` tokens: 1, 32, 64, 128, ..."""
  out = [1]
  while out[-1] < most:
    out.append(32 if out[-1] == 1 else 2 * out[-1])
  return tuple(out)


def rows(count: int, slots: int) -> int:
  """Rows of a program for ``count`` requests: 1, 4, 16, ..., at most all slots. Compiling
  takes longer than the idle rows cost: their positions are never scored."""
  out = 1
  while out < count:
    out *= 4
  return min(out, slots)


def piece_end(ends: np.ndarray, at: int, end: int, longest: int) -> int:
  """Where a piece of a document that starts at ``at`` may end: after at most ``longest``
  tokens, but never among tokens that see each other, which are read at once.

  Args:
    ends: int [n], token i sees tokens 0 .. ends[i]-1.
    at, end, longest: tokens.
  """
  stop = min(end, at + longest)
  back = stop
  while back > at and ends[back - 1] > back:
    back -= 1
  return back if back > at else min(end, int(ends[stop - 1]))


def ends_of(group: np.ndarray) -> np.ndarray:
  """int32 [n]: token i of a document sees tokens 0 .. ends[i]-1; ``group`` [n] is as in
  staircase.bidirectional_group."""
  index = np.arange(group.size, dtype=np.int32)
  edges = np.append(np.flatnonzero(np.diff(group)) + 1, group.size)
  last = edges[np.searchsorted(edges, index, side='right')]
  return np.where(group > 0, last, index + 1).astype(np.int32)


@functools.partial(jax.jit, static_argnames='model', donate_argnames='kept')
def prefill(model: Model, params: Params, kept: kv_cache.Cache, slots: jax.Array, known: jax.Array,
            token: jax.Array, k_end: jax.Array) -> kv_cache.Cache:
  """Read a piece of prompts into the cache.

  Args:
    model, params: the decoder.
    kept: all slots; donated.
    slots: int32 [B].
    known: int32 [B], tokens of each slot that are there already.
    token, k_end: int32 [B, W]; k_end relative to the window, 0 behind the piece's end.
  """
  position = known[:, None] + jnp.arange(token.shape[1])
  _, k, v = model.extend(params, kept, slots, known, token, position, k_end)
  return kv_cache.write(kept, slots, known, jnp.sum(k_end > 0, axis=1), k, v)


@functools.partial(jax.jit, donate_argnames=('state', 'sampling_params'))
def admit(state: State, sampling_params: SamplingParams, slot: jax.Array, row: State,
          settings: SamplingParams) -> tuple[State, SamplingParams]:
  """Put one request, rows without leading axis, into a slot."""
  put = lambda all, one: all.at[slot].set(one)
  return jax.tree.map(put, state, row), jax.tree.map(put, sampling_params, settings)


@functools.partial(jax.jit, static_argnames=('model', 'rules', 'width', 'null', 'mixed'),
                   donate_argnames=('state', 'kept'))
def steps(model: Model, rules: sampling.Rules, width: int, null: str | int, mixed: bool,
          params: Params, head: sampling.Head, state: State, kept: kv_cache.Cache,
          sampling_params: SamplingParams, slots: jax.Array | None,
          max_steps: jax.Array) -> tuple[State, kv_cache.Cache, State]:
  """Steps of some rows until one of them needs the host.

  That is when a request is done, opens or closes a span, needs a wider window or (unless
  ``mixed``) is better off in a narrower one; or after ``max_steps`` steps.

  Args:
    model, rules, params, head: of the run.
    width: W; no row's window may be longer.
    null: guidance's second pass: '' for none, 'begin' for the span alone, or as published,
      over every token: then the length of the rows, an int.
    mixed: rows with shorter windows stay.
    state, kept: of all slots; donated.
    sampling_params: of all slots.
    slots: int32 [B], each at most once; S fills up the rows. None: all slots are rows.
    max_steps: int32 scalar.

  Returns:
    (state, cache, rows): those of all slots, and the rows' own state.
  """
  count = state.length.shape[0]
  if slots is None:
    rows, settings, real = state, sampling_params, jnp.ones(count, bool)
  else:
    real = slots < count
    take = lambda x: x[jnp.minimum(slots, count - 1)]
    rows, settings = jax.tree.map(take, state), jax.tree.map(take, sampling_params)
  busy = real & (rows.phase != decode_step.IDLE)
  rows = rows._replace(phase=jnp.where(real, rows.phase, decode_step.IDLE),
                       event=jnp.zeros_like(rows.event))

  def stay(carry):
    number, rows, _ = carry
    size = rows.length - rows.known
    leaves = (rows.phase == decode_step.IDLE) | (size > width) | (
        rows.event & (decode_step.OPENED | decode_step.CLOSED) > 0)
    if width > 1 and not mixed:
      leaves |= size == 1
    return (number < max_steps) & ~jnp.any(busy & leaves)

  def step(carry):
    number, rows, kept = carry
    token, position, k_end = decode_step.window(rows, width)
    active = rows.phase != decode_step.IDLE
    k_end = jnp.where(active[:, None], k_end, 0)
    hidden, k, v = model.extend(params, kept, slots, jnp.where(active, rows.known, 0), token,
                                position, k_end)
    want = decode_step.wanted(rows, rules.vocab, token, position) & active[:, None]
    blind = _without_context(model, params, rules, rows, settings, kept, slots, token, position,
                             k_end, null)
    choice = decode_step.score(rules, head, settings, rows, hidden, blind, position, want)
    final = jnp.where(rows.phase == decode_step.TEXT, rows.length - rows.known, 0)
    kept = kv_cache.write(kept, slots, rows.known, final, k, v)
    return number + 1, decode_step.advance(rows, settings, rules, width, choice, want), kept

  _, rows, kept = jax.lax.while_loop(stay, step, (jnp.int32(0), rows, kept))
  if slots is None:
    return rows, kept, rows
  put = lambda all, some: all.at[slots].set(some, mode='drop')
  return jax.tree.map(put, state, rows), kept, rows


def _without_context(model, params, rules, rows: State, sampling_params: SamplingParams, kept,
                     slots, token, position, k_end, null: str | int) -> jax.Array | None:
  """Hidden states [B, W, E] of the windows when the model does not know what came before.

  As published, every id before the span becomes a mask: masks are audio, so prefix and span
  are one run that reads itself in both directions, all of it at every step. The other way
  hides the prefix: the begin token stands at its true position, with nothing before it.
  """
  if not null:
    return None
  guided = (rows.phase == decode_step.SPAN) & (sampling_params.guidance > 0)
  nothing = jnp.zeros_like(rows.known)
  if null == 'begin':
    return model.extend(params, kept, slots, nothing, token, position, k_end)[0]
  index = jnp.broadcast_to(jnp.arange(null), (rows.length.size, null))
  ids = jnp.where(index <= rows.begin[:, None], rules.vocab.mask, rows.token[:, :null])
  end = jnp.where((index < rows.length[:, None]) & guided[:, None], rows.length[:, None], 0)

  def run():
    hidden = model.hidden(params, ids, index, jnp.zeros_like(index), end)
    at = jnp.minimum(position, null - 1)
    return jnp.take_along_axis(hidden, at[..., None], axis=1)

  shape = (*token.shape, model.config.hidden_size)
  return jax.lax.cond(jnp.any(guided), run, lambda: jnp.zeros(shape, model.config.dtype))
