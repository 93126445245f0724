"""POST /v1/audio/transcriptions: a recording, written down."""

from collections.abc import AsyncIterator
import contextlib
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from ttt_jax.serve import protocol, service, sound_in
from ttt_jax.serve.engine_loop import Done, Event, Text
from ttt_jax.serve.errors import ApiError
from ttt_jax.serve.served_model import Message
from ttt_jax.serve.service import Service

_TIMED = ('srt', 'vtt', 'diarized_json')


async def transcribe(request: Request) -> Response:
  """Write down a recording: JSON, text, or server-sent events."""
  state: Service = request.app.state.service
  async with request.form(max_files=1, max_fields=64) as form:
    upload = form.get('file')
    if not isinstance(upload, UploadFile):
      raise ApiError(400, 'file is missing; send the recording as the multipart field "file".',
                     'file')
    contents = await upload.read()
    fields = {key: value for key, value in form.multi_items() if isinstance(value, str)}
  asked = protocol.TranscriptionRequest.model_validate(_typed(fields))
  if asked.response_format in _TIMED:
    raise ApiError(400, f'response_format is {asked.response_format!r}, which needs time stamps '
                   'that the model does not give; use json, text or verbose_json.',
                   'response_format')
  if asked.prompt:
    raise ApiError(400, 'prompt is not supported by this model; leave it out.', 'prompt')
  part, seconds = await state.loop.work(_part, state, contents)
  prompt = await state.loop.work(state.served.prompt, [Message('user', (part,))], 'asr')
  settings = service.silent(asked.settings(state.served.settings))
  state.loop.check(prompt, settings)
  events = state.loop.generate(prompt, settings, seed_name=asked.seed_name, sound=False,
                               began=service.began(request))
  if asked.stream:
    return service.Streamed(service.as_events(_events(events)), state.config.timeout,
                            'text/event-stream')
  done = await service.unless_gone(request.receive, _done(events), state.config.timeout)
  text = done.text.strip()
  if asked.response_format == 'text':
    return PlainTextResponse(text + '\n')
  if asked.response_format == 'json':
    return JSONResponse({'text': text, 'usage': _usage(done)})
  return JSONResponse({'task': 'transcribe', 'language': asked.language or 'unknown',
                       'duration': seconds, 'text': text, 'usage': _usage(done)})


def _typed(fields: dict[str, str]) -> dict[str, Any]:
  """Form fields are text; numbers of sampling parameters become numbers."""
  def one(key: str, text: str) -> Any:
    if key not in protocol.SAMPLING:
      return text
    for kind in (int, float):
      with contextlib.suppress(ValueError):
        return kind(text)
    return text
  for key in fields:
    if key.endswith('[]'):
      raise ApiError(400, f'{key[:40]} is not supported by this model; leave it out.', key[:40])
  return {key: one(key, text) for key, text in fields.items() if key != 'chunking_strategy'}


def _part(state: Service, contents: bytes):
  waveform, rate = sound_in.from_bytes(contents, '', 'file', state.config.max_audio)
  return state.served.encode(waveform, rate), round(len(waveform) / rate, 3)


async def _done(events: AsyncIterator[Event]) -> Done:
  async with contextlib.aclosing(events):  # pyright: ignore[reportArgumentType]
    async for event in events:
      if isinstance(event, Done):
        return event
  raise AssertionError('generate ends with Done')


async def _events(events: AsyncIterator[Event]) -> AsyncIterator[dict[str, Any]]:
  async with contextlib.aclosing(events):  # pyright: ignore[reportArgumentType]
    async for event in events:
      if isinstance(event, Text):
        yield {'type': 'transcript.text.delta', 'delta': event.text}
      elif isinstance(event, Done):
        yield {'type': 'transcript.text.done', 'text': event.text.strip(), 'usage': _usage(event)}


def _usage(done: Done) -> dict[str, Any]:
  answer = done.text_tokens + done.audio_tokens
  return {'type': 'tokens', 'input_tokens': done.prompt_tokens, 'output_tokens': answer,
          'total_tokens': done.prompt_tokens + answer}
