"""The verbs about runs as a whole: `supervise` keeps one going."""

import argparse
from collections.abc import Callable
import os
import shutil
import signal
import socket
import sys
import time

from ttt_jax import supervise as supervise_lib
from ttt_jax.errors import UserError

POLL = 0.1  # seconds


def add_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
  """Add the verbs of VERBS to the command line.

  Args:
    verb: (name, text, example, takes_config=True) -> its parser, which has --workdir already.
  """
  sub = verb('supervise', 'run a command and start it again after preemptions and crashes',
             'ttt-jax supervise --workdir demo --processes 2 -- ttt-jax train --workdir demo',
             takes_config=False)
  sub.set_defaults(command=[])
  sub.add_argument('--processes', type=int, default=1, metavar='N',
                   help='start N processes of `ttt-jax train` that work together on this machine '
                        '(default: 1)')
  sub.add_argument('--failures', type=int, default=5, metavar='N',
                   help='stop after N failures in a row without a newer checkpoint (default: 5)')
  sub.add_argument('--wait', type=float, default=10.0, metavar='SECONDS',
                   help='before the start after the first failure; doubles with each, up to 5 '
                        'minutes (default: 10)')
  sub.add_argument('--log', metavar='NAME',
                   help='name of the log in WORKDIR/logs, where several machines write there '
                        '(default: process-RANK where SLURM or Kubernetes say the rank)')


def _supervise(args: argparse.Namespace, config: None) -> int:
  command = own_command(args.command)
  for flag, value in (('--processes', args.processes), ('--failures', args.failures)):
    if value < 1:
      raise UserError(f'{flag} is {value}; it must be at least 1.')
  if args.wait < 0:
    raise UserError(f'--wait is {args.wait}; it must not be negative.')
  names = ()
  if args.processes > 1:
    if args.command[:2] != ['ttt-jax', 'train']:
      raise UserError(f'--processes {args.processes} starts `ttt-jax train`, not '
                      f'`{" ".join(args.command[:2])}`; leave it out for other commands.')
  else:
    names = [args.log or f'process-{_rank()}']

  def commands(attempt: int) -> list[list[str]]:
    if args.processes == 1:
      return [command]
    port = free_port()  # a new one each time: the old one may still be held by the dead
    return [[*command, '--processes', str(args.processes), '--process', str(index),
             '--coordinator', f'127.0.0.1:{port}'] for index in range(args.processes)]

  def show(output: bytes) -> None:
    sys.stderr.buffer.write(output)
    sys.stderr.flush()

  supervisor = supervise_lib.Supervisor(
      commands, args.workdir, supervise_lib.Rules(failures=args.failures, wait=args.wait),
      names=names, say=_say, show=show)
  return attend(supervisor)


def attend(supervisor: supervise_lib.Supervisor) -> int:
  """Poll until it is over, passing signals on; returns its exit code."""
  with_signals(supervisor.ask)
  try:
    while (code := supervisor.poll()) is None:
      time.sleep(POLL)
  finally:
    supervisor.end()
  return code


def with_signals(ask: Callable[[int], None]) -> None:
  """From now on SIGTERM, SIGINT and SIGUSR1 call ``ask`` with their number."""
  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: ask(number))


def own_command(command: list[str]) -> list[str]:
  """The command with `ttt-jax` replaced by this very installation.

  Raises:
    UserError: there is none, or its program cannot be found.
  """
  if not command:
    raise UserError("name the command behind '--', as in `ttt-jax supervise --workdir demo -- "
                    'ttt-jax train --workdir demo`.')
  if command[0] == 'ttt-jax':
    return [sys.executable, '-m', 'ttt_jax.cli', *command[1:]]
  if shutil.which(command[0]) is None:
    raise UserError(f'program {command[0]!r} cannot be found; check its name and PATH.')
  return list(command)


def free_port() -> int:
  """A TCP port of this machine that nobody listens on."""
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]


def _rank() -> int:
  """This host's number among the others, where a scheduler says it."""
  for name in ('SLURM_PROCID', 'JOB_COMPLETION_INDEX', 'TPU_WORKER_ID'):
    if os.environ.get(name, '').isdigit():
      return int(os.environ[name])
  return 0


def _say(sentence: str) -> None:
  print(f'{time.strftime("%H:%M:%S")}  supervise: {sentence}', file=sys.stderr, flush=True)


VERBS = {'supervise': _supervise}
