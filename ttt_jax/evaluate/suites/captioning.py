"""Suite 'captioning': descriptions of sounds (AAC), such as Clotho and MACS.

Rows with the same sound are one item with several references. caption_metrics.py has the metrics.
"""

from collections.abc import Sequence
import pathlib
from typing import Any

from ttt_jax.data.records.records import Record
from ttt_jax.data.records.tasks import Recording
from ttt_jax.errors import UserError
from ttt_jax.evaluate import caption_metrics
from ttt_jax.evaluate.caption_metrics import BLEU_COUNTS, CiderD
from ttt_jax.evaluate.suites import reading
from ttt_jax.evaluate.suites.suite import Item, Metric, Reply, Result, Score, Suite


class Captioning(Suite):
  """Automated audio captioning."""
  name = 'captioning'
  about = 'descriptions of sounds (AAC): CIDEr-D, ROUGE-L, BLEU'
  task = 'aac'
  has_subsets = True
  _cider: CiderD

  def items(self, data: pathlib.Path) -> list[Item]:
    grouped: dict[Any, list[tuple[Recording | Record, str]]] = {}
    for one, _ in reading.recordings(data, self.task, self.notes, self.subset):
      caption = reading.answer_of(one)
      if not caption_metrics.caption_words(caption):
        raise UserError(f'{one.where}: the caption {caption!r} has no words; correct or remove it.')
      grouped.setdefault(reading.sound_of(one), []).append((one, caption))
    out = []
    for rows in grouped.values():
      first = rows[0][0]
      name = first.id if len(rows) == 1 else first.id.removesuffix('-1')
      out.append(Item(name, reading.asked(first, self.task),
                      tuple(dict.fromkeys(caption for _, caption in rows))))
    self._cider = CiderD([item.references for item in out])
    return out

  def score(self, item: Item, reply: Reply) -> Score:
    caption, references = reply.text, item.references
    return Score({'n': 1, 'cider_d': self._cider.score(caption, references),
                  'rouge_l': caption_metrics.rouge_l(caption, references),
                  **caption_metrics.bleu_counts(caption, references)})

  def metrics(self, results: Sequence[Result]) -> list[Metric]:
    bleu = [Metric(f'bleu_{n}', f'BLEU-{n}', BLEU_COUNTS,
                   lambda sums, n=n: caption_metrics.bleu(sums, n), 1.0, '', 3)
            for n in range(1, caption_metrics.ORDERS + 1)]
    return [Metric('cider_d', 'CIDEr-D', ('cider_d', 'n'), scale=1.0, unit='', digits=3),
            Metric('rouge_l', 'ROUGE-L', ('rouge_l', 'n'), scale=1.0, unit='', digits=3), *bleu,
            Metric('words', 'words per caption', ('length', 'n'), scale=1.0, unit='', lower=None)]
