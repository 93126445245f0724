"""`make clean`: removes what the demo, the campaigns and the builds wrote, and nothing else.

  python tools/clean.py            remove it
  python tools/clean.py --mark DIR list the files of a folder that has just been made
  python tools/clean.py --made DIR exit code 0 if there is no such folder or all of it was made so

A folder is removed if every file in it is listed in its marker and unchanged; see storage.owned.
One that was used since (a training in demo/) is named and stays.
"""

import argparse
import pathlib
import re
import shutil
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout need not be installed

from ttt_jax.storage import owned  # noqa: E402

FOLDERS = ('demo', 'faults', 'together', 'disks')
REPORTS = ('faults.json', 'full-size.json', 'together.json', 'disks.json')
CACHES = ('.pytest_cache', '.ruff_cache', '.hypothesis')
# In build/ and dist/: what setuptools, pip and mkdocs write.
BUILT = re.compile(r'site|lib|bdist\..*|temp\..*|ttt_jax-[\w.]+(\.tar\.gz|-py3-none-any\.whl)')
PACKAGES = ('ttt_jax', 'tests', 'tools', 'configs', 'benchmarks')


def clean(root: pathlib.Path) -> list[str]:
  """Removes it; returns sentences about what stays."""
  stays = []
  for name in FOLDERS:
    folder = root / name
    if folder.is_dir() and (found := owned.remove(folder)):
      stays.append(f'{name} stays: {found} is not what the last `make` wrote there; '
                   f'remove it with `rm -r {name}` if nothing in it is needed.')
  for name in REPORTS:
    (root / name).unlink(missing_ok=True)
  for name in CACHES:
    shutil.rmtree(root / name, ignore_errors=True)
  for folder in (root / 'build', root / 'dist'):
    for path in folder.glob('*') if folder.is_dir() else ():
      if BUILT.fullmatch(path.name):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
      else:
        stays.append(f'{path.relative_to(root)} stays: no build wrote it.')
    if folder.is_dir() and not any(folder.iterdir()):
      folder.rmdir()
  for package in PACKAGES:
    for cache in (root / package).rglob('__pycache__'):
      for path in cache.glob('*.pyc'):
        path.unlink()
      if not any(cache.iterdir()):
        cache.rmdir()
  return stays


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--mark', metavar='DIR', type=pathlib.Path)
  parser.add_argument('--made', metavar='DIR', type=pathlib.Path)
  args = parser.parse_args()
  if args.mark:
    owned.mark(args.mark, 'made by make')
    return 0
  if args.made:
    return int(args.made.exists() and owned.foreign(args.made) is not None)
  for sentence in clean(ROOT):
    print(sentence)
  return 0


if __name__ == '__main__':
  sys.exit(main())
