"""Training: opens what a run needs, decides where it starts, and runs the loop."""

import contextlib
import dataclasses
import logging
import math
import os
import pathlib

import jax

from ttt_jax import config as config_lib
from ttt_jax.config import Config, to_dict
from ttt_jax.data import loader, store
from ttt_jax.errors import UserError
from ttt_jax.model import sharding
from ttt_jax.model.transformer import Model, Params
from ttt_jax.storage import mirror
from ttt_jax.system import hardware
from ttt_jax.train import (
    checkpoint, fault_injection, metrics, optimizer as optimizers, ownership, preemption, restore,
    profiling, resume, state as train_state, status_file, telemetry, watchdog)
from ttt_jax.train.loop import Loop, RunProgress, TrainContext, TrainSetup
from ttt_jax.train.validation import Validator

_LOG = logging.getLogger(__name__)


def train(config: Config, workdir: str | os.PathLike, stop: preemption.Stop | None = None,
          faults: fault_injection.Faults | None = None) -> train_state.TrainState:
  """Train until ``train.steps`` updates are done, resuming what is in ``workdir``.

  Where the run starts, in this order:
    1. the newest complete checkpoint in workdir/checkpoints whose files match their checksums
       (``train.verify``), with its data position, counters and time split. Unfinished ones (the
       run was killed while saving) are removed; corrupt ones are reported and renamed to
       STEP.damaged, and the next older one is tried;
    2. if there were complete checkpoints and all are corrupt: a UserError, never step 0;
    3. else the parameters of ``train.init_from`` (a run, its checkpoints or one of them), at
       step 0;
    4. else random parameters from ``seed``, at step 0.

  A checkpoint with parameters alone, as an import writes it at step 0, is case 1 with a new
  optimizer state. LoRA adapters that the config asks for and a checkpoint does not have start as
  the identity. Settings and rows that differ from the checkpoint's are compared by
  train/resume.py. A checkpoint that has all steps is the result, and nothing is written.

  Args:
    config: of the run.
    workdir: a folder, or a URL of a bucket; holds the prepared data; config.json, metrics.jsonl,
      status.json, tensorboard/ and checkpoints/ are written there.
    stop: requests that the run save and exit; ``stop.agreed`` says afterwards whether it did.
    faults: injected faults, for tests.

  Returns:
    The last state, on the mesh; it has been saved.

  Raises:
    UserError: no data, another vocabulary or row length than the data's, a batch that the
      mesh does not divide, a checkpoint that does not fit, only corrupt checkpoints, a full
      disk, a loss that stays non-finite, Weights & Biases requested but not installed.
  """
  clock = telemetry.Clock()
  metrics.check(config.train.wandb)
  workdir = mirror.folder_of(os.fspath(workdir))
  data_dir = store.locate(workdir, config.data.path)
  vocab = store.vocabulary(data_dir)
  store.check_data(config, data_dir, vocab)
  config = with_steps(config, data_dir)
  mesh = sharding.make_mesh(config.mesh)
  if jax.process_index() == 0:
    _LOG.info('devices: %s.', hardware.describe(mesh.devices.flat))
  sharding.check_batch(mesh, config.train.batch_size, config.train.grad_accum_steps,
                       config.data.seq_len)
  sharding.check_heads(mesh, config.model.num_attention_heads, config.model.num_key_value_heads)
  setup = TrainSetup(config, vocab, mesh, Model(config.model, vocab.size),
                     optimizers.make(config.optimizer, config.train.steps),
                     store.fingerprints(data_dir))
  batches = loader.Loader(data_dir, config.data, config.train.batch_size, config.seed, vocab,
                          jax.process_index(), jax.process_count())
  settings = config.train
  with contextlib.ExitStack() as stack:
    enter = stack.enter_context
    config_lib.check_saved(workdir)
    status_file.check_kind(workdir)
    owner = enter(ownership.owned(workdir, lambda: stop is not None and stop.requested))
    status = enter(status_file.Status(workdir, config.train.steps, jax.process_index(),
                                      jax.process_count(), owner.check))
    owner.say = status.event
    dog = enter(watchdog.Watchdog(settings.stuck_minutes, workdir, jax.process_index(),
                                  lambda text: _stuck(text, settings.stuck_exit, status, stop)))
    checkpoints = enter(checkpoint.Checkpoints(
        workdir / 'checkpoints', settings.keep, settings.keep_every, settings.keep_best,
        status.event, settings.verify, owner.confirm))
    enter(jax.set_mesh(mesh))
    validator = (Validator(config, setup.model, vocab, mesh, data_dir)
                 if settings.eval_every else None)
    state, progress = _start(setup, checkpoints, batches, clock, status)
    dog.beat()
    if progress.step >= settings.steps:
      _LOG.info('checkpoint %d has all %d steps: nothing to do. A larger train.steps goes on from '
                'it.', progress.step, settings.steps)
      status.set_checkpoint(checkpoints.last_good)
      status.update(state='done', step=progress.step, steps=progress.step,
                    time_split=dict(clock.seconds))
      return state
    writer = enter(_writer(config, workdir, progress.step))
    traced = settings.profile_processes == 'all' or jax.process_index() == 0
    profiler = enter(profiling.Profiler(
        workdir, settings.profile_range if traced else None, jax.process_index(),
        jax.process_count(), status.event))
    context = TrainContext(setup, batches, validator, checkpoints, writer, status, dog, clock,
                           stop or preemption.Stop(), faults, profiler)
    return Loop(context, state, progress).run()


def _start(setup: TrainSetup, checkpoints: checkpoint.Checkpoints, batches: loader.Loader,
           clock: telemetry.Clock, status: status_file.Status,
           ) -> tuple[train_state.TrainState, RunProgress]:
  """The state to begin with and how far it is; see ``train``."""
  config, model, optimizer = setup.config, setup.model, setup.optimizer
  newest = checkpoints.recover()
  if newest is not None:
    checkpoints.check_vocabulary(newest, setup.vocab)
    resume.check(checkpoints, newest, config, setup.target)
    for sentence in resume.sentences(checkpoints, newest, config, setup.dataset):
      status.event(sentence, step=newest)
    meta = checkpoints.meta(newest)
    state = restore.restore(checkpoints, newest, model, optimizer, setup.target, config.seed)
    batches.restore(meta['data'])
    clock.resume(meta['seconds'])
    progress = RunProgress.read(meta['progress'])
    if resume.scores_changed(config, meta):
      progress.best, progress.best_step, progress.no_better = None, 0, 0
    return state, progress
  if config.train.init_from:
    def read(source: checkpoint.Checkpoints, step: int) -> Params:
      source.check_vocabulary(step, setup.vocab, 'prepare the data with its codec and tokenizer')
      return restore.load(source, step, model, setup.target.params, config.seed)
    params = restore.initial(config.train.init_from, read, config.train.verify)
    return train_state.begin(params, optimizer, setup.target), RunProgress()
  return train_state.init_sharded(model, optimizer, setup.mesh, config.seed), RunProgress()


def with_steps(config: Config, data_dir: pathlib.Path) -> Config:
  """``config`` with the number of steps that train.epochs asks for; logs the steps of an epoch.

  Raises:
    UserError: epochs of a curriculum or a mix, which has no single number of rows.
  """
  settings = config.train
  stage, *more = config.data.stages
  if more or stage.mix:
    if settings.epochs:
      raise UserError(f'config key train.epochs is {settings.epochs:g}, but data.stages has '
                      f'{"several stages" if more else "a mix"}, whose splits have '
                      'epochs of their own; set train.steps, and train.epochs=0.')
    return config
  rows = store.read_manifest(data_dir)['splits'].get(stage.split, {}).get('rows', 0)
  if not rows:
    return config  # the loader says so
  if settings.epochs:
    steps = max(math.ceil(settings.epochs * rows / settings.batch_size), 1)
    config = dataclasses.replace(config, train=dataclasses.replace(settings, steps=steps))
  per_epoch = rows / settings.batch_size
  if jax.process_index() == 0:
    _LOG.info('an epoch of split %r has %s rows, %.4g steps; %s steps are %.3g epochs.',
              stage.split, f'{rows:,}', per_epoch, f'{config.train.steps:,}',
              config.train.steps / per_epoch)
  return config


def _stuck(text: str, exit_now: bool, status: status_file.Status,
           stop: preemption.Stop | None) -> None:
  """The watchdog's callback; runs in its thread."""
  status.event(text)
  if exit_now and stop is not None:
    stop.exit_now()


def _writer(config: Config, workdir: pathlib.Path,
            done: int) -> metrics.Writer | metrics.NullWriter:
  """Process 0 alone writes config.json and the metrics."""
  if jax.process_index():
    return metrics.NullWriter()
  config_lib.save(config, workdir)
  return metrics.Writer(workdir, done, tensorboard=config.train.tensorboard,
                        wandb=config.train.wandb, name=config.name, settings=to_dict(config))
