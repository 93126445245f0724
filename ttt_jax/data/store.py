"""Packed rows on disk: ArrayRecord files of each split, and the manifest that describes them.

A record of the file is one row: magic, T, then token, document, span and position as
little-endian int32 [T] and supervised as uint8 [T] (the file is compressed).
"""

import hashlib
import json
import os
import pathlib
import re
import struct
from typing import Annotated, Any, Iterable, Required, Sequence, cast

import numpy as np

from ttt_jax.config import Config
from ttt_jax.data.shards import Shards, check
from ttt_jax.errors import UserError
from ttt_jax.storage import files as storage, mirror, schema, url_path
from ttt_jax.tokens.batch import Batch
from ttt_jax.tokens.vocab import Vocabulary, VocabularyFile

MANIFEST = 'manifest.json'
VERSION = 3
_READABLE = (2, VERSION)  # version 2 (ttt_jax 0.1) called seq_len row_length
_MAGIC = b'TTR1'
_HEAD = struct.Struct('<4sI')
_RECORDING = re.compile(r'"(heldout_wav/[^"/]+)"')  # in a line of held-out records
_INTS = ('token', 'document', 'span', 'position')
_AGAIN = 'run `ttt-jax prepare` again'


class FileEntry(schema.Kind, total=False):
  """A file of rows in the manifest."""
  name: Required[schema.Name]
  rows: schema.Count
  bytes: Required[schema.Count]
  sha256: str


class TaskEntry(schema.Kind, total=False):
  """What a task contributes to a split."""
  records: schema.Count
  text: schema.Count
  audio: schema.Count
  supervised: schema.Count


class Lengths(schema.Kind):
  """A histogram of the lengths of documents."""
  edges: list[float]
  documents: list[schema.Count]


class Split(schema.Kind, total=False):
  """A split in the manifest."""
  files: Required[list[FileEntry]]
  rows: Required[schema.Count]
  documents: schema.Count
  truncated: schema.Count
  tokens: dict[str, schema.Count]
  padding: float
  lengths: Lengths
  tasks: dict[str, TaskEntry]


class Manifest(schema.Kind, total=False):
  """manifest.json; ``read_manifest`` lists its keys."""
  version: Required[int]
  vocabulary: Required[VocabularyFile]
  fingerprint: Required[str]
  codec: str
  seq_len: Required[Annotated[int, schema.Range(1, 2**31 - 1)]]
  max_document: schema.Count
  rejects: dict[str, schema.Count]
  heldout_overlap: schema.Count
  left_out: dict[str, dict[str, schema.Count]]
  system_prompts: dict[str, str]
  splits: Required[dict[schema.Name, Split]]


def pack_row(row: Batch) -> bytes:
  """A row of [T] vectors -> bytes."""
  ints = np.stack([getattr(row, name) for name in _INTS]).astype('<i4')
  return (_HEAD.pack(_MAGIC, len(row.token)) + ints.tobytes() +
          row.supervised.astype(np.uint8).tobytes())


def unpack_row(data: bytes, where: str = 'row') -> Batch:
  """Bytes -> a row of int32 [T] vectors.

  Raises:
    UserError: not a row, or an incomplete one; ``where`` names it in the sentence.
  """
  if len(data) < _HEAD.size or data[:4] != _MAGIC:
    raise UserError(f'{where} is not a packed row of ttt-jax; run `ttt-jax prepare` again.')
  length = _HEAD.unpack_from(data)[1]
  if len(data) != _HEAD.size + 17 * length:
    raise UserError(f'{where} has {len(data)} bytes where a row of {length} tokens has '
                    f'{_HEAD.size + 17 * length}; run `ttt-jax prepare` again.')
  ints = np.frombuffer(data, '<i4', 4 * length, _HEAD.size).reshape(4, length)
  supervised = np.frombuffer(data, np.uint8, length, _HEAD.size + 16 * length)
  values = dict(zip(_INTS, ints.astype(np.int32)))
  return Batch(supervised=supervised.astype(np.int32), **values)


def write_rows(path: pathlib.Path, rows: Iterable[Batch]) -> int:
  """Writes rows to an ArrayRecord file (temporary name, then rename); returns their number.

  Raises:
    OSError: the disk is full, for example; ``path`` is unchanged then.
  """
  # A compiled module without type information.
  from array_record.python import (
      array_record_module)  # pyright: ignore[reportAttributeAccessIssue]
  temporary = path.with_name(path.name + '.part')
  writer = array_record_module.ArrayRecordWriter(str(temporary), 'group_size:1,zstd:1')
  count = 0
  try:
    for row in rows:
      writer.write(pack_row(row))
      count += 1
    writer.close()
    os.replace(temporary, path)
  except RuntimeError as error:  # array_record puts the system's message in a RuntimeError
    code = next((code for code in storage.FULL if os.strerror(code) in str(error)), None)
    if code is None:
      raise
    raise OSError(code, os.strerror(code), str(path)) from error
  finally:
    temporary.unlink(missing_ok=True)
  return count


def _opened(paths: list[Any]) -> Sequence[bytes]:
  import grain.python as grain  # imports jax; a plain import of this module must stay cheap
  # The class has __len__ only where array_record is installed, which pyright cannot see.
  return cast(Sequence[bytes], grain.ArrayRecordDataSource(paths))


class Rows:
  """Random access to the rows of one split: ``len(rows)``, ``rows[i] -> Batch`` of [T]."""

  def __init__(self, data_dir: str | pathlib.Path, split: str):
    """Opens a split of a prepared set.

    Raises:
      UserError: no such split, its file is missing, unreadable or has another row count.
    """
    data_dir = url_path.place(data_dir)
    manifest = read_manifest(data_dir)
    known = manifest['splits']
    if split not in known:
      raise UserError(f'{data_dir} has no split {split!r}; it has {", ".join(sorted(known))} '
                      '(config keys data.stages and evaluate.split choose among them).')
    self.split, self.folder = split, data_dir
    entries = known[split]['files']
    self._shards = Shards(data_dir, entries) if url_path.is_url(data_dir) else None
    if self._shards:
      paths = self._shards.paths
    else:
      for entry in entries:
        _check_file(data_dir / entry['name'], entry)
      paths = [str(data_dir / entry['name']) for entry in entries]
    try:
      self._source = _opened(paths)
      found = len(self._source)
    except (RuntimeError, ValueError, OSError) as error:
      raise UserError(f'the rows of split {split!r} in {data_dir} cannot be read ({error}); run '
                      '`ttt-jax prepare` again.') from error
    if found != known[split]['rows']:
      raise UserError(f'the files of split {split!r} in {data_dir} have {found} rows but the '
                      f'manifest says {known[split]["rows"]}; run `ttt-jax prepare` again.')

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Batch:
    where = f'split {self.split!r} of {self.folder}, row {index},'
    if self._shards:
      self._shards.require(int(index))
    try:
      data = self._read(int(index))
    except (RuntimeError, ValueError, OSError) as error:
      raise UserError(f'{where} cannot be read ({error}); run `ttt-jax prepare` again.') from error
    return unpack_row(data, where)

  def _read(self, index: int) -> bytes:
    try:
      return self._source[index]
    except (RuntimeError, ValueError, OSError):
      if not self._shards or not self._shards.lost(index):
        raise
      self._source = _opened(self._shards.paths)  # a reader that failed stays so
      return self._source[index]

  @property
  def fetched(self) -> bool:
    """Whether the rows are in a bucket, so that ``fetch_ahead`` is of use."""
    return self._shards is not None

  def fetch_ahead(self, rows: Iterable[int]) -> None:
    """Fetch the files of a set in a bucket in the background, first those of ``rows``."""
    if self._shards:
      self._shards.fetch_ahead(rows)


def _check_file(path: pathlib.Path, entry: dict[str, Any]) -> None:
  check(path, path.stat().st_size if path.is_file() else None, entry)


def file_entry(path: pathlib.Path, rows: int) -> dict[str, Any]:
  """The manifest's entry of a file of rows, without its name."""
  return {'rows': rows, 'bytes': path.stat().st_size, 'sha256': storage.sha256(path)}


def split_entry(*files: tuple[pathlib.Path, int]) -> dict[str, Any]:
  """{'rows', 'files'} of a split from (path, number of rows) of each file."""
  return {'rows': sum(rows for _, rows in files),
          'files': [{'name': path.name, **file_entry(path, rows)} for path, rows in files]}


def write_manifest(data_dir: pathlib.Path, manifest: dict[str, Any]) -> None:
  """Writes manifest.json by rename. It is written last: a set with a manifest is complete."""
  storage.write_text(data_dir / MANIFEST,
                    json.dumps(manifest, indent=2, sort_keys=True) + '\n')


def read_manifest(path: str | pathlib.Path, expected: Vocabulary | None = None) -> dict[str, Any]:
  """The manifest of a prepared set.

  Args:
    path: the set's directory, or its manifest.json.
    expected: the vocabulary that the set must have; None = any.

  Returns:
    {'version', 'vocabulary', 'fingerprint', 'codec', 'seq_len', 'max_document',
    'rejects': {reason: records}, 'heldout_overlap',
    'left_out': {source: {reason: records}}, 'system_prompts': {task: text} (from version
    3 on), 'splits': {name: {'files': [{'name', 'rows', 'bytes',
    'sha256'}], 'rows', 'documents', 'truncated', 'tokens': {'text', 'audio',
    'padding', 'supervised'}, 'padding', 'lengths': {'edges', 'documents'}, 'tasks': {task:
    {'records', 'text', 'audio', 'supervised'}}}}}

  Raises:
    UserError: no set, an unreadable manifest or one of another version, or another vocabulary.
  """
  path = url_path.place(path)
  file = path / MANIFEST if path.suffix != '.json' else path
  if not file.is_file():
    raise UserError(f'there is no prepared data in {file.parent} (no manifest.json); run '
                    '`ttt-jax prepare` first, or set data.path.')
  manifest = schema.read(file, None, _AGAIN)
  version = manifest.get('version')
  if version not in _READABLE or isinstance(version, float):
    raise UserError(f'{file} has version {schema.shown(version)} but this ttt-jax reads '
                    f'{" and ".join(map(str, _READABLE))}; {_AGAIN}.')
  if 'row_length' in manifest:
    manifest['seq_len'] = manifest.pop('row_length')
  schema.check(manifest, Manifest, str(file), _AGAIN)
  vocabulary = Vocabulary.from_dict(manifest['vocabulary'])
  if manifest['fingerprint'] != vocabulary.fingerprint:
    raise UserError(f'{file} has fingerprint {manifest["fingerprint"]}, but that of its vocabulary '
                    f'is {vocabulary.fingerprint}; {_AGAIN}.')
  if expected is not None:
    check_fingerprint(f'{file} was written', vocabulary.fingerprint, expected,
                      'prepare the data again, or use its own vocabulary')
  return manifest


def fingerprints(data_dir: str | pathlib.Path) -> dict[str, str]:
  """Split -> hash of its rows, in their order; errors as ``read_manifest``."""
  digest = lambda files: hashlib.sha256('\n'.join(
      str(entry.get('sha256')) for entry in files).encode()).hexdigest()[:16]
  return {split: digest(entry['files'])
          for split, entry in read_manifest(data_dir)['splits'].items()}


def check_fingerprint(what: str, fingerprint: str, expected: Vocabulary, remedy: str) -> None:
  """UserError unless ``fingerprint`` is that of the ``expected`` vocabulary.

  Args:
    what: how the sentence begins: what has the fingerprint, and a verb.
    fingerprint: of the vocabulary that it was made with.
    expected: the vocabulary in use.
    remedy: how the sentence ends.
  """
  if fingerprint != expected.fingerprint:
    raise UserError(f'{what} with vocabulary {fingerprint}, but {expected.fingerprint} '
                    f'({expected.text} + {expected.codec}) is in use; {remedy}.')


def check_data(config: Config, data_dir: pathlib.Path, vocab: Vocabulary) -> None:
  """UserError unless the prepared set fits the config: row length and tokenizer."""
  manifest = read_manifest(data_dir)
  if manifest['seq_len'] != config.data.seq_len:
    raise UserError(f'config key data.seq_len is {config.data.seq_len}, but the rows in '
                    f'{data_dir} have {manifest["seq_len"]} tokens; prepare them again or '
                    'change the key.')
  if vocab.text != config.vocab.text:
    raise UserError(f'config key vocab.text is {config.vocab.text!r}, but {data_dir} was prepared '
                    f'with {vocab.text!r}; prepare it again or change the key.')


def proven_files(folder: pathlib.Path) -> set[str]:
  """The files of a set without a marker (see storage.owned) that its manifest proves to be ours:
  those that it lists, with their sizes, and those that the held-out records name."""
  try:
    manifest = read_manifest(folder)
    entries = [entry for split in manifest['splits'].values() for entry in split['files']]
    sizes = {str(entry['name']): entry['bytes'] for entry in entries}
    splits = list(manifest['splits'])
  except (UserError, OSError, KeyError, TypeError, AttributeError):
    return set()
  found = {MANIFEST, 'codec/codec.json', 'codec/codec.npz'} | {
      name for name, size in sizes.items()
      if (folder / name).is_file() and (folder / name).stat().st_size == size}
  for split in splits:
    kept = folder / f'{split}.records.jsonl'
    if kept.is_file():
      found |= {kept.name, *_RECORDING.findall(kept.read_text(encoding='utf-8', errors='replace'))}
  return found


def locate(workdir: str | os.PathLike, path: str) -> pathlib.Path:
  """The prepared set of a run: config key data.path, relative to the workdir, or a URL."""
  folder = url_path.join(mirror.url_of(workdir) or workdir, path)
  if url_path.is_url(folder):
    return folder
  # A new workdir does not exist yet, and no file system goes through it to '..'.
  return folder if pathlib.Path(workdir).exists() else pathlib.Path(os.path.normpath(folder))


def vocabulary(data_dir: str | pathlib.Path) -> Vocabulary:
  """The vocabulary that a prepared set was made for; errors as ``read_manifest``."""
  return Vocabulary.from_dict(read_manifest(data_dir)['vocabulary'])
