"""Sampling parameters of requests as arrays: data of the compiled programs, not part of them.

So requests with different parameters share a launch, and a new value compiles nothing. Settings
that do shape programs (mode, softmax, guidance_context) belong to the engine.

S = slots or requests.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ttt_jax.config import GenerateConfig
from ttt_jax.model.types import Array

# What masked positions are ranked by (sampling.Choice.score, unmasking.ahead).
SCORES = ('confidence', 'margin', 'entropy', 'prior')
_THRESHOLD_OFF = 2.0  # no probability reaches it
_BUDGET_OFF = -1.0    # no sum of entropies is at most this
_FLOATS = ('temperature', 'audio_temperature', 'top_p', 'guidance', 'threshold', 'entropy', 'shift')


class SamplingParams(NamedTuple):
  """numpy or JAX arrays [S]; int32 unless said otherwise.

  Attributes:
    number, seed: both are folded into the keys of the request's random draws.
    max_tokens: prompt and answer together.
    block, steps: masks appended at a time, and the forward passes planned for them.
    min_span, max_span: tokens of a span, its end included.
    text_gap: text tokens between a span's end and the next begin token, at least.
    temperature, audio_temperature: float32; 0 = the most likely id. The published loop samples text
      at temperature 1 where top_k or top_p is set and the temperature is 0.
    top_k, top_p (float32): of text; 0 and 1 = off.
    guidance: float32, w of uncond + (1 + w)(cond - uncond).
    score: index into SCORES.
    threshold: float32; a choice at least as confident is committed at once.
    entropy: float32, nats; positions are committed in order of rank while the entropies of
      those before sum to at most this.
    shift: float32, the a of the time-shifted schedule; 1 = linear.
  """
  number: Array
  seed: Array
  max_tokens: Array
  block: Array
  steps: Array
  min_span: Array
  max_span: Array
  text_gap: Array
  temperature: Array
  audio_temperature: Array
  top_k: Array
  top_p: Array
  guidance: Array
  score: Array
  threshold: Array
  entropy: Array
  shift: Array


def make(configs: Sequence[GenerateConfig], numbers: Sequence[int],
         max_tokens: int | None = None) -> SamplingParams:
  """Arrays [S] of S requests' sampling parameters.

  Args:
    configs: one per request.
    numbers: of each request's random draws.
    max_tokens: a further limit of every request's max_tokens; None: no limit.
  """
  rows = [_one(config, number, max_tokens) for config, number in zip(configs, numbers)]
  column = lambda name: np.array([row[name] for row in rows],
                                 np.float32 if name in _FLOATS else np.int32)
  return SamplingParams(**{name: column(name) for name in SamplingParams._fields})


def _one(config: GenerateConfig, number: int, max_tokens: int | None) -> dict[str, float]:
  score = {'threshold': 'confidence'}.get(config.rule, config.rule)
  limit = config.max_tokens if max_tokens is None else min(config.max_tokens, max_tokens)
  same = ('seed', 'block', 'steps', 'min_span', 'max_span', 'text_gap', 'audio_temperature',
          'top_k', 'top_p', 'guidance')
  cut = config.top_k > 0 or config.top_p < 1
  temperature = 1.0 if config.preset == 'published' and cut and not config.temperature else (
      config.temperature)
  return {name: getattr(config, name) for name in same} | {
      'temperature': temperature,
      'number': number, 'max_tokens': limit, 'score': SCORES.index(score),
      'threshold': config.threshold if config.rule == 'threshold' else _THRESHOLD_OFF,
      'entropy': config.entropy_budget if config.rule == 'entropy' else _BUDGET_OFF,
      'shift': config.shift if config.schedule == 'shifted' else 1.0}


def empty(slots: int) -> SamplingParams:
  """Sampling parameters of idle slots."""
  return make([GenerateConfig()] * slots, [0] * slots)
