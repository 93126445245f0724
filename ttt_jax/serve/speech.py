"""POST /v1/audio/speech: a text, read aloud."""

import base64
from collections.abc import AsyncIterator
import contextlib
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ttt_jax.data.records import records
from ttt_jax.serve import protocol, service, sound_out
from ttt_jax.serve.engine_loop import Done, Event, Sound
from ttt_jax.serve.errors import ApiError
from ttt_jax.serve.served_model import Message
from ttt_jax.serve.service import Service

_STREAMED = ('wav', 'pcm', 'pcm16')


async def speak(request: Request) -> Response:
  """Read a text aloud: bytes, or server-sent events."""
  state: Service = request.app.state.service
  asked = protocol.SpeechRequest.model_validate_json(await request.body())
  if state.served.codec is None:
    raise ApiError(400, f'the model {state.served.name} has no codec, so it does not speak.')
  if asked.response_format not in sound_out.FORMATS:
    raise ApiError(400, f'response_format is {asked.response_format[:40]!r}; use one of '
                   f'{", ".join(sound_out.FORMATS)}.', 'response_format')
  if asked.speed != 1:
    raise ApiError(400, f'speed is {asked.speed:g}; the model speaks at the speed of its training '
                   'data: leave it out.', 'speed')
  if asked.instructions:
    raise ApiError(400, 'instructions are not supported by this model; leave them out.',
                   'instructions')
  message = Message('user', (records.Part('text', asked.input),))
  prompt = await state.loop.work(state.served.prompt, [message], 'tts')
  settings = asked.settings(state.served.settings)
  state.loop.check(prompt, settings)
  events = state.loop.generate(prompt, settings, seed_name=asked.seed_name,
                               began=service.began(request))
  form, seconds = asked.response_format, state.config.timeout
  if asked.stream_format == 'sse':
    if form not in _STREAMED:
      form = 'pcm'  # the client's default is mp3, which cannot be sent in pieces
    return service.Streamed(service.as_events(_events(events, form)), seconds, 'text/event-stream')
  if form in _STREAMED:
    return service.Streamed(_bytes(events, form), seconds, sound_out.media_type(form))
  whole = _encoded(state, events, form)
  return Response(await service.unless_gone(request.receive, whole, seconds),
                  media_type=sound_out.media_type(form))


async def _bytes(events: AsyncIterator[Event], form: str) -> AsyncIterator[bytes]:
  header = sound_out.wav_header() if form == 'wav' else b''
  async with contextlib.aclosing(events):  # pyright: ignore[reportArgumentType]
    async for event in events:
      if isinstance(event, Sound):
        yield header + event.pcm
        header = b''
  if header:
    yield header  # no sound at all: an empty WAV file


async def _encoded(state: Service, events: AsyncIterator[Event], form: str) -> bytes:
  return await state.loop.work(
      sound_out.encode, b''.join([piece async for piece in _bytes(events, 'pcm')]), form)


async def _events(events: AsyncIterator[Event], form: str) -> AsyncIterator[dict[str, Any]]:
  header = sound_out.wav_header() if form == 'wav' else b''
  async with contextlib.aclosing(events):  # pyright: ignore[reportArgumentType]
    async for event in events:
      if isinstance(event, Sound):
        data, header = base64.b64encode(header + event.pcm).decode(), b''
        yield {'type': 'speech.audio.delta', 'audio': data}
      elif isinstance(event, Done):
        answer = event.text_tokens + event.audio_tokens
        yield {'type': 'speech.audio.done', 'usage': {
            'input_tokens': event.prompt_tokens, 'output_tokens': answer,
            'total_tokens': event.prompt_tokens + answer}}
