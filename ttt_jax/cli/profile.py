"""The command `profile`: a trace, or a memory profile, of a run that is training."""

import argparse
from collections.abc import Callable
import pathlib
import shlex
import sys
import time

from ttt_jax.errors import UserError

LOG_EVERY = 10.0  # seconds between lines in a log


def add_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
  """Add the command; ``verb`` as in cli/generate.py."""
  sub = verb('profile', 'record what a run is doing: where the time, or the memory, goes',
             'ttt-jax profile --workdir demo --seconds 5', takes_config=False)
  sub.add_argument('--seconds', type=float, default=5.0, metavar='S',
                   help='length of the trace (default: 5)')
  sub.add_argument('--process', default='0', metavar='K',
                   help="index of the process that is recorded, or 'all' (default: 0)")
  sub.add_argument('--memory', action='store_true',
                   help="record what is in the devices' memory now, instead of a trace")
  sub.add_argument('--timeout', type=float, default=60.0, metavar='S',
                   help='seconds until the run must have begun (default: 60)')


def _profile(args: argparse.Namespace, config: None) -> None:
  from ttt_jax.runs import live_profile
  from ttt_jax.storage import mirror
  from ttt_jax.train import profile_files
  process = profile_files.ALL if args.process == 'all' else _index(args.process)
  if not 0 < args.seconds <= profile_files.SECONDS:
    raise UserError(f'--seconds is {args.seconds:g}; it must be above 0 and at most '
                    f'{profile_files.SECONDS:g}.')
  if not 0 < args.timeout < 1e6:
    raise UserError(f'--timeout is {args.timeout:g}; it must be above 0 and below 1,000,000.')
  line = _Line()
  try:
    found = live_profile.profile(args.workdir, seconds=args.seconds, process=process,
                                 memory=args.memory, timeout=args.timeout, say=line.show)
  finally:
    line.clear()
  for path, size in found:
    print(f'{mirror.named(path)} ({_size(size)})')
  if not args.memory:
    print(f'Open with: {profile_files.viewer(pathlib.Path(args.workdir))}')
    return
  path, copy = found[0][0], mirror.url_of(found[0][0])  # pprof reads no buckets
  print(f'{"Copy it to a disk and open it" if copy else "Open"} with: pprof -http=127.0.0.1:8792 '
        f'{shlex.quote(path.name if copy else str(path))}')


def _size(count: int) -> str:
  return f'{count / 1e6:.1f} MB' if count >= 1e6 else f'{count / 1e3:.1f} kB'


def _index(text: str) -> int:
  if not text.isdecimal() or len(text) > 9:
    raise UserError(f"--process is {text!r}; it must be the index of a process, from 0, or 'all'.")
  return int(text)


class _Line:
  """A line that says what is waited for: redrawn on a terminal, now and then in a log."""

  def __init__(self):
    self._redraws = sys.stderr.isatty()
    self._shown, self._logged = '', -LOG_EVERY

  def show(self, text: str) -> None:
    if self._redraws:
      print(f'\r{text}{" " * (len(self._shown) - len(text))}', end='', file=sys.stderr, flush=True)
      self._shown = text
    elif time.monotonic() - self._logged >= LOG_EVERY:
      self._logged = time.monotonic()
      print(f'profile: {text}', file=sys.stderr, flush=True)

  def clear(self) -> None:
    if self._shown:
      print(f'\r{" " * len(self._shown)}\r', end='', file=sys.stderr, flush=True)


VERBS = {'profile': _profile}
