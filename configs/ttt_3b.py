"""Text-to-Talk 3B: Qwen2.5-3B's decoder over 168,072 ids (3.12 billion parameters).

  ttt-jax plan --config configs/ttt_3b.py --config.hardware=v5p-64 --topology v5p:4x4x4
  ttt-jax prepare --config configs/ttt_3b.py --workdir runs/3b
  ttt-jax train --config configs/ttt_3b.py --config.hardware=v5p-64 --workdir runs/3b

Hardware: one of the presets below; `ttt-jax plan` says beforehand whether it fits. The
optimizer's settings are those of arXiv 2509.20072. For rows of 8,192 tokens add
--config.data.row_length=8192 and, where memory is short, more --config.train.microbatches.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.name = 'ttt_3b'
  config.vocab = ConfigDict({'text': 'qwen2.5', 'tokenizer': 'qwen2.5/tokenizer.json'})
  config.codec = ConfigDict({'name': 'glm4_voice'})
  config.data = ConfigDict({
      'row_length': 2048,
      'sources': (
          {'path': 'records/train.jsonl'},
          {'path': 'records/heldout.jsonl', 'split': 'heldout'},
      ),
  })
  config.model = ConfigDict({
      'layers': 36, 'width': 2048, 'q_heads': 16, 'kv_heads': 2, 'head_dim': 128, 'ffn': 11008,
      'rope_theta': 1e6, 'tied': True, 'vocab_multiple': 512, 'dtype': 'bfloat16',
      'remat': 'attention',
  })
  config.optimizer = ConfigDict({
      'learning_rate': 2e-5, 'warmup_fraction': 0.01, 'weight_decay': 0.01, 'beta2': 0.95,
  })
  config.train = ConfigDict({
      'steps': 3000, 'batch_rows': 256, 'checkpoint_every': 200,
  })
  config.presets = ConfigDict({
      'h100-1': {'mesh': {'fsdp': 1}, 'train': {'batch_rows': 256, 'microbatches': 64}},
      'h100-8': {'mesh': {'fsdp': 8}, 'train': {'batch_rows': 512, 'microbatches': 8}},
      'v5e-16': {'mesh': {'fsdp': 16}, 'train': {'batch_rows': 256, 'microbatches': 16}},
      'v5p-64': {'mesh': {'data': 2, 'fsdp': 32}, 'train': {'batch_rows': 256}},
      'v6e-256': {'mesh': {'data': 16, 'fsdp': 16}, 'train': {'batch_rows': 1024}},
      'v5e-256x4': {'mesh': {'slices': 4, 'data': 16, 'fsdp': 16}, 'train': {'batch_rows': 2048}},
  })
  return config
