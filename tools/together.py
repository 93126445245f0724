"""Several processes at work in one workdir, in rounds; counts what is lost, which must be nothing.

  make together
  python tools/together.py --out together --rounds 30 --json together.json

  race      four processes start at once in a workdir whose owner was killed: one gets it
  takeover  an owner that writes metrics is killed at a random moment; the next one must not wait
  second    `train` is started again and again in the workdir of a training: told who has it
  evaluate  a run is evaluated while it trains: every line of both is in metrics.jsonl
  export    a run that saves every second step and keeps one checkpoint is exported while it trains

The first two parts start small processes that take the lease of a run and write its metrics. The
others are `ttt-jax` on the demo tokens of the repository; what repeats its command does so in one
process, which compiles once. `make faults` kills trainings.
"""

import argparse
import contextlib
import functools
import io
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

from tools.fault_scene import QUICK, settings  # noqa: E402

PARTS = ('race', 'takeover', 'second', 'evaluate', 'export')
# Takes a workdir as a run does, and writes metrics until it is killed, or so many lines.
OWNER = '''
import sys, time
from ttt_jax.storage.lease import Lease
from ttt_jax.train import metrics
workdir, count = sys.argv[1], int(sys.argv[2])
with Lease(workdir, f"workdir {workdir}", silence=1e9):
  begun = max((line["step"] for line in metrics.read(workdir)), default=0) if (
      metrics.pathlib.Path(workdir, metrics.FILE).exists()) else 0
  with metrics.Writer(workdir, begun, tensorboard=False) as writer:
    print("owner", flush=True)
    for step in range(begun + 1, begun + 1 + count):
      writer.write(step, {"loss": 1.0})
      time.sleep(0.01)
'''
PATIENCE = 1200.0  # seconds that a command may take on a busy machine
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


def owner(place: Place, workdir: pathlib.Path, lines: int) -> subprocess.Popen:
  return subprocess.Popen([sys.executable, '-c', OWNER, str(workdir), str(lines)],
                          env=place.environment(), cwd=place.folder, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def race(place: Place, rounds: int, dice: random.Random) -> dict:
  right = refused = 0
  for number in range(rounds):
    workdir = place.folder / f'race-{number}'
    if number % 2:  # half of the workdirs are new
      _kill_owner(owner(place, workdir, 1000), 0.0)
    before = _steps(workdir)
    all_of_them = [owner(place, workdir, 300) for _ in range(4)]
    ends = [process.communicate(timeout=PATIENCE) for process in all_of_them]
    codes = [process.returncode for process in all_of_them]
    told = sum('InUse: workdir' in error for _, error in ends)
    # One that starts late, after the first has ended, is an owner, too.
    good = 0 in codes and told == 4 - codes.count(0) and (
        _steps(workdir) == list(range(1, len(before) + 300 * codes.count(0) + 1)))
    right, refused = right + good, refused + told
    if not good:
      print(f'  round {number}: {codes}, {ends}', flush=True)
  return {'rounds': rounds, 'right': right, 'refused': refused}


def takeover(place: Place, rounds: int, dice: random.Random) -> dict:
  workdir, right = place.folder / 'takeover', 0
  workdir.mkdir()
  for _ in range(rounds):
    process = owner(place, workdir, 100_000)
    right += _kill_owner(process, dice.uniform(0, 1))
  logged = _steps(workdir)
  return {'rounds': rounds, 'right': right, 'lines': len(logged),
          'lines lost or twice': int(logged != list(range(1, len(logged) + 1)))}


def _kill_owner(process: subprocess.Popen, after: float) -> bool:
  """Kill an owner some seconds after it took its workdir; whether it did."""
  assert process.stdout is not None
  took = process.stdout.readline() == 'owner\n'
  time.sleep(after)
  process.kill()
  process.communicate()
  return took


def _steps(workdir: pathlib.Path) -> list[int]:
  """As ``steps_logged``, without a last line that a kill has cut off."""
  return steps_logged(workdir) if workdir.is_dir() else []


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
  from ttt_jax.train import trained_model
  # One Model for all rounds: compiled programs belong to it.
  trained_model.Model = functools.lru_cache(trained_model.Model)
  while not any(path.name.isdecimal() for path in (workdir / 'checkpoints').glob('*')):
    time.sleep(0.1)
  for number in range(rounds):
    place = ['--workdir', str(workdir)]
    words = {'second': ['train', *place], 'evaluate': ['evaluate', *place],
             'export': ['export-hf', *place, '--out', str(workdir.with_name('exported')),
                        '--overwrite']}[what]
    error = io.StringIO()
    with contextlib.redirect_stderr(error if what == 'second' else sys.stderr):
      code = main.main(words)
    right = code == 0 if what != 'second' else code == 2 and bool(IN_USE.search(error.getvalue()))
    print('right' if right else f'round {number}: exit code {code} {error.getvalue()}', flush=True)


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--out', default='together', type=pathlib.Path, help='a new folder')
  parser.add_argument('--rounds', type=int, default=30)
  parser.add_argument('--only', nargs='+', choices=PARTS, default=PARTS)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--json', type=pathlib.Path)
  parser.add_argument('--reader', choices=('second', 'evaluate', 'export'), help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.reader:
    read(args.reader, args.out, args.rounds)
    return 0
  place, dice = Place(args.out), random.Random(args.seed)
  run = {'race': lambda: race(place, args.rounds, dice),
         'takeover': lambda: takeover(place, args.rounds, dice),
         'second': lambda: beside(place, 'second', args.rounds, checkpoint_every=10, keep=2),
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
