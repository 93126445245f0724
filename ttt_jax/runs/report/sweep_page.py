"""The report of a sweep: a table of its members, and their curves in shared plots."""

import base64
from collections.abc import Mapping, Sequence
import html
import math
import pathlib
from typing import Any

import numpy as np

from ttt_jax.runs import comparison, sweep, sweep_table
from ttt_jax.runs.report import comparison_section, plots
from ttt_jax.train import metrics

# Colours that remain distinct with the common kinds of colour blindness (Okabe and Ito, 2008), then
# the same colours dashed, then dotted.
COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#000000', '#8c8c00')
STYLES = ('-', '--', ':')
MAX_CURVES = len(COLORS) * len(STYLES)  # more could not be distinguished

CURVES = (('loss', 'Loss: both terms'), ('text_nll', 'Text: nats per text token'),
          ('masked_nll', 'Audio: nats per masked audio token'))
TITLES = {'member': 'Member', 'state': 'State', 'loss': 'Loss', 'ar': 'Text term',
          'diffusion': 'Audio term', 'text_nll': 'Text NLL', 'masked_nll': 'Audio NLL',
          sweep_table.SPEED: 'Tokens per second'}
LOWEST = ('loss', 'ar', 'diffusion', 'text_nll', 'masked_nll')  # lower is better


def page(workdir: pathlib.Path, template: str) -> str:
  """The page as HTML.

  Args:
    workdir: of the sweep; images are written to report/*.png.
    template: page.html, whose head and style it shares.
  """
  rows = sweep_table.rows(workdir)
  head = template[:template.index('<main>')]
  name = html.escape(workdir.resolve().name)
  compared = comparison.compare(workdir)
  groups = comparison_section.sections(workdir, compared) if compared else ''
  return (head.replace('$title', f'Sweep “{name}”') + '<main><header>'
          f'<h1>Sweep “{name}”</h1><p class="lead">{_lead(rows)}</p></header>{groups}'
          f'<section id="sweep"><h2>Members</h2>{section(rows)}</section>'
          f'<section id="learning"><h2>Training curves</h2>{_curves(workdir, rows)}</section>'
          f'<footer>Written by <code>ttt-jax report</code> from the files in <code>{name}</code>; '
          f'the table is <code>{sweep_table.TABLE}</code>. For the page of a member, run '
          '<code>ttt-jax report --workdir</code> with its folder.</footer></main></body></html>\n')


def _lead(rows: Sequence[Mapping[str, Any]]) -> str:
  states = [row['state'] for row in rows]
  return f'{len(rows)} runs that differ in a few settings: ' + ', '.join(
      f'{states.count(state)} {html.escape(str(state))}' for state in dict.fromkeys(states)) + '.'


def section(rows: Sequence[Mapping[str, Any]]) -> str:
  """The table as HTML; the lowest loss of each kind is marked, failures are listed below it."""
  columns = [name for name in sweep_table.columns(rows)
             if name not in ('error', 'step', 'steps') and not _is_constant(rows, name)]
  best = {name: min((row[name] for row in rows if math.isfinite(row.get(name, math.inf))),
                    default=None) for name in LOWEST}
  head = ''.join(f'<th scope="col"{_number_class(rows, name)}>'
                 f'{html.escape(_title(name))}</th>'
                 for name in columns)
  body = ''
  for row in rows:
    cells = ''.join(
        f'<td data-label="{html.escape(_title(name))}"{_number_class(rows, name)}>'
        f'{_cell(row, name, best)}</td>' for name in columns if name != 'member')
    body += f'<tr><th scope="row">{html.escape(row["member"])}</th>{cells}</tr>'
  return ('<p>Losses are means over the last twentieth of the log lines; the lowest of each kind '
          'is marked ●. Differences no larger than those between seeds are not significant.</p>'
          '<div class="scroll" tabindex="0"><table class="stack"><thead><tr>'
          f'{head}</tr></thead><tbody>{body}</tbody></table></div>{_failures(rows)}')


def _title(name: str) -> str:
  kind, slash, rest = name.partition('/')
  return TITLES.get(name) or (f'Held out: {rest}' if slash and kind == 'eval' else rest or name)


def _is_constant(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
  """Whether a setting has the same value in all members."""
  return name not in TITLES and '.' in name and '/' not in name and len(
      {repr(row.get(name)) for row in rows}) == 1


def _number_class(rows: Sequence[Mapping[str, Any]], name: str) -> str:
  kinds = {type(row[name]) for row in rows if name in row}
  return ' class="number"' if kinds and kinds <= {int, float} else ''


def _cell(row: Mapping[str, Any], name: str, best: Mapping[str, float | None]) -> str:
  value = row.get(name)
  if value is None or (isinstance(value, float) and not math.isfinite(value)):
    return '–'
  if name == 'state' and row['steps'] and row['state'] != sweep.DONE:
    return html.escape(f'{value}, step {row["step"]:,} of {row["steps"]:,}')
  if isinstance(value, float):
    mark = '● ' if name in best and value == best[name] else ''
    return mark + (f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}')
  return html.escape(str(value))


def _failures(rows: Sequence[Mapping[str, Any]]) -> str:
  return ''.join(f'<p class="missing">{html.escape(row["member"])} failed: '
                 f'{html.escape(row["error"])}</p>' for row in rows if row['state'] == sweep.FAILED)


def _curves(workdir: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> str:
  lines = {row['member']: metrics.read(workdir / row['member']) for row in rows
           if (workdir / row['member'] / metrics.FILE).is_file()}
  drawn = ''
  for name, title in CURVES:
    path = workdir / 'report' / f'sweep_{name}.png'
    if overlay(path, lines, name, title):
      data = base64.b64encode(path.read_bytes()).decode()
      drawn += (f'<figure><img src="data:image/png;base64,{data}" alt="{html.escape(title)}, '
                'a line for each member, against the training steps"></figure>')
  if not drawn:
    return '<p class="missing">There are no metrics yet.</p>'
  some = (f'<p class="note">The first {MAX_CURVES} of {len(lines)} members are shown.</p>'
          if len(lines) > MAX_CURVES else '')
  return f'<p>Smoothed.</p>{some}<div class="figures">{drawn}</div>'


def overlay(path: pathlib.Path, lines: Mapping[str, Sequence[dict]], name: str, title: str) -> bool:
  """Plot one metric of several runs against the steps.

  Args:
    path: PNG to write.
    lines: run -> its lines from metrics.read.
    name: of the metric.
    title: of the plot, with the unit.

  Returns:
    Whether there was anything to plot.
  """
  curves = {}
  for run, found in list(lines.items())[:MAX_CURVES]:
    points = np.array([(line['step'], line[name]) for line in found
                       if np.isfinite(line.get(name, np.nan))], float).reshape(-1, 2)
    if len(points) >= 2:
      curves[run] = points[:, 0], plots.smooth(points[:, 1], len(points) / 20)
  if not curves:
    return False
  with plots.figure_file(path, 4.9, 3.1 + 0.16 * len(curves)) as figure:
    axes = figure.add_subplot(title=title, xlabel='step')
    for number, (run, (step, value)) in enumerate(curves.items()):
      axes.plot(step, value, color=COLORS[number % len(COLORS)],
                linestyle=STYLES[number // len(COLORS)], linewidth=1.5, label=run)
    # The scale ignores the first steps, whose losses are far above the rest.
    late = np.concatenate([value[len(value) // 20:] for _, value in curves.values()])
    axes.set_ylim(min(0, late.min()), late.max() * 1.05 or 1)
    axes.margins(x=0)
    axes.legend(loc='upper center', bbox_to_anchor=(0.5, -0.2), fontsize=8, ncols=1)
    axes.xaxis.set_major_formatter(lambda x, _: f'{x:,.0f}')
  return True
