"""What comes out of generation."""

import dataclasses

import numpy as np


@dataclasses.dataclass
class Span:
  """One generated audio span.

  Attributes:
    start: index of its first token in Answer.ids.
    length: tokens, end token included.
    ended: True if the model ended it, False if the limit did.
    blocks: blocks of masks used.
  """
  start: int
  length: int
  ended: bool
  blocks: int


@dataclasses.dataclass
class Answer:
  """What was generated for one prompt.

  Attributes:
    ids: int32 [n], generated ids (without the prompt).
    spans: audio spans, in order.
    finished: True if im_end was generated, False at the length limit.
    calls: forward passes this request took part in, without those that read the prompt.
    seconds: from the request's admission to its last token.
    first_audio: from its admission to the first audio token that could no longer change;
      None without audio.
  """
  ids: np.ndarray
  spans: list[Span]
  finished: bool
  calls: int
  seconds: float = 0.0
  first_audio: float | None = None


@dataclasses.dataclass
class Event:
  """Something that happened to a request.

  Attributes:
    request: number of the request, as ``Engine.submit`` gave it.
    kind: 'text' or 'audio', tokens that can no longer change; 'span', one was closed;
      'done'.
    ids: int32, the new tokens of 'text' and 'audio'.
    span: of 'span'.
    answer: of 'done'.
  """
  request: int
  kind: str
  ids: np.ndarray | None = None
  span: Span | None = None
  answer: Answer | None = None
