"""Ends the processes of a run that wait inside a library for one that has failed.

Orbax' barriers have a time-out of five minutes, and a thread that waits in one cannot be
interrupted. So a process whose share of a save has failed leaves a note in the store of JAX's
coordination service; the others, which look for it while they are in the save, end.

  failed   by a process that has failed: it goes on to the next agreement (train/consensus.py)
  left     by a process that waited for it in vain and ends: nobody waits for an agreement any more
"""

from collections.abc import Callable
import threading

import jax
from jax._src import distributed  # the store of notes has no public name

_LOOK = 0.5   # seconds between two looks
_GRACE = 5.0  # seconds after a note in which the library may still report the failure itself


class Alarm:
  """A context of all processes around what waits for other processes; nothing with one process."""

  def __init__(self, name: str, end: Callable[[str], None]):
    """
    Args:
      name: of this context, the same in all processes and used once in a run.
      end: ends this process; called in another thread with the word of the one that has failed.
    """
    self._client = distributed.global_state.client if jax.process_count() > 1 else None
    self._key, self._end, self._over = f'ttt_jax/alarm/{name}', end, threading.Event()

  def __enter__(self) -> 'Alarm':
    self._start('failed', self._over)
    return self

  def __exit__(self, *unused) -> None:
    self._over.set()

  def ring(self, word: str) -> None:
    """Say that this process has failed; it ends, too, if another one ends because of it."""
    self._write('failed', word)
    self._start('left', threading.Event())

  def _start(self, note: str, over: threading.Event) -> None:
    if self._client is not None:
      threading.Thread(target=self._watch, args=(note, over), name='alarm', daemon=True).start()

  def _watch(self, note: str, over: threading.Event) -> None:
    while not over.wait(_LOOK):
      word = self._read(note)
      if word is None:
        continue
      if note == 'failed' and over.wait(_GRACE):
        return
      self._write('left', word)
      self._end(word)
      return

  def _read(self, note: str) -> str | None:
    assert self._client is not None
    try:
      return self._client.key_value_try_get(f'{self._key}/{note}')
    except jax.errors.JaxRuntimeError:  # there is none, or no coordination service any more
      return None

  def _write(self, note: str, word: str) -> None:
    if self._client is None:
      return
    try:
      self._client.key_value_set(f'{self._key}/{note}', word)
    except jax.errors.JaxRuntimeError:  # another process has written it
      pass
