"""Specifications of accelerators, for plans and for model FLOPs utilisation (MFU).

TPUs: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, tables of specifications. A chip's
"bidirectional ICI bandwidth" is all its links in both directions; one link carries one 4th (2-D
torus) or one 6th (3-D) of half of that each way. GPUs: NVIDIA's data sheets of the SXM
modules, dense bfloat16 (half of the figure "with sparsity"); NVLink both ways, halved.
"""

import collections
from collections.abc import Iterable
import dataclasses
import difflib
import math
import re
from typing import Any, NamedTuple

from ttt_jax.errors import UserError

GB, GIB = 1e9, 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One accelerator.

  Attributes:
    name: as in a topology, 'v5p' in 'v5p:4x4x4'.
    platform: 'tpu' or 'gpu', JAX's word.
    flops: peak of dense bfloat16 products, FLOP/s.
    hbm_bytes: memory available to a program. TPU: what XLA's compiler allows, slightly less
      than the data sheet's; GPU: 92 % of the data sheet's, as launch/xla_flags.sh sets
      XLA_PYTHON_CLIENT_MEM_FRACTION (JAX's default is 75 %).
    hbm_bandwidth: bytes/s.
    link_bandwidth: bytes/s one way; TPU: of one ICI link, GPU: of all NVLinks together.
    dcn_bandwidth: bytes/s one way per chip over the data-centre network.
    axes: dimensions of the torus; 0 = a GPU, whose node is fully connected.
    devices: JAX devices per chip.
    largest: the largest slice that can be compiled for ahead of time, chips per axis; GPU:
      devices per node.
    wrap: torus axes that are a multiple of this are rings, others are lines.
    kind: pattern of JAX's device_kind.
  """
  name: str
  platform: str
  flops: float
  hbm_bytes: float
  hbm_bandwidth: float
  link_bandwidth: float
  dcn_bandwidth: float
  kind: str
  axes: int = 0
  devices: int = 1
  largest: tuple[int, ...] = (8,)
  wrap: int = 1


def _tpu(name, tflops, hbm_gib, hbm_gbps, link_gbps, dcn_gbps, kind, largest, wrap, devices=1):
  return Chip(name, 'tpu', tflops * 1e12, hbm_gib * GIB, hbm_gbps * GB, link_gbps * GB,
              dcn_gbps * GB, kind, len(largest), devices, largest, wrap)


def _gpu(name, tflops, hbm_gb, hbm_gbps, nvlink_gbps, dcn_gbps, kind):
  return Chip(name, 'gpu', tflops * 1e12, 0.92 * hbm_gb * GB, hbm_gbps * GB, nvlink_gbps * GB,
              dcn_gbps * GB, kind)


# The order matters for `kind`: the first pattern that matches a device kind is taken.
CHIPS = {chip.name: chip for chip in (
    # name, peak TFLOP/s, usable HBM GiB, HBM GB/s, link GB/s, DCN GB/s
    _tpu('tpu7x', 2307, 189.5, 7380, 100, 12.5, r'tpu ?v?7', (8, 16, 16), 4, devices=2),
    _tpu('v6e', 918, 31.25, 1638, 100, 12.5, r'v6', (16, 16), 16),
    _tpu('v5e', 197, 15.75, 819, 50, 3.125, r'v5 ?lite|v5e', (16, 16), 16),
    _tpu('v5p', 459, 95.74, 2765, 100, 6.25, r'tpu v5', (16, 16, 24), 4),
    # v4's network: 50 GB/s a link (arXiv 2304.01433); its DCN share is taken to be v5p's.
    _tpu('v4', 275, 30.75, 1200, 50, 6.25, r'tpu v4', (12, 16, 16), 4),
    # name, peak TFLOP/s, HBM GB, HBM GB/s, NVLink GB/s one way, network GB/s one way
    _gpu('b200', 2250, 180, 7700, 900, 50, r'g?b200'),
    _gpu('h200', 989, 141, 4800, 450, 50, r'h200'),
    _gpu('h100-pcie', 756, 80, 2000, 64, 50, r'h100 pcie'),
    _gpu('h100', 989, 80, 3350, 450, 50, r'h100'),
    _gpu('a100-40', 312, 40, 1555, 300, 25, r'a100.*40gb'),
    _gpu('a100-80', 312, 80, 2039, 300, 25, r'a100'),
    _gpu('l4', 121, 24, 300, 32, 12.5, r'\bl4\b'),
)}

# Names that other tools use, and ours.
_OTHER_NAMES = {'v5litepod': 'v5e', 'v5lite': 'v5e', 'trillium': 'v6e', 'ironwood': 'tpu7x',
                'v7x': 'tpu7x', 'v7': 'tpu7x', 'tpu7': 'tpu7x', 'v5': 'v5p', 'a100': 'a100-80',
                'gb200': 'b200'}


class Topology(NamedTuple):
  """Chips and the network between them.

  Attributes:
    chip: the kind of chip.
    shape: chips along each axis of the torus; (n,) for n GPUs.
    slices: number of such tori, joined by the data-centre network.
  """
  chip: Chip
  shape: tuple[int, ...]
  slices: int = 1

  @property
  def chips(self) -> int:
    """Number of chips in all slices."""
    return math.prod(self.shape) * self.slices

  @property
  def devices(self) -> int:
    """Number of JAX devices in all slices."""
    return self.chips * self.chip.devices

  @property
  def name(self) -> str:
    """As on the command line, without the slices: 'v5p:4x4x4'."""
    return f'{self.chip.name}:{"x".join(map(str, self.shape))}'

  def __str__(self) -> str:
    return self.name if self.slices == 1 else f'{self.slices} slices of {self.name}'


def chip_of(device_kind: str) -> Chip | None:
  """The chip of a ``jax.Device.device_kind``; None for a CPU or an unknown device."""
  kind = device_kind.lower()
  return next((chip for chip in CHIPS.values() if re.search(chip.kind, kind)), None)


def describe(devices: Iterable[Any]) -> str:
  """JAX devices in words: '8 x NVIDIA H100 80GB HBM3', '1 x cpu'."""
  counts = collections.Counter(str(device.device_kind) for device in devices)
  return ', '.join(f'{count} x {kind}' for kind, count in counts.items())


def parse_topology(text: str, slices: int = 1) -> Topology:
  """Parse 'v5p:4x4x4' or 'h100:8'.

  Args:
    text: chip, colon, and the chips along each axis, or the number of GPUs.
    slices: number of slices.

  Raises:
    UserError: unknown chip or impossible shape; the sentence suggests a valid one.
  """
  name, colon, size = text.strip().lower().partition(':')
  chip = CHIPS.get(name)
  if chip is None:
    raise UserError(f'topology {text!r} names no known chip; {_suggestion(name)}')
  if chip.platform == 'gpu' and not colon:
    size = '1'
  if not re.fullmatch(r'\d+(x\d+)*', size):
    raise UserError(f'topology {text!r} has no shape; write {example(chip)}.')
  if slices < 1:
    raise UserError(f'the number of slices is {slices}; it must be at least 1.')
  shape = tuple(int(n) for n in size.split('x'))
  if chip.platform == 'gpu':
    if len(shape) != 1 or shape[0] < 1:
      raise UserError(f'topology {text!r}: a number of GPUs follows the colon, as in '
                      f'{example(chip)}.')
    if slices > 1:
      raise UserError(f'--slices={slices} is for TPUs; name all GPUs at once, such as '
                      f'{chip.name}:{shape[0] * slices}.')
    return Topology(chip, shape)
  largest = 'x'.join(map(str, chip.largest))
  if len(shape) != chip.axes:
    raise UserError(f'topology {text!r} has {len(shape)} axes, but slices of {chip.name} have '
                    f'{chip.axes}, up to {largest}; write for example {example(chip)}.')
  if min(shape) < 1 or any(n > limit for n, limit in zip(sorted(shape), sorted(chip.largest))):
    raise UserError(f'topology {text!r} does not exist in one slice, of which the largest is '
                    f'{chip.name}:{largest}; join smaller ones with --slices.')
  return Topology(chip, shape, slices)


def example(chip: Chip) -> str:
  """An example of a topology of this chip, for messages."""
  return f'{chip.name}:{"x".join("4" * chip.axes) if chip.axes else chip.largest[0]}'


def _suggestion(name: str) -> str:
  stem = re.sub(r'[-_]\d+$', '', name)
  known = CHIPS.get(stem) or CHIPS.get(_OTHER_NAMES.get(stem, ''))
  if known is None:
    close = difflib.get_close_matches(stem, CHIPS, n=1, cutoff=0.6)
    known = CHIPS[close[0]] if close else None
  if known is not None:
    return f'did you mean {known.name}, as in {example(known)}?'
  return f'known are {", ".join(CHIPS)}, as in v5p:4x4x4 or h100:8.'


def parse_preset(name: str) -> tuple[str, int, int] | None:
  """The hardware that a preset of a config is named after: (chip, chips in a slice, slices).

  Understands 'v5p-64', 'h100', 'h100x8', '8xh100', '4xv5e-256', 'v5e-256x4'; None otherwise.
  """
  match = re.fullmatch(r'(?:(\d+)x)?(.+?)(?:-(\d+))?(?:x(\d+))?', name.lower())
  if not match:
    return None
  times = int(match[1] or match[4] or 1)
  for chip in CHIPS:
    if match[2] == chip or (match[3] and f'{match[2]}-{match[3]}' == chip):
      size = int(match[3]) if match[3] and match[2] == chip else 1
      return (chip, size, times) if CHIPS[chip].platform == 'tpu' else (chip, size * times, 1)
  return None
