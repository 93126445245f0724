"""The realtime protocol as a state machine: events of the client and of the engine in, effects out.

No network, no threads, no clock: ``socket.py`` feeds it and carries out its effects.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import numpy as np

from ttt_jax import config as config_lib
from ttt_jax.config import GenerateConfig, ServeConfig
from ttt_jax.errors import UserError
from ttt_jax.serve import engine_loop, protocol
from ttt_jax.serve.realtime import conversation, events, input_audio
from ttt_jax.serve.realtime.conversation import Content, Conversation, Item
from ttt_jax.serve.realtime.events import Refused, Settings
from ttt_jax.serve.realtime.response import Response, Sent
from ttt_jax.serve.served_model import ServedModel

MOST_OPEN = 4          # responses outside of the conversation at a time
_RETENTION = 0.6       # truncation 'auto': share of the prompt that stays when it is full
_SAMPLING = (*protocol.SAMPLING, 'temperature', 'top_p', 'seed')


@dataclasses.dataclass(frozen=True)
class Ask:
  """Answer, or transcribe, some items; results go to ``Session.answered`` under ``key``.

  Attributes:
    key: of the request.
    items: what the model reads; sound may still have to be encoded. One user's item for a
      transcription.
    instructions: the system prompt; '' = the model's own.
    settings: sampling parameters; max_tokens is the limit of prompt and answer.
    longest: tokens of the answer at most.
    retention: as for conversation.prompt.
    spoken: sound is wanted.
    watch: block events are wanted.
    transcribe: transcribe instead.
  """
  key: str
  items: tuple[Item, ...]
  settings: GenerateConfig
  instructions: str = ''
  longest: int = 2**30
  retention: float | None = _RETENTION
  spoken: bool = True
  watch: bool = False
  transcribe: bool = False


@dataclasses.dataclass(frozen=True)
class Stop:
  """Cancel a request; nothing that it still brings is wanted."""
  key: str


Effect = Sent | Ask | Stop


class Session:
  """One connection; every method returns the effects in their order."""

  def __init__(self, served: ServedModel, name: str, limits: ServeConfig,
               check: Callable[[GenerateConfig], None] = lambda settings: None):
    """
    Args:
      served: the model.
      name: unique among sessions; ids are made of it.
      limits: max_audio is that of a turn of the user; history is the default of sessions.
      check: raises UserError for settings that the server cannot use.
    """
    self._served, self._name, self._check = served, name, check
    self.settings = Settings(id=f'sess_{name}', model=served.name,
                             ttt=events.Extension(history_turns=limits.history))
    self._conversation = Conversation()
    self._turn_seconds = limits.max_audio
    self._input = input_audio.InputAudio(limits.max_audio)
    self._input.configure(self.settings.audio.input.turn_detection)
    self._active: Response | None = None          # of the conversation
    self._others: dict[str, Response] = {}        # outside of it
    self._transcripts: dict[str, Content] = {}    # being made, by key
    self._later: list[Item] = []                  # to be transcribed after the first sound
    self._since = ''                              # first item that still fits into a prompt
    self._turn = ''                               # id of the item that the user speaks
    self._count = 0

  # -- in -----------------------------------------------------------------------------------

  def open(self) -> list[Effect]:
    return self._numbered([{'type': 'session.created', 'session': self._session()}])

  def receive(self, raw: str | bytes) -> list[Effect]:
    """A frame of the client."""
    name, out = None, []
    try:
      value = events.decode(raw)
      name = value.get('event_id') if isinstance(value.get('event_id'), str) else None
      event = events.parse(value)
      self._handlers[event.type](self, event, out)
    except UserError as error:
      out.append(_error(error, name))
    return self._numbered(out)

  def fits(self, key: str, since: str) -> None:
    """The prompt of a request begins with the item ``since``: older ones no longer fit."""
    if self._active and self._active.id == key:
      self._since = since

  def answered(self, key: str, event: engine_loop.Event) -> list[Effect]:
    """What the engine reports of a request; an event of one that was stopped has no effect."""
    out: list[Effect] = []
    if key in self._transcripts:
      self._transcribed(key, event, out)
    elif response := self._response(key):
      self._progress(response, event, out)
    return self._numbered(out)

  def failed(self, key: str, message: str, code: str | None = None) -> list[Effect]:
    """A request could not be answered."""
    out: list[Effect] = []
    problem = {'type': 'server_error' if code else 'invalid_request_error', 'code': code,
               'message': message}
    if self._transcripts.pop(key, None):
      out.append({'type': 'conversation.item.input_audio_transcription.failed',
                  'item_id': _item_of(key), 'content_index': 0, 'error': problem})
    elif response := self._response(key):
      self._finish(response, 'failed', {'error': problem}, None, out)
    return self._numbered(out)

  # -- events of the client -----------------------------------------------------------------

  def _update(self, event: events.SessionUpdate, out: list[Effect]) -> None:
    settings = self.settings.updated(event.session)
    self._sampling(settings.ttt)
    self.settings = settings
    self._input.configure(settings.audio.input.turn_detection)
    out.append({'type': 'session.updated', 'session': self._session()})

  def _append(self, event: events.BufferAppend, out: list[Effect]) -> None:
    for edge in self._input.append(input_audio.pcm(event.audio, 'audio')):
      if edge.samples is None:
        self._turn = self._new('item')
        out.append({'type': 'input_audio_buffer.speech_started', 'audio_start_ms': edge.at,
                    'item_id': self._turn})
        detection = self.settings.audio.input.turn_detection
        if self._active and detection and detection.interrupt_response:
          self._cancel(self._active, 'turn_detected', out)
      else:
        out.append({'type': 'input_audio_buffer.speech_stopped', 'audio_end_ms': edge.at,
                    'item_id': self._turn})
        self._commit(edge.samples, self._turn, out)
        detection = self.settings.audio.input.turn_detection
        if detection and detection.create_response:
          try:
            self._respond(events.ResponseParams(), out)
          except Refused as error:  # without interrupt_response an answer may still be open
            out.append(_error(error, None))

  def _commit_buffer(self, event: events.Event, out: list[Effect]) -> None:
    name = self._turn if self._input.speaking else self._new('item')
    self._commit(self._input.commit(), name, out)

  def _clear_buffer(self, event: events.Event, out: list[Effect]) -> None:
    self._input.clear()
    out.append({'type': 'input_audio_buffer.cleared'})

  def _create(self, event: events.ItemCreate, out: list[Effect]) -> None:
    self._add(self._item(event.item), out, event.previous_item_id)

  def _delete(self, event: events.ItemOf, out: list[Effect]) -> None:
    self._not_open(event.item_id)
    self._conversation.delete(event.item_id)
    out.append({'type': 'conversation.item.deleted', 'item_id': event.item_id})

  def _retrieve(self, event: events.ItemOf, out: list[Effect]) -> None:
    out.append({'type': 'conversation.item.retrieved',
                'item': self._conversation.find(event.item_id).shown()})

  def _truncate(self, event: events.ItemTruncate, out: list[Effect]) -> None:
    item = self._conversation.find(event.item_id)
    self._not_open(item.id)
    if event.content_index:
      raise Refused(f'content_index is {event.content_index}; items have one part, number 0.',
                    'invalid_value', 'content_index')
    if item.ids is None or not item.content[0].spoken:
      raise Refused(f'item {item.id!r} is no spoken answer; only those can be truncated.',
                    'invalid_value', 'item_id')
    duration = item.sent * 1000 // events.RATE
    if event.audio_end_ms > duration:
      raise Refused(f'audio_end_ms is {event.audio_end_ms}, but the sound of item {item.id!r} has '
                    f'{duration} ms.', 'invalid_value', 'audio_end_ms')
    if event.audio_end_ms < duration:
      item.ids = conversation.heard(self._served, item.ids, event.audio_end_ms)
      item.content[0].text = self._served.renderer.unrender(item.ids)[0]
      item.sent = event.audio_end_ms * events.RATE // 1000
    out.append({'type': 'conversation.item.truncated', 'item_id': item.id, 'content_index': 0,
                'audio_end_ms': event.audio_end_ms})

  def _create_response(self, event: events.ResponseCreate, out: list[Effect]) -> None:
    self._respond(event.response or events.ResponseParams(), out)

  def _cancel_response(self, event: events.ResponseCancel, out: list[Effect]) -> None:
    response = self._response(event.response_id) if event.response_id else self._active
    if response is None:
      raise Refused('there is no response to cancel' + (
          f' with the id {event.response_id!r}.' if event.response_id else '.'),
                    'response_cancel_not_active', 'response_id' if event.response_id else None)
    self._cancel(response, 'client_cancelled', out)

  _handlers = {
      'session.update': _update, 'input_audio_buffer.append': _append,
      'input_audio_buffer.commit': _commit_buffer, 'input_audio_buffer.clear': _clear_buffer,
      'conversation.item.create': _create, 'conversation.item.delete': _delete,
      'conversation.item.retrieve': _retrieve, 'conversation.item.truncate': _truncate,
      'response.create': _create_response, 'response.cancel': _cancel_response}

  # -- items ----------------------------------------------------------------------------------

  def _item(self, given: events.NewItem) -> Item:
    return conversation.new_item(given, self._new('item'), self._turn_seconds)

  def _add(self, item: Item, out: list[Effect], after: str | None = None) -> None:
    previous = self._conversation.add(item, after)
    out += [{'type': f'conversation.item.{kind}', 'previous_item_id': previous,
             'item': item.shown()} for kind in ('added', 'done')]
    self._forget(out)

  def _forget(self, out: list[Effect]) -> None:
    last = self._conversation.last
    out += [{'type': 'conversation.item.deleted', 'item_id': name}
            for name in self._conversation.overflow(last.id if last else '')]

  def _commit(self, samples: np.ndarray, name: str, out: list[Effect]) -> None:
    item = Item(name, 'user', [Content('input_audio', samples=samples)])
    last = self._conversation.last
    out.append({'type': 'input_audio_buffer.committed', 'item_id': name,
                'previous_item_id': last.id if last else None})
    self._add(item, out)
    if self.settings.audio.input.transcription is not None:
      detection = self.settings.audio.input.turn_detection
      if detection and detection.create_response:
        self._later.append(item)  # it would make the answer late
      else:
        self._transcribe(item, out)

  def _transcribe(self, item: Item, out: list[Effect]) -> None:
    key = f'transcript_{item.id}'
    self._transcripts[key] = item.content[0]
    out.append(Ask(key, (item,), self._served.settings, transcribe=True, spoken=False))

  def _transcribed(self, key: str, event: engine_loop.Event, out: list[Effect]) -> None:
    content, item = self._transcripts[key], _item_of(key)
    kind = 'conversation.item.input_audio_transcription'
    if isinstance(event, engine_loop.Text) and event.text:
      content.text = (content.text or '') + event.text
      out.append({'type': f'{kind}.delta', 'item_id': item, 'content_index': 0,
                  'delta': event.text})
    if isinstance(event, engine_loop.Done):
      del self._transcripts[key]
      content.text = (content.text or '').strip()
      out.append({'type': f'{kind}.completed', 'item_id': item, 'content_index': 0,
                  'transcript': content.text, 'usage': {
                      'type': 'tokens', 'input_tokens': event.prompt_tokens,
                      'output_tokens': event.text_tokens,
                      'total_tokens': event.prompt_tokens + event.text_tokens}})

  def _not_open(self, name: str) -> None:
    if self._active and self._active.item.id == name:
      raise Refused(f'item {name!r} is being answered; cancel the response first.',
                    'invalid_value', 'item_id')

  # -- responses ------------------------------------------------------------------------------

  def _respond(self, given: events.ResponseParams, out: list[Effect]) -> None:
    kept = given.conversation == 'auto'
    if kept and self._active:
      raise Refused(f'the response {self._active.id} is still open; wait for response.done, or '
                    'cancel it.', 'conversation_already_has_active_response')
    if not kept and len(self._others) >= MOST_OPEN:
      raise Refused(f'{MOST_OPEN} responses outside of the conversation are open; wait for one of '
                    'them.', 'too_many_responses')
    extension = given.ttt or self.settings.ttt
    settings = self._sampling(extension)
    items = self._context(given, extension)
    if not items or items[-1].role != 'user':
      raise Refused('there is nothing to answer: the last item must be a message of the user; '
                    'commit the input audio buffer or create an item first.', 'nothing_to_answer')
    limit = given.max_output_tokens or self.settings.max_output_tokens
    modalities = given.output_modalities or self.settings.output_modalities
    response = Response(self._new('resp'), self._new('item'),
                        f'conv_{self._name}' if kept else None, list(modalities), given.metadata,
                        limit, settings.steps)
    if kept:
      self._active = response
    else:
      self._others[response.id] = response
    truncation = self.settings.truncation
    retention = None if truncation == 'disabled' else (
        _RETENTION if isinstance(truncation, str) else truncation.retention_ratio)
    instructions = self.settings.instructions if given.instructions is None else given.instructions
    out += [response.created(), Ask(
        response.id, tuple(items), settings, instructions,
        2**30 if isinstance(limit, str) else limit, retention, response.spoken,
        extension.block_events)]

  def _context(self, given: events.ResponseParams, extension: events.Extension) -> list[Item]:
    if given.input is None:
      return self._conversation.context(self._since, extension.history_turns)
    return [self._conversation.find(one.id) if isinstance(one, events.Reference)
            else self._item(one) for one in given.input]

  def _sampling(self, extension: events.Extension) -> GenerateConfig:
    base, changes = self._served.settings, extension.sampling
    for key in changes:
      if key not in _SAMPLING:
        raise Refused(f'ttt.sampling.{key} is no sampling setting; use one of '
                      f'{", ".join(_SAMPLING)}.', 'unknown_parameter', f'ttt.sampling.{key}')
    settings = config_lib.from_dict(
        GenerateConfig, dataclasses.asdict(base) | changes, 'generate') if changes else base
    self._check(settings)
    return settings

  def _response(self, key: str | None) -> Response | None:
    if self._active and self._active.id == key:
      return self._active
    return self._others.get(key or '')

  def _progress(self, response: Response, event: engine_loop.Event, out: list[Effect]) -> None:
    if not response.began:
      last = self._conversation.last
      out += response.begin(last.id if last and response.kept else None)
      if response.kept:
        self._conversation.add(response.item)
        self._forget(out)
    if isinstance(event, engine_loop.Ids):
      response.ids(event.ids)
    elif isinstance(event, engine_loop.Text):
      out += response.text(event.text) if event.text else []
    elif isinstance(event, engine_loop.Sound):
      out += response.sound(event.pcm)
      self._flush_transcripts(out)
    elif isinstance(event, engine_loop.Block):
      out.append({'type': 'ttt.block', 'response_id': response.id, 'item_id': response.item.id,
                  'span': event.span, 'block': event.block, 'step': event.step,
                  'steps': response.steps, 'codes': event.codes})
    else:
      done = event.reason == 'stop'
      details = None if done else {'reason': 'max_output_tokens'}
      usage = {'total_tokens': event.prompt_tokens + event.text_tokens + event.audio_tokens,
               'input_tokens': event.prompt_tokens,
               'output_tokens': event.text_tokens + event.audio_tokens,
               'output_token_details': {'text_tokens': event.text_tokens,
                                        'audio_tokens': event.audio_tokens}}
      self._finish(response, 'completed' if done else 'incomplete', details, usage, out)

  def _cancel(self, response: Response, reason: str, out: list[Effect]) -> None:
    out.append(Stop(response.id))
    self._finish(response, 'cancelled', {'reason': reason}, None, out)

  def _finish(self, response: Response, status: str, details: Sent | None, usage: Sent | None,
              out: list[Effect]) -> None:
    if response is self._active:
      self._active = None
    else:
      del self._others[response.id]
    previous = None
    if response.kept and response.began:
      names = [item.id for item in self._conversation]
      at = names.index(response.item.id) if response.item.id in names else 0
      previous = names[at - 1] if at else None
    out += response.finish(status, details, usage, previous)
    self._flush_transcripts(out)

  def _flush_transcripts(self, out: list[Effect]) -> None:
    while self._later:
      self._transcribe(self._later.pop(0), out)

  # -- out ------------------------------------------------------------------------------------

  def _session(self) -> dict[str, Any]:
    return self.settings.model_dump(exclude_none=False)

  def _new(self, kind: str) -> str:
    self._count += 1
    return f'{kind}_{self._name}_{self._count}'

  def _numbered(self, effects: list[Effect]) -> list[Effect]:
    return [{'event_id': self._new('event'), **effect} if isinstance(effect, dict) else effect
            for effect in effects]


def _item_of(key: str) -> str:
  return key.removeprefix('transcript_')


def _error(error: UserError, event_id: str | None) -> Sent:
  refused = error if isinstance(error, Refused) else Refused(str(error))
  return {'type': 'error', 'error': {
      'type': 'invalid_request_error', 'code': refused.code, 'message': str(error),
      'param': refused.param, 'event_id': event_id}}
