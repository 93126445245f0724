"""WORKDIR/status.json: the current state of a run.

  state                  'starting', 'running', 'evaluating', 'saving', 'preempted' (saved and
                         exited, to be resumed), 'interrupted' (by Ctrl-C), 'failed' or 'done'
  step, steps            updates done, and updates of the full run
  time                   when this was written, seconds since the epoch
  rate                   recent steps per second of training time
  last_good_checkpoint   newest complete step; null if there is none yet
  last_good_time         when it was completed, seconds since the epoch
  time_split             seconds of the run so far by part (telemetry.Clock)
  began                  when this start began, seconds since the epoch
  earlier_seconds        seconds from the first start of the run to this one, without pauses that
                         somebody wanted: after an end, or Ctrl-C
  starts                 how many there were
  hosts                  names of the hosts, process by process; [] where there is one process
  errors                 the last 20 events: [{'time', 'step', 'text'}], including earlier starts
  pid, host              of process 0, which writes this file
  process_count          processes of the run
"""

from collections.abc import Callable, Mapping, Sequence
import json
import logging
import os
import pathlib
import socket
import threading
import time
from typing import Annotated, Any

from ttt_jax.errors import UserError
from ttt_jax.storage import files, owned, schema

FILE = 'status.json'
EVENTS = 20
WANTED_ENDS = ('done', 'interrupted')  # the time until the next start is not the run's
_LOG = logging.getLogger(__name__)
_Time = Annotated[float, schema.Range(0, 1e11)]  # seconds since the epoch
_Rate = Annotated[float, schema.Range(0)]


class Event(schema.Kind):
  """An entry of ``errors``."""
  time: _Time
  step: schema.Count
  text: str


class StatusFile(schema.Kind, total=False):
  """status.json."""
  state: str
  step: schema.Count
  steps: schema.Count | None
  time: _Time
  rate: _Rate | None
  last_good_checkpoint: schema.Count | None
  last_good_time: _Time | None
  time_split: dict[str, _Rate]
  began: _Time
  earlier_seconds: _Rate
  starts: schema.Count
  hosts: list[str]
  errors: list[Event]
  pid: Annotated[int, schema.Range(1, 2**31 - 1)]
  host: str
  process_count: schema.Count


class Status:
  """Writes the file; on processes other than 0 it only logs events. A context manager, which
  records an exception as the end of the run."""

  def __init__(self, workdir: str | os.PathLike, steps: int, process: int, processes: int,
               check: Callable[[], None] = lambda: None):
    """``check`` is called before each write; it raises UserError if this run may not write."""
    self._check = check
    self._path = pathlib.Path(workdir) / FILE
    self._writes = process == 0
    self._lock = threading.RLock()  # the watchdog writes from its own thread
    self._values: dict[str, Any] = {
        'state': 'starting', 'step': 0, 'steps': steps, 'time': 0.0, 'rate': 0.0,
        'last_good_checkpoint': None, 'last_good_time': None, 'time_split': {},
        'began': round(time.time(), 3), 'earlier_seconds': 0.0, 'starts': 1, 'hosts': [],
        'errors': [], 'pid': os.getpid(), 'host': socket.gethostname(),
        'process_count': processes}
    self._wanted_end = False  # of the start before
    self._continue(self._earlier())

  def _earlier(self) -> dict[str, Any]:
    """The file of the start before."""
    try:
      return read(self._path.parent)
    except UserError:
      return {}  # not one of ours; it is replaced

  def _continue(self, earlier: dict[str, Any]) -> None:
    """Take over the events and the time of earlier starts."""
    self._values['errors'] = earlier.get('errors', [])
    began = earlier.get('began')
    if began is None:
      return
    self._wanted_end = earlier.get('state') in WANTED_ENDS
    until = earlier.get('time', began) if self._wanted_end else self._values['began']
    self._values |= {'earlier_seconds': round(
        earlier.get('earlier_seconds', 0.0) + max(until - began, 0.0), 3),
        'starts': earlier.get('starts', 1) + 1}

  def begin(self, resumed: bool, hosts: Sequence[str] = ()) -> None:
    """Set what is known once training begins, without writing yet.

    Args:
      resumed: from a checkpoint. A run that begins anew where another one has ended is not its
        continuation; one that has crashed before its first checkpoint is.
      hosts: names of the hosts of all processes.
    """
    self._values['hosts'] = list(hosts)
    if not resumed and self._wanted_end:
      self._values |= {'earlier_seconds': 0.0, 'starts': 1}

  def goodput(self, seconds: float) -> float:
    """``goodput`` of a run with so many seconds in steps that counted, now."""
    return goodput(self._values | {'time_split': {'step': seconds}, 'time': time.time()}) or 0.0

  def update(self, **values: Any) -> None:
    """Change some fields and write.

    Raises:
      UserError: it cannot be written.
    """
    assert set(values) <= set(self._values), values
    with self._lock:
      self._values |= values
      if self._writes:
        self._check()
        with files.writing(self._path):
          files.make_folder(self._path.parent)
        self._values['time'] = round(time.time(), 3)
        files.write_text(self._path, json.dumps(self._values, indent=1) + '\n')

  def set_checkpoint(self, checkpoint: tuple[int, float] | None) -> None:
    """Set the newest complete checkpoint, (step, seconds since the epoch), without writing yet."""
    if checkpoint:
      self._values['last_good_checkpoint'] = checkpoint[0]
      self._values['last_good_time'] = round(checkpoint[1], 3)

  def event(self, text: str, **values: Any) -> None:
    """Log a problem that a user should know of, and add it to ``errors``; ``values`` as
    ``update``."""
    _LOG.warning('%s', text)
    with self._lock:
      event = {'time': round(time.time(), 3), 'step': values.get('step', self._values['step']),
               'text': text}
      self.update(errors=[*self._values['errors'], event][-EVENTS:], **values)

  def __enter__(self) -> 'Status':
    self.update(state='starting')
    return self

  def __exit__(self, kind, error, trace) -> None:
    """Record an exception as the end of the run."""
    if kind is None:
      return
    text = str(error) if issubclass(kind, UserError) else f'{kind.__name__}: {error}'
    state = 'interrupted' if kind is KeyboardInterrupt else 'failed'
    try:
      with self._lock:
        event = {'time': round(time.time(), 3), 'step': self._values['step'], 'text': text}
        self.update(errors=[*self._values['errors'], event][-EVENTS:], state=state)
    except UserError:
      _LOG.warning('%s could not be written.', self._path)


def life(fields: Mapping[str, Any]) -> float | None:
  """Seconds from the first start of a run until the file was written; None if it does not say."""
  if fields.get('began') is None or fields.get('time') is None:
    return None
  return fields.get('earlier_seconds', 0.0) + max(fields['time'] - fields['began'], 0.0)


def goodput(fields: Mapping[str, Any]) -> float | None:
  """Share of the time since the first start in steps that counted; None if it is not known."""
  seconds, step = life(fields), (fields.get('time_split') or {}).get('step')
  return None if not seconds or step is None else min(step / seconds, 1.0)


def check_kind(workdir: str | os.PathLike) -> None:
  """UserError if the file is another program's: it must not be replaced."""
  owned.check_json(pathlib.Path(workdir) / FILE, 'state', 'step')


def read(workdir: str | os.PathLike) -> dict[str, Any]:
  """The fields of the file; {} if there is none.

  Raises:
    UserError: it is damaged.
  """
  return schema.read(pathlib.Path(workdir) / FILE, StatusFile, 'the next `ttt-jax train` writes it '
                     'again; until then, move it away to see what metrics.jsonl says',
                     optional=True)
