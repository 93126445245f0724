"""GLM-4-Voice's tokenizer in plain numpy, float64, one segment at a time, as its text says.

Written with loops and dense masks, and with the published tensors by their published names, so
that it shares nothing with ttt_jax/audio/glm4 but the description.
"""

import math

import numpy as np

SMALL = {'num_mel_bins': 16, 'd_model': 32, 'encoder_attention_heads': 4, 'encoder_ffn_dim': 48,
         'quantize_position': 3, 'max_source_positions': 64, 'quantize_causal_block_size': 24,
         'quantize_vocab_size': 96}
FULL = {'num_mel_bins': 128, 'd_model': 1280, 'encoder_attention_heads': 20,
        'encoder_ffn_dim': 5120, 'quantize_position': 16, 'max_source_positions': 1500,
        'quantize_causal_block_size': 200, 'quantize_vocab_size': 16_384}


def random_tensors(config: dict, seed: int = 0) -> dict[str, np.ndarray]:
  """float32 tensors by published name, without prefix; some that must be ignored, too."""
  draw = np.random.default_rng(seed)
  e, ffn, codes = config['d_model'], config['encoder_ffn_dim'], config['quantize_vocab_size']
  def normal(*shape, spread=None):
    spread = 1 / math.sqrt(math.prod(shape[1:])) if spread is None else spread
    return draw.standard_normal(shape, np.float32) * np.float32(spread)
  out = {'conv1.weight': normal(e, config['num_mel_bins'], 3), 'conv1.bias': normal(e, spread=.1),
         'conv2.weight': normal(e, e, 3), 'conv2.bias': normal(e, spread=.1),
         'embed_positions.weight': normal(config['max_source_positions'], e, spread=.3),
         'embed_positions2.weight': normal(config['max_source_positions'] // 4, e, spread=.3)}
  for i in range(config['quantize_position']):
    at = f'layers.{i}'
    for name in ('q_proj', 'k_proj', 'v_proj', 'out_proj'):
      out[f'{at}.self_attn.{name}.weight'] = normal(e, e)
      if name != 'k_proj':
        out[f'{at}.self_attn.{name}.bias'] = normal(e, spread=.1)
    for name, shape in (('fc1', (ffn, e)), ('fc2', (e, ffn))):
      out[f'{at}.{name}.weight'] = normal(*shape)
      out[f'{at}.{name}.bias'] = normal(shape[0], spread=.1)
    for name in ('self_attn_layer_norm', 'final_layer_norm'):
      out[f'{at}.{name}.weight'] = 1 + normal(e, spread=.2)
      out[f'{at}.{name}.bias'] = normal(e, spread=.2)
  out['layers.99.fc1.bias'] = normal(ffn, spread=.1)   # beyond the quantizer
  out['layer_norm.weight'] = normal(e, spread=.1)
  out['ema_count'] = normal(codes, spread=1)
  out['codebook.weight'] = normal(codes, e, spread=1)
  return out


def resampled(waveform: np.ndarray, rate: int, target: int = 16_000) -> np.ndarray:
  """Every output sample as the sum that defines it: a Hann-windowed sinc of six lobes a side."""
  base = min(rate, target) * 0.99
  out = np.zeros(-(-len(waveform) * target // rate))
  for i in range(len(out)):
    time = (np.arange(len(waveform)) / rate - i / target) * base
    near = np.abs(time) < 6
    t = time[near]
    out[i] = np.sum(waveform[near] * np.sinc(t) * np.cos(t * np.pi / 12) ** 2) * base / rate
  return out


def mel_bank(mels: int) -> np.ndarray:
  """[mels, 201], triangle by triangle."""
  def to_hertz(mel):
    return mel * 200 / 3 if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)
  top = 15 + 27 * math.log(8) / math.log(6.4)
  edges = [to_hertz(top * i / (mels + 1)) for i in range(mels + 2)]
  bank = np.zeros((mels, 201))
  for m in range(mels):
    low, middle, high = edges[m:m + 3]
    for k in range(201):
      hertz = 40 * k
      if low < hertz < high:
        slope = (hertz - low) / (middle - low) if hertz <= middle else (
            (high - hertz) / (high - middle))
        bank[m, k] = slope * 2 / (high - low)
  return bank


def log_mel(segment: np.ndarray, mels: int) -> np.ndarray:
  """[n] at 16 kHz -> [mels, L / 160], L = n rounded up to 1,280."""
  length = -(-len(segment) // 1280) * 1280
  wave = np.concatenate([segment, np.zeros(length - len(segment))]).astype(np.float64)
  wave = np.concatenate([wave[200:0:-1], wave, wave[-2:-202:-1]])
  window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
  turns = np.exp(-2j * np.pi * np.outer(np.arange(201), np.arange(400)) / 400)
  frames = np.stack([wave[160 * i:160 * i + 400] * window for i in range(length // 160)])
  power = np.abs(frames @ turns.T) ** 2
  log = np.log10(np.maximum(mel_bank(mels) @ power.T, 1e-10))
  return (np.maximum(log, log.max() - 8) + 4) / 4


def hidden(config: dict, w: dict[str, np.ndarray], mel: np.ndarray, samples: int) -> np.ndarray:
  """Log-mel [mels, F] of a segment of so many samples -> what is quantized, [F / 8, d_model]."""
  x = _gelu(_convolve(mel.T, w['conv1.weight'], w['conv1.bias'], 1))
  x = _gelu(_convolve(x, w['conv2.weight'], w['conv2.bias'], 2))
  x = x + w['embed_positions.weight'][:len(x)]
  i, j = np.arange(len(x))[:, None], np.arange(len(x))[None]
  block = config['quantize_causal_block_size']
  mask = (j < -(-samples // 320)) & ((j <= i) | (i // block == j // block))
  for layer in range(config['quantize_position']):
    x = _layer(config, w, f'layers.{layer}', x, mask)
  return x.reshape(-1, 4, x.shape[1]).mean(axis=1)


def distances(w: dict[str, np.ndarray], hidden: np.ndarray) -> np.ndarray:
  """Squared distances [tokens, codes]."""
  codes = w['codebook.weight'].astype(np.float64)
  return ((codes ** 2).sum(1) + (hidden ** 2).sum(1)[:, None] - 2 * hidden @ codes.T)


def _layer(config, w, at, x, mask):
  w = {name: w[name].astype(np.float64) for name in w if name.startswith(f'{at}.')}
  def linear(x, name):
    bias = w.get(f'{at}.{name}.bias', 0)
    return x @ w[f'{at}.{name}.weight'].T + bias
  def norm(x, name):
    sd = np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    return ((x - x.mean(axis=1, keepdims=True)) / sd * w[f'{at}.{name}.weight']
            + w[f'{at}.{name}.bias'])
  y = norm(x, 'self_attn_layer_norm')
  q, k, v = (linear(y, f'self_attn.{name}_proj') for name in 'qkv')
  size = x.shape[1] // config['encoder_attention_heads']
  heads = []
  for start in range(0, x.shape[1], size):
    part = slice(start, start + size)
    scores = np.where(mask, q[:, part] @ k[:, part].T / math.sqrt(size), -np.inf)
    weight = np.exp(scores - scores.max(axis=1, keepdims=True))
    heads.append(weight / weight.sum(axis=1, keepdims=True) @ v[:, part])
  x = x + linear(np.concatenate(heads, axis=1), 'self_attn.out_proj')
  return x + linear(_gelu(linear(norm(x, 'final_layer_norm'), 'fc1')), 'fc2')


def _convolve(x, weight, bias, stride):
  """[t, in] with weight [out, in, 3]: two zeros before, none behind."""
  x = np.concatenate([np.zeros((2, x.shape[1])), x])
  taps = np.stack([x[t:t + 3] for t in range(0, len(x) - 2, stride)])
  return np.tensordot(taps, weight, axes=([1, 2], [2, 1])) + bias


def _gelu(x):
  from scipy.special import erf
  return x * (1 + erf(x / math.sqrt(2))) / 2
