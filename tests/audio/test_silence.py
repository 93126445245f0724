"""Silence at the ends of recordings is trimmed."""

import numpy as np
import pytest

from tests.audio.signals import babble
from ttt_jax.audio import silence

RATE = 16_000


@pytest.mark.parametrize('before, after', [(0.0, 0.0), (0.6, 0.4), (0.05, 1.0)])
def test_margins_stay(before, after):
  quiet = lambda seconds: np.random.default_rng(0).normal(0, 1e-4, round(seconds * RATE))
  speech = babble(0.5, RATE)
  waveform = np.concatenate([quiet(before), speech, quiet(after)]).astype(np.float32)
  found = silence.trimmed(waveform, RATE, 0.1)
  expected = min(before, 0.1) + 0.5 + min(after, 0.1)
  assert abs(len(found) / RATE - expected) < 0.05
  start = len(waveform) - len(found) if not after else round(max(0, before - 0.1) * RATE)
  assert np.abs(np.correlate(found, speech[:2000])).argmax() == pytest.approx(
      round(before * RATE) - start, abs=0.03 * RATE)


@pytest.mark.parametrize('waveform', [np.zeros(0), np.zeros(5000), np.ones(7), np.full(9000, 0.1)])
def test_without_silence_all_stays(waveform):
  waveform = waveform.astype(np.float32)
  np.testing.assert_array_equal(silence.trimmed(waveform, RATE, 0.1), waveform)


def test_a_short_pause_inside_stays():
  tone = 0.1 * np.sin(np.arange(4800))
  waveform = np.concatenate([tone, np.zeros(RATE), tone, np.zeros(RATE)]).astype(np.float32)
  np.testing.assert_array_equal(silence.trimmed(waveform, RATE, 0.0), waveform[:-RATE])
