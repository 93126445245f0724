"""The text of an answer as its ids arrive: whole characters, up to a stop sequence."""

import numpy as np

from ttt_jax.tokens.tokenizer import Tokenizer


class TextStream:
  """The text of one answer.

  Attributes:
    shown: what ``push`` and ``finish`` have returned so far.
    stopped: whether a stop sequence was found; nothing follows then.
  """

  def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = ()):
    self._tokenizer, self._stop = tokenizer, stop
    self._ids: list[int] = []
    self.shown, self.stopped = '', False

  def push(self, ids: np.ndarray) -> str:
    """The text that more ids add. An incomplete character, and what may begin a stop sequence,
    is held back. Control tokens have no text."""
    if self.stopped:
      return ''
    self._ids += [int(i) for i in ids if i < self._tokenizer.ranks]
    return self._show(self._tokenizer.decode(self._ids).rstrip('\N{REPLACEMENT CHARACTER}'), False)

  def finish(self) -> str:
    """The text that was held back."""
    return '' if self.stopped else self._show(self._tokenizer.decode(self._ids), True)

  def _show(self, text: str, last: bool) -> str:
    found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
    if found:
      self.stopped, text = True, text[:min(found)]
    elif not last:
      held = max((size for stop in self._stop for size in range(1, len(stop))
                  if text.endswith(stop[:size])), default=0)
      text = text[:len(text) - held]
    if len(text) <= len(self.shown):
      return ''
    new, self.shown = text[len(self.shown):], text
    return new
