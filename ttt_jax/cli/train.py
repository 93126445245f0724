"""The command `train`: signals, exit codes, injected faults.

  signal            what the run does                                    exit code
  SIGTERM, SIGUSR1  all processes save the same step and exit            77
  Ctrl-C            the same; a second Ctrl-C exits without saving       130
"""

import argparse
from collections.abc import Iterator
import contextlib
import os
import signal
import sys
import threading

from ttt_jax.cli import processes
from ttt_jax.config import Config
from ttt_jax.system import exit_codes
from ttt_jax.train import preemption

_CODES = {preemption.NONE: exit_codes.SUCCESS, preemption.PREEMPTED: exit_codes.PREEMPTED,
          preemption.INTERRUPTED: exit_codes.INTERRUPTED}


def run(args: argparse.Namespace, config: Config) -> int:
  """Train; returns the exit code.

  Raises:
    UserError: wrong input, data or environment.
  """
  processes.prepare()
  stop = preemption.Stop(processes.end)
  with signal_handlers(stop) if config.train.preemption else contextlib.nullcontext():
    processes.join(args, lambda: bool(stop.level), lambda: _CODES[stop.level])
    from ttt_jax.train import fault_injection
    with processes.ExitTogether('train', config):
      processes.check_same(args, config)
      from ttt_jax.train.train import train
      train(config, args.workdir, stop,
            fault_injection.parse(os.environ.get(fault_injection.VARIABLE, '')))
  if stop.agreed:
    print('ttt-jax: saved; run the same command to resume.', file=sys.stderr)
  return _CODES[stop.agreed]


@contextlib.contextmanager
def signal_handlers(stop: preemption.Stop) -> Iterator[None]:
  """A context in which the signals of the module's docstring request a stop.

  Python runs signal handlers between two bytecode instructions: a signal that arrives during
  compilation is handled when the compilation is done.
  """
  def preempt(number: int, _) -> None:
    _note(f'{signal.Signals(number).name}: saving, then exiting')
    stop.request(preemption.PREEMPTED)

  def interrupt(number: int, _) -> None:
    if stop.level:
      _note('interrupted again: exiting without saving')
      processes.exit_now(exit_codes.INTERRUPTED)
    _note('Ctrl-C: saving, then exiting; press Ctrl-C again to exit without saving')
    stop.request(preemption.INTERRUPTED)

  with contextlib.ExitStack() as undo:
    for number, handler in ((signal.SIGTERM, preempt), (signal.SIGINT, interrupt),
                            (getattr(signal, 'SIGUSR1', None), preempt)):
      if number is not None and threading.current_thread() is threading.main_thread():
        undo.callback(signal.signal, number, signal.signal(number, handler))
    yield


def _note(text: str) -> None:
  """Write from inside a signal handler, where print is not reentrant."""
  os.write(2, f'\nttt-jax: {text}.\n'.encode())
