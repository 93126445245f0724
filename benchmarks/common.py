"""What every benchmark needs: sides in processes of their own, the machine's name, tables.

A side is a Python module that reads one JSON request per line and answers each with one
line. Sides take turns, so that whatever else the machine does meets both alike, and each
has a process to itself, so that its peak memory is its own.
"""

import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import time
from typing import Any, Callable, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
WIDTH = 80  # columns of what is printed


def cpu_name() -> str:
  """The processor, as the machine calls it."""
  cpuinfo = pathlib.Path('/proc/cpuinfo')
  if cpuinfo.is_file():
    for line in cpuinfo.read_text(encoding='utf-8').splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  return platform.processor() or platform.machine()


def machine(threads: int) -> dict[str, Any]:
  """What a reader must know of the machine to read the numbers."""
  return {'cpu': cpu_name(), 'cores': os.cpu_count(), 'threads': threads,
          'system': platform.platform(), 'python': platform.python_version()}


def peak_bytes(pid: int | str = 'self') -> int:
  """The most memory that a process has held at once, in bytes; 0 if it has ended.

  Linux counts a parent's memory into a child's ``ru_maxrss``; VmHWM is the child's alone.
  """
  status = pathlib.Path(f'/proc/{pid}/status')
  try:
    lines = status.read_text(encoding='ascii').splitlines()
  except (FileNotFoundError, ProcessLookupError):
    lines = []
  if lines or pid != 'self':
    for line in lines:
      if line.startswith('VmHWM:'):
        return int(line.split()[1]) * 1024
    return 0
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == 'darwin' else peak * 1024


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
  """(what ``work`` returns, {'seconds': by the clock, 'cpu_seconds': of all threads})."""
  cpu, clock = time.process_time(), time.perf_counter()
  result = work()
  return result, {'seconds': time.perf_counter() - clock,
                  'cpu_seconds': time.process_time() - cpu}


def median(values: Sequence[float]) -> float:
  ordered = sorted(values)
  middle = len(ordered) // 2
  return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


# -- a side, seen from both ends --------------------------------------------------------


class SideFailed(RuntimeError):
  """A side's process ended before it answered; its own message is on standard error."""


class Side:
  """A child process running ``python -m MODULE WORDS...``; use it as a context manager."""

  def __init__(self, module: str, *words: str, threads: int):
    """Start it; it answers once it is ready for the first request.

    Args:
      module: dotted name of a module whose main calls ``serve``.
      words: its arguments.
      threads: cores that it may use.
    """
    self.name = module
    self._process = subprocess.Popen(
        [sys.executable, '-m', module, *words], cwd=ROOT, env=_environment(threads), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

  def ask(self, **request) -> dict[str, Any]:
    """One request, one answer.

    Raises:
      SideFailed: the process ended instead.
    """
    try:
      self._process.stdin.write(json.dumps(request) + '\n')
      self._process.stdin.flush()
      line = self._process.stdout.readline()
    except BrokenPipeError:
      line = ''
    if not line:
      raise SideFailed(f'{self.name} ended with exit code {self._process.wait()} at {request}')
    return json.loads(line)

  def __enter__(self) -> 'Side':
    return self

  def __exit__(self, *unused) -> None:
    self._process.stdin.close()
    try:
      self._process.wait(timeout=20)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    self._process.stdout.close()


def run_module(module: str, *words: str, threads: int) -> None:
  """``python -m MODULE WORDS...`` to its end.

  Raises:
    SideFailed: it ended with an error.
  """
  done = subprocess.run([sys.executable, '-m', module, *words], cwd=ROOT,
                        env=_environment(threads), check=False)
  if done.returncode:
    raise SideFailed(f'{module} {words[0]} ended with exit code {done.returncode}')


def _environment(threads: int) -> dict[str, str]:
  # An accelerator's plugin would be loaded, and counted, even if it is not used.
  return {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu',
          **{name: str(threads) for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS')}}


def stay_on(threads: int) -> None:
  """Keep this process on the first ``threads`` of its cores, where the system can do that.

  To be called before anything that starts threads is imported: XLA's pool has one per core.
  """
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def serve(answers: dict[str, Callable[..., dict[str, Any]]]) -> None:
  """Answer requests {'do': NAME, ...} until standard input ends.

  Args:
    answers: NAME -> function of the request's other fields, giving a JSON-ready dict.
      'peak_bytes' is added to every answer.
  """
  channel = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # what libraries print must not end up among the answers
  for line in sys.stdin:
    request = json.loads(line)
    answer = answers[request.pop('do')](**request)
    channel.write(json.dumps({**answer, 'peak_bytes': peak_bytes()}) + '\n')
    channel.flush()


# -- results ----------------------------------------------------------------------------


def write_json(path: str, result: dict[str, Any]) -> None:
  """Write ``result`` by rename."""
  partial = pathlib.Path(f'{path}.partial')
  partial.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')
  os.replace(partial, path)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Columns at most 80 wide together: the first to the left, the others to the right."""
  lines = [head, *rows]
  wide = [max(len(line[i]) for line in lines) for i in range(len(head))]
  out = ['  '.join(cell.ljust(wide[0]) if i == 0 else cell.rjust(wide[i])
                   for i, cell in enumerate(line)).rstrip() for line in lines]
  assert max(map(len, out)) <= WIDTH, max(out, key=len)
  return '\n'.join([out[0], '-' * max(map(len, out)), *out[1:]])
