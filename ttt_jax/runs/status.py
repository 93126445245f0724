"""How a run or a sweep is doing, in one screen of 80 columns.

Reads what the run leaves in its workdir while it works: status.json (state, step, rate,
checkpoint, errors), metrics.jsonl (losses, time split), config.json; in a sweep the members'
files. What is not there yet is said in a sentence.
"""

from collections.abc import Callable, Mapping, Sequence
import os
import pathlib
import socket
import statistics
import textwrap
import time
from typing import Any

from ttt_jax.errors import UserError
from ttt_jax.runs import sweep
from ttt_jax.storage import files
from ttt_jax.system.progress import duration
from ttt_jax.train import metrics

WIDTH = 80
QUIET = 60.0  # seconds without news that nobody should wonder about; at least this
OVER = ('done', 'failed', 'preempted', 'interrupted')
LOSSES = ('loss', 'ar', 'diffusion')
LINES = 20    # of metrics.jsonl that a loss is averaged over
ERRORS = 5    # shown; status.json keeps more
PARTS = 4     # of the time split, the largest

STATES = {
    'starting': 'starting', 'running': 'training', 'evaluating': 'evaluating', 'saving': 'saving',
    'preempted': 'preempted: it saved and left; the same command goes on from there',
    'interrupted': 'interrupted; the same command goes on from the last checkpoint',
    'failed': 'failed', 'done': 'done',
}


def status(workdir: str | os.PathLike, now: Callable[[], float] = time.time) -> str:
  """The screen.

  Args:
    workdir: of a run or of a sweep.
    now: seconds since the epoch.

  Raises:
    UserError: there is no such folder, or nothing in it is a run's.
  """
  workdir = pathlib.Path(workdir)
  if not workdir.is_dir():
    raise UserError(f'workdir {workdir} does not exist; name the folder of a run or a sweep.')
  lines = _sweep(workdir, now()) if sweep.is_sweep(workdir) else _run(workdir, now())
  return '\n'.join(line for long in lines for line in _fit(long)) + '\n'


def _fit(line: str) -> list[str]:
  """A line that is too long goes on below, indented like its second column."""
  return [line] if len(line) <= WIDTH else textwrap.wrap(
      line, WIDTH, subsequent_indent=' ' * 14, drop_whitespace=True, break_on_hyphens=False)


# -- one run ------------------------------------------------------------------------


def read(workdir: pathlib.Path) -> dict[str, Any]:
  """What is known about a run: the fields of status.json, and those that metrics.jsonl and
  config.json can stand in for; {} if there is nothing."""
  found = files.read_json(workdir / 'status.json')
  path = workdir / metrics.FILE
  lines = metrics.read(path) if path.is_file() else []
  config = files.read_json(workdir / 'config.json')
  if not (found or lines):
    return {}
  found.setdefault('steps', config.get('train', {}).get('steps'))
  found['lines'] = lines
  training = [line for line in lines if 'loss' in line]
  if training:
    last = training[-1]
    found.setdefault('step', last['step'])
    found.setdefault('time', last['time'])
    found['rate'] = _rate(training) or found.get('rate') or last.get('steps_per_second')
    if not found.get('time_split') and 'time/total' in last:
      found['time_split'] = {key.removeprefix('time/'): share * last['time/total']
                             for key, share in last.items()
                             if key.startswith('time/') and key != 'time/total'}
  return found


def _run(workdir: pathlib.Path, now: float) -> list[str]:
  found = read(workdir)
  name = workdir.resolve().name
  if not found:
    return [f'{name}: nothing has been trained here yet; `ttt-jax train --workdir {workdir}` does '
            'it.']
  return [f'{name}: {_state(found)}', *_rows({
      'step': _step(found),
      'news': news(found, now),
      'checkpoint': _checkpoint(found, now),
      'time': _split(found.get('time_split') or {}),
      'losses': _losses(found['lines'])}), *_errors(found.get('errors') or [], now)]


def _rows(values: Mapping[str, str]) -> list[str]:
  return [f'  {name:<12}{value}' for name, value in values.items() if value]


def _state(found: Mapping[str, Any]) -> str:
  state = found.get('state')
  text = STATES.get(state, state or 'state unknown: there is no status.json')
  if state not in OVER and _gone(found):
    text = f'killed while {text}'
  where = f' on {found["host"]}' if found.get('host') and state not in OVER else ''
  many = found.get('process_count') or 1
  return text + where + (f', {many} processes' if many > 1 else '')


def _step(found: Mapping[str, Any]) -> str:
  step, steps, rate = found.get('step') or 0, found.get('steps'), found.get('rate')
  parts = [f'{step:,}' + (f' of {steps:,} ({100 * step // steps} %)' if steps else '')]
  if rate and found.get('state') not in OVER:
    parts.append(f'{rate:.3g} steps/s' if rate >= 0.1 else f'{1 / rate:.3g} s/step')
    if steps and step < steps:
      parts.append(f'{duration((steps - step) / rate)} left')
  return ', '.join(parts)


def _rate(lines: Sequence[Mapping[str, float]]) -> float | None:
  """Steps per second between the last log lines: a median, so that a pause does not count."""
  recent = lines[-LINES:]
  paces = [(two['time'] - one['time']) / (two['step'] - one['step'])
           for one, two in zip(recent, recent[1:]) if two['step'] > one['step']]
  pace = statistics.median(paces) if len(paces) >= 3 else 0
  return 1 / pace if pace > 0 else None


def news(found: Mapping[str, Any], now: float) -> str:
  """How old the last sign of life is, and what that means."""
  if found.get('time') is None:
    return ''
  age = max(now - found['time'], 0)
  if found.get('state') in OVER:
    return f'ended {duration(age)} ago'
  if age < max(QUIET, 5 / (found.get('rate') or 1)) and not _gone(found):
    return f'{duration(age)} ago'
  silence = f'no news for {duration(age)}'
  if found.get('pid') is None:
    return f'{silence}, the last line of metrics.jsonl'
  if found.get('host') != socket.gethostname():
    return f'{silence} from process {found["pid"]} on {found["host"]}; look there'
  if not _gone(found):
    return f'{silence}, but process {found["pid"]} is there: it may be compiling, or stuck'
  return (f'{silence} and process {found["pid"]} is gone; the same command goes on from the last '
          'checkpoint')


def _gone(found: Mapping[str, Any]) -> bool:
  """Whether the process that wrote status.json was of this machine and is no more."""
  if found.get('pid') is None or found.get('host') != socket.gethostname():
    return False
  try:
    os.kill(found['pid'], 0)
  except ProcessLookupError:
    return True
  except PermissionError:
    pass  # somebody else's, but there
  return False


def _checkpoint(found: Mapping[str, Any], now: float) -> str:
  if 'last_good_checkpoint' not in found:
    return ''
  step, when = found['last_good_checkpoint'], found.get('last_good_time')
  if step is None:
    return 'none yet: a crash now would begin again from step 0'
  return f'step {step:,}' + (f', {duration(max(now - when, 0))} ago' if when else '')


def _split(seconds: Mapping[str, float]) -> str:
  total = sum(seconds.values())
  shares = sorted(((spent / total, part) for part, spent in seconds.items()
                   if spent / total >= 0.005), reverse=True) if total > 0 else []
  if not shares:
    return ''
  return f'{duration(total)}: ' + ', '.join(
      f'{part} {100 * share:.0f} %' for share, part in shares[:PARTS])


def _losses(lines: Sequence[Mapping[str, float]]) -> str:
  recent = [line for line in lines if 'loss' in line][-LINES:]
  if not recent:
    return ''
  means = [(name, statistics.fmean(line[name] for line in recent))
           for name in LOSSES if name in recent[-1]]
  return ', '.join(f'{name} {mean:.4g}' for name, mean in means) + (
      f' (mean of {len(recent)} log lines)' if len(recent) > 1 else '')


def _errors(errors: Sequence[Mapping[str, Any]], now: float) -> list[str]:
  if not errors:
    return ['  errors      none']
  last = f', the last {ERRORS}:' if len(errors) > ERRORS else ':'
  lines = [f'  errors      {len(errors)}{last}']
  for error in errors[-ERRORS:]:
    lines += textwrap.wrap(
        f'{duration(max(now - error["time"], 0))} ago, step {error["step"]:,}: {error["text"]}',
        WIDTH, initial_indent=' ' * 14, subsequent_indent=' ' * 14, max_lines=2, placeholder=' ...')
  return lines


# -- a sweep ------------------------------------------------------------------------


def _sweep(workdir: pathlib.Path, now: float) -> list[str]:
  entries = files.read_json(workdir / sweep.FILE)['members']
  members = [_member(workdir, entry['name'], now) for entry in entries]
  states = [state for _, state, *_ in members]
  counts = ', '.join(f'{states.count(state)} {state}' for state in dict.fromkeys(states))
  long = max(len(name) for name, *_ in members)
  wide = min(max(long, 6), 30)
  lines = [f'{workdir.resolve().name}: a sweep of {len(members)} members, {counts}',
           f'  {"member":<{wide}}  {"state":<8} {"step":>13}  {"left":>12}  loss']
  for name, state, step, left, loss, said in members:
    shown = name if len(name) <= wide else name[:wide - 3] + '...'
    lines.append(f'  {shown:<{wide}}  {state:<8} {step:>13}  {left:>12}  {loss}'.rstrip())
    if said:
      lines += textwrap.wrap(said, WIDTH, initial_indent='    ', subsequent_indent='    ',
                             max_lines=2, placeholder=' ...')
  return lines


def _member(workdir: pathlib.Path, name: str, now: float) -> tuple[str, ...]:
  folder = workdir / name
  kept, found = sweep.read_state(folder), read(folder)
  state = kept.get('state', sweep.WAITING)
  step, steps = found.get('step') or 0, kept.get('settings', {}).get('train', {}).get('steps')
  left = ''
  if state == sweep.RUNNING and found.get('rate') and steps and step < steps:
    left = duration((steps - step) / found['rate'])
  recent = [line['loss'] for line in found.get('lines', []) if 'loss' in line][-LINES:]
  said = kept.get('error', '') if state == sweep.FAILED else ''
  if state == sweep.RUNNING and found.get('state') not in OVER:
    heard = news(found, now)
    said = heard if heard.startswith('no news') else ''
  return (name, state, f'{step:,}/{steps:,}' if steps else '', left,
          f'{statistics.fmean(recent):.4g}' if recent else '', said)
