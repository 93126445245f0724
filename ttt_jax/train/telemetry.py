"""How fast a run is and where its time goes, measured without holding the device up.

JAX gives a step to the device and returns at once, so a call says nothing about how long
the step takes. The loop therefore reads the figures of every step one step late:

  host    give 1 | give 2, read 1      | give 3, read 2      | ...
  device         | 1         | 2         | 3         | ...

While the host waits for step 1, writes its line and fetches the next batch, the device has
step 2; that is all the slack the host needs, and the moment a figure arrives is the moment
its step is done. Speed and time split come from these moments.
"""

from collections.abc import Callable, Mapping
import threading
import time
from typing import Any, NamedTuple

import jax
import numpy as np

PARTS = ('start', 'compile', 'data', 'step', 'checkpoint', 'eval', 'other')
TRAINING = ('data', 'step', 'other')  # the time that rates are taken over
COMPILED = '/jax/core/compile/backend_compile_duration'  # JAX's own event, cached or not

# What steps report as sums over all devices; Speed turns them into rates.
SUMS = ('tokens', 'documents', 'scored', 'mask_pairs')


class Finished(NamedTuple):
  """A step that the device has finished, read on the host."""
  step: int
  metrics: dict[str, float]
  requests: np.ndarray | None  # what Consensus.send returned for this step


class InFlight:
  """The newest step on the device; it is read once the next step has been dispatched."""

  def __init__(self):
    self._step = 0
    self._metrics: Mapping[str, jax.Array] | None = None
    self._requests: jax.Array | None = None

  def push(self, step: int, metrics: Mapping[str, jax.Array],
           requests: jax.Array | None = None) -> Finished | None:
    """Take a step that was just dispatched, and read the one before it.

    Args:
      step: its number.
      metrics: name -> scalar on the device; it need not be computed yet.
      requests: of all processes at this step (Consensus.send).

    Returns:
      The step before, for which this waits; None if there is none.
    """
    finished = self.drain()
    self._step, self._metrics, self._requests = step, metrics, requests
    return finished

  def drain(self) -> Finished | None:
    """Wait for the newest step and return it; nothing is in flight afterwards."""
    if self._metrics is None:
      return None
    metrics, requests = jax.device_get((dict(self._metrics), self._requests))
    self._metrics = self._requests = None
    return Finished(self._step, {name: float(value) for name, value in metrics.items()}, requests)

  def busy(self) -> bool:
    """Whether the device is still computing the newest step."""
    return self._metrics is not None and not all(
        value.is_ready() for value in self._metrics.values())


class Clock:
  """Splits the wall time of a run: every second goes to exactly one of PARTS.

    start       opening data and checkpoints, restoring or making the state
    compile     calls of the train step that had to compile it
    data        waiting for a batch when the device had nothing left to do
    step        training proper: the device was at work on steps
    checkpoint  copying the state off the device; waiting for a save that is still being written
    eval        measuring on held-out records during the run
    other       the host's own work (log, progress) when the device had nothing left to do

  It is a lap clock: ``lap('data')`` says what the time since the last lap went to. Work of
  the host that the device did not notice, because it was busy all the while, counts as
  'step': so 'data' and 'other' are what it would gain if the host were faster, at most
  (a wait counts whole even when the device ran dry only towards its end).
  """

  def __init__(self, busy: Callable[[], bool] = lambda: False,
               now: Callable[[], float] = time.monotonic):
    """Start it.

    Args:
      busy: whether the device is at work (InFlight.busy).
      now: seconds on a clock that never goes back.
    """
    self.seconds = dict.fromkeys(PARTS, 0.0)
    self.busy, self._now = busy, now
    self._last = now()

  def lap(self, part: str) -> None:
    """What was done since the last lap was ``part``."""
    if part in ('data', 'other') and self.busy():
      part = 'step'
    now = self._now()
    self.seconds[part] += now - self._last
    self._last = now

  def resume(self, seconds: Mapping[str, float]) -> None:
    """Add what the run had spent before (the ``seconds`` of an earlier clock)."""
    for part, spent in seconds.items():
      self.seconds[part] += spent

  def training(self) -> float:
    """Seconds of training so far: without start, compilation, checkpoints and evaluation."""
    return sum(self.seconds[part] for part in TRAINING)

  def shares(self) -> dict[str, float]:
    """'time/total' in seconds, and 'time/PART' as its fractions, which sum to 1."""
    total = sum(self.seconds.values())
    return {'time/total': total} | {
        f'time/{part}': spent / max(total, 1e-9) for part, spent in self.seconds.items()}


class Speed:
  """Rates over the training time between two looks; metrics.py says what each number means."""

  def __init__(self, clock: Clock, positions: int,
               flops: Callable[[Mapping[str, float]], float], peak: float | None):
    """Count from now on.

    Args:
      clock: gives the training time.
      positions: rows x length of a step, padding included.
      flops: SUMS of some steps -> useful FLOPs in them.
      peak: FLOP/s that all devices of the run can do together; None if nobody knows.
    """
    self._clock, self._positions, self._flops, self._peak = clock, positions, flops, peak
    self._reset()

  def _reset(self) -> None:
    self._since = self._clock.training()
    self._steps, self._sums = 0, dict.fromkeys(SUMS, 0.0)

  def add(self, figures: Mapping[str, float]) -> None:
    """Count one finished step by its figures, which must hold SUMS."""
    self._steps += 1
    for name in SUMS:
      self._sums[name] += figures[name]

  def take(self) -> dict[str, float]:
    """The rates since the last look, which must have seen a step finish."""
    assert self._steps, 'no step has finished since the last look'
    seconds = max(self._clock.training() - self._since, 1e-9)
    sums, positions = self._sums, self._steps * self._positions
    flops = self._flops(sums) / seconds
    rates = {
        'tokens_per_second': positions / seconds,
        'useful_tokens_per_second': sums['tokens'] / seconds,
        'documents_per_second': sums['documents'] / seconds,
        'steps_per_second': self._steps / seconds,
        'padding_fraction': 1 - sums['tokens'] / positions,
        'model_flops_per_second': flops,
    }
    if self._peak:
      rates['mfu'] = flops / self._peak
    self._reset()
    return rates


class CompileWatch:
  """Hears whether a call of the train step compiled it; after the first time that is an alarm.

    with watch:
      state, figures = step_fn(state, batch)
    watch.compiled(step, batch)

  It listens only inside the ``with`` and only to its own thread, so that other programs
  (a checkpoint's, an evaluation's) raise no alarm, and nothing stays registered.
  """

  def __init__(self, warn: Callable[[str], None]):
    """Args:
      warn: takes the alarm, one sentence.
    """
    self.recompiles = 0
    self._warn, self._first = warn, ''
    self._programs, self._seconds, self._thread = 0, 0.0, 0

  def __enter__(self) -> 'CompileWatch':
    self._programs, self._seconds, self._thread = 0, 0.0, threading.get_ident()
    jax.monitoring.register_event_duration_secs_listener(self._hear)
    return self

  def __exit__(self, *unused) -> None:
    jax.monitoring.unregister_event_duration_listener(self._hear)

  def _hear(self, event: str, seconds: float, **unused) -> None:
    if event == COMPILED and threading.get_ident() == self._thread:
      self._programs += 1
      self._seconds += seconds

  def compiled(self, step: int, batch: Any) -> bool:
    """Whether the call just watched compiled anything.

    Args:
      step: its number, for the alarm.
      batch: what it was given, for the alarm: a tree of arrays.
    """
    if not self._programs:
      return False
    given = ', '.join(sorted({f'{x.dtype}{list(x.shape)}' for x in jax.tree.leaves(batch)}))
    if self._first:
      self.recompiles += 1
      why = (f'its batch is {given}, the first one was {self._first}' if given != self._first else
             f'its batch is {given} as ever, so a type or a sharding in the state has changed')
      self._warn(f'step {step} compiled the train step once more, in {self._seconds:.1f} s: '
                 f'{why}.')
    self._first = self._first or given
    return True
