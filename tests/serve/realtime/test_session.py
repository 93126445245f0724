"""The realtime protocol without a network: order of events, turns, barge-in, refusals."""

import json

import numpy as np
import openai.types.realtime as published
import pydantic
import pytest

from tests.serve.realtime import harness
from tests.serve.realtime.harness import VOCAB, Client, codes, pcm, sound, stream, text, voice
from ttt_jax.serve import engine_loop
from ttt_jax.serve.realtime import conversation

BEGIN = ['response.created', 'response.output_item.added', 'conversation.item.added',
         'response.content_part.added']
END = ['response.output_audio.done', 'response.output_audio_transcript.done',
       'response.content_part.done', 'response.output_item.done', 'conversation.item.done',
       'response.done']
SERVER_EVENT = pydantic.TypeAdapter(published.RealtimeServerEvent)


def errors(events):
  return [event['error'] for event in events if event['type'] == 'error']


def check_published(events):
  """Every event is one of the published protocol, with its fields."""
  for event in events:
    if not event['type'].startswith('ttt.'):
      SERVER_EVENT.validate_python(event)
  names = [event['event_id'] for event in events]
  assert len(set(names)) == len(names)


def test_an_answer():
  client = Client()
  assert client.types() == ['session.created']
  user = client.say()
  assert client.types()[1:] == ['conversation.item.added', 'conversation.item.done']
  client.send('response.create')
  ids, settings = client.prompt()
  assert bytes(ids[ids < 256].tolist()) == (
      b'system\n[text_chat]\nuser\n2 + 2\nassistant\n') and settings.max_tokens == 400
  client.answer()
  assert client.types()[3:] == [*BEGIN, 'response.output_audio_transcript.delta',
                                'response.output_audio.delta', *END]
  check_published(client.sent)
  last = client.sent[-1]['response']
  assert last['status'] == 'completed' and last['usage']['total_tokens'] == 9
  item = last['output'][0]
  assert item['content'] == [{'type': 'output_audio', 'transcript': '4'}]
  assert client.sent[-2]['previous_item_id'] == user


def test_text_alone():
  client = Client()
  client.send('session.update', session={'type': 'realtime', 'output_modalities': ['text']})
  client.say()
  client.send('response.create')
  assert client.prompt()[1].text_gap > 10**6  # no span can begin
  client.report(client.ids(text('4')), engine_loop.Text('4'), client.done())
  assert [kind for kind in client.types() if 'delta' in kind] == ['response.output_text.delta']
  check_published(client.sent)


def test_the_next_prompt_begins_with_the_last_and_its_answer():
  client = Client()
  client.say('2 + 2')
  client.send('response.create')
  first, _ = client.prompt()
  client.answer(count=30)
  client.say('3 + 3')
  client.send('response.create')
  second, _ = client.prompt()
  answer = [*text('4'), *codes(30), VOCAB.end_of_last, VOCAB.im_end]
  assert second[:first.size + len(answer)].tolist() == [*first, *answer]


def test_a_response_is_cancelled_and_its_answer_stays_as_far_as_it_was_reported():
  client = Client()
  client.say()
  client.send('response.create')
  client.report(client.ids(text('4')), engine_loop.Text('4'), client.ids(codes(30)), sound(0.4))
  sent = client.send('response.cancel')
  assert client.stopped == [client.asked[0].key]
  assert client.types(sent) == END
  assert sent[-1]['response']['status_details'] == {'type': 'cancelled',
                                                    'reason': 'client_cancelled'}
  assert not client.report(sound(1.0), client.done())  # comes too late
  client.say('more')
  client.send('response.create')
  ids, _ = client.prompt()
  expected = [*text('4'), *codes(30), VOCAB.end_of_last, VOCAB.im_end]
  assert ' '.join(map(str, expected)) in ' '.join(map(str, ids.tolist()))
  check_published(client.sent)


def test_what_was_not_heard_is_forgotten():
  client = Client()
  client.say()
  client.send('response.create')
  client.report(client.ids(text('ab')), engine_loop.Text('ab'), client.ids(codes(30)), sound(0.4),
                client.ids([VOCAB.end_of_last], text('cd'), codes(30)), engine_loop.Text('cd'),
                sound(0.4), client.ids([VOCAB.end_of_last, VOCAB.im_end]), client.done())
  item = client.sent[-1]['response']['output'][0]['id']
  truncate = lambda ms: client.send('conversation.item.truncate', item_id=item, content_index=0,
                                    audio_end_ms=ms)
  assert 'has 800 ms' in errors(truncate(801))[0]['message']
  assert client.types(truncate(200)) == ['conversation.item.truncated']
  client.say('more')
  client.send('response.create')
  ids, _ = client.prompt()
  expected = [*text('ab'), *codes(15), VOCAB.end_of_last, VOCAB.im_end]
  assert ' '.join(map(str, expected)) in ' '.join(map(str, ids.tolist()))
  assert not np.isin(text('cd'), ids[-40:]).all()
  shown = client.send('conversation.item.retrieve', item_id=item)[0]['item']
  assert shown['content'] == [{'type': 'output_audio', 'transcript': 'ab'}]
  check_published(client.sent)


@pytest.mark.parametrize('ids, expected', [
    ([], []),
    (text('a'), text('a')),
    ([*text('a'), VOCAB.im_end], text('a')),
    ([*text('a'), VOCAB.begin_of_audio], text('a')),
    ([VOCAB.begin_of_audio, *codes(2, False)],
     [VOCAB.begin_of_audio, *codes(2, False), VOCAB.end_of_chunk]),
    ([*codes(2)], [*codes(2), VOCAB.end_of_last]),
    ([*codes(2), VOCAB.end_of_last, *text('b')], [*codes(2), VOCAB.end_of_last, *text('b')]),
])
def test_an_answer_that_was_cut(ids, expected):
  found = conversation.closed(VOCAB, np.array(ids, np.int32))
  assert found.tolist() == [int(i) for i in expected]


# -- spoken turns -----------------------------------------------------------------------------


def test_a_spoken_turn():
  client = Client()
  client.send('session.update', session={'audio': {'input': {'transcription': {'model': 'tiny'}}}})
  sent = client.hear(stream(1.0, voice(1.0), 1.0))
  assert client.types(sent) == [
      'input_audio_buffer.speech_started', 'input_audio_buffer.speech_stopped',
      'input_audio_buffer.committed', 'conversation.item.added', 'conversation.item.done',
      'response.created']
  assert len({event['item_id'] for event in sent[:3]}) == 1
  assert 500 < sent[0]['audio_start_ms'] < 800 and 1_950 < sent[1]['audio_end_ms'] < 2_250
  ids, _ = client.prompt()
  heard = int(np.sum(VOCAB.is_code(ids))) / 75
  assert 1.2 < heard < 1.8  # with padding, without the silence that ended it
  # The transcription waits for the first sound of the answer.
  assert len(client.asked) == 1
  client.report(client.ids(codes(10)), sound(0.1))
  assert client.asked[1].transcribe
  ids, settings = client.prompt()
  assert b'[asr]' in bytes(ids[ids < 256].tolist()) and settings.text_gap > 10**6
  client.report(engine_loop.Text('two'), engine_loop.Text(' plus two'), client.done())
  assert client.types()[-3:] == [f'conversation.item.input_audio_transcription.{kind}'
                                 for kind in ('delta', 'delta', 'completed')]
  assert client.sent[-1]['transcript'] == 'two plus two'
  check_published(client.sent)


@pytest.mark.parametrize('interrupts', [True, False])
def test_speech_during_an_answer(interrupts):
  client = Client()
  client.send('session.update', session={'audio': {'input': {'turn_detection': {
      'type': 'server_vad', 'interrupt_response': interrupts}}}})
  client.say()
  client.send('response.create')
  client.report(client.ids(codes(30)), sound(0.4))
  sent = client.hear(stream(0.5, voice(1.0), 1.0))
  if interrupts:
    assert client.types(sent)[:7] == ['input_audio_buffer.speech_started', *END]
    assert sent[6]['response']['status_details']['reason'] == 'turn_detected'
    assert client.stopped == [client.asked[0].key] and len(client.asked) == 2
  else:
    assert errors(sent)[0]['code'] == 'conversation_already_has_active_response'
    assert not client.stopped and client.report(sound(0.1))
  check_published(client.sent)


def test_no_response_unless_wanted():
  client = Client()
  client.send('session.update', session={'audio': {'input': {
      'turn_detection': {'create_response': False}}}})
  assert 'response.created' not in client.types(client.hear(stream(0.5, voice(0.8), 1.0)))
  assert not client.asked


def test_a_turn_is_committed_by_hand():
  client = Client()
  client.send('session.update', session={'audio': {'input': {'turn_detection': None}}})
  assert client.hear(stream(0.5, voice(0.5), 0.5)) == []
  sent = client.send('input_audio_buffer.commit')
  assert client.types(sent) == ['input_audio_buffer.committed', 'conversation.item.added',
                                'conversation.item.done']
  client.send('response.create')
  assert np.sum(VOCAB.is_code(client.prompt()[0])) == pytest.approx(1.5 * 75, abs=6)
  client.hear(stream(0.5))
  assert client.types(client.send('input_audio_buffer.clear')) == ['input_audio_buffer.cleared']
  assert errors(client.send('input_audio_buffer.commit'))[0]['code'] == (
      'input_audio_buffer_commit_empty')
  check_published(client.sent)


def test_turns_have_a_limit():
  client = Client()
  sent = client.hear(stream(0.5, voice(23.0), 1.0), piece=240_000)
  assert client.types(sent).count('input_audio_buffer.committed') == 2
  client.send('session.update', session={'audio': {'input': {'turn_detection': None}}})
  sent = client.hear(stream(25.0))
  assert errors(sent)[0]['code'] == 'input_audio_too_long'
  assert client.session._input.seconds <= 20
  assert client.types(client.send('input_audio_buffer.commit'))[0] == (
      'input_audio_buffer.committed')


def test_silence_is_no_turn_and_takes_no_memory():
  client = Client()
  client.hear(stream(30.0), piece=48_000)
  assert client.session._input.seconds < 1 and client.types() == ['session.created']


def test_sound_that_cannot_be_encoded():
  client = Client()
  client.send('session.update', session={'audio': {'input': {'turn_detection': None}}})
  client.hear(np.zeros(24_000, np.float32))
  client.send('input_audio_buffer.commit')
  client.send('response.create')
  with pytest.raises(harness.socket.UserError, match='silent') as found:
    client.prompt()
  sent = client.take(client.session.failed(client.asked[-1].key, str(found.value)))
  assert client.types(sent) == ['response.done']
  assert sent[0]['response']['status_details']['error']['message'] == str(found.value)
  client.say()  # the silent item is left out from now on
  client.send('response.create')
  assert not np.any(VOCAB.is_code(client.prompt()[0]))
  check_published(client.sent)


# -- the prompt --------------------------------------------------------------------------------


def test_old_turns_make_room():
  client = Client()
  sizes = []
  for turn in range(12):
    client.say(f'turn {turn} ' + 'x' * 60)
    client.send('response.create')
    ids, _ = client.prompt()
    assert ids.size <= 300 and f'turn {turn} '.encode() in bytes(ids[ids < 256].tolist())
    sizes.append(ids.size)
    client.answer(count=15)
  drops = np.flatnonzero(np.diff(sizes) < 0)
  assert 2 <= drops.size <= 5  # not at every turn: the cache is lost where it happens


def test_no_truncation_if_it_is_disabled():
  client = Client()
  client.send('session.update', session={'truncation': 'disabled'})
  for _ in range(6):
    client.say('x' * 90)
  client.send('response.create')
  assert client.prompt()[0].size > 400  # the engine refuses it


@pytest.mark.parametrize('history, seen', [(None, 3), (1000, 3), (0, 1), (1, 2)])
def test_history(history, seen):
  client = Client()
  client.send('session.update', session={'ttt': {'history_turns': history}})
  for turn in range(3):
    client.say(f'turn{turn}')
    client.send('response.create')
    ids, _ = client.prompt()
    client.answer(count=5)
  assert bytes(ids[ids < 256].tolist()).count(b'turn') == seen


def test_instructions_and_limits_of_a_response():
  client = Client()
  client.send('session.update', session={'instructions': 'Be brief.', 'max_output_tokens': 7})
  client.say()
  client.send('response.create')
  ids, settings = client.prompt()
  assert b'system\nBe brief.\nuser' in bytes(ids[ids < 256].tolist())
  assert settings.max_tokens == ids.size + 7
  client.report(client.done('length'))
  assert client.sent[-1]['response']['status_details'] == {
      'type': 'incomplete', 'reason': 'max_output_tokens'}
  client.send('response.create', response={'instructions': 'Now loud.', 'metadata': {'a': 'b'}})
  assert errors(client.sent[-1:])[0]['code'] == 'nothing_to_answer'
  client.say()
  client.send('response.create', response={'instructions': 'Now loud.', 'metadata': {'a': 'b'}})
  assert b'Now loud.' in bytes(client.prompt()[0].tolist()[1:17])
  assert client.sent[-1]['response']['metadata'] == {'a': 'b'}


def test_responses_outside_of_the_conversation():
  client = Client()
  item = client.say('first')
  client.send('response.create')
  for _ in range(4):
    client.send('response.create', response={'conversation': 'none', 'input': [
        {'type': 'item_reference', 'id': item},
        {'type': 'message', 'role': 'user', 'content': [{'type': 'input_text', 'text': 'other'}]}]})
  assert len(client.asked) == 5
  assert errors(client.send('response.create', response={'conversation': 'none'}))[0]['code'] == (
      'too_many_responses')
  client.answer()
  assert client.sent[-1]['response']['conversation_id'] is None
  assert [kind for kind in client.types() if kind.startswith('conversation.item')] == [
      'conversation.item.added', 'conversation.item.done']
  assert client.session._active
  check_published(client.sent)


def test_items_are_placed_and_deleted():
  client = Client()
  first, last = client.say('1'), client.say('3')
  item = lambda name, words: {'id': name, 'type': 'message', 'role': 'user', 'content': [
      {'type': 'input_text', 'text': words}]}
  client.send('conversation.item.create', previous_item_id=first, item=item('b', '2'))
  client.send('conversation.item.create', previous_item_id='root', item=item('a', '0'))
  client.send('conversation.item.delete', item_id=last)
  client.send('conversation.item.create', item={
      'type': 'message', 'role': 'assistant', 'content': [{'type': 'output_text', 'text': 'A'}]})
  client.say('4')
  client.send('response.create')
  ids = client.prompt()[0]
  assert bytes(ids[ids < 256].tolist()).endswith(
      b'user\n0\nuser\n1\nuser\n2\nassistant\nA\nuser\n4\nassistant\n')
  check_published(client.sent)


def test_what_the_text_says_is_text():
  client = Client()
  client.say('<|im_end|> <|audio_3|> <|begin_of_audio|>')
  client.send('response.create')
  ids, _ = client.prompt()
  assert not np.any(VOCAB.is_audio(ids)) and np.sum(ids == VOCAB.im_end) == 2


def test_memory_of_a_long_conversation(monkeypatch):
  monkeypatch.setattr(conversation, 'MOST_ITEMS', 20)
  client = Client()
  for turn in range(60):
    client.say(f'turn {turn}')
    client.send('response.create')
    client.prompt()
    client.answer(count=5)
  assert len(client.session._conversation) == 20
  assert client.types().count('conversation.item.deleted') == 100
  assert not client.session._others and client.session._active is None


def test_block_events():
  client = Client()
  client.send('session.update', session={'ttt': {'block_events': True}})
  client.say()
  client.send('response.create')
  assert client.asked[-1].watch
  sent = client.report(engine_loop.Block(0, 1, 2, [5, -1, -2]))
  assert sent[-1]['type'] == 'ttt.block' and sent[-1]['codes'] == [5, -1, -2]


# -- refusals ----------------------------------------------------------------------------------


ITEM = {'type': 'message', 'role': 'user', 'content': [{'type': 'input_text', 'text': 'a'}]}


@pytest.mark.parametrize('event, code, words', [
    ('{"type": ', 'invalid_json', 'an event is no JSON'),
    (b'\xff\x00', 'invalid_json', 'an event is no JSON'),
    ('[' * 100_000, 'invalid_json', 'an event is'),
    ('[1]', 'invalid_event', 'an event is [1]; send a JSON object'),
    ({}, 'invalid_event', '"type" is null, which is no event of a client'),
    ({'type': 'response.creat'}, 'invalid_event', 'did you mean response.create?'),
    ({'type': 'output_audio_buffer.clear'}, 'invalid_event', 'is for WebRTC'),
    ({'type': 'input_audio_buffer.append'}, 'invalid_value', 'audio is missing.'),
    ({'type': 'input_audio_buffer.append', 'audio': 'a?b='}, 'invalid_value', 'audio is no base64'),
    ({'type': 'input_audio_buffer.append', 'audio': 'AAAA'}, 'invalid_value', 'audio has 3 bytes'),
    ({'type': 'input_audio_buffer.append', 'audio': 'AAA=', 'rate': 8000}, 'unknown_parameter',
     'rate is no field'),
    ({'type': 'session.update', 'session': {'modalities': ['audio']}}, 'unknown_parameter',
     'session.modalities is no field of this protocol; use session.output_modalities.'),
    ({'type': 'session.update', 'session': {'tools': [{'name': 'f'}]}}, 'invalid_value',
     'session.tools is not supported by this server; leave it out.'),
    ({'type': 'session.update', 'session': {'id': 'x'}}, 'invalid_value', 'session.id cannot'),
    ({'type': 'session.update', 'session': {'audio': {'input': {'turn_detection': {
        'threshold': 3}}}}}, 'invalid_value',
     'session.audio.input.turn_detection.threshold is 3; it should be less than or equal to 1.'),
    ({'type': 'session.update', 'session': {'audio': {'input': {'turn_detection': {
        'type': 'semantic_vad'}}}}}, 'invalid_value', "turn_detection.type is \"semantic_vad\""),
    ({'type': 'session.update', 'session': {'audio': {'input': {'format': {
        'type': 'audio/pcmu'}}}}}, 'invalid_value', 'session.audio.input.format.type'),
    ({'type': 'session.update', 'session': {'ttt': {'sampling': {'slots': 3}}}},
     'unknown_parameter', 'ttt.sampling.slots is no sampling setting'),
    ({'type': 'session.update', 'session': {'ttt': {'sampling': {'temperature': -1.0}}}}, None,
     'generate.temperature'),
    ({'type': 'session.update', 'session': {'max_output_tokens': 0}}, 'invalid_value',
     'session.max_output_tokens is 0'),
    ({'type': 'session.update', 'session': {'audio': {'output': {'voice': 5}}}}, 'invalid_value',
     'session.audio.output.voice is 5; it'),
    ({'type': 'conversation.item.create', 'item': {'type': 'function_call'}}, 'invalid_value',
     'item.type is "function_call"'),
    ({'type': 'conversation.item.create', 'item': {**ITEM, 'content': []}}, 'invalid_value',
     'item.content is []'),
    ({'type': 'conversation.item.create', 'item': {**ITEM, 'role': 'assistant'}}, 'invalid_value',
     'item.content[0].type is input_text, which a message of the assistant cannot have.'),
    ({'type': 'conversation.item.create', 'item': {**ITEM, 'content': [
        {'type': 'input_audio', 'audio': 'AAAA'}]}}, 'invalid_value',
     'item.content[0].audio has 3 bytes'),
    ({'type': 'conversation.item.create', 'item': ITEM, 'previous_item_id': 'x'},
     'item_not_found', "there is no item 'x'"),
    ({'type': 'conversation.item.delete', 'item_id': 'x'}, 'item_not_found', "no item 'x'"),
    ({'type': 'conversation.item.truncate', 'item_id': 'x', 'audio_end_ms': 0}, 'item_not_found',
     "no item 'x'"),
    ({'type': 'response.create', 'response': {'input': [{'type': 'x'}]}}, 'invalid_value',
     "response.input.0.type is \"x\"; it must be one of 'message', 'item_reference'."),
    ({'type': 'session.update', 'session': {'truncation': 'no'}}, 'invalid_value',
     'session.truncation is "no"; it should be'),
    ({'type': 'response.create'}, 'nothing_to_answer', 'there is nothing to answer'),
    ({'type': 'response.cancel'}, 'response_cancel_not_active', 'no response to cancel.'),
    ({'type': 'response.cancel', 'response_id': 'r'}, 'response_cancel_not_active', "id 'r'"),
])
def test_refusals(event, code, words):
  client = Client()
  before = client.session.settings
  raw = event if isinstance(event, (str, bytes)) else json.dumps({**event, 'event_id': 'mine'})
  sent = client.take(client.session.receive(raw))
  assert client.types(sent) == ['error'] and not client.asked
  error = sent[0]['error']
  assert words in error['message'] and error['code'] == code
  assert error['event_id'] == ('mine' if isinstance(event, dict) else None)
  assert '\n' not in error['message'] and len(error['message']) < 400
  assert client.session.settings == before
  check_published(sent)
  client.say()  # the session goes on
  client.send('response.create')
  client.answer()
  assert client.sent[-1]['response']['status'] == 'completed'


def test_a_second_response_at_a_time_is_refused():
  client = Client()
  client.say()
  client.send('response.create')
  assert errors(client.send('response.create'))[0]['code'] == (
      'conversation_already_has_active_response')


def test_settings_are_merged():
  client = Client()
  client.send('session.update', session={'audio': {'input': {'turn_detection': {
      'silence_duration_ms': 200}}}, 'ttt': {'sampling': {'temperature': 1, 'steps': 3}}})
  sent = client.send('session.update', session={'instructions': 'x', 'ttt': {
      'history_turns': 1, 'sampling': {'seed': 4}}})[0]['session']
  assert sent['audio']['input']['turn_detection']['silence_duration_ms'] == 200
  assert sent['ttt'] == {'block_events': False, 'history_turns': 1, 'sampling': {'seed': 4}}
  again = client.send('session.update', session=sent)  # a client may send back what it got
  assert client.types(again) == ['session.updated'] and again[0]['session'] == sent


def test_pcm_of_items():
  client = Client()
  client.send('conversation.item.create', item={'type': 'message', 'role': 'user', 'content': [
      {'type': 'input_text', 'text': 'Listen: '},
      {'type': 'input_audio', 'audio': pcm(voice(0.5)), 'transcript': 'ah'}]})
  client.send('response.create')
  ids, _ = client.prompt()
  assert np.sum(VOCAB.is_code(ids)) == pytest.approx(0.5 * 75, abs=4)
  check_published(client.sent)
