"""Common Voice (commonvoice.mozilla.org): tables of one language beside its folder clips.

  cv-corpus-17.0-2024-03-15/en/train.tsv, dev.tsv, test.tsv, validated.tsv, other.tsv, ...
                               clips/common_voice_en_1.mp3

Every table but train, dev and test overlaps with these; it is read only where it is named.
"""

import pathlib
from typing import Iterator

from ttt_jax.data.records import tables
from ttt_jax.data.records.corpora.layout import KINDS, Item, Layout, Piece, Root
from ttt_jax.errors import UserError
from ttt_jax.storage import url_path

_OTHERS = ('validated', 'other', 'invalidated')


def _is_language(folder: pathlib.Path) -> bool:
  return (folder / 'clips').is_dir() and any(
      (folder / f'{part}.tsv').is_file() for part in (*KINDS, *_OTHERS))


def _find(folder: pathlib.Path) -> Root | None:
  if _is_language(folder):
    return Root(folder)
  found = sorted(inner for pattern in ('*', 'cv-corpus-*/*') for inner in folder.glob(pattern)
                 if _is_language(inner))
  if len(found) > 1:
    raise UserError(f'{folder} has several languages of Common Voice; name the folder of one: '
                    f'{", ".join(map(str, found[:6]))}.')
  return Root(found[0]) if found else None


def _pieces(root: pathlib.Path, part: str) -> list[Piece]:
  path = root / f'{part}.tsv'
  if not path.is_file():
    raise UserError(f'{path} does not exist, the table of part {part!r} of Common Voice.')
  return [Piece(str(path), corpus='commonvoice', root=str(root), part=part)]


def _items(piece: Piece, task: str) -> Iterator[Item]:
  for where, value in tables.rows(url_path.place(piece.path)):
    if isinstance(value, dict) and isinstance(value.get('path'), str):
      value = {**value, 'path': f'clips/{value["path"]}'}
    yield where, value


COMMON_VOICE = Layout(
    'commonvoice', 'Common Voice', 'train.tsv, dev.tsv or test.tsv beside clips/', ('asr', 'tts'),
    _find, lambda root: {part: part for part in KINDS if (root / f'{part}.tsv').is_file()}, _pieces,
    _items, others=_OTHERS)
