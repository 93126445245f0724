"""LibriSpeech (openslr.org/12), mini LibriSpeech (31) and LibriTTS (60), as their archives unpack.

  LibriSpeech/train-clean-100/103/1240/103-1240.trans.txt     lines: 103-1240-0000 CHAPTER ONE ...
                                       103-1240-0000.flac
  LibriTTS/train-clean-100/103/1241/103_1241.trans.tsv        lines: id, original, normalized text
                                    103_1241_000000_000001.wav

LibriSpeech's transcripts are in capitals without punctuation. LibriTTS's are sentences, of which
the normalized one is read.
"""

import pathlib
from typing import Iterator

from ttt_jax.data.records import folders
from ttt_jax.data.records.corpora.layout import (Item, Layout, Piece, Root, groups, kind_of, lines,
                                                 relative)
from ttt_jax.errors import UserError
from ttt_jax.storage import url_path

_PARTS = ('train-clean-100', 'train-clean-360', 'train-other-500', 'train-clean-5', 'dev-clean',
          'dev-clean-2', 'dev-other', 'test-clean', 'test-other')
_CHAPTERS = 32  # chapters per piece: about 1,600 recordings


def _find(inner: str, pattern: str):
  """``Layout.find`` of a corpus in a folder ``inner`` whose transcripts match a pattern."""
  def find(folder: pathlib.Path) -> Root | None:
    for root in (folder, folder / inner):
      for part in _PARTS:
        if next((root / part).glob(pattern), None):
          return Root(root)
    known = folder.name in _PARTS and next(folder.glob(pattern), None)
    return Root(folder.parent, folder.name) if known else None
  return find


def _parts(root: pathlib.Path) -> dict[str, str]:
  return {part: kind_of(part) for part in _PARTS if (root / part).is_dir()}


def _pieces(name: str, ending: str):
  """``Layout.pieces`` of a corpus whose transcripts end in ``ending``."""
  def pieces(root: pathlib.Path, part: str) -> list[Piece]:
    found = []
    for chapter in folders.visible(root / part, '*/*'):
      if not chapter.is_dir():
        continue
      transcripts = folders.visible(chapter, f'*{ending}')
      if not transcripts:
        raise UserError(f'{chapter} has no transcript (*{ending}); copy the corpus again, or '
                        'remove the folder.')
      found += [relative(path, root) for path in transcripts]
    return [Piece(str(root / part), corpus=name, root=str(root), part=part, files=files)
            for files in groups(found, _CHAPTERS)]
  return pieces


def _speech(piece: Piece, task: str) -> Iterator[Item]:
  for name in piece.files:
    path = url_path.join(piece.root, name)
    for where, line in lines(path):
      if isinstance(line, UserError):
        yield where, line
        continue
      key, _, text = line.partition(' ')
      yield where, {'id': key, 'audio': f'{pathlib.PurePosixPath(name).parent}/{key}.flac',
                    'text': text, 'speaker': key.partition('-')[0]}


def _tts(piece: Piece, task: str) -> Iterator[Item]:
  for name in piece.files:
    path = url_path.join(piece.root, name)
    for where, line in lines(path):
      cells = line.split('\t') if isinstance(line, str) else []
      if isinstance(line, UserError):
        yield where, line
      elif len(cells) != 3:
        yield where, UserError(f'{where}: {len(cells)} values, but a line of LibriTTS has an ID, '
                               'the original and the normalized text, separated by tabs.')
      else:
        yield where, {'id': cells[0],
                      'audio': f'{pathlib.PurePosixPath(name).parent}/{cells[0]}.wav',
                      'text': cells[2], 'speaker': cells[0].partition('_')[0]}


LIBRISPEECH = Layout(
    'librispeech', 'LibriSpeech', 'train-clean-100/SPEAKER/CHAPTER/*.trans.txt or another part',
    ('asr', 'tts'), _find('LibriSpeech', '*/*/*.trans.txt'), _parts,
    _pieces('librispeech', '.trans.txt'), _speech, text=str.lower)
LIBRITTS = Layout(
    'libritts', 'LibriTTS', 'train-clean-100/SPEAKER/CHAPTER/*.trans.tsv or another part',
    ('asr', 'tts'), _find('LibriTTS', '*/*/*.trans.tsv'), _parts,
    _pieces('libritts', '.trans.tsv'), _tts)
