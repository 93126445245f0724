"""generate.preset='published' on a trained run: the engine, the exported PyTorch module and a slow
loop over transformers' own Qwen2 in float64 give the same tokens.

Text is greedy, or sampled as the published script does. The three cannot share a generator of
random numbers, so a sampled answer of the engine is compared with the loop under the engine's
noise, and one of the module with the loop under the module's noise.
"""

import dataclasses

import jax
import numpy as np
import pytest

from tests.hf.test_torch_export import held_out, random_prompts
from tests.reference import published
from ttt_jax.config import GenerateConfig, with_preset
from ttt_jax.data import interleave

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

from tests.hf import torch_models  # noqa: E402

CLEAR = 2e-4  # decisions closer than this may fall either way in float32
GREEDY = {'top_k': 0, 'top_p': 1.0}
SETTINGS = {'greedy 26/2': dict(block=26, steps=2, max_span=130, **GREEDY),
            'greedy 32/10': dict(block=32, steps=10, max_span=160, **GREEDY),
            'sampled 26/2': dict(max_span=130, seed=3)}


@pytest.fixture(scope='module')
def logits_of(exported):
  """Scores float64 [n, V] by transformers' Qwen2, without any code of ours."""
  transformers.utils.logging.set_verbosity_error()
  model = transformers.Qwen2ForCausalLM.from_pretrained(
      exported[1], dtype=torch.float64, attn_implementation='eager').eval()

  def run(ids, allowed):
    mask = torch.where(torch.tensor(allowed), 0.0, torch.finfo(torch.float32).min)
    with torch.no_grad():
      return model(torch.tensor([ids]), attention_mask=mask.double()[None, None]).logits[0].numpy()
  return run


def engine_noise(ttt, config, number):
  """() -> Gumbel noise [V] of a request's next text step, as the engine draws it; the list holds
  the index of that step in the answer."""
  at, rows = [0], ttt.params['trunk']['embedding'].shape[0]

  def draw():
    key = jax.random.key(config.seed)
    for name in (number, 0, at[0], 0, 0):
      key = jax.random.fold_in(key, name)
    return np.asarray(jax.random.gumbel(key, (rows,), np.float32, mode='high'),
                      np.float64)[:ttt.vocab.size]
  return draw, at


def module_noise(ttt, config, number):
  """The same, as the PyTorch module draws it."""
  generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
  draw = lambda: -torch.empty(1, ttt.vocab.size).exponential_(
      generator=generator).log()[0].double().numpy()
  return draw, [0]


def traced(ttt, logits_of, prompts, config, noise):
  """A Trace per prompt."""
  out = []
  for number, prompt in enumerate(prompts):
    draw, at = noise(ttt, config, number)

    def scores(ids, allowed):
      at[0] = len(ids) - len(prompt)
      return logits_of(ids, allowed)
    out.append(published.generate(scores, ttt.vocab, prompt, config, draw))
  return out


def equal(answers, traces, who):
  """How many answers are equal; the others must differ by a tie."""
  same = 0
  for answer, trace in zip(answers, traces, strict=True):
    ids, spans = list(answer.ids), [dataclasses.astuple(span) for span in answer.spans]
    if (ids, spans, answer.finished) == (trace.ids, trace.spans, trace.finished):
      same += 1
    else:
      assert trace.margin < CLEAR, (who, ids, trace)
  return same


@pytest.mark.parametrize('count', [8, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize('name', SETTINGS)
def test_three_decoders(exported, ttt, logits_of, name, count):
  config = GenerateConfig(**with_preset({}, {
      'preset': 'published', 'max_tokens': 200, 'slots': 8, **SETTINGS[name]}))
  renderer = interleave.Renderer(ttt.vocab, ttt.tokenizer)
  prompts = [renderer.render_prompt(r).tolist() for r in held_out(exported[0], count // 2)]
  prompts += random_prompts(ttt, count - len(prompts))
  settings = {key: value for key, value in dataclasses.asdict(config).items() if key != 'memory'}
  ours = [reply.answer for reply in ttt.generate(prompts, **settings)]
  theirs = torch_models.load(exported[1]).generate_speech(prompts, **settings)
  traces = traced(ttt, logits_of, prompts, config, engine_noise)
  again = traces if 'greedy' in name else traced(ttt, logits_of, prompts, config, module_noise)
  same = equal(ours, traces, 'engine'), equal(theirs, again, 'module')
  varied = len({tuple(trace.ids) for trace in traces})
  print(f'{name}: engine {same[0]} and module {same[1]} of {count} as the loop; '
        f'{varied} different answers, {sum(len(trace.spans) for trace in traces)} spans')
  assert min(same) >= 0.98 * count
  assert varied > count // 4 and sum(bool(trace.spans) for trace in traces) > count // 4
