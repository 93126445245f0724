"""Throughput of a run and where its time goes, measured without blocking the device.

JAX dispatches a step asynchronously and returns at once, so timing the call does not time the
step. The loop therefore reads the metrics of every step one step late:

  host    dispatch 1 | dispatch 2, read 1  | dispatch 3, read 2  | ...
  device             | 1         | 2         | 3         | ...

While the host waits for step 1, logs it and fetches the next batch, the device computes step 2.
The moment at which metrics arrive is the moment at which their step is done; throughput and time
split are computed from these moments.
"""

import collections
from collections.abc import Callable, Mapping
import threading
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from ttt_jax.train import metrics as metrics_lib

PARTS = ('start', 'compile', 'data', 'step', 'checkpoint', 'eval', 'profile', 'lost', 'other')
TRAINING = ('data', 'step', 'other')  # the time that rates are taken over
COMPILED = '/jax/core/compile/backend_compile_duration'  # JAX's event; also for cached programs

# Metrics of a step that are sums over all devices; Speed turns them into rates.
SUMS = ('tokens', 'documents', 'scored', 'mask_pairs')

HOST_TIMES = ('own', 'data')  # what Hosts gathers of every process, seconds per step


class Finished(NamedTuple):
  """A step that the device has finished, read on the host."""
  step: int
  metrics: dict[str, float]
  requests: np.ndarray | None  # what Consensus.send returned for this step
  hosts: np.ndarray | None = None  # what Consensus.gather returned for this step


class InFlight:
  """The newest step on the device; it is read once the next step has been dispatched."""

  def __init__(self):
    self._step = 0
    self._metrics: Mapping[str, jax.Array] | None = None
    self._requests: jax.Array | None = None
    self._hosts: jax.Array | None = None

  def push(self, step: int, metrics: Mapping[str, jax.Array],
           requests: jax.Array | None = None, hosts: jax.Array | None = None) -> Finished | None:
    """Take a step that was just dispatched, and read the one before it.

    Args:
      step: its number.
      metrics: name -> scalar on the device; it need not be computed yet.
      requests: of all processes at this step (Consensus.send).
      hosts: times of all processes at this step (Consensus.gather).

    Returns:
      The step before, for which this waits; None if there is none.
    """
    finished = self.drain()
    self._step, self._metrics, self._requests, self._hosts = step, metrics, requests, hosts
    return finished

  def drain(self) -> Finished | None:
    """Wait for the newest step and return it; nothing is in flight afterwards."""
    if self._metrics is None:
      return None
    metrics, requests, hosts = jax.device_get((dict(self._metrics), self._requests, self._hosts))
    self._metrics = self._requests = self._hosts = None
    return Finished(self._step, {name: float(value) for name, value in metrics.items()}, requests,
                    hosts)

  def busy(self) -> bool:
    """Whether the device is still computing the newest step."""
    # jax.Array has is_ready(), but its type stub does not declare it.
    return self._metrics is not None and not all(
        value.is_ready() for value in self._metrics.values())  # type: ignore[attr-defined]


class Clock:
  """Splits the wall time of a run: every second counts towards exactly one of PARTS.

    start       opening data and checkpoints, restoring or creating the state
    compile     calls of the train step that compiled it
    data        waiting for a batch while the device was idle
    step        training: the device was computing steps
    checkpoint  copying the state off the device; waiting for a save that is still being written
    eval        evaluating on held-out records during the run
    profile     waiting for the device, and writing the trace, for train.profile
    lost        training that a rollback has thrown away
    other       work of the host (logging, progress) while the device was idle

  ``lap('data')`` attributes the time since the last lap. Work of the host during which the device
  stayed busy counts as 'step'. So 'data' and 'other' are an upper bound on what a faster host
  would gain (a wait counts completely even if the device became idle only near its end).
  """

  def __init__(self, busy: Callable[[], bool] = lambda: False,
               now: Callable[[], float] = time.monotonic):
    """Start the clock.

    Args:
      busy: whether the device is computing; the loop sets it to InFlight.busy.
      now: seconds on a monotonic clock.
    """
    self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    self.busy, self._now = busy, now
    self._last = now()

  def lap(self, part: str) -> None:
    """Attribute the time since the last lap to ``part``."""
    if part in ('data', 'other') and self.busy():
      part = 'step'
    now = self._now()
    self.seconds[part] += now - self._last
    self._last = now

  def roll_back(self, seconds: Mapping[str, float]) -> None:
    """Count the training since a checkpoint as lost.

    Args:
      seconds: this clock's ``seconds`` at the checkpoint.
    """
    for part in TRAINING:
      lost = max(self.seconds[part] - seconds.get(part, 0.0), 0.0)
      self.seconds[part] -= lost
      self.seconds['lost'] += lost

  def resume(self, seconds: Mapping[str, float]) -> None:
    """Add the ``seconds`` of an earlier start of the run."""
    for part in self.seconds.keys() & seconds.keys():
      self.seconds[part] += seconds[part]

  def training(self) -> float:
    """Seconds of training so far, without start, compilation, checkpoints and evaluation."""
    return sum(self.seconds[part] for part in TRAINING)

  def shares(self) -> dict[str, float]:
    """'time/total' in seconds, and 'time/PART' as fractions of it, which sum to 1."""
    total = sum(self.seconds.values())
    return {'time/total': total} | {
        f'time/{part}': spent / max(total, 1e-9) for part, spent in self.seconds.items()}


class Speed:
  """Rates over the training time since the last ``take``; metrics.py documents each of them."""

  def __init__(self, clock: Clock, positions: int,
               flops: Callable[[Mapping[str, float]], float], peak: float | None):
    """Count from now on.

    Args:
      clock: of the run; measures the training time.
      positions: per step, rows x row length, including padding.
      flops: SUMS over some steps -> FLOPs that the model needs for them.
      peak: FLOP/s of all devices of the run; None if unknown.
    """
    self._clock, self._positions, self._flops, self._peak = clock, positions, flops, peak
    self._reset()

  def _reset(self) -> None:
    self._since = self._clock.training()
    self._steps = 0
    self._sums: dict[str, float] = dict.fromkeys(SUMS, 0.0)

  def add(self, metrics: Mapping[str, float]) -> None:
    """Count one finished step; its metrics must contain SUMS."""
    self._steps += 1
    for name in SUMS:
      self._sums[name] += metrics[name]

  def take(self) -> dict[str, float]:
    """The rates since the last call, name -> value; at least one step must have finished."""
    assert self._steps, 'no step has finished since the last call'
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


class StepTimes:
  """How long the latest steps took, in seconds of training, and how much of it this host worked.

  A step's time is the time between the arrivals of its metrics and of those of the step before:
  see the module's docstring. All hosts of a run have the same, since they wait for each other in
  every step. What differs is a host's own work: all but the wait for the device. A host whose own
  work takes as long as a step keeps the others waiting.
  """

  def __init__(self, clock: Clock):
    self._clock = clock
    self._times: collections.deque[float] = collections.deque(maxlen=metrics_lib.WINDOW)
    self.restart()

  def restart(self) -> None:
    """The next step has none before it: the first one, or one after a rollback."""
    self._arrived: float | None = None
    self._begin_host()

  def _begin_host(self) -> None:
    self._since, self._steps = self._clock.training(), 0
    self._seconds: dict[str, float] = dict.fromkeys(('wait', 'data'), 0.0)

  def spend(self, what: str, seconds: float) -> None:
    """Count seconds that this host waited for the device ('wait') or fetched a batch ('data')."""
    self._seconds[what] += seconds

  def add(self) -> None:
    """Count a step whose metrics have just arrived."""
    now = self._clock.training()
    if self._arrived is not None:
      self._times.append(now - self._arrived)
    self._arrived = now
    self._steps += 1

  def percentiles(self) -> dict[str, float]:
    """'step_seconds/pN' of the latest steps; {} before the second one."""
    if not self._times:
      return {}
    names = metrics_lib.PERCENTILES
    values = np.percentile(np.fromiter(self._times, float), names)
    return {f'step_seconds/p{name}': float(value) for name, value in zip(names, values)}

  def take_host(self) -> list[float]:
    """HOST_TIMES of this process since the last call; all 0 if no step has finished."""
    steps, spent = self._steps, self._seconds
    own = self._clock.training() - self._since - spent['wait']
    self._begin_host()
    return [max(seconds, 0.0) / max(steps, 1) * (steps > 0) for seconds in (own, spent['data'])]


def slowest(hosts: np.ndarray) -> dict[str, float]:
  """Metrics about the host that worked longest per step.

  Args:
    hosts: float32 [processes, HOST_TIMES].
  """
  own = hosts[:, HOST_TIMES.index('own')]
  process = int(np.argmax(own))
  return {'hosts/slowest': process, 'hosts/slowest_own': float(own[process]),
          'hosts/slowest_data': float(hosts[process, HOST_TIMES.index('data')]),
          'hosts/median_own': float(np.median(own))}


class CompileWatch:
  """Detects whether a call of the train step compiled it, and warns from the second time on.

    with watch:
      state, metrics = step_fn(state, batch)
    watch.compiled(step, batch)

  It listens to JAX's events only inside the ``with`` and only for its own thread, so that other
  compilations (of checkpointing, of evaluation) do not count, and no listener stays registered.
  """

  def __init__(self, warn: Callable[[str], None]):
    """Args:
      warn: takes the warning, one sentence.
    """
    self.recompiles = 0
    self._warn, self._first = warn, ''
    self._programs, self._seconds, self._thread = 0, 0.0, 0

  def __enter__(self) -> 'CompileWatch':
    self._programs, self._seconds, self._thread = 0, 0.0, threading.get_ident()
    jax.monitoring.register_event_duration_secs_listener(self._on_event)
    return self

  def __exit__(self, *unused) -> None:
    jax.monitoring.unregister_event_duration_listener(self._on_event)

  def _on_event(self, event: str, duration_secs: float, **unused: str | int) -> None:
    if event == COMPILED and threading.get_ident() == self._thread:
      self._programs += 1
      self._seconds += duration_secs

  def compiled(self, step: int, batch: Any) -> bool:
    """Whether the last watched call compiled anything.

    Args:
      step: its number, for the warning.
      batch: its batch, a tree of arrays, for the warning.
    """
    if not self._programs:
      return False
    given = ', '.join(sorted({f'{x.dtype}{list(x.shape)}' for x in jax.tree.leaves(batch)}))
    if self._first:
      self.recompiles += 1
      why = (f'its batch is {given}, the first one was {self._first}' if given != self._first else
             f'its batch is {given} as before, so a dtype or a sharding in the state has changed')
      self._warn(f'step {step} recompiled the train step in {self._seconds:.1f} s: {why}.')
    self._first = self._first or given
    return True
