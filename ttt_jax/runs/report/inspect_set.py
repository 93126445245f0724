"""`ttt-jax inspect`: a document as the model sees it, and a summary of the prepared data.

n = tokens of a document.
"""

import base64
import html
import os
import pathlib
import re
import tempfile
from typing import Any, Iterator

import numpy as np

from ttt_jax.audio import codec as codecs, io
from ttt_jax.config import Config
from ttt_jax.data import store
from ttt_jax.errors import UserError
from ttt_jax.runs.report import mask_plot, plots
from ttt_jax.storage import files, owned, schema
from ttt_jax.tokens import tokenizer as tokenizers
from ttt_jax.tokens.batch import Batch
from ttt_jax.tokens.vocab import Vocabulary

FOLDER = 'inspect'
PAGE = 'set.html'
_NAME = re.compile(r'.+-(mask\.png|(in|out)put\.wav)|set\.html')
_TEXT, _AUDIO, _CONTROL, _LEARNED = 'blue', 'dark_orange3', 'bright_black', 'bold'


class Reader:
  """Decodes documents: vocabulary, tokenizer and codec."""

  def __init__(self, config: Config, codec: codecs.Codec, vocab: Vocabulary | None = None):
    """``vocab`` of None is built from the config's tokenizer and the codec."""
    self.config, self.codec = config, codec
    self.decode_error = ''  # why the last codes could not be decoded
    self.tokenizer = tokenizers.create(config.vocab)
    self.vocab = vocab or Vocabulary(self.tokenizer.name, self.tokenizer.ranks, codec.name,
                                     codec.codebook_size)

  def runs(self, document: Batch) -> Iterator[tuple[slice, bool]]:
    """(slice, whether it is audio) of every maximal run of text or audio."""
    audio = np.asarray(self.vocab.is_audio(document.token))
    cuts = [0, *(np.flatnonzero(np.diff(document.span)) + 1).tolist(), len(audio)]
    for start, stop in zip(cuts[:-1], cuts[1:]):
      yield slice(start, stop), bool(audio[start])

  def sound(self, tokens: np.ndarray) -> np.ndarray | None:
    """The audio codes among ``tokens`` as a waveform; None if they cannot be decoded, with the
    reason in ``decode_error``."""
    try:
      return self.codec.sound(self.vocab.decode_codes(tokens))
    except UserError as error:
      self.decode_error = str(error)
      return None


class PreparedSet(Reader):
  """The prepared data of a workdir."""

  def __init__(self, config: Config, workdir: str | os.PathLike):
    self.folder = store.locate(workdir, config.data.path)
    self.manifest = store.read_manifest(self.folder)
    super().__init__(config, codecs.load(self.folder / 'codec', config.codec),
                     Vocabulary.from_dict(self.manifest['vocabulary']))

  def documents(self, split: str) -> Iterator[tuple[int, Batch]]:
    """(number, vectors [n]) of every document of a split, in the order of the rows."""
    known = sorted(self.manifest['splits'])
    if split not in known:
      raise UserError(f'--split is {split!r}; {self.folder} has {", ".join(known)}.')
    rows = store.Rows(self.folder, split)
    for i in range(len(rows)):
      row = rows[i]
      for number in np.unique(row.document[row.document > 0]):
        yield int(number), Batch(*(values[row.document == number] for values in row))

  def document(self, split: str, number: int | None) -> tuple[int, Batch]:
    """One document; a number of None selects the first with spoken output, or else the first.

    Raises:
      UserError: no such split or document.
    """
    first = None
    for found, document in self.documents(split):
      first = first or (found, document)
      if found == number or number is None and ((document.span > 0)
                                                & (document.supervised > 0)).any():
        return found, document
    if number is None and first:
      return first
    raise UserError(f'--document is {number}; split {split!r} of {self.folder} has no '
                    'such document.')


def show(dataset: PreparedSet, split: str, number: int | None, out: pathlib.Path | None,
         ids: bool = False) -> str:
  """One document of the prepared data as text; see ``describe``.

  Args:
    dataset: where it is.
    split, number: as ``PreparedSet.document``.
    out, ids: as ``describe``.
  """
  number, document = dataset.document(split, number)
  return describe(dataset, document, f'document {number} of split {split}', str(number), out, ids)


def describe(reader: Reader, document: Batch, title: str, name: str, out: pathlib.Path | None,
             ids: bool = False) -> str:
  """A document as coloured text; its mask (PNG) and audio (WAV) are written to ``out``.

  Args:
    reader: decodes the document.
    document: its vectors [n].
    title: its name in the text.
    name: prefix of the file names.
    out: folder; None writes nothing.
    ids: list every token: position, id, attended positions, loss.

  Returns:
    Text with rich's markup, for ``print_markup``.
  """
  from rich.markup import escape
  gap = ' ' if len(title) < 35 else '\n'  # 80 columns
  lines = [f'{escape(title)}:{gap}{len(document.token)} tokens, '
           f'{np.count_nonzero(reader.vocab.is_audio(document.token))} of them audio, '
           f'{np.count_nonzero(document.supervised)} with a loss', '', _story(reader, document)]
  if ids:
    lines += ['', _listing(reader, document)]
  if reader.decode_error:
    lines += ['', f'audio could not be decoded: {escape(reader.decode_error)}']
  if out is not None:
    lines += ['', *(f'wrote {escape(str(path))}' for path in _write(reader, document, name, out))]
  return '\n'.join(lines)


def print_markup(text: str) -> None:
  """Print rich's markup: in colour on a terminal, as plain text elsewhere."""
  import rich.console
  rich.console.Console(highlight=False, soft_wrap=True).print(text)


def _story(reader: Reader, document: Batch) -> str:
  """The document run by run; tokens with a loss are bold."""
  from rich.markup import escape
  out = []
  for where, audio in reader.runs(document):
    tokens, learned = document.token[where], document.supervised[where]
    if audio:
      codes = reader.vocab.decode_codes(tokens)
      few = ' '.join(map(str, codes[:6].tolist())) + (' ...' if len(codes) > 6 else '')
      end = reader.vocab.name(int(tokens[-1])) if reader.vocab.is_end(tokens[-1]) else None
      style = f'{_LEARNED} {_AUDIO}' if learned.any() else _AUDIO
      sound = reader.sound(tokens)
      lasts = '' if sound is None else f', {len(sound) / reader.codec.sample_rate:.2f} s'
      words = f'[{len(codes)} codes{lasts}: {few}]'
      out.append(f'[{style}]{escape(words)}[/]' + _control(end))
      continue
    for part in np.split(np.arange(len(tokens)), np.flatnonzero(np.diff(learned)) + 1):
      style = f'{_LEARNED} {_TEXT}' if learned[part[0]] else _TEXT
      out += [f'[{style}]{escape(piece)}[/]' if plain else _control(piece)
              for piece, plain in _pieces(reader, tokens[part])]
  return ''.join(out)


def _control(name: str | None) -> str:
  from rich.markup import escape
  return f'[{_CONTROL}]{escape(name)}[/]' if name else ''


def _pieces(reader: Reader, tokens: np.ndarray) -> Iterator[tuple[str, bool]]:
  """(text, True) for ordinary tokens, (name, False) for a control token."""
  plain: list[int] = []
  for token in tokens.tolist():
    name = reader.vocab.name(token)
    if name is None:
      plain.append(token)
      continue
    if plain:
      yield reader.tokenizer.decode(plain), True
      plain = []
    yield name, False
  if plain:
    yield reader.tokenizer.decode(plain), True


def _listing(reader: Reader, document: Batch) -> str:
  from rich.markup import escape
  start, end = mask_plot.ranges(document, reader.config)
  labels = mask_plot.token_labels(document.token, reader.vocab, reader.tokenizer)
  lines = [f'{"position":>8}{"id":>8}  {"token":<28}{"attends to":>14}  loss']
  for i, token in enumerate(document.token.tolist()):
    reads = f'{start[i]}..{end[i] - 1}'
    learned = ('diffusion' if reader.vocab.is_audio(token) else 'next token'
               ) if document.supervised[i] else ''
    color = _AUDIO if reader.vocab.is_audio(token) else _TEXT
    label = escape(f'{labels[i][:27]:<28}')
    lines.append(f'{i:>8}{token:>8}  [{color}]{label}[/]{reads:>14}  {learned}')
  return '\n'.join(lines)


def _write(reader: Reader, document: Batch, stem: str, out: pathlib.Path) -> list[pathlib.Path]:
  """Write the mask and, if the codec can decode them, WAV files of input and output audio."""
  made = [out / f'{stem}-mask.png']
  folder = output(out)
  folder.claim(*(f'{stem}-{end}' for end in ('mask.png', 'input.wav', 'output.wav')))
  mask_plot.draw_document(made[0], document, reader.vocab, reader.tokenizer, reader.config)
  for name, learned in (('input', False), ('output', True)):
    sound = reader.sound(document.token[(document.supervised > 0) == learned])
    if sound is not None and len(sound):
      made.append(out / f'{stem}-{name}.wav')
      io.write_wav(made[-1], sound, reader.codec.sample_rate)
  folder.finish()
  return made


def output(out: pathlib.Path) -> owned.Output:
  """The folder of images, audio and summary, once it is known that it can be written."""
  def earlier(folder: pathlib.Path) -> list[str]:
    """Before there were markers, the folder in a workdir and its names were the proof."""
    return [path.name for path in folder.iterdir() if _NAME.fullmatch(path.name)
            ] if folder.name == FOLDER else []
  return owned.Output(out, 'inspected documents', '--out', earlier)


# -- summary of the prepared data -------------------------------------------------------------


def measure(dataset: PreparedSet, split: str) -> dict[str, Any]:
  """Lengths in a split: {'length', 'audio', 'supervised': int [documents], 'span': int [spans]}."""
  lengths, audio, supervised, spans = [], [], [], []
  for _, document in dataset.documents(split):
    lengths.append(len(document.token))
    audio.append(np.count_nonzero(document.span > 0))
    supervised.append(np.count_nonzero(document.supervised))
    spans += np.unique(document.span[document.span > 0], return_counts=True)[1].tolist()
  return {'length': np.array(lengths, int), 'audio': np.array(audio, int),
          'supervised': np.array(supervised, int), 'span': np.array(spans, int)}


class DescribedTask(schema.Kind):
  """What the summary shows of a task of a split."""
  records: int
  text: int
  audio: int


class DescribedSplit(schema.Kind):
  """What the summary shows of a split."""
  documents: int
  rows: int
  padding: float
  truncated: int
  tasks: dict[str, DescribedTask]


class Described(schema.Kind):
  """What the summary shows of a manifest, which the loader does not need."""
  rejects: dict[str, int]
  splits: dict[str, DescribedSplit]


def page(dataset: PreparedSet, out: pathlib.Path) -> pathlib.Path:
  """Write an HTML page with counts by task and histograms of lengths; returns its path."""
  folder = output(out)
  folder.claim(PAGE)
  parts = []
  schema.check(dataset.manifest, Described, str(dataset.folder / 'manifest.json'),
               'run `ttt-jax prepare` again')
  for name, split in dataset.manifest['splits'].items():
    found = measure(dataset, name)
    rows = ''.join(
        f'<tr><td>{html.escape(task)}</td><td>{entry["records"]:,}</td><td>{entry["text"]:,}</td>'
        f'<td>{entry["audio"]:,}</td></tr>' for task, entry in sorted(split['tasks'].items()))
    parts.append(
        f'<h2>{html.escape(name)}</h2><p>{split["documents"]:,} documents in {split["rows"]:,} '
        f'rows of {dataset.manifest["seq_len"]:,} tokens; padding {split["padding"]:.1%}; '
        f'{split["truncated"]:,} documents were truncated to fit a row.</p>'
        '<table><tr><th>task</th><th>records</th><th>text tokens</th><th>audio tokens</th></tr>'
        f'{rows}</table><img alt="histograms of {html.escape(name)}" src="data:image/png;base64,'
        f'{_histograms(found)}">')
  left_out = ', '.join(f'{count:,} ({reason})' for reason, count in
                       dataset.manifest['rejects'].items()) or 'none'
  body = f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(str(dataset.folder))}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 54rem; margin: 2rem auto;
  padding: 0 1rem }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
th, td {{ padding: .2rem 1rem .2rem 0; text-align: right }}
th:first-child, td:first-child {{ text-align: left }}
img {{ max-width: 100% }}</style>
<h1>{html.escape(str(dataset.folder))}</h1><p>Vocabulary
{html.escape(str(dataset.manifest["fingerprint"]))}:
{html.escape(dataset.vocab.text)} text, codec {html.escape(dataset.vocab.codec)}.
Rejected records: {html.escape(left_out)}.</p>
{"".join(parts)}</html>
"""
  files.write_text(out / PAGE, body)
  folder.finish()
  return out / PAGE


def _histograms(found: dict[str, np.ndarray]) -> str:
  """Histograms of the lengths of documents, of their audio and of spans: a PNG in base64."""
  panels = [('tokens of a document', found['length'], plots.TEXT),
            ('audio tokens of a document', found['audio'], plots.AUDIO),
            ('tokens of a span', found['span'], plots.AUDIO)]
  panels = [panel for panel in panels if panel[1].any()]
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'h.png'
    with plots.figure_file(path, 3.0 * len(panels), 2.6) as figure:
      for axes, (title, values, color) in zip(figure.subplots(1, len(panels), squeeze=False)[0],
                                              panels):
        width = -(-(int(np.ptp(values)) + 1) // 40)  # tokens per bar
        axes.hist(values, bins=np.arange(values.min(), values.max() + width + 1, width) - 0.5,
                  color=color)
        axes.set_title(title)
        axes.set_ylabel('count')
        for axis in (axes.xaxis, axes.yaxis):
          axis.get_major_locator().set_params(integer=True)
    return base64.b64encode(path.read_bytes()).decode('ascii')
