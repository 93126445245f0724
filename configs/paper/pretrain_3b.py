"""Text-to-Talk 3B as in the paper, first of two stages: interleaved pretraining.

  CONFIG=configs/paper/pretrain_3b.py
  ttt-jax prepare --config $CONFIG --workdir runs/pretrain_3b --config.data.root=/data
  ttt-jax import-hf --hf Qwen2.5-3B --config $CONFIG --workdir runs/pretrain_3b
  ttt-jax train --config $CONFIG --config.hardware=h100-32 --workdir runs/pretrain_3b

About 200 billion tokens of documents in which pieces of text are replaced by their speech: 47,684
steps of 2,048 rows of 2,048 tokens, half of them English and half Chinese. The paper gives the
number of tokens; the shares of the languages and the optimizer of this stage are not published, so
the optimizer is that of the second stage, sft_after_pretrain_3b.py.

Every document is read about once, so BANOM, PPM and SST are as in the second stage. The differences
between paper and published code that sft_3b.py lists hold here, too. A shorter run:
--config.train.steps=5000; the cosine then ends there.

Hardware: one of the presets below; docs/recipes.md has the memory and speed that `ttt-jax plan`
finds for each.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.name = 'pretrain_3b'
  config.vocab = ConfigDict({'text': 'qwen2.5', 'tokenizer': 'qwen2.5/tokenizer.json'})
  # codec.weights encodes recordings: the folder of THUDM/glm-4-voice-tokenizer.
  config.codec = ConfigDict({'name': 'glm4_voice', 'weights': 'glm-4-voice-tokenizer'})
  config.data = ConfigDict({
      'seq_len': 2048,
      'text_chunk': 13,
      'audio_chunk': 26,
      'sst': 0.5,
      'strict': False,  # large corpora have broken files; data.max_rejects limits their share
      # Relative paths are looked up in data.root: --config.data.root=/data. The documents have
      # pieces with recordings or codes, see docs/recipes.md; each piece is spoken with
      # probability `speech`. Speech that has a transcript adds short documents.
      'sources': (
          {'path': 'interleaved/en/*.jsonl', 'task': 'pt', 'speech': 0.5, 'split': 'english'},
          {'path': 'interleaved/zh/*.jsonl', 'task': 'pt', 'speech': 0.5, 'split': 'chinese'},
          {'path': 'interleaved/heldout/*.jsonl', 'task': 'pt', 'split': 'heldout'},
      ),
      'stages': ({'mix': {'english': 1, 'chinese': 1}},),
  })
  config.model = ConfigDict({
      'num_layers': 36,
      'hidden_size': 2048,
      'num_attention_heads': 16,
      'num_key_value_heads': 2,
      'head_dim': 128,
      'intermediate_size': 11008,
      'rope_theta': 1e6,
      'tie_word_embeddings': True,
      'vocab_multiple': 512,
      'dtype': 'bfloat16',
      'remat': 'attention',
  })
  config.objective = ConfigDict({
      'prompt_audio': 'causal', 'banom': 0.3, 'ppm': 0.3, 'ar_weight': 1.0, 'diffusion_weight': 1.0,
  })
  config.optimizer = ConfigDict({
      'name': 'adamw', 'learning_rate': 2e-5, 'final_fraction': 0.0, 'warmup_ratio': 0.01,
      'weight_decay': 0.01, 'beta1': 0.9, 'beta2': 0.95, 'eps': 1e-8, 'max_grad_norm': 1.0,
  })
  config.train = ConfigDict({
      'steps': 47684, 'batch_size': 2048, 'checkpoint_every': 500, 'eval_every': 500,
  })
  config.generate = ConfigDict({'block': 32, 'steps': 10, 'max_span': 640, 'guidance': 0.1})
  config.presets = ConfigDict({
      'a100-32': {'mesh': {'fsdp': 32}, 'train': {'grad_accum_steps': 16}},
      'h100-8': {'mesh': {'fsdp': 8}, 'train': {'grad_accum_steps': 32}},
      'h100-32': {'mesh': {'fsdp': 32}, 'train': {'grad_accum_steps': 8}},
      'v5p-64': {'mesh': {'data': 2, 'fsdp': 32}, 'train': {'grad_accum_steps': 8}},
      'v6e-256': {'mesh': {'data': 16, 'fsdp': 16}, 'train': {'grad_accum_steps': 2}},
  })
  return config
