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
import os
import pathlib
from typing import Annotated, Any, Required

from ttt_jax.config import Config, ModelConfig
from ttt_jax.errors import UserError
from ttt_jax.storage import schema
from ttt_jax.tokens.vocab import (
    BYTE_TEXT_RANKS, CONTROLS, GLM4_CODEBOOK_SIZE, MOST_IDS, QWEN_SPECIALS, QWEN_TEXT_RANKS,
    Vocabulary, VocabularyFile, qwen_glm4)

CONFIG = 'config.json'
# Plain Qwen2, our export, and the code that Text-to-Talk was published with.
ARCHITECTURES = ('Qwen2ForCausalLM', 'TtTForCausalLM', 'Qwen2ForARDiffLM')
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
_ONLY = {'hidden_act': ('silu',), 'use_sliding_window': (False, None), 'mlp_bias': (False, None),
         'quantization_config': (None,)}
_DEFAULTS = {'rms_norm_eps': 1e-6, 'tie_word_embeddings': False, 'rope_theta': 1e4}
# What a rotary embedding of type 'default' may have beside its base.
_ROPE_KEYS = ('rope_type', 'type', 'rope_theta')
_REMEDY = 'use the config.json that belongs to the weights'

_Ids = Annotated[int, schema.Range(1, MOST_IDS)]
_Width = Annotated[int, schema.Range(1, 2**20)]


class Layout(schema.Kind, total=False):
  """``ttt_layout``: how an answer's text and audio alternate."""
  text_chunk: Annotated[int, schema.Range(1)]
  audio_chunk: Annotated[int, schema.Range(1)]


class ConfigFile(schema.Kind, total=False):
  """The fields of config.json that are read; bounds are far above every published model's."""
  architectures: list[str] | None
  model_type: Required[str]
  vocab_size: Required[_Ids]
  hidden_size: Required[_Width]
  num_hidden_layers: Required[Annotated[int, schema.Range(1, 4096)]]
  num_attention_heads: Required[Annotated[int, schema.Range(1, 4096)]]
  num_key_value_heads: Required[Annotated[int, schema.Range(1, 4096)]]
  head_dim: Annotated[int, schema.Range(2, 2**16)] | None
  intermediate_size: Required[_Width]
  rms_norm_eps: Annotated[float, schema.Range(0, 1)] | None
  rope_theta: Annotated[float, schema.Range(1, 1e15)] | None
  tie_word_embeddings: bool | None
  rope_scaling: dict[str, Any] | None
  rope_parameters: dict[str, Any] | None
  layer_types: list[str] | None
  audio_token_id_start: Annotated[int, schema.Range(0, MOST_IDS)] | None
  mask_token: Annotated[int, schema.Range(0, MOST_IDS)] | None
  ttt_vocabulary: VocabularyFile | None
  ttt_mode: str
  ttt_prompt_audio: str
  ttt_generate: dict[str, Any]
  ttt_layout: Layout


def read(directory: str | os.PathLike) -> dict[str, Any]:
  """config.json of a directory, checked to be a supported decoder.

  Raises:
    UserError: no directory or file, another architecture, a field missing or of another type.
  """
  path = pathlib.Path(directory) / CONFIG
  if not pathlib.Path(directory).is_dir():
    raise UserError(f'{directory} is not a directory; name the folder of a model, with its '
                    'config.json and safetensors files.')
  if not path.exists():
    raise UserError(f'{path} does not exist; name the folder of a model, with its config.json and '
                    'safetensors files.')
  values = schema.read(path, None, 'download it again')
  _check_architecture(values, path)
  for key, allowed in _ONLY.items():
    if values.get(key, allowed[0]) not in allowed:
      raise UserError(f'{path} has {key} = {schema.shown(values[key])}; only {allowed[0]!r} can be '
                      'imported.')
  schema.check(values, ConfigFile, str(path), _REMEDY)
  _check_rope(values, path)
  if any(kind != 'full_attention' for kind in values.get('layer_types') or ()):
    raise UserError(f'{path} has layer_types = {schema.shown(values["layer_types"])}; only '
                    "'full_attention' can be imported.")
  sizes = size(values)
  heads, groups = sizes['num_attention_heads'], sizes['num_key_value_heads']
  if heads % groups:
    raise UserError(f'{path} has num_attention_heads = {heads} and num_key_value_heads = {groups}; '
                    f'the first must be a multiple of the second; {_REMEDY}.')
  if sizes['head_dim'] < 2 or sizes['head_dim'] % 2:
    raise UserError(f'{path} has heads of width {sizes["head_dim"]} (head_dim, or hidden_size / '
                    f'num_attention_heads); RoPE needs an even number; {_REMEDY}.')
  return values


def _check_architecture(values: dict[str, Any], path: pathlib.Path) -> None:
  names, kind = values.get('architectures') or [], values.get('model_type')
  if kind == 'qwen2' and (not names or (isinstance(names, list) and names[0] in ARCHITECTURES)):
    return
  named = f'model_type {schema.shown(kind)}'
  if names:
    named = schema.shown(names[0] if isinstance(names, list) else names).strip("'\"")
  raise UserError(f'{path} describes {named}; only Qwen2 decoders can be imported: '
                  f"{' or '.join(ARCHITECTURES)} with model_type 'qwen2'.")


def _check_rope(values: dict[str, Any], path: pathlib.Path) -> None:
  """Moves the base into ``rope_theta``; UserError for scaled or other rotary embeddings."""
  for key in ('rope_scaling', 'rope_parameters'):
    rope = values.get(key) or {}
    kind = rope.get('rope_type', rope.get('type', 'default'))
    if kind != 'default' or not set(rope) <= set(_ROPE_KEYS):
      raise UserError(f'{path} has {key} = {schema.shown(rope)}; only the type \'default\' with '
                      'rope_theta can be imported.')
    if 'rope_theta' in rope:
      schema.check({'rope_theta': rope['rope_theta']}, _Theta, f'{key} in {path}', _REMEDY)
      values['rope_theta'] = rope['rope_theta']


class _Theta(schema.Kind):
  rope_theta: Annotated[float, schema.Range(1, 1e15)]


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
  if values.get('ttt_vocabulary'):
    found = Vocabulary.from_dict(values['ttt_vocabulary'])
    check_vocabulary(values, found, directory, 'its ttt_vocabulary')
    return found
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


def is_text_to_talk(values: dict[str, Any]) -> bool:
  """Whether a directory has an id space of its own, and is not plain Qwen2."""
  return any(values.get(key) is not None for key in (
      'audio_token_id_start', 'mask_token', 'ttt_vocabulary'))


def check_vocabulary(values: dict[str, Any], vocab: Vocabulary, directory: str | os.PathLike,
                     whose: str = 'the vocabulary of the prepared data') -> None:
  """Raise UserError if a directory's rows are not those of ``vocab``.

  A Text-to-Talk directory must have all of its ids. Of plain Qwen2 the first rows are taken as the
  text ids, so there must be as many, and those of Qwen2.5's size are for Qwen2.5's text alone.
  """
  path, rows = pathlib.Path(directory) / CONFIG, values['vocab_size']
  for key, wanted in (('audio_token_id_start', vocab.audio_threshold), ('mask_token', vocab.mask)):
    if values.get(key) is not None and values[key] != wanted:
      raise UserError(f'{path} has {key} = {values[key]}, but in {whose} it is {wanted}; prepare '
                      'the data with the tokenizer and codec of that model.')
  own = values.get('ttt_vocabulary')
  if own and own['codec'] != vocab.codec:
    raise UserError(f'{path} has ttt_vocabulary.codec = {own["codec"]}, but the codec of {whose} '
                    f'is {vocab.codec}: the same code is another sound; prepare the data with the '
                    'codec of that model.')
  needed = vocab.size if is_text_to_talk(values) else vocab.text_ranks
  if rows < needed:
    raise UserError(f'{path} has vocab_size = {rows:,}, but {whose} has {needed:,} ids up to there '
                    f'({vocab.text} text); prepare the data with the tokenizer of that model.')
  if (not is_text_to_talk(values) and rows >= QWEN_TEXT_RANKS + len(QWEN_SPECIALS)
      and vocab.text_ranks != QWEN_TEXT_RANKS):
    raise UserError(f'{path} has vocab_size = {rows:,}, the size of Qwen2.5\'s text vocabulary, '
                    f'but the text of {whose} is {vocab.text} ({vocab.text_ranks:,} ids), to which '
                    "these rows do not belong; set vocab.text='qwen2.5' and vocab.tokenizer, and "
                    'prepare the data again.')


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
