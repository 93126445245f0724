"""Phase 3 of prepare, inputs to documents: records are prompted, repeated, rendered, stored.

Documents are stored in blocks of a few million tokens in random order, so that any part of a
block is a random sample. Block I has three files of int32: I.ids, the tokens of its documents,
``~id`` where a token is supervised; I.lengths, tokens per document; I.numbers, each document's
number in its input.
"""

import bisect
import dataclasses
import functools
import json
import os
import pathlib
from typing import Any, Iterator

import numpy as np

from ttt_jax.config import VocabConfig
from ttt_jax.data import interleave
from ttt_jax.data.prepare import addresses, encode
from ttt_jax.data.prepare.encode import Place
from ttt_jax.data.prepare.jobs import tick
from ttt_jax.data.records import embedded, keys, places, records, sources, tasks
from ttt_jax.data.records.corpora import Skip
from ttt_jax.data.records.parts import Clip, Part, Record
from ttt_jax.data.records.sources import Input, Reject
from ttt_jax.data.records.tasks import Recording
from ttt_jax.errors import UserError
from ttt_jax.storage import url_path
from ttt_jax.tokens import tokenizer as tokenizers
from ttt_jax.tokens.vocab import Vocabulary

REJECTS = 'rejects.jsonl'
RECORDS = 'records.jsonl'
AUDIO, CODES, LONG = 'unusable audio', 'code outside the codebook', 'too long'
_BLOCK_TOKENS, _BLOCK_DOCUMENTS = 2**21, 2**16


@dataclasses.dataclass(frozen=True)
class Settings:
  """The settings that determine how a record becomes a document."""
  vocab: VocabConfig
  stamp: tuple[int, int]  # (bytes, mtime in ns) of the tokenizer's file, see url_path.stamp
  vocabulary: Vocabulary
  text_chunk: int
  audio_chunk: int
  fill: interleave.Fill
  seq_len: int
  truncate: str
  strict: bool
  seed: int
  roots: tuple[str, ...]  # folders of recordings beside codes, besides that of their file


@dataclasses.dataclass(frozen=True)
class Job:
  """See ``render``.

  Attributes:
    input, settings: what to render, and how.
    first: number of records of the file before the input.
    codes: (stretch, where its codes are stored) of each audio file that the input names.
    work: root of the results.
    heldout: texts of held-out recordings, to detect training records with the same text.
  """
  input: Input
  settings: Settings
  first: int
  codes: tuple[tuple[Clip, Place], ...]
  work: str
  heldout: tuple[str, ...]


def bins(seq_len: int) -> list[int]:
  """Edges of the length histogram: powers of two up to seq_len, then seq_len + 1."""
  edges = [1]
  while edges[-1] <= seq_len:
    edges.append(2 * edges[-1])
  return [*edges[:-1], seq_len + 1]


def render(job: Job, folder: pathlib.Path) -> dict[str, Any]:
  """Renders an input; writes blocks, rejects and, of a held-out input, its records to ``folder``.

  Returns:
    {'blocks': [[documents, tokens], ...], 'documents', 'rejects': {reason: count},
    'truncated', 'absent', 'skipped': {reason: count}, 'leaks': ['file:line', ...],
    'lengths': [per bin], 'tasks': {task:
    {'records', 'text', 'audio', 'supervised'}}, 'system_prompts': {task: text}, 'unused': {key:
    records}, 'units': records}

  Raises:
    UserError: strict, and a record cannot be used.
  """
  return Documents(job, folder).run()


@functools.lru_cache(1)
def _tokenizer(config: VocabConfig) -> tokenizers.Tokenizer:
  return tokenizers.create(config)  # takes seconds for a large vocabulary


class Documents:
  """The state of one job: documents waiting for a block, and counts."""

  def __init__(self, job: Job, folder: pathlib.Path):
    self.job, self.settings, self.folder = job, job.settings, folder
    self.source = job.input.source
    self.tokenizer = _tokenizer(self.settings.vocab)
    self.vocab = self.settings.vocabulary
    self.renderer = interleave.Renderer(self.vocab, self.tokenizer, self.settings.text_chunk,
                                        self.settings.audio_chunk, self.settings.fill,
                                        job.input.form)
    self.places, self.heldout = dict(job.codes), frozenset(job.heldout)
    self.arrays: dict[str, np.ndarray] = {}
    self.blocks: list[list[int]] = []
    self.waiting: list[tuple[interleave.Example, int]] = []  # (document, its number)
    self.tokens = self.documents = self.truncated = 0
    self.rejects: dict[str, int] = {}
    self.tasks: dict[str, dict[str, int]] = {}
    self.prompts: dict[str, str] = {}  # task -> system prompt of its first record
    self.bins = bins(self.settings.seq_len)
    self.lengths = np.zeros(len(self.bins) - 1, int)
    self.leaks: list[str] = []
    self.skipped: dict[str, int] = {}  # what a corpus lists and its rules leave out, by reason
    self.absent = 0  # recordings beside codes that do not exist
    self.unused: dict[str, int] = {}  # keys of records that were not used

  def run(self) -> dict[str, Any]:
    made = self._joined() if self.source.join_count else self._each()
    count = 0
    for place, (where, item) in enumerate(made, self.job.first):
      count += 1
      tick()
      if isinstance(item, Reject):
        self._reject(item)
        continue
      if isinstance(item, Skip):
        self.skipped[item.reason] = self.skipped.get(item.reason, 0) + 1
        continue
      for key in item.unused:
        if key not in self.unused and len(self.unused) >= keys.MOST:
          key = keys.OTHERS
        self.unused[key] = self.unused.get(key, 0) + 1
      if (self.heldout and not self.job.input.heldout
          and not self.heldout.isdisjoint(sources.spoken_texts(item))):
        self.leaks.append(where)
      self._add(item, place)
    self._flush()
    return {'blocks': self.blocks, 'documents': self.documents, 'rejects': self.rejects,
            'truncated': self.truncated, 'leaks': self.leaks, 'absent': self.absent,
            'skipped': self.skipped,
            'tasks': self.tasks, 'system_prompts': self.prompts, 'unused': self.unused,
            'lengths': self.lengths.tolist(), 'units': count}

  # -- records ------------------------------------------------------------------------

  def _each(self) -> Iterator[tuple[str, sources.Item]]:
    """('file:line', item) of everything in the input, with codes."""
    for where, item in self.job.input.items():
      if not isinstance(item, (Reject, Skip)):
        try:
          item = item.map_audio(self._with_codes)
        except UserError as error:
          item = Reject(where, AUDIO, str(error))
      yield where, item

  def _with_codes(self, part: Part) -> Part:
    if part.codes is not None:
      return self._listenable(part) if self.job.input.heldout else part
    clip = self.job.input.clip_of(part)
    place = self.places.get(clip, Place('', error=f'recording {clip.path} was not encoded.'))
    if place.error:
      raise UserError(place.error)
    if place.folder not in self.arrays:
      if len(self.arrays) > 64:
        self.arrays.clear()
      self.arrays[place.folder] = addresses.at(self.job.work).array(place.folder, encode.FILE)
    codes = np.array(self.arrays[place.folder][place.start:place.stop])
    return dataclasses.replace(part, codes=codes)

  def _listenable(self, part: Part) -> Part:
    """A part whose codes are given, with its recording if that exists: it is copied into the set.

    Raises:
      UserError: a file outside of the roots, or one that is no sound.
    """
    path = self.job.input.with_path(part).source
    if path is None:
      return part
    if not embedded.is_embedded(path):
      if not places.is_file(path):
        self.absent += 1
        return dataclasses.replace(part, source=None)
      real = path if url_path.is_url(path) else os.path.realpath(path)
      roots = [str(root) if url_path.is_url(root) else os.path.realpath(root)
               for root in (self.job.input.folder, *map(url_path.place, self.settings.roots))]
      if not any(real.startswith(os.path.join(root, '')) for root in roots):
        raise UserError(f'recording {path} beside codes is in none of the folders '
                        f'{", ".join(roots)}, so it is not copied into the set; add its folder '
                        'to data.audio_roots, or remove the key.')
    places.read(part, self.job.input.folder)
    return part

  def _joined(self) -> Iterator[tuple[str, sources.Item]]:
    """As ``_each``, then longer recordings joined from these; all are held in memory."""
    found = list(self._each())
    recordings = [item for _, item in found if isinstance(item, Recording)
                  and item.speech.known_codes.max() < self.vocab.codebook_size]
    rng = np.random.default_rng([self.settings.seed, self.job.input.number])
    yield from found
    made = tasks.join(recordings, self.source.join_most, self.source.join_count, rng,
                      self.heldout,
                      lambda one: len(self.renderer.render(self._record(one, 0, 0)).token)
                      <= self.settings.seq_len)
    yield from ((one.where, one) for one in made)

  def _record(self, item: Recording | Record, place: int, copy: int) -> Record:
    return self.job.input.record(item, place, copy, self.settings.seed, self.settings.text_chunk,
                                 self.settings.audio_chunk)

  # -- documents ----------------------------------------------------------------------

  def _add(self, item: Recording | Record, place: int) -> None:
    """Adds the copies of a record, as many as its source sets; ``place`` counts in the file."""
    redrawn = self.source.task == 'pt'
    record = document = None
    for copy in range(self.job.input.copies(place)):
      if record is None or document is None or redrawn:
        record = self._record(item, place, copy)
        document = self._document(record)
        if document is None:
          return
      self._store(record, document)

  def _document(self, record: Record) -> interleave.Example | None:
    """The rendered record, short enough for a row; None if it was rejected."""
    seq_len = self.settings.seq_len
    try:
      full = self.renderer.render(record)
    except UserError as error:
      self._reject(Reject(record.where, CODES, str(error)))
      return None
    how = 'no' if self.job.input.heldout else self.settings.truncate
    short = full if len(full.token) <= seq_len else None
    if short is None and how != 'no':
      short = interleave.truncate(full, seq_len, how, self.vocab)
      self.truncated += short is not None
    if short is None:
      cut = '' if how == 'no' else (
          f', and data.truncate={how!r} finds no cut that leaves part of an answer')
      self._reject(Reject(record.where, LONG, (
          f'{record.where} (record {record.id}): the record has {len(full.token)} tokens but a '
          f'row holds {seq_len}{cut}; shorten it or raise data.seq_len.')))
    return short

  def _store(self, record: Record, document: interleave.Example) -> None:
    length = len(document.token)
    audio = int(np.count_nonzero(self.vocab.is_audio(document.token)))
    entry = self.tasks.setdefault(record.task or 'other',
                                  {'records': 0, 'text': 0, 'audio': 0, 'supervised': 0})
    entry['records'] += 1
    entry['audio'] += audio
    entry['text'] += length - audio
    entry['supervised'] += int(document.supervised.sum())
    self.lengths[bisect.bisect(self.bins, length) - 1] += 1
    if record.type == 'IT':
      self.prompts.setdefault(record.task, tasks.prompt_of(record))
    if self.job.input.heldout:
      self._line(RECORDS, records.to_json(record.map_audio(self.job.input.with_path)))
    self.waiting.append((document, self.documents))
    self.documents += 1
    self.tokens += length
    if self.tokens >= _BLOCK_TOKENS or len(self.waiting) >= _BLOCK_DOCUMENTS:
      self._flush()

  def _reject(self, reject: Reject) -> None:
    if self.settings.strict:
      raise UserError(reject.sentence)
    self.rejects[reject.reason] = self.rejects.get(reject.reason, 0) + 1
    self._line(REJECTS, reject._asdict())

  def _line(self, name: str, value: dict[str, Any]) -> None:
    with (self.folder / name).open('ab') as file:
      # A lone surrogate is written as JSON writes it.
      file.write((json.dumps(value, ensure_ascii=False) + '\n').encode('utf-8', 'backslashreplace'))

  def _flush(self) -> None:
    """Writes the waiting documents as a block."""
    if not self.waiting:
      return
    rng = np.random.default_rng([self.settings.seed, self.job.input.number, self.job.first,
                                 len(self.blocks)])
    order = rng.permutation(len(self.waiting))
    documents = [self.waiting[i] for i in order]
    ids = np.concatenate([np.where(one.supervised > 0, ~one.token, one.token)
                          for one, _ in documents])
    start = self.folder / str(len(self.blocks))
    for ending, values in (('ids', ids), ('lengths', [len(one.token) for one, _ in documents]),
                           ('numbers', [number for _, number in documents])):
      # Not tofile: its error for a full disk has no errno.
      start.with_suffix(f'.{ending}').write_bytes(np.asarray(values, np.int32).tobytes())
    self.blocks.append([len(documents), len(ids)])
    self.waiting, self.tokens = [], 0
