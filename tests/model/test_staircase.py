"""The staircase: literal grids, then random rows against the pair-by-pair definition."""

import numpy as np
import pytest

from tests.reference import batches, staircase as slow
from ttt_jax.model import staircase
from ttt_jax.tokens.batch import Batch

V = batches.VOCAB
o, E, Q = V.code_start, V.end_of_chunk, V.end_of_last  # a code, and the two end tokens
B = V.begin_of_audio

# One row: a conversation (spoken question, answer with two spans, the second one being
# its end token alone), a pretraining document that starts with speech, and padding.
#            prompt: a  B  o  o    answer: b  B  o  E  c  Q
TALK = (7, [1, B, o, o, 2, B, o, E, 3, Q], [0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
LATER = (9, [o, E, 4], [1, 1, 1])
LENGTH = 15

HYBRID = """
1 . . . . . . . . . . . . . .
1 1 . . . . . . . . . . . . .
1 1 1 1 . . . . . . . . . . .
1 1 1 1 . . . . . . . . . . .
1 1 1 1 1 . . . . . . . . . .
1 1 1 1 1 1 . . . . . . . . .
1 1 1 1 1 1 1 1 . . . . . . .
1 1 1 1 1 1 1 1 . . . . . . .
1 1 1 1 1 1 1 1 1 . . . . . .
1 1 1 1 1 1 1 1 1 1 . . . . .
. . . . . . . . . . 1 1 . . .
. . . . . . . . . . 1 1 . . .
. . . . . . . . . . 1 1 1 . .
. . . . . . . . . . . . . . .
. . . . . . . . . . . . . . .
"""
CAUSAL_PROMPT = """
1 . . . . . . . . . . . . . .
1 1 . . . . . . . . . . . . .
1 1 1 . . . . . . . . . . . .
1 1 1 1 . . . . . . . . . . .
1 1 1 1 1 . . . . . . . . . .
1 1 1 1 1 1 . . . . . . . . .
1 1 1 1 1 1 1 1 . . . . . . .
1 1 1 1 1 1 1 1 . . . . . . .
1 1 1 1 1 1 1 1 1 . . . . . .
1 1 1 1 1 1 1 1 1 1 . . . . .
. . . . . . . . . . 1 1 . . .
. . . . . . . . . . 1 1 . . .
. . . . . . . . . . 1 1 1 . .
. . . . . . . . . . . . . . .
. . . . . . . . . . . . . . .
"""
AR = """
1 . . . . . . . . . . . . . .
1 1 . . . . . . . . . . . . .
1 1 1 . . . . . . . . . . . .
1 1 1 1 . . . . . . . . . . .
1 1 1 1 1 . . . . . . . . . .
1 1 1 1 1 1 . . . . . . . . .
1 1 1 1 1 1 1 . . . . . . . .
1 1 1 1 1 1 1 1 . . . . . . .
1 1 1 1 1 1 1 1 1 . . . . . .
1 1 1 1 1 1 1 1 1 1 . . . . .
. . . . . . . . . . 1 . . . .
. . . . . . . . . . 1 1 . . .
. . . . . . . . . . 1 1 1 . .
. . . . . . . . . . . . . . .
. . . . . . . . . . . . . . .
"""
NAR = """
1 . . . . . . . . . . . . . .
1 1 . . . . . . . . . . . . .
1 1 1 1 . . . . . . . . . . .
1 1 1 1 . . . . . . . . . . .
1 1 1 1 1 1 1 1 1 1 . . . . .
1 1 1 1 1 1 1 1 1 1 . . . . .
1 1 1 1 1 1 1 1 1 1 . . . . .
1 1 1 1 1 1 1 1 1 1 . . . . .
1 1 1 1 1 1 1 1 1 1 . . . . .
1 1 1 1 1 1 1 1 1 1 . . . . .
. . . . . . . . . . 1 1 1 . .
. . . . . . . . . . 1 1 1 . .
. . . . . . . . . . 1 1 1 . .
. . . . . . . . . . . . . . .
. . . . . . . . . . . . . . .
"""


def dense(batch, mode, prompt_audio):
  """bool [B, T, T] from the two integers per query."""
  start, end = map(np.asarray, staircase.key_ranges(batch, mode, prompt_audio))
  assert start.dtype == end.dtype == np.int32
  j = np.arange(batch.token.shape[-1])
  return (start[..., None] <= j) & (j < end[..., None])


@pytest.mark.parametrize('mode, prompt_audio, grid', [
    ('hybrid', 'bidirectional', HYBRID),
    ('hybrid', 'causal', CAUSAL_PROMPT),
    ('ar', 'bidirectional', AR),
    ('ar', 'causal', AR),
    ('nar', 'bidirectional', NAR),
])
def test_literal_grid(mode, prompt_audio, grid):
  want = np.array([[c == '1' for c in line.split()] for line in grid.strip().splitlines()])
  got = dense(batches.layout([[TALK, LATER]], LENGTH), mode, prompt_audio)[0]
  np.testing.assert_array_equal(got, want)
  reference = slow.row_matrix(V, [TALK, LATER], LENGTH, mode, prompt_audio)
  np.testing.assert_array_equal(reference, want)  # the yardstick itself


def test_padding_has_the_empty_range():
  batch = batches.layout([[TALK], []], LENGTH)
  start, end = map(np.asarray, staircase.key_ranges(batch))
  assert (start[batch.document == 0] == 0).all()
  assert (end[batch.document == 0] == 0).all()


def test_masking_an_id_does_not_change_the_staircase():
  batch = batches.layout([[TALK, LATER]], LENGTH)
  noisy = batch._replace(token=np.where(batch.span > 0, V.mask, batch.token))
  for clean, masked in zip(staircase.key_ranges(batch), staircase.key_ranges(noisy)):
    np.testing.assert_array_equal(clean, masked)


@pytest.mark.parametrize('seed', range(6))
def test_random_rows(seed):
  plan, batch = batches.packed(np.random.default_rng(seed), rows=5, seq_len=64)
  for mode in ('hybrid', 'ar', 'nar'):
    for prompt_audio in ('bidirectional', 'causal'):
      want = np.stack([slow.row_matrix(V, row, 64, mode, prompt_audio) for row in plan])
      np.testing.assert_array_equal(dense(batch, mode, prompt_audio), want)


def test_k_end_never_decreases_inside_a_document():
  _, batch = batches.packed(np.random.default_rng(1), rows=5, seq_len=64)
  for mode in ('hybrid', 'ar', 'nar'):
    _, end = map(np.asarray, staircase.key_ranges(batch, mode))
    inside = (batch.document[:, 1:] == batch.document[:, :-1]) & (batch.document[:, 1:] > 0)
    assert (np.diff(end)[inside] >= 0).all()


def test_one_row_and_full_row():
  """A row without padding, and vectors [T] lifted to one row."""
  n = len(TALK[1])
  batch = batches.layout([[TALK]], n)
  want = slow.row_matrix(V, [TALK], n)
  np.testing.assert_array_equal(dense(Batch(*batch), 'hybrid', 'bidirectional')[0], want)
