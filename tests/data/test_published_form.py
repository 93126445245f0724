"""data.form='published' gives the ids of Hugging Face's tokenizer with the added tokens."""

import json

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from tests.tokens import corpus
from ttt_jax.data import interleave
from ttt_jax.data.records import records
from ttt_jax.errors import UserError
from ttt_jax.tokens import tokenizer as tokenizers
from ttt_jax.tokens.vocab import AUDIO_MARKER, AUDIO_TAIL, CONTROLS, QWEN_SPECIALS, Vocabulary

CODES = 40
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r'|\s*[\r\n]+|\s+(?!\S)|\s+')
ADDED = [*QWEN_SPECIALS, *CONTROLS, AUDIO_MARKER, *(f'<|audio_{i}|>' for i in range(CODES)),
         *AUDIO_TAIL]
SPAN = '<|begin_of_audio|><|audio_1|><|audio_2|><|end_of_audio_new|>'
QUAD = '<|begin_of_quad|><|audio_3|><|end_of_audio_span_last|>'


@pytest.fixture(scope='module')
def both(tmp_path_factory):
  """(a small Qwen-like tokenizer of Hugging Face with the added tokens, our renderer)."""
  hf = pytest.importorskip('tokenizers')
  model = hf.Tokenizer(hf.models.BPE())
  model.normalizer = hf.normalizers.NFC()
  model.pre_tokenizer = hf.pre_tokenizers.Sequence([
      hf.pre_tokenizers.Split(hf.Regex(SPLIT), 'isolated'),
      hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
  model.decoder = hf.decoders.ByteLevel()
  model.train_from_iterator(corpus.strings(300), hf.trainers.BpeTrainer(
      vocab_size=420, initial_alphabet=sorted(hf.pre_tokenizers.ByteLevel.alphabet()),
      show_progress=False))
  path = tmp_path_factory.mktemp('bpe') / 'tokenizer.json'
  model.save(str(path))
  own = tokenizers.load_bpe(str(path), 'small')
  model.add_tokens([hf.AddedToken(name, normalized=False, special=True) for name in ADDED])
  vocab = Vocabulary('small', own.ranks, 'test', CODES)
  assert model.get_vocab_size() == vocab.size
  return model, interleave.Renderer(vocab, own, form='published')


def template(messages):
  """The string of a conversation, with an empty system turn where there is none."""
  if messages[0]['role'] != 'system':
    messages = [{'role': 'system', 'content': ''}, *messages]
  return ''.join(f'<|im_start|>{m["role"]}\n{m["content"]}<|im_end|>\n' for m in messages)


def expected(model, messages):
  """(ids of the whole string, which of them are learned)."""
  ids = model.encode(template(messages)).ids
  learned = np.zeros(len(ids), int)
  for i, message in enumerate(messages):
    if message['role'] == 'assistant':
      before = template(messages[:i]) if i else '<|im_start|>system\n<|im_end|>\n'
      learned[len(model.encode(before + '<|im_start|>assistant\n').ids):len(
          model.encode(template(messages[:i + 1])).ids)] = 1
  return ids, learned.tolist()


def rendered(renderer, value):
  record = records.parse(json.loads(json.dumps(value)), 'a:1', form='published')
  example = renderer.render(record)
  again = records.parse(records.to_json(record), 'a:1', form='published')
  assert renderer.render(again).token.tolist() == example.token.tolist()
  return example.token.tolist(), example.supervised.tolist()


pieces = st.sampled_from([*ADDED, SPAN, QUAD, '<|audio_007|>', ' ', '\n', *corpus.strings(120)])
strings = st.lists(pieces, min_size=1, max_size=6).map(''.join)


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(strings, st.lists(st.tuples(strings, strings), min_size=1, max_size=2),
                  st.none() | strings)
def test_a_conversation_has_the_ids_of_the_tokenizer(both, document, rounds, system):
  model, renderer = both
  messages = [] if system is None else [{'role': 'system', 'content': system}]
  for user, assistant in rounds:
    messages += [{'role': 'user', 'content': user}, {'role': 'assistant', 'content': assistant}]
  assert rendered(renderer, {'messages': messages}) == expected(model, messages)
  ids = model.encode(document).ids
  assert rendered(renderer, {'text': document}) == (ids, [1] * len(ids))


@pytest.mark.parametrize('document', [
    f'One {SPAN} {SPAN} two {QUAD} three', f'{SPAN}one', f'one<|endoftext|>two {QUAD}<|endoftext|>',
    '<|audio_2|><|end_of_audio_new|> a piece that begins in a span', '<|end_of_audio_new|>x',
    'a piece that ends in one <|begin_of_audio|><|audio_2|>', 'x<|begin_of_quad|>',
    'bare <|audio_1|><|audio_2|> codes <|audio_3|> <|audio_4|>', '<|mask_token|>'])
def test_documents_of_the_published_form(both, document):
  model, renderer = both
  ids = model.encode(document).ids
  assert rendered(renderer, {'text': document}) == (ids, [1] * len(ids))


@pytest.mark.parametrize('answer', [
    'Yes <|audio_1|><|audio_2|>', f'Yes{SPAN}I do{QUAD}', f'Yes{QUAD} and more', '\n\nYes',
    '<|begin_of_audio|><|audio_1|><|end_of_audio|>', '<|im_end|> <tool_call>{}</tool_call>'])
def test_conversations_of_the_published_form(both, answer):
  model, renderer = both
  asked = 'Words<|begin_of_audio|><|audio_1|><|end_of_audio|>'
  messages = [{'role': 'user', 'content': asked}, {'role': 'assistant', 'content': answer}]
  value = {'messages': [{**messages[0], 'text_content': None},
                        {'text_content': '{{text}}', **messages[1]}]}
  assert rendered(renderer, value) == expected(model, messages)
  assert rendered(renderer, {'messages': json.dumps(value['messages'])}) == expected(
      model, messages)
  record = records.parse(value, 'a:1', form='published')
  prompt = renderer.render_prompt(record).tolist()
  assert prompt == model.encode(template(messages[:1]) + '<|im_start|>assistant\n').ids
  # A turn of the user at the end is context of nothing, but part of the string.
  more = [*messages, {'role': 'user', 'content': 'Thanks.'}]
  assert rendered(renderer, {'messages': more}) == expected(model, more)


def test_recordings_and_parts_are_rendered_as_in_the_default_form(both):
  _, renderer = both
  value = {'messages': [
      {'role': 'system', 'content': 'S'},
      {'role': 'user', 'content': [{'type': 'text', 'text': '<|im_end|>'}]},
      {'role': 'assistant', 'content': [{'type': 'text', 'text': 'a'},
                                        {'type': 'audio', 'codes': [1]}]}]}
  record = records.parse(value, 'a:1', form='published')
  default = interleave.Renderer(renderer.vocab, renderer.tokenizer)
  assert renderer.render(record).token.tolist() == default.render(
      records.parse(value, 'a:1')).token.tolist()
  with pytest.raises(UserError, match='a:1: Audio code 40 is outside the codebook'):
    rendered(renderer, {'text': '<|audio_40|>'})
