"""Suite 'asr': transcripts of a corpus' recordings; pooled error rates.

The words that are compared are those of ``words.tokens`` with config key evaluate.words: by
default characters of Chinese, Japanese and Korean and words of other scripts. Recordings whose
reference has mostly such characters count to the character error rate, all others to the word
error rate.
"""

from collections.abc import Sequence
import pathlib
from typing import Any

from ttt_jax.errors import UserError
from ttt_jax.evaluate.suites import reading
from ttt_jax.evaluate.suites.suite import Item, Metric, Reply, Result, Score, Suite
from ttt_jax.tokens import words

KINDS = ('substitutions', 'deletions', 'insertions')


def error_counts(reference: str, hypothesis: str, rule: str) -> dict[str, float]:
  """Counts of one pair of texts, with the prefix of its rate: 'wer_errors' or 'cer_errors' ..."""
  found = words.edits(reference, hypothesis, rule)
  unit = unit_of(reference, rule)
  return {f'{unit}_errors': found.errors, f'{unit}_words': found.words, f'{unit}_texts': 1,
          f'{unit}_exact': not found.errors,
          **{f'{unit}_{kind}': getattr(found, kind) for kind in KINDS}}


def unit_of(reference: str, rule: str) -> str:
  """'cer' for a text of mostly Chinese, Japanese or Korean characters, else 'wer'."""
  tokens = words.tokens(reference, rule)
  return 'cer' if 2 * sum(map(words.is_cjk, tokens)) > len(tokens) else 'wer'


def error_metrics(results: Sequence[Result], prefix: str = '', what: str = '') -> list[Metric]:
  """The error rates of what ``error_counts`` counted, with their parts.

  Args:
    results: of one checkpoint.
    prefix: before the names of counts and metrics.
    what: at the end of the labels.
  """
  out = []
  for unit, name in (('wer', 'word error rate'), ('cer', 'character error rate')):
    if any(f'{prefix}{unit}_words' in one.counts for one in results):
      total = f'{prefix}{unit}_words'
      out.append(Metric(f'{prefix}{unit}', name + what, (f'{prefix}{unit}_errors', total),
                        digits=2, lower=True))
      out += [Metric(f'{prefix}{unit}_{kind}', f'  {kind}', (f'{prefix}{unit}_{kind}', total),
                     digits=2, lower=True) for kind in KINDS]
      out.append(Metric(f'{prefix}{unit}_exact', '  texts without an error', (
          f'{prefix}{unit}_exact', f'{prefix}{unit}_texts')))
  return out


class Asr(Suite):
  """Speech recognition."""
  name = 'asr'
  about = 'transcripts of a corpus: word or character error rate'
  task = 'asr'
  has_subsets = True

  @property
  def settings(self) -> dict[str, Any]:
    return {'words': self.config.evaluate.words}

  def items(self, data: pathlib.Path) -> list[Item]:
    out = []
    for one, part in reading.recordings(data, self.task, self.notes, self.subset):
      reference = reading.answer_of(one)
      if not words.tokens(reference, self.config.evaluate.words):
        raise UserError(f'{one.where}: the reference {reference!r} has no words; correct or remove '
                        'it.')
      out.append(Item(one.id, reading.asked(one, self.task), (reference,), part))
    return out

  def score(self, item: Item, reply: Reply) -> Score:
    return Score(error_counts(item.references[0], reply.text, self.config.evaluate.words))

  def metrics(self, results: Sequence[Result]) -> list[Metric]:
    return error_metrics(results)
