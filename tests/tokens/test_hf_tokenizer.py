"""Tokenizer files for transformers: the same ids on both sides, for text, controls and turns."""

import json
import random
import unicodedata

import numpy as np
import pytest

from tests.tokens.corpus import strings
from tests.tokens.test_tokenizer import bpe_files  # noqa: F401
from ttt_jax.data import interleave
from ttt_jax.data.records import records
from ttt_jax.errors import UserError
from ttt_jax.tokens import hf_tokenizer, tokenizer as tokenizers
from ttt_jax.tokens.vocab import CONTROLS, QWEN_SPECIALS, Vocabulary

hf = pytest.importorskip('tokenizers')
NAMES = (*QWEN_SPECIALS, *CONTROLS)


def plain(text):
  """Without what transformers reads as control tokens, and without lone surrogates."""
  for name in (*NAMES, '<|audio|>', '<|mask_token|>', '<|end_of_audio_new|>',
               '<|end_of_audio_span_last|>'):
    text = text.replace(name, '')
  return text.replace('<|audio_', '')


@pytest.fixture(params=['bytes', 'bpe'])
def written(request, bpe_files, tmp_path):  # noqa: F811
  """(directory, our tokenizer, vocabulary)."""
  if request.param == 'bytes':
    mine = tokenizers.ByteTokenizer()
  else:
    mine = tokenizers.load_bpe(str(bpe_files[0] / 'tokenizer.json'), 'small')
  vocab = Vocabulary(mine.name, mine.ranks, 'tiny', 40)
  hf_tokenizer.write(vocab, mine, tmp_path)
  return tmp_path, mine, vocab


def test_text_has_our_ids(written):
  directory, mine, _ = written
  theirs = hf.Tokenizer.from_file(str(directory / 'tokenizer.json'))
  for text in strings(300):
    text = plain(text)
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert ids == mine.encode(text)
    assert theirs.decode(ids) == mine.decode(ids)


def test_every_added_token_has_its_id(written):
  directory, mine, vocab = written
  theirs = hf.Tokenizer.from_file(str(directory / 'tokenizer.json'))
  assert theirs.get_vocab_size() == vocab.size
  for token in range(vocab.text_ranks, vocab.size):
    assert theirs.token_to_id(vocab.name(token)) == token
    assert theirs.encode(f'a{vocab.name(token)} b', add_special_tokens=False).ids == [
        *mine.encode('a'), token, *mine.encode(' b')]
  everything = list(range(vocab.text_ranks, vocab.size))
  kept = theirs.decode(everything, skip_special_tokens=True)
  assert '<|' not in kept.replace('<|fim_', '').replace('<|repo_', '').replace('<|file_', '')


def test_reading_strips_what_was_added(written):
  directory, mine, vocab = written
  again = hf_tokenizer.read(directory, vocab)
  assert (again.ranks, type(again)) == (mine.ranks, type(mine))
  for text in strings(50):
    assert again.encode(text) == mine.encode(text)
    assert again.decode(again.encode(text)) == mine.decode(mine.encode(text))


def test_vocab_and_merges_will_do(written):
  """The other form in which Qwen2.5 ships its tokenizer."""
  directory, mine, _ = written
  model = json.loads((directory / 'tokenizer.json').read_text(encoding='utf-8'))['model']
  other = directory / 'other'
  other.mkdir()
  (other / 'vocab.json').write_text(json.dumps(model['vocab']), encoding='utf-8')
  (other / 'merges.txt').write_text('#version: 0.2\n' + ''.join(
      f'{a} {b}\n' for a, b in model['merges']), encoding='utf-8')
  again = hf_tokenizer.read(other)
  for text in strings(50):
    text = unicodedata.normalize('NFC', text)  # Qwen2.5's; the little BPE has none of its own
    assert again.encode(text) == mine.encode(text)


def test_a_rank_file_will_do(bpe_files, tmp_path):  # noqa: F811
  (tmp_path / 'qwen.tiktoken').write_bytes((bpe_files[0] / 'small.tiktoken').read_bytes())
  one = hf_tokenizer.read(tmp_path)
  other = tokenizers.load_bpe(str(bpe_files[0] / 'small.tiktoken'), 'x')
  assert one.ranks == other.ranks and one.encode('the quick dog') == other.encode('the quick dog')


def test_directories_that_do_not_fit(written, tmp_path):
  directory, mine, vocab = written
  with pytest.raises(UserError, match='40 codes|ordinary tokens|the id'):
    hf_tokenizer.read(directory, Vocabulary(mine.name, mine.ranks, 'other', 41))
  with pytest.raises(UserError, match='ordinary tokens'):
    hf_tokenizer.read(directory, Vocabulary('x', 300, 'tiny', 40))
  empty = tmp_path / 'empty'
  empty.mkdir()
  with pytest.raises(UserError, match='has no tokenizer.json'):
    hf_tokenizer.read(empty)
  (empty / 'vocab.json').write_text('{"a": 0, "b": 2}')
  (empty / 'merges.txt').write_text('')
  with pytest.raises(UserError, match='are not a BPE'):
    hf_tokenizer.read(empty)
  (empty / 'merges.txt').unlink()
  with pytest.raises(UserError, match='cannot be read'):
    hf_tokenizer.read(empty)
  (empty / 'tokenizer.json').write_text('{}')
  with pytest.raises(UserError, match='is not a tokenizer.json') as caught:
    hf_tokenizer.read(empty)
  assert 'config key' not in str(caught.value)


# -- turns -----------------------------------------------------------------------------------

def conversations(rng, count):
  """`messages` of every shape that the template renders as our records do."""
  words = [text for text in map(plain, strings(200)) if text.strip() and not text[0].isspace()]
  say = lambda: rng.choice(words)
  speech = lambda most=6: [rng.randrange(40) for _ in range(rng.randint(1, most))]
  written = lambda codes: ''.join(f'<|audio_{c}|>' for c in codes)
  for _ in range(count):
    turns = [{'role': 'system', 'content': say()}] if rng.random() < 0.5 else []
    for _ in range(rng.randint(1, 2)):
      turns.append({'role': 'user', 'content': rng.choice([
          say(), written(speech()), say() + written(speech()),
          say() + '<|begin_of_audio|>' + written(speech()) + '<|end_of_audio|>' + say(),
          [{'type': 'audio', 'codes': speech()}],
          [{'type': 'text', 'text': say()}, {'type': 'audio', 'codes': speech()}]])})
      turns.append({'role': 'assistant', 'content': rng.choice([
          say(), say() + '<|begin_of_quad|>' + written(speech()) + '<|end_of_audio_span_last|>',
          [{'type': 'audio', 'codes': speech()}, {'type': 'text', 'text': say()},
           {'type': 'audio', 'codes': speech()}]])})
    yield turns


def test_turns_have_the_ids_of_our_records(written):
  """Whole conversations, and prompts that an answer is to follow."""
  transformers = pytest.importorskip('transformers')
  directory, mine, vocab = written
  theirs = transformers.AutoTokenizer.from_pretrained(directory)
  for turns in conversations(random.Random(0), 60):
    record = records.parse({'messages': turns}, 'here:1')
    ids = theirs.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert ids == interleave.Renderer(vocab, mine).render(record).token.tolist(), turns
    prompt = theirs.apply_chat_template(turns[:-1], tokenize=True, add_generation_prompt=True,
                                        return_dict=False)
    assert prompt == interleave.Renderer(vocab, mine).render_prompt(record).tolist()


def test_transformers_reads_the_directory(written):
  transformers = pytest.importorskip('transformers')
  directory, mine, vocab = written
  # As an export has it: the model's type must not change the tokenizer's class.
  (directory / 'config.json').write_text(json.dumps({'model_type': 'qwen2'}))
  theirs = transformers.AutoTokenizer.from_pretrained(directory)
  exact = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
  for text in strings(200):
    text = plain(text)
    assert exact(text)['input_ids'] == mine.encode(text)
    text = unicodedata.normalize('NFC', text)  # Qwen2.5's, which newer versions insist on
    assert theirs(text)['input_ids'] == mine.encode(text)
    assert theirs.decode(mine.encode(text)) == mine.decode(mine.encode(text))
  assert (theirs.eos_token_id, theirs.pad_token_id) == (vocab.im_end, vocab.pad)
  assert len(theirs) == vocab.size
  spoken = [vocab.im_start, *mine.encode('hi'), vocab.begin_of_audio,
            *vocab.encode_codes(np.arange(3)).tolist(), vocab.end_of_chunk, vocab.im_end]
  assert theirs.decode(spoken, skip_special_tokens=True) == 'hi'
  assert theirs(theirs.decode(spoken))['input_ids'] == spoken
