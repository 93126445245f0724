"""The client's events and the settings of a session, and the sentences that refuse them.

Names are those of the published protocol. A field that this server does not have is refused unless
it is empty, so that nothing that a client asks for is ignored in silence. ``ttt`` holds what the
protocol has no name for.
"""

import difflib
import json
import re
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from ttt_jax.errors import UserError

RATE = 24_000  # Hz, of all PCM

# Where settings of the protocol's preview are now.
_MOVED = {'modalities': 'output_modalities', 'turn_detection': 'audio.input.turn_detection',
          'voice': 'audio.output.voice', 'input_audio_format': 'audio.input.format',
          'output_audio_format': 'audio.output.format',
          'input_audio_transcription': 'audio.input.transcription',
          'max_response_output_tokens': 'max_output_tokens',
          'temperature': 'ttt.sampling.temperature'}


class Refused(UserError):
  """A client's event that cannot be followed.

  Attributes:
    code: as in the protocol, None if it has none.
    param: the field, None if it is none.
  """

  def __init__(self, message: str, code: str | None = None, param: str | None = None):
    super().__init__(message)
    self.code, self.param = code, param


def _empty(value: Any) -> Any:
  if value not in (None, [], {}, '', 'auto', 'none', False):
    raise ValueError('is not supported by this server; leave it out')
  return value


Unsupported = Annotated[Any, pydantic.AfterValidator(_empty)]


class Strict(pydantic.BaseModel):
  model_config = pydantic.ConfigDict(extra='forbid', strict=True)


# -- the session ----------------------------------------------------------------------------


class TurnDetection(Strict):
  type: Literal['server_vad'] = 'server_vad'
  threshold: float = Field(default=0.5, ge=0, le=1)
  prefix_padding_ms: int = Field(default=300, ge=0, le=5_000)
  silence_duration_ms: int = Field(default=500, ge=100, le=10_000)
  create_response: bool = True
  interrupt_response: bool = True
  idle_timeout_ms: Unsupported = None


class Transcription(Strict):
  model: str | None = None
  language: str | None = None
  prompt: Unsupported = None


class Format(Strict):
  type: Literal['audio/pcm'] = 'audio/pcm'
  rate: Literal[24000] = 24000


class InputAudio(Strict):
  format: Format = Format()
  transcription: Transcription | None = None
  turn_detection: TurnDetection | None = TurnDetection()
  noise_reduction: Unsupported = None


class Voice(Strict):
  id: str


class OutputAudio(Strict):
  format: Format = Format()
  voice: str | Voice = 'default'
  speed: float = Field(default=1.0, ge=1, le=1)


class Audio(Strict):
  input: InputAudio = InputAudio()
  output: OutputAudio = OutputAudio()


class Retention(Strict):
  type: Literal['retention_ratio']
  retention_ratio: float = Field(ge=0, le=1)
  token_limits: Unsupported = None


class Extension(Strict):
  """What the protocol has no name for.

  Attributes:
    block_events: send ``ttt.block`` for every step of the open block.
    history_turns: earlier turns of the user that the model reads, with their answers; None = all.
    sampling: settings of config section ``generate``.
  """
  block_events: bool = False
  history_turns: int | None = Field(default=None, ge=0)
  sampling: dict[str, int | float | str] = {}


Modalities = Annotated[list[Literal['text', 'audio']], Field(min_length=1, max_length=2)]
Tokens = Annotated[int, Field(ge=1)] | Literal['inf']


class Settings(Strict):
  """A session's settings; also what session.created and session.updated report."""
  type: Literal['realtime'] = 'realtime'
  object: str = 'realtime.session'
  id: str = ''
  model: str = ''
  instructions: str = ''
  output_modalities: Modalities = ['audio']
  max_output_tokens: Tokens = 'inf'
  audio: Audio = Audio()
  truncation: Literal['auto', 'disabled'] | Retention = 'auto'
  ttt: Extension = Extension()
  tools: Unsupported = []
  tool_choice: Unsupported = 'auto'
  parallel_tool_calls: Unsupported = None
  tracing: Unsupported = None
  include: Unsupported = None
  prompt: Unsupported = None
  reasoning: Unsupported = None
  expires_at: Unsupported = None

  def updated(self, changes: dict[str, Any]) -> 'Settings':
    """These settings with some changed; objects are merged, everything else is replaced.

    Raises:
      Refused: an unknown setting, or a value out of range.
    """
    for key in ('id', 'object', 'model'):  # a client may send back what it was given
      if changes.get(key, getattr(self, key)) != getattr(self, key) and key != 'model':
        raise Refused(f'session.{key} cannot be changed; leave it out.', 'invalid_value',
                      f'session.{key}')
    return checked(Settings, _merged(self.model_dump(), changes), 'session')


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
  out = dict(old)
  for key, value in new.items():
    # The sampling settings of an update are all there are: this is how a client removes one.
    both = isinstance(value, dict) and isinstance(old.get(key), dict) and key != 'sampling'
    out[key] = _merged(old[key], value) if both else value
  return out


# -- events -----------------------------------------------------------------------------------


class Event(Strict):
  type: str
  event_id: str | None = Field(default=None, max_length=512)


class SessionUpdate(Event):
  session: dict[str, Any]


class BufferAppend(Event):
  audio: str


class Bare(Event):
  """input_audio_buffer.commit and .clear."""


class Content(Strict):
  type: Literal['input_text', 'input_audio', 'output_text', 'output_audio', 'text', 'audio']
  text: str | None = None
  audio: str | None = None
  transcript: str | None = None


class NewItem(Strict):
  type: Literal['message'] = 'message'
  role: Literal['system', 'user', 'assistant']
  content: list[Content] = Field(min_length=1, max_length=100)
  id: str | None = Field(default=None, min_length=1, max_length=64)
  object: str | None = None
  status: str | None = None


class Reference(Strict):
  type: Literal['item_reference']
  id: str


class ItemCreate(Event):
  item: NewItem
  previous_item_id: str | None = None


class ItemOf(Event):
  """conversation.item.delete and .retrieve."""
  item_id: str


class ItemTruncate(Event):
  item_id: str
  content_index: int = Field(default=0, ge=0)
  audio_end_ms: int = Field(ge=0)


class OutputOnly(Strict):
  output: OutputAudio = OutputAudio()


class ResponseParams(Strict):
  output_modalities: Modalities | None = None
  instructions: str | None = None
  max_output_tokens: Tokens | None = None
  conversation: Literal['auto', 'none'] = 'auto'
  input: list[Annotated[NewItem | Reference, Field(discriminator='type')]] | None = None
  metadata: dict[str, str] | None = Field(default=None, max_length=16)
  audio: OutputOnly | None = None
  ttt: Extension | None = None
  tools: Unsupported = None
  tool_choice: Unsupported = None
  parallel_tool_calls: Unsupported = None
  prompt: Unsupported = None
  reasoning: Unsupported = None


class ResponseCreate(Event):
  response: ResponseParams | None = None


class ResponseCancel(Event):
  response_id: str | None = None


EVENTS: dict[str, type[Event]] = {
    'session.update': SessionUpdate,
    'input_audio_buffer.append': BufferAppend,
    'input_audio_buffer.commit': Bare,
    'input_audio_buffer.clear': Bare,
    'conversation.item.create': ItemCreate,
    'conversation.item.delete': ItemOf,
    'conversation.item.retrieve': ItemOf,
    'conversation.item.truncate': ItemTruncate,
    'response.create': ResponseCreate,
    'response.cancel': ResponseCancel,
}


def decode(raw: str | bytes) -> dict[str, Any]:
  """The object of one frame.

  Raises:
    Refused: not a JSON object.
  """
  try:
    value = json.loads(raw)
  except RecursionError as error:
    raise Refused('an event is nested too deeply; events have a few levels.', 'invalid_json'
                  ) from error
  except ValueError as error:  # UnicodeDecodeError is one
    raise Refused(f'an event is no JSON ({error}); send one JSON object in each frame.',
                  'invalid_json') from error
  if not isinstance(value, dict):
    raise Refused(f'an event is {_shown(value)}; send a JSON object with "type".', 'invalid_event')
  return value


def parse(value: dict[str, Any]) -> Event:
  """A client's event.

  Raises:
    Refused: an unknown type, a missing or unknown field, or a value out of range.
  """
  kind = value.get('type')
  if kind == 'output_audio_buffer.clear':
    raise Refused('output_audio_buffer.clear is for WebRTC; over a WebSocket the client stops its '
                  'own player and sends conversation.item.truncate.', 'invalid_event', 'type')
  if not isinstance(kind, str) or kind not in EVENTS:
    close = difflib.get_close_matches(kind, EVENTS, n=1) if isinstance(kind, str) else []
    hint = f'did you mean {close[0]}?' if close else f'use one of {", ".join(EVENTS)}.'
    raise Refused(f'"type" is {_shown(kind)}, which is no event of a client; {hint}',
                  'invalid_event', 'type')
  return checked(EVENTS[kind], value, '')


def checked(model: type[Any], value: dict[str, Any], where: str) -> Any:
  """``value`` as a ``model``.

  Raises:
    Refused: the first thing that is wrong with it, by its path below ``where``.
  """
  try:
    return model.model_validate(value)
  except pydantic.ValidationError as error:
    # Of a union every branch has an error: that of the branch that was most likely meant.
    unlikely = {'literal_error': 1, 'model_type': 2}
    found = min(error.errors(include_url=False), key=lambda one: (
        one['loc'][-1:] != ('type',), unlikely.get(one['type'], 0)))
    path = [str(key) for key in found['loc'] if not _is_branch(key)]
    name = '.'.join([where, *path] if where else path)
    raise Refused(_sentence(name, found), 'unknown_parameter' if
                  found['type'] == 'extra_forbidden' else 'invalid_value', name) from error
  except RecursionError as error:
    raise Refused('an event is nested too deeply; events have a few levels.') from error


def _is_branch(key: str | int) -> bool:
  """Whether a part of pydantic's path names a branch of a union, not a field of the client's."""
  return isinstance(key, str) and (not re.fullmatch('[a-z_0-9]+', key) or key in (
      'str', 'int', 'float', 'bool', 'message', 'item_reference'))


def _sentence(name: str, found: Any) -> str:
  if found['type'] == 'missing':
    return f'{name} is missing.'
  if found['type'] == 'extra_forbidden':
    moved = _MOVED.get(name.removeprefix('session.'))
    return f'{name} is no field of this protocol' + (
        f'; use session.{moved}.' if moved else '; leave it out.')
  if found['type'] == 'union_tag_invalid':
    expected = found['ctx']['expected_tags']
    return f'{name}.type is {_shown(found["ctx"]["tag"])}; it must be one of {expected}.'
  message = found['msg'].removeprefix('Value error, ')
  if message.startswith('is '):
    return f'{name} {message}.'
  message = message.replace('Input should', 'it should').replace('it should be a valid', 'it must '
                                                                 'be a')
  return f'{name} is {_shown(found["input"])}; {message}.'


def _shown(value: Any) -> str:
  try:
    text = json.dumps(value, ensure_ascii=True)
  except (TypeError, ValueError, RecursionError):
    text = type(value).__name__
  return text if len(text) <= 60 else text[:57] + '...'
