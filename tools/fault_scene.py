"""Training runs in subprocesses for tools/faults.py, and the comparison of their results."""

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout need not be installed

from ttt_jax.storage import owned  # noqa: E402
from ttt_jax.train import checksums  # noqa: E402

QUICK = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
TOKENS = ROOT / 'data' / 'demo_tokens'
PHASES = {'restore': 'starting', 'step': 'running', 'save': 'saving', 'eval': 'evaluating'}
PATIENCE = 300.0  # seconds that anything may take on a busy machine


def settings(steps: int) -> dict[str, Any]:
  """A model of 60,000 parameters that saves and evaluates often."""
  strings = str(TOKENS / 'train_short.jsonl')
  held = str(TOKENS / 'heldout_strings.jsonl')
  return {
      'name': 'faults',
      'data': {
          'seq_len':
              256,
          'threads':
              2,
          'sources': ({
              'path': strings,
              'task': 'asr',
              'prompt': 'asr'
          }, {
              'path': strings,
              'task': 'tts',
              'prompt': 'tts'
          }, {
              'path': held,
              'task': 'asr',
              'prompt': 'asr',
              'split': 'heldout',
              'repeat': 0.2
          })
      },
      'model': {
          'num_layers': 2,
          'hidden_size': 32,
          'num_attention_heads': 4,
          'num_key_value_heads': 2,
          'head_dim': 8,
          'intermediate_size': 64,
          'vocab_multiple': 64
      },
      'optimizer': {
          'learning_rate': 3e-3,
          'warmup_ratio': 0.2
      },
      'train': {
          'steps': steps,
          'batch_size': 8,
          'log_every': 1,
          'checkpoint_every': 5,
          'keep': 3,
          'eval_every': 4,
          'eval_batches': 2,
          'tensorboard': False
      }
  }


class Run:
  """The processes of one `ttt-jax train`, as a user or a scheduler starts them."""

  def __init__(self, scene: 'Scene', workdir: pathlib.Path, processes: int = 1,
               steps: int | None = None, fault: str = '', devices: int | None = None,
               mesh: dict[str, int] | None = None, limit: int = 0):
    self.workdir, self.errors = workdir, []
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      port = free.getsockname()[1]
    words = ['train', '--config', str(scene.config), '--workdir', str(workdir)]
    words += [f'--config.train.steps={steps}'] if steps else []
    words += [f'--config.mesh.{axis}={size}' for axis, size in (mesh or {}).items()]
    words += ['--devices', str(devices)] if devices else []
    workdir.mkdir(parents=True, exist_ok=True)
    self.before = status(workdir).get('time', 0.0)
    self.processes = []
    for rank in range(processes):
      log = (scene.folder / f'{workdir.name}.{rank}.log').open('w')
      self.errors.append(pathlib.Path(log.name))
      own = ['--processes', str(processes), '--process', str(rank), '--coordinator',
             f'127.0.0.1:{port}'] if processes > 1 else []
      command = [sys.executable, '-m', 'ttt_jax.cli', *words, *own]
      if limit:
        command = ['/bin/sh', '-c', f'ulimit -f {limit}; exec "$0" "$@"', *command]
      self.processes.append(subprocess.Popen(
          command, cwd=ROOT, env=scene.environment | {'TTT_JAX_FAULT': fault}, stderr=log,
          stdout=log))
      log.close()

  def wait_for(self, state: str, step: int = 0) -> bool:
    """Until status.json shows a state of this run at or beyond a step; False if it ended."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
      now = status(self.workdir)
      fresh = now.get('time', 0.0) > self.before
      if fresh and now.get('state') == state and now.get('step', 0) >= step:
        return True
      if any(process.poll() is not None for process in self.processes):
        return False
      time.sleep(0.002)
    raise TimeoutError(f'{self.workdir}: no {state!r} at step {step} in {PATIENCE:.0f} s')

  def codes(self, patience: float = PATIENCE) -> list[int]:
    """Exit codes of all processes, waiting for each."""
    return [process.wait(timeout=patience) for process in self.processes]

  def kill(self) -> None:
    """Kill the remaining processes, as a scheduler does when a run has lost one."""
    for process in self.processes:
      if process.poll() is None:
        process.kill()
      process.wait()

  def stderr(self) -> str:
    """Standard error of all processes."""
    return '\n'.join(path.read_text(errors='replace') for path in self.errors)


def status(workdir: pathlib.Path) -> dict[str, Any]:
  """The fields of status.json; {} before it exists."""
  path = workdir / 'status.json'
  return json.loads(path.read_text()) if path.is_file() else {}


def complete_steps(workdir: pathlib.Path) -> list[int]:
  """Steps of the complete checkpoints, ascending."""
  folder = workdir / 'checkpoints'
  return sorted(int(path.name) for path in folder.glob('*')
                if path.name.isdigit() and checksums.is_complete(path)) if folder.is_dir() else []


def losses(workdir: pathlib.Path) -> dict[str, dict[int, float]]:
  """'loss' and 'eval/loss' by step."""
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return {name: {line['step']: line[name] for line in lines if name in line}
          for name in ('loss', 'eval/loss')}


class Scene:
  """A folder with prepared data, a config and the uninterrupted runs to compare with."""

  def __init__(self, folder: pathlib.Path, steps: int):
    if folder.exists() and owned.remove(folder) is not None:
      raise SystemExit(f'{folder} exists; remove it, or choose another --out.')
    folder.mkdir(parents=True)
    self.folder, self.steps = folder.resolve(), steps
    self.environment = os.environ | {
        'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': QUICK, 'PYTHONPATH': str(ROOT),
        'TTT_JAX_CACHE': str(self.folder / 'cache'), 'OMP_NUM_THREADS': '1',
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    source = self.folder / 'config.json'
    source.write_text(json.dumps(settings(steps)))
    subprocess.run([sys.executable, '-m', 'ttt_jax.cli', 'prepare', '--config', str(source),
                    '--workdir', str(self.folder)], check=True, cwd=ROOT, env=self.environment,
                   capture_output=True)
    values = json.loads(source.read_text())
    values['data']['path'] = str(self.folder / 'data')
    self.config = self.folder / 'run.json'
    self.config.write_text(json.dumps(values))
    self._undisturbed: dict[tuple, pathlib.Path] = {}

  def undisturbed(self, processes: int = 1, fault: str = '', **where) -> pathlib.Path:
    """The workdir of an uninterrupted run of this kind."""
    key = (processes, fault, repr(where))
    if key not in self._undisturbed:
      workdir = self.folder / f'undisturbed-{len(self._undisturbed)}'
      run = Run(self, workdir, processes, fault=fault, **where)
      assert run.codes() == [0] * processes, run.stderr()
      self._undisturbed[key] = workdir
    return self._undisturbed[key]

  def differences(self, workdir: pathlib.Path, reference: pathlib.Path, bits: bool = True) -> str:
    """The first difference between two runs: parameters, optimizer, data position, losses.

    Args:
      workdir, reference: of the two runs.
      bits: False compares only losses, to 1e-5, and the data position: for runs on different
        devices.

    Returns:
      '' if there is none.
    """
    import numpy as np
    mine, other = losses(workdir), losses(reference)
    for name in mine:
      if sorted(mine[name]) != sorted(other[name]):
        return f'{name} of other steps'
      for step, value in mine[name].items():
        same = value == other[name][step] if bits or value is None else np.isclose(
            value, other[name][step], rtol=1e-5, atol=0)
        if not same:
          return f'{name} of step {step}: {value} and {other[name][step]}'
    (one, note), (two, wanted) = self._last(workdir), self._last(reference)
    if note != wanted:
      return f'position {note} and {wanted}'
    if bits and not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one, two)):
      return 'arrays of the last checkpoint'
    return ''

  def _last(self, workdir: pathlib.Path):
    """([arrays], position) of the last checkpoint, which must be intact."""
    import jax
    import numpy as np
    from ttt_jax import config as config_lib
    from ttt_jax.data import store
    from ttt_jax.model import sharding
    from ttt_jax.model.transformer import Model
    from ttt_jax.train import checkpoint, optimizer, state as train_state
    config = config_lib.load(self.config)
    model = Model(config.model, store.vocabulary(config.data.path).size)
    target = train_state.abstract(model, optimizer.make(config.optimizer, config.train.steps),
                                  sharding.make_mesh(config.mesh, jax.devices()[:1]))
    with checkpoint.open_existing(workdir / 'checkpoints') as checkpoints:
      step = checkpoints.newest_good()
      meta, state = checkpoints.meta(step), checkpoints.restore(step, target)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)], (
        step, meta['data'], meta['progress'])


@dataclasses.dataclass
class Result:
  """One line of the table."""
  what: str
  tried: int
  survived: int
  lost_steps: int | None  # beyond the last save; None where this does not apply
  equal: bool | None      # the end, bit by bit (across meshes: losses to 1e-5)
  notes: list[str]
