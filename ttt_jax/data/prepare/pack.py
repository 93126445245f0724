"""Phase 4 of prepare: documents of many inputs to shards of packed rows.

Shard k of K takes the k-th part of every block. The order inside blocks is random, so each shard
is a random sample of its split. A shard is packed on its own, so memory holds one at a time.
"""

import dataclasses
import pathlib
from typing import Any, Sequence

import numpy as np

from ttt_jax.data import packing, store
from ttt_jax.data.prepare import addresses
from ttt_jax.data.prepare.jobs import tick
from ttt_jax.tokens.batch import make_row
from ttt_jax.tokens.vocab import Vocabulary

TOKENS = 2**24  # per shard, about
_SAMPLED = 256  # blocks per shard, at most
FILE = 'rows.arrayrecord'


@dataclasses.dataclass(frozen=True)
class Block:
  """A block that render.py wrote.

  Attributes:
    folder, index: its files are INDEX.ids, .lengths and .numbers of this result.
    documents, tokens: counts.
    before: number of documents of the set before its input; document numbers start at 1.
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
    work: root of the results.
    blocks: shared by ``shards`` shards, of which this is number ``shard``.
    number, total: index among all shards of the split, and their number.
  """
  work: str
  blocks: tuple[Block, ...]
  shard: int
  shards: int
  number: int
  total: int
  seq_len: int
  vocabulary: Vocabulary


def jobs(work: str, blocks: Sequence[Block], seq_len: int, vocab: Vocabulary,
         seed: int) -> list[Job]:
  """The shards of one split.

  A shard reads at most a few hundred blocks, drawn at random from the split: if every shard
  read every block, the number of reads would grow with the square of the set.
  """
  order = np.random.default_rng(seed).permutation(len(blocks))
  groups = [tuple(blocks[i] for i in order[start:start + _SAMPLED])
            for start in range(0, len(blocks), _SAMPLED)]
  counts = [max(1, round(sum(block.tokens for block in group) / TOKENS)) for group in groups]
  total, out = sum(counts), []
  for group, count in zip(groups, counts):
    out += [Job(work, group, k, count, len(out) + k, total, seq_len, vocab)
            for k in range(count)]
  return out


def bounds(block: int, documents: int, shard: int, shards: int) -> tuple[int, int]:
  """[start, stop) of the documents of a block that go to a shard.

  The offset differs by block: without it, remainders of the division would always go to the
  same shards.
  """
  offset = block * 7919 % shards
  return (documents * shard + offset) // shards, (documents * (shard + 1) + offset) // shards


def pack(job: Job, folder: pathlib.Path) -> dict[str, Any]:
  """Writes one shard; returns {'rows', 'tokens', 'bytes', 'sha256', 'units': documents}."""
  results, none = addresses.at(job.work), np.zeros(0, np.int32)
  def part(numbered: tuple[int, Block]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    at, block = numbered
    first, last = bounds(at, block.documents, job.shard, job.shards)
    if first == last:
      return none, none, none
    sizes = results.array(block.folder, f'{block.index}.lengths')
    skipped, mine = int(sizes[:first].sum(dtype=np.int64)), sizes[first:last]
    return (results.array(block.folder, f'{block.index}.ids', skipped,
                          int(mine.sum(dtype=np.int64))), mine,
            results.array(block.folder, f'{block.index}.numbers', first, last - first)
            + np.int32(block.before + 1))
  ids, lengths, numbers = map(np.concatenate, zip(*results.each(part, enumerate(job.blocks))))
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
