"""The FLOPs model against hand counts and against XLA's own count."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from ttt_jax.config import ModelConfig
from ttt_jax.model import flops
from ttt_jax.model.transformer import Model

SMALL = ModelConfig(num_layers=3,
                    hidden_size=4,
                    num_attention_heads=2,
                    num_key_value_heads=1,
                    head_dim=2,
                    intermediate_size=6)


def products_by_hand(model, tokens, pairs, scored, vocab):
  """2 m k n of every product of a forward pass, one after another."""
  total = 0
  for _ in range(model.num_layers):
    for n_in, n_out in (
        (model.hidden_size, model.num_attention_heads * model.head_dim),  # q
        (model.hidden_size, model.num_key_value_heads * model.head_dim),  # k
        (model.hidden_size, model.num_key_value_heads * model.head_dim),  # v
        (model.num_attention_heads * model.head_dim, model.hidden_size),  # o
        (model.hidden_size, model.intermediate_size),
        (model.hidden_size, model.intermediate_size),
        (model.intermediate_size, model.hidden_size)):
      total += 2 * tokens * n_in * n_out
    total += model.num_attention_heads * (2 * pairs * model.head_dim) * 2  # scores, then values
  return total + 2 * scored * model.hidden_size * vocab


def test_useful_is_three_forward_passes_over_what_is_needed():
  # Two documents of 3 and 2 tokens, causal: 6 + 3 pairs; 4 positions scored among 11 ids.
  assert products_by_hand(SMALL, 5, 9, 4, 11) == 3 * (2 * 5 * 120 + 144) + 352
  assert flops.useful(SMALL, 11, tokens=5, scored=4, mask_pairs=9) == 3 * 4384
  assert 3 * products_by_hand(SMALL, 5, 9, 4, 11) == 3 * 4384


def test_executed_adds_padding_blocks_chunks_and_padded_rows():
  needed = dict(tokens=5, scored=4, mask_pairs=9)
  plain = flops.step_flops(SMALL, 11, **needed)
  assert plain.useful == plain.executed == sum(plain.parts.values())
  more = flops.step_flops(SMALL, 11, **needed, slots=8, logit_rows=6, vocab_rows=16,
                          visited_pairs=32, attention='blockwise')
  assert more.useful == plain.useful
  assert more.parts == {'layers': 3 * 2 * 3 * 120 * 8 , 'attention': 3 * 2 * 2 * 2 * 32 * (2 + 5),
                        'logits': 3 * 2 * 6 * 4 * 16, 'recomputed': 0}


def test_the_tpu_kernel_pads_heads_and_tokamax_skips_nothing_backward():
  counts = dict(tokens=5, scored=4, mask_pairs=9, visited_pairs=16)
  pallas = flops.step_flops(SMALL, 11, **counts, attention='pallas')
  assert pallas.parts['attention'] == 3 * 2 * 2 * 128 * 16 * (2 + 7)
  tokamax = flops.step_flops(SMALL, 11, **counts, backward_pairs=64, attention='tokamax')
  assert tokamax.parts['attention'] == 3 * 2 * 2 * 2 * (2 * 16 + 7 * 64)


@pytest.mark.parametrize('tied', [True, False])
def test_parameters_are_those_of_the_model(tied):
  config = dataclasses.replace(SMALL, tie_word_embeddings=tied, vocab_multiple=8)
  model = Model(config, 11)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0)))
  assert flops.parameters(config, model.rows) == sum(x.size for x in jax.tree.leaves(shapes))


def test_the_published_sizes():
  sizes = {
      '3b':
          ModelConfig(num_layers=36,
                      hidden_size=2048,
                      num_attention_heads=16,
                      num_key_value_heads=2,
                      head_dim=128,
                      intermediate_size=11008),
      '7b':
          ModelConfig(num_layers=28,
                      hidden_size=3584,
                      num_attention_heads=28,
                      num_key_value_heads=4,
                      head_dim=128,
                      intermediate_size=18944,
                      tie_word_embeddings=False)
  }
  assert 3.11e9 < flops.parameters(sizes['3b'], 168_448) < 3.13e9
  assert 7.6e9 < flops.parameters(sizes['7b'], 168_448) < 7.8e9


# -- XLA's count, before it optimizes anything -----------------------------------------

BIG = ModelConfig(num_layers=2,
                  hidden_size=256,
                  num_attention_heads=4,
                  num_key_value_heads=2,
                  head_dim=64,
                  intermediate_size=768,
                  scan_unroll=2,
                  attention='dense',
                  vocab_multiple=1)
ROWS, LENGTH, VOCAB = 2, 64, 640


def count_by_xla(config, gradient):
  """FLOPs of logits everywhere and the sum of their squares, and of its gradient."""
  model = Model(config, VOCAB, platform='cpu')
  params = jax.eval_shape(lambda: model.init(jax.random.key(0)))
  vector = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)

  def total(params, token, start, end):
    hidden = model.hidden(params, token, token, start, end)
    return jnp.sum(jnp.einsum('bte,ve->btv', hidden, model.head_table(params)) ** 2)
  run = jax.grad(total) if gradient else total
  return jax.jit(run).lower(params, vector, vector, vector).cost_analysis()['flops']


def count_by_model(config):
  return flops.step_flops(config, VOCAB, tokens=ROWS * LENGTH, scored=ROWS * LENGTH,
                          mask_pairs=ROWS * LENGTH**2)


def test_the_forward_pass_agrees_with_xla():
  assert count_by_xla(BIG, False) == pytest.approx(count_by_model(BIG).useful / 3, rel=0.03)


@pytest.mark.parametrize('policy', ['none', 'dots', 'attention', 'full'])
def test_each_remat_policy_agrees_with_xla(policy):
  config = dataclasses.replace(BIG, remat=policy)
  assert count_by_xla(config, True) == pytest.approx(count_by_model(config).executed, rel=0.03)


def test_policies_differ_by_more_than_the_tolerance():
  executed = [count_by_model(dataclasses.replace(BIG, remat=policy)).executed
              for policy in ('none', 'attention', 'full')]
  assert executed[0] * 1.1 < executed[1] < executed[2]
