"""Quality of speech and similarity of speakers."""

import numpy as np
import pytest

from tests.audio import onnx_models
from tests.audio.signals import babble
from ttt_jax.audio import quality
from ttt_jax.errors import UserError

RATE = 16_000
BABBLE = {'ovrl': 1.46306, 'sig': 1.62216, 'bak': 3.38145, 'p808': 2.46775}


def tone(*hertz):
  time = np.arange(RATE) / RATE
  return sum(0.2 * np.sin(2 * np.pi * one * time) for one in hertz).astype(np.float32)


@pytest.fixture(scope='module')
def dnsmos():
  pytest.importorskip('speechmos')
  return quality.DnsMos()


def test_dnsmos_is_that_of_speechmos(dnsmos):
  # Pinned: speechmos.dnsmos.run(waveform, 16000) of version 0.0.1.1 with librosa 0.11. The sound
  # has one window; another mel spectrogram or scale changes the first or second decimal.
  found = dnsmos.score(babble(9.5, RATE), RATE)
  assert found == pytest.approx(BABBLE, abs=2e-4)


def test_windows_are_those_of_speechmos():
  expected = ((9.01, 1), (10.0, 1), (10.5, 1), (11.01, 2), (4.6, 1), (1.2, 1), (1.9, 6))
  for seconds, count in expected:
    found = quality._windows(np.arange(round(seconds * RATE), dtype=np.float32))
    assert found.shape == (count, 144_160)
    assert (found[:, 0] == RATE * np.arange(count) % round(seconds * RATE)).all()


def test_no_sound_has_no_score(dnsmos):
  assert dnsmos.score_all([(np.zeros(0, np.float32), RATE)]) == [None]
  about = dnsmos.describe()
  assert about['model'].startswith('speechmos ') and set(about['files']) == {
      'sig_bak_ovr.onnx', 'model_v8.onnx'}


def test_a_folder_without_dnsmos_is_a_sentence(tmp_path):
  pytest.importorskip('onnxruntime')
  with pytest.raises(UserError, match='evaluate.dnsmos is .* there is no file .*sig_bak_ovr.onnx'):
    quality.DnsMos(str(tmp_path))
  (tmp_path / 'sig_bak_ovr.onnx').write_bytes(b'no model')
  with pytest.raises(UserError, match='cannot be read as an ONNX model'):
    quality.DnsMos(str(tmp_path))
  onnx_models.spectrum(tmp_path / 'sig_bak_ovr.onnx')
  with pytest.raises(UserError, match=r'takes inputs of shape .* expected \[N, 144160\]'):
    quality.DnsMos(str(tmp_path))


def test_similarity_is_the_cosine_of_embeddings(tmp_path):
  pytest.importorskip('onnxruntime')
  speaker = quality.Speaker(str(onnx_models.spectrum(tmp_path / 'speaker.onnx')))
  one, other = (tone(200, 320), RATE), (tone(819.2), RATE)
  assert speaker.similarity(one, (0.5 * one[0], RATE)) == pytest.approx(1, abs=1e-4)
  assert speaker.similarity(one, other) < 0.1
  assert 0.5 < speaker.similarity(one, (tone(200), RATE)) < 0.9
  assert np.linalg.norm(speaker.embed(*one)) == pytest.approx(1)


def test_models_of_sherpa_onnx_hear_features(tmp_path):
  pytest.importorskip('sherpa_onnx')
  speaker = quality.Speaker(str(onnx_models.voices(tmp_path / 'speaker.onnx')))
  low, high = (tone(200, 320, 440), RATE), (tone(3000, 4000, 5000), RATE)
  assert speaker.embed(*low).shape == (80,)
  assert speaker.similarity(low, low) == pytest.approx(1)
  assert speaker.similarity(low, high) < 0.99
  assert speaker.similarity(low, (np.zeros(40, np.float32), RATE)) == 0  # too short for a feature


@pytest.mark.parametrize('form, sentence', [
    ('none', 'which is not a file; expected an ONNX model of speaker embeddings'),
    ('voices', "has no metadata 'language' of sherpa-onnx"),
    ('asr', r'has the inputs x \[.*\], x_lens .* and no metadata of sherpa-onnx')])
def test_another_model_is_a_sentence(tmp_path, form, sentence):
  pytest.importorskip('onnxruntime')
  path = onnx_models.tones(tmp_path) / ('model.onnx' if form == 'asr' else 'nothing.onnx')
  if form == 'voices':
    onnx_models.voices(path, language='')
  with pytest.raises(UserError, match=sentence):
    quality.Speaker(str(path))
