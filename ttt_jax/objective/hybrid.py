"""The hybrid objective: text by next-token prediction, audio by absorbing diffusion.

Text-to-Talk, arXiv 2509.20072, section 3; docs/method.md. Per document, with h[i] the hidden
state of position i in ONE forward pass over the noisy inputs:

    AR        = mean over supervised text targets of  -log p(x[i+1] | h[i])
    diffusion = 1 / maskable tokens * sum over masked positions of  -log p(x[i] | h[i]) / p
    loss      = mean over documents of  AR + diffusion

The AR term is shifted, the diffusion term is not: a masked position predicts its own clean id. A
document without text targets has AR = 0, one without maskable audio has diffusion = 0; both
count in the mean.

Documents are the unit of the mean, so that packing, microbatches and data parallelism do not
change the loss: ``targets`` writes every per-document denominator into per-token weights, and
``loss_and_sums`` divides once by the number of documents in the complete batch.

Two augmentations close gaps between training and generation (paper, section 3):

  BANOM  batch-wise AR and NAR objective mixing: with probability ``banom`` a document's audio
         stays clean and only the AR term remains, so that text is also trained behind clean
         audio, as in generation.
  PPM    prefix preservation masking: with probability ``ppm`` one maskable span is drawn uniformly,
         and the document's audio before it stays clean and leaves the loss, so that spans are
         also denoised behind clean spans.

The two baselines are the same code with other sets: in 'ar' every supervised token is a
next-token target and nothing is noisy; in 'nar' every supervised token is maskable,
nothing is a next-token target, and BANOM and PPM do not apply.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from ttt_jax.config import ObjectiveConfig
from ttt_jax.model import staircase
from ttt_jax.model.transformer import Model, Params
from ttt_jax.model.types import Array
from ttt_jax.objective import diffusion, losses
from ttt_jax.tokens.batch import Batch
from ttt_jax.tokens.vocab import Vocabulary


_LEVELS = 0x6c65766c  # folded into a key: the stream of the noise levels t


class Targets(NamedTuple):
  """Inputs, labels and weights of one noisy forward pass; arrays [B, T] but for ``documents``."""
  token: jax.Array         # int32: noisy inputs
  next_label: jax.Array    # int32: x[i+1]
  next_weight: jax.Array   # float32: 1 / (text targets of the document), or 0; see t_density
  self_label: jax.Array    # int32: x[i], clean
  # float32: 1 / (p * maskable tokens of the document), or 0; with mask_weight='count' the
  # expectation of 1 / p given the masks stands for 1 / p. With t_density both weights are over the
  # density of the document's t.
  self_weight: jax.Array
  masked: Array            # bool: replaced by the mask
  maskable: Array          # bool: after BANOM and PPM
  rate: Array              # float32: mask probability p of the token's document, or span
  documents: jax.Array     # float32 scalar: number of documents in the batch


class Visit(NamedTuple):
  """What places the documents of a batch in the sequences of t_sampling='stratified'."""
  key: jax.Array           # of the run: the same in all steps
  number: jax.Array        # int32 [B, 1]: how often the row's documents were visited before


class Sums(NamedTuple):
  """Sums over documents or tokens; float32 scalars. Add those of microbatches, then divide."""
  ar: jax.Array            # sum over documents of the AR term
  diffusion: jax.Array     # sum over documents of the diffusion term
  documents: jax.Array     # number of documents
  text_nll: jax.Array      # unweighted nats over all text targets ...
  text_targets: jax.Array  # ... and their number
  masked_nll: jax.Array    # unweighted nats over all masked tokens ...
  masked: jax.Array        # ... and their number
  # Sum over documents of the mean over masked tokens of the entropy of right predictions; None
  # without ``confidence_weight``.
  confidence: jax.Array | None = None


class _Draws(NamedTuple):
  """U(0, 1) draws of each token's document, [B, T]."""
  t: jax.Array
  banom: jax.Array
  ppm: jax.Array
  ppm_span: jax.Array


def _per_document(value: jax.Array, segment: jax.Array) -> jax.Array:
  """float32 [B, T]: the sum of ``value`` [B, T] over the document of each token."""
  length = value.shape[-1]
  def row(v, s):
    return jax.ops.segment_sum(v, s, num_segments=length, indices_are_sorted=True)[s]
  return jax.vmap(row)(value.astype(jnp.float32), segment)


def _segments(document: Array, *more: Array) -> jax.Array:
  """int32 [B, T]: index of each token's document in its row, 0-based.

  With ``more`` vectors a segment ends also where one of them changes.
  """
  change = document[:, 1:] != document[:, :-1]
  for vector in more:
    change |= vector[:, 1:] != vector[:, :-1]
  return jnp.pad(jnp.cumsum(change, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))


def _draw(key: jax.Array, document: Array, config: ObjectiveConfig) -> _Draws:
  draws = diffusion.document_uniforms(key, document, 4)
  banom = draws[..., 1]
  if config.banom_unit == 'batch':  # as the published code: one draw for all documents
    banom = jnp.broadcast_to(jax.random.uniform(jax.random.fold_in(key, 0)), banom.shape)
  return _Draws(draws[..., 0], banom, draws[..., 2], draws[..., 3])


def supervised_maskable(batch: Batch, vocab: Vocabulary, mode: str) -> jax.Array:
  """bool [B, T]: tokens that diffusion may mask, before BANOM and PPM."""
  supervised = (jnp.asarray(batch.supervised) > 0) & (jnp.asarray(batch.document) > 0)
  if mode == 'ar':
    return jnp.zeros_like(supervised)
  return supervised if mode == 'nar' else supervised & vocab.is_audio(batch.token)


def _maskable(batch: Batch, vocab: Vocabulary, config: ObjectiveConfig, draws: _Draws,
              segment: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Tokens that diffusion may mask, after BANOM and PPM, bool; and, before them, the number of
  the maskable span that a token lies in, int32, counted from 0 in its document."""
  audio = supervised_maskable(batch, vocab, config.mode)
  if config.mode != 'hybrid':
    return audio, jnp.zeros(audio.shape, jnp.int32)
  # PPM: number the document's maskable spans 0, 1, ..., and keep those from a drawn one on.
  starts = audio & (jnp.pad(batch.span[:, :-1], ((0, 0), (1, 0))) != batch.span)
  spans = _per_document(starts, segment)
  before = _per_document(
      jnp.where(jnp.pad(segment[:, :-1], ((0, 0), (1, 0)), constant_values=-1) != segment,
                jnp.cumsum(starts, axis=1) - starts, 0), segment)
  ordinal = jnp.cumsum(starts, axis=1) - 1 - before
  first_kept = jnp.where(draws.ppm < config.ppm, jnp.floor(draws.ppm_span * spans), 0)
  maskable = audio & (ordinal >= first_kept) & (draws.banom >= config.banom)
  return maskable, jnp.maximum(ordinal, 0).astype(jnp.int32)


def _levels(batch: Batch, config: ObjectiveConfig, key: jax.Array, t: jax.Array,
            span: jax.Array, visit: Visit | None, twin: Array | int) -> jax.Array:
  """float32 [B, T]: the level of each token, uniform on [0, 1); ``t``: drawn for its document."""
  spans = config.t_unit == 'span' and config.mode == 'hybrid'
  if config.t_sampling == 'stratified' and (spans or visit is not None):
    origin, number = (key, 0) if visit is None else visit
    start = diffusion.document_uniforms(jax.random.fold_in(origin, _LEVELS), batch.document, 1)
    level = diffusion.spread(start[..., 0], number, span if spans else 0)
  elif spans:
    level = diffusion.token_uniforms(jax.random.fold_in(key, _LEVELS), batch.document, span)
  else:
    return t
  return diffusion.mirrored(level, twin) if config.mirror == 'draws' else level


@jax.named_scope('noise')
def corrupt(batch: Batch, vocab: Vocabulary, config: ObjectiveConfig, key: jax.Array,
            visit: Visit | None = None, twin: Array | int = 0) -> Targets:
  """Draw the noise of one step; returns the noisy inputs, labels and weights.

  Args:
    batch: clean rows, int32 [B, T].
    vocab: the id space.
    config: probabilities and mode.
    key: fold_in(run key, step). Draws depend on (key, document id, position) alone, not on the
      row or its other documents, so a resumed run needs no random state.
    visit: of a training step, for t_sampling='stratified'; None: of a single draw.
    twin: 1 for the second pass of ``mirror``; whatever its value, the distribution is the same.
  """
  chex.assert_rank(batch.token, 2)
  chex.assert_equal_shape(batch)
  chex.assert_type(batch, int)
  segment = _segments(batch.document)
  draws = _draw(key, batch.document, config)
  if config.mirror == 'draws':
    draws = _Draws(*(diffusion.mirrored(draw, twin) for draw in draws))
  maskable, span = _maskable(batch, vocab, config, draws, segment)
  level = _levels(batch, config, key, draws.t, span, visit, twin)
  importance = None
  if config.t_density:
    level, importance = diffusion.importance(level, config.t_density)
  rate = diffusion.mask_probability(level, config.mask_floor)
  uniform = diffusion.token_uniforms(key, batch.document, batch.position)
  if config.mirror != 'none':
    uniform = diffusion.mirrored(uniform, twin)
  masked, weight = maskable & (uniform < rate), None
  if config.mask_weight == 'count':
    spans = config.t_unit == 'span' and config.mode == 'hybrid'
    unit = _segments(batch.document, batch.span) if spans else segment
    weight = diffusion.count_weight(_per_document(masked, unit), _per_document(maskable, unit),
                                    config.mask_floor)
  drawn = targets(batch, vocab, config.mode, maskable, masked, rate, weight, config.ar_mean)
  if importance is None:
    return drawn
  # Text reads the noisy audio, so both terms depend on t; without maskable tokens neither does.
  importance = jnp.where(_per_document(maskable, segment) > 0, importance, 1.0)
  return drawn._replace(next_weight=drawn.next_weight * importance,
                        self_weight=drawn.self_weight * importance)


def targets(batch: Batch, vocab: Vocabulary, mode: str, maskable: Array, masked: Array,
            rate: Array, weight: Array | None = None, ar_mean: str = 'tokens') -> Targets:
  """Noisy inputs, labels and weights for a given noise.

  Args:
    batch: clean rows, int32 [B, T].
    vocab: the id space.
    mode: 'hybrid', 'ar' or 'nar'.
    maskable, masked: bool [B, T]: tokens that the noise may mask, and those that it masks.
    rate: float32 [B, T]: mask probability p of the token's document, or span.
    weight: float32 [B, T]: weight of a masked token; None: 1 / rate.
    ar_mean: of mode 'ar': 'tokens' or 'classes' (config key objective.ar_mean).
  """
  chex.assert_rank(batch.token, 2)
  chex.assert_equal_shape([*batch, maskable, masked, rate])
  chex.assert_type([maskable, masked, rate], [bool, bool, float])
  segment = _segments(batch.document)
  shift = lambda x: jnp.pad(x[:, 1:], ((0, 0), (0, 1)))
  next_token = shift(batch.token)
  target = (shift(batch.document) == batch.document) & (batch.document > 0) & (
      shift(batch.supervised) > 0)
  if mode == 'hybrid':
    target &= ~vocab.is_audio(next_token)
  elif mode == 'nar':
    target = jnp.zeros_like(target)
  # 1 / number of a document's members: the mean over tokens as per-token weights.
  share = lambda member: 1.0 / jnp.maximum(_per_document(member, segment), 1.0)
  next_share = share(target)
  if mode == 'ar' and ar_mean == 'classes':
    audio = vocab.is_audio(next_token)
    next_share = jnp.where(audio, share(target & audio), share(target & ~audio))
  first = jnp.pad(batch.position[:, 1:] == 0, ((0, 0), (1, 0)), constant_values=True)
  return Targets(
      token=jnp.where(masked, vocab.mask, batch.token),
      next_label=next_token,
      next_weight=jnp.where(target, next_share, 0.0),
      self_label=jnp.asarray(batch.token),
      self_weight=jnp.where(
          masked, share(maskable) / rate if weight is None else share(maskable) * weight, 0.0),
      masked=masked, maskable=maskable, rate=rate,
      documents=jnp.sum(first & (batch.document > 0)).astype(jnp.float32))


def loss_and_sums(model: Model,
                  params: Params,
                  batch: Batch,
                  targets: Targets,
                  config: ObjectiveConfig,
                  documents: jax.Array | float,
                  dropout: jax.Array | None = None,
                  ranges: tuple[jax.Array, jax.Array] | None = None) -> tuple[jax.Array, Sums]:
  """One noisy forward pass: the loss to minimise, and sums for metrics.

  Args:
    model, params: the decoder.
    batch: the clean rows that ``targets`` were made from; the attention mask follows from them.
    targets: from ``corrupt``.
    config: weights of the two terms, mask settings, chunk of the loss.
    documents: number of documents in the complete batch, of which ``batch`` may be a microbatch.
    dropout: key of the adapters' dropout masks; None = no dropout.
    ranges: the staircase of ``batch``, from staircase.key_ranges; None computes it here.

  Returns:
    (loss, sums). The loss is this microbatch's share of the mean over all documents, a float32
    scalar, differentiable with respect to params; the sums carry no gradient.
  """
  chex.assert_equal_shape([*batch, *targets[:-1]])
  chex.assert_rank(targets.documents, 0)
  k_start, k_end = ranges or staircase.key_ranges(batch, config.mode, config.prompt_audio)
  hidden = model.hidden(params, targets.token, batch.position, k_start, k_end, dropout)
  text, masked = targets.next_weight > 0, targets.masked
  share = 1.0 / jnp.maximum(documents, 1.0)
  labels = losses.Labels(
      text | masked, targets.next_label, targets.self_label,
      config.ar_weight * share * targets.next_weight,
      config.diffusion_weight * share * targets.self_weight)
  among = None
  if config.confidence_weight:
    number = _per_document(jnp.asarray(masked), _segments(batch.document))
    among = jnp.where(masked, 1.0 / jnp.maximum(number, 1.0), 0.0)
    labels = labels._replace(entropy_weight=config.confidence_weight * share * among)
  total, next_nll, self_nll, entropy = losses.pair_loss(
      hidden, model.head_table(params), labels, model.vocab_size, chunk=config.loss_chunk,
      dtype=model.config.dtype)
  return total, Sums(
      ar=jnp.sum(next_nll * targets.next_weight),
      diffusion=jnp.sum(self_nll * targets.self_weight),
      documents=targets.documents,
      text_nll=jnp.sum(jnp.where(text, next_nll, 0.0)),
      text_targets=jnp.sum(text).astype(jnp.float32),
      masked_nll=jnp.sum(jnp.where(masked, self_nll, 0.0)),
      masked=jnp.sum(masked).astype(jnp.float32),
      confidence=None if entropy is None or among is None else jnp.sum(entropy * among))


def loss(sums: Sums, documents: jax.Array, config: ObjectiveConfig) -> jax.Array:
  """The loss of ``loss_and_sums`` from the sums of all microbatches, for metrics."""
  total = config.ar_weight * sums.ar + config.diffusion_weight * sums.diffusion
  if sums.confidence is not None:
    total += config.confidence_weight * sums.confidence
  return total / jnp.maximum(documents, 1.0)
