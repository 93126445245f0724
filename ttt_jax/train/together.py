"""What the processes of a command do at the same time: fail together, compare, exchange.

A process that raised by itself would leave the others in a collective operation, where they wait
for it. So what can fail runs in ``run``, which has no collective operations inside: afterwards all
processes know whether it failed anywhere, and all raise. A single process skips the exchange.
"""

from collections.abc import Callable, Sequence
import os
import pathlib
import socket
import time
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils
import numpy as np

from ttt_jax.errors import RetryableError, UserError
from ttt_jax.storage import files, mirror

_T = TypeVar('_T')
_BYTES = 480            # of a message that is exchanged at once
_SEEN, _POLL = 10.0, 0.1  # seconds until a file of another process must be seen, between two looks
_FINE, _USER, _OTHER = 0, 1, 2
_AGREED = '_raised_by_all_processes'


def single() -> bool:
  """Whether this process is alone."""
  return jax.process_count() == 1


def is_first() -> bool:
  """Whether this process writes what only one of them may."""
  return jax.process_index() == 0


def who(process: int, host: str) -> str:
  """A process, for a sentence."""
  return f'process {process} on {host}'


def run(action: Callable[[], _T]) -> _T:
  """``action()`` in every process; if it fails in one of them, all raise.

  Raises:
    Exception: what it raised here; in the other processes a UserError or RetryableError with the
      sentence of the first one that failed.
  """
  try:
    out = action()
  except Exception as error:
    agree(error)
    raise AssertionError('unreachable') from error
  agree(None)
  return out


def run_in_first(action: Callable[[], _T]) -> _T | None:
  """``run`` in process 0 alone; None in the others."""
  return run(lambda: action() if is_first() else None)


def agree(error: BaseException | None, busy: bool = False) -> bool:
  """Raise if a process has an ``error``; else whether one is ``busy``. All processes call it."""
  if single():
    if error is not None:
      raise error
    return busy
  rows = _gather(_row(error, busy))
  for process, row in enumerate(rows):
    if row[0]:
      raise _marked(error or _error_of(process, row))
  return bool(rows[:, 1].any())


def is_agreed(error: BaseException | None) -> bool:
  """Whether all processes have raised together with this exception."""
  return getattr(error, _AGREED, False)


def _marked(error: BaseException) -> BaseException:
  setattr(error, _AGREED, True)
  return error


def _row(error: BaseException | None, busy: bool) -> np.ndarray:
  kind = _FINE if error is None else _USER if isinstance(error, UserError) else _OTHER
  text = '' if error is None else str(error) if isinstance(error, (UserError, RetryableError)) \
      else f'{type(error).__name__}: {error}'
  said = f'{socket.gethostname()}\n{text}'.encode()[:_BYTES] if kind else b''
  row = np.zeros(2 + _BYTES, np.uint8)
  row[:2] = kind, busy
  row[2:2 + len(said)] = list(said)
  return row


def _error_of(process: int, row: np.ndarray) -> Exception:
  host, _, text = bytes(row[2:]).rstrip(b'\0').decode(errors='ignore').partition('\n')
  return (UserError if row[0] == _USER else RetryableError)(f'{who(process, host)} failed: {text}')


def _gather(row: np.ndarray) -> np.ndarray:
  """An array of every process, [processes, ...]."""
  return np.asarray(multihost_utils.process_allgather(row)).reshape(-1, *row.shape)


def exchange(data: bytes) -> list[bytes]:
  """The ``data`` of every process, in all of them; they may have different lengths."""
  if single():
    return [data]
  sizes = _gather(np.array([len(data)], np.int32))[:, 0]
  row = np.zeros(max(int(sizes.max()), 1), np.uint8)
  row[:len(data)] = np.frombuffer(data, np.uint8)
  return [found[:size].tobytes() for found, size in zip(_gather(row), sizes)]


def from_first(text: str) -> str:
  """The ``text`` of process 0."""
  return exchange(text.encode())[0].decode()


def barrier() -> None:
  """Wait for the others."""
  exchange(b'')


def same(value: Any, what: str, remedy: str) -> None:
  """UserError in all processes unless they have the same ``value``.

  Args:
    value: short when it is shown.
    what: it is, for the sentence: 'the checkpoints in runs/a/checkpoints are'.
    remedy: how the sentence ends: 'all processes must see ...'.
  """
  found = exchange(f'{socket.gethostname()}\n{value}'.encode())
  for process, other in enumerate(found):
    host, first = ((one.decode().partition('\n')) for one in (other, found[0]))
    if host[2] != first[2]:
      raise _marked(UserError(f'{what} {_short(first[2])} for {who(0, first[0])}, but '
                              f'{_short(host[2])} for {who(process, host[0])}; {remedy}.'))


def _short(text: str) -> str:
  return text if len(text) < 100 else f'{text[:97]}...'


def shared(folder: str | os.PathLike, what: str) -> None:
  """UserError in all processes unless they see the same folder, on a disk or in a bucket.

  Args:
    folder: exists in process 0, which may write to it.
    what: names it, for the sentence: '--workdir'.
  """
  if single() or mirror.url_of(folder) is not None:
    return
  folder = pathlib.Path(folder)
  probe = folder / from_first(files.temporary(folder / 'shared').name)
  try:
    def touch() -> None:
      with files.writing(folder):
        probe.touch()
    run_in_first(touch)
    run(lambda: _wait_for(probe, folder, what))
  finally:
    if is_first():
      probe.unlink(missing_ok=True)


def _wait_for(probe: pathlib.Path, folder: pathlib.Path, what: str) -> None:
  until = time.monotonic() + _SEEN
  while not probe.exists():  # a network disk may show an older listing for a while
    if time.monotonic() > until:
      raise UserError(f'{what}: {folder} is not the folder that process 0 has there; name a folder '
                      'on a disk that all processes share, or a URL of a bucket.')
    time.sleep(_POLL)


def even_devices(devices: Sequence[Any]) -> None:
  """UserError unless all processes have equally many of the ``devices``."""
  counts = [sum(device.process_index == process for device in devices)
            for process in range(jax.process_count())]
  if len(set(counts)) > 1:
    raise UserError(f'the processes have {", ".join(map(str, counts))} devices; all of them must '
                    'have equally many.')
