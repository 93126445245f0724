"""Numbers of a run on disk: one JSON object per line; TensorBoard; Weights & Biases if asked for.

  {"step": 40, "time": 1760000000.1, "loss": 3.2, "ar": 0.9, "diffusion": 2.3, ...}

  key                       meaning
  step                      updates done
  time                      seconds since the epoch when the line was written

  of that step, over all devices:
  loss                      what is minimised
  ar, diffusion             its two terms, means over documents
  text_nll, masked_nll      nats per text target and per masked audio token, plain means
  masked_fraction           masked audio tokens among all targets
  documents                 in the batch
  grad_norm                 before clipping
  learning_rate             of the update
  skipped                   updates left out in the run so far, their loss or gradient not being
                            finite
  blocks_skipped            of all blocks of attention, the fraction that nobody reads; a dense
                            form computes them all the same

  of the steps since the line before (telemetry.Speed), per second of training time, which
  leaves out start-up, compilation, checkpoints and evaluation but not waits for data:
  tokens_per_second         positions of rows, padding included
  useful_tokens_per_second  positions that belong to documents
  documents_per_second
  steps_per_second
  padding_fraction          positions of rows that belong to no document
  model_flops_per_second    FLOPs that the model needs for these documents (flops.py)
  mfu                       the same as a fraction of what the devices can do at most, in
                            bfloat16 (hardware.py); left out where that is not known: on a CPU

  of the whole run so far, including the runs it resumed (telemetry.Clock):
  time/total                seconds
  time/PART                 fractions of them: start, compile, data, step, checkpoint, eval,
                            other; time/step is the goodput
  recompiles                times that the train step was compiled again, in this process

  of `ttt-jax evaluate`, and of train.eval_every during the run, on held-out records:
  eval/...                  the same names where they mean the same

A number that is not finite is written as null, since JSON knows no NaN, and read back as NaN.
"""

from collections.abc import Callable, Mapping
import importlib
import json
import math
import os
import pathlib
import time
from typing import Any
import uuid

from ttt_jax.errors import UserError
from ttt_jax.storage import files

FILE = 'metrics.jsonl'
WANDB_RUN = 'wandb_run'  # in the workdir: the run's id there, so that a resume goes on in it


class Writer:
  """Appends to WORKDIR/metrics.jsonl, at once, and to the boards that are switched on.

  Use it as a context manager, or call ``close``.
  """

  def __init__(self, workdir: str | os.PathLike, step: int | None = None, *,
               tensorboard: bool = True, wandb: str = '', name: str = '',
               settings: Mapping[str, Any] | None = None):
    """Open all of them.

    Args:
      workdir: made if it does not exist.
      step: None appends to whatever is there. N >= 0 says that the run goes on after its
        first N steps: later lines, left by a run that got further than its last
        checkpoint, are dropped, so that curves never fold back. 0 is a new run and
        starts with an empty file.
      tensorboard: write WORKDIR/tensorboard, too.
      wandb: project at Weights & Biases, '' for none; see ``check``.
      name, settings: of the run, shown there.

    Raises:
      UserError: the existing file is not ours, or Weights & Biases says no.
    """
    self.path = pathlib.Path(workdir) / FILE
    self.path.parent.mkdir(parents=True, exist_ok=True)
    if self.path.exists():
      self._keep(lambda line: step is None or (step > 0 and line['step'] <= step))
    self._boards = [_TensorBoard(self.path.parent, step)] if tensorboard else []
    if wandb:
      self._boards.append(_WeightsAndBiases(self.path.parent, step, wandb, name, settings))
    self._file = self.path.open('a', encoding='utf-8')

  def _keep(self, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
    kept = [line for line in read(self.path) if wanted(line)]
    files.write_text(self.path, ''.join(_line(line) for line in kept))

  def drop_after(self, step: int) -> None:
    """Drop the lines beyond ``step``, to which the run has gone back. TensorBoard and Weights &
    Biases keep theirs, and show both courses."""
    self._file.close()
    self._keep(lambda line: line['step'] <= step)
    self._file = self.path.open('a', encoding='utf-8')

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Add one line.

    Args:
      step: training steps done when this was measured.
      values: name -> number (Python, numpy or a JAX scalar already on the host).

    Raises:
      UserError: the disk is full.
    """
    assert not {'step', 'time'} & set(values), values
    numbers = {name: float(value) for name, value in values.items()}
    now = time.time()
    try:
      self._file.write(_line({'step': int(step), 'time': round(now, 3), **numbers}))
      self._file.flush()
    except OSError as error:
      raise files.cannot_write(self.path, error) from error
    for board in self._boards:
      board.write(int(step), now, numbers)

  def close(self) -> None:
    try:
      self._file.close()
    except OSError as error:  # what did not fit is still in its buffer
      raise files.cannot_write(self.path, error) from error
    finally:
      for board in self._boards:
        board.close()

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, *unused) -> None:
    self.close()


class NullWriter:
  """A Writer's stand-in on the processes that do not write."""

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    pass

  def drop_after(self, step: int) -> None:
    pass

  def __enter__(self) -> 'NullWriter':
    return self

  def __exit__(self, *unused) -> None:
    pass


class _TensorBoard:
  """Hands points to tensorboardX's own thread, which puts them on disk every few seconds."""

  def __init__(self, workdir: pathlib.Path, step: int | None):
    from tensorboardX import SummaryWriter  # a second of imports that reading does without
    # A queue that takes many lines: with the default of ten points the host would wait for
    # the thread, and the thread for the disk.
    self._board = SummaryWriter(str(workdir / 'tensorboard'), max_queue=10_000, flush_secs=5,
                                purge_step=None if step is None else step + 1)

  def write(self, step: int, now: float, numbers: Mapping[str, float]) -> None:
    for name, number in numbers.items():
      self._board.add_scalar(name, number, step, walltime=now)

  def close(self) -> None:
    self._board.close()


class _WeightsAndBiases:
  """One run there; WANDB_MODE=offline keeps it in WORKDIR/wandb."""

  def __init__(self, workdir: pathlib.Path, step: int | None, project: str, name: str,
               settings: Mapping[str, Any] | None):
    wandb = _import_wandb(project)
    known = workdir / WANDB_RUN
    if step == 0 or not known.is_file():
      known.write_text(uuid.uuid4().hex[:8] + '\n', encoding='utf-8')
    try:
      self._run = wandb.init(
          project=project, dir=str(workdir), id=known.read_text(encoding='utf-8').strip(),
          resume='allow', name=name or None, config=dict(settings or {}),
          settings=wandb.Settings(console='off'))  # the progress bar is nobody's log
    except wandb.Error as error:
      raise UserError(f'config key train.wandb is {project!r}, but Weights & Biases says: '
                      f'{str(error).rstrip(".")}; log in with `wandb login`, set '
                      'WANDB_MODE=offline, or leave the key empty.') from error
    # Its own step counter refuses to go back, which a resumed run does; ours is a number.
    self._run.define_metric('*', step_metric='step')

  def write(self, step: int, now: float, numbers: Mapping[str, float]) -> None:
    self._run.log({'step': step, **numbers})

  def close(self) -> None:
    self._run.finish()


def check(wandb: str) -> None:
  """UserError if Weights & Biases is asked for (``wandb`` is not empty) and not installed."""
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
    A dict per line: 'step' (int), 'time' (seconds since the epoch) and the numbers. A last
    line without its line break was cut off by a crash and is left out.

  Raises:
    UserError: no such file, or a line that is not a JSON object with a step.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    path = path / FILE
  if not path.is_file():
    raise UserError(f'metrics file {path} does not exist; `ttt-jax train` writes it.')
  lines = path.read_text(encoding='utf-8').split('\n')
  out = []
  for number, line in enumerate(lines[:-1], 1):
    try:
      values = json.loads(line)
      out.append({name: math.nan if value is None else value for name, value in values.items()})
      out[-1]['step']
    except (ValueError, AttributeError, KeyError) as error:
      raise UserError(f'metrics file {path}, line {number} is {line[:60]!r}; it must be a JSON '
                      'object with a step.') from error
  return out
