"""Outputs of generation: answers, their audio spans, and events while they are generated."""

import dataclasses

import numpy as np


@dataclasses.dataclass
class Span:
  """One generated audio span.

  Attributes:
    start: index of its first token in Answer.ids.
    length: tokens, end token included.
    ended: True if the model generated its end token, False if a limit forced it.
    blocks: blocks of masks that it took.
  """
  start: int
  length: int
  ended: bool
  blocks: int


@dataclasses.dataclass
class Answer:
  """The answer to one prompt.

  Attributes:
    ids: int32 [n], generated ids, without the prompt.
    spans: audio spans, in order.
    finished: True if im_end was generated, False at the length limit.
    calls: forward passes that the request took part in, without those that read the prompt.
    seconds: from the request's admission to its last token.
    first_audio: seconds from its admission to the first final audio token; None without audio.
  """
  ids: np.ndarray
  spans: list[Span]
  finished: bool
  calls: int
  seconds: float = 0.0
  first_audio: float | None = None


@dataclasses.dataclass
class Event:
  """An event of a request.

  Attributes:
    request: number of the request, as ``Engine.submit`` returned it.
    kind: 'text' or 'audio': new tokens that are final; 'span': a span was closed; 'block': a step
      of the open block, for requests that are watched; 'done': the answer is complete.
    ids: int32 [n], the new tokens of 'text' and 'audio'; all of the open block of 'block', masks
      included; else None.
    step: of 'block', steps made in that block; else 0.
    span: of 'span'; else None.
    answer: of 'done'; else None.
  """
  request: int
  kind: str
  ids: np.ndarray | None = None
  span: Span | None = None
  answer: Answer | None = None
  step: int = 0
