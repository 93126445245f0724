"""POST /v1/chat/completions."""

import base64
from collections.abc import AsyncIterator
import contextlib
import time
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ttt_jax.config import GenerateConfig
from ttt_jax.data.records import records
from ttt_jax.errors import UserError
from ttt_jax.serve import protocol, service, sound_in, sound_out
from ttt_jax.serve.engine_loop import Done, Event, Sound, Text
from ttt_jax.serve.errors import ApiError
from ttt_jax.serve.served_model import Message
from ttt_jax.serve.service import Service


async def complete(request: Request) -> Response:
  """Answer a conversation, as JSON or as server-sent events."""
  state: Service = request.app.state.service
  asked = protocol.ChatRequest.model_validate_json(await request.body())
  speaks = _speaks(state, asked)
  form = asked.audio.format if asked.audio else 'wav'
  if form not in sound_out.FORMATS or (asked.stream and form not in sound_out.STREAMED):
    known = sound_out.STREAMED if asked.stream else sound_out.FORMATS
    raise ApiError(400, f'audio.format is {form[:40]!r}; ' + (
        'with stream=true ' if asked.stream else '') + f'use one of {", ".join(known)}.',
                   'audio.format')
  messages = [_message(state, message, f'messages.{i}') for i, message in enumerate(asked.messages)]
  prompt = await state.loop.work(_prompt, state, messages)
  settings = _settings(state, asked, prompt.size, speaks)
  stop = tuple([asked.stop] if isinstance(asked.stop, str) else asked.stop or ())
  events = state.loop.generate(
      prompt, settings, seed_name=asked.seed_name, stop=tuple(filter(None, stop)), sound=speaks,
      began=service.began(request))
  reply = _Reply(state, asked, speaks, form)
  if asked.stream:
    state.loop.check(prompt, settings)
    return service.Streamed(service.as_events(reply.chunks(events), '[DONE]'),
                            state.config.timeout, 'text/event-stream')
  body = await service.unless_gone(request.receive, reply.whole(events), state.config.timeout)
  return JSONResponse(body)


def _speaks(state: Service, asked: protocol.ChatRequest) -> bool:
  wanted = asked.modalities or (['text', 'audio'] if asked.audio else ['text'])
  if 'audio' in wanted and state.served.codec is None:
    raise ApiError(400, f'modalities has audio, but the model {state.served.name} has no codec; '
                   'use ["text"].', 'modalities')
  return 'audio' in wanted


def _settings(state: Service, asked: protocol.ChatRequest, prompt: int,
              speaks: bool) -> GenerateConfig:
  base = state.served.settings
  most = asked.max_completion_tokens or asked.max_tokens
  limit = base.max_tokens if most is None else min(base.max_tokens, prompt + most)
  settings = asked.settings(base, max_tokens=limit)
  return settings if speaks else service.silent(settings)


def _prompt(state: Service, messages: list[tuple[Message, list[Any]]]) -> np.ndarray:
  """The ids of a conversation; recordings are encoded here, in a worker thread."""
  out = []
  for message, recordings in messages:
    parts = []
    for part in message.parts:
      if part.kind == 'audio':
        data, form, where = recordings.pop(0)
        part = state.served.encode(
            *sound_in.from_base64(data, form, where, state.config.max_audio))
      parts.append(part)
    out.append(Message(message.role, tuple(parts), message.ids))
  return state.served.prompt(out)


def _message(state: Service, message: protocol.ChatMessage,
             where: str) -> tuple[Message, list[tuple[str, str, str]]]:
  """A turn, and (base64, format, place) of each of its recordings."""
  role = 'system' if message.role == 'developer' else message.role
  if message.audio is not None:
    if role != 'assistant':
      raise ApiError(400, f'{where}.audio is for messages of the assistant; give a recording as a '
                     'part of type input_audio.', f'{where}.audio')
    ids = state.answers.get(message.audio.id)
    if ids is not None:
      return Message(role, ids=ids), []
    if message.content is None:
      raise ApiError(404, f'{where}.audio.id is {message.audio.id[:60]!r}, which is no answer that '
                     'the server keeps (an hour, the newest 1,024); send its text as content.',
                     f'{where}.audio.id', 'audio_not_found')
  content = message.content
  if isinstance(content, str):
    content = [protocol.TextPart(type='text', text=content)]
  parts: list[records.Part] = []
  recordings: list[tuple[str, str, str]] = []
  for number, part in enumerate(content or ()):
    here = f'{where}.content.{number}'
    if isinstance(part, protocol.TextPart):
      parts += [records.Part('text', part.text)] if part.text else []
      continue
    if role != 'user':
      raise ApiError(400, f'{here} is a recording in a message of the {role}; only messages of the '
                     'user have recordings.', here)
    if isinstance(part, protocol.AudioPart):
      recordings.append((part.input_audio.data, part.input_audio.format,
                         f'{here}.input_audio.data'))
    elif part.audio_url.url[:5].lower() == 'data:':
      recordings.append((part.audio_url.url, '', f'{here}.audio_url.url'))
    else:
      raise ApiError(400, f'{here}.audio_url.url is {part.audio_url.url[:40]!r}; the server opens '
                     'no addresses: send the recording as a data: URI.', f'{here}.audio_url.url')
    parts.append(records.Part('audio'))
  if not parts and role != 'system':
    raise UserError(f'{where}.content is empty; a message needs text or a recording.')
  return Message(role, tuple(parts)), recordings


class _Reply:
  """Builds the answer of one request."""

  def __init__(self, state: Service, asked: protocol.ChatRequest, speaks: bool, form: str):
    self._state, self._form, self._speaks = state, form, speaks
    self._asked = asked
    self._model = state.name(asked.model)
    self._id, self._audio_id = service.new_id('chatcmpl'), service.new_id('audio')
    self._created = int(time.time())

  async def whole(self, events: AsyncIterator[Event]) -> dict[str, Any]:
    """The answer as one JSON object."""
    pcm, done = [], None
    async with contextlib.aclosing(events):  # pyright: ignore[reportArgumentType]
      async for event in events:
        if isinstance(event, Sound):
          pcm.append(event.pcm)
        elif isinstance(event, Done):
          done = event
    assert done is not None, 'generate ends with Done'
    message: dict[str, Any] = {'role': 'assistant', 'content': done.text, 'refusal': None}
    if pcm:
      sound = await self._state.loop.work(sound_out.encode, b''.join(pcm), self._form)
      message['audio'] = {
          'id': self._audio_id, 'expires_at': self._state.answers.add(self._audio_id, done.ids),
          'data': base64.b64encode(sound).decode(), 'transcript': done.text}
    return {'id': self._id, 'object': 'chat.completion', 'created': self._created,
            'model': self._model, 'usage': usage(done),
            'choices': [{'index': 0, 'message': message, 'logprobs': None,
                         'finish_reason': done.reason}]}

  async def chunks(self, events: AsyncIterator[Event]) -> AsyncIterator[dict[str, Any]]:
    """The answer as chunks; text stands in ``content``, and in ``audio.transcript`` if the answer
    is spoken."""
    header = sound_out.wav_header() if self._form == 'wav' else b''
    async with contextlib.aclosing(events):  # pyright: ignore[reportArgumentType]
      yield self._chunk({'role': 'assistant', 'content': ''})
      async for event in events:
        if isinstance(event, Text):
          spoken = {'audio': {'id': self._audio_id, 'transcript': event.text}}
          yield self._chunk({'content': event.text, **(spoken if self._speaks else {})})
        elif isinstance(event, Sound):
          data, header = base64.b64encode(header + event.pcm).decode(), b''
          yield self._chunk({'audio': {'id': self._audio_id, 'data': data}})
        elif isinstance(event, Done):
          last: dict[str, Any] = {}
          if self._speaks:
            last['audio'] = {'id': self._audio_id,
                             'expires_at': self._state.answers.add(self._audio_id, event.ids)}
          yield self._chunk(last, event.reason)
          if self._asked.stream_options and self._asked.stream_options.include_usage:
            yield {**self._chunk({}), 'choices': [], 'usage': usage(event)}

  def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {'id': self._id, 'object': 'chat.completion.chunk', 'created': self._created,
            'model': self._model, 'choices': [{'index': 0, 'delta': delta, 'logprobs': None,
                                               'finish_reason': reason}]}


def usage(done: Done) -> dict[str, Any]:
  """Tokens of a request, as the protocol counts them."""
  answer = done.text_tokens + done.audio_tokens
  return {'prompt_tokens': done.prompt_tokens, 'completion_tokens': answer,
          'total_tokens': done.prompt_tokens + answer,
          'completion_tokens_details': {'text_tokens': done.text_tokens,
                                        'audio_tokens': done.audio_tokens}}
