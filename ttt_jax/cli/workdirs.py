"""What --workdir must be: a folder, the one of the run and not one in it, and where a command only
reads, one that holds a run."""

import argparse
from collections.abc import Callable, Collection, Iterable
import difflib
import os
import pathlib
import re

from ttt_jax.errors import UserError
from ttt_jax.storage import mirror, remote

# Commands that show what is there, and one of the files that they show.
_READERS = ('status', 'report', 'profile')
_OF_A_RUN = ('config.json', 'status.json', 'metrics.jsonl', 'sweep.json', 'sweep.csv',
             'evaluation.json', 'member.json')
_SEAL = re.compile(r'(?:(0|[1-9][0-9]*)/)?seal\.json')
_PREPARED = 'manifest.json'


def names_in(folder: str) -> list[str]:
  """The names in a folder on a disk, and 'STEP/seal.json' of checkpoints in it; [] if there is no
  such folder.

  Raises:
    UserError: it is a file.
  """
  if os.path.isfile(folder):
    raise UserError(f'workdir {folder} is a file; name a folder.')
  try:
    names = os.listdir(folder)
  except OSError:
    return []  # whoever uses it says why
  return names + [f'{name}/seal.json' for name in names if name.isdecimal() and os.path.isfile(
      os.path.join(folder, name, 'seal.json'))]


def check(args: argparse.Namespace, workdir: str, names: Collection[str]) -> None:
  """UserError unless a command can use a workdir.

  Args:
    args: of the command.
    workdir: a folder on a disk, which may be the copy of one in a bucket.
    names: of what is in it; in a bucket also in the folders there.
  """
  shown = mirror.named(workdir)
  seals = [found for name in names if (found := _SEAL.fullmatch(name))]
  if seals:
    depth = 1 if seals[0][1] else 2
    what = 'the checkpoints of a run' if depth == 1 else 'a checkpoint of a run'
    run = shown
    for _ in range(depth):
      run = remote.parent(run) if remote.is_url(run) else os.path.dirname(os.path.abspath(run))
    raise UserError(f'workdir {shown} holds {what}; name the folder of the run: {run}.')
  if _PREPARED in names and remote.is_url(shown):
    raise UserError(f'workdir {shown} is a prepared set; name another folder, and the set with '
                    f'--config.data.path={shown}.')
  reads = args.verb in _READERS or args.verb == 'sweep' and args.collect
  if args.verb == 'profile' and remote.is_url(shown):
    return  # a run that has just begun shows nothing in its bucket yet, which `profile` says
  if reads and not any(name in names for name in _OF_A_RUN):
    there = bool(names) or not remote.is_url(shown) and os.path.isdir(shown)
    raise UserError((f'there is no run in {shown}; ' if there else
                     f'workdir {shown} does not exist; ')
                    + (_suggestion(shown) or 'name the folder of a run or a sweep') + '.')


def _suggestion(shown: str) -> str:
  """A folder beside it with a similar name; '' if there is none."""
  if remote.is_url(shown):
    above, name = remote.parent(shown), remote.name(shown)
    join: Callable[[str, str], str] = remote.join
    beside: Iterable[str] = (one for one, entry in remote.children(above).items() if entry is None)
  else:
    path = pathlib.Path(os.path.abspath(shown))
    above, name, join = os.path.dirname(shown), path.name, os.path.join
    try:
      beside = [one.name for one in path.parent.iterdir() if one.is_dir()]
    except OSError:
      return ''
  close = difflib.get_close_matches(name, [one for one in beside if one != name], n=1, cutoff=0.6)
  return f'perhaps {join(above, close[0])} is meant' if close else ''
