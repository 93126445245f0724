"""VoiceAssistant-400K (huggingface.co/datasets/gpt-omni/VoiceAssistant-400K) and sets like it.

  data/train-00000-of-00325.parquet    columns question, question_audio {bytes, path}, answer,
                                       answer_snac, split_name, index, round

A row is a spoken question with a written answer. answer_snac is the answer in codes of SNAC,
another codec; `prepare` lists it among the keys that are not used.
"""

import pathlib
from typing import Iterator

from ttt_jax.data.records import columns, folders, readers
from ttt_jax.data.records.corpora.layout import Item, Layout, Piece, Root, kind_of
from ttt_jax.errors import UserError

_COLUMNS = frozenset(('question_audio', 'answer', 'answer_snac'))


def _files(root: pathlib.Path) -> dict[str, list[pathlib.Path]]:
  """Part -> its files: data/train-*.parquet, or those beside each other."""
  out: dict[str, list[pathlib.Path]] = {}
  for place in (root / 'data', root):
    for path in folders.visible(place, '*.parquet') if not out else ():
      name = path.name.partition('-')[0].partition('.')[0].lower()
      out.setdefault(name if name in ('train', 'validation', 'test') else 'train', []).append(path)
  return out


def _find(folder: pathlib.Path) -> Root | None:
  first = next((path for found in _files(folder).values() for path in found), None)
  if first is None:
    return None
  try:
    return Root(folder) if columns.names(first) >= _COLUMNS else None
  except UserError:
    return None  # the reader of the files reports it


def _pieces(root: pathlib.Path, part: str) -> list[Piece]:
  return [Piece(one.path, one.start, one.stop, one.before, 'voiceassistant', str(root), part)
          for path in _files(root)[part] for one in readers.cut(path)]


def _items(piece: Piece, task: str) -> Iterator[Item]:
  plain = readers.Piece(piece.path, piece.start, piece.stop, piece.before)
  for where, value in readers.items(plain):
    if isinstance(value, dict) and 'answer_snac' in value:
      value = {('answer_snac, codes of another codec' if key == 'answer_snac' else key): found
               for key, found in value.items()}
    yield where, value


VOICE_ASSISTANT = Layout(
    'voiceassistant', 'VoiceAssistant-400K',
    'data/train-*.parquet with the columns question_audio, answer and answer_snac',
    ('audio_chat', 'audio_qa'), _find,
    lambda root: {part: 'dev' if part == 'validation' else kind_of(part) for part in _files(root)},
    _pieces, _items, official=False)
