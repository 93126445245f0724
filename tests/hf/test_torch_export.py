"""A run trained here, exported, answers in PyTorch with the same tokens."""

import json
import subprocess
import sys

import numpy as np
import pytest

from ttt_jax.audio import codec as codecs, io
from ttt_jax.config import load
from ttt_jax.data import heldout, interleave
from ttt_jax.data.records import records

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

from tests.hf import torch_models  # noqa: E402

PROMPTS = 50
ALONE = """
import json, numpy, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
sys.modules['ttt_jax'] = None  # an import of it would fail
folder, prompts = sys.argv[1], json.load(open(sys.argv[2]))
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder)
answers = model.generate_speech(prompts, tokenizer=tokenizer)
json.dump([[a.ids, a.text, a.codes] for a in answers], open(sys.argv[3], 'w'))
longest = max(answers, key=lambda a: sum(map(len, a.codes)))
longest.write_wav('answer.wav')
numpy.savez('sounds.npz', longest.waveform, longest.codec.decode(range(60)))
"""


def held_out(workdir, count=PROMPTS // 2):
  config = load(workdir / 'config.json')
  return records.pick(heldout.load_records(workdir / config.data.path, 'heldout'), count)


def random_prompts(ttt, count):
  """Turns of random text and audio."""
  rng, vocab = np.random.default_rng(0), ttt.vocab
  for i in range(count):
    codes = vocab.encode_codes(rng.integers(0, vocab.codebook_size, rng.integers(1, 30))).tolist()
    body = rng.integers(32, 127, rng.integers(1, 40)).tolist()
    spoken = [vocab.begin_of_audio, *codes, vocab.end_of_audio] if i % 2 else []
    yield [vocab.im_start, *ttt.tokenizer.encode('user\n'), *body, *spoken, vocab.im_end,
           *ttt.tokenizer.encode('\n'), vocab.im_start, *ttt.tokenizer.encode('assistant\n')]


def test_logits_of_the_trained_weights(exported, ttt):
  module = torch_models.load(exported[1])
  for record in held_out(exported[0])[:6]:
    ids = interleave.Renderer(ttt.vocab, ttt.tokenizer).render(record).token
    with torch.no_grad():
      theirs = module(torch.tensor(ids[None].astype(np.int64))).logits[0].numpy()
    np.testing.assert_allclose(theirs, ttt.logits(ids), atol=1e-4)


def test_the_same_tokens_without_this_package(exported, ttt, tmp_path):
  """In a process that cannot import ttt_jax, with the run's own settings."""
  workdir, out = exported
  asked = held_out(workdir)
  prompts = [interleave.Renderer(ttt.vocab, ttt.tokenizer).render_prompt(r).tolist() for r in asked]
  prompts += random_prompts(ttt, PROMPTS - len(prompts))
  (tmp_path / 'prompts.json').write_text(json.dumps(prompts))
  done = subprocess.run(
      [sys.executable, '-c', ALONE, str(out), 'prompts.json', 'answers.json'], cwd=tmp_path,
      env={'HF_HOME': str(tmp_path / 'hf'), 'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1'},
      capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  theirs = json.loads((tmp_path / 'answers.json').read_text())
  assert len(theirs) == PROMPTS
  spans = 0
  for one, (ids, text, codes) in zip(ttt.generate(prompts), theirs, strict=True):
    assert one.answer.ids.tolist() == ids
    assert one.text == text
    assert [c.tolist() for c in one.codes] == [c for c in codes if c]
    spans += len(codes)
  assert spans >= PROMPTS // 2 and len({tuple(ids) for ids, _, _ in theirs}) > 5
  codec = codecs.load(workdir / load(workdir / 'config.json').data.path / 'codec')
  want = codec.sound(np.array(sum(max((codes for *_, codes in theirs),
                                      key=lambda codes: sum(map(len, codes))), [])))
  with np.load(tmp_path / 'sounds.npz') as sounds:
    np.testing.assert_array_equal(sounds['arr_0'], want)
    np.testing.assert_array_equal(sounds['arr_1'], codec.sound(np.arange(60)))
    assert sounds['arr_1'].any()
  heard, rate = io.read(tmp_path / 'answer.wav')
  assert rate == codec.sample_rate and np.abs(heard - want).max() < 1e-4


def test_saved_again_it_still_speaks(exported, tmp_path):
  torch_models.load(exported[1]).save_pretrained(tmp_path / 'again')
  for name in ('codec.json', 'codec.npz'):
    assert (tmp_path / 'again' / name).read_bytes() == (exported[1] / name).read_bytes()


def test_prompts_by_the_chat_template(exported, ttt):
  tokenizer = transformers.AutoTokenizer.from_pretrained(exported[1])
  for record in held_out(exported[0]):
    turns = records.to_json(record)['messages']
    assert turns.pop()['role'] == 'assistant'
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert ids == ttt.prompt(turns).tolist()
    assert ids == interleave.Renderer(ttt.vocab, ttt.tokenizer).render_prompt(record).tolist()
