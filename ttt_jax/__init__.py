"""Text-to-Talk in JAX: one Transformer for text (autoregressive) and speech (masked diffusion).

The package by folder, in import order: each imports only from itself and from those above it
(tests/test_layering.py).

  errors.py           UserError: wrong input or configuration, reported as one sentence
  storage/, system/   files, locks, safetensors; hardware, progress lines; no model knowledge
  config/             every setting once: config file and overrides -> frozen dataclasses
  tokens/             the id space (id >= audio_threshold is audio), tokenizers, the Batch
  audio/              waveforms <-> codes: codecs, audio files, speech recognition
  data/               records and recordings -> packed rows -> deterministic batches
  model/              the decoder: attention mask, kernels, KV cache, sharding
  objective/          the loss: both objectives from one noisy forward pass
  train/              one training run: step, loop, optimizer, checkpoints, validation
  generate/           prompts -> text by sampling and speech by unmasking; likelihoods
  evaluate/           scores of a trained model on held-out records
  hf/, plan/          Hugging Face and PEFT formats in and out; memory and speed estimates
  api.py              the Python API
  runs/               runs from outside: supervisor, sweeps, status, reports
  cli/                the command line

To follow one batch: data.prepare.prepare.prepare -> data.loader.Loader -> model.staircase ->
model.transformer.Model -> objective.hybrid -> train.step -> train.loop.

``ttt_jax.load(path)`` returns a TextToTalk with prompt, logits, loss and generate. Its names are
imported from ttt_jax/api.py on first use, so that ``import ttt_jax`` does not import JAX.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
  from ttt_jax.api import Noise, Reply, Terms, TextToTalk, load

__all__ = ['Noise', 'Reply', 'Terms', 'TextToTalk', 'load']


def __getattr__(name: str) -> typing.Any:
  if name in __all__:
    return getattr(importlib.import_module('ttt_jax.api'), name)
  raise AttributeError(f'module ttt_jax has no attribute {name!r}')


def __dir__() -> list[str]:
  return sorted([*globals(), *__all__])
