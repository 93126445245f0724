"""The published way of generating, in PyTorch: the side that benchmarks compare with.

  python -m benchmarks.torch_generate FOLDER THREADS

Hugging Face's Qwen2 without a cache, one request at a time: at every step, for a text token
as for a block's masks, the complete sequence goes through the model with a dense hybrid mask,
and the head scores every position over the complete vocabulary, as the published code's call
of the model does. Only the rows of these scores that are needed are used.
Guidance is a second such pass with every id up to the begin token replaced by the mask.
Greedy, float32. FOLDER is that of benchmarks/our_generate.py.
"""

import json
import pathlib
import sys
import time
from typing import Any

import numpy as np

from benchmarks import common, torch_baseline
from ttt_jax.tokens.batch import run_ids
from ttt_jax.tokens.vocab import Vocabulary


class Trace:
  """The times of an answer's steps, and how close their decisions were.

  Attributes:
    seconds, lengths, kinds: per step; kind is 'text' or 'span'.
    gaps: per token of the answer, the smallest gap between a decision of its block (or of its
      text step) and the runner-up, in units of logits: below about 1e-4, rounding may
      decide either way.
  """

  def __init__(self):
    self.seconds, self.lengths, self.kinds, self.gaps = [], [], [], []

  def made(self, kind: str, length: int, began: float) -> None:
    self.seconds.append(time.perf_counter() - began)
    self.lengths.append(length)
    self.kinds.append(kind)


class Published:
  """The model and its decoder."""

  def __init__(self, folder: pathlib.Path):
    import torch
    case = json.loads((folder / 'case.json').read_text(encoding='utf-8'))
    self.vocab = vocab = Vocabulary(**case['vocabulary'])
    self.model = torch_baseline.build(case['config'], vocab.size, case['positions'],
                                      folder / 'weights.npz', 'sdpa').eval()
    ids = torch.arange(vocab.size)
    self._text = vocab.is_audio(ids)             # True: not allowed in text
    self._codes = ~vocab.is_code(ids)            # True: not allowed in a span before min_span
    self._codes_or_ends = self._codes & ~vocab.is_end(ids)

  # -- the decoder ------------------------------------------------------------------------

  def logits(self, ids: list[int]) -> Any:
    """Scores [T, V] of a sequence under the hybrid mask."""
    import torch
    array = np.asarray(ids)
    span = run_ids(self.vocab.is_audio(array), np.ones_like(array))
    real = torch.ones(1, len(ids), dtype=torch.bool)
    mask = torch_baseline.dense_mask(torch.from_numpy(span)[None], real)
    return self.model(input_ids=torch.tensor(ids)[None], attention_mask=mask).logits[0]

  def next_text(self, ids: list[int], gap: int, settings: dict, trace: Trace) -> int:
    """The next text token, ``gap`` text tokens after the last span."""
    import torch
    began = time.perf_counter()
    scores = self.logits(ids)[-1].masked_fill(self._text, -torch.inf)
    if gap < settings['text_gap']:
      scores[[self.vocab.begin_of_audio, self.vocab.begin_of_quad]] = -torch.inf
    best = scores.topk(2).values
    token = int(scores.argmax())
    trace.made('text', len(ids), began)
    trace.gaps.append(float(best[0] - best[1]))
    return token

  def fill(self, ids: list[int], masks: int, begin: int, settings: dict, trace: Trace,
           max_steps: int | None = None) -> list[int]:
    """``ids`` and a block whose masks are committed, the most confident first.

    Args:
      ids: up to the block.
      masks: its size.
      begin: index of the span's begin token.
      settings: of GenerateConfig.
      trace: the steps are added to it.
      max_steps: steps after which to stop, with masks left.
    """
    import torch
    steps, first, gap = settings['steps'], len(ids), float('inf')
    ids = ids + [self.vocab.mask] * masks
    for step in range(steps if max_steps is None else min(steps, max_steps)):
      count = masks // steps + (step < masks % steps)
      if not count:
        continue
      began = time.perf_counter()
      scores = self._guided(ids, first, begin, settings['guidance'])
      allowed = torch.where(
          (torch.arange(first, len(ids)) - begin < settings['min_span'])[:, None], self._codes,
          self._codes_or_ends)
      masked = scores.masked_fill(allowed, -torch.inf)
      token = masked.argmax(-1)
      sure = torch.softmax(scores, -1).gather(1, token[:, None])[:, 0]
      left = torch.tensor(ids[first:]) == self.vocab.mask
      order = torch.where(left, sure, -1.0).argsort(descending=True, stable=True)
      for i in order[:count].tolist():
        ids[first + i] = int(token[i])
      trace.made('span', len(ids), began)
      gap = min(gap, _closest(masked[left], sure[order].tolist(), count, int(left.sum())))
    trace.gaps += [gap] * masks
    return ids

  def _guided(self, ids: list[int], first: int, begin: int, weight: float) -> Any:
    """Scores of the block, [masks, V]."""
    scores = self.logits(ids)[first:]
    if weight:
      blind = self.logits([self.vocab.mask] * (begin + 1) + ids[begin + 1:])[first:]
      scores = blind + (1 + weight) * (scores - blind)
    return scores

  def run(self, prompt: list[int], settings: dict, trace: Trace) -> list[int]:
    """Prompt and answer."""
    vocab, ids, gap = self.vocab, list(prompt), 2**30
    while len(ids) < settings['max_tokens']:
      ids.append(self.next_text(ids, gap, settings, trace))
      gap += 1
      if ids[-1] == vocab.im_end:
        break
      if vocab.is_begin(ids[-1]) and len(ids) < settings['max_tokens']:
        ids, gap = self._span(ids, settings, trace), 0
    return ids

  def _span(self, ids: list[int], settings: dict, trace: Trace) -> list[int]:
    """Block after block up to an end token, or to the limit, where one is forced."""
    vocab, begin = self.vocab, len(ids) - 1
    limit = min(settings['max_span'], settings['max_tokens'] - len(ids))
    while True:
      start = len(ids)
      masks = min(settings['block'], limit - 1 - (start - begin - 1))
      if not masks:
        last = ids[begin] == vocab.begin_of_quad
        trace.gaps.append(float('inf'))
        return ids + [vocab.end_of_last if last else vocab.end_of_chunk]
      ids = self.fill(ids, masks, begin, settings, trace)
      ends = [i for i in range(start, len(ids)) if vocab.is_end(ids[i])]
      if ends:
        del trace.gaps[len(trace.gaps) - (len(ids) - ends[0] - 1):]
        return ids[:ends[0] + 1]

  # -- requests ----------------------------------------------------------------------

  def answer(self, prompt: list[int], settings: dict) -> dict:
    """A complete answer, every step timed."""
    import torch
    trace = Trace()
    with torch.inference_mode():
      ids = self.run(prompt, settings, trace)
    return {'ids': ids, **_report(trace)}

  def text(self, prefix: list[int], gap: int, settings: dict) -> dict:
    """One text step."""
    import torch
    trace = Trace()
    with torch.inference_mode():
      token = self.next_text(prefix, gap, settings, trace)
    return {'ids': [*prefix, token], **_report(trace)}

  def block(self, prefix: list[int], begin: int, masks: int, max_steps: int,
            settings: dict) -> dict:
    """The first ``max_steps`` steps of a block."""
    import torch
    trace = Trace()
    with torch.inference_mode():
      ids = self.fill(prefix, masks, begin, settings, trace, max_steps)
    return {'ids': ids, **_report(trace)}


def _closest(masked: Any, ranked: list[float], count: int, left: int) -> float:
  """The smallest gap among a step's choices, and between its last and the next in line."""
  best = masked.topk(2, -1).values
  gap = float((best[:, 0] - best[:, 1]).min())
  if count < left:
    p, rival = ranked[count - 1], ranked[count]
    # Rounding moves p by p (1 - p) times the logits' error, and by its own last bits.
    gap = min(gap, (p - rival) / max(p * (1 - p), 1e-30))
  return gap


def _report(trace: Trace) -> dict:
  return {'seconds': trace.seconds, 'lengths': trace.lengths, 'kinds': trace.kinds,
          'gaps': [min(gap, 1e9) for gap in trace.gaps]}


def main(words: list[str]) -> None:
  folder, threads = words
  common.stay_on(int(threads))
  import torch
  import transformers
  transformers.utils.logging.set_verbosity_error()
  from transformers import Qwen2ForCausalLM  # noqa: F401
  torch.set_num_threads(int(threads))
  imported = common.peak_bytes()
  published = Published(pathlib.Path(folder))
  common.serve({
      'about': lambda: {'versions': f'torch {torch.__version__}, '
                        f'transformers {transformers.__version__}', 'imported_bytes': imported},
      'answer': published.answer,
      'text': published.text,
      'block': published.block,
  })


if __name__ == '__main__':
  main(sys.argv[1:])
