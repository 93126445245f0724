"""Qwen2.5's decoder in plain PyTorch under Qwen2's parameter names, and the staircase mask.

B = rows, T = tokens, N = keys, E = width, H/K = query/key heads, D = head dim.
Part of ttt_jax (Apache-2.0); this file needs only torch.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

# Keys and values of one layer, both [B, N, K, D].
Pair = tuple[torch.Tensor, torch.Tensor]


class Sizes(NamedTuple):
  """The decoder's settings in a Qwen2 config."""
  num_layers: int
  hidden_size: int
  num_attention_heads: int
  num_key_value_heads: int
  head_dim: int
  intermediate_size: int
  rope_theta: float
  rms_norm_eps: float
  vocab_size: int


def sizes(config: Any) -> Sizes:
  """The sizes of a transformers.Qwen2Config.

  Raises:
    ValueError: a setting that this decoder does not implement.
  """
  rope = getattr(config, 'rope_parameters', None) or getattr(config, 'rope_scaling', None) or {}
  kind = rope.get('rope_type', rope.get('type', 'default'))
  wrong = [what for what, bad in (
      (f'hidden_act={config.hidden_act!r}', config.hidden_act != 'silu'),
      (f'rope_type={kind!r}', kind != 'default'),
      ('use_sliding_window=True', getattr(config, 'use_sliding_window', False))) if bad]
  if wrong:
    raise ValueError(f'config.json has {", ".join(wrong)}; TtT models have silu, plain rotary '
                     'embeddings and no sliding window.')
  head_dim = getattr(config, 'head_dim', None)
  theta = getattr(config, 'rope_theta', None) or rope.get('rope_theta', 10_000.0)
  return Sizes(config.num_hidden_layers, config.hidden_size, config.num_attention_heads,
               config.num_key_value_heads, head_dim or config.hidden_size //
               config.num_attention_heads, config.intermediate_size, float(theta),
               config.rms_norm_eps, config.vocab_size)


class RMSNorm(nn.Module):
  """x / rms(x) * weight, in float32 inside."""

  def __init__(self, width: int, eps: float):
    super().__init__()
    self.weight = nn.Parameter(torch.ones(width))
    self.eps = eps

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
    return (y * self.weight.float()).to(x.dtype)


def rope_table(position: torch.Tensor, head_dim: int, theta: float) -> Pair:
  """cos and sin, float32 [B, T, 1, D/2], of positions [B, T]. Computed at every call: transformers
  loads models on the meta device, which would leave a buffer empty. The frequencies are rounded as
  in transformers' Qwen2: on the CPU, powers before quotients."""
  steps = torch.arange(0, head_dim, 2, dtype=torch.float32)
  frequency = (1.0 / theta ** (steps / head_dim)).to(position.device)
  angle = position[..., None].float() * frequency
  return angle.cos()[:, :, None], angle.sin()[:, :, None]


def rotate(x: torch.Tensor, rope: Pair) -> torch.Tensor:
  """Rotate the pairs (d, d + D/2) of x [B, T, H, D]."""
  cos, sin = rope
  a, b = x.float().chunk(2, dim=-1)
  return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
           allowed: torch.Tensor) -> torch.Tensor:
  """Grouped-query attention.

  Args:
    q: [B, T, H, D].
    k, v: [B, N, K, D]; each key head serves H / K consecutive query heads.
    allowed: bool [B, T, N]; every query needs at least one key.

  Returns:
    [B, T, H, D].
  """
  rows, count, heads, dim = q.shape
  groups = heads // k.shape[2]
  # The query heads of a key head become rows of one matrix, so that no key is copied.
  folded = q.view(rows, count, -1, groups, dim).permute(0, 2, 3, 1, 4).reshape(
      rows, -1, groups * count, dim)
  out = functional.scaled_dot_product_attention(
      folded, k.transpose(1, 2), v.transpose(1, 2),
      attn_mask=allowed.repeat(1, groups, 1)[:, None])
  return out.view(rows, -1, groups, count, dim).permute(0, 3, 1, 2, 4).reshape(q.shape)


class Attention(nn.Module):
  """Bias on q, k and v only."""

  def __init__(self, size: Sizes):
    super().__init__()
    self.head_dim = size.head_dim
    self.q_proj = nn.Linear(size.hidden_size, size.num_attention_heads * size.head_dim)
    self.k_proj = nn.Linear(size.hidden_size, size.num_key_value_heads * size.head_dim)
    self.v_proj = nn.Linear(size.hidden_size, size.num_key_value_heads * size.head_dim)
    self.o_proj = nn.Linear(size.num_attention_heads * size.head_dim, size.hidden_size, bias=False)

  def forward(self, x: torch.Tensor, rope: Pair, allowed: torch.Tensor,
              cache: Pair | None) -> tuple[torch.Tensor, Pair]:
    heads = lambda y: y.view(*y.shape[:2], -1, self.head_dim)
    q, k = rotate(heads(self.q_proj(x)), rope), rotate(heads(self.k_proj(x)), rope)
    v = heads(self.v_proj(x))
    every = (k, v) if cache is None else (torch.cat([cache[0], k], 1), torch.cat([cache[1], v], 1))
    out = attend(q, *every, allowed)
    return self.o_proj(out.reshape(*out.shape[:2], -1)), (k, v)


class MLP(nn.Module):
  """SwiGLU."""

  def __init__(self, size: Sizes):
    super().__init__()
    self.gate_proj = nn.Linear(size.hidden_size, size.intermediate_size, bias=False)
    self.up_proj = nn.Linear(size.hidden_size, size.intermediate_size, bias=False)
    self.down_proj = nn.Linear(size.intermediate_size, size.hidden_size, bias=False)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
  """One pre-norm decoder layer."""

  def __init__(self, size: Sizes):
    super().__init__()
    self.input_layernorm = RMSNorm(size.hidden_size, size.rms_norm_eps)
    self.self_attn = Attention(size)
    self.post_attention_layernorm = RMSNorm(size.hidden_size, size.rms_norm_eps)
    self.mlp = MLP(size)

  def forward(self, x: torch.Tensor, rope: Pair, allowed: torch.Tensor,
              cache: Pair | None) -> tuple[torch.Tensor, Pair]:
    read, made = self.self_attn(self.input_layernorm(x), rope, allowed, cache)
    x = x + read
    return x + self.mlp(self.post_attention_layernorm(x)), made


class Decoder(nn.Module):
  """Embedding, layers, final norm."""

  def __init__(self, size: Sizes):
    super().__init__()
    self.size = size
    self.embed_tokens = nn.Embedding(size.vocab_size, size.hidden_size)
    self.layers = nn.ModuleList(Layer(size) for _ in range(size.num_layers))
    self.norm = RMSNorm(size.hidden_size, size.rms_norm_eps)

  def forward(self, token: torch.Tensor, position: torch.Tensor, allowed: torch.Tensor,
              cache: list[Pair] | None = None) -> tuple[torch.Tensor, list[Pair]]:
    """Final-norm hidden states [B, T, E], and keys and values of these tokens per layer.

    Args:
      token, position: int64 [B, T].
      allowed: bool [B, T, N + T]: the cached keys, then the own keys, that a token attends to.
      cache: keys and values of N tokens before, per layer; None: N = 0.
    """
    rope = rope_table(position, self.size.head_dim, self.size.rope_theta)
    x, made = self.embed_tokens(token), []
    for number, layer in enumerate(self.layers):
      x, pair = layer(x, rope, allowed, None if cache is None else cache[number])
      made.append(pair)
    return self.norm(x), made


# -- the staircase -------------------------------------------------------------------------


def bidirectional_group(audio: torch.Tensor, document: torch.Tensor, answer: torch.Tensor,
                        mode: str, prompt_audio: str) -> torch.Tensor:
  """int64 [B, T]: neighbours with equal non-zero numbers attend to each other; 0 = causal.

  Args:
    audio: bool [B, T], id >= audio threshold. A mask is audio, so noise does not change it.
    document: int [B, T], 0 = padding.
    answer: bool [B, T], the assistant's tokens.
    mode: 'hybrid': audio spans are groups; 'ar': none; 'nar': complete answers.
    prompt_audio: 'causal': audio spans of prompts are not groups.
  """
  if mode == 'ar':
    return torch.zeros_like(document)
  member = audio if prompt_audio == 'bidirectional' else audio & answer
  kind = member.long()
  if mode == 'nar':
    kind = torch.where(answer, 2, kind)
  kind = torch.where(document > 0, kind, 0)
  same = (kind[:, 1:] == kind[:, :-1]) & (document[:, 1:] == document[:, :-1])
  starts = functional.pad(~same, (1, 0), value=True)
  return torch.where(kind > 0, starts.long().cumsum(1), 0)


def readable(group: torch.Tensor, document: torch.Tensor) -> torch.Tensor:
  """bool [B, T, T]: same document, and (not later, or in the same group). Padding attends to
  itself, so that every query has a key."""
  index = torch.arange(document.shape[1], device=document.device)
  causal = index[:, None] >= index
  inside = (group[:, :, None] == group[:, None, :]) & (group[:, :, None] > 0)
  together = (document[:, :, None] == document[:, None, :]) & (document[:, :, None] > 0)
  return together & (causal | inside) | (index[:, None] == index)
