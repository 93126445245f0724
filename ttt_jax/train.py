"""The training loop: a short visible list of what happens in order."""

import os
import pathlib
import time
from typing import Any

import jax
import numpy as np

from ttt_jax import checkpoint, config as config_lib, metrics, optimizer as optimizers, sharding
from ttt_jax import train_state, train_step
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
      mesh does not divide, a checkpoint that does not fit.
  """
  workdir = pathlib.Path(workdir)
  data_dir = workdir / config.data.path
  vocab = store.vocabulary(data_dir)
  check_data(config, data_dir, vocab)
  mesh = sharding.make_mesh(config.mesh)
  sharding.check_batch(mesh, config.train.batch_rows, config.train.microbatches,
                       config.data.row_length)
  model = Model(config.model, vocab.size)
  optimizer = optimizers.make(config.optimizer, config.train.steps)
  batches = loader.Loader(data_dir, config.data, config.train.batch_rows, config.seed, vocab,
                          jax.process_index(), jax.process_count())
  with checkpoint.Checkpoints(workdir / 'checkpoints', config.train.keep) as checkpoints, \
      jax.set_mesh(mesh):
    state, done = _start(config, model, optimizer, mesh, vocab, checkpoints, batches)
    config_lib.save(config, workdir)
    with metrics.Writer(workdir, step=done) as writer:
      return _loop(config, vocab, mesh, model, optimizer, state, done, batches, checkpoints, writer)


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


def _start(config, model, optimizer, mesh, vocab, checkpoints, batches):
  """The state to begin with and the number of updates in it; see ``train``."""
  newest = checkpoints.latest()
  if newest is not None:
    meta = checkpoints.meta(newest)
    if meta['fingerprint'] != vocab.fingerprint:
      raise UserError(f'checkpoint {checkpoints.directory / str(newest)} was trained with '
                      f'vocabulary {meta["fingerprint"]}, the data has {vocab.fingerprint}; use '
                      'another workdir or the data it was trained on.')
    batches.restore(meta['data'])
    return checkpoints.restore(newest, train_state.abstract(model, optimizer, mesh)), newest
  if config.train.init_from:
    with checkpoint.open_existing(config.train.init_from) as source:
      fresh = train_state.init_sharded(model, optimizer, mesh, config.seed)
      target = train_state.abstract(model, optimizer, mesh).params
      return fresh._replace(params=source.restore_params(source.latest(), target)), 0
  return train_state.init_sharded(model, optimizer, mesh, config.seed), 0


def _loop(config, vocab, mesh, model, optimizer, state, done, batches, checkpoints, writer):
  step_fn = train_step.make_train_step(config, model, vocab, optimizer, mesh)
  rate = optimizers.schedule(config.optimizer, config.train.steps)
  settings = config.train
  started = time.monotonic()
  pending: Any = None  # figures of the last logged step: read one step late, so that the
  with Progress(settings.steps, 'train', done=done, unit='steps') as progress:  # device runs on
    meter = Meter(done)
    for step in range(done + 1, settings.steps + 1):
      state, figures = step_fn(state, sharding.put_batch(mesh, next(batches)))
      if pending:
        progress.update(0, **_log(writer, *pending, meter, rate))
        pending = None
      out_of_time = 0 < settings.max_minutes <= (time.monotonic() - started) / 60
      last = step == settings.steps or out_of_time
      if step % settings.log_every == 0 or last:
        pending = (step, figures)
      if step % settings.checkpoint_every == 0 or last:
        checkpoints.save(step, state, note(config, vocab, batches.state()))
      progress.update(1)
      if last:
        progress.update(0, **_log(writer, *pending, meter, rate))
        break
  checkpoints.wait()
  return state


def note(config: Config, vocab: Vocabulary, data_state: dict[str, Any]) -> dict[str, Any]:
  """The JSON beside a checkpoint."""
  return {'data': data_state, 'config': to_dict(config), 'vocabulary': vocab.to_dict(),
          'fingerprint': vocab.fingerprint}


class Meter:
  """Tokens per second between two looks."""

  def __init__(self, step: int):
    self._step, self._time = step, time.monotonic()

  def rate(self, step: int, tokens_per_step: float) -> float:
    now = time.monotonic()
    rate = (step - self._step) * tokens_per_step / max(now - self._time, 1e-9)
    self._step, self._time = step, now
    return rate


def _log(writer, step: int, figures: dict[str, jax.Array], meter: Meter, rate) -> dict[str, float]:
  """Write one line of metrics; returns the few that the progress bar shows."""
  values = {name: float(np.asarray(value)) for name, value in figures.items()}
  values['tokens_per_second'] = meter.rate(step, values.pop('tokens'))
  values['learning_rate'] = float(rate(step - 1))
  writer.write(step, values)
  return {name: values[name] for name in ('loss', 'ar', 'diffusion')} | {
      'tok/s': values['tokens_per_second']}
