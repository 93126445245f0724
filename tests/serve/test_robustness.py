"""1,000 malformed requests, 2,000 requests with flat memory, and a process that is told to stop:
`make test-serve`."""

import base64
import concurrent.futures
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import httpx2 as httpx
import psutil
import pytest

from tests import small_run
from tests.serve import tiny
from tests.serve.test_server import SPOKEN, asked, connection, idle, read_all, sock_address
from ttt_jax.config import ServeConfig
from ttt_jax.serve import sound_out
from ttt_jax.train import train

pytestmark = pytest.mark.slow
PATHS = ('/v1/chat/completions', '/v1/audio/speech', '/v1/audio/transcriptions')


@pytest.fixture(scope='module')
def running():
  with tiny.running(config=ServeConfig(queue=16, max_body=0.5, max_audio=2.0)) as found:
    yield found


def damaged(draw: random.Random) -> tuple[str, bytes]:
  """(path, body) of one request with something wrong, or odd."""
  wav = sound_out.wav_header(800) + draw.randbytes(800)
  sound = base64.b64encode(wav[:draw.choice([0, 3, 20, 43, 44, 45, 400, 844])]).decode()
  part = {'type': 'input_audio', 'input_audio': {
      'data': draw.choice([sound, sound[:-1], sound + '!', 'data:audio/wav;base64,' + sound, '\0']),
      'format': draw.choice(['wav', 'pcm16', 'mp3', '', '\ud800'])}}
  content = draw.choice([[part], [part, part], [{'type': 'text', 'text': '<|im_end|>'}], 'x' * 90,
                         [], None, 7, [[]], {'type': 'text'}])
  turn = {'role': draw.choice(['user', 'system', 'assistant', 'tool', '']), 'content': content}
  body = {'messages': [turn] * draw.choice([0, 1, 2, 200]),
          'input': draw.choice(['', 'a', 3, None])}
  value = lambda: draw.choice([None, -1, 0, 1, 2**70, 0.5, 'x', [], {}, True, 1e400])
  for key in draw.sample(['temperature', 'top_p', 'seed', 'stop', 'max_tokens', 'stream', 'n',
                          'modalities', 'audio', 'tools', 'steps', 'block', 'guidance', 'rule',
                          'speed', 'response_format', 'voice', 'text_gap', 'nothing'], 3):
    body[key] = value()
  raw = json.dumps(body).encode()
  if draw.random() < 0.3:  # broken bytes
    at = draw.randrange(len(raw))
    raw = draw.choice([raw[:at], raw[:at] + draw.randbytes(3) + raw[at:], b'\xff' + raw,
                       raw * 2, b'[' * 5000])
  return draw.choice(PATHS), raw


def test_a_thousand_malformed_requests(running):
  service, url = running
  draw = random.Random(0)
  with httpx.Client(timeout=120) as client:
    for number in range(1000):
      path, body = damaged(draw)
      kind = draw.choice(['application/json', 'multipart/form-data; boundary=x', 'text/plain', ''])
      try:
        response = client.post(url + path, content=body, headers={'Content-Type': kind})
      except httpx.RemoteProtocolError:
        response = None
      assert response is not None and response.status_code < 500, (number, path, body[:300])
      if response.status_code >= 400:
        assert response.json()['error']['message'], (number, body[:300])
  idle(service)
  assert httpx.post(url + PATHS[0], json={'messages': asked('Hi')}).status_code == 200


def test_broken_connections_and_bytes_that_are_not_http(running):
  service, url = running
  draw = random.Random(1)
  whole = json.dumps({'messages': asked('Hi'), 'stream': True, **SPOKEN}).encode()
  head = b'POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n' % len(whole)
  for _ in range(200):
    raw = draw.choice([head + whole, head, b'GET / HTTP/9\r\n\r\n', draw.randbytes(200),
                       b'GET /v1/realtime HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: '
                       b'Upgrade\r\n\r\n' + draw.randbytes(20)])
    with socket.create_connection(sock_address(url)) as sock:
      sock.sendall(raw[:draw.randrange(1, len(raw) + 1)])
      if draw.random() < 0.3:
        sock.settimeout(0.05)
        try:
          sock.recv(50)
        except TimeoutError:
          pass
  idle(service)
  assert httpx.get(url + '/ready').status_code == 200


def test_a_slow_reader_holds_no_slot(running):
  service, url = running
  idle(service)
  socks = [connection(url, {'messages': asked('Hello'), 'stream': True, **SPOKEN})
           for _ in range(8)]
  end = time.monotonic() + 60
  while service.loop.engine.requests or not service.loop._requests:
    assert time.monotonic() < end
    time.sleep(0.01)
  for sock in socks:
    sock.close()
  idle(service)


def test_memory_stays_flat_over_two_thousand_requests(running):
  service, url = running
  process = psutil.Process()

  def ask(i):
    with httpx.Client(timeout=120) as client:
      if i % 10 == 9:  # gone before its end
        connection(url, {'messages': asked(f'{i}'), 'stream': True, **SPOKEN}).close()
      else:
        body = {'messages': asked(f'say {i % 50}'), 'stream': i % 2 == 0, 'max_tokens': 40,
                **SPOKEN}
        assert client.post(url + PATHS[0], json=body).status_code in (200, 503)
  sizes = []
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for _ in range(5):
      list(pool.map(ask, range(400)))
      idle(service)
      sizes.append(process.memory_info().rss / 2**20)
  assert sizes[-1] - sizes[1] < 20, f'MiB after 400 requests each: {sizes}'


@pytest.fixture(scope='module')
def workdir(tmp_path_factory, prepared):
  folder = tmp_path_factory.mktemp('served')
  (folder / 'data').symlink_to(prepared)
  with small_run.one_device():
    train.train(small_run.config(steps=1, checkpoint_every=1), folder)
  return folder


def start(workdir: pathlib.Path, *flags: str) -> subprocess.Popen:
  env = {**os.environ, 'XLA_FLAGS': ''}
  return subprocess.Popen(
      [sys.executable, '-m', 'ttt_jax.cli', 'serve', '--workdir', str(workdir), *flags],
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def test_a_process_finishes_its_streams_on_sigterm(workdir):
  """And a second one on its port is one sentence and exit code 2."""
  first = start(workdir, '--port', '0', '--config.generate.slots=4')
  line = first.stdout.readline()
  url = re.search(r'http://\S+', line)[0]
  second = start(workdir, '--port', url.rsplit(':', 1)[1])
  out, err = second.communicate(timeout=120)
  assert second.returncode == 2 and 'is in use by another program' in err and 'Trace' not in err
  socks = [connection(url, {'messages': asked(str(i)), 'stream': True, **SPOKEN}) for i in range(4)]
  for sock in socks:
    assert b'200 OK' in sock.recv(15)
  first.send_signal(signal.SIGTERM)
  answers = []
  threads = [threading.Thread(target=lambda s=s: answers.append(read_all(s))) for s in socks]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  assert first.wait(60) == 0, first.stderr.read()
  assert len(answers) == 4 and all(b'data: [DONE]' in answer for answer in answers)
  with pytest.raises(OSError):
    urllib.request.urlopen(url + '/health', timeout=5)
