"""Run the planner in a child process, with the environment that libtpu's compiler needs."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any, Callable

from ttt_jax.config import Config, to_dict, user_classes
from ttt_jax.errors import UserError
from ttt_jax.system.hardware import Topology


def plan(config: Config, topology: Topology, remat: str | None = None,
         workdir: str | None = None, say: Callable[[str], None] = lambda what: None
         ) -> dict[str, Any]:
  """``planner.plan`` in a process of its own, with the same arguments and result.

  Raises:
    UserError: as the planner, or a topology that makes libtpu abort.
  """
  with tempfile.TemporaryDirectory(prefix='ttt-jax-plan-') as folder:
    request, answer, log = (pathlib.Path(folder, name) for name in ('request', 'answer', 'log'))
    request.write_text(json.dumps({
        'config': to_dict(config), 'topology': topology.name, 'slices': topology.slices,
        'remat': remat, 'workdir': None if workdir is None else str(workdir)}), encoding='utf-8')
    with log.open('wb') as errors, subprocess.Popen(
        [sys.executable, '-m', 'ttt_jax.plan.planner', str(request), str(answer)],
        stdout=subprocess.PIPE, stderr=errors, text=True, env=environment(config)) as child:
      assert child.stdout is not None  # a pipe
      try:
        for line in child.stdout:
          say(line.rstrip('\n'))
        code = child.wait()
      finally:
        child.kill()  # also if this process is interrupted
    if code or not answer.is_file():
      raise _failure(code, log.read_text(encoding='utf-8', errors='replace'), topology)
    result = json.loads(answer.read_text(encoding='utf-8'))
  if 'error' in result:
    raise UserError(result['error'])
  return result


def environment(config: Config | None = None) -> dict[str, str]:
  """The child's environment: JAX on the CPU, and a libtpu that does not look for a TPU. Compiler
  flags for TPUs are taken from LIBTPU_INIT_ARGS, as in a run. The child imports the classes that
  the user gave in ``config``."""
  package = str(pathlib.Path(__file__).parents[2])
  classes = [os.environ.get(user_classes.VARIABLE, ''),
             *(user_classes.given(config.codec) if config else ())]
  path = os.pathsep.join(filter(None, [package, os.environ.get('PYTHONPATH', '')]))
  return os.environ | {
      'PYTHONPATH': path,
      user_classes.VARIABLE: ','.join(filter(None, classes)),
      'JAX_PLATFORMS': 'cpu',
      'JAX_ENABLE_COMPILATION_CACHE': 'false',  # the compile time is reported
      'XLA_FLAGS': '',
      'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_WORKER_ID': '0',
      'TPU_ACCELERATOR_TYPE': 'v5p-8', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
      'TF_CPP_MIN_LOG_LEVEL': '2',
  }


def _failure(code: int, log: str, topology: Topology) -> Exception:
  """UserError if libtpu aborted the child, else RuntimeError with the end of its log."""
  lines = [line for line in log.splitlines() if line.strip()]
  if code < 0:
    reasons = [line for line in lines if re.match(r'[EF]\d{4} |F0000|.*Check failed', line)]
    reason = (reasons or lines or ['no reason given'])[-1][-200:]
    return UserError(f'libtpu cannot compile for {topology} and stopped with signal {-code}: '
                     f'{reason}; try a smaller slice, or several with --slices.')
  return RuntimeError(f'the planner failed with exit code {code}:\n' + '\n'.join(lines[-40:]))
