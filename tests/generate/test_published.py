"""generate.preset='published': the engine's answers are those of the published loop."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from tests.generate.test_engine import (  # noqa: F401  (quick_compiles is a fixture)
    CLEAR, CONFIG, MODEL, quick_compiles, random_model, random_prompts)
from tests.reference import batches, decoder, published, weights
from ttt_jax.config import GenerateConfig, with_preset
from ttt_jax.errors import UserError
from ttt_jax.generate import engine

V = batches.VOCAB
ROWS = 64  # of the model's table: V.size rounded up


def settings(**changes):
  """The preset with small numbers; text is greedy unless ``changes`` say otherwise."""
  small = dict(preset='published', block=6, steps=2, max_span=12, max_tokens=40, slots=4, top_k=0,
               top_p=1.0, guidance=0.0)
  return GenerateConfig(**with_preset({}, {**small, **changes}))


def engine_noise(config, number):
  """Gumbel noise of a request's text steps, as the engine draws it."""
  at = [0]

  def draw():
    key = jax.random.key(config.seed)
    for name in (number, 0, at[0], 0, 0):
      key = jax.random.fold_in(key, name)
    return np.asarray(jax.random.gumbel(key, (ROWS,), np.float32, mode='high'), np.float64)[:V.size]
  return draw, at


def compare(config, seeds, count=8, **model):
  """Answers of both sides over random models and prompts; the traces that were equal. One may
  differ only where rounding breaks a tie."""
  traces, unclear = [], 0
  for seed in seeds:
    rng = np.random.default_rng(seed)
    params, prompts = random_model(rng, **model), random_prompts(rng, count)
    prompts[0] = prompts[0] + [V.begin_of_audio] + batches.codes(rng, 3)  # ends in audio
    plain = weights.convert(params, CONFIG)
    answers = engine.generate(MODEL, params, V, [np.array(p) for p in prompts], config)
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
      draw, at = engine_noise(config, number)

      def logits_of(ids, allowed):
        at[0] = len(ids) - len(prompt)
        return decoder.logits(plain, ids, allowed, V.size)

      trace = published.generate(logits_of, V, prompt, config, draw)
      spans = [dataclasses.astuple(span) for span in answer.spans]
      if (answer.ids.tolist(), spans, answer.finished) != (trace.ids, trace.spans, trace.finished):
        assert trace.margin < CLEAR, (answer.ids.tolist(), trace)
        unclear += 1
        continue
      traces.append(trace)
  assert unclear <= 0.1 * len(traces), f'{unclear} of {unclear + len(traces)} were ties'
  return traces


def corners(traces):
  """What the published loop allows and the default does not, and how often it was met."""
  met = dict.fromkeys(('audio outside', 'text inside', 'mask kept', 'over the limit', 'no end'), 0)
  for trace in traces:
    inside = np.zeros(len(trace.ids), bool)
    for start, length, ended, blocks in trace.spans:
      inside[start:start + length] = True
      met['no end'] += not ended
      met['over the limit'] += length > 12
    audio = V.is_audio(np.array(trace.ids))
    met['audio outside'] += (audio & ~inside).any()
    met['text inside'] += (~audio & inside).any()
    met['mask kept'] += V.mask in trace.ids
  return met


@pytest.mark.parametrize('changes', [{}, dict(guidance=0.7, top_k=9, top_p=0.9)],
                         ids=['greedy', 'guided and sampled'])
def test_answers_match_the_published_loop(changes):
  traces = compare(settings(**changes), [1], end=0.7)
  assert len({tuple(trace.ids) for trace in traces}) > len(traces) // 2, 'answers must vary'
  met = corners(traces)
  assert all(met[what] for what in ('audio outside', 'text inside', 'no end')), met


@pytest.mark.slow
@pytest.mark.parametrize('changes', [
    {}, dict(steps=5), dict(steps=9), dict(block=7, max_span=10), dict(guidance=0.7),
    dict(guidance=3.0, steps=3), dict(top_k=9, top_p=0.9), dict(top_p=0.8, temperature=2.0)])
def test_answers_match_the_published_loop_many_times(changes):
  traces = []
  for end in (0.3, 1.0, 1.5):
    traces += compare(settings(**changes), range(10, 16), end=end)
  met = corners(traces)
  print(len(traces), met)
  assert all(met.values()), met


def test_values_and_what_overrides_them():
  script = GenerateConfig(**with_preset({}, {'preset': 'published'}))
  assert (script.block, script.steps, script.guidance, script.top_k, script.top_p,
          script.max_span) == (26, 2, 0.1, 10, 0.95, 2600)
  mine = GenerateConfig(**with_preset({}, {'preset': 'published', 'top_k': 0}))
  assert (mine.top_k, mine.top_p) == (0, 0.95)
  # Over stored settings, the preset wins; a setting that is given with it wins over both.
  stored = dataclasses.asdict(GenerateConfig(block=9, steps=3, rule='margin', max_tokens=77))
  got = GenerateConfig(**with_preset(stored, {'preset': 'published', 'steps': 5}))
  assert (got.block, got.steps, got.rule, got.max_tokens) == (26, 5, 'confidence', 77)
  back = with_preset(dataclasses.asdict(got), {'preset': 'default'})
  assert GenerateConfig(**back) == GenerateConfig(max_tokens=77)
  # The same preset again changes nothing.
  assert GenerateConfig(**with_preset(dataclasses.asdict(got), {'preset': 'published'})) == got


@pytest.mark.parametrize('changes, words', [
    (dict(rule='margin'), "generate.rule is 'margin', but generate.preset is 'published'"),
    (dict(guidance_context='begin'), 'guidance_context'), (dict(min_span=3), 'min_span'),
    (dict(preset='publish'), "'default' or 'published'")])
def test_settings_that_contradict_it(changes, words):
  with pytest.raises(UserError, match=words):
    GenerateConfig(**with_preset({}, {'preset': 'published', **changes}))


def test_an_engine_has_one_preset():
  params = random_model(np.random.default_rng(0))
  with pytest.raises(UserError, match="decodes mode 'hybrid'"):
    engine.Engine(MODEL, params, V, settings(), mode='ar')
  default = engine.Engine(MODEL, params, V, GenerateConfig(max_tokens=40, slots=2))
  with pytest.raises(UserError, match="made for preset 'default'"):
    default.submit(np.array([1, 2]), settings())


@pytest.mark.parametrize('preset', ['default', 'published'])
def test_the_unconditional_pass_holds_all_that_a_window_can(preset):
  """A span may grow from 257 to 512 tokens within one launch."""
  config = settings(guidance=0.5, max_tokens=1200, max_span=600) if preset == 'published' else (
      GenerateConfig(guidance=0.5, max_tokens=1200))
  one = engine.Engine(MODEL, random_model(np.random.default_rng(0)), V, config)
  row = types.SimpleNamespace(known=300, length=557, config=config)
  assert one._null('published', {0: row}, 512).length >= 300 + 512
