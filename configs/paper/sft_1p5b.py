"""Text-to-Talk 1.5B as in the paper (arXiv 2509.20072): fine-tuning of Qwen2.5-1.5B.

  CONFIG=configs/paper/sft_1p5b.py
  ttt-jax prepare --config $CONFIG --workdir runs/sft_1p5b --config.data.root=/data
  ttt-jax import-hf --hf Qwen2.5-1.5B --config $CONFIG --workdir runs/sft_1p5b
  ttt-jax train --config $CONFIG --config.hardware=h100-32 --workdir runs/sft_1p5b

Everything but the model's size and the presets is as in sft_3b.py, which lists where paper and
published code differ.

Hardware: one of the presets below; docs/recipes.md has the memory and speed that `ttt-jax plan`
finds for each. The data of the paper are not public as a whole; the corpora below stand for them.
"""

import pathlib

from ml_collections import ConfigDict

from ttt_jax import config as config_lib


def get_config() -> ConfigDict:
  sft_3b = pathlib.Path(__file__).with_name('sft_3b.py')
  config = config_lib.call(sft_3b, 'get_config', 'config file')
  config.name = 'sft_1p5b'
  config.model.update({
      'num_layers': 28,
      'hidden_size': 1536,
      'num_attention_heads': 12,
      'intermediate_size': 8960,
  })
  config.presets = ConfigDict({
      'a100-32': {'mesh': {'fsdp': 32}, 'train': {'grad_accum_steps': 8}},
      'h100-8': {'mesh': {'fsdp': 8}, 'train': {'grad_accum_steps': 32}},
      'h100-32': {'mesh': {'fsdp': 32}, 'train': {'grad_accum_steps': 8}},
      'v5p-64': {'mesh': {'data': 8, 'fsdp': 8}, 'train': {'grad_accum_steps': 4}},
      'v6e-256': {'mesh': {'data': 32, 'fsdp': 8}},
  })
  return config
