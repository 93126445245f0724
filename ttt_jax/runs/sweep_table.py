"""The table of a sweep, sweep.csv: one line per member with its settings, state and metrics."""

from collections.abc import Mapping, Sequence
import csv
import io
import math
import os
import pathlib
import statistics
from typing import Any

from ttt_jax.runs import sweep
from ttt_jax.evaluate import summary as summary_file
from ttt_jax.train import metrics

TABLE = 'sweep.csv'

# Metrics averaged over the end of training; the speed is a median over all of it.
AT_THE_END = ('loss', 'ar', 'diffusion', 'text_nll', 'masked_nll')
SPEED = 'useful_tokens_per_second'


def rows(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """One dict per member, in the sweep's order: 'member', 'state', its overrides by their keys,
  'step', 'steps', 'error', and the metrics that exist so far."""
  workdir = pathlib.Path(workdir)
  out = []
  for entry in sweep.read_members(workdir):
    folder = workdir / entry['name']
    state = sweep.read_state(folder)
    lines = metrics.read(folder) if (folder / metrics.FILE).is_file() else []
    steps = state.get('settings', {}).get('train', {}).get('steps')
    out.append({'member': entry['name'], 'state': state.get('state', sweep.WAITING),
                **entry['overrides'], 'step': lines[-1]['step'] if lines else 0, 'steps': steps,
                **summary(lines), **scores(folder), 'error': state.get('error', '')})
  return out


def summary(lines: Sequence[Mapping[str, float]]) -> dict[str, float]:
  """Summary of a member's log lines: losses at the end, speed, the newest eval/ metrics."""
  out = {}
  for name in AT_THE_END:
    values = [line[name] for line in lines if name in line and math.isfinite(line[name])]
    if values:
      out[name] = statistics.fmean(values[-max(len(values) // 20, 5):])
  speeds = [line[SPEED] for line in lines if SPEED in line]
  if speeds:
    out[SPEED] = statistics.median(speeds)
  for line in lines:
    out |= {name: value for name, value in line.items() if name.startswith('eval/')}
  return out


def scores(folder: pathlib.Path) -> dict[str, float]:
  """The numbers of a member's evaluation.json, as 'score/NAME'."""
  found = summary_file.read(folder).get('summary', {})
  return {f'score/{name}': value for name, value in found.items()
          if isinstance(value, (int, float)) and not isinstance(value, bool)}


def columns(table: Sequence[Mapping[str, Any]]) -> list[str]:
  """The columns of a table; 'error', which is long, comes last."""
  found = dict.fromkeys(name for row in table for name in row)
  return [name for name in found if name != 'error'] + ['error']


def write_table(workdir: str | os.PathLike) -> pathlib.Path:
  """Write DIR/sweep.csv from the members' files; returns its path.

  Members that end at the same time on different machines all write it. Each compares the table
  again afterwards, so that the last one to write has seen all members.
  """
  path = pathlib.Path(workdir) / TABLE
  while True:
    text = _csv(rows(workdir))
    sweep.write(path, text)
    if _csv(rows(workdir)) == text:
      return path


def _csv(table: Sequence[Mapping[str, Any]]) -> str:
  out = io.StringIO()
  writer = csv.DictWriter(out, columns(table), restval='', lineterminator='\n')
  writer.writeheader()
  writer.writerows(table)
  return out.getvalue()
