"""Weighted mixtures: the component of row j as a pure function, with exact shares.

Weights 2 and 1 give the components of rows 0, 1, 2, ... in the order 0 1 0 | 0 1 0 | ...
"""

from collections.abc import Sequence
import fractions
import math

import numpy as np

from ttt_jax.config.settings import LEAST_SHARE

PERIOD = round(1 / LEAST_SHARE)  # rows; the order repeats after at most this many


class Mixture:
  """The order of the components, and row numbers inside each component.

  For every n, component c provides floor or ceil of n * share_c of the first n rows. Grain's
  MixedMapDataset rounds weights to hundredths of the smallest and accumulates a rounding error
  per component, so it has neither exact shares nor this bound.
  """

  def __init__(self, weights: Sequence[float]):
    """Computes one period.

    Args:
      weights: positive, each at least 1 / PERIOD of their sum. Proportions of decimals are
        exact if their integer form (0.25, 1 -> 1, 4) sums to at most PERIOD, and otherwise
        rounded to 1 / PERIOD of the sum.
    """
    self._size = np.array(integer_weights(weights), np.int64)  # [c] rows per period
    self._component = _order(self._size.tolist())  # [period]
    self._index = np.empty(len(self._component), np.int64)  # [period] rows before
    for c, size in enumerate(self._size):
      self._index[self._component == c] = np.arange(size)

  def place(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mixture rows int64 [n] -> (component, row number inside it), int64 [n] each."""
    period, slot = np.divmod(rows, len(self._component))
    component = self._component[slot]
    return component, period * self._size[component] + self._index[slot]

  def shares(self) -> list[float]:
    """Share of the rows that each component provides; they sum to 1."""
    return (self._size / self._size.sum()).tolist()

  def counts(self, rows: int) -> np.ndarray:
    """Number of rows of each component among the mixture's first ``rows``: int64 [c]."""
    periods, rest = divmod(rows, len(self._component))
    return periods * self._size + np.bincount(self._component[:rest], minlength=len(self._size))


def integer_weights(weights: Sequence[float]) -> list[int]:
  """Integers >= 1 in the proportions of the weights, with a sum of at most about PERIOD."""
  # From the decimal form, so that 0.1 is exactly one tenth.
  exact = [fractions.Fraction(repr(float(weight))) for weight in weights]
  scale = math.lcm(*(weight.denominator for weight in exact))
  numbers = [int(weight * scale) for weight in exact]
  total = sum(numbers)
  if total // math.gcd(*numbers) > PERIOD:
    numbers = [max(1, round(number * PERIOD / total)) for number in numbers]
  shared = math.gcd(*numbers)
  return [number // shared for number in numbers]


def _order(sizes: list[int]) -> np.ndarray:
  """int64 [sum of sizes]: the quota method of Balinski and Young (1975).

  Each row goes to the component with the largest size / (rows given + 1), among those that
  do not exceed the ceiling of their share.
  """
  total, given = sum(sizes), [0] * len(sizes)
  order = np.empty(total, np.int64)
  components = range(len(sizes))
  for row in range(total):
    best = max((c for c in components if given[c] * total < sizes[c] * (row + 1)),
               key=lambda c: sizes[c] / (given[c] + 1))
    order[row] = best
    given[best] += 1
  return order
