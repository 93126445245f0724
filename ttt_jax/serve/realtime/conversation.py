"""The items of a conversation, and the prompt that the model reads of them.

An answer stays in the prompt as the ids that were generated, up to the last that the client heard.
So the prompt of a turn begins with what the prefix cache holds of the turn before, and nothing is
read twice.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from ttt_jax.data.records.parts import Part
from ttt_jax.errors import UserError
from ttt_jax.serve.realtime import input_audio
from ttt_jax.serve.realtime.events import RATE, NewItem, Refused
from ttt_jax.serve.served_model import Message, ServedModel
from ttt_jax.tokens.vocab import Vocabulary

MOST_ITEMS = 2_000  # of a conversation; the oldest are deleted beyond


@dataclasses.dataclass
class Content:
  """One part of an item.

  Attributes:
    type: as in the protocol: 'input_text', 'input_audio', 'output_text' or 'output_audio'.
    text: the text, or the transcript of sound; None if unknown.
    samples: int16 [n] at events.RATE, of sound that is not encoded yet.
    part: what the model reads; None until sound is encoded.
    refused: why sound could not be encoded.
  """
  type: str
  text: str | None = None
  samples: np.ndarray | None = None
  part: Part | None = None
  refused: str = ''

  @property
  def spoken(self) -> bool:
    return self.type.endswith('audio')


@dataclasses.dataclass
class Item:
  """A message.

  Attributes:
    id, role, status: as in the protocol.
    content: its parts.
    ids: int32 [n], of an answer that was generated here, without im_end; None of other items.
    sent: samples of the answer that were sent.
  """
  id: str
  role: str
  content: list[Content]
  status: str = 'completed'
  ids: np.ndarray | None = None
  sent: int = 0

  def shown(self) -> dict[str, Any]:
    """The item in the protocol's form, without its sound."""
    return {'id': self.id, 'object': 'realtime.item', 'type': 'message', 'status': self.status,
            'role': self.role, 'content': [
                {'type': one.type, 'transcript' if one.spoken else 'text': one.text}
                for one in self.content]}


def new_item(given: NewItem, name: str, longest: float) -> Item:
  """The item that a client sends.

  Args:
    given: as it was sent.
    name: its id, unless it has one.
    longest: limit of its sound [s].

  Raises:
    Refused: content that a role cannot have, or that is empty or broken.
  """
  content = []
  for number, one in enumerate(given.content):
    at = f'item.content[{number}]'
    out = given.role == 'assistant'
    kind = ('output_' if out else 'input_') + one.type.rpartition('_')[2]
    if one.type not in (kind, kind.rpartition('_')[2]) or (given.role == 'system'
                                                           and kind == 'input_audio'):
      raise Refused(f'{at}.type is {one.type}, which a message of the {given.role} cannot have.',
                    'invalid_value', f'{at}.type')
    field = 'audio' if kind.endswith('audio') else 'text'
    value = getattr(one, field)
    if not value:
      raise Refused(f'{at}.{field} is missing or empty.', 'invalid_value', f'{at}.{field}')
    if field == 'text':
      content.append(Content(kind, value, part=Part('text', value)))
    else:
      samples = input_audio.pcm(value, f'{at}.audio')
      if samples.size > longest * RATE:
        raise Refused(f'{at}.audio has {samples.size / RATE:.1f} s; the server takes at most '
                      f'{longest:g} s (serve.max_audio).', 'input_audio_too_long', f'{at}.audio')
      content.append(Content(kind, one.transcript, samples))
  return Item(given.id or name, given.role, content)


class Conversation:
  """Items in order; ids are unique."""

  def __init__(self):
    self._items: dict[str, Item] = {}

  def __len__(self) -> int:
    return len(self._items)

  def __iter__(self):
    return iter(self._items.values())

  def find(self, name: str) -> Item:
    """The item with an id.

    Raises:
      Refused: there is none.
    """
    if name not in self._items:
      raise Refused(f'there is no item {name!r} in the conversation.', 'item_not_found', 'item_id')
    return self._items[name]

  @property
  def last(self) -> Item | None:
    return next(reversed(self._items.values()), None)

  def add(self, item: Item, after: str | None = None) -> str | None:
    """Insert an item behind another; returns the id of that one.

    Args:
      item: a new one.
      after: an id; 'root' = at the beginning, None = at the end.

    Raises:
      Refused: an id that is not there, or that is there already.
    """
    if item.id in self._items:
      raise Refused(f'there is an item {item.id!r} in the conversation already.',
                    'item_exists', 'item.id')
    names = list(self._items)
    if after is None or (names and after == names[-1]):
      self._items[item.id] = item
      return names[-1] if names else None
    if after == 'root':
      self._items = {item.id: item, **self._items}
      return None
    place = names.index(self.find(after).id) + 1
    pairs = list(self._items.items())
    self._items = dict([*pairs[:place], (item.id, item), *pairs[place:]])
    return after

  def delete(self, name: str) -> None:
    """Raises Refused: there is no such item."""
    self.find(name)
    del self._items[name]

  def overflow(self, keep: str) -> list[str]:
    """Delete the oldest items beyond MOST_ITEMS, but not ``keep``; returns their ids."""
    extra = len(self._items) - MOST_ITEMS
    names = [name for name in list(self._items)[:max(extra, 0)] if name != keep]
    for name in names:
      del self._items[name]
    return names

  def context(self, since: str, history: int | None) -> list[Item]:
    """The items of the next prompt.

    Args:
      since: id of the first item that still fits; '' or an unknown one: from the beginning.
      history: earlier turns of the user that stay; None = all.
    """
    items = list(self)
    first = next((i for i, item in enumerate(items) if item.id == since), 0)
    if history is not None:
      # A turn of the user begins after something else.
      turns = [i for i, item in enumerate(items) if item.role == 'user' and (
          i == 0 or items[i - 1].role != 'user')]
      if len(turns) > history:
        first = max(first, turns[-history - 1])
    system = [item for item in items[:first] if item.role == 'system']
    return [*system, *items[first:]]


# -- what the model reads ---------------------------------------------------------------------


def encode(item: Item, served: ServedModel) -> None:
  """Encode the sound of an item; what cannot be is left out of prompts.

  Raises:
    UserError: the sound is silent, or the model has no codec.
  """
  for one in item.content:
    if one.part is None and one.samples is not None:
      samples, one.samples = one.samples, None
      try:
        one.part = served.encode(samples.astype(np.float32) / 32768, RATE)
      except UserError as error:
        one.refused = str(error)
  if refused := next((one.refused for one in item.content if one.refused), ''):
    raise UserError(refused)


def prompt(served: ServedModel, items: Sequence[Item], instructions: str, most: int,
           retention: float | None) -> tuple[np.ndarray, str]:
  """Ids int32 [n] up to and including the assistant's header, and the first item that fits.

  Args:
    served: the model.
    items: encoded; the last one is of the user.
    instructions: the system prompt; '' = the model's own.
    most: tokens of a prompt.
    retention: share of ``most`` that the items keep when they no longer fit, so that the cache
      of the turns that follow is not lost again at once; None = no item is left out.

  Raises:
    UserError: no room for the last item.
  """
  def ids(first: int) -> np.ndarray:
    kept = [message(item, served.vocab) for item in items[first:]]
    found = [one for one in kept if one.parts or one.ids is not None and one.ids.size]
    if instructions and not (found and found[0].role == 'system'):
      found = [Message('system', (Part('text', instructions),)), *found]
    return served.prompt(found)
  whole = ids(0)
  if whole.size <= most or retention is None:
    return whole, items[0].id
  starts = [i for i, item in enumerate(items) if item.role == 'user']
  low, high = 0, len(starts) - 1  # the first start from which it fits is in low..high
  while low < high:
    middle = (low + high) // 2
    if ids(starts[middle]).size <= retention * most:
      high = middle
    else:
      low = middle + 1
  return ids(starts[high]), items[starts[high]].id


def message(item: Item, vocab: Vocabulary) -> Message:
  """What the model reads of an item; sound that could not be encoded is left out."""
  if item.ids is not None:
    return Message(item.role, ids=closed(vocab, item.ids))
  return Message(item.role, tuple(one.part for one in item.content if one.part is not None))


def closed(vocab: Vocabulary, ids: np.ndarray) -> np.ndarray:
  """An answer int32 [n] that was cut anywhere, with the end of an open span and without im_end."""
  ids = ids[:-1] if ids.size and ids[-1] == vocab.im_end else ids
  begins = np.flatnonzero(vocab.is_begin(ids))
  if not begins.size or np.any(vocab.is_end(ids[begins[-1]:])):
    return ids
  begin = int(begins[-1])
  if not np.any(vocab.is_audio(ids[begin + 1:])):  # nothing of it was spoken
    return ids[:begin] if begin == ids.size - 1 else ids
  if not vocab.is_audio(ids[-1]):
    return ids
  end = vocab.end_of_chunk if ids[begin] == vocab.begin_of_audio else vocab.end_of_last
  return np.append(ids, np.int32(end)).astype(np.int32)


def heard(served: ServedModel, ids: np.ndarray, milliseconds: int) -> np.ndarray:
  """The part of an answer int32 [n] that was heard: up to its last code within a time.

  Text stands before the sound that speaks it, so the text of what was not heard goes, too.
  """
  assert served.codec is not None, 'there was sound'
  count = int(milliseconds / 1000 * served.codec.tokens_per_second)
  count -= count % served.codec.group
  codes = np.flatnonzero(served.vocab.is_code(ids))
  if not count:
    return ids[:0]
  return ids if count >= codes.size else ids[:codes[count - 1] + 1]
