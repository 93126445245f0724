"""Text-to-Talk 7B: Qwen2.5-7B's decoder over 168,072 ids (7.73 billion parameters).

  ttt-jax plan --config configs/ttt_7b.py --config.hardware=v5p-64 --topology v5p:4x4x4
  ttt-jax prepare --config configs/ttt_7b.py --workdir runs/7b
  ttt-jax train --config configs/ttt_7b.py --config.hardware=v5p-64 --workdir runs/7b

Hardware: one of the presets below; `ttt-jax plan` says beforehand whether it fits. The
optimizer's settings are those of arXiv 2509.20072. For rows of 8,192 tokens add
--config.data.seq_len=8192 and, where memory is short, more --config.train.grad_accum_steps.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.name = 'ttt_7b'
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
      'num_layers': 28,
      'hidden_size': 3584,
      'num_attention_heads': 28,
      'num_key_value_heads': 4,
      'head_dim': 128,
      'intermediate_size': 18944,
      'rope_theta': 1e6,
      'tie_word_embeddings': False,
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
      'h100-1': {'mesh': {'fsdp': 1},
                 'train': {'batch_size': 1}, 'optimizer': {'name': 'adafactor'},
                 'model': {'remat': 'full'}},
      'h100-8': {'mesh': {'fsdp': 8}, 'train': {'batch_size': 256, 'grad_accum_steps': 16}},
      'v5e-16': {'mesh': {'fsdp': 4, 'tensor': 4},
                 'train': {'batch_size': 256, 'grad_accum_steps': 64}, 'model': {'remat': 'full'}},
      'v5p-64': {'mesh': {'data': 4, 'fsdp': 16}, 'train': {'batch_size': 256}},
      'v6e-256': {'mesh': {'data': 16, 'fsdp': 16}, 'train': {'batch_size': 512}},
      'v5e-256x4': {'mesh': {'slices': 4, 'data': 8, 'fsdp': 32}, 'train': {'batch_size': 1024}},
  })
  return config
