"""The inference engine: slots, admission of requests, and scheduling of decode steps.

The device runs decode steps (decode_step.py) until some row needs the host. The host then
reads a few integers per row, reports events, admits waiting requests into free slots, and
launches the next group of rows: those that need the same compiled program. Text rows go
first, so that requests gather in the same phase, but no row waits for more than
``_PATIENCE`` launches.
"""

import collections
from collections.abc import Callable, Hashable, Iterator, Sequence
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ttt_jax.config import GenerateConfig
from ttt_jax.errors import UserError
from ttt_jax.generate import compiled, decode_step, prefix_cache, sampling, sampling_params
from ttt_jax.generate.decode_step import State
from ttt_jax.generate.outputs import Answer, Event, Span
from ttt_jax.generate.program_store import ProgramStore, key_of
from ttt_jax.model import kv_cache, sharding
from ttt_jax.model.transformer import Model, Params
from ttt_jax.tokens.vocab import Vocabulary

_PATIENCE = 8             # launches of other rows that a row waits for at most
_UNTIL_EVENT = 1_000_000  # decode steps of a launch: no limit in practice
_LONGEST = 512            # tokens of a prompt that are read at once, unless a span is longer
_NULL_STEP = 256          # rows of the published guidance are rounded up to a multiple of this
_COMPILING = 1e11         # operations that take about as long as compiling a program on a CPU

# Operations that short-lived engines of this process spent on rows without a request, by the
# program that has fewer rows. Compiled programs, too, are kept as long as the process.
_SPENT: collections.Counter[Hashable] = collections.Counter()


@dataclasses.dataclass
class _Request:
  """A request, and the host's copy of what matters of its row.

  Attributes:
    number: as ``Engine.submit`` returned it.
    config: its sampling parameters.
    name: of its random draws.
    prefix: the prompt, and how far each of its tokens sees.
    seen: tokens, prompt included, that were reported.
    spans: closed ones.
    opened, open: spans opened so far; whether one is open.
    waited: launches of other rows since its last step.
    length, known, phase, calls: as in decode_step.State.
    since: time.monotonic() at admission.
    first_audio: seconds from admission to the first final audio token.
    watched: the steps of its blocks are reported.
    answer: int32 [n], its ids so far, with masks where a block is open.
    block_at, step: of the open block that was reported; block_at is -1 if there is none.
  """
  number: int
  prompt: np.ndarray
  config: GenerateConfig
  name: int
  prefix: prefix_cache.Prefix
  seen: int = 0
  spans: list[Span] = dataclasses.field(default_factory=list)
  opened: int = 0
  open: bool = False
  waited: int = 0
  length: int = 0
  known: int = 0
  phase: int = decode_step.TEXT
  calls: int = 0
  since: float = 0.0
  first_audio: float | None = None
  watched: bool = False
  block_at: int = -1
  step: int = 0
  answer: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))


class Engine:
  """Answers requests on the devices that hold the parameters; see the module's docstring.

  Attributes:
    model, vocab, config, mode, prompt_audio: as given.
    launches: calls of ``compiled.steps`` so far.
    read: tokens of prompts that were read so far, without those found in a slot's cache.
    store: of compiled programs; None unless long-lived.
  """

  def __init__(self, model: Model, params: Params, vocab: Vocabulary, config: GenerateConfig, *,
               mode: str = 'hybrid', prompt_audio: str = 'bidirectional',
               mixed: bool | None = None, short_lived: bool = False, long_lived: bool = False):
    """Allocate a cache for ``config.slots`` requests of up to ``config.max_tokens`` tokens.

    Args:
      model, params, vocab: the decoder. On a mesh, call this and every method under jax.set_mesh.
      config: default sampling parameters of requests, and the engine's own settings.
      mode: 'hybrid', or a baseline's decoding: 'ar' generates every token as text, 'nar'
        fills blocks of masks until im_end.
      prompt_audio: as the model was trained.
      mixed: text rows share wide windows with spans. Default: True on accelerators, where a
        step of few tokens is bound by reading the weights; False on a CPU.
      short_lived: the engine answers a few requests and ends. Launches then have all slots as
        rows, idle ones included, which needs one program per window instead of one per window and
        number of rows; but only until the idle rows have cost as much as compiling another program.
      long_lived: the engine answers requests for hours. There are more programs, so that fewer
        positions are computed in vain: windows of whole blocks, and numbers of rows in powers of 2.

    Raises:
      UserError: the cache needs more than ``config.memory``, or more than is free.
    """
    self.model, self.vocab, self.config, self.mode = model, vocab, config, mode
    self.prompt_audio = prompt_audio
    mixed = model.platform != 'cpu' if mixed is None else mixed
    needed = kv_cache.size_in_bytes(model.config, config.slots, config.max_tokens)
    memory = config.memory * 2**30 or kv_cache.free_bytes()
    if needed > memory:
      raise UserError(
          f'config keys generate.slots={config.slots} and generate.max_tokens='
          f'{config.max_tokens} need {needed / 2**30:.2f} GiB for keys and values, but '
          f'{memory / 2**30:.2f} GiB are free for them; lower one of the two, or '
          'raise generate.memory if that is set.')
    # Rounded, so that similar limits share programs; a window never extends beyond the row.
    tokens = kv_cache.tokens_of(_longest(config))
    self._growth = 2 if long_lived else 4
    self._widths = (compiled.widths(tokens, config.block, begin=1) if long_lived else
                    compiled.widths(tokens))
    row_tokens = tokens + self._widths[-1]
    self._on_mesh = sharding.in_use()
    if config.preset == 'published' and mode != 'hybrid':
      raise UserError("config key generate.preset is 'published', which decodes mode 'hybrid', but "
                      f"objective.mode is {mode!r}; use generate.preset='default'.")
    rules = dataclasses.replace(
        sampling.Rules.fitting(vocab, mode, config.softmax, model.platform, self._on_mesh),
        published=config.preset == 'published', causal_prompt=prompt_audio == 'causal')
    self._setup = compiled.Setup(model, rules, mixed or self._on_mesh)
    params = _cast(params, model.config.dtype)
    self._short_lived = short_lived
    self._per_token = 2 * sum(leaf.size for leaf in jax.tree.leaves(params))  # operations
    self._weights = compiled.Weights(params, sampling.make_head(rules, model.head_table(params)))
    cache = jax.jit(kv_cache.empty, static_argnums=(0, 1, 2))(
        model.config, config.slots, config.max_tokens)
    self._pool = _placed(params, compiled.Pool(
        decode_step.empty(config.slots, row_tokens), cache,
        jax.tree.map(jnp.asarray, sampling_params.empty(config.slots))))
    arrays = [(x.shape, str(x.dtype), str(getattr(x, 'sharding', '')))
              for x in jax.tree.leaves((self._weights, self._pool))]
    self._arrays = tuple(arrays)
    self.store = ProgramStore(key_of(
        model.config, model.vocab_size, model.platform, rules, self._setup.mixed, arrays,
        jax.tree.structure((self._weights, self._pool)))) if long_lived else None
    self._cached = [prefix_cache.EMPTY] * config.slots  # tokens in each slot's cache
    self._waiting: list[_Request] = []
    self._slots: list[_Request | None] = [None] * config.slots
    self._count = 0
    self.launches = 0
    self.read = 0

  # -- requests -------------------------------------------------------------------------

  def submit(self, prompt: np.ndarray, config: GenerateConfig | None = None,
             name: int | None = None, where: str = '', watched: bool = False) -> int:
    """Queue a request, and return its number.

    Args:
      prompt: int32 [n], ids up to and including the assistant's header.
      config: its sampling parameters; the engine's own settings in it are ignored.
      name: seeds its random draws together with ``config.seed``; its number if None.
      where: its name in error messages.
      watched: report the steps of its blocks, too (events 'block').

    Raises:
      UserError: an empty prompt, an id outside the vocabulary, or a prompt that reaches
        max_tokens.
    """
    config = config or self.config
    number = self._count
    prompt = np.asarray(prompt, np.int32)
    self.check(prompt, config, where or f'prompt {number + 1}')
    self._count += 1
    self._waiting.append(_Request(
        number, prompt, config, number if name is None else name,
        prefix_cache.of_prompt(self.vocab, prompt, self.mode, self.prompt_audio),
        seen=prompt.size, length=prompt.size, watched=watched))
    head = self._weights.head
    if config.rule == 'prior' and not head.prior.any():
      self._keep_prior()
    return number

  def check(self, prompt: np.ndarray, config: GenerateConfig, where: str) -> None:
    """Raise the errors of ``submit``, and do nothing else; any thread may call this."""
    if not prompt.size:
      raise UserError(f'{where} is empty; a request needs at least one token.')
    if prompt.min() < 0 or prompt.max() >= self.vocab.size:
      bad = int(prompt.min() if prompt.min() < 0 else prompt.max())
      raise UserError(f'{where} holds id {bad}, outside the vocabulary (0..{self.vocab.size - 1}).')
    if self.mode == 'nar' and self.prompt_audio != 'causal' and self.vocab.is_audio(prompt[-1]):
      raise UserError(f"{where} ends in audio; in mode 'nar' a prompt must end in text.")
    if config.max_tokens > self.config.max_tokens:
      raise UserError(f'{where} has generate.max_tokens={config.max_tokens}, but the engine was '
                      f'made for at most {self.config.max_tokens}.')
    if config.preset != self.config.preset or _longest(config) > _longest(self.config):
      raise UserError(
          f'{where} has generate.preset={config.preset!r}, block={config.block} and max_span='
          f'{config.max_span}, but the engine was made for preset {self.config.preset!r}, block='
          f'{self.config.block} and max_span={self.config.max_span}; make another engine.')
    if prompt.size >= config.max_tokens:
      raise UserError(f'{where} has {prompt.size} tokens; generate.max_tokens='
                      f'{config.max_tokens} leaves no room for an answer.')

  def events(self, eager: bool = False) -> Iterator[Event]:
    """Run until every request is answered, and yield events as they happen.

    Args:
      eager: return to the host after every decode step, so that tokens are reported as soon as
        they are final; otherwise only when a row needs the host.
    """
    while self.requests:
      yield from self.step(1 if eager else _UNTIL_EVENT)

  @property
  def requests(self) -> int:
    """Requests that are not answered yet, waiting ones included."""
    return len(self._waiting) + self.active

  @property
  def active(self) -> int:
    """Requests that have a slot."""
    return sum(request is not None for request in self._slots)

  def step(self, max_steps: int = _UNTIL_EVENT, blocks: bool = False) -> Iterator[Event]:
    """Admit waiting requests, launch one group of rows, and yield what became final.

    For callers that add and cancel requests in between; there must be a request.

    Args:
      max_steps: decode steps of the launch at most.
      blocks: the launch also ends when a row has finished a block, which is then reported.
    """
    while self._waiting and None in self._slots:
      self._admit(self._waiting.pop(0))
    yield from self._launch(max_steps, blocks)

  def cancel(self, number: int) -> bool:
    """Drop a request and free its slot; False if it is not here (any more).

    What the slot has cached of the prompt and the answer stays there for the next turn.
    """
    for index, request in enumerate(self._waiting):
      if request.number == number:
        del self._waiting[index]
        return True
    for slot, request in enumerate(self._slots):
      if request is not None and request.number == number:
        self._slots[slot] = None
        self._cached[slot] = prefix_cache.with_answer(
            self.vocab, request.prefix, request.answer, request.known, self.mode,
            self.prompt_audio)
        self._pool = self._run('release', compiled.release, (), self._pool, np.int32(slot))
        return True
    return False

  def generate(self, prompts: Sequence[np.ndarray],
               configs: Sequence[GenerateConfig] | None = None,
               names: Sequence[int] | None = None) -> list[Answer]:
    """Answer prompts; returns the answers in the order of the prompts.

    Args:
      prompts: int32 [n] each.
      configs: sampling parameters, one per prompt; None: the engine's.
      names: of the prompts' random draws, see ``submit``; None: their numbers.
    """
    numbers = [self.submit(prompt, configs[i] if configs else None, names[i] if names else None)
               for i, prompt in enumerate(prompts)]
    answers = {event.request: event.answer for event in self.events() if event.answer}
    return [answers[number] for number in numbers]

  # -- reading a prompt -------------------------------------------------------------------

  def _admit(self, request: _Request) -> None:
    """Read a prompt into the free slot that shares its longest prefix, or else has the fewest
    cached tokens.

    The last token, or the last bidirectional group, stays in the window: the first decode step
    needs its hidden state.
    """
    prompt, end = request.prefix
    tail = prompt.size - 1
    while tail and end[tail - 1] == prompt.size:
      tail -= 1
    free = [slot for slot, held in enumerate(self._slots) if held is None]
    shared = {slot: prefix_cache.shared(self._cached[slot], request.prefix, tail) for slot in free}
    slot = max(free, key=lambda slot: (shared[slot], -self._cached[slot].ids.size))
    at = shared[slot]
    self.read += tail - at
    self._cached[slot] = prefix_cache.EMPTY  # stays so if reading is interrupted
    while at < tail:
      at += self._read(slot, request.prefix, at, tail)
    span = self.mode == 'nar'
    state = decode_step.State(*(np.zeros(x.shape[1:], np.int32) for x in self._pool.state))
    state.token[:prompt.size] = prompt
    known = prompt.size - 1 if span else tail
    row = state._replace(
        length=np.int32(prompt.size), known=np.int32(known),
        lead=np.int32(prompt.size - known), phase=np.int32(decode_step.TEXT),
        prompt=np.int32(prompt.size), begin=np.int32(-1), gap=np.int32(2**30))
    settings = jax.tree.map(lambda x: x[0], sampling_params.make(
        [request.config], [request.name], self.config.max_tokens))
    if span:
      one, params = jax.tree.map(lambda x: jnp.asarray(x)[None], (row, settings))
      row = jax.tree.map(lambda x: np.asarray(x)[0],
                         decode_step.begin_answer(one, params, self._setup.rules))
      request.phase = int(row.phase)
    request.length, request.known, request.since = int(row.length), known, time.monotonic()
    self._slots[slot] = request
    self._pool = self._run('admit', compiled.admit, (), self._pool, np.int32(slot), row, settings)

  def _read(self, slot: int, prefix: prefix_cache.Prefix, at: int, end: int) -> int:
    """Cache a piece of a prompt that starts at ``at``; returns its length. A bidirectional group
    is never cut: its tokens see each other, so they must be computed together."""
    stop = compiled.piece_end(prefix.end, at, end, _LONGEST)
    size = stop - at
    width = self._fit_piece(size)
    token, k_end = np.zeros(width, np.int32), np.zeros(width, np.int32)
    token[:size] = prefix.ids[at:stop]
    k_end[:size] = prefix.end[at:stop] - at
    # On a mesh every slot is a row, so that rows stay on their devices; the others read nothing.
    rows = self.config.slots if self._on_mesh else 1
    place = slot if self._on_mesh else 0
    fill = lambda x: np.stack([x if row == place else np.zeros_like(x) for row in range(rows)])
    slots = np.arange(rows) if self._on_mesh else np.array([slot])
    cache = self._run(
        f'read {width}', compiled.prefill, (self.model,), self._weights.params, self._pool.cache,
        slots.astype(np.int32), fill(np.int32(at)), fill(token), fill(k_end))
    self._pool = self._pool._replace(cache=cache)
    return size

  def _run(self, name: str, function: Any, static: tuple[Any, ...], *args: Any) -> Any:
    """Call a jitted function: its program in the store, if there is one."""
    program = self.store.get(name) if self.store else None
    return function(*static, *args) if program is None else program(*args)

  # -- compiling ahead of the first request -----------------------------------------------

  def programs(self) -> list[tuple[str, Callable[[], None]]]:
    """(name, function that makes it ready) of every program that a request can need.

    Requests whose settings need other programs than the engine's own config are not covered: see
    ``compiles``. Nothing is run, but for the prior of the rule 'prior'. Only of engines that were
    made with ``long_lived``.
    """
    store = self.store
    assert store is not None, 'an engine that is not long-lived compiles when it must'
    ready = lambda name, *args: (name, lambda: store.ensure(name, *args))
    row = decode_step.State(*(np.zeros(x.shape[1:], np.int32) for x in self._pool.state))
    row = row._replace(**{name: np.int32(0) for name in row._fields[1:]})
    settings = jax.tree.map(lambda x: x[0], sampling_params.empty(1))
    out = [('prior', self._keep_prior)] if self.config.rule == 'prior' else []
    out += [ready('admit', compiled.admit, self._pool, np.int32(0), row, settings),
            ready('release', compiled.release, self._pool, np.int32(0))]
    rows = self.config.slots if self._on_mesh else 1
    for width in sorted({self._fit_piece(size) for size in self._widths}):
      none = np.zeros((rows, width), np.int32)
      out.append(ready(
          f'read {width}', compiled.prefill, self.model, self._weights.params, self._pool.cache,
          np.arange(rows).astype(np.int32), np.zeros(rows, np.int32), none, none))
    counts = {compiled.rows(count, self.config.slots, self._growth)
              for count in range(1, self.config.slots + 1)}
    for width in self._widths[:self._widths.index(self._fit(self._longest_window())) + 1]:
      for null in self._nulls(width):
        for count in [0] if self._on_mesh else sorted(counts):
          launch = compiled.Launch(width, null)
          slots = np.zeros(count, np.int32) if count else None
          out.append(ready(
              _name_of(launch, slots), compiled.steps, self._setup, launch, self._weights,
              self._pool, slots, np.int32(0), np.int32(0)))
    return out

  def compiles(self, config: GenerateConfig) -> str:
    """The setting by which a request needs programs that ``programs`` leaves out; '' if none."""
    if config.guidance > 0 and not self.config.guidance > 0 and self.mode != 'ar':
      return 'guidance'
    if config.max_span > self.config.max_span:
      return 'max_span'
    return 'rule' if config.rule == 'prior' and self.config.rule != 'prior' else ''

  def _longest_window(self) -> int:
    """Tokens of the longest window of prompts that end in text: a begin token and its span."""
    if self.mode == 'ar':
      return 1
    whole = self.mode == 'nar' or self.config.preset == 'published'
    return self._widths[-1] if whole else min(1 + self.config.max_span, self._widths[-1])

  def _nulls(self, width: int) -> list[compiled.NullContext]:
    kind = self.config.guidance_context
    if not self.config.guidance > 0 or self.mode == 'ar':
      return [compiled.NullContext()]
    if kind != 'published':
      return [compiled.NullContext(), compiled.NullContext(kind)]
    row = self._pool.state.token.shape[1]
    lengths = {min(length, row) for length in range(_NULL_STEP, row + _NULL_STEP, _NULL_STEP)
               if min(length, row) > width}
    return [compiled.NullContext(), *(compiled.NullContext(kind, n) for n in sorted(lengths))]

  def _keep_prior(self) -> None:
    self._weights = self._weights._replace(
        head=self._weights.head._replace(prior=self._prior()))

  def _fit(self, size: int) -> int:
    return next(width for width in self._widths if width >= size)

  def _fit_piece(self, size: int) -> int:
    """Window of a piece of a prompt. Every other width only: fewer programs to compile."""
    return next(width for width in (*self._widths[1::2], self._widths[-1]) if width >= size)

  # -- steps ------------------------------------------------------------------------------

  def _null_kind(self, request: _Request) -> str:
    """compiled.NullContext.kind that the request's next step needs."""
    guided = request.config.guidance > 0 and self.mode != 'ar'
    return self.config.guidance_context if guided and request.phase == decode_step.SPAN else ''

  def _pick(self) -> tuple[dict[int, _Request], compiled.Launch]:
    """The requests of the next launch, by slot, and its program."""
    busy = {slot: request for slot, request in enumerate(self._slots) if request}
    need = {slot: (self._fit(request.length - request.known), self._null_kind(request))
            for slot, request in busy.items()}
    if self._setup.mixed:
      width = max(width for width, _ in need.values())
      return busy, compiled.Launch(
          width, self._null(max(kind for _, kind in need.values()), busy, width))
    first = min(busy, key=lambda slot: (busy[slot].waited < _PATIENCE, need[slot][0], slot))
    group = {slot: request for slot, request in busy.items() if need[slot] == need[first]}
    width, kind = need[first]
    return group, compiled.Launch(width, self._null(kind, group, width))

  def _null(self, kind: str, group: dict[int, _Request], width: int) -> compiled.NullContext:
    if kind != 'published':
      return compiled.NullContext(kind)
    # Room for all that the windows can hold, rounded so that near lengths share a program.
    longest = max(request.known + width for request in group.values())
    length = -(-longest // _NULL_STEP) * _NULL_STEP
    return compiled.NullContext(kind, min(length, self._pool.state.token.shape[1]))

  def _launch(self, max_steps: int, blocks: bool) -> Iterator[Event]:
    group, launch = self._pick()
    if any(request.watched and request.phase == decode_step.SPAN for request in group.values()):
      max_steps = 1
    for slot, request in enumerate(self._slots):
      if request:
        request.waited = 0 if slot in group else request.waited + 1
    slots, program, idle = None, None, 0
    if not self._on_mesh:
      count, max_steps, program, idle = self._rows_for(launch, len(group), max_steps)
      slots = np.full(count, self.config.slots, np.int32)
      slots[:len(group)] = list(group)
    self._pool, rows = self._run(
        _name_of(launch, slots), compiled.steps, (self._setup, launch), self._weights, self._pool,
        slots, np.int32(max_steps), np.int32(_events_to_stop_at(blocks)))
    self.launches += 1
    rows = jax.tree.map(np.asarray, rows)
    if idle:
      first = next(iter(group.values()))
      _SPENT[program] += idle * (int(rows.calls[0]) - first.calls)
    for number, (slot, request) in enumerate(group.items()):
      yield from self._events_of(slot, request, jax.tree.map(
          lambda x: x[slot if slots is None else number], rows))

  def _rows_for(self, launch: compiled.Launch, count: int, max_steps: int
                ) -> tuple[int, int, Hashable, int]:
    """(rows, steps at most, program with fewer rows, operations of a step that it would save) of a
    launch of ``count`` requests."""
    fewest = compiled.rows(count, self.config.slots, self._growth)
    if not self._short_lived or fewest == self.config.slots:
      return fewest, max_steps, None, 0
    program = self._setup, self._arrays, launch, fewest
    idle = (self.config.slots - fewest) * (launch.width + launch.null.length) * self._per_token
    left = int((_COMPILING - _SPENT[program]) // idle)
    if left < 1:
      return fewest, max_steps, None, 0
    return self.config.slots, min(left, max_steps), program, idle

  def _events_of(self, slot: int, request: _Request, row: State) -> Iterator[Event]:
    """What a request's new state adds to what was reported of it."""
    token = np.asarray(row.token)
    request.length, request.known = int(row.length), int(row.known)
    request.phase, request.calls = int(row.phase), int(row.calls)
    request.answer = token[request.prompt.size:request.length].copy()
    closing = request.open or row.spans > request.opened
    open_now = request.phase == decode_step.SPAN
    closed = None
    if closing and not open_now:
      start = int(row.begin) + 1
      # The first text token after the span may be there already.
      end = start + _span_length(token[start:request.length], self.vocab, self.mode)
      closed = Span(start - request.prompt.size, end - start, bool(row.ended), int(row.blocks))
    request.opened, request.open = int(row.spans), open_now
    final = request.length
    if open_now:  # the published loop leaves masks that were chosen in finished blocks
      first = max(request.seen, int(row.block_at))
      masks = np.flatnonzero(token[first:request.length] == self.vocab.mask)
      final = first + int(masks[0]) if masks.size else final
    if request.watched:
      yield from self._block(request, row, token)
    yield from self._tokens(request, token[request.seen:final])
    request.seen = max(request.seen, final)
    if closed:
      request.spans.append(closed)
      yield Event(request.number, 'span', span=closed)
    if request.phase == decode_step.IDLE:
      self._slots[slot] = None
      self._cached[slot] = prefix_cache.with_answer(
          self.vocab, request.prefix, request.answer, request.known, self.mode,
          self.prompt_audio)
      answer = Answer(request.answer, request.spans,
                      bool(row.finished), int(row.calls), time.monotonic() - request.since,
                      request.first_audio)
      yield Event(request.number, 'done', answer=answer)

  def _block(self, request: _Request, row: State, token: np.ndarray) -> Iterator[Event]:
    """The last step of the block that was open before, if it is finished, and the open one."""
    if request.block_at >= 0 and not (request.open and request.block_at == row.block_at):
      end = int(row.block_at)
      if not request.open:
        begin = request.block_at
        end = begin + _span_length(token[begin:request.length], self.vocab, self.mode)
      yield Event(request.number, 'block', ids=token[request.block_at:end].copy(),
                  step=request.step + 1)
    request.block_at = int(row.block_at) if request.open else -1
    request.step = int(row.step)
    if request.open:
      yield Event(request.number, 'block', ids=token[request.block_at:request.length].copy(),
                  step=request.step)

  def _tokens(self, request: _Request, ids: np.ndarray) -> Iterator[Event]:
    """One event per run of text or of audio."""
    audio = np.asarray(self.vocab.is_audio(ids))
    for run in np.split(np.arange(ids.size), np.flatnonzero(np.diff(audio)) + 1):
      if run.size:
        kind = 'audio' if audio[run[0]] else 'text'
        if kind == 'audio' and request.first_audio is None:
          request.first_audio = time.monotonic() - request.since
        yield Event(request.number, kind, ids=ids[run])

  def _prior(self) -> jax.Array:
    """float32 [V], log of the mean distribution over a first block with no prefix but its begin
    token; rule 'prior' ranks by the ratio to it."""
    block, vocab = self.config.block, self.vocab
    rows = self._weights.head.table.shape[0]
    token = np.full((1, 1 + block), vocab.mask, np.int32)
    token[0, 0] = vocab.begin_of_audio
    end = np.full((1, 1 + block), 1 + block, np.int32)
    end[0, 0] = 1
    position = np.arange(1 + block, dtype=np.int32)[None]

    @jax.jit
    def run(params):
      hidden = self.model.hidden(params, token, position, np.zeros_like(end), end)[:, 1:]
      probability = jax.nn.softmax(self.model.logits(params, hidden), axis=-1).mean((0, 1))
      return jnp.pad(jnp.log(jnp.maximum(probability, 1e-8)), (0, rows - probability.size))
    return run(self._weights.params)


def _name_of(launch: compiled.Launch, slots: np.ndarray | None) -> str:
  """Of a program of ``compiled.steps``."""
  null = f' {launch.null.kind} {launch.null.length}' if launch.null.kind else ''
  return f'decode {"all" if slots is None else slots.size} x {launch.width}{null}'


def _events_to_stop_at(blocks: bool) -> int:
  return decode_step.OPENED | decode_step.CLOSED | (decode_step.BLOCK if blocks else 0)


def _span_length(tokens: np.ndarray, vocab: Vocabulary, mode: str) -> int:
  """Length of a closed span: tokens up to its end token, included; all, if the published loop
  reached a limit without one."""
  ends = np.flatnonzero(tokens == vocab.im_end if mode == 'nar' else vocab.is_end(tokens))
  return int(ends[0]) + 1 if ends.size else tokens.size


def _longest(config: GenerateConfig) -> int:
  """Tokens that a row may have. The published loop looks at max_tokens only after as many blocks
  as max_span has."""
  if config.preset != 'published':
    return config.max_tokens
  return config.max_tokens + -(-config.max_span // config.block) * config.block


def _cast(params: Params, dtype: str) -> Params:
  """Parameters with matrices in the compute dtype; vectors stay float32."""
  if dtype == 'float32':
    return params
  return jax.jit(lambda tree: jax.tree.map(
      lambda x: x.astype(dtype) if x.ndim > 1 else x, tree))(params)


def _placed(params: Params, pool: compiled.Pool) -> compiled.Pool:
  """The pool where the parameters are, as the programs return it: with arrays placed otherwise the
  first call of each program would be compiled for them alone."""
  found = getattr(jax.tree.leaves(params)[0], 'sharding', None)
  if not isinstance(found, jax.sharding.NamedSharding) or found.mesh.size > 1:
    return pool
  return jax.device_put(pool, jax.sharding.NamedSharding(found.mesh, jax.sharding.PartitionSpec()))


def generate(model: Model, params: Params, vocab: Vocabulary, prompts: Sequence[np.ndarray],
             config: GenerateConfig, mode: str = 'hybrid', prompt_audio: str = 'bidirectional',
             numbers: Sequence[int] | None = None) -> list[Answer]:
  """Answer prompts with a new engine; see ``Engine``. ``numbers`` name the random draws."""
  slots = max(1, min(config.slots, len(prompts)))
  engine = Engine(model, params, vocab, dataclasses.replace(config, slots=slots), mode=mode,
                  prompt_audio=prompt_audio)
  return engine.generate(prompts, None, numbers)
