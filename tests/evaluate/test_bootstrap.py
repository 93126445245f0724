"""Standard errors and bootstrap intervals: exact cases, the right width, pairing, seeds."""

import math

import numpy as np
import pytest

from ttt_jax.evaluate import bootstrap
from ttt_jax.evaluate.bootstrap import Scores


def test_a_score_is_a_ratio_of_sums_and_a_method_a_mean_of_runs():
  scores = Scores.of([[1, 0, 2], [0, 0, 0]], [2, 4, 4])
  assert scores.runs.tolist() == [0.3, 0.0]
  found = bootstrap.estimate(scores, draws=200)
  assert found.mean == pytest.approx(0.15)
  assert found.error == pytest.approx(0.15)  # std 0.3 / sqrt(2), over sqrt(2)
  assert found.low <= found.mean <= found.high


def test_one_value_has_no_standard_error_and_none_has_no_mean():
  assert bootstrap.mean_and_error([0.5])[0] == 0.5
  assert math.isnan(bootstrap.mean_and_error([0.5])[1])
  assert all(math.isnan(value) for value in bootstrap.mean_and_error([]))
  assert not bootstrap.difference(Scores.of([2.0]), Scores.of([1.0]), draws=10).clear
  empty = Scores.of(np.zeros((2, 0)))
  assert all(math.isnan(value) for value in bootstrap.estimate(empty, draws=10))


def test_the_width_is_that_of_the_normal_approximation():
  """Many items of one run: the standard error of a proportion; three runs whose items are all
  equal: the standard error over seeds, which S draws of S seeds would make too small."""
  rng = np.random.default_rng(0)
  right = (rng.random(400) < 0.3).astype(float)
  found = bootstrap.estimate(Scores.of(right))
  wide = 2 * 1.96 * right.std() / math.sqrt(400)
  assert found.high - found.low == pytest.approx(wide, rel=0.06)
  runs = np.repeat(rng.normal(size=(40, 1)), 5, axis=1)
  found = bootstrap.estimate(Scores.of(runs))
  assert found.high - found.low == pytest.approx(2 * 1.96 * found.error, rel=0.06)
  few = Scores.of(np.repeat([[0.0], [1.0], [2.0]], 5, axis=1))
  drawn, = bootstrap._draws([few], 20_000, 0)
  assert drawn.std() == pytest.approx(bootstrap.mean_and_error(few.runs)[1], rel=0.03)


def test_methods_that_err_on_the_same_items_are_compared_on_them():
  rng = np.random.default_rng(1)
  hard = rng.normal(size=300)
  one, other = (Scores.of(hard + 0.05 * rng.normal(size=(3, 300)) + gap) for gap in (0.1, 0.0))
  found = bootstrap.difference(one, other)
  assert found.mean == pytest.approx(0.1, abs=0.02) and found.clear
  assert found.high - found.low < 0.1  # unpaired: 2 * 1.96 * sqrt(2 / 300) = 0.32
  same = bootstrap.difference(one, one)
  assert same.mean == 0 and not same.clear


def test_draws_are_reproducible():
  scores = Scores.of(np.random.default_rng(2).random((3, 50)))
  first = bootstrap.estimate(scores, draws=300)
  assert first == bootstrap.estimate(scores, draws=300)
  assert first != bootstrap.estimate(scores, draws=300, seed=1)


def test_items_without_weight_do_not_count():
  scores = Scores.of([[1.0, 0.0, 0.0]], [1.0, 1.0, 0.0])
  assert scores.runs.tolist() == [0.5]
  nothing = Scores.of([[0.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]])
  assert np.isnan(nothing.runs[0])
  found = bootstrap.estimate(nothing, draws=500)
  assert 0 <= found.low <= found.high <= 1  # from the draws that miss the run without weight
