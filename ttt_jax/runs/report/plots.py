"""Plots of the report: the shared style, and curves of metrics."""

from collections.abc import Sequence
import contextlib
import os
import pathlib
from typing import Any

import numpy as np

from ttt_jax.storage import files

# Blue and orange that remain distinct with colour blindness and in greyscale.
TEXT, AUDIO, INK, SOFT = '#0b6bab', '#d55e00', '#1f2933', '#52606d'


@contextlib.contextmanager
def figure_file(path: str | os.PathLike, width: float, height: float):
  """A Matplotlib figure of ``width`` x ``height`` inches that is saved to ``path`` at exit."""
  import matplotlib
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  style: dict[Any, Any] = {
      'font.size': 10, 'axes.titlesize': 10.5, 'axes.titlelocation': 'left',
      'axes.titleweight': 'bold', 'axes.spines.top': False, 'axes.spines.right': False,
      'axes.edgecolor': SOFT, 'axes.labelcolor': SOFT, 'xtick.color': SOFT,
      'ytick.color': SOFT, 'text.color': INK, 'axes.titlecolor': INK, 'axes.grid': True,
      'grid.color': '#e4e7eb', 'axes.axisbelow': True, 'legend.frameon': False,
      'font.family': 'DejaVu Sans',
      'text.parse_math': False}  # a text may have two $
  with matplotlib.rc_context(style):
    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(figure)
    yield figure
    with files.writing(path):
      files.make_folder(pathlib.Path(path).parent)
    with files.replacing(path, 'wb') as file:
      figure.savefig(file, dpi=220, format='png', bbox_inches='tight', pad_inches=0.05,
                   metadata={'Software': None})


def smooth(values: np.ndarray, window: float) -> np.ndarray:
  """Exponential mean over about ``window`` values [n] -> [n], without a start-up bias."""
  keep = 1 - 1 / max(window, 1.0)
  out, total, weight = np.empty(len(values)), 0.0, 0.0
  for i, value in enumerate(values):
    total, weight = keep * total + value, keep * weight + 1
    out[i] = total / weight
  return out


def curve(path: str | os.PathLike, lines: Sequence[dict], name: str, title: str, *,
          color: str = INK, heldout: str = '', smoothed: bool = True) -> bool:
  """Plot one metric of a run against the steps, raw and smoothed.

  Args:
    path: PNG to write.
    lines: from metrics.read.
    name: of the metric.
    title: of the plot, with the unit.
    color: of the smoothed line; the raw one is lighter.
    heldout: name of the same metric on held-out records, drawn as points.
    smoothed: False for a metric without noise, drawn as a single line.

  Returns:
    Whether there was anything to plot.
  """
  points = _points(lines, name)
  if len(points) < 2:
    return False
  step, value = points.T
  mean = smooth(value, len(value) / 20) if smoothed else value
  with figure_file(path, 4.9, 3.1) as figure:
    axes = figure.add_subplot(title=title, xlabel='step')
    if smoothed:
      axes.plot(step, value, color=color, alpha=0.3, linewidth=0.8, label='each log line')
    axes.plot(step, mean, color=color, linewidth=1.8, label='smoothed')
    high, low = np.quantile(value, 0.99), mean.min()
    held = _points(lines, heldout) if heldout else np.zeros((0, 2))
    if len(held):
      axes.plot(*held.T, 'o', color=INK, markersize=4, label='held out', clip_on=False)
      high, low = max(high, held[:, 1].max()), min(low, held[:, 1].min())
    top = max(high, mean.max()) * 1.05
    if top > 0:
      axes.set_ylim(min(0, low), top)
    axes.set_xlim(left=min(0, step[0]), right=max(step[-1], 1))
    axes.margins(x=0)
    if smoothed:
      axes.legend(loc='best', fontsize=8.5)
    axes.xaxis.set_major_formatter(lambda x, _: f'{x:,.0f}')
    if top >= 1000:
      axes.yaxis.set_major_formatter(lambda y, _: f'{y:,.0f}')
  return True


def _points(lines: Sequence[dict], name: str) -> np.ndarray:
  found = [(line['step'], line[name]) for line in lines
           if name in line and np.isfinite(line[name])]
  return np.array(found, float).reshape(-1, 2)
