"""Losses on held-out rows, by the class of the token: exact where the next token is predicted, an
upper bound where tokens are predicted by diffusion."""

import dataclasses
from collections.abc import Callable
import functools
from typing import NamedTuple

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
  """Losses of the held-out rows' supervised tokens, in nats, by the class of the token.

  A next-token loss is exact and taken with clean audio. A bound is the 1/p-weighted masked loss
  over all supervised tokens that are predicted by diffusion (BANOM and PPM off, and the paper's
  mask_floor whatever was trained with), averaged over ``evaluate.bound_samples`` draws of the
  noise: an upper bound of the negative log-likelihood.

    objective.mode   text          audio         answer
    'hybrid'         text_nll      audio_bound   answer_bound
    'ar'             text_nll      audio_nll     answer_nll
    'nar'            text_bound    audio_bound   answer_bound

  Returns:
    'text_...' and 'audio_...' per token, 'answer_...' per document over all of its tokens, so
    that it is comparable between modes; with several draws 'audio_bound_error', the standard
    error of audio_bound. A key is absent where the split has no such token.
  """
  config = run.config
  objective = config.objective.plain()
  rows = store.Rows(run.data_dir, config.evaluate.split)
  size = min(_ROWS, len(rows))
  clean = dataclasses.replace(objective, banom=1.0)
  noisy = dataclasses.replace(objective, banom=0.0, ppm=0.0,
                              mask_floor=ObjectiveConfig.mask_floor)
  sums = _make_sums(run)
  key = jax.random.fold_in(jax.random.key(config.seed), 0xE7A1)
  # Batches of one size share a program: the last one is filled with empty rows.
  empty = make_row(run.vocab, (), config.data.seq_len)
  groups = [stack([rows[i] if i < len(rows) else empty for i in range(at, at + size)])
            for at in range(0, len(rows), size)]

  def total(audio: bool, draw: int | None) -> _Total:
    """All rows; a draw of None is without noise."""
    named = key if draw is None else jax.random.fold_in(key, draw)
    kind = clean if draw is None else noisy
    found = np.sum([np.asarray(sums(run.params, batch, named, kind, audio)) for batch in groups], 0)
    return _Total(*found[:2]) if draw is None else _Total(*found[2:])

  draws = range(config.evaluate.bound_samples)
  exact = {'hybrid': ('text',), 'ar': ('text', 'audio'), 'nar': ()}[objective.mode]
  out, answer, is_bound = {}, 0.0, False
  for name in ('text', 'audio'):
    found = [total(name == 'audio', draw) for draw in ([None] if name in exact else draws)]
    values = [one.nats / one.tokens for one in found if one.tokens]
    if not values:
      continue
    kind = 'nll' if name in exact else 'bound'
    is_bound |= kind == 'bound'
    out[f'{name}_{kind}'] = float(np.mean(values))
    if name == 'audio' and len(values) > 1:
      out['audio_bound_error'] = float(np.std(values, ddof=1) / np.sqrt(len(values)))
    answer += float(np.mean([one.nats for one in found]))
  documents = sum(int(((batch.position == 0) & (batch.document > 0)).sum()) for batch in groups)
  if out and documents:
    out['answer_bound' if is_bound else 'answer_nll'] = answer / documents
  return out


class _Total(NamedTuple):
  nats: float
  tokens: float


def _make_sums(run: TrainedModel) -> Callable[..., jax.Array]:
  """[next-token nats, such targets, weighted masked nats, maskable tokens] of a batch, over the
  tokens of one class."""
  @functools.partial(jax.jit, static_argnames=('objective', 'audio'))
  def noise(batch: Batch, key: jax.Array, objective: ObjectiveConfig,
            audio: bool) -> hybrid.Targets:
    targets = hybrid.corrupt(batch, run.vocab, objective, key)
    of_class = lambda label: run.vocab.is_audio(label) == audio
    # corrupt weighs a masked token by 1 / (p * maskable tokens of its document); per token the
    # weight is 1 / p alone.
    return targets._replace(
        next_weight=jnp.where(of_class(targets.next_label), targets.next_weight, 0.0),
        self_weight=jnp.where(targets.masked & of_class(targets.self_label),
                              1.0 / targets.rate, 0.0),
        maskable=targets.maskable & of_class(targets.self_label))

  @jax.jit  # apart from the noise, so that the model is compiled once
  def score(params: Params, batch: Batch, targets: hybrid.Targets) -> jax.Array:
    _, found = hybrid.loss_and_sums(run.model, params, batch, targets,
                                    run.config.objective.plain(), 1.0)
    return jnp.stack([found.text_nll, found.text_targets, found.diffusion,
                      jnp.sum(targets.maskable).astype(jnp.float32)])
  return lambda params, batch, key, objective, audio: score(
      params, batch, noise(batch, key, objective, audio))
