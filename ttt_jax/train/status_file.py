"""WORKDIR/status.json: how a run is doing right now, in one small file.

  state                  'starting', 'running', 'evaluating', 'saving', 'preempted' (saved and
                         left, to be started again), 'interrupted' (by Ctrl-C), 'failed' or 'done'
  step, steps            updates done, and wanted
  time                   seconds since the epoch when this was written
  rate                   steps per second of training time, lately
  last_good_checkpoint   newest sealed step; null if there is none yet
  last_good_time         when it was sealed, seconds since the epoch
  time_split             seconds of the whole run by part (telemetry.Clock)
  errors                 the last 20 events: [{'time', 'step', 'text'}], kept over restarts
  pid, host              of process 0, which writes this
  process_count          processes of the run
"""

from collections.abc import Mapping
import json
import logging
import os
import pathlib
import socket
import threading
import time
from typing import Any

from ttt_jax.errors import UserError
from ttt_jax.storage import files

FILE = 'status.json'
EVENTS = 20
_LOG = logging.getLogger(__name__)


class Status:
  """Keeps the file up to date; on processes other than 0 it only logs events."""

  def __init__(self, workdir: str | os.PathLike, steps: int, process: int, processes: int):
    self._path = pathlib.Path(workdir) / FILE
    self._writes = process == 0
    self._lock = threading.RLock()  # the watchdog writes from its own thread
    self._values: dict[str, Any] = {
        'state': 'starting', 'step': 0, 'steps': steps, 'time': 0.0, 'rate': 0.0,
        'last_good_checkpoint': None, 'last_good_time': None, 'time_split': {},
        'errors': self._earlier(), 'pid': os.getpid(), 'host': socket.gethostname(),
        'process_count': processes}

  def _earlier(self) -> list[dict[str, Any]]:
    """The events of the runs that this one goes on from."""
    try:
      return list(json.loads(self._path.read_text(encoding='utf-8'))['errors'])
    except (OSError, ValueError, KeyError, TypeError):
      return []  # none yet, or a file that somebody else wrote

  def update(self, **values: Any) -> None:
    """Change some fields and write.

    Raises:
      UserError: the disk is full.
    """
    assert set(values) <= set(self._values), values
    with self._lock:
      self._values |= values
      if self._writes:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._values['time'] = round(time.time(), 3)
        files.write_text(self._path, json.dumps(self._values, indent=1) + '\n')

  def good(self, checkpoint: tuple[int, float] | None) -> None:
    """Note the newest sealed checkpoint, without writing yet."""
    if checkpoint:
      self._values['last_good_checkpoint'] = checkpoint[0]
      self._values['last_good_time'] = round(checkpoint[1], 3)

  def event(self, text: str, **values: Any) -> None:
    """Something that people should hear about: logged, and kept among the last ones."""
    _LOG.warning('%s', text)
    with self._lock:
      event = {'time': round(time.time(), 3), 'step': values.get('step', self._values['step']),
               'text': text}
      self.update(errors=[*self._values['errors'], event][-EVENTS:], **values)

  def __enter__(self) -> 'Status':
    self.update(state='starting')
    return self

  def __exit__(self, kind, error, trace) -> None:
    """A run that ends by an exception has failed, and says why."""
    if kind is None:
      return
    text = str(error) if issubclass(kind, UserError) else f'{kind.__name__}: {error}'
    state = 'interrupted' if kind is KeyboardInterrupt else 'failed'
    try:
      with self._lock:
        event = {'time': round(time.time(), 3), 'step': self._values['step'], 'text': text}
        self.update(errors=[*self._values['errors'], event][-EVENTS:], state=state)
    except UserError:
      _LOG.warning('%s could not be written either.', self._path)


def read(workdir: str | os.PathLike) -> Mapping[str, Any] | None:
  """What the file says; None if there is none."""
  path = pathlib.Path(workdir) / FILE
  return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else None
