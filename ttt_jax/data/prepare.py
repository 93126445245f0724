"""Sources -> a prepared set: codec, packed rows per split, held-out records, manifest.

  DATA/codec/                   the codec that the codes belong to
  DATA/train.arrayrecord        packed rows of split 'train' (one file per split)
  DATA/heldout.arrayrecord
  DATA/heldout.records.jsonl    held-out records with inline codes, for generation
  DATA/heldout_wav/             their recordings
  DATA/manifest.json            counts, hashes, the vocabulary; see store.read_manifest

All of it is written beside DATA and renamed at the end: a set is whole or not there.
"""

import dataclasses
import json
import logging
import os
import pathlib
import shutil
import tempfile
from typing import Any, Callable

import numpy as np

from ttt_jax.batch import make_row
from ttt_jax.config import Config
from ttt_jax.data import files, interleave, packing, records, sources, speech, store
from ttt_jax.data.records import Part, Record
from ttt_jax.errors import UserError
from ttt_jax.text import tokenizer as tokenizers
from ttt_jax.vocab import Vocabulary

_log = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]  # (what is being done, done, total)


@dataclasses.dataclass(frozen=True, eq=False)
class _Document:
  """A rendered record on its way into a row."""
  record: Record
  example: interleave.Example
  number: int  # document id, unique in the set


def prepare(config: Config, workdir: str | pathlib.Path,
            progress: Progress = lambda what, done, total: None) -> dict[str, Any]:
  """Make the prepared set that ``config.data`` describes in workdir/data.path.

  Args:
    config: sections vocab, codec and data, and the seed, matter.
    workdir: data.path is relative to it; sources are looked for here and in the current
      directory.
    progress: called with (what, done, total), often.

  Returns:
    The manifest, as store.read_manifest gives it. A set that was there before is replaced.

  Raises:
    UserError: anything wrong with the sources; nothing is written then.
  """
  workdir = pathlib.Path(workdir)
  target = workdir / config.data.path
  _check_target(target)
  tokenizer = tokenizers.create(config.vocab)
  loaded = sources.load(config.data.sources, workdir)
  heldout = sources.heldout_texts(loaded)
  leaks = sources.overlap(loaded, heldout)
  if leaks:
    _log.warning('%d training recordings say what a held-out one says, the first at %s.',
                 len(leaks), leaks[0])
  codec = speech.choose(config.codec, loaded, config.seed, progress)
  fill = _fill(codec, config)
  vocab = Vocabulary(tokenizer.name, tokenizer.ranks, codec.name, codec.codebook_size)
  codes_of = speech.encode(codec, loaded, progress)
  target.parent.mkdir(parents=True, exist_ok=True)
  temporary = pathlib.Path(tempfile.mkdtemp(prefix=f'.{target.name}-', dir=target.parent))
  def render(record: Record) -> interleave.Example:
    return interleave.render(record, vocab, tokenizer, config.data.text_chunk,
                             config.data.audio_chunk, fill)
  def fits(record: Record) -> bool:
    return len(render(record).token) <= config.data.row_length
  try:
    splits: dict[str, list[_Document]] = {}
    number, kept = 0, {}
    for one in loaded:
      documents = splits.setdefault(one.source.split, [])
      for record in sources.expand(one, codes_of, config.seed, heldout, fits):
        number += 1
        if sources.is_heldout(one.source.split):
          record = _keep_audio(record, one, temporary / 'heldout_wav', kept)
        documents.append(_Document(record, render(record), number))
        progress('rendering', number, 0)
    manifest = {
        'version': store.VERSION, 'vocabulary': vocab.to_dict(), 'fingerprint': vocab.fingerprint,
        'codec': 'codec', 'row_length': config.data.row_length, 'max_document': number,
        'heldout_overlap': len(leaks),
        'splits': {name: _write_split(temporary, name, documents, vocab, config.data.row_length)
                   for name, documents in splits.items() if documents},
    }
    codec.save(temporary / 'codec')
    store.write_manifest(temporary, manifest)
    os.chmod(temporary, 0o755)  # mkdtemp's 0700 is for secrets
    _swap(temporary, target)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  _log.info('prepared %s\n%s', target, table(manifest))
  return manifest


def _check_target(target: pathlib.Path) -> None:
  """A directory that is not a prepared set must never be replaced by one."""
  if target.exists() and not (target / 'manifest.json').is_file() and (
      not target.is_dir() or any(target.iterdir())):
    raise UserError(f'config key data.path: {target} exists and is not a prepared set; move it '
                    'away or choose another path.')


def _swap(temporary: pathlib.Path, target: pathlib.Path) -> None:
  old = None
  if target.exists():
    old = temporary.with_name(temporary.name + '.old')
    os.rename(target, old)
  try:
    os.rename(temporary, target)
  except OSError:
    if old:
      os.rename(old, target)
    raise
  if old:
    shutil.rmtree(old)


def _fill(codec, config: Config) -> interleave.Fill:
  if config.data.span_fill > 1 and not codec.silence:
    raise UserError(f'config key data.span_fill is {config.data.span_fill}, but codec {codec.name} '
                    'has no patch of silence to fill with; set it to 1.')
  return interleave.Fill(codec.silence, config.data.span_fill)


def _keep_audio(record: Record, loaded: sources.Loaded, folder: pathlib.Path,
                kept: dict[pathlib.Path, str]) -> Record:
  """Copy a held-out record's recordings into the set; a record that has only codes keeps those.

  ``kept`` remembers file -> name of its copy; two files of one name get a number.
  """
  def keep(part: Part) -> Part:
    file = loaded.file_of(part) if part.source else None
    if file is None or not file.is_file():
      return dataclasses.replace(part, source=None)
    if file not in kept:
      name, number = file.name, 1
      while name in kept.values():
        number += 1
        name = f'{file.stem}-{number}{file.suffix}'
      folder.mkdir(exist_ok=True)
      shutil.copyfile(file, folder / name)
      kept[file] = name
    return dataclasses.replace(part, source=f'{folder.name}/{kept[file]}')
  return record.map_audio(keep)


def _write_split(data_dir: pathlib.Path, name: str, documents: list[_Document],
                 vocab: Vocabulary, row_length: int) -> dict[str, Any]:
  """Pack and write one split; returns its entry of the manifest."""
  packed = packing.pack([len(d.example.token) for d in documents], row_length,
                        [f'{d.record.where} (record {d.record.id})' for d in documents])
  path = data_dir / f'{name}.arrayrecord'
  rows = store.write_rows(path, (
      make_row(vocab, [(documents[i].number, *documents[i].example) for i in row], row_length)
      for row in packed.rows))
  by_task: dict[str, dict[str, int]] = {}
  supervised = 0
  for document in documents:
    entry = by_task.setdefault(document.record.task or 'other',
                               {'records': 0, 'text': 0, 'audio': 0})
    audio = int(np.count_nonzero(vocab.is_audio(document.example.token)))
    entry['records'] += 1
    entry['audio'] += audio
    entry['text'] += len(document.example.token) - audio
    supervised += int(document.example.supervised.sum())
  text, audio = (sum(entry[kind] for entry in by_task.values()) for kind in ('text', 'audio'))
  if sources.is_heldout(name):
    lines = (json.dumps(records.to_json(d.record), ensure_ascii=False) for d in documents)
    (data_dir / f'{name}.records.jsonl').write_bytes(
        ''.join(line + '\n' for line in lines).encode('utf-8', 'surrogatepass'))
  return {'file': path.name, 'sha256': store.sha256(path), 'rows': rows,
          'documents': len(documents), 'max_document': max(d.number for d in documents),
          'tokens': {'text': text, 'audio': audio, 'supervised': supervised,
                     'padding': rows * row_length - text - audio},
          'padding': round(packed.padding, 6), 'tasks': by_task}


def table(manifest: dict[str, Any]) -> str:
  """The manifest's counts for people, one line per split and task."""
  wide = max(map(len, ('split', *manifest['splits']))) + 2
  lines = [f'{"split":<{wide}}{"task":<11}{"records":>9}{"text":>11}{"audio":>11}{"rows":>8}'
           f'{"padding":>9}']
  for name, split in manifest['splits'].items():
    for task, entry in sorted(split['tasks'].items()):
      lines.append(f'{name:<{wide}}{task:<11}{entry["records"]:>9,}{entry["text"]:>11,}'
                   f'{entry["audio"]:>11,}')
    tokens = split['tokens']
    lines.append(f'{name:<{wide}}{"all":<11}{split["documents"]:>9,}{tokens["text"]:>11,}'
                 f'{tokens["audio"]:>11,}{split["rows"]:>8,}{split["padding"]:>9.1%}')
  lines.append(f'vocabulary {manifest["fingerprint"]} ({manifest["vocabulary"]["text"]} + '
               f'{manifest["vocabulary"]["codec"]}), rows of {manifest["row_length"]:,} tokens')
  return '\n'.join(lines)


def load_records(data_dir: str | pathlib.Path, split: str = 'heldout') -> list[Record]:
  """The held-out records of a prepared set, in order.

  Audio parts have their codes; ``source`` is relative to data_dir, or None where the set
  was made from codes alone.

  Raises:
    UserError: no such set or split, or the split is one for training.
  """
  data_dir = pathlib.Path(data_dir)
  manifest = store.read_manifest(data_dir)
  held = [name for name in manifest['splits'] if sources.is_heldout(name)]
  if split not in held:
    raise UserError(f'config key evaluate.split: {data_dir} keeps no records of split {split!r}; '
                    f'it keeps those of {", ".join(held) or "none"} (splits named heldout...).')
  return [records.parse(value, where)
          for where, value in files.read(data_dir / f'{split}.records.jsonl')]
