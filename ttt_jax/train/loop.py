"""The loop around the step: reading one step late, saving, evaluating, going back, leaving."""

import dataclasses
import importlib.metadata
import pathlib
import subprocess
import time
from typing import Any, Callable

import jax
import numpy as np

from ttt_jax.config import Config, to_dict
from ttt_jax.data import loader
from ttt_jax.errors import UserError
from ttt_jax.model import flops, sharding
from ttt_jax.model.transformer import Model
from ttt_jax.system import hardware
from ttt_jax.system.progress import Progress
from ttt_jax.tokens.vocab import Vocabulary
from ttt_jax.train import (
    checkpoint, consensus, fault_injection, metrics, optimizer as optimizers, preemption,
    restore, status_file, step as train_step, telemetry, watchdog as watchdog_lib)
from ttt_jax.train.state import TrainState
from ttt_jax.train.validation import Validator


@dataclasses.dataclass
class RunProgress:
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
class TrainContext:
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
  status: status_file.Status
  watchdog: watchdog_lib.Watchdog
  stop: preemption.Stop
  faults: fault_injection.Faults | None
  validator: Validator | None
  clock: telemetry.Clock
  flight: telemetry.InFlight


class Loop:
  """One run from its first step to its last; ``run`` is all there is to call."""

  def __init__(self, context: TrainContext, state: TrainState, progress: RunProgress):
    self.context, self.state, self.progress = context, state, progress
    self.settings = context.config.train
    self._step_fn = train_step.make_train_step(
        context.config, context.model, context.vocab, context.optimizer, context.mesh,
        fault_injection.poisoned if context.faults else None)
    self._speed = _speed(context)
    # All at once and now: asking the device in the middle of its work would mean waiting for it.
    self._rates = np.asarray(optimizers.schedule(context.config.optimizer, self.settings.steps)(
        np.arange(self.settings.steps)))
    self._consensus = consensus.Consensus(context.mesh)
    self._started = self._saved = time.monotonic()
    self._saved_step = progress.step
    self._failure: UserError | None = None
    self._leaving = False
    self._marked_saving = False
    self._revision = git_revision()

  def run(self) -> TrainState:
    """Train until the last step, or until all agree to stop; the last state is saved.

    Raises:
      UserError: a disk is full; the loss stays not finite.
    """
    context, settings, progress = self.context, self.settings, self.progress
    requests = self._consensus.now({'stop': context.stop.level})
    if requests['stop'] and progress.step < settings.steps:  # before a first step: all is on disk
      return self._left(requests['stop'])
    with Progress(settings.steps, 'train', done=progress.step, unit='steps',
                  shown=jax.process_index() == 0) as self._bar:
      self._watch = telemetry.CompileWatch(self._bar.say)
      if progress.step:
        self._bar.say(f'going on from checkpoint {progress.step}.')
      context.status.good(context.checkpoints.last_good)
      context.status.update(state='running', step=progress.step)
      context.clock.lap('start')
      while progress.step < settings.steps and not self._leaving:
        self._advance()
      context.checkpoints.wait()
      context.clock.lap('checkpoint')
    return self._left(context.stop.agreed)

  def _left(self, stopped: int) -> TrainState:
    self.context.stop.agreed = stopped
    state = {preemption.NONE: 'done', preemption.PREEMPTED: 'preempted',
             preemption.INTERRUPTED: 'interrupted'}[stopped]
    self.context.status.good(self.context.checkpoints.last_good)
    self.context.status.update(state=state, step=self.progress.step,
                             time_split=self._split())
    return self.state

  # -- one step -----------------------------------------------------------------------------

  def _advance(self) -> None:
    """Give one step to the device, read the one before, do what is due."""
    context, settings, clock = self.context, self.settings, self.context.clock
    batch = self._batch()
    clock.lap('data')
    step = self.progress.step + 1
    with self._watch:
      self.state, figures = self._step_fn(self.state, batch)
    clock.lap('compile' if self._watch.compiled(step, batch) else 'step')
    self.progress.step = step
    # Those of the step before: the device runs on.
    alone = self._consensus.alone  # who is alone may look after the wait, and leaves sooner
    late = context.flight.push(
        step, figures if alone else figures | self._consensus.send(self._requests()))
    clock.lap('step')
    requests = self._read(late, self._requests() if alone else {})
    if self._lost():
      return self._go_back(late[0])
    clock.lap('other')
    self._leaving = bool(requests['stop'] or requests['time'] or step == settings.steps)
    scores = self._evaluate() if settings.eval_every and step % settings.eval_every == 0 else {}
    asked = requests['save'] and (late is None or late[0] > self._saved_step)
    if step % settings.checkpoint_every == 0 or self._leaving or asked or self._best(scores):
      late = context.flight.drain()
      clock.lap('step')
      self._read(late, {}, always=self._leaving)
      if self._lost():
        self._leaving = False
        return self._go_back(step)
      context.stop.agreed = requests['stop']
      self._save(scores)
    elif self._marked_saving and not context.checkpoints.saving():
      self._tell('running')
    self._bar.update(1)

  def _batch(self):
    """The next batch on the mesh."""
    index = self.context.batches.state()['next']
    batch = next(self.context.batches)
    if self.context.faults:
      batch = self.context.faults.apply(index, batch)
    return sharding.put_batch(self.context.mesh, batch)

  def _requests(self) -> dict[str, int]:
    """What this process would like all to do; see consensus.REQUESTS."""
    now, minutes = time.monotonic(), 60.0
    due = lambda limit, since: int(0 < limit <= (now - since) / minutes)
    return {'stop': self.context.stop.level,
            'save': due(self.settings.checkpoint_minutes, self._saved),
            'time': due(self.settings.max_minutes, self._started),
            'failed': int(self._failure is not None or self.context.checkpoints.failed())}

  def _read(self, late: tuple[int, dict] | None, mine: dict[str, int],
            always: bool = False) -> dict[str, int]:
    """Count and log a finished step; returns what all processes wish, as far as is known."""
    requests = dict.fromkeys(consensus.REQUESTS, 0) | mine
    if late is not None:
      step, figures = late
      requests |= consensus.take(figures)
      self.context.watchdog.beat()
      self._speed.add(figures)
      bad = figures['skipped'] > 0
      self.progress.skipped += bad
      self.progress.in_a_row = self.progress.in_a_row + 1 if bad else 0
      if step % self.settings.log_every == 0 or always:
        self._log(step, figures)
    if requests['failed']:
      self._give_up()
    return requests

  def _log(self, step: int, figures: dict[str, float]) -> None:
    rate = self._speed.take()
    done = min(max(step - 1 - self.progress.skipped, 0), len(self._rates) - 1)
    values = _line(figures) | rate | self.context.clock.shares() | {
        'learning_rate': self._rates[done], 'recompiles': self._watch.recompiles,
        'skipped': self.progress.skipped}
    self._try(lambda: self.context.writer.write(step, values))
    self._bar.update(0, **_shown(values))
    saving = self.context.checkpoints.saving()
    self._tell('saving' if saving else 'running', step=step, rate=rate['steps_per_second'],
               time_split=self._split())

  def _tell(self, state: str, **values: Any) -> None:
    self._marked_saving = state == 'saving'
    self.context.status.good(self.context.checkpoints.last_good)
    self._try(lambda: self.context.status.update(state=state, **values))

  def _split(self) -> dict[str, float]:
    return {part: round(spent, 3) for part, spent in self.context.clock.seconds.items()}

  # -- what goes wrong ----------------------------------------------------------------------

  def _try(self, write: Callable[[], None]) -> None:
    """Alone, a failure is the end; several processes first agree on it, so that none waits."""
    try:
      write()
    except UserError as error:
      if self._consensus.alone:
        raise
      self._failure = self._failure or error

  def _give_up(self) -> None:
    if self._failure is None:
      self._try(self.context.checkpoints.wait)
    raise self._failure or UserError('another process of this run could not write to its disk; its '
                                     'own message says why.')

  def _lost(self) -> bool:
    return self.progress.in_a_row >= self.settings.nonfinite_limit

  def _go_back(self, step: int) -> None:
    """After too many skipped updates: an older state, but the data behind those of ``step``."""
    context, settings, progress = self.context, self.settings, self.progress
    context.flight.drain()  # a step that was given meanwhile is not part of the run
    row, after = progress.in_a_row, step + progress.offset
    what = f'loss or gradient were not finite in {row} steps in a row, up to step {step}'
    if progress.rollbacks >= settings.rollback_limit:
      raise UserError(
          f'{what}, and the run has gone back {progress.rollbacks} times already (config '
          'key train.rollback_limit); lower optimizer.learning_rate, or look for what '
          'is wrong with the data.')
    context.checkpoints.wait()
    target = context.checkpoints.newest_clean()
    if target is None:
      raise UserError(f'{what}, and there is no checkpoint to go back to; lower '
                      'optimizer.learning_rate, or look for what is wrong with the data.')
    self.state = None  # its memory is needed
    self.state = restore.restore(context.checkpoints, target, context.model, context.optimizer,
                                 context.target, context.config.seed)
    earlier = RunProgress(**context.checkpoints.meta(target)['progress'])
    context.checkpoints.drop_after(target)
    self._try(lambda: context.writer.drop_after(target))
    context.batches.restore({'next': after})
    progress.step, progress.offset, progress.best = target, after - target, earlier.best
    progress.in_a_row, progress.rollbacks = 0, progress.rollbacks + 1
    self._saved_step, self._saved = target, time.monotonic()
    self._speed = _speed(context)
    self._bar.update(target - self._bar.done)
    self._try(lambda: context.status.event(
        f'{what}: back to checkpoint {target}, on with batch {after} (rollback '
        f'{progress.rollbacks} of {settings.rollback_limit}).', step=target))
    context.watchdog.beat()
    context.clock.lap('start')

  # -- what is due now and then -------------------------------------------------------------

  def _evaluate(self) -> dict[str, float]:
    """Scores of the newest state on held-out rows, written as eval/..."""
    context = self.context
    jax.block_until_ready(self.state)
    context.clock.lap('step')
    self._tell('evaluating')
    scores = context.validator(self.state.params)
    self._try(lambda: context.writer.write(
        self.progress.step, {f'eval/{name}': value for name, value in scores.items()}))
    self._tell('running')
    context.watchdog.beat()
    context.clock.lap('eval')
    return scores

  def _best(self, scores: dict[str, float]) -> bool:
    """Whether this is the best step yet; if so, it is remembered."""
    score = scores.get(self.settings.keep_best, np.nan)
    if not np.isfinite(score) or (self.progress.best is not None and score >= self.progress.best):
      return False
    self.progress.best = score
    return True

  def _save(self, scores: dict[str, float]) -> None:
    context, step = self.context, self.progress.step
    jax.block_until_ready(self.state)  # saving would wait just so, and call it its own time
    context.clock.lap('step')
    self._best(scores)
    self._tell('saving', step=step)
    self._try(context.checkpoints.wait)
    if self._consensus.now({'failed': int(self._failure is not None)})['failed']:
      self._give_up()
    context.checkpoints.save(step, self.state, self._note(), clean=self.progress.in_a_row == 0,
                           scores=scores)
    self._saved, self._saved_step = time.monotonic(), step
    context.watchdog.beat()
    context.clock.lap('checkpoint')

  def _note(self) -> dict[str, Any]:
    """The JSON beside a checkpoint."""
    context = self.context
    return {'data': context.batches.state(), 'progress': dataclasses.asdict(self.progress),
            'seconds': dict(context.clock.seconds), 'config': to_dict(context.config),
            'vocabulary': context.vocab.to_dict(), 'fingerprint': context.vocab.fingerprint,
            'revision': self._revision, 'version': version()}


def _speed(context: TrainContext) -> telemetry.Speed:
  """What turns the figures of steps into rates, for this model on these devices."""
  config = context.config

  def useful(sums):
    return flops.useful(config.model, context.vocab.size, tokens=sums['tokens'],
                        scored=sums['scored'], mask_pairs=sums['mask_pairs'])
  chip = hardware.chip_of(context.mesh.devices.flat[0].device_kind)
  peak = None if chip is None else chip.flops / chip.devices * context.mesh.size
  return telemetry.Speed(context.clock, config.train.batch_size * config.data.seq_len, useful,
                         peak)


def _line(figures: dict[str, float]) -> dict[str, float]:
  """The figures that are means of their step; its sums become rates."""
  return {name: value for name, value in figures.items()
          if name == 'documents' or name not in telemetry.SUMS}


def _shown(values: dict[str, float]) -> dict[str, float]:
  """The few for the bar, the first ones for a narrow terminal."""
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
