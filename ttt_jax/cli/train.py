"""The verb `train`: signals, exit codes, and the faults of drills.

  signal            what the run does                                  exit code
  SIGTERM, SIGUSR1  all processes save the same step and leave         77
  Ctrl-C            the same; the second time it leaves at once        130
"""

import argparse
from collections.abc import Iterator
import contextlib
import logging
import os
import signal
import sys
import threading
import traceback

from ttt_jax.cli import cluster
from ttt_jax.config import Config
from ttt_jax.errors import UserError
from ttt_jax.system import exit_codes
from ttt_jax.train import preemption

_CODES = {preemption.NONE: exit_codes.SUCCESS, preemption.PREEMPTED: exit_codes.PREEMPTED,
          preemption.INTERRUPTED: exit_codes.INTERRUPTED}


def run(args: argparse.Namespace, config: Config) -> int:
  """Train; returns the exit code.

  Raises:
    UserError: something that the user can put right.
  """
  # JAX's own service would take SIGTERM for itself, and knows no other signal.
  os.environ.setdefault('JAX_ENABLE_PREEMPTION_SERVICE', 'false')
  # Orbax logs the traceback of a write that fails, beside raising it; our sentence is enough.
  logging.getLogger('absl').setLevel(logging.CRITICAL)
  stop = preemption.Stop(lambda: leave(exit_codes.FAILURE))
  with heeding(stop) if config.train.preemption else contextlib.nullcontext():
    cluster.join(args)
    from ttt_jax.train import fault_injection
    with _Together():
      from ttt_jax.train.train import train
      train(config, args.workdir, stop,
            fault_injection.parse(os.environ.get(fault_injection.VARIABLE, '')))
  if stop.agreed:
    print('ttt-jax: saved; the same command goes on from here.', file=sys.stderr)
  return _CODES[stop.agreed]


@contextlib.contextmanager
def heeding(stop: preemption.Stop) -> Iterator[None]:
  """While it lasts, the signals of the module's docstring ask ``stop``.

  Python runs handlers between two of its own instructions: a signal that comes while a
  program is compiled is heard when that is done.
  """
  def preempt(number: int, _) -> None:
    _note(f'{signal.Signals(number).name}: saving, then leaving')
    stop.ask(preemption.PREEMPTED)

  def interrupt(number: int, _) -> None:
    if stop.level:
      _note('interrupted again: leaving at once, without saving')
      leave(exit_codes.INTERRUPTED)
    _note('Ctrl-C: saving, then leaving; once more leaves at once')
    stop.ask(preemption.INTERRUPTED)

  with contextlib.ExitStack() as undo:
    for number, handler in ((signal.SIGTERM, preempt), (signal.SIGINT, interrupt),
                            (getattr(signal, 'SIGUSR1', None), preempt)):
      if number is not None and threading.current_thread() is threading.main_thread():
        undo.callback(signal.signal, number, signal.signal(number, handler))
    yield


def _note(text: str) -> None:
  """From inside a handler, where print may be in the middle of something."""
  os.write(2, f'\nttt-jax: {text}.\n'.encode())


def leave(code: int) -> None:
  """End this process now; threads that wait for other processes are not waited for."""
  logging.shutdown()
  sys.stderr.flush()
  os._exit(code)


class _Together:
  """A process of several that fails leaves at once: Python would wait at its end for threads
  that wait for the other processes, which may be waiting for this one."""

  def __enter__(self) -> None:
    pass

  def __exit__(self, kind, error, trace) -> None:
    import jax
    if kind is None or jax.process_count() == 1:
      return
    if issubclass(kind, UserError):
      print(f'ttt-jax: error: {error}', file=sys.stderr)
      leave(exit_codes.USER_ERROR)
    traceback.print_exception(kind, error, trace)
    leave(exit_codes.INTERRUPTED if kind is KeyboardInterrupt else exit_codes.FAILURE)
