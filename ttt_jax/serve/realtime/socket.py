"""The WebSocket of a realtime session: feeds the state machine and carries out its effects.

One task reads, one writes, and each request of the session has its own. A client that does not
read is not generated for without end: at most _QUEUE events wait for it, and one that does not take
an event within _PATIENCE is disconnected.
"""

import asyncio
import contextlib
import dataclasses
import json
import logging
import secrets

import numpy as np
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from ttt_jax.config import GenerateConfig
from ttt_jax.errors import UserError
from ttt_jax.serve import errors
from ttt_jax.serve.realtime import conversation
from ttt_jax.serve.realtime.session import Ask, Effect, Session, Stop
from ttt_jax.serve.served_model import Message, ServedModel
from ttt_jax.serve.service import Service, silent

_LOG = logging.getLogger(__name__)
_QUEUE = 256        # events that wait for the client
_PATIENCE = 60.0    # s
_LARGE = 2**16      # bytes of a frame that is read in a thread
_SESSIONS = 256     # connections at a time
_ROOM = 4           # 1/_ROOM of max_tokens is left for an answer at least


async def realtime(websocket: WebSocket) -> None:
  """The endpoint."""
  service: Service = websocket.app.state.service
  open_now: set[Connection] = websocket.app.state.__dict__.setdefault('sessions', set())
  if len(open_now) >= _SESSIONS:
    return await websocket.close(1013, f'{_SESSIONS} sessions are open; try again later.')
  offered = websocket.scope.get('subprotocols', [])
  await websocket.accept('realtime' if 'realtime' in offered else None)
  connection = Connection(websocket, service)
  open_now.add(connection)
  try:
    await connection.run()
  finally:
    open_now.discard(connection)


ROUTE = WebSocketRoute('/v1/realtime', realtime)


class Connection:
  """One client."""

  def __init__(self, websocket: WebSocket, service: Service):
    self._socket, self._service = websocket, service
    self._session = Session(service.served, secrets.token_hex(6), service.config,
                            service.loop.check_settings)
    self._lock = asyncio.Lock()        # of the session, and of the order of what it sends
    self._encoding = asyncio.Lock()    # an item's sound is encoded once
    self._out: asyncio.Queue[str] = asyncio.Queue(_QUEUE)
    self._tasks: dict[str, asyncio.Task[None]] = {}

  async def run(self) -> None:
    """Until the client goes away."""
    writer = asyncio.create_task(self._write())
    reader = asyncio.create_task(self._read())
    try:
      await asyncio.wait({writer, reader}, return_when=asyncio.FIRST_COMPLETED)
    finally:
      tasks = [writer, reader, *self._tasks.values()]
      for task in tasks:
        task.cancel()
      for found in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(found, Exception) and not isinstance(found, WebSocketDisconnect):
          _LOG.error('a realtime session failed.', exc_info=found)
      with contextlib.suppress(RuntimeError, WebSocketDisconnect):
        await self._socket.close(1011 if writer.done() else 1000)

  async def _read(self) -> None:
    async with self._lock:
      await self._carry_out(self._session.open())
    while True:
      message = await self._socket.receive()
      if message['type'] != 'websocket.receive':
        return
      raw = message.get('text')
      raw = message.get('bytes') or b'' if raw is None else raw
      async with self._lock:
        await self._carry_out(
            await self._service.loop.work(self._session.receive, raw) if len(raw) > _LARGE
            else self._session.receive(raw))

  async def _write(self) -> None:
    while True:
      text = await self._out.get()
      try:
        async with asyncio.timeout(_PATIENCE):
          await self._socket.send_text(text)
      except TimeoutError:
        _LOG.warning('a realtime client took no event for %g s; it is disconnected.', _PATIENCE)
        return
      except (RuntimeError, OSError):  # closed in between
        return

  async def _carry_out(self, effects: list[Effect]) -> None:
    for effect in effects:
      if isinstance(effect, Ask):
        task = asyncio.create_task(self._answer(effect))
        self._tasks[effect.key] = task
        task.add_done_callback(lambda _, key=effect.key: self._tasks.pop(key, None))
      elif isinstance(effect, Stop):
        if task := self._tasks.get(effect.key):
          task.cancel()
      else:
        await self._out.put(json.dumps(effect, ensure_ascii=False))

  async def _answer(self, ask: Ask) -> None:
    loop = self._service.loop
    try:
      async with asyncio.timeout(self._service.config.timeout):
        async with self._encoding:
          prompt, settings, since = await loop.work(prepare, self._service.served, ask)
        self._session.fits(ask.key, since)
        found = loop.generate(prompt, settings, watch=ask.watch,
                              sound=ask.spoken, ids=not ask.transcribe)
        async with contextlib.aclosing(found):  # pyright: ignore[reportArgumentType]
          async for event in found:
            async with self._lock:
              await self._carry_out(self._session.answered(ask.key, event))
    except Exception as error:
      known = errors.of(error)
      if known is None:
        _LOG.exception('a response of a realtime session failed.')
        known = errors.ApiError(500, f'the server failed ({type(error).__name__}); its log has the '
                                'details.', code='server_error')
      async with self._lock:
        await self._carry_out(self._session.failed(ask.key, str(known), known.code))


def prepare(served: ServedModel, ask: Ask) -> tuple[np.ndarray, GenerateConfig, str]:
  """(ids of the prompt, settings of the request, first item that the prompt holds).

  Raises:
    UserError: sound that cannot be encoded in the last item, no room for it, or a model that was
      not trained to transcribe.
  """
  for item in ask.items:
    try:
      conversation.encode(item, served)
    except UserError:
      if item is ask.items[-1]:
        raise
  settings = ask.settings if ask.spoken else silent(ask.settings)
  if ask.transcribe:
    if served.known and 'asr' not in served.known:
      raise UserError(f'the model {served.name} was not trained on task asr, so it transcribes '
                      'nothing; set audio.input.transcription to null.')
    message = conversation.message(ask.items[-1], served.vocab)
    return served.prompt([Message('user', message.parts)], 'asr'), settings, ''
  room = max(1, min(ask.longest, settings.max_tokens // _ROOM))
  prompt, since = conversation.prompt(served, ask.items, ask.instructions,
                                      settings.max_tokens - room, ask.retention)
  limit = min(settings.max_tokens, prompt.size + ask.longest)
  return prompt, dataclasses.replace(settings, max_tokens=limit), since
