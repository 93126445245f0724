"""Text-to-Talk from Python: load, logits, loss, generate.

  ttt = ttt_jax.load('model')             # a Hugging Face directory, or a workdir
  ids = ttt.prompt('What is 3 + 4?')
  ttt.logits(ids)                         # float32 [n, vocabulary], hybrid mask
  ttt.loss([record], noise=0)             # Terms(ar, diffusion)
  ttt.generate(ids, max_tokens=200).text
"""

from collections.abc import Sequence
import dataclasses
import functools
import os
import pathlib
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from ttt_jax import config as config_lib
from ttt_jax.config import GenerateConfig, MeshConfig, ModelConfig, ObjectiveConfig
from ttt_jax.data.interleave import Renderer
from ttt_jax.data.records import records
from ttt_jax.data.records.records import Part, Record, Turn
from ttt_jax.errors import UserError
from ttt_jax.generate import engine
from ttt_jax.generate.outputs import Answer
from ttt_jax.hf import import_hf, qwen_config
from ttt_jax.model import sharding, staircase
from ttt_jax.model.transformer import Model, Params
from ttt_jax.objective import hybrid
from ttt_jax.storage import folder_copies, mirror, remote
from ttt_jax.tokens import batch as batches, hf_tokenizer
from ttt_jax.tokens.tokenizer import ByteTokenizer, Tokenizer
from ttt_jax.tokens.vocab import Vocabulary
from ttt_jax.train import checkpoint, trained_model

_STEP = 32  # sequences are padded to multiples of this, so that similar lengths share programs

Ids = Sequence[int] | np.ndarray                   # of one sequence, [n]
Document = dict[str, Any] | tuple[Ids, Ids]        # a record, or (ids, supervised flags)


class Noise(NamedTuple):
  """The noise of one document of n tokens.

  Attributes:
    masked: bool [n], tokens that are replaced by masks.
    p: the probability with which they were masked, in (0, 1].
    maskable: bool [n], tokens that could have been masked; None: all supervised audio.
  """
  masked: np.ndarray
  p: float
  maskable: np.ndarray | None = None


class Terms(NamedTuple):
  """The two loss terms, means over documents of nats per text target and per maskable token."""
  ar: float
  diffusion: float


class Reply(NamedTuple):
  """A generated answer.

  Attributes:
    text: its text, decoded.
    codes: int32 [n] of each audio span, for the codec.
    answer: ids, spans and timings.
  """
  text: str
  codes: list[np.ndarray]
  answer: Answer


@dataclasses.dataclass(frozen=True)
class TextToTalk:
  """A model with its vocabulary, tokenizer and settings; made by ``load``.

  Attributes:
    model, params: the decoder and its parameters.
    vocab, tokenizer: the id space, and the tokenizer of its text part.
    objective: mode and masks that it was trained with; noise settings of ``loss``.
    settings: default sampling parameters of ``generate``.
    text_chunk, audio_chunk: tokens per chunk of interleaved text and audio.
    form: of the strings in messages and records, config key data.form.
  """
  model: Model
  params: Params
  vocab: Vocabulary
  tokenizer: Tokenizer
  objective: ObjectiveConfig = ObjectiveConfig()
  settings: GenerateConfig = GenerateConfig()
  text_chunk: int = 13
  audio_chunk: int = 26
  form: str = 'default'

  @property
  def _renderer(self) -> Renderer:
    return Renderer(self.vocab, self.tokenizer, self.text_chunk, self.audio_chunk, form=self.form)

  def prompt(self, messages: str | list[dict[str, Any]]) -> np.ndarray:
    """Ids int32 [n] of a prompt, up to and including the assistant's header.

    Args:
      messages: one user message as plain text, in which special tokens have no meaning; or turns
        [{'role': ..., 'content': ...}, ...] as in records, where audio is <|audio_n|> in
        strings or parts {'type': 'audio', 'codes': [...]}.

    Raises:
      UserError: invalid turns.
    """
    if isinstance(messages, str):
      record = Record('prompt', '', 'IT', (
          Turn('user', (Part('text', messages),)), Turn('assistant', ())), 'prompt')
    else:
      # The prompt ends before the last answer, whose content must not be empty.
      record = records.parse({'messages': [*messages, {'role': 'assistant', 'content': '?'}]},
                             'prompt', form=self.form)
    return self._renderer.render_prompt(record)

  def logits(self, ids: Ids, answer: Ids | None = None) -> np.ndarray:
    """Logits float32 [n, vocabulary] of one document under the hybrid attention mask.

    Args:
      ids: [n]; masked tokens have the id of the mask.
      answer: 0/1 [n], the assistant's tokens; read by models that mask prompts differently
        (``objective.prompt_audio`` 'causal', mode 'nar'). None: all tokens.

    Raises:
      UserError: no ids, or one outside the vocabulary.
    """
    token = np.asarray(ids, np.int64)
    supervised = np.ones(token.size, np.int64) if answer is None else np.asarray(answer)
    batch = self._rows([(token, supervised)])
    return np.asarray(_logits(self.model, self.objective.mode, self.objective.prompt_audio,
                              self.params, batch))[0, :token.size]

  def loss(self, documents: Sequence[Document], noise: int | Sequence[Noise] = 0) -> Terms:
    """The two loss terms of a batch for a given noise.

    Args:
      documents: records (dicts as in .jsonl files), or (ids [n], supervised [n]) pairs.
      noise: a seed, from which noise is drawn as in training, BANOM and PPM included; or
        one Noise per document.

    Raises:
      UserError: an invalid record, or noise that does not fit its document.
    """
    pairs = [self._document(document, i) for i, document in enumerate(documents, 1)]
    batch = self._rows(pairs)
    # Noise settings only matter where targets are made; constants here share one program.
    scoring = dataclasses.replace(self.objective.plain(), banom=0.0, ppm=0.0, mask_floor=0.5,
                                  banom_unit='document')
    if isinstance(noise, int):
      key = jax.random.fold_in(jax.random.key(noise), 0)
      targets = _drawn(self.vocab, self.objective, batch, key)
    else:
      targets = self._targets(batch, pairs, noise)
    sums = _score(self.model, scoring, self.params, batch, targets)
    return Terms(float(sums.ar / len(pairs)), float(sums.diffusion / len(pairs)))

  @overload
  def generate(self, prompts: Ids, **settings: int | float | str) -> Reply:
    ...

  @overload
  def generate(self, prompts: Sequence[Ids], **settings: int | float | str) -> list[Reply]:
    ...

  def generate(self, prompts: Ids | Sequence[Ids],
               **settings: int | float | str) -> Reply | list[Reply]:
    """Answer a prompt or a list of prompts.

    Args:
      prompts: ids of one prompt, up to and including the assistant's header; or a list of such.
      **settings: fields of GenerateConfig: preset, max_tokens, temperature, guidance, steps, ...

    Returns:
      A Reply; a list of Replies for a list of prompts.

    Raises:
      UserError: an unknown setting; a prompt that is empty, too long or has an id outside the
        vocabulary.
    """
    chosen = config_lib.from_dict(
        GenerateConfig, config_lib.with_preset(dataclasses.asdict(self.settings), settings),
        'generate')
    single = not len(prompts) or np.ndim(prompts[0]) == 0
    asked = [np.asarray(prompt, np.int32) for prompt in ([prompts] if single else prompts)]
    answers = engine.generate(self.model, self.params, self.vocab, asked, chosen,
                              self.objective.mode, self.objective.prompt_audio)
    replies = [Reply(*self._renderer.unrender(answer.ids), answer)
               for answer in answers]
    return replies[0] if single else replies

  def _document(self, document: Document, number: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids, supervised) of a record or a pair."""
    if isinstance(document, dict):
      record = records.parse(document, f'document {number}', form=self.form)
      found = self._renderer.render(record)
      return found.token, found.supervised
    ids, supervised = (np.asarray(x) for x in document)
    if ids.shape != supervised.shape:
      raise UserError(f'document {number} has {ids.size} ids but {supervised.size} supervised '
                      'flags; use one flag per id.')
    return ids, supervised

  def _rows(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> batches.Batch:
    """A batch with one document per row."""
    for number, (ids, _) in enumerate(pairs, 1):
      if not ids.size or ids.min() < 0 or ids.max() >= self.vocab.size:
        what = 'no ids' if not ids.size else (
            f'id {int(ids.max() if ids.min() >= 0 else ids.min())}')
        raise UserError(f'document {number} has {what}; ids are 0..{self.vocab.size - 1}.')
    length = -(-max(ids.size for ids, _ in pairs) // _STEP) * _STEP
    return batches.stack([batches.make_row(self.vocab, [(number, ids, supervised)], length)
                          for number, (ids, supervised) in enumerate(pairs, 1)])

  def _targets(self, batch: batches.Batch, pairs: list, noise: Sequence[Noise]
               ) -> hybrid.Targets:
    """Targets of explicit noise."""
    if len(noise) != len(pairs):
      raise UserError(f'{len(noise)} noise patterns were given for {len(pairs)} documents; use one '
                      'per document.')
    may = np.asarray(hybrid.supervised_maskable(batch, self.vocab, self.objective.mode)).copy()
    masked = np.zeros(may.shape, bool)
    rate = np.ones(may.shape, np.float32)
    for row, ((ids, _), drawn) in enumerate(zip(pairs, noise)):
      here = np.s_[row, :ids.size]
      if not 0 < drawn.p <= 1:
        raise UserError(f'noise {row + 1} has p={drawn.p}; p must be in (0, 1].')
      if drawn.maskable is not None:
        may[here] &= _flags(drawn.maskable, ids.size, f'noise {row + 1}: maskable')
      masked[here] = _flags(drawn.masked, ids.size, f'noise {row + 1}: masked')
      wrong = np.flatnonzero(masked[here] & ~may[here])
      if wrong.size:
        raise UserError(f'noise {row + 1} masks token {wrong[0]}, which is not maskable; only '
                        'supervised audio is.')
      rate[row] = drawn.p
    return hybrid.targets(batch, self.vocab, self.objective.mode, may, masked, rate)


def _flags(values: Any, count: int, what: str) -> np.ndarray:
  values = np.asarray(values, bool)
  if values.shape != (count,):
    raise UserError(f'{what} has shape {values.shape}; the document has {count} tokens.')
  return values


@functools.lru_cache(maxsize=8)
def _model(config: ModelConfig, vocab_size: int) -> Model:
  """A Model is a static argument of compiled functions, so models of one size share it."""
  return Model(config, vocab_size)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _logits(model: Model, mode: str, prompt_audio: str, params: Params,
            batch: batches.Batch) -> jax.Array:
  ranges = staircase.key_ranges(batch, mode, prompt_audio)
  return model.logits(params, model.hidden(params, batch.token, batch.position, *ranges))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _drawn(vocab: Vocabulary, objective: ObjectiveConfig, batch: batches.Batch,
           key: jax.Array) -> hybrid.Targets:
  return hybrid.corrupt(batch, vocab, objective, key)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(model: Model, objective: ObjectiveConfig, params: Params, batch: batches.Batch,
           targets: hybrid.Targets) -> hybrid.Sums:
  return hybrid.loss_and_sums(model, params, batch, targets, objective, targets.documents)[1]


def load(path: str | os.PathLike, dtype: str = 'float32',
         mesh: MeshConfig | Mesh | None = None) -> TextToTalk:
  """Load a model from a Hugging Face directory or from a workdir.

  Args:
    path: a directory with config.json and safetensors (plain Qwen2.5, whose vocabulary is
      extended, or an exported model); or a workdir in which a model was trained. Both may be at a
      URL of a bucket.
    dtype: compute dtype of a Hugging Face directory, 'float32' or 'bfloat16'.
    mesh: devices of the parameters: axis sizes, as MeshConfig(fsdp=2), or a mesh of
      model/sharding.py. None: the first device for a Hugging Face directory; for a workdir the
      mesh that trained it, or all devices where it does not fit them.

  Raises:
    UserError: neither of the two, or an invalid or incomplete one; a mesh that does not fit the
      devices or the model.
  """
  if isinstance(mesh, MeshConfig):
    mesh = sharding.make_mesh(mesh)
  url = remote.check(str(path)) if remote.is_url(path) else ''
  path = mirror.folder_of(url) if url else pathlib.Path(path).expanduser()
  if checkpoint.is_trained(path):
    return _from_workdir(mirror.copied(url) if url else path, mesh)
  if url:
    path = folder_copies.folder(url, import_hf.PATTERNS)
  if not (path / 'config.json').is_file():
    raise UserError(f'{url or path} is neither a Hugging Face directory (config.json and '
                    'safetensors) nor a workdir with checkpoints.')
  config, vocab, params = import_hf.read(path, dtype, mesh)
  values = qwen_config.read(path)
  objective = ObjectiveConfig(mode=values.get('ttt_mode', 'hybrid'),
                              prompt_audio=values.get('ttt_prompt_audio', 'bidirectional'))
  known = {field.name for field in dataclasses.fields(GenerateConfig)}
  settings = config_lib.from_dict(GenerateConfig, config_lib.with_preset({}, {
      key: value for key, value in values.get('ttt_generate', {}).items() if key in known}),
      'ttt_generate')
  layout = values.get('ttt_layout', {})
  tokenizer = ByteTokenizer() if vocab.text == 'bytes' else hf_tokenizer.read(path, vocab)
  return TextToTalk(_model(config, vocab.size), jax.tree.map(jnp.asarray, params), vocab,
                    tokenizer, objective, settings,
                    layout.get('text_chunk', 13), layout.get('audio_chunk', 26),
                    layout.get('form', 'default'))


def _from_workdir(path: pathlib.Path, mesh: Mesh | None) -> TextToTalk:
  config = config_lib.load(path / 'config.json')
  run = trained_model.load(config, path, mesh=mesh)
  return TextToTalk(run.model, run.params, run.vocab, run.tokenizer, config.objective,
                    config.generate, config.data.text_chunk, config.data.audio_chunk,
                    config.data.form)
