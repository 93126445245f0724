"""`ttt-jax status`: the state of a run or a sweep on one screen of 80 columns.

Reads the files that a run writes into its workdir: status.json (state, step, rate, checkpoint,
errors), metrics.jsonl (losses, time split) and config.json; in a sweep those of its members.
"""

from collections.abc import Callable, Mapping, Sequence
import math
import os
import pathlib
import socket
import statistics
import textwrap
import time
from typing import Any

from ttt_jax import config as config_lib
from ttt_jax.errors import UserError
from ttt_jax.runs import sweep
from ttt_jax.storage import mirror
from ttt_jax.system.progress import duration
from ttt_jax.train import metrics, profile_files, status_file

WIDTH = 80
STALE = 60.0  # seconds without an update, at least, before the run looks stuck
ENDED = ('done', 'failed', 'preempted', 'interrupted')
LOSSES = ('loss', 'ar', 'diffusion')
LINES = 20    # log lines that losses and rates are averaged over
ERRORS = 5    # shown; status.json keeps more
PARTS = 4     # shown of the time split, the largest

STATES = {
    'starting': 'starting', 'running': 'training', 'evaluating': 'evaluating', 'saving': 'saving',
    'preempted': 'preempted after saving; run the same command to resume',
    'interrupted': 'interrupted; run the same command to resume from the last checkpoint',
    'failed': 'failed', 'done': 'done',
}


def status(workdir: str | os.PathLike, now: Callable[[], float] = time.time) -> str:
  """The status as text.

  Args:
    workdir: of a run or of a sweep.
    now: seconds since the epoch.

  Raises:
    UserError: there is no such folder, or a file in it is malformed.
  """
  workdir = pathlib.Path(workdir)
  if not workdir.is_dir():
    raise UserError(f'workdir {mirror.named(workdir)} does not exist; name the folder of a run or '
                    'a sweep.')
  lines = _sweep(workdir, now()) if sweep.is_sweep(workdir) else _run(workdir, now())
  return '\n'.join(line for long in lines for line in _fit(long)) + '\n'


def _fit(line: str) -> list[str]:
  """Wrap a line to WIDTH, indented to the second column."""
  return [line] if len(line) <= WIDTH else textwrap.wrap(
      line, WIDTH, subsequent_indent=' ' * 14, drop_whitespace=True, break_on_hyphens=False)


# -- one run ------------------------------------------------------------------------


def read(workdir: pathlib.Path) -> dict[str, Any]:
  """The fields of a run's status.json, and 'lines', the metrics; fields that are missing come
  from metrics.jsonl and config.json. {} if there are none of these files."""
  fields = status_file.read(workdir)
  path = workdir / metrics.FILE
  lines = metrics.read(path) if path.is_file() else []
  if not (fields or lines):
    return {}
  if 'steps' not in fields and (workdir / 'config.json').exists():
    fields['steps'] = config_lib.load(workdir / 'config.json').train.steps
  fields['lines'] = lines
  training = [line for line in lines if 'loss' in line]
  if training:
    last = training[-1]
    fields.setdefault('step', last['step'])
    fields.setdefault('time', last.get('time'))
    fields['rate'] = _rate(training) or fields.get('rate') or last.get('steps_per_second')
    if not fields.get('time_split') and 'time/total' in last:
      fields['time_split'] = {key.removeprefix('time/'): share * last['time/total']
                             for key, share in last.items()
                             if key.startswith('time/') and key != 'time/total'}
  return fields


def _run(workdir: pathlib.Path, now: float) -> list[str]:
  fields = read(workdir)
  name = workdir.resolve().name
  if not fields:
    return [f'{name}: not trained yet; run `ttt-jax train --workdir {mirror.named(workdir)}`.']
  return [f'{name}: {_state(fields)}', *_rows({
      'step': _step(fields),
      'updated': last_update(fields, now),
      'checkpoint': _checkpoint(fields, now),
      'time': _split(fields.get('time_split') or {}),
      'goodput': goodput(fields),
      'step time': _step_times(fields['lines']),
      'slowest': slowest(fields),
      'profile': _profile(workdir),
      'losses': _losses(fields['lines'])}), *_errors(fields.get('errors') or [], now)]


def _rows(values: Mapping[str, str]) -> list[str]:
  return [f'  {name:<12}{value}' for name, value in values.items() if value]


def _state(fields: Mapping[str, Any]) -> str:
  state = fields.get('state') or ''
  text = STATES.get(state, state or 'state unknown: there is no status.json')
  if state not in ENDED and gone(fields):
    text = f'killed while {text}'
  where = f' on {fields["host"]}' if fields.get('host') and state not in ENDED else ''
  count = fields.get('process_count') or 1
  return text + where + (f', {count} processes' if count > 1 else '')


def _step(fields: Mapping[str, Any]) -> str:
  step, steps, rate = fields.get('step') or 0, fields.get('steps'), fields.get('rate')
  parts = [f'{step:,}' + (f' of {steps:,} ({100 * step // steps} %)' if steps else '')]
  if rate and fields.get('state') not in ENDED:
    parts.append(f'{rate:.3g} steps/s' if rate >= 0.1 else f'{1 / rate:.3g} s/step')
    if steps and step < steps:
      parts.append(f'{duration((steps - step) / rate)} left')
  return ', '.join(parts)


def _rate(lines: Sequence[Mapping[str, float]]) -> float | None:
  """Steps per second over the last log lines: a median, so that a pause does not count."""
  recent = [line for line in lines[-LINES:] if 'time' in line]
  seconds_per_step = [(two['time'] - one['time']) / (two['step'] - one['step'])
                      for one, two in zip(recent, recent[1:]) if two['step'] > one['step']]
  median = statistics.median(seconds_per_step) if len(seconds_per_step) >= 3 else 0
  return 1 / median if median > 0 else None


def last_update(fields: Mapping[str, Any], now: float) -> str:
  """When the run last wrote a file, and what a long silence means."""
  if fields.get('time') is None:
    return ''
  age = max(now - fields['time'], 0)
  if fields.get('state') in ENDED:
    return f'ended {duration(age)} ago'
  if age < max(STALE, 5 / (fields.get('rate') or 1)) and not gone(fields):
    return f'{duration(age)} ago'
  silence = f'no update for {duration(age)}'
  if fields.get('pid') is None:
    return f'{silence}, the last line of metrics.jsonl'
  if fields.get('host') != socket.gethostname():
    return f'{silence} from process {fields["pid"]} on {fields["host"]}; check that machine'
  if not gone(fields):
    return f'{silence}, but process {fields["pid"]} is alive: it may be compiling, or stuck'
  return (f'{silence} and process {fields["pid"]} is gone; run the same command to resume from '
          'the last checkpoint')


def gone(fields: Mapping[str, Any]) -> bool:
  """Whether the process that wrote status.json ran on this machine and has ended."""
  if fields.get('pid') is None or fields.get('host') != socket.gethostname():
    return False
  try:
    os.kill(fields['pid'], 0)
  except ProcessLookupError:
    return True
  except PermissionError:
    pass  # another user's process, but alive
  return False


def _checkpoint(fields: Mapping[str, Any], now: float) -> str:
  if 'last_good_checkpoint' not in fields:
    return ''
  step, when = fields['last_good_checkpoint'], fields.get('last_good_time')
  if step is None:
    return 'none yet; a crash now would restart from step 0'
  return f'step {step:,}' + (f', {duration(max(now - when, 0))} ago' if when else '')


def _split(seconds: Mapping[str, float]) -> str:
  total = sum(seconds.values())
  shares = sorted(((spent / total, part) for part, spent in seconds.items()
                   if spent / total >= 0.005), reverse=True) if total > 0 else []
  if not shares:
    return ''
  return f'{duration(total)}: ' + ', '.join(
      f'{part} {100 * share:.0f} %' for share, part in shares[:PARTS])


def goodput(fields: Mapping[str, Any]) -> str:
  """The goodput of a run and what it is a share of, from the fields of status.json; or ''."""
  share, life = status_file.goodput(fields), status_file.life(fields)
  if share is None or life is None or not fields.get('step'):
    return ''
  starts = fields.get('starts') or 1
  return f'{100 * share:.0f} % of {duration(life)} since the first start' + (
      f', {starts:,} starts' if starts > 1 else '')


def _step_times(lines: Sequence[Mapping[str, float]]) -> str:
  last = next((line for line in reversed(lines) if 'step_seconds/p50' in line), {})
  parts = [f'p{name} {seconds(last[f"step_seconds/p{name}"])}' for name in metrics.PERCENTILES
           if math.isfinite(last.get(f'step_seconds/p{name}', math.nan))]
  return ', '.join(parts) + f' (of at most the latest {metrics.WINDOW:,})' if parts else ''


def slowest(fields: Mapping[str, Any]) -> str:
  """The host that worked longest per step, from the fields of ``read``; '' for one process."""
  last = next((line for line in reversed(fields.get('lines') or [])
               if 'hosts/slowest' in line), None)
  if last is None:
    return ''
  process, hosts = int(last['hosts/slowest']), fields.get('hosts') or []
  where = f' on {hosts[process]}' if process < len(hosts) else ''
  return (f'process {process}{where}: {seconds(last["hosts/slowest_own"])} of own work per step, '
          f'{seconds(last["hosts/slowest_data"])} of it data; median '
          f'{seconds(last["hosts/median_own"])}')


def seconds(value: float) -> str:
  """Seconds of a step for display: '1.21 s' or '34.5 ms'."""
  return f'{value:.3g} s' if value >= 0.9995 else f'{1000 * value:.3g} ms'


def _profile(workdir: pathlib.Path) -> str:
  newest = profile_files.newest(workdir)
  return '' if newest is None else f'{newest.name}; open it with {profile_files.viewer(workdir)}'


def _losses(lines: Sequence[Mapping[str, float]]) -> str:
  recent = [line for line in lines if 'loss' in line][-LINES:]
  if not recent:
    return ''
  means = [(name, statistics.fmean(line[name] for line in recent if name in line))
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
  entries = sweep.read_members(workdir)
  members = [_member(workdir, entry['name'], now) for entry in entries]
  states = [state for _, state, *_ in members]
  counts = ', '.join(f'{states.count(state)} {state}' for state in dict.fromkeys(states))
  long = max((len(name) for name, *_ in members), default=0)
  wide = min(max(long, 6), 30)
  lines = [f'{workdir.resolve().name}: a sweep of {len(members)} members, {counts}',
           f'  {"member":<{wide}}  {"state":<8} {"step":>13}  {"left":>12}  loss']
  for name, state, step, left, loss, note in members:
    shown = name if len(name) <= wide else name[:wide - 3] + '...'
    lines.append(f'  {shown:<{wide}}  {state:<8} {step:>13}  {left:>12}  {loss}'.rstrip())
    if note:
      lines += textwrap.wrap(note, WIDTH, initial_indent='    ', subsequent_indent='    ',
                             max_lines=2, placeholder=' ...')
  return lines


def _member(workdir: pathlib.Path, name: str, now: float) -> tuple[str, ...]:
  folder = workdir / name
  member, fields = sweep.read_state(folder), read(folder)
  state = member.get('state', sweep.WAITING)
  step, steps = fields.get('step') or 0, member.get('settings', {}).get('train', {}).get('steps')
  left = ''
  if state == sweep.RUNNING and fields.get('rate') and steps and step < steps:
    left = duration((steps - step) / fields['rate'])
  recent = [line['loss'] for line in fields.get('lines', []) if 'loss' in line][-LINES:]
  note = member.get('error', '') if state == sweep.FAILED else ''
  if state == sweep.RUNNING and fields.get('state') not in ENDED:
    update = last_update(fields, now)
    note = update if update.startswith('no update') else ''
  return (name, state, f'{step:,}/{steps:,}' if steps else '', left,
          f'{statistics.fmean(recent):.4g}' if recent else '', note)
