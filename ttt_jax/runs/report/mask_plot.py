"""Plots of the staircase mask of a record: rows are queries, columns are keys."""

from collections.abc import Sequence
import os
import pathlib
import re

import numpy as np

from ttt_jax.config import Config
from ttt_jax.data import store
from ttt_jax.model import staircase
from ttt_jax.runs.report import plots
from ttt_jax.tokens import tokenizer as tokenizers
from ttt_jax.tokens.batch import Batch
from ttt_jax.tokens.vocab import Vocabulary

TEXT_WASH, AUDIO_WASH = '#a9cfe8', '#f8d3b4'  # of cells
TEXT_INK, AUDIO_INK = '#0b5c92', '#a84300'    # of labels: readable on white


def draw(data: pathlib.Path, config: Config, full: pathlib.Path, detail: pathlib.Path) -> int:
  """Plot one training record of prepared data: the full mask, and a part of it token by token.

  Args:
    data: folder of the prepared data.
    config: of the run; its objective determines the mask.
    full: PNG of the full mask.
    detail: PNG of the enlarged part.

  Returns:
    The number of tokens of the record; 0 if no record near the start has spoken output.
  """
  document, vocab = _shortest_spoken(data, config)
  if document is None:
    return 0
  is_audio = np.asarray(vocab.is_audio(document.token))
  reads = ranges(document, config)
  labels = token_labels(document.token, vocab, tokenizers.create(config.vocab))
  plot(full, document, is_audio, reads, labels)
  plot(detail, document, is_audio, reads, labels, _window(document, is_audio))
  return len(labels)


def _shortest_spoken(data: pathlib.Path, config: Config):
  """(document, vocabulary): the shortest of some training documents with audio input and output,
  or else with audio output; None if there is none."""
  vocab = Vocabulary.from_dict(store.read_manifest(data)['vocabulary'])
  rows = store.Rows(data, next(iter(config.data.stages[-1].splits())))
  best, least = None, None
  for i in range(min(len(rows), 16)):
    row = rows[i]
    for number in np.unique(row.document[row.document > 0]):
      document = Batch(*(values[row.document == number] for values in row))
      spoken = (document.span > 0) & (document.supervised > 0)
      heard = (document.span > 0) & (document.supervised == 0)
      rank = (not heard.any(), len(document.token))
      if spoken.any() and (least is None or rank < least):
        best, least = document, rank
  return best, vocab


def _window(document: Batch, is_audio: np.ndarray, limit: int = 64) -> tuple[int, int]:
  """(first, end) of at most ``limit`` tokens around the first spoken span."""
  spoken = np.flatnonzero(is_audio & (document.supervised > 0))
  last = np.flatnonzero(document.span == document.span[spoken[0]])[-1]
  end = min(len(is_audio), last + 7)
  start = max(0, spoken[0] - 10)
  return (start, end) if end - start <= limit else (start, start + limit)


def ranges(document: Batch, config: Config) -> tuple[np.ndarray, np.ndarray]:
  """(k_start, k_end) of the staircase, int [n] each, of one document's vectors [n]."""
  k_start, k_end = staircase.key_ranges(Batch(*(v[None] for v in document)),
                                        config.objective.mode, config.objective.prompt_audio)
  return np.asarray(k_start[0]), np.asarray(k_end[0])


def draw_document(path: pathlib.Path, document: Batch, vocab: Vocabulary,
                  text: tokenizers.Tokenizer, config: Config) -> None:
  """Plot the full mask of one document, as ``plot`` draws it."""
  plot(path, document, np.asarray(vocab.is_audio(document.token)), ranges(document, config),
          token_labels(document.token, vocab, text))


def token_labels(tokens: np.ndarray, vocab: Vocabulary, text: tokenizers.Tokenizer) -> list[str]:
  """Label of each token: its text, its audio code, or the name of a control token in <>."""
  labels = []
  for token in tokens.tolist():
    name = vocab.name(token)
    if name is None:
      label = text.decode([token]).replace(' ', '␣').replace('\n', '⏎')
    elif vocab.is_code(token):
      label = str(token - vocab.code_start)
    else:
      label = f'<{name.removeprefix("<|").removesuffix("|>")}>'
    labels.append(label)
  return labels


def plot(path: str | os.PathLike, document: Batch, is_audio: np.ndarray,
            reads: tuple[np.ndarray, np.ndarray], labels: Sequence[str],
            window: tuple[int, int] | None = None) -> None:
  """Plot the mask of one document: rows are queries, columns are keys.

  Args:
    path: PNG to write.
    document: the vectors [n] of one document.
    is_audio: bool [n].
    reads: (k_start, k_end), int [n], relative to the document's first token.
    labels: of each token [n], from ``token_labels``.
    window: (first, last + 1): plot only these tokens, with a label for each; None plots all,
      with a label for each run of text or audio.
  """
  first, end = window or (0, len(labels))
  n = end - first
  keys = np.arange(first, end)
  k_start, k_end = (np.asarray(r)[first:end, None] for r in reads)
  allowed = (k_start <= keys) & (keys < k_end)
  ahead = allowed & (keys > keys[:, None])
  kind = np.where(ahead, 3, np.where(allowed, 1 + is_audio[first:end], 0))

  size = 6.0
  with plots.figure_file(path, size, size if window else 0.72 * size) as figure:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch
    axes = figure.add_subplot()
    colors = ListedColormap(['#ffffff', TEXT_WASH, AUDIO_WASH, plots.AUDIO])
    axes.imshow(kind, cmap=colors, vmin=0, vmax=3, interpolation='nearest', aspect='equal')
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.xaxis.tick_top()
    if window:
      _label_tokens(axes, labels[first:end], is_audio[first:end], size)
    else:
      _label_runs(axes, document, is_audio, labels)
    axes.set_xlabel('rows: queries, columns: keys')
    axes.xaxis.set_label_position('top')
    axes.set_xlim(-0.5, n - 0.5)
    axes.set_ylim(n - 0.5, -0.5)
    figure.legend(
        handles=[Patch(color=TEXT_WASH, label='text key, attended'),
                 Patch(color=AUDIO_WASH, label='audio key, attended'),
                 Patch(color=plots.AUDIO, label='later audio of the same span, attended')],
        loc='outside lower center', ncols=3, fontsize=9)


def _label_tokens(axes, labels: Sequence[str], is_audio: np.ndarray, size: float) -> None:
  n = len(labels)
  fontsize = min(9.0, 72 * size * 0.78 / n * 0.85)
  for axis, rotation in ((axes.xaxis, 90), (axes.yaxis, 0)):
    axis.set_ticks(range(n), labels, rotation=rotation, fontsize=fontsize)
    for tick, audio in zip(axis.get_ticklabels(), is_audio):
      tick.set_color(AUDIO_INK if audio else TEXT_INK)
  lines = np.arange(n + 1) - 0.5
  axes.hlines(lines, -0.5, n - 0.5, color='white', linewidth=0.6)
  axes.vlines(lines, -0.5, n - 0.5, color='white', linewidth=0.6)


def _label_runs(axes, document: Batch, is_audio: np.ndarray, labels: Sequence[str]) -> None:
  n = len(labels)
  cuts = [0, *(np.flatnonzero(np.diff(np.asarray(document.span))) + 1), n]
  spacing = n / 20  # labels closer than this would overlap
  row = -spacing
  ticks = []
  for start, end in zip(cuts[:-1], cuts[1:]):
    audio = bool(is_audio[start])
    color = AUDIO_INK if audio else TEXT_INK
    name = (f'audio, {end - start} tokens' if audio
            else f'text, {end - start}: “{_shorten("".join(labels[start:end]))}”')
    if not ticks or start - ticks[-1] >= spacing:
      ticks.append(start)
    row = max((start + end - 1) / 2, row + spacing)
    axes.annotate(name, xy=(-0.5, (start + end - 1) / 2), xytext=(-0.04 * n, row), color=color,
                  ha='right', va='center', fontsize=8.5, annotation_clip=False,
                  arrowprops={'arrowstyle': '-', 'color': color, 'linewidth': 0.6})
    along, edge = [start - 0.5, end - 0.5], [-0.5, -0.5]
    for x, y in ((along, edge), (edge, along)):
      axes.plot(x, y, color=plots.AUDIO if audio else plots.TEXT, linewidth=4,
                solid_capstyle='butt', clip_on=False)
  axes.set_yticks([])
  axes.set_xticks(ticks, [str(start) for start in ticks], fontsize=8.5, rotation=90)


def _shorten(text: str, head: int = 10, tail: int = 16) -> str:
  """Remove control tokens, and the middle of a long text."""
  text = re.sub(r'<\w+>', ' ', text).replace('␣', ' ').strip()
  return text if len(text) <= head + tail + 1 else f'{text[:head]}…{text[-tail:]}'
