"""The decoding loop of the published code, one request at a time, without a cache.

Written from a description of what that code does, apart from ttt_jax/generate and from
ttt_jax/hf/torch_code. ``logits_of(ids, allowed)`` returns scores [n, V]; the complete sequence goes
through the model at every step.

  text    Any id may follow. top_k, then top_p of the probability of all ids, then a draw; without
          either (and at temperature 0) the best id.
  begin   A begin token opens a span: blocks of masks until one has an end token. The answer's
          length is looked at before a text step and before a span; in a span again only after
          max_span tokens.
  block   The steps commit block // steps masks each, the first ones one more: the masks whose
          chosen id is most probable. Any id but im_end, which is taken out before the softmax. A
          mask that is chosen stays a mask. After all steps the block is cut at its first end token.
  null    With guidance, everything that is not a mask when the block begins becomes one.
  sight   Audio ids (masks included) see their complete run, wherever a run comes from.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass
class Trace:
  """The answer, its spans (start, length, ended, blocks), and the smallest gap of a decision."""
  ids: list = dataclasses.field(default_factory=list)
  spans: list = dataclasses.field(default_factory=list)
  finished: bool = False
  margin: float = np.inf


def sight(vocab, ids):
  """bool [n, n]: the query (axis 0) sees the key."""
  ids = np.asarray(ids)
  allowed = np.tril(np.ones((ids.size, ids.size), bool))
  at = 0
  while at < ids.size:
    stop = at + 1
    if ids[at] >= vocab.audio_threshold:
      while stop < ids.size and ids[stop] >= vocab.audio_threshold:
        stop += 1
      allowed[at:stop, at:stop] = True
    at = stop
  return allowed


def softmax(scores):
  weight = np.exp(scores - scores.max(-1, keepdims=True))
  return weight / weight.sum(-1, keepdims=True)


def next_text(scores, config, noise, trace):
  """The id after the last one; ``noise`` () -> Gumbel noise [V]."""
  cut_k, cut_p = config.top_k > 0, 0 < config.top_p < 1
  if not (config.temperature > 0 or cut_k or cut_p):
    best, second = np.sort(scores)[:-3:-1]
    trace.margin = min(trace.margin, best - second)
    return int(scores.argmax())
  p = softmax(scores / (config.temperature or 1.0))
  order = np.argsort(-p, kind='stable')
  kept, total = [], 0.0
  for place, token in enumerate(order):
    if (cut_k and place >= config.top_k) or (cut_p and kept and total >= config.top_p):
      break
    kept.append(token)
    total += p[token]
  drawn = np.log(p[kept]) + noise()[kept]
  rank = np.argsort(-drawn)
  if len(kept) > 1:
    trace.margin = min(trace.margin, drawn[rank[0]] - drawn[rank[1]])
  return int(kept[rank[0]])


def block_of(logits_of, vocab, ids, config, trace):
  """``ids`` and one more block, unmasked."""
  first, x = len(ids), list(ids) + [vocab.mask] * config.block
  known = [i for i, token in enumerate(x) if token != vocab.mask]
  for step in range(config.steps):
    count = config.block // config.steps + (step < config.block % config.steps)
    if not count:
      continue
    scores = logits_of(x, sight(vocab, x))[first:]
    if config.guidance > 0:
      null = list(x)
      for i in known:
        null[i] = vocab.mask
      uncond = logits_of(null, sight(vocab, null))[first:]
      scores = uncond + (1 + config.guidance) * (scores - uncond)
    scores = scores.copy()
    scores[:, vocab.im_end] = -np.inf
    choice, sure = scores.argmax(-1), softmax(scores).max(-1)
    open_now = [i for i in range(config.block) if x[first + i] == vocab.mask]
    order = sorted(open_now, key=lambda i: (-sure[i], i))
    for i in order[:count]:
      two = np.sort(scores[i])[:-3:-1]
      trace.margin = min(trace.margin, two[0] - two[1])
    if count < len(order):
      p, rival = sure[order[count - 1]], sure[order[count]]
      trace.margin = min(trace.margin, (p - rival) / (p * (1 - p) + 0.02))
    for i in order[:count]:
      x[first + i] = int(choice[i])
  return x


def generate(logits_of, vocab, prompt, config, noise=None):
  """A Trace.

  Args:
    logits_of: (ids [n], allowed bool [n, n]) -> scores [n, V].
    vocab: the id space.
    prompt: ids.
    config: block, steps, max_span, max_tokens (prompt and answer), temperature, top_k, top_p and
      guidance are read.
    noise: () -> Gumbel noise [V] of the next text step; needed where text is sampled.
  """
  trace, ids = Trace(), list(prompt)
  while len(ids) < config.max_tokens and not trace.finished:
    token = next_text(logits_of(ids, sight(vocab, ids))[-1], config, noise, trace)
    ids.append(token)
    trace.finished = token == vocab.im_end
    if token not in (vocab.begin_of_audio, vocab.begin_of_quad) or len(ids) >= config.max_tokens:
      continue
    start, ended, blocks = len(ids), False, 0
    while len(ids) < config.max_tokens and not ended:
      stop = len(ids) + config.max_span
      while len(ids) < stop and not ended:
        new = block_of(logits_of, vocab, ids, config, trace)
        ends = [i for i in range(len(ids), len(new))
                if new[i] in (vocab.end_of_chunk, vocab.end_of_last)]
        ended, blocks = bool(ends), blocks + 1
        ids = new[:ends[0] + 1] if ended else new
    trace.spans.append((start - len(prompt), len(ids) - start, ended, blocks))
  trace.ids = ids[len(prompt):]
  return trace
