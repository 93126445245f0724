"""Text to ids and back; control tokens in text stay plain text."""

import base64
import json

import hypothesis
from hypothesis import strategies as st
import pytest

from ttt_jax.config import VocabConfig
from ttt_jax.errors import UserError
from ttt_jax.storage import remote
from ttt_jax.tokens import tokenizer as tokenizers

CORPUS = ['the quick brown fox jumps over the lazy dog', 'the dog barks; the fox does not',
          "it's 12 o'clock and the quick dog sleeps", 'im_start im_end audio start end'] * 3


@pytest.fixture(scope='module')
def bpe_files(tmp_path_factory):
  """A small byte-level BPE as tokenizer.json (with control tokens added) and as .tiktoken."""
  hf = pytest.importorskip('tokenizers')
  folder = tmp_path_factory.mktemp('bpe')
  letters = hf.pre_tokenizers.ByteLevel.alphabet()
  model = hf.Tokenizer(hf.models.BPE())
  model.pre_tokenizer = hf.pre_tokenizers.Sequence([
      hf.pre_tokenizers.Split(hf.Regex(
          r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r'|\s*[\r\n]+|\s+(?!\S)|\s+'), 'isolated'),
      hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
  model.decoder = hf.decoders.ByteLevel()
  trainer = hf.trainers.BpeTrainer(vocab_size=330, initial_alphabet=sorted(letters),
                                   show_progress=False)
  model.train_from_iterator(CORPUS, trainer)
  vocab = sorted(model.get_vocab().items(), key=lambda item: item[1])
  model.add_special_tokens(['<|im_start|>', '<|im_end|>'])
  model.save(str(folder / 'tokenizer.json'))
  # The printable stand-ins, inverted through the decoder one letter at a time.
  def spelled(token):
    return b''.join(bytes([_BYTE_OF[letter]]) for letter in token)
  (folder / 'small.tiktoken').write_bytes(b''.join(
      base64.b64encode(spelled(token)) + f' {rank}\n'.encode() for token, rank in vocab))
  return folder, len(vocab)


_PRINTABLE = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
_BYTE_OF = {chr(b): b for b in _PRINTABLE} | {
    chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in _PRINTABLE)}


@hypothesis.given(st.text())
def test_bytes_round_trip_any_text(text):
  tokenizer = tokenizers.create(VocabConfig())
  ids = tokenizer.encode(text)
  assert all(0 <= i < tokenizer.ranks for i in ids)
  assert tokenizer.decode(ids) == text


def test_bytes_that_are_no_utf8_become_a_mark_not_an_exception():
  tokenizer = tokenizers.create(VocabConfig())
  assert tokenizer.decode([0xC3, 0x41]) == '\ufffdA'
  assert tokenizer.encode('a\ud800') == [0x61, 0xEF, 0xBF, 0xBD]


@pytest.mark.storage
@pytest.mark.parametrize('name', ['tokenizer.json', 'small.tiktoken'])
def test_bpe_in_a_bucket(gs_bucket, bpe_files, name):
  url, path = f'{gs_bucket}/{name}', str(bpe_files[0] / name)
  remote.upload(path, url)
  assert tokenizers.load_bpe(url, 'x').pieces() == tokenizers.load_bpe(path, 'x').pieces()
  with pytest.raises(UserError, match=f'key vocab.tokenizer: {gs_bucket}/no does not exist'):
    tokenizers.load_bpe(f'{gs_bucket}/no', 'x')


@pytest.mark.parametrize('name', ['tokenizer.json', 'small.tiktoken'])
def test_bpe_round_trips_and_never_reads_control_tokens(bpe_files, name):
  folder, count = bpe_files
  tokenizer = tokenizers.load_bpe(str(folder / name), 'qwen2.5')
  assert tokenizer.ranks == count
  for text in ['the dog', '<|im_start|>user\nthe fox<|im_end|>', '你好 1234', "  it's\n\n"]:
    ids = tokenizer.encode(text)
    assert max(ids) < count
    assert tokenizer.decode(ids) == text
  assert len(tokenizer.encode('<|im_start|>')) > 1


@pytest.mark.parametrize('state', [
    {'truncation': {'direction': 'Right', 'max_length': 6, 'strategy': 'LongestFirst',
                    'stride': 0}},
    {'padding': {'strategy': {'Fixed': 64}, 'direction': 'Left', 'pad_to_multiple_of': None,
                 'pad_id': 5, 'pad_type_id': 0, 'pad_token': '<|endoftext|>'}},
    {'model': {'dropout': 0.5}}])
def test_the_state_of_the_last_call_in_a_saved_file_counts_for_nothing(bpe_files, tmp_path, state):
  folder, _ = bpe_files
  values = json.loads((folder / 'tokenizer.json').read_text(encoding='utf-8'))
  values['model'] |= state.pop('model', {})
  (tmp_path / 'saved.json').write_text(json.dumps(values | state), encoding='utf-8')
  one, other = (tokenizers.load_bpe(str(path), 'x') for path in (
      folder / 'tokenizer.json', tmp_path / 'saved.json'))
  for text in [*CORPUS, '', 'a']:
    assert other.encode(text) == one.encode(text)
  assert len(one.encode(CORPUS[0])) > 6
  assert other.definition() == one.definition()


def test_merges_recovered_from_a_rank_file_give_the_ids_of_the_json(bpe_files):
  folder, _ = bpe_files
  one, other = (tokenizers.load_bpe(str(folder / name), 'x')
                for name in ('tokenizer.json', 'small.tiktoken'))
  for text in [*CORPUS, 'quickly, the foxes jumped 12 times over', 'ünïcode überall']:
    assert one.encode(text) == other.encode(text)
  assert len(one.encode('the quick')) < len('the quick')


def test_a_tokenizer_that_is_not_qwens_is_rejected_with_both_counts(bpe_files):
  folder, count = bpe_files
  with pytest.raises(UserError, match=f'{count} ordinary tokens, but Qwen2.5 has 151643'):
    tokenizers.create(VocabConfig('qwen2.5', str(folder / 'tokenizer.json')))


@pytest.mark.parametrize('name, content, sentence', [
    ('no.json', None, 'does not exist'),
    ('a.json', '{"model": ', 'is not a tokenizer.json'),
    ('b.json', '[1]', 'is not a tokenizer.json'),
    ('c.json', json.dumps({'model': {'type': 'BPE', 'vocab': {'a': 5}, 'merges': []}}), 'gaps'),
    ('d.json', json.dumps({'model': {'type': 'BPE', 'vocab': {'a': 0}}}), 'cannot be read'),
    ('a.tiktoken', 'YQ== 0\nhello\n', 'a.tiktoken:2 is not'),
    ('b.tiktoken', 'YQ== 0\n', '256 bytes'),
])
def test_a_bad_file_is_one_sentence(tmp_path, name, content, sentence):
  pytest.importorskip('tokenizers')
  if content is not None:
    (tmp_path / name).write_text(content)
  with pytest.raises(UserError, match=sentence) as caught:
    tokenizers.load_bpe(str(tmp_path / name), 'x')
  assert name in str(caught.value)
