"""The hybrid loss of one document at a time, and the rules that its noise must obey.

A document is (number, ids [n], supervised [n]) as in ttt_jax.tokens.batch. Its noise is what was
really drawn for it, taken from the implementation under test, so that both sides judge
the same noisy sequence.
"""

import dataclasses

import numpy as np

from tests.reference import decoder, staircase


@dataclasses.dataclass
class Noise:
  """One document's draw: which tokens became mask, and the decisions behind it."""
  masked: np.ndarray       # bool [n]
  p: float                 # masking probability
  banom: bool = False      # audio kept clean, AR term alone
  start: int = 0           # PPM: audio before this position stays clean; 0 = no PPM
  weight: np.ndarray | None = None  # of each token, float [n]; None: 1 / p


def next_targets(vocab, ids, supervised, mode):
  """Positions i whose next token is an AR target."""
  out = []
  for i in range(len(ids) - 1):
    text = ids[i + 1] < vocab.audio_threshold
    if supervised[i + 1] and (mode == 'ar' or (mode == 'hybrid' and text)):
      out.append(i)
  return out


def maskable(vocab, ids, supervised, mode):
  """Positions that diffusion may mask when neither BANOM nor PPM speaks."""
  if mode == 'ar':
    return []
  return [i for i in range(len(ids))
          if supervised[i] and (mode == 'nar' or ids[i] >= vocab.audio_threshold)]


def maskable_spans(vocab, ids, supervised):
  """Audio spans of the answer(s): what PPM draws from."""
  return [(a, b) for a, b in staircase.audio_spans(vocab, ids) if supervised[a]]


def noisy_ids(vocab, ids, noise):
  """The model's input: ids with mask where the noise says so."""
  return [vocab.mask if hit else int(x) for x, hit in zip(ids, noise.masked)]


def document_terms(logits_of, vocab, ids, supervised, noise, mode='hybrid',
                   prompt_audio='bidirectional', ar_mean='tokens'):
  """(AR term, diffusion term) of one document.

  Args:
    logits_of: (ids [n], allowed [n, n]) -> scores [n, V].
    vocab: the id space.
    ids: clean ids [n].
    supervised: 0/1 [n].
    noise: this document's Noise.
    mode: 'hybrid', 'ar' or 'nar'.
    prompt_audio: as in staircase.document_matrix.
    ar_mean: 'classes' adds a mean over next tokens that are audio to one over those that are text.
  """
  allowed = staircase.document_matrix(vocab, ids, supervised, mode, prompt_audio)
  log_p = decoder.log_softmax(logits_of(noisy_ids(vocab, ids, noise), allowed))
  every = next_targets(vocab, ids, supervised, mode)
  text = [i for i in every if ids[i + 1] < vocab.audio_threshold]
  ar = 0.0
  for group in ([text, [i for i in every if i not in text]] if ar_mean == 'classes' else [every]):
    for i in group:
      ar += -log_p[i, ids[i + 1]] / len(group)
  audio = [i for i in maskable(vocab, ids, supervised, mode) if i >= noise.start]
  diffusion = 0.0
  if not noise.banom:
    for i in audio:
      if noise.masked[i]:
        weight = 1 / noise.p if noise.weight is None else noise.weight[i]
        diffusion += -log_p[i, ids[i]] * weight / len(audio)
  return ar, diffusion


def count_weight(masked, maskable, floor):
  """E[1/p] for p uniform on [floor, 1], given that this many of the maskable tokens became mask:
  the ratio of two integrals, by the midpoint rule, from logarithms."""
  p = floor + (1 - floor) * (np.arange(100_000) + 0.5) / 100_000
  log = masked * np.log(p) + (maskable - masked) * np.log1p(-p)
  likelihood = np.exp(log - log.max())
  return float((likelihood / p).sum() / likelihood.sum())


def confidence(logits_of, vocab, ids, supervised, noise, mode='hybrid',
               prompt_audio='bidirectional'):
  """Mean over a document's masked tokens of the entropy where the best guess is right, else 0."""
  allowed = staircase.document_matrix(vocab, ids, supervised, mode, prompt_audio)
  log_p = decoder.log_softmax(logits_of(noisy_ids(vocab, ids, noise), allowed))
  masked, total = np.flatnonzero(noise.masked), 0.0
  for i in masked:
    if log_p[i].argmax() == ids[i]:
      total += -np.sum(np.exp(log_p[i]) * log_p[i])
  return total / max(len(masked), 1)


def loss(logits_of, vocab, documents, noises, mode='hybrid', prompt_audio='bidirectional',
         ar_mean='tokens'):
  """Mean over documents of AR + diffusion."""
  total = 0.0
  for (_, ids, supervised), noise in zip(documents, noises, strict=True):
    total += sum(document_terms(logits_of, vocab, ids, supervised, noise, mode, prompt_audio,
                                ar_mean))
  return total / len(documents)


def check_noise(vocab, ids, supervised, noise, mode='hybrid', floor=1e-3):
  """Assert that one document's draw is one that the method allows."""
  may = {i for i in maskable(vocab, ids, supervised, mode) if i >= noise.start}
  hit = {i for i in range(len(ids)) if noise.masked[i]}
  assert hit <= may, f'masked {sorted(hit - may)}, which must stay clean'
  assert not (noise.banom and hit), 'BANOM must keep the audio clean'
  if may and not noise.banom:
    assert floor <= noise.p <= 1, f'p = {noise.p} is outside [{floor}, 1]'
  if noise.start:
    starts = [a for a, _ in maskable_spans(vocab, ids, supervised)]
    assert noise.start in starts, f'PPM kept {noise.start} tokens; spans start at {starts}'
