"""How long requests to a store are repeated: one limit for all threads of a process.

A request is repeated for ``RETRY_SECONDS``. Then its store counts as lost: no other request is
repeated any more, so that a command which cannot go on ends after one such period, however many
requests its end needs. Where the failed try took long, because nothing answers, other requests are
not even tried for ``PAUSE`` seconds. The first success ends the outage.

Threads that can wait, such as those that copy logs and renew a lease, run ``in_background``: they
give up, too, but the store does not count as lost because of them.
"""

from collections.abc import Callable, Iterator
import contextlib
import contextvars
import os
import random
import threading
import time
from typing import TypeVar

from ttt_jax.errors import RetryableError

RETRY_SECONDS = 60.0  # how long a failing request is repeated
PAUSE = 15.0          # without requests to a lost store that is silent
_SLOW = 2.0           # seconds of a try after which a store counts as silent
_LATE = 15.0          # seconds after the limit in which a last try may end
_POLL = 0.5
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 16.0
_T = TypeVar('_T')


class Transient(Exception):
  """An error of a request that may pass; its text says what happened."""


class Answer(Exception):
  """An error that is an answer of the store, such as that there is no such object."""


_background = contextvars.ContextVar[threading.Event | None]('background', default=None)
_known: dict[tuple[int, str], 'Outage'] = {}  # (process, store)


@contextlib.contextmanager
def in_background(over: threading.Event) -> Iterator[None]:
  """A context whose requests can wait: see the module's docstring. Once ``over`` is set, they are
  repeated no more."""
  token = _background.set(over)
  try:
    yield
  finally:
    _background.reset(token)


@contextlib.contextmanager
def tried_once() -> Iterator[None]:
  """``in_background``, without repeats: for what is done again soon anyway."""
  over = threading.Event()
  over.set()
  with in_background(over):
    yield


def of(store: str) -> 'Outage':
  """The outage of a store, gs://BUCKET or s3://BUCKET; of a URL in it, too."""
  scheme, _, rest = store.partition('://')
  key = os.getpid(), f'{scheme}://{rest.partition("/")[0]}'  # after a fork, locks are the parent's
  return _known.setdefault(key, Outage())


def any_lost() -> bool:
  """Whether a store counts as lost."""
  return any(outage._lost is not None for outage in _known.values())


class Outage:
  """What this process knows about the failures of one store."""

  def __init__(self):
    self._changed = threading.Condition()
    self._since: float | None = None  # begin of the first failed try after the last success
    self._lost: float | None = None   # when a request has given up
    self._silent = False              # whether its last try took long

  def seconds(self) -> float:
    """Since when no request has succeeded, if one has failed; else 0."""
    with self._changed:
      return time.monotonic() - self._since if self._since is not None else 0.0

  def is_silent(self) -> bool:
    """Whether the store is lost and requests are not even tried now."""
    with self._changed:
      return self._silent and self._lost is not None and time.monotonic() - self._lost < PAUSE

  def give_up(self, silent: bool = False) -> None:
    """The store counts as lost, also because a library that repeats requests has given up."""
    with self._changed:
      self._silent = silent or self._silent and self._lost is not None
      self._lost = time.monotonic()
      if self._since is None:
        self._since = self._lost
      self._changed.notify_all()

  def _failed(self, began: float) -> None:
    with self._changed:
      self._since = began if self._since is None else min(began, self._since)

  def _succeeded(self) -> None:
    with self._changed:
      self._since = self._lost = None

  def _sleep(self, seconds: float) -> None:
    """Sleep, but not longer than until the store is lost or the work in the background is over."""
    until, over = time.monotonic() + seconds, _background.get()
    with self._changed:
      while self._lost is None and not (over and over.is_set()) and time.monotonic() < until:
        self._changed.wait(min(until - time.monotonic(), _POLL))

  def repeated(self, what: str, request: Callable[[], _T]) -> _T:
    """The result of a request, repeated while it raises Transient.

    Args:
      what: could not be done, for the sentence: 'gs://bucket/name could not be read'.
      request: raises Transient, or an error that is not repeated.

    Raises:
      RetryableError: it still fails, or the store is lost.
    """
    began = time.monotonic()
    wait = least = min(_FIRST_WAIT, RETRY_SECONDS / 8)
    while True:
      if self.is_silent():
        raise RetryableError(f'{what}: its store has not answered for {_number(self.seconds())} '
                             'seconds; run the same command again.')
      tried = time.monotonic()
      try:
        result = request()
      except Transient as error:
        self._failed(tried)
        now = time.monotonic()
        left = began + RETRY_SECONDS - now
        if left < least / 2 or self._ends(left, now - tried):
          if _background.get() is None:
            self.give_up(now - tried > _SLOW)
          raise RetryableError(f'{what} for {_number(now - began)} seconds: {error}; run the same '
                               'command again.') from None
      except Answer:
        self._succeeded()
        raise
      else:
        self._succeeded()
        return result
      self._sleep(min(wait * (0.5 + random.random() / 2), left))
      wait = min(2 * wait, _LONGEST_WAIT)

  def _ends(self, left: float, took: float) -> bool:
    """Whether a request with ``left`` seconds, whose last try ``took`` some, is not repeated."""
    over = _background.get()
    if self._lost is not None or over is not None and over.is_set():
      return True
    return took > left + _LATE  # of a silent store


def _number(seconds: float) -> str:
  return f'{seconds:.0f}' if seconds >= 10 else f'{seconds:.1f}'
