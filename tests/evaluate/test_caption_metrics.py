"""BLEU, ROUGE-L and CIDEr-D against numbers of published programs.

The numbers of CAPTIONS are those of aac-metrics 0.6.0 (functional.bleu, rouge_l, cider_d), which
reproduces the COCO caption evaluation; README_EXAMPLE and its BLEU are from its documentation.
"""

import numpy as np
import pytest

from ttt_jax.evaluate import caption_metrics
from ttt_jax.evaluate.caption_metrics import BLEU_COUNTS, CiderD

CAPTIONS = [
    ('a dog barks while rain falls', ['a dog barks in the rain', 'rain falls and a dog is barking',
                                      'a dog barking loudly']),
    ('people talk in a busy street', ['people are talking in a street',
                                      'a busy street with people talking and cars',
                                      'crowd of people walking and talking on the street']),
    ('a car a car a car', ['a car drives past', 'an engine revs and a car passes by quickly',
                           'a car']),
    ('birds', ['birds are singing in the forest', 'several birds chirp']),
    ('', ['water drips into a sink', 'dripping water'])]
README_EXAMPLE = [
    ('a man is speaking', ['a man speaks.', 'someone speaks.',
                           'a man is speaking while a bird is chirping in the background']),
    ('rain falls', ['rain is falling hard on a surface'])]


def corpus_bleu(captions, order):
  counts = [caption_metrics.bleu_counts(*one) for one in captions]
  sums = np.array([[one[name] for name in BLEU_COUNTS] for one in counts], float).sum(0)
  return float(caption_metrics.bleu(sums, order))


@pytest.mark.parametrize('order, value', [
    (1, 0.6158494284235618), (2, 0.5086078483237104), (3, 0.33855810770679723),
    (4, 4.438492439516571e-05)])
def test_bleu(order, value):
  assert corpus_bleu(CAPTIONS, order) == pytest.approx(value, rel=1e-9)


def test_bleu_of_the_documented_example():
  assert corpus_bleu(README_EXAMPLE, 1) == pytest.approx(0.4278, abs=1e-4)


def test_rouge_l():
  found = [caption_metrics.rouge_l(*one) for one in CAPTIONS]
  assert found == pytest.approx([0.666667, 0.666667, 0.54955, 0.458647, 0], abs=1e-6)


def test_cider_d():
  metric = CiderD([references for _, references in CAPTIONS])
  found = [metric.score(*one) for one in CAPTIONS]
  assert found == pytest.approx([2.410528, 1.807072, 0.854513, 1.153119, 0], abs=1e-6)
  assert np.mean(found) == pytest.approx(1.245046428378458, rel=1e-9)


@pytest.mark.parametrize('text, words', [
    ("A dog's bark, loud!", ['a', 'dog', "'s", 'bark', 'loud']),
    ("It doesn't stop", ['it', 'does', "n't", 'stop']),
    ('a high-pitched beep (twice)...', ['a', 'high-pitched', 'beep', 'twice']), ('...', [])])
def test_words_of_captions(text, words):
  assert caption_metrics.caption_words(text) == words
