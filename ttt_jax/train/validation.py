"""Validation during a run: the training objective on held-out rows, with fixed rows and noise."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ttt_jax.config import Config
from ttt_jax.config.settings import SCORES
from ttt_jax.data import store
from ttt_jax.model import sharding
from ttt_jax.model.transformer import Model
from ttt_jax.objective import hybrid
from ttt_jax.tokens.batch import Batch, make_row, stack
from ttt_jax.tokens.vocab import Vocabulary
from ttt_jax.train import step as train_step


class Validator:
  """params -> {'loss', 'text_nll', 'masked_nll'} over the first batches of a split.

  A split with fewer rows than ``train.eval_batches`` batches is used completely, once. The last
  batch is filled with empty rows, which do not count.
  """

  def __init__(self, config: Config, model: Model, vocab: Vocabulary, mesh: Mesh,
               data_dir: pathlib.Path):
    """Read the rows and put them on the mesh.

    Raises:
      UserError: the prepared data has no such split.
    """
    rows = store.Rows(data_dir, config.train.eval_split)
    per_batch, index, count = (config.train.batch_size, jax.process_index(), jax.process_count())
    empty = make_row(vocab, [], config.data.seq_len)
    self._batches = []
    wanted = min(config.train.eval_batches, -(-len(rows) // per_batch))
    mine = range(index * per_batch // count, (index + 1) * per_batch // count)
    for number in range(wanted):
      places = [number * per_batch + row for row in mine]
      local = stack([rows[place] if place < len(rows) else empty for place in places])
      self._batches.append(sharding.put_batch(mesh, local))
    # A key of its own: the noise does not depend on the step, so that scores can be compared.
    key = jax.random.fold_in(train_step.run_key(config.seed), 0xE7A1)

    def sums(params: Any, batch: Batch) -> hybrid.Sums:
      targets = hybrid.corrupt(batch, vocab, config.objective, key)
      return hybrid.loss_and_sums(model, params, batch, targets, config.objective, 1.0)[1]
    self._sums = jax.jit(sums)
    self._means = jax.jit(lambda total: {
        name: value for name, value in train_step.summary(total, config).items()
        if name in SCORES})
    self._add = jax.jit(lambda one, other: jax.tree.map(jnp.add, one, other))

  def __call__(self, params: Any) -> dict[str, float]:
    """The scores of ``params``; waits for the device."""
    total = self._sums(params, self._batches[0])
    for batch in self._batches[1:]:
      total = self._add(total, self._sums(params, batch))
    return {name: float(value) for name, value in jax.device_get(self._means(total)).items()}
