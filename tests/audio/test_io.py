"""Recordings in and out, and what is refused."""

import numpy as np
import pytest
import soundfile

from tests.audio.signals import babble
from ttt_jax.audio import io
from ttt_jax.errors import UserError


def test_wav_round_trip_to_half_a_step(tmp_path):
  waveform = babble(0.3)
  io.write_wav(tmp_path / 'new' / 'a.wav', waveform, 22_050)
  back, rate = io.read(tmp_path / 'new' / 'a.wav')
  assert rate == 22_050 and back.dtype == np.float32
  np.testing.assert_allclose(back, waveform, atol=1 / 32768)
  assert [path.name for path in (tmp_path / 'new').iterdir()] == ['a.wav']


def test_beyond_full_scale_is_clipped_not_wrapped(tmp_path):
  io.write_wav(tmp_path / 'a.wav', np.array([0, 2.0, -2.0], np.float32), 8000)
  back, _ = io.read(tmp_path / 'a.wav')
  np.testing.assert_allclose(back, [0, 1, -1], atol=1e-4)


@pytest.mark.parametrize('name', ['a.flac', 'a.ogg', 'a.wav'])
def test_channels_are_averaged_in_any_format(tmp_path, name):
  left = babble(0.5, 16_000)
  soundfile.write(tmp_path / name, np.stack([left, 0 * left], axis=1), 16_000)
  mono, rate = io.read(tmp_path / name)
  assert rate == 16_000 and mono.shape == left.shape
  assert np.corrcoef(mono, left / 2)[0, 1] > 0.99
  assert np.abs(mono).max() < 0.3


def test_resampling_keeps_a_tone_and_its_length():
  tone = np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100).astype(np.float32)
  out = io.resample(tone, 44_100, 22_050)
  assert out.dtype == np.float32 and len(out) == 22_050
  want = np.sin(2 * np.pi * 440 * np.arange(22_050) / 22_050)
  np.testing.assert_allclose(out[500:-500], want[500:-500], atol=2e-3)


def test_odd_rates_are_resampled_too():
  assert len(io.resample(babble(0.5, 11_026), 11_026, 22_050)) == 11_025


def test_unreadable_recordings_are_one_sentence_with_the_file(tmp_path):
  with pytest.raises(UserError, match=r'gone\.wav does not exist'):
    io.read(tmp_path / 'gone.wav')
  (tmp_path / 'text.wav').write_text('not audio')
  with pytest.raises(UserError, match=r'text\.wav cannot be read'):
    io.read(tmp_path / 'text.wav')
  (tmp_path / 'zero.wav').write_bytes(b'')
  with pytest.raises(UserError, match=r'zero\.wav cannot be read'):
    io.read(tmp_path / 'zero.wav')
  soundfile.write(tmp_path / 'empty.wav', np.zeros(0), 8000)
  with pytest.raises(UserError, match=r'empty\.wav is empty'):
    io.read(tmp_path / 'empty.wav')
  soundfile.write(tmp_path / 'nan.wav', np.array([0, np.nan]), 8000, 'FLOAT')
  with pytest.raises(UserError, match=r'nan\.wav has samples that are not finite'):
    io.read(tmp_path / 'nan.wav')
  soundfile.write(tmp_path / 'slow.wav', babble(0.1), 100)
  with pytest.raises(UserError, match=r'slow\.wav has a sample rate of 100'):
    io.read(tmp_path / 'slow.wav')


@pytest.mark.parametrize('rate', [0, -16_000, 3_999, 384_001, 22_050.5, float('nan'), None, True])
def test_absurd_rates_are_refused(rate):
  with pytest.raises(UserError, match='sample rate'):
    io.check_rate(rate, 'x.wav')


@pytest.mark.parametrize('name', ['a.flac', 'a.wav'])
@pytest.mark.parametrize('share', [0.3, 0.6, 0.95])
def test_a_recording_that_is_cut_off_is_not_a_shorter_one(tmp_path, name, share):
  path = tmp_path / name
  soundfile.write(path, babble(2.0, 16000), 16000)
  data = path.read_bytes()
  path.write_bytes(data[:int(share * len(data))])
  with pytest.raises(UserError, match=name):
    io.read(path)


@pytest.mark.parametrize('size', [0, 2**31 - 1, 2**32 - 1])
def test_a_wav_out_of_a_pipe_does_not_know_its_size(tmp_path, size):
  path = tmp_path / 'a.wav'
  soundfile.write(path, babble(0.5, 16000), 16000)
  data = path.read_bytes()
  path.write_bytes(data[:4] + size.to_bytes(4, 'little') + data[8:])
  assert len(io.read(path)[0]) == 8000
