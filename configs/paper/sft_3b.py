"""Text-to-Talk 3B as in the paper (arXiv 2509.20072): fine-tuning of Qwen2.5-3B.

  CONFIG=configs/paper/sft_3b.py
  ttt-jax prepare --config $CONFIG --workdir runs/sft_3b --config.data.root=/data
  ttt-jax import-hf --hf Qwen2.5-3B --config $CONFIG --workdir runs/sft_3b
  ttt-jax train --config $CONFIG --config.hardware=h100-32 --workdir runs/sft_3b

Published settings: AdamW, 2e-5, weight decay 0.01, beta2 0.95, cosine decay after 1 % warm-up,
2,048 rows of 2,048 tokens per step, bfloat16 computation (parameters and optimizer state are
float32), BANOM 0.3, PPM 0.3, SST 0.5, chunks of 13 text and 26 audio tokens; 32 A100s.

Where the paper and its published code differ, this file follows the paper; the code's choice is

  setting                          paper         published code
  objective.prompt_audio           causal        bidirectional
  objective.banom_unit             (not said)    batch, which is drawn per microbatch
  train.epochs                     (not said)    10
  optimizer.max_grad_norm          (not said)    0.0625: 16 gradients are summed before they are
                                                 clipped at 1.0 (transformers 4.52.4)
  data.form, data.truncate         (not said)    published, anywhere
  generate.preset                  default       published: blocks of 26, 2 steps, top-k 10

each one switch, such as --config.objective.prompt_audio=bidirectional, which a checkpoint of the
published code needs. The code takes 2,048 documents of at most 2,048 tokens per step, one to a row;
here documents are packed, so a row holds several and a step sees more of them. For as many
documents per step as there, divide train.batch_size by the documents per row that `ttt-jax prepare`
finds.

Hardware: one of the presets below; docs/recipes.md has the memory and speed that `ttt-jax plan`
finds for each. The data of the paper are not public as a whole; the corpora below stand for them.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.name = 'sft_3b'
  config.vocab = ConfigDict({'text': 'qwen2.5', 'tokenizer': 'qwen2.5/tokenizer.json'})
  # codec.weights encodes recordings: the folder of THUDM/glm-4-voice-tokenizer.
  config.codec = ConfigDict({'name': 'glm4_voice', 'weights': 'glm-4-voice-tokenizer'})
  config.data = ConfigDict({
      'seq_len': 2048,
      'text_chunk': 13,
      'audio_chunk': 26,
      'sst': 0.5,
      'strict': False,  # large corpora have broken files; data.max_rejects limits their share
      # Relative paths are looked up in data.root: --config.data.root=/data. Sizes, licences and
      # addresses of the corpora are in docs/recipes.md. A corpus that you do not have: delete its
      # lines. Every sample counts once per epoch, as in the published data config.
      'sources': (
          {'path': 'LibriSpeech', 'task': 'asr'},
          {'path': 'LibriTTS', 'task': 'tts'},
          {'path': 'GigaSpeech', 'task': 'asr', 'subset': 'M'},
          {'path': 'cv-corpus/en', 'task': 'asr'},
          {'path': 'data_aishell', 'task': 'asr'},
          {'path': 'data_aishell', 'task': 'tts'},
          {'path': 'AISHELL-2', 'task': 'asr'},
          {'path': 'AISHELL-2', 'task': 'tts'},
          {'path': 'WenetSpeech', 'task': 'asr', 'subset': 'M'},
          {'path': 'VoiceAssistant-400K', 'task': 'audio_chat'},
          {'path': 'clotho', 'task': 'aac'},
          {'path': 'MACS', 'task': 'aac'},
          {'path': 'MACS', 'task': 'sec'},
          {'path': 'MACS', 'task': 'asc'},
          {'path': 'ultrachat_200k/data/train_sft-*.parquet'},
          {'path': 'interleaved/sft/*.jsonl', 'task': 'pt'},
          {'path': 'LibriSpeech', 'task': 'asr', 'subset': 'dev-clean', 'split': 'heldout'},
          {'path': 'data_aishell', 'task': 'asr', 'subset': 'dev', 'split': 'heldout'},
      ),
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
      'epochs': 10.0, 'batch_size': 2048, 'checkpoint_every': 200, 'eval_every': 200,
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
