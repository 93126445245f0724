"""How the processes of one run find each other: flags, SLURM, TPU hosts.

Every process of a run is the same command. Who belongs to it is decided in this order:

  1. --processes 1               this process alone, whatever the environment says
  2. --processes N --process I --coordinator HOST:PORT
                                 as said; on one host, process I takes GPU I where there are GPUs
  3. a SLURM step of N > 1 tasks (started by srun): its variables; --coordinator, or
                                 JAX_COORDINATOR_ADDRESS, may replace the first host's name
                                 where names do not resolve
  4. a host with TPU chips       JAX asks the metadata server, or GKE's variables, for its slice
                                 and all slices
  5. otherwise                   this process alone

A TPU host of one is a cluster of one; it joins all the same, which costs nothing.
"""

import argparse
from collections.abc import Mapping
import dataclasses
import glob
import importlib.util
import multiprocessing
import os

from ttt_jax.errors import UserError

LOCAL = ('127.0.0.1', 'localhost')
# Outside the range that systems lend to outgoing connections (from 32768 on Linux).
PORTS = range(20000, 32000)


@dataclasses.dataclass(frozen=True)
class Place:
  """Where this process stands among those of its run; a field is None where JAX finds out."""
  processes: int | None = None
  process: int | None = None
  coordinator: str | None = None
  devices: tuple[int, ...] | None = None  # this process's among the GPUs of its host; None = all


def add_flags(sub: argparse.ArgumentParser) -> None:
  """The flags of a verb whose work several processes share."""
  group = sub.add_argument_group('several processes', 'SLURM steps and TPU hosts need none of '
                                 'these; `ttt-jax supervise --processes N` sets them')
  add = lambda *names, **settings: _shared_flag(sub, group, *names, **settings)
  add('--processes', type=int, metavar='N', help='processes of this run; 1 = alone, whatever the '
      'environment says')
  add('--process', type=int, metavar='I', help='which of them this is: 0 to N - 1')
  add('--coordinator', metavar='HOST:PORT', help='where process 0 listens')
  add('--join-minutes', type=float, default=30.0, metavar='M', help='how long to wait for the '
      'others: new machines can take long to come (default: 30)')


def _shared_flag(sub, group, *names, **settings):
  """A flag of the group that the parser's own list of flags knows, too, for suggestions."""
  action = group.add_argument(*names, **settings)
  sub.flags = getattr(sub, 'flags', []) + action.option_strings


def place(args: argparse.Namespace, env: Mapping[str, str], gpus: int, tpus: bool) -> Place | None:
  """The rules of the module's docstring.

  Args:
    args: has the flags of ``add_flags``.
    env: environment variables.
    gpus: how many this process could use.
    tpus: whether this host has TPU chips.

  Returns:
    None for a process alone.

  Raises:
    UserError: flags that do not go together.
  """
  if args.processes is None and args.process is not None:
    raise UserError('--process needs --processes N and --coordinator HOST:PORT beside it.')
  if args.coordinator is not None:
    check_address(args.coordinator)
  if args.processes is not None:
    return _as_said(args, gpus)
  tasks = env.get('SLURM_NTASKS', '1') if 'SLURM_STEP_NODELIST' in env else '1'
  if int(tasks) > 1:
    return _slurm(args, env, int(tasks), gpus)
  if args.coordinator is not None and not tpus:
    raise UserError(f'--coordinator is {args.coordinator}, but nothing says how many processes '
                    'there are; give --processes N and --process I, or start with srun.')
  return Place(coordinator=args.coordinator) if tpus else None


def check_address(address: str) -> None:
  """UserError unless ``address`` is HOST:PORT."""
  host, colon, port = address.rpartition(':')
  if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
    raise UserError(f'--coordinator is {address!r}; it must be HOST:PORT, such as '
                    '10.0.0.1:12345.')


def _as_said(args: argparse.Namespace, gpus: int) -> Place | None:
  if args.processes < 1:
    raise UserError(f'--processes is {args.processes}; it must be at least 1.')
  if args.processes == 1:
    return None
  if args.process is None or args.coordinator is None:
    raise UserError(f'--processes is {args.processes}, which needs --process I and --coordinator '
                    'HOST:PORT beside it; `ttt-jax supervise --processes N -- ttt-jax train ...` '
                    'starts all on this machine.')
  if not 0 <= args.process < args.processes:
    raise UserError(f'--process is {args.process}; with --processes {args.processes} it must be '
                    f'0 to {args.processes - 1}.')
  here = args.coordinator.rpartition(':')[0] in LOCAL
  if here and 0 < gpus < args.processes:
    raise UserError(f'--processes is {args.processes}, but this machine has {gpus} GPU'
                    f'{"s" if gpus > 1 else ""} and a process needs one of its own; use '
                    f'--processes {gpus}, or JAX_PLATFORMS=cpu.')
  devices = (args.process,) if here and gpus else None
  return Place(args.processes, args.process, args.coordinator, devices)


def _slurm(args: argparse.Namespace, env: Mapping[str, str], tasks: int, gpus: int) -> Place:
  """JAX's own way gives each task one GPU even where it is alone on its host with eight, and
  the wrong one where SLURM has already bound a single one to it."""
  coordinator = args.coordinator or env.get('JAX_COORDINATOR_ADDRESS')
  if coordinator is None:
    job = int(env.get('SLURM_JOB_ID', '0'))
    coordinator = f'{first_host(env["SLURM_STEP_NODELIST"])}:{PORTS[job % len(PORTS)]}'
  here = env.get('SLURM_STEP_TASKS_PER_NODE', '1').split(',')[0].split('(')[0]
  shares = int(here) > 1 and gpus >= int(here)
  devices = (int(env.get('SLURM_LOCALID', '0')),) if shares else None
  return Place(tasks, int(env['SLURM_PROCID']), coordinator, devices)


def first_host(nodes: str) -> str:
  """'gpu[001-008,011],x3' -> 'gpu001'."""
  head = nodes.split(',')[0]
  prefix, bracket, rest = head.partition('[')
  return prefix + rest.rstrip(']').split('-')[0] if bracket else head


def gpu_names() -> list[str]:
  """The GPUs that this process could use, as CUDA_VISIBLE_DEVICES or device files name them."""
  if os.environ.get('JAX_PLATFORMS', '') == 'cpu':
    return []
  if 'CUDA_VISIBLE_DEVICES' in os.environ:
    words = os.environ['CUDA_VISIBLE_DEVICES'].split(',')
    return [word.strip() for word in words if word.strip()]
  return sorted((file.removeprefix('/dev/nvidia') for file in glob.glob('/dev/nvidia[0-9]*')),
                key=int)


def _has_tpus() -> bool:
  return (os.environ.get('JAX_PLATFORMS', '') != 'cpu'
          and bool(glob.glob('/dev/accel[0-9]*') or glob.glob('/dev/vfio/[0-9]*'))
          and importlib.util.find_spec('libtpu') is not None)


def join(args: argparse.Namespace) -> None:
  """Meet the other processes of this run, before anything asks JAX for its devices.

  Raises:
    UserError: flags that do not go together.
    RuntimeError: the others did not come in time, or the coordinator's port is taken; starting
      again may help.
  """
  assert multiprocessing.parent_process() is None, 'a worker process must not join the run'
  found = place(args, os.environ, len(gpu_names()), _has_tpus())
  if found is None:
    return
  import jax
  settings = {}
  if found.processes is not None:  # JAX has nothing left to find out
    settings['cluster_detection_method'] = 'deactivate'
  try:
    jax.distributed.initialize(found.coordinator, found.processes, found.process, found.devices,
                               initialization_timeout=max(int(60 * args.join_minutes), 1),
                               **settings)
  except RuntimeError as error:
    who = (f'process {found.process} of {found.processes}' if found.processes
           else 'this host')
    raise RuntimeError(f'{who} could not meet the others at '
                       f'{found.coordinator or "the address that JAX found"} within '
                       f'{args.join_minutes:g} min: {str(error).splitlines()[0]}') from error
