"""Records in memory: ``Record``, its turns, and their parts of text and audio."""

import dataclasses
from typing import Callable, Iterator, NamedTuple

import numpy as np


class Clip(NamedTuple):
  """A stretch of an audio file: what is encoded, and encoded once.

  Attributes:
    path: the file.
    offset: where the stretch begins [s].
    duration: its length [s]; None = to the end of the file.
    channel: the channel that is read, from 0; None = the mean of all channels.
  """
  path: str
  offset: float = 0.0
  duration: float | None = None
  channel: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
  """A stretch of text, or one audio span.

  Attributes:
    kind: 'text' or 'audio'.
    text: the text; for audio its transcript, '' if unknown (it is never tokenized).
    codes: int32 [n] codec codes of an audio part, or None while only ``source`` is known.
    source: path of the audio file, relative to the record's file; None for inline codes.
    begin, end: the markup around the span in the source, '' if it had none.
    offset: where the part begins in ``source`` [s].
    duration: length of the part [s]; None = to the end of the recording.
    channel: channel of ``source`` that is read, from 0; None = the mean of all channels.
  """
  kind: str
  text: str = ''
  codes: np.ndarray | None = None
  source: str | None = None
  begin: str = ''
  end: str = ''
  offset: float = 0.0
  duration: float | None = None
  channel: int | None = None

  @property
  def clip(self) -> Clip:
    """The stretch of ``source``."""
    assert self.source is not None, 'audio has codes or a recording'
    return Clip(self.source, self.offset, self.duration, self.channel)

  @property
  def known_codes(self) -> np.ndarray:
    """``codes`` of an audio part that is encoded already."""
    assert self.codes is not None, f'audio of {self.source} is not encoded yet'
    return self.codes


@dataclasses.dataclass(frozen=True, eq=False)
class Turn:
  """One turn of a conversation, or a document.

  Attributes:
    role: 'system', 'user', 'assistant', or 'document' (the one turn of a PT text).
    parts: in order; () is an empty system turn, or the answer that is to be generated.
    learned: False for an answer that is context only and has no loss.
    written: the content as one string, for data.form='published'; None in the default form, and
      where the content is no single string.
  """
  role: str
  parts: tuple[Part, ...]
  learned: bool = True
  written: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
  """One training or test example.

  Attributes:
    id: its name; the line number in its file if the object has none.
    task: 'asr', 'tts', ...; '' if unknown.
    type: 'IT' or 'PT'.
    turns: in order.
    where: 'file:line', for error messages.
    unused: keys of the object that are neither used nor known to be metadata.
  """
  id: str
  task: str
  type: str
  turns: tuple[Turn, ...]
  where: str = ''
  unused: tuple[str, ...] = ()

  def map_audio(self, change: Callable[[Part], Part]) -> 'Record':
    """The record with ``change(part) -> part`` applied to every audio part."""
    return dataclasses.replace(self, turns=tuple(
        dataclasses.replace(turn, parts=tuple(
            change(p) if p.kind == 'audio' else p for p in turn.parts))
        for turn in self.turns))

  def audio(self) -> Iterator[Part]:
    return (part for turn in self.turns for part in turn.parts if part.kind == 'audio')
