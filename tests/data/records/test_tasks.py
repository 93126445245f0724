"""Recordings to records; joined recordings never have a held-out text."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from ttt_jax.config import VocabConfig
from ttt_jax.data import interleave
from ttt_jax.data.records import records, tasks
from ttt_jax.errors import UserError
from ttt_jax.tokens.tokenizer import create
from ttt_jax.tokens.vocab import Vocabulary

TEXT = create(VocabConfig())
VOCAB = Vocabulary('bytes', 256, 'test', 50)
RENDERER = interleave.Renderer(VOCAB, TEXT)


def recording(text, codes=(1, 2), name=None):
  value = {'id': name or text, 'codes': list(codes), 'text': text}
  return tasks.parse_recording(value, 'r.jsonl:1')


def kinds(record):
  return [(t.role, [(p.kind, p.text, None if p.codes is None else p.codes.tolist())
                    for p in t.parts]) for t in record.turns]


def test_asr_hears_and_tts_reads():
  one = recording('4 2', [7, 8])
  answer = ('assistant', [('text', '4 2', None), ('audio', '4 2', [7, 8])])
  assert kinds(tasks.asr(one)) == [('user', [('audio', '4 2', [7, 8])]), answer]
  assert kinds(tasks.tts(one)) == [('user', [('text', '4 2', None)]), answer]
  assert (tasks.asr(one).id, tasks.asr(one).task, tasks.asr(one).where) == (
      'asr-4 2', 'asr', 'r.jsonl:1')


def test_every_task_of_the_method_has_a_prompt():
  assert set(tasks.PROMPTS) == {'asr', 'tts', 'audio_qa', 'audio_chat', 'aac', 'sec', 'asc',
                                'text_chat'}
  spoken = [prompt for task, prompt in tasks.PROMPTS.items() if task != 'text_chat']
  assert all('13 text tokens' in prompt and '26 audio tokens' in prompt for prompt in spoken)
  assert len(set(spoken)) == len(spoken)
  assert set(tasks.RECORDED) == {*tasks.PROMPTS, 'pt'}


def test_the_prompt_names_the_ratio_of_the_config():
  record = records.parse({'task': 'tts', 'prompt': 'x', 'response': 'y'}, 'a:1')
  ((_, (said,)),) = [(turn.role, [part.text for part in turn.parts])
                     for turn in tasks.with_prompt(record, None, 5, 9).turns[:1]]
  assert '5 text tokens, then 9 audio tokens' in said
  assert said.startswith('Read the text aloud.') and tasks.wording('none', 5, 9) == ''


@pytest.mark.parametrize('own, prompt, found', [
    (None, None, tasks.PROMPTS['asr']), (None, '', None), (None, 'Mine', 'Mine'),
    ('Own', None, 'Own'), ('Own', '', None), ('Own', 'Mine', 'Mine')])
def test_the_system_turn(own, prompt, found):
  head = [{'role': 'system', 'content': own}] if own else []
  record = records.parse({'task': 'asr', 'messages': head + [
      {'role': 'user', 'content': 'x'}, {'role': 'assistant', 'content': 'y'}]}, 'a:1')
  turns = kinds(tasks.with_prompt(record, prompt))
  assert [role for role, _ in turns[-2:]] == ['user', 'assistant']
  assert turns[:-2] == ([('system', [('text', found, None)])] if found else [])


def test_joined_recordings_are_the_concatenation_of_their_pieces():
  singles = [recording(str(n), [n, n + 20]) for n in range(10)]
  singles.append(recording('0 1 2 3', [0, 20, 1, 21, 2, 22, 3, 23]))  # as long as they may get
  joined = tasks.join(singles, 4, 200, np.random.default_rng(0))
  assert len({one.text for one in joined}) == 200
  sizes = set()
  for one in joined:
    words = one.text.split(' ')
    sizes.add(len(words))
    assert one.audio.codes.tolist() == [c for w in words for c in (int(w), int(w) + 20)]
    assert one.id == '+'.join(words)
  assert sizes == {2, 3, 4}
  long = tasks.join(singles, 9, 50, np.random.default_rng(0))
  assert max(one.text.count(' ') for one in long) == 3
  again = tasks.join(singles, 4, 200, np.random.default_rng(0))
  assert [one.text for one in again] == [one.text for one in joined]


def test_joining_avoids_held_out_texts_and_what_does_not_fit():
  singles = [*(recording(str(n)) for n in range(3)), recording('long')]
  wanted = {f'{a} {b}' for a in range(3) for b in range(3)}
  joined = tasks.join(singles, 2, 7, np.random.default_rng(0), {'0 1', '2 2'})
  assert {one.text for one in joined} == wanted - {'0 1', '2 2'}
  even = tasks.join(singles, 2, 5, np.random.default_rng(0),
                    fits=lambda one: (int(one.text[0]) + int(one.text[2])) % 2 == 0)
  assert {one.text for one in even} == {'0 0', '0 2', '1 1', '2 0', '2 2'}


def test_joined_texts_have_spaces_only_where_their_script_has_them():
  singles = [recording('你好', [1]), recording('世界', [2]), recording('一二三四五', [3])]
  joined = tasks.join(singles, 2, 3, np.random.default_rng(0), excluded={'世界。你好！'})
  assert {one.text for one in joined} == {'你好你好', '你好世界', '世界世界'}


def test_too_many_joined_recordings_are_rejected():
  with pytest.raises(UserError, match='join_count=10 .*4 were found'):
    tasks.join([recording('1'), recording('2'), recording('333')], 2, 10, np.random.default_rng(0))
  with pytest.raises(UserError, match='needs join_most of at least 2'):
    tasks.join([recording('1')], 1, 1, np.random.default_rng(0))


@pytest.mark.parametrize('value, sentence', [
    ({'audio': 'a.wav'}, 'needs "text"'), ({'audio': 'a.wav', 'text': ' '}, 'non-empty'),
    ({'text': 'x'}, 'needs "audio"'), ({'text': 'x', 'audio': 3}, 'audio is 3; it must be'),
    ({'text': 'x', 'codes': 'abc'}, 'list of integers'),
    ({'text': '<|audio_3|>', 'codes': [1]}, 'audio markup'),
    ({'messages': []}, 'records with "messages" need a source')])
def test_a_bad_recording_is_one_sentence(value, sentence):
  with pytest.raises(UserError, match=sentence) as caught:
    tasks.parse_recording(value, 'r.jsonl:9')
  assert str(caught.value).startswith('r.jsonl:9: ')


def test_a_held_out_text_does_not_hide_inside_a_longer_one():
  singles = [recording(str(n), [n]) for n in range(4)] + [recording('9 9 9 9', [9] * 4)]
  joined = tasks.join(singles, 4, 240, np.random.default_rng(0), excluded={'1 2'})
  texts = [one.text for one in joined]
  assert not any('1 2' in text for text in texts)
  assert any('1 0 2' in text for text in texts) and any('2 1' in text for text in texts)


# -- the other tasks ----------------------------------------------------------------


def made(task, value, **more):
  return tasks.to_record(tasks.parse_recording(value, 'r.jsonl:7', task), task, **more)


@pytest.mark.parametrize('task', ['audio_qa', 'audio_chat'])
def test_a_spoken_question_has_a_written_and_a_spoken_answer(task):
  value = {'id': 'q', 'codes': [1, 2], 'text': 'how many', 'answer': 'two', 'answer_codes': [3]}
  record = made(task, value)
  assert kinds(record) == [
      ('user', [('audio', 'how many', [1, 2])]),
      ('assistant', [('text', 'two', None), ('audio', 'two', [3])])]
  assert (record.id, record.task, record.type, record.where) == (
      f'{task}-q', task, 'IT', 'r.jsonl:7')
  bare = made(task, {'audio': 'q.wav', 'answer': 'two', 'text': None, 'answer_audio': ''})
  assert kinds(bare) == [('user', [('audio', '', None)]), ('assistant', [('text', 'two', None)])]
  assert bare.turns[0].parts[0].source == 'q.wav' and bare.id == f'{task}-7'


@pytest.mark.parametrize('task, key', [
    ('aac', 'caption'), ('sec', 'label'), ('asc', 'scene'), ('aac', 'text'), ('sec', 'answer')])
def test_a_sound_is_asked_about_and_named(task, key):
  recording = tasks.parse_recording({'codes': [4], key: 'rain', 'answer_audio': 'r.wav'}, 'r:1',
                                    task)
  assert recording.text == '', 'what answers is not what is heard'
  record = tasks.to_record(recording, task)
  assert kinds(record) == [
      ('user', [('text', tasks.INSTRUCTIONS[task], None), ('audio', '', [4])]),
      ('assistant', [('text', 'rain', None), ('audio', 'rain', None)])]
  assert record.turns[1].parts[1].source == 'r.wav'
  own = made(task, {'codes': [4], key: 'rain', 'instruction': 'Listen:'})
  assert kinds(own) == [('user', [('text', 'Listen:', None), ('audio', '', [4])]),
                        ('assistant', [('text', 'rain', None)])]


@pytest.mark.parametrize('key', ['text', 'question', 'instruction'])
def test_writing_answers_writing(key):
  record = made('text_chat', {key: 'how many', 'answer': 'two', 'audio': 'not used.wav'})
  assert kinds(record) == [('user', [('text', 'how many', None)]),
                           ('assistant', [('text', 'two', None)])]
  assert not list(record.audio())


def pieces(*values):
  return {'id': 'd', 'pieces': [{'text': v} if isinstance(v, str) else
                                {'text': v[0], 'codes': list(v[1])} for v in values]}


def spoken(value, share, seed=0):
  record = made('pt', value, rng=np.random.default_rng(seed), speech=share)
  assert (record.type, record.task, [t.role for t in record.turns]) == ('PT', 'pt', ['document'])
  return [p.text if p.kind == 'text' else p.codes.tolist() for p in record.turns[0].parts]


def test_pieces_of_a_document_are_spoken_in_their_place():
  value = pieces('A.', ('B.', [1, 2]), 'C.', ('D.', [3]), ('E.', [4, 5]), 'F.')
  assert spoken(value, 0) == ['A. B. C. D. E. F.']
  assert spoken(value, 1) == ['A.', [1, 2], ' C.', [3, 4, 5], ' F.']
  assert spoken(pieces(('A.', [1])), 1) == [[1]]
  found = {str(spoken(value, 0.5, seed)) for seed in range(100)}
  assert len(found) == 8, 'each of three pieces is spoken or not, whatever the others are'
  counts = [len(spoken(pieces(('A', [1]), 'x'), 0.25, seed)) - 1 for seed in range(400)]
  assert 70 < sum(counts) < 130


def test_pieces_join_with_one_space_where_words_need_one():
  assert spoken(pieces('A ', 'B', '\nC', ('D ', [1]), 'E'), 0) == ['A B\nC D E']
  assert spoken(pieces('A ', ('D ', [1]), 'E'), 1) == ['A ', [1], ' E']
  assert spoken(pieces('你好。', '世界', ('。', [1]), 'yes'), 0) == ['你好。世界。yes']
  assert spoken(pieces(('你好。', [1]), '世界'), 1) == [[1], '世界']


def test_a_spoken_document_reads_back_from_its_json_as_the_same_tokens():
  value = pieces('A.', ('B.', [1, 2]), ('C.', [3]), 'D.', ('E.', [4]))
  record = made('pt', value, rng=np.random.default_rng(0), speech=1.0)
  again = records.parse(records.to_json(record), 'b:1')
  tokens = [RENDERER.render(one).token for one in (record, again)]
  np.testing.assert_array_equal(*tokens)
  assert np.count_nonzero(tokens[0] == VOCAB.begin_of_quad) == 1


def test_map_audio_reaches_every_part_that_has_sound():
  value = {'codes': [1], 'answer': 'x', 'answer_codes': [2]}
  for task in tasks.RECORDED:
    more = {**value, 'text': 'w', **pieces('A', ('B', [1]), ('C', [2]))}
    recording = tasks.parse_recording(more, 'r:1', task)
    wanted = {'asr': [[1]], 'tts': [[1]], 'text_chat': []}.get(task, [[1], [2]])
    assert [p.codes.tolist() for p in recording.audio_parts()] == wanted
    changed = recording.map_audio(
        lambda part: records.Part('audio', part.text, part.codes + 10, part.source))
    assert [p.codes.tolist() for p in changed.audio_parts()] == [
        [code + 10 for code in codes] for codes in wanted]


words = st.text(st.characters(exclude_categories=('Cs',)), min_size=1, max_size=40).filter(
    lambda text: text.strip() and '<|' not in text)
code_lists = st.lists(st.integers(0, 49), min_size=1, max_size=60)


@hypothesis.settings(max_examples=400)
@hypothesis.given(st.sampled_from(tasks.RECORDED), words, words, words, code_lists, code_lists,
                  st.booleans(), st.integers(0, 9))
def test_no_task_loses_a_word_or_a_code(task, text, answer, third, heard, said, speech, seed):
  value = {'id': 'x', 'text': text, 'answer': answer, 'codes': heard, **pieces(
      text, (answer, heard), (text, said), third)}
  if speech:
    value['answer_codes'] = said
  record = made(task, value, rng=np.random.default_rng(seed))
  example = RENDERER.render(record)
  written, spans = RENDERER.unrender(example.token)
  found = np.concatenate([np.zeros(0, np.int32), *spans]).tolist()
  if task == 'pt':
    aloud = np.random.default_rng(seed).random(4) < 0.5
    assert found == heard * int(aloud[1]) + said * int(aloud[2])
    left = [text, *([] if aloud[1] else [answer]), *([] if aloud[2] else [text]), third]
    assert ''.join(written.split()) == ''.join(''.join(left).split())
    return
  instruction = tasks.INSTRUCTIONS.get(task, '')
  head, reply = {'asr': ('', text), 'tts': (text, text), 'text_chat': (text, answer)}.get(
      task, (instruction, answer))
  assert written == f'user\n{head}\nassistant\n{reply}\n'
  assert found == {'asr': heard + heard, 'tts': heard, 'text_chat': []}.get(
      task, heard + said * speech)


@pytest.mark.parametrize('task, value, sentence', [
    ('audio_qa', {'codes': [1]}, 'a recording for audio_qa needs "answer" as a non-empty string'),
    ('audio_qa', {'codes': [1], 'answer': ''}, 'needs "answer"'),
    ('audio_qa', {'answer': 'x'}, 'the recording needs "audio" .* or "codes"'),
    ('audio_qa', {'codes': [1], 'answer': 'x', 'text': 3}, 'text is 3; it must be a string'),
    ('audio_chat', {'codes': [1], 'answer': 'x', 'answer_codes': [-1]}, 'answer_codes must be'),
    ('audio_chat', {'codes': [1], 'answer': 'x', 'answer_audio': 7}, 'answer_audio is 7'),
    ('audio_chat', {'codes': [1], 'answer': '<|audio_1|>'}, 'the answer .* holds audio markup'),
    ('aac', {'codes': [1]}, 'a recording for aac needs "answer"'),
    ('aac', {'codes': [1], 'answer': 'x', 'instruction': ['x']}, 'instruction is .* a string'),
    ('asc', {'scene': 'park'}, 'needs "audio"'),
    ('text_chat', {'answer': 'x'}, 'text_chat needs "text"'),
    ('text_chat', {'text': 'x'}, 'text_chat needs "answer"'),
    ('text_chat', {'text': '<|begin_of_quad|>', 'answer': 'x'}, 'the text .* holds audio markup'),
    ('pt', {'text': 'x'}, 'needs "pieces"'), ('pt', {'pieces': []}, 'non-empty list'),
    ('pt', {'pieces': ['x']}, r'pieces\[0\] is a str'),
    ('pt', {'pieces': [{'text': 'x'}, {'codes': [1]}]}, r'needs "pieces\[1\].text"'),
    ('pt', {'pieces': [{'text': 'x', 'codes': []}]}, r'pieces\[0\].codes must be'),
    ('pt', {'pieces': [{'text': 'x', 'audio': 5}]}, r'pieces\[0\].audio is 5')])
def test_a_bad_recording_of_any_task_is_one_sentence(task, value, sentence):
  with pytest.raises(UserError, match=sentence) as caught:
    tasks.parse_recording(value, 'r.jsonl:9', task)
  assert str(caught.value).startswith('r.jsonl:9: ') and str(caught.value).endswith('.')


CUT = {'id': 'c', 'start': 0.5, 'duration': 1.0, 'channel': 0, 'supervisions': [{'text': 'x'}],
       'recording': {'sources': [{'type': 'file', 'channels': [0], 'source': 'a.wav'}]}}


@pytest.mark.parametrize('task, value, part, text, unused', [
    # a spoken question is not written too: VoiceAssistant-400K; a path by the name of an id: LTU
    ('audio_qa', {'question': 'Q', 'question_audio': 'a.wav', 'answer': 'x'}, (0.0, None), 'Q', ()),
    ('audio_qa', {'audio_id': 'a.wav', 'answer': 'x'}, (0.0, None), '', ()),
    # times as on a clock; what is no time is not used
    ('asr', {'audio': 'a.wav', 'text': 'x', 'start': '00:01:02.5', 'end': '1:03,0'}, (62.5, 0.5),
     'x', ()),
    ('asr', {'audio': 'a.wav', 'text': 'x', 'offset': 'far', 'timestamp': [1, 2]}, (0.0, None), 'x',
     ('offset', 'timestamp')),
    ('asr', CUT, (0.5, 1.0), 'x', ()),
    ('asr', {**CUT, 'channel': [0, 1], 'recording': {'sources': [{
        'type': 'file', 'channels': [0, 1], 'source': 'a.wav'}]}}, (0.5, 1.0), 'x', ())])
def test_what_a_recording_says_of_its_sound(task, value, part, text, unused):
  found = tasks.parse_recording(value, 'r:1', task)
  assert found.speech.source == 'a.wav' and found.text == text and not found.instruction
  assert (found.speech.offset, found.speech.duration) == part and found.unused == unused


def test_unused_keys_of_pieces_are_listed():
  found = tasks.parse_recording({'pieces': [{'text': 'x', 'weight': 0}, {'text': 'y', 'id': 1}]},
                                'r:1', 'pt')
  assert found.unused == ('piece.weight',)


@pytest.mark.parametrize('change, sentence', [
    ({'recording': {**CUT['recording'], 'transforms': [{'name': 'Speed'}]}}, 'has transforms'),
    ({'duration': 10**400}, 'it must be a number from 0')])
def test_a_cut_that_cannot_be_read_as_it_is(change, sentence):
  with pytest.raises(UserError, match=sentence):
    tasks.parse_recording({**CUT, **change}, 'r:1')


def test_records_and_recordings_are_distinguished():
  assert tasks.is_record({'messages': []}) and tasks.is_record({'prompt': 'a', 'response': 'b'})
  assert not tasks.is_record({'text': 'x', 'answer': 'y'})
  assert not tasks.is_record({'pieces': []})
