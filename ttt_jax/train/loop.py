"""The training loop: metrics read one step late, saving, evaluating, rolling back, stopping."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import math
import time
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np
import optax

from ttt_jax.config import Config, to_dict
from ttt_jax.data import loader
from ttt_jax.errors import RetryableError, UserError
from ttt_jax.model import flops, sharding
from ttt_jax.model.transformer import Model
from ttt_jax.system import hardware
from ttt_jax.system.progress import Progress
from ttt_jax.system.version import git_revision, version
from ttt_jax.tokens.batch import Batch
from ttt_jax.tokens.vocab import Vocabulary
from ttt_jax.train import (
    alarm as alarm_lib, checkpoint, consensus, fault_injection, metrics, optimizer as optimizers,
    preemption, profile_files, profiling, restore, state as train_state, status_file,
    step as train_step, telemetry, watchdog as watchdog_lib)
from ttt_jax.train.state import TrainState
from ttt_jax.train.validation import Validator


@dataclasses.dataclass
class RunProgress:
  """How far a run is, apart from its arrays; stored with every checkpoint.

  Attributes:
    step: updates given to the device, skipped ones included.
    offset: the next batch of the data is number step + offset. It grows when a run rolls back
      to an older state, because the data are not rolled back.
    skipped: updates left out because the loss or the gradient was not finite.
    in_a_row: how many of the latest updates were skipped one after the other.
    rollbacks: how many times the run has rolled back.
    best: lowest score so far under train.keep_best; None before the first evaluation.
    best_step: where it was measured.
    no_better: evaluations in a row that were not better by train.early_stopping_threshold.
  """
  step: int = 0
  offset: int = 0
  skipped: int = 0
  in_a_row: int = 0
  rollbacks: int = 0
  best: float | None = None
  best_step: int = 0
  no_better: int = 0

  @classmethod
  def read(cls, values: Mapping[str, Any]) -> 'RunProgress':
    """From a checkpoint's note; fields of other versions are left out."""
    names = {field.name for field in dataclasses.fields(cls)}
    return cls(**{name: value for name, value in values.items() if name in names})

  def add_score(self, score: float, step: int, threshold: float) -> bool:
    """Count an evaluation; returns whether its score is the lowest so far."""
    better = math.isfinite(score) and (self.best is None or score < self.best)
    enough = better and (self.best is None or score < self.best - threshold)
    self.no_better = 0 if enough else self.no_better + 1
    if better:
      self.best, self.best_step = score, step
    return better


@dataclasses.dataclass(frozen=True)
class TrainSetup:
  """What is trained, how, and on which mesh: everything that the step is compiled from."""
  config: Config
  vocab: Vocabulary
  mesh: jax.sharding.Mesh
  model: Model
  optimizer: optax.GradientTransformation
  dataset: Mapping[str, str] = dataclasses.field(default_factory=dict)  # store.fingerprints

  @functools.cached_property
  def target(self) -> TrainState:
    """Shapes and shardings of the state, as a restore needs them."""
    return train_state.abstract(self.model, self.optimizer, self.mesh)


@dataclasses.dataclass
class TrainContext:
  """What train.train has opened for the loop."""
  setup: TrainSetup
  batches: loader.Loader
  validator: Validator | None  # None = train.eval_every is 0
  checkpoints: checkpoint.Checkpoints
  writer: metrics.Writer | metrics.NullWriter
  status: status_file.Status
  watchdog: watchdog_lib.Watchdog
  clock: telemetry.Clock
  stop: preemption.Stop
  faults: fault_injection.Faults | None
  profiler: profiling.Profiler


_POLL = 0.1  # seconds between two looks of all processes at a save that is still being written


class Loop:
  """Trains one run from its first step to its last: construct it, then call ``run``."""

  def __init__(self, context: TrainContext, state: TrainState, progress: RunProgress):
    self.context, self.state, self.progress = context, state, progress
    self.setup = setup = context.setup
    self.settings = setup.config.train
    self._step_fn = train_step.make_train_step(
        setup.config, setup.model, setup.vocab, setup.optimizer, setup.mesh,
        fault_injection.poisoned if context.faults else None, context.batches.passes)
    self._in_flight = telemetry.InFlight()
    context.clock.busy = self._in_flight.busy
    self._speed = _speed(context)
    self._step_times = telemetry.StepTimes(context.clock)
    # The whole schedule is computed here: evaluating it during training would queue behind the
    # train step on the device and stall the host.
    self._rates = np.asarray(optimizers.schedule(setup.config.optimizer, self.settings.steps)(
        np.arange(self.settings.steps)))
    self._consensus = consensus.Consensus(setup.mesh)
    self._started = self._saved = time.monotonic()
    self._saved_step = progress.step
    self._given = 0  # steps of this start, also those that a rollback takes back
    self._failure: Exception | None = None
    self._stopping = False
    self._status_is_saving = False

  def run(self) -> TrainState:
    """Train until the last step, or until all processes agree to stop.

    Returns:
      The last state, on the mesh; it has been saved.

    Raises:
      UserError: a disk is full, or the loss stays non-finite after all rollbacks.
    """
    context, settings, progress = self.context, self.settings, self.progress
    requests = self._consensus.now({'stop': context.stop.level})
    if requests['stop'] and progress.step < settings.steps:  # nothing to save before a step
      return self._finish(requests['stop'])
    with Progress(settings.steps, 'train', done=progress.step, unit='steps',
                  shown=jax.process_index() == 0) as self._bar:
      self._watch = telemetry.CompileWatch(self._bar.say)
      if progress.step:
        self._bar.say(f'resuming from checkpoint {progress.step}.')
      context.status.set_checkpoint(context.checkpoints.last_good)
      context.status.begin(progress.step > 0, consensus.host_names())
      context.status.update(state='running', step=progress.step)
      self._warn_of_profile(settings.steps - progress.step)
      context.clock.lap('start')
      self._stopping = self._stops_early()
      while progress.step < settings.steps and not self._stopping:
        if context.profiler.due(self._given):
          self._switch_profile()
        self._given += 1
        with jax.profiler.StepTraceAnnotation('train', step_num=progress.step + 1):
          self._advance()
      self._wait_for_save()
      context.clock.lap('checkpoint')
    return self._finish(context.stop.agreed)

  def _finish(self, stopped: int) -> TrainState:
    self.context.stop.agreed = stopped
    state = {preemption.NONE: 'done', preemption.PREEMPTED: 'preempted',
             preemption.INTERRUPTED: 'interrupted'}[stopped]
    self.context.status.set_checkpoint(self.context.checkpoints.last_good)
    self.context.status.update(state=state, step=self.progress.step,
                               time_split=self._split())
    return self.state

  # -- one step -----------------------------------------------------------------------------

  def _advance(self) -> None:
    """Dispatch one step, read the metrics of the one before, and do what is due."""
    context, settings, clock = self.context, self.settings, self.context.clock
    began = time.monotonic()
    with jax.profiler.TraceAnnotation('batch'):
      batch = self._batch()
    self._step_times.spend('data', time.monotonic() - began)
    clock.lap('data')
    step = self.progress.step + 1
    with self._watch:
      self.state, step_metrics = self._step_fn(self.state, batch)
    clock.lap('compile' if self._watch.compiled(step, batch) else 'step')
    self.progress.step = step
    # Reading waits for the step before this one, while the device already runs this one.
    single = self._consensus.single
    answer = None if single else self._consensus.send(self._requests())
    hosts = (None if single or step % settings.log_every else
             self._consensus.gather(self._step_times.take_host()))
    began = time.monotonic()
    with jax.profiler.TraceAnnotation('wait for the device'):
      finished = self._in_flight.push(step, step_metrics, answer, hosts)
    self._step_times.spend('wait', time.monotonic() - began)
    clock.lap('step')
    # A single process looks at its requests after that wait and so stops one step sooner.
    with jax.profiler.TraceAnnotation('metrics'):
      requests = self._read(finished, self._requests() if single else {})
    if self._diverged():
      return self._roll_back(step - 1)
    clock.lap('other')
    self._stopping = bool(requests['stop'] or requests['time'] or step == settings.steps)
    scores = self._evaluate() if settings.eval_every and step % settings.eval_every == 0 else {}
    is_best = self._count(scores)
    self._stopping = self._stopping or self._stops_early()
    requested = requests['save'] and (finished is None or finished.step > self._saved_step)
    if (step % settings.checkpoint_every == 0 or self._stopping or requested
        or is_best):
      finished = self._in_flight.drain()
      clock.lap('step')
      self._read(finished, {}, always=self._stopping)
      if self._diverged():
        self._stopping = False
        return self._roll_back(step)
      context.stop.agreed = requests['stop']
      self._save(scores)
    elif self._status_is_saving and not context.checkpoints.saving():
      self._update_status('running')
    self._bar.update(1)

  def _warn_of_profile(self, left: int) -> None:
    traced = self.settings.profile_range
    if traced and traced[0] >= left:
      self._bar.say(f'config key train.profile is {self.settings.profile!r}, but {left} steps are '
                    'left, so nothing is traced.')

  def _switch_profile(self) -> None:
    """Begin or end the trace of train.profile, so that it holds whole steps."""
    jax.block_until_ready(self.state)
    self.context.clock.lap('step')
    now = np.uint32(time.time())
    if self.settings.profile_processes == 'all':  # one folder for the traces of all processes
      now = multihost_utils.broadcast_one_to_all(now)
    self.context.profiler.switch(profile_files.date(int(now)))
    self.context.watchdog.beat()
    self.context.clock.lap('profile')

  def _batch(self) -> Batch:
    """The next batch, on the mesh."""
    index = self.context.batches.state()['next']
    batch = self._next_batch()
    if self.context.faults:
      batch = self.context.faults.apply(index, batch)
    return sharding.put_batch(self.setup.mesh, batch)

  def _next_batch(self) -> Batch:
    """The next batch of this process. If it cannot be read, the others, who have theirs, still need
    this process for a step: it takes rows of zeros, and the run ends before that step counts."""
    try:
      if self._failure is None:
        return next(self.context.batches)
    except (UserError, RetryableError, OSError) as error:
      if self._consensus.single:
        raise
      self._failure = error
    shape = self.settings.batch_size // jax.process_count(), self.setup.config.data.seq_len
    return Batch(*(np.zeros(shape, np.int32) for _ in Batch._fields))

  def _requests(self) -> dict[str, int]:
    """What this process asks all processes to do; see consensus.REQUESTS."""
    now = time.monotonic()
    due = lambda minutes, since: int(0 < minutes <= (now - since) / 60)
    return {'stop': self.context.stop.level,
            'save': due(self.settings.checkpoint_minutes, self._saved),
            'time': due(self.settings.max_minutes, self._started),
            'failed': self._failed()}

  def _read(self, finished: telemetry.Finished | None, own: dict[str, int],
            always: bool = False) -> dict[str, int]:
    """Count and log a finished step.

    Args:
      finished: from ``_in_flight``; None before the first step is done.
      own: the requests of a single process.
      always: log this step whatever train.log_every says.

    Returns:
      The requests of all processes as far as they are known; see consensus.REQUESTS.
    """
    requests = dict.fromkeys(consensus.REQUESTS, 0) | own
    if finished is not None:
      if finished.requests is not None:
        requests |= consensus.decode(finished.requests)
      self.context.watchdog.beat()
      self._speed.add(finished.metrics)
      self._step_times.add()
      skipped = finished.metrics['skipped'] > 0
      self.progress.skipped += skipped
      self.progress.in_a_row = self.progress.in_a_row + 1 if skipped else 0
      if finished.step % self.settings.log_every == 0 or always:
        self._log(finished)
    if requests['failed']:
      self._raise_failure(requests['failed'])
    return requests

  def _log(self, finished: telemetry.Finished) -> None:
    step, step_metrics = finished.step, finished.metrics
    rate = self._speed.take()
    # Skipped updates do not advance the optimizer's schedule.
    done = min(max(step - 1 - self.progress.skipped, 0), len(self._rates) - 1)
    hosts = ({} if finished.hosts is None else
             telemetry.slowest(self._consensus.by_process(finished.hosts)))
    goodput = self.context.status.goodput(self.context.clock.seconds['step'])
    values = _logged(step_metrics) | rate | self.context.clock.shares() | {
        'learning_rate': self._rates[done], 'recompiles': self._watch.recompiles,
        'skipped': self.progress.skipped, 'goodput': goodput,
        } | self._step_times.percentiles() | hosts
    self._try(lambda: self.context.writer.write(step, values))
    self._bar.update(0, **_for_bar(values))
    saving = self.context.checkpoints.saving()
    self._update_status('saving' if saving else 'running', step=step,
                        rate=rate['steps_per_second'], time_split=self._split())

  def _update_status(self, state: str, **values: Any) -> None:
    self._status_is_saving = state == 'saving'
    self.context.status.set_checkpoint(self.context.checkpoints.last_good)
    self._try(lambda: self.context.status.update(state=state, **values))

  def _split(self) -> dict[str, float]:
    return {part: round(spent, 3) for part, spent in self.context.clock.seconds.items()}

  # -- failures -----------------------------------------------------------------------------

  def _try(self, write: Callable[[], None]) -> None:
    """Run ``write``. A single process fails at once; several first agree on the failure, so
    that none of them waits for the others in a collective operation."""
    try:
      write()
    except Exception as error:
      if self._consensus.single:
        raise
      self._failure = self._failure or error

  def _failed(self) -> int:
    """Whether this process cannot go on, for the others: 1, or 2 if a restart may help."""
    if not self._consensus.single and self._failure is None and self.context.checkpoints.failed():
      self._try(self.context.checkpoints.wait)
    if self._failure is None:
      return int(self.context.checkpoints.failed())
    return 1 if isinstance(self._failure, UserError) else 2

  def _raise_failure(self, kind: int) -> None:
    if self._failure is None and self.context.checkpoints.failed():
      self._try(self.context.checkpoints.wait)
    raise self._failure or _failure_elsewhere(kind)

  def _end(self, word: str) -> None:
    """End this process, which waits in a save for one that has failed; in a thread of its own."""
    error = self._failure or _failure_elsewhere(int(word))
    self.context.status.__exit__(type(error), error, None)
    self.context.stop.exit_now(error)

  def _agree(self, saving: bool = False) -> bool:
    """Raise the failure of any process in all of them; whether one of them is ``saving``."""
    answer = self._consensus.now({'failed': self._failed(), 'saving': int(saving)})
    if answer['failed']:
      self._raise_failure(answer['failed'])
    return bool(answer['saving'])

  def _wait_for_save(self) -> None:
    """Wait until the last save is complete; if one process fails, all of them do. A process that
    waited by itself would wait for the file of one that has failed."""
    checkpoints = self.context.checkpoints
    if not self._consensus.single:
      while True:
        saving = checkpoints.saving()
        if not saving:
          self._try(checkpoints.wait)
        if not self._agree(saving):
          break
        self.context.watchdog.beat()
        time.sleep(_POLL)
    checkpoints.wait()

  def _diverged(self) -> bool:
    return self.progress.in_a_row >= self.settings.nonfinite_limit

  def _roll_back(self, step: int) -> None:
    """After too many skipped updates: restore an older state and continue with the data that
    follow ``step``, because the same batches might fail again."""
    context, settings, progress, setup = self.context, self.settings, self.progress, self.setup
    self._in_flight.drain()  # a step dispatched meanwhile is not part of the run
    row, after = progress.in_a_row, step + progress.offset
    what = f'the loss or the gradient was not finite in {row} steps in a row, up to step {step}'
    if progress.rollbacks >= settings.rollback_limit:
      raise UserError(
          f'{what}, and the run has rolled back {progress.rollbacks} times already (config '
          'key train.rollback_limit); lower optimizer.learning_rate, or check the data.')
    self._wait_for_save()
    target = context.checkpoints.newest_clean()
    if target is None:
      raise UserError(f'{what}, and there is no checkpoint to roll back to; lower '
                      'optimizer.learning_rate, or check the data.')
    del self.state  # frees its memory for the state that is loaded
    self.state = restore.restore(context.checkpoints, target, setup.model, setup.optimizer,
                                 setup.target, setup.config.seed)
    earlier = RunProgress.read(context.checkpoints.meta(target)['progress'])
    context.clock.roll_back(context.checkpoints.meta(target)['seconds'])
    context.checkpoints.drop_after(target)
    self._try(lambda: context.writer.drop_after(target))
    context.batches.restore({'next': after})
    progress.step, progress.offset = target, after - target
    progress.best, progress.best_step = earlier.best, earlier.best_step
    progress.no_better = earlier.no_better
    progress.in_a_row, progress.rollbacks = 0, progress.rollbacks + 1
    self._saved_step, self._saved = target, time.monotonic()
    self._speed = _speed(context)
    self._step_times.restart()
    self._bar.update(target - self._bar.done)
    self._try(lambda: context.status.event(
        f'{what}: rolled back to checkpoint {target}, continuing with batch {after} (rollback '
        f'{progress.rollbacks} of {settings.rollback_limit}).', step=target))
    context.watchdog.beat()
    context.clock.lap('start')

  # -- evaluation and checkpoints -----------------------------------------------------------

  def _evaluate(self) -> dict[str, float]:
    """Scores of the newest state on held-out rows; also logged as eval/NAME."""
    context = self.context
    assert context.validator is not None
    jax.block_until_ready(self.state)
    context.clock.lap('step')
    self._update_status('evaluating')
    scores = context.validator(self.state.params)
    self._try(lambda: context.writer.write(
        self.progress.step, {f'eval/{name}': value for name, value in scores.items()}))
    self._update_status('running')
    context.watchdog.beat()
    context.clock.lap('eval')
    return scores

  def _count(self, scores: dict[str, float]) -> bool:
    """Count an evaluation's score for train.keep_best; whether this is the best step so far."""
    if self.settings.keep_best not in scores:
      return False
    return self.progress.add_score(scores[self.settings.keep_best], self.progress.step,
                                   self.settings.early_stopping_threshold)

  def _stops_early(self) -> bool:
    """Whether the score has not become better for train.early_stopping_patience evaluations. All
    processes read the same scores, and checkpoints store the count, so all stop at one step."""
    progress, patience = self.progress, self.settings.early_stopping_patience
    if not patience or progress.no_better < patience:
      return False
    self._bar.say(
        f'stopping early: {self.settings.keep_best} has not become better in {progress.no_better} '
        'evaluations (config key train.early_stopping_patience); ' + (
            'it was never finite.' if progress.best is None else
            f'it was best at step {progress.best_step} ({progress.best:.4g}), whose checkpoint is '
            'kept.'))
    return True

  def _save(self, scores: dict[str, float]) -> None:
    context, step = self.context, self.progress.step
    jax.block_until_ready(self.state)  # so that this wait counts as 'step', not 'checkpoint'
    context.clock.lap('step')
    self._update_status('saving', step=step)
    self._wait_for_save()
    self._try(lambda: context.checkpoints.begin(step))
    self._agree()
    # Orbax' barriers are in here: who fails between two of them is not waited for.
    with alarm_lib.Alarm(f'save-{self._given}', self._end) as alarm:
      self._try(lambda: context.checkpoints.save(
          step, self.state, self._metadata(), clean=self.progress.in_a_row == 0, scores=scores))
      if self._failure is not None and not alarm.ring(str(self._failed())):
        raise self._failure
    self._saved, self._saved_step = time.monotonic(), step
    context.watchdog.beat()
    context.clock.lap('checkpoint')

  def _metadata(self) -> dict[str, Any]:
    """What is stored as JSON beside a checkpoint's arrays."""
    context, setup = self.context, self.setup
    return {'data': context.batches.state(), 'progress': dataclasses.asdict(self.progress),
            'seconds': dict(context.clock.seconds), 'config': to_dict(setup.config),
            'vocabulary': setup.vocab.to_dict(), 'fingerprint': setup.vocab.fingerprint,
            'dataset': setup.dataset,
            'revision': git_revision(), 'version': version()}


def _failure_elsewhere(kind: int) -> Exception:
  """The error of a process because of another one; ``kind`` as of consensus.REQUESTS."""
  other = RetryableError if kind == 2 else UserError
  return other('another process of this run failed, for example because it could not write to its '
               'disk; see the error in its log.')


def _speed(context: TrainContext) -> telemetry.Speed:
  """Turns the metrics of steps into rates, for this model on these devices."""
  config, mesh = context.setup.config, context.setup.mesh

  def useful(sums):
    # The sums are those of one pass.
    return config.objective.passes * flops.useful(
        config.model, context.setup.vocab.size, tokens=sums['tokens'], scored=sums['scored'],
        mask_pairs=sums['mask_pairs'])
  chip = hardware.chip_of(mesh.devices.flat[0].device_kind)
  peak = None if chip is None else chip.flops / chip.devices * mesh.size
  return telemetry.Speed(context.clock, config.train.batch_size * config.data.seq_len, useful,
                         peak)


def _logged(step_metrics: dict[str, float]) -> dict[str, float]:
  """The metrics that are means over their step; the sums are logged as rates instead."""
  return {name: value for name, value in step_metrics.items()
          if name == 'documents' or name not in telemetry.SUMS}


def _for_bar(values: dict[str, float]) -> dict[str, float]:
  """The metrics on the progress bar, most important first: a narrow terminal cuts the last."""
  return {'loss': values['loss'], 'tok/s': values['useful_tokens_per_second'],
          'ar': values['ar'], 'diffusion': values['diffusion']}
