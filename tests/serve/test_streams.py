"""What arrives in pieces equals the whole: resampled sound, PCM, text with stop sequences."""

import io

import numpy as np
import pytest
import soundfile

from tests.audio.signals import babble
from tests.serve import tiny
from ttt_jax.audio import io as audio_io
from ttt_jax.serve import sound_in, sound_out
from ttt_jax.serve.errors import ApiError
from ttt_jax.serve.text_out import TextStream
from ttt_jax.tokens.tokenizer import ByteTokenizer


@pytest.mark.parametrize('rate', [8000, 16_000, 22_050, 24_000, 44_100, 48_000])
@pytest.mark.parametrize('seed', range(3))
def test_resampled_pieces_equal_the_whole(rate, seed):
  rng = np.random.default_rng(seed)
  waveform = babble(0.3, rate, seed)[:int(rng.integers(1, 0.3 * rate))]
  stream = sound_out.Resampler(rate, 24_000)
  for _ in range(2):  # the object can be used again
    cuts = np.sort(rng.integers(0, len(waveform) + 1, rng.integers(0, 12)))
    pieces = [stream.push(piece) for piece in np.split(waveform, cuts)]
    joined = np.concatenate([*pieces, stream.finish()])
    whole = audio_io.resample(waveform, rate, 24_000)
    assert len(joined) == len(whole)
    np.testing.assert_allclose(joined, whole, atol=1e-6)


def test_most_samples_come_at_once():
  stream = sound_out.Resampler(22_050, 24_000)
  assert len(stream.push(np.zeros(2205, np.float32))) > 2400 - 2 * 160 * 24_000 / 22_050


def test_pcm_of_codes_in_pieces_has_the_length_of_the_whole():
  codec, codes = tiny.Tones(), np.arange(16)
  stream = sound_out.PcmStream(codec)
  pcm = b''.join([*(stream.push(codes[i:i + 3]) for i in range(0, 16, 3)), stream.finish()])
  assert len(pcm) == 2 * 3 * len(codec.sound(codes))


def test_the_first_piece_lasts_as_long_as_asked():
  codes = np.arange(12) % 16  # 20 ms each
  plain, held = (sound_out.PcmStream(tiny.Tones(), first) for first in (0.0, 0.1))
  whole = plain.push(codes[:1]) + plain.push(codes[1:]) + plain.finish()
  pieces = [held.push(codes[:1]), held.push(codes[1:4]), held.push(codes[4:6]),
            held.push(codes[6:7]), held.push(codes[7:]), held.finish()]
  assert pieces[:2] == [b'', b''] and all(pieces[2:5]) and b''.join(pieces) == whole
  short = sound_out.PcmStream(tiny.Tones(), 1.0)
  assert short.push(codes[:2]) == b'' and len(short.finish()) == 2 * 2 * 480


@pytest.mark.parametrize('form', ['wav', 'flac', 'mp3', 'opus'])
def test_formats_can_be_read(form):
  pcm = sound_out.pcm16(babble(0.5, 24_000))
  waveform, rate = audio_io.read(sound_out.encode(pcm, form))
  assert rate == 24_000 and abs(len(waveform) - 12_000) < 3000


def test_a_growing_wav_has_a_header_that_players_read():
  found, rate = soundfile.read(io.BytesIO(sound_out.wav_header() + bytes(480)))
  assert rate == 24_000 and len(found) == 240


def push_all(stream, text, size=1):
  data = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
  return [stream.push(data[i:i + size]) for i in range(0, len(data), size)]


@pytest.mark.parametrize('text, stop, shown', [
    ('hello', (), 'hello'), ('äöü€😀', (), 'äöü€😀'), ('one two three', ('two',), 'one '),
    ('one twx two', ('two', 'x t'), 'one tw'), ('one tw', ('two',), 'one tw'),
    ('äx', ('x', 'ä'), ''), ('stop', ('stop',), '')])
@pytest.mark.parametrize('size', [1, 2, 100])
def test_text_ends_before_a_stop_sequence(text, stop, shown, size):
  stream = TextStream(ByteTokenizer(), stop)
  pieces = push_all(stream, text, size)
  assert ''.join([*pieces, stream.finish()]) == shown == stream.shown
  assert stream.stopped == any(one in text for one in stop)


def test_control_tokens_have_no_text():
  stream = TextStream(ByteTokenizer())
  assert stream.push(np.array([104, tiny.VOCAB.im_end, tiny.VOCAB.code_start, 105])) == 'hi'


def test_a_long_recording_is_refused_before_it_is_decoded(monkeypatch):
  """A FLAC of silence is 2,000 times smaller than its samples."""
  out = io.BytesIO()
  soundfile.write(out, np.zeros(24_000 * 60, np.int16), 24_000, format='FLAC')
  monkeypatch.setattr(audio_io, 'read', None)
  with pytest.raises(ApiError, match='lasts 60.0 s; the server takes at most 30 s') as found:
    sound_in.from_bytes(out.getvalue(), 'flac', 'file', 30)
  assert found.value.status == 413
