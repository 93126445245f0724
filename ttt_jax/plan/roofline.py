"""The least time that a step can take on given chips, and what it is made of.

  compute   executed FLOPs over the peak of the matrix units
  memory    bytes to and from main memory over its bandwidth
  network   collectives over the links that their groups of devices have: of a torus axis that
            a group spans, both directions of a ring, one of a line; and over the
            data-centre network, between slices or nodes

Compute, memory and asynchronous collectives go on side by side, so the longest of them
counts; a synchronous collective holds everything up, so its time is added. Ring formulas as
in the scaling book (jax-ml.github.io/scaling-book): with n devices and a whole array of b
bytes, a gather or a scatter moves b (n-1)/n over each device's links, a reduction twice that.
"""

import math
from typing import NamedTuple, Sequence

from ttt_jax.plan.collectives import Collective
from ttt_jax.system.hardware import Topology


class Place(NamedTuple):
  """Where a device is: its slice (of GPUs, its node) and its place in the slice's torus."""
  slice: int
  coords: tuple[int, ...]


class Roofline(NamedTuple):
  """Seconds per step.

  Attributes:
    seconds: the bound.
    compute, memory: see the module.
    ici, dcn: asynchronous collectives inside slices, and between them.
    waiting: synchronous collectives, of either network.
  """
  seconds: float
  compute: float
  memory: float
  ici: float
  dcn: float
  waiting: float

  @property
  def bound_by(self) -> str:
    """The part that would have to shrink first."""
    beside = {'compute': self.compute, 'memory': self.memory, 'ICI': self.ici, 'DCN': self.dcn}
    return max(beside, key=beside.get) if self.waiting < max(beside.values()) else 'collectives'


def bound(executed: float, memory_bytes: float, collectives: Sequence[Collective],
          topology: Topology, places: Sequence[Place]) -> Roofline:
  """The bound of one step.

  Args:
    executed: FLOPs of a step over all devices.
    memory_bytes: per device.
    collectives: of one device's program.
    topology: the chips.
    places: of every device, in the order of the mesh.
  """
  chip = topology.chip
  compute = executed / (chip.flops * topology.chips)
  memory = memory_bytes / (chip.hbm_bandwidth / chip.devices)
  ici = dcn = waiting = 0.0
  for one in collectives:
    near, far = collective_seconds(one, topology, [places[at] for at in one.group])
    if one.asynchronous:
      ici, dcn = ici + near * one.times, dcn + far * one.times
    else:
      waiting += (near + far) * one.times
  return Roofline(max(compute, memory, ici, dcn) + waiting, compute, memory, ici, dcn, waiting)


def collective_seconds(one: Collective, topology: Topology,
                       group: Sequence[Place]) -> tuple[float, float]:
  """Seconds over the slice's own network, and over the data-centre network.

  Between slices every device talks to its counterparts about its own part of the array,
  which the fast network has reduced before or spreads afterwards.
  """
  local = [place for place in group if place.slice == group[0].slice]
  n, slices = len(local), len({place.slice for place in group})
  inside = _inside(one.kind, one.bytes, n) / _bandwidth(topology, local) if n > 1 else 0.0
  if slices == 1:
    return inside, 0.0
  between = _inside(one.kind, one.bytes / n, slices)
  return inside, between / (topology.chip.dcn_bandwidth / topology.chip.devices)


def _inside(kind: str, size: float, n: int) -> float:
  """Bytes over a device's links of a collective among n."""
  if kind == 'all-reduce':
    return 2 * size * (n - 1) / n
  if kind == 'all-to-all':  # in a ring the average way is a quarter of it
    return max(size * n / 4, size * (n - 1) / n)
  return size if kind == 'collective-permute' else size * (n - 1) / n


def _bandwidth(topology: Topology, group: Sequence[Place]) -> float:
  """Bytes/s of one device's links towards a group inside a slice or node."""
  chip = topology.chip
  if chip.axes == 0:
    return chip.link_bandwidth
  links = 0
  for axis, size in enumerate(topology.shape):
    spanned = len({place.coords[axis] for place in group})
    if spanned > 1:
      ring = spanned == size and size % chip.wrap == 0
      links += 2 if ring else 1
  # Devices of one chip are closer than that; the chip's links are shared by its devices.
  return max(links, 1) * chip.link_bandwidth / chip.devices if links else (
      2 * chip.axes * chip.link_bandwidth)


def mfu(useful: float, seconds: float, topology: Topology) -> float:
  """Share of the chips' peak that useful FLOPs take in a step of so many seconds."""
  peak = topology.chip.flops * topology.chips
  return useful / (peak * seconds) if seconds else math.nan
