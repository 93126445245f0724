"""Documents of many inputs to shards of packed rows.

Shard k of K takes the k-th part of every block. Blocks are in random order, so each shard is
a sample of its whole split, is packed alone, and no more than one is in memory.
"""

import dataclasses
import pathlib
from typing import Any, Sequence

import numpy as np

from ttt_jax.data import packing, store
from ttt_jax.data.prepare.jobs import tick
from ttt_jax.tokens.batch import make_row
from ttt_jax.tokens.vocab import Vocabulary

TOKENS = 2**24  # of a shard, about
_SAMPLED = 256  # blocks of a shard, at most
FILE = 'rows.arrayrecord'


@dataclasses.dataclass(frozen=True)
class Block:
  """A block that render.py laid down.

  Attributes:
    folder, index: where: INDEX.ids and so on in the folder, below the folder of work.
    documents, tokens: how many.
    before: documents of the set before those of its input; the first has number 1.
  """
  folder: str
  index: int
  documents: int
  tokens: int
  before: int


@dataclasses.dataclass(frozen=True)
class Job:
  """See ``pack``.

  Attributes:
    work: the folder of work.
    blocks: shared by ``shards`` shards, of which this is number ``shard``.
    number, total: its place among all shards of the split.
  """
  work: str
  blocks: tuple[Block, ...]
  shard: int
  shards: int
  number: int
  total: int
  seq_len: int
  vocabulary: Vocabulary


def jobs(work: pathlib.Path, blocks: Sequence[Block], seq_len: int, vocab: Vocabulary,
         seed: int) -> list[Job]:
  """The shards of one split.

  Of a great many blocks, each shard samples a few hundred, drawn from the whole split: the
  number of reads would grow with the square of the set otherwise.
  """
  order = np.random.default_rng(seed).permutation(len(blocks))
  groups = [tuple(blocks[i] for i in order[start:start + _SAMPLED])
            for start in range(0, len(blocks), _SAMPLED)]
  counts = [max(1, round(sum(block.tokens for block in group) / TOKENS)) for group in groups]
  total, out = sum(counts), []
  for group, count in zip(groups, counts):
    out += [Job(str(work), group, k, count, len(out) + k, total, seq_len, vocab)
            for k in range(count)]
  return out


def bounds(block: int, documents: int, shard: int, shards: int) -> tuple[int, int]:
  """First document of a block in a shard, and the one after its last.

  Every block starts at another shard with what does not divide, or the last shards would
  get all the documents of blocks with few.
  """
  offset = block * 7919 % shards
  return tuple((documents * k + offset) // shards for k in (shard, shard + 1))


def pack(job: Job, folder: pathlib.Path) -> dict[str, Any]:
  """Write one shard; {'rows', 'tokens', 'bytes', 'sha256', 'units': documents}."""
  ids, lengths, numbers = [], [], []
  for at, block in enumerate(job.blocks):
    first, last = bounds(at, block.documents, job.shard, job.shards)
    if first == last:
      continue
    start = pathlib.Path(job.work) / block.folder / str(block.index)
    sizes = np.fromfile(start.with_suffix('.lengths'), np.int32)
    skipped = int(sizes[:first].sum(dtype=np.int64))
    lengths.append(sizes[first:last])
    ids.append(np.fromfile(start.with_suffix('.ids'), np.int32,
                           int(lengths[-1].sum(dtype=np.int64)), offset=4 * skipped))
    numbers.append(np.fromfile(start.with_suffix('.numbers'), np.int32, last - first,
                               offset=4 * first) + block.before + 1)
  ids, lengths, numbers = (np.concatenate(x) if x else np.zeros(0, np.int32)
                           for x in (ids, lengths, numbers))
  ends = np.cumsum(lengths, dtype=np.int64)
  def document(i):
    tick()
    own = ids[ends[i] - lengths[i]:ends[i]]
    return int(numbers[i]), np.where(own < 0, ~own, own), own < 0
  packed = packing.pack(lengths, job.seq_len)
  path = folder / FILE
  rows = store.write_rows(path, (make_row(job.vocabulary, [document(i) for i in row],
                                          job.seq_len)
                                 for row in packed.rows))
  return {'tokens': len(ids), 'units': len(lengths), **store.file_entry(path, rows)}
