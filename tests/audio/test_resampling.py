"""Streams of samples: the pieces of a resampled stream are the resampled recording."""

import numpy as np
import pytest

from ttt_jax.audio import io
from ttt_jax.audio.resampling import Resampler
from ttt_jax.errors import UserError


@pytest.mark.parametrize('rate, target', [
    (24_000, 16_000), (22_050, 24_000), (8_000, 24_000), (24_000, 22_050), (24_000, 24_000),
    (16_000, 24_000), (44_100, 24_000)])
@pytest.mark.parametrize('sizes', [(480,), (1, 7, 1000), (100_000,)])
def test_pieces_are_the_whole(rate, target, sizes):
  whole = np.random.default_rng(0).uniform(-1, 1, 5_001).astype(np.float32)
  stream = Resampler(rate, target)
  for _ in range(2):  # an object serves several streams
    pieces, at, i = [], 0, 0
    while at < len(whole):
      size = sizes[i % len(sizes)]
      pieces.append(stream.push(whole[at:at + size]))
      at, i = at + size, i + 1
      lag = at * target / rate - sum(map(len, pieces))
      assert at >= len(whole) or lag <= 12 * max(1, target / rate)
    pieces.append(stream.finish())
    np.testing.assert_allclose(np.concatenate(pieces), io.resample(whole, rate, target), atol=2e-6)


def test_memory_of_a_stream_is_bounded():
  stream = Resampler(22_050, 24_000)
  for _ in range(50):
    stream.push(np.zeros(4_000, np.float32))
  assert len(stream._samples) < 100


def test_an_empty_stream_and_a_rate_out_of_range():
  assert not Resampler(22_050, 24_000).finish().size
  with pytest.raises(UserError, match='100 Hz'):
    Resampler(24_000, 100)
