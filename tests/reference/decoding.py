"""Generation one request at a time: the complete sequence goes through the model at every step.

``logits_of(ids, allowed)`` returns scores [n, V] in float64. Everything is greedy. The
smallest gap between a decision and its runner-up is kept in ``Trace.margin``, so that a
comparison can tell a real difference from a tie that rounding may break either way.

Where the description of the method is silent, this follows what ttt_jax documents:
only codes and end tokens can be chosen in a span, only text ids outside (the baselines:
any id but the marker and the mask); confidence is the softmax probability over the complete
vocabulary; equal confidences go left to right; the prefix that guidance masks is everything
before the open span; the last place of a span at its limit (``max_span``, or
the end of ``max_tokens``) is kept for the forced end token.
"""

import dataclasses

import numpy as np

from tests.reference import decoder, staircase


@dataclasses.dataclass
class Trace:
  """What happened: the answer, its spans in answer coordinates, and how it came about."""
  ids: list = dataclasses.field(default_factory=list)
  spans: list = dataclasses.field(default_factory=list)  # (start, length, ended, blocks)
  finished: bool = False
  margin: float = np.inf


@dataclasses.dataclass
class Task:
  """One request and all that stays fixed while it is answered.

  Attributes:
    logits_of: (ids [n], allowed [n, n]) -> scores [n, V].
    vocab: the id space.
    prompt: ids.
    config: a GenerateConfig with temperatures 0.
    mode: 'hybrid', 'ar' or 'nar'.
    prompt_audio: 'bidirectional' or 'causal'.
  """
  logits_of: object
  vocab: object
  prompt: list
  config: object
  mode: str = 'hybrid'
  prompt_audio: str = 'bidirectional'

  def scores(self, answer):
    """Scores [n, V] of prompt + answer, masks as they stand."""
    ids = list(self.prompt) + list(answer)
    supervised = [0] * len(self.prompt) + [1] * len(answer)
    return self.logits_of(ids, staircase.document_matrix(
        self.vocab, ids, supervised, self.mode, self.prompt_audio))

  def guided(self, answer, open_at):
    """The same in an open span that begins at answer[open_at], with guidance."""
    conditional = self.scores(answer)
    if not self.config.guidance:
      return conditional
    uncond_ids = [self.vocab.mask] * (len(self.prompt) + open_at) + list(answer[open_at:])
    uncond = self.logits_of(uncond_ids, np.ones((len(uncond_ids),) * 2, bool))
    return uncond + (1 + self.config.guidance) * (conditional - uncond)

  def room(self, answer):
    return self.config.max_tokens - len(self.prompt) - len(answer)

  def allowed(self, in_span):
    """Ids that may be chosen."""
    text = list(range(self.vocab.audio_threshold))
    audio = [*range(self.vocab.code_start, self.vocab.mask), self.vocab.end_of_chunk,
             self.vocab.end_of_last]
    if self.mode == 'hybrid':
      return np.array(audio if in_span else text)
    return np.array(text + audio)


def choose(scores, can, trace):
  """(best id of ``can``, its probability among all ids)."""
  order = np.argsort(-scores[can], kind='stable')
  best, second = can[order[0]], can[order[1]]
  trace.margin = min(trace.margin, scores[best] - scores[second])
  return int(best), float(np.exp(decoder.log_softmax(scores))[best])


def schedule(masked, steps):
  """How many of ``masked`` tokens each step commits; the first steps take the remainder."""
  return [masked // steps + (1 if step < masked % steps else 0) for step in range(steps)]


def fill_block(task, answer, block, open_at, trace):
  """Append ``block`` masks to answer and resolve them, most confident first."""
  first = len(answer)
  answer = answer + [task.vocab.mask] * block
  for count in schedule(block, task.config.steps):
    if not count:
      continue
    scores = task.guided(answer, open_at)
    proposals = []
    for i in range(first, len(answer)):
      if answer[i] == task.vocab.mask:
        token, confidence = choose(scores[len(task.prompt) + i], task.allowed(True), trace)
        proposals.append((-confidence, i, token))
    proposals.sort()
    if count < len(proposals):
      # Rounding moves p by p (1 - p) times the logits' error, and by its own last bits; put
      # the gap in units of logits.
      p, rival = -proposals[count - 1][0], -proposals[count][0]
      trace.margin = min(trace.margin, (p - rival) / (p * (1 - p) + 0.02))
    for _, i, token in proposals[:count]:
      answer[i] = token
  return answer


def fill_span(task, answer, limit, ends, forced, trace):
  """Block after block from the end of ``answer`` on, cut at the first of ``ends``.

  Without one, ``forced`` becomes the last of ``limit`` tokens.
  """
  start, blocks, ended = len(answer), 0, False
  while not ended:
    block = min(task.config.block, limit - 1 - (len(answer) - start))
    if block == 0:
      answer = answer + [forced]
      break
    answer = fill_block(task, answer, block, start, trace)
    blocks += 1
    found = [i for i in range(start, len(answer)) if answer[i] in ends]
    if found:
      answer, ended = answer[:found[0] + 1], True
  trace.spans.append((start, len(answer) - start, ended, blocks))
  return answer


def generate(task):
  """Answer one request; a Trace."""
  trace, answer, vocab = Trace(), [], task.vocab
  if task.mode == 'nar':  # the complete answer is one span of masks, up to im_end
    trace.ids = fill_span(task, answer, task.room(answer), [vocab.im_end], vocab.im_end, trace)
    trace.finished = trace.spans[0][2]
    return trace
  while task.room(answer) > 0 and not trace.finished:
    token, _ = choose(task.scores(answer)[-1], task.allowed(False), trace)
    answer = answer + [token]
    trace.finished = token == vocab.im_end
    if task.mode == 'hybrid' and vocab.is_begin(token) and task.room(answer) > 0:
      end = vocab.end_of_chunk if token == vocab.begin_of_audio else vocab.end_of_last
      limit = min(task.config.max_span, task.room(answer))
      answer = fill_span(task, answer, limit, [vocab.end_of_chunk, vocab.end_of_last], end, trace)
  trace.ids = answer
  return trace
