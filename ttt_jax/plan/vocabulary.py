"""The id space that `ttt-jax prepare` would make, without preparing anything."""

import importlib
import os
import pathlib

from ttt_jax.config import Config
from ttt_jax.data import store
from ttt_jax.errors import UserError
from ttt_jax.tokens.vocab import BYTE_TEXT_RANKS, GLM4_CODEBOOK_SIZE, QWEN_TEXT_RANKS, Vocabulary

_TEXT_RANKS = {'bytes': BYTE_TEXT_RANKS, 'qwen2.5': QWEN_TEXT_RANKS}


def planned_vocabulary(config: Config, workdir: str | os.PathLike | None = None) -> Vocabulary:
  """The vocabulary of a run.

  Args:
    config: sections vocab and codec matter; no tokenizer file is opened.
    workdir: where the data is prepared: its own vocabulary is used then.

  Raises:
    UserError: a codec whose size only its prepared data knows.
  """
  if workdir is not None:
    return store.vocabulary(pathlib.Path(workdir) / config.data.path)
  return Vocabulary(config.vocab.text, _TEXT_RANKS[config.vocab.text], config.codec.name,
                    _codebook_size(config))


def _codebook_size(config: Config) -> int:
  codec = config.codec
  if codec.name == 'mel':
    return codec.codebooks * codec.codes
  if codec.name == 'codec2':
    from ttt_jax.audio.codec2 import WIDTHS
    if codec.mode not in WIDTHS:
      raise UserError(f'config key codec.mode is {codec.mode!r}; use one of {", ".join(WIDTHS)}.')
    return sum(1 << width for width in WIDTHS[codec.mode])
  if codec.name == 'glm4_voice':
    return GLM4_CODEBOOK_SIZE
  module_name, _, class_name = codec.name.partition(':')
  try:
    return int(getattr(importlib.import_module(module_name), class_name).codebook_size)
  except (ImportError, AttributeError, ValueError, TypeError) as error:
    raise UserError(
        f'config key codec.name is {codec.name!r}, whose number of codes is not known before the '
        f'data is prepared ({error}); name a prepared set with --workdir.') from error
