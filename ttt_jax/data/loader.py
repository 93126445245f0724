"""Rows to batches: deterministic, random access, resumable from one integer.

Global batch i is a pure function of (prepared set, data config, batch_rows, seed, i): its
stage and epoch follow from i, Grain shuffles the epoch's rows, SST is drawn from
(seed, epoch, document). Each of P processes takes its slice of that same global batch, so
a run may continue on another number of processes.
"""

import pathlib
from typing import Any, NamedTuple

import numpy as np

from ttt_jax.batch import Batch, stack
from ttt_jax.config import DataConfig
from ttt_jax.data import augment, store
from ttt_jax.errors import UserError
from ttt_jax.vocab import Vocabulary

_AHEAD = 8        # batches read before they are asked for
_FOREVER = 2**48  # a stage without an end


class _Stage(NamedTuple):
  first: int    # its first global batch
  seed: int
  rows: int     # rows of an epoch
  dataset: Any  # grain.MapDataset: row number since the stage's start -> row


class Loader:
  """Iterator of numpy Batches [B_local, T]; see the module's docstring.

  The curriculum: stage k gives its ``steps`` batches, then the next stage follows; the
  last one never ends by itself.
  """

  def __init__(self, data_dir: str | pathlib.Path, config: DataConfig, batch_rows: int, seed: int,
               vocab: Vocabulary, process_index: int = 0, process_count: int = 1):
    """Open a prepared set.

    Args:
      data_dir: directory of the set (that of manifest.json).
      config: stages, sst, shuffle, threads.
      batch_rows: B, rows of the global batch.
      seed: of the shuffle and of SST.
      vocab: must be the set's own.
      process_index, process_count: this process takes rows [index * B / count, ...) of each
        global batch.

    Raises:
      UserError: no such set or split, another vocabulary, B not divisible, an empty split.
    """
    if batch_rows % process_count:
      raise UserError(f'config key train.batch_rows={batch_rows} does not divide among '
                      f'{process_count} processes.')
    store.read_manifest(data_dir, vocab)
    self.vocab, self.config, self.seed = vocab, config, seed
    self._rows = batch_rows
    self._local = batch_rows // process_count
    self._first = process_index * self._local
    self._stages: list[_Stage] = []
    first = 0
    for number, stage in enumerate(config.stages):
      self._stages.append(self._open(data_dir, stage.split, number, first))
      first += stage.steps
    self._next = 0
    self._iterator = None

  def _open(self, data_dir, split: str, number: int, first: int) -> _Stage:
    """An endless random-access dataset of one split's rows, shuffled anew every epoch."""
    import grain.python as grain  # imports jax; a plain import of this module must stay cheap
    rows = store.Rows(data_dir, split)
    if not len(rows):
      raise UserError(f'config key data.stages: split {split!r} of {data_dir} has no rows.')
    seed = self.seed + 1_000_003 * number  # a split used by two stages is drawn anew
    dataset = grain.MapDataset.source(rows)
    if self.config.shuffle:
      dataset = dataset.shuffle(seed=seed % 2**32)
    dataset = dataset.repeat(None, reseed_each_epoch=True)
    return _Stage(first, seed, len(rows), dataset)

  def batch_at(self, index: int) -> Batch:
    """This process's part of global batch ``index``: a Batch of int32 [B_local, T]."""
    stage = next(s for s in reversed(self._stages) if s.first <= index)
    first = (index - stage.first) * self._rows + self._first
    numbers = np.arange(first, first + self._local)
    batch = stack([stage.dataset[i] for i in numbers.tolist()])
    if not self.config.sst:
      return batch
    epochs = (numbers // stage.rows)[augment.rows_of_documents(batch)]
    draws = augment.document_draws(stage.seed, epochs, augment.documents(batch))
    return augment.cut(batch, self.vocab, self.config.sst, draws)

  def __iter__(self) -> 'Loader':
    return self

  def __next__(self) -> Batch:
    if self._iterator is None:
      self._iterator = self._read_from(self._next)
    batch = next(self._iterator)
    self._next += 1
    return batch

  def _read_from(self, start: int):
    """Batches start, start + 1, ... in order, read ahead by Grain's threads."""
    import grain.python as grain
    if not self.config.threads:
      return map(self.batch_at, range(start, _FOREVER))
    options = grain.ReadOptions(num_threads=self.config.threads, prefetch_buffer_size=_AHEAD)
    return iter(grain.MapDataset.range(start, _FOREVER).map(self.batch_at)
                .to_iter_dataset(options))

  def state(self) -> dict[str, Any]:
    """{'next': index of the global batch that follows the last one handed out}."""
    return {'next': self._next}

  def restore(self, state: dict[str, Any]) -> None:
    """Continue at ``state``, whatever the number of processes that wrote it."""
    self._next = int(state['next'])
    self._iterator = None
