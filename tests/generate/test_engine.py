"""Generation equals a slow reference token for token, and does not depend on batching."""

import collections
import dataclasses

import jax
import numpy as np
import pytest

from tests.reference import batches, decoder, decoding, quick, weights
from ttt_jax.config import GenerateConfig, ModelConfig
from ttt_jax.errors import UserError
from ttt_jax.generate import compiled, engine
from ttt_jax.model.transformer import Model

V = batches.VOCAB
CONFIG = ModelConfig(num_layers=2,
                     hidden_size=16,
                     num_attention_heads=2,
                     num_key_value_heads=1,
                     head_dim=8,
                     intermediate_size=24,
                     tie_word_embeddings=False,
                     vocab_multiple=32)
MODEL = Model(CONFIG, V.size)
PROMPTS = 6
CLEAR = 2e-5  # decisions closer than this may fall either way in float32
SETTINGS = {
    'plain': GenerateConfig(block=4, steps=2, slots=2, max_span=12, max_tokens=48),
    'one step': GenerateConfig(block=3, steps=1, slots=2, max_span=10, max_tokens=48),
    'a token a step': GenerateConfig(block=4, steps=9, slots=2, max_span=9, max_tokens=44),
    'guided': GenerateConfig(block=5, steps=3, slots=2, max_span=11, max_tokens=40, guidance=0.1),
    'always forced': GenerateConfig(block=4, steps=2, slots=2, max_span=1, max_tokens=30),
    'no room': GenerateConfig(block=8, steps=4, slots=2, max_span=40, max_tokens=21),
}

SAMPLED = GenerateConfig(block=4, steps=2, slots=2, max_span=12, max_tokens=48, temperature=2.0,
                         audio_temperature=2.0, top_k=30, top_p=0.95, seed=7)


@pytest.fixture(scope='module', autouse=True)
def quick_compiles():
  """Many small programs, each run a few times: compile them without the expensive passes."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(compiled, 'steps', quick.jit(
        compiled.steps.__wrapped__, static_argnames=('setup', 'launch'), donate_argnames='pool'))
    patch.setattr(compiled, 'prefill', quick.jit(
        compiled.prefill.__wrapped__, static_argnames='model', donate_argnames='cache'))
    yield


def random_model(rng, begin=2.5, end=1.0, stop=1.5, model=MODEL):
  """Parameters whose head often opens spans, closes them and stops.

  The three factors stretch the head's rows of the begin tokens, the end tokens and im_end.
  """
  params = weights.random(model, rng, scale=0.4)
  params['trunk']['embedding'] *= 2
  head = params['trunk']['head']
  head[[V.begin_of_audio, V.begin_of_quad]] *= begin
  head[[V.end_of_chunk, V.end_of_last]] *= end
  head[V.im_end] *= stop
  return params


def random_prompts(rng, count=PROMPTS):
  """Spoken and written user turns and the assistant's header, of several lengths."""
  out = []
  for i in range(count):
    turn = batches.user_turn(rng, spoken=i % 2 == 0)
    out.append(batches.text(rng, int(rng.integers(0, 4))) + turn + [V.im_start, 1])
  return out


def compare(params, prompts, config, mode='hybrid', prompt_audio='bidirectional'):
  """Answers of both sides must agree wherever every decision was clear.

  Returns:
    (traces of the reference that were compared, number that were not).
  """
  plain = weights.convert(params, CONFIG)
  answers = engine.generate(MODEL, params, V, [np.array(p) for p in prompts], config, mode,
                            prompt_audio)
  assert len(answers) == len(prompts)
  compared = []
  for prompt, answer in zip(prompts, answers):
    trace = decoding.generate(decoding.Task(
        lambda ids, allowed: decoder.logits(plain, ids, allowed, V.size), V, prompt, config, mode,
        prompt_audio))
    if trace.margin < CLEAR:
      continue
    assert answer.ids.tolist() == trace.ids
    assert answer.ids.dtype == np.int32
    assert answer.finished == trace.finished
    if mode == 'hybrid':
      assert [(s.start, s.length, s.ended, s.blocks) for s in answer.spans] == trace.spans
    compared.append(trace)
  return compared, len(prompts) - len(compared)


def sweep(seeds, config, mode='hybrid', prompt_audio='bidirectional', **model):
  compared, unclear = [], 0
  for seed in seeds:
    rng = np.random.default_rng(seed)
    traces, skipped = compare(random_model(rng, **model), random_prompts(rng), config, mode,
                              prompt_audio)
    compared += traces
    unclear += skipped
  assert unclear <= 0.1 * len(compared), f'{unclear} of {unclear + len(compared)} were ties'
  return compared


@pytest.mark.parametrize('name', SETTINGS)
def test_answers_match_the_reference(name):
  traces = sweep(range(3), SETTINGS[name])
  assert any(trace.spans for trace in traces)
  assert len({tuple(trace.ids) for trace in traces}) > len(traces) // 2, 'answers must vary'


def test_the_reference_covers_every_corner_case():
  """One-token spans, several blocks in a span, forced ends, and answers that stop by im_end."""
  traces = sweep(range(10, 14), SETTINGS['plain'], end=1.5)
  spans = [span for trace in traces for span in trace.spans]
  assert any(length == 1 and ended for _, length, ended, _ in spans)
  assert any(blocks >= 2 and ended for _, _, ended, blocks in spans)
  assert any(not ended and length == 12 for _, length, ended, _ in spans)
  assert any(trace.finished for trace in traces) and any(not trace.finished for trace in traces)
  assert any(len(trace.spans) >= 2 for trace in traces)


def test_causal_prompt():
  traces = sweep(range(20, 22), SETTINGS['plain'], prompt_audio='causal')
  assert any(trace.spans for trace in traces)


def test_guidance_changes_answers():
  """A weight of 0.1 may change nothing here, so it is compared with a large one."""
  rng = np.random.default_rng(5)
  params, prompts = random_model(rng), random_prompts(rng)
  traces, _ = compare(params, prompts, dataclasses.replace(SETTINGS['guided'], guidance=3.0))
  little, _ = compare(params, prompts, SETTINGS['guided'])
  assert traces and any(trace.ids not in [other.ids for other in little] for trace in traces)


@pytest.mark.parametrize('mode', ['ar', pytest.param('nar', marks=pytest.mark.slow)])
def test_baselines_match_the_reference(mode):
  traces = sweep(range(30, 33), SETTINGS['plain'], mode)
  assert any(trace.finished for trace in traces) and any(not trace.finished for trace in traces)
  assert any(V.is_audio(np.array(trace.ids)).any() for trace in traces)


@pytest.mark.slow
def test_guided_nar_matches_the_reference():
  sweep(range(33, 34), SETTINGS['guided'], 'nar')


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['hybrid', 'ar', 'nar'])
@pytest.mark.parametrize('name', SETTINGS)
def test_answers_match_the_reference_many_times(name, mode):
  for end in (0.5, 1.0, 1.5):
    sweep(range(100, 104), SETTINGS[name], mode, end=end)


def test_only_codes_in_spans_and_only_text_outside():
  rng = np.random.default_rng(40)
  prompts = [np.array(p) for p in random_prompts(rng)]
  spans = 0
  for _ in range(3):
    for answer in engine.generate(MODEL, random_model(rng), V, prompts, SAMPLED):
      inside = np.zeros(len(answer.ids), bool)
      for span in answer.spans:
        ids = answer.ids[span.start:span.start + span.length]
        inside[span.start:span.start + span.length] = True
        assert V.is_begin(answer.ids[span.start - 1])
        assert V.is_code(ids[:-1]).all() and V.is_end(ids[-1]) and span.length <= 12
        spans += 1
      assert (V.is_audio(answer.ids) == inside).all()
      assert (answer.ids[:-1] != V.im_end).all()
      assert answer.finished == (answer.ids[-1] == V.im_end)
  assert spans >= 8


def test_an_answer_does_not_depend_on_the_other_requests():
  """Sampled answers of the same named requests, in another order and other batches."""
  rng = np.random.default_rng(41)
  params, prompts = random_model(rng), [np.array(p) for p in random_prompts(rng)]
  first = engine.generate(MODEL, params, V, prompts, SAMPLED)
  order = [4, 2, 5, 0, 0, 1]
  again = engine.generate(MODEL, params, V, [prompts[i] for i in order], SAMPLED, numbers=order)
  for i, answer in zip(order, again):
    assert answer.ids.tolist() == first[i].ids.tolist()
    assert answer.spans == first[i].spans
  renamed = engine.generate(MODEL, params, V, prompts, SAMPLED, numbers=range(10, 16))
  assert any(a.ids.tolist() != b.ids.tolist() for a, b in zip(first, renamed))


def test_a_short_lived_engine_computes_idle_rows_until_a_program_would_be_cheaper(monkeypatch):
  rng = np.random.default_rng(43)
  params = random_model(rng)
  prompts = [np.array(p) for p in random_prompts(rng, 3)]
  launched, steps = [], compiled.steps
  def spy(setup, launch, weights, pool, slots, *limits):
    launched.append(slots.size)
    return steps(setup, launch, weights, pool, slots, *limits)
  monkeypatch.setattr(compiled, 'steps', spy)
  monkeypatch.setattr(engine, '_SPENT', collections.Counter())
  make = lambda: engine.Engine(MODEL, params, V, dataclasses.replace(
      SETTINGS['plain'], slots=8), short_lived=True)
  found = make().generate(prompts)
  assert set(launched) == {8}
  usual = engine.generate(MODEL, params, V, prompts, SETTINGS['plain'])
  assert [a.ids.tolist() for a in found] == [a.ids.tolist() for a in usual]

  other, text = make(), compiled.Launch(1, compiled.NullContext())
  idle = 2 * sum(leaf.size for leaf in jax.tree.leaves(params)) * (8 - 4)
  program, spent = next((program, spent) for program, spent in engine._SPENT.items()
                        if program[2:] == (text, 4))
  assert spent >= idle and spent % idle == 0
  monkeypatch.setattr(engine, '_COMPILING', spent + 2.5 * idle)
  assert other._rows_for(text, 3, 100) == (8, 2, program, idle)  # two steps more
  monkeypatch.setattr(engine, '_COMPILING', spent + 0.5 * idle)
  assert other._rows_for(text, 3, 100)[:2] == (4, 100)
  assert other._rows_for(text, 5, 100)[:2] == (8, 100)


@pytest.mark.parametrize('prompt, word', [
    ([], 'empty'), ([1, V.size], 'outside the vocabulary'), ([-1], 'outside the vocabulary'),
    ([1] * 48, 'leaves no room')])
def test_bad_prompts(prompt, word):
  with pytest.raises(UserError, match=word):
    engine.generate(MODEL, random_model(np.random.default_rng(0)), V,
                    [np.array([1, 2]), np.array(prompt)], SETTINGS['plain'])


def test_calls_count_forward_passes():
  """One per text token, and one per step of each block; the last block of a span may take
  fewer, when its end is found early."""
  rng = np.random.default_rng(42)
  prompts = [np.array(p) for p in random_prompts(rng)]
  answers = engine.generate(MODEL, random_model(rng, end=0.1), V, prompts, SETTINGS['plain'])
  exact = 0
  for prompt, answer in zip(prompts, answers):
    text = len(answer.ids) - sum(span.length for span in answer.spans)
    steps = 0
    for span in answer.spans:
      room = min(12, 48 - len(prompt) - span.start) - 1
      for block in range(span.blocks):
        steps += min(2, min(4, room - 4 * block))
    early = [span for span in answer.spans if span.ended]
    assert text + steps - len(early) <= answer.calls <= text + steps
    exact += not early
  assert exact
