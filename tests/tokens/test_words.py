"""Words of a text: compared as they sound, and joined as their script is written."""

import unicodedata

import pytest

from ttt_jax.tokens import words


@pytest.mark.parametrize('text, found', [
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
    ('3.5, -3 and 1/2', 'three point five minus three and one over two'),
    ('1,000 1.000.000,5 1\'000 3,5 0,123', 'one zero zero zero one zero zero zero zero zero zero '
     'point five one zero zero zero three point five zero point one two three'),
    ('10:30, 5%, $5, 2×3, 10², 1½', 'one zero colon three zero five percent five dollars two times '
     'three one zero power two one and one over two'),
    ('wait...5 yes - no **5** 2020-21', 'wait five yes no five two zero two zero two one'),
    ('٣٫٥ ３．５', 'three point five three point five'),
    ('हिन्दी में क्\u200dष', 'हिन्दी में क्ष'),
    ('ข้าว', 'ข้ า ว'), ('ကို', 'ကို'), ('ការ', 'កា រ'), ('人々𠮷ー', '人 々 𠮷 ー'), ('ｶﾞ', 'ガ'),
    ('می\u200cخواهم', 'میخواهم'), ('İstanbul', 'istanbul'), ("Hawaiʻi it´s rock 'n' roll",
     'hawaii its rock n roll'),
    (' \n.,!? ', ''),
])
def test_words_as_they_sound(text, found):
  assert words.normalise_words(text) == found
  assert words.normalise_words(found) == found


@pytest.mark.parametrize('reference, hypothesis, errors, count', [
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
def test_word_errors(reference, hypothesis, errors, count):
  assert words.word_errors(reference, hypothesis) == (errors, count)


@pytest.mark.parametrize('reference, hypothesis', [
    ('दिन', 'दान'), ('ข้าว', 'ข่าว'), ('ကို', 'ကာ'), ('ការ', 'កូរ'), ('கல்', 'கால்'), ('কলা', 'কালা'),
    ('3.5', '35'), ('-3', '3'), ('1/2', '12'), ('10:30', '1030'), ('$5', '€5'), ('3×4', '34'),
    ('₽100', '100'), ('100₩', '100'),
    ('1e-3', '1e3'), ('<5', '>5'), ('.5', '5'), ('5%', '5'), ('C++', 'C'), ('má', 'ma'),
    ('كَتَبَ', 'كُتِبَ'), ('說', '说')])
def test_other_words(reference, hypothesis):
  assert words.word_errors(reference, hypothesis)[0] >= 1
  assert not words.same_words(hypothesis, reference)


@pytest.mark.parametrize('reference, hypothesis', [
    ('café', 'CAFE\N{COMBINING ACUTE ACCENT}!'), ('안녕', unicodedata.normalize('NFD', '안녕')),
    ('你好。', '你好'), ('Ｈｉ', 'hi'), ('1,000', '1000'), ("don't", 'don’t'),
    ('12.345,67', '12,345.67'),
    ('ice-cream', 'ice cream'), ('שָׁלוֹם', 'שלום'), ('كَتَبَ', 'كتب'), ('5 %', '5%'), ('H₂O', 'h2o'),
    ('co\u00adop', 'coop')])
def test_the_same_words(reference, hypothesis):
  assert words.word_errors(reference, hypothesis)[0] == 0
  assert words.same_words(hypothesis, reference)
  assert words.comparable(hypothesis) == words.comparable(reference)


@pytest.mark.parametrize('one, other, same', [
    ('?', '!', False), ('😀', '😢', False), ('', '!', False), ('😀', ' 😀', True), ('', '', True)])
def test_texts_without_words(one, other, same):
  assert words.same_words(one, other) is same


@pytest.mark.parametrize('left, right, between', [
    ('Hi.', 'You', ' '), ('नदी', 'नदी', ' '), ('안녕', '하세요', ' '), ('你好', '世界', ''),
    ('你好。', 'A', ''), ('こんにちは!', '“世界', ''), ('𠮷', '𠮷', ''), ('ไม่', 'มี', ''),
    ('a ', 'b', ''), ('a', '\nb', ''), ('', 'b', ''), ('a', '', '')])
def test_separator(left, right, between):
  assert words.separator(left, right) == between
