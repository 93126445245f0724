"""Audio files: reading, writing, and rejected files."""

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


@pytest.mark.parametrize('subtype, step', [
    ('PCM_U8', 2**-7), ('PCM_16', 2**-15), ('PCM_24', 2**-23), ('PCM_32', 2**-23),
    ('FLOAT', 0), ('DOUBLE', 2**-24)])
def test_a_wav_of_any_width_is_its_part_of_full_scale(tmp_path, subtype, step):
  waveform = babble(0.2, 16_000)
  soundfile.write(tmp_path / 'a.wav', waveform, 16_000, subtype)
  back, rate = io.read(tmp_path / 'a.wav')
  assert rate == 16_000 and back.dtype == np.float32
  np.testing.assert_allclose(back, waveform, atol=step, rtol=0)


@pytest.mark.parametrize('form, subtype', [
    ('FLAC', 'PCM_16'), ('FLAC', 'PCM_24'), ('OGG', 'VORBIS'), ('OGG', 'OPUS'),
    ('MP3', 'MPEG_LAYER_III')])
def test_a_format_is_detected_by_content_not_by_name(tmp_path, form, subtype):
  waveform = babble(1.0, 16_000)
  soundfile.write(tmp_path / 'a.dat', waveform, 16_000, subtype, format=form)
  back, rate = io.read(tmp_path / 'a.dat')
  assert rate == 16_000 and back.shape == waveform.shape and np.abs(back).max() <= 1
  assert np.corrcoef(back, waveform)[0, 1] > 0.97


@pytest.mark.parametrize('name, channels', [
    ('a.flac', 2), ('a.ogg', 2), ('a.wav', 2), ('a.mp3', 2), ('a.flac', 6), ('a.ogg', 6),
    ('a.wav', 6)])
def test_channels_are_averaged_in_any_format(tmp_path, name, channels):
  left = babble(0.5, 16_000)
  soundfile.write(tmp_path / name, np.stack([left] + [0 * left] * (channels - 1), 1), 16_000)
  mono, rate = io.read(tmp_path / name)
  assert rate == 16_000 and mono.shape == left.shape
  assert np.corrcoef(mono, left)[0, 1] > 0.95
  assert np.abs(mono).max() < 0.6 / channels
  np.testing.assert_allclose(np.std(mono), np.std(left) / channels, rtol=0.1)


def test_opposite_channels_cancel_to_silence(tmp_path):
  left = babble(0.5, 16_000)
  soundfile.write(tmp_path / 'a.wav', np.stack([left, -left], axis=1), 16_000)
  mono, rate = io.read(tmp_path / 'a.wav')
  assert len(mono) == len(left)
  with pytest.raises(UserError, match='x is silent'):
    io.check(mono, rate, 'x')


def test_above_full_scale_is_clipped_and_another_scale_rejected(tmp_path):
  soundfile.write(tmp_path / 'loud.wav', np.array([0.5, 1.5, -7.9]), 8000, 'FLOAT')
  assert io.read(tmp_path / 'loud.wav')[0].tolist() == [0.5, 1, -1]
  soundfile.write(tmp_path / 'scale.wav', np.array([0.5, 20_000.0]), 8000, 'FLOAT')
  with pytest.raises(UserError, match=r'scale\.wav has samples of 20,000 times full scale'):
    io.read(tmp_path / 'scale.wav')
  soundfile.write(tmp_path / 'clipped.wav', np.clip(3 * babble(0.1), -1, 1), 22_050)
  assert np.abs(io.read(tmp_path / 'clipped.wav')[0]).max() > 0.99, 'as it is'


def test_silence_is_read_and_not_encoded(tmp_path):
  soundfile.write(tmp_path / 'a.flac', np.zeros(800), 8000)
  waveform, rate = io.read(tmp_path / 'a.flac')
  assert not waveform.any() and len(waveform) == 800
  with pytest.raises(UserError, match='x is silent: its peak is 0'):
    io.check(waveform, rate, 'x')


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
  for kind in ('ogg', 'flac', 'mp3'):
    soundfile.write(tmp_path / f'empty.{kind}', np.zeros(0), 8000)
    with pytest.raises(UserError, match=rf'empty\.{kind} (is empty|cannot be read)'):
      io.read(tmp_path / f'empty.{kind}')
  for bad in (np.nan, np.inf):
    soundfile.write(tmp_path / 'nan.wav', np.array([0, bad]), 8000, 'FLOAT')
    with pytest.raises(UserError, match=r'nan\.wav has samples that are not finite'):
      io.read(tmp_path / 'nan.wav')
  soundfile.write(tmp_path / 'slow.wav', babble(0.1), 100)
  with pytest.raises(UserError, match=r'slow\.wav has a sample rate of 100'):
    io.read(tmp_path / 'slow.wav')


@pytest.mark.parametrize('rate', [0, -16_000, 3_999, 384_001, 22_050.5, float('nan'), None, True])
def test_rates_out_of_range_are_rejected(rate):
  with pytest.raises(UserError, match='sample rate'):
    io.check_rate(rate, 'x.wav')


@pytest.mark.parametrize('name, subtype', [
    ('a.flac', 'PCM_16'), ('a.wav', 'PCM_16'), ('a.wav', 'FLOAT'), ('a.ogg', 'VORBIS'),
    ('a.ogg', 'OPUS'), ('a.mp3', 'MPEG_LAYER_III')])
@pytest.mark.parametrize('share', [0.3, 0.6, 0.95])
def test_a_recording_that_is_cut_off_is_not_a_shorter_one(tmp_path, name, subtype, share):
  path = tmp_path / name
  soundfile.write(path, babble(5.0, 16000), 16000, subtype)
  data = path.read_bytes()
  assert len(io.read(path)[0]) == 80_000
  path.write_bytes(data[:int(share * len(data))])
  with pytest.raises(UserError, match=name):
    io.read(path)
