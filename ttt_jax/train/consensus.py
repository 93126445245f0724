"""How the processes of a run come to the same decision at the same step, without waiting.

Each process has requests of its own: it was signalled, its clock says that a save is due, its
disk is full. Beside every step goes a tiny program over the mesh that takes the maximum of
everybody's requests; its result is read together with the figures of the step, one step late,
when it has long been there. So all read the same numbers for the same step and do the same,
with no coordinator and no extra wait. A process alone has nobody to ask.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

REQUESTS = ('stop', 'save', 'time', 'failed')
_PREFIX = 'wish/'


class Consensus:
  """The maximum of every wish over all processes.

    stop    stop.INTERRUPTED or stop.PREEMPTED: save, then leave
    save    1: train.checkpoint_minutes have passed since the last save
    time    1: train.max_minutes have passed
    failed  1: something cannot be written here
  """

  def __init__(self, mesh: Mesh):
    self.alone = jax.process_count() == 1
    if self.alone:
      return
    by_device = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    self._shape, self._sharding = (mesh.size, len(REQUESTS)), by_device
    self._mine = sum(device.process_index == jax.process_index() for device in mesh.devices.flat)
    self._most = jax.jit(lambda requests: jnp.max(requests, axis=0),
                         out_shardings=NamedSharding(mesh, PartitionSpec()))

  def send(self, requests: Mapping[str, int]) -> dict[str, jax.Array]:
    """Start asking everybody; all processes must call this at the same step.

    Args:
      requests: name -> how much, for names of REQUESTS; others are 0.

    Returns:
      Scalars on the device, to be read with the step's figures; none for a process alone.
    """
    if self.alone:
      return {}
    row = np.array([[requests.get(name, 0) for name in REQUESTS]], np.int32)
    everybody = jax.make_array_from_process_local_data(
        self._sharding, np.repeat(row, self._mine, axis=0), self._shape)
    return {_PREFIX + 'all': self._most(everybody)}

  def now(self, requests: Mapping[str, int]) -> dict[str, int]:
    """Ask everybody and wait for the answer: for the time before the first step."""
    if self.alone:
      return {name: requests.get(name, 0) for name in REQUESTS}
    return take({name: np.asarray(jax.device_get(value))
                 for name, value in self.send(requests).items()})


def take(figures: dict) -> dict[str, int]:
  """Remove the answer from figures that were read; {} if there is none in them."""
  found = figures.pop(_PREFIX + 'all', None)
  return {} if found is None else {name: int(value) for name, value in zip(REQUESTS, found)}
