"""Several processes at work in one workdir, in rounds; counts what is lost, which must be nothing.

  make together
  python tools/together.py --out together --rounds 30 --json together.json

  starts    two trainings start in one new workdir, up to 3 seconds apart: one trains, the other
            is told who has the workdir, or starts after it
  takeover  a training is killed at a random moment; the next start must not be refused
  evaluate  a run is evaluated while it trains: every line of both is in metrics.jsonl
  export    a run that saves every second step and keeps one checkpoint is exported while it trains

All are processes of `ttt-jax` on the demo tokens of the repository; the readers repeat their
command in one process each, which compiles once.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout need not be installed

from tools.fault_scene import PATIENCE, QUICK, settings  # noqa: E402

PARTS = ('starts', 'takeover', 'evaluate', 'export')
IN_USE = re.compile(r'ttt-jax: error: workdir \S+ is in use by process \d+ on \S+ since ')


class Place:
  """A folder with prepared rows, and commands that run there."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder.resolve()
    if self.folder.exists():
      raise SystemExit(f'{folder} exists; remove it, or choose another --out.')
    self.folder.mkdir(parents=True)
    config = settings(10)
    config['train']['eval_every'] = 0
    config['generate'] = {'block': 9, 'steps': 3, 'max_span': 30, 'max_tokens': 220}
    config['evaluate'] = {'items': 2, 'batch': 4, 'judge': 'none', 'bound_samples': 1}
    self.config = self.folder / 'config.py'
    self.config.write_text(f'def get_config():\n  return {config!r}\n')
    self.wait(self.start('prepare', self.folder / 'rows'), 'prepare')

  def start(self, verb: str, workdir: pathlib.Path, **overrides) -> subprocess.Popen:
    words = [sys.executable, '-m', 'ttt_jax.cli', verb, '--config', str(self.config), '--workdir',
             str(workdir)]
    if verb != 'prepare':
      words.append(f'--config.data.path={self.folder / "rows" / "data"}')
    words += [f'--config.train.{key}={value}' for key, value in overrides.items()]
    return subprocess.Popen(words, env=self.environment(), stderr=subprocess.PIPE, text=True,
                            cwd=self.folder)

  def reader(self, what: str, workdir: pathlib.Path, rounds: int) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, __file__, '--reader', what, '--out', str(workdir),
                             '--rounds', str(rounds)], env=self.environment(), text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.folder)

  def environment(self) -> dict[str, str]:
    return os.environ | {'PYTHONPATH': str(ROOT), 'XLA_FLAGS': QUICK, 'JAX_PLATFORMS': 'cpu'}

  def wait(self, process: subprocess.Popen, what: str, *codes: int) -> str:
    """What a process wrote to standard error; SystemExit unless it ends as expected."""
    _, error = process.communicate(timeout=PATIENCE)
    if process.returncode not in (codes or (0,)):
      raise SystemExit(f'{what} ended with {process.returncode}: {error[-2000:]}')
    return error


def steps_logged(workdir: pathlib.Path) -> list[int]:
  """The training steps in metrics.jsonl, whose every line must be whole."""
  return [line['step'] for line in _lines(workdir) if 'loss' in line]


def evaluations(workdir: pathlib.Path) -> int:
  return sum('loss' not in line for line in _lines(workdir))


def _lines(workdir: pathlib.Path) -> list[dict]:
  path = workdir / 'metrics.jsonl'
  text = path.read_text() if path.exists() else ''
  return [json.loads(line) for line in text.split('\n')[:-1]]


def starts(place: Place, rounds: int, dice: random.Random) -> dict:
  found = collections.Counter()
  for number in range(rounds):
    workdir, steps = place.folder / f'starts-{number}', 12
    more = {'steps': steps, 'checkpoint_every': 4, 'tensorboard': False}
    first = place.start('train', workdir, **more)
    time.sleep(dice.choice([0.0, dice.uniform(0, 3)]))
    both = [first, place.start('train', workdir, **more)]
    errors = [process.communicate(timeout=PATIENCE)[1] for process in both]
    codes = [process.returncode for process in both]
    refused = [code == 2 and bool(IN_USE.search(error)) for code, error in zip(codes, errors)]
    right = (0 in codes and all(code == 0 or no for code, no in zip(codes, refused))
             and steps_logged(workdir) == list(range(1, steps + 1)))
    found['right'] += right
    found['second refused'] += any(refused)
    if not right:
      print(f'  round {number}: exit codes {codes}: {errors}', flush=True)
    else:
      shutil.rmtree(workdir)
  return {'rounds': rounds, **found}


def takeover(place: Place, rounds: int, dice: random.Random) -> dict:
  found, workdir, steps = collections.Counter(), place.folder / 'takeover', 100_000
  more = {'steps': steps, 'checkpoint_every': 10, 'tensorboard': False, 'keep': 2}
  for number in range(rounds):
    process = place.start('train', workdir, **more)
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and not _is_running(workdir, process.pid) and (
        time.monotonic() < deadline):
      time.sleep(0.05)
    time.sleep(dice.uniform(0, 5))
    refused = process.poll() is not None
    process.send_signal(dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
    if refused:
      print(f'  round {number}: {process.communicate()[1][-1000:]}', flush=True)
    found['right'] += not refused  # and the next round starts while a SIGTERM is still being saved
  process.wait()
  last = place.start('train', workdir, **more)
  while last.poll() is None and not steps_logged(workdir):
    time.sleep(0.05)
  last.send_signal(signal.SIGTERM)
  place.wait(last, 'train', 77)
  logged = steps_logged(workdir)
  found['lines missing or twice'] = len(set(range(1, max(logged) + 1)) ^ set(logged)) + (
      len(logged) - len(set(logged)))
  return {'rounds': rounds, **found, 'steps': max(logged)}


def _is_running(workdir: pathlib.Path, pid: int) -> bool:
  try:
    status = json.loads((workdir / 'status.json').read_text())
    return status['pid'] == pid and status['state'] != 'starting'
  except (OSError, ValueError):
    return False


def beside(place: Place, what: str, rounds: int, **more) -> dict:
  """A reader repeats its command while a run trains."""
  workdir = place.folder / what
  trainer = place.start('train', workdir, steps=1_000_000, tensorboard=False, **more)
  while not (workdir / 'checkpoints').is_dir() and trainer.poll() is None:
    time.sleep(0.1)
  reader = place.reader(what, workdir, rounds)
  output, error = reader.communicate(timeout=20 * PATIENCE)
  found = {'rounds': rounds, 'right': output.count('right\n')}
  if found['right'] < rounds:
    print(f'  {output[-1000:]}{error[-3000:]}', flush=True)
  trainer.send_signal(signal.SIGTERM)
  place.wait(trainer, 'train', 77)
  logged = steps_logged(workdir)
  found |= {'steps': max(logged), 'training lines lost': max(logged) - len(set(logged)),
            'training lines twice': len(logged) - len(set(logged)),
            'read again': error.count('was removed while it was read')}
  if what == 'evaluate':
    found['evaluation lines lost'] = rounds - evaluations(workdir)
  return found


def read(what: str, workdir: pathlib.Path, rounds: int) -> None:
  """In a process of its own: repeat a reader's command; prints 'right' for each success."""
  from ttt_jax.cli import main
  while not any(path.name.isdecimal() for path in (workdir / 'checkpoints').glob('*')):
    time.sleep(0.1)
  for number in range(rounds):
    words = ['--workdir', str(workdir)]
    if what == 'export':
      words = ['export-hf', *words, '--out', str(workdir.with_name('exported')), '--overwrite']
    code = main.main(words if what == 'export' else ['evaluate', *words])
    print('right' if code == 0 else f'round {number}: exit code {code}', flush=True)


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--out', default='together', type=pathlib.Path, help='a new folder')
  parser.add_argument('--rounds', type=int, default=30)
  parser.add_argument('--only', nargs='+', choices=PARTS, default=PARTS)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--json', type=pathlib.Path)
  parser.add_argument('--reader', choices=('evaluate', 'export'), help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.reader:
    read(args.reader, args.out, args.rounds)
    return 0
  place, dice = Place(args.out), random.Random(args.seed)
  run = {'starts': lambda: starts(place, args.rounds, dice),
         'takeover': lambda: takeover(place, args.rounds, dice),
         'evaluate': lambda: beside(place, 'evaluate', args.rounds, checkpoint_every=50, keep=2),
         'export': lambda: beside(place, 'export', args.rounds, checkpoint_every=2, keep=1)}
  results = {}
  for part in args.only:
    begin = time.monotonic()
    results[part] = run[part]() | {'seconds': round(time.monotonic() - begin)}
    print(f'{part}: {results[part]}', flush=True)
  if args.json:
    args.json.write_text(json.dumps(results, indent=1) + '\n')
  lost = sum(value for result in results.values() for key, value in result.items()
             if 'lost' in key or 'twice' in key)
  right = all(result['right'] == result['rounds'] for result in results.values()) and not lost
  if right:
    shutil.rmtree(place.folder)
  return 0 if right else 1


if __name__ == '__main__':
  sys.exit(main())
