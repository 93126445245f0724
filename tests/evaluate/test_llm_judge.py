"""The LLM judge against a real HTTP server that plays it."""

import contextlib
import http.server
import json
import threading

import pytest

from ttt_jax.errors import RetryableError, UserError
from ttt_jax.evaluate import llm_judge
from ttt_jax.evaluate.llm_judge import LlmJudge


class Server:
  """Answers POST /v1/chat/completions with the next of ``replies``, the last one for ever.

  A reply is a list of answers, (status, body), or a number of seconds to stay silent.
  """

  def __init__(self, *replies):
    self.replies, self.requests, self.closed = list(replies), [], threading.Event()

  def next(self):
    return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


@contextlib.contextmanager
def serve(*replies):
  """(server, its URL)."""
  server = Server(*replies)

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
      server.requests.append((self.path, dict(self.headers), body))
      reply = server.next()
      if isinstance(reply, float):
        server.closed.wait(reply)
        return
      status, found = reply if isinstance(reply, tuple) else (200, {
          'choices': [{'message': {'role': 'assistant', 'content': text}} for text in reply]})
      data = found.encode() if isinstance(found, str) else json.dumps(found).encode()
      self.send_response(status)
      self.send_header('Content-Length', str(len(data)))
      self.end_headers()
      self.wfile.write(data)

    def log_message(self, *args):
      pass

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as found:
    threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
    try:
      yield server, f'http://127.0.0.1:{found.server_address[1]}/v1'
    finally:
      server.closed.set()
      found.shutdown()


def judge(url, **more):
  return LlmJudge(url, 'gpt-x', **{'wait': 0.0, **more})


def test_ratings_and_what_cannot_be_read(monkeypatch):
  monkeypatch.setenv('OPENAI_API_KEY', 'secret')
  with serve(['4', 'Score: 5/5', 'Well, hard to say']) as (server, url):
    verdict = judge(url).rate('What is up?', 'The sky.')
  assert verdict.values == [4, 5] and verdict.malformed == 1
  ((path, headers, body),) = server.requests
  assert path == '/v1/chat/completions' and headers['Authorization'] == 'Bearer secret'
  assert body['model'] == 'gpt-x' and body['n'] == 3
  prompt = body['messages'][0]['content']
  assert 'What is up?' in prompt and 'The sky.' in prompt


def test_the_majority_of_yes_and_no():
  with serve(['Yes', 'no.', '**Yes**']) as (_, url):
    assert judge(url).compare('Who?', 'Ann', 'It was Ann').majority == 1.0
  with serve(['No', 'no', 'Yes, it is']) as (_, url):
    assert judge(url).compare('Who?', 'Ann', 'Bob').majority == 0.0
  with serve(['Perhaps']) as (_, url):
    verdict = judge(url).compare('Who?', 'Ann', 'Bob')
  assert verdict.majority is None and verdict.malformed == 3


@pytest.mark.parametrize('first, requests', [
    (['3'], 3), ((400, {'error': {'message': 'n must be 1'}}), 4)])
def test_a_server_that_gives_one_answer_at_a_time(first, requests):
  with serve(first, ['3']) as (server, url):
    assert judge(url + '/chat/completions/').rate('a', 'b').values == [3, 3, 3]
  assert len(server.requests) == requests


def test_failures_are_tried_again():
  replies = [(500, 'oops'), (429, {'error': 'slow down'}), (200, 'no json'), (200, {'choices': []}),
             0.3, ['2', '2', '2']]
  with serve(*replies) as (server, url):
    assert judge(url, timeout=0.2).rate('a', 'b').values == [2, 2, 2]
  assert len(server.requests) == 6


def test_an_unreachable_judge_may_be_tried_again_later():
  with serve((503, 'full')) as (server, url):
    with pytest.raises(RetryableError, match='no answer in 6 attempts .HTTP 503: full'):
      judge(url).rate('a', 'b')
  with pytest.raises(RetryableError, match='refused.*the same command goes on from here'):
    judge(url).rate('a', 'b')  # nobody listens any more


@pytest.mark.parametrize('status, sentence', [
    (401, 'refuses the key of the environment variable OPENAI_API_KEY .HTTP 401: bad key'),
    (404, "refuses the request for the model 'gpt-x' .HTTP 404: bad key")])
def test_a_refused_request_is_a_sentence(status, sentence):
  with serve((status, {'error': {'message': 'bad key'}})) as (server, url):
    with pytest.raises(UserError, match=sentence):
      judge(url).rate('a', 'b')
  assert len(server.requests) == 1


def test_what_is_no_judge_is_a_sentence():
  for url in ('127.0.0.1:8000', 'ftp://x/v1', 'http://'):
    with pytest.raises(UserError, match='evaluate.llm_judge_url is .* expected a URL such as'):
      LlmJudge(url, 'm')
  with pytest.raises(UserError, match='evaluate.llm_judge_model is empty'):
    LlmJudge('http://127.0.0.1/v1', '')


def test_the_description_has_no_secrets():
  about = LlmJudge('http://me:password@host:1/v1?key=x', 'm').describe()
  assert about['url'] == 'http://host:1/v1' and 'password' not in json.dumps(about)


@pytest.mark.parametrize('text, expected', [
    ('4', 4), ('[[3]]', 3), ('Rating: 4.5', 4.5), ('4/5', 4), ('0', None), ('6', None),
    ('10', None),
    ('3 or 4', None), ('', None), ('good', None), ('4 4', 4), ('-3', None)])
def test_ratings(text, expected):
  assert llm_judge.rating(text) == expected
