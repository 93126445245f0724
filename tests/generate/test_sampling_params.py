"""Sampling parameters are data: schedules and ranks by hand, limits, events, one program."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.generate.test_engine import quick_compiles  # noqa: F401
from tests.generate.test_engine import CONFIG, MODEL, SETTINGS, V, random_model, random_prompts
from ttt_jax.config import GenerateConfig, MeshConfig
from ttt_jax.errors import UserError
from ttt_jax.generate import compiled, engine, sampling_params, unmasking
from ttt_jax.model import sharding
from ttt_jax.model.transformer import Model

PLAIN = SETTINGS['plain']


def counts(size, **settings):
  """What the schedule alone commits, step by step."""
  params = sampling_params.make([GenerateConfig(**settings)], [0])
  out, left, step = [], size, 0
  while left:
    out.append(min(left, int(unmasking.scheduled(
        params, np.array([size]), np.array([left]), np.array([step]))[0])))
    left, step = left - out[-1], step + 1
  return out


def test_schedules():
  assert counts(26, steps=10) == [3] * 6 + [2] * 4
  assert counts(3, steps=10) == [1, 1, 1]
  # Worked out from r(u) = a u / (1 + (a - 1) u); a step commits at least one.
  assert counts(26, steps=10, schedule='shifted', shift=0.5) == [1, 2, 2, 1, 3, 2, 3, 3, 4, 5]
  fast = counts(26, steps=10, schedule='shifted', shift=2.0)
  assert fast[:5] == [5, 4, 3, 3, 2] and len(fast) == 10
  slow = counts(26, steps=10, schedule='shifted', shift=0.1)
  assert len(slow) == 10 and min(slow) == 1 and sum(slow) == 26


def by_hand(config, score, confidence, entropy, masked, size, step):
  """The same rules, one position after another."""
  order = sorted(np.flatnonzero(masked), key=lambda i: (-score[i], i))
  linear = size // config.steps + (step < size % config.steps)
  out, nats = set(order[:max(linear, 1)]), 0.0
  for i in order:
    if config.rule == 'entropy' and nats <= config.entropy_budget:
      out.add(i)
    nats += entropy[i]
    if config.rule == 'threshold' and confidence[i] >= config.threshold:
      out.add(i)
  return out


@pytest.mark.parametrize('rule', ['confidence', 'threshold', 'entropy'])
def test_acceptance(rule):
  rng = np.random.default_rng(0)
  config = GenerateConfig(rule=rule, steps=5, threshold=0.8, entropy_budget=1.0)
  for _ in range(50):
    masked = rng.random(12) < 0.7
    score = np.round(rng.random(12), 1).astype(np.float32)  # with ties
    confidence, entropy = rng.random((2, 12)).astype(np.float32)
    step = int(rng.integers(0, 5))
    got = unmasking.accept(sampling_params.make([config], [0]), score[None], confidence[None],
                           entropy[None], masked[None], np.array([12]), np.array([step]))
    assert set(np.flatnonzero(got[0])) == by_hand(
        config, score, confidence, entropy, masked, 12, step)


@pytest.fixture(scope='module')
def world():
  rng = np.random.default_rng(50)
  return random_model(rng), [np.array(p) for p in random_prompts(rng)]


def test_events_add_up_to_the_answer(world):
  params, prompts = world
  expected = engine.generate(MODEL, params, V, prompts, PLAIN)
  for eager in (False, True):
    running = engine.Engine(MODEL, params, V, PLAIN)
    for prompt in prompts:
      running.submit(prompt)
    ids, spans, answers = {}, {}, {}
    for event in running.events(eager=eager):
      if event.kind in ('text', 'audio'):
        assert (V.is_audio(event.ids) == (event.kind == 'audio')).all()
        ids.setdefault(event.request, []).extend(event.ids.tolist())
      elif event.kind == 'span':
        spans.setdefault(event.request, []).append(event.span)
      else:
        answers[event.request] = event.answer
    for number, answer in enumerate(expected):
      assert ids[number] == answer.ids.tolist() == answers[number].ids.tolist()
      assert spans.get(number, []) == answer.spans == answers[number].spans
      assert (answers[number].first_audio is not None) == bool(answer.spans)
  assert any(answer.spans for answer in expected)


def test_limits(world):
  params, prompts = world
  config = dataclasses.replace(PLAIN, min_span=6, max_span=9, text_gap=3)
  seen = 0
  for answer in engine.generate(MODEL, params, V, prompts, config):
    ends = [span.start + span.length for span in answer.spans]
    for span, following in zip(answer.spans, [s.start for s in answer.spans[1:]] + [None]):
      assert 6 <= span.length <= 9 or ends[-1] == span.start + span.length
      if following is not None:
        assert following - 1 - (span.start + span.length) >= 3
        seen += 1
  assert seen


RULES = [dict(rule='margin'), dict(rule='entropy', entropy_budget=2.0), dict(rule='prior'),
         dict(rule='threshold', threshold=0.02), dict(schedule='shifted', shift=0.3),
         dict(steps=1), dict(temperature=1.5, top_k=5), dict(audio_temperature=1.0, seed=3),
         dict(min_span=5), dict(text_gap=4), dict(block=2), dict(max_tokens=40)]


def test_settings_compile_nothing_and_do_not_leak(world):
  """Requests with different parameters in two slots: no new program, answers as if alone."""
  params, prompts = world
  configs = [dataclasses.replace(PLAIN, **change) for change in RULES]
  warm = engine.generate(MODEL, params, V, prompts, PLAIN)
  spoken = max(range(len(prompts)), key=lambda i: sum(span.length for span in warm[i].spans))
  asked = [prompts[spoken]] * len(configs)
  pool = engine.Engine(MODEL, params, V, PLAIN)
  before = compiled.steps._cache_size(), compiled.prefill._cache_size()
  together = pool.generate(asked, configs)
  assert (compiled.steps._cache_size(), compiled.prefill._cache_size()) == before
  for number in (1, 3, 6, 7):
    alone = engine.Engine(MODEL, params, V, PLAIN).generate(
        [asked[number]], [configs[number]], [number])[0]
    assert alone.ids.tolist() == together[number].ids.tolist()
  plain = engine.generate(MODEL, params, V, asked, PLAIN)
  changed = [a.ids.tolist() != b.ids.tolist() for a, b in zip(together, plain)]
  assert sum(changed) >= 8, 'settings must matter'


@pytest.mark.slow
def test_the_audio_softmax_changes_confidence_alone(world):
  """Greedy ids of a one-step block do not depend on confidence, so they stay."""
  params, prompts = world
  config = dataclasses.replace(PLAIN, steps=1)
  full = engine.generate(MODEL, params, V, prompts, config)
  cheap = engine.generate(MODEL, params, V, prompts, dataclasses.replace(config, softmax='audio'))
  assert [a.ids.tolist() for a in full] == [a.ids.tolist() for a in cheap]


@pytest.mark.slow
def test_guidance_contexts_differ(world):
  params, prompts = world
  strong = dataclasses.replace(PLAIN, guidance=3.0, guidance_context='begin')
  plain = engine.generate(MODEL, params, V, prompts, PLAIN)
  cheap = engine.generate(MODEL, params, V, prompts, strong)
  published = engine.generate(MODEL, params, V, prompts,
                              dataclasses.replace(strong, guidance_context='published'))
  ids = lambda answers: [answer.ids.tolist() for answer in answers]
  assert ids(plain) != ids(cheap) != ids(published)


@pytest.mark.slow
def test_text_and_spans_may_share_windows(world):
  params, prompts = world
  apart = engine.Engine(MODEL, params, V, PLAIN, mixed=False).generate(prompts)
  mixed = engine.Engine(MODEL, params, V, PLAIN, mixed=True).generate(prompts)
  assert [a.ids.tolist() for a in apart] == [a.ids.tolist() for a in mixed]
  assert [a.spans for a in apart] == [a.spans for a in mixed]


@pytest.mark.parametrize('axes', [
    dict(data=2, tensor=2), dict(fsdp=2, tensor=2)], ids=str)
@pytest.mark.slow
def test_a_mesh_gives_the_same_tokens(axes):
  config = dataclasses.replace(CONFIG, num_attention_heads=4, num_key_value_heads=2)
  model = Model(config, V.size)
  rng = np.random.default_rng(51)
  params = random_model(rng, model=model)
  prompts = [np.array(p) for p in random_prompts(rng, 3)]
  settings = dataclasses.replace(PLAIN, max_tokens=40)
  alone = engine.generate(model, params, V, prompts, settings)
  mesh = sharding.make_mesh(MeshConfig(**({'fsdp': 1} | axes)), jax.devices()[:4])
  shapes = jax.eval_shape(lambda: params)
  where = sharding.shardings(mesh, model.axes(), shapes)
  with jax.set_mesh(mesh):
    placed = jax.tree.map(jax.device_put, params, where)
    cut = engine.generate(model, placed, V, prompts, settings)
  assert [a.ids.tolist() for a in alone] == [a.ids.tolist() for a in cut]
  assert any(answer.spans for answer in alone)


def test_a_cache_that_is_too_large_is_rejected(world):
  with pytest.raises(UserError, match='generate.slots=2 and generate.max_tokens=48 need'):
    engine.Engine(MODEL, world[0], V, dataclasses.replace(PLAIN, memory=1e-6))


def test_by_default_the_cache_may_take_what_is_free(world):
  vast = dataclasses.replace(PLAIN, max_tokens=2**30, slots=2**20)
  with pytest.raises(UserError, match=r'GiB are free for them'):
    engine.Engine(MODEL, world[0], V, vast)


def test_a_request_larger_than_the_engine_is_rejected(world):
  pool = engine.Engine(MODEL, world[0], V, PLAIN)
  with pytest.raises(UserError, match='max_tokens=100, but the engine was made for at most 48'):
    pool.submit(world[1][0], dataclasses.replace(PLAIN, max_tokens=100))
