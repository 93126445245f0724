"""The requests of the protocol, as pydantic models; what is not supported is an error."""

import dataclasses
import difflib
from typing import Annotated, Any, Literal

import pydantic

from ttt_jax.config import GenerateConfig
from ttt_jax.config.ranges import LARGEST
from ttt_jax.serve.errors import ApiError

# Fields of GenerateConfig that a request may set by their own name. The others belong to the engine
# or have a field of the protocol.
SAMPLING = ('block', 'steps', 'min_span', 'max_span', 'text_gap', 'top_k', 'audio_temperature',
            'guidance', 'rule', 'threshold', 'entropy_budget', 'schedule', 'shift')
# Fields of the protocol that change nothing here, or only how an answer is billed or stored.
_IGNORED = ('user', 'metadata', 'store', 'service_tier', 'parallel_tool_calls', 'safety_identifier',
            'prompt_cache_key', 'prompt_cache_retention', 'verbosity', 'reasoning_effort',
            'stream_options')
# Fields with the only value that is supported.
_ONLY: dict[str, tuple[Any, ...]] = {
    'n': (1,), 'logprobs': (False,), 'top_logprobs': (0,), 'tools': ([],),
    'tool_choice': ('none', 'auto'), 'functions': ([],), 'frequency_penalty': (0,),
    'presence_penalty': (0,), 'logit_bias': ({},), 'response_format': ({'type': 'text'},)}


class _Model(pydantic.BaseModel):
  model_config = pydantic.ConfigDict(extra='forbid', strict=False)


class InputAudio(_Model):
  data: str
  format: str = ''


class AudioUrl(_Model):
  url: str


class TextPart(_Model):
  type: Literal['text', 'input_text', 'output_text']
  text: str


class AudioPart(_Model):
  type: Literal['input_audio']
  input_audio: InputAudio


class UrlPart(_Model):
  type: Literal['audio_url']
  audio_url: AudioUrl


Part = Annotated[TextPart | AudioPart | UrlPart, pydantic.Field(discriminator='type')]


class AnswerId(pydantic.BaseModel):
  """The audio of an earlier answer; what else a client sends back of it is not needed."""
  id: str


class ChatMessage(pydantic.BaseModel):
  role: Literal['system', 'developer', 'user', 'assistant']
  content: str | list[Part] | None = None
  audio: AnswerId | None = None


class AudioOut(_Model):
  voice: Any = None
  format: str = 'wav'


class StreamOptions(pydantic.BaseModel):
  include_usage: bool = False


class Sampled(pydantic.BaseModel):
  """The fields by which every kind of request sets its sampling parameters."""
  model_config = pydantic.ConfigDict(extra='allow')
  model: str | None = None
  temperature: Annotated[float, pydantic.Field(ge=0, le=2)] | None = None
  top_p: Annotated[float, pydantic.Field(gt=0, le=1)] | None = None
  seed: Annotated[int, pydantic.Field(ge=-2**63, lt=2**64)] | None = None

  def settings(self, base: GenerateConfig, **changes: Any) -> GenerateConfig:
    """``base`` with what the request sets, and ``changes``.

    Raises:
      ApiError: an unknown field, or one with a value that is not supported.
      UserError: a setting out of its range.
    """
    extra = dict(self.model_extra or {})
    given: dict[str, Any] = {}
    for key, value in extra.items():
      if value is None or key in _IGNORED:
        continue
      if key in _ONLY:
        if value not in _ONLY[key]:
          raise ApiError(400, f'{key} is {str(value)[:60]!r}, which is not supported; leave it '
                         'out.', key)
      elif key in SAMPLING:
        given[key] = _typed(key, value)
      else:
        close = difflib.get_close_matches(key, [*SAMPLING, *type(self).model_fields], n=1)
        raise ApiError(400, f'{key[:60]} is not a field of this request' + (
            f'; did you mean {close[0]}?' if close else '.'), key[:60])
    for key in ('temperature', 'top_p'):
      if (value := getattr(self, key)) is not None:
        given[key] = value
    if self.seed is not None:
      given['seed'] = self.seed % (LARGEST + 1)
    return dataclasses.replace(base, **given, **changes)

  @property
  def seed_name(self) -> int | None:
    """Requests with equal seeds draw equally, whatever was asked before."""
    return None if self.seed is None else 0


def _typed(key: str, value: Any) -> Any:
  """A sampling parameter with the type of its setting."""
  kind = type(getattr(GenerateConfig(), key))
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(min(max(value, -1e30), 1e30))
  if type(value) is not kind:
    raise ApiError(400, f'{key} is {str(value)[:60]!r}; it must be of type {kind.__name__}.', key)
  return value


class ChatRequest(Sampled):
  messages: Annotated[list[ChatMessage], pydantic.Field(min_length=1)]
  modalities: list[Literal['text', 'audio']] | None = None
  audio: AudioOut | None = None
  stream: bool = False
  stream_options: StreamOptions | None = None
  max_tokens: Annotated[int, pydantic.Field(ge=1, le=LARGEST)] | None = None
  max_completion_tokens: Annotated[int, pydantic.Field(ge=1, le=LARGEST)] | None = None
  stop: str | Annotated[list[str], pydantic.Field(max_length=16)] | None = None


class SpeechRequest(Sampled):
  input: Annotated[str, pydantic.Field(min_length=1)]
  voice: Any = None
  response_format: str = 'mp3'
  stream_format: Literal['audio', 'sse'] = 'audio'
  speed: float = 1.0
  instructions: str | None = None


class TranscriptionRequest(Sampled):
  response_format: Literal['json', 'text', 'verbose_json', 'srt', 'vtt',
                           'diarized_json'] = 'json'
  language: str | None = None
  prompt: str | None = None
  stream: bool = False
