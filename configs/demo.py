"""The demo: spoken digits and spoken arithmetic, from nothing to an answer by voice.

  make demo
  ttt-jax train --config configs/demo.py --workdir demo     (its third station alone)

Hardware: 2 CPU cores. A 2-million-parameter TtT model learns four tasks: transcription
(ASR), reading aloud (TTS), spoken questions with spoken answers, and the same arithmetic
in text. README.md says what it reaches.
"""

from ml_collections import ConfigDict

SPEECH = 'demo/speech/'


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.name = 'demo'

  config.codec = ConfigDict({'name': 'mel', 'codebooks': 1, 'codes': 512, 'frames': 5})

  # Short system prompts: with a byte-level vocabulary every letter is a token.
  asr, tts = {'task': 'asr', 'prompt': 'asr'}, {'task': 'tts', 'prompt': 'tts'}
  strings = {'path': SPEECH + 'train_strings.jsonl'}
  short = {'path': SPEECH + 'train_short.jsonl', 'split': 'short', 'repeat': 3.0}
  joined = {'join_most': 3, 'join_count': 3000}
  # Two sets are held out: recipes are chosen on 'heldout_validation', `evaluate` reports on
  # 'heldout', the test set, unless evaluate.split says otherwise.
  test = {'path': SPEECH + 'heldout_strings.jsonl', 'split': 'heldout'}
  validation = {'path': SPEECH + 'validation_strings.jsonl', 'split': 'heldout_validation'}
  config.data = ConfigDict({
      'path': 'data',
      'seq_len': 256,
      # Speech fills whole blocks of generate.block: see BUILD_NOTES.md, "Where a span ends".
      'span_fill': 14,
      'sst': 0.3,
      'sources': (
          {**strings, **joined, **asr},
          {**strings, **joined, **tts, 'join_count': 4000},
          {'path': SPEECH + 'train_questions.jsonl', 'prompt': 'qa', 'repeat': 3.0},
          {'path': SPEECH + 'train_question_texts.jsonl', **asr, 'repeat': 6.0},
          {'path': SPEECH + 'train_chat.jsonl', 'prompt': 'qa', 'repeat': 5.0},
          # Questions that are held out as speech are known in writing: answering them by
          # voice is knowledge carried from text to speech, not recall of a recording.
          {'path': SPEECH + 'validation_chat.jsonl', 'prompt': 'qa', 'repeat': 12.0},
          {'path': SPEECH + 'heldout_chat.jsonl', 'prompt': 'qa', 'repeat': 12.0},
          # Many lines of arithmetic: a model that does not know a result from its text learns it
          # from the sound of the training questions instead, and fails on the others.
          {'path': SPEECH + 'tables.jsonl', 'repeat': 7.0},
          {**short, **asr},
          {**short, **tts},
          {'path': SPEECH + 'train_chat.jsonl', 'prompt': 'qa', 'split': 'short'},
          {'path': SPEECH + 'tables.jsonl', 'split': 'short', 'repeat': 4.0},
          {**test, **asr},
          {**test, **tts},
          {'path': SPEECH + 'heldout_questions.jsonl', 'prompt': 'qa', 'split': 'heldout'},
          {**validation, **asr},
          {**validation, **tts},
          {'path': SPEECH + 'validation_questions.jsonl', 'prompt': 'qa',
           'split': 'heldout_validation'},
          {'path': SPEECH + 'validation_chat.jsonl', 'prompt': 'qa', 'split': 'heldout_written'},
          {'path': SPEECH + 'heldout_chat.jsonl', 'prompt': 'qa', 'split': 'heldout_written'},
      ),
      'stages': ({'split': 'short', 'steps': 350}, {'split': 'train'}),
  })
  config.model = ConfigDict({
      'num_layers': 4,
      'hidden_size': 192,
      'num_attention_heads': 3,
      'num_key_value_heads': 1,
      'head_dim': 64,
      'intermediate_size': 512,
      'rope_theta': 1e4,
      'vocab_multiple': 64,
      'scan_unroll': 4,
  })
  # Masks of at least 30 %: weights 1/p of at most 3.3 instead of 1,000 keep the gradient of
  # a small batch readable. The bound that evaluate reports uses the method's own 0.001.
  config.objective = ConfigDict({'mask_floor': 0.3, 'banom': 0.15})
  config.optimizer = ConfigDict({
      'name': 'muon', 'newton_steps': 3, 'learning_rate': 3e-3, 'warmup_ratio': 0.03,
      'weight_decay': 0.05, 'beta2': 0.98,
  })
  config.train = ConfigDict({
      'steps': 3400, 'batch_size': 3, 'log_every': 20, 'checkpoint_every': 300,
  })
  config.generate = ConfigDict({
      'block': 14, 'steps': 7, 'max_span': 140, 'max_tokens': 512, 'slots': 16,
  })
  # It was trained on single turns.
  config.serve = ConfigDict({'history': 0})
  return config
