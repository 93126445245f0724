"""Ends the processes of a run that wait inside a library for one that has failed.

Orbax' barriers have a time-out of five minutes, and a thread that waits in one cannot be
interrupted. So a process whose share of a save has failed leaves a note in the store of JAX's
coordination service; the others, which look for it while they are in the save, end.

  failed     by a process that has failed: the others are not waited for any more
  passed-K   by process K: its share is done, or has failed
  left       by a process that still waits some seconds after a failure, and ends
"""

from collections.abc import Callable
import threading
import time

import jax
from jax._src import distributed  # the store of notes has no public name

_LOOK = 0.5   # seconds between two looks
_LONGEST = 300.0  # seconds until a process that says nothing has ended, too
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
    if self._client is not None:
      threading.Thread(target=self._watch, name='alarm', daemon=True).start()
    return self

  def __exit__(self, *unused) -> None:
    self._over.set()
    self._write(f'passed-{jax.process_index()}', 'x')

  def ring(self, word: str) -> bool:
    """Say that this process has failed, and wait for the others.

    Returns:
      Whether they go on to the next agreement; False: one of them has ended.
    """
    self._over.set()
    self._write('failed', word)
    others = set(range(jax.process_count())) - {jax.process_index()}
    self._write(f'passed-{jax.process_index()}', 'x')
    until = time.monotonic() + _LONGEST
    while self._client is not None and others and (
        self._read('left') is None and time.monotonic() < until):
      others = {k for k in others if self._read(f'passed-{k}') is None}
      time.sleep(_LOOK / 5)
    return not others

  def _watch(self) -> None:
    while not self._over.wait(_LOOK):
      word = self._read('failed')
      if word is not None and not self._over.wait(_GRACE):
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
    except jax.errors.JaxRuntimeError:  # another process has written it, or this one before
      pass
