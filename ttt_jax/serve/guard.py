"""What every request passes first: key, origin, size of the body; and what is counted of it."""

from collections.abc import Collection
import secrets
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ttt_jax.serve.errors import ApiError
from ttt_jax.serve.metrics import Metrics

# Paths without a key: probes of a scheduler, and the page, which asks for the key.
OPEN = ('/', '/health', '/ready')
_SUBPROTOCOL = 'openai-insecure-api-key.'  # browsers cannot set headers of a WebSocket


class Guard:
  """ASGI middleware.

  A page of another origin may not use the server unless ``origins`` has its origin: otherwise any
  page that a user of this machine opens could talk to it.
  """

  def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str], max_body: int,
               key: str = '', origins: Collection[str] = ()):
    """``paths`` are those that are counted by name; ``max_body`` is in bytes."""
    self._app, self._metrics, self._paths = app, metrics, frozenset(paths)
    self._max_body, self._key, self._origins = max_body, key, frozenset(origins)

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope['type'] not in ('http', 'websocket'):
      return await self._app(scope, receive, send)
    scope['began'] = time.monotonic()
    headers = Headers(scope=scope)
    error = self._refused(scope, headers)
    if scope['type'] == 'websocket':
      if error is None:
        return await self._app(scope, receive, send)
      await receive()  # websocket.connect
      return await send({'type': 'websocket.close', 'code': 1008, 'reason': str(error)[:120]})
    path = scope['path'] if scope['path'] in self._paths else 'other'

    async def counted(message: Message) -> None:
      if message['type'] == 'http.response.start':
        self._metrics.request(path, message['status'])
      await send(message)
    if error is not None:
      return await error.response()(scope, receive, counted)
    await self._app(scope, self._limited(receive), counted)

  def _refused(self, scope: Scope, headers: Headers) -> ApiError | None:
    origin = headers.get('origin')
    if origin and origin not in self._origins and '*' not in self._origins:
      if urlsplit(origin).netloc != headers.get('host'):
        return ApiError(403, f'pages of {origin[:80]} may not use this server; start it with '
                        f'--allow-origin {origin[:80]}.', code='origin_not_allowed')
    preflight = scope.get('method') == 'OPTIONS'
    if self._key and scope['path'] not in OPEN and not preflight and not self._has_key(headers):
      return ApiError(401, 'the API key is missing or wrong; send the header Authorization: Bearer '
                      'KEY.', code='invalid_api_key')
    length = headers.get('content-length', '')
    if length.isdigit() and int(length) > self._max_body:
      return self._too_large()
    return None

  def _has_key(self, headers: Headers) -> bool:
    given = headers.get('authorization', '')
    kind, _, key = given.partition(' ')
    keys = [key.strip()] if kind.lower() == 'bearer' else []
    for word in headers.get('sec-websocket-protocol', '').split(','):
      if word.strip().startswith(_SUBPROTOCOL):
        keys.append(word.strip().removeprefix(_SUBPROTOCOL))
    return any(secrets.compare_digest(key.encode(), self._key.encode()) for key in keys)

  def _too_large(self) -> ApiError:
    return ApiError(413, f'the body is larger than {self._max_body / 2**20:g} MiB '
                    '(serve.max_body).', code='body_too_large')

  def _limited(self, receive: Receive) -> Receive:
    """``receive`` that raises for a body longer than it may be, however it is sent."""
    size = 0

    async def limited() -> Message:
      nonlocal size
      message = await receive()
      size += len(message.get('body', b''))
      if size > self._max_body:
        raise self._too_large()
      return message
    return limited
