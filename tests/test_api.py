"""ttt_jax from Python says what the rooms behind it say, and the README's example runs."""

import subprocess
import sys

import jax
import numpy as np
import pytest

import ttt_jax
from tests import docs, small_run
from tests.hf import torch_models
from tests.reference import batches, decoder, objective as slow, staircase, weights
from ttt_jax.cli import main
from ttt_jax.config import GenerateConfig, ModelConfig, save
from ttt_jax.data import interleave, store
from ttt_jax.data.prepare.prepare import prepare
from ttt_jax.data.records import records
from ttt_jax.errors import UserError
from ttt_jax.generate import engine
from ttt_jax.model.transformer import Model
from ttt_jax.objective import hybrid
from ttt_jax.tokens.vocab import Vocabulary

V = Vocabulary('bytes', 256, 'tiny', 40)
CONFIG = ModelConfig(num_layers=2,
                     hidden_size=16,
                     num_attention_heads=2,
                     num_key_value_heads=1,
                     head_dim=8,
                     intermediate_size=24,
                     tie_word_embeddings=False,
                     vocab_multiple=32)
POLICY = dict(block=4, steps=2, slots=1, max_span=9, max_tokens=64)


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  """A Hugging Face directory over bytes, which often speaks."""
  params = torch_models.random_params(Model(CONFIG, V.size), np.random.default_rng(0), begin=3.5,
                                      vocab=V)
  return torch_models.write(tmp_path_factory.mktemp('api') / 'model', CONFIG, params, V,
                            ttt_vocabulary=V.to_dict(), ttt_generate=POLICY)


@pytest.fixture(scope='module')
def ttt(directory):
  return ttt_jax.load(directory)


def documents(count=3):
  rng = np.random.default_rng(1)
  return [batches.document(rng, kind, V) for kind in ('asr', 'multiturn', 'pt_audio')][:count]


def test_importing_is_cheap():
  code = 'import sys, ttt_jax; dir(ttt_jax); assert not {"jax", "numpy"} & set(sys.modules)'
  subprocess.run([sys.executable, '-c', code], check=True)
  with pytest.raises(AttributeError, match='laod'):
    getattr(ttt_jax, 'laod')  # noqa: B009


EXAMPLES = sorted({text for _, text in docs.blocks('python') if 'ttt_jax.load' in text})


@pytest.mark.parametrize('example', EXAMPLES, ids=range(len(EXAMPLES)))
def test_the_examples_of_the_documentation(example, directory, tmp_path, monkeypatch):
  (tmp_path / 'model').symlink_to(directory)
  monkeypatch.chdir(tmp_path)
  names = {}
  exec(example, names)  # noqa: S102 (our own documentation)
  assert {'ttt', 'terms', 'reply'} <= names.keys()
  assert 0 < names['terms'].diffusion < 100 and len(names['reply'].answer.ids)


def test_logits_under_the_hybrid_mask(ttt):
  plain = weights.convert(ttt.params, CONFIG)
  for ids, supervised in documents():
    got = ttt.logits(ids)
    assert got.shape == (len(ids), V.size) and got.dtype == np.float32
    allowed = staircase.document_matrix(V, ids, supervised)
    assert (allowed != np.tril(allowed)).any()
    np.testing.assert_allclose(got, decoder.logits(plain, ids, allowed, V.size), atol=1e-4)


def test_loss_of_a_given_noise(ttt):
  """Masks by hand, against the reference; and the noise that training would draw."""
  plain = weights.convert(ttt.params, CONFIG)
  logits_of = lambda ids, allowed: decoder.logits(plain, ids, allowed, V.size)
  rng, pairs = np.random.default_rng(2), documents()
  noises, given = [], []
  for ids, supervised in pairs:
    may = slow.maskable(V, ids, supervised, 'hybrid')
    masked = np.zeros(len(ids), bool)
    masked[rng.permutation(may)[:len(may) // 2 + 1]] = True
    noises.append(slow.Noise(masked, float(rng.uniform(0.2, 1))))
    given.append(ttt_jax.Noise(masked, noises[-1].p))
  want = np.mean([slow.document_terms(logits_of, V, *pair, noise)
                  for pair, noise in zip(pairs, noises)], axis=0)
  np.testing.assert_allclose(ttt.loss(pairs, given), want, rtol=1e-5)

  batch = ttt._rows([tuple(map(np.array, pair)) for pair in pairs])
  targets = hybrid.corrupt(batch, V, ttt.objective, jax.random.fold_in(jax.random.key(3), 0))
  drawn = [_noise(targets, row, *pair) for row, pair in enumerate(pairs)]
  want = np.mean([slow.document_terms(logits_of, V, *pair, noise)
                  for pair, noise in zip(pairs, drawn)], axis=0)
  np.testing.assert_allclose(ttt.loss(pairs, 3), want, rtol=1e-5)


def _noise(targets, row, ids, supervised):
  """One document's draw, read off the targets."""
  may = slow.maskable(V, ids, supervised, 'hybrid')
  left = np.flatnonzero(np.asarray(targets.maskable)[row, :len(ids)])
  start = int(left[0]) if len(left) and left[0] > may[0] else 0
  return slow.Noise(np.asarray(targets.masked)[row, :len(ids)],
                    float(targets.rate[row, 0]), bool(may) and not len(left), start)


def test_ppm_by_hand(ttt):
  """A noise whose first span is kept clean and out of the count."""
  plain = weights.convert(ttt.params, CONFIG)
  ids, supervised = batches.document(np.random.default_rng(5), 'multiturn', V)
  starts = [a for a, _ in slow.maskable_spans(V, ids, supervised)]
  may = np.zeros(len(ids), bool)
  may[slow.maskable(V, ids, supervised, 'hybrid')] = True
  may[:starts[1]] = False
  want = slow.document_terms(lambda ids, allowed: decoder.logits(plain, ids, allowed, V.size), V,
                             ids, supervised, slow.Noise(may, 0.5, start=starts[1]))
  got = ttt.loss([(ids, supervised)], [ttt_jax.Noise(may, 0.5, may)])
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_records_and_prompts(ttt):
  record = {'messages': [
      {'role': 'system', 'content': 'Read.'}, {'role': 'user', 'content': 'one <|audio_3|>'},
      {'role': 'assistant', 'content': [{'type': 'text', 'text': 'one'},
                                        {'type': 'audio', 'codes': [1, 2, 3]}]}]}
  example = interleave.Renderer(V, ttt.tokenizer).render(records.parse(record, 'x:1'))
  assert ttt.loss([record], 4) == ttt.loss([(example.token, example.supervised)], 4)
  prompt = ttt.prompt(record['messages'][:2])
  assert example.token[:prompt.size].tolist() == prompt.tolist()
  ids = ttt.prompt('<|audio_3|>')  # special tokens have no meaning in a string
  assert not V.is_audio(ids).any()


@pytest.mark.slow
def test_generate_is_the_engine(ttt):
  prompts = [ttt.prompt(text) for text in ('a', 'read this', 'four')]
  config = GenerateConfig(**POLICY)
  want = engine.generate(ttt.model, ttt.params, V, prompts, config)
  got = ttt.generate(prompts)
  assert [r.answer.ids.tolist() for r in got] == [a.ids.tolist() for a in want]
  alone = ttt.generate(prompts[1].tolist())
  assert alone.answer.ids.tolist() == want[1].ids.tolist()
  text, codes = interleave.Renderer(V, ttt.tokenizer).unrender(want[1].ids)
  assert alone.text == text and [c.tolist() for c in alone.codes] == [c.tolist() for c in codes]
  assert any(reply.codes for reply in got)
  assert len(ttt.generate(prompts[0], max_tokens=prompts[0].size + 2).answer.ids) == 2


@pytest.mark.parametrize('call, word', [
    (lambda t: t.generate([1], block=0), 'generate.block is 0'),
    (lambda t: t.generate([1], blok=3), 'did you mean generate.block'),
    (lambda t: t.logits([]), 'no ids'), (lambda t: t.logits([V.size]), f'id {V.size}'),
    (lambda t: t.loss([([1, 2], [0])]), '2 ids but 1'),
    (lambda t: t.loss([{'messages': []}]), 'document 1'),
    (lambda t: t.loss([([1, 2], [1, 1])], []), '0 noise patterns were given for 1 documents'),
    (lambda t: t.loss([([1, 2], [1, 1])], [ttt_jax.Noise(np.ones(2), 0.5)]), 'not maskable'),
    (lambda t: t.loss([([1, 2], [1, 1])], [ttt_jax.Noise(np.ones(3), 0.5)]), 'has shape'),
    (lambda t: t.loss([([1, 2], [1, 1])], [ttt_jax.Noise(np.zeros(2), 0.0)]), 'p=0.0'),
])
def test_mistakes(ttt, call, word):
  with pytest.raises(UserError, match=word):
    call(ttt)


def test_neither_a_model_nor_a_workdir(tmp_path):
  with pytest.raises(UserError, match='neither a Hugging Face directory'):
    ttt_jax.load(tmp_path)


def test_a_workdir_gives_the_same_model(tmp_path):
  """Imported weights, loaded from the workdir and from their directory."""
  config = small_run.replace(small_run.config(),
                             'model',
                             tie_word_embeddings=False,
                             vocab_multiple=1)
  prepare(config, tmp_path)
  vocab = store.vocabulary(tmp_path / 'data')
  model = Model(config.model, vocab.size)
  params = weights.random(model, np.random.default_rng(0), scale=0.1)
  torch_models.write(tmp_path / 'source', config.model, params, vocab,
                     ttt_vocabulary=vocab.to_dict())
  save(config, tmp_path)
  assert main.main(['import-hf', '--hf', str(tmp_path / 'source'), '--workdir', str(tmp_path),
                   '--config', str(tmp_path / 'config.json')]) == 0
  one, other = ttt_jax.load(tmp_path), ttt_jax.load(tmp_path / 'source')
  ids = one.prompt('3 1 4')
  assert ids.tolist() == other.prompt('3 1 4').tolist()
  np.testing.assert_allclose(one.logits(ids), other.logits(ids), atol=1e-5)
  assert one.settings == config.generate and one.objective == config.objective
