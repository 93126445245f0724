"""User-defined codecs: the class of the docs from a config to rows and back; errors in a class."""

import importlib
import json
import pathlib
import re
import sys

import numpy as np
import pytest

from tests import docs
from tests.audio.signals import babble
from ttt_jax import config as config_lib
from ttt_jax.audio import codec as codecs, io
from ttt_jax.cli import main
from ttt_jax.config import CodecConfig, Config, DataConfig, Source, VocabConfig
from ttt_jax.data import interleave, store
from ttt_jax.data.prepare import prepare
from ttt_jax.errors import UserError
from ttt_jax.tokens.tokenizer import create


@pytest.fixture
def module(tmp_path, monkeypatch):
  """The documentation's class, as a file on the path."""
  block = [text for _, text in docs.blocks('python') if 'class MuLaw' in text][-1]
  (tmp_path / 'mulaw.py').write_text(block)
  monkeypatch.syspath_prepend(tmp_path)
  importlib.invalidate_caches()
  yield tmp_path
  sys.modules.pop('mulaw', None)


def test_the_codec_shown_goes_from_recordings_to_rows_and_back(module):
  for name, seed in (('a', 1), ('b', 2)):
    io.write_wav(module / f'{name}.wav', babble(0.2, 16_000, seed), 16_000)
  lines = [{'audio': f'{name}.wav', 'text': name} for name in 'ab']
  (module / 'train.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  config = Config(codec=CodecConfig('mulaw:MuLaw'), data=DataConfig(
      seq_len=4096, sources=(Source('train.jsonl', task='tts', prompt=''),)))
  manifest = prepare.prepare(config, module)
  assert manifest['vocabulary']['codec'] == 'mulaw'
  codec = codecs.load(module / 'data' / 'codec')
  vocab, rows = store.vocabulary(module / 'data'), store.Rows(module / 'data', 'train')
  found = {}
  for i in range(len(rows)):
    for token in np.split(rows[i].token, np.flatnonzero(np.diff(rows[i].document)) + 1):
      text, spans = interleave.Renderer(vocab, create(VocabConfig())).unrender(token)
      if spans:
        found[text.split()[-1]] = codec.sound(np.concatenate(spans))
  assert set(found) == {'a', 'b'}
  for name, heard in found.items():
    said = io.resample(*io.read(module / f'{name}.wav'), 8000)
    assert len(heard) == len(said)
    np.testing.assert_allclose(heard, said, atol=0.02)


def test_the_command_shown_names_the_class(module):
  words = [words for _, words in docs.command_lines() if 'mulaw:MuLaw' in ' '.join(words)][-1]
  args, overrides = main._parse(words[1:])
  root = pathlib.Path(__file__).parents[2]
  assert codecs.create(config_lib.load(str(root / args.config), overrides).codec).name == 'mulaw'


def test_its_sound_comes_while_its_codes_do(module):
  codec = codecs.create(CodecConfig('mulaw:MuLaw'))
  assert (codec.frame_rate, codec.group, codec.own_devices) == (8000, 1, False)
  codes = codec.encode(babble(3.0, 8000), 8000)
  stream, out = codec.stream(), []
  for start in range(0, len(codes), 5000):
    out.append(stream.push(codes[start:start + 5000]))
  assert sum(map(len, out)) > 0.9 * len(codes)
  out.append(stream.finish())
  np.testing.assert_allclose(np.concatenate(out), codec.decode(codes), atol=1e-6)


class Plain(codecs.Codec):
  """As little as can be; the tests below spoil one thing at a time."""
  name, codebook_size, sample_rate, tokens_per_second = 'plain', 4, 8000, 100

  def encode(self, waveform, rate):
    return np.zeros(3, np.int64)

  def decode(self, codes):
    return np.zeros(80 * len(codes))


def test_what_a_small_class_gets_for_nothing(tmp_path):
  codec = codecs.create(CodecConfig(f'{__name__}:Plain'))
  codec.save(tmp_path)
  again = codecs.load(tmp_path)
  assert isinstance(again, Plain) and again.settings() == {} and again.arrays() == {}
  (codes,) = again.encode_many([(babble(0.1), 22_050)])
  assert codes.dtype == np.int32 and codes.tolist() == [0, 0, 0]
  assert again.sound(codes).dtype == np.float32


class NoDecode(codecs.Codec):
  name, codebook_size, sample_rate, tokens_per_second = 'nodecode', 4, 8000, 100

  def encode(self, waveform, rate):
    return np.zeros(3, np.int64)


def test_a_class_without_a_method_is_named():
  with pytest.raises(UserError, match=r'NoDecode., a class without decode; a codec needs encode'):
    codecs.create(CodecConfig(f'{__name__}:NoDecode'))


class Unsized(Plain):
  codebook_size = property(lambda self: 4)


def test_the_size_of_a_codebook_is_known_before_the_codec_is_created():
  assert codecs.planned_codebook_size(CodecConfig(f'{__name__}:Plain')) == 4
  with pytest.raises(UserError, match='Unsized.*codebook_size is not known before the codec'):
    codecs.planned_codebook_size(CodecConfig(f'{__name__}:Unsized'))


@pytest.mark.parametrize('attribute, value, said', [
    ('name', '', "has name=''; it must be a non-empty string"), ('name', None, 'name=None'),
    ('codebook_size', 0, 'codebook_size=0; it must be an integer from 1'),
    ('codebook_size', 4.0, 'codebook_size=4.0'), ('sample_rate', 8, 'sample_rate=8; .* in Hz'),
    ('sample_rate', '8000', "sample_rate='8000'"), ('tokens_per_second', 0, 'a positive number'),
    ('tokens_per_second', float('nan'), 'a positive number'), ('group', 0, 'group=0'),
    ('silence', (4,), r'silence=\(4,\); it must be a tuple of its codes')])
def test_an_attribute_that_cannot_be_is_named(monkeypatch, attribute, value, said):
  monkeypatch.setattr(Plain, attribute, value)
  with pytest.raises(UserError, match=said) as caught:
    codecs.create(CodecConfig(f'{__name__}:Plain'))
  assert str(caught.value).startswith(f'codec {__name__}:Plain has ')


def test_an_attribute_that_is_missing_is_named(monkeypatch, tmp_path):
  codecs.create(CodecConfig(f'{__name__}:Plain')).save(tmp_path)
  monkeypatch.delattr(Plain, 'tokens_per_second')
  with pytest.raises(UserError, match='has tokens_per_second=None'):
    codecs.load(tmp_path)


@pytest.mark.parametrize('codes, said', [
    (np.zeros(3), r'to float64 \[3\]; its encode must give integers'),
    (np.zeros((2, 2), int), r'int64 \[2, 2\]'), (np.zeros(0, int), 'no codes'),
    ([0, 4], 'the code 4; .* from 0 to 3'), ([-1, 0], 'the code -1'), (None, 'object'),
    ('abc', '<U3')])
def test_invalid_codes_are_reported(monkeypatch, codes, said):
  codec = Plain()
  with pytest.raises(UserError, match=said) as caught:
    codecs.checked(codes, codec, 'x.wav')
  assert str(caught.value).startswith('codec plain encoded x.wav to ')
  monkeypatch.setattr(Plain, 'encode', lambda self, waveform, rate: codes)
  (found,) = codec.encode_many([(babble(0.1), 22_050)])
  assert isinstance(found, UserError) and re.search(said, str(found))


@pytest.mark.parametrize('wave, said', [
    (np.array([0, np.nan]), 'decoded 2 codes to numbers that are not finite'),
    (np.zeros((2, 3), np.float32), r'float32 \[2, 3\]'), (np.zeros(3, np.int16), r'int16 \[3\]')])
def test_invalid_waveforms_are_reported(monkeypatch, wave, said):
  monkeypatch.setattr(Plain, 'decode', lambda self, codes: wave)
  with pytest.raises(UserError, match=said):
    Plain().sound(np.array([0, 1]))
  with pytest.raises(UserError, match=said):
    stream = Plain().stream()
    stream.push(np.array([0, 1]))
