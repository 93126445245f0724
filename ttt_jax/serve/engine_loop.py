"""The engine in a thread of its own, and its asynchronous interface.

  loop = EngineLoop(served, Limits())
  loop.start()
  async with aclosing(loop.generate(ids, settings)) as events:
    async for event in events:   # Text, Sound, Block, Done
      ...
  await loop.stop()

All requests of the process are decoded together (continuous batching). Leaving ``generate`` early,
by ``break`` under ``aclosing`` or by cancelling the task, cancels the request: its slot is free
before the next launch, and its cache stays for the next turn of the conversation.

The engine never waits for a reader. What a request has produced waits as token ids, at most
``max_tokens`` of them; text and sound are made of them when the reader asks for the next event.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
import concurrent.futures
import dataclasses
import logging
import threading
import time
from typing import TypeVar

import numpy as np

from ttt_jax.config import GenerateConfig
from ttt_jax.errors import UserError
from ttt_jax.generate import outputs
from ttt_jax.generate.outputs import Answer
from ttt_jax.serve.metrics import Metrics
from ttt_jax.serve.served_model import ServedModel
from ttt_jax.serve.sound_out import PcmStream
from ttt_jax.serve.text_out import TextStream

_LOG = logging.getLogger(__name__)
_TEXT_STEPS = 4  # text tokens between two looks at the queue: new requests wait no longer
T = TypeVar('T')


class Busy(Exception):
  """The queue is full, or the server shuts down; ``retry_after`` is in seconds."""

  def __init__(self, message: str, retry_after: int):
    super().__init__(message)
    self.retry_after = retry_after


class EngineFailed(Exception):
  """The engine raised an exception while it decoded the request; the log has it."""


# -- events ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Text:
  """New text of the answer; never a part of a character."""
  text: str


@dataclasses.dataclass(frozen=True)
class Ids:
  """Tokens int32 [n], before the text or sound that they make; only of requests with ``ids``."""
  ids: np.ndarray


@dataclasses.dataclass(frozen=True)
class Sound:
  """New samples: int16, little-endian, mono, at sound_out.RATE."""
  pcm: bytes


@dataclasses.dataclass(frozen=True)
class Block:
  """A step of the open block of masks; only of requests with ``watch``.

  Attributes:
    span, block: numbers of the audio span in the answer and of the block in the span, from 0.
    step: steps made in the block so far.
    codes: one per position: the code, -1 for a mask, -2 for an end token.
  """
  span: int
  block: int
  step: int
  codes: list[int]


@dataclasses.dataclass(frozen=True)
class Done:
  """The answer is complete.

  Attributes:
    answer: ids and spans.
    reason: 'stop' (the model ended it, or a stop sequence was found) or 'length'.
    text: all of it.
    ids: int32 [n], the answer without im_end, for ``served_model.Message.ids``.
    prompt_tokens: length of the prompt.
    audio_tokens, text_tokens: of the answer.
    first_audio: seconds from the arrival of the request to the first samples; None without sound.
    seconds: from there to here.
  """
  answer: Answer
  reason: str
  text: str
  ids: np.ndarray
  prompt_tokens: int
  audio_tokens: int
  text_tokens: int
  first_audio: float | None
  seconds: float


Event = Text | Ids | Sound | Block | Done


@dataclasses.dataclass
class _Request:
  """What the two sides share: written by ``generate``, read by the thread, but for ``number``."""
  prompt: np.ndarray
  config: GenerateConfig
  name: int | None
  watch: bool
  deliver: Callable[[list[outputs.Event | Exception]], None]
  number: int | None = None   # in the engine; None while it waits
  cancelled: bool = False


class EngineLoop:
  """See the module's docstring. Its methods belong to one asyncio event loop."""

  def __init__(self, served: ServedModel, queue: int = 64, workers: int = 2,
               metrics: Metrics | None = None, first_sound: float = 0.0):
    """Makes the engine, and starts nothing.

    Args:
      served: the model.
      queue: requests that wait for a slot at most.
      workers: threads that encode and decode sound.
      metrics: to count in.
      first_sound: length of the first Sound of an answer at least [s]; see PcmStream.
    """
    self.served, self.metrics = served, metrics or Metrics()
    self.first_sound = first_sound
    self.queue = queue
    self.engine = served.engine()
    self._condition = threading.Condition()
    self._inbox: list[_Request] = []          # under the condition
    self._cancels: list[_Request] = []        # under the condition
    self._stopping = False                    # under the condition
    self._open: dict[int, _Request] = {}      # of the thread: by number in the engine
    self._thread = threading.Thread(target=self._run, name='engine', daemon=True)
    self._pool = concurrent.futures.ThreadPoolExecutor(workers, 'sound')
    self._accepts, self._requests = True, 0   # of the event loop
    self._idle = asyncio.Event()
    self._idle.set()

  # -- of the event loop ------------------------------------------------------------------

  def start(self) -> None:
    self._thread.start()

  @property
  def alive(self) -> bool:
    return self._thread.is_alive()

  @property
  def ready(self) -> bool:
    """Whether a request would be taken now."""
    return self.alive and self._accepts and self._requests < self._room

  @property
  def _room(self) -> int:
    return self.engine.config.slots + self.queue

  async def drain(self, seconds: float) -> bool:
    """Take no further requests and wait until the open ones are answered; False if they are not
    after ``seconds``."""
    self._accepts = False
    try:
      await asyncio.wait_for(self._idle.wait(), seconds)
      return True
    except TimeoutError:
      return False

  async def stop(self) -> None:
    """End the thread; open requests raise Busy."""
    self._accepts = False
    with self._condition:
      self._stopping = True
      self._condition.notify()
    if self._thread.ident is not None:
      await asyncio.to_thread(self._thread.join)
    self._pool.shutdown(wait=False)

  async def work(self, function: Callable[..., T], *args) -> T:
    """Run a function on sound in one of the worker threads."""
    return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

  def check(self, prompt: np.ndarray, settings: GenerateConfig) -> None:
    """Raise the errors that ``generate`` would raise for a request, without making it.

    Raises:
      UserError: a prompt that is too long, or settings that need programs which are not compiled.
      Busy: the queue is full, or the server shuts down.
    """
    if not self._accepts:
      raise Busy('the server is shutting down; send the request to another one.', 5)
    if self._requests >= self._room:
      raise Busy(f'{self._requests} requests are open, and the server takes {self._room} '
                 '(generate.slots and serve.queue); try again later.', 1)
    self.engine.check(prompt, settings, 'the request')
    self.check_settings(settings)

  def check_settings(self, settings: GenerateConfig) -> None:
    """Raises the errors of ``check`` that depend on no prompt."""
    self.engine.check(np.zeros(1, np.int32), settings, 'the request')
    if key := self.engine.compiles(settings):
      raise UserError(f'{key}={getattr(settings, key)} needs programs that the server has not '
                      f'compiled; start it with --config.generate.{key}='
                      f'{getattr(settings, key)}.')

  async def generate(self, prompt: np.ndarray, settings: GenerateConfig, *,
                     seed_name: int | None = None, stop: tuple[str, ...] = (),
                     watch: bool = False, sound: bool = True, ids: bool = False,
                     began: float | None = None) -> AsyncIterator[Event]:
    """Answer one prompt.

    Args:
      prompt: int32 [n], ids up to and including the assistant's header (ServedModel.prompt).
      settings: sampling parameters; ``max_tokens`` counts prompt and answer.
      seed_name: names the random draws together with ``settings.seed``; None: by the order of
        requests.
      stop: the answer ends before the first of these texts.
      watch: yield Block events.
      sound: yield Sound events; False leaves spans undecoded.
      ids: yield Ids events.
      began: time.monotonic() when the request arrived, for latencies; None: now.

    Yields:
      Text, Ids, Sound and Block events as they become final, then one Done.

    Raises:
      UserError, Busy: as ``check``.
      EngineFailed: an exception in the engine.
    """
    self.check(prompt, settings)
    events: asyncio.Queue[outputs.Event | Exception] = asyncio.Queue()
    here = asyncio.get_running_loop()

    def put(items: list[outputs.Event | Exception]) -> None:
      for item in items:
        events.put_nowait(item)

    def deliver(items: list[outputs.Event | Exception]) -> None:
      try:
        here.call_soon_threadsafe(put, items)
      except RuntimeError:
        pass  # the event loop is closed; nobody reads any more
    request = _Request(prompt, settings, seed_name, watch, deliver)
    self._requests += 1
    self._idle.clear()
    self.metrics.opened(self._requests)
    with self._condition:
      self._inbox.append(request)
      self._condition.notify()
    reader = _Reader(self, request, stop, sound, time.monotonic() if began is None else began)
    reader.report_ids = ids
    try:
      while not reader.done:
        item = await events.get()
        if isinstance(item, Exception):
          raise item
        async for event in reader.read(item):
          yield event
    finally:
      if not reader.ended:
        with self._condition:
          request.cancelled = True
          self._cancels.append(request)
          self._condition.notify()
      self._requests -= 1
      if not self._requests:
        self._idle.set()
      self.metrics.closed(reader.outcome, self._requests)

  # -- of the thread ----------------------------------------------------------------------

  def _run(self) -> None:
    while True:
      with self._condition:
        while not (self._inbox or self._cancels or self._stopping or self.engine.requests):
          self._condition.wait()
        inbox, self._inbox = self._inbox, []
        cancels, self._cancels = self._cancels, []
        stopping = self._stopping
      if stopping:
        error = Busy('the server was stopped before the answer was complete.', 5)
        for request in [*inbox, *self._open.values()]:
          request.deliver([error])
        return
      try:
        self._turn(inbox, cancels)
      except Exception as error:
        _LOG.exception('the engine failed; its open requests are answered with an error.')
        self._restart(error, inbox)

  def _turn(self, inbox: list[_Request], cancels: list[_Request]) -> None:
    for request in inbox:
      if request.cancelled:
        continue
      try:
        request.number = self.engine.submit(request.prompt, request.config, request.name,
                                            'the request', request.watch)
        self._open[request.number] = request
      except UserError as error:
        request.deliver([error])
    for request in cancels:
      if request.number is not None and self._open.pop(request.number, None):
        self.engine.cancel(request.number)
    self.metrics.slots(self.engine.active, self.engine.requests - self.engine.active)
    if not self.engine.requests:
      return
    news: dict[int, list[outputs.Event | Exception]] = {}
    for event in self.engine.step(_TEXT_STEPS, blocks=True):
      news.setdefault(event.request, []).append(event)
    for number, events in news.items():
      self._open[number].deliver(events)
      if events[-1].answer is not None:  # pyright: ignore[reportAttributeAccessIssue]
        del self._open[number]

  def _restart(self, error: Exception, inbox: list[_Request]) -> None:
    """A new engine: an exception may leave its arrays donated."""
    failed = EngineFailed(f'the engine failed ({type(error).__name__}); the log of the server has '
                          'the details.')
    for request in {id(one): one for one in [*inbox, *self._open.values()]}.values():
      request.deliver([failed])
    self._open = {}
    store = self.engine.store
    if store is not None and (count := store.distrust()):
      _LOG.warning('%d compiled programs from disk were deleted; they are compiled again.', count)
    self.engine = self.served.engine()
    self.engine.store = store


class _Reader:
  """Makes events of one request of the engine's; of the event loop."""

  def __init__(self, loop: EngineLoop, request: _Request, stop: tuple[str, ...], sound: bool,
               began: float):
    self._loop, self._request = loop, request
    self._text = TextStream(loop.served.renderer.tokenizer, stop)
    codec = loop.served.codec
    self._pcm = PcmStream(codec, loop.first_sound) if sound and codec is not None else None
    self._vocab = loop.served.vocab
    self._began = began
    self._first: float | None = None
    self._samples = 0
    self._spans, self._block_number = 0, -1
    self._ids: list[np.ndarray] = []
    self.report_ids = False
    self.done = False    # the reader has its Done
    self.ended = False   # the engine has ended the request
    self.outcome = 'cancelled'

  async def read(self, event: outputs.Event) -> AsyncIterator[Event]:
    if event.kind == 'text' and event.ids is not None:
      self._ids.append(event.ids)
      if self.report_ids:
        yield Ids(event.ids)
      if text := self._text.push(event.ids):
        yield Text(text)
      if self._text.stopped:
        async for rest in self._finish(None):
          yield rest
    elif event.kind == 'audio' and event.ids is not None:
      self._ids.append(event.ids)
      if self.report_ids:
        yield Ids(event.ids)
      codes = self._vocab.decode_codes(event.ids)
      if self._pcm is not None and codes.size:
        async for piece in self._sound(self._pcm.push, codes):
          yield piece
    elif event.kind == 'block' and event.ids is not None:
      self._block_number += event.step == 0
      yield Block(self._spans, self._block_number, event.step, self._codes(event.ids))
    elif event.kind == 'span':
      self._spans, self._block_number = self._spans + 1, -1
    elif event.answer is not None:
      self.ended = True
      async for rest in self._finish(event.answer):
        yield rest

  def _codes(self, ids: np.ndarray) -> list[int]:
    vocab = self._vocab
    return np.where(vocab.is_code(ids), ids - vocab.code_start,
                    np.where(ids == vocab.mask, -1, -2)).tolist()

  async def _sound(self, make: Callable[..., bytes], *args) -> AsyncIterator[Sound]:
    pcm = await self._loop.work(make, *args)
    if not pcm:
      return
    if self._first is None:
      self._first = time.monotonic() - self._began
      self._loop.metrics.first_audio(self._first)
    self._samples += len(pcm) // 2
    yield Sound(pcm)

  async def _finish(self, answer: Answer | None) -> AsyncIterator[Event]:
    """The rest of text and sound, then Done; without an answer it was ended by a stop sequence."""
    if text := self._text.finish():
      yield Text(text)
    if self._pcm is not None:
      async for piece in self._sound(self._pcm.finish):
        yield piece
    ids = np.concatenate(self._ids) if self._ids else np.zeros(0, np.int32)
    answer = answer or Answer(ids, [], True, 0)
    reason = 'stop' if answer.finished else 'length'
    ids = ids[:-1] if ids.size and ids[-1] == self._vocab.im_end else ids
    audio = int(np.sum(self._vocab.is_audio(ids)))
    seconds = time.monotonic() - self._began
    self._loop.metrics.answered(self._request.prompt.size, ids.size - audio, audio, seconds,
                                self._samples)
    self.done, self.outcome = True, reason
    yield Done(answer, reason, self._text.shown, ids, self._request.prompt.size, audio,
               ids.size - audio, self._first, seconds)
