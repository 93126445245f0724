"""Mixtures have exact shares in every window, and random access."""

import numpy as np
import pytest

from ttt_jax.data.mixture import PERIOD, Mixture, integer_weights

ODD = [0.37, 1.9, 3.33, 0.001, 7.7]


@pytest.mark.parametrize('weights', [
    [1], [2, 1], [1, 1, 1, 1, 1], [0.001, 1], [3, 5, 7, 11, 13], ODD], ids=str)
def test_after_n_rows_each_has_given_its_share(weights):
  mixture, rows = Mixture(weights), np.arange(30_000)
  component, index = mixture.place(rows)
  for c, weight in enumerate(weights):
    mine = component == c
    given = np.cumsum(mine)
    assert abs(given - (rows + 1) * weight / sum(weights)).max() < 1
    np.testing.assert_array_equal(index[mine], np.arange(given[-1]))  # none left out or twice
    assert [mixture.counts(n)[c] for n in (0, 1, 17, 29_999)] == [0, given[0], given[16],
                                                                 given[29_998]]


def test_a_row_far_away_costs_nothing():
  mixture = Mixture(ODD)
  far = 10**14
  component, index = mixture.place(np.array([far]))
  assert mixture.counts(far)[component[0]] == index[0]
  assert abs(mixture.counts(far)[3] - far * 0.001 / sum(ODD)) < 1


def test_weights_are_taken_as_decimals_and_rounded_only_if_they_must_be():
  assert integer_weights([2, 1]) == [2, 1] and integer_weights([40, 20, 60]) == [2, 1, 3]
  assert integer_weights([0.1, 0.2]) == [1, 2] and integer_weights([1, 0.001]) == [1000, 1]
  long = [1 / 3, 2 / 7, 0.123456, 5.4321]
  found = np.array(integer_weights(long))
  assert abs(found.sum() - PERIOD) <= 2
  np.testing.assert_allclose(found / found.sum(), np.array(long) / sum(long), atol=1.5 / PERIOD)
