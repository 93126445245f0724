"""Answering requests: slots, admission, and which rows make the next steps together.

The device runs the algorithm (machine.py) until some row needs the host; the host then reads a
few numbers, reports what is final, gives free slots to waiting requests, and picks the next
group of rows: those that need the same program. Text rows go first, so that requests
gather in the same phase, but nobody waits for more than ``_PATIENCE`` turns.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

from ttt_jax.config import GenerateConfig
from ttt_jax.errors import UserError
from ttt_jax.generate import compiled, decode_step, prefix_cache, sampling, sampling_params
from ttt_jax.generate.decode_step import State
from ttt_jax.generate.outputs import Answer, Event, Span
from ttt_jax.model import kv_cache
from ttt_jax.model.transformer import Model, Params
from ttt_jax.tokens.vocab import Vocabulary

_PATIENCE = 8      # launches of other rows that a row waits for at most
_UNTIL_EVENT = 1_000_000  # steps: until an event
_LONGEST = 512     # tokens of a prompt that are read at once, unless a span is longer
_NULL_STEP = 256   # the published guidance's rows are rounded up to this


@dataclasses.dataclass
class _Request:
  number: int
  prompt: np.ndarray
  config: GenerateConfig
  name: int              # of its random draws
  text: prefix_cache.Text      # the prompt, and what its tokens see
  seen: int = 0          # tokens, prompt included, that were reported
  spans: list[Span] = dataclasses.field(default_factory=list)
  opened: int = 0        # spans
  open: bool = False
  waited: int = 0
  length: int = 0
  known: int = 0
  phase: int = decode_step.TEXT
  since: float = 0.0
  first_audio: float | None = None


class Engine:
  """Answers requests on the devices that hold the parameters; see the module's docstring."""

  def __init__(self, model: Model, params: Params, vocab: Vocabulary, config: GenerateConfig, *,
               mode: str = 'hybrid', prompt_audio: str = 'bidirectional',
               mixed: bool | None = None):
    """Make room for ``config.slots`` requests of up to ``config.max_tokens`` tokens.

    Args:
      model, params, vocab: the decoder. On a mesh call this, and run, under jax.set_mesh.
      config: the sampling parameters of requests that bring none, and the engine's own settings.
      mode: 'hybrid', or a baseline's own decoding: 'ar' emits every token as text is, 'nar'
        fills blocks of masks until im_end.
      prompt_audio: as the model was trained.
      mixed: text rows share wide windows with spans. Default: on accelerators, where a
        step of few tokens is bound by reading the weights; not on a CPU.

    Raises:
      UserError: the cache would need more than ``config.memory``, or than is free.
    """
    self.model, self.vocab, self.config, self.mode = model, vocab, config, mode
    self.prompt_audio = prompt_audio
    self.mixed = model.platform != 'cpu' if mixed is None else mixed
    needed = kv_cache.size_in_bytes(model.config, config.slots, config.max_tokens)
    memory = config.memory * 2**30 or kv_cache.free_bytes()
    if needed > memory:
      raise UserError(
          f'config keys generate.slots={config.slots} and generate.max_tokens='
          f'{config.max_tokens} need {needed / 2**30:.2f} GiB for keys and values, but '
          f'{memory / 2**30:.2f} GiB are free for them; lower one of the two, or '
          'raise generate.memory if that is set.')
    # Rounded, so that near sizes share programs; a window never reaches beyond the row.
    tokens = kv_cache.tokens_of(config.max_tokens)
    self._widths = compiled.widths(tokens)
    room = tokens + self._widths[-1]
    self._whole = bool(not jax.sharding.get_abstract_mesh().empty
                       and jax.sharding.get_abstract_mesh().size > 1)
    self._rules = sampling.Rules.fitting(vocab, mode, config.softmax, model.platform, self._whole)
    self._params = _cast(params, model.config.dtype)
    self._head = sampling.make_head(self._rules, model.head_table(self._params))
    self._cache = jax.jit(kv_cache.empty, static_argnums=(0, 1, 2))(
        model.config, config.slots, config.max_tokens)
    self._state = decode_step.empty(config.slots, room)
    self._sampling_params = jax.tree.map(jnp.asarray, sampling_params.nothing(config.slots))
    self._held = [prefix_cache.NOTHING] * config.slots  # what the caches of the slots hold
    self._waiting: list[_Request] = []
    self._slots: list[_Request | None] = [None] * config.slots
    self._count = 0
    self.launches = 0
    self.read = 0  # tokens of prompts

  # -- requests -------------------------------------------------------------------------

  def submit(self, prompt: np.ndarray, config: GenerateConfig | None = None,
             name: int | None = None, where: str = '') -> int:
    """Queue a request; its number.

    Args:
      prompt: ids up to and including the assistant's header.
      config: its sampling parameters; the engine's own settings in it are ignored.
      name: names its random draws; its number if None.
      where: what error messages call it.

    Raises:
      UserError: an empty prompt, an id outside the vocabulary, no room for an answer.
    """
    config = config or self.config
    number = self._count
    prompt = np.asarray(prompt, np.int32)
    self._check(prompt, config, where or f'prompt {number + 1}')
    self._count += 1
    self._waiting.append(_Request(
        number, prompt, config, number if name is None else name,
        prefix_cache.prompt(self.vocab, prompt, self.mode, self.prompt_audio),
        seen=prompt.size, length=prompt.size))
    if config.rule == 'prior' and not self._head.prior.any():
      self._head = self._head._replace(prior=self._prior())
    return number

  def _check(self, prompt: np.ndarray, config: GenerateConfig, where: str) -> None:
    if not prompt.size:
      raise UserError(f'{where} is empty; a request needs at least one token.')
    if prompt.min() < 0 or prompt.max() >= self.vocab.size:
      bad = int(prompt.min() if prompt.min() < 0 else prompt.max())
      raise UserError(f'{where} holds id {bad}, outside the vocabulary (0..{self.vocab.size - 1}).')
    if self.mode == 'nar' and self.prompt_audio != 'causal' and self.vocab.is_audio(prompt[-1]):
      raise UserError(f'{where} ends in audio; a baseline of mode nar starts after text.')
    if config.max_tokens > self.config.max_tokens:
      raise UserError(f'{where} asks for generate.max_tokens={config.max_tokens}, but the engine '
                      f'was made for {self.config.max_tokens}.')
    if prompt.size >= config.max_tokens:
      raise UserError(f'{where} has {prompt.size} tokens; generate.max_tokens='
                      f'{config.max_tokens} leaves no room for an answer.')

  def events(self, eager: bool = False) -> Iterator[Event]:
    """Run until every request is answered; events as they come.

    Args:
      eager: come back after every step, so that tokens are reported as soon as they are
        final; otherwise when something happens to a request.
    """
    while self._waiting or any(self._slots):
      while self._waiting and None in self._slots:
        self._admit(self._waiting.pop(0))
      yield from self._launch(1 if eager else _UNTIL_EVENT)

  def generate(self, prompts: Sequence[np.ndarray],
               configs: Sequence[GenerateConfig] | None = None,
               names: Sequence[int] | None = None) -> list[Answer]:
    """Answer prompts; the answers in their order."""
    numbers = [self.submit(prompt, configs and configs[i], names and names[i])
               for i, prompt in enumerate(prompts)]
    answers = {event.request: event.answer for event in self.events() if event.kind == 'done'}
    return [answers[number] for number in numbers]

  # -- reading a prompt -------------------------------------------------------------------

  def _admit(self, request: _Request) -> None:
    """Read the prompt but for its last token, or its last bidirectional group, into the slot
    that has most of it, or else the one that holds least."""
    prompt, end = request.text
    tail = prompt.size - 1
    while tail and end[tail - 1] == prompt.size:
      tail -= 1
    free = [slot for slot, held in enumerate(self._slots) if held is None]
    have = {slot: prefix_cache.shared(self._held[slot], request.text, tail) for slot in free}
    slot = max(free, key=lambda slot: (have[slot], -self._held[slot].ids.size))
    at = have[slot]
    self.read += tail - at
    self._held[slot] = prefix_cache.NOTHING  # whatever interrupts the reading
    while at < tail:
      at += self._read(slot, request.text, at, tail)
    span = self.mode == 'nar'
    state = jax.tree.map(lambda x: np.zeros(x.shape[1:], np.int32), decode_step.State(*(
        jax.ShapeDtypeStruct(x.shape, x.dtype) for x in self._state)))
    state.token[:prompt.size] = prompt
    known = prompt.size - 1 if span else tail
    row = state._replace(
        length=np.int32(prompt.size), known=np.int32(known),
        lead=np.int32(prompt.size - known), phase=np.int32(decode_step.TEXT),
        prompt=np.int32(prompt.size), begin=np.int32(-1), gap=np.int32(2**30))
    settings = jax.tree.map(lambda x: x[0], sampling_params.make(
        [request.config], [request.name], self.config.max_tokens))
    if span:
      rows = jax.tree.map(lambda x: jnp.asarray(x)[None], (row, settings))
      row = jax.tree.map(lambda x: x[0], decode_step.begin_answer(*rows, self._rules))
      request.phase = int(row.phase)
    request.length, request.known, request.since = int(row.length), known, time.monotonic()
    self._slots[slot] = request
    self._state, self._sampling_params = compiled.admit(self._state, self._sampling_params,
                                                        np.int32(slot), row, settings)

  def _read(self, slot: int, text: prefix_cache.Text, at: int, end: int) -> int:
    """Cache a piece from ``at`` on, without cutting a bidirectional group; its length."""
    stop = compiled.piece_end(text.end, at, end, _LONGEST)
    size = stop - at
    width = self._fit_piece(size)
    token, k_end = np.zeros(width, np.int32), np.zeros(width, np.int32)
    token[:size] = text.ids[at:stop]
    k_end[:size] = text.end[at:stop] - at
    rows = self.config.slots if self._whole else 1
    place = slot if self._whole else 0
    fill = lambda x: np.stack([x if row == place else np.zeros_like(x) for row in range(rows)])
    slots = np.arange(rows) if self._whole else np.array([slot])
    self._cache = compiled.prefill(
        self.model, self._params, self._cache, slots.astype(np.int32),
        fill(np.int32(at)), fill(token), fill(k_end))
    return size

  def _fit(self, size: int) -> int:
    return next(width for width in self._widths if width >= size)

  def _fit_piece(self, size: int) -> int:
    """Pieces of prompts come in fewer sizes: every other window, but not 1."""
    return next(width for width in (*self._widths[1::2], self._widths[-1]) if width >= size)

  # -- steps ------------------------------------------------------------------------------

  def _null(self, request: _Request) -> str:
    guided = request.config.guidance > 0 and self.mode != 'ar'
    return self.config.guidance_context if guided else ''

  def _pick(self) -> tuple[list[int], int, str]:
    """(slots, window, guidance) of the next launch."""
    busy = [slot for slot, held in enumerate(self._slots) if held]
    need = {slot: self._fit(self._slots[slot].length - self._slots[slot].known) for slot in busy}
    kind = {
        slot: self._null(self._slots[slot]) if self._slots[slot].phase == decode_step.SPAN else ''
        for slot in busy
    }
    if self.mixed or self._whole:
      null = max((kind[slot] for slot in busy), default='')
      return busy, max(need.values()), null
    first = min(busy, key=lambda slot: (self._slots[slot].waited < _PATIENCE, need[slot], slot))
    group = [slot for slot in busy if (need[slot], kind[slot]) == (need[first], kind[first])]
    return group, need[first], kind[first]

  def _launch(self, max_steps: int) -> Iterator[Event]:
    group, width, null = self._pick()
    for slot, held in enumerate(self._slots):
      if held:
        held.waited = 0 if slot in group else held.waited + 1
    if null == 'published':
      longest = max(self._slots[slot].length for slot in group)
      block = max(self._slots[slot].config.block for slot in group)
      null = min(-(-(longest + block + 1) // _NULL_STEP) * _NULL_STEP,
                 self._state.token.shape[1])
    slots = None
    if not self._whole:
      slots = np.full(compiled.rows(len(group), self.config.slots), self.config.slots, np.int32)
      slots[:len(group)] = group
    self._state, self._cache, rows = compiled.steps(
        self.model, self._rules, width, null, self.mixed or self._whole, self._params,
        self._head, self._state, self._cache, self._sampling_params, slots, np.int32(max_steps))
    self.launches += 1
    rows = jax.tree.map(np.asarray, rows)
    for number, slot in enumerate(group):
      yield from self._events_of(slot, jax.tree.map(
          lambda x: x[slot if slots is None else number], rows))

  def _events_of(self, slot: int, row: State) -> Iterator[Event]:
    """Compare a request with what is known of it, and report what is new."""
    request = self._slots[slot]
    request.length, request.known = int(row.length), int(row.known)
    request.phase = int(row.phase)
    closing = request.open or row.spans > request.opened
    open_now = request.phase == decode_step.SPAN
    closed = None
    if closing and not open_now:
      start = int(row.begin) + 1
      # The first text token after the span may be there already.
      end = start + _span_length(row.token[start:request.length], self.vocab, self.mode)
      closed = Span(start - request.prompt.size, end - start, bool(row.ended), int(row.blocks))
    request.opened, request.open = int(row.spans), open_now
    final = request.length
    if open_now:
      masks = np.flatnonzero(row.token[request.seen:request.length] == self.vocab.mask)
      final = request.seen + int(masks[0]) if masks.size else final
    yield from self._tokens(request, row.token[request.seen:final])
    request.seen = max(request.seen, final)
    if closed:
      request.spans.append(closed)
      yield Event(request.number, 'span', span=closed)
    if request.phase == decode_step.IDLE:
      self._slots[slot] = None
      self._held[slot] = prefix_cache.answered(
          self.vocab, request.text, row.token[request.prompt.size:request.length],
          request.known, self.mode)
      answer = Answer(row.token[request.prompt.size:request.length].copy(), request.spans,
                      bool(row.finished), int(row.calls), time.monotonic() - request.since,
                      request.first_audio)
      yield Event(request.number, 'done', answer=answer)

  def _tokens(self, request: _Request, ids: np.ndarray) -> Iterator[Event]:
    """Runs of text and of audio."""
    audio = np.asarray(self.vocab.is_audio(ids))
    for run in np.split(np.arange(ids.size), np.flatnonzero(np.diff(audio)) + 1):
      if run.size:
        kind = 'audio' if audio[run[0]] else 'text'
        if kind == 'audio' and request.first_audio is None:
          request.first_audio = time.monotonic() - request.since
        yield Event(request.number, kind, ids=ids[run])

  def _prior(self) -> jax.Array:
    """Mean distribution of a first block that knows nothing but its begin token, in logs."""
    block, vocab = self.config.block, self.vocab
    token = np.full((1, 1 + block), vocab.mask, np.int32)
    token[0, 0] = vocab.begin_of_audio
    end = np.full((1, 1 + block), 1 + block, np.int32)
    end[0, 0] = 1
    position = np.arange(1 + block, dtype=np.int32)[None]

    @jax.jit
    def run(params):
      hidden = self.model.hidden(params, token, position, np.zeros_like(end), end)[:, 1:]
      probability = jax.nn.softmax(self.model.logits(params, hidden), axis=-1).mean((0, 1))
      missing = self._head.table.shape[0] - probability.size
      return jnp.pad(jnp.log(jnp.maximum(probability, 1e-8)), (0, missing))
    return run(self._params)


def _span_length(tokens: np.ndarray, vocab: Vocabulary, mode: str) -> int:
  """Tokens up to the span's end, which is there."""
  ends = tokens == vocab.im_end if mode == 'nar' else vocab.is_end(tokens)
  return int(np.flatnonzero(ends)[0]) + 1


def _cast(params: Params, dtype: str) -> Params:
  """Matrices in the compute dtype, once; vectors stay float32."""
  if dtype == 'float32':
    return params
  return jax.jit(lambda tree: jax.tree.map(
      lambda x: x.astype(dtype) if x.ndim > 1 else x, tree))(params)


def generate(model: Model, params: Params, vocab: Vocabulary, prompts: Sequence[np.ndarray],
             config: GenerateConfig, mode: str = 'hybrid', prompt_audio: str = 'bidirectional',
             numbers: Sequence[int] | None = None) -> list[Answer]:
  """Answer prompts with an engine of their own; see ``Engine``."""
  slots = max(1, min(config.slots, len(prompts)))
  engine = Engine(model, params, vocab, dataclasses.replace(config, slots=slots), mode=mode,
                  prompt_audio=prompt_audio)
  return engine.generate(prompts, None, numbers)
