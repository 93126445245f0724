"""A trained model with its vocabulary, tokenizer and codec, for evaluation, generation, export."""

import dataclasses
import functools
import logging
import os
import pathlib

import jax
from jax.sharding import Mesh

from ttt_jax.audio import codec as codecs
from ttt_jax.config import Config
from ttt_jax.data import store
from ttt_jax.data.interleave import Renderer
from ttt_jax.data.records import places
from ttt_jax.data.records.records import Part, Record
from ttt_jax.errors import UserError
from ttt_jax.model.transformer import Model, Params
from ttt_jax.system import hardware
from ttt_jax.tokens import tokenizer as tokenizers
from ttt_jax.tokens.tokenizer import Tokenizer
from ttt_jax.tokens.vocab import Vocabulary
from ttt_jax.train import checkpoint, restore, state as train_state

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainedModel:
  """The parameters of a checkpoint and what is needed to use them.

  Attributes:
    config: as given to ``load``.
    step: of the checkpoint.
    model, params: the decoder and its parameters, on a mesh.
    vocab, tokenizer, codec: of the prepared data.
    data_dir: the prepared data.
  """
  config: Config
  step: int
  model: Model
  params: Params
  vocab: Vocabulary
  tokenizer: Tokenizer
  codec: codecs.Codec
  data_dir: pathlib.Path

  @functools.cached_property
  def renderer(self) -> Renderer:
    """Records to token sequences, as the data was rendered."""
    return Renderer.from_config(self.config.data, self.vocab, self.tokenizer, self.codec)

  def encoded(self, record: Record, file: str | os.PathLike) -> Record:
    """``record`` with its recordings encoded as codes; their paths are relative to ``file``."""
    def fill(part: Part) -> Part:
      if part.codes is not None:
        return part
      assert part.source is not None, 'audio has codes or a recording'
      codes = self.codec.encode(*places.read(part, pathlib.Path(file).parent))
      return dataclasses.replace(part, codes=codes)
    return record.map_audio(fill)


def load(config: Config, workdir: str | os.PathLike, dtype: str | None = 'float32',
         mesh: Mesh | None = None, step: int | None = None) -> TrainedModel:
  """Load a checkpoint of a workdir; its optimizer state is not read.

  Args:
    config, workdir: of the run.
    dtype: of the parameters; None = as they are stored.
    mesh: of the parameters; None = that of the config if the devices here fit it, else all
      devices that divide the weights (sharding.reading_mesh).
    step: of the checkpoint; None = the newest intact one.

  Raises:
    UserError: no data or checkpoint, or one that does not fit the data or the config.
  """
  workdir = pathlib.Path(workdir)
  data_dir = store.locate(workdir, config.data.path)
  vocab = store.vocabulary(data_dir)
  tokenizer = tokenizers.create(config.vocab)
  model = Model(config.model, vocab.size)
  mesh = mesh or train_state.reading_mesh(model, config.mesh)
  _LOG.info('devices: %s.', hardware.describe(mesh.devices.flat))
  target = train_state.abstract_params(model, mesh)

  def read(checkpoints: checkpoint.Checkpoints, step: int) -> tuple[int, Params]:
    checkpoints.check_vocabulary(step, vocab)
    wanted = restore.retyped(target, dtype or restore.dtype(checkpoints, step))
    params = restore.load(checkpoints, step, model, wanted, config.seed)
    return step, jax.block_until_ready(params)

  folder, verify = workdir / 'checkpoints', config.train.verify
  step, params = (checkpoint.read_newest(folder, read, verify) if step is None
                  else checkpoint.read_step(folder, step, read, verify))
  return TrainedModel(config, step, model, params, vocab, tokenizer,
                      codec_of(config, data_dir, vocab), data_dir)


def codec_of(config: Config, data_dir: pathlib.Path, vocab: Vocabulary) -> codecs.Codec:
  """The codec of a prepared set; UserError if it is not that of its rows."""
  codec = codecs.load(data_dir / 'codec', config.codec)
  if (codec.name, codec.codebook_size) != (vocab.codec, vocab.codebook_size):
    raise UserError(f'{data_dir / "codec"} holds the codec {codec.name} with '
                    f'{codec.codebook_size:,} codes, but the rows of {data_dir} have codes of '
                    f'{vocab.codec} with {vocab.codebook_size:,}; restore the codec of this set.')
  return codec
