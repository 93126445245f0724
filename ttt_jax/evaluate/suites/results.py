"""Files of results: one line per item, written as answers end; numbers with intervals.

  OUT/LABEL.jsonl    its first line names the evaluation, every other line is an item
  OUT/summary.json   numbers of all checkpoints, intervals, paired differences
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import logging
import os
import pathlib
from typing import Any

import numpy as np

from ttt_jax.errors import UserError
from ttt_jax.evaluate import bootstrap
from ttt_jax.evaluate.suites.suite import Item, Metric, Reply, Result, Score
from ttt_jax.storage import files

_LOG = logging.getLogger(__name__)
SUMMARY = 'summary.json'


class ResultsFile:
  """The results of one checkpoint; an interrupted evaluation goes on where it ended.

  Attributes:
    done: the results that the file holds, by number.
  """

  def __init__(self, path: str | os.PathLike, evaluation: Mapping[str, Any]):
    """Reads what an earlier evaluation has written, if it was the same one.

    Args:
      path: the file; it is created.
      evaluation: what the results depend on, JSON-ready. Results of another evaluation are
        replaced.

    Raises:
      UserError: it cannot be written, or is no file of results.
    """
    self.path = pathlib.Path(path)
    self.done: dict[int, Result] = {}
    wanted = json.loads(json.dumps(evaluation))
    if self.path.exists() and not self._read(wanted):
      self.done.clear()
      files.write_text(self.path, '')
    self._file = files.Appender(self.path)
    if not self.path.stat().st_size:
      self._file.write(_text({'evaluation': wanted}))

  def _read(self, wanted: Mapping[str, Any]) -> bool:
    """Whether the file holds results of the evaluation ``wanted``, which are read then."""
    for number, line in enumerate(self.path.read_bytes().split(b'\n')):
      try:
        value = json.loads(line)
        if number == 0:
          before = value['evaluation']
          if before != wanted:
            changed = [key for key in {**before, **wanted} if before.get(key) != wanted.get(key)]
            _LOG.info('%s holds results with another %s; they are replaced.', self.path,
                      ', '.join(changed))
            return False
        else:
          result = Result(value['number'], value['id'], value['group'], value['counts'], value)
          self.done[result.number] = result
      except (ValueError, KeyError, TypeError):
        if number == 0:
          if line.strip():
            raise UserError(f'{self.path} is no file of results of ttt-jax; move it, or choose '
                            'another --out.') from None
          return False
        # A line that was cut off when the process ended: its item is answered again.
    return True

  def add(self, number: int, item: Item, reply: Reply, score: Score, audio: str | None) -> None:
    """Write the line of one item; ``audio``: the file of its speech, relative to the folder."""
    line = {
        'number': number, 'id': item.id, 'group': item.group,
        'request': _request(item), 'references': list(item.references),
        'text': reply.text, 'heard': reply.heard if reply.was_heard else None, 'audio': audio,
        'counts': {key: _number(value) for key, value in score.counts.items()}, **score.shown,
        'finished': reply.finished, 'seconds': round(reply.seconds, 4)}
    if reply.problem:
      line['problem'] = reply.problem
    self._file.write(_text(line))
    self.done[number] = Result(number, item.id, item.group, line['counts'], line)

  def results(self) -> list[Result]:
    """All results, in the order of the items."""
    return [self.done[number] for number in sorted(self.done)]

  def close(self) -> None:
    self._file.close()


def _request(item: Item) -> str:
  """What the user's last turn gives: its text, and the paths of its recordings."""
  turn = next(turn for turn in item.record.turns[::-1] if turn.role == 'user')
  name = lambda part: '[audio]' if not part.source or len(part.source) > 4096 else part.source
  return ' '.join(part.text if part.kind == 'text' else name(part) for part in turn.parts)


def _number(value: float) -> float:
  value = float(value)
  return int(value) if value.is_integer() else value


def _text(value: Any) -> str:
  line = json.dumps(value, ensure_ascii=False)
  return line.encode('utf-8', 'backslashreplace').decode('utf-8') + '\n'


# -- numbers --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Numbers:
  """The metrics of one set of items for every checkpoint.

  Attributes:
    metrics: in the order of the table; of all checkpoints.
    value, low, high: metric name -> float [M], of M checkpoints; nan where there is no value.
    difference: metric name -> [M] of (difference to the first, low, high).
    items: number of items.
  """
  metrics: list[Metric]
  value: dict[str, np.ndarray]
  low: dict[str, np.ndarray]
  high: dict[str, np.ndarray]
  difference: dict[str, list[tuple[float, float, float]]]
  items: int


def numbers(metrics: Sequence[Sequence[Metric]], results: Sequence[Sequence[Result]],
            draws: int = bootstrap.DRAWS) -> Numbers:
  """Values, 95 % intervals over the items, and paired differences to the first checkpoint.

  Args:
    metrics: of each checkpoint.
    results: of each checkpoint; the same items in the same order.
    draws: of the bootstrap.
  """
  every = list({metric.name: metric for some in metrics for metric in some}.values())
  names = list(dict.fromkeys(name for metric in every for name in metric.counts))
  tables = [np.array([[one.counts.get(name, 0.0) for name in names] for one in some], float)
            for some in results]
  drawn = bootstrap.drawn_sums(tables, draws)
  out = Numbers(every, {}, {}, {}, {}, len(results[0]))
  for metric in every:
    at = [names.index(name) for name in metric.counts]
    value = np.array([float(metric.value(table.sum(0)[at])) for table in tables])
    spread = [metric.value(sums[:, at]) for sums in drawn]
    low, high = np.array([bootstrap.interval(one) for one in spread]).T
    out.value[metric.name], out.low[metric.name], out.high[metric.name] = value, low, high
    out.difference[metric.name] = [
        (float(value[i] - value[0]), *bootstrap.interval(one - spread[0]))
        for i, one in enumerate(spread)]
  return out


def as_json(found: Numbers, checkpoint: int) -> dict[str, Any]:
  """The numbers of one checkpoint for the summary."""
  finite = lambda value: float(value) if np.isfinite(value) else None
  out = {}
  for metric in found.metrics:
    name = metric.name
    entry = {'value': finite(found.value[name][checkpoint]),
             'low': finite(found.low[name][checkpoint]),
             'high': finite(found.high[name][checkpoint])}
    if checkpoint:
      keys = ('difference', 'difference_low', 'difference_high')
      entry |= dict(zip(keys, map(finite, found.difference[name][checkpoint])))
    out[name] = entry
  return out
