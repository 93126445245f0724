"""Commands that run as several processes: they join, fail and exit together."""

from collections.abc import Callable, Iterator
import argparse
import contextlib
import json
import logging
import os
import re
import sys
import time
import traceback

from ttt_jax import config as config_lib
from ttt_jax.cli import cluster, environment
from ttt_jax.config import Config
from ttt_jax.errors import RetryableError, UserError
from ttt_jax.storage import mirror
from ttt_jax.system import exit_codes

# Seconds that process 0 outlives a failure: JAX aborts the others as soon as it is gone, and they
# may have the same to say.
_TIME_TO_FAIL = 2.0
# What may differ between the processes of a command, and the settings that may not: they decide
# which arrays there are, where they are and what is computed.
_OWN_FLAGS = ('process', 'coordinator', 'join_minutes', 'config')
_SAME_KEYS = ('model.', 'mesh.', 'objective.', 'optimizer.', 'seed')
# How gloo, on CPUs, reports that a process has ended; elsewhere JAX's heartbeat aborts the others.
_LOST = re.compile('Gloo .*(Connection closed|Connection reset|Broken pipe)', re.S)


def prepare() -> None:
  """Set what must be set before the processes join."""
  # JAX's preemption service would install its own SIGTERM handler, and handles no other signal.
  os.environ.setdefault('JAX_ENABLE_PREEMPTION_SERVICE', 'false')
  # Orbax logs the traceback of a failed write besides raising it; the UserError is enough.
  logging.getLogger('absl').setLevel(logging.CRITICAL)
  _ignore_late_callbacks()


def _ignore_late_callbacks() -> None:
  """When a save has failed, TensorStore's threads still report to Orbax's event loop, which is
  closed by then. Their tracebacks would bury the one sentence that says what is wrong. TensorStore
  prints an exception in either of Python's ways, so both hooks are set."""
  late = lambda error: isinstance(error, RuntimeError) and str(error) == 'Event loop is closed'
  before, unraisable = sys.excepthook, sys.unraisablehook
  sys.excepthook = lambda kind, error, trace: None if late(error) else before(kind, error, trace)
  sys.unraisablehook = lambda found: None if late(found.exc_value) else unraisable(found)


def join(args: argparse.Namespace, stopping: Callable[[], bool] = lambda: False,
         stopped: Callable[[], int] = lambda: exit_codes.INTERRUPTED) -> None:
  """Join the other processes, or end this one.

  Args:
    args: has the flags of cluster.add_flags.
    stopping: whether a signal has requested that this process stop.
    stopped: the exit code then.
  """
  try:
    if cluster.join(args, stopping):
      return
    code = stopped()
  except RetryableError as error:
    print(f'ttt-jax: error: {error}', file=sys.stderr)
    code = exit_codes.FAILURE
  except KeyboardInterrupt:
    code = exit_codes.INTERRUPTED
  exit_now(code)


@contextlib.contextmanager
def several(args: argparse.Namespace, config: Config) -> Iterator[None]:
  """A context for a command that needs no signals, in one process or in several."""
  prepare()
  join(args)
  with ExitTogether(args.verb, config):
    check_same(args, config)
    yield


def check_same(args: argparse.Namespace, config: Config) -> None:
  """UserError in all processes unless they execute the same command: with other arrays or other
  files a collective operation would mix them, or abort all processes."""
  from ttt_jax.train import together
  if together.single():
    return
  own = {f'--{name.replace("_", "-")}': mirror.in_urls(str(value))
         for name, value in sorted(vars(args).items())
         if name not in _OWN_FLAGS and isinstance(value, (str, int, float)) and value != ''}
  own |= {f'config key {key}': repr(value) for key, value in config_lib.flat(config).items()
          if key.startswith(_SAME_KEYS)}
  first = json.loads(together.from_first(json.dumps(own)))
  # The first difference of any process decides what all compare; '' = none here.
  mine = next((name for name in first | own if first.get(name) != own.get(name)), '')
  name = next(filter(None, (data.decode() for data in together.exchange(mine.encode()))), '')
  if name:
    together.same(own.get(name, 'not given'), f'{name} is',
                  'start all processes with the same command, except for --process')


def end(error: BaseException | None = None) -> None:
  """``exit_now`` after a failure; the sentence of ``error`` is printed."""
  if error is not None:
    import jax
    print(f'ttt-jax: error: {mirror.in_urls(str(error))}', file=sys.stderr)
    if jax.process_index() == 0:
      time.sleep(_TIME_TO_FAIL)
  exit_now(exit_codes.USER_ERROR if isinstance(error, UserError) else exit_codes.FAILURE)


def exit_now(code: int) -> None:
  """End this process without waiting for its threads, which may wait for other processes."""
  logging.shutdown()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


class ExitTogether:
  """Makes a process of several exit at once when it fails: at a normal exit Python would join
  threads that wait for the other processes, which may be waiting for this one."""

  def __init__(self, verb: str, config: Config):
    self._verb, self._config = verb, config

  def __enter__(self) -> None:
    pass

  def __exit__(self, kind, error, trace) -> None:
    import jax
    if kind is None or jax.process_count() == 1:
      return
    if _LOST.search(str(error)) and not issubclass(kind, UserError):
      kind, error = RetryableError, RetryableError(
          'the connection to another process of this run broke, so that process has ended; see its '
          'log, then run the same command again.')
    retryable = issubclass(kind, RetryableError)
    known = error if retryable or issubclass(kind, UserError) else environment.explain(
        error, self._verb, self._config)
    if known is not None:
      print(f'ttt-jax: error: {mirror.in_urls(str(known))}', file=sys.stderr)
    else:
      traceback.print_exception(kind, error, trace)
    if jax.process_index() == 0:
      time.sleep(_TIME_TO_FAIL)
    if known is not None:
      exit_now(exit_codes.FAILURE if retryable else exit_codes.USER_ERROR)
    exit_now(exit_codes.INTERRUPTED if kind is KeyboardInterrupt else exit_codes.FAILURE)
