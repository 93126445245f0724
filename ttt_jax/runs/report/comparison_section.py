"""Sections of a sweep's page that compare its groups: scores, intervals, curves, sounds.

Plots are SVG in the page and use its colours, so that they follow a dark theme.
"""

from collections.abc import Mapping, Sequence
import html
import math
import pathlib
from typing import Any

import numpy as np

from ttt_jax.evaluate import bootstrap, items as items_file
from ttt_jax.runs import comparison, sweep
from ttt_jax.runs.comparison import Cell, Comparison, Metric, number
from ttt_jax.runs.report import plots, sounds
from ttt_jax.system.progress import duration
from ttt_jax.train import metrics

# Okabe and Ito's colours, which remain distinct with the common kinds of colour blindness.
COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#8c8c8c')
CURVES = (('text_nll', 'Text: nats per text token'),
          ('masked_nll', 'Audio: nats per masked audio token'))
HEARD = ('audio_qa', 'tts', 'asr')  # tasks whose sounds are embedded, a record each
_POINTS = 80  # of a curve


def sections(workdir: pathlib.Path, found: Comparison) -> str:
  """HTML of all sections."""
  parts = [('scores', 'Scores on held-out records', _facts(found) + _table(found)),
           ('intervals', 'Means and intervals', _dot_plots(found)),
           ('published', 'Beside the published figures', _published(workdir, found)),
           ('curves', 'Training curves of the groups', _curves(workdir, found)),
           ('listen', 'The same records, spoken by every run', _sounds(workdir, found))]
  return ''.join(f'<section id="{name}"><h2>{title}</h2>{body}</section>'
                 for name, title, body in parts if body)


def _text(value: Any) -> str:
  return html.escape(str(value))


# -- tables ---------------------------------------------------------------------------------


def _facts(found: Comparison) -> str:
  about = found.about
  facts = {'command': about.get('command'), 'commit': about.get('commit'),
           'version': about.get('version'), 'machine': about.get('hardware'),
           'time': duration(found.wall) + ', from the first start to the last end'
                   if found.wall is not None else None}
  rows = ''.join(f'<tr><td>{name}</td><td>{_text(value)}</td></tr>'
                 for name, value in facts.items() if value)
  return f'<table class="config"><tbody>{rows}</tbody></table>' if rows else ''


def _shown(found: Comparison) -> list[Metric]:
  return [metric for metric in found.metrics if metric in comparison.METRICS]


def _table(found: Comparison) -> str:
  shown = _shown(found)
  head = ''.join(f'<th scope="col" class="number" title="{_text(metric.meaning)}">'
                 f'{_text(metric.label)}{_arrow(metric)}<br>{_text(metric.unit)}</th>'
                 for metric in shown)
  body = ''
  for group, runs in found.groups.items():
    cells = ''.join(
        f'<td class="number" data-label="{_text(metric.label)}">'
        f'{_cell(metric, found.cells.get((group, metric.name)))}</td>' for metric in shown)
    count = sum(bool(run.items) for run in runs)
    body += (f'<tr><th scope="row">{_text(group)}<div class="note">{count} run'
             f'{"" if count == 1 else "s"}</div></th>{cells}</tr>')
  meanings = ''.join(f'<li><b>{_text(metric.label)}</b>: {_text(metric.meaning)}</li>'
                     for metric in shown)
  missing = ''.join(f'<p class="missing">{_text(run.name)} has no scores: {_text(run.state)}'
                    f'{": " + _text(run.error) if run.error else ""}</p>' for run in found.missing)
  return (f'<p>{_legend(found)}</p><div class="scroll" tabindex="0"><table class="stack compared">'
          f'<thead><tr><th scope="col">Method</th>{head}</tr></thead><tbody>{body}</tbody></table>'
          f'</div>{missing}<ul class="note">{meanings}</ul>')


def _legend(found: Comparison) -> str:
  percent = f'{100 * bootstrap.LEVEL:.0f} %'
  text = 'Mean over the runs of a method ± standard error over them.'
  if found.reference:
    text += (f' Below: the difference to {_text(found.reference)} with its {percent} interval '
             '(bootstrap over records, which pairs the methods, and over runs); bold where it '
             'excludes zero.')
  if any(cell.is_bound for cell in found.cells.values()):
    text += ' &lt;: an upper bound of what other methods have exactly.'
  return text


def _arrow(metric: Metric) -> str:
  return {'higher': ' ↑', 'lower': ' ↓'}.get(metric.better, '')


def _cell(metric: Metric, cell: Cell | None) -> str:
  if cell is None or not math.isfinite(cell.estimate.mean):
    return '–'
  scale, (mean, error, *_) = metric.scale, cell.estimate
  text = ('&lt; ' if cell.is_bound else '') + number(scale * mean)
  if math.isfinite(error):
    text += f' <span class="note">± {number(scale * error)}</span>'
  if cell.difference is None or not math.isfinite(cell.difference.low):
    return text
  away, _, low, high = (scale * value for value in cell.difference)
  inside = f'{"+" if away > 0 else ""}{number(away)} [{number(low)}, {number(high)}]'
  return text + (f'<div class="difference"><b>{inside}</b></div>' if cell.difference.clear
                 else f'<div class="difference">{inside}</div>')


def _published(workdir: pathlib.Path, found: Comparison) -> str:
  published = sweep.read(workdir).get('published') or {}
  rows = {group: published['rows'][group] for group in found.groups
          if group in published.get('rows', {})}
  if not rows:
    return ''
  ours = [metric for metric in _shown(found) if metric.unit == '%'][:4]
  head = ''.join(f'<th scope="col" class="number">{_text(title)}</th>'
                 for title in (*published['columns'], *(f'here: {m.label}, %' for m in ours)))
  body = ''
  for group, row in rows.items():
    values = [f'{value:.2f}' for value in row]
    for metric in ours:
      cell = found.cells.get((group, metric.name))
      values.append('–' if cell is None else number(metric.scale * cell.estimate.mean))
    titles = (*published['columns'], *(f'here: {m.label}, %' for m in ours))
    body += f'<tr><th scope="row">{_text(group)}</th>' + ''.join(
        f'<td class="number" data-label="{_text(title)}">{value}</td>'
        for title, value in zip(titles, values)) + '</tr>'
  return (f'<p>Published: {_text(published.get("source", ""))}. Another size, other data and other '
          'tests: only the order of the methods can be compared.</p>'
          '<div class="scroll" tabindex="0"><table class="stack"><thead><tr>'
          f'<th scope="col">Method</th>{head}</tr></thead><tbody>{body}</tbody></table></div>')


# -- plots ----------------------------------------------------------------------------------


def _dot_plots(found: Comparison) -> str:
  plots_of = [_dot_plot(found, metric) for metric in _shown(found)]
  return ('<p>Filled: the mean, with its 95 % interval over records and runs. Rings: the runs.</p>'
          f'<div class="figures">{"".join(plots_of)}</div>')


def _dot_plot(found: Comparison, metric: Metric) -> str:
  """SVG: a row per group with its mean, interval and runs."""
  cells = {group: found.cells.get((group, metric.name)) for group in found.groups}
  values = [metric.scale * value for cell in cells.values() if cell is not None
            for value in (*cell.runs.values(), cell.estimate.low, cell.estimate.high)
            if math.isfinite(value)]
  if not values:
    return ''
  low, high = _range(values, 100.0 if metric.unit == '%' and metric.better == 'higher' else None)
  left, right, step, top = 96, 410, 22, 8
  at = lambda value: left + (right - left) * (value - low) / (high - low)
  bottom = top + step * len(cells)
  out = [f'<line x1="{at(tick):.1f}" x2="{at(tick):.1f}" y1="{top}" y2="{bottom}" class="grid"/>'
         f'<text x="{at(tick):.1f}" y="{bottom + 14}" text-anchor="middle">{_tick(tick)}</text>'
         for tick in _ticks(low, high)]
  for row, (group, cell) in enumerate(cells.items()):
    y, color = top + step * (row + 0.5), COLORS[row % len(COLORS)]
    name = group if len(group) < 15 else group[:12] + '...'
    out.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{_text(name)}</text>')
    if cell is None or not math.isfinite(cell.estimate.mean):
      continue
    mean, _, least, most = (metric.scale * value for value in cell.estimate)
    if math.isfinite(least):
      out.append(f'<line x1="{at(least):.1f}" x2="{at(most):.1f}" y1="{y}" y2="{y}" '
                 f'stroke="{color}" stroke-width="2.5"/>')
    out += [f'<circle cx="{at(metric.scale * value):.1f}" cy="{y}" r="3" fill="none" '
            f'stroke="{color}"/>' for value in cell.runs.values() if math.isfinite(value)]
    out.append(f'<circle cx="{at(mean):.1f}" cy="{y}" r="4.5" fill="{color}"/>')
  title = f'{metric.label}{_arrow(metric)}' + (f', {metric.unit}' if metric.unit else '')
  return _figure(title, metric.meaning, 420, bottom + 22, out)


def _figure(title: str, meaning: str, width: int, height: float, parts: Sequence[str]) -> str:
  return (f'<figure><figcaption><b>{_text(title)}</b>: {_text(meaning)}</figcaption>'
          f'<svg class="plot" viewBox="0 0 {width} {height:.0f}" role="img" '
          f'aria-label="{_text(title)}">{"".join(parts)}</svg></figure>')


def _range(values: Sequence[float], most: float | None) -> tuple[float, float]:
  """The values' axis: from 0 unless they are close together, and at most to ``most``."""
  low, high = min(values), max(values)
  if low >= 0 and (low < 0.5 * high or low == high):
    low = 0.0
  if most is not None and high > 0.6 * most:
    high = most
  return (low, high) if low < high else (low, low + (abs(low) or 1.0))


def _ticks(low: float, high: float) -> list[float]:
  """Three to six round values."""
  rough = (high - low) / 4
  unit = 10.0 ** math.floor(math.log10(rough))
  step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough)
  return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _tick(value: float) -> str:
  return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'


def _curves(workdir: pathlib.Path, found: Comparison) -> str:
  lines = {group: [metrics.read(workdir / run.name) for run in runs
                   if (workdir / run.name / metrics.FILE).is_file()]
           for group, runs in found.groups.items()}
  modes = {group: sweep.read_state(workdir / runs[0].name).get('settings', {}).get(
      'objective', {}).get('mode') for group, runs in found.groups.items()}
  drawn = ''.join(_curve_plot(lines, modes, name, title) for name, title in CURVES)
  return ('<p>Mean over the runs of a group, smoothed; the shade is their range. In mode '
          f"'ar' the first curve counts audio tokens, too.</p><div class=\"figures\">{drawn}</div>"
          if drawn else '')


def _curve_plot(lines: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
                modes: Mapping[str, Any], name: str, title: str) -> str:
  curves: dict[str, np.ndarray] = {}
  for group, runs in lines.items():
    bands = [band for run in runs if (band := _smoothed(run, name)) is not None]
    if bands:
      curves[group] = _band(bands)
  if not curves:
    return ''
  steps = max(band[-1, 0] for band in curves.values())
  late = np.concatenate([band[len(band) // 15:, 1:].ravel() for band in curves.values()])
  high = float(late.max()) * 1.03 or 1.0
  low = min(0.0, float(late.min()))
  left, right, top, bottom = 40, 410, 8, 208
  x = lambda step: left + (right - left) * step / max(steps, 1)
  y = lambda value: bottom - (bottom - top) * (np.clip(value, low, high) - low) / (high - low)
  out = [f'<line x1="{left}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" class="grid"/>'
         f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{_tick(tick)}</text>'
         for tick in _ticks(low, high)]
  out += [f'<text x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{_tick(tick)}</text>'
          for tick in _ticks(0, steps)]
  for number_of, group in enumerate(lines):
    if group not in curves:
      continue
    color, band = COLORS[number_of % len(COLORS)], curves[group]
    path = lambda column, rows=band: ' '.join(
        f'{x(row[0]):.1f},{y(row[column]):.1f}' for row in rows)
    out.append(f'<polygon points="{path(2)} {path(3, band[::-1])}" fill="{color}" '
               'fill-opacity="0.15"/>')
    out.append(f'<polyline points="{path(1)}" fill="none" stroke="{color}" stroke-width="1.8"/>')
  for at, group in enumerate(curves):
    color = COLORS[list(lines).index(group) % len(COLORS)]
    column, row = at % 3, at // 3
    label = group + (' (all tokens)' if name == 'text_nll' and modes[group] == 'ar' else '')
    out.append(f'<circle cx="{left + 6 + 124 * column}" cy="{bottom + 34 + 18 * row}" r="4" '
               f'fill="{color}"/><text x="{left + 15 + 124 * column}" '
               f'y="{bottom + 38 + 18 * row}">{_text(label)}</text>')
  return _figure(title, 'against the training steps', 420,
                 bottom + 48 + 18 * ((len(curves) - 1) // 3), out)


def _smoothed(lines: Sequence[Mapping[str, float]], name: str) -> np.ndarray | None:
  points = np.array([(line['step'], line[name]) for line in lines
                     if 'loss' in line and np.isfinite(line.get(name, np.nan))], float)
  if len(points) < 2:
    return None
  return np.stack([points[:, 0], plots.smooth(points[:, 1], len(points) / 20)], axis=1)


def _band(runs: Sequence[np.ndarray]) -> np.ndarray:
  """float [n, 4]: step, mean, least and most of the runs, which may have logged other steps."""
  last = min(run[-1, 0] for run in runs)
  first = max(run[0, 0] for run in runs)
  step = np.linspace(min(first, last), last, _POINTS)
  values = np.stack([np.interp(step, run[:, 0], run[:, 1]) for run in runs])
  return np.stack([step, values.mean(0), values.min(0), values.max(0)], axis=1)


# -- sounds ---------------------------------------------------------------------------------


def _sounds(workdir: pathlib.Path, found: Comparison) -> str:
  runs = [run for group in found.groups.values() for run in group if run.items]
  keyed = {run.name: items_file.keyed(run.items) for run in runs}
  parts = []
  for task in HEARD:
    key = next((key for key in keyed[runs[0].name] if key[0] == task
                and all(key in lines for lines in keyed.values())), None)
    if key is not None:
      lines = {name: found_lines[key] for name, found_lines in keyed.items()}
      parts.append(_record(workdir, found, lines))
  return ('<p>The first record of each task, not selected: what each run wrote, said, and what the '
          f'recogniser heard.</p>{"".join(parts)}') if parts else ''


def _record(workdir: pathlib.Path, found: Comparison,
            lines: Mapping[str, Mapping[str, Any]]) -> str:
  """One record: a row per group, a column per run."""
  line = next(iter(lines.values()))
  most = max(len(runs) for runs in found.groups.values())
  body = ''
  for group, runs in found.groups.items():
    cells = ''.join(f'<td data-label="{_text(run.name)}">'
                    f'{_answer(workdir / run.name, lines.get(run.name))}</td>' for run in runs)
    body += f'<tr><th scope="row">{_text(group)}</th>{cells}</tr>'
  head = ''.join(f'<th scope="col">run {i + 1}</th>' for i in range(most))
  return (f'<h3>{_text(line["task"])}: {_text(line["id"])}</h3><p class="note">Right answer: '
          f'{_text(line.get("reference", ""))}</p><table class="samples stack"><thead><tr>'
          f'<th scope="col" class="id">Method</th>{head}</tr></thead><tbody>{body}</tbody></table>')


def _answer(folder: pathlib.Path, line: Mapping[str, Any] | None) -> str:
  if line is None:
    return '<span class="note">no scores</span>'
  player = ''
  if line.get('codes'):
    player = sounds.Sounds(folder, 'data').player(
        f'samples/{line.get("name", "")}.generated.wav', f'{folder.name}, {line["id"]}', small=True)
  heard = (line.get('heard') or {}).get('generated')
  said = '' if heard is None else (
      f'<div class="heard">recognised: {_text(heard or "(nothing)")}</div>')
  return f'{player}<div class="transcript">{_text(line.get("text") or "–")}</div>{said}'
