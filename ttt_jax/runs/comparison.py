"""Compares the groups of a sweep by their scores: tables for a terminal, a CSV and a JSON file.

A group holds the runs of one method that differ in the seed. Its score is the mean over its runs,
given with the standard error over them and a bootstrap interval over held-out records and runs
(evaluate/bootstrap.py). Where the sweep names a reference, every other group is compared with it
on the same records.

  DIR/comparison.csv     one line per group and metric, fractions rather than percentages
  DIR/comparison.json    the same and the scores of every run, with command, commit and machine
"""

from collections.abc import Iterable, Mapping, Sequence
import csv
import dataclasses
import io
import json
import math
import os
import pathlib
import statistics
import textwrap
from typing import Any

import numpy as np

from ttt_jax.evaluate import bootstrap, items as items_file, summary as summary_file
from ttt_jax.evaluate.bootstrap import Estimate, Scores
from ttt_jax.runs import sweep
from ttt_jax.storage import owned
from ttt_jax.train import status_file

CSV, JSON = 'comparison.csv', 'comparison.json'
WIDTH = 80
_COLUMN, _COLUMNS = 13, 5  # of the table for a terminal
_HEADER = 'group,metric,unit,better'


@dataclasses.dataclass(frozen=True)
class Metric:
  """One score.

  Attributes:
    name: as in items.jsonl, or of its own.
    label: at most 12 characters.
    unit: of a shown number.
    better: 'higher', 'lower' or '' where neither is.
    meaning: one sentence without its end.
    of_runs: names in evaluation.json of a score of whole runs; the first that a run has.
  """
  name: str
  label: str
  unit: str
  better: str
  meaning: str
  of_runs: tuple[str, ...] = ()

  @property
  def scale(self) -> float:
    """From a stored value to a shown one."""
    return 100.0 if self.unit == '%' else 1.0


METRICS = (
    Metric('audio_qa_text_accuracy', 'QA text', '%', 'higher',
           'spoken questions whose written answer is right'),
    Metric('audio_qa_spoken_accuracy', 'QA speech', '%', 'higher',
           'spoken questions whose spoken answer is right, as the recogniser hears it'),
    Metric('asr_wer', 'ASR WER', '%', 'lower', 'word error rate of transcripts'),
    Metric('tts_wer_generated', 'TTS WER', '%', 'lower',
           'word error rate of text read aloud, as the recogniser hears it'),
    Metric('text_chat_text_accuracy', 'written QA', '%', 'higher',
           'written questions whose answer is right'),
    Metric('passes_per_second', 'passes/s', '1/s', 'lower',
           'forward passes, those for text included, per second of generated speech'),
    Metric('text_loss', 'text loss', 'nats', 'lower',
           'nats per text token', ('text_nll', 'text_bound')),
    Metric('audio_loss', 'audio loss', 'nats', 'lower',
           'nats per audio token', ('audio_nll', 'audio_bound')),
    Metric('answer_loss', 'answer loss', 'nats', 'lower',
           'nats per answer, text and audio together', ('answer_nll', 'answer_bound')),
    Metric('rtf_text', 'RTF text', '', 'lower',
           'seconds until the transcript is complete, per second of speech heard', ('rtf_text',)),
    Metric('rtf_audio', 'RTF audio', '', 'lower',
           'seconds of computation per second of generated speech', ('rtf_audio',)),
    Metric('answers_finished', 'finished', '%', 'higher',
           'answers that end before the length limit'),
    Metric('length_ratio', 'length', '', '', 'length of the speech, relative to the reference'),
    Metric('tts_wer_roundtrip', 'codec WER', '%', '',
           'word error rate of the reference after the codec, a ceiling for TTS'),
)
BOUNDS = ('text_bound', 'audio_bound', 'answer_bound')


@dataclasses.dataclass(frozen=True)
class Cell:
  """One metric of one group.

  Attributes:
    estimate: of the group.
    runs: member -> its score.
    items: held-out records that have the metric; 0 for a metric of whole runs.
    is_bound: whether it is an upper bound of what other groups have exactly.
    difference: the group minus the reference; None without a reference, and for itself.
  """
  estimate: Estimate
  runs: dict[str, float]
  items: int
  is_bound: bool = False
  difference: Estimate | None = None


@dataclasses.dataclass(frozen=True)
class Run:
  """A member, as far as it has come."""
  name: str
  state: str
  items: list[dict[str, Any]]
  summary: dict[str, Any]
  seconds: float
  error: str


@dataclasses.dataclass(frozen=True)
class Comparison:
  """The groups of a sweep, with what they are compared by.

  Attributes:
    name: of the sweep's folder.
    about: command, version, commit, hardware.
    reference: the group that others are compared with; '' for none.
    groups: group -> its members, in the sweep's order.
    metrics: those that at least one group has.
    cells: (group, metric) -> scores.
    wall: seconds from the first start of a member to the last end; None while some have not ended.
  """
  name: str
  about: Mapping[str, str]
  reference: str
  groups: dict[str, list[Run]]
  metrics: list[Metric]
  cells: dict[tuple[str, str], Cell]
  wall: float | None

  @property
  def missing(self) -> list[Run]:
    """Members without scores."""
    return [run for runs in self.groups.values() for run in runs if not run.items]


def compare(workdir: str | os.PathLike, level: float = bootstrap.LEVEL,
            draws: int = bootstrap.DRAWS) -> Comparison | None:
  """The comparison of a sweep's groups; None if no member has been evaluated yet.

  Args:
    workdir: of the sweep.
    level: of the intervals.
    draws: of the bootstrap.

  Raises:
    UserError: a file is damaged, or members were evaluated on different records.
  """
  workdir = pathlib.Path(workdir)
  about = sweep.read(workdir)
  groups = {group: [_run(workdir, name) for name in names]
            for group, names in sweep.groups(workdir).items()}
  scored = {group: [run for run in runs if run.items] for group, runs in groups.items()}
  if not any(scored.values()):
    return None
  reference = about.get('reference', '')
  found = _metrics([run for runs in scored.values() for run in runs])
  scores = {(group, metric.name): one for metric in found
            for group, one in _scores(metric, scored).items()}
  cells = {}
  for (group, name), one in scores.items():
    other = scores.get((reference, name)) if group != reference else None
    metric = next(metric for metric in found if metric.name == name)
    runs = scored[group]
    cells[group, name] = Cell(
        bootstrap.estimate(one, level=level, draws=draws),
        dict(zip((run.name for run in runs), map(float, one.runs))),
        0 if metric.of_runs else one.value.shape[1], _is_bound(metric, runs[0]),
        bootstrap.difference(one, other, level=level, draws=draws) if other else None)
  return Comparison(workdir.resolve().name, about.get('about', {}), reference, groups, found, cells,
                    _wall(workdir, about))


def _run(workdir: pathlib.Path, name: str) -> Run:
  folder = workdir / name
  state = sweep.read_state(folder)
  evaluation = summary_file.read(folder)
  status = status_file.read(folder)
  seconds = sum(status.get('time_split', {}).values()) + evaluation.get('seconds', 0.0)
  # Without evaluation.json the evaluation was cut off, and items.jsonl may be an earlier one.
  lines = items_file.read(folder) if evaluation and state.get('state') == sweep.DONE else []
  summary = evaluation.get('summary', {}) | summary_file.read_speed(folder).get('summary', {})
  return Run(name, state.get('state', sweep.WAITING), lines, summary, seconds,
             state.get('error', ''))


def _wall(workdir: pathlib.Path, about: Mapping[str, Any]) -> float | None:
  states = [sweep.read_state(workdir / entry['name']) for entry in about['members']]
  if not all('started' in state and 'ended' in state for state in states):
    return None
  return max(state['ended'] for state in states) - min(state['started'] for state in states)


def _metrics(runs: Sequence[Run]) -> list[Metric]:
  """The known metrics that some run has, then the others of items.jsonl."""
  in_items = items_file.metrics(line for run in runs for line in run.items)
  in_runs = {name for run in runs for name in run.summary}
  known = [metric for metric in METRICS
           if metric.name in in_items or in_runs & set(metric.of_runs)]
  names = {metric.name for metric in METRICS}
  return known + [Metric(name, name[:12], '', '', name) for name in in_items if name not in names]


def _scores(metric: Metric, groups: Mapping[str, Sequence[Run]]) -> dict[str, Scores]:
  """The scores of the groups whose runs all have the metric, on the same records in one order."""
  if metric.of_runs:
    values = {group: [value for run in runs if (value := _of_run(metric, run)) is not None]
              for group, runs in groups.items()}
    return {group: Scores.of([[value] for value in found]) for group, found in values.items()
            if found and len(found) == len(groups[group])}
  having = {group: runs for group, runs in groups.items()
            if runs and all(metric.name in items_file.metrics(run.items) for run in runs)}
  runs = [run for group in having.values() for run in group]
  if not runs:
    return {}
  found = items_file.matrix([run.items for run in runs], metric.name, [run.name for run in runs])
  ends = np.cumsum([len(group) for group in having.values()])
  return {group: Scores.of(found.value[end - len(having[group]):end],
                           found.weight[end - len(having[group]):end])
          for group, end in zip(having, ends)}


def _of_run(metric: Metric, run: Run) -> float | None:
  return next((run.summary[name] for name in metric.of_runs if name in run.summary), None)


def _is_bound(metric: Metric, run: Run) -> bool:
  return next((name for name in metric.of_runs if name in run.summary), '') in BOUNDS


# -- for a terminal -------------------------------------------------------------------------


def table(found: Comparison) -> str:
  """Means and standard errors, 80 columns."""
  shown = [metric for metric in found.metrics if metric in METRICS]
  wide = WIDTH - _COLUMN * _COLUMNS
  lines = textwrap.wrap(_legend(found), WIDTH)
  for at in range(0, len(shown), _COLUMNS):
    part = shown[at:at + _COLUMNS]
    lines += ['', ' ' * wide + ''.join(f'{metric.label:>{_COLUMN}}' for metric in part),
              ' ' * wide + ''.join(f'{metric.unit:>{_COLUMN}}' for metric in part)]
    for group in found.groups:
      name = group if len(group) < wide else group[:wide - 4] + '...'
      lines.append((f'{name:<{wide}}' + ''.join(
          f'{cell_text(found, group, metric):>{_COLUMN}}' for metric in part)).rstrip())
  lines += [f'{run.name}: {run.state}{": " + run.error if run.error else ""}'[:WIDTH]
            for run in found.missing]
  return '\n'.join(lines)


def _legend(found: Comparison) -> str:
  counts = sorted({sum(bool(run.items) for run in runs) for runs in found.groups.values()} - {0})
  runs = ' to '.join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
  text = f'Means of {runs} run{"" if counts[-1] == 1 else "s"} ± standard error'
  if found.reference:
    text += f'; * differs from {found.reference} (95 % interval)'
  return text + ('; < upper bound' if any(cell.is_bound for cell in found.cells.values()) else '')


def cell_text(found: Comparison, group: str, metric: Metric) -> str:
  """A mean with its standard error and marks, at most 13 characters."""
  cell = found.cells.get((group, metric.name))
  if cell is None or not math.isfinite(cell.estimate.mean):
    return '-'
  mean, error = (metric.scale * value for value in cell.estimate[:2])
  mark = '*' if cell.difference is not None and cell.difference.clear else ' '
  text = f'{"<" if cell.is_bound else ""}{number(mean)}'
  return text + (f' ±{number(error)}' if math.isfinite(error) else '') + mark


def number(value: float) -> str:
  """Three significant digits or one decimal, without an exponent."""
  if not math.isfinite(value):
    return '-'
  size = abs(value)
  return f'{value:.0f}' if size >= 1000 else f'{value:.1f}' if size >= 10 else f'{value:.2f}'


# -- files ----------------------------------------------------------------------------------


def write(workdir: str | os.PathLike, found: Comparison) -> list[pathlib.Path]:
  """Write comparison.csv and comparison.json; returns their paths.

  Raises:
    UserError: one exists and is another program's.
  """
  workdir = pathlib.Path(workdir)
  owned.check_text(workdir / CSV, _HEADER)
  owned.check_json(workdir / JSON, 'groups', 'reference')
  sweep.write(workdir / CSV, csv_text(found))
  sweep.write(workdir / JSON, json.dumps(results(found), indent=1, allow_nan=False) + '\n')
  return [workdir / CSV, workdir / JSON]


def csv_text(found: Comparison) -> str:
  """One line per group and metric."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow([*_HEADER.split(','), 'kind', 'runs', 'records', 'mean', 'standard_error', 'low',
                   'high', 'difference', 'difference_error', 'difference_low', 'difference_high'])
  for group in found.groups:
    for metric in found.metrics:
      cell = found.cells.get((group, metric.name))
      if cell is not None:
        numbers = [*cell.estimate, *(cell.difference or [''] * 4)]
        writer.writerow([group, metric.name, 'fraction' if metric.unit == '%' else metric.unit,
                         metric.better, 'bound' if cell.is_bound else 'exact', len(cell.runs),
                         cell.items or '', *map(_plain, numbers)])
  return out.getvalue()


def _plain(value: float | str) -> float | str:
  return '' if isinstance(value, str) or not math.isfinite(value) else round(value, 6)


def results(found: Comparison) -> dict[str, Any]:
  """What comparison.json holds."""
  groups = {}
  for group, runs in found.groups.items():
    cells = {metric.name: found.cells.get((group, metric.name)) for metric in found.metrics}
    seconds = [run.seconds for run in runs if run.seconds]
    groups[group] = {
        'members': {run.name: run.state for run in runs},
        'seconds_per_run': round(statistics.fmean(seconds), 1) if seconds else None,
        'scores': {name: _score(cell) for name, cell in cells.items() if cell is not None}}
  return {'name': found.name, **found.about, 'reference': found.reference,
          'level': bootstrap.LEVEL, 'draws': bootstrap.DRAWS,
          'wall_seconds': None if found.wall is None else round(found.wall, 1), 'groups': groups}


def _score(cell: Cell) -> dict[str, Any]:
  out = {'kind': 'bound' if cell.is_bound else 'exact', 'records': cell.items or None,
         **_fields(cell.estimate), 'runs': _finite(cell.runs.values())}
  return out | ({'difference': _fields(cell.difference)} if cell.difference else {})


def _fields(estimate: Estimate) -> dict[str, float | None]:
  return dict(zip(('mean', 'standard_error', 'low', 'high'), _finite(estimate)))


def _finite(values: Iterable[float]) -> list[float | None]:
  return [round(value, 6) if math.isfinite(value) else None for value in values]
