"""Draws docs/images/*.svg with the package's own functions.

  python docs/pictures.py            # write docs/images
  python docs/pictures.py --check    # exit with 1 if a picture is out of date

Masks, targets, spans and counts come from ttt_jax (staircase.key_ranges, hybrid.corrupt,
span_truncation.cut, likelihood.sweep, unmasking.accept, interleave.chunks, packing.pack), so a
picture shows what the code does. The SVG is plain text. Each picture has a background of its own
and follows prefers-color-scheme, so it is readable on light and on dark pages.
"""

import argparse
import dataclasses
import html
import os
import pathlib
import sys

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from ttt_jax.config import GenerateConfig, ObjectiveConfig  # noqa: E402
from ttt_jax.data import interleave, packing, span_truncation  # noqa: E402
from ttt_jax.generate import likelihood, sampling_params, unmasking  # noqa: E402
from ttt_jax.model import staircase  # noqa: E402
from ttt_jax.objective import hybrid  # noqa: E402
from ttt_jax.tokens.batch import Batch, make_row, stack  # noqa: E402
from ttt_jax.tokens.vocab import Vocabulary  # noqa: E402

IMAGES = ROOT / 'docs' / 'images'
VOCAB = Vocabulary('bytes', 256, 'picture', 8)
CELL = 22

STYLE = """
svg { color-scheme: light dark; }
.bg { fill: #ffffff; stroke: #d1d9e0; }
text { fill: #1f2328; font: 12px ui-sans-serif, system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
.small { font-size: 10.5px; }
.head { font-weight: 600; }
.muted { fill: #59636e; }
.mid { text-anchor: middle; }
.end { text-anchor: end; }
.text { fill: #cfe2ff; stroke: #6a9be8; }
.audio { fill: #ffdcb5; stroke: #d98a36; }
.mask { fill: #59636e; stroke: #3d444d; }
.loss { fill: #c9ecd0; stroke: #3f9a58; }
.empty { fill: none; stroke: #d1d9e0; }
.gone { fill: none; stroke: #8c959f; stroke-dasharray: 2 2; }
.box { fill: #f6f8fa; stroke: #afb8c1; }
.line { stroke: #59636e; fill: none; stroke-width: 1.4; }
.tip { fill: #59636e; }
.onmask { fill: #ffffff; }
@media (prefers-color-scheme: dark) {
  .bg { fill: #161b22; stroke: #3d444d; }
  text { fill: #e6edf3; }
  .muted { fill: #9ea7b3; }
  .text { fill: #1f3a63; stroke: #5b8fdc; }
  .audio { fill: #5e3d17; stroke: #d98a36; }
  .mask { fill: #aab2bd; stroke: #d1d9e0; }
  .loss { fill: #1d4a2b; stroke: #4db36c; }
  .empty { stroke: #30363d; }
  .gone { stroke: #6e7681; }
  .box { fill: #212830; stroke: #565f69; }
  .line { stroke: #9ea7b3; }
  .tip { fill: #9ea7b3; }
  .onmask { fill: #161b22; }
}
"""


class Picture:
  """An SVG that grows; coordinates in pixels from the top left."""

  def __init__(self, width: int, height: int, title: str):
    self.width, self.height, self.title = width, height, title
    self.parts: list[str] = []

  def rect(self, x, y, w, h, kind: str, radius: float = 0) -> None:
    self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{radius:g}" '
                      f'class="{kind}"/>')

  def text(self, x, y, words: str, kind: str = '') -> None:
    self.parts.append(f'<text x="{x:g}" y="{y:g}"' + (f' class="{kind}"' if kind else '')
                      + f'>{html.escape(words)}</text>')

  def arrow(self, *points: tuple[float, float]) -> None:
    """A line through the points, with a tip at the last."""
    (x0, y0), (x1, y1) = points[-2:]
    length = max(abs(x1 - x0) + abs(y1 - y0), 1e-9)
    dx, dy = (x1 - x0) / length, (y1 - y0) / length  # lines are horizontal or vertical
    path = ' '.join(f'{x:g},{y:g}' for x, y in (*points[:-1], (x1 - 5 * dx, y1 - 5 * dy)))
    self.parts.append(f'<polyline points="{path}" class="line"/>')
    tip = [(x1, y1), (x1 - 8 * dx - 4 * dy, y1 - 8 * dy - 4 * dx),
           (x1 - 8 * dx + 4 * dy, y1 - 8 * dy + 4 * dx)]
    self.parts.append('<polygon points="' + ' '.join(f'{x:g},{y:g}' for x, y in tip)
                      + '" class="tip"/>')

  def cell(self, x, y, kind: str, label: str = '', size: float = CELL) -> None:
    self.rect(x + 1, y + 1, size - 2, size - 2, kind, 2)
    if label:
      self.text(x + size / 2, y + size / 2 + 4, label,
                'small mid onmask' if kind == 'mask' else 'small mid')

  def legend(self, x, y, entries: list[tuple[str, str, str]]) -> None:
    """(kind, label inside, words) side by side."""
    for kind, label, words in entries:
      self.cell(x, y, kind, label, 18)
      self.text(x + 23, y + 13, words, 'small muted')
      x += 34 + 6.1 * len(words)

  def svg(self) -> str:
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img">\n'
            f'<title>{html.escape(self.title)}</title>\n<style>{STYLE}</style>\n'
            f'<rect x="0.5" y="0.5" width="{self.width - 1}" height="{self.height - 1}" rx="8" '
            'class="bg"/>\n' + '\n'.join(self.parts) + '\n</svg>\n')


# -- documents -------------------------------------------------------------------------------


@dataclasses.dataclass
class Document:
  """Ids with what stands in their cells; letters are text, B and Q begin a span."""
  ids: list[int]
  labels: list[str]
  supervised: list[int]


def document(words: str, prompt: int = 0) -> Document:
  """'ab B 3 E c Q 4 L' -> text a, b, a begin token, 3 codes, their end token, and so on.

  Args:
    words: letters are text tokens; B, Q, E, L are the begin tokens and the end tokens of a chunk
      and of the last span; a number is so many codes; '.' is im_end and newline.
    prompt: how many of the first tokens are not supervised.
  """
  ids, labels = [], []
  special = {'B': VOCAB.begin_of_audio, 'Q': VOCAB.begin_of_quad, 'E': VOCAB.end_of_chunk,
             'L': VOCAB.end_of_last, 'A': VOCAB.end_of_audio}
  for word in words.split():
    if word.isdigit():
      ids += [VOCAB.code_start + i % 8 for i in range(int(word))]
      labels += ['c'] * int(word)
    elif word in special:
      ids.append(special[word])
      labels.append(word)
    elif word == '.':
      ids += [VOCAB.im_end, 10]
      labels += ['im', '\\n']
    else:
      ids += [ord(letter) for letter in word]
      labels += list(word)
  return Document(ids, labels, [int(i >= prompt) for i in range(len(ids))])


def row(documents: list[Document], length: int) -> Batch:
  """One row as a Batch [1, T]."""
  triples = [(i, np.array(d.ids, np.int32), np.array(d.supervised, np.int32))
             for i, d in enumerate(documents, 1)]
  return stack([make_row(VOCAB, triples, length)])


def kind_of(token: int) -> str:
  if token == VOCAB.mask:
    return 'mask'
  return 'audio' if VOCAB.is_audio(token) else 'text'


# -- pictures --------------------------------------------------------------------------------


def draw_staircase() -> Picture:
  """The mask of a packed row, from staircase.key_ranges."""
  documents = [document('ab B 3 E d Q 4 L e'), document('fg Q 3 L')]
  length = sum(len(d.ids) for d in documents) + 2
  labels = [label for d in documents for label in d.labels] + ['', '']
  batch = row(documents, length)
  start, end = (np.asarray(x)[0] for x in staircase.key_ranges(batch))
  left, top, size = 128, 62, 19
  picture = Picture(left + length * size + 150, top + length * size + 54,
                    'Attention mask of a packed row with two documents')
  picture.text(left, 22, 'keys', 'head')
  picture.text(16, top - 10, 'queries', 'head')
  for j in range(length):
    kind = 'empty' if not batch.document[0, j] else kind_of(batch.token[0, j])
    picture.cell(left + j * size, top - 26, kind, labels[j], size)
    picture.cell(left - 26, top + j * size, kind, labels[j], size)
    for i in range(length):
      allowed = start[i] <= j < end[i]
      shade = ('text' if j <= i else 'audio') if allowed else 'empty'
      picture.rect(left + j * size + 1, top + i * size + 1, size - 2, size - 2, shade, 1)
  x = left + length * size + 22
  picture.text(x, top - 10, 'k_start', 'small head')
  picture.text(x + 56, top - 10, 'k_end', 'small head')
  for i in range(length):
    picture.text(x + 26, top + i * size + 14, str(start[i]), 'small mid')
    picture.text(x + 76, top + i * size + 14, str(end[i]), 'small mid')
  at = 0
  for number, d in enumerate(documents, 1):
    picture.text(left - 36, top + (at + len(d.ids) / 2) * size + 4, f'document {number}',
                 'small muted end')
    at += len(d.ids)
  picture.text(left - 36, top + (length - 1) * size + 4, 'padding', 'small muted end')
  picture.legend(left - 40, top + length * size + 20, [
      ('text', '', 'causal: j <= i'), ('audio', '', 'later keys of the same audio span'),
      ('empty', '', 'not read')])
  return picture


OBJECTIVE = ObjectiveConfig(banom=0.0, ppm=0.0)


def noisy(batch: Batch, config: ObjectiveConfig, wanted) -> hybrid.Targets:
  """The targets of the first seed for which ``wanted`` holds: an instructive draw."""
  for seed in range(1000):
    found = jax.tree.map(np.asarray, hybrid.corrupt(batch, VOCAB, config, jax.random.key(seed)))
    if wanted(found):
      return found
  raise AssertionError('no such draw')


def draw_objective() -> Picture:
  """Inputs and targets of one document, from hybrid.corrupt."""
  d = document('ab de B 4 E fg Q 5 L .', prompt=2)
  batch = row([d], len(d.ids))
  end = d.labels.index('E')
  found = noisy(batch, OBJECTIVE, lambda t: t.masked[0, end] and 4 <= t.masked.sum() <= 6
                and t.masked[0, end + 3:].sum() >= 2)
  n = len(d.ids)
  left, top = 168, 44
  picture = Picture(left + n * CELL + 24, top + 5 * 46 + 48,
                    'Noisy input and targets of one document')
  rows = ('clean tokens', 'noisy input', 'AR target: x[i+1]', 'diffusion target: x[i]',
          'weight in the loss')
  for r, name in enumerate(rows):
    picture.text(16, top + r * 46 + 15, name, 'head')
  picture.text(left, 26, 'prompt', 'small muted')
  picture.text(left + 2 * CELL + 4, 26, 'supervised tokens', 'small muted')
  for i in range(n):
    x = left + i * CELL
    picture.cell(x, top, kind_of(d.ids[i]), d.labels[i])
    token = int(found.token[0, i])
    picture.cell(x, top + 46, kind_of(token), 'M' if token == VOCAB.mask else d.labels[i])
    ar, own = found.next_weight[0, i] > 0, found.self_weight[0, i] > 0
    picture.cell(x, top + 92, 'loss' if ar else 'empty', d.labels[i + 1] if ar else '')
    picture.cell(x, top + 138, 'loss' if own else 'empty', d.labels[i] if own else '')
    for number, weight in ((0, found.next_weight[0, i]), (1, found.self_weight[0, i])):
      if weight > 0:
        picture.text(x + CELL / 2, top + 184 + 14 * number + 10,
                     f'{weight:.2f}'.lstrip('0'), 'small mid' + (' muted' if number else ''))
  rate = float(found.rate[0, 0])
  masked, maskable = int(found.masked.sum()), int(found.maskable.sum())
  targets = int((found.next_weight > 0).sum())
  picture.text(16, top + 5 * 46 + 12,
               f'p = {rate:.2f}; {masked} of {maskable} maskable tokens are masked.',
               'small muted')
  picture.text(16, top + 5 * 46 + 30,
               f'Weights: 1/{targets} for each text target (upper line), 1/(p * {maskable}) for '
               'each masked token (lower line).', 'small muted')
  return picture


def draw_strategies() -> Picture:
  """BANOM, PPM and SST on one document, from hybrid.corrupt and span_truncation.cut."""
  d = document('abd B 4 E ef B 4 E gh Q 12 L .')
  n = len(d.ids)
  batch = row([d], n)
  base = noisy(batch, OBJECTIVE, lambda t: 0.45 < t.rate[0, 0] < 0.7 and t.masked[0, 4:9].any()
               and t.masked[0, 12:17].any() and t.masked[0, -3])
  seed = next(s for s in range(1000) if np.array_equal(
      np.asarray(hybrid.corrupt(batch, VOCAB, OBJECTIVE, jax.random.key(s)).masked), base.masked))

  def ppm(s):
    return jax.tree.map(np.asarray, hybrid.corrupt(
        batch, VOCAB, dataclasses.replace(OBJECTIVE, ppm=1.0), jax.random.key(s)))
  # The draw that keeps one span clean, with masks in the others.
  keep = next(s for s in range(1000) if not ppm(s).maskable[0, 4:9].any()
              and ppm(s).masked[0, 12:17].sum() >= 2 and 0.4 < ppm(s).rate[0, 0] < 0.7)
  cut = span_truncation.cut(batch, VOCAB, 1.0, np.array([[0.0], [0.55]]))
  shorter = jax.tree.map(np.asarray, hybrid.corrupt(cut, VOCAB, OBJECTIVE, jax.random.key(seed)))
  cases = [
      ('none', 'AR + diffusion', base, batch),
      ('BANOM', 'AR only', jax.tree.map(np.asarray, hybrid.corrupt(
          batch, VOCAB, dataclasses.replace(OBJECTIVE, banom=1.0), jax.random.key(seed))), batch),
      ('PPM', 'AR + diffusion', ppm(keep), batch),
      ('SST', 'AR + diffusion', shorter, cut)]
  left, top, size, step = 130, 40, 20, 58
  picture = Picture(left + n * size + 24, top + step * 4 + 34,
                    'The three training strategies on one document')
  for r, (name, terms, found, rows) in enumerate(cases):
    y = top + r * step
    picture.text(16, y + 13, name, 'head')
    picture.text(16, y + 29, terms, 'small muted')
    for i in range(n):
      x = left + i * size
      if not rows.document[0, i]:
        picture.cell(x, y, 'gone', '', size)
        continue
      token = int(found.token[0, i])
      picture.cell(x, y, kind_of(token), 'M' if token == VOCAB.mask else d.labels[i], size)
      if found.maskable[0, i]:
        picture.rect(x + 1, y + size + 2, size - 2, 4, 'loss', 1)
  picture.text(left, 24, 'Input of the model. A green bar marks the tokens that may be masked.',
               'small muted')
  picture.legend(left, top + 4 * step, [('text', 'a', 'text'), ('audio', 'c', 'audio'),
                                        ('mask', 'M', 'mask'), ('gone', '', 'removed by SST')])
  return picture


def draw_bound() -> Picture:
  """One sweep of the likelihood bound, from likelihood.sweep."""
  length = 9
  span = np.arange(length) % 8 + VOCAB.code_start
  span[-1] = VOCAB.end_of_chunk
  made = likelihood.sweep(span.astype(np.int32), VOCAB.mask, 64, np.random.default_rng(3))
  left, top = 120, 52
  picture = Picture(640, top + length * 26 + 44, 'Mask patterns of the likelihood bound')
  picture.text(16, 24, 'One row per number of masked tokens k, all computed in one batch.',
               'small muted')
  picture.text(left, 44, 'span', 'small head')
  picture.text(left + length * CELL + 26, 44, 'term of the sum', 'small head')
  for r in range(length):
    y = top + r * 26
    k = int(made.masked[r].sum())
    picture.text(left - 14, y + 15, f'k = {k}', 'end')
    for i in range(length):
      masked = bool(made.masked[r, i])
      picture.cell(left + i * CELL, y, 'mask' if masked else 'audio',
                   'M' if masked else ('E' if i == length - 1 else 'c'))
    picture.text(left + length * CELL + 26, y + 15,
                 f'mean of -log p over {k} masked token' + ('s' if k > 1 else ''), 'small')
  picture.text(16, top + length * 26 + 26,
               f'The bound is the sum of the {length} rows. Its expectation is the average '
               'negative log-likelihood over all orders.', 'small muted')
  return picture


def simulate(config: GenerateConfig, blocks: list[str], seed: int) -> list[tuple[str, list[str]]]:
  """Block-wise unmasking with made-up confidences; the commits are unmasking.accept's.

  Args:
    config: block, steps and rule.
    blocks: what the model chooses at each position, 'c' or 'E', one string per block.
    seed: of the confidences.

  Returns:
    (caption, labels of the open span) after every step.
  """
  rng = np.random.default_rng(seed)
  policy = sampling_params.make([config], [0])
  done: list[str] = []
  frames = []
  for number, chosen in enumerate(blocks, 1):
    now = ['M'] * len(chosen)
    frames.append((f'block {number}', done + now))
    for step in range(config.steps):
      masked = np.array([[label == 'M' for label in now]])
      confidence = rng.uniform(0.2, 0.9, (1, len(now))).astype(np.float32)
      take = np.asarray(unmasking.accept(
          policy, confidence, confidence, np.zeros_like(confidence), masked,
          np.array([len(now)]), np.array([step])))[0]
      now = [chosen[i] if take[i] else label for i, label in enumerate(now)]
      frames.append((f'step {step + 1}', done + now))
      if 'E' in now and 'M' not in now[:now.index('E')]:
        done += now[:now.index('E') + 1]
        frames.append(('closed', done))
        return frames
      if 'M' not in now:
        break
    done += now
  return frames


def draw_decoding() -> Picture:
  """A span of two blocks, from the first mask to its end token."""
  config = GenerateConfig(block=8, steps=4)
  # A draw in which the second block is done one step early.
  frames = next(frames for frames in (simulate(config, ['cccccccc', 'cccEcccc'], seed)
                                      for seed in range(100)) if len(frames) == 10)
  prefix = ['a', 'b', 'd', 'B']
  width = len(prefix) + 16
  left, top, size = 92, 40, 24
  picture = Picture(left + (width + 1) * size + 150, top + len(frames) * 28 + 48,
                    'Block-wise decoding of an audio span')
  picture.text(left, 26, 'cached', 'small head')
  picture.text(left + 3.3 * size, 26, 'computed at every step: begin token and open span',
               'small head')
  before: list[str] = []
  for r, (caption, labels) in enumerate(frames):
    y = top + r * 28
    picture.text(16, y + 16, caption, 'head' if caption.startswith(('block', 'closed')) else '')
    for i, label in enumerate(prefix):
      picture.cell(left + (i + 0.3 * (label == 'B')) * size, y, 'text', label, size)
    for i in range(16):
      x = left + (len(prefix) + 0.3 + i) * size
      if i >= len(labels):
        if caption == 'closed' or r and i < len(before):
          picture.cell(x, y, 'gone', '', size)
        continue
      fresh = i < len(before) and before[i] == 'M' and labels[i] != 'M'
      kind = 'mask' if labels[i] == 'M' else 'loss' if fresh and caption != 'closed' else 'audio'
      picture.cell(x, y, kind, labels[i], size)
    if caption == 'closed':
      picture.text(left + (len(prefix) + 16.6) * size, y + 16, 'back to text')
    before = labels
  picture.legend(left, top + len(frames) * 28 + 18, [
      ('mask', 'M', 'mask'), ('loss', 'c', 'committed in this step'),
      ('audio', 'c', 'committed before'), ('gone', '', 'discarded')])
  return picture


def draw_schedules() -> Picture:
  """Tokens committed per step, from unmasking.scheduled."""
  block, steps = 26, 10
  cases = [('linear', GenerateConfig(block=block, steps=steps)),
           ('shifted, shift = 0.5', GenerateConfig(block=block, steps=steps, schedule='shifted')),
           ('shifted, shift = 2', GenerateConfig(block=block, steps=steps, schedule='shifted',
                                                 shift=2.0))]
  picture = Picture(720, 190, 'Tokens committed per step by schedule')
  picture.text(16, 24, f'Tokens committed in each of {steps} steps, block of {block} masks',
               'small muted')
  for c, (name, config) in enumerate(cases):
    left, base = 24 + c * 232, 156
    policy = sampling_params.make([config], [0])
    masked = block
    picture.text(left, 48, name, 'head')
    for step in range(steps):
      count = int(unmasking.scheduled(policy, np.array([block]), np.array([masked]),
                                      np.array([step]))[0])
      count = min(count, masked)
      masked -= count
      picture.rect(left + step * 20, base - count * 14, 16, count * 14, 'audio', 1)
      picture.text(left + step * 20 + 8, base - count * 14 - 4, str(count), 'small mid')
      picture.text(left + step * 20 + 8, base + 14, str(step + 1), 'small mid muted')
    assert masked == 0, name
  return picture


def draw_interleaving() -> Picture:
  """An answer dealt into chunks, from interleave.chunks."""
  text, codes = 30, 90
  pairs = interleave.chunks(list(range(text)), list(range(codes)))
  scale, left, y = 4.6, 16, 56
  picture = Picture(700, 128, 'Interleaving of text and audio')
  picture.text(16, 24, f'{text} text tokens and {codes} audio codes; text_chunk = 13, '
               'audio_chunk = 26', 'small muted')
  x = left
  for i, (words, speech) in enumerate(pairs):
    last = i == len(pairs) - 1
    picture.rect(x, y, max(len(words) * scale, 16), 30, 'text', 2)
    picture.text(x + max(len(words) * scale, 16) / 2, y + 19, str(len(words)), 'small mid')
    x += max(len(words) * scale, 16) + 2
    picture.cell(x, y + 4, 'text', 'Q' if last else 'B')
    x += CELL + 2
    picture.rect(x, y, len(speech) * scale, 30, 'audio', 2)
    picture.text(x + len(speech) * scale / 2, y + 19, str(len(speech)), 'small mid')
    x += len(speech) * scale + 2
    picture.cell(x, y + 4, 'audio', 'L' if last else 'E')
    x += CELL + 6
  picture.width = int(x + 12)
  picture.text(16, y + 54, 'B: begin_of_audio, E: end_of_audio_new, Q: begin_of_quad, '
               'L: end_of_audio_span_last', 'small muted')
  return picture


def draw_packing() -> Picture:
  """Documents in rows, from packing.pack."""
  rng = np.random.default_rng(5)
  lengths = rng.integers(150, 1500, 16)
  packed = packing.pack(lengths.tolist(), 2048)
  scale, left, top = 0.3, 60, 44
  picture = Picture(int(left + 2048 * scale + 24), top + len(packed.rows) * 34 + 34,
                    'Documents packed into rows')
  picture.text(16, 24, f'{len(lengths)} documents in {len(packed.rows)} rows of 2,048 tokens; '
               f'padding {packed.padding:.1%}', 'small muted')
  for r, members in enumerate(packed.rows):
    y, x = top + r * 34, left
    picture.text(16, y + 18, f'row {r}')
    picture.rect(left, y, 2048 * scale, 26, 'empty', 2)
    for i in members:
      picture.rect(x, y, lengths[i] * scale - 2, 26, 'text', 2)
      picture.text(x + lengths[i] * scale / 2, y + 17, f'{lengths[i]:,}', 'small mid')
      x += lengths[i] * scale
  picture.text(left, top + len(packed.rows) * 34 + 14,
               'Tokens read keys of their own document only, so packing changes neither losses nor '
               'gradients.', 'small muted')
  return picture


def draw_architecture() -> Picture:
  """The path of a batch, and of a request."""
  picture = Picture(806, 462, 'Data flow of training and generation')
  width, height, gap = 152, 56, 50

  def box(x, y, title, words, kind='box'):
    picture.rect(x, y, width, height, kind, 6)
    picture.text(x + width / 2, y + 23, title, 'mid head')
    picture.text(x + width / 2, y + 41, words, 'mid small muted')

  def label(x, y, words):
    picture.text(x, y, words, 'small muted mid')

  column = lambda i: 24 + i * (width + gap)
  along = lambda i, y, words: (
      picture.arrow((column(i) + width + 2, y + height / 2), (column(i + 1) - 2, y + height / 2)),
      label(column(i) + width + gap / 2, y + height / 2 - 7, words))

  picture.text(24, 30, 'Preparation', 'head')
  box(column(0), 42, 'records', 'text, audio files, codes', 'text')
  along(0, 42, '')
  box(column(1), 42, 'codec, tokenizer', 'audio to codes, text to ids')
  along(1, 42, '')
  box(column(2), 42, 'interleave', 'documents of ids')
  along(2, 42, '')
  box(column(3), 42, 'pack', 'rows of seq_len tokens')

  picture.text(24, 150, 'Training step', 'head')
  box(column(3), 162, 'loader', 'batch, SST')
  picture.arrow((column(3) + width / 2, 42 + height + 2), (column(3) + width / 2, 160))
  label(column(3) + width / 2 + 42, 134, 'prepared set')
  box(column(2), 162, 'corrupt', 'masks, BANOM, PPM')
  box(column(1), 162, 'transformer', 'staircase attention')
  box(column(0), 162, 'losses', 'AR + diffusion')
  for i in (3, 2, 1):
    picture.arrow((column(i) - 2, 162 + height / 2), (column(i - 1) + width + 2, 162 + height / 2))
  box(column(0), 262, 'optimizer', 'gradients, update')
  picture.arrow((column(0) + width / 2, 162 + height + 2), (column(0) + width / 2, 260))
  box(column(1), 262, 'checkpoint', 'Orbax, checksums', 'loss')
  along(0, 262, '')
  picture.arrow((column(0) + width / 2 + 50, 260), (column(0) + width / 2 + 50, 240),
                (column(1) + width / 2, 240), (column(1) + width / 2, 162 + height + 2))
  label(column(0) + width + 36, 254, 'parameters')
  box(column(2), 262, 'export-hf', 'PyTorch, PEFT')
  along(1, 262, '')

  picture.text(24, 372, 'Generation', 'head')
  box(column(0), 384, 'prompt', 'text, audio', 'text')
  box(column(1), 384, 'engine', 'KV cache, slots')
  box(column(2), 384, 'text tokens', 'sampled one by one', 'text')
  box(column(3), 384, 'speech', 'unmasked block-wise', 'audio')
  along(0, 384, '')
  along(1, 384, '')
  picture.arrow((column(1) + width / 2, 262 + height + 2), (column(1) + width / 2, 382))
  label(column(1) + width / 2 + 36, 354, 'weights')
  picture.arrow((column(2) + width + 2, 384 + height / 2), (column(3) - 2, 384 + height / 2))
  return picture


PICTURES = {
    'staircase': draw_staircase, 'objective': draw_objective, 'strategies': draw_strategies,
    'bound': draw_bound, 'decoding': draw_decoding, 'schedules': draw_schedules,
    'interleaving': draw_interleaving, 'packing': draw_packing,
    'architecture': draw_architecture,
}


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--check', action='store_true', help='compare instead of writing')
  args = parser.parse_args()
  IMAGES.mkdir(exist_ok=True)
  old = []
  for name, draw in PICTURES.items():
    path, svg = IMAGES / f'{name}.svg', draw().svg()
    if not args.check:
      path.write_text(svg, encoding='utf-8')
    elif not path.is_file() or path.read_text(encoding='utf-8') != svg:
      old.append(path.name)
  if old:
    print(f'out of date: {", ".join(old)}; run `python docs/pictures.py`.', file=sys.stderr)
  return 1 if old else 0


if __name__ == '__main__':
  sys.exit(main())
