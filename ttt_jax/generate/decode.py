"""Generation, the plain way: the whole sequence at every step, many requests side by side.

TTT.md section 6. Text is sampled token by token. A begin token opens an audio span: a
block of masks is appended, each step predicts all of them and commits the most confident
ones (low-confidence remasking), and when the block is full the span is cut at its first
end token, or another block follows. Requests never see each other: the same request
gives the same tokens in any batch.

Choices made where the method is silent: inside a span only codes and end tokens may be
chosen, outside only text-class ids; confidence is the full-vocabulary softmax
probability of the choice without temperature; equal confidence goes to the left.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from ttt_jax import batch as batches
from ttt_jax.config import GenerateConfig
from ttt_jax.errors import UserError
from ttt_jax.generate.sampling import Choice, choose
from ttt_jax.model import staircase
from ttt_jax.model.transformer import Model, Params
from ttt_jax.objective.diffusion import commit_counts
from ttt_jax.vocab import Vocabulary

_LENGTH_STEP = 64  # sequence lengths are rounded up to this: few compiled programs


@dataclasses.dataclass
class Span:
  """One generated audio span.

  Attributes:
    start: index of its first token in Answer.ids.
    length: tokens, end token included.
    ended: True if the model ended it, False if the limit did.
    blocks: blocks of masks used.
  """
  start: int
  length: int
  ended: bool
  blocks: int


@dataclasses.dataclass
class Answer:
  """What was generated for one prompt.

  Attributes:
    ids: int32 [n], generated ids (without the prompt).
    spans: audio spans, in order.
    finished: True if im_end was generated, False at the length limit.
    calls: forward passes this request took part in.
  """
  ids: np.ndarray
  spans: list[Span]
  finished: bool
  calls: int


class _Request:
  """One request's place in the algorithm; knows nothing of the others."""

  def __init__(self, number: int, prompt: np.ndarray, vocab: Vocabulary,
               config: GenerateConfig, mode: str):
    self.number, self.vocab, self.config, self.mode = number, vocab, config, mode
    self.prompt = len(prompt)
    self.ids = np.array(prompt, np.int32)
    self.spans: list[Span] = []
    self.begin = -1        # index of the begin token that opened the span
    self.block: slice | None = None
    self.counts: list[int] = []
    self.step = 0
    self.done = self.finished = False
    self.calls = 0
    if self.room < 1:
      self.done = True
    elif mode == 'nar':
      self._open(self.prompt - 1)

  @property
  def room(self) -> int:
    return self.config.max_tokens - len(self.ids)

  @property
  def in_span(self) -> bool:
    return self.block is not None

  @property
  def query(self) -> range:
    """Indices whose logits this step needs."""
    return range(self.block.start, self.block.stop) if self.in_span else range(
        len(self.ids) - 1, len(self.ids))

  @property
  def draw(self) -> tuple[int, int, int]:
    """Names this step's random draw, whatever else is in the batch."""
    if not self.in_span:
      return (0, len(self.ids) - self.prompt, 0)
    return (1 + self.begin - self.prompt + 1, self.block.start - self.begin, self.step)

  def _open(self, begin: int) -> None:
    self.begin = begin
    self.spans.append(Span(begin + 1 - self.prompt, 0, False, 0))
    self._append_block()

  def _append_block(self) -> None:
    # One place is kept for the end token, so that a span at its limit can be closed.
    used = len(self.ids) - self.begin - 1
    limit = self.config.max_tokens if self.mode == 'nar' else self.config.max_span
    masks = min(self.config.block, limit - used - 1, self.room - 1)
    if masks < 1:
      self._close_by_force()
      return
    start = len(self.ids)
    self.ids = np.concatenate([self.ids, np.full(masks, self.vocab.mask, np.int32)])
    self.block = slice(start, start + masks)
    self.counts = [n for n in commit_counts(masks, self.config.steps) if n]
    self.step = 0
    self.spans[-1].blocks += 1

  def _close_by_force(self) -> None:
    last = self.ids[self.begin] != self.vocab.begin_of_audio
    end = self.vocab.im_end if self.mode == 'nar' else (
        self.vocab.end_of_last if last else self.vocab.end_of_chunk)
    self.ids = np.append(self.ids, np.int32(end))
    self._close(ended=False)

  def _close(self, ended: bool) -> None:
    span = self.spans[-1]
    span.ended, span.length = ended, len(self.ids) - self.begin - 1
    self.block = None
    self.done = self.mode == 'nar' or self.room < 1
    self.finished = self.mode == 'nar' and ended

  def advance(self, chosen: np.ndarray, confidence: np.ndarray) -> None:
    """Take this step's predictions, one per index of ``query``."""
    self.calls += 1
    if not self.in_span:
      self._next_text(int(chosen[0]))
      return
    block = self.ids[self.block]
    masked = np.flatnonzero(block == self.vocab.mask)
    order = masked[np.argsort(-confidence[masked], kind='stable')]
    commit = order[:self.counts[self.step]]
    block[commit] = chosen[commit]
    self.step += 1
    if self.step == len(self.counts):
      self._finish_block()

  def _next_text(self, token: int) -> None:
    self.ids = np.append(self.ids, np.int32(token))
    if token == self.vocab.im_end:
      self.done = self.finished = True
    elif self.mode == 'hybrid' and self.vocab.is_begin(token) and self.room > 0:
      self._open(len(self.ids) - 1)
    elif self.room < 1:
      self.done = True

  def _finish_block(self) -> None:
    block = self.ids[self.block]
    ends = np.flatnonzero(block == self.vocab.im_end if self.mode == 'nar'
                          else self.vocab.is_end(block))
    if ends.size:
      self.ids = self.ids[:self.block.start + ends[0] + 1]
      self._close(ended=True)
    else:
      self._append_block()

  def answer(self) -> Answer:
    return Answer(self.ids[self.prompt:], self.spans, self.finished, self.calls)


@functools.partial(jax.jit, static_argnames=('model', 'vocab', 'config', 'mode', 'prompt_audio'))
def _predict(model: Model, vocab: Vocabulary, config: GenerateConfig, mode: str,
             prompt_audio: str, params: Params, rows: batches.Batch, query: jax.Array,
             in_span: jax.Array, begin: jax.Array, draw: jax.Array) -> Choice:
  """One forward pass of rows [B, T] and a choice at each query [B, W]."""
  def logits_of(batch):
    k_start, k_end = staircase.key_ranges(batch, mode, prompt_audio)
    hidden = model.hidden(params, batch.token, batch.position, k_start, k_end)
    return model.logits(params, jnp.take_along_axis(hidden, query[..., None], axis=1))

  logits = logits_of(rows)
  if config.guidance:
    # The published null context: every id before the span becomes a mask. Masks are
    # audio, so prefix and span are one run and read each other in both directions.
    index = jnp.arange(rows.token.shape[1])
    prefix = index <= begin[:, None]
    real = (rows.document > 0).astype(jnp.int32)
    null = rows._replace(token=jnp.where(prefix, vocab.mask, rows.token), span=real,
                         supervised=real)
    uncond = logits_of(null)
    logits = jnp.where(in_span[:, None, None],
                       uncond + (1.0 + config.guidance) * (logits - uncond), logits)
  return choose(logits, vocab, config, mode, in_span, draw)


def generate(model: Model, params: Params, vocab: Vocabulary, prompts: list[np.ndarray],
             config: GenerateConfig, mode: str = 'hybrid', prompt_audio: str = 'bidirectional',
             numbers: list[int] | None = None) -> list[Answer]:
  """Answer prompts, all at once.

  Args:
    model, params, vocab: the decoder.
    prompts: ids of each request, up to and including the assistant's header.
    config: policy.
    mode: 'hybrid', or a baseline's own decoding: 'ar' emits every token as text is, 'nar'
      fills blocks of masks until im_end.
    prompt_audio: as the model was trained.
    numbers: name each request's random draws; 0, 1, ... if None.

  Raises:
    UserError: an empty prompt, an id outside the vocabulary, a prompt with no room left.
  """
  for i, prompt in enumerate(prompts):
    _check(prompt, vocab, config, f'prompt {i + 1}')
  numbers = list(range(len(prompts))) if numbers is None else numbers
  requests = [_Request(n, p, vocab, config, mode) for n, p in zip(numbers, prompts)]
  width = config.block if mode != 'ar' else 1
  while any(not request.done for request in requests):
    active = [request for request in requests if not request.done]
    # The batch keeps its size while requests finish: one program per length.
    rows, query, in_span, begin, draw = _arrange(requests, vocab, width)
    choice = _predict(model, vocab, config, mode, prompt_audio, params, rows, query, in_span,
                      begin, draw)
    chosen, confidence = np.asarray(choice.token), np.asarray(choice.confidence)
    for row, request in enumerate(requests):
      if request in active:
        n = len(request.query)
        request.advance(chosen[row, :n], confidence[row, :n])
  return [request.answer() for request in requests]


def _check(prompt: np.ndarray, vocab: Vocabulary, config: GenerateConfig, where: str) -> None:
  prompt = np.asarray(prompt)
  if not prompt.size:
    raise UserError(f'{where} is empty; a request needs at least one token.')
  if prompt.min() < 0 or prompt.max() >= vocab.size:
    bad = int(prompt.min() if prompt.min() < 0 else prompt.max())
    raise UserError(f'{where} holds id {bad}, outside the vocabulary (0..{vocab.size - 1}).')
  if len(prompt) >= config.max_tokens:
    raise UserError(f'{where} has {len(prompt)} tokens; generate.max_tokens={config.max_tokens} '
                    'leaves no room for an answer.')


def _arrange(requests: list[_Request], vocab: Vocabulary, width: int):
  """Requests -> padded rows and query indices."""
  longest = max(len(request.ids) for request in requests)
  length = -(-longest // _LENGTH_STEP) * _LENGTH_STEP
  rows, query = [], np.zeros((len(requests), width), np.int32)
  for i, request in enumerate(requests):
    supervised = np.arange(len(request.ids)) >= request.prompt
    rows.append(batches.make_row(vocab, [(1, request.ids, supervised)], length))
    if not request.done:
      query[i, :len(request.query)] = request.query
  in_span = np.array([request.in_span for request in requests])
  begin = np.array([request.begin for request in requests], np.int32)
  draw = np.array([(request.number, *request.draw) for request in requests], np.int32)
  return batches.stack(rows), query, in_span, begin, draw
