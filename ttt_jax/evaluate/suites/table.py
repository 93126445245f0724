"""The table of a benchmark for a terminal of 80 columns."""

from collections.abc import Sequence
import math

from ttt_jax.evaluate.suites.results import Numbers
from ttt_jax.evaluate.suites.suite import Metric

WIDTH = 80
_LABEL = 30   # of the first column
_COLUMN = 24  # of a checkpoint: '12.5 [11.9, 13.2]'


def table(found: Numbers, labels: Sequence[str]) -> list[str]:
  """Lines: a row per metric, a column per checkpoint, its 95 % interval in brackets.

  With several checkpoints a second row gives the paired difference to the first one. Checkpoints
  that do not fit beside each other follow below, with the first one repeated.
  """
  fit = (WIDTH - _LABEL) // _COLUMN
  rest = list(range(1, len(labels)))
  blocks = [[0, *rest[at:at + fit - 1]] for at in range(0, len(rest), fit - 1)] or [[0]]
  out: list[str] = []
  for block in blocks:
    if out:
      out.append('')
    out.append((' ' * _LABEL + ''.join(f'{_cut(labels[i], _COLUMN - 2):>{_COLUMN}}'
                                       for i in block)).rstrip())
    for metric in found.metrics:
      label = f'{metric.label}, {metric.unit}' if metric.unit else metric.label
      out.append(f'{_cut(label, _LABEL):<{_LABEL}}' + ''.join(
          f'{_cell(metric, found, i):>{_COLUMN}}' for i in block))
      if len(block) > 1:
        out.append(f'{"  difference":<{_LABEL}}{"":>{_COLUMN}}' + ''.join(
            f'{_difference(metric, found, i):>{_COLUMN}}' for i in block[1:]))
  return [line.rstrip() for line in out]


def _cell(metric: Metric, found: Numbers, i: int) -> str:
  value = found.value[metric.name][i]
  if not math.isfinite(value):
    return '-'
  return f'{_show(metric, value)} [{_show(metric, found.low[metric.name][i])}, ' \
         f'{_show(metric, found.high[metric.name][i])}]'


def _difference(metric: Metric, found: Numbers, i: int) -> str:
  value, low, high = found.difference[metric.name][i]
  if not math.isfinite(value):
    return '-'
  return f'{_show(metric, value, "+")} [{_show(metric, low, "+")}, {_show(metric, high, "+")}]'


def _show(metric: Metric, value: float, sign: str = '') -> str:
  return f'{metric.scale * value:{sign}.{metric.digits}f}' if math.isfinite(value) else '-'


def _cut(text: str, width: int) -> str:
  return text if len(text) <= width else '…' + text[-(width - 1):]
