"""Instructions that a program checks: an answer that follows each, and one that does not."""

import pytest

from ttt_jax.errors import UserError
from ttt_jax.evaluate import ifeval

ONE, TWO = 'A first part.', 'Then another one!'
CASES = [
    ('keywords:existence', {'keywords': ['dog', 'Cat']}, 'Dogs and cats.', 'Dogs.'),
    ('keywords:frequency', {'keyword': 'dog', 'frequency': 2, 'relation': 'at least'}, 'dog Dog',
     'dog'),
    ('keywords:forbidden_words', {'forbidden_words': ['cat']}, 'A category.', 'A cat.'),
    ('keywords:letter_frequency', {'letter': 'e', 'let_frequency': 2, 'let_relation': 'less than'},
     'One.', 'Eve.'),
    ('language:response_language', {'language': 'de'}, 'Das ist nicht der Hund.',
     'This is the dog.'),
    ('language:response_language', {'language': 'hi'}, 'यह एक कुत्ता है', 'This is a dog.'),
    ('language:response_language', {'language': 'en'}, 'This is the dog.',
     'C’est le chien des rois.'),
    ('length_constraints:number_sentences', {'num_sentences': 2, 'relation': 'at least'},
     f'{ONE} {TWO}', 'It costs 3.5 dollars.'),
    ('length_constraints:number_paragraphs', {'num_paragraphs': 2}, f'{ONE}\n***\n{TWO}', ONE),
    ('length_constraints:number_words', {'num_words': 4, 'relation': 'less than'}, ONE,
     f'{ONE} {TWO}'),
    ('length_constraints:nth_paragraph_first_word',
     {'num_paragraphs': 2, 'nth_paragraph': 2, 'first_word': 'then'}, f'{ONE}\n\n{TWO}',
     f'{TWO}\n\n{ONE}'),
    ('detectable_content:number_placeholders', {'num_placeholders': 1}, 'Dear [name],', 'Dear,'),
    ('detectable_content:postscript', {'postscript_marker': 'P.S.'}, 'Bye. P. S. More.', 'Bye.'),
    ('detectable_format:number_bullet_lists', {'num_bullets': 2}, '* a\n* b', '* a\n- b\n* c'),
    ('detectable_format:constrained_response', {}, 'My answer is no.', 'No.'),
    ('detectable_format:number_highlighted_sections', {'num_highlights': 1}, 'A *word*.',
     'A word.'),
    ('detectable_format:multiple_sections', {'section_spliter': 'Section', 'num_sections': 2},
     'Section 1\na\nSection 2\nb', 'Section 1\na'),
    ('detectable_format:json_format', {}, '```json\n{"a": 1}\n```', '{a: 1}'),
    ('detectable_format:title', {}, '<<A title>>\nText', '<< >>\nText'),
    ('combination:two_responses', {}, f'{ONE}\n******\n{TWO}', f'{ONE}\n******\n{ONE}'),
    ('combination:repeat_prompt', {'prompt_to_repeat': 'Say hi'}, 'say hi: hi', 'hi'),
    ('startend:end_checker', {'end_phrase': 'Any other questions?'}, 'Hm. any other questions?',
     ONE),
    ('change_case:capital_word_frequency', {'capital_frequency': 1, 'capital_relation': 'at least'},
     'It is BIG.', 'It is big.'),
    ('change_case:english_capital', {}, 'THIS IS THE DOG.', 'This is the dog.'),
    ('change_case:english_lowercase', {}, 'this is the dog.', 'das ist nicht der hund.'),
    ('punctuation:no_comma', {}, ONE, 'Yes, it is.'),
    ('startend:quotation', {}, f'"{ONE}"', ONE),
]


def row(*pairs):
  """A row as in a Parquet file: every object has the arguments of all checks."""
  unused = dict.fromkeys(['keywords', 'relation', 'num_words', 'language', 'first_word'])
  return {'instruction_id_list': [name for name, _ in pairs],
          'kwargs': [unused | arguments for _, arguments in pairs]}


def test_every_instruction_has_a_case():
  assert {name for name, *_ in CASES} == set(ifeval.CHECKS)


@pytest.mark.parametrize('name, arguments, good, bad', CASES)
def test_instructions(name, arguments, good, bad):
  given = ifeval.instructions(row((name, arguments)), 'x:1')
  assert ifeval.followed(given, good) == ([True], [True])
  assert ifeval.followed(given, bad)[0] == [False]
  assert ifeval.followed(given, '') == ([False], [False])


def test_the_loose_check_leaves_out_an_opening_line():
  given = ifeval.instructions(row(('startend:quotation', {}), ('punctuation:no_comma', {})), 'x:1')
  assert ifeval.followed(given, 'Sure, here it is:\n"Hello."') == ([False, False], [True, True])


@pytest.mark.parametrize('value, sentence', [
    ({'instruction_id_list': ['a:b'], 'kwargs': [{}]}, "x:1: the instruction 'a:b' is not known"),
    ({'instruction_id_list': ['punctuation:no_comma']}, 'x:1: a row of IFEval needs'),
    ({'instruction_id_list': ['punctuation:no_comma'], 'kwargs': 'x'}, 'x:1: kwargs is not JSON'),
    (row(('length_constraints:number_words', {'num_words': 3, 'relation': 'about'})),
     "x:1: the arguments of length_constraints:number_words .* cannot use .relation 'about'"),
    (row(('keywords:existence', {})), 'cannot use .*keywords'),
])
def test_rows_of_another_form_are_a_sentence(value, sentence):
  with pytest.raises(UserError, match=sentence):
    ifeval.instructions(value, 'x:1')
