"""Rows to batches: deterministic, random access, resumable from one integer.

Global batch i is a pure function of (prepared set, data config, batch_size, seed, i): its
stage follows from i, the mixture says which split gives each of its rows, Grain shuffles
that split's epoch, SST is drawn from (seed, epoch, document). Each of P processes takes its
slice of that same global batch, so a run may continue on another number of processes.

Each split of a mix has its own epochs. A split that an earlier stage has read continues where
that stage stopped, so that unseen rows come before repeated ones; a stage with one ``split``
starts a new order.
"""

import pathlib
from typing import Any, NamedTuple

import numpy as np

from ttt_jax.config import DataConfig, Stage
from ttt_jax.data import span_truncation, store
from ttt_jax.data.mixture import Mixture
from ttt_jax.data.records import sources
from ttt_jax.errors import UserError
from ttt_jax.tokens.batch import Batch, stack
from ttt_jax.tokens.vocab import Vocabulary

_AHEAD = 8        # batches prefetched
_NEXT = 4096      # rows whose files are fetched first
_FOREVER = 2**48  # batches; stands for no end


class Pass(NamedTuple):
  """When the documents of a stage are visited: row r of batch i, first <= i, is in visit number
  visits + (start + (i - first) B + r) // rows. In a mix, whose splits take different times, that
  of the split which is read through soonest."""
  first: int    # index of the stage's first global batch
  start: int    # rows of the visit that earlier stages have read
  rows: int     # rows of a visit
  visits: int   # visits that began in earlier stages


class _Part(NamedTuple):
  """One split of a stage."""
  seed: int     # of its order and of SST
  start: int    # first row number that this stage reads
  rows: int     # rows of an epoch
  dataset: Any  # grain.MapDataset: row number -> row, without end
  source: store.Rows


class _Stage(NamedTuple):
  first: int    # index of its first global batch
  mixture: Mixture
  parts: list[_Part]  # in the order of the mixture's components


class Loader:
  """Iterator of numpy Batches [B_local, T]; see the module's docstring.

  Curriculum: stage k provides its ``steps`` batches, then the next stage follows, which may mix
  the same splits with other weights. The last stage has no end.
  """

  def __init__(self, data_dir: str | pathlib.Path, config: DataConfig, batch_size: int, seed: int,
               vocab: Vocabulary, process_index: int = 0, process_count: int = 1):
    """Opens a prepared set.

    Args:
      data_dir: directory of the set (that of manifest.json).
      config: stages, sst, shuffle, threads.
      batch_size: B, rows of the global batch.
      seed: of the shuffle and of SST.
      vocab: must equal the set's vocabulary.
      process_index, process_count: this process takes rows [index * B / count, ...) of each
        global batch.

    Raises:
      UserError: no such set or split, another vocabulary, B not divisible, a split that is
        empty or held out.
    """
    if batch_size % process_count:
      raise UserError(f'config key train.batch_size={batch_size} does not divide among '
                      f'{process_count} processes.')
    store.read_manifest(data_dir, vocab)
    self.vocab, self.config, self.seed = vocab, config, seed
    self._rows = batch_size
    self._local = batch_size // process_count
    self._first = process_index * self._local
    self._stages = self._open(data_dir)
    self.passes = _passes(self._stages, batch_size)
    self._next = 0
    self._iterator = None

  def _open(self, data_dir) -> list[_Stage]:
    rows: dict[str, store.Rows] = {}
    left: dict[str, tuple[int, int]] = {}  # split -> (seed, rows read by the stages so far)
    stages: list[_Stage] = []
    first = 0
    for number, stage in enumerate(self.config.stages):
      splits = dict(sorted(stage.splits().items()))  # independent of their order in the config
      mixture = Mixture(list(splits.values()))
      parts = []
      for split, given in zip(splits, mixture.counts(stage.steps * self._rows).tolist()):
        if sources.is_heldout(split):
          raise UserError(f'config key data.stages: split {split!r} is held out, so it is never '
                          'trained on; name another.')
        if split not in rows:
          rows[split] = store.Rows(data_dir, split)
        if not len(rows[split]):
          raise UserError(f'config key data.stages: split {split!r} of {data_dir} has no rows.')
        seed, start = _begin(stage, split, number, len(parts), left, self.seed)
        left[split] = seed, start + given
        parts.append(_Part(seed, start, len(rows[split]), self._endless(rows[split], seed),
                           rows[split]))
      stages.append(_Stage(first, mixture, parts))
      first += stage.steps
    return stages

  def _endless(self, rows: Any, seed: int):
    """Random access to endless epochs of rows, each in another order."""
    import grain.python as grain  # imports jax; a plain import of this module must stay cheap
    dataset = grain.MapDataset.source(rows)
    if self.config.shuffle:
      dataset = dataset.shuffle(seed=seed % 2**32)
    return dataset.repeat(None, reseed_each_epoch=True)

  def batch_at(self, index: int) -> Batch:
    """This process's part of global batch ``index``: a Batch of int32 [B_local, T]."""
    stage = next(s for s in reversed(self._stages) if s.first <= index)
    first = (index - stage.first) * self._rows + self._first
    which, numbers = stage.mixture.place(np.arange(first, first + self._local))
    parts = [stage.parts[i] for i in which.tolist()]
    numbers += [part.start for part in parts]
    batch = stack([part.dataset[i] for part, i in zip(parts, numbers.tolist())])
    if not self.config.sst:
      return batch
    epochs = numbers // [part.rows for part in parts]
    seeds = np.array([part.seed for part in parts], np.int64)
    row = span_truncation.rows_of_documents(batch)
    draws = span_truncation.document_draws(seeds[row], epochs[row],
                                           span_truncation.documents(batch))
    return span_truncation.cut(batch, self.vocab, self.config.sst, draws)

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
    self._fetch_ahead(start)
    if not self.config.threads:
      return map(self.batch_at, range(start, _FOREVER))
    options = grain.ReadOptions(num_threads=self.config.threads, prefetch_buffer_size=_AHEAD)
    return iter(grain.MapDataset.range(start, _FOREVER).map(self.batch_at)
                .to_iter_dataset(options))

  def _fetch_ahead(self, start: int) -> None:
    """Let the files of a set in a bucket be fetched in the order in which the batches from
    ``start`` on need them."""
    begun: set[str] = set()
    for number, stage in enumerate(self._stages):
      if number + 1 < len(self._stages) and self._stages[number + 1].first <= start:
        continue
      at = max(0, start - stage.first) * self._rows
      which, numbers = stage.mixture.place(np.arange(at, at + _NEXT))
      for i, part in enumerate(stage.parts):
        if not part.source.fetched or part.source.split in begun:
          continue
        begun.add(part.source.split)
        order = self._endless(range(part.rows), part.seed)
        mine = numbers[which == i][:part.rows] + part.start
        part.source.fetch_ahead(order[n] for n in mine.tolist())

  def state(self) -> dict[str, Any]:
    """{'next': index of the global batch after the last one that was returned}."""
    return {'next': self._next}

  def restore(self, state: dict[str, Any]) -> None:
    """Continues at ``state``; the number of processes that wrote it does not matter."""
    self._next = int(state['next'])
    self._iterator = None


def _begin(stage: Stage, split: str, number: int, place: int, left: dict[str, tuple[int, int]],
           seed: int) -> tuple[int, int]:
  """(seed, first row number) of a split in stage ``number``: see the module's docstring.

  Args:
    place: index of the split in its stage, so that splits of a stage have different orders.
    left: split -> (seed, rows read) after the earlier stages.
    seed: the run's seed.
  """
  if stage.mix and split in left:
    return left[split]
  return seed + 1_000_003 * number + 15_485_863 * place, 0


def _passes(stages: list[_Stage], batch_size: int) -> tuple[Pass, ...]:
  """One for each stage, in order."""
  out: list[Pass] = []
  for number, stage in enumerate(stages):
    shares = stage.mixture.shares()
    share, part = min(zip(shares, stage.parts), key=lambda pair: pair[1].rows / pair[0])
    visits = 0
    if number:
      last = out[-1]
      read = last.start + (stage.first - last.first) * batch_size
      visits = last.visits + -(-read // last.rows)
    out.append(Pass(stage.first, round(part.start / share), max(1, round(part.rows / share)),
                    visits))
  return tuple(out)
