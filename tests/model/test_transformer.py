"""The decoder against numpy float64, and no information leak for any pair of positions."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.reference import batches, decoder, quick, staircase as slow, weights
from ttt_jax.config import ModelConfig
from ttt_jax.model import layers, staircase
from ttt_jax.model.transformer import Model

V = batches.VOCAB
TINY = dict(hidden_size=16, head_dim=4, intermediate_size=24, vocab_multiple=32)


@pytest.mark.parametrize('num_layers, num_attention_heads, kv_heads, tied, theta', [
    (2, 4, 1, True, 1e6),
    (2, 4, 2, False, 1e6),
    (3, 4, 4, True, 1e4),
    (2, 6, 2, True, 1e6),
])
def test_logits_match_the_reference(num_layers, num_attention_heads, kv_heads, tied, theta):
  config = ModelConfig(num_layers=num_layers,
                       num_attention_heads=num_attention_heads,
                       num_key_value_heads=kv_heads,
                       tie_word_embeddings=tied,
                       rope_theta=theta,
                       **TINY)
  rng = np.random.default_rng(num_layers * 10 + num_attention_heads)
  model = Model(config, V.size)
  params = weights.random(model, rng)
  plan, batch = batches.packed(rng, rows=3, seq_len=64)
  start, end = staircase.key_ranges(batch)

  @quick.jit
  def run(params, token, position):
    hidden = model.hidden(params, token, position, start, end)
    return hidden, model.logits(params, hidden)

  hidden, logits = run(params, batch.token, batch.position)
  assert hidden.shape == (3, 64, 16)
  assert logits.shape == (3, 64, V.size) and logits.dtype == jnp.float32
  assert np.isfinite(hidden).all(), 'padding must stay finite'
  plain = weights.convert(params, config)
  for row, documents in enumerate(plan):
    at = 0
    for _, ids, supervised in documents:  # every document alone, from position 0
      allowed = slow.document_matrix(V, ids, supervised)
      want = decoder.logits(plain, ids, allowed, V.size, theta=theta)
      assert np.abs(want).max() > 0.5, 'the comparison needs logits of some size'
      np.testing.assert_allclose(logits[row, at:at + len(ids)], want, rtol=2e-5, atol=2e-5)
      at += len(ids)


def test_rope_frequencies_are_those_of_transformers():
  """The bits of its float32 frequencies for head_dim 32 and theta 1e6."""
  bits = [1065353216, 1054337179, 1043732615, 1033475085, 1023510243, 1012562930, 1001931932,
          991652109, 981668463, 970790693, 960132947, 949830564, 939827890, 929020495, 918335681,
          908010468]
  assert layers.rope_frequencies(32, 1e6).view(np.int32).tolist() == bits


def test_norm_eps_counts():
  """With a tiny input the epsilon of RMSNorm decides; it is 1e-6 inside the root."""
  config = ModelConfig(num_layers=1, num_attention_heads=2, num_key_value_heads=1, **TINY)
  model = Model(config, V.size)
  params = weights.random(model, np.random.default_rng(0))
  params['trunk']['embedding'] *= 1e-3
  ids = np.arange(5)[None]
  allowed = np.tril(np.ones((5, 5), bool))
  got = model.hidden(params, ids, ids, np.zeros((1, 5), np.int32), 1 + ids)
  want = decoder.hidden(weights.convert(params, config), ids[0], allowed)
  other = decoder.hidden(weights.convert(params, config), ids[0], allowed, eps=1e-5)
  np.testing.assert_allclose(got[0], want, rtol=1e-4, atol=2e-5)
  assert np.abs(want - other).max() > 1e-2


def test_scan_settings_do_not_change_the_result():
  config = ModelConfig(num_layers=2,
                       num_attention_heads=2,
                       num_key_value_heads=1,
                       remat='full',
                       scan_unroll=2,
                       **TINY)
  plain = ModelConfig(num_layers=2, num_attention_heads=2, num_key_value_heads=1, **TINY)
  params = weights.random(Model(plain, V.size), np.random.default_rng(0))
  _, batch = batches.packed(np.random.default_rng(0), rows=1, seq_len=64, empty_row=False)
  start, end = staircase.key_ranges(batch)

  @quick.jit_with(static_argnums=1)
  @functools.partial(jax.value_and_grad, argnums=0)
  def total(params, config):
    hidden = Model(config, V.size).hidden(params, batch.token, batch.position, start, end)
    return jnp.sum(jnp.where(batch.document[..., None] > 0, jnp.sin(hidden), 0))

  want, want_grad = total(params, plain)
  got, grad = total(params, config)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  chex.assert_trees_all_close(grad, want_grad, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope='module', params=[1, 3], ids=['1 layer', '3 layers'])
def jacobian(request):
  """(row of documents, batch, function of a staircase -> max |d hidden[i] / d token[j]|).

  Every position gets its own id, so each embedding row belongs to one position.
  """
  rng = np.random.default_rng(3)
  row = [(1, *batches.document(rng, 'asr')), (2, *batches.document(rng, 'one_token'))]
  length = sum(len(ids) for _, ids, _ in row) + 3
  batch = batches.layout([row], length)
  config = ModelConfig(num_layers=request.param,
                       num_attention_heads=2,
                       num_key_value_heads=1,
                       tie_word_embeddings=False,
                       **{
                           **TINY, 'vocab_multiple': length
                       })
  model = Model(config, length)
  params = weights.random(model, rng)
  own = np.arange(length, dtype=np.int32)[None]
  probe = rng.standard_normal(config.hidden_size).astype(np.float32)

  def outputs(embedding, start, end):
    trunk = {**params['trunk'], 'embedding': embedding}
    return model.hidden({**params, 'trunk': trunk}, own, batch.position, start, end)[0] @ probe

  compiled = quick.jit(jax.jacrev(outputs))
  return row, batch, lambda start, end: np.abs(
      compiled(params['trunk']['embedding'], start, end)).max(-1)


@pytest.mark.parametrize('mode, prompt_audio', [
    ('hybrid', 'bidirectional'), ('hybrid', 'causal'), ('ar', 'bidirectional'),
    ('nar', 'bidirectional')])
def test_no_leak_for_any_pair(jacobian, mode, prompt_audio):
  """d hidden[i] / d embedding[j] is non-zero exactly where i may look at j.

  More layers reach no further: what i attends to attends to nothing that i does not.
  """
  row, batch, reach_of = jacobian
  reach = reach_of(*staircase.key_ranges(batch, mode, prompt_audio))
  allowed = slow.row_matrix(V, row, batch.token.shape[1], mode, prompt_audio)
  padding = np.diag(batch.document[0] == 0)  # it reaches itself by the residual path alone
  assert (reach[~(allowed | padding)] == 0).all()
  assert (reach[allowed] > 1e-7).all()
