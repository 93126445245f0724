"""The application: routes, errors, and the life of the engine's thread."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
import contextlib
import logging

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from ttt_jax.serve import chat, errors, speech, transcriptions
from ttt_jax.serve.errors import ApiError
from ttt_jax.serve.guard import Guard
from ttt_jax.serve.service import ClientGone, Service

_LOG = logging.getLogger(__name__)
Endpoint = Callable[[Request], Awaitable[Response]]


def make(service: Service, key: str = '', origins: Collection[str] = (),
         routes: Sequence[BaseRoute] = ()) -> Starlette:
  """The ASGI application of a service; ``request.app.state.service`` is the service.

  Args:
    service: its loop is started and stopped with the application.
    key: that requests must send; '' = none.
    origins: of pages that may use the server beside its own.
    routes: further ones.
  """
  own = [
      Route('/health', _health), Route('/ready', _ready), Route('/metrics', _metrics),
      Route('/v1/models', _models), Route('/v1/models/{name:path}', _model),
      Route('/v1/chat/completions', _guarded(chat.complete), methods=['POST']),
      Route('/v1/audio/speech', _guarded(speech.speak), methods=['POST']),
      Route('/v1/audio/transcriptions', _guarded(transcriptions.transcribe), methods=['POST']),
  ]
  every = [*own, *routes]
  paths = [route.path for route in every if isinstance(route, Route)]
  middleware = [Middleware(Guard, service.metrics, paths, int(service.config.max_body * 2**20), key,
                           origins)]
  if origins:
    middleware.insert(0, Middleware(CORSMiddleware, allow_origins=list(origins),
                                    allow_methods=['GET', 'POST'], allow_headers=['*']))

  @contextlib.asynccontextmanager
  async def lifespan(_):
    service.loop.start()
    yield
    await service.loop.stop()
  app = Starlette(routes=every, middleware=middleware, lifespan=lifespan, exception_handlers={
      HTTPException: _no_route, ApiError: _known, Exception: _unknown})
  app.state.service = service
  return app


def _guarded(endpoint: Endpoint) -> Endpoint:
  """An endpoint whose known exceptions are errors of the protocol, and which ends in time."""
  async def guarded(request: Request) -> Response:
    service: Service = request.app.state.service
    try:
      async with asyncio.timeout(service.config.timeout):
        response = await endpoint(request)
    except (ClientGone, ClientDisconnect):
      return Response(status_code=499)  # nobody reads it
    except Exception as error:
      known = errors.of(error)
      if known is None:
        raise
      return known.response()
    return _Caught(response)
  return guarded


class _Caught(Response):
  """A response whose known exceptions before its first byte are errors of the protocol."""

  def __init__(self, response: Response):
    self._response = response
    self.background = None

  async def __call__(self, scope, receive, send) -> None:
    started = False

    async def watched(message) -> None:
      nonlocal started
      started = True
      await send(message)
    try:
      await self._response(scope, receive, watched)
    except Exception as error:
      known = errors.of(error)
      if known is None:
        raise
      if started:
        _LOG.warning('an answer was cut off: %s', error)
        return  # uvicorn closes the connection
      await known.response()(scope, receive, send)


async def _health(request: Request) -> Response:
  """200 while the process can answer: a restart would help if not."""
  alive = request.app.state.service.loop.alive
  return JSONResponse({'status': 'ok' if alive else 'the engine is not running'},
                      200 if alive else 500)


async def _ready(request: Request) -> Response:
  """200 if a request would be taken now."""
  ready = request.app.state.service.loop.ready
  return JSONResponse({'status': 'ready' if ready else 'busy'}, 200 if ready else 503)


async def _metrics(request: Request) -> Response:
  return Response(request.app.state.service.metrics.text(),
                  media_type='text/plain; version=0.0.4')


async def _models(request: Request) -> Response:
  return JSONResponse({'object': 'list', 'data': [_card(request.app.state.service)]})


async def _model(request: Request) -> Response:
  card, name = _card(request.app.state.service), request.path_params['name']
  if name != card['id']:
    raise ApiError(404, f'there is no model {name[:60]!r}; this server has {card["id"]}.', 'model',
                   'model_not_found')
  return JSONResponse(card)


def _card(service: Service) -> dict:
  served = service.served
  return {'id': served.name, 'object': 'model', 'created': served.created, 'owned_by': 'ttt-jax'}


async def _no_route(request: Request, error: Exception) -> Response:
  assert isinstance(error, HTTPException)
  what = {404: f'there is no {request.url.path[:80]} here',
          405: f'{request.url.path[:80]} does not take {request.method}'}
  return ApiError(error.status_code,
                  what.get(error.status_code, str(error.detail)) + '.').response()


async def _known(request: Request, error: Exception) -> Response:
  assert isinstance(error, ApiError)
  return error.response()


async def _unknown(request: Request, error: Exception) -> Response:
  _LOG.exception('%s failed.', request.url.path, exc_info=error)
  return ApiError(500, f'the server failed ({type(error).__name__}); its log has the '
                  'details.').response()
