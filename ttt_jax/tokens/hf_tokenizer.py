"""Reading and writing the tokenizer files of a Hugging Face directory.

``write`` makes tokenizer.json and tokenizer_config.json with the ids of the vocabulary: text, 22
specials, 19 controls, the audio marker, the codes, the mask, two end tokens. The resulting
`AutoTokenizer.from_pretrained(DIR)` parses control tokens *in text*, which our tokenizer never
does; for text without them the ids are equal. (AutoTokenizer of transformers 5 treats every model
of type qwen2 as Qwen2.5: with a byte vocabulary it normalizes text to NFC, which ours does not;
`PreTrainedTokenizerFast.from_pretrained(DIR)` does not either.)

``read`` reads the text part of a plain Qwen2.5 directory or of an extended one.
"""

import json
import os
import pathlib
from typing import Any

from ttt_jax.errors import UserError
from ttt_jax.storage import files
from ttt_jax.tokens import bpe_ranks, tokenizer as tokenizers
from ttt_jax.tokens.tokenizer import BpeTokenizer, ByteTokenizer, Tokenizer
from ttt_jax.tokens.vocab import BYTE_TEXT_RANKS, TEXT_RANKS, Vocabulary

# Of Qwen2.5's 22 specials, those from tool_call on are ordinary added tokens: decoding
# with skip_special_tokens keeps them.
_KEPT_IN_TEXT = range(14, 22)

# One turn is im_start, role, newline, content, im_end, newline; there is no default system prompt.
# Audio is <|audio_n|> in strings (a user's runs without markup get begin and end), or parts
# {"type": "audio", "codes": [...]}: a user's end in end_of_audio, an answer's in
# end_of_audio_new, and the last one is the quad span. Interleaving an answer's text and speech
# needs token counts, so data/interleave.py does it and not this template.
CHAT_TEMPLATE = """\
{%- macro codes(numbers) -%}
  {%- for number in numbers %}{{ '<|audio_' ~ number ~ '|>' }}{% endfor -%}
{%- endmacro -%}
{%- macro wrapped(text) -%}
  {%- set run = namespace(open=false) -%}
  {%- for piece in text.split('<|audio_') -%}
    {%- if loop.first -%}
      {{- piece -}}
    {%- else -%}
      {%- set number = piece.split('|>')[0] -%}
      {%- set rest = piece[(number | length) + 2:] -%}
      {%- if not run.open -%}{{- '<|begin_of_audio|>' -}}{%- set run.open = true -%}{%- endif -%}
      {{- '<|audio_' ~ number ~ '|>' -}}
      {%- if rest -%}{{- '<|end_of_audio|>' ~ rest -}}{%- set run.open = false -%}{%- endif -%}
    {%- endif -%}
  {%- endfor -%}
  {%- if run.open -%}{{- '<|end_of_audio|>' -}}{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
  {{- '<|im_start|>' ~ message['role'] ~ '\\n' -}}
  {%- set answer = message['role'] == 'assistant' -%}
  {%- if message['content'] is string -%}
    {%- if not answer and '<|audio_' in message['content'] \
and '<|begin_of_audio|>' not in message['content'] -%}
      {{- wrapped(message['content']) -}}
    {%- else -%}
      {{- message['content'] -}}
    {%- endif -%}
  {%- else -%}
    {%- set last = namespace(audio=-1) -%}
    {%- for part in message['content'] -%}
      {%- if part['type'] == 'audio' -%}{%- set last.audio = loop.index0 -%}{%- endif -%}
    {%- endfor -%}
    {%- for part in message['content'] -%}
      {%- if part['type'] == 'text' -%}
        {{- part['text'] -}}
      {%- elif not answer -%}
        {{- '<|begin_of_audio|>' ~ codes(part['codes']) ~ '<|end_of_audio|>' -}}
      {%- elif loop.index0 == last.audio -%}
        {{- '<|begin_of_quad|>' ~ codes(part['codes']) ~ '<|end_of_audio_span_last|>' -}}
      {%- else -%}
        {{- '<|begin_of_audio|>' ~ codes(part['codes']) ~ '<|end_of_audio_new|>' -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def write(vocab: Vocabulary, tokenizer: Tokenizer, directory: str | os.PathLike) -> None:
  """Writes tokenizer.json and tokenizer_config.json into an existing directory.

  Args:
    vocab: gives the added tokens and their ids.
    tokenizer: the text part.
    directory: of the exported model.

  Raises:
    UserError: the files cannot be written.
  """
  assert tokenizer.ranks == vocab.text_ranks, (tokenizer.ranks, vocab.text_ranks)
  directory = pathlib.Path(directory)
  definition = tokenizer.definition() if isinstance(tokenizer, BpeTokenizer) else _bytes()
  definition['added_tokens'] = _added(vocab)
  files.write_text(directory / 'tokenizer.json', json.dumps(definition, ensure_ascii=False))
  files.write_text(directory / 'tokenizer_config.json', json.dumps({
      # Uses the file unchanged. AutoTokenizer of transformers 5 ignores this key for models of
      # type qwen2 and takes Qwen2Tokenizer, with Qwen2.5's splitting and NFC.
      'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': None,
      'eos_token': '<|im_end|>', 'pad_token': '<|endoftext|>', 'unk_token': None,
      'add_prefix_space': False, 'clean_up_tokenization_spaces': False,
      'split_special_tokens': False, 'model_max_length': 32768,
      'chat_template': CHAT_TEMPLATE}, indent=2) + '\n')


def read(directory: str | os.PathLike, vocab: Vocabulary | None = None) -> Tokenizer:
  """The text tokenizer of a directory: of its tokenizer.json, else vocab.json and merges.txt,
  else a .tiktoken rank file.

  Args:
    directory: plain Qwen2.5's, or an extended one's; added tokens are stripped.
    vocab: if given, whatever added tokens the file has must have this vocabulary's ids.

  Raises:
    UserError: no such file, one that cannot be read, or ids that differ.
  """
  directory = pathlib.Path(directory)
  file = _find(directory)
  if file.name == 'vocab.json':
    count, values = _from_merges(file, directory / 'merges.txt')
    found: Tokenizer = tokenizers.from_definition(values, _name(count), str(file))
  else:
    found = tokenizers.load_bpe(str(file), '', key='')
    found.name = _name(found.ranks)
  if vocab is not None:
    _check(file, found, vocab)
  return ByteTokenizer() if found.ranks == BYTE_TEXT_RANKS else found


def has_files(directory: str | os.PathLike) -> bool:
  """Whether ``read`` finds a file in the directory."""
  return bool(_files(pathlib.Path(directory)))


def _files(directory: pathlib.Path) -> list[pathlib.Path]:
  rank_files = sorted(path for path in directory.iterdir() if path.suffix == '.tiktoken')
  return [file for file in (directory / 'tokenizer.json', directory / 'vocab.json', *rank_files)
          if file.is_file()]


def _find(directory: pathlib.Path) -> pathlib.Path:
  for file in _files(directory):
    return file
  raise UserError(f'{directory} has no tokenizer.json, vocab.json or .tiktoken file; copy the '
                  'tokenizer files of the checkpoint there.')


def _name(count: int) -> str:
  """The identity of a text tokenizer, for the vocabulary, by its number of ids."""
  return next((name for name, ranks in TEXT_RANKS.items() if ranks == count), f'bpe-{count}')


def _bytes() -> dict[str, Any]:
  """The byte vocabulary as a BPE without merges: token b is byte b."""
  return bpe_ranks.definition({letter: b for b, letter in enumerate(bpe_ranks.byte_letters())}, [],
                          split=None, normalizer=None)


def _added(vocab: Vocabulary) -> list[dict[str, Any]]:
  """Entries for added_tokens: every id from the first special on."""
  plain = {vocab.text_ranks + i for i in _KEPT_IN_TEXT}
  return [{'id': token, 'content': vocab.name(token), 'single_word': False, 'lstrip': False,
           'rstrip': False, 'normalized': False, 'special': token not in plain}
          for token in range(vocab.text_ranks, vocab.size)]


def _from_merges(vocabulary: pathlib.Path, merges: pathlib.Path) -> tuple[int, dict[str, Any]]:
  """(number of ids, definition) from vocab.json and merges.txt."""
  try:
    ids = json.loads(vocabulary.read_text(encoding='utf-8-sig'))
    # Not splitlines: U+0085 and others may stand inside a token.
    lines = merges.read_text(encoding='utf-8-sig').split('\n')
  except (ValueError, RecursionError, OSError) as error:
    raise UserError(f'{vocabulary} and merges.txt beside it cannot be read ({error}); copy both '
                    'from the checkpoint.') from error
  pairs = [line.split(' ') for line in map(str.strip, lines)
           if line and not line.startswith('#version')]
  try:
    right = set(ids.values()) == set(range(len(ids))) and all(len(pair) == 2 for pair in pairs)
  except (AttributeError, TypeError):  # not an object of integers
    right = False
  if not right:
    raise UserError(f'{vocabulary} and merges.txt beside it are not a BPE whose ids count '
                    '0, 1, 2, ...; copy both from the checkpoint.')
  return len(ids), bpe_ranks.definition(ids, pairs)


def _check(file: pathlib.Path, found: Tokenizer, vocab: Vocabulary) -> None:
  """Checks that added tokens with the vocabulary's names have its ids."""
  if found.ranks != vocab.text_ranks:
    raise UserError(f'{file} has {found.ranks} ordinary tokens, but the model\'s vocabulary has '
                    f'{vocab.text_ranks}; use the tokenizer of these weights.')
  if file.name != 'tokenizer.json':
    return
  own = {vocab.name(token): token for token in range(vocab.text_ranks, vocab.size)}
  added = json.loads(file.read_text(encoding='utf-8-sig')).get('added_tokens') or []
  if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
    raise UserError(f'{file}: added_tokens must be a list of objects; copy the file from the '
                    'checkpoint.')
  for token in added:
    content, found = token.get('content'), token.get('id')
    expected = own.get(content) if isinstance(content, str) else None
    if expected is not None and expected != found:
      raise UserError(f'{file} gives {content} the id {found}, but the model\'s '
                      f'vocabulary has {expected}; use the tokenizer of these weights.')
