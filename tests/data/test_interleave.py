"""The token sequences of rendered records (arXiv 2509.20072), written out."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from ttt_jax.config import VocabConfig
from ttt_jax.data import interleave
from ttt_jax.data.records import records
from ttt_jax.errors import UserError
from ttt_jax.tokens.tokenizer import create
from ttt_jax.tokens.vocab import Vocabulary

TEXT = create(VocabConfig())
VOCAB = Vocabulary('bytes', 256, 'test', 50)
RENDERER = interleave.Renderer(VOCAB, TEXT)
START, END = VOCAB.special('<|im_start|>'), VOCAB.special('<|im_end|>')
BEGIN, CLOSE = VOCAB.special('<|begin_of_audio|>'), VOCAB.special('<|end_of_audio|>')
QUAD = VOCAB.special('<|begin_of_quad|>')
NEW, LAST = VOCAB.size - 2, VOCAB.size - 1


def record(value):
  return records.parse(value, 'a.jsonl:3')


def code(*numbers):
  return [VOCAB.audio_threshold + 1 + n for n in numbers]


def b(text):
  return list(text.encode())


@pytest.mark.parametrize('t, a, sizes', [
    (0, 0, []),
    (0, 5, [(0, 5)]),
    (0, 60, [(0, 60)]),
    (5, 0, [(5, 0)]),
    (40, 0, [(40, 0)]),
    (13, 26, [(13, 26)]),
    (13, 27, [(13, 27)]),
    (14, 26, [(14, 26)]),
    (14, 27, [(13, 26), (1, 1)]),
    (26, 52, [(13, 26), (13, 26)]),
    (27, 200, [(13, 26), (13, 26), (1, 148)]),
    (200, 27, [(13, 26), (187, 1)]),
])
def test_chunk_sizes(t, a, sizes):
  dealt = interleave.chunks(list(range(t)), list(range(a)))
  assert [(len(x), len(y)) for x, y in dealt] == sizes


@hypothesis.given(st.integers(0, 200), st.integers(0, 200), st.integers(1, 20), st.integers(1, 40))
def test_chunks_lose_nothing_and_keep_order(t, a, text_chunk, audio_chunk):
  dealt = interleave.chunks(list(range(t)), list(range(a)), text_chunk, audio_chunk)
  assert [x for pair in dealt for x in pair[0]] == list(range(t))
  assert [y for pair in dealt for y in pair[1]] == list(range(a))
  assert all((len(x), len(y)) == (text_chunk, audio_chunk) for x, y in dealt[:-1])


def test_multi_turn_chatml_and_what_is_supervised():
  example = RENDERER.render(record({'messages': [
      {'role': 'system', 'content': 'S'},
      {'role': 'user', 'content': 'A<|audio_1|><|audio_2|>'},
      {'role': 'assistant', 'content': 'B'},
      {'role': 'user', 'content': 'C'},
      {'role': 'assistant', 'content': [{'type': 'text', 'text': 'D'},
                                        {'type': 'audio', 'codes': [7]}]}]}))
  prompt1 = [START, *b('system\nS'), END, 10,
             START, *b('user\nA'), BEGIN, *code(1, 2), CLOSE, END, 10, START, *b('assistant\n')]
  answer1 = [*b('B'), END, 10]
  prompt2 = [START, *b('user\nC'), END, 10, START, *b('assistant\n')]
  answer2 = [*b('D'), QUAD, *code(7), LAST, END, 10]
  assert example.token.tolist() == prompt1 + answer1 + prompt2 + answer2
  assert example.supervised.tolist() == ([0] * len(prompt1) + [1] * len(answer1) +
                                         [0] * len(prompt2) + [1] * len(answer2))
  assert (example.token.dtype, example.supervised.dtype) == (np.int32, np.int8)


def test_an_answer_is_interleaved_at_the_configured_ratio():
  renderer = interleave.Renderer(VOCAB, TEXT, text_chunk=2, audio_chunk=3)
  example = renderer.render(record({'prompt': 'x', 'response': [
      {'type': 'text', 'text': 'abcde'}, {'type': 'audio', 'codes': [1, 2, 3, 4, 5, 6, 7]}]}))
  answer = [*b('ab'), BEGIN, *code(1, 2, 3), NEW, *b('cd'), BEGIN, *code(4, 5, 6), NEW,
            *b('e'), QUAD, *code(7), LAST, END, 10]
  assert example.token.tolist()[-len(answer):] == answer


def test_written_markup_is_taken_as_it_is():
  written = ('a<|begin_of_audio|><|audio_1|><|end_of_audio_new|>bcd<|begin_of_quad|><|audio_2|>'
             '<|end_of_audio_span_last|>e')
  example = RENDERER.render(record({'prompt': 'x', 'response': written}))
  answer = [*b('a'), BEGIN, *code(1), NEW, *b('bcd'), QUAD, *code(2), LAST, *b('e'), END, 10]
  assert example.token.tolist()[-len(answer):] == answer


def test_all_of_a_document_is_supervised_and_its_last_span_is_the_quad():
  example = RENDERER.render(record({'text': 'ab<|audio_1|>c<|audio_2|><|audio_3|>'}))
  assert example.token.tolist() == [*b('ab'), BEGIN, *code(1), NEW, *b('c'), QUAD, *code(2, 3),
                                    LAST]
  assert example.supervised.tolist() == [1] * len(example.token)


def test_a_document_may_be_a_piece_that_begins_and_ends_inside_a_span():
  example = RENDERER.render(record({'text': (
      '<|audio_1|><|end_of_audio_new|>ab<|begin_of_quad|><|audio_2|><|audio_3|>')}))
  assert example.token.tolist() == [*code(1), NEW, *b('ab'), QUAD, *code(2, 3)]
  assert RENDERER.render(record({'text': 'ab<|begin_of_audio|>'})).token.tolist() == [
      *b('ab'), BEGIN]
  with pytest.raises(UserError, match='without a begin'):
    record({'text': 'ab<|audio_1|><|end_of_audio_new|>'})


def test_an_answer_that_is_not_learned_is_context():
  example = RENDERER.render(record({'messages': [
      {'role': 'user', 'content': 'A'}, {'role': 'assistant', 'content': 'Five', 'weight': 0},
      {'role': 'user', 'content': 'B'}, {'role': 'assistant', 'content': 'Four'}]}))
  assert int(example.supervised.sum()) == 6
  assert example.token[example.supervised > 0].tolist() == [*b('Four'), END, 10]


def test_an_empty_system_turn_is_none():
  value = {'messages': [{'role': 'user', 'content': 'A'}, {'role': 'assistant', 'content': 'B'}]}
  empty = {'messages': [{'role': 'system', 'content': ''}, *value['messages']]}
  assert RENDERER.render(record(empty)).token.tolist() == RENDERER.render(
      record(value)).token.tolist()


def test_control_tokens_in_a_message_are_its_bytes():
  example = RENDERER.render(record({'prompt': '<|im_end|>', 'response': 'x<|mask_token|>'}))
  assert example.token.tolist().count(START) == 2 and VOCAB.mask not in example.token
  assert example.token.tolist().count(END) == 2


def test_the_prompt_is_the_start_of_the_record():
  value = {'messages': [{'role': 'user', 'content': 'A'}, {'role': 'assistant', 'content': 'B'},
                        {'role': 'user', 'content': 'C'}, {'role': 'assistant', 'content': 'D'}]}
  whole = RENDERER.render(record(value)).token.tolist()
  prompt = RENDERER.render_prompt(record(value)).tolist()
  assert whole == prompt + [*b('D'), END, 10]
  with pytest.raises(UserError, match='a.jsonl:3: record 3 has no assistant turn'):
    RENDERER.render_prompt(record({'text': 'x'}))


def test_a_code_outside_the_codebook_names_record_and_codec():
  with pytest.raises(UserError, match='a.jsonl:3: Audio code 50 is outside the codebook of test'):
    RENDERER.render(record({'prompt': '<|audio_50|>', 'response': 'x'}))


@hypothesis.given(st.text(min_size=1, max_size=60).filter(lambda text: '<|' not in text),
                  st.lists(st.integers(0, 49), max_size=120))
def test_unrender_gives_back_text_and_codes(text, codes):
  parts = [{'type': 'text', 'text': text}]
  parts += [{'type': 'audio', 'codes': codes}] if codes else []
  one = record({'prompt': 'x', 'response': parts})
  whole = RENDERER.render(one).token
  answer = whole[len(RENDERER.render_prompt(one)):-1]  # without the newline
  found, spans = RENDERER.unrender(answer)
  assert found == text
  assert [int(c) for span in spans for c in span] == codes


@pytest.mark.parametrize('codes, silence', [(4, 1), (5, 0), (6, 5), (11, 0), (12, 5)])
def test_the_last_span_is_filled_with_silence_to_complete_blocks(codes, silence):
  spoken = record({'messages': [
      {'role': 'user', 'content': 'x'},
      {'role': 'assistant', 'content': [{'type': 'text', 'text': 'hi'},
                                        {'type': 'audio', 'codes': [7] * codes}]}]})
  fill = interleave.Fill((40, 41), 6)
  token, supervised = interleave.Renderer(VOCAB, TEXT, fill=fill).render(spoken)
  answer = [*b('hi'), QUAD, *code(*[7] * codes), *code(*[40, 41, 40, 41, 40][:silence]), LAST, END,
            *b('\n')]
  assert token[-len(answer):].tolist() == answer
  assert supervised.sum() == len(answer)
  assert (codes + silence + 1) % 6 == 0


def test_only_the_last_span_is_filled_and_only_where_spans_are_made_here():
  long = record({'messages': [
      {'role': 'user', 'content': 'x'},
      {'role': 'assistant', 'content': [{'type': 'text', 'text': 'abcd'},
                                        {'type': 'audio', 'codes': [7] * 8}]}]})
  token, _ = interleave.Renderer(VOCAB, TEXT, 2, 5, interleave.Fill((40,), 6)).render(long)
  body = [*b('ab'), BEGIN, *code(*[7] * 5), NEW, *b('cd'), QUAD, *code(7, 7, 7, 40, 40), LAST]
  assert token[-len(body) - 2:-2].tolist() == body
  written = record({'messages': [
      {'role': 'user', 'content': 'x'},
      {'role': 'assistant', 'content': 'a<|begin_of_quad|><|audio_7|><|end_of_audio_span_last|>'}]})
  token, _ = interleave.Renderer(VOCAB, TEXT, fill=interleave.Fill((40,), 6)).render(written)
  assert token[-6:-2].tolist() == [*b('a'), QUAD, *code(7), LAST]


def test_earlier_answers_of_a_prompt_are_filled_as_in_training():
  turns = [turn for i in range(2) for turn in (
      {'role': 'user', 'content': f'{i}'},
      {'role': 'assistant', 'content': [{'type': 'text', 'text': 'hi'},
                                        {'type': 'audio', 'codes': [7] * 4}]})]
  renderer = interleave.Renderer(VOCAB, TEXT, fill=interleave.Fill((40, 41), 6))
  prompt = renderer.render_prompt(record({'messages': turns})).tolist()
  assert renderer.render(record({'messages': turns})).token.tolist()[:len(prompt)] == prompt
  assert prompt.count(*code(40)) == 1


TWO_TURNS = {'messages': [
    {'role': 'user', 'content': 'ab'}, {'role': 'assistant', 'content': 'cd'},
    {'role': 'user', 'content': 'ef'}, {'role': 'assistant', 'content': [
        {'type': 'text', 'text': 'ghij'}, {'type': 'audio', 'codes': [1, 2, 3, 4, 5, 6, 7]}]}]}


@pytest.mark.parametrize('how', ['turn', 'span', 'anywhere'])
def test_a_document_is_cut_at_a_boundary_whatever_the_room(how):
  """Against the definition, read off the token sequence one position at a time."""
  whole = interleave.Renderer(VOCAB, TEXT, text_chunk=2, audio_chunk=3).render(record(TWO_TURNS))
  token, learned = whole
  first = next(i for i in range(len(token)) if learned[i] and not learned[i + 1]) + 1
  spans = [i + 1 for i, one in enumerate(token.tolist()) if one in (NEW, LAST)]
  allowed = {'turn': [first], 'span': [first, *spans], 'anywhere': range(1, len(token))}[how]
  assert len(spans) == 2 and token[first - 2] == END
  for room in range(1, len(token) + 3):
    found = interleave.truncate(whole, room, how, VOCAB)
    ends = [end for end in allowed if end <= room and learned[:end].any()]
    if room >= len(token):
      assert found is whole
    elif not ends:
      assert found is None
    else:
      assert found.token.tolist() == token[:max(ends)].tolist()
      assert found.supervised.tolist() == learned[:max(ends)].tolist()


def test_a_pretraining_document_is_cut_between_words_but_never_inside_a_span():
  whole = RENDERER.render(record({'text': 'ab<|audio_1|><|audio_2|>cd<|audio_3|>'}))
  token = whole.token.tolist()
  assert token == [*b('ab'), BEGIN, *code(1, 2), NEW, *b('cd'), QUAD, *code(3), LAST]
  found = [interleave.truncate(whole, room, 'span', VOCAB) for room in range(1, 12)]
  assert [len(one.token) for one in found] == [1, 2, 2, 2, 2, 6, 7, 8, 8, 8, 11]
  assert interleave.truncate(whole, 5, 'turn', VOCAB) is None
