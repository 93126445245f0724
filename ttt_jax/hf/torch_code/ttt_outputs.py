"""Outputs of generation: answers, audio spans, events; and the state of a request.

Part of ttt_jax (Apache-2.0); this file needs only torch and numpy.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import os
import time
from typing import Any
import wave

import numpy as np
import torch

from .ttt_choice import Ids

_FAR = 2**30


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
    ids: generated ids, without the prompt.
    spans: audio spans, in order.
    codes: the codec's codes of each span, for its vocoder.
    finished: True if im_end was generated, False at max_tokens.
    calls: forward passes that the request took part in, without those that read the prompt.
    seconds, first_audio: from its admission to the end, and to the first final audio token
      (None without audio).
    text: decoded from its text tokens; None without a tokenizer.
    codec: decodes the codes; see ttt_codec.py.
  """
  ids: list[int]
  spans: list[Span]
  codes: list[list[int]]
  finished: bool
  calls: int
  seconds: float = 0.0
  first_audio: float | None = None
  text: str | None = None
  codec: Any = dataclasses.field(default=None, repr=False, compare=False)

  @functools.cached_property
  def waveform(self) -> np.ndarray:
    """float32 [samples], the speech of all spans; decoded when it is first read.

    Raises:
      ValueError: the codec is not part of the model's directory, or needs a package.
    """
    codes = np.array([code for span in self.codes for code in span], np.int64)
    if not codes.size:
      return np.zeros(0, np.float32)
    samples = self.codec.decode(codes)
    if isinstance(samples, torch.Tensor):
      samples = samples.detach().float().cpu().numpy()
    return np.asarray(samples, np.float32).reshape(-1)

  @property
  def sample_rate(self) -> int:
    """Of ``waveform``, in Hz."""
    return int(self.codec.sample_rate)

  def write_wav(self, path: str | os.PathLike) -> None:
    """Write ``waveform`` as 16-bit mono."""
    samples = np.round(np.clip(self.waveform, -1, 1) * 32767).astype('<i2')
    with wave.open(os.fspath(path), 'wb') as file:
      file.setnchannels(1)
      file.setsampwidth(2)
      file.setframerate(self.sample_rate)
      file.writeframes(samples.tobytes())


@dataclasses.dataclass
class Event:
  """An event of a request.

  Attributes:
    request: index of its prompt.
    kind: 'text' or 'audio': new tokens that are final; 'span': a span was closed; 'done': the
      answer is complete.
    ids: the new tokens of 'text' and 'audio'.
    codes: of 'audio': the codec's codes among them.
    text: of 'text', with a tokenizer: the text that they add. A character whose bytes are
      incomplete is held back.
    span, answer: of 'span' and 'done'.
  """
  request: int
  kind: str
  ids: list[int] = dataclasses.field(default_factory=list)
  codes: list[int] = dataclasses.field(default_factory=list)
  text: str = ''
  span: Span | None = None
  answer: Answer | None = None


@dataclasses.dataclass
class Row:
  """The state of a request in a slot.

  Attributes:
    token: prompt and answer, with masks where a block is open.
    prompt: length of the prompt.
    known: number of cached tokens; the others are the window.
    lead: tokens at the window's start that see each other but nothing behind them.
    open: whether a span is open; ``begin`` is the index of its begin token.
    block_at, block, step: index and size of the open block, and steps made in it.
    gap: text tokens since the last span.
    seen: tokens that were reported.
    text_ids, shown: text tokens so far, and the text that was reported of them.
  """
  number: int
  slot: int
  token: list[int]
  prompt: int
  generator: torch.Generator
  known: int = 0
  lead: int = 1
  open: bool = False
  begin: int = -1
  block_at: int = 0
  block: int = 0
  blocks: int = 0
  step: int = 0
  gap: int = _FAR
  calls: int = 0
  finished: bool = False
  done: bool = False
  spans: list[Span] = dataclasses.field(default_factory=list)
  seen: int = 0
  since: float = dataclasses.field(default_factory=time.monotonic)
  first_audio: float | None = None
  text_ids: list[int] = dataclasses.field(default_factory=list)
  shown: str = ''

  @property
  def size(self) -> int:
    """Tokens of the window."""
    return len(self.token) - self.known


class Reporter:
  """Yields events for the tokens of a request that became final since the last report."""

  def __init__(self, ids: Ids, decode: Callable[[list[int]], str] | None):
    """``decode``: from text ids to text; None: events and answers have no text."""
    self.ids, self.decode = ids, decode

  def events_of(self, row: Row) -> Iterator[Event]:
    """Events of one request after a step."""
    final = len(row.token)
    first = max(row.seen, row.block_at)  # the published loop leaves masks in finished blocks
    if row.open and self.ids.mask in row.token[first:]:
      final = row.token.index(self.ids.mask, first)
    fresh, row.seen = row.token[row.seen:final], final
    yield from self._tokens(row, fresh)
    if fresh and row.spans and not row.open and row.known == row.begin:
      yield Event(row.number, 'span', span=row.spans[-1])
    if row.done:
      ids = row.token[row.prompt:]
      codes = [self._codes(ids[s.start:s.start + s.length]) for s in row.spans]
      text = None
      if self.decode:
        text = self.decode([x for x in ids if self._is_text(x)])
      yield Event(row.number, 'done', answer=Answer(
          ids, row.spans, codes, row.finished, row.calls, time.monotonic() - row.since,
          row.first_audio, text))

  def _tokens(self, row: Row, ids: list[int]) -> Iterator[Event]:
    """One event per run of text or of audio."""
    at = 0
    while at < len(ids):
      audio, stop = ids[at] >= self.ids.threshold, at
      while stop < len(ids) and (ids[stop] >= self.ids.threshold) == audio:
        stop += 1
      run, at = ids[at:stop], stop
      if audio:
        if row.first_audio is None:
          row.first_audio = time.monotonic() - row.since
        yield Event(row.number, 'audio', run, self._codes(run))
      else:
        yield Event(row.number, 'text', run, text=self._new_text(row, run))

  def _new_text(self, row: Row, ids: list[int]) -> str:
    if not self.decode:
      return ''
    row.text_ids += [x for x in ids if self._is_text(x)]
    ready = self.decode(row.text_ids).rstrip('\N{REPLACEMENT CHARACTER}')
    new, row.shown = ready[len(row.shown):], max(row.shown, ready, key=len)
    return new

  def _is_text(self, token: int) -> bool:
    """Ordinary text, not one of the 41 special and control tokens before the threshold."""
    return token < self.ids.threshold - 41

  def _codes(self, ids: list[int]) -> list[int]:
    return [x - self.ids.code_start for x in ids if self.ids.code_start <= x < self.ids.mask]
