"""AISHELL-1 (openslr.org/33) and AISHELL-2 (aishelltech.com/aishell_2).

  data_aishell/transcript/aishell_transcript_v0.8.txt     lines: BAC009S0002W0122 而 对 楼市 ...
               wav/train/S0002/BAC009S0002W0122.wav       or wav/S0002.tar.gz, not unpacked
  AISHELL-2/iOS/data/trans.txt, wav.scp, wav/             lines: IC0001W0001, a tab, text or path
  AISHELL-DEV-TEST-SET/iOS/dev, iOS/test, Mic/dev, ...    the same files

The text of AISHELL-1 has spaces between words; they are removed between Chinese characters.
AISHELL-1 has some 300 recordings without a transcript, which are counted and left out.
"""

import functools
import pathlib
import re
import tarfile
from typing import Iterator

from ttt_jax.data.records import folders, readers
from ttt_jax.data.records.corpora.layout import (KINDS, Item, Layout, Piece, Root, Skip, groups,
                                                 lines, listed, relative)
from ttt_jax.errors import UserError
from ttt_jax.storage import url_path

_TRANSCRIPT = 'transcript/aishell_transcript_v0.8.txt'
_SPEAKERS = 8  # speakers per piece: about 2,800 recordings
_ID = re.compile(r'BAC\d{3}(S\d{4})W\d{4}')
_SPACE = re.compile(r'(?<=[\u3400-\u9fff]) +(?=\S)|(?<=\S) +(?=[\u3400-\u9fff])')


def unspaced(text: str) -> str:
  """Text without the spaces beside Chinese characters."""
  return _SPACE.sub('', text)


def _find(folder: pathlib.Path) -> Root | None:
  for root in (folder, folder / 'data_aishell'):
    if (root / _TRANSCRIPT).is_file():
      return Root(root)
  return None


@functools.lru_cache(4)
def _speakers(root: pathlib.Path) -> dict[str, dict[str, str]]:
  """Part -> speaker -> its folder or archive, relative to root; a folder has priority.

  Raises:
    UserError: an archive that cannot be read.
  """
  out: dict[str, dict[str, str]] = {part: {} for part in KINDS}
  for path in folders.visible(root / 'wav', 'S*.tar.gz'):
    try:
      with path.open('rb') as file, tarfile.open(fileobj=file, mode='r:gz') as archive:
        first = next((one.name for one in archive if one.isfile() and _is_visible(one)), '')
    except (tarfile.TarError, OSError, EOFError) as error:
      raise UserError(f'archive {path} cannot be read ({error}); copy it again.') from error
    part = next((part for part in KINDS if part in pathlib.PurePosixPath(first).parts), None)
    if part is None:
      raise UserError(f'archive {path} begins with {first!r}; one of AISHELL-1 has '
                      'train/S0002/*.wav, or dev or test.')
    out[part][path.name.partition('.')[0]] = relative(path, root)
  for part, found in out.items():
    found.update({path.name: relative(path, root) for path in (root / 'wav' / part).glob('S*')
                  if path.is_dir()})
  return out


def _parts(root: pathlib.Path) -> dict[str, str]:
  found = _speakers(root)
  return {part: part for part in KINDS if found[part]}


def _pieces(root: pathlib.Path, part: str) -> list[Piece]:
  _speakers.cache_clear()
  found = _speakers(root)
  places = [found[part][speaker] for speaker in sorted(found[part])]
  if part == 'train':  # transcripts of speakers that are nowhere: errors of the first piece
    places.insert(0, 'wav')
  return [Piece(str(root / _TRANSCRIPT), corpus='aishell1', root=str(root), part=part, files=files)
          for files in groups(places, _SPEAKERS)]


@functools.lru_cache(1)
def _transcripts(path: str, stamp: tuple[int, int]) -> dict[str, dict[str, tuple[int, str]]]:
  """Speaker -> ID -> (line, text)."""
  del stamp  # a part of the cache's key
  out: dict[str, dict[str, tuple[int, str]]] = {}
  for number, (where, line) in enumerate(lines(url_path.place(path)), 1):
    if isinstance(line, UserError):
      raise line
    name, _, text = line.partition(' ')
    found = _ID.fullmatch(name)
    if not found:
      raise UserError(f'{where}: {name[:40]!r} is no ID of AISHELL-1, such as BAC009S0002W0122.')
    out.setdefault(found[1], {})[name] = number, text.strip()
  return out


def _items(piece: Piece, task: str) -> Iterator[Item]:
  texts = _transcripts(piece.path, url_path.stamp(piece.path))
  for place in piece.files:
    if place == 'wav':
      yield from _nowhere(piece, texts)
      continue
    speaker = pathlib.PurePosixPath(place).name.partition('.')[0]
    mine = dict(texts.get(speaker, {}))
    for name, audio in _sounds(url_path.place(piece.root), place):
      if name not in mine:
        yield f'{piece.root}/{place}:{name}', Skip('recording without a transcript')
        continue
      number, text = mine.pop(name)
      yield f'{piece.path}:{number}', {'id': name, 'audio': audio, 'text': text,
                                       'speaker': speaker}
    for name, (number, _) in mine.items():
      where = f'{piece.path}:{number}'
      yield where, UserError(f'{where}: {name} has a transcript, but no recording in '
                             f'{url_path.join(piece.root, place)}.')


def _is_visible(one: tarfile.TarInfo) -> bool:
  return not pathlib.PurePosixPath(one.name).name.startswith('.')


def _sounds(root: pathlib.Path, place: str) -> Iterator[tuple[str, str | bytes]]:
  """(ID, path relative to root, or the contents) of the recordings of a speaker, in order."""
  path = root / place
  if path.is_dir():
    for wav in folders.visible(path, '*.wav'):
      yield wav.stem, relative(wav, root)
    return
  try:
    with path.open('rb') as packed, tarfile.open(fileobj=packed, mode='r:gz') as archive:
      for one in archive:
        if one.isfile() and one.name.endswith('.wav') and _is_visible(one):
          file = archive.extractfile(one)
          assert file is not None, 'a regular file'
          yield pathlib.PurePosixPath(one.name).stem, file.read()
  except (tarfile.TarError, OSError, EOFError) as error:
    raise UserError(f'archive {path} cannot be read ({error}); copy it again.') from error


def _nowhere(piece: Piece, texts: dict[str, dict[str, tuple[int, str]]]) -> Iterator[Item]:
  """Errors for the transcripts of speakers who have neither a folder nor an archive."""
  known = {speaker for found in _speakers(url_path.place(piece.root)).values() for speaker in found}
  for speaker in sorted(set(texts) - known):
    for name, (number, _) in texts[speaker].items():
      where = f'{piece.path}:{number}'
      yield where, UserError(f'{where}: {name} has a transcript, but speaker {speaker} has neither '
                             f'{speaker}.tar.gz nor train/{speaker}, dev/{speaker} or '
                             f'test/{speaker} in {piece.root}/wav; finish the download.')


AISHELL1 = Layout('aishell1', 'AISHELL-1', f'{_TRANSCRIPT} and wav/', ('asr', 'tts'), _find, _parts,
                  _pieces, _items, text=unspaced)


# -- AISHELL-2 ------------------------------------------------------------------------------

_TABLES = ('trans.txt', 'wav.scp')
# Part -> its folders in the two archives; the development and test sets have three microphones.
_FOLDERS = {'train': ('iOS/data',),
            **{f'{kind}-{channel.lower()}': (f'{channel}/{kind}',)
               for kind in ('dev', 'test') for channel in ('iOS', 'Android', 'Mic')}}
_ROOTS = ('', 'AISHELL-2', 'AISHELL-DEV-TEST-SET', 'AISHELL-2/AISHELL-DEV-TEST-SET')


def _places2(root: pathlib.Path) -> dict[str, pathlib.Path]:
  """Part -> the folder with its tables."""
  out = {}
  for part, found in _FOLDERS.items():
    for inner in _ROOTS:
      for name in found:
        place = root / inner / name
        if part not in out and all((place / table).is_file() for table in _TABLES):
          out[part] = place
  return out


def _find2(folder: pathlib.Path) -> Root | None:
  if all((folder / table).is_file() for table in _TABLES):
    names = {f'{path.parts[-2].lower()}/{path.parts[-1]}': part for part, found in _FOLDERS.items()
             for path in map(pathlib.PurePosixPath, found)}
    where = folder.resolve()
    return Root(folder, names.get(f'{where.parent.name.lower()}/{where.name}', 'train'))
  return Root(folder) if _places2(folder) else None


def _parts2(root: pathlib.Path) -> dict[str, str]:
  found = _places2(root)
  return {part: part.partition('-')[0] for part in found if part in _DEFAULT2} or {
      part: part.partition('-')[0] for part in found}


_DEFAULT2 = ('train', 'dev-ios', 'test-ios')  # the sets that papers report


def _pieces2(root: pathlib.Path, part: str) -> list[Piece]:
  place = _places2(root).get(part, root)
  for table in _TABLES:
    if not (place / table).is_file():
      raise UserError(f'{place} has no {table}; a part of AISHELL-2 has trans.txt and wav.scp.')
  return [Piece(one.path, one.start, one.stop, one.before, 'aishell2', str(place), part,
                (_TABLES[1],)) for one in readers.cut_lines(place / _TABLES[0])]


def _items2(piece: Piece, task: str) -> Iterator[Item]:
  said: list[tuple[str, str | UserError, str]] = []
  for where, line in lines(url_path.place(piece.path), piece):
    if isinstance(line, UserError):
      said.append((where, line, ''))
    else:
      name, _, text = line.strip().partition('\t' if '\t' in line else ' ')
      said.append((where, name, text.strip()))
  scp = url_path.join(piece.root, _TABLES[1])
  sounds = listed(scp, {name for _, name, _ in said if isinstance(name, str)})
  for where, name, text in said:
    if isinstance(name, UserError):
      yield where, name
    elif name not in sounds:
      yield where, UserError(f'{where}: {name} has a transcript, but no line in {scp}.')
    else:
      yield where, {'id': name, 'audio': sounds[name], 'text': text}


AISHELL2 = Layout('aishell2', 'AISHELL-2', 'iOS/data/trans.txt and wav.scp beside it',
                  ('asr', 'tts'), _find2, _parts2, _pieces2, _items2,
                  others=tuple(part for part in _FOLDERS if part not in _DEFAULT2), text=unspaced)
