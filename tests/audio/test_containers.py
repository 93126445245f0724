"""Files whose headers do not fit, joined files, parts of files, and files that are not read."""

import io as buffers
import struct

import numpy as np
import pytest
import soundfile

from tests.audio.signals import babble
from ttt_jax.audio import containers, io
from ttt_jax.errors import UserError

RATE = 16_000


def tone(seconds, hertz, rate=RATE):
  return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(
      np.float32)


def encoded(waveform, form='WAV', subtype=None, rate=RATE, **settings):
  """A file's bytes."""
  out = buffers.BytesIO()
  with soundfile.SoundFile(out, 'w', rate, 1 if waveform.ndim == 1 else waveform.shape[1],
                           subtype, format=form, **settings) as file:
    file.write(waveform)
  return out.getvalue()


def pitches(waveform, rate):
  """The loudest frequency of every whole half second, rounded to 10 Hz."""
  size = rate // 2
  return [round(np.abs(np.fft.rfft(waveform[i:i + size] * np.hanning(size))).argmax() * 0.2) * 10
          for i in range(0, len(waveform) - size + 1, size)]


def with_sizes(data, riff, count):
  """A WAV with other numbers in its header."""
  at = data.find(b'data') + 4
  return data[:4] + struct.pack('<I', riff) + data[8:at] + struct.pack('<I', count) + data[at + 4:]


# -- WAV --------------------------------------------------------------------------------------


@pytest.mark.parametrize('riff, count', [
    (0, 0), (0xffffffff, 0xffffffff), (0x7ffff024, 0x7ffff000), (0x7fffffff, 0x7fffffdb),
    (0x80000024, 0x80000000), (0x7fff0024, 0x7fff0000), (16080, 16044), (16036, 16000),
    (4080, 4044), (36, 0), (1044, 1000)])
def test_sizes_that_programs_write_before_they_know_them(riff, count):
  data = encoded(tone(0.5, 500))
  waveform, rate = io.read(with_sizes(data, riff, count))
  assert (len(waveform), rate) == (8000, RATE)
  np.testing.assert_array_equal(waveform, io.read(data)[0])


@pytest.mark.parametrize('behind', [
    b'LIST\x04\0\0\0INFO', b'id3 \x03\0\0\0abc\0', bytes(5000), b'TAG' + bytes(range(125)),
    b'LIST\x04\0\0\0INFO' + bytes(3000)])
def test_what_is_behind_the_samples_of_a_wav_is_no_sound(behind):
  data = encoded(tone(0.5, 500))
  assert len(io.read(data + behind)[0]) == 8000


def test_a_header_of_any_other_form_that_counts_nothing():
  silence = bytes(0x1000)
  data = encoded(tone(0.5, 500))
  junk = data[:12] + b'JUNK' + struct.pack('<I', len(silence)) + silence + data[12:]
  assert len(io.read(with_sizes(junk, 0xff8, 0))[0]) == 8000
  wide = encoded(tone(0.5, 500), 'RF64')
  at = wide.find(b'ds64')
  assert wide[:4] == b'RF64' and len(io.read(wide)[0]) == 8000
  for count in (0, 2**64 - 1):
    assert len(io.read(wide[:at + 16] + struct.pack('<Q', count) + wide[at + 24:])[0]) == 8000
  big = encoded(tone(0.5, 500), 'WAV', endian='BIG')
  assert big[:4] == b'RIFX' and len(io.read(big)[0]) == 8000


def test_a_wav_that_is_less_than_it_announces_is_truncated():
  data = encoded(tone(0.5, 500))
  for piece in (data[:-100], data[:8000], data[:100], with_sizes(data, 36 + 2**30, 2**30)):
    with pytest.raises(UserError, match='is truncated: it has .* bytes of samples'):
      io.read(piece)


# -- several streams ----------------------------------------------------------------------------


@pytest.mark.parametrize('form, subtype', [
    ('WAV', 'PCM_16'), ('FLAC', 'PCM_16'), ('OGG', 'VORBIS'), ('OGG', 'OPUS'),
    ('MP3', 'MPEG_LAYER_III')])
def test_joined_files_are_read_to_the_end(form, subtype):
  one = encoded(tone(1, 500), form, subtype)
  other = encoded(tone(2, 1000), form, subtype)
  waveform, rate = io.read(one + other)
  assert len(waveform) == 3 * rate
  assert pitches(waveform, rate) == [500] * 2 + [1000] * 4
  waveform, rate = io.read(one + other, offset=0.5, duration=1)
  assert len(waveform) == rate and pitches(waveform, rate) == [500, 1000]
  # Another rate and another number of channels: the first one's rate.
  waveform, own = io.read(one + encoded(np.stack(2 * [tone(1, 1000, 48_000)], 1), form, subtype,
                                        48_000))
  assert own == rate and pitches(waveform, rate) == [500] * 2 + [1000] * 2
  with pytest.raises(UserError, match='truncated|damaged|lost sync'):
    io.read(one + other[:len(other) // 2])


def mp3(seconds, hertz, mode='CONSTANT', rate=RATE):
  return encoded(tone(seconds, hertz, rate), 'MP3', None, rate, bitrate_mode=mode,
                 compression_level=0.5)


def without_count(data):
  tag = max(data.find(b'Xing'), data.find(b'Info'))
  assert 0 < tag < 200
  return data[:tag] + bytes(4) + data[tag + 4:]


@pytest.mark.parametrize('join', [
    lambda a, b: a + without_count(b), lambda a, b: without_count(a) + b,
    lambda a, b: without_count(a) + without_count(b),
    lambda a, b: a + b'TAG' + bytes(125) + b'ID3\4\0\0\0\0\1\0' + bytes(128) + b,
    lambda a, b: a + bytes(1000) + b'\xff\xfb' + bytes(77) + b])
def test_an_mp3_of_pieces_whatever_they_count(join):
  waveform, rate = io.read(join(mp3(1, 500), mp3(2, 1000)))
  found = pitches(waveform, rate)
  assert 3 <= len(waveform) / rate < 3.4
  assert found.count(500) in (2, 3) and found.count(1000) in (3, 4)


@pytest.mark.parametrize('rate', [8_000, 16_000, 44_100])
@pytest.mark.parametrize('mode', ['CONSTANT', 'VARIABLE'])
def test_an_mp3_that_does_not_count_its_frames_or_counts_wrongly(rate, mode):
  data = encoded(babble(3.0, rate), 'MP3', None, rate, bitrate_mode=mode, compression_level=0.5)
  tag = max(data.find(b'Xing'), data.find(b'Info'))
  bare = without_count(data)
  lies = data[:tag + 8] + struct.pack('>I', 5) + data[tag + 12:]
  for one in (bare, b'ID3\4\0\0\0\0\1\0' + bytes(128) + bare + b'TAG' + bytes(125), lies):
    assert 3 * rate <= len(io.read(one)[0]) <= 3 * rate + 5000
  with pytest.raises(UserError, match='truncated: its last MP3 frame is incomplete'):
    io.read(bare[:len(bare) // 2 + 7])
  with pytest.raises(UserError, match='truncated: it has .* MP3 frames, but announces'):
    io.read(data[:len(data) // 2 + 7])


def pages(data):
  """Where the pages of an OGG file start."""
  out, at = [], 0
  while at < len(data):
    out.append(at)
    at += 27 + data[at + 26] + sum(data[at + 27:at + 27 + data[at + 26]])
  return out


@pytest.mark.parametrize('subtype', ['VORBIS', 'OPUS'])
def test_an_ogg_without_an_end_mark_is_read_up_to_its_last_page(subtype):
  data = encoded(babble(8.0, RATE), 'OGG', subtype)
  starts = pages(data)
  assert len(starts) > 4
  waveform, rate = io.read(data)
  ended = containers._ended(data, [starts[-1]])
  assert ended == data, 'it has the mark, and the right checksum'
  last = starts[-1]
  unmarked = bytearray(data)
  unmarked[last + 5] &= ~4
  unmarked[last + 22:last + 26] = bytes(4)
  unmarked[last + 22:last + 26] = containers._checksum(bytes(unmarked[last:])).to_bytes(4, 'little')
  np.testing.assert_array_equal(io.read(bytes(unmarked))[0], waveform)
  shorter = io.read(data[:last])[0]  # what a recorder wrote before it was interrupted
  assert 0.5 * len(waveform) < len(shorter) < len(waveform)
  np.testing.assert_allclose(shorter[:-2000], waveform[:len(shorter) - 2000], atol=1e-3)
  for stop in (len(data) - 1, last + 10, last + 27):
    with pytest.raises(UserError, match='truncated: its last OGG page'):
      io.read(data[:stop])
  for holed in (data[:starts[3]] + data[starts[4]:], data[:starts[3]] + bytes(100) +
                data[starts[4]:]):
    with pytest.raises(UserError, match='damaged: OGG pages are missing'):
      io.read(holed)
  flipped = bytearray(data)
  flipped[starts[3] + 100] ^= 1
  with pytest.raises(UserError, match='damaged: its OGG page at byte .* wrong checksum'):
    io.read(bytes(flipped))
  assert len(io.read(data + bytes(100))[0]) == len(waveform)


def test_a_flac_that_does_not_know_its_length():
  data = bytearray(encoded(babble(2.0, RATE), 'FLAC'))
  whole = io.read(bytes(data))[0]
  data[21] &= 0xf0
  data[22:26] = bytes(4)
  try:
    waveform = io.read(bytes(data))[0]
  except UserError as error:
    assert 'FLAC' in str(error)
  else:
    np.testing.assert_array_equal(waveform, whole)


@pytest.mark.parametrize('form', ['AIFF', 'AU', 'W64', 'RF64', 'CAF'])
def test_other_formats_that_the_decoder_knows(form):
  data = encoded(tone(0.5, 500), form)
  waveform, rate = io.read(data)
  assert len(waveform) == 8000 and pitches(waveform, rate) == [500]
  if form != 'CAF':
    with pytest.raises(UserError, match='truncated'):
      io.read(data[:8000])


# -- parts ------------------------------------------------------------------------------------


def test_a_flac_of_a_pipe_does_not_know_its_length():
  data = encoded(tone(1, 500), 'FLAC')
  piped = data[:21] + bytes([data[21] & 0xf0]) + bytes(4) + data[26:]
  np.testing.assert_array_equal(io.read(piped)[0], io.read(data)[0])
  np.testing.assert_array_equal(io.read(piped, 0.5, 0.25)[0], io.read(data, 0.5, 0.25)[0])
  with pytest.raises(UserError):
    io.read(piped[:len(piped) // 2])


@pytest.mark.parametrize('form, subtype', [
    ('WAV', 'PCM_16'), ('FLAC', 'PCM_16'), ('OGG', 'VORBIS'), ('OGG', 'OPUS'),
    ('MP3', 'MPEG_LAYER_III')])
def test_a_part_is_that_stretch_of_the_whole(form, subtype):
  data = encoded(np.concatenate([tone(1, 500), tone(1, 1000), tone(1, 2000)]), form, subtype)
  whole, rate = io.read(data)
  for offset, duration in ((0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (1.25, None), (0.5, 0.01)):
    part, own = io.read(data, offset, duration)
    first = round(offset * rate)
    last = len(whole) if duration is None else round((offset + duration) * rate)
    assert own == rate and len(part) == last - first
    np.testing.assert_allclose(part, whole[first:last], atol=1e-3 if subtype == 'OPUS' else 1e-6)


@pytest.mark.parametrize('offset, duration', [
    (0.0, 1.2), (1.0, None), (5.0, 0.9), (0.9, 0.3), (-0.1, 0.5), (0.5, 0.0), (0.5, -0.1),
    (float('nan'), None), (0.0, float('nan')), (0.0, float('inf'))])
@pytest.mark.parametrize('form', ['WAV', 'MP3'])
def test_a_part_that_is_not_in_the_file(form, offset, duration):
  with pytest.raises(UserError, match='recording x lasts 1 s; there is no part from '):
    io.read(encoded(tone(1, 500), form), offset, duration, name='x')


def test_a_file_that_is_the_part_is_read_as_a_whole():
  sound = encoded(tone(1, 500), 'WAV')
  np.testing.assert_array_equal(io.read(sound, 5.0, 1.02)[0], io.read(sound)[0])


def test_a_rounded_end_is_the_end():
  data = encoded(tone(1, 500))
  assert len(io.read(data, 0.5, 0.55)[0]) == 8000 and len(io.read(data, 0.0, 1.004)[0]) == 16000


@pytest.mark.parametrize('form', ['WAV', 'FLAC', 'OGG', 'MP3'])
def test_a_channel_is_read_alone(form):
  data = encoded(np.stack([tone(1, 500), tone(1, 1000)], 1), form)
  for channel, hertz in ((0, 500), (1, 1000)):
    waveform, rate = io.read(data, channel=channel)
    assert waveform.shape == (rate,) and pitches(waveform, rate) == [hertz] * 2
    assert pitches(io.read(data, 0.5, None, channel)[0], rate) == [hertz]
  with pytest.raises(UserError, match='has 2 channels, numbered from 0; there is no channel 2'):
    io.read(data, channel=2)


# -- cost and other files -----------------------------------------------------------------------


def test_a_recording_that_is_too_long_is_not_decoded_into_memory(monkeypatch):
  monkeypatch.setattr(io, 'LONGEST', 20_000)
  data = encoded(tone(2, 500), 'FLAC')
  with pytest.raises(UserError, match='more than 20,000 samples .* split it, or name parts'):
    io.read(data)
  assert len(io.read(data, 1.0)[0]) == 16_000
  with pytest.raises(UserError, match='more than 20,000 samples'):
    io.read(2 * encoded(tone(0.7, 500)))
  monkeypatch.setattr(containers, 'BIGGEST', 100)
  with pytest.raises(UserError, match='are read up to 100; split it'):
    io.read(data)


@pytest.mark.parametrize('head, sentence', [
    (b'\0\0\0\x20ftypM4A ', 'is an MP4 or M4A file .*ffmpeg'), (b'\xff\xf1\x50\x80', 'an AAC file'),
    (b'\x1aE\xdf\xa3', 'WebM'), (b'#!AMR\n', 'AMR'), (b'\x30\x26\xb2\x75', 'WMA'),
    (b'version https://git-lfs.github.com/spec/v1\n', 'pointer of Git LFS.*git lfs pull'),
    (b'<!DOCTYPE html><html>', 'web page'), (b'\n<html lang=en>', 'web page'),
    (b'\x1f\x8b\x08', 'gzip'), (b'PK\x03\x04', 'ZIP'), (b'', 'cannot be read as WAV, FLAC'),
    (b'hello', 'cannot be read as WAV, FLAC'), (b'RIFF', 'cannot be read'),
    (b'RIFF\0\0\0\0WAVE', 'cannot be read'), (b'OggS', 'truncated'), (b'fLaC', 'cannot be read'),
    (b'ID3', 'cannot be read'), (b'ID3\4\0\0\x7f\x7f\x7f\x7f', 'cannot be read'),
    (b'\xff\xfb\x90\x64', 'truncated')])
def test_a_file_that_is_not_read_is_named(tmp_path, head, sentence):
  path = tmp_path / 'a.raw'  # a name from which soundfile would guess a format
  for data in (head, head + bytes(1000)) if head and sentence != 'truncated' else (head,):
    path.write_bytes(data)
    for source in (path, data):
      with pytest.raises(UserError, match=sentence) as caught:
        io.read(source)
      assert len(str(caught.value).replace(str(tmp_path), '')) < 200


def test_names_of_any_bytes_and_things_that_are_no_files(tmp_path):
  import os
  path = os.fsdecode(os.fsencode(tmp_path) + b'/caf\xe9.wav')
  with open(path, 'wb') as file:
    file.write(encoded(tone(0.5, 500)))
  assert len(io.read(path)[0]) == 8000
  for name in ('b\0.wav', 'x' * 5000, 'gone.wav'):
    with pytest.raises(UserError, match='does not exist'):
      io.read(f'{tmp_path}/{name}')
  with pytest.raises(UserError, match='is a folder'):
    io.read(tmp_path)


def test_any_damage_is_a_sentence_or_sound():
  rng = np.random.default_rng(0)
  waveform = babble(0.5, RATE)
  for form, subtype in (('WAV', None), ('RF64', None), ('FLAC', None), ('OGG', 'VORBIS'),
                        ('OGG', 'OPUS'), ('MP3', None), ('AIFF', None), ('AU', None)):
    data = encoded(waveform, form, subtype)
    for _ in range(40):
      broken = bytearray(data)
      for _ in range(rng.integers(1, 6)):
        at = rng.integers(min(200, len(data))) if rng.random() < 0.7 else rng.integers(len(data))
        broken[at] = rng.choice([0, 1, 0x7f, 0x80, 0xff, rng.integers(256)])
      try:
        found, rate = io.read(bytes(broken[:rng.integers(len(data))] if rng.random() < 0.3
                                    else broken))
      except UserError:
        continue
      assert found.ndim == 1 and len(found) and np.isfinite(found).all()


@pytest.mark.parametrize('name, data', [
    ('streams', 11_000 * encoded(tone(0.001, 500))), ('chunks', b'RIFF\0\0\0\0WAVE' + 20_000 * (
        b'JUNK' + bytes(4))), ('MP3', b'\xff\xfb\x90\x64' + bytes(413) + b'\xff\xfb\x90' * 50_000)])
def test_a_file_of_very_many_pieces_has_a_bounded_cost(monkeypatch, name, data):
  monkeypatch.setattr(containers, '_NOISE', 10_000)
  with pytest.raises(UserError, match=f'{name}|more than 10,000|cannot be read|decoded'):
    io.read(data)
