"""config.json of a Qwen2 directory <-> the model's size and the id space.

  ours                 config.json               ours                 config.json
  num_layers           num_hidden_layers         hidden_size          hidden_size
  num_attention_heads  num_attention_heads       intermediate_size    intermediate_size
  num_key_value_heads  num_key_value_heads       rms_norm_eps         rms_norm_eps
  head_dim             head_dim, or              tie_word_embeddings  tie_word_embeddings
                       hidden_size / heads       rope_theta           rope_theta, or inside
                                                                      rope_parameters

A Text-to-Talk model has two more fields, ``audio_token_id_start`` and ``mask_token``, which
determine its id space.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

from ttt_jax.config import Config, ModelConfig
from ttt_jax.errors import UserError
from ttt_jax.tokens.vocab import (
    BYTE_TEXT_RANKS, CONTROLS, GLM4_CODEBOOK_SIZE, QWEN_SPECIALS, QWEN_TEXT_RANKS, Vocabulary,
    qwen_glm4)

CONFIG = 'config.json'
ARCHITECTURES = ('Qwen2ForCausalLM', 'TtTForCausalLM')
KEYS = {
    'hidden_size': 'hidden_size',
    'num_layers': 'num_hidden_layers',
    'num_attention_heads': 'num_attention_heads',
    'num_key_value_heads': 'num_key_value_heads',
    'head_dim': 'head_dim',
    'intermediate_size': 'intermediate_size',
    'rope_theta': 'rope_theta',
    'rms_norm_eps': 'rms_norm_eps',
    'tie_word_embeddings': 'tie_word_embeddings',
}
# Settings with one supported value (the first): config.json has it, or omits the field.
_ONLY = {'hidden_act': ('silu',), 'use_sliding_window': (False, None),
         'rope_scaling': (None, {}), 'mlp_bias': (False, None), 'quantization_config': (None,)}
_DEFAULTS = {'rms_norm_eps': 1e-6, 'tie_word_embeddings': False, 'rope_theta': 1e4}


def read(directory: str | os.PathLike) -> dict[str, Any]:
  """config.json of a directory, checked to be a supported decoder.

  Raises:
    UserError: no directory or file, another architecture, a field missing or of another type.
  """
  path = pathlib.Path(directory) / CONFIG
  if not pathlib.Path(directory).is_dir():
    raise UserError(f'{directory} is not a directory; name the folder of a model, with its '
                    'config.json and safetensors files.')
  if not path.is_file():
    raise UserError(f'{path} does not exist; name the folder of a model, with its config.json and '
                    'safetensors files.')
  try:
    values = json.loads(path.read_text(encoding='utf-8'))
    names = tuple(values.get('architectures') or ())
  except (ValueError, TypeError, AttributeError) as error:
    raise UserError(f'{path} is not the JSON of a model ({error}); download it again.') from error
  if values.get('model_type') != 'qwen2' or (names and names[0] not in ARCHITECTURES):
    named = names[0] if names else f'model_type {values.get("model_type")!r}'
    raise UserError(f'{path} describes {named}; only Qwen2 decoders can be imported: '
                    + ' or '.join(ARCHITECTURES) + " with model_type 'qwen2'.")
  rope = values.get('rope_parameters') or {}
  if 'rope_theta' in rope:
    values['rope_theta'] = rope['rope_theta']
  if rope.get('rope_type', 'default') != 'default':
    values['rope_scaling'] = rope
  for key, allowed in _ONLY.items():
    if values.get(key, allowed[0]) not in allowed:
      raise UserError(f'{path} has {key} = {values[key]!r}; only {allowed[0]!r} can be imported.')
  for key in ('vocab_size', *(key for key in KEYS.values() if key not in (*_DEFAULTS, 'head_dim'))):
    if not isinstance(values.get(key), int):
      raise UserError(f'{path} has {key} = {values.get(key)!r}; it must be an integer.')
  return values


def size(values: dict[str, Any]) -> dict[str, Any]:
  """The fields of ModelConfig that config.json determines."""
  found = {**_DEFAULTS, **{key: value for key, value in values.items() if value is not None}}
  found.setdefault('head_dim', found['hidden_size'] // found['num_attention_heads'])
  out = {ours: found[theirs] for ours, theirs in KEYS.items()}
  return out | {'rope_theta': float(out['rope_theta']), 'rms_norm_eps': float(out['rms_norm_eps'])}


def compare(values: dict[str, Any], config: ModelConfig, directory: str | os.PathLike) -> None:
  """Raise UserError that names every setting of ``config`` that differs from the directory's."""
  wrong = {key: value for key, value in size(values).items() if getattr(config, key) != value}
  if wrong:
    pairs = ', '.join(f'config key model.{key} is {getattr(config, key)} where {KEYS[key]} is '
                      f'{value}' for key, value in wrong.items())
    flags = ' '.join(f'--config.model.{key}={value}' for key, value in wrong.items())
    raise UserError(f'{pathlib.Path(directory) / CONFIG} does not fit the config: {pairs}; use the '
                    f'config of that model, or {flags}.')


def vocabulary(values: dict[str, Any], directory: str | os.PathLike) -> Vocabulary:
  """The id space of a directory; that of the paper, if it is plain Qwen2.5.

  Raises:
    UserError: the vocabulary is neither Qwen2.5's nor a Text-to-Talk model's.
  """
  path = pathlib.Path(directory) / CONFIG
  if isinstance(values.get('ttt_vocabulary'), dict):
    try:
      return Vocabulary(**values['ttt_vocabulary'])
    except TypeError as error:
      raise UserError(f'{path} has ttt_vocabulary = {values["ttt_vocabulary"]!r}; it must have '
                      'text, text_ranks, codec and codebook_size.') from error
  start, mask = values.get('audio_token_id_start'), values.get('mask_token')
  if isinstance(start, int) and isinstance(mask, int):
    ranks, codes = start - len(QWEN_SPECIALS) - len(CONTROLS), mask - start - 1
    if ranks < 1 or codes < 1:
      raise UserError(f'{path} has audio_token_id_start = {start} and mask_token = {mask}; the '
                      'text tokens, 41 special tokens and the marker come before the codes, and '
                      'the mask after them.')
    text = {QWEN_TEXT_RANKS: 'qwen2.5', BYTE_TEXT_RANKS: 'bytes'}.get(ranks, 'other')
    return Vocabulary(text, ranks, 'glm-4-voice' if codes == GLM4_CODEBOOK_SIZE else
                      f'codes-{codes}', codes)
  if values['vocab_size'] >= QWEN_TEXT_RANKS + len(QWEN_SPECIALS):
    return qwen_glm4()
  raise UserError(f'{path} has vocab_size = {values["vocab_size"]} and neither '
                  'audio_token_id_start nor mask_token; only Qwen2.5 and Text-to-Talk vocabularies '
                  'are known.')


def check_vocabulary(values: dict[str, Any], vocab: Vocabulary,
                     directory: str | os.PathLike) -> None:
  """Raise UserError if a Text-to-Talk directory has another id space than ``vocab``."""
  for key, wanted in (('audio_token_id_start', vocab.audio_threshold), ('mask_token', vocab.mask)):
    if values.get(key, wanted) != wanted:
      raise UserError(f'{pathlib.Path(directory) / CONFIG} has {key} = {values[key]}, but in the '
                      f'vocabulary of the prepared data it is {wanted}; prepare the data with the '
                      'tokenizer and codec of that model.')


def write(config: Config, vocab: Vocabulary, dtype: str,
          origin: dict[str, Any] | None = None) -> dict[str, Any]:
  """config.json of an exported model.

  Args:
    config: of the run; sections model, objective, generate and data are read.
    vocab: its id space.
    dtype: of the tensors, 'float32' or 'bfloat16'.
    origin: config.json that was imported; its other fields (lengths, for example) are kept.
  """
  model = config.model
  values = {
      'max_position_embeddings': 32768, 'initializer_range': 0.02, 'attention_dropout': 0.0,
      'use_cache': True, 'sliding_window': None, 'max_window_layers': model.num_layers,
  }
  values |= {key: value for key, value in (origin or {}).items()
             if key not in ('transformers_version', 'layer_types', '_name_or_path')}
  values |= {theirs: getattr(model, ours) for ours, theirs in KEYS.items()}
  return values | {
      'architectures': ['TtTForCausalLM'], 'model_type': 'qwen2',
      'auto_map': {'AutoModelForCausalLM': 'modeling_ttt.TtTForCausalLM'},
      'hidden_act': 'silu', 'use_sliding_window': False,
      'rope_parameters': {'rope_type': 'default', 'rope_theta': model.rope_theta},
      'vocab_size': vocab.size, 'dtype': dtype, 'torch_dtype': dtype,
      'bos_token_id': vocab.pad, 'pad_token_id': vocab.pad, 'eos_token_id': vocab.im_end,
      'mask_token': vocab.mask, 'audio_token_id_start': vocab.audio_threshold,
      'ttt_vocabulary': vocab.to_dict(), 'ttt_mode': config.objective.mode,
      'ttt_prompt_audio': config.objective.prompt_audio,
      'ttt_generate': dataclasses.asdict(config.generate),
      'ttt_layout': {'text_chunk': config.data.text_chunk,
                     'audio_chunk': config.data.audio_chunk,
                     **({} if config.data.form == 'default' else {'form': config.data.form})},
  }


def write_generation(config: Config, vocab: Vocabulary) -> dict[str, Any]:
  """generation_config.json of an exported model, for `generate` of transformers."""
  g = config.generate
  sampled = {'do_sample': True, 'temperature': g.temperature, 'top_p': g.top_p,
             'top_k': g.top_k or None}
  return {'bos_token_id': vocab.pad, 'pad_token_id': vocab.pad,
          'eos_token_id': [vocab.im_end, vocab.pad], 'max_length': g.max_tokens,
          **({key: value for key, value in sampled.items() if value is not None}
             if g.temperature > 0 else {'do_sample': False})}
