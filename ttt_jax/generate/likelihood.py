"""Likelihood of recorded answers: exact for text, an upper bound of the NLL for audio.

Text: -log p of every supervised text token given everything before it, without noise. Audio:
unmasking a span one token at a time in a random order is an any-order autoregressive model.
By Jensen's inequality its NLL is at most the mean over orders (arXiv 2502.09992, appendix A;
the equality with the 1/p-weighted loss: arXiv 2406.03736). With k of the L tokens masked at
random,

    -log p(span | prefix)  <=  sum over k = 1..L of
                               E[mean over the masked i of -log p(x_i | prefix, unmasked)]

Every k is a row of one batch, and all rows share the cached prefix. For spans of more than
``levels`` tokens one k is drawn from each of ``levels`` equal strata of (0, L], which keeps
the estimate unbiased.

B = rows, W = positions of a window, L = tokens of a span.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ttt_jax.errors import UserError
from ttt_jax.generate import compiled
from ttt_jax.model import kv_cache, staircase
from ttt_jax.model.transformer import Model, Params
from ttt_jax.objective import losses
from ttt_jax.tokens import batch as batches
from ttt_jax.tokens.vocab import Vocabulary

BINS = 10        # of the profile, by the masked fraction of the span
_CHUNK = 64      # positions whose logits are in memory at once
_LONGEST = 512   # tokens that are read at once, unless a span is longer


@dataclasses.dataclass
class Score:
  """The likelihood of one record, in nats.

  Attributes:
    text_nll, text_tokens: sum over text tokens, exact, and their number.
    audio_bound, audio_tokens: sum over audio tokens, end tokens included, and their number.
    audio_error: standard error of audio_bound; NaN with one repeat.
    profile: float64 [2, BINS], sums of -log p over masked tokens, and the number of these tokens,
      by the masked fraction of the span: the first bin is (0, 0.1].
  """
  text_nll: float
  text_tokens: int
  audio_bound: float
  audio_tokens: int
  audio_error: float
  profile: np.ndarray


class Sweep(NamedTuple):
  """Mask patterns of one span: R rows."""
  token: np.ndarray   # int32 [R, L]: the span with some tokens masked
  masked: np.ndarray  # bool [R, L]
  share: np.ndarray   # float64 [R]: weight of the row's mean in the bound; the sum is L


def sweep(span: np.ndarray, mask: int, levels: int, rng: np.random.Generator) -> Sweep:
  """Random mask patterns of a span, from one masked token to all; see the module's docstring.

  Args:
    span: int32 [L].
    mask: id of the mask.
    levels: rows at most.
    rng: of the patterns.
  """
  length = span.size
  count = min(levels, length)
  edges = np.arange(count + 1) * length / count
  # One draw per stratum (systematic sampling). A draw u in (k - 1, k] stands for k masks, so a
  # k that two strata share is drawn in each with the probability of its part there.
  drawn = edges[:-1] + rng.random(count) * np.diff(edges)
  masks = np.minimum(np.floor(drawn).astype(int) + 1, length)
  order = np.argsort(rng.random((count, length)), axis=1)
  masked = order < masks[:, None]
  return Sweep(np.where(masked, mask, span).astype(np.int32), masked, np.diff(edges))


@functools.partial(jax.jit, static_argnames=('model', 'write'), donate_argnames='cache')
def _nats(model: Model, write: bool, params: Params, cache: kv_cache.Cache, known: jax.Array,
          token: jax.Array, k_end: jax.Array, label: jax.Array,
          scored: jax.Array) -> tuple[kv_cache.Cache, jax.Array]:
  """(cache, -log p of the labels [B, W]). All rows use slot 0; ``write`` caches the window."""
  rows, width = token.shape
  position = known[:, None] + jnp.arange(width)
  slots = jnp.zeros(rows, jnp.int32)
  hidden, k, v = model.extend(params, cache, slots, known, token, position, k_end)
  ones = jnp.where(scored, 1.0, 0.0)
  labels = losses.Labels(scored, label, label, ones, jnp.zeros_like(ones))
  _, nats, _, _ = losses.pair_loss(hidden, model.head_table(params), labels, model.vocab_size,
                                   chunk=min(_CHUNK, scored.size), dtype=model.config.dtype)
  if write:
    cache = kv_cache.write(cache, slots, known, jnp.sum(k_end > 0, axis=1), k, v)
  return cache, nats


class Scorer:
  """Scores documents one after another; all share the compiled programs."""

  def __init__(self, model: Model, params: Params, vocab: Vocabulary, *, mode: str = 'hybrid',
               prompt_audio: str = 'bidirectional', longest: int, repeats: int = 2,
               levels: int = 64, tokens: int = 4096, seed: int = 0):
    """Args:
      model, params, vocab: the decoder.
      mode, prompt_audio: as the model was trained.
      longest: tokens of the longest document.
      repeats: estimates per span; at least two give a standard error.
      levels: mask patterns per estimate, at most.
      tokens: rows x window that are computed at once, at most.
      seed: of the mask patterns.
    """
    self.model, self.params, self.vocab = model, params, vocab
    self.mode, self.prompt_audio = mode, prompt_audio
    self.repeats, self.levels, self.tokens, self.seed = repeats, levels, tokens, seed
    self.longest = kv_cache.tokens_of(longest)
    self._widths = compiled.widths(self.longest)
    self._cache = kv_cache.empty(model.config, 1, self.longest)

  def score(self, ids: np.ndarray, supervised: np.ndarray, number: int = 0) -> Score:
    """Score one document.

    Args:
      ids: int32 [n].
      supervised: bool [n], the tokens to score.
      number: folded into the seed of the document's mask patterns.

    Raises:
      UserError: a document longer than ``longest``.
    """
    if len(ids) > self.longest:
      raise UserError(f'document {number} has {len(ids)} tokens; the scorer was made for at most '
                      f'{self.longest}.')
    ids, supervised = np.asarray(ids, np.int32), np.asarray(supervised, bool)
    row = batches.make_row(self.vocab, [(1, ids, supervised.astype(np.int32))], ids.size)
    group = np.asarray(staircase.bidirectional_group(row, self.mode, self.prompt_audio))
    spoken = supervised & (group != 0)
    text = supervised & ~spoken
    text[0] = False  # the first token has no prefix that predicts it
    nats = self._read(ids, group, text)
    bound, variance = 0.0, 0.0
    profile = np.zeros((2, BINS))
    edges = np.flatnonzero(np.diff(np.where(spoken, group, 0), prepend=0, append=0))
    starts = [int(at) for at in edges if at < ids.size and spoken[at]]
    for order, start in enumerate(starts):
      stop = start + int(np.argmin(np.append(group[start:] == group[start], False)))
      estimates = [self._span(ids, start, stop, (self.seed, number, order, repeat), profile)
                   for repeat in range(self.repeats)]
      bound += float(np.mean(estimates))
      variance += float(np.var(estimates, ddof=1)) / self.repeats if self.repeats > 1 else math.nan
    return Score(float(nats[text].sum()), int(text.sum()), bound, int(spoken.sum()),
                 math.sqrt(variance), profile)

  def _fit(self, size: int) -> int:
    return next(width for width in self._widths if width >= size)

  def _read(self, ids: np.ndarray, group: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Cache the clean document; returns -log p of its text tokens, float64 [n], 0 elsewhere."""
    nats = np.zeros(ids.size)
    ends = compiled.ends_of(group)
    at = 0
    while at < ids.size:
      stop = compiled.piece_end(ends, at, ids.size, _LONGEST)
      size, width = stop - at, self._fit(stop - at)
      pad = lambda x: np.pad(x, (0, width - len(x)))[None]
      following = np.append(ids[at + 1:stop + 1], 0)[:size]
      scored = np.append(text[at + 1:stop + 1], False)[:size]
      self._cache, part = _nats(
          self.model, True, self.params, self._cache, np.array([at], np.int32), pad(ids[at:stop]),
          pad(ends[at:stop] - at), pad(following), pad(scored))
      where = at + 1 + np.flatnonzero(scored)
      nats[where] = np.asarray(part)[0, where - at - 1]
      at = stop
    return nats

  def _span(self, ids: np.ndarray, start: int, stop: int, names: tuple[int, ...],
            profile: np.ndarray) -> float:
    """One estimate of a span's bound, in nats; adds to the profile."""
    made = sweep(ids[start:stop], self.vocab.mask, self.levels, np.random.default_rng(names))
    count, length = made.token.shape
    begin = max(start - 1, 0)  # a window starts at the begin token, as in generation
    lead = start - begin
    width = self._fit(length + lead)
    rows = max(1, min(self.tokens // width, compiled.rows(count, self.levels)))
    total = 0.0
    for at in range(0, count, rows):
      here = slice(at, min(at + rows, count))
      n = here.stop - at
      token, label, k_end = (np.zeros((rows, width), np.int32) for _ in range(3))
      scored = np.zeros((rows, width), bool)
      token[:n, :lead], k_end[:n, :lead] = ids[begin:start], lead
      token[:n, lead:lead + length] = made.token[here]
      k_end[:n, lead:lead + length] = lead + length
      label[:n, lead:lead + length] = ids[start:stop]
      scored[:n, lead:lead + length] = made.masked[here]
      self._cache, part = _nats(self.model, False, self.params, self._cache,
                                np.full(rows, begin, np.int32), token, k_end, label, scored)
      nats = np.asarray(part, np.float64)[:n].sum(1)
      masks = made.masked[here].sum(1)
      total += float(np.sum(made.share[here] * nats / masks))
      place = np.ceil(masks * BINS / length).astype(int) - 1
      np.add.at(profile[0], place, nats)
      np.add.at(profile[1], place, masks)
    return total
