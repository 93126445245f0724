"""`ttt-jax prepare --dry-run`: what a preparation would read, write and take, without writing.

A few hundred records of every source are read, rendered and packed as `prepare` does it, and
some of their recordings encoded; sizes and times are extrapolated from them. Audio that is not
encoded yet counts with random codes, as many as its length gives.
"""

import dataclasses
import itertools
import json
import math
import pathlib
import tempfile
import textwrap
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ttt_jax.audio import codec as codecs
from ttt_jax.audio.codec import Codec
from ttt_jax.config import CodecConfig, Config
from ttt_jax.data import interleave, packing, store
from ttt_jax.data.prepare import encode, jobs, local_pool, pack, prepare, render, scan
from ttt_jax.data.prepare.results import Result
from ttt_jax.data.records import columns, corpora, embedded, places, readers, sources, tables
from ttt_jax.data.records.corpora import Skip
from ttt_jax.data.records.parts import Part
from ttt_jax.data.records.sources import Input, Reject
from ttt_jax.errors import UserError
from ttt_jax.storage import owned, publish, url_path
from ttt_jax.system.progress import duration
from ttt_jax.tokens import tokenizer as tokenizers
from ttt_jax.tokens.batch import make_row
from ttt_jax.tokens.vocab import Vocabulary

INPUTS = 3           # of a source that are looked at
RECORDS = 100        # of an input that are rendered
RECORDINGS = 8       # of a source that are read
SECONDS = 0.5        # for counting an input, after its sample
_WIDE = 80           # columns of the table


@dataclasses.dataclass
class Look:
  """The sample of one input.

  Attributes:
    input: the input.
    items: ('file:line', item) of its first records.
    seconds: for reading and parsing a record [s].
    count: records of the input; exact: whether all were counted.
    lengths: of the recordings that were read [s].
  """
  input: Input
  items: list[tuple[str, Any]]
  seconds: float
  count: float
  exact: bool
  lengths: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Row:
  """What one source is expected to hold.

  Attributes:
    path, split, task: of the source.
    records, exact: their number, and whether it was counted.
    text, audio: tokens.
    recordings, seconds: audio to encode, and its length [s]; what another source encodes is 0.
  """
  path: str
  split: str
  task: str
  records: float = 0
  exact: bool = True
  text: float = 0
  audio: float = 0
  recordings: float = 0
  seconds: float = 0

  @property
  def tokens(self) -> float:
    return self.text + self.audio


@dataclasses.dataclass
class Plan:
  """What `prepare` would do.

  Attributes:
    rows: by source.
    sampled: records that were rendered.
    seq_len: of a row [tokens].
    token_bytes: of the set, per token [bytes].
    codec: its name and where it comes from.
    phases: (name, jobs, stored results, time [s] or None if it was not measured).
    processes: that the times are for.
    replaced: what is at data.path now; '' = nothing.
    target: the folder.
    left: stored results of an earlier run, of any phase.
    notes: sentences about the sample.
  """
  rows: list[Row]
  sampled: int
  seq_len: int
  token_bytes: float
  codec: str
  phases: list[tuple[str, int, int, float | None]]
  processes: int
  replaced: str
  target: str
  left: int
  notes: list[str]


def plan(config: Config, workdir: str | pathlib.Path) -> Plan:
  """Looks at the sources; writes nothing but temporary files outside of the workdir.

  Raises:
    UserError: as prepare.prepare, as far as the sample shows it.
  """
  workdir = pathlib.Path(workdir)
  target = store.locate(workdir, config.data.path)
  tokenizer = tokenizers.create(config.vocab)
  places.forget()
  found = sources.inputs(config.data.sources, workdir, config.data.form, config.data.root)
  replaced = _replaced(target)
  results = prepare.results_of(config, workdir, together=False)
  left = len(results.names())
  names = {one: jobs.key(scan.scan, scan.Job(one, config.data.strict)) for one in found}
  scanned = results.stored(dict.fromkeys(names.values()))
  stored = {one: scanned[name] for one, name in names.items() if name in scanned}
  looks = {number: [_look(one, stored.get(one), config) for one in _spread(group)]
           for number, group in _groups(found)}
  notes = _rejected(looks)
  codec, origin, speed = _codec(config, looks)
  size = (codec.codebook_size if origin else codecs.planned_codebook_size(config.codec))
  vocab = Vocabulary(tokenizer.name, tokenizer.ranks, codec.name, size)
  settings = dataclasses.replace(
      prepare.render_settings(config, codec, vocab, workdir), strict=False)
  rows, documents, seconds = [], [], 0.0
  seen: set[tuple] = set()  # recordings are encoded once
  for number, group in _groups(found):
    sample = _Sample(looks[number], settings, codec)
    row = sample.row(group, stored, seen)
    rows.append(row)
    documents += sample.documents_
    notes += sample.notes
    seconds += row.records * sample.seconds
  if not documents:
    raise UserError('config key data.sources: no record of the sample can be used; '
                    + (notes[0] if notes else 'check the files.'))
  token_bytes, pack_seconds = _packed(documents, vocab, config.data.seq_len)
  return Plan(rows, sum(len(one.items) for group in looks.values() for one in group),
              config.data.seq_len, token_bytes,
              f'{codec.name}, {origin}' if origin else f'{config.codec.name}, made by `prepare`',
              _phases(config, found, stored, looks, rows, codec, speed, seconds, pack_seconds),
              config.data.workers or local_pool.cores(), replaced, str(target), left, notes)


# -- what is there ---------------------------------------------------------------------------


def _replaced(target: pathlib.Path) -> str:
  """What `prepare` would replace.

  Raises:
    UserError: it would refuse to.
  """
  if url_path.is_url(target):
    publish.check(str(target), 'a prepared set', 'config key data.path', store.proven_files,
                  'data', probe=False)
  if not target.exists():
    return ''
  foreign = None if url_path.is_url(target) else owned.foreign(target, store.proven_files)
  if foreign is not None:
    raise UserError(f'config key data.path: {target} exists and is not a prepared set that ttt-jax '
                    f'made: {foreign} is not one of its files, or was changed; move it or choose '
                    'another path.')
  try:
    splits = store.read_manifest(target)['splits']
  except UserError:
    return 'a folder without a complete set'
  return ', '.join(f'{split["rows"]:,} rows of {name!r}' for name, split in splits.items())


def _groups(found: Sequence[Input]) -> Iterator[tuple[int, list[Input]]]:
  """Number of each source -> its inputs."""
  for number, group in itertools.groupby(found, lambda one: one.number):
    yield number, list(group)


def _spread(group: Sequence[Input]) -> list[Input]:
  """A few inputs, evenly spread; the largest number that is looked at."""
  if len(group) <= INPUTS:
    return list(group)
  return [group[i * (len(group) - 1) // (INPUTS - 1)] for i in range(INPUTS)]


def _look(one: Input, known: Result | None, config: Config) -> Look:
  """Reads the first records of an input, and counts all for a moment."""
  start = time.perf_counter()
  stream = iter(one.items())
  items = list(itertools.islice(stream, RECORDS))
  seconds = (time.perf_counter() - start) / max(1, len(items))
  if not items:
    raise readers.empty(one.piece.path)
  for _, item in items:
    if isinstance(item, Reject) and config.data.strict:
      raise UserError(item.sentence)
  if known:
    return Look(one, items, seconds, known.info['rows'], True)
  if isinstance(one.piece, readers.Piece) and not isinstance(one.piece, corpora.Piece) and (
      readers.kind_of(url_path.place(one.piece.path)) == '.parquet'):
    return Look(one, items, seconds, columns.count(
        url_path.place(one.piece.path), one.piece.start, one.piece.stop), True)
  count, until, exact = len(items), time.perf_counter() + SECONDS, True
  for _ in stream:
    count += 1
    if time.perf_counter() > until:
      exact = False
      break
  return Look(one, items, seconds, count if exact else max(
      count, _bytes(one) / _record_bytes(one)), exact)


def _bytes(one: Input) -> float:
  """Size of an input; of a part of a Parquet file, a share of it."""
  piece, size = one.piece, one.stamp[0]
  if isinstance(piece, corpora.Piece) or not readers.is_lines(piece.path):
    return max(1, size)
  return max(1, (size if piece.stop is None else piece.stop) - piece.start)


def _record_bytes(one: Input) -> float:
  """Bytes of a record in its file, from the first ones."""
  path = url_path.place(one.piece.path)
  packed = path.suffix.lower() in ('.gz', '.zst')
  if not isinstance(one.piece, corpora.Piece) and readers.is_lines(one.piece.path):
    values: list[Any] = [line for _, line in itertools.islice(readers.lines(one.piece), RECORDS)]
  else:
    found = (corpora.items(one.piece, one.source.task) if isinstance(one.piece, corpora.Piece)
             else readers.items(one.piece))
    values = [value for _, value in itertools.islice(found, RECORDS)]
  table = readers.kind_of(path) in tables.SUFFIXES
  text = b''.join(value if isinstance(value, bytes) else b'' if isinstance(value, UserError) else (
      ' '.join(map(str, value.values())) if table and isinstance(value, dict) else
      json.dumps(value, default=str, ensure_ascii=False)).encode('utf-8', 'replace') + b'\n'
                  for value in values)
  size = len(zlib.compress(text, 6)) if packed else len(text)
  return max(1, size) / max(1, len(values))


def _rejected(looks: dict[int, list[Look]]) -> list[str]:
  bad = [item for group in looks.values() for one in group for _, item in one.items
         if isinstance(item, Reject)]
  return [f'{len(bad)} records of the sample cannot be used, the first: {bad[0].sentence}'
          ] if bad else []


# -- the codec -------------------------------------------------------------------------------


def _codec(config: Config, looks: dict[int, list[Look]]) -> tuple[Codec, str, float | None]:
  """(codec, where it comes from or '' if `prepare` makes it, seconds of work per second of audio);
  the last is None if it was not measured. Fills in ``Look.lengths``."""
  scans = []
  recordings: dict[int, list[tuple[np.ndarray, int]]] = {}
  start = time.perf_counter()
  for number, group in looks.items():
    for one in group:
      coded, named = None, {}
      for where, item in one.items:
        if isinstance(item, (Reject, Skip)):
          continue
        for part in sources.audio(item):
          if part.codes is not None:
            coded = coded or where
          else:
            named[part.clip] = where
            if len(recordings.setdefault(number, [])) < RECORDINGS:
              sound = _read(part, one.input, where, config.data.strict)
              if sound is not None:
                one.lengths.append(len(sound[0]) / sound[1])
                recordings[number].append(sound)
      scans.append(scan.Scanned(one.input, len(one.items), coded, named, [], {}))
  reading = time.perf_counter() - start
  known = encode.beside(config.codec, scans)
  sounds = [sound for found in recordings.values() for sound in found]
  if known is not None:
    codec, origin = known[0], f'saved in {known[1]}'
  else:
    codec, origin = _like(config.codec, sounds), ''
  if not sounds or codec.own_devices:
    return codec, origin, None
  start = time.perf_counter()
  list(codec.encode_many(iter(sounds)))
  spent = reading + time.perf_counter() - start
  return codec, origin, spent / sum(len(waveform) / rate for waveform, rate in sounds)


def _read(part: Part, one: Input, where: str, strict: bool) -> tuple[np.ndarray, int] | None:
  try:
    return places.read(part, one.folder)
  except UserError as error:
    if strict:
      raise UserError(f'{where}: {str(error).removesuffix(".")}.') from error
    return None


def _like(config: CodecConfig, sounds: list[tuple[np.ndarray, int]]) -> Codec:
  """A codec with the rate of the one that `prepare` makes; fitted ones get a small codebook."""
  try:
    return codecs.create(config, iter(sounds))
  except UserError:
    if config.name != 'mel' or not sounds:
      if config.name != 'mel':
        raise
      rng = np.random.default_rng(0)  # no recordings: nothing will be fitted, either
      sounds = [(rng.standard_normal(16_000).astype(np.float32) / 8, 16_000)]
    return codecs.create(dataclasses.replace(config, codes=2), iter(sounds))


# -- records to tokens -----------------------------------------------------------------------


class _Sample(render.Documents):
  """Renders the sample of a source, and keeps the documents instead of writing them.

  Attributes:
    documents_: tokens and supervision of each.
    seconds: for reading and rendering a record [s].
    notes: the first rejected record.
  """

  def __init__(self, looks: Sequence[Look], settings: render.Settings, codec: Codec):
    self.looks, self.codec = looks, codec
    lengths = [length for one in looks for length in one.lengths]
    self._mean = float(np.mean(lengths)) if lengths else 5.0
    self._rng = np.random.default_rng(0)
    self._clips: set[tuple] = set()
    self.documents_: list[interleave.Example] = []
    self.notes: list[str] = []
    start, self.seconds = time.perf_counter(), 0.0
    read = np.mean([one.seconds for one in looks]) if looks else 0.0
    count = 0
    self._folder = pathlib.Path()
    for one in looks:
      super().__init__(render.Job(one.input, settings, 0, (), '', ()), self._folder) if (
          not count) else self._next(one.input)
      for place, (where, item) in enumerate(one.items):
        count += 1
        if not isinstance(item, (Reject, Skip)):
          self._add(item.map_audio(self._with_codes), place)
    self.seconds = (time.perf_counter() - start) / max(1, count) + float(read)
    self.count = count

  def _next(self, one: Input) -> None:
    self.job = dataclasses.replace(self.job, input=one)

  def _with_codes(self, part: Part) -> Part:
    if part.codes is not None:
      return part
    clip = part.clip
    self._clips.add((self.job.input.folder, embedded.key(embedded.contents(clip.path)) if (
        embedded.is_embedded(clip.path)) else clip.path, *clip[1:]))
    length = part.duration if part.duration is not None else self._mean
    count = max(1, round(length * self.codec.tokens_per_second / self.codec.group)) * (
        self.codec.group)
    return dataclasses.replace(
        part, codes=self._rng.integers(self.vocab.codebook_size, size=count, dtype=np.int32))

  def _store(self, record, document) -> None:
    super()._store(record, document)
    self.documents_.append(document)

  def _line(self, name: str, value: dict[str, Any]) -> None:
    if name == render.REJECTS and not self.notes:
      self.notes.append(f'a record of the sample cannot be used: {value["sentence"]}')

  def _flush(self) -> None:
    pass

  def row(self, group: Sequence[Input], stored: dict[Input, Result], seen: set[tuple]
          ) -> Row:
    """What the whole source holds.

    Args:
      group: its inputs.
      stored: results of reading some of them.
      seen: files whose recordings another source encodes; those of this one are added.
    """
    source = group[0].source
    out = Row(source.path, source.split, source.task or '-')
    known = {one.input: one for one in self.looks}
    density = sum(one.count for one in self.looks) / sum(_bytes(one.input) for one in self.looks)
    new = 0.0  # records of files that no other source has encoded
    for one in group:
      if one in known:
        count, exact = known[one].count, known[one].exact
      elif one in stored:
        count, exact = stored[one].info['rows'], True
      else:
        count, exact = _bytes(one) * density, False
      out.records += count
      out.exact &= exact
      key = one.piece.path, one.piece.start
      new += 0 if key in seen else count
      seen.add(key)
    audio = sum(entry['audio'] for entry in self.tasks.values())
    text = sum(entry['text'] for entry in self.tasks.values())
    out.text, out.audio = (out.records * part / self.count for part in (text, audio))
    if source.join_count and self.documents:
      mean = min((text + audio) / self.documents * (2 + source.join_most) / 2,
                 self.settings.seq_len)
      share = source.join_count * mean / max(1, text + audio)
      out.text, out.audio = out.text + share * text, out.audio + share * audio
    out.recordings = new * len(self._clips) / self.count
    out.seconds = out.recordings * self._mean
    return out


def _packed(documents: list[interleave.Example], vocab: Vocabulary, seq_len: int
            ) -> tuple[float, float]:
  """(bytes, seconds) per token of writing documents as rows."""
  tokens = sum(len(one.token) for one in documents)
  start = time.perf_counter()
  found = packing.pack([len(one.token) for one in documents], seq_len)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / pack.FILE
    store.write_rows(path, (make_row(vocab, [
        (i + 1, documents[i].token, documents[i].supervised > 0) for i in row], seq_len)
                            for row in found.rows))
    size = path.stat().st_size
  return size / tokens, (time.perf_counter() - start) / tokens


def _phases(config: Config, found, stored, looks, rows: list[Row], codec: Codec,
            speed: float | None, render_seconds: float, pack_seconds: float
            ) -> list[tuple[str, int, int, float | None]]:
  apart = sum(size for _, size, _ in {(one.piece.path, *one.stamp) for one in found}) > (
      prepare._LARGE)
  processes = config.data.workers or local_pool.cores()
  width = processes if apart else 1
  recordings = math.ceil(sum(row.recordings for row in rows))
  parse = sum(row.records * float(np.mean([one.seconds for one in looks[number]]))
              for row, number in zip(rows, looks)
              if config.data.strict or row.task != '-' or sources.is_heldout(row.split))
  left = 1 - len(stored) / len(found)
  splits: dict[str, float] = {}
  for row in rows:
    splits[row.split] = splits.get(row.split, 0) + row.tokens
  shards = sum(max(1, round(tokens / pack.TOKENS)) for tokens in splits.values())
  encoding = [] if not recordings else [
      ('encoding speech', math.ceil(recordings / codec.at_once), 0,
       None if speed is None else sum(row.seconds for row in rows) * speed
       / (processes if recordings > encode._MANY else 1))]
  return [('reading sources', len(found), len(stored), left * parse / width), *encoding,
          ('rendering', len(found), 0, render_seconds / width),
          ('packing', shards, 0, sum(splits.values()) * pack_seconds / min(width, shards))]


# -- the table -------------------------------------------------------------------------------


def table(found: Plan) -> str:
  """The plan in 80 columns; estimates have a '~'."""
  def number(value: float, exact: bool = False) -> str:
    if value < 1e6:
      text = f'{round(value):,}'
    else:
      text = f'{value / 1e6:,.1f} M' if value < 1e9 else f'{value / 1e9:,.2f} G'
    return text if exact or not value else f'~{text}'
  lines = [f'{"source":<24}{"split":<9}{"task":<11}{"records":>12}{"tokens":>11}{"to encode":>13}']
  for row in found.rows:
    path = row.path if len(row.path) < 24 else f'...{row.path[-20:]}'
    lines.append(f'{path:<24}{row.split[:8]:<9}{row.task[:10]:<11}'
                 f'{number(row.records, row.exact):>12}{number(row.tokens):>11}'
                 f'{_hours(row.seconds):>13}')
  lines.append('')
  splits: dict[str, list[Row]] = {}
  for row in found.rows:
    splits.setdefault(row.split, []).append(row)
  lines.append(f'{"split":<24}{"text":>12}{"audio":>12}{"rows":>12}{"disk":>12}')
  for split, rows in splits.items():
    tokens = sum(row.tokens for row in rows)
    lines.append(f'{split[:23]:<24}{number(sum(row.text for row in rows)):>12}'
                 f'{number(sum(row.audio for row in rows)):>12}'
                 f'{number(max(1, tokens / found.seq_len)):>12}'
                 f'{_size(tokens * found.token_bytes):>12}')
  lines += ['', f'{"phase":<24}{"jobs":>12}{"stored":>12}{"time":>16}']
  for name, count, stored, seconds in found.phases:
    lines.append(f'{name:<24}{count:>12,}{stored:>12,}'
                 f'{"not measured" if seconds is None else "~" + duration(seconds):>16}')
  known = [seconds for *_, seconds in found.phases if seconds is not None]
  tokens = sum(row.tokens for row in found.rows)
  said = [
      f'codec: {found.codec}',
      f'time: about {duration(sum(known))} with {found.processes} processes of this machine'
      + (', and what was not measured' if len(known) < len(found.phases) else '')
      + (', and fitting the codec' if 'made by' in found.codec and any(
          row.seconds for row in found.rows) else ''),
      f'disk: {_size(tokens * found.token_bytes)} for the set, and about '
      f'{_size(8 * tokens)} more until it is complete',
      f'{found.left:,} results of an earlier run are stored; what is still valid is used'
      if found.left else 'no results of an earlier run are stored',
      f'{found.target} would be replaced: {found.replaced}' if found.replaced else
      f'{found.target} would be new',
      *found.notes,
      f'Estimates (~) are from {found.sampled:,} records on this machine; nothing was written.']
  lines.append('')
  for line in said:
    lines += textwrap.wrap(line, _WIDE, subsequent_indent='  ', break_long_words=False,
                           break_on_hyphens=False)
  return '\n'.join(lines)


def _hours(seconds: float) -> str:
  return '-' if not seconds else f'~{seconds / 3600:,.1f} h' if seconds >= 3600 else (
      f'~{seconds / 60:,.1f} min')


def _size(count: float) -> str:
  for unit, size in (('TB', 1e12), ('GB', 1e9), ('MB', 1e6)):
    if count >= size:
      return f'~{count / size:,.1f} {unit}'
  return f'~{count / 1e3:,.0f} kB'
