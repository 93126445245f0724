"""What a folder that is named as a source stands for: its manifest, or a Hugging Face data set."""

import pathlib
import re

from ttt_jax.errors import UserError

MANIFESTS = ('manifest.jsonl', 'manifest.json', 'manifest.tsv', 'manifest.csv', 'manifest.parquet',
             'metadata.jsonl', 'metadata.csv', 'metadata.tsv', 'metadata.parquet', 'data.list',
             'wav.scp')
_KINDS = ('.parquet', '.arrow', '.jsonl', '.jsonl.gz', '.jsonl.zst', '.json', '.csv', '.tsv')
_ARCHIVES = ('.tar', '.tar.gz', '.tgz', '.tar.bz2', '.tar.xz', '.7z', '.zip')
# The first word of a file's name, which is its split: train-00000-of-00001.parquet, test.csv.
_SPLIT = re.compile(r'(train|training|validation|valid|val|dev|test|testing|eval|evaluation|data)'
                    r'(?=[-_.\d])', re.IGNORECASE)


def visible(folder: pathlib.Path, pattern: str = '*') -> list[pathlib.Path]:
  """What matches a pattern in a folder, sorted, without hidden names: macOS leaves a ._NAME beside
  each file that it copies to a foreign disk or packs into an archive."""
  return sorted(path for path in folder.glob(pattern) if not path.name.startswith('.'))


def archives(folder: pathlib.Path) -> list[str]:
  """The names of the archives in a folder."""
  return [path.name for path in visible(folder) if path.name.lower().endswith(_ARCHIVES)]


def has_manifest(folder: pathlib.Path) -> bool:
  """Whether one of MANIFESTS is there; the wav.scp of AISHELL-2 has its text in another file."""
  return any((folder / name).is_file() for name in MANIFESTS[:-1]) or (
      (folder / 'wav.scp').is_file() and not (folder / 'trans.txt').is_file())


def manifest(folder: pathlib.Path) -> list[pathlib.Path]:
  """The files of records in a folder.

  One of MANIFESTS; or else the files that the Hub and the package `datasets` name by split, such as
  data/train-00000-of-00002.parquet, if there is one split.

  Raises:
    UserError: there is none, or more than one split.
  """
  for name in MANIFESTS:
    if (folder / name).is_file():
      return [folder / name]
  found = _splits(folder)
  if not found:
    packed = archives(folder)
    if packed:
      raise UserError(f'{folder} is a folder without a manifest, and its archives are not read; '
                      f'unpack {", ".join(packed[:4])}.')
    raise UserError(f'{folder} is a folder without a manifest; it needs one of '
                    f'{", ".join(MANIFESTS)}, with the keys audio and text, or files such as '
                    'data/train-00000-of-00001.parquet.')
  if len(found) > 1:
    patterns = ', '.join(f'{where}' for where in list(found)[:6])
    raise UserError(f'{folder} has several splits or subsets; name one as a pattern: {patterns}.')
  return next(iter(found.values()))


def _splits(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
  """Pattern -> the files of one split, in the folder, in data/ or else in its subfolders."""
  places = [folder, folder / 'data']
  found = {key: files for place in places for key, files in _of(place).items()}
  if found:
    return found
  inner = [place for place in visible(folder) if place.is_dir() and place.name[0] != '_']
  return {key: files for place in inner for key, files in _of(place).items()}


def _of(place: pathlib.Path) -> dict[str, list[pathlib.Path]]:
  out: dict[str, list[pathlib.Path]] = {}
  files = visible(place) if place.is_dir() else []
  tables = [file for file in files if file.is_file() and file.name.lower().endswith(_KINDS)]
  known = [file for file in tables if _SPLIT.match(file.name)]
  # 0000.parquet, as the Hub's converter writes it: the folder is the split.
  for file in known or [file for file in tables if file.suffix == '.parquet']:
    split = _SPLIT.match(file.name)
    ending = ''.join(file.suffixes[-2:]) if file.suffix in ('.gz', '.zst') else file.suffix
    out.setdefault(f'{place}/{split[0] if split else ""}*{ending}', []).append(file)
  return out
