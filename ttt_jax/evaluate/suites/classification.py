"""Suite 'classification': names of sound events (SEC) or of acoustic scenes (ASC).

An answer is a text, so the labels that it contains are looked for (containment.py): of two labels
of which one contains the other, the longer one counts. Where every sound has one label, the first
label in the answer is the prediction; where sounds have several, all labels in the answer are.
"""

import collections
from collections.abc import Sequence
import pathlib
from typing import Any

import numpy as np

from ttt_jax.errors import UserError
from ttt_jax.evaluate import containment
from ttt_jax.evaluate.suites import reading
from ttt_jax.evaluate.suites.suite import Item, Metric, Reply, Result, Score, Suite

NONE = ''  # predicted label of an answer that names none


class Classification(Suite):
  """Sound event and acoustic scene classification."""
  name = 'classification'
  about = 'sound events (SEC) or scenes (ASC): accuracy, macro F1'
  task = 'sec'
  has_subsets = True
  tasks = ('sec', 'asc')
  _labels: dict[str, str]  # reduced words -> label
  _single: bool

  @property
  def settings(self) -> dict[str, Any]:
    return {'task': self.task}

  def items(self, data: pathlib.Path) -> list[Item]:
    found = []
    for one, _ in reading.recordings(data, self.task, self.notes, self.subset):
      answer = reading.answer_of(one)
      labels = tuple(dict.fromkeys(word.strip() for word in answer.split(',') if word.strip()))
      if not labels or not all(map(containment.reduced, labels)):
        raise UserError(f'{one.where}: the label {answer!r} has no words; correct or remove it.')
      found.append(Item(one.id, reading.asked(one, self.task), labels))
    self._labels = {}
    for item in found:
      for label in item.references:
        self._labels.setdefault(containment.reduced(label), label)
    self._single = all(len(item.references) == 1 for item in found)
    return found

  def named(self, text: str) -> list[str]:
    """The labels that a text names, in order, without those inside of longer ones."""
    said = containment.reduced(text).split()
    longest = sorted(self._labels, key=lambda label: -len(label.split()))
    taken = [False] * len(said)
    found: list[tuple[int, str]] = []
    for label in longest:
      size = len(label.split())
      for at in range(len(said) - size + 1):
        if said[at:at + size] == label.split() and not any(taken[at:at + size]):
          taken[at:at + size] = [True] * size
          found.append((at, self._labels[label]))
    return list(dict.fromkeys(label for _, label in sorted(found)))

  def score(self, item: Item, reply: Reply) -> Score:
    wanted = [self._labels[containment.reduced(label)] for label in item.references]
    named = self.named(reply.text)
    predicted = named[:1] if self._single else named
    counts: dict[str, float] = {
        'n': 1, 'right': set(predicted) == set(wanted), 'contained': set(wanted) <= set(named),
        'named': bool(named)}
    for label in wanted:
      counts[f'in:{label}'] = 1
      counts[f'hit:{label}'] = label in predicted
    for label in predicted:
      counts[f'out:{label}'] = 1
    return Score(counts, {'predicted': predicted, 'labels': wanted})

  def metrics(self, results: Sequence[Result]) -> list[Metric]:
    classes = self._classes(results)
    return [
        Metric('accuracy', 'accuracy', ('right', 'n')),
        Metric('macro_f1', 'macro F1', tuple(f'{kind}:{label}' for kind in ('hit', 'in', 'out')
                                             for label in classes), macro_f1),
        Metric('contained', 'answer contains the label', ('contained', 'n')),
        Metric('named', 'answer names some label', ('named', 'n'), lower=None)]

  def more(self, results: Sequence[Result]) -> dict[str, Any]:
    """'confusion': {label: {predicted label: number of items}}; '' is no label. An item of
    several labels counts for each of them."""
    table: dict[str, collections.Counter[str]] = {}
    for one in results:
      for label in one.line['labels']:
        row = table.setdefault(label, collections.Counter())
        predicted = one.line['predicted']
        row.update([label] if label in predicted else predicted or [NONE])
    return {'confusion': {label: dict(row.most_common()) for label, row in sorted(table.items())}}

  @staticmethod
  def _classes(results: Sequence[Result]) -> list[str]:
    return sorted({name.removeprefix('in:') for one in results for name in one.counts
                   if name.startswith('in:')})


def macro_f1(sums: np.ndarray) -> np.ndarray:
  """The mean over classes of F1 = 2 hits / (items of the class + predictions of it).

  Args:
    sums: float [..., 3 C]: hits, items and predictions of C classes. A class that a resample has
      no item of does not count.
  """
  hits, items, predictions = np.split(sums, 3, axis=-1)
  f1 = np.divide(2 * hits, items + predictions, out=np.zeros_like(hits),
                 where=items + predictions > 0)
  present = items > 0
  count = present.sum(-1)
  return np.divide(np.where(present, f1, 0).sum(-1), count, out=np.full(count.shape, np.nan),
                   where=count > 0)
