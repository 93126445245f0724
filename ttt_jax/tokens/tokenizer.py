"""Text tokenizers: bytes, or Qwen2.5's BPE from a local file.

A tokenizer has the ordinary text ids 0..ranks-1 only. Control tokens are never parsed from text:
'<|im_start|>' inside a message is encoded as plain characters, so that no message can inject a
turn.
"""

import json
from typing import Any, Protocol, Sequence

from ttt_jax.config import VocabConfig
from ttt_jax.errors import UserError
from ttt_jax.storage import folder_copies
from ttt_jax.tokens.vocab import BYTE_TEXT_RANKS, QWEN_TEXT_RANKS


class Tokenizer(Protocol):
  """The interface of text tokenizers."""
  name: str    # identity, part of the vocabulary's fingerprint
  ranks: int   # ordinary text ids are 0..ranks-1

  def encode(self, text: str) -> list[int]:
    """Text -> ids below ``ranks``."""
    ...

  def decode(self, ids: Sequence[int]) -> str:
    """Ids below ``ranks`` -> text; invalid UTF-8 becomes U+FFFD, never an exception."""
    ...


class ByteTokenizer:
  """UTF-8 bytes: ids 0..255; needs no file."""
  name = 'bytes'
  ranks = BYTE_TEXT_RANKS

  def encode(self, text: str) -> list[int]:
    return list(_utf8(text))

  def decode(self, ids: Sequence[int]) -> str:
    return bytes(int(i) for i in ids).decode('utf-8', errors='replace')


def _utf8(text: str) -> bytes:
  # JSON may hold a lone surrogate, which has no UTF-8 form; it becomes U+FFFD.
  try:
    return text.encode('utf-8')
  except UnicodeEncodeError:
    return ''.join('\ufffd' if 0xD800 <= ord(c) <= 0xDFFF else c for c in text).encode('utf-8')


class BpeTokenizer:
  """A byte-level BPE of the `tokenizers` package, without its added tokens."""

  def __init__(self, name: str, ranks: int, backend):
    self.name, self.ranks, self._backend = name, ranks, backend

  def encode(self, text: str) -> list[int]:
    return self._backend.encode(_utf8(text).decode('utf-8'), add_special_tokens=False).ids

  def decode(self, ids: Sequence[int]) -> str:
    return self._backend.decode([int(i) for i in ids], skip_special_tokens=False)

  def pieces(self) -> dict[str, int]:
    """Every token and its id; tokenizers with equal pieces give equal text equal ids, unless they
    split or normalize it differently."""
    return self._backend.get_vocab(with_added_tokens=False)

  def definition(self) -> dict[str, Any]:
    """The contents of a tokenizer.json for it, without added tokens."""
    return json.loads(self._backend.to_str())


def create(config: VocabConfig) -> Tokenizer:
  """The tokenizer of config section `vocab`.

  Raises:
    UserError: the tokenizer file is missing, malformed, or not Qwen2.5's.
  """
  if config.text == 'bytes':
    return ByteTokenizer()
  tokenizer = load_bpe(config.tokenizer, config.text)
  if tokenizer.ranks != QWEN_TEXT_RANKS:
    raise UserError(f'config key vocab.tokenizer: {config.tokenizer} has {tokenizer.ranks} '
                    f'ordinary tokens, but Qwen2.5 has {QWEN_TEXT_RANKS}; use the tokenizer.json '
                    'that comes with a Qwen2.5 checkpoint.')
  return tokenizer


def load_bpe(path: str, name: str, key: str = 'config key vocab.tokenizer: ') -> BpeTokenizer:
  """Reads a byte-level BPE of any size from tokenizer.json or a .tiktoken rank file.

  Args:
    path: of the file, or its URL in a bucket.
    name: its identity.
    key: prefix of error messages.

  Raises:
    UserError: no such file, or a file that is not a BPE.
  """
  file = folder_copies.file(path, key.removesuffix(': '))
  if not file.is_file():
    raise UserError(f'{key}the file {path} does not exist; name a '
                    'tokenizer.json or qwen.tiktoken.')
  if file.suffix == '.tiktoken':
    from ttt_jax.tokens import bpe_ranks
    count, values = bpe_ranks.load(file, key)
    return BpeTokenizer(name, count, _backend(values, path, key))
  try:
    values = json.loads(file.read_text(encoding='utf-8-sig'))
    model = values['model']
    count = len(model['vocab'])
    right = model['type'] == 'BPE' and set(model['vocab'].values()) == set(range(count))
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
    raise UserError(f'{key}{path} is not a tokenizer.json '
                    f'({type(error).__name__}: {error}); name a file with a BPE model.') from error
  if not right:
    raise UserError(f'{key}{path} does not hold a BPE whose ids are '
                    f'0..{count - 1} without gaps; use the file of a Qwen2.5 checkpoint.')
  return BpeTokenizer(name, count, _backend(values, path, key))


def from_definition(values: dict[str, Any], name: str, path: str) -> BpeTokenizer:
  """A tokenizer from the contents of a tokenizer.json; ``path`` is for messages."""
  return BpeTokenizer(name, len(values['model']['vocab']), _backend(values, path, ''))


def _backend(values: dict, path: str, key: str):
  """A tokenizers.Tokenizer from the parsed tokenizer.json ``values``; the rest for messages.

  What a file may hold beside the tokenizer is left out, since it changes or adds ids: added tokens,
  a post-processor, and the truncation, padding and dropout of the last call before it was saved.
  """
  values = {**values, 'added_tokens': [], 'post_processor': None, 'truncation': None,
            'padding': None, 'model': {**values['model'], 'dropout': None}}
  try:
    import tokenizers
  except ImportError as error:
    raise UserError(f'reading {path} needs the package `tokenizers`; install it with '
                    '`pip install tokenizers`.') from error
  try:
    return tokenizers.Tokenizer.from_str(json.dumps(values))
  except Exception as error:  # the Rust code raises plain Exception
    raise UserError(f'{key}{path} cannot be read as a tokenizer '
                    f'({error}); use the file of a Qwen2.5 checkpoint.') from error
