"""The report's pictures: curves of a run, and the staircase mask of one record."""

from collections.abc import Sequence
import contextlib
import os
import pathlib
import re

import numpy as np

from ttt_jax.batch import Batch

# Blue and orange that stay apart for every common kind of colour blindness and in grey.
TEXT, AUDIO, INK, SOFT = '#0b6bab', '#d55e00', '#1f2933', '#52606d'
TEXT_WASH, AUDIO_WASH = '#a9cfe8', '#f8d3b4'


@contextlib.contextmanager
def _picture(path: str | os.PathLike, width: float, height: float):
  """A figure of ``width`` x ``height`` inches that is written to ``path`` at the end."""
  import matplotlib
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  style = {'font.size': 10, 'axes.titlesize': 10.5, 'axes.titlelocation': 'left',
           'axes.titleweight': 'bold', 'axes.spines.top': False, 'axes.spines.right': False,
           'axes.edgecolor': SOFT, 'axes.labelcolor': SOFT, 'xtick.color': SOFT,
           'ytick.color': SOFT, 'text.color': INK, 'axes.titlecolor': INK, 'axes.grid': True,
           'grid.color': '#e4e7eb', 'axes.axisbelow': True, 'legend.frameon': False,
           'font.family': 'DejaVu Sans'}
  with matplotlib.rc_context(style):
    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(figure)
    yield figure
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=220, format='png', bbox_inches='tight', pad_inches=0.05,
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
  """One number of a run against the steps, raw and smoothed.

  Args:
    path: PNG to write.
    lines: what metrics.read gives.
    name: which number.
    title: what it is, with its unit.
    color: of the smoothed line; the raw one is lighter.
    heldout: name of the same number on held-out records, drawn as points.
    smoothed: False for what has no noise: one line.

  Returns:
    Whether there was anything to draw.
  """
  points = _points(lines, name)
  if len(points) < 2:
    return False
  step, value = points.T
  mean = smooth(value, len(value) / 20) if smoothed else value
  with _picture(path, 4.9, 3.1) as figure:
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


# -- the staircase ------------------------------------------------------------------


def staircase(path: str | os.PathLike, document: Batch, is_audio: np.ndarray,
              ranges: tuple[np.ndarray, np.ndarray], labels: Sequence[str],
              window: tuple[int, int] | None = None) -> None:
  """The mask of one document: rows are queries, columns are the keys they read.

  Args:
    path: PNG to write.
    document: the vectors [n] of one document.
    is_audio: bool [n].
    ranges: (k_start, k_end), int [n], counted from the document's first token.
    labels: what to call each token [n]; a control token stands in <>.
    window: (first, last + 1): draw only these, with a label for every token; None draws
      all, with a label for every run of text or audio.
  """
  first, end = window or (0, len(labels))
  n = end - first
  keys = np.arange(first, end)
  k_start, k_end = (np.asarray(r)[first:end, None] for r in ranges)
  allowed = (k_start <= keys) & (keys < k_end)
  ahead = allowed & (keys > keys[:, None])
  kind = np.where(ahead, 3, np.where(allowed, 1 + is_audio[first:end], 0))

  size = 6.0
  with _picture(path, size, size if window else 0.72 * size) as figure:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch
    axes = figure.add_subplot()
    axes.imshow(kind, cmap=ListedColormap(['#ffffff', TEXT_WASH, AUDIO_WASH, AUDIO]), vmin=0,
                vmax=3, interpolation='nearest', aspect='equal')
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.xaxis.tick_top()
    if window:
      _label_tokens(axes, labels[first:end], is_audio[first:end], size)
    else:
      _label_runs(axes, document, is_audio, labels)
    axes.set_xlabel('rows read (queries), columns are read (keys)')
    axes.xaxis.set_label_position('top')
    axes.set_xlim(-0.5, n - 0.5)
    axes.set_ylim(n - 0.5, -0.5)
    figure.legend(
        handles=[Patch(color=TEXT_WASH, label='text, read'),
                 Patch(color=AUDIO_WASH, label='audio, read'),
                 Patch(color=AUDIO, label='audio ahead in the same span, read')],
        loc='outside lower center', ncols=3, fontsize=9)


def _label_tokens(axes, labels: Sequence[str], is_audio: np.ndarray, size: float) -> None:
  n = len(labels)
  fontsize = min(9.0, 72 * size * 0.78 / n * 0.85)
  for axis, rotation in ((axes.xaxis, 90), (axes.yaxis, 0)):
    axis.set_ticks(range(n), labels, rotation=rotation, fontsize=fontsize)
    for tick, audio in zip(axis.get_ticklabels(), is_audio):
      tick.set_color('#a84300' if audio else '#0b5c92')
  lines = np.arange(n + 1) - 0.5
  axes.hlines(lines, -0.5, n - 0.5, color='white', linewidth=0.6)
  axes.vlines(lines, -0.5, n - 0.5, color='white', linewidth=0.6)


def _label_runs(axes, document: Batch, is_audio: np.ndarray, labels: Sequence[str]) -> None:
  n = len(labels)
  cuts = [0, *(np.flatnonzero(np.diff(np.asarray(document.span))) + 1), n]
  least = n / 20  # labels closer than this would touch
  row = -least
  ticks = []
  for start, end in zip(cuts[:-1], cuts[1:]):
    audio = bool(is_audio[start])
    color = '#a84300' if audio else '#0b5c92'
    name = (f'audio, {end - start} tokens' if audio
            else f'text, {end - start}: “{_shorten("".join(labels[start:end]))}”')
    if not ticks or start - ticks[-1] >= least:
      ticks.append(start)
    row = max((start + end - 1) / 2, row + least)
    axes.annotate(name, xy=(-0.5, (start + end - 1) / 2), xytext=(-0.04 * n, row), color=color,
                  ha='right', va='center', fontsize=8.5, annotation_clip=False,
                  arrowprops={'arrowstyle': '-', 'color': color, 'linewidth': 0.6})
    along, edge = [start - 0.5, end - 0.5], [-0.5, -0.5]
    for x, y in ((along, edge), (edge, along)):
      axes.plot(x, y, color=AUDIO if audio else TEXT, linewidth=4, solid_capstyle='butt',
                clip_on=False)
  axes.set_yticks([])
  axes.set_xticks(ticks, [str(start) for start in ticks], fontsize=8.5, rotation=90)


def _shorten(text: str, head: int = 10, tail: int = 16) -> str:
  """Without control tokens, and the middle left out if it is long."""
  text = re.sub(r'<\w+>', ' ', text).replace('␣', ' ').strip()
  return text if len(text) <= head + tail + 1 else f'{text[:head]}…{text[-tail:]}'
