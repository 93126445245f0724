"""Many segments through a few compiled programs; the same tokens in any company.

A segment's own length alone decides which program it meets (a bucket of tokens), and a
program's batch has always the same number of rows, empty ones where nothing waits. So a
segment's tokens do not depend on what is encoded with it, down to the last bit.
"""

import collections
import functools
from collections.abc import Hashable, Iterable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ttt_jax.audio.glm4 import features
from ttt_jax.audio.glm4.encoder import Encoder, Params

_AT_ONCE = 3_000     # tokens of a batch on one accelerator
_IN_FLIGHT = 2       # batches computed while the next one is made
_HOPS = 2 * features.HOP  # samples of a frame at 50 Hz


def buckets(longest: int) -> tuple[int, ...]:
  """Lengths in tokens that programs are compiled for: a fifth to a quarter apart at first, then
  every 0.8 seconds, from 16 seconds on every two: what is computed in vain stays below 10 %
  for most speech, and a corpus meets some thirty programs."""
  sizes = [8, 10, 13, 16, 20, 25, 30, 35, 40, 45, *range(50, 200, 10), *range(200, 400, 25)]
  return (*(size for size in sizes if size < longest), longest)


class Batches:
  """An encoder with its parameters on one device, or a copy on each device of a mesh."""

  def __init__(self, encoder: Encoder, params: Params, mesh: Mesh | None = None,
               rows: int | None = None):
    """
    Args:
      encoder, params: as Encoder.init gives them; numpy will do.
      mesh: rows of a batch are shared out over all its axes; None = the first local device.
      rows: segments of a batch on one device; None = 1 on a CPU, where a product of one
        segment is large enough, and what makes 3,000 tokens on accelerators.
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
    """Segments of a batch of this bucket, over all devices."""
    each = self._rows or (1 if self._platform == 'cpu' else max(1, _AT_ONCE // bucket))
    return each * self._devices

  def bucket(self, samples: int) -> int:
    """The bucket of a segment of so many samples."""
    count = features.tokens(samples)
    return next(size for size in self.buckets if size >= count)

  def run(self, segments: Iterable[tuple[Hashable, np.ndarray, int]]
          ) -> Iterator[tuple[Hashable, np.ndarray]]:
    """Encode segments, read one after the other; what waits is computed when they end.

    Args:
      segments: (name, log-mel [8 x tokens, mels], samples).

    Yields:
      (name, int32 [tokens]) in the order in which batches are full, not that of the names.
    """
    waiting: dict[int, list] = collections.defaultdict(list)
    flying: collections.deque = collections.deque()
    for segment in segments:
      size = self.bucket(segment[2])
      waiting[size].append(segment)
      if len(waiting[size]) == self.rows(size):
        flying.append(self._start(size, waiting.pop(size)))
      if len(flying) > _IN_FLIGHT:
        yield from _finish(*flying.popleft())
    for size in sorted(waiting):
      flying.append(self._start(size, waiting[size]))
    for batch in flying:
      yield from _finish(*batch)

  def _start(self, size: int, group: list) -> tuple[jax.Array, list]:
    """Hand a batch to the device; it is computed while we go on."""
    mels = np.zeros((self.rows(size), size * features.FRAMES, self.encoder.shape.mels),
                    np.float32)
    valid = np.zeros(len(mels), np.int32)
    for row, (_, mel, samples) in enumerate(group):
      mels[row, :len(mel)] = mel
      valid[row] = -(-samples // _HOPS)
    return self._program(self._params, self._place(mels), self._place(valid)), group


def _finish(tokens: jax.Array, group: list) -> Iterator[tuple[Hashable, np.ndarray]]:
  found = np.asarray(tokens)
  for row, (name, _, samples) in enumerate(group):
    yield name, found[row, :features.tokens(samples)]
