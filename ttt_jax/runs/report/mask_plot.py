"""The staircase mask of a real record as a picture: rows are queries, columns are keys."""

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

TEXT_WASH, AUDIO_WASH = '#a9cfe8', '#f8d3b4'  # cells
TEXT_INK, AUDIO_INK = '#0b5c92', '#a84300'    # letters: dark enough to read on white


def draw(data: pathlib.Path, config: Config, whole: pathlib.Path, part: pathlib.Path) -> int:
  """Draw one training record of a prepared set: all of it, and a part token by token.

  Args:
    data: the prepared set.
    config: of the run; its objective decides the mask.
    whole: PNG of the whole record to write.
    part: PNG of the enlarged part to write.

  Returns:
    The record's tokens; 0 if no record near the start of the set speaks.
  """
  document, vocab = _shortest_spoken(data, config)
  if document is None:
    return 0
  is_audio = np.asarray(vocab.is_audio(document.token))
  reads = ranges(document, config)
  labels = token_labels(document.token, vocab, tokenizers.create(config.vocab))
  picture(whole, document, is_audio, reads, labels)
  picture(part, document, is_audio, reads, labels, _window(document, is_audio))
  return len(labels)


def _shortest_spoken(data: pathlib.Path, config: Config):
  """The shortest of some training documents that hear and speak (or only speak)."""
  vocab = Vocabulary(**store.read_manifest(data)['vocabulary'])
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


def _window(document: Batch, is_audio: np.ndarray, most: int = 64) -> tuple[int, int]:
  """At most ``most`` tokens from a little before the first spoken span to just after it."""
  spoken = np.flatnonzero(is_audio & (document.supervised > 0))
  last = np.flatnonzero(document.span == document.span[spoken[0]])[-1]
  end = min(len(is_audio), last + 7)
  start = max(0, spoken[0] - 10)
  return (start, end) if end - start <= most else (start, start + most)


def ranges(document: Batch, config: Config) -> tuple[np.ndarray, np.ndarray]:
  """(k_start, k_end), int [n] each, of one document's vectors [n]."""
  found = staircase.key_ranges(Batch(*(v[None] for v in document)), config.objective.mode,
                               config.objective.prompt_audio)
  return tuple(np.asarray(r[0]) for r in found)


def draw_document(path: pathlib.Path, document: Batch, vocab: Vocabulary,
                  text: tokenizers.Tokenizer, config: Config) -> None:
  """The whole mask of one document, as ``picture`` draws it."""
  picture(path, document, np.asarray(vocab.is_audio(document.token)), ranges(document, config),
          token_labels(document.token, vocab, text))


def token_labels(tokens: np.ndarray, vocab: Vocabulary, text: tokenizers.Tokenizer) -> list[str]:
  """What to call each token: its text, its code, or its name in <>."""
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


def picture(path: str | os.PathLike, document: Batch, is_audio: np.ndarray,
            reads: tuple[np.ndarray, np.ndarray], labels: Sequence[str],
            window: tuple[int, int] | None = None) -> None:
  """The mask of one document: rows are queries, columns are the keys they read.

  Args:
    path: PNG to write.
    document: the vectors [n] of one document.
    is_audio: bool [n].
    reads: (k_start, k_end), int [n], counted from the document's first token.
    labels: what to call each token [n]; a control token stands in <>.
    window: (first, last + 1): draw only these, with a label for every token; None draws
      all, with a label for every run of text or audio.
  """
  first, end = window or (0, len(labels))
  n = end - first
  keys = np.arange(first, end)
  k_start, k_end = (np.asarray(r)[first:end, None] for r in reads)
  allowed = (k_start <= keys) & (keys < k_end)
  ahead = allowed & (keys > keys[:, None])
  kind = np.where(ahead, 3, np.where(allowed, 1 + is_audio[first:end], 0))

  size = 6.0
  with plots.picture(path, size, size if window else 0.72 * size) as figure:
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
    axes.set_xlabel('rows read (queries), columns are read (keys)')
    axes.xaxis.set_label_position('top')
    axes.set_xlim(-0.5, n - 0.5)
    axes.set_ylim(n - 0.5, -0.5)
    figure.legend(
        handles=[Patch(color=TEXT_WASH, label='text, read'),
                 Patch(color=AUDIO_WASH, label='audio, read'),
                 Patch(color=plots.AUDIO, label='audio ahead in the same span, read')],
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
  least = n / 20  # labels closer than this would touch
  row = -least
  ticks = []
  for start, end in zip(cuts[:-1], cuts[1:]):
    audio = bool(is_audio[start])
    color = AUDIO_INK if audio else TEXT_INK
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
      axes.plot(x, y, color=plots.AUDIO if audio else plots.TEXT, linewidth=4,
                solid_capstyle='butt', clip_on=False)
  axes.set_yticks([])
  axes.set_xticks(ticks, [str(start) for start in ticks], fontsize=8.5, rotation=90)


def _shorten(text: str, head: int = 10, tail: int = 16) -> str:
  """Without control tokens, and the middle left out if it is long."""
  text = re.sub(r'<\w+>', ' ', text).replace('␣', ' ').strip()
  return text if len(text) <= head + tail + 1 else f'{text[:head]}…{text[-tail:]}'
