"""Every command on disks that are full, nearly full, read-only, forbidden, or with names taken.

  make test-disks
  python tools/disks.py --out disks --json disks.json

Each command must end with exit code 2 and one sentence, or do all of its work: never a traceback.
`evaluate` of a run that cannot be written shows its table. Needs root for the full and the
read-only disk (tmpfs, in a mount namespace of its own); the forbidden one drops root's right to
ignore permissions. The commands of a kind run in one process, which compiles once.
"""

import argparse
import contextlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout need not be installed

from tools.fault_scene import QUICK, settings  # noqa: E402

KINDS = ('full', 'nearly', 'readonly', 'forbidden', 'taken')
LEFT = 24 * 1024  # bytes on the disk that is nearly full: the first checks pass
# Names in a workdir that commands write, and the commands that must notice.
TAKEN = {
    'config.json': ('prepare-new', 'train-new'), 'metrics.jsonl': ('train-new',),
    'status.json': ('train-new',), 'checkpoints': ('train-new', 'import'),
    '.owner.lock': ('train-new',), 'logs': ('supervise',), 'data': ('prepare-new',),
    'samples': ('evaluate',), 'evaluation.json': ('evaluate',), 'scores.json': ('score',),
    'report.html': ('report',), 'report': ('report',), 'inspect': ('inspect',),
    'sweep.json': ('sweep',), 'sweep.csv': ('sweep',), 'answers.json': ('generate',),
    'imported': ('import',)}


def commands(base: pathlib.Path, disk: pathlib.Path) -> dict[str, list[str]]:
  """Name -> command line; each writes to ``disk``, where run/ is a copy of the run in ``base``."""
  config, run, data = str(base / 'config.py'), str(disk / 'run'), f'{base}/run/data'
  new = lambda name: ['--config', config, '--workdir', str(disk / name)]
  old = ['--workdir', run]
  read = ['--workdir', str(base / 'run')]
  return {
      'prepare-new': ['prepare', *new('new')],
      'prepare': ['prepare', *new('run')],
      'train-new': ['train', *new('new'), f'--config.data.path={data}'],
      'train': ['train', *old, '--config.train.steps=6'],
      'supervise': ['supervise', *old, '--wait', '0', '--', 'ttt-jax', 'train', *old],
      'sweep': ['sweep', '--sweep', str(base / 'sweep.py'), *new('new'),
                f'--config.data.path={data}', '--failures', '1'],
      'evaluate': ['evaluate', *old],
      'evaluate-out': ['evaluate', *read, '--out', str(disk / 'new' / 'scores')],
      'report': ['report', *old],
      'inspect': ['inspect', *old],
      'inspect-set': ['inspect', *read, '--set', '--out', str(disk / 'new' / 'inspect')],
      'generate': ['generate', *read, '--task', 'tts', '--text', '3 1', '--out',
                   str(disk / 'run')],
      'generate-stream': ['generate', *read, '--task', 'tts', '--text', '3 1', '--stream', '--out',
                          str(disk / 'new' / 'stream')],
      'score': ['score', *old],
      'score-out': ['score', *read, '--out', str(disk / 'new' / 'scores.json')],
      'export': ['export-hf', *read, '--out', str(disk / 'new' / 'export')],
      'import': ['import-hf', '--hf', str(base / 'export'), *new('new'),
                 f'--config.data.path={data}']}


def right(name: str, kind: str, code: int | None, error: str, output: str) -> bool:
  """Whether a command ended as it must."""
  sentences = [line for line in error.splitlines() if line.startswith('ttt-jax: error: ')]
  if 'Traceback' in error + output or code is None:
    return False
  if name == 'evaluate' and kind != 'taken' and code == 0:  # somebody else's run
    return kind == 'nearly' or 'are shown and not stored' in error and 'text loss' in output
  if code == 0:  # other names do not matter, as long as the user's files are kept
    return kind in ('nearly', 'taken')
  return code == 2 and len(sentences) == 1


def run_inside(kind: str, base: pathlib.Path, disk: pathlib.Path,
               only: list[str] | None = None) -> None:
  """In a process of its own: prepare the disk, run the commands, print a JSON line for each."""
  if kind in ('full', 'nearly', 'readonly'):
    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64m', 'none', str(disk)], check=True)
  todo = {name: words for name, words in commands(base, disk).items() if name in (only or [name])}
  if kind == 'taken':
    for name, verbs in TAKEN.items():
      for make in (pathlib.Path.mkdir, lambda path: path.write_text('mine')):
        for verb in filter(todo.get, verbs):
          shutil.rmtree(disk)
          disk.mkdir()
          shutil.copytree(base / 'run', disk / 'run')
          (disk / 'new').mkdir()
          for folder in ('run', 'new'):
            path = disk / folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            make(path)
            if path.is_dir():
              (path / 'thesis.txt').write_text('mine')
          before = mine(disk)
          call(f'{verb} {name}', todo[verb], kind, lambda: mine(disk) == before)
    return
  shutil.copytree(base / 'run', disk / 'run')
  if kind == 'readonly':
    subprocess.run(['mount', '-o', 'remount,ro', str(disk)], check=True)
  elif kind == 'forbidden':
    subprocess.run(['chmod', '-R', 'a-w', str(disk)], check=True)
  for name, words in todo.items():
    if kind in ('full', 'nearly'):
      fill(disk, LEFT if kind == 'nearly' else 0)
    call(name, words, kind, lambda: True)
  if kind == 'forbidden':
    subprocess.run(['chmod', '-R', 'u+w', str(disk)], check=True)


def mine(disk: pathlib.Path) -> dict[str, str]:
  """A user's files below a folder."""
  return {str(path): 'mine' for path in disk.rglob('*')
          if path.is_file() and path.stat().st_size == 4 and path.read_text() == 'mine'}


def fill(disk: pathlib.Path, left: int) -> None:
  """Fill a disk but for some bytes; what the command before has written there goes first."""
  shutil.rmtree(disk / 'new', ignore_errors=True)
  (disk / 'filler').unlink(missing_ok=True)
  with (disk / 'filler').open('wb') as file:
    free = os.statvfs(disk)
    with contextlib.suppress(OSError):
      file.truncate(0)
      while True:
        file.write(b'x' * min(2**16, max(free.f_bavail * free.f_frsize, 4096)))
        file.flush()
  if left:
    os.truncate(disk / 'filler', (disk / 'filler').stat().st_size - left)


def call(name: str, words: list[str], kind: str, kept) -> None:
  from ttt_jax.cli import main
  output, error = io.StringIO(), io.TextIOWrapper(io.BytesIO(), encoding='utf-8')
  with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
    import logging
    handler = logging.StreamHandler(error)
    logging.getLogger('ttt_jax').addHandler(handler)
    try:
      code = main.main(words)
    except SystemExit as end:
      code = end.code if isinstance(end.code, int) else 1
    except BaseException:
      code = None
      traceback.print_exc()
    logging.getLogger('ttt_jax').removeHandler(handler)
  error.seek(0)
  said = error.read()
  good = right(name.split()[0], kind, code, said, output.getvalue()) and kept()
  print('RESULT ' + json.dumps({'command': name, 'code': code, 'right': good, 'kept': kept(),
                                'error': said[-1500:]}),
        file=sys.__stdout__, flush=True)


def prepare_base(base: pathlib.Path) -> None:
  from ttt_jax.cli import main
  config = settings(4)
  config['generate'] = {'block': 9, 'steps': 3, 'max_span': 30, 'max_tokens': 220}
  config['evaluate'] = {'items': 2, 'batch': 4, 'judge': 'none', 'bound_samples': 1}
  config['score'] = {'items': 1, 'repeats': 1}
  base.mkdir(parents=True)
  (base / 'config.py').write_text(f'def get_config():\n  return {config!r}\n')
  (base / 'sweep.py').write_text('def get_sweep():\n  return [{"seed": 1}, {"seed": 2}]\n')
  start = ['--config', str(base / 'config.py'), '--workdir', str(base / 'run')]
  for words in (['prepare', *start], ['train', *start],
                ['export-hf', *start[2:], '--out', str(base / 'export')]):
    assert main.main(words) == 0, words


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--out', default='disks', type=pathlib.Path, help='a new folder')
  parser.add_argument('--only', nargs='+', choices=KINDS, default=KINDS)
  parser.add_argument('--commands', nargs='+', help='only these (default: all)')
  parser.add_argument('--json', type=pathlib.Path)
  parser.add_argument('--inside', choices=(*KINDS, 'base'), help=argparse.SUPPRESS)
  args = parser.parse_args()
  out = args.out.resolve()
  if args.inside == 'base':
    prepare_base(out / 'base')
    return 0
  if args.inside:
    run_inside(args.inside, out / 'base', out / args.inside, args.commands)
    return 0
  if out.exists():
    raise SystemExit(f'{args.out} exists; remove it, or choose another --out.')
  environment = os.environ | {'PYTHONPATH': str(ROOT), 'XLA_FLAGS': QUICK, 'JAX_PLATFORMS': 'cpu'}
  inside = [sys.executable, __file__, '--out', str(out), '--inside']
  subprocess.run([*inside, 'base'], env=environment, check=True)
  results, root = [], os.geteuid() == 0
  for kind in args.only:
    (out / kind).mkdir()
    before = []
    if kind in ('full', 'nearly', 'readonly'):
      if not root:
        print(f'{kind}: left out, for it needs root', flush=True)
        continue
      before = ['unshare', '--mount']
    elif kind == 'forbidden' and root:
      before = ['setpriv', '--inh-caps=-all', '--bounding-set=-all']
    begin = time.monotonic()
    chosen = ['--commands', *args.commands] if args.commands else []
    done = subprocess.run([*before, *inside, kind, *chosen], env=environment, text=True,
                          check=False, stdout=subprocess.PIPE)
    found = [json.loads(line.removeprefix('RESULT ')) for line in done.stdout.splitlines()
             if line.startswith('RESULT ')]
    wrong = [one for one in found if not one['right']]
    print(f'{kind}: {len(found) - len(wrong)} of {len(found)} commands end as they must '
          f'({time.monotonic() - begin:.0f} s)', flush=True)
    for one in wrong:
      print(f'  {one["command"]}: exit code {one["code"]}, kept {one["kept"]}: {one["error"]}')
    results.append({'kind': kind, 'commands': len(found), 'right': len(found) - len(wrong),
                    'ended': done.returncode, 'wrong': wrong})
  if args.json:
    args.json.write_text(json.dumps(results, indent=1) + '\n')
  shutil.rmtree(out)
  return int(any(one['wrong'] or one['ended'] or not one['commands'] for one in results))


if __name__ == '__main__':
  sys.exit(main())
