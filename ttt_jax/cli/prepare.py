"""`ttt-jax prepare`."""

import argparse
import re
from typing import TYPE_CHECKING

from ttt_jax import config as config_lib
from ttt_jax.errors import UserError

if TYPE_CHECKING:
  from ttt_jax.data.prepare.team import Worker


def add_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--worker', metavar='K/N', help='this is process K (0 to N-1) of N that '
                      'prepare one set together, on machines that share a disk or a bucket')
  parser.add_argument('--dry-run', action='store_true', help='write nothing; estimate tokens, '
                      'size and time from a sample of the sources')


def run(args: argparse.Namespace, config: config_lib.Config) -> None:
  worker = _worker(args.worker)
  if args.dry_run:
    if worker:
      raise UserError('--worker has no effect on `ttt-jax prepare --dry-run`; remove it.')
    from ttt_jax.data.prepare import dry_run
    print(dry_run.table(dry_run.plan(config, args.workdir)))
    return
  from ttt_jax.data import store
  from ttt_jax.data.prepare.prepare import prepare
  from ttt_jax.data.prepare.summary import table
  from ttt_jax.system.progress import Stages
  config_lib.check_saved(args.workdir)
  with Stages() as stages:
    manifest = prepare(config, args.workdir, stages, worker)
  config_lib.save(config, args.workdir)
  print(f'prepared {store.locate(args.workdir, config.data.path)}\n{table(manifest)}')


def _worker(text: str | None) -> 'Worker | None':
  if text is None:
    return None
  found = re.fullmatch(r'(\d{1,6})/(\d{1,6})', text)
  if not found or int(found[1]) >= int(found[2]):
    raise UserError(f'--worker is {text!r}; it must be K/N, a number from 0 to N-1 and the '
                    'number of workers, such as 0/4.')
  from ttt_jax.data.prepare.team import Worker
  return Worker(int(found[1]), int(found[2]))
