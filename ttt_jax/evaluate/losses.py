"""Losses on held-out rows: the text's negative log-likelihood and the audio bound, per token."""

import dataclasses
from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
import numpy as np

from ttt_jax.config import ObjectiveConfig
from ttt_jax.data import store
from ttt_jax.model.transformer import Params
from ttt_jax.objective import hybrid
from ttt_jax.tokens.batch import Batch, make_row, stack
from ttt_jax.train.trained_model import TrainedModel

_ROWS = 16  # per forward pass


def losses(run: TrainedModel) -> dict[str, float]:
  """Text NLL with clean audio, and the audio bound, both in nats per token of held-out rows.

  The bound is the 1/p-weighted masked loss over all supervised audio (BANOM and PPM off, and
  the paper's mask_floor whatever was trained with), averaged over
  ``evaluate.bound_samples`` draws of the noise.

  Returns:
    'text_nll'; 'audio_bound' and, with several draws, its standard error 'audio_bound_error'.
    A key is absent where the split has no such token.
  """
  config = run.config
  objective = config.objective
  rows = store.Rows(run.data_dir, config.evaluate.split)
  size = min(_ROWS, len(rows))
  clean = dataclasses.replace(objective, banom=1.0)
  noisy = dataclasses.replace(objective, banom=0.0, ppm=0.0,
                              mask_floor=ObjectiveConfig.mask_floor)
  text, audio = np.zeros(2), []
  sums = _make_sums(run)
  key = jax.random.fold_in(jax.random.key(config.seed), 0xE7A1)
  # Batches of one size share a program: the last one is filled with empty rows.
  empty = make_row(run.vocab, (), config.data.seq_len)
  groups = [stack([rows[i] if i < len(rows) else empty for i in range(at, at + size)])
            for at in range(0, len(rows), size)]
  for batch in groups:
    text += np.asarray(sums(run.params, batch, key, clean))[:2]
  for draw in range(config.evaluate.bound_samples if objective.mode != 'ar' else 0):
    total = np.zeros(2)
    for batch in groups:
      total += np.asarray(sums(run.params, batch, jax.random.fold_in(key, draw), noisy))[2:]
    audio.append(total[0] / max(total[1], 1))
  out = {'text_nll': float(text[0] / text[1])} if text[1] else {}
  if audio:
    out['audio_bound'] = float(np.mean(audio))
    if len(audio) > 1:
      out['audio_bound_error'] = float(np.std(audio, ddof=1) / np.sqrt(len(audio)))
  return out


def _make_sums(run: TrainedModel) -> Callable[..., jax.Array]:
  """[text nats, text targets, weighted audio nats, maskable audio] of a batch."""
  @functools.partial(jax.jit, static_argnames='objective')
  def noise(batch: Batch, key: jax.Array, objective: ObjectiveConfig) -> hybrid.Targets:
    targets = hybrid.corrupt(batch, run.vocab, objective, key)
    # corrupt weighs a masked token by 1 / (p * maskable tokens of its document); per token the
    # weight is 1 / p alone.
    return targets._replace(self_weight=jnp.where(targets.masked, 1.0 / targets.rate, 0.0))

  @jax.jit  # apart from the noise, so that the model is compiled once
  def score(params: Params, batch: Batch, targets: hybrid.Targets) -> jax.Array:
    _, found = hybrid.loss_and_sums(run.model, params, batch, targets, run.config.objective, 1.0)
    return jnp.stack([found.text_nll, found.text_targets, found.diffusion,
                      jnp.sum(targets.maskable).astype(jnp.float32)])
  return lambda params, batch, key, objective: score(params, batch, noise(batch, key, objective))
