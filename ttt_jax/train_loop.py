"""The loop around the step: reading one step late, saving, evaluating, going back, leaving."""

import dataclasses
import importlib.metadata
import pathlib
import subprocess
import time
from typing import Any, Callable

import jax
import numpy as np

from ttt_jax import (agreement, checkpoint, faults as faults_lib, flops, hardware, metrics,
                     optimizer as optimizers, run_status, sharding, stop as stop_lib, telemetry,
                     train_step, watchdog as watchdog_lib, weights)
from ttt_jax.config import Config, to_dict
from ttt_jax.data import loader
from ttt_jax.errors import UserError
from ttt_jax.held_out import HeldOut
from ttt_jax.model.transformer import Model
from ttt_jax.progress import Progress
from ttt_jax.train_state import TrainState
from ttt_jax.vocab import Vocabulary


@dataclasses.dataclass
class Course:
  """Where a run stands, beside its arrays; kept with every checkpoint.

  Attributes:
    step: updates given to the device, skipped ones included.
    offset: batches that the data are ahead of ``step``: the next is number step + offset. It
      grows when a run goes back to an older state but not to the data it has seen since.
    skipped: updates left out because loss or gradient were not finite.
    in_a_row: how many of them came last, without a good one.
    rollbacks: times that the run went back.
    best: lowest score yet under train.keep_best; None before the first evaluation.
  """
  step: int = 0
  offset: int = 0
  skipped: int = 0
  in_a_row: int = 0
  rollbacks: int = 0
  best: float | None = None


@dataclasses.dataclass
class Parts:
  """What train.train has opened for the loop."""
  config: Config
  vocab: Vocabulary
  mesh: jax.sharding.Mesh
  model: Model
  optimizer: Any
  target: TrainState  # train_state.abstract: what a restore gives
  batches: loader.Loader
  checkpoints: checkpoint.Checkpoints
  writer: metrics.Writer | metrics.Nowhere
  status: run_status.Status
  watchdog: watchdog_lib.Watchdog
  stop: stop_lib.Stop
  faults: faults_lib.Faults | None
  held_out: HeldOut | None
  clock: telemetry.Clock
  flight: telemetry.InFlight


class Loop:
  """One run from its first step to its last; ``run`` is all there is to call."""

  def __init__(self, parts: Parts, state: TrainState, course: Course):
    self.parts, self.state, self.course = parts, state, course
    self.settings = parts.config.train
    self._step_fn = train_step.make_train_step(
        parts.config, parts.model, parts.vocab, parts.optimizer, parts.mesh,
        faults_lib.poisoned if parts.faults else None)
    self._speed = _speed(parts)
    # All at once and now: asking the device in the middle of its work would mean waiting for it.
    self._rates = np.asarray(optimizers.schedule(parts.config.optimizer, self.settings.steps)(
        np.arange(self.settings.steps)))
    self._agreement = agreement.Agreement(parts.mesh)
    self._started = self._saved = time.monotonic()
    self._saved_step = course.step
    self._failure: UserError | None = None
    self._leaving = False
    self._marked_saving = False
    self._revision = git_revision()

  def run(self) -> TrainState:
    """Train until the last step, or until all agree to stop; the last state is saved.

    Raises:
      UserError: a disk is full; the loss stays not finite.
    """
    parts, settings, course = self.parts, self.settings, self.course
    wishes = self._agreement.now({'stop': parts.stop.level})
    if wishes['stop'] and course.step < settings.steps:  # before a first step: all is on disk
      return self._left(wishes['stop'])
    with Progress(settings.steps, 'train', done=course.step, unit='steps',
                  shown=jax.process_index() == 0) as self._progress:
      self._watch = telemetry.CompileWatch(self._progress.say)
      if course.step:
        self._progress.say(f'going on from checkpoint {course.step}.')
      parts.status.good(parts.checkpoints.last_good)
      parts.status.update(state='running', step=course.step)
      parts.clock.lap('start')
      while course.step < settings.steps and not self._leaving:
        self._advance()
      parts.checkpoints.wait()
      parts.clock.lap('checkpoint')
    return self._left(parts.stop.agreed)

  def _left(self, stopped: int) -> TrainState:
    self.parts.stop.agreed = stopped
    state = {stop_lib.CALM: 'done', stop_lib.PREEMPTED: 'preempted',
             stop_lib.INTERRUPTED: 'interrupted'}[stopped]
    self.parts.status.good(self.parts.checkpoints.last_good)
    self.parts.status.update(state=state, step=self.course.step,
                             time_split=self._split())
    return self.state

  # -- one step -----------------------------------------------------------------------------

  def _advance(self) -> None:
    """Give one step to the device, read the one before, do what is due."""
    parts, settings, clock = self.parts, self.settings, self.parts.clock
    batch = self._batch()
    clock.lap('data')
    step = self.course.step + 1
    with self._watch:
      self.state, figures = self._step_fn(self.state, batch)
    clock.lap('compile' if self._watch.compiled(step, batch) else 'step')
    self.course.step = step
    # Those of the step before: the device runs on.
    alone = self._agreement.alone  # who is alone may look after the wait, and leaves sooner
    late = parts.flight.push(
        step, figures if alone else figures | self._agreement.send(self._wishes()))
    clock.lap('step')
    wishes = self._read(late, self._wishes() if alone else {})
    if self._lost():
      return self._go_back(late[0])
    clock.lap('other')
    self._leaving = bool(wishes['stop'] or wishes['time'] or step == settings.steps)
    scores = self._evaluate() if settings.eval_every and step % settings.eval_every == 0 else {}
    asked = wishes['save'] and (late is None or late[0] > self._saved_step)
    if step % settings.checkpoint_every == 0 or self._leaving or asked or self._best(scores):
      late = parts.flight.drain()
      clock.lap('step')
      self._read(late, {}, always=self._leaving)
      if self._lost():
        self._leaving = False
        return self._go_back(step)
      parts.stop.agreed = wishes['stop']
      self._save(scores)
    elif self._marked_saving and not parts.checkpoints.saving():
      self._tell('running')
    self._progress.update(1)

  def _batch(self):
    """The next batch on the mesh."""
    index = self.parts.batches.state()['next']
    batch = next(self.parts.batches)
    if self.parts.faults:
      batch = self.parts.faults.apply(index, batch)
    return sharding.put_batch(self.parts.mesh, batch)

  def _wishes(self) -> dict[str, int]:
    """What this process would like all to do; see agreement.WISHES."""
    now, minutes = time.monotonic(), 60.0
    due = lambda limit, since: int(0 < limit <= (now - since) / minutes)
    return {'stop': self.parts.stop.level,
            'save': due(self.settings.checkpoint_minutes, self._saved),
            'time': due(self.settings.max_minutes, self._started),
            'failed': int(self._failure is not None or self.parts.checkpoints.failed())}

  def _read(self, late: tuple[int, dict] | None, mine: dict[str, int],
            always: bool = False) -> dict[str, int]:
    """Count and log a finished step; returns what all processes wish, as far as is known."""
    wishes = dict.fromkeys(agreement.WISHES, 0) | mine
    if late is not None:
      step, figures = late
      wishes |= agreement.take(figures)
      self.parts.watchdog.beat()
      self._speed.add(figures)
      bad = figures['skipped'] > 0
      self.course.skipped += bad
      self.course.in_a_row = self.course.in_a_row + 1 if bad else 0
      if step % self.settings.log_every == 0 or always:
        self._log(step, figures)
    if wishes['failed']:
      self._give_up()
    return wishes

  def _log(self, step: int, figures: dict[str, float]) -> None:
    rate = self._speed.take()
    done = min(max(step - 1 - self.course.skipped, 0), len(self._rates) - 1)
    values = _line(figures) | rate | self.parts.clock.shares() | {
        'learning_rate': self._rates[done], 'recompiles': self._watch.recompiles,
        'skipped': self.course.skipped}
    self._try(lambda: self.parts.writer.write(step, values))
    self._progress.update(0, **_shown(values))
    saving = self.parts.checkpoints.saving()
    self._tell('saving' if saving else 'running', step=step, rate=rate['steps_per_second'],
               time_split=self._split())

  def _tell(self, state: str, **values: Any) -> None:
    self._marked_saving = state == 'saving'
    self.parts.status.good(self.parts.checkpoints.last_good)
    self._try(lambda: self.parts.status.update(state=state, **values))

  def _split(self) -> dict[str, float]:
    return {part: round(spent, 3) for part, spent in self.parts.clock.seconds.items()}

  # -- what goes wrong ----------------------------------------------------------------------

  def _try(self, write: Callable[[], None]) -> None:
    """Alone, a failure is the end; several processes first agree on it, so that none waits."""
    try:
      write()
    except UserError as error:
      if self._agreement.alone:
        raise
      self._failure = self._failure or error

  def _give_up(self) -> None:
    if self._failure is None:
      self._try(self.parts.checkpoints.wait)
    raise self._failure or UserError('another process of this run could not write to its disk; its '
                                     'own message says why.')

  def _lost(self) -> bool:
    return self.course.in_a_row >= self.settings.nonfinite_limit

  def _go_back(self, step: int) -> None:
    """After too many skipped updates: an older state, but the data behind those of ``step``."""
    parts, settings, course = self.parts, self.settings, self.course
    parts.flight.drain()  # a step that was given meanwhile is not part of the run
    row, after = course.in_a_row, step + course.offset
    what = f'loss or gradient were not finite in {row} steps in a row, up to step {step}'
    if course.rollbacks >= settings.rollback_limit:
      raise UserError(f'{what}, and the run has gone back {course.rollbacks} times already (config '
                      'key train.rollback_limit); lower optimizer.learning_rate, or look for what '
                      'is wrong with the data.')
    parts.checkpoints.wait()
    target = parts.checkpoints.newest_clean()
    if target is None:
      raise UserError(f'{what}, and there is no checkpoint to go back to; lower '
                      'optimizer.learning_rate, or look for what is wrong with the data.')
    self.state = None  # its memory is needed
    self.state = weights.restore(parts.checkpoints, target, parts.model, parts.optimizer,
                                 parts.target, parts.config.seed)
    earlier = Course(**parts.checkpoints.meta(target)['course'])
    parts.checkpoints.drop_after(target)
    self._try(lambda: parts.writer.drop_after(target))
    parts.batches.restore({'next': after})
    course.step, course.offset, course.best = target, after - target, earlier.best
    course.in_a_row, course.rollbacks = 0, course.rollbacks + 1
    self._saved_step, self._saved = target, time.monotonic()
    self._speed = _speed(parts)
    self._progress.update(target - self._progress.done)
    self._try(lambda: parts.status.event(
        f'{what}: back to checkpoint {target}, on with batch {after} (rollback '
        f'{course.rollbacks} of {settings.rollback_limit}).', step=target))
    parts.watchdog.beat()
    parts.clock.lap('start')

  # -- what is due now and then -------------------------------------------------------------

  def _evaluate(self) -> dict[str, float]:
    """Scores of the newest state on held-out rows, written as eval/..."""
    parts = self.parts
    jax.block_until_ready(self.state)
    parts.clock.lap('step')
    self._tell('evaluating')
    scores = parts.held_out(self.state.params)
    self._try(lambda: parts.writer.write(
        self.course.step, {f'eval/{name}': value for name, value in scores.items()}))
    self._tell('running')
    parts.watchdog.beat()
    parts.clock.lap('eval')
    return scores

  def _best(self, scores: dict[str, float]) -> bool:
    """Whether this is the best step yet; if so, it is remembered."""
    score = scores.get(self.settings.keep_best, np.nan)
    if not np.isfinite(score) or (self.course.best is not None and score >= self.course.best):
      return False
    self.course.best = score
    return True

  def _save(self, scores: dict[str, float]) -> None:
    parts, step = self.parts, self.course.step
    jax.block_until_ready(self.state)  # saving would wait just so, and call it its own time
    parts.clock.lap('step')
    self._best(scores)
    self._tell('saving', step=step)
    self._try(parts.checkpoints.wait)
    if self._agreement.now({'failed': int(self._failure is not None)})['failed']:
      self._give_up()
    parts.checkpoints.save(step, self.state, self._note(), clean=self.course.in_a_row == 0,
                           scores=scores)
    self._saved, self._saved_step = time.monotonic(), step
    parts.watchdog.beat()
    parts.clock.lap('checkpoint')

  def _note(self) -> dict[str, Any]:
    """The JSON beside a checkpoint."""
    parts = self.parts
    return {'data': parts.batches.state(), 'course': dataclasses.asdict(self.course),
            'seconds': dict(parts.clock.seconds), 'config': to_dict(parts.config),
            'vocabulary': parts.vocab.to_dict(), 'fingerprint': parts.vocab.fingerprint,
            'revision': self._revision, 'version': version()}


def _speed(parts: Parts) -> telemetry.Speed:
  """What turns the figures of steps into rates, for this model on these devices."""
  config = parts.config

  def useful(sums):
    return flops.useful(config.model, parts.vocab.size, tokens=sums['tokens'],
                        scored=sums['scored'], mask_pairs=sums['mask_pairs'])
  chip = hardware.chip_of(parts.mesh.devices.flat[0].device_kind)
  peak = None if chip is None else chip.flops / chip.devices * parts.mesh.size
  return telemetry.Speed(parts.clock, config.train.batch_rows * config.data.row_length, useful,
                         peak)


def _line(figures: dict[str, float]) -> dict[str, float]:
  """The figures that are means of their step; its sums become rates."""
  return {name: value for name, value in figures.items()
          if name == 'documents' or name not in telemetry.SUMS}


def _shown(values: dict[str, float]) -> dict[str, float]:
  """The few for the progress bar, the first ones for a narrow terminal."""
  return {'loss': values['loss'], 'tok/s': values['useful_tokens_per_second'],
          'ar': values['ar'], 'diffusion': values['diffusion']}


def version() -> str:
  """Of this package; '' where it runs from a folder that was never installed."""
  try:
    return importlib.metadata.version('ttt_jax')
  except importlib.metadata.PackageNotFoundError:
    return ''


def git_revision() -> str:
  """The commit that this code is, with '+' when files were changed since; '' if nobody knows."""
  folder = pathlib.Path(__file__).parent
  ask = lambda *words: subprocess.run(['git', '-C', str(folder), *words], capture_output=True,
                                      text=True, timeout=10, check=True).stdout.strip()
  try:
    return ask('rev-parse', 'HEAD') + ('+' if ask('status', '--porcelain', '-uno', '.') else '')
  except (OSError, subprocess.SubprocessError):
    return ''
