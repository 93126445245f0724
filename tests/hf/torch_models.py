"""Random models on both sides: ours, and a Hugging Face directory with the PyTorch module."""

import json
import pathlib
import shutil

import jax
import numpy as np

import ttt_jax
from tests.reference import batches, weights
from ttt_jax.config import ModelConfig
from ttt_jax.model.transformer import Model, Params
from ttt_jax.tokens.vocab import Vocabulary

CODE = pathlib.Path(ttt_jax.__file__).parent / 'hf' / 'torch_code'
V = batches.VOCAB
# Query heads / key heads: 1, 2 and 4; tied and not.
SHAPES = {
    'untied':
        ModelConfig(num_layers=2,
                    hidden_size=16,
                    num_attention_heads=2,
                    num_key_value_heads=1,
                    head_dim=8,
                    intermediate_size=24,
                    tie_word_embeddings=False,
                    vocab_multiple=32),
    'tied':
        ModelConfig(num_layers=3,
                    hidden_size=24,
                    num_attention_heads=4,
                    num_key_value_heads=4,
                    head_dim=6,
                    intermediate_size=20,
                    tie_word_embeddings=True,
                    vocab_multiple=32,
                    rope_theta=1e4),
    'grouped':
        ModelConfig(num_layers=1,
                    hidden_size=32,
                    num_attention_heads=8,
                    num_key_value_heads=2,
                    head_dim=8,
                    intermediate_size=48,
                    tie_word_embeddings=False,
                    vocab_multiple=1,
                    rms_norm_eps=1e-5),
}
_NAMES = {'attention.q': 'self_attn.q_proj', 'attention.k': 'self_attn.k_proj',
          'attention.v': 'self_attn.v_proj', 'attention.o': 'self_attn.o_proj',
          'mlp.gate': 'mlp.gate_proj', 'mlp.up': 'mlp.up_proj', 'mlp.down': 'mlp.down_proj',
          'attention_norm': 'input_layernorm', 'mlp_norm': 'post_attention_layernorm'}


def random_params(model: Model, rng: np.random.Generator, begin=2.5, end=1.0, stop=1.5,
                  vocab: Vocabulary = V) -> Params:
  """Parameters whose head often opens spans, closes them and stops.

  The factors stretch the head's rows of the begin tokens, the end tokens and im_end.
  """
  params = weights.random(model, rng, scale=0.4)
  if 'head' in params['trunk']:
    params['trunk']['embedding'] *= 2
  head = params['trunk'].get('head', params['trunk']['embedding'])
  head[[vocab.begin_of_audio, vocab.begin_of_quad]] *= begin
  head[[vocab.end_of_chunk, vocab.end_of_last]] *= end
  head[vocab.im_end] *= stop
  return params


def named(params: Params, vocab_size: int, tied: bool) -> dict[str, np.ndarray]:
  """Our parameters (or gradients) under Qwen2's names, written apart from ttt_jax.hf."""
  trunk = jax.tree.map(np.asarray, params['trunk'])
  out = {'model.embed_tokens.weight': trunk['embedding'][:vocab_size],
         'model.norm.weight': trunk['norm']['scale']}
  if not tied:
    out['lm_head.weight'] = trunk['head'][:vocab_size]
  for path, stacked in jax.tree_util.tree_leaves_with_path(params['layers']):
    *module, leaf = [key.key for key in path]
    for i, value in enumerate(np.asarray(stacked)):
      name = f'model.layers.{i}.{_NAMES[".".join(module)]}.' + (
          'bias' if leaf == 'bias' else 'weight')
      out[name] = np.ascontiguousarray(value.T if leaf == 'kernel' else value)
  return out


def config_json(config: ModelConfig, vocab: Vocabulary) -> dict:
  """What config.json needs for the module to be found and to know the id space."""
  return {
      'architectures': ['TtTForCausalLM'],
      'model_type': 'qwen2',
      'auto_map': {
          'AutoModelForCausalLM': 'modeling_ttt.TtTForCausalLM'
      },
      'vocab_size': vocab.size,
      'hidden_size': config.hidden_size,
      'intermediate_size': config.intermediate_size,
      'num_hidden_layers': config.num_layers,
      'num_attention_heads': config.num_attention_heads,
      'num_key_value_heads': config.num_key_value_heads,
      'head_dim': config.head_dim,
      'rms_norm_eps': config.rms_norm_eps,
      'rope_theta': config.rope_theta,
      'hidden_act': 'silu',
      'tie_word_embeddings': config.tie_word_embeddings,
      'max_position_embeddings': 2048,
      'use_sliding_window': False,
      'torch_dtype': 'float32',
      'dtype': 'float32',
      'eos_token_id': vocab.im_end,
      'pad_token_id': vocab.pad,
      'audio_token_id_start': vocab.audio_threshold,
      'mask_token': vocab.mask
  }


def write(directory: pathlib.Path, config: ModelConfig, params: Params, vocab: Vocabulary = V,
          **more) -> pathlib.Path:
  """A Hugging Face directory of one shard; ``more`` goes into config.json."""
  from safetensors.numpy import save_file
  directory.mkdir(parents=True, exist_ok=True)
  save_file(named(params, vocab.size, config.tie_word_embeddings), directory / 'model.safetensors',
            metadata={'format': 'pt'})
  (directory / 'config.json').write_text(
      json.dumps({**config_json(config, vocab), **more}), encoding='utf-8')
  for file in CODE.glob('*.py'):
    shutil.copy(file, directory)
  return directory


def load(directory: pathlib.Path):
  """The module through transformers' own door, float32."""
  import torch
  import transformers
  transformers.utils.logging.set_verbosity_error()
  return transformers.AutoModelForCausalLM.from_pretrained(
      directory, trust_remote_code=True, dtype=torch.float32).eval()
