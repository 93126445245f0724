"""Qwen's rank file (qwen.tiktoken) as a BPE with merges.

The file has 'base64-token rank' per line and no merges. They are recovered by running BPE on each
token with only the ranks below its own: the two remaining pieces are the pair whose merge makes
the token.
"""

import base64
import binascii
import pathlib
from typing import Any

from ttt_jax.errors import UserError

# Qwen2.5's splitting rule: contractions, words, single digits, punctuation, spaces.
_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
          r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+')


def load(path: pathlib.Path, key: str = '') -> tuple[int, dict[str, Any]]:
  """(number of ranks, the same BPE as the contents of a tokenizer.json) from a rank file.

  Args:
    path: the file.
    key: prefix of error messages.

  Raises:
    UserError: a line that is not 'base64 rank', or ranks with gaps.
  """
  ranks = _read(path, key)
  letters = byte_letters()
  def spell(piece: bytes) -> str:
    return ''.join(letters[b] for b in piece)
  merges = []
  for token, rank in ranks.items():
    if len(token) > 1:
      pair = _last_merge(ranks, token, rank)
      if pair:  # a few tokens cannot be produced by merges
        merges.append([spell(pair[0]), spell(pair[1])])
  return len(ranks), definition({spell(t): r for t, r in ranks.items()}, merges)


def definition(vocab: dict[str, int], merges: list[list[str]], *, split: str | None = _SPLIT,
               normalizer: str | None = 'NFC') -> dict[str, Any]:
  """The contents of a tokenizer.json, without added tokens.

  Args:
    vocab: token -> id, tokens spelled in ``byte_letters``.
    merges: pairs of tokens, by priority.
    split: regular expression of the pieces that are merged separately; None = no splitting.
    normalizer: Unicode normal form, or None.
  """
  pieces = [] if split is None else [{
      'type': 'Split', 'pattern': {'Regex': split}, 'behavior': 'Isolated', 'invert': False}]
  spelling = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': False,
              'use_regex': False}
  return {
      'version': '1.0', 'truncation': None, 'padding': None, 'added_tokens': [],
      'normalizer': normalizer and {'type': normalizer},
      'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': [*pieces, spelling]},
      'post_processor': None, 'decoder': spelling,
      'model': {'type': 'BPE', 'dropout': None, 'unk_token': None,
                'continuing_subword_prefix': '', 'end_of_word_suffix': '', 'fuse_unk': False,
                'byte_fallback': False, 'vocab': vocab, 'merges': merges},
  }


def _read(path: pathlib.Path, key: str) -> dict[bytes, int]:
  ranks = {}
  for number, line in enumerate(path.read_bytes().splitlines(), 1):
    try:
      token, rank = line.split()
      ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (ValueError, binascii.Error) as error:
      raise UserError(f"{key}{path}:{number} is not 'base64 rank' as in "
                      'qwen.tiktoken.') from error
  if list(ranks.values()) != list(range(len(ranks))) or any(
      bytes([b]) not in ranks for b in range(256)):
    raise UserError(f'{key}the ranks of {path} must count 0, 1, 2, ... and '
                    'include all 256 bytes, as in qwen.tiktoken.')
  return ranks


def _last_merge(ranks: dict[bytes, int], token: bytes, limit: int) -> list[bytes] | None:
  """The two pieces that BPE with ranks below ``limit`` leaves of ``token``; None if more."""
  pieces = [token[i:i + 1] for i in range(len(token))]
  while len(pieces) > 2:
    best, at = limit, -1
    for i in range(len(pieces) - 1):
      rank = ranks.get(pieces[i] + pieces[i + 1], limit)
      if rank < best:
        best, at = rank, i
    if at < 0:
      return None
    pieces[at:at + 2] = [pieces[at] + pieces[at + 1]]
  return pieces


def byte_letters() -> list[str]:
  """GPT-2's printable character for each byte: itself if printable, else from U+0100 on."""
  printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
  others = iter(range(256))
  return [chr(b) if b in printable else chr(256 + next(others)) for b in range(256)]
