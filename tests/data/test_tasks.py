"""Recordings into records; joined ones never say a held-out text."""

import numpy as np
import pytest

from ttt_jax.data import records, tasks
from ttt_jax.errors import UserError


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


def test_too_many_joined_ones_are_refused_not_waited_for():
  with pytest.raises(UserError, match='join_count=10 .*4 were found'):
    tasks.join([recording('1'), recording('2'), recording('333')], 2, 10, np.random.default_rng(0))
  with pytest.raises(UserError, match='join_most of at least 2'):
    tasks.join([recording('1')], 1, 1, np.random.default_rng(0))


@pytest.mark.parametrize('value, sentence', [
    ({'audio': 'a.wav'}, 'needs "text"'), ({'audio': 'a.wav', 'text': ' '}, 'non-empty'),
    ({'text': 'x'}, 'needs "audio"'), ({'text': 'x', 'audio': 3}, 'needs "audio"'),
    ({'text': 'x', 'codes': 'abc'}, 'list of integers'),
    ({'text': '<|audio_3|>', 'codes': [1]}, 'audio markup'),
    ({'messages': []}, 'records with "messages" belong')])
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
