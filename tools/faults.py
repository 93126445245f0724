"""Fault injection: kills runs, corrupts checkpoints, fills the disk, makes losses NaN, and compares
the final state bit by bit with that of an undisturbed run.

  make faults
  python tools/faults.py --out faults --kills 30 --corruptions 20 --json faults.json

Nothing is mocked: processes of `ttt-jax train` on the demo tokens of the repository, signals,
files. The full disk is a tmpfs, which needs root; without root, a limit on the file size is used.
With a warm compile cache a kill takes about ten seconds, mostly for starting Python and JAX.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout need not be installed

from ttt_jax.storage import owned  # noqa: E402
from tools.fault_scene import PHASES, Result, Run, Scene, complete_steps, status  # noqa: E402

PARTS = ('kills', 'two', 'damage', 'disk', 'nan', 'mesh')


# -- kills --------------------------------------------------------------------------------


def kills(scene: Scene, count: int, processes: int, dice: random.Random) -> Result:
  """Kill one run repeatedly at random moments until it is done."""
  reference = scene.undisturbed(processes)
  workdir = scene.folder / f'killed-{processes}'
  done = lost = survived = 0
  notes = []
  each = max(scene.steps // (count + 2), 1)
  while True:
    kept = max(complete_steps(workdir), default=0)
    run = Run(scene, workdir, processes)
    killed = _kill(run, kept, each, scene.steps, dice) if done < count else None
    if killed is None:  # this start runs to the end
      codes = run.codes()
    # Every start must resume from what was saved, unless it was killed before it logged that.
    resumed = f'resuming from checkpoint {kept}' in run.stderr()
    if kept and not resumed and (killed is None or killed.phase != 'restore'):
      notes.append(f'did not resume from step {kept}: {run.stderr()[-300:]}')
    if killed is None:
      if done == count:
        break
      shutil.rmtree(workdir)  # it ended before the last kill: start over
      continue
    now = max(complete_steps(workdir), default=0)
    lost, done = max(lost, killed.promised - now), done + 1
    survived += now >= killed.promised and not killed.wrong
    notes += [killed.wrong] if killed.wrong else []
    print(f'  {killed.what}: saved step {now}', flush=True)
  notes += [f'exit codes {codes}: {run.stderr()[-600:]}'] if any(codes) else []
  wrong = '' if any(codes) else scene.differences(workdir, reference)
  notes += [wrong] if wrong else []
  return Result(f'random kills, {processes} process{"es" if processes > 1 else ""}', done, survived,
                lost, not wrong and not any(codes), notes)


@dataclasses.dataclass
class Killed:
  """One kill: description, phase of the run, step that must not be lost, error."""
  what: str
  phase: str
  promised: int
  wrong: str = ''


def _kill(run: Run, kept: int, max_steps: int, steps: int, dice: random.Random) -> Killed | None:
  """Kill a process of a run that resumes from step ``kept``; None if it ended before."""
  phase, number = dice.choice(list(PHASES)), dice.choice([signal.SIGKILL, signal.SIGTERM])
  at = 0 if phase == 'restore' else min(kept + dice.randint(1, max_steps), steps - 1)
  if not run.wait_for(PHASES[phase], at):
    return None
  time.sleep(dice.random() * (2.0 if phase == 'restore' else 0.05))
  victim = dice.randrange(len(run.processes))
  killed = Killed(f'{signal.Signals(number).name} to {victim} at {phase}', phase,
                  status(run.workdir).get('last_good_checkpoint') or 0)
  run.processes[victim].send_signal(number)
  if number == signal.SIGKILL:
    time.sleep(0.2)
    run.kill()
    return killed
  began, codes = time.monotonic(), run.codes()
  finished = status(run.workdir).get('state') == 'done'
  if codes != [0 if finished else 77] * len(codes):
    killed.wrong = f'{killed.what}: exit codes {codes}: {run.stderr()[-600:]}'
  killed.what += f', exited after {time.monotonic() - began:.1f} s'
  if not killed.wrong:
    killed.promised = max(killed.promised, status(run.workdir)['step'])
  return killed


# -- corrupt files ------------------------------------------------------------------------


def corruptions(scene: Scene, count: int, dice: random.Random) -> Result:
  """Truncate or change a file of the newest checkpoint; the next older one must be used."""
  reference = scene.undisturbed()
  survived, notes = 0, []
  for number in range(count):
    workdir = scene.folder / f'damaged-{number}'
    shutil.copytree(reference, workdir)
    newest, older = complete_steps(workdir)[-1], complete_steps(workdir)[-2]
    files = [path for path in sorted((workdir / 'checkpoints' / str(newest)).rglob('*'))
             if path.is_file() and path.stat().st_size]
    path = dice.choice(files)
    text = bytearray(path.read_bytes())
    if dice.random() < 0.5:
      text, how = text[:dice.randrange(len(text))], 'truncated'
    else:
      place = dice.randrange(len(text))
      text[place] ^= 1 << dice.randrange(8)
      how = 'one bit'
    path.write_bytes(text)
    run = Run(scene, workdir)
    codes, log = run.codes(), run.stderr()
    name = path.relative_to(workdir / 'checkpoints')
    wrong = ([] if codes == [0] else [f'exit codes {codes}']) + (
        [] if str(path) in log and 'is corrupt' in log else ['not reported']) + (
        [] if (workdir / 'checkpoints' / f'{newest}.damaged').is_dir() else ['not renamed'])
    if not wrong:
      wrong = [found for found in [scene.differences(workdir, reference)] if found]
    print(f'  {how} in {name}: {"; ".join(wrong) or f"back to step {older}"}', flush=True)
    survived += not wrong
    notes += [f'{how} in {name}: {found}' for found in wrong]
    shutil.rmtree(workdir)
  return Result('corrupt files', count, survived, 0 if survived == count else None,
                survived == count, notes)


# -- a full disk --------------------------------------------------------------------------


def full_disk(scene: Scene) -> Result:
  """A disk that becomes full during the run, and later has space again."""
  reference = scene.undisturbed()
  workdir = scene.folder / 'full'
  workdir.mkdir()
  size = sum(path.stat().st_size for path in (reference / 'checkpoints' / str(
      complete_steps(reference)[-1])).rglob('*') if path.is_file()) // 1024
  # Space for two and a half checkpoints: the third does not fit next to the two that are kept.
  small = subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={int(2.5 * size)}k', 'tmpfs',
                          str(workdir)], check=False, capture_output=True).returncode == 0
  what = 'full disk (tmpfs)' if small else 'full disk (limit on file sizes: no tmpfs without root)'
  try:
    run = Run(scene, workdir, limit=0 if small else 40)  # blocks of 512 bytes
    code, log = run.codes()[0], run.stderr()
    sentence = [line for line in log.splitlines() if line.startswith('ttt-jax: error:')]
    notes = ([] if code == 2 else [f'exit code {code}: {log[-600:]}']) + (
        [] if len(sentence) == 1 and 'Traceback' not in log else [f'log {log[-600:]}'])
    before = complete_steps(workdir)
    left = [path.name for path in (workdir / 'checkpoints').glob('*')
            if not path.name.isdigit() or int(path.name) not in before]
    notes += [f'left behind: {left}'] if left else []
    notes += [] if before or not small else ['no older checkpoint is left']
    if small:
      subprocess.run(['mount', '-o', f'remount,size={40 * size}k', str(workdir)], check=True)
    again = Run(scene, workdir)
    notes += [] if again.codes() == [0] else [again.stderr()[-600:]]
    wrong = '' if notes else scene.differences(workdir, reference)
    print(f'  {sentence[0] if sentence else log[-300:]}', flush=True)
  finally:
    if small:
      subprocess.run(['umount', '-l', str(workdir)], check=True)
  notes += [wrong] if wrong else []
  return Result(what, 1, not notes, 0, not wrong, notes)


# -- NaN, other meshes --------------------------------------------------------------------


def not_finite(scene: Scene, dice: random.Random) -> list[Result]:
  """Three bad batches are skipped, seven cause a rollback. Killed in between, both end like an
  uninterrupted run with the same bad batches."""
  out = []
  for what, first, last in (('NaN for 3 steps', 12, 14), ('NaN for 7 steps: one rollback', 12, 18)):
    fault = f'nan:{first}-{last}'
    reference = scene.undisturbed(fault=fault)
    notes = []
    progress = scene._last(reference)[1][2]
    back = last - first + 1 >= 5
    if (progress['rollbacks'], progress['offset'] > 0) != (int(back), back):
      notes.append(f'progress {progress}')
    if progress['skipped'] != last - first + 1:
      notes.append(f'{progress["skipped"]} skipped')
    workdir = scene.folder / f'nan-{last}'
    run = Run(scene, workdir, fault=fault)
    if run.wait_for('running', dice.randint(first, last + 2)):
      run.processes[0].send_signal(dice.choice([signal.SIGTERM, signal.SIGKILL]))
      run.codes()
      run = Run(scene, workdir, fault=fault)
    notes += [] if run.codes() == [0] else [run.stderr()[-600:]]
    wrong = scene.differences(workdir, reference)
    notes += [wrong] if wrong else []
    out.append(Result(what + ', killed', 1, not notes, 0, not wrong, notes))
  return out


def other_meshes(scene: Scene) -> list[Result]:
  """Half a run on one mesh, half on another: the same batches, losses equal to 1e-5."""
  out = []
  for what, first, second in (
      ('8 devices -> 4 x 2', {'devices': 8, 'mesh': {'fsdp': 8}},
       {'devices': 8, 'mesh': {'fsdp': 4, 'tensor': 2}}),
      ('2 processes -> 1', {'processes': 2}, {}), ('1 process -> 2', {}, {'processes': 2})):
    reference = scene.undisturbed(**first)
    workdir = scene.folder / what.replace(' ', '')
    run = Run(scene, workdir, **first)
    run.wait_for('running', scene.steps // 2)
    run.processes[0].send_signal(signal.SIGTERM)
    notes = [] if set(run.codes()) == {77} else [f'exit codes {run.codes()}: {run.stderr()[-600:]}']
    run = Run(scene, workdir, **second)
    notes += [] if set(run.codes()) == {0} else [run.stderr()[-600:]]
    wrong = scene.differences(workdir, reference, bits=False)
    notes += [wrong] if wrong else []
    out.append(Result(what, 1, not notes, 0, not wrong, notes))
  return out


def table(results: list[Result]) -> str:
  lines = [f'{"":44} {"tried":>6} {"survived":>9} {"lost steps":>11} {"equal":>6}']
  for one in results:
    lost = '-' if one.lost_steps is None else one.lost_steps
    lines.append(f'{one.what:44.44} {one.tried:6} {one.survived:9} {lost:>11} '
                 f'{"yes" if one.equal else "NO":>6}')
    lines += [f'    {note}' for note in one.notes]
  return '\n'.join(lines)


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0], allow_abbrev=False)
  parser.add_argument('--out', default='faults',
                      help='folder for the runs: a new one, or what this tool left there')
  parser.add_argument('--kills', type=int, default=30, help='half of them of two processes')
  parser.add_argument('--corruptions', type=int, default=20)
  parser.add_argument('--steps', type=int, default=0,
                      help='of a run; 0 = as many as the kills need')
  parser.add_argument('--only', nargs='*', choices=PARTS,
                      help='parts of the campaign (default: all)')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--json', metavar='FILE', help='also write the results here')
  args = parser.parse_args(argv)
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  dice = random.Random(args.seed)
  parts = args.only or PARTS
  scene = Scene(pathlib.Path(args.out), args.steps or 6 * max(args.kills, 6))
  each = -(-args.kills // sum(part in parts for part in ('kills', 'two'))) if {
      'kills', 'two'} & set(parts) else 0
  results = []
  for part, work in (('kills', lambda: [kills(scene, each, 1, dice)]),
                     ('two', lambda: [kills(scene, each, 2, dice)]),
                     ('damage', lambda: [corruptions(scene, args.corruptions, dice)]),
                     ('disk', lambda: [full_disk(scene)]), ('nan', lambda: not_finite(scene, dice)),
                     ('mesh', lambda: other_meshes(scene))):
    if part in parts:
      print(f'{part}:', flush=True)
      results += work()
  owned.mark(args.out, 'made by make')
  print(table(results))
  if args.json:
    text = json.dumps([dataclasses.asdict(one) for one in results], indent=1) + '\n'
    partial = pathlib.Path(args.json + '.partial')
    partial.write_text(text)
    os.replace(partial, args.json)
  good = all(one.survived == one.tried and one.equal and not one.lost_steps for one in results)
  return 0 if good else 1


if __name__ == '__main__':
  sys.exit(main())
