"""Agreement between the processes of a run: the same decision at the same step, without waiting.

Each process has requests of its own: it received a signal, a save is due by its clock, its disk
is full. Next to every train step runs a tiny program over the mesh that takes the maximum of all
processes' requests. The result is read together with the metrics of that step, one step late,
when it has long been computed. All processes therefore read the same numbers for the same step
and act alike, with no coordinator and no extra wait. A single process skips all of this.
"""

from collections.abc import Mapping, Sequence
import socket

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

REQUESTS = ('stop', 'save', 'time', 'failed', 'saving')
_NAME_BYTES = 64  # of a host


class Consensus:
  """The maximum of every request over all processes.

    stop    preemption.INTERRUPTED or preemption.PREEMPTED: save and exit
    save    1: train.checkpoint_minutes have passed since the last save
    time    1: train.max_minutes have passed
    failed  1: this process cannot go on, for example because its disk is full; 2: nor can it, but
            a restart may help, for example because its bucket does not answer
    saving  1: this process is still writing a checkpoint
  """

  def __init__(self, mesh: Mesh):
    self.single = jax.process_count() == 1
    # One row per device: that is how a process puts its own values into a global array.
    self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    self._shape = mesh.size, len(REQUESTS)
    self._local_rows = sum(
        device.process_index == jax.process_index() for device in mesh.devices.flat)
    # The first row of every process, in the order of the processes.
    owners = [device.process_index for device in mesh.devices.flat]
    self._first_rows = [owners.index(process) for process in sorted(set(owners))]
    self._all = jax.jit(lambda rows: rows, out_shardings=NamedSharding(mesh, PartitionSpec()))
    self._maximum = jax.jit(lambda requests: jnp.max(requests, axis=0),
                            out_shardings=NamedSharding(mesh, PartitionSpec()))

  def send(self, requests: Mapping[str, int]) -> jax.Array | None:
    """Start the reduction; all processes must call this at the same step.

    Args:
      requests: name -> value, for names of REQUESTS; the others count as 0.

    Returns:
      int32 [REQUESTS] on the device, for ``decode`` once it is on the host; None for a single
      process.
    """
    if self.single:
      return None
    row = np.array([[requests.get(name, 0) for name in REQUESTS]], np.int32)
    return self._maximum(jax.make_array_from_process_local_data(
        self._sharding, np.repeat(row, self._local_rows, axis=0), self._shape))

  def gather(self, values: Sequence[float]) -> jax.Array | None:
    """Start exchanging some numbers; all processes must call this at the same step.

    Returns:
      float32 [devices, values] on the device, for ``by_process`` once it is on the host; None for a
      single process.
    """
    if self.single:
      return None
    rows = np.repeat(np.array([values], np.float32), self._local_rows, axis=0)
    return self._all(jax.make_array_from_process_local_data(
        self._sharding, rows, (self._shape[0], len(values))))

  def by_process(self, gathered: np.ndarray) -> np.ndarray:
    """float32 [processes, values] from ``gather``, on the host."""
    return gathered[self._first_rows]

  def now(self, requests: Mapping[str, int]) -> dict[str, int]:
    """Reduce and wait for the result: outside the steps, where a wait costs little."""
    answer = self.send(requests)
    if answer is None:
      return {name: requests.get(name, 0) for name in REQUESTS}
    return decode(np.asarray(jax.device_get(answer)))


def decode(answer: np.ndarray) -> dict[str, int]:
  """int32 [REQUESTS] from ``send``, on the host, as name -> value."""
  return {name: int(value) for name, value in zip(REQUESTS, answer)}


def host_names() -> list[str]:
  """The names of the hosts, process by process; [] for a single process. All processes call it."""
  if jax.process_count() == 1:
    return []
  own = np.zeros(_NAME_BYTES, np.uint8)
  name = socket.gethostname().encode()[:_NAME_BYTES]
  own[:len(name)] = list(name)
  rows = multihost_utils.process_allgather(own)
  return [bytes(row[row > 0]).decode(errors='replace') for row in rows]
