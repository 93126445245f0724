"""Text-to-Talk in JAX: one Transformer that writes token by token and speaks by diffusion.

The walk, in order; each station is one public function, and imports point this way only:

  config.load            a config file and overrides -> frozen dataclasses
  vocab.Vocabulary       the id space and its one rule: id >= audio_threshold is audio
  batch.Batch            five integers per token that decide everything after
  text, audio            tokenizers; codecs, recordings, recognisers
  data.prepare.prepare   records and recordings -> packed rows
  data.loader.Loader     rows -> deterministic batches, resumable from one integer
  model.staircase        the integers -> which keys a query reads
  model.transformer      ids, staircase -> hidden states
  objective.hybrid       corrupt, score: two objectives, one noisy forward pass
  train_step, train      one update; the loop around it
  generate.engine        prompts -> text by sampling, speech by unmasking
  evaluate, report       numbers; a page to look at and listen to
  hf                     Qwen2.5's weights in, PyTorch's out
  api                    all of it from Python: ttt_jax.load(path)
  cli                    flags, process settings, exit codes

From Python: ``ttt_jax.load`` gives a ``TextToTalk`` with prompt, logits, loss and generate; see
ttt_jax/api.py, which is imported when one of its names is used.
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
