"""`ttt-jax supervise`: runs a command and restarts it until it succeeds; used by all launchers.

  how it ended                what happens
  0                           success: stop
  2, user error               stop: a restart would fail the same way
  77, preempted               restart at once
  130, interrupted            stop
  anything else, a signal     restart after a delay that doubles; stop after a number of failures
                              in a row without a newer checkpoint

The processes of one run are restarted together: when one has crashed, the others block for ever
in a collective operation, so they are killed.

This module installs no signal handlers: the command line calls ``Supervisor.forward_signal``.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

from ttt_jax.errors import RetryableError, UserError
from ttt_jax.storage import files, mirror
from ttt_jax.system.exit_codes import FAILURE, INTERRUPTED, PREEMPTED, SUCCESS, USER_ERROR
from ttt_jax.train import status_file
from ttt_jax.train.bucket_folders import BucketFolders
from ttt_jax.train.checkpoint_folders import Folders

LOGS = 'logs'  # in the workdir

# The child asks the kernel for a SIGTERM at its parent's death (PR_SET_PDEATHSIG = 1) and then
# becomes the command, so that no training continues after a supervisor was killed.
_EXEC_TIED_TO_PARENT = ('import ctypes, os, sys\n'
         'if sys.platform == "linux": ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)\n'
         'if os.getppid() != int(sys.argv[1]): sys.exit(77)\n'
         'os.execvp(sys.argv[2], sys.argv[2:])')


@dataclasses.dataclass(frozen=True)
class Rules:
  """When to stop restarting, and delays in seconds."""
  failures: int = 5            # in a row without a newer checkpoint, then stop
  wait: float = 10.0           # before the restart after the first failure; doubles with each
  longest_wait: float = 300.0
  crashed: float = 5.0         # until the others are killed after one has crashed
  orderly: float = 900.0       # ... and after one has ended in order: they may be saving


class Supervisor:
  """The processes of one run on this machine; call ``poll`` a few times per second.

    supervisor = Supervisor(lambda attempt: [['ttt-jax', 'train', '--workdir', 'demo']], 'demo')
    while (code := supervisor.poll()) is None:
      time.sleep(0.1)
  """

  def __init__(self, commands: Callable[[int], Sequence[Sequence[str]]],
               workdir: str | os.PathLike, rules: Rules = Rules(), *,
               environments: Sequence[Mapping[str, str]] = (), names: Sequence[str] = (),
               say: Callable[[str], None] = lambda sentence: None,
               show: Callable[[bytes], None] | None = None):
    """Nothing starts before the first ``poll``.

    Args:
      commands: attempt (0, 1, ...) -> one command per process, all started together.
      workdir: of the run; a newer checkpoint there counts as progress, and the output goes to
        logs/NAME.log, per process.
      rules: when to restart and when to stop.
      environments: environment variables to add, per process.
      names: of the logs; process-0, process-1, ... if empty.
      say: takes a sentence about each restart.
      show: takes the output of process 0 while it runs.
    """
    self.workdir = pathlib.Path(workdir)
    self.code: int | None = None  # the exit code, once this has stopped
    self.attempts = 0
    self.error = ''               # of the last failure, one sentence
    self._commands, self._rules, self._say, self._show = commands, rules, say, show
    self._environments, self._names = environments, names
    self._children: list[subprocess.Popen] = []
    self._killed: set[int] = set()
    self._signal: int | None = None
    self._ended_at: float | None = None  # when the first child of this attempt ended
    self._due = 0.0                      # when the next attempt may start
    self._failures = self._fruitless = 0
    self._step = newest_checkpoint(self.workdir)
    self._shown = 0

  def log(self, process: int) -> pathlib.Path:
    """The file that takes the output of a process."""
    name = self._names[process] if self._names else f'process-{process}'
    return self.workdir / LOGS / f'{name}.log'

  def forward_signal(self, number: int) -> None:
    """Send signal ``number`` to the processes and do not restart them."""
    self._signal = number
    for child in self._children:
      if child.poll() is None:
        child.send_signal(number)

  def kill(self) -> None:
    """Kill the processes that are still running."""
    for index, child in enumerate(self._children):
      if child.poll() is None:
        self._killed.add(index)
        _kill(child)
        child.wait()

  def poll(self) -> int | None:
    """Check the processes and restart them if needed; the exit code once this has stopped."""
    now = time.monotonic()
    if self.code is not None:
      return self.code
    if not self._children:
      if self._signal is not None:
        self.code = self._stopped_code()
      elif now >= self._due:
        self._start()
      return self.code
    codes = [child.poll() for child in self._children]
    self._show_output()
    if None not in codes:
      self._show_output()
      self._children = []
      self._handle_exit([code for index, code in enumerate(codes)
                         if code is not None and index not in self._killed])
    elif any(code is not None for code in codes):
      self._ended_at = self._ended_at or now
      orderly = all(code in (None, SUCCESS, PREEMPTED) for code in codes)
      patience = self._rules.orderly if orderly else self._rules.crashed
      if now - self._ended_at > patience:
        self.kill()
    return self.code

  def _start(self) -> None:
    commands = self._commands(self.attempts)
    self._killed, self._ended_at = set(), None
    with files.writing(self.log(0)):
      files.make_folder(self.log(0).parent)
    self._shown = self.log(0).stat().st_size if self.log(0).exists() else 0
    for index, command in enumerate(commands):
      extra = self._environments[index] if self._environments else {}
      with files.writing(self.log(index)), self.log(index).open('ab') as log:
        log.write(f'== {time.strftime("%Y-%m-%d %H:%M:%S")}  start {self.attempts + 1}: '
                  f'{" ".join(command)}\n'.encode())
        log.flush()
        self._children.append(subprocess.Popen(
            [sys.executable, '-c', _EXEC_TIED_TO_PARENT, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **extra},
            start_new_session=True))  # so that Ctrl-C reaches it once, through forward_signal
    self.attempts += 1

  def _show_output(self) -> None:
    if self._show is None:
      return
    with self.log(0).open('rb') as log:
      log.seek(self._shown)
      new = log.read()
    if new:
      self._shown += len(new)
      self._show(new)

  def _handle_exit(self, codes: list[int]) -> None:
    code = combined_code(codes)
    if code in (SUCCESS, USER_ERROR):
      self.error = last_error(self.log(0)) if code == USER_ERROR else ''
      self.code = code
    elif self._signal is not None:
      self.code = self._stopped_code()
    elif code == INTERRUPTED:
      self.code = code
    else:
      self._restart(code, codes)

  def _restart(self, code: int, codes: list[int]) -> None:
    step = newest_checkpoint(self.workdir)
    if step > self._step:
      self._step, self._failures, self._fruitless = step, 0, 0
    else:
      self._fruitless += 1
    if code == PREEMPTED:
      # At once, unless the last preemptions came too fast for a checkpoint.
      wait = 0.0 if self._fruitless < 2 else self._wait(self._fruitless - 1)
      self._say('preempted; restarting' + (f' in {wait:g} s.' if wait else '.'))
    else:
      self._failures += 1
      which = next((i for i, c in enumerate(codes) if c not in (SUCCESS, PREEMPTED)), 0)
      self.error = last_error(self.log(which)) or describe_exit(code)
      if self._failures >= self._rules.failures:
        self._say(f'{describe_exit(code)}; {self._failures} failures in a row without a newer '
                  f'checkpoint; stopping. Last error: {self.error}')
        self.code = FAILURE
        return
      wait = self._wait(self._failures)
      self._say(f'{describe_exit(code)} (failure {self._failures} of {self._rules.failures} '
                f'without a newer checkpoint); restarting in {wait:g} s. Last error: {self.error}')
    self._due = time.monotonic() + wait

  def _wait(self, failures: int) -> float:
    return min(self._rules.wait * 2 ** min(failures - 1, 20), self._rules.longest_wait)

  def _stopped_code(self) -> int:
    return INTERRUPTED if self._signal == signal.SIGINT else PREEMPTED


def combined_code(codes: Sequence[int]) -> int:
  """The exit code of a run from those of its processes: a user error takes precedence over an
  interruption, that over a crash, that over a preemption, and that over success."""
  for code in (USER_ERROR, INTERRUPTED):
    if code in codes:
      return code
  crashed = [code for code in codes if code not in (SUCCESS, PREEMPTED)]
  return crashed[0] if crashed else PREEMPTED if PREEMPTED in codes else SUCCESS


def describe_exit(code: int) -> str:
  """An exit code of ``subprocess`` in words: 'exited with code 3' or 'was killed by SIGKILL'."""
  if code >= 0:
    return f'exited with code {code}'
  try:
    return f'was killed by {signal.Signals(-code).name}'
  except ValueError:
    return f'was killed by signal {-code}'


def _kill(child: subprocess.Popen) -> None:
  """Kill a process and its children."""
  try:
    os.killpg(child.pid, signal.SIGKILL)  # it is a session leader
  except ProcessLookupError:
    pass


def newest_checkpoint(workdir: pathlib.Path) -> int:
  """Step of the newest checkpoint: last_good_checkpoint of status.json, else the newest folder
  under checkpoints/; of a workdir in a bucket, where other machines write, the newest one there.
  -1 if there is none."""
  url = mirror.url_of(workdir)
  if url is not None:
    try:
      return max(BucketFolders(f'{url}/checkpoints', lambda text: None).complete(), default=-1)
    except (UserError, RetryableError):  # the run itself says what is wrong
      return -1
  try:
    step = status_file.read(workdir).get('last_good_checkpoint')
    if step is not None:
      return step
  except UserError:
    pass
  return max(Folders(workdir / 'checkpoints', lambda text: None).steps(), default=-1)


def last_error(log: pathlib.Path, within: int = 20_000) -> str:
  """The last error in a log, without its traceback; '' if there is none.

  Args:
    log: output of a process, including its earlier starts.
    within: how many bytes at the end are searched.
  """
  try:
    with log.open('rb') as file:
      file.seek(max(log.stat().st_size - within, 0))
      text = file.read().decode('utf-8', errors='replace')
  except OSError:
    return ''
  text = text[max(text.rfind('\n== '), 0):]  # of the last start only
  lines = [line.strip() for line in text.splitlines() if line.strip()
           and not line.startswith('== ')]
  errors = [line for line in lines if line.startswith('ttt-jax: error: ')]
  words = (errors or lines or [''])[-1].removeprefix('ttt-jax: error: ')
  return words if len(words) <= 300 else words[:297] + '...'
