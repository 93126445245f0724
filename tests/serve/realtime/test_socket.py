"""Realtime sessions over a real WebSocket, with the published client and with broken ones."""

import base64
import json
import socket
import struct
import threading
import time
import tracemalloc

import openai
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.audio.test_vad import stream, voice
from tests.serve import tiny
from tests.serve.realtime.harness import pcm
from ttt_jax.config import ServeConfig
from ttt_jax.serve import realtime


@pytest.fixture(scope='module')
def server():
  limits = ServeConfig(max_audio=10.0, max_body=1.0)
  with tiny.running(config=limits, routes=realtime.ROUTES) as found:
    yield found


def idle(service):
  end = time.monotonic() + 60
  while service.loop.engine.requests or service.loop._requests:
    assert time.monotonic() < end, 'a slot is not free again'
    time.sleep(0.01)


def session(url):
  client = openai.OpenAI(base_url=url + '/v1', api_key='none')
  return client.realtime.connect(model='tiny')


def say(connection, words, **response):
  connection.conversation.item.create(item={
      'type': 'message', 'role': 'user', 'content': [{'type': 'input_text', 'text': words}]})
  connection.response.create(**response)


def until(connection, kind):
  """The events up to the first of a kind; an error, or the end of the response, is none."""
  out = []
  while not out or out[-1].type != kind:
    out.append(connection.parse_event(connection._connection.recv(timeout=120, decode=False)))
    assert out[-1].type not in ('error', 'response.done') or out[-1].type == kind or (
        out[-1].type, kind) == ('response.done', 'response.created'), out[-1]
  return out


def sounds(events):
  return b''.join(base64.b64decode(event.delta) for event in events
                  if event.type == 'response.output_audio.delta')


def test_an_answer_equals_that_of_the_chat_endpoint(server):
  service, url = server
  with session(url) as connection:
    assert connection.recv().session.id.startswith('sess_')
    say(connection, '3 1 4')
    events = until(connection, 'response.done')
  whole = openai.OpenAI(base_url=url + '/v1', api_key='none').chat.completions.create(
      model='tiny', messages=[{'role': 'user', 'content': '3 1 4'}], modalities=['text', 'audio'],
      audio={'voice': 'any', 'format': 'pcm16'})
  audio = whole.choices[0].message.audio
  assert events[-1].response.output[0].content[0].transcript == audio.transcript
  assert sounds(events) == base64.b64decode(audio.data) and sounds(events)
  usage = events[-1].response.usage
  assert (usage.input_tokens, usage.output_tokens) == (
      whole.usage.prompt_tokens, whole.usage.completion_tokens)
  idle(service)


def test_the_next_turn_reads_no_old_token_again(server):
  service, url = server
  with session(url) as connection:
    say(connection, 'One', response={'max_output_tokens': 40})
    first = until(connection, 'response.done')[-1].response.usage
    before = service.loop.engine.read
    say(connection, 'Two', response={'max_output_tokens': 40})
    second = until(connection, 'response.done')[-1].response.usage
  read = service.loop.engine.read - before
  new = second.input_tokens - first.input_tokens - first.output_tokens
  # What the engine had not cached of the answer is its last window: at most a span and its end.
  assert 0 < new <= read <= new + service.served.settings.max_span + 2 < first.input_tokens + (
      first.output_tokens)
  idle(service)


def test_speech_cancels_the_answer_and_a_lost_client_frees_its_slot(server):
  service, url = server
  engine, spoken = service.loop.engine, threading.Event()
  step = engine.step

  def paused(*args, **kwargs):
    """A step of the engine; after sound it waits until the test has spoken."""
    events = list(step(*args, **kwargs))
    yield from events
    if any(event.kind == 'audio' for event in events):
      spoken.wait(120)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(engine, 'step', paused)
    with session(url) as connection:
      connection.session.update(session={'type': 'realtime', 'ttt': {'block_events': True}})
      say(connection, '3 1 4')
      sound = stream(0.5, voice(0.8), 0.7)
      for at in range(0, len(sound), 4_800):
        connection.input_audio_buffer.append(audio=pcm(sound[at:at + 4_800]))
      events = until(connection, 'response.done')
      last = events[-1].response
      assert (last.status, last.status_details.reason) == ('cancelled', 'turn_detected')
      until(connection, 'response.created')
      before = engine.read
      spoken.set()
      until(connection, 'response.content_part.added')
      # The cancelled request has left its slot, with its cache.
      assert engine.active <= 1 and engine.read - before < 100
  idle(service)  # the client went before the answer was complete


def test_a_server_stops_with_a_session_open():
  with tiny.running(routes=realtime.ROUTES) as (_, url):
    connection = session(url).enter()
    connection.recv()
  with pytest.raises(ConnectionClosed):
    connection.recv()


def raw(url, **options):
  return connect(url.replace('http', 'ws') + '/v1/realtime', **options)


def test_broken_clients_leave_nothing_behind(server):
  service, url = server
  with raw(url) as connection:
    connection.recv()
    connection.send(b'\x00\xff')
    assert json.loads(connection.recv())['error']['code'] == 'invalid_json'
    connection.send('{"type": "response.create"')
    assert json.loads(connection.recv())['error']['code'] == 'invalid_json'
  with raw(url) as connection:  # larger than serve.max_body
    connection.recv()
    with pytest.raises(ConnectionClosed):
      connection.send('x' * (2**20 + 100))
      connection.recv()
  for half in (b'', struct.pack('>BBI', 0x81, 0xFE, 0), b'\xff' * 40):
    with raw(url) as connection:  # an answer is on its way while half a frame comes
      connection.recv()
      connection.send(json.dumps({'type': 'conversation.item.create', 'item': {
          'type': 'message', 'role': 'user', 'content': [{'type': 'input_text', 'text': 'a'}]}}))
      connection.send(json.dumps({'type': 'response.create'}))
      connection.recv()
      connection.socket.sendall(half)
      connection.socket.shutdown(socket.SHUT_RDWR)
  idle(service)
  with session(url) as connection:
    say(connection, 'still here')
    assert until(connection, 'response.done')[-1].response.status == 'completed'


def test_keys_and_origins():
  with tiny.running(key='secret', routes=realtime.ROUTES) as (_, url):
    for options in ({}, {'additional_headers': {'Authorization': 'Bearer no'}},
                    {'subprotocols': ['realtime', 'openai-insecure-api-key.no']},
                    {'additional_headers': {'Authorization': 'Bearer secret',
                                            'Origin': 'https://example.org'}}):
      with pytest.raises(InvalidStatus):
        raw(url, **options)
    for options in ({'additional_headers': {'Authorization': 'Bearer secret'}},
                    {'subprotocols': ['realtime', 'openai-insecure-api-key.secret']}):
      with raw(url, **options) as connection:
        assert json.loads(connection.recv())['type'] == 'session.created'


def test_a_spoken_turn_is_transcribed(server):
  service, url = server
  with session(url) as connection:
    connection.session.update(session={'type': 'realtime', 'audio': {'input': {
        'turn_detection': None, 'transcription': {'model': 'tiny'}}}})
    connection.input_audio_buffer.append(audio=pcm(voice(0.5)))
    connection.input_audio_buffer.commit()
    events = until(connection, 'conversation.item.input_audio_transcription.completed')
    deltas = [event.delta for event in events if event.type.endswith('transcription.delta')]
    assert events[-1].transcript == ''.join(deltas).strip()
  idle(service)


@pytest.mark.slow
def test_ten_thousand_turns(server):
  service, url = server
  sizes = []
  with session(url) as connection:
    connection.session.update(session={'type': 'realtime', 'output_modalities': ['text'],
                                       'max_output_tokens': 2})
    for turn in range(10_000):
      say(connection, f'turn {turn}')
      assert until(connection, 'response.done')[-1].response.status != 'failed'
      if turn == 3_000:
        tracemalloc.start()
      if turn in (4_000, 9_999):
        sizes.append(tracemalloc.get_traced_memory()[0])
  tracemalloc.stop()
  assert sizes[1] < sizes[0] + 2**20
  idle(service)
