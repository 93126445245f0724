"""Small Qwen2 directories with random weights, written without transformers."""

import json
import pathlib

import numpy as np

from ttt_jax.config import ModelConfig
from ttt_jax.hf import qwen_config, tensor_names
from ttt_jax.model.transformer import Model
from ttt_jax.storage import safetensors_io

SMALL = dict(num_layers=2,
             hidden_size=32,
             num_attention_heads=4,
             num_key_value_heads=2,
             head_dim=8,
             intermediate_size=48,
             vocab_multiple=64)


def config_json(config: ModelConfig, vocab_size: int, **more) -> dict:
  """Fields as Qwen2 has them."""
  values = {theirs: getattr(config, ours) for ours, theirs in qwen_config.KEYS.items()}
  return values | {'architectures': ['Qwen2ForCausalLM'], 'model_type': 'qwen2',
                   'vocab_size': vocab_size, 'hidden_act': 'silu'} | more


def write(directory: pathlib.Path, config: ModelConfig, vocab_size: int, dtype='float32',
          seed: int = 0, shard_bytes: int = 2**40, **more) -> dict[str, np.ndarray]:
  """Write a model of noise; returns its tensors by name."""
  rng = np.random.default_rng(seed)
  plan = tensor_names.tensors(Model(config, vocab_size))
  values = {name: (('norm' in name) + 0.1 * rng.standard_normal(tensor.shape)).astype(dtype)
            for name, tensor in plan.items()}
  directory.mkdir(parents=True, exist_ok=True)
  (directory / 'config.json').write_text(json.dumps(config_json(config, vocab_size, **more)))
  safetensors_io.Writer(directory, (safetensors_io.Plan(name, value.shape, value.dtype)
                             for name, value in values.items()), shard_bytes).write(values.get)
  return values
