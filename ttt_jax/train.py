"""The training loop: a short visible list of what happens in order."""

import os
import pathlib
import time
from typing import Any

import jax
import numpy as np

from ttt_jax import checkpoint, config as config_lib, flops, hardware, metrics
from ttt_jax import optimizer as optimizers, sharding, telemetry, train_state, train_step
from ttt_jax.config import Config, to_dict
from ttt_jax.data import loader, store
from ttt_jax.errors import UserError
from ttt_jax.model.transformer import Model
from ttt_jax.progress import Progress
from ttt_jax.vocab import Vocabulary


def train(config: Config, workdir: str | os.PathLike) -> train_state.TrainState:
  """Train until ``train.steps`` updates are done, resuming what is in ``workdir``.

  Where the run starts, in this order:
    1. the newest checkpoint in workdir/checkpoints, with its data position;
    2. else the parameters of the newest checkpoint in ``train.init_from``, step 0;
    3. else random parameters from ``seed``.

  Args:
    config: everything about the run.
    workdir: holds the prepared data; gets config.json, metrics.jsonl, tensorboard/ and
      checkpoints/.

  Returns:
    The final state, on the mesh.

  Raises:
    UserError: no data, another vocabulary or row length than the data's, a batch that the
      mesh does not divide, a checkpoint that does not fit, no W&B where it is asked for.
  """
  flight = telemetry.InFlight()
  clock = telemetry.Clock(flight.busy)
  metrics.check(config.train.wandb)
  workdir = pathlib.Path(workdir)
  data_dir = workdir / config.data.path
  vocab = store.vocabulary(data_dir)
  check_data(config, data_dir, vocab)
  mesh = sharding.make_mesh(config.mesh)
  sharding.check_batch(mesh, config.train.batch_rows, config.train.microbatches,
                       config.data.row_length)
  sharding.check_heads(mesh, config.model.q_heads, config.model.kv_heads)
  model = Model(config.model, vocab.size)
  optimizer = optimizers.make(config.optimizer, config.train.steps)
  batches = loader.Loader(data_dir, config.data, config.train.batch_rows, config.seed, vocab,
                          jax.process_index(), jax.process_count())
  with checkpoint.Checkpoints(workdir / 'checkpoints', config.train.keep) as checkpoints, \
      jax.set_mesh(mesh):
    state, done = _start(config, model, optimizer, mesh, vocab, checkpoints, batches, clock)
    with _writer(config, workdir, done) as writer:
      return _loop(config, vocab, mesh, model, optimizer, state, done, batches, checkpoints, writer,
                   clock, flight)


def check_data(config: Config, data_dir: pathlib.Path, vocab: Vocabulary) -> None:
  """UserError unless the prepared set is the one that the config describes."""
  manifest = store.read_manifest(data_dir)
  if manifest['row_length'] != config.data.row_length:
    raise UserError(f'config key data.row_length is {config.data.row_length}, but the rows in '
                    f'{data_dir} have {manifest["row_length"]} tokens; prepare them again or '
                    'change the key.')
  if vocab.text != config.vocab.text:
    raise UserError(f'config key vocab.text is {config.vocab.text!r}, but {data_dir} was prepared '
                    f'with {vocab.text!r}; prepare it again or change the key.')


def _start(config, model, optimizer, mesh, vocab, checkpoints, batches, clock):
  """The state to begin with and the number of updates in it; see ``train``."""
  newest = checkpoints.latest()
  if newest is not None:
    meta = checkpoints.meta(newest)
    if meta['fingerprint'] != vocab.fingerprint:
      raise UserError(f'checkpoint {checkpoints.directory / str(newest)} was trained with '
                      f'vocabulary {meta["fingerprint"]}, the data has {vocab.fingerprint}; use '
                      'another workdir or the data it was trained on.')
    batches.restore(meta['data'])
    clock.resume(meta.get('seconds', {}))  # older ones have none
    return checkpoints.restore(newest, train_state.abstract(model, optimizer, mesh)), newest
  if config.train.init_from:
    with checkpoint.open_existing(config.train.init_from) as source:
      fresh = train_state.init_sharded(model, optimizer, mesh, config.seed)
      target = train_state.abstract(model, optimizer, mesh).params
      return fresh._replace(params=source.restore_params(source.latest(), target)), 0
  return train_state.init_sharded(model, optimizer, mesh, config.seed), 0


def _writer(config: Config, workdir: pathlib.Path, done: int) -> metrics.Writer | metrics.Nowhere:
  """Process 0 alone writes config.json, the metrics and the boards."""
  if jax.process_index():
    return metrics.Nowhere()
  config_lib.save(config, workdir)
  return metrics.Writer(workdir, done, tensorboard=config.train.tensorboard,
                        wandb=config.train.wandb, name=config.name, settings=to_dict(config))


def _loop(config, vocab, mesh, model, optimizer, state, done, batches, checkpoints, writer, clock,
          flight):
  step_fn = train_step.make_train_step(config, model, vocab, optimizer, mesh)
  settings = config.train
  speed = _speed(config, vocab, mesh, clock)
  # All at once and now: asking the device in the middle of its work would mean waiting for it.
  rates = np.asarray(optimizers.schedule(config.optimizer, settings.steps)(
      np.arange(settings.steps)))
  started = time.monotonic()
  with Progress(settings.steps, 'train', done=done, unit='steps',
                shown=jax.process_index() == 0) as progress:
    watch = telemetry.CompileWatch(progress.say)

    def log(late, always=False):
      if late is None:
        return
      step, figures = late
      speed.add(figures)
      if step % settings.log_every == 0 or always:
        values = _line(figures) | speed.take() | clock.shares() | {
            'learning_rate': rates[step - 1], 'recompiles': watch.recompiles}
        writer.write(step, values)
        progress.update(0, **_shown(values))

    clock.lap('start')
    for step in range(done + 1, settings.steps + 1):
      batch = sharding.put_batch(mesh, next(batches))
      clock.lap('data')
      with watch:
        state, figures = step_fn(state, batch)
      clock.lap('compile' if watch.compiled(step, batch) else 'step')
      late = flight.push(step, figures)  # those of the step before: the device runs on
      clock.lap('step')
      log(late)
      clock.lap('other')
      out_of_time = 0 < settings.max_minutes <= (time.monotonic() - started) / 60
      last = step == settings.steps or out_of_time
      if step % settings.checkpoint_every == 0 or last:
        jax.block_until_ready(state)  # saving would wait just so, and call it its own time
        clock.lap('step')
        checkpoints.save(step, state, note(config, vocab, batches.state(), clock))
        clock.lap('checkpoint')
      progress.update(1)
      if last:
        break
    late = flight.drain()
    clock.lap('step')
    checkpoints.wait()
    clock.lap('checkpoint')
    log(late, always=True)
  return state


def _speed(config: Config, vocab: Vocabulary, mesh: jax.sharding.Mesh,
           clock: telemetry.Clock) -> telemetry.Speed:
  """What turns the figures of steps into rates, for this model on these devices."""
  def useful(sums):
    return flops.useful(config.model, vocab.size, tokens=sums['tokens'], scored=sums['scored'],
                        mask_pairs=sums['mask_pairs'])
  chip = hardware.chip_of(mesh.devices.flat[0].device_kind)
  peak = None if chip is None else chip.flops / chip.devices * mesh.size
  return telemetry.Speed(clock, config.train.batch_rows * config.data.row_length, useful, peak)


def note(config: Config, vocab: Vocabulary, data_state: dict[str, Any],
         clock: telemetry.Clock) -> dict[str, Any]:
  """The JSON beside a checkpoint."""
  return {'data': data_state, 'config': to_dict(config), 'vocabulary': vocab.to_dict(),
          'fingerprint': vocab.fingerprint, 'seconds': dict(clock.seconds)}


def _line(figures: dict[str, float]) -> dict[str, float]:
  """The figures that are means of their step; its sums become rates."""
  return {name: value for name, value in figures.items()
          if name == 'documents' or name not in telemetry.SUMS}


def _shown(values: dict[str, float]) -> dict[str, float]:
  """The few for the progress bar, the first ones for a narrow terminal."""
  return {'loss': values['loss'], 'tok/s': values['useful_tokens_per_second'],
          'ar': values['ar'], 'diffusion': values['diffusion']}
