"""The id space that `ttt-jax prepare` would make, without preparing anything."""

import os

from ttt_jax.audio import codec as codecs
from ttt_jax.config import Config
from ttt_jax.data import store
from ttt_jax.errors import UserError
from ttt_jax.tokens.vocab import TEXT_RANKS, Vocabulary


def planned_vocabulary(config: Config, workdir: str | os.PathLike | None = None) -> Vocabulary:
  """The vocabulary of a run.

  Args:
    config: sections vocab and codec matter; no tokenizer file is opened.
    workdir: where the data is prepared: its own vocabulary is used then.

  Raises:
    UserError: an unknown codec, or one whose size only its prepared data knows.
  """
  if workdir is not None:
    return store.vocabulary(store.locate(workdir, config.data.path))
  try:
    size = codecs.planned_codebook_size(config.codec)
  except UserError as error:
    raise UserError(f'{str(error).rstrip(".")}; or name a prepared set with --workdir.') from error
  return Vocabulary(config.vocab.text, TEXT_RANKS[config.vocab.text], config.codec.name, size)
