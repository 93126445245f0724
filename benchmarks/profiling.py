"""What being ready for profiles costs a training step while nobody asks.

  python -m benchmarks.profiling --workdir demo --steps 400

One run in one process, whose steps alternate in blocks between two forms: as `ttt-jax train` runs
them (annotations of steps and phases, the thread that looks for requests, percentiles, goodput),
and with all of that taken out. Reported is the ratio of the mean times of a step, over pairs of
neighbouring blocks, with its standard error, and the time of the calls alone.
"""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import statistics
import tempfile
import time

import jax

from ttt_jax import config as config_lib
from ttt_jax.train import profiling, status_file, telemetry, train

BLOCK = 10   # steps
SKIPPED = 20  # steps at the start


class _Nothing(contextlib.nullcontext):
  """Stands for an annotation."""

  def __init__(self, *unused, **more):
    super().__init__()


_OURS = [(jax.profiler, 'StepTraceAnnotation', _Nothing),
         (jax.profiler, 'TraceAnnotation', _Nothing),
         (telemetry.StepTimes, 'add', lambda self: None),
         (telemetry.StepTimes, 'spend', lambda self, what, seconds: None),
         (telemetry.StepTimes, 'percentiles', lambda self: {}),
         (status_file.Status, 'goodput', lambda self, seconds: 0.0),
         (profiling.Profiler, '_new_request', lambda self: None)]
_REAL = [getattr(owner, name) for owner, name, _ in _OURS]


def _choose(with_profiles: bool) -> None:
  for (owner, name, nothing), real in zip(_OURS, _REAL):
    setattr(owner, name, real if with_profiles else nothing)


def measure(workdir: pathlib.Path, steps: int) -> list[tuple[bool, float]]:
  """(with profiles, seconds per step) of every block."""
  config = config_lib.load(workdir / 'config.json')
  data = str((workdir / config.data.path).resolve())
  config = dataclasses.replace(
      config, data=dataclasses.replace(config.data, path=data),
      train=dataclasses.replace(config.train, steps=steps, checkpoint_every=10 * steps,
                                tensorboard=False, eval_every=0))
  marks: list[tuple[bool, float]] = []
  chosen = True

  def due(self, done):
    nonlocal chosen
    if done >= SKIPPED and (done - SKIPPED) % BLOCK == 0:
      marks.append((chosen, time.perf_counter()))
      chosen = (done - SKIPPED) // BLOCK % 4 in (0, 3)  # A B B A: a drift favours neither
      _choose(chosen)
    return False

  real = profiling.Profiler.due
  profiling.Profiler.due = due
  try:
    with tempfile.TemporaryDirectory() as folder:
      train.train(config, folder)
  finally:
    profiling.Profiler.due = real
    _choose(True)
  return [(after[0], (after[1] - before[1]) / BLOCK) for before, after in zip(marks, marks[1:])]


def calls() -> float:
  """Seconds that the annotations and counters of a step take by themselves."""
  times = telemetry.StepTimes(telemetry.Clock())
  started, count = time.perf_counter(), 20_000
  for number in range(count):
    with jax.profiler.StepTraceAnnotation('train', step_num=number):
      for name in ('batch', 'wait for the device', 'metrics'):
        with jax.profiler.TraceAnnotation(name):
          pass
    times.spend('data', 0.0)
    times.spend('wait', 0.0)
    times.add()
  return (time.perf_counter() - started) / count


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--workdir', required=True, help='of a run; its config and data are used')
  parser.add_argument('--steps', type=int, default=400)
  parser.add_argument('--json', default='')
  args = parser.parse_args()
  blocks = measure(pathlib.Path(args.workdir), args.steps)
  pairs = list(zip(blocks[::2], blocks[1::2]))
  ratios = [dict(pair)[True] / dict(pair)[False] for pair in pairs if len(dict(pair)) == 2]
  found = {'pairs': len(ratios), 'ratio_median': statistics.median(ratios),
           'ratio_mean': statistics.fmean(ratios),
           'ratio_error': statistics.stdev(ratios) / len(ratios) ** 0.5,
           'step_seconds': statistics.median(seconds for _, seconds in blocks),
           'calls_seconds': calls()}
  print(json.dumps(found, indent=1))
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(found) + '\n', encoding='utf-8')


if __name__ == '__main__':
  main()
