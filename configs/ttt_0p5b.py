"""Text-to-Talk 0.5B: Qwen2.5-0.5B's decoder over 168,072 ids (0.51 billion parameters).

  ttt-jax plan --config configs/ttt_0p5b.py --config.hardware=v5p-64 --topology v5p:4x4x4
  ttt-jax prepare --config configs/ttt_0p5b.py --workdir runs/0p5b
  ttt-jax train --config configs/ttt_0p5b.py --config.hardware=v5p-64 --workdir runs/0p5b

Hardware: one of the presets below; `ttt-jax plan` says beforehand whether it fits. The
optimizer's settings are those of arXiv 2509.20072. For rows of 8,192 tokens add
--config.data.seq_len=8192 and, where memory is short, more --config.train.grad_accum_steps.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.name = 'ttt_0p5b'
  config.vocab = ConfigDict({'text': 'qwen2.5', 'tokenizer': 'qwen2.5/tokenizer.json'})
  config.codec = ConfigDict({'name': 'glm4_voice'})
  config.data = ConfigDict({
      'seq_len': 2048,
      'sources': (
          {'path': 'records/train.jsonl'},
          {'path': 'records/heldout.jsonl', 'split': 'heldout'},
      ),
  })
  config.model = ConfigDict({
      'num_layers': 24,
      'hidden_size': 896,
      'num_attention_heads': 14,
      'num_key_value_heads': 2,
      'head_dim': 64,
      'intermediate_size': 4864,
      'rope_theta': 1e6,
      'tie_word_embeddings': True,
      'vocab_multiple': 512,
      'dtype': 'bfloat16',
      'remat': 'attention',
  })
  config.optimizer = ConfigDict({
      'learning_rate': 2e-5, 'warmup_ratio': 0.01, 'weight_decay': 0.01, 'beta2': 0.95,
  })
  config.train = ConfigDict({
      'steps': 3000, 'batch_size': 256, 'checkpoint_every': 200,
  })
  config.presets = ConfigDict({
      'h100-1': {'mesh': {'fsdp': 1}, 'train': {'batch_size': 256, 'grad_accum_steps': 16}},
      'h100-8': {'mesh': {'data': 8, 'fsdp': 1},
                 'train': {'batch_size': 512, 'grad_accum_steps': 4}},
      'v5e-16': {'mesh': {'data': 4, 'fsdp': 4},
                 'train': {'batch_size': 256, 'grad_accum_steps': 4}},
      'v5p-64': {'mesh': {'data': 16, 'fsdp': 4}, 'train': {'batch_size': 1024}},
      'v6e-256': {'mesh': {'data': 64, 'fsdp': 4}, 'train': {'batch_size': 2048}},
      'v5e-256x4': {'mesh': {'slices': 4, 'data': 64, 'fsdp': 4}, 'train': {'batch_size': 2048}},
  })
  return config
