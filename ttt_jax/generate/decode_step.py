"""One decode step of the generation algorithm, over rows of arrays (docs/method.md).

Text is generated token by token; a begin token opens an audio span, which is filled block by
block by iterative unmasking (block diffusion, arXiv 2503.09573, with the low-confidence
remasking of LLaDA, arXiv 2502.09992) until it has an end token. A row is a request in one of
three phases:

  TEXT   Its window holds the final tokens that are not cached yet: the last text token, or a
         closed span after its begin token. The step caches them and chooses the next text token.
  SPAN   Its window holds a begin token and the open span. The step makes a choice at every mask
         of the last block and commits some of them. Nothing is cached.
  IDLE   No request, or a finished one.

So no forward pass is made only to cache something. Committed tokens never change. A block is
done when it has no masks left, or earlier, when an end token is committed and no mask stands
to its left: the tokens behind it would be cut off.

The published loop (``Rules.published``, config key generate.preset) may choose any id anywhere.
So what is bidirectional follows from the ids of the moment, and an audio run at the end of a row
stays in the window until a text id follows; a chosen mask stays a mask, so a block ends after its
last step; and spans have no limit: every ceil(max_span / block) blocks, a row that has reached
max_tokens ends.

S = slots, B = rows, W = positions of the window, T = tokens of a slot.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ttt_jax.generate import sampling, unmasking
from ttt_jax.generate.sampling import Choice, Place, Rules
from ttt_jax.generate.sampling_params import SamplingParams
from ttt_jax.model.types import Array
from ttt_jax.tokens.vocab import Vocabulary

IDLE, TEXT, SPAN = 0, 1, 2
# Events of a step, as bits.
OPENED, BLOCK, CLOSED, DONE = 1, 2, 4, 8


class State(NamedTuple):
  """The state of S rows: int32 arrays [S], but for ``token`` [S, T].

  Attributes:
    token: prompt and answer, with masks where a block is open.
    length: number of those tokens.
    known: how many of them are cached; the others are the window.
    lead: tokens at the window's start that see each other but nothing behind them: the begin
      token; or the complete window, where it is the bidirectional audio at a prompt's end. Not
      read by the published loop.
    phase, event: see above.
    prompt: length of the prompt.
    begin: index of the begin token of the open or last span.
    block_at: index of the first token of the open or last block.
    step: steps made in that block.
    spans, blocks: number of spans opened so far; of blocks in the open or last span.
    ended: 1 if the model generated the last span's end token, 0 if a limit forced it.
    gap: text tokens since the last span.
    calls: forward passes that the request took part in.
    finished: 1 if the model generated im_end.
  """
  token: Array
  length: Array
  known: Array
  lead: Array
  phase: Array
  event: Array
  prompt: Array
  begin: Array
  block_at: Array
  step: Array
  spans: Array
  blocks: Array
  ended: Array
  gap: Array
  calls: Array
  finished: Array


def empty(slots: int, tokens: int) -> State:
  """Idle slots of up to ``tokens`` tokens."""
  zeros = lambda *shape: jnp.zeros(shape, jnp.int32)
  return State(zeros(slots, tokens), *(zeros(slots) for _ in State._fields[1:]))


def window(state: State, rules: Rules, width: int) -> tuple[Array, Array, Array]:
  """(token, position, k_end) of the rows' windows, int32 [B, W].

  Token i of a window attends to the window's tokens 0 .. k_end[i]-1, beside the cache; 0 beyond
  the window's end. With a begin token b and a span o o o (1 = attends to):

          b o o o     k_end
      b   1 . . .     1       lead
      o   1 1 1 1     4
      o   1 1 1 1     4
      o   1 1 1 1     4
  """
  index = jnp.arange(width)
  position = state.known[:, None] + index
  token = jnp.take_along_axis(state.token, position, axis=1, mode='clip')
  column = lambda x: x[:, None]
  size = column(state.length - state.known)
  if rules.published:
    k_end = run_ends(rules, token, position, column(state.prompt), size)
  else:
    k_end = jnp.where(index < column(state.lead), column(state.lead), size)
  return token, position, jnp.where(index < size, k_end, 0)


def run_ends(rules: Rules, token: Array, position: Array, prompt: Array, size: Array) -> Array:
  """int32 [B, W]: token i attends to tokens 0 .. result[i]-1, by the ids alone: an audio id to the
  end of its run of audio ids, a text id to itself.

  Args:
    rules: vocab and causal_prompt are read.
    token, position: int32 [B, W], consecutive tokens of a row.
    prompt, size: int32 [B, 1], length of the prompt; of the W tokens, how many are real.
  """
  index = jnp.arange(token.shape[1])
  alone = _alone(rules, token, position, prompt) | (index >= size)
  stops = jnp.where(alone, index, token.shape[1]).astype(jnp.int32)
  # The first token behind i that is not of its run.
  after = jnp.pad(lax.cummin(stops, axis=1, reverse=True)[:, 1:], ((0, 0), (0, 1)),
                  constant_values=token.shape[1])
  return jnp.minimum(jnp.where(alone, index + 1, after), size)


def _alone(rules: Rules, token: Array, position: Array, prompt: Array) -> Array:
  """Whether tokens are causal: text ids, and audio of a prompt that the model reads so."""
  text = ~rules.vocab.is_audio(token)
  return text | (position < prompt) if rules.causal_prompt else text


def wanted(state: State, vocab: Vocabulary, token: Array, position: Array) -> Array:
  """bool [B, W]: positions that need a choice: the masks of the open block, or the last token of
  a text row, whose hidden state predicts the next one."""
  column = lambda x: x[:, None]
  masks = (token == vocab.mask) & (position >= column(state.block_at)) & (
      position < column(state.length))
  last = position == column(state.length - 1)
  return jnp.where(column(state.phase == SPAN), masks, last & column(state.phase == TEXT))


def places(state: State, sampling_params: SamplingParams, position: Array) -> Place:
  """Constraints on the choice at each position of the windows, and names of its draw; [B, W]."""
  column = lambda x: jnp.broadcast_to(x[:, None], position.shape)
  in_span = column(state.phase == SPAN)
  # A draw is named by what it decides, never by its row or launch, so that batching does not
  # change it: in text by the index in the answer; in a span by span, block, step and index.
  text = position + 1 - column(state.prompt)
  pick = lambda span, other: jnp.where(in_span, column(span), other)
  return Place(
      in_span=in_span,
      may_end=position - column(state.begin) >= column(sampling_params.min_span),
      may_begin=column(state.gap >= sampling_params.text_gap),
      span=pick(1 + state.begin - state.prompt + 1, 0),
      block=pick(state.block_at - state.begin, text), step=pick(state.step, 0),
      position=jnp.where(in_span, position - column(state.block_at), 0))


def advance(state: State, sampling_params: SamplingParams, rules: Rules, width: int, choice: Choice,
            want: Array) -> State:
  """The rows after the choices of one step are taken.

  Args:
    state, sampling_params: of the rows, [B].
    rules: vocab, mode, published and causal_prompt are read.
    width: W.
    choice, want: [B, W].
  """
  in_span = state.phase == SPAN
  after_text, opens = _text(state, rules, width, choice)
  after_span, closes, resolved = _span(state, sampling_params, rules, width, choice, want)
  after = _where(in_span, after_span, after_text)
  opens &= ~in_span & (after.length < sampling_params.max_tokens)
  after = _where(opens, _open(after), after)
  closes &= in_span
  after = _grow(after, sampling_params, rules, opens | in_span & resolved & ~closes, closes)
  after = after._replace(calls=after.calls + 1)
  return _where(state.phase != IDLE, after, state)


def begin_answer(state: State, sampling_params: SamplingParams, rules: Rules) -> State:
  """Rows of mode 'nar': the complete answer is one span after the prompt's last token."""
  every = jnp.ones(state.phase.shape, bool)
  return _grow(_open(state), sampling_params, rules, every, ~every)


def _where(row: Array, a: State, b: State) -> State:
  pick = lambda x, y: jnp.where(row.reshape(-1, *[1] * (x.ndim - 1)), x, y)
  return jax.tree.map(pick, a, b)


def _text(state: State, rules: Rules, width: int, choice: Choice) -> tuple[State, Array]:
  """Append one text token; (state, whether it is a begin token and so opens a span)."""
  vocab = rules.vocab
  last = jnp.clip(state.length - 1 - state.known, 0, width - 1)
  chosen = jnp.take_along_axis(choice.token, last[:, None], axis=1)[:, 0]
  finished = chosen == vocab.im_end
  known = state.length
  if rules.published:
    # An audio id belongs to the run before it, which is not final then.
    index = jnp.arange(state.token.shape[1])
    column = lambda x: x[:, None]
    alone = _alone(rules, state.token, index, column(state.prompt))
    behind = (index >= column(state.known)) & (index < column(state.length))
    run = jnp.max(jnp.where(behind & alone, index + 1, column(state.known)), axis=1)
    known = jnp.where(vocab.is_audio(chosen), run, known)
  state = state._replace(
      token=_appended(state, chosen), length=state.length + 1, known=known,
      lead=jnp.ones_like(state.lead), gap=state.gap + 1, event=jnp.zeros_like(state.event),
      finished=finished.astype(jnp.int32), phase=jnp.where(finished, IDLE, TEXT))
  opens = vocab.is_begin(chosen) if rules.mode == 'hybrid' else jnp.zeros_like(finished)
  return state, opens


def _appended(state: State, chosen: Array) -> Array:
  """``token`` with ``chosen`` [B] behind each row's last token."""
  here = jnp.arange(state.token.shape[1]) == state.length[:, None]
  return jnp.where(here, chosen[:, None], state.token)


def _span(state: State, sampling_params: SamplingParams, rules: Rules, width: int, choice: Choice,
          want: Array) -> tuple[State, Array, Array]:
  """Commit some masks of the block; (state, whether the span has its end token, whether the
  block is done)."""
  vocab = rules.vocab
  index = jnp.arange(state.token.shape[1])
  take = unmasking.accept(sampling_params, choice.score, choice.confidence, choice.entropy, want,
                          state.length - state.block_at, state.step)
  # From window coordinates back to positions of the rows.
  offset = jnp.clip(index - state.known[:, None], 0, width - 1)
  fresh = jnp.take_along_axis(jnp.where(take, choice.token, -1), offset, axis=1)
  inside = (index >= state.block_at[:, None]) & (index < state.length[:, None])
  token = jnp.where(inside & (fresh >= 0), fresh, state.token)
  is_end = (token == vocab.im_end) if rules.mode == 'nar' else vocab.is_end(token)
  first = lambda flags: jnp.min(jnp.where(inside & flags, index, index.size), axis=1)
  mask, end = first(token == vocab.mask), first(is_end)
  # An end token closes the span once no mask is left before it; what follows is cut off.
  closes, resolved = end < mask, mask == index.size
  if rules.published:
    size = state.length - state.block_at
    last = state.step + 1 >= jnp.minimum(sampling_params.steps, size)
    closes, resolved = closes | last & (end < index.size), resolved | last
  state = state._replace(token=token, step=state.step + 1, event=jnp.zeros_like(state.event),
                         length=jnp.where(closes, end + 1, state.length))
  return state, closes, resolved


def _open(state: State) -> State:
  """The last token opens a span."""
  begin = state.length - 1
  return state._replace(phase=jnp.full_like(state.phase, SPAN), begin=begin, known=begin,
                        lead=jnp.ones_like(begin), spans=state.spans + 1,
                        blocks=jnp.zeros_like(state.blocks), event=state.event | OPENED)


def _grow(state: State, sampling_params: SamplingParams, rules: Rules, more: Array,
          closes: Array) -> State:
  """Append a block of masks, close a span, or finish the request.

  Args:
    state, sampling_params, rules: as for ``advance``.
    more: bool [B], rows that need another block.
    closes: bool [B], rows whose span has its end token.

  One position of every span is reserved for its end token. Where no mask fits beside it, the
  end token is appended instead, and the span is closed by force. The published loop does neither.
  """
  if rules.published:
    return _grow_published(state, sampling_params, more, closes, rules.vocab.mask)
  vocab = rules.vocab
  nar = rules.mode == 'nar'
  room = sampling_params.max_tokens - state.length
  limit = room if nar else sampling_params.max_span - (state.length - state.begin - 1)
  masks = jnp.minimum(sampling_params.block, jnp.minimum(limit, room) - 1)
  forced = more & (masks < 1)
  begin = jnp.take_along_axis(state.token, jnp.maximum(state.begin, 0)[:, None], axis=1)[:, 0]
  end = jnp.where(begin == vocab.begin_of_audio, vocab.end_of_chunk, vocab.end_of_last)
  fill = jnp.where(forced, jnp.full_like(end, vocab.im_end) if nar else end, vocab.mask)
  added = jnp.where(forced, 1, jnp.where(more, masks, 0))
  index = jnp.arange(state.token.shape[1])
  fresh = (index >= state.length[:, None]) & (index < (state.length + added)[:, None])
  block = more & ~forced
  closed = closes | forced
  length = state.length + added
  # A closed span stays in the window; the next text step caches it, if there is one.
  full = (length >= sampling_params.max_tokens) & ((state.phase == TEXT) | closed)
  done = full | (closed if nar else False) | (state.phase == IDLE)
  return state._replace(
      token=jnp.where(fresh, fill[:, None], state.token), length=length,
      block_at=jnp.where(block, state.length, state.block_at),
      step=jnp.where(block, 0, state.step), blocks=state.blocks + block,
      ended=jnp.where(closed, closes.astype(jnp.int32), state.ended),
      gap=jnp.where(closed, 0, state.gap),
      finished=jnp.where(closes, 1, state.finished) if nar else state.finished,
      phase=jnp.where(done, IDLE, jnp.where(closed, TEXT, state.phase)),
      event=state.event | jnp.where(block, BLOCK, 0) | jnp.where(closed, CLOSED, 0)
      | jnp.where(done, DONE, 0))


def _grow_published(state: State, sampling_params: SamplingParams, more: Array, closes: Array,
                    mask: int) -> State:
  """``_grow`` of the published loop: the length of an answer is checked before every text step, and
  in a span only after so many blocks as ``max_span`` has."""
  blocks = -(-sampling_params.max_span // sampling_params.block)
  full = state.length >= sampling_params.max_tokens
  stops = more & full & (state.blocks > 0) & (state.blocks % blocks == 0)
  block = more & ~stops
  index = jnp.arange(state.token.shape[1])
  length = state.length + jnp.where(block, sampling_params.block, 0)
  fresh = (index >= state.length[:, None]) & (index < length[:, None])
  left = closes | stops
  done = stops | full & (closes | (state.phase == TEXT)) | (state.phase == IDLE)
  return state._replace(
      token=jnp.where(fresh, mask, state.token), length=length,
      block_at=jnp.where(block, state.length, state.block_at),
      step=jnp.where(block, 0, state.step), blocks=state.blocks + block,
      ended=jnp.where(left, closes.astype(jnp.int32), state.ended),
      gap=jnp.where(closes, 0, state.gap),
      phase=jnp.where(done, IDLE, jnp.where(closes, TEXT, state.phase)),
      event=state.event | jnp.where(block, BLOCK, 0) | jnp.where(left, CLOSED, 0)
      | jnp.where(done, DONE, 0))


def score(rules: Rules, head: sampling.Head, sampling_params: SamplingParams, state: State,
          hidden: Array, uncond: Array | None, position: Array,
          want: Array) -> Choice:
  """Choices [B, W] at the positions of ``want``; zeros elsewhere.

  Args:
    rules, head: of the output head.
    sampling_params, state: of the rows, [B].
    hidden: [B, W, E].
    uncond: [B, W, E], hidden states of guidance's unconditional pass; None without guidance.
    position: int32 [B, W].
    want: bool [B, W].
  """
  rows, width = want.shape
  flat = lambda x: x.reshape(rows * width, *x.shape[2:])
  row = jnp.repeat(jnp.arange(rows), width)
  place = jax.tree.map(flat, places(state, sampling_params, position))
  choice = sampling.choose(
      rules, head, jax.tree.map(lambda x: x[row], sampling_params), flat(hidden),
      None if uncond is None else flat(uncond), flat(want), place)
  return jax.tree.map(lambda x: x.reshape(rows, width), choice)
