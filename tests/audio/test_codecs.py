"""Properties of every codec: round trip, and finite audio for any codes."""

import functools

import numpy as np
import pytest

from tests.audio.signals import babble
from ttt_jax.audio import codec as codecs
from ttt_jax.audio.codec2 import WIDTHS, Codec2
from ttt_jax.audio.mel_codec import FLOOR, HOP, MELS, MelCodec, _stft, log_mel
from ttt_jax.config import CodecConfig
from ttt_jax.errors import UserError


@functools.cache
def recordings(count=8):
  return [(babble(1.5, seed=seed), 22_050) for seed in range(count)]


def fit(codebooks=1, codes=64, frames=2):
  return codecs.create(CodecConfig('mel', codebooks, codes, frames), iter(recordings()))


@pytest.fixture(scope='module', params=['mel', 'mel x 2', *WIDTHS])
def codec(request):
  if request.param in WIDTHS:
    pytest.importorskip('pycodec2')
    return Codec2(request.param)
  return fit() if request.param == 'mel' else fit(2, 32, 3)


def test_length_range_and_rate_of_codes(codec):
  codes = codec.encode(babble(1.0, 16_000), 16_000)
  assert codes.dtype == np.int32 and codes.min() >= 0 and codes.max() < codec.codebook_size
  assert 0 <= len(codes) - codec.tokens_per_second <= 0.1 * codec.tokens_per_second
  waveform = codec.decode(codes)
  assert waveform.dtype == np.float32 and waveform.ndim == 1
  assert 0 <= len(waveform) / codec.sample_rate - 1.0 < 0.1


def test_the_round_trip_keeps_the_envelope(codec):
  waveform = babble(2.0, codec.sample_rate, seed=3)
  back = codec.decode(codec.encode(waveform, codec.sample_rate))[:len(waveform)]

  def envelope(samples):
    window = codec.sample_rate // 20
    samples = samples[:len(samples) // window * window]
    return np.sqrt((samples.reshape(-1, window) ** 2).mean(axis=1))

  assert np.corrcoef(envelope(waveform), envelope(back))[0, 1] > 0.6


def test_codes_do_not_depend_on_loudness_or_on_what_came_before(codec):
  waveform = babble(0.8, seed=4)
  codes = codec.encode(waveform, 22_050)
  codec.encode(babble(0.5, seed=5), 22_050)
  np.testing.assert_array_equal(codec.encode(waveform, 22_050), codes)
  assert (codec.encode(waveform / 8, 22_050) == codes).mean() > 0.98


def test_any_codes_of_any_number_decode_to_finite_sound(codec):
  draw = np.random.default_rng(0)
  frame = round(codec.sample_rate / codec.tokens_per_second)
  for count in (1, 2, 3, 4, 5, 6, 7, 40, 101):
    codes = draw.integers(0, codec.codebook_size, count)
    waveform = codec.decode(codes)
    assert np.isfinite(waveform).all() and np.abs(waveform).max() <= 1
    assert len(waveform) >= count * frame * 0.99
  assert np.isfinite(codec.decode(np.full(30, codec.codebook_size - 1))).all()
  assert codec.decode(np.zeros(0, np.int32)).shape == (0,)


@pytest.mark.parametrize('size', [1, 3, 7, 100])
def test_a_stream_is_as_long_and_as_near_to_its_codes_as_the_whole(codec, size):
  codes = codec.encode(babble(1.0, seed=6), 22_050)
  stream = codec.stream()
  for _ in range(2):  # the object can be used for another utterance
    pieces = [stream.push(codes[i:i + size]) for i in range(0, len(codes), size)]
    joined, whole = np.concatenate([*pieces, stream.finish()]), codec.sound(codes)
    assert joined.shape == whole.shape and np.abs(joined).max() <= 1
    if isinstance(codec, MelCodec):
      wanted = codec._magnitude(codes)
      error = lambda sound: np.linalg.norm(np.abs(_stft(sound)) - wanted) / np.linalg.norm(wanted)
      assert error(joined) < error(whole) + (0.1 if size == 1 else 0.05)
  assert stream.finish().size == 0


@pytest.mark.parametrize('bad', [-1, 'size'])
def test_a_code_outside_the_codebook_is_rejected(codec, bad):
  bad = codec.codebook_size if bad == 'size' else bad
  with pytest.raises(UserError, match=f'audio code {bad} is outside the codebook of {codec.name}'):
    codec.decode([0, bad])


def test_recordings_without_speech_are_rejected(codec):
  with pytest.raises(UserError, match='is empty'):
    codec.encode(np.zeros(0, np.float32), 16_000)
  with pytest.raises(UserError, match='is silent'):
    codec.encode(np.full(8000, 2e-5, np.float32), 16_000)
  with pytest.raises(UserError, match='not finite'):
    codec.encode(np.array([0.1, np.inf], np.float32), 16_000)
  with pytest.raises(UserError, match='sample rate of 12 Hz'):
    codec.encode(babble(0.2), 12)
  with pytest.raises(UserError, match='one channel'):
    codec.encode(babble(0.2).reshape(2, -1), 22_050)


def test_save_and_load_give_the_same_codec(codec, tmp_path):
  codec.save(tmp_path)
  again = codecs.load(tmp_path)
  assert type(again) is type(codec)
  for attribute in ('name', 'codebook_size', 'sample_rate', 'tokens_per_second'):
    assert getattr(again, attribute) == getattr(codec, attribute)
  waveform = babble(0.7, seed=6)
  codes = codec.encode(waveform, 22_050)
  np.testing.assert_array_equal(again.encode(waveform, 22_050), codes)
  if isinstance(codec, MelCodec):
    np.testing.assert_array_equal(again.decode(codes), codec.decode(codes))
  assert not list(tmp_path.glob('*.part'))


# -- the mel codec ------------------------------------------------------------------


def test_fitting_is_deterministic_and_the_name_tells_codebooks_apart():
  first, second = fit(), fit()
  assert first.name == second.name and first.name.startswith('mel-1x64x2-')
  np.testing.assert_array_equal(first.books, second.books)
  other = codecs.create(CodecConfig('mel', 1, 64, 2), recordings(5))
  assert other.name != first.name
  changed = first.books.copy()
  changed[0, 5, 7] += 0.5
  assert MelCodec(changed, 2, first.level).name != first.name


def test_rate_of_the_default_is_43_codes_a_second():
  codec = fit(frames=2)
  assert codec.tokens_per_second == pytest.approx(43.07, abs=0.01)
  assert fit(2, 32, 3).tokens_per_second == pytest.approx(2 * 28.71, abs=0.01)


def test_more_codes_and_more_codebooks_come_closer():
  def error(codec):
    total = 0.0
    for waveform, rate in recordings():
      codes = codec.encode(waveform, rate).reshape(-1, codec.codebooks)
      mel, _ = log_mel(waveform, codec.frames)
      local = codes - np.arange(codec.codebooks) * codec.codes
      rebuilt = sum(codec.books[i].astype(np.float32)[local[:, i]] for i in range(codec.codebooks))
      total += ((rebuilt.reshape(-1, MELS) - mel) ** 2).mean()
    return total
  coarse, fine, residual = error(fit(1, 8)), error(fit(1, 64)), error(fit(2, 64))
  assert coarse > 1.5 * fine > 1.2 * residual


def test_silence_takes_one_code_however_much_of_it_there_is():
  quiet = [(np.pad(waveform, 60_000), rate) for waveform, rate in recordings()]
  codec = codecs.create(CodecConfig('mel', 1, 64, 2), quiet)
  assert (codec.books[0].max(axis=1) < FLOOR + 0.5).sum() == 1
  codes = codec.encode(*quiet[0])
  assert (codes[:100] == 0).all() and len(np.unique(codes)) > 10
  assert np.abs(codec.decode(np.zeros(20, np.int32))).max() == 0


def test_a_code_in_the_wrong_slot_changes_its_own_patch_only():
  codec = fit(2, 32, 2)
  codes = codec.encode(babble(1.0, seed=7), 22_050)
  codes[20] = 40   # a code of the second codebook where one of the first belongs
  codes[31] = 3    # and the other way round
  quiet = codes.copy()
  quiet[20], quiet[31] = 0, 32
  np.testing.assert_array_equal(codec.decode(codes), codec.decode(quiet))
  assert len(codec.decode(codes[:5])) == 3 * 2 * HOP


def test_too_little_speech_for_the_codebook_says_how_much_there_is():
  with pytest.raises(UserError, match=r'codec\.codes is 2048, but the recordings hold \d+ patches'):
    codecs.create(CodecConfig(), recordings(2))
  with pytest.raises(UserError, match='hold 0 patches'):
    codecs.create(CodecConfig(), [])


# -- Codec 2 ------------------------------------------------------------------------


@pytest.mark.parametrize('mode', WIDTHS)
def test_codec2_frames_and_codes_are_the_same_thing(mode):
  """Whole frames of Codec 2's own encoder survive bytes -> codes -> bytes exactly."""
  pycodec2 = pytest.importorskip('pycodec2')
  coder = pycodec2.Codec2(700 if mode == '700C' else int(mode))
  size, codec = coder.samples_per_frame(), Codec2(mode)
  assert sum(codec.widths) + (mode == '1200') == coder.bits_per_frame()
  samples = (babble(8.0, 8000) * 20_000).astype(np.int16)
  frames = b''.join(coder.encode(samples[i:i + size].copy())
                    for i in range(0, len(samples) - size + 1, size))
  codes = codec.codes_of(frames)
  assert len(np.unique(codes)) > 50
  assert codec.frames_of(codes) == frames
  draw = np.random.default_rng(0)
  codes = np.concatenate([draw.integers(offset, offset + (1 << width), (200, 1))
                          for offset, width in zip(codec.offsets, codec.widths)], axis=1)
  np.testing.assert_array_equal(codec.codes_of(codec.frames_of(codes)), codes.reshape(-1))


@pytest.mark.parametrize('mode, tokens, size', [('700C', 75, 2048), ('1200', 125, 3584),
                                                ('1300', 150, 3584), ('3200', 350, 5664)])
def test_codec2_rates(mode, tokens, size):
  pytest.importorskip('pycodec2')
  codec = Codec2(mode)
  assert (codec.name, codec.tokens_per_second, codec.codebook_size) == (
      f'codec2-{mode}', tokens, size)


def test_codec2_of_an_unknown_mode():
  with pytest.raises(UserError, match=r"codec\.mode is '2400'; use one of 700C, 1200"):
    codecs.create(CodecConfig('codec2', mode='2400'))


# -- one door -----------------------------------------------------------------------


class Parity(codecs.Codec):
  """A user's own codec: the sign of 10 ms of sound."""
  name, codebook_size, sample_rate, tokens_per_second = 'parity', 2, 8000, 100.0

  @classmethod
  def create(cls, config, recordings):
    return cls()

  def encode(self, waveform, rate):
    return (waveform[::rate // 100] > 0).astype(np.int32)

  def decode(self, codes):
    return np.repeat(codecs.check_codes(codes, self) - 0.5, 80).astype(np.float32)

  def settings(self):
    return {}

  @classmethod
  def restore(cls, settings, arrays):
    return cls()


def test_your_own_codec_comes_in_by_its_name(tmp_path):
  codec = codecs.create(CodecConfig('tests.audio.test_codecs:Parity'))
  assert codec.name == 'parity'
  codec.save(tmp_path)
  assert codecs.load(tmp_path).decode([1, 0]).tolist() == [0.5] * 80 + [-0.5] * 80


@pytest.mark.parametrize('name, said', [
    ('mell', r"codec\.name is 'mell', which is not a known codec; did you mean 'mel'\?"),
    ('glm4', r"did you mean 'glm4_voice'\?"),
    ('xyz', "use 'mel', 'codec2', 'glm4_voice' or 'module:Class'"),
    ('nowhere.at_all:Codec', 'cannot be imported'),
    ('tests.audio.test_codecs:Missing', 'cannot be imported'),
    ('tests.audio.test_codecs:recordings', 'not a subclass')])
def test_an_unknown_codec_is_a_sentence(name, said):
  with pytest.raises(UserError, match=said):
    codecs.create(CodecConfig(name))


def test_a_damaged_codec_is_a_sentence(tmp_path):
  with pytest.raises(UserError, match=r'codec\.json is missing'):
    codecs.load(tmp_path)
  first, second = fit(), fit(1, 32)
  first.save(tmp_path)
  second.save(tmp_path / 'other')
  (tmp_path / 'other' / 'codec.npz').rename(tmp_path / 'codec.npz')
  with pytest.raises(UserError, match=f'is named {first.name}, but its arrays .* {second.name}'):
    codecs.load(tmp_path)
  (tmp_path / 'codec.npz').write_bytes(b'PK half a file')
  with pytest.raises(UserError, match='cannot be read'):
    codecs.load(tmp_path)
  (tmp_path / 'codec.npz').unlink()
  with pytest.raises(UserError, match=r'codec.npz is missing'):
    codecs.load(tmp_path)
  (tmp_path / 'codec.json').write_text('{')
  with pytest.raises(UserError, match='codec.json is not JSON'):
    codecs.load(tmp_path)


@pytest.mark.parametrize('codebooks, silence', [(1, (0,)), (2, (0, 64))])
def test_the_patch_of_silence_is_silent(codebooks, silence):
  codec = fit(codebooks)
  assert codec.silence == silence
  assert np.abs(codec.decode(np.tile(np.array(silence, np.int32), 20))).max() == 0
