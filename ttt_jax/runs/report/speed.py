"""The report's section about speed: throughput of a run and where its time went."""

from collections.abc import Mapping, Sequence
import html
from typing import Any

import numpy as np

from ttt_jax.runs import status
from ttt_jax.system.progress import duration
from ttt_jax.train import metrics

# (name in metrics.jsonl, label, kind of number, what it means)
RATES = (
    ('useful_tokens_per_second', 'Useful tokens per second', 'count',
     'positions that belong to records'),
    ('tokens_per_second', 'Tokens per second, with padding', 'count', 'all positions of the rows'),
    ('documents_per_second', 'Records per second', 'count', ''),
    ('steps_per_second', 'Steps per second', 'count', ''),
    ('padding_fraction', 'Padding', 'share', 'fraction of positions that belong to no record'),
    ('blocks_skipped', 'Attention skipped', 'share',
     'fraction of its blocks without an allowed pair; the dense form computes them anyway'),
    ('model_flops_per_second', 'Model FLOP/s', 'flops',
     'operations that these records need, forward and backward'),
    ('mfu', 'Model FLOPs utilisation (MFU)', 'share',
     'fraction of the peak of the devices in bfloat16'),
)

# The parts of telemetry.Clock, in the order of the table.
PARTS = {
    'step': ('Training', 'the devices were computing steps'),
    'compile': ('Compiling', 'compiling the train step'),
    'data': ('Waiting for data', 'the devices were idle until the next batch arrived'),
    'checkpoint': ('Checkpoints', 'copying the state off the devices'),
    'eval': ('Evaluation', 'evaluating on held-out records during the run'),
    'start': ('Start', 'opening data and checkpoints, creating or restoring the state'),
    'profile': ('Profiles', 'waiting for the devices and writing the trace of train.profile'),
    'lost': ('Rolled back', 'training that a rollback has thrown away'),
    'other': ('Other', 'work of the host while the devices were idle'),
}


# Percentile in metrics.jsonl -> label.
STEP_SECONDS = {'p50': 'half of the steps were at most as long', 'p90': '90 % of them',
                'p99': '99 % of them'}


def section(lines: Sequence[dict], fields: Mapping[str, Any] | None = None) -> str:
  """The section as HTML.

  Args:
    lines: from metrics.read.
    fields: from status.read; None = not known.
  """
  split = next((line for line in reversed(lines) if 'time/total' in line), None)
  if split is None:
    return '<p class="missing">The speed of this run was not measured.</p>'
  return ('<p>Rates are medians over the log lines, per second of training, which excludes '
          'compilation and checkpoints but includes waits for data.</p>'
          f'{_rates(lines)}{_slowest(fields or {})}'
          f'<h3>Where the time went</h3>{_split(split, fields or {})}{_recompiles(split)}')


def _rates(lines: Sequence[dict]) -> str:
  rows = ''
  for name, label, kind, note in RATES:
    values = np.array([line[name] for line in lines if name in line])
    values = values[np.isfinite(values)]
    if len(values):
      rows += _row(label, _FORMS[kind](float(np.median(values))), note)
  last = next((line for line in reversed(lines) if 'step_seconds/p50' in line), {})
  for name, note in STEP_SECONDS.items():
    value = last.get(f'step_seconds/{name}', np.nan)
    if np.isfinite(value):
      what = f'{note}, of the latest {metrics.WINDOW:,}' if name == 'p50' else note
      rows += _row(f'Step time, {name}', status.seconds(value), what)
  return _table(('Measure', 'Value', 'Meaning'), rows)


def _slowest(fields: Mapping[str, Any]) -> str:
  text = status.slowest(fields)
  return '' if not text else (
      f'<p class="note">Slowest host: {html.escape(text)}. Its own work is all but the wait for '
      'the devices; as long as a step, it keeps the other hosts waiting.</p>')


def _split(line: dict, fields: Mapping[str, Any]) -> str:
  total = line['time/total']
  rows = ''
  for part, (label, note) in PARTS.items():
    share = line.get(f'time/{part}', 0.0)
    if share > 0:
      rows += _row(label, _share(share), f'{duration(share * total)}: {note}', bar=share)
  goodput = status.goodput(fields)
  more = '' if not goodput else (
      f' Goodput: {html.escape(goodput)} were steps that counted; start-up, compilation, '
      'checkpoints, repeated steps and the time between starts are the rest.')
  return (f'<p class="note">Of {duration(total)} in total, including earlier starts of the run.'
          f'{more}</p>{_table(("Part", "Share", "Time and meaning"), rows)}')


def _recompiles(line: dict) -> str:
  times = int(line['recompiles'])
  if not times:
    return ''
  return (f'<p class="missing">The train step was compiled again {times} time'
          f'{"s" if times > 1 else ""} after the first; the log names the steps. The devices '
          'were idle meanwhile.</p>')


def _table(heads: tuple[str, str, str], rows: str) -> str:
  first, number, note = heads
  return ('<table class="scores stack"><thead><tr>'
          f'<th scope="col">{first}</th><th scope="col" class="number">{number}</th>'
          f'<th scope="col">{note}</th></tr></thead><tbody>{rows}</tbody></table>')


def _row(label: str, value: str, note: str, bar: float | None = None) -> str:
  drawn = '' if bar is None else (
      f'<div class="bar" aria-hidden="true"><span style="width:{100 * bar:.1f}%"></span></div>')
  return (f'<tr><th scope="row">{html.escape(label)}{drawn}</th>'
          f'<td class="number">{value}</td><td class="note">{html.escape(note)}</td></tr>')


def _count(value: float) -> str:
  return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def _share(value: float) -> str:
  return f'{100 * value:.1f} %'


def _flops(value: float) -> str:
  """'12.3 TFLOP/s'."""
  for size, prefix in ((1e15, 'P'), (1e12, 'T'), (1e9, 'G')):
    if value >= size:
      return f'{value / size:.3g} {prefix}FLOP/s'
  return f'{value / 1e6:.3g} MFLOP/s'


_FORMS = {'count': _count, 'share': _share, 'flops': _flops}
