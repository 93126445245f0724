"""Log-mel and resampling beside sums written out, and beside transformers where it is."""

import numpy as np
import pytest

from tests.audio.signals import babble
from tests.reference import glm4 as reference
from ttt_jax.audio.glm4 import features


@pytest.mark.parametrize('samples, mels', [(1, 128), (1280, 128), (1281, 80), (9_999, 128),
                                           (41_600, 16)])
def test_log_mel_is_that_of_the_text(samples, mels):
  wave = babble(3.0, 16_000, seed=samples)[100:100 + samples]
  found = features.log_mel(wave, mels)
  assert found.dtype == np.float32
  assert found.shape == (8 * -(-samples // 1280), mels)
  np.testing.assert_allclose(found, reference.log_mel(wave, mels).T, atol=1e-5)


def test_log_mel_of_silence_and_of_a_full_scale_square_is_finite():
  for wave in (np.zeros(5000, np.float32), np.sign(np.sin(np.arange(5000))).astype(np.float32)):
    found = features.log_mel(wave)
    assert np.isfinite(found).all()
    assert found.max() - found.min() <= features.RANGE / 4


def test_log_mel_is_that_of_transformers():
  transformers = pytest.importorskip('transformers')
  extractor = transformers.WhisperFeatureExtractor(feature_size=128)
  wave = babble(30.0, 16_000, seed=1)
  theirs = extractor(wave, sampling_rate=16_000, return_tensors='np').input_features[0]
  np.testing.assert_allclose(features.log_mel(wave), theirs.T, atol=1e-4)


@pytest.mark.parametrize('rate', [8_000, 11_025, 22_050, 24_000, 44_100, 48_000, 44_101, 15_999])
def test_resampling_is_the_windowed_sinc_of_torchaudio(rate):
  wave = babble(0.05, rate, seed=rate)
  found = features.resample(wave, rate)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, reference.resampled(wave, rate), atol=2e-6)


@pytest.mark.parametrize('rate', [4_000, 8_000, 22_050, 44_100, 384_000])
@pytest.mark.parametrize('count', [1, 2, 7, 1000])
def test_resampled_lengths(rate, count):
  wave = np.random.default_rng(count).normal(size=count).astype(np.float32)
  found = features.resample(wave, rate)
  assert len(found) == -(-count * 16_000 // rate)
  np.testing.assert_allclose(found, reference.resampled(wave, rate), atol=1e-5)


def test_at_its_own_rate_a_recording_is_left_alone():
  wave = babble(0.3, 16_000)
  assert features.resample(wave, 16_000) is wave


def test_segments_are_thirty_seconds_and_tokens_eighty_milliseconds():
  wave = np.arange(1_000_000, dtype=np.float32)
  pieces = features.segments(wave, 375)
  assert [len(piece) for piece in pieces] == [480_000, 480_000, 40_000]
  np.testing.assert_array_equal(np.concatenate(pieces), wave)
  assert [features.tokens(n) for n in (1, 1280, 1281, 480_000)] == [1, 1, 2, 375]
