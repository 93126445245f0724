"""Records of other projects: where sounds stand, which keys count, which records are rejected."""

import json

import pytest

from ttt_jax.data.records import keys, records, tasks
from ttt_jax.errors import UserError

ASK, REPLY = 'What is it?', 'A tone.'
TALK = [{'role': 'user', 'content': ASK}, {'role': 'assistant', 'content': REPLY}]
HEARD = [('user', ['<a.wav>', ASK]), ('assistant', [REPLY])]
PLAIN = [('user', [ASK]), ('assistant', [REPLY])]


def shape(record):
  """[(role, [text, or <path> or codes])] of a record."""
  def said(part):
    if part.kind == 'text':
      return part.text
    return part.codes.tolist() if part.codes is not None else f'<{part.source}>'
  return [(turn.role, [said(part) for part in turn.parts]) for turn in record.turns]


def parse(value):
  return records.parse(json.loads(json.dumps(value)), 'a.jsonl:3')


def talk(content, **more):
  return {'messages': [{'role': 'user', 'content': content}, TALK[1]], **more}


def user(*parts):
  return [('user', list(parts)), ('assistant', [REPLY])]


@pytest.mark.parametrize('value, right', [
    # beside the turns: ms-swift, LLaMA-Factory, VITA, LLaMA-Omni, Qwen2-Audio, MiniCPM-o, SALMONN
    (talk(f'<audio>{ASK}', audios=['a.wav']), HEARD),
    (talk(f'{ASK} <|audio|> ok', audios=['a.wav']), user(f'{ASK} ', '<a.wav>', ' ok')),
    (talk(f'<audio>{ASK}<audio>', audios=['a.wav', {'path': 'b.wav'}]),
     user('<a.wav>', ASK, '<b.wav>')),
    (talk(ASK, audios=['a.wav', 'b.wav']), user('<a.wav>', '<b.wav>', ASK)),
    (talk(ASK, audios='["a.wav"]'), HEARD),
    (talk(f'<|audio_bos|><|AUDIO|><|audio_eos|>{ASK}', audio='a.wav'), HEARD),
    (talk(f'<audio>./</audio>{ASK}', audio=['a.wav']), HEARD),
    (talk(f'<Speech><SpeechHere></Speech>{ASK}', wav='a.wav'), HEARD),
    (talk(f'<speech>\n{ASK}', speech='a.wav'), user('<a.wav>', f'\n{ASK}')),
    # two forms of placeholders, one of which has the number of the sounds
    (talk(f'<audio> The tag <speech> is text. {ASK}', audio='a.wav'),
     user('<a.wav>', f' The tag <speech> is text. {ASK}')),
    ({'messages': TALK, 'audio': 'a.wav'}, HEARD),
    ({'messages': TALK, 'audio': {'path': 'a.wav'}}, HEARD),
    ({'messages': TALK, 'file_name': 'a.wav'}, HEARD),
    ({'messages': TALK, 'codes': [1, 2]}, user([1, 2], ASK)),
    ({'messages': TALK, 'codes': [[1, 2], [3]]}, user([1, 2], [3], ASK)),
    ({'prompt': ASK, 'response': REPLY, 'audio': 'a.wav'}, HEARD),
    ({'audio': 'a.wav', 'question': ASK, 'answer': REPLY}, HEARD),
    ({'question': '<audio>', 'question_audio': 'a.wav', 'answer': REPLY, 'answer_audio': 'b.wav'},
     [('user', ['<a.wav>']), ('assistant', [REPLY, '<b.wav>'])]),
    ({'text': 'One <audio> two', 'audio': 'a.wav'}, [('document', ['One ', '<a.wav>', ' two'])]),
    # beside a turn
    ({'messages': [{**TALK[0], 'audio': 'a.wav'}, {**TALK[1], 'speech': 'b.wav'}]},
     [('user', ['<a.wav>', ASK]), ('assistant', [REPLY, '<b.wav>'])]),
    ({'messages': [{'role': 'user', 'speech': 'a.wav'}, TALK[1]]}, user('<a.wav>')),
    ({'messages': [{'role': 'user', 'content': f'{ASK}<audio>', 'audios': ['a.wav']}, TALK[1]]},
     user(ASK, '<a.wav>')),
    # the speech of a text: LLaMA-Omni, VoiceAssistant-400K
    ({'conversation': [{'from': 'human', 'text': ASK, 'speech': 'a.wav'},
                       {'from': 'assistant', 'text': REPLY, 'speech': 'b.wav'}]},
     [('user', ['<a.wav>']), ('assistant', [REPLY, '<b.wav>'])]),
    ({'question': ASK, 'question_audio': 'a.wav', 'answer': REPLY}, user('<a.wav>')),
    ({'instruction': ASK, 'input': '55', 'instruction_audio': 'a.wav', 'output': REPLY},
     user('<a.wav>', '55')),
    # an answer of OpenAI's models
    ({'messages': [TALK[0], {'role': 'assistant', 'content': None, 'audio': {
        'path': 'b.wav', 'transcript': REPLY}}]},
     [('user', [ASK]), ('assistant', [REPLY, '<b.wav>'])]),
    # a path by the name of an id: LTU
    ({'audio_id': 'a.wav', 'instruction': ASK, 'input': '', 'output': REPLY}, HEARD),
    # in place of a turn: Kimi-Audio
    ({'conversation': [TALK[0], {'role': 'assistant', 'message_type': 'audio-text',
                                 'content': ['b.wav', REPLY]}]},
     [('user', [ASK]), ('assistant', [REPLY, '<b.wav>'])]),
    ({'conversation': [{'role': 'user', 'message_type': 'text', 'content': ASK},
                       {'role': 'user', 'message_type': 'audio', 'content': 'a.wav'}, TALK[1]]},
     user(ASK, '<a.wav>')),
    ({'messages': [{'role': 'user', 'type': 'audio', 'content': 'a.wav'}, TALK[1]]},
     user('<a.wav>')),
    # inside a text: Qwen-Audio
    (talk(f'Audio 1:<audio>a.wav</audio>\n{ASK}'), user('Audio 1:', '<a.wav>', f'\n{ASK}')),
    # parts: OpenAI, Qwen2-Audio, TRL
    (talk([{'type': 'audio_url', 'audio_url': {'url': 'a.wav'}}, {'type': 'text', 'text': ASK}]),
     HEARD),
    (talk([{'type': 'audio', 'path': 'a.wav', 'text': None}, {'type': 'input_text', 'text': ASK},
           None]), HEARD),
    (talk([{'audio': 'a.wav'}, {'text': ASK}]), HEARD),
    (talk([{'type': 'audio'}, {'type': 'text', 'text': ASK}], audios=['a.wav']), HEARD),
    ({'query': '55', 'response': REPLY, 'history': [['<audio>Q', 'A']], 'audios': ['a.wav']},
     [('user', ['<a.wav>', 'Q']), ('assistant', ['A']), ('user', ['55']), ('assistant', [REPLY])]),
    ({'messages': [{'role': 'user', 'content': 'x', 'audios': ['a.wav']}, TALK[1],
                   {'role': 'user', 'content': '<audio>y'}, TALK[1]], 'audios': ['b.wav']},
     [('user', ['<a.wav>', 'x']), ('assistant', [REPLY]), ('user', ['<b.wav>', 'y']),
      ('assistant', [REPLY])]),
    (talk('<audio>a.wav</audio><audio>x', audios=['b.wav']), user('<a.wav>', '<b.wav>', 'x')),
    (talk('1: <audio>first</audio>', audios=['a.wav']), user('1: ', '<a.wav>')),
    (talk('<audio_1> or <audio_2>?', audios=['a.wav', 'b.wav']),
     user('<a.wav>', ' or ', '<b.wav>', '?')),
    # no sound: the words stay text
    (talk('<audio>'), user('<audio>')),
    (talk('<audio>x</audio> <|audio|>', audios=[]), user('<audio>x</audio> <|audio|>')),
    (talk(ASK, path='talks/1.json', file_name='x'), PLAIN),
])
def test_a_sound_stands_where_its_placeholder_stands_or_before_the_text(value, right):
  record = parse(value)
  assert shape(record) == right
  assert shape(records.parse(records.to_json(record), 'b:1')) == right


@pytest.mark.parametrize('value, sentence', [
    (talk(f'<audio>{ASK}', audios=['a.wav', 'b.wav']), 'has 1 placeholder .*<audio>, but 2 sounds'),
    (talk('<audio><audio>', audio='a.wav'), 'has 2 placeholders .*, but 1 sound;'),
    (talk(f'<|audio_1|>{ASK}', audios=['a.wav']), r'is code 1 of the codec'),
    (talk([{'type': 'text', 'text': '<audio>x'}], audios=['a.wav']), 'are taken literally'),
    (talk([{'type': 'audio'}]), 'a part of type audio that needs "audio"'),
    ({'messages': [TALK[1]], 'audio': 'a.wav'}, '1 sound but no turn of the user'),
    ({'messages': [*TALK, *TALK], 'audios': ['a.wav', 'b.wav']},
     '2 sounds and 2 turns of the user'),
    ({'messages': [{'role': 'user', 'text': 'x', 'audio': 'a.wav'}, TALK[1]]},
     'call it "content" if it is a question, and "transcript"'),
    ({'messages': [{**TALK[0], 'audio': {'id': 'audio_7'}}, TALK[1]]}, 'must be the path'),
    ({'text': 'One two', 'audio': 'a.wav'}, 'this is a recording'),
    ({'text': 'One two', 'path': 'a.wav'}, 'this is a recording'),
    ({'messages': TALK, 'audio': 'file://[a/b.wav'}, 'no URI'),
    ({'prompt': ASK, 'response': REPLY, 'history': [['a', None]]}, r'history\[0\]\[1\] must be'),
    ({'prompt': ASK, 'response': REPLY, 'context': ['a', 'b']}, 'prompt and context must be'),
    ({'messages': TALK, 'tgt_units': [1, 2]}, 'its codec is unknown'),
    ({'messages': TALK, 'audio': 'a.wav', 'start': 10**400}, 'it must be a number from 0'),
    ({'messages': TALK, 'audio': 'a.wav', 'channel': 10**400}, 'channels count 0'),
    ({'messages': TALK, 'my_clip': 'clips/a.FLAC'}, "has a sound in 'my_clip'"),
    ({'messages': [{**TALK[0], 'clips': ['a.wav', 'b.wav']}, TALK[1]]}, "a sound in 'clips'"),
    ({'text': 'x', 'voice': {'path': 'a.wav'}}, "a sound in 'voice'"),
    # keys that cannot be used
    ({'messages': TALK, 'tools': '[{"name": "clock"}]'}, "'tools': tools are not rendered"),
    ({'messages': TALK, 'images': ['x.png']}, "'images': only text and sound"),
    ({'messages': [TALK[0], {**TALK[1], 'reasoning_content': 'Hm.'}]}, r'messages\[1\] has the'),
    ({'messages': [TALK[0], {**TALK[1], 'tool_calls': [{}]}]}, "'tool_calls'"),
    ({'messages': [TALK[0], {'role': 'tool', 'content': '12'}, TALK[1]]}, "'tool'; tools are not"),
    ({'messages': TALK, 'rejected_response': 'No.'}, 'preferences are not trained'),
    ({'prompt': ASK, 'chosen': REPLY, 'rejected': 'No.'}, "'response' is missing"),
    (talk([{'type': 'image', 'image': 'x.png'}]), "not of type 'image'"),
    ({'messages': TALK, 'speech_tokens': [1, 2]}, 'its codec is unknown'),
    ({'messages': TALK, 'audio': 'a.wav', 'frame_offset': 16000}, 'in seconds'),
    ({'messages': TALK, 'label': False}, 'label false, a bad answer'),
    ({'messages': TALK, 'loss_weights': [0, 1]}, 'give each turn its own'),
    ({'messages': "[{'role': 'user'}]"}, 'which is no JSON'),
    ({'text': ['a', 'b']}, 'a list of 2 strings'),
    (talk([{'text': 'x', 'audio': 'a.wav'}]), r'content\[0\] must be'),
    # contradictions and halves
    ({'messages': [{'role': 'system', 'content': 'A'}, *TALK], 'system': 'B'}, 'that differ'),
    ({'messages': TALK, 'history': [['a']]}, r'history\[0\] must be \[question, answer\]'),
    ({'instruction': ASK, 'text': 'x'}, "'response' is missing; 'instruction' needs it"),
    ({'messages': [TALK[0], {**TALK[1], 'weight': 0.5}]}, "'weight' '0.5'; a turn is learned or"),
    ({'messages': [TALK[0], {**TALK[1], 'loss': True, 'weight': 0}]}, 'contradict each other'),
    ({'messages': [TALK[0], {**TALK[1], 'train': False}]}, 'no answer of the record is learned'),
    ({'messages': [{**TALK[0], 'weight': 1}, TALK[1]]}, 'only answers of the assistant'),
    ({'messages': TALK, 'weight': 0.3}, 'set repeat of its source'),
    ({'messages': TALK, 'mask': 'Assistant'}, 'are what is learned'),
    # stretches
    ({'messages': TALK, 'audio': 'a.wav', 'offset': -1}, "'offset' -1; it must be a number from 0"),
    ({'messages': TALK, 'audio': 'a.wav', 'start': 2, 'end': 1}, 'a stretch of no length'),
    ({'messages': TALK, 'audio': 'a.wav', 'start': 1, 'end': 3, 'duration': 1}, 'contradict'),
    ({'messages': TALK, 'audio': 'a.wav', 'start': 1, 'offset': 3}, 'give one start'),
    ({'messages': TALK, 'audio': 'a.wav', 'channel': 1.5}, 'channels count 0, 1, 2'),
    ({'messages': TALK, 'audio': 'a.wav', 'channel': [0, 1]}, 'a sound has one channel'),
    ({'messages': TALK, 'audios': ['a.wav', 'b.wav'], 'offset': 1}, 'give each sound its own'),
])
def test_what_cannot_be_used_is_rejected_in_one_sentence(value, sentence):
  with pytest.raises(UserError, match=sentence) as caught:
    parse(value)
  assert str(caught.value).startswith('a.jsonl:3: ') and '\n' not in str(caught.value)


@pytest.mark.parametrize('more, right', [
    ({'offset': 1.5, 'duration': 2}, (1.5, 2, None)),
    ({'offset': '1.5', 'duration': '2'}, (1.5, 2, None)),  # a table holds strings
    ({'start': 1, 'end': 3.5, 'channel': 1}, (1, 2.5, 1)),
    ({'start_time': 1, 'end_time': 3.5, 'duration': 2.5, 'channel': 'right'}, (1, 2.5, 1)),
    ({'onset': 1, 'offset': 3}, (1, 2, None)),  # of a sound event
    ({'start_ms': 250, 'end_ms': 1000}, (0.25, 0.75, None)),
    ({'duration': 2}, (0, 2, None)),
    ({'duration_ms': 2000}, (0, None, None)),   # of the whole file
    ({'start': '2024-05-01', 'channel': 'Radio 4'}, (0, None, None)),
    ({'channel_selector': 'average'}, (0, None, None)),
])
def test_a_stretch_of_a_file_is_named_on_a_record_a_turn_a_part_or_the_sound(more, right):
  sound = {'audio': 'a.wav', **more}
  for value in (
      {'messages': TALK, **sound},
      {'messages': [{**TALK[0], **sound}, TALK[1]]},
      {'messages': [{'role': 'user', 'content': [{'type': 'audio', **sound},
                                                 {'type': 'text', 'text': ASK}]}, TALK[1]]},
      {'messages': TALK, 'audios': [{'path': 'a.wav', **more}]},
      {'messages': [{'role': 'user', 'content': [{'type': 'audio', 'audio': 'a.wav'},
                                                 {'type': 'text', 'text': ASK}]}, TALK[1]],
       **more},
      {'messages': [{'role': 'user', 'content': f'<audio>a.wav</audio>{ASK}', **more}, TALK[1]]}):
    record = parse(value)
    (part,) = record.audio()
    assert (part.offset, part.duration, part.channel) == right
    assert shape(record) == HEARD
    (again,) = records.parse(records.to_json(record), 'b:1').audio()
    assert (again.offset, again.duration, again.channel) == right
  recording = tasks.parse_recording({**sound, 'text': 'x'}, 'a:1', 'asr')
  assert (recording.speech.offset, recording.speech.duration, recording.speech.channel) == right


@pytest.mark.parametrize('value, right', [
    ({'system': 'Be brief.', 'messages': TALK}, [('system', ['Be brief.']), *PLAIN]),
    ({'system': 'S', 'conversations': [{'from': 'human', 'value': ASK},
                                       {'from': 'gpt', 'value': REPLY}], 'tools': []},
     [('system', ['S']), *PLAIN]),
    ({'system': 'S', 'messages': [{'role': 'system', 'content': 'S'}, *TALK]},
     [('system', ['S']), *PLAIN]),
    ({'messages': [{'role': 'system', 'content': ''}, *TALK]}, [('system', []), *PLAIN]),
    ({'query': ASK, 'response': REPLY, 'history': [['a', 'b']], 'system': 'S'},
     [('system', ['S']), ('user', ['a']), ('assistant', ['b']), *PLAIN]),
    ({'messages': TALK, 'history': [{'role': 'user', 'content': 'a'},
                                    {'role': 'assistant', 'content': 'b'}]},
     [('user', ['a']), ('assistant', ['b']), *PLAIN]),
    ({'conversations': TALK}, PLAIN),
    ({'messages': [{'role': 'User', 'content': ASK}, {'role': ' Assistant', 'content': REPLY}]},
     PLAIN),
    ({'conversation': [{'human': ASK, 'assistant': REPLY}]}, PLAIN),
    ({'messages': json.dumps(TALK)}, PLAIN),
    ({'type': 'chatml', 'id': None, 'task': None, 'conversations': None, 'messages': TALK}, PLAIN),
    ({'instruction': ASK, 'input': '', 'output': REPLY, 'text': f'{ASK} {REPLY}'}, PLAIN),
    ({'instruction': 'Add.', 'input': '1 2', 'output': '3'},
     [('user', ['Add.\n1 2']), ('assistant', ['3'])]),
    ({'prompt': [TALK[0]], 'completion': [TALK[1]]}, PLAIN),
    ({'question': ASK, 'answer': REPLY}, PLAIN),
    ({'instruction': ASK, 'context': 'All.', 'response': REPLY, 'category': 'x'},
     [('user', [f'{ASK}\nAll.']), ('assistant', [REPLY])]),  # Dolly
    ({'conversation': [{'system': 'S', 'input': ASK, 'output': REPLY},
                       {'system': 'S', 'input': '55', 'output': REPLY}]},  # XTuner
     [('system', ['S']), *PLAIN, ('user', ['55']), ('assistant', [REPLY])]),
    ({'messages': {'role': ['user', 'assistant'], 'content': [ASK, REPLY]}}, PLAIN),
    ({'messages': [{'role': 'user', 'content': [{'type': 'text', 'text': '<|audio_3|> is code'},
                                                'and text']}, TALK[1]]},
     [('user', ['<|audio_3|> is code', 'and text']), ('assistant', [REPLY])]),
    (talk('<|audio_1|> <|audio_2|>\n<|audio_3|>'), user([1, 2, 3])),
    (talk('<|begin_of_audio|> <|audio_1|> <|audio_2|> <|end_of_audio|>'), user([1, 2])),
    ({'prompt': ASK, 'response': '<|begin_of_audio|><|audio_4|><|audio_5|><|end_of_audio|>'},
     [('user', [ASK]), ('assistant', [[4, 5]])]),
])
def test_usual_forms_of_records(value, right):
  record = parse(value)
  assert shape(record) == right
  again = records.parse(records.to_json(record), 'b:1')
  assert [''.join(map(str, parts)) for _, parts in shape(again)] == [
      ''.join(map(str, parts)) for _, parts in right]


@pytest.mark.parametrize('flag', [{'weight': 0}, {'loss': False}, {'train': False}, {'mask': True},
                                  {'learn': 'false'}, {'loss_mask': 0.0}])
def test_an_answer_without_a_loss_is_context(flag):
  first = {'role': 'assistant', 'content': 'Five', **flag}
  record = parse({'messages': [TALK[0], first, TALK[0], {**TALK[1], 'weight': 1}]})
  assert [turn.learned for turn in record.turns] == [True, False, True, True]
  again = records.parse(records.to_json(record), 'b:1')
  assert [turn.learned for turn in again.turns] == [True, False, True, True]


def test_keys_that_are_not_used_are_listed():
  record = parse({
      'messages': [{**TALK[0], 'mood': 'glad', 'name': 'Ada'}, TALK[1]], 'speaker': 'x', 'foo': 1,
      'bar': [], 'prompt': 'x', 'type': 'mine'})
  assert record.unused == ('type', 'foo', 'prompt', 'turn.mood')
  web = {'text': 'x', 'host': 'abc.net.au', 'feed': 'https://x.org/a.mp3', 'why': 'as in a.wav'}
  assert parse(web).unused == ('host', 'feed', 'why')
  assert shape(record) == PLAIN
  part = {'type': 'text', 'text': '<|audio_1|>', 'size': 1, 'foo': 1}
  assert parse(talk([part])).unused == (records.LITERAL, 'part.foo')
  recording = {'audio': 'a.wav', 'path': 'b.wav', 'text': 'x', 'sentence': 'y', 'client_id': 'c',
               'answer': 'z', 'duration': 2}
  assert tasks.parse_recording(recording, 'a:1', 'asr').unused == ('sentence', 'answer')
  assert not keys.METADATA & {key for level in keys.REJECTED.values() for key in level}


@pytest.mark.parametrize('task', ['audio_qa', 'audio_chat', 'aac', 'asc', 'sec'])
def test_a_written_question_stands_beside_the_sound_in_the_turn_of_the_user(task):
  def made(**value):
    value = {'audio': 'a.wav', 'answer': 'yes', **value}
    record = tasks.to_record(tasks.parse_recording(value, 'a:1', task), task)
    return shape(record)
  for key in ('question', 'instruction', 'query'):
    assert made(**{key: ASK}) == [('user', [ASK, '<a.wav>']), ('assistant', ['yes'])]
  assert made(question=f'<audio>{ASK}')[0] == ('user', ['<a.wav>', ASK])
  assert made(instruction='Listen.', question=f'{ASK} <audio> Be brief.', system='S')[:2] == [
      ('system', ['S']), ('user', [f'Listen.\n{ASK}', '<a.wav>', 'Be brief.'])]
  with pytest.raises(UserError, match='has 2 placeholders'):
    made(question='<audio><audio>')
  with pytest.raises(UserError, match='a recording has no history'):
    made(history=[['a', 'b']])


def test_alpaca_is_a_text_chat():
  value = {'instruction': 'Add.', 'input': '1 2', 'output': '3', 'text': 'Add. 1 2 3'}
  recording = tasks.parse_recording(value, 'a:1', 'text_chat')
  assert shape(tasks.to_record(recording, 'text_chat')) == [
      ('user', ['Add.\n1 2']), ('assistant', ['3'])]
  assert recording.unused == ('text',)
