"""Folders like the published tokenizer's, with random weights."""

import json
import pathlib

import numpy as np

from tests.reference import glm4 as reference
from ttt_jax.storage import safetensors_io


def write(folder: pathlib.Path, config: dict, values: dict[str, np.ndarray],
          prefix: str = '', shard_bytes: int = 1 << 40) -> pathlib.Path:
  """config.json and safetensors of `values`, each name after `prefix`; returns the folder."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(json.dumps({'model_type': 'whisper', **config}))
  named = {prefix + name: array for name, array in values.items()}
  plans = [safetensors_io.Plan(name, array.shape, array.dtype) for name, array in named.items()]
  safetensors_io.Writer(folder, plans, shard_bytes).write(named.__getitem__)
  return folder


def small(folder: pathlib.Path, **changes) -> tuple[pathlib.Path, dict]:
  """A small tokenizer in `folder` and its tensors."""
  values = reference.random_tensors(reference.SMALL)
  values['codebook.weight'] = near_codes()
  return write(folder, reference.SMALL, values, **changes), values


def near_codes(seed: int = 5) -> np.ndarray:
  """float32 codes among which the small tokenizer's hidden states spread out: some of those
  states themselves, of other sound."""
  from tests.audio.signals import babble
  values = reference.random_tensors(reference.SMALL)
  config, found = reference.SMALL, []
  for i in range(8):
    wave = babble(1.2, 16_000, seed=seed * 100 + i)
    mel = reference.log_mel(wave, config['num_mel_bins'])
    found.append(reference.hidden(config, values, mel, len(wave)))
  rows = np.concatenate(found)
  pick = np.random.default_rng(seed).permutation(len(rows))[:config['quantize_vocab_size']]
  assert len(pick) == config['quantize_vocab_size']
  return rows[pick].astype(np.float32)
