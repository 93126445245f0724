"""The command `train`: signals, exit codes, injected faults.

  signal            what the run does                                    exit code
  SIGTERM, SIGUSR1  all processes save the same step and exit            77
  Ctrl-C            the same; a second Ctrl-C exits without saving       130
"""

import argparse
from collections.abc import Iterator
import contextlib
import logging
import os
import signal
import sys
import threading
import time
import traceback

from ttt_jax.cli import cluster, environment
from ttt_jax.config import Config
from ttt_jax.errors import RetryableError, UserError
from ttt_jax.storage import mirror
from ttt_jax.system import exit_codes
from ttt_jax.train import preemption

# Seconds that process 0 outlives a failure: JAX aborts the others as soon as it is gone, and they
# may have the same to say.
_TIME_TO_FAIL = 2.0
_CODES = {preemption.NONE: exit_codes.SUCCESS, preemption.PREEMPTED: exit_codes.PREEMPTED,
          preemption.INTERRUPTED: exit_codes.INTERRUPTED}


def run(args: argparse.Namespace, config: Config) -> int:
  """Train; returns the exit code.

  Raises:
    UserError: wrong input, data or environment.
  """
  # JAX's preemption service would install its own SIGTERM handler, and handles no other signal.
  os.environ.setdefault('JAX_ENABLE_PREEMPTION_SERVICE', 'false')
  # Orbax logs the traceback of a failed write besides raising it; the UserError is enough.
  logging.getLogger('absl').setLevel(logging.CRITICAL)
  _ignore_late_callbacks()
  stop = preemption.Stop(lambda: exit_now(exit_codes.FAILURE))
  with signal_handlers(stop) if config.train.preemption else contextlib.nullcontext():
    _join(args, stop)
    from ttt_jax.train import fault_injection
    with _ExitTogether(config):
      from ttt_jax.train.train import train
      train(config, args.workdir, stop,
            fault_injection.parse(os.environ.get(fault_injection.VARIABLE, '')))
  if stop.agreed:
    print('ttt-jax: saved; run the same command to resume.', file=sys.stderr)
  return _CODES[stop.agreed]


def _ignore_late_callbacks() -> None:
  """When a save has failed, TensorStore's threads still report to Orbax's event loop, which is
  closed by then. Their tracebacks would bury the one sentence that says what is wrong. TensorStore
  prints an exception in either of Python's ways, so both hooks are set."""
  late = lambda error: isinstance(error, RuntimeError) and str(error) == 'Event loop is closed'
  before, unraisable = sys.excepthook, sys.unraisablehook
  sys.excepthook = lambda kind, error, trace: None if late(error) else before(kind, error, trace)
  sys.unraisablehook = lambda found: None if late(found.exc_value) else unraisable(found)


def _join(args: argparse.Namespace, stop: preemption.Stop) -> None:
  """Join the other processes, or end this one."""
  try:
    if cluster.join(args, lambda: bool(stop.level)):
      return
    code = _CODES[stop.level]
  except RetryableError as error:
    print(f'ttt-jax: error: {error}', file=sys.stderr)
    code = exit_codes.FAILURE
  except KeyboardInterrupt:  # train.preemption is off
    code = exit_codes.INTERRUPTED
  exit_now(code)


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
      exit_now(exit_codes.INTERRUPTED)
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


def exit_now(code: int) -> None:
  """End this process without waiting for its threads, which may wait for other processes."""
  logging.shutdown()
  sys.stderr.flush()
  os._exit(code)


class _ExitTogether:
  """Makes a process of several exit at once when it fails: at a normal exit Python would join
  threads that wait for the other processes, which may be waiting for this one."""

  def __init__(self, config: Config):
    self._config = config

  def __enter__(self) -> None:
    pass

  def __exit__(self, kind, error, trace) -> None:
    import jax
    if kind is None or jax.process_count() == 1:
      return
    retryable = issubclass(kind, RetryableError)
    known = error if retryable or issubclass(kind, UserError) else environment.explain(
        error, 'train', self._config)
    if known is not None:
      print(f'ttt-jax: error: {mirror.in_urls(str(known))}', file=sys.stderr)
    else:
      traceback.print_exception(kind, error, trace)
    if jax.process_index() == 0:
      time.sleep(_TIME_TO_FAIL)
    if known is not None:
      exit_now(exit_codes.FAILURE if retryable else exit_codes.USER_ERROR)
    exit_now(exit_codes.INTERRUPTED if kind is KeyboardInterrupt else exit_codes.FAILURE)
