"""The published way to encode speech, in PyTorch: the side that glm4_tokenizer compares with.

  python -m benchmarks.glm4_torch FOLDER THREADS

Whisper's encoder layers with causal convolutions, scaled_dot_product_attention under a dense
additive mask [B, 1, T, T], and a codebook searched with one product, float32. Segments are
padded with zeros to the longest of their batch, rounded up to 1,280 samples, as the published
script does. FOLDER holds the published layout (here with random weights) and waves.npz.
"""

import functools
import json
import pathlib
import sys
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks import common
from ttt_jax.audio.glm4 import features


class Attention(nn.Module):
  """Multi-head attention; k has no bias."""

  def __init__(self, width: int, heads: int):
    super().__init__()
    self.heads = heads
    for name in ('q_proj', 'k_proj', 'v_proj', 'out_proj'):
      setattr(self, name, nn.Linear(width, width, bias=name != 'k_proj'))

  def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    split = lambda y: y.view(*y.shape[:2], self.heads, -1).transpose(1, 2)
    y = functional.scaled_dot_product_attention(
        split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x)), attn_mask=mask)
    return self.out_proj(y.transpose(1, 2).reshape(x.shape))


class Layer(nn.Module):
  """Pre-norm attention and feed-forward."""

  def __init__(self, width: int, heads: int, ffn: int):
    super().__init__()
    self.self_attn = Attention(width, heads)
    self.self_attn_layer_norm = nn.LayerNorm(width)
    self.fc1, self.fc2 = nn.Linear(width, ffn), nn.Linear(ffn, width)
    self.final_layer_norm = nn.LayerNorm(width)

  def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    x = x + self.self_attn(self.self_attn_layer_norm(x), mask)
    return x + self.fc2(functional.gelu(self.fc1(self.final_layer_norm(x))))


class Encoder(nn.Module):
  """Log-mel [B, mels, F] to what is quantized, [B, F / 8, width]; names as published."""

  def __init__(self, config: dict[str, Any]):
    super().__init__()
    width = config['d_model']
    self.block = config['quantize_causal_block_size']
    self.conv1 = nn.Conv1d(config['num_mel_bins'], width, 3)
    self.conv2 = nn.Conv1d(width, width, 3, stride=2)
    self.embed_positions = nn.Embedding(config['max_source_positions'], width)
    self.layers = nn.ModuleList(
        Layer(width, config['encoder_attention_heads'], config['encoder_ffn_dim'])
        for _ in range(config['quantize_position']))
    self.codebook = nn.Embedding(config['quantize_vocab_size'], width)

  def hidden(self, mel: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    x = functional.gelu(self.conv1(functional.pad(mel, (2, 0))))
    x = functional.gelu(self.conv2(functional.pad(x, (2, 0)))).transpose(1, 2)
    x = x + self.embed_positions.weight[:x.shape[1]]
    mask = self.mask(x.shape[1], -(-samples // 320)).to(x.dtype)
    for layer in self.layers:
      x = layer(x, mask)
    return functional.avg_pool1d(x.transpose(1, 2), 4).transpose(1, 2)

  def mask(self, length: int, valid: torch.Tensor) -> torch.Tensor:
    """[B, 1, T, T]: 0 where a query may read a key, else the lowest number."""
    at = torch.arange(length)
    own = at[:, None] // self.block == at[None] // self.block
    allowed = ((at[None] <= at[:, None]) | own)[None] & (at < valid[:, None])[:, None]
    return torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[:, None]

  def quantize(self, hidden: torch.Tensor) -> torch.Tensor:
    flat, codes = hidden.reshape(-1, hidden.shape[-1]), self.codebook.weight
    distance = (codes.square().sum(1) + flat.square().sum(1, keepdim=True)).addmm(
        flat, codes.T, alpha=-2)
    return distance.argmin(1).view(hidden.shape[:-1])


def log_mel(waves: torch.Tensor, mels: int) -> torch.Tensor:
  """Zero-padded waves [B, L] -> [B, mels, L / 160], float32, as the published extractor."""
  spectrum = torch.stft(waves, 400, 160, window=torch.hann_window(400), return_complex=True)
  power = spectrum[..., :-1].abs() ** 2
  log = torch.clamp(_bank(mels) @ power, min=1e-10).log10()
  return (torch.maximum(log, log.amax(dim=(1, 2), keepdim=True) - 8) + 4) / 4


@functools.cache
def _bank(mels: int) -> torch.Tensor:
  return torch.tensor(features.mel_matrix(mels).T, dtype=torch.float32)


def load(folder: pathlib.Path) -> Encoder:
  """The encoder in a folder of the published layout, without prefix."""
  from safetensors.torch import load_file
  config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
  with torch.device('meta'):
    encoder = Encoder(config)
  found = load_file(folder / 'model.safetensors')
  wanted = {name: found[name] for name in encoder.state_dict()}
  encoder.load_state_dict(wanted, assign=True)
  return encoder.eval().requires_grad_(False)


@torch.inference_mode()
def tokens(encoder: Encoder, waves: list[np.ndarray]) -> list[np.ndarray]:
  """Codes of segments that are encoded as one batch."""
  longest = -(-max(map(len, waves)) // features.PATCH) * features.PATCH
  padded = torch.stack([torch.from_numpy(np.pad(wave, (0, longest - len(wave))))
                        for wave in waves])
  mels = log_mel(padded, encoder.conv1.in_channels)
  found = encoder.quantize(encoder.hidden(mels, torch.tensor([len(wave) for wave in waves])))
  return [row[:features.tokens(len(wave))].numpy() for row, wave in zip(found, waves)]


def main() -> None:
  folder, threads = pathlib.Path(sys.argv[1]), int(sys.argv[2])
  common.stay_on(threads)
  torch.set_num_threads(threads)
  encoder = load(folder)

  def run(case: str, at_once: int) -> dict[str, Any]:
    with np.load(folder / 'waves.npz') as file:
      waves = [file[name] for name in sorted(file) if name.startswith(case)]
    groups = [waves[i:i + at_once] for i in range(0, len(waves), at_once)]
    found, time = common.timed(lambda: [tokens(encoder, group) for group in groups])
    return {'tokens': [row.tolist() for group in found for row in group], **time}

  common.serve({'about': lambda: {'versions': {'torch': torch.__version__}}, 'run': run})


if __name__ == '__main__':
  main()
