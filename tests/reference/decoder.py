"""Qwen2.5's decoder in numpy float64: one document, one head at a time, a dense mask.

Weights are a plain dict of float64 arrays (D width, H/K query/key heads, d head size):

  embedding [V, D]     final_norm [D]     head [V, D] (absent when tied)
  layers: list of  attention_norm [D], q [D, H, d], q_bias [H, d], k, v [D, K, d],
                   k_bias, v_bias [K, d], o [H, d, D], ffn_norm [D],
                   gate, up [D, F], down [F, D]
"""

import numpy as np


def rms_norm(x, scale, eps):
  """x [n, D] over its root mean square, times scale [D]."""
  return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * scale


def rotate(x, theta):
  """RoPE in the half-rotation layout: dimension i turns with dimension i + d/2.

  Args:
    x: [n, d], one head of one document; row p has position p.
    theta: base of the wavelengths.
  """
  n, d = x.shape
  out = np.empty_like(x)
  for i in range(d // 2):
    angle = np.arange(n) * theta ** (-2 * i / d)
    a, b = x[:, i], x[:, i + d // 2]
    out[:, i] = a * np.cos(angle) - b * np.sin(angle)
    out[:, i + d // 2] = b * np.cos(angle) + a * np.sin(angle)
  return out


def attend(layer, x, allowed, theta):
  """Grouped-query attention of x [n, D] under allowed bool [n, n]."""
  heads, kv_heads, head_dim = layer['q'].shape[1], layer['k'].shape[1], layer['q'].shape[2]
  keys = [rotate(x @ layer['k'][:, g] + layer['k_bias'][g], theta) for g in range(kv_heads)]
  values = [x @ layer['v'][:, g] + layer['v_bias'][g] for g in range(kv_heads)]
  out = np.zeros_like(x)
  for h in range(heads):
    group = h // (heads // kv_heads)
    query = rotate(x @ layer['q'][:, h] + layer['q_bias'][h], theta)
    score = np.where(allowed, query @ keys[group].T / np.sqrt(head_dim), -np.inf)
    weight = np.exp(score - score.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    out += weight @ values[group] @ layer['o'][h]
  return out


def swiglu(layer, x):
  """down(silu(gate x) * up x)."""
  gate = x @ layer['gate']
  return (gate / (1 + np.exp(-gate)) * (x @ layer['up'])) @ layer['down']


def hidden(weights, ids, allowed, theta=1e6, eps=1e-6):
  """Final-norm hidden states [n, D] of one document."""
  x = weights['embedding'][np.asarray(ids)]
  for layer in weights['layers']:
    x = x + attend(layer, rms_norm(x, layer['attention_norm'], eps), allowed, theta)
    x = x + swiglu(layer, rms_norm(x, layer['ffn_norm'], eps))
  return rms_norm(x, weights['final_norm'], eps)


def logits(weights, ids, allowed, vocab_size, theta=1e6, eps=1e-6):
  """Scores [n, vocab_size]; rows that only pad the embedding table take no part."""
  head = weights.get('head', weights['embedding'])
  return hidden(weights, ids, allowed, theta, eps) @ head[:vocab_size].T


def log_softmax(scores):
  """log p along the last axis."""
  top = scores.max(axis=-1, keepdims=True)
  return scores - top - np.log(np.exp(scores - top).sum(axis=-1, keepdims=True))
