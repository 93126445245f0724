"""Statistics of scores: means over seeds, and bootstrap intervals over items and seeds.

A score is a ratio of sums over items: word errors over reference words, right answers over
questions, forward passes over seconds of speech. A method is trained with several seeds, and each
run is scored on the same items:

  score of a run     sum over items of value / sum over items of weight
  score of a method  mean of the scores of its runs

Both the items and the seeds are samples, so an interval resamples both (the pigeonhole bootstrap
for crossed samples, Owen 2007, doi 10.1214/07-AOAS122). Two methods that are compared share the
items of each draw, which pairs them; their seeds are drawn independently, since the runs are.

Of S seeds S - 1 are drawn with replacement. The variance of the mean of S draws would be too small
by (S - 1) / S, a third for three seeds (the rescaling bootstrap, Rao and Wu 1988,
doi 10.1080/01621459.1988.10478591); the same holds for items, where it hardly matters. With one
seed the interval is that of the items alone. With three, the contribution of the seeds has few
distinct values, and an interval can still be too narrow: read it beside the standard error.

S = seeds, N = items, D = draws.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import NamedTuple

import numpy as np

DRAWS = 10_000
LEVEL = 0.95
_CHUNK = 4_000_000  # item counts in memory at once


@dataclasses.dataclass(frozen=True)
class Scores:
  """Values and weights of the runs of one method.

  Attributes:
    value: float [S, N], such as word errors; runs x items.
    weight: float [S, N], such as reference words; ones for a mean over items. Not negative.
  """
  value: np.ndarray
  weight: np.ndarray

  @classmethod
  def of(cls, value: Sequence | np.ndarray,
         weight: Sequence | np.ndarray | float = 1.0) -> 'Scores':
    """Scores of one run [N] or of several [S, N]; ``weight`` is broadcast."""
    found = np.atleast_2d(np.asarray(value, float))
    weights = np.broadcast_to(np.asarray(weight, float), found.shape)
    assert found.ndim == 2 and (weights >= 0).all(), (found.shape, weights.min(initial=0))
    return cls(found, weights)

  @property
  def runs(self) -> np.ndarray:
    """float [S], the score of each run; nan where the weights are all zero."""
    return _ratio(self.value.sum(1), self.weight.sum(1))


class Estimate(NamedTuple):
  """A mean over seeds with its standard error over seeds (nan for one seed) and an interval over
  items and seeds; for a difference, ``error`` combines both methods' standard errors."""
  mean: float
  error: float
  low: float
  high: float

  @property
  def clear(self) -> bool:
    """Whether the interval excludes zero."""
    return self.low > 0 or self.high < 0


def mean_and_error(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
  """Mean and standard error of independent values; the error of one value is nan."""
  found = np.asarray(values, float)
  if not found.size:
    return math.nan, math.nan
  error = found.std(ddof=1) / math.sqrt(found.size) if found.size > 1 else math.nan
  return float(found.mean()), float(error)


def estimate(scores: Scores, *, level: float = LEVEL, draws: int = DRAWS,
             seed: int = 0) -> Estimate:
  """The score of one method, with the percentile interval of ``level``."""
  mean, error = mean_and_error(scores.runs)
  return Estimate(mean, error, *_percentiles(_draws([scores], draws, seed)[0], level))


def difference(one: Scores, other: Scores, *, level: float = LEVEL, draws: int = DRAWS,
               seed: int = 0) -> Estimate:
  """The score of ``one`` minus that of ``other`` on the same items, in the same order.

  Args:
    one, other: N must agree; S may differ.
    level: of the percentile interval, in (0, 1).
    draws: D.
    seed: of the draws.
  """
  assert one.value.shape[1] == other.value.shape[1], (one.value.shape, other.value.shape)
  (a, a_error), (b, b_error) = mean_and_error(one.runs), mean_and_error(other.runs)
  drawn = _draws([one, other], draws, seed)
  return Estimate(a - b, math.hypot(a_error, b_error), *_percentiles(drawn[0] - drawn[1], level))


def _draws(methods: Sequence[Scores], draws: int, seed: int) -> list[np.ndarray]:
  """float [D] per method: its score in each draw; the methods share the drawn items."""
  rng = np.random.default_rng(seed)
  count = methods[0].value.shape[1]
  out = [np.full(draws, np.nan) for _ in methods]
  if not count:
    return out
  step = max(_CHUNK // count, 1)
  for at in range(0, draws, step):
    size = min(step, draws - at)
    items_DxN = _counts(rng, count, size)
    for method, place in zip(methods, out):
      if method.value.size == 1:
        continue  # one number says nothing about its spread
      runs_DxS = _ratio(items_DxN @ method.value.T, items_DxN @ method.weight.T)
      seeds_DxS = _counts(rng, runs_DxS.shape[1], size)
      # A run that is not drawn must not count, not even as 0 * nan.
      total = np.where(seeds_DxS > 0, seeds_DxS * runs_DxS, 0).sum(1)
      place[at:at + size] = total / seeds_DxS.sum(1)
  return out


def _counts(rng: np.random.Generator, count: int, draws: int) -> np.ndarray:
  """float [draws, count]: how often each of ``count`` units is drawn; one unit always is."""
  drawn = rng.integers(count, size=(draws, max(count - 1, 1)))
  drawn += count * np.arange(draws)[:, None]
  return np.bincount(drawn.ravel(), minlength=draws * count).reshape(draws, count).astype(float)


def _ratio(value: np.ndarray, weight: np.ndarray) -> np.ndarray:
  return np.divide(value, weight, out=np.full(np.shape(value), np.nan), where=weight > 0)


def _percentiles(drawn: np.ndarray, level: float) -> tuple[float, float]:
  """The middle ``level`` of the draws; nan if there are none."""
  known = drawn[np.isfinite(drawn)]
  if not known.size:
    return math.nan, math.nan
  low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)


# -- metrics that are functions of sums -------------------------------------------------------


def drawn_sums(counts: Sequence[np.ndarray], draws: int = DRAWS, seed: int = 0
               ) -> list[np.ndarray]:
  """Sums of counts over resampled items, for metrics that are functions of such sums.

  Args:
    counts: float [N, K] of each run: K counts of N items, the same items in the same order, so
      that differences of runs are paired. K may differ.
    draws: D.
    seed: of the draws.

  Returns:
    float [D, K] of each run.
  """
  rng = np.random.default_rng(seed)
  count = len(counts[0])
  assert count and all(len(one) == count for one in counts), [one.shape for one in counts]
  out = [np.zeros((draws, one.shape[1])) for one in counts]
  step = max(_CHUNK // count, 1)
  for at in range(0, draws, step):
    items_DxN = _counts(rng, count, min(step, draws - at))
    for one, place in zip(counts, out):
      place[at:at + len(items_DxN)] = items_DxN @ one
  return out


def interval(drawn: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
  """The percentile interval of ``level`` of values [D] in draws; nan if no value is finite."""
  return _percentiles(np.asarray(drawn, float), level)
