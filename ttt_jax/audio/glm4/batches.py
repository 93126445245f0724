"""Batched encoding with a few compiled shapes and reproducible tokens.

A segment's length determines its bucket (a compiled shape), and all batches of a bucket have the
same number of rows, padded with empty ones. So a segment's tokens do not depend on the other
segments of its batch, bit for bit.
"""

import collections
import functools
from collections.abc import Hashable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ttt_jax.audio.glm4 import features
from ttt_jax.audio.glm4.encoder import Encoder, Params

_AT_ONCE = 3_000     # tokens per batch on one accelerator
_IN_FLIGHT = 2       # batches in computation while the next one is prepared
Name = TypeVar('Name', bound=Hashable)
_HOPS = 2 * features.HOP  # samples per frame at 50 Hz


def buckets(longest: int) -> tuple[int, ...]:
  """Compiled lengths in tokens.

  They grow by a fifth to a quarter up to 4 s, then by 0.8 s, from 16 s on by 2 s: padding stays
  below 10 % for most speech, with about thirty compiled shapes.
  """
  sizes = [8, 10, 13, 16, 20, 25, 30, 35, 40, 45, *range(50, 200, 10), *range(200, 400, 25)]
  return (*(size for size in sizes if size < longest), longest)


class Batches:
  """An encoder with its parameters on one device, or a copy on each device of a mesh."""

  def __init__(self, encoder: Encoder, params: Params, mesh: Mesh | None = None,
               rows: int | None = None):
    """
    Args:
      encoder, params: params as from Encoder.init, numpy or JAX arrays.
      mesh: rows of a batch are sharded over all its axes; None = the first local device.
      rows: segments per batch and device; None = 1 on a CPU, where larger batches are not
        faster, and as many as make 3,000 tokens on accelerators.
    """
    self.encoder = encoder
    self.buckets = buckets(encoder.shape.longest)
    self._rows, self._mesh = rows, mesh
    if mesh is None:
      device = jax.local_devices()[0]
      self._devices, self._platform = 1, device.platform
      self._params = jax.device_put(params, device)
      self._place = functools.partial(jax.device_put, device=device)
      self._program = jax.jit(encoder.tokens)
    else:
      self._devices, self._platform = mesh.size, mesh.devices.flat[0].platform
      cut = PartitionSpec(mesh.axis_names)
      self._params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
      self._place = functools.partial(jax.device_put, device=NamedSharding(mesh, cut))
      self._program = jax.jit(jax.shard_map(
          encoder.tokens, mesh=mesh, in_specs=(PartitionSpec(), cut, cut), out_specs=cut))

  def rows(self, bucket: int) -> int:
    """Segments per batch of this bucket, over all devices."""
    each = self._rows or (1 if self._platform == 'cpu' else max(1, _AT_ONCE // bucket))
    return each * self._devices

  def bucket(self, samples: int) -> int:
    """The bucket of a segment, by its number of samples."""
    count = features.tokens(samples)
    return next(size for size in self.buckets if size >= count)

  def run(self, segments: Iterable[tuple[Name, np.ndarray, int]]
          ) -> Iterator[tuple[Name, np.ndarray]]:
    """Encodes segments, read lazily; incomplete batches are computed at the end.

    Args:
      segments: (name, log-mel [8 x tokens, mels], samples).

    Yields:
      (name, int32 [tokens]) in the order in which batches are complete.
    """
    waiting: dict[int, list] = collections.defaultdict(list)
    in_flight: collections.deque = collections.deque()
    for segment in segments:
      size = self.bucket(segment[2])
      waiting[size].append(segment)
      if len(waiting[size]) == self.rows(size):
        in_flight.append(self._start(size, waiting.pop(size)))
      if len(in_flight) > _IN_FLIGHT:
        yield from _finish(*in_flight.popleft())
    for size in sorted(waiting):
      in_flight.append(self._start(size, waiting[size]))
    for batch in in_flight:
      yield from _finish(*batch)

  def _start(self, size: int, group: list) -> tuple[jax.Array, list]:
    """Dispatches a batch; JAX computes it asynchronously."""
    mels = np.zeros((self.rows(size), size * features.FRAMES, self.encoder.shape.mels),
                    np.float32)
    valid = np.zeros(len(mels), np.int32)
    for row, (_, mel, samples) in enumerate(group):
      mels[row, :len(mel)] = mel
      valid[row] = -(-samples // _HOPS)
    return self._program(self._params, self._place(mels), self._place(valid)), group


def _finish(tokens: jax.Array, group: list) -> Iterator[tuple[Any, np.ndarray]]:
  found = np.asarray(tokens)
  for row, (name, _, samples) in enumerate(group):
    yield name, found[row, :features.tokens(samples)]
