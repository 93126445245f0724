"""The train step: a pure function of (state, batch), compiled once for a mesh."""

from collections.abc import Sequence
import functools
from typing import Any, Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ttt_jax.config import Config
from ttt_jax.data.loader import Pass
from ttt_jax.model import lora, sharding, staircase
from ttt_jax.model.transformer import Model, Params
from ttt_jax.objective import hybrid
from ttt_jax.tokens.batch import Batch
from ttt_jax.tokens.vocab import Vocabulary
from ttt_jax.train.state import TrainState, state_shardings

Ranges = tuple[jax.Array, jax.Array]  # k_start and k_end of staircase.key_ranges, [B, T]


def run_key(seed: int) -> jax.Array:
  """The PRNG key that all noise of a run is derived from."""
  return jax.random.fold_in(jax.random.key(seed), 0x7474)


@jax.named_scope('mask')
def key_ranges(batch: Batch, config: Config) -> Ranges:
  """The staircase of a batch [B, T] under the objective of a run: (k_start, k_end), int32."""
  return staircase.key_ranges(batch, config.objective.mode, config.objective.prompt_audio)


def documents_in(batch: Batch) -> jax.Array:
  """Number of documents in rows [..., B, T], a float32 scalar: counts their first tokens."""
  return jnp.sum((batch.position == 0) & (batch.document > 0)).astype(jnp.float32)


def visits(passes: Sequence[Pass], step: jax.Array | int, rows: int) -> jax.Array:
  """int32 [B, 1]: how often the documents of each row of a step's batch were visited before.

  Args:
    passes: of the loader; () counts no visits.
    step: index of the batch.
    rows: B, of the global batch.
  """
  row = jnp.arange(rows, dtype=jnp.uint32)[:, None]
  number = jnp.zeros_like(row)
  for one in passes:
    read = (jnp.asarray(step) - one.first).astype(jnp.uint32) * rows + row + one.start
    number = jnp.where(step >= one.first, one.visits + read // one.rows, number)
  return number.astype(jnp.int32)


def gradients(config: Config, model: Model, vocab: Vocabulary, params: Any, batch: Batch,
              key: jax.Array, ranges: Ranges | None = None,
              visit: hybrid.Visit | None = None) -> tuple[Params, hybrid.Sums]:
  """Gradient of the mean over *all* documents of the batch, and the batch's sums.

  The batch is split into ``train.grad_accum_steps`` microbatches along its rows. Each adds its
  share of one global mean, so the split changes nothing but rounding (and the adapters' dropout
  masks). Gradients are sharded like their parameters: no device accumulates a full one.

  With ``objective.mirror`` every microbatch has two forward and backward passes one after the
  other, and gradients and sums are the means of both.

  Args:
    batch: int32 vectors [B, T].
    key: of the noise of this step.
    ranges: ``key_ranges`` of the batch; None computes them here.
    visit: of the batch, for ``objective.t_sampling``.

  Returns:
    (gradients with respect to the trained parameters: with LoRA, of the adapters alone; sums).
  """
  pieces = config.train.grad_accum_steps
  documents = documents_in(batch)
  trained, axes = lora.trained(params), lora.trained(model.axes())

  if ranges is None:
    ranges = key_ranges(batch, config)

  def pass_gradient(piece: Batch, piece_ranges: Ranges, piece_visit: hybrid.Visit | None,
                    piece_key: jax.Array, number: jax.Array | int, twin: jax.Array | int):
    targets = hybrid.corrupt(piece, vocab, config.objective, piece_key, piece_visit, twin)
    dropout = lora.dropout_key(jax.random.fold_in(key, number), model.config.lora)
    if dropout is not None and config.objective.passes > 1:
      dropout = jax.random.fold_in(dropout, twin)
    def objective(p):
      return hybrid.loss_and_sums(model, lora.join(params, p), piece, targets, config.objective,
                                  documents, dropout, piece_ranges)
    grads, sums = jax.grad(objective, has_aux=True)(trained)
    return jax.tree.map(sharding.constrain, grads, axes), sums

  def piece_gradient(piece: Batch, piece_ranges: Ranges, piece_visit: hybrid.Visit | None,
                     piece_key: jax.Array, number: jax.Array | int = 0):
    one = functools.partial(pass_gradient, piece, piece_ranges, piece_visit, piece_key, number)
    if config.objective.passes == 1:
      return one(0)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(one, 0))
    total, _ = jax.lax.scan(lambda sums, twin: (jax.tree.map(jnp.add, sums, one(twin)), None),
                            zeros, jnp.arange(config.objective.passes))
    return jax.tree.map(lambda x: x / config.objective.passes, total)

  if pieces == 1:
    return piece_gradient(batch, ranges, visit, key)

  def add(total, numbered):
    number, (piece, piece_ranges, visits) = numbered
    piece_visit = None if visit is None else visit._replace(number=visits)
    # A document draws the same noise in any microbatch, unless BANOM is drawn per microbatch.
    piece_key = key if config.objective.banom_unit == 'document' else jax.random.fold_in(
        key, number)
    return jax.tree.map(jnp.add, total, piece_gradient(
        piece, piece_ranges, piece_visit, piece_key, number)), None

  split = jax.tree.map(
      lambda x: x.reshape(-1, pieces, x.shape[1]).swapaxes(0, 1),
      (batch, ranges, None if visit is None else visit.number))
  first, first_ranges, _ = jax.tree.map(lambda x: x[0], split)
  zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(
      piece_gradient, first, first_ranges, None, key))
  total, _ = jax.lax.scan(add, zeros, (jnp.arange(pieces), split))
  return total


def make_train_step(config: Config, model: Model, vocab: Vocabulary,
                    optimizer: optax.GradientTransformation, mesh: Mesh,
                    poisoned: Callable[[Batch], jax.Array] | None = None,
                    passes: Sequence[Pass] = (),
                    ) -> Callable[[TrainState, Batch], tuple[TrainState, dict]]:
  """The jitted step over a mesh; the state is donated.

  If the loss or the gradient is not finite, parameters and optimizer state stay unchanged and only
  the step number advances. The device decides this itself: asking the host would stall both.

  Args:
    config, model, vocab, optimizer, mesh: of the run.
    poisoned: of fault_injection.py: whether the loss and gradients of a batch are to be NaN.
    passes: of the loader, for ``objective.t_sampling``.

  Returns:
    step(state, batch) -> (state, metrics), metrics a dict of float32 scalars on the device.
  """
  def step(state: TrainState, batch: Batch):
    key = jax.random.fold_in(run_key(config.seed), state.step)
    ranges = key_ranges(batch, config)
    visit = None
    if config.objective.t_sampling == 'stratified':
      visit = hybrid.Visit(run_key(config.seed),
                           visits(passes, state.step, config.train.batch_size))
    grads, sums = gradients(config, model, vocab, state.params, batch, key, ranges, visit)
    if poisoned is not None:
      harm = jnp.where(poisoned(batch), jnp.nan, 0.0)
      grads, sums = jax.tree.map(lambda x: x + harm.astype(x.dtype), (grads, sums))
    with jax.named_scope('metrics'):
      metrics = {**summary(sums, config), **shape_of_work(batch, ranges, config),
                 'grad_norm': optax.tree.norm(grads)}
      finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(metrics['grad_norm'])
      metrics['skipped'] = 1.0 - finite
    with jax.named_scope('optimizer'):
      trained = lora.trained(state.params)
      updates, opt_state = optimizer.update(grads, state.opt_state, trained)
      kept = lambda new, old: jnp.where(finite, new, old)
      changed = jax.tree.map(kept, optax.apply_updates(trained, updates), trained)
      return TrainState(state.step + 1, lora.join(state.params, changed),
                        jax.tree.map(kept, opt_state, state.opt_state)), metrics

  where = state_shardings(model, optimizer, mesh)
  return jax.jit(step, in_shardings=(where, sharding.batch_sharding(mesh)),
                 out_shardings=(where, None), donate_argnums=0)


def shape_of_work(batch: Batch, ranges: Ranges, config: Config) -> dict[str, jax.Array]:
  """How much of a batch is not padding, and how much attention it needs; float32 scalars:

    tokens            positions that belong to documents
    padding_fraction  fraction of positions that belong to none
    mask_pairs        (query, key) pairs that the staircase allows
    blocks_skipped    fraction of the blocks of attention in which no pair is allowed; the dense
                      form computes them nevertheless
  """
  k_start, k_end = ranges
  tokens = jnp.sum(batch.document > 0).astype(jnp.float32)
  return {'tokens': tokens, 'padding_fraction': 1.0 - tokens / batch.document.size,
          'mask_pairs': jnp.sum((k_end - k_start).astype(jnp.float32)),
          'blocks_skipped': staircase.blocks_skipped(k_start, k_end, config.model.attention_block)}


def summary(sums: hybrid.Sums, config: Config) -> dict[str, jax.Array]:
  """The metrics that metrics.py documents, from sums over a batch."""
  share = lambda total, count: total / jnp.maximum(count, 1.0)
  return {
      'loss': hybrid.loss(sums, sums.documents, config.objective),
      'ar': share(sums.ar, sums.documents),
      'diffusion': share(sums.diffusion, sums.documents),
      'text_nll': share(sums.text_nll, sums.text_targets),
      'masked_nll': share(sums.masked_nll, sums.masked),
      'documents': sums.documents,
      'masked_fraction': share(sums.masked, sums.masked + sums.text_targets),
      'scored': sums.masked + sums.text_targets,
  }
