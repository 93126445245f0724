"""GLM-4-Voice's speech tokenizer in Flax: the codec of the published TtT, with 16,384 codes.

  waveform --resample, cut, log-mel (features.py)--> [frames, 128] at 100 Hz
  --two causal convolutions, 16 layers, mean of 4 (encoder.py)--> [tokens, 1280] at 12.5 Hz
  --nearest of 16,384 codes--> tokens

batches.py batches segments into a few compiled shapes, over all local devices; checkpoint.py reads
the published safetensors; codec.py has the codec 'glm4_voice', which audio/codec.py imports on
demand, so that other codecs do not import JAX; decoder.py calls the published PyTorch decoder if
the config names it.

Source: github.com/THUDM/GLM-4-Voice (speech_tokenizer) and its published config.json.
"""
