"""A trained model with all that belongs to it: what evaluation and generation start from."""

import dataclasses
import os
import pathlib
from typing import Any

import jax

from ttt_jax import checkpoint, optimizer as optimizers, sharding, train_state
from ttt_jax.audio import codec as codecs
from ttt_jax.config import Config
from ttt_jax.data import store
from ttt_jax.errors import UserError
from ttt_jax.model.transformer import Model, Params
from ttt_jax.text import tokenizer as tokenizers
from ttt_jax.vocab import Vocabulary


@dataclasses.dataclass(frozen=True)
class Trained:
  """Attributes: config as given; step of the checkpoint; the rest as named."""
  config: Config
  step: int
  model: Model
  params: Params
  vocab: Vocabulary
  tokenizer: Any
  codec: codecs.Codec
  data_dir: pathlib.Path


def load(config: Config, workdir: str | os.PathLike) -> Trained:
  """The newest checkpoint of a workdir with its data's vocabulary, tokenizer and codec.

  Raises:
    UserError: no data or checkpoint, or they and the config do not belong together.
  """
  workdir = pathlib.Path(workdir)
  data_dir = workdir / config.data.path
  vocab = store.vocabulary(data_dir)
  tokenizer = tokenizers.create(config.vocab)
  model = Model(config.model, vocab.size)
  mesh = sharding.make_mesh(config.mesh)
  target = train_state.abstract(model, optimizers.make(config.optimizer, config.train.steps), mesh)
  with checkpoint.open_existing(workdir / 'checkpoints') as checkpoints:
    step = checkpoints.newest_good()
    trained_with = checkpoints.meta(step)['fingerprint']
    if trained_with != vocab.fingerprint:
      raise UserError(f'checkpoint {checkpoints.directory / str(step)} was trained with '
                      f'vocabulary {trained_with}, but {data_dir} has {vocab.fingerprint}; prepare '
                      'the data it was trained on, or train again.')
    params = checkpoints.restore_params(step, target.params)
  return Trained(config, step, model, jax.block_until_ready(params), vocab, tokenizer,
                 codecs.load(data_dir / 'codec'), data_dir)
