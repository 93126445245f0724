"""Multi-process start-up: how the processes of a run find each other (flags, SLURM, TPU hosts).

Every process of a run executes the same command. The first rule that applies decides:

  1. --processes 1               a single process, whatever the environment says
  2. --processes N --process I --coordinator HOST:PORT
                                 these values; on one host with GPUs, process I takes GPU I
  3. a SLURM step of N > 1 tasks (started by srun): SLURM's variables; --coordinator or
                                 JAX_COORDINATOR_ADDRESS replaces the first host's name where
                                 names do not resolve
  4. a host with TPU chips       JAX asks the metadata server, or GKE's variables, for the slices
  5. otherwise                   a single process

A single TPU host also calls jax.distributed.initialize, which costs nothing.
"""

import argparse
from collections.abc import Callable, Mapping
import dataclasses
import errno
import glob
import importlib.util
import multiprocessing
import os
import socket
import sys
import threading
import time

from ttt_jax.cli import environment
from ttt_jax.errors import RetryableError, UserError

VERBS = ('train', 'import-hf', 'export-hf')  # that can run in several processes
LOCAL = ('127.0.0.1', 'localhost')
# Below the ephemeral ports, which the kernel assigns to outgoing connections (Linux: from 32768).
PORTS = range(20000, 32000)
TELL_AFTER, TELL_EVERY = 5.0, 60.0  # seconds until a waiting process says so, and says so again


@dataclasses.dataclass(frozen=True)
class Place:
  """The arguments of jax.distributed.initialize; None = JAX detects it."""
  processes: int | None = None
  process: int | None = None
  coordinator: str | None = None
  devices: tuple[int, ...] | None = None  # local GPUs of this process; None = all


def add_flags(sub: argparse.ArgumentParser) -> None:
  """Add the flags of a command that can run in several processes."""
  group = sub.add_argument_group('several processes', 'not needed in SLURM steps and on TPU '
                                 'hosts; `ttt-jax supervise --processes N` sets them')
  add = lambda *names, **settings: _shared_flag(sub, group, *names, **settings)
  add('--processes', type=int, metavar='N', help='number of processes of this run; 1 = a single '
      'process, whatever the environment says')
  add('--process', type=int, metavar='I', help='index of this process: 0 to N - 1')
  add('--coordinator', metavar='HOST:PORT', help='address that process 0 listens on')
  add('--join-minutes', type=float, default=30.0, metavar='M', help='how long to wait for the '
      'other processes, whose machines may still be starting (default: 30)')


def _shared_flag(sub, group, *names, **settings):
  """Add a flag to the group and to the parser's list of flags, which suggestions come from."""
  action = group.add_argument(*names, **settings)
  sub.flags = getattr(sub, 'flags', []) + action.option_strings


def place(args: argparse.Namespace, env: Mapping[str, str], gpus: int, tpus: bool) -> Place | None:
  """Apply the rules of the module's docstring.

  Args:
    args: has the flags of ``add_flags``.
    env: environment variables.
    gpus: number of GPUs visible to this process.
    tpus: whether this host has TPU chips.

  Returns:
    None for a single process.

  Raises:
    UserError: flags or variables that contradict each other.
  """
  if args.processes is None and args.process is not None:
    raise UserError('--process also needs --processes N and --coordinator HOST:PORT.')
  if args.coordinator is not None:
    check_address(args.coordinator)
  if not 0 <= args.join_minutes < 1e6:  # NaN is neither
    raise UserError(f'--join-minutes is {args.join_minutes:g}; it must be at least 0 and below '
                    '1,000,000.')
  if args.processes is not None:
    return _from_flags(args, gpus)
  tasks = _number(env, 'SLURM_NTASKS', 1) if 'SLURM_STEP_NODELIST' in env else 1
  if tasks > 1:
    return _slurm(args, env, tasks, gpus)
  if args.coordinator is not None and not tpus:
    raise UserError(f'--coordinator is {args.coordinator}, but the number of processes is '
                    'unknown; add --processes N and --process I, or start with srun.')
  return Place(coordinator=args.coordinator) if tpus else None


def check_address(address: str) -> None:
  """UserError unless ``address`` is HOST:PORT."""
  host, colon, port = address.rpartition(':')
  if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
    raise UserError(f'--coordinator is {address!r}; it must be HOST:PORT, such as '
                    '10.0.0.1:12345.')


def _from_flags(args: argparse.Namespace, gpus: int) -> Place | None:
  if args.processes < 1:
    raise UserError(f'--processes is {args.processes}; it must be at least 1.')
  if args.processes == 1:
    return None
  if args.process is None or args.coordinator is None:
    raise UserError(f'--processes is {args.processes}, which also needs --process I and '
                    '--coordinator HOST:PORT; `ttt-jax supervise --processes N -- ttt-jax '
                    f'{getattr(args, "verb", "train")} ...` starts all of them on this machine.')
  if not 0 <= args.process < args.processes:
    raise UserError(f'--process is {args.process}; with --processes {args.processes} it must be '
                    f'0 to {args.processes - 1}.')
  here = args.coordinator.rpartition(':')[0] in LOCAL
  if here and 0 < gpus < args.processes:
    raise UserError(f'--processes is {args.processes}, but this machine has {gpus} GPU'
                    f'{"s" if gpus > 1 else ""} and each process needs its own; use '
                    f'--processes {gpus}, or JAX_PLATFORMS=cpu.')
  devices = (args.process,) if here and gpus else None
  return Place(args.processes, args.process, args.coordinator, devices)


def _slurm(args: argparse.Namespace, env: Mapping[str, str], tasks: int, gpus: int) -> Place:
  """JAX's own SLURM detection gives each task a single GPU even if it is alone on a host with
  eight, and the wrong one where SLURM has already bound a GPU to the task."""
  coordinator = args.coordinator or env.get('JAX_COORDINATOR_ADDRESS')
  if coordinator is None:
    job = _number(env, 'SLURM_JOB_ID', 0)
    coordinator = f'{first_host(env["SLURM_STEP_NODELIST"])}:{PORTS[job % len(PORTS)]}'
  first = {'here': env.get('SLURM_STEP_TASKS_PER_NODE', '').split(',')[0].split('(')[0]}
  here = _number(first, 'here', 1)
  devices = (_required(env, 'SLURM_LOCALID', tasks),) if 1 < here <= gpus else None
  process = _required(env, 'SLURM_PROCID', tasks)
  if process >= tasks:
    raise UserError(f'SLURM_PROCID is {process}, but SLURM_NTASKS is {tasks}; unset both to run '
                    'alone, or start with srun.')
  return Place(tasks, process, coordinator, devices)


def _number(env: Mapping[str, str], name: str, default: int) -> int:
  """A whole number among the environment variables; ``default`` if it is missing or is none."""
  text = env.get(name, '').strip()
  return int(text) if text.isdecimal() else default


def _required(env: Mapping[str, str], name: str, tasks: int) -> int:
  """A SLURM variable that srun sets in every task."""
  value = _number(env, name, -1)
  if value < 0:
    raise UserError(f'SLURM_NTASKS is {tasks}, but {name} is {env.get(name)!r}; start the command '
                    'with srun, or add `--processes 1` to run alone.')
  return value


def first_host(nodes: str) -> str:
  """The first host of a SLURM node list: 'gpu[001-008,011],x3' -> 'gpu001'."""
  head = nodes.split(',')[0]
  prefix, bracket, rest = head.partition('[')
  return prefix + rest.rstrip(']').split('-')[0] if bracket else head


def _has_tpus() -> bool:
  return (os.environ.get('JAX_PLATFORMS', '') != 'cpu'
          and bool(glob.glob('/dev/accel[0-9]*') or glob.glob('/dev/vfio/[0-9]*'))
          and importlib.util.find_spec('libtpu') is not None)


def join(args: argparse.Namespace, stopping: Callable[[], bool] = lambda: False) -> bool:
  """Connect to the other processes of this run; must precede any use of JAX's devices.

  JAX waits in C++, where no signal is heard, and aborts the process at its own time-out. So it
  waits in a thread, and this one watches the time and the signals. After False or an exception
  the caller must end the process at once (os._exit), since that thread cannot be stopped.

  Args:
    args: has the flags of ``add_flags``.
    stopping: whether a signal has requested that this process stop.

  Returns:
    Whether this process has joined, or is alone; False: it was stopped meanwhile.

  Raises:
    UserError: flags or variables that contradict each other.
    RetryableError: the others did not connect in time, or the coordinator's port is taken.
  """
  assert multiprocessing.parent_process() is None, 'a worker process must not join the run'
  found = place(args, os.environ, len(environment.gpu_names()), _has_tpus())
  if found is None:
    return True
  if found.process == 0 and found.coordinator is not None:
    _check_port(found)
  import jax
  settings = {}
  if found.processes is not None:  # everything is known: JAX must not detect anything
    settings['cluster_detection_method'] = 'deactivate'
  limit = max(60 * args.join_minutes, 1.0)
  failed: list[BaseException] = []

  def connect() -> None:
    try:
      jax.distributed.initialize(found.coordinator, found.processes, found.process, found.devices,
                                 initialization_timeout=int(limit) + 120, **settings)
    except BaseException as error:  # handed to the thread that waits
      failed.append(error)

  thread = threading.Thread(target=connect, name='join', daemon=True)
  thread.start()
  started, told = time.monotonic(), -TELL_EVERY + TELL_AFTER
  while thread.is_alive():
    thread.join(0.1)
    waited = time.monotonic() - started
    if stopping():
      return False
    if waited > limit:
      raise RetryableError(f'{_who(found)} could not connect to the others at {_where(found)} '
                           f'within {args.join_minutes:g} min (--join-minutes); see their logs.')
    if thread.is_alive() and waited - told > TELL_EVERY:
      told = waited
      print(f'ttt-jax: {_waiting(found, os.environ, args.join_minutes)}.', file=sys.stderr,
            flush=True)
  if failed:
    raise RetryableError(f'{_who(found)} could not connect to the others at {_where(found)}: '
                         f'{" ".join(str(failed[0]).split())[:300]}') from failed[0]
  return True


def _who(found: Place) -> str:
  return f'process {found.process} of {found.processes}' if found.processes else 'this host'


def _where(found: Place) -> str:
  return found.coordinator or 'the address that JAX detected'


def _check_port(found: Place) -> None:
  """RetryableError if process 0 cannot listen at its port, where JAX would fail or even crash."""
  assert found.coordinator is not None
  port = int(found.coordinator.rpartition(':')[2])
  family, anywhere = (socket.AF_INET6, '::') if socket.has_dualstack_ipv6() else (
      socket.AF_INET, '')
  with socket.socket(family) as tried:
    tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does
    try:
      tried.bind((anywhere, port))
    except OSError as error:
      why = 'is in use' if error.errno == errno.EADDRINUSE else f'cannot be used ({error.strerror})'
      raise RetryableError(
          f'{_who(found)} cannot listen at {found.coordinator}: the port {why}; end the program '
          'that has it, or name another port with --coordinator.') from error


def _waiting(found: Place, env: Mapping[str, str], minutes: float) -> str:
  """What a process waits for, and how to run alone."""
  if not found.processes:
    return (f'waiting for the other hosts of this TPU, for {minutes:g} min at most; '
            '`--processes 1` works on this one alone')
  others = found.processes - 1
  source = f' (SLURM_NTASKS={env["SLURM_NTASKS"]})' if (
      env.get('SLURM_NTASKS') == str(found.processes)) else ''
  return (f'process {found.process} waits for {others} other process{"es" * (others > 1)} at '
          f'{_where(found)}{source}, for {minutes:g} min at most; `--processes 1` runs alone')
