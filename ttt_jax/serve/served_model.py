"""What a server answers with: a workdir's model, or that of a Hugging Face directory.

Requests become records and are rendered as the model's training data was.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
import os
import pathlib

import numpy as np

from ttt_jax.audio import codec as codecs, silence
from ttt_jax.audio.codec import Codec
from ttt_jax.config import Config, GenerateConfig, MeshConfig, ObjectiveConfig
from ttt_jax.data import heldout
from ttt_jax.data.interleave import Renderer
from ttt_jax.data.records import tasks
from ttt_jax.data.records.records import Part, Record, Turn
from ttt_jax.errors import UserError
from ttt_jax.generate.engine import Engine
from ttt_jax.model.transformer import Model, Params
from ttt_jax.tokens.vocab import Vocabulary

# Tasks by what the last message of the user holds; the first that the data knows is taken.
_SPOKEN = ('audio_chat', 'audio_qa', 'asr')
_WRITTEN = ('text_chat', 'audio_chat', 'audio_qa')


@dataclasses.dataclass(frozen=True)
class Message:
  """One turn of a conversation.

  Attributes:
    role: 'system', 'user' or 'assistant'.
    parts: text, taken literally, and audio with its codes.
    ids: int32 [n], the exact ids of an answer that was generated here, without im_end; they are
      used instead of ``parts``, so that the prefix cache finds them.
  """
  role: str
  parts: tuple[Part, ...] = ()
  ids: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class ServedModel:
  """A model and all that turns requests into prompts and ids into text and sound.

  Attributes:
    name: of the model in the protocol.
    model, params, vocab: the decoder.
    renderer: of its data.
    codec: None if the directory has none; then there is no audio.
    objective: mode, prompt_audio.
    settings: default sampling parameters, and the engine's own.
    prompts: system prompt of a task, '' for none.
    known: tasks that the model was trained on; () if unknown.
    created: seconds since the epoch of its newest file.
    silence: what stays of it at both ends of a recording [s].
  """
  name: str
  model: Model
  params: Params
  vocab: Vocabulary
  renderer: Renderer
  codec: Codec | None
  objective: ObjectiveConfig
  settings: GenerateConfig
  prompts: Callable[[str], str]
  known: tuple[str, ...] = ()
  created: int = 0
  silence: float = math.inf

  def engine(self) -> Engine:
    """A new engine; ``generate.slots`` requests are decoded together."""
    return Engine(self.model, self.params, self.vocab, self.settings, mode=self.objective.mode,
                  prompt_audio=self.objective.prompt_audio, long_lived=True)

  def encode(self, waveform: np.ndarray, rate: int) -> Part:
    """The part of a recording.

    Args:
      waveform: float32 [N].
      rate: in Hz.

    Raises:
      UserError: empty or silent; a model without a codec.
    """
    if self.codec is None:
      raise UserError(f'the model {self.name} has no codec, so it reads and speaks no audio.')
    if math.isfinite(self.silence):
      waveform = silence.trimmed(waveform, rate, self.silence)
    return Part('audio', codes=codecs.checked(self.codec.encode(waveform, rate), self.codec))

  def prompt(self, messages: Sequence[Message], task: str = '') -> np.ndarray:
    """Ids int32 [n] of a conversation up to and including the assistant's header.

    Args:
      messages: the last one is from the user.
      task: whose system prompt is used where the messages have none; '' = by the last message.

    Raises:
      UserError: no messages, or a last one that is not from the user.
    """
    if not messages or messages[-1].role != 'user':
      raise UserError('messages must end with a message of the user; the last one is from the '
                      f'{messages[-1].role}.' if messages else 'messages is empty; it needs at '
                      'least one message of the user.')
    if messages[0].role != 'system' and (system := self.prompts(task or self.task(messages[-1]))):
      messages = [Message('system', (Part('text', system),)), *messages]
    ids: list[np.ndarray] = []
    turns: list[Turn] = []
    for message in messages:
      if message.ids is None:
        turns.append(Turn(message.role, message.parts))
        continue
      ids += [self._upto_answer(turns), message.ids, self._ending()]
      turns = []
    return np.concatenate([*ids, self._upto_answer(turns)])

  def task(self, message: Message) -> str:
    """The task in whose form a message is answered, by what it holds."""
    spoken = any(part.kind == 'audio' for part in message.parts)
    wanted = _SPOKEN if spoken else _WRITTEN
    return next((task for task in wanted if task in self.known), wanted[0])

  def _upto_answer(self, turns: Sequence[Turn]) -> np.ndarray:
    record = Record('request', '', 'IT', (*turns, Turn('assistant', ())), 'the request')
    return self.renderer.render_prompt(record)

  def _ending(self) -> np.ndarray:
    """What stands between an answer and the next turn."""
    newline = self.renderer.tokenizer.encode('\n')
    return np.array([self.vocab.im_end, *newline], np.int32)


def load(config: Config, workdir: str | os.PathLike, step: int | None = None) -> ServedModel:
  """The model of a workdir in which one was trained.

  Raises:
    UserError: as trained_model.load.
  """
  from ttt_jax.data import store
  from ttt_jax.train import trained_model
  run = trained_model.load(config, workdir, step=step)
  manifest = store.read_manifest(run.data_dir)
  known = {task for split in manifest['splits'].values() for task in split.get('tasks', {})}
  prompts = functools.cache(lambda task: heldout.system_prompt(
      run.data_dir, task, config.data.text_chunk, config.data.audio_chunk))
  created = int((run.data_dir / 'manifest.json').stat().st_mtime)
  return ServedModel(config.name, run.model, run.params, run.vocab, run.renderer, run.codec,
                     config.objective, config.generate, prompts, tuple(sorted(known)), created,
                     config.serve.silence)


def load_directory(config: Config, directory: str | os.PathLike) -> ServedModel:
  """The model of a Hugging Face directory, such as `ttt-jax export-hf` writes.

  Args:
    config: ``generate``, ``mesh`` and ``model.dtype`` of it are used, and ``codec`` where the
      directory has no codec.json.
    directory: with config.json and safetensors.

  Raises:
    UserError: as api.load.
  """
  from ttt_jax import api
  path = pathlib.Path(directory)
  found = api.load(path, config.model.dtype,
                   config.mesh if config.mesh != MeshConfig() else None)
  codec = None
  if (path / codecs.FILE).exists():
    codec = codecs.load(path, config.codec)
  elif config.codec.name != 'mel':  # which must be fitted
    codec = codecs.create(config.codec)
  if codec is not None and codec.name != found.vocab.codec:
    raise UserError(f'the codec of {path} is {codec.name}, but its vocabulary has codes of '
                    f'{found.vocab.codec}; use the codec of that model.')
  renderer = Renderer(found.vocab, found.tokenizer, found.text_chunk, found.audio_chunk,
                      form=found.form)
  prompts = lambda task: tasks.wording(task, found.text_chunk, found.audio_chunk)
  return ServedModel(path.resolve().name, found.model, found.params, found.vocab, renderer, codec,
                     found.objective, config.generate, prompts,
                     created=int((path / 'config.json').stat().st_mtime),
                     silence=config.serve.silence)
