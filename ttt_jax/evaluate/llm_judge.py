"""A language model that judges answers, behind the chat interface of OpenAI.

Any server with POST URL/chat/completions will do: OpenAI, vLLM, SGLang, llama.cpp, or a proxy. It
is asked only if config key evaluate.llm_judge_url is set. The key, where the server wants one, is
the environment variable OPENAI_API_KEY; it is never written anywhere.

A judge is asked for a few independent answers, whose mean or majority counts, as VoiceBench does
(arXiv 2410.17196). The wording of the questions is our own.
"""

from collections.abc import Callable
import http.client
import json
import os
import re
import time
from typing import Any, NamedTuple
import urllib.error
import urllib.parse
import urllib.request

from ttt_jax.errors import RetryableError, UserError

KEY = 'OPENAI_API_KEY'
SAMPLES = 3        # answers of the judge per question
_TEMPERATURE, _TOP_P = 0.5, 0.95
_TIMEOUT = 120.0   # s per request
_ATTEMPTS = 6      # before the judge counts as unreachable
_LONGEST_WAIT = 60.0  # s between two attempts

_RATE = """You grade the answer of a voice assistant. The assistant heard a spoken request and \
answered it; both are given as text.

Give a whole number from 1 to 5:
5 - fully answers what was asked, correct, clear and no longer than needed
4 - answers it correctly, with small weaknesses
3 - mostly correct and on the subject, but incomplete, vague or padded
2 - partly on the subject, but largely incomplete or inaccurate
1 - off the subject, wrong, or no answer at all

Request: {question}

Answer: {answer}

Write the number and nothing else."""

_COMPARE = """Question: {question}

Correct answer: {reference}

Answer to check: {answer}

Does the answer to check give the correct answer? Write Yes or No and nothing else."""


class Verdict(NamedTuple):
  """What the judge said about one answer.

  Attributes:
    values: the answers that could be read: ratings from 1 to 5, or 1.0 for yes and 0.0 for no.
    malformed: number of answers that could not.
    said: all answers, as they are.
  """
  values: list[float]
  malformed: int
  said: list[str]

  @property
  def majority(self) -> float | None:
    """1.0 if most values are yes, else 0.0; None without a value."""
    return float(2 * sum(self.values) > len(self.values)) if self.values else None


class LlmJudge:
  """A judge at a URL."""

  def __init__(self, url: str, model: str, samples: int = SAMPLES, timeout: float = _TIMEOUT,
               wait: float = 1.0):
    """
    Args:
      url: of the server up to, or with, /chat/completions: 'http://127.0.0.1:8000/v1'.
      model: name, as the server knows it.
      samples: answers per question.
      timeout: of one request [s].
      wait: before the second attempt; it doubles with each further one [s].

    Raises:
      UserError: the URL is none, or no model is named.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ('http', 'https') or not parts.netloc:
      raise UserError(f'config key evaluate.llm_judge_url is {url!r}; expected a URL such as '
                      "'http://127.0.0.1:8000/v1'.")
    if not model:
      raise UserError('config key evaluate.llm_judge_model is empty; name the model that '
                      f'{url} serves.')
    self.url, self.model, self.samples = url, model, samples
    path = parts.path.rstrip('/')
    self._endpoint = urllib.parse.urlunsplit(parts._replace(
        path=path if path.endswith('/chat/completions') else f'{path}/chat/completions'))
    self._timeout, self._wait = timeout, wait
    self._several = True  # whether the server gives several answers to one request

  def describe(self) -> dict[str, Any]:
    """URL without user and password, model, and sampling."""
    parts = urllib.parse.urlsplit(self.url)
    host = parts.netloc.rpartition('@')[2]
    return {'url': urllib.parse.urlunsplit(parts._replace(netloc=host, query='')),
            'model': self.model, 'samples': self.samples, 'temperature': _TEMPERATURE,
            'top_p': _TOP_P}

  def rate(self, question: str, answer: str) -> Verdict:
    """Ratings of an answer, 1 (worst) to 5.

    Raises:
      UserError: the server refuses the request.
      RetryableError: it cannot be reached.
    """
    return self._verdict(_RATE.format(question=question, answer=answer or '(none)'), rating)

  def compare(self, question: str, reference: str, answer: str) -> Verdict:
    """Whether an answer agrees with a reference; raises as ``rate``."""
    prompt = _COMPARE.format(question=question, reference=reference, answer=answer or '(none)')
    return self._verdict(prompt, yes_or_no)

  def _verdict(self, prompt: str, read: Callable[[str], float | None]) -> Verdict:
    said = self.ask(prompt)
    values = [value for one in said if (value := read(one)) is not None]
    return Verdict(values, len(said) - len(values), said)

  def ask(self, prompt: str) -> list[str]:
    """``samples`` answers to a prompt; raises as ``rate``."""
    out: list[str] = []
    while len(out) < self.samples:
      found = self._request(prompt, self.samples - len(out) if self._several else 1)
      self._several = self._several and len(found) > 1
      out += found
    return out[:self.samples]

  def _request(self, prompt: str, count: int) -> list[str]:
    body: dict[str, Any] = {'model': self.model, 'temperature': _TEMPERATURE, 'top_p': _TOP_P,
                            'messages': [{'role': 'user', 'content': prompt}]}
    if count > 1:
      body['n'] = count
    headers = {'Content-Type': 'application/json'}
    if key := os.environ.get(KEY, '').strip():
      headers['Authorization'] = f'Bearer {key}'
    reason = ''
    for attempt in range(_ATTEMPTS):
      wait = min(self._wait * 2 ** attempt, _LONGEST_WAIT)
      try:
        request = urllib.request.Request(self._endpoint, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=self._timeout) as response:
          found = [choice['message']['content'] or '' for choice in
                   json.loads(response.read())['choices']]
        if found:
          return found
        reason = 'it gave no choices'
      except urllib.error.HTTPError as error:
        reason = f'HTTP {error.code}: {_message(error)}'
        if error.code == 400 and count > 1:  # a server that gives one answer at a time
          return self._request(prompt, 1)
        if error.code in (401, 403):
          raise UserError(f'the LLM judge {self._endpoint} refuses the key of the environment '
                          f'variable {KEY} ({reason}).') from error
        if error.code < 500 and error.code not in (408, 409, 425, 429):
          raise UserError(f'the LLM judge {self._endpoint} refuses the request for the model '
                          f'{self.model!r} ({reason}).') from error
        after = error.headers.get('Retry-After', '')
        wait = min(max(wait, float(after)), _LONGEST_WAIT) if after.isdigit() else wait
      except (KeyError, TypeError, IndexError, ValueError) as error:
        reason = f'its response is not one of chat completions ({type(error).__name__}: {error})'
      except (OSError, http.client.HTTPException) as error:  # also time-outs
        reason = str(getattr(error, 'reason', error)) or type(error).__name__
      if attempt + 1 < _ATTEMPTS:
        time.sleep(wait)
    raise RetryableError(f'the LLM judge {self._endpoint} gave no answer in {_ATTEMPTS} attempts '
                         f'({reason}); the same command goes on from here.')


def _message(error: urllib.error.HTTPError) -> str:
  """The server's explanation, shortened."""
  try:
    text = error.read().decode('utf-8', 'replace')
  except OSError:
    return str(error.reason)
  try:
    found = json.loads(text)
    inner = found.get('error', found) if isinstance(found, dict) else found
    text = str(inner.get('message', inner) if isinstance(inner, dict) else inner)
  except ValueError:
    pass
  return ' '.join(text.split())[:200] or str(error.reason)


def rating(text: str) -> float | None:
  """The rating in a judge's answer, from 1 to 5: '4', '[[4]]', 'Score: 4', '4/5'; None if it has
  none, or more than one."""
  found = set(re.findall(r'(?<![\d.])-?\d+(?:\.\d+)?', re.sub(r'/\s*5\b', '', text)))
  value = float(found.pop()) if len(found) == 1 else 0.0
  return value if 1 <= value <= 5 else None


def yes_or_no(text: str) -> float | None:
  """1.0 for an answer that begins with yes, 0.0 for no; None for another one."""
  found = re.match(r'\W*(yes|no)\b', text.lower())
  return None if found is None else float(found[1] == 'yes')
