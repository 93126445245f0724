"""Every document in exactly one row, rows not overfull, little padding."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from ttt_jax.data.packing import pack
from ttt_jax.errors import UserError


@hypothesis.given(st.lists(st.integers(1, 64), max_size=200))
def test_every_document_fits_in_exactly_one_row(lengths):
  packed = pack(lengths, 64)
  assert sorted(i for row in packed.rows for i in row) == list(range(len(lengths)))
  filled = [sum(lengths[i] for i in row) for row in packed.rows]
  assert all(0 < n <= 64 for n in filled)
  # Best fit never leaves two rows that would fit in one.
  assert sum(n <= 32 for n in filled) <= 1
  if lengths:
    assert packed.padding == pytest.approx(1 - sum(lengths) / (64 * len(packed.rows)))


def test_each_document_goes_to_the_fullest_row_with_room():
  # 7 and 6 open a row of 10 each; 4 fits only beside 6, then 3 beside 7, both exactly.
  packed = pack([3, 4, 6, 7], 10)
  assert sorted(sorted(row) for row in packed.rows) == [[0, 3], [1, 2]]
  assert packed.padding == 0


def test_packing_is_deterministic_and_tight_on_speech_like_lengths():
  lengths = np.clip(np.random.default_rng(0).lognormal(5.3, 0.6, 20_000), 20, 2048).astype(int)
  packed = pack(lengths, 2048)
  assert packed == pack(lengths, 2048)
  assert packed.padding < 0.03


def test_documents_of_one_length_are_mixed():
  rows = pack([8] * 400, 64).rows
  assert sum(row == list(range(row[0], row[0] + 8)) for row in rows) < 5


def test_a_document_longer_than_a_row_is_named_with_both_lengths():
  with pytest.raises(UserError, match='b.jsonl:2: the record has 65 tokens but a row holds 64'):
    pack([10, 65], 64, ['b.jsonl:1', 'b.jsonl:2'])
