"""Our side of benchmarks/train_step.py: the train step as `ttt-jax train` runs it.

  python -m benchmarks.our_side prepare FOLDER THREADS   fills FOLDER from FOLDER/case.json
  python -m benchmarks.our_side serve FOLDER THREADS     answers on standard output

FOLDER/case.json   {'config', 'vocabulary', 'kind', 'steps', 'seed'}
FOLDER/weights.npz the parameters both sides start from, by dotted name
FOLDER/step_N.npz  the clean batch of step N, int32 [B, T] each, and its noise: 'noisy' ids,
                   'masked' and 'maskable' (bool), 'rate' (float32)
FOLDER/rates.json  the learning rate of every step
"""

import json
import pathlib
import sys
from typing import Any

import numpy as np

from benchmarks import common
from ttt_jax.tokens.batch import Batch


def _case(folder: pathlib.Path):
  """(case, config, vocabulary, model) of a folder."""
  from ttt_jax.config import Config, from_dict
  from ttt_jax.model.transformer import Model
  from ttt_jax.tokens.vocab import Vocabulary
  case = json.loads((folder / 'case.json').read_text(encoding='utf-8'))
  config, vocab = from_dict(Config, case['config']), Vocabulary(**case['vocabulary'])
  return case, config, vocab, Model(config.model, vocab.size)


def _flat(tree, prefix: str = '') -> dict[str, Any]:
  """Nested dicts of arrays -> {'a.b.c': array}."""
  out = {}
  for name, value in tree.items():
    out |= _flat(value, f'{prefix}{name}.') if isinstance(value, dict) else {
        f'{prefix}{name}': np.asarray(value)}
  return out


def _nested(flat) -> dict:
  """The inverse of _flat."""
  out: dict = {}
  for name in flat:
    at = out
    *path, last = name.split('.')
    for part in path:
      at = at.setdefault(part, {})
    at[last] = flat[name]
  return out


def load_batch(folder: pathlib.Path, step: int) -> Batch:
  with np.load(folder / f'step_{step}.npz') as arrays:
    return Batch(*(arrays[name] for name in Batch._fields))


# -- prepare ----------------------------------------------------------------------------


def prepare(folder: pathlib.Path) -> None:
  """Write documents, noise and weights, the same for both sides."""
  import jax
  from benchmarks import documents
  from ttt_jax.objective import hybrid
  from ttt_jax.train import optimizer as optimizers
  from ttt_jax.train.step import run_key
  case, config, vocab, model = _case(folder)
  np.savez(folder / 'weights.npz', **_flat(jax.jit(model.init)(jax.random.key(config.seed))))
  rate = optimizers.schedule(config.optimizer, config.train.steps)
  rates = [np.asarray(rate(i)).item() for i in range(case['steps'])]
  (folder / 'rates.json').write_text(json.dumps(rates))
  corrupt = jax.jit(lambda batch, key: hybrid.corrupt(batch, vocab, config.objective, key))
  for i, batch in enumerate(documents.steps(case['kind'], vocab, case['steps'],
                                            config.train.batch_size, config.data.seq_len,
                                            case['seed'])):
    noise = corrupt(batch, jax.random.fold_in(run_key(config.seed), i))
    np.savez(folder / f'step_{i}.npz', **batch._asdict(), noisy=noise.token, masked=noise.masked,
             maskable=noise.maskable, rate=noise.rate)


# -- serve ------------------------------------------------------------------------------


class Ours:
  """The state of a run, and the answers about it."""

  def __init__(self, folder: pathlib.Path):
    import jax
    from ttt_jax.model import sharding
    from ttt_jax.train import optimizer as optimizers, state as train_state, step as train_step
    case, self.config, self.vocab, self.model = _case(folder)
    self.folder = folder
    self.mesh = sharding.make_mesh(self.config.mesh)
    self.optimizer = optimizers.make(self.config.optimizer, self.config.train.steps)
    jax.set_mesh(self.mesh)
    with np.load(folder / 'weights.npz') as flat:
      params = _nested(flat)
    where = train_state.state_shardings(self.model, self.optimizer, self.mesh)
    self.state = jax.jit(
        lambda p: train_state.TrainState(np.int32(0), p, self.optimizer.init(p)),
        out_shardings=where, donate_argnums=0)(jax.device_put(params, where.params))
    self.step_fn = train_step.make_train_step(self.config, self.model, self.vocab, self.optimizer,
                                              self.mesh)

  def step(self, step: int) -> dict[str, float]:
    """One update on the batch of step ``step``."""
    import jax
    from ttt_jax.model import sharding
    rows = load_batch(self.folder, step)
    def update():
      self.state, values = self.step_fn(self.state, sharding.put_batch(self.mesh, rows))
      return jax.block_until_ready((self.state, values))[1]
    values, times = common.timed(update)
    return {**times, 'loss': float(values['loss']), 'grad_norm': float(values['grad_norm'])}

  def pieces(self, repetitions: int) -> dict[str, list[dict[str, float]]]:
    """Times of what a step is made of, each compiled alone; the caller takes medians."""
    import jax
    from ttt_jax.model import sharding, staircase
    from ttt_jax.objective import hybrid
    from ttt_jax.train import step as train_step
    model, vocab, objective = self.model, self.vocab, self.config.objective
    batch = sharding.put_batch(self.mesh, load_batch(self.folder, 0))
    key = jax.random.key(0)
    targets = jax.jit(lambda b: hybrid.corrupt(b, vocab, objective, key))

    def hidden(params, b, t):
      ranges = staircase.key_ranges(b, objective.mode, objective.prompt_audio)
      return model.hidden(params, t.token, b.position, *ranges)

    noise = targets(batch)
    params = self.state.params
    work = {
        'noise': lambda f=targets: f(batch),
        'trunk forward': lambda f=jax.jit(hidden): f(params, batch, noise),
        'trunk forward + backward': lambda f=jax.jit(jax.grad(
            lambda p, b, t: hidden(p, b, t).astype('float32').sum())): f(params, batch, noise),
        'forward with loss': lambda f=jax.jit(
            lambda p, b, t: hybrid.loss_and_sums(model, p, b, t, objective, 1.0)): f(
                params, batch, noise),
        'all gradients': lambda f=jax.jit(lambda p, b: train_step.gradients(
            self.config, model, vocab, p, b, key)): f(params, batch),
        'optimizer': lambda f=jax.jit(self.optimizer.update): f(
            params, self.state.opt_state, params),
    }
    out: dict[str, list[dict[str, float]]] = {}
    for name, run in work.items():
      jax.block_until_ready(run())
      out[name] = [common.timed(lambda: jax.block_until_ready(run()))[1]
                   for _ in range(repetitions)]
    return out


def main(words: list[str]) -> None:
  verb, folder, threads = words
  common.stay_on(int(threads))
  from ttt_jax.cli import main as cli
  cli._configure_process(None)  # as `ttt-jax train` sets up its process
  if verb == 'prepare':
    prepare(pathlib.Path(folder))
    return
  import jax
  import optax  # noqa: F401
  from ttt_jax.train import step as train_step  # noqa: F401
  imported = common.peak_bytes()
  ours = Ours(pathlib.Path(folder))
  common.serve({
      'about': lambda: {'versions': f'jax {jax.__version__}', 'imported_bytes': imported},
      'step': ours.step,
      'pieces': ours.pieces,
  })


if __name__ == '__main__':
  main(sys.argv[1:])
