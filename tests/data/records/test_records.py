"""Records in every accepted format, and every kind of invalid record."""

import json
import re

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from ttt_jax.data.records import records
from ttt_jax.errors import UserError


def parse(value, **more):
  return records.parse(value, 'a.jsonl:3', **more)


def shape(record):
  """[(role, [text or codes])] for comparison."""
  return [(t.role, [p.text if p.kind == 'text' else p.codes.tolist() for p in t.parts])
          for t in record.turns]


@pytest.mark.parametrize('value', [
    {'messages': [{'role': 'user', 'content': 'Hi <|audio_3|><|audio_12|>'},
                  {'role': 'assistant', 'content': 'Yo'}]},
    {'messages': [{'role': 'user', 'content': [{'type': 'text', 'text': 'Hi '},
                                               {'type': 'audio', 'codes': [3, 12]}]},
                  {'role': 'assistant', 'content': [{'type': 'text', 'text': 'Yo'}]}]},
    {'conversations': [
        {'from': 'human', 'value': 'Hi <|begin_of_audio|><|audio_3|><|audio_12|><|end_of_audio|>'},
        {'from': 'gpt', 'value': 'Yo'}]},
    {'prompt': 'Hi <|audio_3|><|audio_12|>', 'response': 'Yo'},
])
def test_the_shapes_mean_the_same(value):
  record = parse(value)
  assert shape(record) == [('user', ['Hi ', [3, 12]]), ('assistant', ['Yo'])]
  assert (record.id, record.type, record.where) == ('3', 'IT', 'a.jsonl:3')


def test_a_text_is_a_pretraining_document():
  record = parse({'text': 'one <|audio_1|> two', 'id': 'x'})
  assert shape(record) == [('document', ['one ', [1], ' two'])]
  assert (record.type, record.id) == ('PT', 'x')


def test_only_audio_markup_is_read_in_text():
  text = 'a <|im_start|>system <|mask_token|> <|audio|> <|endoftext|> <|audio_x|> b'
  record = parse({'prompt': text, 'response': text})
  assert shape(record) == [('user', [text]), ('assistant', [text])]


def test_an_answer_keeps_its_written_markup():
  written = ('Hi<|begin_of_audio|><|audio_1|><|end_of_audio_new|> you<|begin_of_quad|><|audio_2|>'
             '<|audio_0|><|end_of_audio_span_last|>')
  record = parse({'prompt': 'x', 'response': written})
  assert [(p.begin, p.end) for p in record.turns[1].parts if p.kind == 'audio'] == [
      ('<|begin_of_audio|>', '<|end_of_audio_new|>'),
      ('<|begin_of_quad|>', '<|end_of_audio_span_last|>')]
  assert records.to_json(record)['messages'][1]['content'] == written


@pytest.mark.parametrize('value', [
    {'messages': [{'role': 'system', 'content': 'Be <b>'},
                  {'role': 'user', 'content': [
                      {'type': 'audio', 'codes': [3, 12], 'audio': 'x.wav', 'text': 'hi'}]},
                  {'role': 'assistant', 'content': [{'type': 'text', 'text': 'Yo'},
                                                    {'type': 'audio', 'codes': [5]}]}]},
    {'text': 'one <|audio_1|> two'},
])
def test_to_json_reads_back_the_same(value):
  once = records.to_json(parse({**value, 'id': 'q', 'task': 'asr'}))
  again = records.parse(json.loads(json.dumps(once)), 'b:1')
  assert records.to_json(again) == once
  assert once['id'] == 'q' and once['task'] == 'asr'


def answer(content):
  return {'prompt': 'x', 'response': content}


@pytest.mark.parametrize('value, sentence', [
    ({'foo': 1}, "needs \"messages\".*has 'foo'"),
    ({}, 'has no keys'),
    ({'prompt': 'x'}, "'response' is missing"),
    ({'messages': []}, 'non-empty list'),
    ({'messages': 'hi'}, "the string 'hi', which is no JSON"),
    ({'messages': ['hi']}, r"messages\[0\] must be an object with 'role'"),
    ({'messages': [{'role': 'robot', 'content': 'x'}]}, "'robot'; use one of assistant"),
    ({'messages': [{'role': ['user'], 'content': 'x'}]}, 'use one of'),
    ({'messages': [{'role': 'user', 'content': 'x'}]}, 'must end with an answer'),
    ({'messages': [{'role': 'user', 'content': 'x'}, {'role': 'system', 'content': 'x'}]},
     'only the first'),
    ({'messages': [{'role': 'assistant', 'content': ''}]}, r'messages\[0\].content is empty'),
    ({'messages': [{'role': 'assistant', 'content': 7}]}, 'is a int'),
    (answer([{'type': 'video'}]), r'response\[0\] must be'),
    (answer([{'type': 'text'}]), 'text must be a string'),
    (answer([{'type': 'audio'}]), 'needs "audio"'),
    (answer([{'type': 'audio', 'codes': [1, -1]}]), 'integers from 0'),
    (answer([{'type': 'audio', 'codes': [True]}]), 'integers from 0'),
    (answer([{'type': 'audio', 'codes': []}]), 'non-empty'),
    (answer('<|audio_99999999999|>'), 'not a code of any codec'),
    (answer('<|audio_2147483648|>'), 'not a code of any codec'),
    (answer('<|audio_1|><|audio_' + '9' * 5000 + '|>'), 'audio_9{20}.> is not a code of any codec'),
    (answer('a<|end_of_audio_new|>'), 'without a begin'),
    (answer('<|begin_of_audio|><|audio_1|>'), 'does not end'),
    (answer('<|begin_of_audio|><|begin_of_quad|>'), 'inside a span'),
    (answer('<|begin_of_audio|>hello<|end_of_audio_new|>'), "'hello' is inside a span"),
    (answer('<|begin_of_audio|><|end_of_audio_new|>'), 'without codes'),
    (answer('<|begin_of_audio|><|audio_1|><|end_of_audio_span_last|>'),
     'must end with <.end_of_audio_new'),
    (answer('<|begin_of_quad|><|audio_1|><|end_of_audio_new|>'), 'must end with <.end_of_audio_s'),
    ({'prompt': '<|begin_of_quad|><|audio_1|>', 'response': 'x'}, 'is for answers only'),
    ({'text': 'x', 'task': 3}, 'task is 3'),
])
def test_errors_name_file_and_line(value, sentence):
  with pytest.raises(UserError, match=sentence) as caught:
    parse(value)
  assert str(caught.value).startswith('a.jsonl:3: ')


def test_map_audio_changes_audio_alone():
  record = parse({'prompt': 'Hi <|audio_3|>', 'response': 'Yo'})
  changed = record.map_audio(lambda part: records.Part('audio', codes=np.array([9])))
  assert shape(changed) == [('user', ['Hi ', [9]]), ('assistant', ['Yo'])]


def read_slowly(text):
  """Texts and lists of codes of a string without begins and ends, one token at a time."""
  out, at = [], 0
  text = re.sub(r'(?<=\d\|>)\s+(?=<\|audio_\d+\|>)', '', text)  # nothing between two codes
  while at < len(text):
    token = re.compile(r'<\|audio_(\d+)\|>').match(text, at)
    found = int(token[1]) if token else text[at]
    kind = list if token else str
    if not out or not isinstance(out[-1], kind):
      out.append(kind())
    out[-1] += [found] if token else found
    at = token.end() if token else at + 1
  return out


@hypothesis.settings(max_examples=1000)
@hypothesis.given(st.lists(st.sampled_from((
    '<|audio_', '|>', '|><|audio_', '5', '12', '007', '16383', '2147483647', '0', '>', '<', '|',
    '-1', '+3', ' ', '\u0663', 'é', 'x', '<|audio_1|>', '<|audio_44|><|audio_2|>', '\x00'
    )), max_size=9).map(''.join))
def test_codes_are_read_as_if_one_by_one(text):
  try:
    parts = records.parse_markup(text, 'x', True)
  except UserError as error:
    assert re.search(r'\d{11}', text) and 'not a code' in str(error)
    return
  assert [p.text if p.kind == 'text' else p.codes.tolist() for p in parts] == read_slowly(text)
  assert all(p.codes.dtype == np.int32 for p in parts if p.kind == 'audio')


def test_several_turns_with_sound_in_each():
  def part(*codes):
    return {'type': 'audio', 'codes': list(codes)}
  record = parse({'messages': [
      {'role': 'user', 'content': [part(1), {'type': 'text', 'text': 'and'}, part(2)]},
      {'role': 'assistant', 'content': [{'type': 'text', 'text': 'A'}, part(3)]},
      {'role': 'user', 'content': 'B<|audio_4|>'},
      {'role': 'assistant', 'content': 'C<|begin_of_quad|><|audio_5|><|end_of_audio_span_last|>'}]})
  assert shape(record) == [('user', [[1], 'and', [2]]), ('assistant', ['A', [3]]),
                           ('user', ['B', [4]]), ('assistant', ['C', [5]])]
  assert [p.codes.tolist() for p in record.audio()] == [[1], [2], [3], [4], [5]]
