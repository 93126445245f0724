"""Commands about runs: `supervise` restarts one, `sweep` runs many, `status` shows progress."""

import argparse
from collections.abc import Callable, Sequence
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

from ttt_jax import config as config_lib
from ttt_jax.cli import cluster, environment
from ttt_jax.errors import UserError
from ttt_jax.runs import (
    comparison, status as status_lib, supervisor, sweep as sweep_lib, sweep_runner, sweep_table)
from ttt_jax.storage import files, mirror
from ttt_jax.storage.bucket_lease import of_workdir
from ttt_jax.system import machine, version

POLL = 0.1  # seconds
SLURM_SCRIPT = pathlib.Path(__file__).parents[2] / 'launch' / 'slurm.sh'
LAUNCHERS = ('local', 'slurm')


def add_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
  """Add the commands in VERBS to the command line.

  Args:
    verb: (name, text, example, takes_config=True) -> its parser, which has --workdir already.
  """
  _add_supervise(verb('supervise', 'run a command and restart it after preemptions and '
                      'crashes', 'ttt-jax supervise --workdir demo --processes 2 -- '
                      'ttt-jax train --workdir demo', takes_config=False))
  _add_sweep(verb('sweep', 'train variations of a config and compare them in one table',
                  'ttt-jax sweep --sweep configs/sweeps/demo_rates.py --config configs/demo.py '
                  '--workdir rates --jobs 2'))
  verb('status', 'show the state of a run or a sweep on one screen',
       'ttt-jax status --workdir demo', takes_config=False)


def _add_supervise(sub: argparse.ArgumentParser) -> None:
  sub.set_defaults(command=[])
  sub.add_argument('--processes', type=int, default=1, metavar='N',
                   help='start N processes of `ttt-jax train`, import-hf or export-hf on this '
                        'machine, as one run (default: 1)')
  _add_rules(sub)
  sub.add_argument('--log', metavar='NAME',
                   help='name of the log in WORKDIR/logs, if several machines write there '
                        '(default: process-RANK, with the rank from SLURM or Kubernetes)')


def _add_rules(sub: argparse.ArgumentParser) -> None:
  sub.add_argument('--failures', type=int, default=5, metavar='N',
                   help='stop after N failures in a row without a newer checkpoint (default: 5)')
  sub.add_argument('--wait', type=float, default=10.0, metavar='SECONDS',
                   help='delay before the restart after the first failure; doubles with each, '
                        'up to 5 minutes (default: 10)')


def _add_sweep(sub: argparse.ArgumentParser) -> None:
  sub.set_defaults(command=[])
  sub.add_argument('--sweep', metavar='FILE', help='Python file with get_sweep()')
  sub.add_argument('--collect', action='store_true', help='run nothing; write the tables and the '
                   'report of a sweep again, from what its members have written')
  sub.add_argument('--launcher', choices=LAUNCHERS, default='local', metavar='WHERE',
                   help="'local': on this machine; 'slurm': as a job array (default: local)")
  sub.add_argument('--jobs', type=int, metavar='N', help='members that run at the same time, which '
                   'share the GPUs (default: 1 locally, all on SLURM)')
  _add_rules(sub)
  sub.add_argument('--sbatch', default='', metavar='FLAGS', help="flags of sbatch as one argument: "
                   "--sbatch='--gpus-per-node=1 --time=8:00:00'")
  sub.add_argument('--member', type=int, metavar='I', help='run only this member, counted from 0; '
                   'used by the tasks of the job array')


# -- supervise ----------------------------------------------------------------------


def _supervise(args: argparse.Namespace, config: None) -> int:
  command, rules = resolve_command(args.command), _rules(args)
  if args.processes < 1:
    raise UserError(f'--processes is {args.processes}; it must be at least 1.')
  several = [f'ttt-jax {verb}' for verb in cluster.VERBS]
  if args.processes > 1 and ' '.join(args.command[:2]) not in several:
    raise UserError(f'--processes {args.processes} starts `{"`, `".join(several)}`, not '
                    f'`{" ".join(args.command[:2])}`; remove it for other commands.')

  def commands(attempt: int) -> list[list[str]]:
    if args.processes == 1:
      return [command]
    port = free_port()  # a new one each time: the old one may not be free yet
    return [[*command, '--processes', str(args.processes), '--process', str(index),
             '--coordinator', f'127.0.0.1:{port}'] for index in range(args.processes)]

  def show(output: bytes) -> None:
    sys.stderr.buffer.write(output)
    sys.stderr.flush()

  files.require_writable(pathlib.Path(args.workdir) / supervisor.LOGS)
  names = [args.log or f'process-{_rank()}'] if args.processes == 1 else ()
  return poll_until_done(supervisor.Supervisor(commands, args.workdir, rules, names=names,
                                         say=_say, show=show))


def _rules(args: argparse.Namespace) -> supervisor.Rules:
  if args.failures < 1:
    raise UserError(f'--failures is {args.failures}; it must be at least 1.')
  if not 0 <= args.wait < 1e6:  # NaN is neither
    raise UserError(f'--wait is {args.wait:g}; it must be at least 0 and below 1,000,000.')
  return supervisor.Rules(failures=args.failures, wait=args.wait)


def poll_until_done(work: supervisor.Supervisor | sweep_runner.Runner,
           each: Callable[[], None] = lambda: None) -> int:
  """Poll until the work is done, forwarding signals to it; returns its exit code.

  Args:
    work: what to poll.
    each: called after every poll.
  """
  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: work.forward_signal(number))
  try:
    while (code := work.poll()) is None:
      each()
      time.sleep(POLL)
  finally:
    work.kill()
  return code


def resolve_command(command: Sequence[str]) -> list[str]:
  """The command, with `ttt-jax` replaced by this installation.

  Raises:
    UserError: the command is empty, or its program does not exist.
  """
  if not command:
    raise UserError("no command; add it after '--', as in `ttt-jax supervise --workdir demo -- "
                    'ttt-jax train --workdir demo`.')
  if command[0] == 'ttt-jax':
    return [sys.executable, '-m', 'ttt_jax.cli', *command[1:]]
  if shutil.which(command[0]) is None:
    raise UserError(f'program {command[0]!r} cannot be found; check its name and PATH.')
  return list(command)


def free_port() -> int:
  """A free TCP port of this machine."""
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]


def _rank() -> int:
  """The rank of this host from the scheduler's variables; 0 if there are none."""
  for name in ('SLURM_PROCID', 'JOB_COMPLETION_INDEX', 'TPU_WORKER_ID'):
    if os.environ.get(name, '').isdigit():
      return int(os.environ[name])
  return 0


def _say(sentence: str) -> None:
  print(f'{time.strftime("%H:%M:%S")}  supervise: {sentence}', file=sys.stderr, flush=True)


# -- sweep --------------------------------------------------------------------------


def _sweep(args: argparse.Namespace, config: config_lib.Config) -> int | None:
  rules = _rules(args)
  if args.collect:
    return _collect(args.workdir)
  if not args.sweep:
    raise UserError('--sweep is missing; name a Python file with get_sweep().')
  if args.jobs is not None and args.jobs < 1:
    raise UserError(f'--jobs is {args.jobs}; it must be at least 1.')
  if args.sbatch and args.launcher != 'slurm':
    raise UserError('--sbatch has no effect without --launcher slurm; remove it.')
  path = args.config or str(pathlib.Path(args.workdir) / 'config.json')
  wanted = sweep_lib.load(args.sweep)
  members = sweep_lib.members(wanted, path, args.overrides)
  if args.member is not None:
    return _one_member(args, wanted, members, path, rules)
  if args.launcher == 'slurm':
    _check_queue(args.workdir)
    if mirror.url_of(args.workdir) and not args.config:
      raise UserError(f'--workdir is {mirror.named(args.workdir)}, whose config.json the nodes of '
                      'the job cannot read; name a config on a shared disk with --config.')
  config_lib.check_saved(args.workdir)
  with of_workdir(args.workdir, say=_say):
    return _sweep_all(args, config, wanted, members, path, rules)


def _sweep_all(args, config, wanted, members, path, rules) -> int:
  sweep_lib.write_sweep(args.workdir, wanted, members, _about())
  code = _prepare_rows(args, config, path)
  if code:
    return code
  config_lib.save(config, args.workdir)
  if args.launcher == 'slurm':
    return _submit(args, members, path)
  return _run_here(args, wanted, members, path, rules)


def _prepare_rows(args, config, path) -> int:
  """Prepare the rows that all members share, unless they exist; returns an exit code."""
  from ttt_jax.data import store
  rows = store.locate(args.workdir, config.data.path)
  if (rows / 'manifest.json').is_file():
    return 0
  print(f'Preparing the data of all members: {rows}', file=sys.stderr, flush=True)
  command = resolve_command(['ttt-jax', 'prepare', '--config', path, '--workdir',
                             mirror.named(args.workdir), *_words(args.overrides)])
  return subprocess.run(command, check=False).returncode


def _words(overrides: dict[str, str]) -> list[str]:
  return [f'--config.{key}={value}' for key, value in overrides.items()]


def _commands(args, wanted, path) -> Callable[[sweep_lib.Member], list[list[str]]]:
  """Member -> its commands: train, then evaluate if the sweep asks for it."""
  def commands(member):
    place = ['--config', path, '--workdir', mirror.named(member.folder(args.workdir)),
             *_words(args.overrides | member.overrides)]
    train = resolve_command(['ttt-jax', 'train', *place, *args.command])
    is_helper = args.member is not None and os.environ.get('SLURM_PROCID', '0') != '0'
    evaluate = resolve_command(['ttt-jax', 'evaluate', *place])
    wants_scores = wanted.evaluate and not is_helper
    left = sweep_runner.unfinished(member.folder(args.workdir), member.config, wants_scores)
    return [{'train': train, 'evaluate': evaluate}[name] for name in left]
  return commands


def _about() -> dict[str, str]:
  """How this sweep is run, for sweep.json."""
  return {'command': shlex.join(['ttt-jax', *sys.argv[1:]]), 'version': version.version(),
          'commit': version.git_revision(), 'hardware': machine.describe()}


def _run_here(args, wanted, members, path, rules) -> int:
  from ttt_jax.system.progress import Progress
  jobs = args.jobs or 1
  gpus = environment.gpu_names()
  if gpus and jobs > len(gpus):
    raise UserError(f'--jobs is {jobs}, but this machine has {len(gpus)} GPU'
                    f'{"s" if len(gpus) > 1 else ""} for the members; use --jobs {len(gpus)}.')
  total = sum(member.config.train.steps for member in members)
  with Progress(total, 'sweep', done=sweep_runner.steps_done(args.workdir, members),
                unit='steps') as progress:
    runner = sweep_runner.Runner(
        args.workdir, members, _commands(args, wanted, path), jobs, rules,
        environments=sweep_runner.gpu_shares(gpus, jobs) or sweep_runner.cpu_shares(
            machine.cpu_count(), jobs), say=progress.say)
    updated = 0.0

    def update():
      nonlocal updated
      if time.monotonic() - updated >= 1:
        updated = time.monotonic()
        done = sweep_runner.steps_done(args.workdir, members)
        progress.update(max(done - progress.done, 0), members=f'{runner.done}/{len(members)}',
                        failed=runner.failed)

    code = poll_until_done(runner, update)
    update()
  print(status_lib.status(args.workdir), end='')
  _collect(args.workdir)
  return code


def _collect(workdir: str) -> int:
  """Write what a sweep says at its end, and print its table."""
  from ttt_jax.runs.report.page import report
  written = [sweep_table.write_table(workdir)]
  found = comparison.compare(workdir)
  if found is not None:
    written += comparison.write(workdir, found)
    print(comparison.table(found))
  written.append(report(workdir))
  print('Wrote ' + ', '.join(map(str, written)) + '.')
  return 0


def _one_member(args, wanted, members, path, rules) -> int:
  """Run one member, as a task of the job array does; only its first process records results."""
  if not 0 <= args.member < len(members):
    raise UserError(f'--member is {args.member}, but {args.sweep} has members 0 to '
                    f'{len(members) - 1}.')
  first = os.environ.get('SLURM_PROCID', '0') == '0'
  if first and not sweep_lib.is_sweep(args.workdir):
    sweep_lib.write_sweep(args.workdir, wanted, members)
  return poll_until_done(sweep_runner.Runner(args.workdir, [members[args.member]],
                                 _commands(args, wanted, path), 1, rules, record=first, say=_say))


# -- sweep on SLURM -----------------------------------------------------------------


def _check_queue(workdir: str) -> None:
  """UserError unless a sweep can be submitted: two jobs must not train the same member."""
  if shutil.which('sbatch') is None:
    raise UserError('--launcher is slurm, but this machine has no sbatch; run the command on a '
                    'login node, or use --launcher local.')
  if not SLURM_SCRIPT.is_file():
    raise UserError(f'{SLURM_SCRIPT} does not exist; install ttt_jax from a checkout with '
                    '`pip install -e .`.')
  known = pathlib.Path(workdir) / 'slurm_job'
  if known.is_file():
    job = known.read_text(encoding='utf-8').strip()
    found = subprocess.run(['squeue', '--noheader', '--jobs', job], capture_output=True, text=True,
                           check=False)
    if found.returncode == 0 and found.stdout.strip():
      raise UserError(f'{workdir} is already queued as job {job}; cancel it with `scancel {job}` '
                      'first.')


def _submit(args, members, path) -> int:
  waiting = [index for index, member in enumerate(members) if sweep_lib.read_state(
      member.folder(args.workdir)).get('state') != sweep_lib.DONE]
  if not waiting:
    print('All members are done.')
    return 0
  array = ','.join(map(str, waiting)) + (f'%{args.jobs}' if args.jobs else '')
  workdir = mirror.named(args.workdir)
  words = ['sweep', '--sweep', args.sweep, '--config', path, '--workdir', workdir,
           '--failures', str(args.failures), '--wait', f'{args.wait:g}', *_words(args.overrides)]
  passed = ['--', *args.command] if args.command else []
  found = subprocess.run(
      ['sbatch', '--parsable', f'--array={array}', *shlex.split(args.sbatch), str(SLURM_SCRIPT),
       *words, *passed], capture_output=True, text=True, check=False)
  if found.returncode:
    raise UserError(f'sbatch failed: {found.stderr.strip().splitlines()[-1]}; its flags come from '
                    '--sbatch and from SBATCH_* variables.')
  job = found.stdout.strip().split(';')[0]
  sweep_lib.write(pathlib.Path(args.workdir) / 'slurm_job', job + '\n')
  members_are = 'members are' if len(waiting) > 1 else 'member is'
  print(f'Job {job}: {len(waiting)} {members_are} queued; see `ttt-jax status --workdir '
        f'{workdir}`.')
  return 0


# -- status -------------------------------------------------------------------------


def _status(args: argparse.Namespace, config: None) -> None:
  print(status_lib.status(args.workdir), end='')


VERBS = {'supervise': _supervise, 'sweep': _sweep, 'status': _status}
