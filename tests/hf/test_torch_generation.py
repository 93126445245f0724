"""The PyTorch module against the engine: logits, and greedy answers token for token."""

import dataclasses
import importlib
import types

import jax.numpy as jnp
import numpy as np
import pytest

from tests.generate.test_engine import quick_compiles  # noqa: F401  (a fixture, used by itself)
from tests.reference import batches
from ttt_jax.config import GenerateConfig, preset_values
from ttt_jax.config.settings import PRESETS
from ttt_jax.generate import engine
from ttt_jax.model import staircase
from ttt_jax.model.transformer import Model

torch = pytest.importorskip('torch')
pytest.importorskip('transformers')

from tests.hf import torch_models  # noqa: E402

V = batches.VOCAB
PROMPTS = 50
BASE = GenerateConfig(block=4, steps=2, slots=4, max_span=12, max_tokens=48)
with_ = lambda **changes: dataclasses.replace(BASE, **changes)
# Settings that share a line share the engine's programs.
SETTINGS = {
    'plain': BASE, 'one step': with_(block=3, steps=1), 'steps to spare': with_(steps=9),
    'margin': with_(rule='margin', steps=3), 'entropy': with_(rule='entropy', entropy_budget=1.0),
    'threshold': with_(rule='threshold', threshold=0.4, steps=4), 'prior': with_(rule='prior'),
    'shifted': with_(block=6, steps=4, schedule='shifted', shift=0.3),
    'limits': with_(min_span=3, text_gap=4), 'forced': with_(max_span=1),
    'no room': with_(block=8, steps=4, max_span=40, max_tokens=24),
    'guided': with_(block=5, steps=3, guidance=0.5),
    'published': with_(preset='published', block=6, max_span=12, max_tokens=40, guidance=0.5),
    'guided, span alone': with_(steps=3, guidance=0.5, guidance_context='begin'),
    'audio softmax': with_(steps=4, softmax='audio', rule='entropy', guidance=0.3,
                           guidance_context='begin'),
}
# A program belongs to a Model, so there is one per shape.
MODELS = {name: Model(config, V.size) for name, config in torch_models.SHAPES.items()}
# All that generate_speech takes; how much memory the engine takes is its own affair.
OPTIONS = {field.name for field in dataclasses.fields(GenerateConfig)} - {'memory'}


@pytest.fixture(scope='module', params=torch_models.SHAPES)
def pair(request, tmp_path_factory):
  """(our Model, parameters, the module loaded from a directory)."""
  return build(tmp_path_factory.mktemp('models') / request.param, request.param, 3)


def build(directory, shape, seed, **more):
  model = MODELS[shape]
  params = torch_models.random_params(model, np.random.default_rng(seed))
  return model, params, torch_models.load(
      torch_models.write(directory, model.config, params, **more))


def random_prompts(seed, count=PROMPTS):
  """Written and spoken turns, several of them, and some that end in audio."""
  rng = np.random.default_rng(seed)
  out = []
  for i in range(count):
    ids = batches.text(rng, int(rng.integers(1, 4))) + batches.user_turn(rng, spoken=i % 2 == 0)
    if i % 5 == 0:
      ids += [V.im_start, 1] + batches.answer(rng, 1) + [V.im_end]
    ids += [V.im_start, 1]
    if i % 7 == 0:
      ids += [V.begin_of_audio] + batches.codes(rng, 3)
    out.append(ids[-20:])
  return out


def test_logits_under_the_hybrid_mask(pair):
  """Packed rows of every kind of document, beside our own transformer."""
  model, params, module = pair
  rows = batches.packed(np.random.default_rng(0))[1]
  ranges = staircase.key_ranges(rows)
  ours = model.logits(params, model.hidden(params, rows.token, rows.position, *ranges))
  to = lambda x: torch.from_numpy(np.array(x)).long()
  with torch.no_grad():
    theirs = module(to(rows.token), document_ids=to(rows.document)).logits
  real = rows.document > 0
  np.testing.assert_allclose(theirs.numpy()[real], np.asarray(ours)[real], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('mode, prompt_audio', [('hybrid', 'causal'), ('ar', 'bidirectional'),
                                                ('nar', 'bidirectional'), ('nar', 'causal')])
def test_logits_of_other_masks(mode, prompt_audio, tmp_path):
  model, params, module = build(tmp_path / 'm', 'untied', 1, ttt_mode=mode,
                                ttt_prompt_audio=prompt_audio)
  rows = batches.packed(np.random.default_rng(1))[1]
  ranges = staircase.key_ranges(rows, mode, prompt_audio)
  ours = model.logits(params, model.hidden(params, rows.token, rows.position, *ranges))
  to = lambda x: torch.from_numpy(np.array(x)).long()
  with torch.no_grad():
    theirs = module(to(rows.token), document_ids=to(rows.document),
                    answer_mask=to(rows.supervised)).logits
  real = rows.document > 0
  np.testing.assert_allclose(theirs.numpy()[real], np.asarray(ours)[real], atol=1e-4, rtol=1e-4)
  if mode != 'ar':
    with pytest.raises(ValueError, match='answer_mask is required'):
      module(to(rows.token))


def test_padding_on_either_side(pair):
  _, _, module = pair
  ids = torch.tensor(random_prompts(2, 1)[0])
  alone = module(ids[None]).logits[0]
  for left, right in ((3, 0), (0, 4)):
    row = torch.nn.functional.pad(ids, (left, right), value=V.pad)[None]
    here = torch.nn.functional.pad(torch.ones_like(ids), (left, right))[None]
    padded = module(row, attention_mask=here).logits[0, left:left + len(ids)]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)


def same(pair, settings, prompts, mode='hybrid', prompt_audio='bidirectional', **given):
  """Every token, span and count of both sides; our answers."""
  model, params, module = pair
  ours = engine.generate(model, params, V, [np.array(p) for p in prompts], settings, mode,
                         prompt_audio)
  theirs = module.generate_speech(prompts, **{
      name: getattr(settings, name) for name in OPTIONS}, **given)
  for one, other in zip(ours, theirs, strict=True):
    assert other.ids == one.ids.tolist()
    assert [dataclasses.astuple(s) for s in other.spans] == [
        dataclasses.astuple(s) for s in one.spans]
    assert (other.finished, other.calls) == (one.finished, one.calls)
  return ours


@pytest.mark.parametrize('name', SETTINGS)
def test_greedy_answers_are_the_engines(name, tmp_path):
  pair = build(tmp_path / 'm', 'untied', 4)
  answers = same(pair, SETTINGS[name], random_prompts(5))
  assert len({tuple(a.ids.tolist()) for a in answers}) > PROMPTS // 2, 'answers must vary'
  assert sum(len(a.spans) for a in answers) >= PROMPTS // 2


def test_greedy_answers_of_other_shapes(pair):
  answers = same(pair, BASE, random_prompts(6, 24))
  assert any(a.spans for a in answers) and any(a.finished for a in answers)


@pytest.mark.parametrize('mode, prompt_audio', [('hybrid', 'causal'), ('ar', 'bidirectional'),
                                                ('nar', 'bidirectional')])
def test_greedy_answers_of_other_ways(mode, prompt_audio, tmp_path):
  pair = build(tmp_path / 'm', 'untied', 7, ttt_mode=mode, ttt_prompt_audio=prompt_audio)
  prompts = [p for p in random_prompts(8) if mode != 'nar' or p[-1] < V.audio_threshold]
  answers = same(pair, BASE, prompts, mode, prompt_audio)
  assert len({tuple(a.ids.tolist()) for a in answers}) >= len(prompts) // 4


def test_guided_nar(tmp_path):
  pair = build(tmp_path / 'm', 'untied', 9, ttt_mode='nar')
  prompts = [p for p in random_prompts(10, 20) if p[-1] < V.audio_threshold]
  same(pair, SETTINGS['guided'], prompts, 'nar')


def test_long_prompts_are_read_in_pieces(pair, monkeypatch):
  """Pieces of two tokens, and spans that are longer than a piece."""
  *_, module = pair
  prompts = random_prompts(11, 10)
  expected = module.generate_speech(prompts, max_tokens=40, block=4, steps=2)
  decoding = importlib.import_module(module.__module__.replace('modeling_ttt', 'ttt_decoding'))
  monkeypatch.setattr(decoding, '_LONGEST', 2)
  pieces = module.generate_speech(prompts, max_tokens=40, block=4, steps=2)
  assert [a.ids for a in pieces] == [a.ids for a in expected]


SAMPLED = dict(block=4, steps=2, max_span=12, max_tokens=48, temperature=2.0,
               audio_temperature=2.0, top_k=30, top_p=0.95, seed=7)


def test_sampled_answers_do_not_feel_their_neighbours(pair):
  *_, module = pair
  prompts = random_prompts(12, 6)
  first = module.generate_speech(prompts, **SAMPLED)
  order = [4, 2, 5, 0, 0, 1]
  again = module.generate_speech([prompts[i] for i in order], names=order, slots=2, **SAMPLED)
  assert [a.ids for a in again] == [first[i].ids for i in order]
  other = module.generate_speech(prompts, **{**SAMPLED, 'seed': 8})
  assert any(a.ids != b.ids for a, b in zip(first, other))


def test_sampled_text_follows_the_softmax(pair):
  """First tokens of many draws, beside the probabilities that the logits give."""
  *_, module = pair
  prompt, draws = random_prompts(13, 2)[1], 1500
  with torch.no_grad():
    logits = module(torch.tensor([prompt])).logits[0, -1, :V.audio_threshold]
  expected = (logits / 3.0).softmax(-1)
  answers = module.generate_speech([prompt] * draws, temperature=3.0,
                                   max_tokens=len(prompt) + 1, slots=512)
  counts = torch.bincount(torch.tensor([a.ids[0] for a in answers]), minlength=len(expected))
  spread = (expected * (1 - expected) / draws).sqrt()
  assert ((counts / draws - expected).abs() < 5 * spread + 1e-3).all()


def test_top_k_and_top_p_cut(pair):
  *_, module = pair
  prompt = random_prompts(14, 2)[1]
  with torch.no_grad():
    logits = module(torch.tensor([prompt])).logits[0, -1, :V.audio_threshold]
  first = lambda **cut: {a.ids[0] for a in module.generate_speech(
      [prompt] * 400, temperature=20.0, max_tokens=len(prompt) + 1, slots=400, **cut)}
  best = logits.argsort(descending=True).tolist()
  assert first(top_k=3) == set(best[:3])
  p = (logits / 20.0).softmax(-1).sort(descending=True).values.cumsum(0)
  count = int((p < 0.25).sum()) + 1
  assert first(top_p=0.25) <= set(best[:count]) and len(first()) > count


def test_events_add_up_to_the_answer(pair):
  """Tokens come as they become final, text and audio apart, each once."""
  *_, module = pair
  prompts = random_prompts(15, 12)
  expected = module.generate_speech(prompts, block=4, steps=2, max_tokens=48, max_span=12)
  got, spans, done = [[] for _ in prompts], [0] * len(prompts), {}
  audio = 0
  for event in module.generate_speech(prompts, stream=True, block=4, steps=2, max_tokens=48,
                                      max_span=12):
    assert event.request not in done
    assert all((x >= V.audio_threshold) == (event.kind == 'audio') for x in event.ids)
    got[event.request] += event.ids
    if event.kind == 'span':
      spans[event.request] += 1
      last = event.span.start + event.span.length
      assert len(got[event.request]) == last
    if event.kind == 'audio':
      audio += 1
      assert event.codes == [x - V.code_start for x in event.ids if x < V.mask]
    if event.kind == 'done':
      done[event.request] = event.answer
  for i, answer in enumerate(expected):
    assert done[i].ids == answer.ids == got[i] and spans[i] == len(answer.spans)
    assert sum(answer.codes, []) == [x - V.code_start for x in answer.ids
                                     if V.code_start <= x < V.mask]
    assert (answer.first_audio is not None) == bool(answer.spans)
  assert audio > sum(spans), 'audio must be reported before its span is complete'


@pytest.mark.parametrize('prompt, options, word', [
    ([[]], {}, 'empty'), ([[1], []], {}, 'prompt 2 is empty'), ([1, V.size], {}, 'outside'),
    ([1] * 48, {'max_tokens': 48}, 'no room'), ([1], {'blocks': 3}, "no option 'blocks'"),
    ([1], {'rule': 'best'}, "rule is 'best'"), ([1], {'steps': 0}, 'at least 1'),
    ([1], {'top_p': 0.0}, 'top_p')])
def test_mistakes(pair, prompt, options, word):
  with pytest.raises(ValueError, match=word):
    pair[2].generate_speech(prompt, **options)


def test_options_are_the_engines(pair):
  """Names and defaults; a new setting of the engine needs an answer here."""
  *_, module = pair
  choice = importlib.import_module(module.__module__.replace('modeling_ttt', 'ttt_choice'))
  ours = dataclasses.asdict(GenerateConfig())
  assert dataclasses.asdict(choice.Options()) == {name: ours[name] for name in OPTIONS}
  for preset in (*PRESETS, 'unknown'):
    assert choice.preset_values(preset) == preset_values(preset)


def test_another_codec_is_given(pair, tmp_path):
  """A directory without a codec says what to give; arrays and tensors are taken."""
  *_, module = pair
  prompts = random_prompts(5, 12)
  answers = [a for a in module.generate_speech(prompts, max_tokens=48, max_span=12) if any(a.codes)]
  with pytest.raises(ValueError, match=r'generate_speech\(..., codec=C\)'):
    answers[0].write_wav(tmp_path / 'a.wav')
  for convert in (np.asarray, torch.tensor):
    codec = types.SimpleNamespace(sample_rate=8000, decode=lambda codes: convert(codes / 100.0))
    for answer in module.generate_speech(prompts, max_tokens=48, max_span=12, codec=codec):
      np.testing.assert_array_equal(answer.waveform, np.float32(sum(answer.codes, [])) / 100)
      assert answer.sample_rate == 8000 and answer.waveform.dtype == np.float32


def test_a_checkpoint_brings_its_options(tmp_path):
  *_, module = build(tmp_path / 'm', 'untied', 4, ttt_generate=dict(
      dataclasses.asdict(BASE), a_later_option=1))
  prompts = random_prompts(5, 6)
  own = module.generate_speech(prompts)
  given = {name: getattr(BASE, name) for name in OPTIONS}
  assert [a.ids for a in own] == [a.ids for a in module.generate_speech(prompts, **given)]
  assert [a.ids for a in own] != [a.ids for a in module.generate_speech(prompts, max_span=3)]
  single = module.generate_speech(torch.tensor([prompts[0]]))
  assert single.ids == own[0].ids


@pytest.mark.parametrize('change, word', [
    ({'mask_token': None}, 'lacks mask_token'), ({'mask_token': V.mask + 5}, 'vocab_size'),
    ({'hidden_act': 'gelu'}, 'silu'), ({'use_sliding_window': True}, 'sliding')])
def test_configs_that_are_not_ours(tmp_path, change, word):
  with pytest.raises(ValueError, match=word):
    build(tmp_path / 'm', 'untied', 0, **change)


def test_plain_qwen2_loads_the_same_weights(pair, tmp_path):
  """Without our code: causal logits of transformers' own Qwen2."""
  import transformers
  model, params, module = pair
  directory = torch_models.write(tmp_path / 'plain', model.config, params)
  plain = transformers.Qwen2ForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
  token = torch.tensor([random_prompts(16, 2)[1]])
  token = token[:, token[0] < V.audio_threshold]  # no audio: the hybrid mask is causal
  with torch.no_grad():
    torch.testing.assert_close(module(token).logits, plain(token).logits, atol=1e-5, rtol=1e-4)
  causal = torch.ones(1, token.shape[1], token.shape[1]).tril()
  with torch.no_grad():
    torch.testing.assert_close(module(token, attention_mask=causal).logits,
                               plain(token).logits, atol=1e-5, rtol=1e-4)
  ours = model.hidden(params, token.numpy(), np.arange(token.shape[1])[None],
                      np.zeros(token.shape), np.arange(1, token.shape[1] + 1)[None])
  np.testing.assert_allclose(np.asarray(model.logits(params, jnp.asarray(ours))),
                             plain(token).logits.detach().numpy(), atol=1e-4, rtol=1e-4)


def test_saved_by_torch_it_comes_back(pair, tmp_path):
  """save_pretrained writes weights, config and code of a directory that loads again."""
  *_, module = pair
  module.save_pretrained(tmp_path / 'again')
  again = torch_models.load(tmp_path / 'again')
  assert type(again).__name__ == 'TtTForCausalLM'
  for (name, one), (_, other) in zip(module.state_dict().items(), again.state_dict().items()):
    assert torch.equal(one, other), name
