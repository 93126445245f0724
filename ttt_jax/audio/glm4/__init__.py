"""GLM-4-Voice's speech tokenizer in Flax: the codec whose 16,384 codes TtT speaks.

  waveform --resample, cut, log-mel (features.py)--> [frames, 128] at 100 Hz
  --two causal convolutions, 16 layers, mean of 4 (encoder.py)--> [tokens, 1280] at 12.5 Hz
  --nearest of 16,384 codes--> tokens

batches.py runs many segments through a few compiled programs, over as many devices as there
are; checkpoint.py reads the published safetensors; codec.py is the door, loaded by name
('glm4_voice') from audio/codec.py, so that nothing else imports JAX for its sake; decoder.py
borrows the published PyTorch decoder where the config names it.

Facts: github.com/THUDM/GLM-4-Voice (speech_tokenizer) and its published config.json.
"""
