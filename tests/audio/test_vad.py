"""Turn detection on synthetic speech: bursts of a voiced sound in noise."""

import numpy as np
import pytest

from ttt_jax.audio.vad import TurnDetector

RATE = 24_000


def voice(seconds, level=0.3):
  """A vowel-like sound: harmonics of a gliding pitch under two formants, in syllables."""
  time = np.arange(round(seconds * RATE)) / RATE
  pitch = 120 + 20 * np.sin(2 * np.pi * 3 * time)
  phase = 2 * np.pi * np.cumsum(pitch) / RATE
  tones = sum(np.sin(k * phase) * (np.exp(-((k * 120 - 600) / 200) ** 2)
                                   + 0.5 * np.exp(-((k * 120 - 1200) / 250) ** 2) + 0.05)
              for k in range(1, 25))
  syllables = 0.6 + 0.4 * np.sin(2 * np.pi * 4 * time)
  return (level * tones * syllables / np.abs(tones).max()).astype(np.float32)


def stream(*pieces, noise=3e-4):
  """Seconds of silence (numbers) and sounds, in noise."""
  joined = np.concatenate([np.zeros(round(p * RATE), np.float32) if np.isscalar(p) else p
                           for p in pieces])
  return joined + np.random.default_rng(0).normal(0, noise, len(joined)).astype(np.float32)


def edges(sound, piece=1_000, **settings):
  detector = TurnDetector(RATE, **settings)
  found = [edge for at in range(0, len(sound), piece)
           for edge in detector.push(sound[at:at + piece])]
  return [(edge.begins, edge.at / RATE) for edge in found], detector.speaking


@pytest.mark.parametrize('noise', [0, 3e-4, 3e-3])
@pytest.mark.parametrize('piece', [480, 7_001])
def test_two_turns(noise, piece):
  found, speaking = edges(stream(1.0, voice(1.2), 1.0, voice(0.6), 1.0, noise=noise), piece)
  assert [begins for begins, _ in found] == [True, False, True, False] and not speaking
  # 0.2 s: the detector holds on after speech.
  np.testing.assert_allclose([at for _, at in found], [1.0, 2.2, 3.2, 3.8], atol=0.2)


@pytest.mark.parametrize('silence, turns', [(0.2, 2), (0.8, 1)])
def test_a_pause_ends_a_turn_only_if_it_is_long_enough(silence, turns):
  found, _ = edges(stream(0.5, voice(0.6), 0.5, voice(0.6), 1.2), silence=silence)
  assert len(found) == 2 * turns


def test_what_is_no_speech():
  click = np.zeros(200, np.float32)
  click[::2] = 0.8
  quiet = voice(1.0, level=1e-4)
  for sound in (stream(3.0, noise=0), stream(3.0, noise=3e-3), stream(1.0, click, 1.0),
                stream(1.0, quiet, 1.0, noise=0)):
    assert edges(sound) == ([], False)


def test_speech_that_goes_on():
  found, speaking = edges(stream(0.5, voice(1.0)))
  assert [begins for begins, _ in found] == [True] and speaking


def test_a_higher_threshold_needs_more_speech():
  short = stream(0.5, voice(0.07), 1.0)
  assert len(edges(short, threshold=0.1)[0]) == 2 and edges(short, threshold=1.0)[0] == []
