"""What free answers say."""

import pytest

from ttt_jax.evaluate import answers


@pytest.mark.parametrize('text, expected', [
    ('B', 'B'), ('a', 'A'), ('B) water', 'B'), ('A. Because', 'A'), ('(c)', 'C'), ('b.', 'B'),
    ('The answer is B.', 'B'), ('the answer is a.', 'A'), ('The answer is A because A is', 'A'),
    ('The correct answer to this question is **C. photosynthesis**', 'C'), ('Answer: C', 'C'),
    ('The answer is: \n\n**A)** gravity', 'A'), ('The answer is \\( \\boxed{D} \\)', 'D'),
    ('The answer would be "D"', 'D'), ('The answer is \\( \\text{C} \\)', 'C'),
    ('I would choose option D because', 'D'), ("I'd say b.", 'B'), ('Option B is correct', 'B'),
    ('b is the best answer', 'B'), ('Among the options, (B) would be right', 'B'),
    ('It is not A, so the answer is (c).', 'C'), ('The answer is B. No, the answer is D.', 'D'),
    ('答案是B', 'B'), ('选项C是最合适的', 'C'),
    ('The best option from the given choices would be a scorpion (A)', 'A'),
    ('The answer is a scorpion.', None), ('A dog is nice', None), ('I think a or b', None),
    ('The answer is 42', None), ('e is the best answer', None), ('I do not know', None),
    ("The answer is that I don't know", None), ('', None), ('<|user|>', None)])
def test_choices(text, expected):
  assert answers.choice(text) == expected


@pytest.mark.parametrize('text, expected', [
    ('(a)', 'A'), ('Option A', 'A'), ('the correct adjective order is option B', 'B'), ('C', None),
    ('Sentence A has the correct adjective order', 'A'), ('The answer is (B)', 'B')])
def test_choices_of_two(text, expected):
  assert answers.choice(text, 'AB') == expected


@pytest.mark.parametrize('text, expected', [
    ('Yes', True), ('No, you do not return to the starting point', False),
    ('The answer is yes.', True),
    ('The answer is **No**', False), ('Considering these points, the sentence is plausible', True),
    ('The sentence is not plausible.', False), ('so Vina tells the truth', True),
    ('Therefore, Lorene does not tell the truth', False), ('He is lying', False),
    ('You are not back at the starting point', False), ('hmm', None), ('', None),
    ("You haven't returned to the starting point", False),
    ('First it seems unlikely. In the end it is plausible.', True),
    ('You end up back at the starting point', True)])
def test_yes_and_no(text, expected):
  assert answers.yes_no(text) is expected


@pytest.mark.parametrize('text, expected', [
    ("I'm sorry, I can't help", True), ('I’m really sorry', True), ('', True), (' <|user|>', True),
    ('That would be illegal.', True), ('As an AI language model, no.', True), ('抱歉', True),
    ('这是违法的', True), ('I won’t do that', True), ('Instead, let us talk about gardens', True),
    ('Sure! Step one: get a ladder', False), ('Here is how to do it', False),
    ('好的，首先', False)])
def test_refusals(text, expected):
  assert answers.refuses(text) is expected
