"""Which component gives row j of a weighted mixture: a pure function, exact in every window.

Weights 2 and 1 give the components of rows 0, 1, 2, ... in the order 0 1 0 | 0 1 0 | ...
"""

from collections.abc import Sequence
import fractions
import math

import numpy as np

from ttt_jax.config.settings import LEAST_SHARE

PERIOD = round(1 / LEAST_SHARE)  # most rows after which the order repeats


class Mixture:
  """The order of the components, and each one's own row numbers.

  Of the first n rows component c gives floor or ceil of n * its share, for every n. Grain's
  MixedMapDataset cuts weights to hundredths of the smallest and adds up a rounding per
  component, so it keeps neither the shares nor that bound.
  """

  def __init__(self, weights: Sequence[float]):
    """Lay out one period.

    Args:
      weights: positive, at least 1 / PERIOD of their sum; as decimals they are kept exactly
        if their whole-number form, such as 0.25, 1 -> 1, 4, sums to at most PERIOD, and to
        1 / PERIOD of the sum otherwise.
    """
    self._size = np.array(whole(weights), np.int64)         # [c] rows of each in a period
    self._component = _order(self._size.tolist())           # [period]
    self._index = np.empty(len(self._component), np.int64)  # [period] rows of the same before
    for c, size in enumerate(self._size):
      self._index[self._component == c] = np.arange(size)

  def place(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(component, its own row number), int64 [n] each, of the mixture's rows, int64 [n]."""
    period, slot = np.divmod(rows, len(self._component))
    component = self._component[slot]
    return component, period * self._size[component] + self._index[slot]

  def given(self, rows: int) -> np.ndarray:
    """How many of the mixture's first ``rows`` rows each component gives: int64 [c]."""
    periods, rest = divmod(rows, len(self._component))
    return periods * self._size + np.bincount(self._component[:rest], minlength=len(self._size))


def whole(weights: Sequence[float]) -> list[int]:
  """Whole numbers >= 1 in the proportions of the weights, with a sum of about PERIOD at most."""
  exact = [fractions.Fraction(repr(float(weight))) for weight in weights]  # 0.1 is one tenth
  scale = math.lcm(*(weight.denominator for weight in exact))
  numbers = [int(weight * scale) for weight in exact]
  total = sum(numbers)
  if total // math.gcd(*numbers) > PERIOD:
    numbers = [max(1, round(number * PERIOD / total)) for number in numbers]
  shared = math.gcd(*numbers)
  return [number // shared for number in numbers]


def _order(sizes: list[int]) -> np.ndarray:
  """int64 [sum of sizes]: the quota method of Balinski and Young (1975).

  Each row goes to the component that is most behind, among those that stay below the
  ceiling of their share.
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
