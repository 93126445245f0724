"""Text-to-Talk in PyTorch: Qwen2.5's decoder under the hybrid attention mask, and generation.

  model = AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)
  answer = model.generate_speech(prompt_ids)           # .ids, .codes per span, .text, .waveform
  for event in model.generate_speech(prompt_ids, stream=True): ...

The weights have the names of Qwen2. Part of ttt_jax (Apache-2.0), which writes this file beside
the weights; it needs only torch, numpy and transformers.
"""

from collections.abc import Iterator, Sequence
import os
import shutil
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Qwen2Config
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils import cached_file

from .ttt_choice import Ids, options
from .ttt_codec import FILES, load
from .ttt_decoding import Generation
from .ttt_layers import Decoder, RMSNorm, bidirectional_group, readable, sizes
from .ttt_outputs import Answer, Event


class TtTForCausalLM(PreTrainedModel):
  """The decoder, its head, and generation.

  In addition to Qwen2's fields, config.json has ``audio_token_id_start`` and ``mask_token``, which
  determine all other special ids; optionally ``ttt_mode`` ('hybrid', 'ar', 'nar') and
  ``ttt_prompt_audio`` ('bidirectional', 'causal'), default 'hybrid' and 'bidirectional'; and
  ``ttt_generate``, the defaults of ``generate_speech``.
  """

  config_class = Qwen2Config
  base_model_prefix = 'model'
  _no_split_modules = ['Layer']
  _supports_sdpa = True
  _tied_weights_keys = {'lm_head.weight': 'model.embed_tokens.weight'}

  def __init__(self, config: Qwen2Config):
    super().__init__(config)
    for name in ('audio_token_id_start', 'mask_token'):
      if not isinstance(getattr(config, name, None), int):
        raise ValueError(f'config.json lacks {name}, an id; this is not a Text-to-Talk checkpoint.')
    self.ids = Ids(config.audio_token_id_start, config.mask_token)
    if config.vocab_size < self.ids.size:
      raise ValueError(f'config.json has vocab_size {config.vocab_size}, but mask_token '
                       f'{self.ids.mask} and its two end tokens need {self.ids.size}.')
    self.mode = getattr(config, 'ttt_mode', 'hybrid')
    self.prompt_audio = getattr(config, 'ttt_prompt_audio', 'bidirectional')
    size = sizes(config)
    self.model = Decoder(size)
    self.lm_head = nn.Linear(size.hidden_size, size.vocab_size, bias=False)
    self.post_init()

  def _init_weights(self, module: nn.Module) -> None:
    """Initialise a module's weights at random."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
      module.weight.data.normal_(0.0, self.config.initializer_range)
      if getattr(module, 'bias', None) is not None:
        module.bias.data.zero_()
    elif isinstance(module, RMSNorm):
      module.weight.data.fill_(1.0)

  def get_input_embeddings(self) -> nn.Module:
    return self.model.embed_tokens

  def set_input_embeddings(self, value: nn.Module) -> None:
    self.model.embed_tokens = value

  def get_output_embeddings(self) -> nn.Module:
    return self.lm_head

  def set_output_embeddings(self, value: nn.Module) -> None:
    self.lm_head = value

  def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None,
              position_ids: torch.Tensor | None = None, document_ids: torch.Tensor | None = None,
              answer_mask: torch.Tensor | None = None, **unused: Any) -> CausalLMOutput:
    """Logits [B, T, V] under the hybrid mask, without a cache.

    Args:
      input_ids: int64 [B, T]; masks where the noise put them.
      attention_mask: [B, T], 0 = padding on either side; or bool [B, T, T], the complete mask,
        True where query (axis 1) attends to key (axis 2).
      position_ids: [B, T]; by default 0.. in each document.
      document_ids: [B, T] for packed rows, 0 = padding; equal neighbours are one document.
      answer_mask: bool [B, T], the assistant's tokens. Required if prompt audio is causal and in
        mode 'nar'; otherwise all audio is bidirectional.

    Raises:
      ValueError: answer_mask is required and missing, or attention_mask has another shape.
    """
    if attention_mask is not None and attention_mask.dim() == 3:
      allowed, document = attention_mask.bool(), torch.ones_like(input_ids)
    else:
      document = document_ids
      if document is None:
        document = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
      if document.shape != input_ids.shape:
        raise ValueError(f'attention_mask has shape {tuple(document.shape)}; use '
                         f'{tuple(input_ids.shape)}, or [B, T, T] of bools.')
      allowed = readable(self._groups(input_ids, document, answer_mask), document)
    if position_ids is None:
      position_ids = _positions(document)
    hidden, _ = self.model(input_ids, position_ids, allowed)
    return CausalLMOutput(logits=self.lm_head(hidden))

  def _groups(self, token: torch.Tensor, document: torch.Tensor,
              answer: torch.Tensor | None) -> torch.Tensor:
    if answer is None and (self.mode == 'nar' or self.prompt_audio != 'bidirectional'):
      raise ValueError('answer_mask is required: this model masks prompts and answers differently '
                       f'(ttt_mode {self.mode!r}, ttt_prompt_audio {self.prompt_audio!r}).')
    answer = torch.zeros_like(token, dtype=torch.bool) if answer is None else answer.bool()
    return bidirectional_group(token >= self.ids.threshold, document, answer, self.mode,
                               self.prompt_audio)

  def generate_speech(self, input_ids: Any, *, stream: bool = False, tokenizer: Any = None,
                      names: Sequence[int] | None = None, codec: Any = None, **settings: Any
                      ) -> Answer | list[Answer] | Iterator[Event]:
    """Answer prompts: text by sampling, audio by unmasking blocks.

    Args:
      input_ids: one prompt (list or [n] or [1, n] tensor of ids, up to and including the
        assistant's header), or a list of prompts.
      stream: return an iterator of Events: text and audio tokens as soon as they are final.
      tokenizer: decodes the text of events and answers; without it they have none.
      names: seed each prompt's random draws together with ``seed``; default: its index. The same
        name, seed and prompt give the same answer whatever the other prompts are.
      codec: decodes codes for ``Answer.waveform``: an object with ``sample_rate`` in Hz and
        ``decode(codes) -> samples`` in [-1, 1], an array or a tensor. Default: the codec of the
        directory, if it carries one (ttt_codec.py).
      **settings: see ``Options`` in ttt_choice.py: preset, block, steps, max_span, max_tokens,
        temperature, top_k, top_p, audio_temperature, guidance, rule, schedule, seed, slots, ...

    Returns:
      An Answer, or one per prompt if a list of prompts was given; or an iterator of Events.

    Raises:
      ValueError: an unknown option, or a prompt that cannot be answered.
    """
    prompts, single = _prompts(input_ids)
    decode = None
    if tokenizer is not None:
      decode = lambda ids: tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    generation = Generation(
        self.model, self.lm_head.weight, self.ids,
        options(getattr(self.config, 'ttt_generate', None), settings), mode=self.mode,
        prompt_audio=self.prompt_audio, decode=decode)
    events = self._with_codec(generation.run(prompts, names), codec)
    if stream:
      return events
    answers = {event.request: event.answer for event in events if event.answer is not None}
    return answers[0] if single else [answers[i] for i in range(len(prompts))]


  def _with_codec(self, events: Iterator[Event], codec: Any) -> Iterator[Event]:
    for event in events:
      if event.answer is not None:
        event.answer.codec = self._own_codec() if codec is None else codec
      yield event

  def _own_codec(self) -> Any:
    """The codec of the directory; read once."""
    if self.__dict__.get('_codec') is None:
      name = (getattr(self.config, 'ttt_vocabulary', None) or {}).get('codec', 'unknown')
      self.__dict__['_codec'] = load(self._file, name)
    return self.__dict__['_codec']

  def _file(self, name: str) -> str | None:
    """Path of a file beside the weights, in a local directory or on the Hub; None: it has none."""
    folder = self.config._name_or_path
    if not folder or os.path.isdir(folder):
      path = os.path.join(folder, name)
      return path if folder and os.path.isfile(path) else None
    try:
      return cached_file(folder, name, revision=getattr(self.config, '_commit_hash', None))
    except (OSError, ValueError):
      return None

  def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
    """As in transformers; the codec's files are copied, too."""
    found = [path for path in map(self._file, FILES) if path is not None]
    out = super().save_pretrained(save_directory, *args, **kwargs)
    for path in found:
      target = os.path.join(os.fspath(save_directory), os.path.basename(path))
      if not (os.path.exists(target) and os.path.samefile(path, target)):
        shutil.copyfile(path, target)
    return out


def _positions(document: torch.Tensor) -> torch.Tensor:
  """int64 [B, T]: 0, 1, ... in each run of equal document numbers."""
  index = torch.arange(document.shape[1], device=document.device).expand_as(document)
  starts = torch.ones_like(document, dtype=torch.bool)
  starts[:, 1:] = document[:, 1:] != document[:, :-1]
  return index - torch.where(starts, index, 0).cummax(1).values


def _prompts(given: Any) -> tuple[list[list[int]], bool]:
  """(prompts, whether ``given`` was a single one)."""
  if isinstance(given, torch.Tensor):
    rows = given.tolist() if given.dim() == 2 else [given.tolist()]
    return rows, len(rows) == 1
  rows = list(given)
  if rows and not hasattr(rows[0], '__len__'):
    return [[int(x) for x in rows]], True
  return [[int(x) for x in row] for row in rows], False


# Makes save_pretrained write these files beside the weights, also in older transformers.
TtTForCausalLM.register_for_auto_class('AutoModelForCausalLM')
