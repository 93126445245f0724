"""A command that is started again until it is done: what every launcher runs on each host.

  how it ended                what happens
  0                           done
  2, a user's mistake         stop: the same command would end the same way
  77, preempted               start again at once
  130, interrupted            stop
  anything else, a signal     start again after a wait that doubles; stop after so many failures
                              in a row without a newer checkpoint

Several processes of one run live and die together: when one has crashed, the others wait for
it in a collective operation for ever, so they are ended and all start again.

Nothing here touches signals of this process: the command line calls ``Supervisor.ask``.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from ttt_jax.system.exit_codes import FAILURE, INTERRUPTED, PREEMPTED, SUCCESS, USER_ERROR

LOGS = 'logs'  # in the workdir

# The child asks the kernel for a SIGTERM at its parent's death and becomes the command: nothing
# trains on behind the back of a supervisor that was killed.
_TIED = ('import ctypes, os, sys\n'
         'if sys.platform == "linux": ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)\n'
         'if os.getppid() != int(sys.argv[1]): sys.exit(77)\n'
         'os.execvp(sys.argv[2], sys.argv[2:])')


@dataclasses.dataclass(frozen=True)
class Rules:
  """When to give up and how long to wait; seconds."""
  failures: int = 5            # in a row without a newer checkpoint, then stop
  wait: float = 10.0           # after the first failure; doubles with each
  longest_wait: float = 300.0
  crashed: float = 5.0         # others get this long to end by themselves after a crash
  orderly: float = 900.0       # ... and after one of them is done or preempted: they may save


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
      workdir: of the run; its newest checkpoint is what counts as progress, and it gets
        logs/NAME.log per process.
      rules: when to give up.
      environments: variables to add, per process.
      names: of the logs; process-0, process-1, ... if empty.
      say: takes a sentence about what happens.
      show: takes what process 0 writes, as it comes.
    """
    self.workdir = pathlib.Path(workdir)
    self.code: int | None = None  # how it all ended
    self.attempts = 0
    self.error = ''               # the last failure, for people
    self._commands, self._rules, self._say, self._show = commands, rules, say, show
    self._environments, self._names = environments, names
    self._children: list[subprocess.Popen] = []
    self._killed: set[int] = set()
    self._asked: int | None = None
    self._ended_at: float | None = None  # when the first child of this attempt ended
    self._due = 0.0                      # when the next attempt may start
    self._failures = self._fruitless = 0
    self._step = newest_checkpoint(self.workdir)
    self._shown = 0

  def log(self, process: int) -> pathlib.Path:
    """Where a process's output goes."""
    name = self._names[process] if self._names else f'process-{process}'
    return self.workdir / LOGS / f'{name}.log'

  def ask(self, number: int) -> None:
    """Pass signal ``number`` on to the processes and do not start them again."""
    self._asked = number
    for child in self._children:
      if child.poll() is None:
        child.send_signal(number)

  def end(self) -> None:
    """Kill what still runs."""
    for index, child in enumerate(self._children):
      if child.poll() is None:
        self._killed.add(index)
        _kill(child)
        child.wait()

  def poll(self) -> int | None:
    """Look after the processes; the exit code once it is all over."""
    now = time.monotonic()
    if self.code is not None:
      return self.code
    if not self._children:
      if self._asked is not None:
        self.code = self._answer()
      elif now >= self._due:
        self._start()
      return self.code
    codes = [child.poll() for child in self._children]
    self._follow()
    if None not in codes:
      self._follow()
      self._children = []
      self._judge([code for index, code in enumerate(codes) if index not in self._killed])
    elif any(code is not None for code in codes):
      self._ended_at = self._ended_at or now
      orderly = all(code in (None, SUCCESS, PREEMPTED) for code in codes)
      patience = self._rules.orderly if orderly else self._rules.crashed
      if now - self._ended_at > patience:
        self.end()
    return self.code

  def _start(self) -> None:
    commands = self._commands(self.attempts)
    self._killed, self._ended_at = set(), None
    self.log(0).parent.mkdir(parents=True, exist_ok=True)
    self._shown = self.log(0).stat().st_size if self.log(0).exists() else 0
    for index, command in enumerate(commands):
      extra = self._environments[index] if self._environments else {}
      with self.log(index).open('ab') as log:
        log.write(f'== {time.strftime("%Y-%m-%d %H:%M:%S")}  start {self.attempts + 1}: '
                  f'{" ".join(command)}\n'.encode())
        log.flush()
        self._children.append(subprocess.Popen(
            [sys.executable, '-c', _TIED, str(os.getpid()), *command], stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, env={**os.environ, **extra},
            start_new_session=True))  # a terminal's Ctrl-C reaches it once, through ``ask``
    self.attempts += 1

  def _follow(self) -> None:
    if self._show is None:
      return
    with self.log(0).open('rb') as log:
      log.seek(self._shown)
      new = log.read()
    if new:
      self._shown += len(new)
      self._show(new)

  def _judge(self, codes: list[int]) -> None:
    code = verdict(codes)
    if code in (SUCCESS, USER_ERROR):
      self.error = last_words(self.log(0)) if code == USER_ERROR else ''
      self.code = code
    elif self._asked is not None:
      self.code = self._answer()
    elif code == INTERRUPTED:
      self.code = code
    else:
      self._again(code, codes)

  def _again(self, code: int, codes: list[int]) -> None:
    step = newest_checkpoint(self.workdir)
    if step > self._step:
      self._step, self._failures, self._fruitless = step, 0, 0
    else:
      self._fruitless += 1
    if code == PREEMPTED:
      # At once, unless the time between two preemptions is too short for a checkpoint.
      wait = 0.0 if self._fruitless < 2 else self._wait(self._fruitless - 1)
      self._say('preempted; starting again' + (f' in {wait:g} s.' if wait else '.'))
    else:
      self._failures += 1
      which = next((i for i, c in enumerate(codes) if c not in (SUCCESS, PREEMPTED)), 0)
      self.error = last_words(self.log(which)) or how(code)
      if self._failures >= self._rules.failures:
        self._say(f'{how(code)}; {self._failures} failures in a row without a newer checkpoint, '
                  f'so this stops. The last words: {self.error}')
        self.code = FAILURE
        return
      wait = self._wait(self._failures)
      self._say(f'{how(code)} (failure {self._failures} of {self._rules.failures} without a newer '
                f'checkpoint); starting again in {wait:g} s. The last words: {self.error}')
    self._due = time.monotonic() + wait

  def _wait(self, failures: int) -> float:
    return min(self._rules.wait * 2 ** min(failures - 1, 20), self._rules.longest_wait)

  def _answer(self) -> int:
    return INTERRUPTED if self._asked == signal.SIGINT else PREEMPTED


def verdict(codes: Sequence[int]) -> int:
  """How a run ended whose processes ended with ``codes``: the worst of them, where a user's
  mistake comes before an interruption, that before a crash, and that before a preemption."""
  for code in (USER_ERROR, INTERRUPTED):
    if code in codes:
      return code
  crashed = [code for code in codes if code not in (SUCCESS, PREEMPTED)]
  return crashed[0] if crashed else PREEMPTED if PREEMPTED in codes else SUCCESS


def how(code: int) -> str:
  """'ended with exit code 3' or 'was ended by SIGKILL'."""
  if code >= 0:
    return f'ended with exit code {code}'
  try:
    return f'was ended by {signal.Signals(-code).name}'
  except ValueError:
    return f'was ended by signal {-code}'


def _kill(child: subprocess.Popen) -> None:
  """The process and those that it started."""
  try:
    os.killpg(child.pid, signal.SIGKILL)  # it leads a session of its own
  except ProcessLookupError:
    pass


def newest_checkpoint(workdir: pathlib.Path) -> int:
  """Step of the newest checkpoint that counts: what status.json calls good, else the newest
  folder under checkpoints/; -1 if there is none."""
  try:
    step = json.loads((workdir / 'status.json').read_text(encoding='utf-8'))[
        'last_good_checkpoint']
    if step is not None:
      return int(step)
  except (OSError, ValueError, KeyError):
    pass
  folder = workdir / 'checkpoints'
  return max((int(path.name) for path in folder.iterdir() if path.name.isdigit()),
             default=-1) if folder.is_dir() else -1


def last_words(log: pathlib.Path, within: int = 20_000) -> str:
  """The error that a log ends with, without its traceback; '' if it says nothing.

  Args:
    log: the output of a process, all its starts one after the other.
    within: bytes at the end that are looked at.
  """
  try:
    with log.open('rb') as file:
      file.seek(max(log.stat().st_size - within, 0))
      text = file.read().decode('utf-8', errors='replace')
  except OSError:
    return ''
  text = text[max(text.rfind('\n== '), 0):]  # of the last start alone
  lines = [line.strip() for line in text.splitlines() if line.strip()
           and not line.startswith('== ')]
  errors = [line for line in lines if line.startswith('ttt-jax: error: ')]
  words = (errors or lines or [''])[-1].removeprefix('ttt-jax: error: ')
  return words if len(words) <= 300 else words[:297] + '...'
