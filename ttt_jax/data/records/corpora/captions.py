"""Captions of sounds: Clotho (zenodo.org/records/4783391) and MACS (zenodo.org/records/5114771).

  clotho_captions_development.csv    file_name, caption_1, ..., caption_5; validation, evaluation
  development/NAME.wav               as clotho_audio_development.7z unpacks
  MACS.yaml                          files: [{filename, annotations: [{sentence, tags}]}]
  audio/NAME.wav                     of TAU Urban Acoustic Scenes 2019, development

Every caption is a recording of its own; the sound is encoded once. MACS gives captions (task aac),
the tags of a sound's annotators as its events (sec), and the scene in its file's name (asc).
"""

import csv
import io
import pathlib
from typing import Any, Iterator

from ttt_jax.data.records import compression, json_stream
from ttt_jax.data.records.corpora.layout import Item, Layout, Piece, Root
from ttt_jax.errors import UserError
from ttt_jax.storage import url_path

_CLOTHO = {'development': 'train', 'validation': 'dev', 'evaluation': 'test'}
_CAPTIONS = tuple(f'caption_{i}' for i in range(1, 6))


def _find_clotho(folder: pathlib.Path) -> Root | None:
  return next((Root(root) for root in (folder, folder / 'clotho') for part in _CLOTHO
               if _table(root, part).is_file()), None)


def _table(root: pathlib.Path, part: str) -> pathlib.Path:
  return root / f'clotho_captions_{part}.csv'


def _pieces_clotho(root: pathlib.Path, part: str) -> list[Piece]:
  names = (part, f'clotho_audio_{part}/{part}', f'clotho_audio_{part}')
  sounds = next((name for name in names if (root / name).is_dir()), None)
  if sounds is None:
    raise UserError(f'{root} has no folder {part} with the sounds of Clotho; unpack '
                    f'clotho_audio_{part}.7z there.')
  return [Piece(str(_table(root, part)), corpus='clotho', root=str(root / sounds), part=part)]


def _items_clotho(piece: Piece, task: str) -> Iterator[Item]:
  with compression.opened(url_path.place(piece.path)) as file:
    rows = csv.DictReader(io.TextIOWrapper(file, json_stream.encoding(file), newline=''))
    try:
      missing = {'file_name', *_CAPTIONS} - {name for name in rows.fieldnames or ()}
      if missing:
        raise UserError(f'{piece.path}: there is no column {", ".join(sorted(missing))}; the '
                        'captions of Clotho have file_name and caption_1 to caption_5.')
      for row in rows:
        where = f'{piece.path}:{rows.line_num}'
        if None in row or None in row.values():
          yield where, UserError(f'{where}: the row has another number of values than the header.')
          continue
        for i, name in enumerate(_CAPTIONS, 1):
          yield where, {'id': f'{row["file_name"]}-{i}', 'audio': row['file_name'],
                        'answer': row[name].strip()}
    except UnicodeDecodeError as error:
      raise UserError(f'{piece.path}:{rows.line_num + 1}: not UTF-8; save the file as UTF-8.'
                      ) from error
    except csv.Error as error:
      raise UserError(f'{piece.path}:{rows.line_num}: not CSV ({error}).') from error


CLOTHO = Layout('clotho', 'Clotho', 'clotho_captions_development.csv and development/', ('aac',),
                _find_clotho,
                lambda root: {part: kind for part, kind in _CLOTHO.items()
                              if _table(root, part).is_file()}, _pieces_clotho, _items_clotho)


# -- MACS -----------------------------------------------------------------------------------

_SOUNDS = ('audio', 'TAU-urban-acoustic-scenes-2019-development/audio')


def _find_macs(folder: pathlib.Path) -> Root | None:
  return next((Root(root) for root in (folder, folder / 'MACS')
               if (root / 'MACS.yaml').is_file()), None)


def _pieces_macs(root: pathlib.Path, part: str) -> list[Piece]:
  sounds = next((name for name in _SOUNDS if (root / name).is_dir()), None)
  if sounds is None:
    raise UserError(f'{root} has no folder audio with the sounds of MACS; unpack TAU Urban '
                    'Acoustic Scenes 2019, development, there (zenodo.org/records/2589280).')
  return [Piece(str(root / 'MACS.yaml'), corpus='macs', root=str(root / sounds), part=part)]


def _items_macs(piece: Piece, task: str) -> Iterator[Item]:
  import yaml
  with url_path.place(piece.path).open('rb') as file:
    try:
      found = yaml.load(file, getattr(yaml, 'CSafeLoader', yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
      raise UserError(f'{piece.path} is not YAML ({" ".join(str(error).split())[:200]}).'
                      ) from error
  files = found.get('files') if isinstance(found, dict) else None
  if not isinstance(files, list):
    raise UserError(f'{piece.path} has no list "files"; MACS.yaml has one, with filename and '
                    'annotations.')
  for number, one in enumerate(files, 1):
    where = f'{piece.path}:{number}'
    name = one.get('filename') if isinstance(one, dict) else None
    notes = one.get('annotations') if isinstance(one, dict) else None
    if not isinstance(name, str) or not isinstance(notes, list) or not all(
        isinstance(note, dict) for note in notes):
      yield where, UserError(f'{where}: an element of "files" needs filename and a list of '
                             'annotations.')
      continue
    for i, answer in enumerate(_answers(name, notes, task), 1):
      yield where, {'id': f'{name}-{i}', 'audio': name, 'answer': answer}


def _answers(name: str, notes: list[dict[str, Any]], task: str) -> list[Any]:
  if task == 'aac':
    return [note.get('sentence') for note in notes]
  if task == 'asc':
    return [name.partition('-')[0].replace('_', ' ')]
  tags = dict.fromkeys(str(tag) for note in notes if isinstance(note.get('tags'), list)
                       for tag in note['tags'])
  return [', '.join(tags)]


MACS = Layout('macs', 'MACS', 'MACS.yaml and audio/', ('aac', 'sec', 'asc'), _find_macs,
              lambda root: {'full': 'train'}, _pieces_macs, _items_macs, official=False)
