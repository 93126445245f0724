"""Sampling parameters of requests as arrays: data of the compiled programs, not part of them.

So requests with different parameters share a launch, and a new value compiles nothing. Settings
that do shape programs (mode, softmax, guidance_context) belong to the engine.

S = slots or requests.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ttt_jax.config import GenerateConfig

# What masked positions are ranked by (sampling.Choice.score, unmasking.ahead).
SCORES = ('confidence', 'margin', 'entropy', 'prior')
_THRESHOLD_OFF = 2.0  # no probability reaches it
_BUDGET_OFF = -1.0    # no sum of entropies is at most this


class SamplingParams(NamedTuple):
  """numpy or JAX arrays [S]; int32 unless said otherwise.

  Attributes:
    number, seed: both are folded into the keys of the request's random draws.
    max_tokens: prompt and answer together.
    block, steps: masks appended at a time, and the forward passes planned for them.
    min_span, max_span: tokens of a span, its end included.
    text_gap: text tokens between a span's end and the next begin token, at least.
    temperature, audio_temperature: float32; 0 = the most likely id.
    top_k, top_p (float32): of text; 0 and 1 = off.
    guidance: float32, w of uncond + (1 + w)(cond - uncond).
    score: index into SCORES.
    threshold: float32; a choice at least as confident is committed at once.
    entropy: float32, nats; positions are committed in order of rank while the entropies of
      those before sum to at most this.
    shift: float32, the a of the time-shifted schedule; 1 = linear.
  """
  number: np.ndarray
  seed: np.ndarray
  max_tokens: np.ndarray
  block: np.ndarray
  steps: np.ndarray
  min_span: np.ndarray
  max_span: np.ndarray
  text_gap: np.ndarray
  temperature: np.ndarray
  audio_temperature: np.ndarray
  top_k: np.ndarray
  top_p: np.ndarray
  guidance: np.ndarray
  score: np.ndarray
  threshold: np.ndarray
  entropy: np.ndarray
  shift: np.ndarray


def make(configs: Sequence[GenerateConfig], numbers: Sequence[int],
         max_tokens: int | None = None) -> SamplingParams:
  """Arrays [S] of S requests' sampling parameters.

  Args:
    configs: one per request.
    numbers: of each request's random draws.
    max_tokens: a further limit of every request's max_tokens; None: no limit.
  """
  rows = [_one(config, number, max_tokens) for config, number in zip(configs, numbers)]
  return SamplingParams(*(np.array(column) for column in zip(*rows)))


def _one(config: GenerateConfig, number: int, max_tokens: int | None) -> SamplingParams:
  integer, real = np.int32, np.float32
  score = {'threshold': 'confidence'}.get(config.rule, config.rule)
  limit = config.max_tokens if max_tokens is None else min(config.max_tokens, max_tokens)
  return SamplingParams(
      number=integer(number), seed=integer(config.seed), max_tokens=integer(limit),
      block=integer(config.block), steps=integer(config.steps),
      min_span=integer(config.min_span), max_span=integer(config.max_span),
      text_gap=integer(config.text_gap), temperature=real(config.temperature),
      audio_temperature=real(config.audio_temperature), top_k=integer(config.top_k),
      top_p=real(config.top_p), guidance=real(config.guidance),
      score=integer(SCORES.index(score)),
      threshold=real(config.threshold if config.rule == 'threshold' else _THRESHOLD_OFF),
      entropy=real(config.entropy_budget if config.rule == 'entropy' else _BUDGET_OFF),
      shift=real(config.shift if config.schedule == 'shifted' else 1.0))


def empty(slots: int) -> SamplingParams:
  """Sampling parameters of idle slots."""
  return make([GenerateConfig()] * slots, [0] * slots)
