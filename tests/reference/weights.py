"""The one place that knows both namings: ttt_jax parameters -> the reference's weights."""

import jax
import numpy as np


def random(model, rng, scale=0.3):
  """Parameters of noise, norms around 1: no bias is 0 and no norm is neutral."""
  def draw(path, leaf):
    norm = 'scale' in str(path[-1])
    return (norm + scale * rng.standard_normal(leaf.shape)).astype(np.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return jax.tree_util.tree_map_with_path(draw, shapes)


def convert(params, config):
  """Parameters of ttt_jax.model.transformer.Model -> weights of tests.reference.decoder."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  d = config.head_dim

  def heads(linear, i):
    kernel, bias = linear['kernel'][i], linear['bias'][i]
    return kernel.reshape(len(kernel), -1, d), bias.reshape(-1, d)

  def layer(i):
    stack = p['layers']
    out = {
        'attention_norm': stack['attention_norm']['scale'][i],
        'ffn_norm': stack['mlp_norm']['scale'][i],
        'o': stack['attention']['o']['kernel'][i].reshape(-1, d, config.hidden_size),
    }
    for name in ('q', 'k', 'v'):
      out[name], out[f'{name}_bias'] = heads(stack['attention'][name], i)
    for name in ('gate', 'up', 'down'):
      out[name] = stack['mlp'][name]['kernel'][i]
    return out

  weights = {'embedding': p['trunk']['embedding'], 'final_norm': p['trunk']['norm']['scale'],
             'layers': [layer(i) for i in range(config.num_layers)]}
  if not config.tie_word_embeddings:
    weights['head'] = p['trunk']['head']
  return weights
