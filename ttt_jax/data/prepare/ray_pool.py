"""Jobs on a Ray cluster: tasks for cores, and actors that keep a codec's weights on accelerators.

All nodes see the results, on a shared disk or in a bucket; a result is stored there and only its
info travels. A job of a lost node or process is computed again: half a result is nobody's. The only
module that imports ray.
"""

import collections
import concurrent.futures
import contextlib
import logging
import os
import pathlib
import platform
import threading
import time
from typing import Any, Callable, Sequence

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ttt_jax.data.prepare import addresses, jobs
from ttt_jax.data.prepare.results import Function, Result, Results
from ttt_jax.errors import RetryableError, UserError
from ttt_jax.storage import url_path

RETRIES = 5          # times that a job is computed again after its node or process was lost
_REPORT = 0.5        # seconds between reports of a job, and between looks at them
_RESIZE = 10.0       # seconds between looks at the size of the cluster
_QUEUED = 2          # jobs that wait in an actor, so that it always has one
_JOIN = 60.0         # seconds that the nodes have to answer
_SAMPLED = 1000      # sources that every node looks for, at most
# As the command line sets them for its own processes: codebooks depend on the number of threads.
_ENV = {'OPENBLAS_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1', 'ORT_DISABLE_TELEMETRY': '1'}
_LOST = (exceptions.RayActorError, exceptions.WorkerCrashedError, exceptions.NodeDiedError,
         exceptions.OutOfMemoryError, exceptions.RaySystemError)
_Outcome = tuple[Result | None, Exception | None]


class RayPool(jobs.Pool):
  """The cores and accelerators of a cluster."""
  has_devices = True

  def __init__(self, address: str, results: Results, sources: Sequence[tuple[str, int]]):
    """Connects.

    Args:
      address: of the cluster, as ray.init takes it; '' = the variable RAY_ADDRESS, or else the
        cluster that runs on this machine.
      results: of the jobs; every node must see them.
      sources: (path, bytes) of the files that jobs read.

    Raises:
      UserError: there is no such cluster.
    """
    self._results = results
    self._sources = list(dict.fromkeys(one for one in sources if not url_path.is_url(one[0])))
    self._connected = not ray.is_initialized()
    if self._connected:
      try:
        ray.init(address or os.environ.get('RAY_ADDRESS') or 'auto', log_to_driver=False,
                 logging_level=logging.ERROR, runtime_env={'env_vars': _ENV})
      except (ConnectionError, ValueError, RuntimeError, exceptions.RayError) as error:
        where = f'at {address}' if address else 'here (RAY_ADDRESS is not set)'
        raise UserError(
            f"config key data.runner is 'ray', but there is no Ray cluster {where}: "
            f'{" ".join(str(error).split())[:200]}; start one with `ray start --head`, or name it '
            'in data.ray_address.') from error
    self._counter: Any = None
    self._devices: _Devices | None = None
    self._sized = 0.0
    self._cores = 1
    self._counted, self._looked = 0, 0.0
    self._task = ray.remote(num_cpus=1, max_retries=RETRIES, retry_exceptions=False)(_do)

  @property
  def width(self) -> int:
    now = time.monotonic()
    if not self._sized or now - self._sized > _RESIZE:  # nodes come and go
      self._sized, self._cores = now, max(1, int(ray.cluster_resources().get('CPU', 1)))
    return self._cores

  def begin(self, devices: bool) -> None:
    if self._devices and not devices:  # they hold what the tasks need
      self._devices.close()
      self._devices = None
    if self._counter is None:
      _check_nodes(self._results.root, self._sources)
      here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
      counters: Any = ray.remote(num_cpus=0, max_restarts=-1)(_Counter)
      self._counter = counters.options(scheduling_strategy=here).remote()
    self._counter.clear.remote()
    self._counted, self._looked = 0, 0.0

  def submit(self, function, job, root, name, devices) -> concurrent.futures.Future:
    arguments = (str(pathlib.Path.cwd()), self._counter, function, job, root, name)
    if devices:
      return self._actors().submit(arguments)
    out: concurrent.futures.Future = concurrent.futures.Future()
    _pass_on(self._task.remote(*arguments), out)
    return out

  def call(self, function, *arguments):
    if self._counter is None:
      self.begin(devices=True)
    return self._actors().call(function, *arguments)

  def count(self) -> int:
    now = time.monotonic()
    if now - self._looked > _REPORT:
      self._looked = now
      with contextlib.suppress(exceptions.RayError):  # its node was lost: it starts again elsewhere
        found: Any = ray.get(self._counter.total.remote())
        self._counted = found
    return self._counted

  def explain(self, error: BaseException) -> Exception | None:
    if not isinstance(error, exceptions.RayError):
      return None
    why = ' '.join(str(error).split())[:300]
    return RetryableError(f'a job of `ttt-jax prepare` was lost with its process or node {RETRIES} '
                          f'times or more, perhaps of too little memory ({why}); give a job more '
                          f'than one core, or nodes more memory, and run it again: {jobs.STORED}.')

  def close(self, at_once: bool) -> None:
    if self._devices:
      self._devices.close()
      self._devices = None
    if self._connected and ray.is_initialized():
      ray.shutdown()  # what still runs of our jobs ends with it

  def _actors(self) -> '_Devices':
    if self._devices is None:
      self._devices = _Devices(str(pathlib.Path.cwd()))
    return self._devices


def _pass_on(reference: Any, out: concurrent.futures.Future) -> None:
  """Lets ``out`` end as a reference to an _Outcome does."""
  def done(found: concurrent.futures.Future) -> None:
    if not out.set_running_or_notify_cancel():
      return
    _settle(out, found)
  reference.future().add_done_callback(done)


def _settle(out: concurrent.futures.Future, found: concurrent.futures.Future) -> None:
  error = found.exception()
  if isinstance(error, exceptions.RayTaskError):
    failed: Any = error  # Ray's type is unknown where Ray is not installed
    cause = failed.cause
    cause.__cause__ = error  # the traceback of the other process
    error = cause
  value = None if error else found.result()
  if isinstance(value, tuple):  # an _Outcome
    value, error = value
  if error is None:
    out.set_result(value)
  else:
    out.set_exception(error)


# -- what runs on the nodes -------------------------------------------------------------------


class _Counter:
  """Units that jobs have reported, by job: one that is computed again counts once."""

  def __init__(self):
    self._units: dict[str, int] = {}

  def clear(self) -> None:
    self._units.clear()

  def report(self, name: str, units: int) -> None:
    self._units[name] = units

  def total(self) -> int:
    return sum(self._units.values())


def _enter(cwd: str) -> None:
  """Goes to the current folder of the process that asks: paths may be relative. Where a node has no
  such folder, ``_look`` has made sure that no path of a source is."""
  with contextlib.suppress(FileNotFoundError):
    os.chdir(cwd)


def _do(cwd: str, counter: Any, function: Function, job: Any, root: str, name: str
        ) -> _Outcome:
  """Computes a job."""
  _enter(cwd)
  units, sent = 0, time.monotonic()
  def count(n: int) -> None:
    nonlocal units, sent
    units += n
    if time.monotonic() - sent > _REPORT:
      sent = time.monotonic()
      counter.report.remote(name, units)
  try:
    return jobs.do_here(function, job, root, name, count), None
  except (UserError, RetryableError, OSError) as error:
    # As a value: Ray would put its traceback into the sentence.
    return None, error
  finally:
    counter.report.remote(name, units)


class _Actor:
  """A process with accelerators, or with all cores of a node."""

  def __init__(self, cwd: str):
    _enter(cwd)

  def ready(self) -> None:
    pass

  def do(self, *arguments: Any) -> _Outcome:
    return _do(*arguments)

  def call(self, function: Callable, *arguments: Any) -> Any:
    return function(*arguments)


def _look(root: str, cwd: str, sources: Sequence[tuple[str, int]]) -> dict[str, Any]:
  """What a node lacks, as the end of a sentence, '' = nothing; and its version and name."""
  return {'lacks': addresses.at(root).lacks() or _lacks_sources(cwd, sources),
          'format': jobs.FORMAT, 'host': platform.node()}


def _lacks_sources(cwd: str, sources: Sequence[tuple[str, int]]) -> str:
  for path, size in sources:
    try:
      found = os.stat(os.path.join(cwd, path)).st_size
    except OSError:
      return (f'does not have the source {path}; put sources into the bucket, on a disk that all '
              'nodes share, or under the same path on every node.')
    if found != size:
      return (f'has another source {path}, of {found:,} instead of {size:,} bytes; put the same on '
              'every node, or into the bucket.')
  return ''


def _check_nodes(root: str, sources: Sequence[tuple[str, int]]) -> None:
  """UserError unless every node can use the results, has the sources and has the same code."""
  cwd = str(pathlib.Path.cwd())
  step = max(1, len(sources) // _SAMPLED)
  look = ray.remote(num_cpus=0, max_retries=0)(_look)
  asked = {}
  for node in ray.nodes():
    if node['Alive'] and node['Resources'].keys() & {'CPU', 'GPU', 'TPU'}:
      place = NodeAffinitySchedulingStrategy(node['NodeID'], soft=False)
      asked[look.options(scheduling_strategy=place).remote(root, cwd, sources[::step])] = (
          node['NodeManagerAddress'])
  answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_JOIN)
  for reference in answered:
    address = asked[reference]
    try:
      found = ray.get(reference)
    except exceptions.RayTaskError as error:
      raise UserError(
          f'node {address} of the Ray cluster cannot run ttt_jax ({str(error.cause)[:200]}); '
          'install the same version on all nodes.') from error
    except exceptions.RayError:
      continue  # it was lost just now
    where = f'node {found["host"]} ({address}) of the Ray cluster'
    if found['format'] != jobs.FORMAT:
      raise UserError(f'{where} has another version of ttt_jax; install the same on all nodes.')
    if found['lacks']:
      raise UserError(f'{where} {found["lacks"]}')


# -- accelerators -----------------------------------------------------------------------------


class _Devices:
  """Actors, and the jobs that wait for one. Jobs of a lost actor go to the others, and a new actor
  joins them if the cluster has a place for it."""

  def __init__(self, cwd: str):
    self._cwd = cwd
    self._lock = threading.RLock()
    self._waiting: collections.deque = collections.deque()  # (method, arguments, future, tries)
    self._load: dict[Any, int] = {}  # actor that is ready -> jobs that it has
    self._tries = 0     # actors that could not start since the last one that did
    self._open = True
    options, count = _places(ray.nodes())
    self._class = ray.remote(max_restarts=0, **options)(_Actor)
    for _ in range(count):
      self._add()

  def submit(self, arguments: tuple) -> concurrent.futures.Future:
    return self._enqueue('do', arguments)

  def call(self, *arguments: Any) -> Any:
    return self._enqueue('call', arguments).result()

  def close(self) -> None:
    with self._lock:
      self._open = False
      for actor in self._load:
        ray.kill(actor)

  def _enqueue(self, method: str, arguments: tuple) -> concurrent.futures.Future:
    out: concurrent.futures.Future = concurrent.futures.Future()
    with self._lock:
      self._waiting.append((method, arguments, out, 0))
      self._dispatch()
    return out

  def _add(self) -> None:
    actor = self._class.remote(self._cwd)
    def ready(found: concurrent.futures.Future) -> None:
      with self._lock:
        if not self._open:
          return
        if (error := found.exception()) is None:
          self._tries = 0
          self._load[actor] = 0
        else:
          self._tries += 1
          if self._tries <= RETRIES:
            self._add()
          elif not self._load:
            while self._waiting:
              self._waiting.popleft()[2].set_exception(error)
        self._dispatch()
    actor.ready.remote().future().add_done_callback(ready)

  def _dispatch(self) -> None:
    while self._waiting and self._load:
      actor = min(self._load, key=lambda one: self._load[one])
      if self._load[actor] >= _QUEUED:
        return
      item = self._waiting.popleft()
      if item[2].cancelled():
        continue
      self._load[actor] += 1
      method, arguments, *_ = item
      reference = getattr(actor, method).remote(*arguments)
      reference.future().add_done_callback(
          lambda found, actor=actor, item=item: self._done(actor, item, found))

  def _done(self, actor: Any, item: tuple, found: concurrent.futures.Future) -> None:
    method, arguments, out, tries = item
    with self._lock:
      if not self._open:
        return
      error = found.exception()
      if isinstance(error, _LOST):
        if self._load.pop(actor, None) is not None:  # the first of its jobs to notice
          self._add()
        if tries < RETRIES:
          self._waiting.appendleft((method, arguments, out, tries + 1))
          self._dispatch()
          return
      elif actor in self._load:
        self._load[actor] -= 1
      self._dispatch()
    if out.set_running_or_notify_cancel():
      _settle(out, found)


def _places(nodes: list[dict[str, Any]]) -> tuple[dict[str, Any], int]:
  """What an actor asks of Ray, and the number of actors: one per GPU, or else one per TPU host, or
  else one per node with all its cores."""
  found = [node['Resources'] for node in nodes if node['Alive']]
  gpus = sum(int(one.get('GPU', 0)) for one in found)
  if gpus:
    return {'num_cpus': 1, 'num_gpus': 1}, gpus
  chips = [one['TPU'] for one in found if one.get('TPU')]
  if chips:
    return {'num_cpus': 1, 'resources': {'TPU': min(chips)}}, len(chips)
  cores = [one['CPU'] for one in found if one.get('CPU')] or [1]
  return {'num_cpus': int(min(cores)), 'scheduling_strategy': 'SPREAD'}, len(cores)
