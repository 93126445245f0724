"""Runs the members of a sweep on this machine, several at a time, each with a supervisor."""

from collections.abc import Callable, Mapping, Sequence
import os
import pathlib
import signal
import time

from ttt_jax.config import Config
from ttt_jax.errors import UserError
from ttt_jax.evaluate import summary as summary_file
from ttt_jax.runs import sweep, sweep_table
from ttt_jax.runs.supervisor import Rules, Supervisor, describe_exit
from ttt_jax.system.exit_codes import FAILURE, INTERRUPTED, PREEMPTED, SUCCESS
from ttt_jax.train import status_file

Commands = Callable[[sweep.Member], list[list[str]]]


class Runner:
  """Runs members; call ``poll`` a few times per second.

  A member is a sequence of commands (train, then possibly evaluate), each restarted after
  preemptions and crashes; without commands it is done. A member that fails is recorded as failed,
  and the next one starts.
  """

  def __init__(self, workdir: str | os.PathLike, members: Sequence[sweep.Member],
               commands: Commands, jobs: int = 1, rules: Rules = Rules(), *,
               environments: Sequence[Mapping[str, str]] = (), record: bool = True,
               say: Callable[[str], None] = lambda sentence: None):
    """Nothing starts before the first ``poll``.

    Args:
      workdir: of the sweep; ``sweep.write_sweep`` has written its files.
      members: those to run; members that are done are skipped.
      commands: member -> its commands that have not ended yet, one after the other.
      jobs: how many members run at the same time.
      rules: of every member's supervisor.
      environments: environment variables to add, one mapping per job (its GPUs).
      record: whether this process writes member.json and the table; False on all but the first
        process of a member.
      say: takes a sentence about failures and restarts.
    """
    self.workdir, self.jobs = pathlib.Path(workdir), jobs
    self.code: int | None = None
    self._waiting = [member for member in members
                     if sweep.read_state(member.folder(workdir)).get('state') != sweep.DONE]
    self.done, self.failed = len(members) - len(self._waiting), 0
    self._commands, self._rules, self._say, self._record = commands, rules, say, record
    self._environments = environments
    self._running: dict[int, _Run] = {}  # by slot
    self._signal: int | None = None

  @property
  def running(self) -> int:
    return len(self._running)

  def forward_signal(self, number: int) -> None:
    """Send signal ``number`` to the members and start no more of them."""
    self._signal = number
    for run in self._running.values():
      run.supervisor.forward_signal(number)

  def kill(self) -> None:
    """Kill the members that are still running."""
    for run in self._running.values():
      run.supervisor.kill()

  def poll(self) -> int | None:
    """Check the members and start the next ones; the exit code once all have ended: 0, 1 if one
    failed, 77 or 130 after a signal."""
    if self.code is not None:
      return self.code
    for slot, run in list(self._running.items()):
      code = run.poll()
      if code is not None:
        del self._running[slot]
        self._over(run, code)
    while self._waiting and self._signal is None and len(self._running) < self.jobs:
      self._begin(self._waiting.pop(0))
    if not self._running and (not self._waiting or self._signal is not None):
      self.code = self._result()
    return self.code

  def _begin(self, member: sweep.Member) -> None:
    commands = self._commands(member)
    if not commands:
      self.done += 1
      self._note(member, state=sweep.DONE, error='')
      return
    slot = next(slot for slot in range(self.jobs) if slot not in self._running)
    extra = self._environments[slot] if self._environments else {}
    self._running[slot] = _Run(member, member.folder(self.workdir), commands,
                               self._rules, extra, lambda text: self._say(f'{member.name}: {text}'))
    self._note(member, state=sweep.RUNNING, error='', started=time.time())

  def _over(self, run: '_Run', code: int) -> None:
    if code == SUCCESS:
      self.done += 1
      self._note(run.member, state=sweep.DONE, error='', ended=time.time())
    elif self._signal is not None and code in (PREEMPTED, INTERRUPTED):
      self._note(run.member, state=sweep.STOPPED, ended=time.time())
    else:
      self.failed += 1
      error = run.supervisor.error or describe_exit(code)
      self._note(run.member, state=sweep.FAILED, error=error, ended=time.time())
      log = run.supervisor.log(0)
      self._say(f'{run.member.name} failed: {error} (its log is {log})')
    if self._record:
      sweep_table.write_table(self.workdir)

  def _note(self, member: sweep.Member, **values) -> None:
    if self._record:
      sweep.write_state(member.folder(self.workdir), **values)

  def _result(self) -> int:
    if self._signal is not None:
      return INTERRUPTED if self._signal == signal.SIGINT else PREEMPTED
    return FAILURE if self.failed else SUCCESS


class _Run:
  """One member: its commands one after the other."""

  def __init__(self, member, folder, commands, rules, extra, say):
    self.member = member
    self._folder, self._rest, self._rules = folder, list(commands), rules
    self._extra, self._say = extra, say
    self.supervisor = self._next()

  def _next(self) -> Supervisor:
    command = self._rest.pop(0)
    return Supervisor(lambda attempt: [command], self._folder, self._rules,
                      environments=[self._extra], say=self._say,
                      names=[f'process-{os.environ.get("SLURM_PROCID", "0")}'])

  def poll(self) -> int | None:
    code = self.supervisor.poll()
    if code != SUCCESS or not self._rest:
      return code
    self.supervisor = self._next()
    return None


def unfinished(folder: pathlib.Path, config: Config, evaluate: bool) -> list[str]:
  """What a member still has to do: 'train', 'evaluate', both or nothing.

  Args:
    folder: the member's workdir.
    config: its settings.
    evaluate: whether it is evaluated after the training.
  """
  try:
    trained = status_file.read(folder).get('state') == 'done'
    scores = summary_file.read(folder) if trained and evaluate else {}
  except UserError:  # damaged: the commands say what is wrong, or write the file again
    trained, scores = False, {}
  if not trained:
    return ['train', 'evaluate'] if evaluate else ['train']
  is_scored = scores.get('settings') == summary_file.settings(config)
  return ['evaluate'] if evaluate and not is_scored else []


def gpu_shares(gpus: Sequence[str], jobs: int) -> list[dict[str, str]]:
  """Environment variables that give each job its own GPUs; empty without GPUs.

  Args:
    gpus: their numbers or ids.
    jobs: how many members run at the same time, at most as many as GPUs.
  """
  each = len(gpus) // jobs
  assert each or not gpus, (gpus, jobs)
  return [{'CUDA_VISIBLE_DEVICES': ','.join(gpus[slot * each:(slot + 1) * each])}
          for slot in range(jobs)] if gpus else []


def cpu_shares(cpus: int, jobs: int) -> list[dict[str, str]]:
  """Environment variables that give each of several jobs its share of the CPU cores; empty for a
  single job, which has them all.

  NPROC is the number of threads of XLA's CPU backend, OMP_NUM_THREADS that of the recogniser.
  """
  each = str(max(cpus // jobs, 1))
  return [{'NPROC': each, 'OMP_NUM_THREADS': each}] * jobs if jobs > 1 else []


def steps_done(workdir: str | os.PathLike, members: Sequence[sweep.Member]) -> int:
  """Training steps that all members have done together, for a progress bar."""
  total = 0
  for member in members:
    folder = member.folder(workdir)
    if sweep.read_state(folder).get('state') == sweep.DONE:
      total += member.config.train.steps
    else:
      total += status_file.read(folder).get('step', 0)
  return total
