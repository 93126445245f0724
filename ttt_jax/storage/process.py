"""Which process wrote a note, and whether it still runs."""

import dataclasses
import functools
import os
import pathlib
import socket
from typing import Any

_PROC = pathlib.Path('/proc')


@dataclasses.dataclass(frozen=True)
class Process:
  """A process, so exactly that no later one with its number is taken for it.

  Attributes:
    host: name of its machine, for people.
    machine: id of the running system: a machine that was started again has another one.
    space: of process numbers: a container has its own; '' where the system does not tell.
    pid: its number there.
    started: when it started, in the system's clock ticks; '' where the system does not tell.
  """
  host: str
  machine: str
  space: str
  pid: int
  started: str

  def to_dict(self) -> dict[str, Any]:
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, values: Any) -> 'Process | None':
    """None unless ``values`` are those of ``to_dict``."""
    fields = {field.name: field.type for field in dataclasses.fields(cls)}
    if not isinstance(values, dict) or not fields.keys() <= values.keys():
      return None
    if not all(isinstance(values[name], int if name == 'pid' else str) for name in fields):
      return None
    return cls(**{name: values[name] for name in fields})

  @property
  def is_local(self) -> bool:
    """Whether it runs, or ran, on the system that this process runs on."""
    return self.machine == _machine()

  def is_gone(self) -> bool | None:
    """Whether it has ended; None if it cannot be seen from here: another machine or container."""
    if not self.is_local or self.space != _space():
      return None
    if self.pid <= 0:
      return True
    try:
      os.kill(self.pid, 0)
    except ProcessLookupError:
      return True
    except (PermissionError, OverflowError):
      pass  # another user's process
    state, started = _stat(self.pid)
    return state == 'Z' or bool(self.started and started and started != self.started)


def this() -> Process:
  """The process that calls."""
  return Process(socket.gethostname(), _machine(), _space(), os.getpid(), _stat(os.getpid())[1])


@functools.cache
def _machine() -> str:
  try:
    return (_PROC / 'sys/kernel/random/boot_id').read_text(encoding='ascii').strip()
  except OSError:  # not Linux
    return socket.gethostname()


@functools.cache
def _space() -> str:
  try:
    return os.readlink(_PROC / 'self/ns/pid')
  except OSError:
    return ''


def _stat(pid: int) -> tuple[str, str]:
  """(state letter, start time) of a process; '' for what the system does not tell."""
  try:
    # The name in parentheses may hold spaces and parentheses itself.
    fields = (_PROC / str(pid) / 'stat').read_text(encoding='utf-8', errors='replace').rpartition(
        ')')[2].split()
    return fields[0], fields[19]
  except (OSError, IndexError):
    return '', ''
