"""Metrics of a run: metrics.jsonl with one JSON object per line, TensorBoard, Weights & Biases.

  {"step": 40, "time": 1760000000.1, "loss": 3.2, "ar": 0.9, "diffusion": 2.3, ...}

  key                       meaning
  step                      updates done
  time                      when the line was written, seconds since the epoch

  of that step, over all devices:
  loss                      the objective that is minimised
  ar, diffusion             its two terms, means over documents
  text_nll, masked_nll      nats per text target and per masked audio token, plain means
  masked_fraction           masked audio tokens among all targets
  documents                 in the batch
  grad_norm                 before clipping
  learning_rate             of the update
  skipped                   updates skipped in the run so far because the loss or the gradient was
                            not finite
  blocks_skipped            fraction of the blocks of attention in which no pair is allowed; the
                            dense form computes them nevertheless

  of the steps since the previous line (telemetry.Speed), per second of training time, which
  excludes start-up, compilation, checkpoints and evaluation but includes waits for data:
  tokens_per_second         positions of rows, including padding
  useful_tokens_per_second  positions that belong to documents
  documents_per_second
  steps_per_second
  padding_fraction          positions of rows that belong to no document
  model_flops_per_second    FLOPs that the model needs for these documents (model/flops.py)
  mfu                       the same as a fraction of the devices' peak in bfloat16
                            (system/hardware.py); absent where the peak is unknown, as on a CPU

  of the latest 1,000 steps of this process, seconds of training per step (telemetry.StepTimes):
  step_seconds/p50          median; p90 and p99 are percentiles, too
  step_seconds/p90
  step_seconds/p99

  of the processes since the last time, if there are several, seconds per step:
  hosts/slowest             the process whose own work took longest: all but the wait for the device
  hosts/slowest_own         that work; as long as a step, it keeps the others waiting
  hosts/slowest_data        the part of it that fetched batches
  hosts/median_own          median of all processes

  of the run so far, including earlier starts (telemetry.Clock):
  goodput                   seconds in steps that counted, as a fraction of the time since the
                            first start; repeated steps and the time between starts are among
                            the rest (status_file.Status)
  time/total                seconds
  time/PART                 fractions of them: start, compile, data, step, checkpoint, eval,
                            profile, lost, other
  recompiles                how often the train step was compiled again, in this process

  on held-out records, of train.eval_every during the run and of `ttt-jax evaluate`:
  eval/...                  the same names where they mean the same

A number that is not finite is written as null, because JSON has no NaN, and read back as NaN.
"""

from collections.abc import Callable, Mapping
import importlib
import json
import logging
import math
import os
import pathlib
import time
from typing import Annotated, Any, NotRequired
import uuid

from ttt_jax.errors import UserError
from ttt_jax.storage import files, schema

_LOG = logging.getLogger(__name__)
FILE = 'metrics.jsonl'
_START = '{"step": '  # of our lines, also of one that a crash has cut off
_NUMBERS = (float, int)  # and no bool, which is an int, too
_LONGEST = 2**16  # bytes of a line; the longest of ours has a few thousand
PERCENTILES = (50, 90, 99)  # of step_seconds
WINDOW = 1000  # steps that they are taken over
WANDB_RUN = 'wandb_run'  # in the workdir: the run's id at Weights & Biases, for a resume


class LineFile(schema.Kind):
  """A line; all of its other values are numbers, too."""
  step: schema.Count
  time: NotRequired[Annotated[float, schema.Range(0, 1e11)]]


class Writer:
  """Writes WORKDIR/metrics.jsonl, line by line, and to TensorBoard and Weights & Biases.

  Lines are appended, so that several processes may write: a training and an evaluation. Only a
  training replaces the file, when it starts or rolls back. Use it as a context manager, or call
  ``close``.
  """

  def __init__(self, workdir: str | os.PathLike, step: int | None = None, *,
               tensorboard: bool = True, wandb: str = '', name: str = '',
               settings: Mapping[str, Any] | None = None):
    """Open all of them.

    Args:
      workdir: created if it does not exist.
      step: None appends to an existing file. N >= 0: the run, which owns the workdir, resumes
        after step N; later lines, from a run that got further than its last checkpoint, are
        dropped, so that no step appears twice. 0 is a new run and starts with an empty file.
      tensorboard: also write WORKDIR/tensorboard.
      wandb: project at Weights & Biases, '' for none; see ``check``.
      name, settings: of the run, for Weights & Biases.

    Raises:
      UserError: the existing file holds no metrics, a disk cannot be written, or Weights & Biases
        reports an error.
    """
    self.path = pathlib.Path(workdir) / FILE
    with files.writing(self.path):
      files.make_folder(self.path.parent)
      if self.path.is_file():
        _check_kind(self.path)
    if step is not None and self.path.is_file():
      self._filter(lambda line: step > 0 and line['step'] <= step)
    self._sinks: list[_TensorBoard | _WeightsAndBiases] = []
    if tensorboard:
      self._sinks.append(_TensorBoard(self.path.parent, step))
    if wandb:
      self._sinks.append(_WeightsAndBiases(self.path.parent, step, wandb, name, settings))
    self._file = files.Appender(self.path)

  def _filter(self, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
    """Replace the file; who appends to it meanwhile waits, and then appends to the new one."""
    with files.writing(self.path), self.path.open('r+b') as old, files.locked(old):
      kept = [line for line in read(self.path) if wanted(line)]
      files.write_text(self.path, ''.join(_line(line) for line in kept))

  def drop_after(self, step: int) -> None:
    """Drop the lines after ``step``, to which the run has rolled back; TensorBoard leaves out its
    own. Weights & Biases keeps them and shows both curves."""
    self._filter(lambda line: line['step'] <= step)
    for sink in self._sinks:
      sink.drop_after(step)

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Add one line.

    Args:
      step: training steps done when the values were measured.
      values: name -> number (Python, numpy, or a JAX scalar that is already on the host).

    Raises:
      UserError: the disk is full.
    """
    assert not {'step', 'time'} & set(values), values
    numbers = {name: float(value) for name, value in values.items()}
    now = time.time()
    self._file.write(_line({'step': int(step), 'time': round(now, 3), **numbers}))
    for sink in self._sinks:
      sink.write(int(step), now, numbers)

  def close(self) -> None:
    try:
      self._file.close()
    finally:
      for sink in self._sinks:
        sink.close()

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, *unused) -> None:
    self.close()


class NullWriter:
  """Has a Writer's methods and writes nothing: for all processes but the first."""

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    pass

  def drop_after(self, step: int) -> None:
    pass

  def __enter__(self) -> 'NullWriter':
    return self

  def __exit__(self, *unused) -> None:
    pass


class _TensorBoard:
  """Writes through tensorboardX, whose thread flushes every few seconds."""

  def __init__(self, workdir: pathlib.Path, step: int | None):
    from tensorboardX import SummaryWriter  # takes a second, which readers of this module save
    # A long queue: with the default of ten points the host would wait for tensorboardX's thread,
    # and that thread for the disk.
    self._board = SummaryWriter(str(workdir / 'tensorboard'), max_queue=10_000, flush_secs=5,
                                purge_step=None if step is None else step + 1)

  def write(self, step: int, now: float, numbers: Mapping[str, float]) -> None:
    for name, number in numbers.items():
      self._board.add_scalar(name, number, step, walltime=now)

  def drop_after(self, step: int) -> None:
    """Write the mark of a restart: TensorBoard drops what it has read from this step on."""
    from tensorboardX.proto import event_pb2
    events: Any = event_pb2  # its classes are made at run time
    assert self._board.file_writer is not None
    self._board.file_writer.add_event(events.Event(
        step=step + 1, session_log=events.SessionLog(status=events.SessionLog.START)))

  def close(self) -> None:
    self._board.close()


class _WeightsAndBiases:
  """A run at Weights & Biases; WANDB_MODE=offline stores it in WORKDIR/wandb."""

  def __init__(self, workdir: pathlib.Path, step: int | None, project: str, name: str,
               settings: Mapping[str, Any] | None):
    wandb = _import_wandb(project)
    known = workdir / WANDB_RUN
    if step == 0 or not known.is_file():
      files.write_text(known, uuid.uuid4().hex[:8] + '\n')
    try:
      self._run = wandb.init(
          project=project, dir=str(workdir), id=known.read_text(encoding='utf-8').strip(),
          resume='allow', name=name or None, config=dict(settings or {}),
          settings=wandb.Settings(console='off'))  # a progress bar makes no useful log
    except wandb.Error as error:
      raise UserError(f'config key train.wandb is {project!r}, but Weights & Biases reports: '
                      f'{str(error).rstrip(".")}; log in with `wandb login`, set '
                      'WANDB_MODE=offline, or leave the key empty.') from error
    # Their step counter cannot go back, but a resumed run's steps can: log ours as a metric.
    self._run.define_metric('*', step_metric='step')

  def write(self, step: int, now: float, numbers: Mapping[str, float]) -> None:
    self._run.log({'step': step, **numbers})

  def drop_after(self, step: int) -> None:
    """Nothing: what was sent cannot be taken back."""

  def close(self) -> None:
    self._run.finish()


def check(wandb: str) -> None:
  """UserError if Weights & Biases is requested (``wandb`` is not empty) but not installed."""
  if wandb:
    _import_wandb(wandb)


def _import_wandb(project: str):
  try:
    return importlib.import_module('wandb')
  except ImportError as error:
    raise UserError(f'config key train.wandb is {project!r}, but the package wandb cannot be '
                    f'imported ({error}); install it with `pip install wandb`, or leave the key '
                    'empty.') from error


def _line(values: Mapping[str, Any]) -> str:
  finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
  return json.dumps(finite, allow_nan=False) + '\n'


def read(path: str | os.PathLike) -> list[dict[str, float]]:
  """All lines of a metrics file, in order.

  Args:
    path: metrics.jsonl, or the workdir that holds one.

  Returns:
    A dict per line: 'step' (int), 'time' (seconds since the epoch) and the metrics. A last line
    without a line break was cut off by a crash and is ignored; other damaged lines are left out
    with a warning.

  Raises:
    UserError: no such file, or none of its lines is a JSON object with a step.
  """
  path = pathlib.Path(path)
  if path.is_dir() and path.name != FILE:
    path = path / FILE
  if not path.exists():
    raise UserError(f'metrics file {path} does not exist; `ttt-jax train` writes it.')
  try:
    *lines, _ = path.read_text(encoding='utf-8', errors='replace').split('\n')
  except OSError as error:
    raise UserError(f'metrics file {path} cannot be read: {error.strerror}.') from error
  found = [_parsed(line) for line in lines]
  damaged = [number for number, (line, values) in enumerate(zip(lines, found), 1)
             if values is None and line.strip()]
  if damaged and not any(found):
    raise _foreign(path, damaged[0], lines[damaged[0] - 1])
  if damaged:
    _LOG.warning('metrics file %s: line %d%s cannot be read and is left out.', path, damaged[0],
                 f' and {len(damaged) - 1} more' if len(damaged) > 1 else '')
  return [values for values in found if values]


def _parsed(line: str) -> dict[str, float] | None:
  """The values of a line; None if it is not one."""
  try:
    values = json.loads(line)
    numbers = {name: math.nan if value is None else value for name, value in values.items()}
  except (ValueError, AttributeError, RecursionError):
    return None
  # A schema of all values would take half of the time that reading takes.
  right = schema.fits(values, LineFile) and all(
      type(value) in _NUMBERS and not abs(value) >= 2**63 for value in numbers.values())
  return numbers if right else None


def _check_kind(path: pathlib.Path) -> None:
  """UserError if a file's first whole line belongs to another program: it must not be replaced."""
  with path.open('rb') as file:
    while line := file.readline(_LONGEST):
      text = line.decode(errors='replace')
      if not text.strip('\0 \r\n\t'):
        continue
      cut_off = not text.endswith('\n') and (text.startswith(_START) or _START.startswith(text))
      if not cut_off and _parsed(text) is None and not any(
          _parsed(other.decode(errors='replace')) for other in file):
        raise _foreign(path, 1, text)
      return


def _foreign(path: pathlib.Path, number: int, line: str) -> UserError:
  return UserError(f'metrics file {path}, line {number} is {line.strip()[:60]!r}; it must be a '
                   'JSON object with a step; move the file, or use another workdir.')
