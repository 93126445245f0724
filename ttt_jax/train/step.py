"""One update: a pure function of (state, batch)."""

from typing import Any, Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ttt_jax.config import Config
from ttt_jax.model import lora, sharding, staircase
from ttt_jax.model.transformer import Model, Params
from ttt_jax.objective import hybrid
from ttt_jax.tokens.batch import Batch
from ttt_jax.tokens.vocab import Vocabulary
from ttt_jax.train.state import TrainState, state_shardings

Ranges = tuple[jax.Array, jax.Array]  # k_start and k_end of staircase.key_ranges, [B, T]


def run_key(seed: int) -> jax.Array:
  """The key that all of a run's noise descends from."""
  return jax.random.fold_in(jax.random.key(seed), 0x7474)


def key_ranges(batch: Batch, config: Config) -> Ranges:
  """The staircase of a batch [B, T] under the objective of a run: (k_start, k_end), int32."""
  return staircase.key_ranges(batch, config.objective.mode, config.objective.prompt_audio)


def documents_in(batch: Batch) -> jax.Array:
  """Number of documents in [..., B, T] rows: their first tokens, counted."""
  return jnp.sum((batch.position == 0) & (batch.document > 0)).astype(jnp.float32)


def gradients(config: Config, model: Model, vocab: Vocabulary, params: Any, batch: Batch,
              key: jax.Array, ranges: Ranges | None = None) -> tuple[Params, hybrid.Sums]:
  """Gradient of the mean over *all* documents of the batch, and the batch's sums.

  The batch is cut into ``train.grad_accum_steps`` pieces along its rows. Each piece adds its
  share of one global mean, so the cut changes nothing but rounding (and the adapters' dropout
  masks). Gradients lie where their parameters lie: no device adds up a whole one. With adapters
  they are those of the adapters alone.
  """
  pieces = config.train.grad_accum_steps
  documents = documents_in(batch)
  trained, axes = lora.trained(params), lora.trained(model.axes())

  if ranges is None:
    ranges = key_ranges(batch, config)

  def piece_gradient(piece: Batch, piece_ranges: Ranges, piece_key: jax.Array,
                     number: jax.Array | int = 0):
    targets = hybrid.corrupt(piece, vocab, config.objective, piece_key)
    dropout = lora.dropout_key(jax.random.fold_in(key, number), model.config.lora)
    def objective(p):
      return hybrid.loss_and_sums(model, lora.join(params, p), piece, targets, config.objective,
                                  documents, dropout, piece_ranges)
    grads, sums = jax.grad(objective, has_aux=True)(trained)
    return jax.tree.map(sharding.constrain, grads, axes), sums

  if pieces == 1:
    return piece_gradient(batch, ranges, key)

  def add(total, numbered):
    number, (piece, piece_ranges) = numbered
    # Documents draw the same noise in any piece, unless BANOM is to be drawn once per piece.
    piece_key = key if config.objective.banom_unit == 'document' else jax.random.fold_in(
        key, number)
    return jax.tree.map(jnp.add, total, piece_gradient(
        piece, piece_ranges, piece_key, number)), None

  split = jax.tree.map(
      lambda x: x.reshape(-1, pieces, x.shape[1]).swapaxes(0, 1), (batch, ranges))
  zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(
      piece_gradient, *jax.tree.map(lambda x: x[0], split), key))
  total, _ = jax.lax.scan(add, zeros, (jnp.arange(pieces), split))
  return total


def make_train_step(config: Config, model: Model, vocab: Vocabulary,
                    optimizer: optax.GradientTransformation, mesh: Mesh,
                    poisoned: Callable[[Batch], jax.Array] | None = None,
                    ) -> Callable[[TrainState, Batch], tuple[TrainState, dict]]:
  """The jitted step over a mesh; the state is donated.

  A loss or gradient that is not finite leaves parameters and optimizer as they are: the
  device decides, element by element while it updates, and only the step's number goes on.

  Args:
    config, model, vocab, optimizer, mesh: of the run.
    poisoned: for drills (faults.py): whether the loss and gradients of a batch shall be NaN.

  Returns:
    step(state, batch) -> (state, figures), figures a dict of float32 scalars on the device.
  """
  def step(state: TrainState, batch: Batch):
    key = jax.random.fold_in(run_key(config.seed), state.step)
    ranges = key_ranges(batch, config)
    grads, sums = gradients(config, model, vocab, state.params, batch, key, ranges)
    if poisoned is not None:
      harm = jnp.where(poisoned(batch), jnp.nan, 0.0)
      grads, sums = jax.tree.map(lambda x: x + harm.astype(x.dtype), (grads, sums))
    figures = {**summary(sums, config), **shape_of_work(batch, ranges, config),
               'grad_norm': optax.tree.norm(grads)}
    sound = jnp.isfinite(figures['loss']) & jnp.isfinite(figures['grad_norm'])
    figures['skipped'] = 1.0 - sound
    trained = lora.trained(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    kept = lambda new, old: jnp.where(sound, new, old)
    changed = jax.tree.map(kept, optax.apply_updates(trained, updates), trained)
    return TrainState(state.step + 1, lora.join(state.params, changed),
                      jax.tree.map(kept, opt_state, state.opt_state)), figures

  where = state_shardings(model, optimizer, mesh)
  return jax.jit(step, in_shardings=(where, sharding.batch_sharding(mesh)),
                 out_shardings=(where, None), donate_argnums=0)


def shape_of_work(batch: Batch, ranges: Ranges, config: Config) -> dict[str, jax.Array]:
  """How much of a batch is real, and how much attention it needs; float32 scalars:

    tokens            positions that belong to documents
    padding_fraction  of all positions, those that do not
    mask_pairs        (query, key) pairs that the staircase allows
    blocks_skipped    of all blocks of attention, the fraction that nobody reads; a dense
                      form computes them all the same
  """
  k_start, k_end = ranges
  tokens = jnp.sum(batch.document > 0).astype(jnp.float32)
  return {'tokens': tokens, 'padding_fraction': 1.0 - tokens / batch.document.size,
          'mask_pairs': jnp.sum((k_end - k_start).astype(jnp.float32)),
          'blocks_skipped': staircase.blocks_skipped(k_start, k_end, config.model.attention_block)}


def summary(sums: hybrid.Sums, config: Config) -> dict[str, jax.Array]:
  """Means for people; the loss is the one that is minimised."""
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
