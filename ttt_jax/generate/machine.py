"""The generation algorithm as one step over rows of arrays (TTT.md section 6).

A row is a request in one of three phases:

  TEXT   its window is what is final but not cached yet: the last text token, or a closed
         span after its begin token. The step caches it and chooses the next text token.
  SPAN   its window is a begin token and the open span. The step chooses at every mask of
         the last block and commits some; nothing is cached.
  IDLE   nothing to do.

So no forward pass is made only to cache something. Committed tokens never change; a block
is done when it has no masks left, or earlier, when an end token is committed and no mask
stands left of it: what follows would be cut off.

S = slots, B = rows, W = positions of the window, T = tokens of a slot.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ttt_jax.generate import positions, sampling
from ttt_jax.generate.policy import Policy
from ttt_jax.generate.sampling import Choice, Place, Rules
from ttt_jax.vocab import Vocabulary

IDLE, TEXT, SPAN = 0, 1, 2
# What a step brought about; bits.
OPENED, BLOCK, CLOSED, DONE = 1, 2, 4, 8


class State(NamedTuple):
  """int32 arrays [S], but for ``token`` [S, T].

  Attributes:
    token: prompt and answer, masks where a block is open.
    length: tokens there.
    known: of them, how many are cached; the window is the rest.
    lead: tokens at the window's start that see only themselves: the begin token; or the
      whole window, where it is a prompt's last, two-way audio.
    phase, event: see above.
    prompt: its length.
    begin: index of the open or last span's begin token.
    block_at: index of the block's first token.
    step: steps made in the block.
    spans, blocks: opened so far; in the open or last span.
    ended: 1 if the last span ended by itself.
    gap: text tokens since the last span.
    calls: forward passes that the request took part in.
    finished: 1 if the model said im_end.
  """
  token: jax.Array
  length: jax.Array
  known: jax.Array
  lead: jax.Array
  phase: jax.Array
  event: jax.Array
  prompt: jax.Array
  begin: jax.Array
  block_at: jax.Array
  step: jax.Array
  spans: jax.Array
  blocks: jax.Array
  ended: jax.Array
  gap: jax.Array
  calls: jax.Array
  finished: jax.Array


def empty(slots: int, tokens: int) -> State:
  """Idle slots of up to ``tokens`` tokens."""
  zeros = lambda *shape: jnp.zeros(shape, jnp.int32)
  return State(zeros(slots, tokens), *(zeros(slots) for _ in State._fields[1:]))


def window(state: State, width: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(token, position, k_end) of the rows' windows, int32 [B, W].

  k_end says which tokens of the window a token reads: those of its bidirectional group and
  all before; 0 beyond the window's end.
  """
  index = jnp.arange(width)
  position = state.known[:, None] + index
  token = jnp.take_along_axis(state.token, position, axis=1, mode='clip')
  column = lambda x: x[:, None]
  size = column(state.length - state.known)
  k_end = jnp.where(index < column(state.lead), column(state.lead), size)
  return token, position, jnp.where(index < size, k_end, 0)


def wanted(state: State, vocab: Vocabulary, token: jax.Array, position: jax.Array) -> jax.Array:
  """bool [B, W]: where the step needs a choice."""
  column = lambda x: x[:, None]
  masks = (token == vocab.mask) & (position >= column(state.block_at)) & (
      position < column(state.length))
  last = position == column(state.length - 1)
  return jnp.where(column(state.phase == SPAN), masks, last & column(state.phase == TEXT))


def places(state: State, policy: Policy, position: jax.Array) -> Place:
  """What may stand at each position of the windows, and the names of the draws; [B, W]."""
  column = lambda x: jnp.broadcast_to(x[:, None], position.shape)
  in_span = column(state.phase == SPAN)
  # As text is drawn, its place in the answer is its name; in a span, the place in the block.
  text = position + 1 - column(state.prompt)
  pick = lambda span, other: jnp.where(in_span, column(span), other)
  return Place(
      in_span=in_span,
      may_end=position - column(state.begin) >= column(policy.min_span),
      may_begin=column(state.gap >= policy.text_gap),
      span=pick(1 + state.begin - state.prompt + 1, 0),
      block=pick(state.block_at - state.begin, text), step=pick(state.step, 0),
      position=jnp.where(in_span, position - column(state.block_at), 0))


def advance(state: State, policy: Policy, rules: Rules, width: int, choice: Choice,
            want: jax.Array) -> State:
  """Take the choices of one step.

  Args:
    state, policy: rows [B].
    rules: gives vocabulary and mode.
    width: W.
    choice, want: [B, W].
  """
  active = state.phase != IDLE
  spoken = _text(state, policy, rules, width, choice)
  filled = _span(state, policy, rules, width, choice, want)
  after = jax.tree.map(lambda a, b: _where(state.phase == SPAN, a, b), filled, spoken)
  after = after._replace(calls=after.calls + 1)
  return jax.tree.map(lambda new, old: _where(active, new, old), after, state)


def _where(row, a, b):
  return jnp.where(row.reshape(-1, *[1] * (a.ndim - 1)), a, b)


def _text(state: State, policy: Policy, rules: Rules, width: int, choice: Choice) -> State:
  """The window is final; one more text token follows it."""
  vocab = rules.vocab
  last = jnp.clip(state.length - 1 - state.known, 0, width - 1)
  chosen = jnp.take_along_axis(choice.token, last[:, None], axis=1)[:, 0]
  said = _append(state, chosen)._replace(
      known=state.length, lead=jnp.ones_like(state.lead), gap=state.gap + 1)
  finished = chosen == vocab.im_end
  full = said.length >= policy.max_tokens
  done = finished | full
  said = said._replace(
      finished=finished.astype(jnp.int32), phase=jnp.where(done, IDLE, TEXT),
      event=jnp.where(done, DONE, 0))
  if rules.mode != 'hybrid':
    return said
  opened = open_span(said, policy, rules)
  return jax.tree.map(lambda a, b: _where(vocab.is_begin(chosen) & ~done, a, b), opened, said)


def _append(state: State, chosen: jax.Array) -> State:
  index = jnp.arange(state.token.shape[1])
  here = index == state.length[:, None]
  return state._replace(token=jnp.where(here, chosen[:, None], state.token),
                        length=state.length + 1)


def open_span(state: State, policy: Policy, rules: Rules) -> State:
  """The last token opens a span: its first block of masks follows."""
  begin = state.length - 1
  state = state._replace(phase=jnp.full_like(state.phase, SPAN), begin=begin, known=begin,
                         spans=state.spans + 1, blocks=jnp.zeros_like(state.blocks),
                         event=state.event | OPENED)
  return _next_block(state, policy, rules)


def _next_block(state: State, policy: Policy, rules: Rules) -> State:
  """Masks up to the span's limit, where one place is kept for an end token."""
  used = state.length - state.begin - 1
  limit = policy.max_tokens if rules.mode == 'nar' else policy.max_span
  room = policy.max_tokens - state.length
  masks = jnp.minimum(policy.block, jnp.minimum(limit - used, room) - 1)
  index = jnp.arange(state.token.shape[1])
  fresh = (index >= state.length[:, None]) & (index < (state.length + masks)[:, None])
  more = state._replace(
      token=jnp.where(fresh, rules.vocab.mask, state.token), length=state.length + masks,
      block_at=state.length, step=jnp.zeros_like(state.step), blocks=state.blocks + 1,
      event=state.event | BLOCK)
  vocab = rules.vocab
  begin = jnp.take_along_axis(state.token, state.begin[:, None], axis=1)[:, 0]
  end = jnp.where(begin == vocab.begin_of_audio, vocab.end_of_chunk, vocab.end_of_last)
  if rules.mode == 'nar':
    end = jnp.full_like(end, vocab.im_end)
  forced = _close(_append(state, end), policy, rules, jnp.zeros_like(state.ended))
  return jax.tree.map(lambda a, b: _where(masks < 1, a, b), forced, more)


def _close(state: State, policy: Policy, rules: Rules, ended: jax.Array) -> State:
  """The span is final; its window is cached by the step that chooses the next text token."""
  full = state.length >= policy.max_tokens
  done = full | True if rules.mode == 'nar' else full
  return state._replace(
      phase=jnp.where(done, IDLE, TEXT), ended=ended, gap=jnp.zeros_like(state.gap),
      finished=ended if rules.mode == 'nar' else state.finished,
      event=state.event | CLOSED | jnp.where(done, DONE, 0))


def _span(state: State, policy: Policy, rules: Rules, width: int, choice: Choice,
          want: jax.Array) -> State:
  """Commit some masks of the block; close the span or begin another block when it is done."""
  vocab = rules.vocab
  index = jnp.arange(state.token.shape[1])
  size = state.length - state.block_at
  take = positions.accept(policy, choice.score, choice.confidence, choice.entropy, want, size,
                          state.step)
  # The windows' tokens go back to their places in the rows.
  offset = jnp.clip(index - state.known[:, None], 0, width - 1)
  back = lambda x: jnp.take_along_axis(x, offset, axis=1)
  inside = (index >= state.block_at[:, None]) & (index < state.length[:, None])
  token = jnp.where(inside & back(take), back(choice.token), state.token)
  state = state._replace(token=token, step=state.step + 1)
  is_end = (token == vocab.im_end) if rules.mode == 'nar' else vocab.is_end(token)
  first = lambda flags: jnp.min(jnp.where(inside & flags, index, index.size), axis=1)
  mask, end = first(token == vocab.mask), first(is_end)
  closed = _close(state._replace(length=end + 1), policy, rules, jnp.ones_like(state.ended))
  after = jax.tree.map(lambda a, b: _where(end < mask, a, b), closed,
                       _next_block(state, policy, rules))
  done = (end < mask) | (mask == index.size)
  return jax.tree.map(lambda a, b: _where(done, a, b), after, state)


def score(rules: Rules, head: sampling.Head, policy: Policy, state: State, hidden: jax.Array,
          null: jax.Array | None, position: jax.Array, want: jax.Array) -> Choice:
  """Choices [B, W] from hidden states [B, W, E]; zeros where none is wanted."""
  rows, width = want.shape
  flat = lambda x: x.reshape(rows * width, *x.shape[2:])
  row = jnp.repeat(jnp.arange(rows), width)
  place = jax.tree.map(flat, places(state, policy, position))
  found = sampling.choose(rules, head, jax.tree.map(lambda x: x[row], policy), flat(hidden),
                          None if null is None else flat(null), flat(want), place)
  return jax.tree.map(lambda x: x.reshape(rows, width), found)
