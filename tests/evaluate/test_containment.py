"""Which texts contain which answers."""

import pytest

from ttt_jax.evaluate import containment


@pytest.mark.parametrize('text, reference', [
    ('The capital of France is Paris.', 'Paris'),
    ('There are 24 hours in a day.', 'Twenty-four'),
    ('one hundred and ninety-three members', '193'),
    ('It has 1,000,000 people', 'one million'),
    ('in nineteen sixty nine', '1969'),
    ('He was born in 1805.', 'eighteen hundred and five'),
    ('Beyonce Knowles', 'Beyoncé'),
    ('Beatles', 'The Beatles'),
    ('the rock band queen', 'Queen'),
    ("Bahaullah founded it", "Baha'u'llah"),
    ('答案是北京。', '北京'),
    ('pi is 3.14', '3.14'),
    ('vitamin A', 'A'),
    ('fourteen', '14'),
    ('two thousand', 'Two thousands'),
    ('The answer is 3.14.', 'three point one four'),
    ("It's the U.S.A.", 'USA'),
    ('a U.S. city', 'US'),
    ('J. K. Rowling wrote it', 'JK Rowling'),
    ('j k rowling', 'J.K. Rowling'),
    ('Plan B. I think', 'plan b'),
    ('It is B. C is wrong', 'B'),
])
def test_contained(text, reference):
  assert containment.contains(text, reference)


@pytest.mark.parametrize('text, reference', [
    ('25', 'five'), ('1969', '19'), ('twenty-five', '5'), ('Parisian', 'Paris'),
    ('Vincent Gogh', 'Vincent van Gogh'), ('', 'Paris'), ('anything', '...'), ('3.14', '3'),
    ('six zero', '60'), ('nineteen', '9'), ('vitamin C', 'A'),
])
def test_not_contained(text, reference):
  assert not containment.contains(text, reference)


@pytest.mark.parametrize('text, words', [
    ('one two three', '1 2 3'), ('five hundred thousand', '500000'), ('two and two', '2 AND 2'),
    ('twenty twenty four', '2024'), ('nineteen hundred', '1900'), ('two hundred. Five', '200 5'),
    ('a', 'A'), ('ten or twenty', '10 OR 20'), ('zero', '0'),
    ('one million two hundred thousand and six', '1200006')])
def test_numbers_are_one_word(text, words):
  assert containment.reduced(text) == words


def test_one_alias_is_enough():
  assert containment.contains_any('It is NYC', ('New York', 'nyc'))
  assert not containment.contains_any('It is York', ('New York', 'nyc'))
