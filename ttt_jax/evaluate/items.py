"""Scores of single records, in items.jsonl, one JSON object per line:

  task, id        of the record
  scores          metric -> [value, weight]; a metric of several records is the sum of the values
                  over the sum of the weights, such as word errors over reference words
  ...             what an evaluation adds, such as the generated text

Ids need not differ. Records are told apart by task, id, and how often the pair came before.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence
import json
import os
import pathlib
from typing import Any

import numpy as np

from ttt_jax.errors import UserError
from ttt_jax.evaluate.bootstrap import Scores
from ttt_jax.storage import files, owned, schema

FILE = 'items.jsonl'
Pairs = dict[str, tuple[float, float]]  # metric -> (value, weight)
_SIGN = '"scores": {'
_REMEDY = 'run the evaluation again'


class Line(schema.Kind):
  """A line of items.jsonl. The strings come from users' records, so they may hold anything."""
  task: Any
  id: Any
  scores: dict[str, tuple[float, float]]


def pooled(scores: Iterable[Pairs]) -> dict[str, float]:
  """Metric -> its value over all records that have it; absent where the weights are all zero."""
  sums: dict[str, np.ndarray] = {}
  for found in scores:
    for name, pair in found.items():
      sums[name] = sums.get(name, np.zeros(2)) + pair
  return {name: float(value / weight) for name, (value, weight) in sums.items() if weight > 0}


def check_kind(folder: str | os.PathLike, where: str = '--workdir') -> None:
  """UserError if the file is another program's: it must not be replaced."""
  owned.check_text(pathlib.Path(folder) / FILE, _SIGN, where)


def write(folder: str | os.PathLike, lines: Iterable[Mapping[str, Any]]) -> pathlib.Path:
  """Replace FOLDER/items.jsonl; returns its path."""
  path = pathlib.Path(folder) / FILE
  files.write_text(path, ''.join(json.dumps(line, ensure_ascii=False) + '\n' for line in lines))
  return path


def read(folder: str | os.PathLike) -> list[dict[str, Any]]:
  """The lines of FOLDER/items.jsonl; [] if there is no such file.

  Raises:
    UserError: it is damaged.
  """
  path = pathlib.Path(folder) / FILE
  data = schema.read_bytes(path, _REMEDY, optional=True)
  out = []
  for number, line in enumerate((data or b'').splitlines(), 1):
    what = f'{path}, line {number},'
    found = schema.parse(line, what, _REMEDY)
    schema.check(found, Line, what, _REMEDY)
    out.append(found)
  return out


def keyed(lines: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str, int], Mapping[str, Any]]:
  """Lines by (task, id, how often the two came before)."""
  seen: collections.Counter = collections.Counter()
  out = {}
  for line in lines:
    name = line['task'], line['id']
    out[(*name, seen[name])] = line
    seen[name] += 1
  return out


def metrics(lines: Iterable[Mapping[str, Any]]) -> list[str]:
  """The metrics of some lines, in the order of their first appearance."""
  return list(dict.fromkeys(name for line in lines for name in line['scores']))


def matrix(runs: Sequence[Iterable[Mapping[str, Any]]], metric: str,
           names: Sequence[str] = ()) -> Scores:
  """One metric of several runs on the same records, for ``bootstrap``.

  Args:
    runs: lines of each run.
    metric: records without it are left out.
    names: of the runs, for the error message.

  Raises:
    UserError: the runs were scored on different records.
  """
  found = [{key: line['scores'][metric] for key, line in keyed(run).items()
            if metric in line['scores']} for run in runs]
  wanted = list(found[0]) if found else []
  for number, one in enumerate(found):
    if set(one) != set(wanted):
      task, name, _ = next(iter(set(one) ^ set(wanted)))
      who = names[number] if names else f'run {number + 1}'
      raise UserError(
          f'{metric}: {who} and {names[0] if names else "run 1"} were evaluated on different '
          f'records, such as {name!r} of task {task!r}; evaluate them with the same settings.')
  pairs = np.array([[one[key] for key in wanted] for one in found], float)
  pairs = pairs.reshape(len(found), len(wanted), 2)
  return Scores.of(pairs[..., 0], pairs[..., 1])
