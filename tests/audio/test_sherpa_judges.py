"""Recognisers of sherpa-onnx, on small models in the published forms."""

import numpy as np
import pytest

from tests.audio import onnx_models
from ttt_jax.audio import asr_judges
from ttt_jax.errors import UserError
from ttt_jax.storage import files

pytest.importorskip('sherpa_onnx')
RATE = 16_000


def sound(low, rate=RATE):
  """A chord of low or high tones that fades in and out, with silence after it."""
  time = np.arange(round(0.4 * rate)) / rate
  hertz = (0 if low else 3000) + 110 * np.arange(1, 9 if low else 30)
  wave = 0.05 * np.sin(2 * np.pi * hertz[:, None] * time).sum(0) * np.hanning(len(time))
  return np.concatenate([wave, np.zeros(rate // 4)]).astype(np.float32)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return onnx_models.tones(tmp_path_factory.mktemp('zipformer'))


def test_sounds_are_recognised_in_batches(folder):
  judge = asr_judges.create('zipformer', str(folder))
  low, high = sound(True), sound(False)
  sounds = [(low, RATE), (np.zeros(RATE, np.float32), RATE), (np.concatenate([high, low]), RATE),
            (sound(True, 22_050), 22_050), (np.zeros(0, np.float32), RATE)] * 8
  assert judge.transcribe_all(sounds) == ['LOW', '', 'HIGH LOW', 'LOW', ''] * 8
  assert judge.transcribe(high, RATE) == 'HIGH'
  about = judge.describe()
  assert about['judge'] == 'zipformer' and about['model'] == str(folder)
  assert about['files']['model.onnx']['sha256'] == files.sha256(folder / 'model.onnx')


def test_the_precise_one_of_two_files_is_used(folder, tmp_path):
  other = onnx_models.tones(tmp_path / 'both')
  (other / 'model.onnx').rename(other / 'model-epoch-9.int8.onnx')
  judge = asr_judges.create('zipformer', str(other))
  assert 'model-epoch-9.int8.onnx' in judge.describe()['files']
  onnx_models.tones(other)
  assert 'model.onnx' in asr_judges.create('zipformer', str(other)).describe()['files']


def test_sense_voice_is_told_the_language(tmp_path):
  judge = asr_judges.create('sense_voice', str(onnx_models.sense_voice(tmp_path)))
  sounds = [(np.concatenate([sound(False), sound(True)]), RATE), (sound(True), RATE)]
  assert judge.transcribe_all(sounds) == ['HIGH LOW', 'LOW']
  assert judge.transcribe_all(sounds, 'en') == ['HIGH LOW', 'LOW']
  with pytest.raises(UserError, match="does not recognise the language 'fr'.*'zh', 'en', 'ja'"):
    judge.transcribe_all(sounds, 'fr')


@pytest.mark.parametrize('name, damage, sentence', [
    ('zipformer', lambda at: (at / 'tokens.txt').unlink(), r'has no tokens\.txt; expected'),
    ('zipformer', lambda at: (at / 'model.onnx').unlink(), r'has no model\*\.onnx'),
    ('zipformer', lambda at: (at / 'model.onnx').write_bytes(b'onnx?'), 'cannot be read as'),
    ('zipformer', lambda at: (at / 'encoder.onnx').write_bytes(b''), r'has no decoder\*\.onnx'),
    ('zipformer', lambda at: (at / 'tokens.txt').write_text('LOW\n'), r'tokens\.txt, line 1: '
     "'LOW' is not a token and its number"),
    ('zipformer', lambda at: (at / 'tokens.txt').write_text(''), r'tokens\.txt is empty'),
    ('paraformer', lambda at: None, "no metadata 'vocab_size'; this is not a paraformer model"),
    ('sense_voice', lambda at: None, "no metadata 'vocab_size'; this is not a sense_voice model"),
])
def test_a_folder_of_another_form_is_a_sentence(tmp_path, name, damage, sentence):
  damage(onnx_models.tones(tmp_path / 'model'))
  with pytest.raises(UserError, match=sentence):
    asr_judges.create(name, str(tmp_path / 'model'))


def test_no_model_is_downloaded(tmp_path):
  with pytest.raises(UserError, match="'paraformer' has no model: set config key evaluate.judge"):
    asr_judges.create('paraformer')
  with pytest.raises(UserError, match='which is not a folder; expected one of sherpa-onnx'):
    asr_judges.create('sense_voice', str(tmp_path / 'nowhere'))
