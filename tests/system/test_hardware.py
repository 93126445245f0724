"""Chips, their names and topologies."""

import pytest

from ttt_jax.errors import UserError
from ttt_jax.system import hardware


@pytest.mark.parametrize('kind, name', [
    ('TPU v4', 'v4'), ('TPU v5 lite', 'v5e'), ('TPU v5e', 'v5e'), ('TPU v5', 'v5p'),
    ('TPU v5p', 'v5p'), ('TPU v6 lite', 'v6e'), ('TPU v6e', 'v6e'), ('TPU7x', 'tpu7x'),
    ('NVIDIA H100 80GB HBM3', 'h100'), ('NVIDIA H100 PCIe', 'h100-pcie'), ('NVIDIA H200', 'h200'),
    ('NVIDIA A100-SXM4-40GB', 'a100-40'), ('NVIDIA A100-SXM4-80GB', 'a100-80'),
    ('NVIDIA B200', 'b200'), ('NVIDIA L4', 'l4'),
    ('cpu', None), ('NVIDIA L40S', None), ('Tesla T4', None)])
def test_device_kinds(kind, name):
  chip = hardware.chip_of(kind)
  assert (chip and chip.name) == name


@pytest.mark.parametrize('text, slices, chips, devices', [
    ('v5p:4x4x4', 1, 64, 64), ('v5e:16x16', 4, 1024, 1024), ('tpu7x:2x2x1', 1, 4, 8),
    ('h100', 1, 1, 1), ('H100:8', 1, 8, 8), ('a100-40:16', 1, 16, 16),
    ('v5p:16x24x16', 1, 6144, 6144)])
def test_topologies(text, slices, chips, devices):
  topology = hardware.parse_topology(text, slices)
  assert (topology.chips, topology.devices) == (chips, devices)
  assert hardware.parse_topology(topology.name, slices) == topology


@pytest.mark.parametrize('text, slices, expected', [
    ('v5litepod-16', 1, 'did you mean v5e, as in v5e:4x4?'),
    ('ironwood:4x4x4', 1, 'did you mean tpu7x'),
    ('v7x', 1, 'did you mean tpu7x'),
    ('v5p', 1, 'has no shape; write v5p:4x4x4'),
    ('v5p-128', 1, 'did you mean v5p, as in v5p:4x4x4?'),
    ('v5p:4x4', 1, 'has 2 axes, but slices of v5p have 3'),
    ('v5e:4xfour', 1, 'has no shape; write v5e:4x4'),
    ('v5e:32x32', 1, 'the largest is v5e:16x16; join smaller ones with --slices'),
    ('v5e:0x4', 1, 'does not exist'),
    ('v5e:4x4', 0, 'number of slices is 0'),
    ('h10:8', 1, 'did you mean h100, as in h100:8?'),
    ('h100:2x4', 1, 'a number of GPUs follows the colon'),
    ('h100:8', 2, 'name all GPUs at once, such as h100:16'),
    ('abacus', 1, 'known are tpu7x, v6e')])
def test_nonsense_is_refused_in_one_sentence(text, slices, expected):
  with pytest.raises(UserError) as error:
    hardware.parse_topology(text, slices)
  assert expected in str(error.value)
  assert '\n' not in str(error.value) and str(error.value).rstrip('?.').count('. ') == 0


@pytest.mark.parametrize('name, expected', [
    ('h100-1', ('h100', 1, 1)), ('h100-8', ('h100', 8, 1)), ('8xh100', ('h100', 8, 1)),
    ('v5p-64', ('v5p', 64, 1)), ('v5e-256x4', ('v5e', 256, 4)), ('4xv5e-256', ('v5e', 256, 4)),
    ('a100-40', ('a100-40', 1, 1)), ('8xa100-40', ('a100-40', 8, 1)), ('laptop', None)])
def test_preset_names(name, expected):
  assert hardware.parse_preset(name) == expected


def test_every_chip_is_plausible():
  for chip in hardware.CHIPS.values():
    assert 1e14 < chip.flops < 5e15 and 1e10 < chip.hbm_bytes < 3e11
    # A product must be reused a hundred times or more before the matrix units are busy.
    assert 100 < chip.flops / chip.hbm_bandwidth < 1000
    assert hardware.parse_topology(hardware.example(chip)).chip is chip
