"""What saving costs, and how soon a killed run steps again: the demo's model, side by side.

  python benchmarks/checkpoint.py --json checkpoint.json

Rounds of 20 steps with and without a save at their end take turns, in either order. A round
that saves waits until its checkpoint is sealed, so it pays for all that the loop would let
happen in the background: the ratio is an upper bound of the cost of a save. Then `ttt-jax train` is
started in a workdir with a checkpoint, compile cache warm, and timed from the start of the
process to its first step.
"""

import argparse
import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import common

ROOT = pathlib.Path(__file__).resolve().parents[1]
EVERY = 20


def demo_config(folder: pathlib.Path):
  """The demo's model and rows, over the token set that the repository keeps."""
  from ttt_jax import config as config_lib
  config = config_lib.load(ROOT / 'configs' / 'demo.py')
  tokens = str(ROOT / 'data' / 'demo_tokens' / 'train_short.jsonl')
  sources = tuple(config_lib.Source(path=tokens, join_most=1, task=task, prompt=task)
                  for task in ('asr', 'tts'))
  data = dataclasses.replace(config.data, sources=sources, stages=(config_lib.Stage('train', 0),),
                             path=str(folder / 'data'))
  settings = dataclasses.replace(config.train, log_every=1, tensorboard=False)
  return dataclasses.replace(config, data=data, train=settings)


def cost(config, rounds: int) -> dict[str, Any]:
  """Seconds of a round of EVERY steps with and without a save."""
  import jax
  from ttt_jax.data import loader, store
  from ttt_jax.model import sharding
  from ttt_jax.model.transformer import Model
  from ttt_jax.train import checkpoint, optimizer, state as train_state, step as train_step
  vocab = store.vocabulary(config.data.path)
  model, chosen = Model(config.model, vocab.size), optimizer.make(config.optimizer, 1000)
  mesh = sharding.make_mesh(config.mesh)
  batches = loader.Loader(config.data.path, config.data, config.train.batch_size, 0, vocab)
  seconds: dict[str, list[float]] = {'saving': [], 'not saving': []}
  blocked = []
  with tempfile.TemporaryDirectory() as folder, jax.set_mesh(mesh), checkpoint.Checkpoints(
      folder) as saved:
    state = train_state.init_sharded(model, chosen, mesh, 0)
    step_fn = train_step.make_train_step(config, model, vocab, chosen, mesh)
    state, _ = step_fn(state, sharding.put_batch(mesh, next(batches)))
    for number in range(2 * rounds + 2):
      side = ('saving', 'not saving')[number % 2 if number % 4 < 2 else 1 - number % 2]
      began = time.perf_counter()
      for _ in range(EVERY):
        state, _ = step_fn(state, sharding.put_batch(mesh, next(batches)))
      jax.block_until_ready(state)
      if side == 'saving':
        at = time.perf_counter()
        saved.save(number + 1, state, {'data': batches.state()})
        blocked.append(time.perf_counter() - at)
        saved.wait()  # all of it is counted against this side, background work included
      if number >= 2:  # the first round of each side warms up
        seconds[side].append(time.perf_counter() - began)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  saving, without = (common.median(seconds[side]) for side in ('saving', 'not saving'))
  return {'steps': EVERY, 'seconds_saving': saving, 'seconds_without': without,
          'ratio': saving / without, 'loop_waits': common.median(blocked[1:]),
          'loop_waits_share': common.median(blocked[1:]) / without,
          'state_bytes': size, 'rounds': seconds}


def resume(config, folder: pathlib.Path, tries: int) -> list[dict[str, float]]:
  """Seconds from the start of a process until it can step, and until its first step is done."""
  from ttt_jax import config as config_lib
  from ttt_jax.train.status_file import read
  workdir, out = folder / 'run', []
  config_lib.save(config, workdir)
  command = [sys.executable, '-m', 'ttt_jax.cli', 'train', '--workdir', str(workdir)]
  environment = os.environ | {'PYTHONPATH': str(ROOT), 'TTT_JAX_CACHE': str(folder / 'cache')}
  for number in range(tries + 1):
    began, start = time.time(), (read(workdir) or {}).get('step', 0)
    # Always the same command: another number of steps would be another schedule to compile.
    run = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    ready = stepped = 0.0
    while run.poll() is None:
      now = read(workdir) or {}
      if now.get('time', 0) > began and now['state'] == 'running':
        ready = ready or time.time() - began
        if now['step'] > start and not stepped:
          stepped = time.time() - began
          run.terminate()
      time.sleep(0.005)
    assert run.returncode == 77 and stepped, f'exit code {run.returncode}'
    if number:  # the first one fills the compile cache and makes the checkpoint
      out.append({'ready': ready, 'first_step': stepped})
  return out


def main() -> None:
  parser = argparse.ArgumentParser(description=common.description(__doc__), allow_abbrev=False)
  parser.add_argument('--rounds', type=int, default=5, help='of each side')
  parser.add_argument('--tries', type=int, default=3, help='resumed runs')
  parser.add_argument('--threads', type=int, default=2, help='cores')
  parser.add_argument('--json', metavar='FILE', help='also write the result here')
  args = parser.parse_args()
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  common.stay_on(args.threads)
  from ttt_jax.data.prepare.prepare import prepare
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    config = demo_config(folder)
    prepare(config, folder)
    found = cost(config, args.rounds)
    ready = resume(config, folder, args.tries)
  median = lambda key: common.median([one[key] for one in ready])
  print(common.table(('a save every 20 steps', 'seconds', 'ratio'), (
      ('without saving', f'{found["seconds_without"]:.2f}', '1.000'),
      ('the loop waits for the save to start', f'{found["loop_waits"]:.3f}',
       f'{1 + found["loop_waits_share"]:.3f}'),
      ('all of it, until sealed', f'{found["seconds_saving"]:.2f}', f'{found["ratio"]:.3f}'),
      ('resume: ready to step', f'{median("ready"):.1f}', ''),
      ('resume: first step done', f'{median("first_step"):.1f}', ''))))
  if args.json:
    common.write_json(args.json, {'machine': common.machine(args.threads), 'cost': found,
                                  'resume': ready})


if __name__ == '__main__':
  main()
