"""Shared code of the benchmarks: sides in processes of their own, facts of the machine, tables.

A side is a Python module that reads one JSON request per line and answers each with one line.
Sides take turns, so that other load on the machine affects both alike, and each has a process
to itself, so that its peak memory can be measured.
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
  """The name of the processor."""
  cpuinfo = pathlib.Path('/proc/cpuinfo')
  if cpuinfo.is_file():
    for line in cpuinfo.read_text(encoding='utf-8').splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  return platform.processor() or platform.machine()


def machine(threads: int) -> dict[str, Any]:
  """Facts of the machine that belong to every result."""
  return {'cpu': cpu_name(), 'cores': os.cpu_count(), 'threads': threads,
          'system': platform.platform(), 'python': platform.python_version()}


def peak_bytes(pid: int | str = 'self') -> int:
  """Peak resident memory of a process in bytes; 0 if it has ended.

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


# -- the two ends of a side --------------------------------------------------------


class SideFailed(RuntimeError):
  """A side's process ended before it answered; its message is on standard error."""


class Side:
  """A child process running ``python -m MODULE WORDS...``; use it as a context manager."""

  def __init__(self, module: str, *words: str, threads: int):
    """Start the process.

    Args:
      module: dotted name of a module whose main calls ``serve``.
      words: its arguments.
      threads: cores that it may use.
    """
    self.name = module
    self._process = subprocess.Popen(
        [sys.executable, '-m', module, *words], cwd=ROOT, env=_environment(threads), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert self._process.stdin and self._process.stdout  # both are pipes
    self._requests, self._answers = self._process.stdin, self._process.stdout

  def ask(self, **request) -> dict[str, Any]:
    """Send one request and return its answer.

    Raises:
      SideFailed: the process ended instead.
    """
    try:
      self._requests.write(json.dumps(request) + '\n')
      self._requests.flush()
      line = self._answers.readline()
    except BrokenPipeError:
      line = ''
    if not line:
      raise SideFailed(f'{self.name} ended with exit code {self._process.wait()} at {request}')
    return json.loads(line)

  def __enter__(self) -> 'Side':
    return self

  def __exit__(self, *unused) -> None:
    self._requests.close()
    try:
      self._process.wait(timeout=20)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    self._answers.close()


def run_module(module: str, *words: str, threads: int) -> None:
  """Run ``python -m MODULE WORDS...`` until it ends.

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
  os.dup2(2, 1)  # output of libraries must not mix with the answers
  for line in sys.stdin:
    request = json.loads(line)
    answer = answers[request.pop('do')](**request)
    channel.write(json.dumps({**answer, 'peak_bytes': peak_bytes()}) + '\n')
    channel.flush()


# -- results ----------------------------------------------------------------------------


def description(doc: str | None) -> str:
  """The first line of a module's docstring, for its --help."""
  return (doc or '').partition('\n')[0]


def temp_bytes(program: Any) -> int:
  """Bytes of temporary buffers of a compiled program."""
  return program.memory_analysis().temp_size_in_bytes


def write_json(path: str, result: dict[str, Any]) -> None:
  """Write ``result`` by rename."""
  partial = pathlib.Path(f'{path}.partial')
  partial.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')
  os.replace(partial, path)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table of at most 80 columns; the first cell of a row is left-aligned, the others right."""
  lines = [head, *rows]
  wide = [max(len(line[i]) for line in lines) for i in range(len(head))]
  out = ['  '.join(cell.ljust(wide[0]) if i == 0 else cell.rjust(wide[i])
                   for i, cell in enumerate(line)).rstrip() for line in lines]
  assert max(map(len, out)) <= WIDTH, max(out, key=len)
  return '\n'.join([out[0], '-' * max(map(len, out)), *out[1:]])
