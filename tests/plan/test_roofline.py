"""The bound of a step against times worked out by hand."""

import pytest

from ttt_jax.plan import roofline
from ttt_jax.plan.collectives import Collective
from ttt_jax.plan.roofline import Place
from ttt_jax.system import hardware

V5P = hardware.parse_topology('v5p:4x4x4')
LINE = [Place(0, (0, 0, z)) for z in range(4)]                          # one ring of four
PLANE = [Place(0, (0, y, z)) for y in range(4) for z in range(4)]       # two rings
GB = 1e9


def one(kind, size=GB, times=1.0, group=(0, 1), asynchronous=True):
  return Collective(kind, size, times, tuple(group), asynchronous, '', '')


@pytest.mark.parametrize('kind, group, expected', [
    # 3/4 GB leave in both directions of a ring of 100 GB/s links.
    ('all-gather', LINE, 0.75 / 200), ('reduce-scatter', LINE, 0.75 / 200),
    ('all-reduce', LINE, 1.5 / 200),
    ('all-gather', PLANE, 15 / 16 / 400),
    ('collective-permute', LINE[:2], 1 / 100),      # two of a ring are a line
    ('all-to-all', LINE, 1.0 / 200),
])
def test_inside_a_slice(kind, group, expected):
  near, far = roofline.collective_seconds(one(kind), V5P, group)
  assert (near, far) == (pytest.approx(expected), 0)


def test_an_axis_too_short_to_be_a_ring_is_a_line():
  v5e = hardware.parse_topology('v5e:4x4')
  row = [Place(0, (0, y)) for y in range(4)]
  near, _ = roofline.collective_seconds(one('all-gather'), v5e, row)
  assert near == pytest.approx(0.75 / 50)


def test_between_slices_everybody_sends_its_part():
  topology = hardware.parse_topology('v5p:4x4x4', 2)
  group = [Place(s, place.coords) for s in range(2) for place in LINE]
  near, far = roofline.collective_seconds(one('all-reduce'), topology, group)
  assert near == pytest.approx(1.5 / 200)
  assert far == pytest.approx(2 * (1 / 2) * (1 / 4) / 6.25)
  counterparts = [Place(0, (0, 0, 0)), Place(1, (0, 0, 0))]
  assert roofline.collective_seconds(one('all-reduce'), topology, counterparts) == (
      0, pytest.approx(1 / 6.25))


def test_gpus_of_a_node_and_beyond():
  node = hardware.parse_topology('h100:16')
  places = [Place(at // 8, ()) for at in range(16)]
  near, far = roofline.collective_seconds(one('all-gather'), node, places[:8])
  assert (near, far) == (pytest.approx(7 / 8 / 450), 0)
  near, far = roofline.collective_seconds(one('all-gather'), node, places)
  assert far == pytest.approx(1 / 2 / 8 / 50)


def test_devices_of_one_chip_share_its_links():
  topology = hardware.parse_topology('tpu7x:4x4x4')
  ring = [Place(0, (0, 0, z)) for z in range(4) for _ in range(2)]
  near, _ = roofline.collective_seconds(one('all-gather'), topology, ring)
  assert near == pytest.approx(7 / 8 / (2 * 100 / 2))


def test_the_longest_part_counts_and_waiting_is_added():
  chip = V5P.chip
  places = LINE + [Place(0, (1, 1, 1))] * 60
  executed = 0.5 * chip.flops * 64
  args = lambda *found: (executed, 0.25 * chip.hbm_bandwidth, found, V5P, places)
  line = roofline.bound(*args())
  assert (line.seconds, line.compute, line.memory) == pytest.approx((0.5, 0.5, 0.25))
  assert line.bound_by == 'compute'
  hidden = roofline.bound(*args(one('all-gather', 200 * GB, 0.5, range(4))))
  assert (hidden.seconds, hidden.ici) == pytest.approx((0.5, 0.375))
  late = roofline.bound(*args(one('all-gather', 200 * GB, 2, range(4))))
  assert (late.seconds, late.bound_by) == (pytest.approx(1.5), 'ICI')
  waits = roofline.bound(*args(one('all-gather', 200 * GB, 1, range(4), False)))
  assert (waits.seconds, waits.waiting) == pytest.approx((1.25, 0.75))
  assert waits.bound_by == 'collectives'
  assert roofline.mfu(executed / 2, waits.seconds, V5P) == pytest.approx(0.2)
