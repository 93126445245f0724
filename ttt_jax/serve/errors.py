"""Errors of the protocol: {"error": {"message", "type", "param", "code"}} with a status."""

from typing import Any

import pydantic
from starlette.responses import JSONResponse, Response

from ttt_jax.errors import UserError
from ttt_jax.serve.engine_loop import Busy, EngineFailed

_TYPES = {401: 'authentication_error', 403: 'permission_error', 404: 'not_found_error',
          429: 'rate_limit_error', 500: 'server_error', 503: 'server_error', 504: 'server_error'}


class ApiError(Exception):
  """An answer with another status than 200.

  Attributes:
    status: of HTTP.
    param: the field of the request that is meant, or None.
    code: of the protocol, such as 'model_not_found', or None.
    retry_after: seconds, for 503.
  """

  def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None,
               retry_after: int | None = None):
    super().__init__(message)
    self.status, self.param, self.code = status, param, code
    self.retry_after = retry_after

  def body(self) -> dict[str, Any]:
    return {'error': {'message': str(self), 'param': self.param, 'code': self.code,
                      'type': _TYPES.get(self.status, 'invalid_request_error')}}

  def response(self) -> Response:
    headers = {'Retry-After': str(self.retry_after)} if self.retry_after is not None else None
    return JSONResponse(self.body(), self.status, headers)


def of(error: Exception) -> ApiError | None:
  """The error of the protocol for an exception; None for one that is a bug."""
  if isinstance(error, ApiError):
    return error
  if isinstance(error, UserError):
    return ApiError(400, str(error))
  if isinstance(error, pydantic.ValidationError):
    return _invalid(error)
  if isinstance(error, Busy):
    return ApiError(503, str(error), code='busy', retry_after=error.retry_after)
  if isinstance(error, EngineFailed):
    return ApiError(500, str(error), code='engine_failed')
  if isinstance(error, TimeoutError):
    return ApiError(504, 'the request took longer than serve.timeout; ask for less, or raise it.',
                    code='timeout')
  return None


def _invalid(error: pydantic.ValidationError) -> ApiError:
  """The first thing that is wrong with the fields of a request."""
  first = error.errors(include_url=False, include_context=False)[0]
  if first['type'] == 'json_invalid':
    return ApiError(400, f'the body is not JSON: {first["msg"]}.', code='invalid_json')
  where = '.'.join(str(part) for part in first['loc'])
  value = repr(first.get('input'))
  shown = value if len(value) <= 60 else value[:57] + '...'
  what = 'is missing' if first['type'] == 'missing' else f'is {shown}: {first["msg"]}'
  return ApiError(400, f'{where or "the body"} {what}.', where or None)
