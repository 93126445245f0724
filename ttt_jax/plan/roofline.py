"""A lower bound of the step time on given chips, by part (a roofline model).

  compute   executed FLOPs / peak FLOP/s of the matrix units
  memory    bytes to and from main memory / its bandwidth
  network   bytes of collectives / bandwidth of the links between their devices: for each torus
            axis that a group spans two links of a ring or one of a line; between slices or
            nodes the data-centre network

Compute, memory and asynchronous collectives overlap, so the longest of them counts. A
synchronous collective overlaps with nothing, so its time is added. Ring formulas as in the
scaling book (jax-ml.github.io/scaling-book): with n devices and a complete array of b bytes, an
all-gather or reduce-scatter moves b (n-1)/n over each device's links, an all-reduce twice that.
"""

import math
from typing import NamedTuple, Sequence

from ttt_jax.plan.collectives import Collective
from ttt_jax.system.hardware import Topology


class Place(NamedTuple):
  """Location of a device: its slice (GPUs: its node) and its coordinates in the slice's torus."""
  slice: int
  coords: tuple[int, ...]


class Roofline(NamedTuple):
  """Seconds per step.

  Attributes:
    seconds: the bound.
    compute, memory: see the module.
    ici, dcn: asynchronous collectives inside slices, and between them.
    waiting: synchronous collectives, on either network.
  """
  seconds: float
  compute: float
  memory: float
  ici: float
  dcn: float
  waiting: float

  @property
  def bound_by(self) -> str:
    """The part that determines the bound."""
    beside = {'compute': self.compute, 'memory': self.memory, 'ICI': self.ici, 'DCN': self.dcn}
    longest = max(beside, key=lambda name: beside[name])
    return longest if self.waiting < beside[longest] else 'collectives'


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
  """Seconds on the slice's own network, and on the data-centre network.

  Hierarchical: between slices every device exchanges only its 1/n of the array, which the fast
  network reduces before or gathers afterwards.
  """
  local = [place for place in group if place.slice == group[0].slice]
  n, slices = len(local), len({place.slice for place in group})
  inside = _inside(one.kind, one.bytes, n) / _bandwidth(topology, local) if n > 1 else 0.0
  if slices == 1:
    return inside, 0.0
  between = _inside(one.kind, one.bytes / n, slices)
  return inside, between / (topology.chip.dcn_bandwidth / topology.chip.devices)


def _inside(kind: str, size: float, n: int) -> float:
  """Bytes over each device's links for a collective among n devices."""
  if kind == 'all-reduce':
    return 2 * size * (n - 1) / n
  if kind == 'all-to-all':  # on a ring the average distance is n / 4
    return max(size * n / 4, size * (n - 1) / n)
  return size if kind == 'collective-permute' else size * (n - 1) / n


def _bandwidth(topology: Topology, group: Sequence[Place]) -> float:
  """Bytes/s of one device's links to a group inside a slice or node."""
  chip = topology.chip
  if chip.axes == 0:
    return chip.link_bandwidth
  links = 0
  for axis, size in enumerate(topology.shape):
    spanned = len({place.coords[axis] for place in group})
    if spanned > 1:
      ring = spanned == size and size % chip.wrap == 0
      links += 2 if ring else 1
  # A chip's devices share its links; a group within one chip does not use them.
  return max(links, 1) * chip.link_bandwidth / chip.devices if links else (
      2 * chip.axes * chip.link_bandwidth)


def mfu(useful: float, seconds: float, topology: Topology) -> float:
  """Model FLOPs utilization: useful FLOPs per second over the chips' peak; NaN for 0 seconds."""
  peak = topology.chip.flops * topology.chips
  return useful / (peak * seconds) if seconds else math.nan
