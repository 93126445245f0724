"""One response: the server's events of an answer, in the order of the protocol."""

import base64
from typing import Any

import numpy as np

from ttt_jax.serve.realtime.conversation import Content, Item
from ttt_jax.serve.realtime.events import RATE

Sent = dict[str, Any]  # an event of the server's, without its event_id


class Response:
  """An answer on its way.

  Attributes:
    id: of the response.
    item: what was answered so far.
    kept: whether it belongs to the conversation.
    began: whether the item was announced.
    status: 'in_progress', or how it ended.
    steps: forward passes per block of masks.
  """

  def __init__(self, name: str, item: str, conversation: str | None, modalities: list[str],
               metadata: dict[str, str] | None, limit: int | str, steps: int):
    """
    Args:
      name, item: ids.
      conversation: its id; None for a response outside of it.
      modalities: 'text' or 'audio'.
      metadata: of the client.
      limit: of tokens, or 'inf'.
      steps: forward passes per block of masks.
    """
    self.steps = steps
    self.id, self.kept = name, conversation is not None
    self.spoken = 'audio' in modalities
    self.item = Item(item, 'assistant', [Content('output_audio' if self.spoken else 'output_text',
                                                 '')], 'in_progress', np.zeros(0, np.int32))
    self.began, self.status = False, 'in_progress'
    self._head = {'object': 'realtime.response', 'id': name, 'conversation_id': conversation,
                  'output_modalities': modalities, 'max_output_tokens': limit,
                  'metadata': metadata,
                  'audio': {'output': {'format': {'type': 'audio/pcm', 'rate': RATE}}}}
    self._details: Sent | None = None
    self._usage: Sent | None = None

  def created(self) -> Sent:
    return {'type': 'response.created', 'response': self._shown()}

  def begin(self, previous: str | None) -> list[Sent]:
    """The item and its part, announced before their first delta."""
    self.began = True
    added = {'type': 'response.output_item.added', 'response_id': self.id, 'output_index': 0,
             'item': {**self.item.shown(), 'content': []}}
    item = {'type': 'conversation.item.added', 'previous_item_id': previous,
            'item': added['item']}
    return [added, *([item] if self.kept else []),
            {'type': 'response.content_part.added', **self._place(), 'part': self._part()}]

  def text(self, text: str) -> list[Sent]:
    content = self.item.content[0]
    content.text = (content.text or '') + text
    kind = 'output_audio_transcript' if self.spoken else 'output_text'
    return [{'type': f'response.{kind}.delta', **self._place(), 'delta': text}]

  def sound(self, pcm: bytes) -> list[Sent]:
    """PCM16 at events.RATE."""
    self.item.sent += len(pcm) // 2
    return [{'type': 'response.output_audio.delta', **self._place(),
             'delta': base64.b64encode(pcm).decode('ascii')}]

  def ids(self, ids: np.ndarray) -> None:
    """What was generated, as it is reported."""
    assert self.item.ids is not None
    self.item.ids = np.concatenate([self.item.ids, ids])

  def finish(self, status: str, details: Sent | None, usage: Sent | None,
             previous: str | None) -> list[Sent]:
    """The events that end it.

    Args:
      status: 'completed', 'incomplete', 'cancelled' or 'failed'.
      details: the rest of status_details.
      usage: of the protocol; None if unknown.
      previous: id of the item before.
    """
    self.status, self._usage = status, usage
    self._details = {'type': status, **(details or {})}
    self.item.status = 'completed' if status == 'completed' else 'incomplete'
    out: list[Sent] = []
    if self.began:
      text, place = self.item.content[0].text, self._place()
      if self.spoken:
        out += [{'type': 'response.output_audio.done', **place},
                {'type': 'response.output_audio_transcript.done', **place, 'transcript': text}]
      else:
        out += [{'type': 'response.output_text.done', **place, 'text': text}]
      out += [{'type': 'response.content_part.done', **place, 'part': self._part()},
              {'type': 'response.output_item.done', 'response_id': self.id, 'output_index': 0,
               'item': self.item.shown()}]
      if self.kept:
        out += [{'type': 'conversation.item.done', 'previous_item_id': previous,
                 'item': self.item.shown()}]
    return [*out, {'type': 'response.done', 'response': self._shown()}]

  def _place(self) -> Sent:
    return {'response_id': self.id, 'item_id': self.item.id, 'output_index': 0, 'content_index': 0}

  def _part(self) -> Sent:
    text = self.item.content[0].text
    return {'type': 'audio', 'transcript': text} if self.spoken else {'type': 'text', 'text': text}

  def _shown(self) -> Sent:
    return {**self._head, 'status': self.status, 'status_details': self._details,
            'output': [self.item.shown()] if self.began else [], 'usage': self._usage}
