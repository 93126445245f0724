"""What the endpoints share: the model, the engine's loop, limits, and answers of earlier turns."""

import asyncio
import collections
from collections.abc import AsyncIterator, Awaitable
import contextlib
import dataclasses
import json
import secrets
import time
from typing import Any, TypeVar

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ttt_jax.config import GenerateConfig, ServeConfig
from ttt_jax.config.ranges import LARGEST
from ttt_jax.serve import errors
from ttt_jax.serve.engine_loop import EngineLoop
from ttt_jax.serve.metrics import Metrics
from ttt_jax.serve.served_model import ServedModel

T = TypeVar('T')
_KEPT = 1024      # answers that later turns can refer to by their id
_KEPT_FOR = 3600  # seconds


class ClientGone(Exception):
  """The client closed its connection before the answer was complete."""


class Answers:
  """The ids of recent spoken answers, by the name that clients got; newest last."""

  def __init__(self):
    self._found: collections.OrderedDict[str, tuple[float, np.ndarray]] = collections.OrderedDict()

  def add(self, name: str, ids: np.ndarray) -> int:
    """Keep an answer; returns when it is forgotten, in seconds since the epoch."""
    expires = time.time() + _KEPT_FOR
    self._found[name] = expires, ids
    while len(self._found) > _KEPT:
      self._found.popitem(last=False)
    return int(expires)

  def get(self, name: str) -> np.ndarray | None:
    """The ids of an answer; None if it is not kept (any more)."""
    expires, ids = self._found.get(name, (0.0, None))
    return ids if expires >= time.time() else None


@dataclasses.dataclass
class Service:
  """The state of a server.

  Attributes:
    served: the model.
    loop: the engine's.
    config: limits.
    metrics: counters.
    answers: of earlier turns.
  """
  served: ServedModel
  loop: EngineLoop
  config: ServeConfig
  metrics: Metrics
  answers: Answers = dataclasses.field(default_factory=Answers)

  @classmethod
  def make(cls, served: ServedModel, config: ServeConfig) -> 'Service':
    metrics = Metrics()
    loop = EngineLoop(served, config.queue, config.workers, metrics, config.first_sound)
    return cls(served, loop, config, metrics)

  def name(self, asked: str | None) -> str:
    """The model's name, as the client calls it."""
    return asked or self.served.name


def silent(settings: GenerateConfig) -> GenerateConfig:
  """Settings under which no span is opened: the text alone is generated."""
  if settings.preset == 'published':  # whose loop has no such limit
    return settings
  return dataclasses.replace(settings, text_gap=LARGEST)


def began(request: Request) -> float:
  """time.monotonic() when the request arrived."""
  return request.scope.get('began', time.monotonic())


def new_id(kind: str) -> str:
  return f'{kind}-{secrets.token_hex(12)}'


async def unless_gone(receive: Receive, work: Awaitable[T], seconds: float) -> T:
  """The result of ``work``, which is cancelled if the client goes away or time is over.

  Raises:
    ClientGone, TimeoutError.
  """
  task = asyncio.ensure_future(work)
  gone = asyncio.ensure_future(_gone(receive))
  try:
    await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
      return task.result()
    raise ClientGone if gone.done() else TimeoutError
  finally:
    for one in (task, gone):
      if not one.done():
        one.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
          await one


async def _gone(receive: Receive) -> None:
  while (await receive())['type'] != 'http.disconnect':
    pass


class Streamed(Response):
  """A response whose body is generated; its generator is closed when the client goes away.

  The first piece is waited for before the status is sent, so that errors before it have theirs.
  """

  def __init__(self, pieces: AsyncIterator[bytes], seconds: float, media_type: str,
               headers: dict[str, str] | None = None):
    super().__init__(None, 200, {'Cache-Control': 'no-cache', 'X-Accel-Buffering': 'no',
                                 **(headers or {})}, media_type)
    self._pieces, self._seconds = pieces, seconds
    if 'content-length' in self.headers:
      del self.headers['content-length']

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    with contextlib.suppress(ClientGone):
      await unless_gone(receive, self._send(send), self._seconds)

  async def _send(self, send: Send) -> None:
    started = False
    pieces: Any = self._pieces
    async with contextlib.aclosing(pieces):
      async for piece in pieces:
        if not started:
          started = True
          await send({'type': 'http.response.start', 'status': self.status_code,
                      'headers': self.raw_headers})
        await send({'type': 'http.response.body', 'body': piece, 'more_body': True})
      await send({'type': 'http.response.body', 'body': b'', 'more_body': False})


async def as_events(values: AsyncIterator[Any], last: str = '') -> AsyncIterator[bytes]:
  """JSON values as server-sent events; an error in between becomes the last event.

  Args:
    values: JSON-ready.
    last: data of a further event at the end, such as '[DONE]'.
  """
  started = False
  try:
    async for value in values:
      yield _event(json.dumps(value, ensure_ascii=False))
      started = True
  except Exception as error:
    known = errors.of(error)
    if not started or known is None:
      raise
    yield _event(json.dumps(known.body(), ensure_ascii=False))
    return
  if last:
    yield _event(last)


def _event(data: str) -> bytes:
  return f'data: {data}\n\n'.encode()
