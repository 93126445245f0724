"""BLEU, ROUGE-L and CIDEr-D of captions with several references.

The definitions are those of the COCO caption evaluation (Chen et al. 2015, arXiv 1504.00325), which
the field of audio captioning uses: BLEU of the corpus with the closest reference length (Papineni
et al. 2002), ROUGE-L with beta = 1.2 (Lin 2004), CIDEr-D with n = 4 and sigma = 6 (Vedantam et al.
2015, arXiv 1411.5726). METEOR and SPICE need Java programs and their data; results.jsonl has the
captions for such tools (docs/evaluation.md).
"""

import collections
from collections.abc import Sequence
import math
import re

import numpy as np

ORDERS = 4  # longest n-grams
_BETA = 1.2
_SIGMA = 6.0
# Contractions are two words, as in the Penn Treebank.
_TOKEN = re.compile(r"n't\b|'(?:s|re|ve|ll|d|m)\b|\w+?(?=n't\b)|\w+(?:[-.,]\w+)*")

Grams = collections.Counter[tuple[str, ...]]


def caption_words(text: str) -> list[str]:
  """The words of a caption: lower case, without punctuation."""
  return _TOKEN.findall(text.lower().replace('’', "'"))


def n_grams(words: Sequence[str]) -> Grams:
  """Counts of all n-grams of 1 to ORDERS words."""
  return collections.Counter(tuple(words[at:at + size]) for size in range(1, ORDERS + 1)
                             for at in range(len(words) - size + 1))


# -- BLEU -----------------------------------------------------------------------------------

# Counts of one caption whose sums give the BLEU of a corpus.
BLEU_COUNTS = ('length', 'reference_length', *(f'matches_{n}' for n in range(1, ORDERS + 1)),
               *(f'grams_{n}' for n in range(1, ORDERS + 1)))


def bleu_counts(caption: str, references: Sequence[str]) -> dict[str, float]:
  """BLEU_COUNTS of a caption. Matches are clipped to the most that one reference has; the
  reference length is the one closest to the caption's, the shorter one of two."""
  said = caption_words(caption)
  split = [caption_words(reference) for reference in references]
  most: Grams = collections.Counter()
  for one in split:
    most |= n_grams(one)
  matched = n_grams(said) & most
  counts: dict[str, float] = {
      'length': len(said),
      'reference_length': min((len(one) for one in split),
                              key=lambda length: (abs(length - len(said)), length))}
  for n in range(1, ORDERS + 1):
    counts[f'matches_{n}'] = sum(count for gram, count in matched.items() if len(gram) == n)
    counts[f'grams_{n}'] = max(0, len(said) - n + 1)
  return counts


def bleu(sums: np.ndarray, order: int) -> np.ndarray:
  """BLEU of n-grams up to ``order`` from sums [..., len(BLEU_COUNTS)] of counts."""
  tiny, small = 1e-15, 1e-9  # as published, so that no match gives almost 0 instead of an error
  matches, grams = sums[..., 2:2 + order], sums[..., 2 + ORDERS:2 + ORDERS + order]
  precision = np.exp(np.mean(np.log((matches + tiny) / (grams + small)), axis=-1))
  length = (sums[..., 0] + tiny) / (sums[..., 1] + small)
  return precision * np.exp(np.minimum(0, 1 - 1 / length))


# -- ROUGE-L --------------------------------------------------------------------------------


def rouge_l(caption: str, references: Sequence[str]) -> float:
  """The F-measure of the longest common subsequence: of the best precision and the best recall,
  each over the references."""
  said = caption_words(caption)
  split = [caption_words(reference) for reference in references]
  if not said or not any(split):
    return 0.0
  common = [_common(said, one) for one in split]
  precision = max(common) / len(said)
  recall = max(same / len(one) for same, one in zip(common, split) if one)
  if not precision or not recall:
    return 0.0
  return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common(one: Sequence[str], other: Sequence[str]) -> int:
  """Length of the longest common subsequence."""
  row = [0] * (len(other) + 1)
  for word in one:
    before = 0
    for at, found in enumerate(other, 1):
      before, row[at] = row[at], before + 1 if word == found else max(row[at], row[at - 1])
  return row[-1]


# -- CIDEr-D --------------------------------------------------------------------------------


class CiderD:
  """CIDEr-D with document frequencies of a corpus' references."""

  def __init__(self, references: Sequence[Sequence[str]]):
    """Args:
      references: of every item of the corpus; an item is one document.
    """
    self._documents: Grams = collections.Counter()
    for some in references:
      self._documents.update(set().union(*(n_grams(caption_words(one)) for one in some)))
    self._log_items = math.log(max(len(references), 1))

  def score(self, caption: str, references: Sequence[str]) -> float:
    """The score of one caption, about 0 to 10; that of a corpus is the mean."""
    said = self._vector(caption)
    return 10 * sum(self._similarity(said, self._vector(one)) for one in references) / len(
        references)

  def _vector(self, text: str) -> tuple[Grams, dict[tuple[str, ...], float], np.ndarray]:
    """(counts, weights, norms [ORDERS]) of the n-grams of a text."""
    grams = n_grams(caption_words(text))
    weights = {gram: count * (self._log_items - math.log(max(1, self._documents[gram])))
               for gram, count in grams.items()}
    norms = np.zeros(ORDERS)
    for gram, weight in weights.items():
      norms[len(gram) - 1] += weight**2
    return grams, weights, np.sqrt(norms)

  def _similarity(self, one, other) -> float:
    (grams, weights, norms), (other_grams, other_weights, other_norms) = one, other
    found = np.zeros(ORDERS)
    for gram, weight in weights.items():
      theirs = other_weights.get(gram, 0.0)
      found[len(gram) - 1] += min(weight, theirs) * theirs
    scale = norms * other_norms
    found = np.divide(found, scale, out=found, where=scale > 0)
    # Lengths are numbers of bigrams, as in the published program.
    pairs = [sum(count for gram, count in some.items() if len(gram) == 2)
             for some in (grams, other_grams)]
    return float(found.mean()) * math.exp(-(pairs[0] - pairs[1])**2 / (2 * _SIGMA**2))
