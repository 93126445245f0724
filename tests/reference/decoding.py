"""Generation one request at a time: the whole sequence goes through the model at every step.

``logits_of(ids, allowed)`` returns scores [n, V] in float64. Everything is greedy. The
smallest gap between a decision and its runner-up is kept in ``Trace.margin``, so that a
comparison can tell a real difference from a tie that rounding may break either way.

Choices where the description is silent: only codes and end tokens can be chosen in a
span, only text ids outside; confidence is the probability among the ids that can be
chosen; equal confidences go left to right; the prefix that guidance hides is everything
before the open span.
"""

import dataclasses

import numpy as np

from tests.reference import decoder, staircase


@dataclasses.dataclass
class Trace:
  """What happened: the answer, its spans in answer coordinates, and how it came about."""
  ids: list
  spans: list = dataclasses.field(default_factory=list)    # (start, stop) incl. the end token
  forced: list = dataclasses.field(default_factory=list)   # per span: was the end forced?
  blocks: list = dataclasses.field(default_factory=list)   # per span: how many blocks
  margin: float = np.inf


def choose(scores, allowed_ids, trace):
  """(best id, its probability among allowed_ids)."""
  kept = scores[allowed_ids]
  order = np.argsort(-kept, kind='stable')
  if len(order) > 1:
    trace.margin = min(trace.margin, kept[order[0]] - kept[order[1]])
  probability = np.exp(decoder.log_softmax(kept))[order[0]]
  return int(allowed_ids[order[0]]), float(probability)


def text_ids(vocab):
  """Ids that may stand outside spans."""
  return np.arange(vocab.audio_threshold)


def span_ids(vocab):
  """Ids that may stand in a span: codes and the two end tokens."""
  return np.array([*range(vocab.code_start, vocab.mask), vocab.end_of_chunk, vocab.end_of_last])


def schedule(masked, steps):
  """How many of ``masked`` tokens each step commits; the first steps take the remainder."""
  return [masked // steps + (1 if step < masked % steps else 0) for step in range(steps)]


def scores_of(logits_of, vocab, prompt, answer, mode, prompt_audio):
  """Scores [n, V] of prompt + answer, masks kept where they stand."""
  ids = list(prompt) + list(answer)
  supervised = [0] * len(prompt) + [1] * len(answer)
  return logits_of(ids, staircase.document_matrix(vocab, ids, supervised, mode, prompt_audio))


def guided_scores(logits_of, vocab, prompt, answer, open_at, guidance, mode, prompt_audio):
  """Scores [n, V] with the prefix of the open span (from answer[open_at]) also hidden."""
  conditional = scores_of(logits_of, vocab, prompt, answer, mode, prompt_audio)
  if not guidance:
    return conditional
  hidden = [vocab.mask] * (len(prompt) + open_at) + list(answer[open_at:])
  together = np.ones((len(hidden), len(hidden)), bool)
  blind = logits_of(hidden, together)
  return blind + (1 + guidance) * (conditional - blind)


def fill_block(logits_of, vocab, prompt, answer, block, open_at, can, settings, mode,
               prompt_audio, trace):
  """Append ``block`` masks to answer and resolve them, most confident first."""
  answer = answer + [vocab.mask] * block
  first = len(answer) - block
  for count in schedule(block, settings.steps):
    if not count:
      continue
    scores = guided_scores(logits_of, vocab, prompt, answer, open_at, settings.guidance, mode,
                           prompt_audio)
    proposals = []
    for i in range(first, len(answer)):
      if answer[i] == vocab.mask:
        token, confidence = choose(scores[len(prompt) + i], can, trace)
        proposals.append((-confidence, i, token))
    proposals.sort()
    if count < len(proposals):
      trace.margin = min(trace.margin, proposals[count][0] - proposals[count - 1][0])
    for _, i, token in proposals[:count]:
      answer[i] = token
  return answer


def open_span(logits_of, vocab, prompt, answer, settings, mode, prompt_audio, trace, room):
  """Continue answer, which ends with a begin token, to the end of the span."""
  start, blocks = len(answer), 0
  limit = min(settings.max_span, room)
  while True:
    block = min(settings.block, limit - (len(answer) - start))
    answer = fill_block(logits_of, vocab, prompt, answer, block, start, span_ids(vocab), settings,
                        mode, prompt_audio, trace)
    blocks += 1
    ends = [i for i in range(start, len(answer)) if vocab.is_end(answer[i])]
    if ends:
      answer, forced = answer[:ends[0] + 1], False
      break
    if len(answer) - start >= limit:
      quad = answer[start - 1] == vocab.begin_of_quad
      answer = answer[:-1] + [vocab.end_of_last if quad else vocab.end_of_chunk]
      forced = True
      break
  trace.spans.append((start, len(answer)))
  trace.forced.append(forced)
  trace.blocks.append(blocks)
  return answer


def hybrid(logits_of, vocab, prompt, settings, prompt_audio='bidirectional'):
  """Text by AR until im_end; a begin token opens a span, filled block by block."""
  answer, trace = [], Trace([])
  while len(prompt) + len(answer) < settings.max_tokens:
    scores = scores_of(logits_of, vocab, prompt, answer, 'hybrid', prompt_audio)
    token, _ = choose(scores[-1], text_ids(vocab), trace)
    answer = answer + [token]
    if token == vocab.im_end:
      break
    room = settings.max_tokens - len(prompt) - len(answer)
    if vocab.is_begin(token) and room > 0:
      answer = open_span(logits_of, vocab, prompt, answer, settings, 'hybrid', prompt_audio,
                         trace, room)
  trace.ids = answer
  return trace
