"""The chunked loss against the plain form with all logits in memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.reference import quick
from ttt_jax.config import MeshConfig
from ttt_jax.model import sharding
from ttt_jax.objective import losses

B, T, E = 8, 12, 16
SIZE, ROWS = 90, 96          # ids, and rows of the table with its padding
FORMS = ('rows', 'dense')


def naive(hidden, table, labels, size):
  """(total, next_nll, self_nll, entropy) from all logits at once, float32."""
  logits = jnp.einsum('bte,ve->btv', hidden.astype(jnp.float32), table[:size],
                      precision='highest')
  log_p = jax.nn.log_softmax(logits)
  pick = lambda label: -jnp.take_along_axis(log_p, label[..., None], -1)[..., 0]
  nll = [jnp.where(labels.scored, pick(x), 0) for x in (labels.next_label, labels.self_label)]
  total = jnp.sum(nll[0] * labels.next_weight + nll[1] * labels.self_weight)
  if labels.entropy_weight is None:
    return total, *nll, None
  right = labels.scored & (jnp.argmax(logits, -1) == labels.self_label)
  entropy = jnp.where(right, -jnp.sum(jnp.exp(log_p) * log_p, -1), 0)
  return total + jnp.sum(entropy * labels.entropy_weight), *nll, entropy


def problem(seed=0, share=0.5, largest=1.0, shape=(B, T), size=SIZE, rows=ROWS, width=E):
  """(hidden, table, labels); of the scored positions a third have both labels."""
  rng = np.random.default_rng(seed)
  f32 = lambda *shape: rng.standard_normal(shape, np.float32)
  kind = np.where(rng.random(shape) < share, rng.integers(1, 4, shape), 0)
  weight = lambda bit: np.where(kind & bit, rng.uniform(0.1, largest, shape), 0).astype(np.float32)
  label = lambda: rng.integers(0, size, shape).astype(np.int32)
  return f32(*shape, width), 0.5 * f32(rows, width), losses.Labels(
      kind > 0, label(), label(), weight(1), weight(2))


def with_slopes(hidden, table, labels, size=SIZE, chunk=16, dtype='float32', form='auto'):
  """((total, nlls), (d_hidden, d_table)) of pair_loss."""
  def total(hidden, table):
    out = losses.pair_loss(hidden, table, labels, size, chunk=chunk, dtype=dtype, form=form)
    return 3 * out[0], out[1:]  # a cotangent that is not 1
  return jax.value_and_grad(total, (0, 1), has_aux=True)(hidden, table)


chunked_with_slopes = quick.jit(with_slopes, static_argnames=('size', 'chunk', 'dtype', 'form'))


@quick.jit_with(static_argnames='size')
def naive_with_slopes(hidden, table, labels, size=SIZE):
  def total(hidden, table):
    out = naive(hidden, table, labels, size)
    return 3 * out[0], out[1:]
  return jax.value_and_grad(total, (0, 1), has_aux=True)(hidden, table)


def check(got, want, rtol=1e-5, atol=1e-6):
  """All of (total, nlls), (d_hidden, d_table); ``atol`` counts in each array's largest."""
  for mine, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    mine, other = np.asarray(mine, np.float64), np.asarray(other, np.float64)
    np.testing.assert_allclose(mine, other, rtol=rtol, atol=atol * max(np.abs(other).max(), 1e-30))


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('share', [0.0, 0.02, 0.5, 1.0])
def test_equals_the_plain_form(share, form):
  """Also with a count that is not a multiple of the chunk, and without any scored position."""
  inputs = problem(seed=1, share=share)
  assert share in (0, 1) or int(inputs[2].scored.sum()) % 16
  got = chunked_with_slopes(*inputs, form=form)
  check(got, naive_with_slopes(*inputs))
  (_, nll), (d_hidden, d_table) = got
  dark = ~inputs[2].scored
  for array in (*nll[:2], d_hidden):
    assert (np.asarray(array)[dark] == 0).all()
  assert (np.asarray(d_table)[SIZE:] == 0).all(), 'padding rows must not learn'
  assert (share > 0) == bool(np.abs(d_table).max() > 0)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('chunk', [7, 1000])
def test_any_chunk_gives_the_same(chunk, form):
  inputs = problem(seed=2, share=0.6)
  check(chunked_with_slopes(*inputs, chunk=chunk, form=form), naive_with_slopes(*inputs))


@pytest.mark.parametrize('form', FORMS)
def test_weights_of_rare_masks(form):
  """1 / p of up to 1,000, and both labels of a position equal."""
  hidden, table, labels = problem(seed=3, share=0.7, largest=1000.0)
  labels = labels._replace(self_label=np.where(np.arange(T) % 2, labels.next_label,
                                               labels.self_label))
  check(chunked_with_slopes(hidden, table, labels, form=form),
        naive_with_slopes(hidden, table, labels))


@pytest.mark.parametrize('form', FORMS)
def test_large_logits_neither_overflow_nor_vanish(form):
  hidden, table, labels = problem(seed=4)
  inputs = 40 * hidden, table, labels
  (total, _), _ = got = chunked_with_slopes(*inputs, form=form)
  assert np.isfinite(total) and total > 1000
  check(got, naive_with_slopes(*inputs))


@pytest.mark.parametrize('size', [SIZE, ROWS])
def test_a_table_without_padding(size):
  inputs = problem(seed=5, size=size)
  check(chunked_with_slopes(*inputs, size=size), naive_with_slopes(*inputs, size=size))


@pytest.mark.parametrize('form', (*FORMS, 'auto'))
def test_bfloat16_products_are_close_and_sum_in_float32(form):
  """Against float32 on the very same rounded inputs, only probabilities are rounded."""
  hidden, table, labels = problem(seed=6, share=1.0, shape=(B, 128), largest=10.0)
  hidden = hidden.astype(jnp.bfloat16)
  table = np.asarray(table.astype(jnp.bfloat16), np.float32)
  got = chunked_with_slopes(hidden, table, labels, dtype='bfloat16', form=form)
  want = naive_with_slopes(hidden, table, labels)
  check(got[0], want[0], rtol=1e-5)
  assert got[1][0].dtype == jnp.bfloat16 and got[1][1].dtype == jnp.float32
  check(got[1], want[1], rtol=0.02, atol=0.01)


def test_confident_predictions_keep_their_gradient_in_bfloat16():
  """p - 1 is taken before it is rounded: a rounded p near 1 would lose all its digits."""
  table = 4 * np.eye(ROWS, E, dtype=np.float32)
  label = (np.arange(B * T) % E).reshape(B, T).astype(np.int32)
  hidden = jnp.asarray(2.5 * np.eye(E, dtype=np.float32)[label], jnp.bfloat16)
  labels = losses.Labels(np.ones((B, T), bool), label, label, np.ones((B, T), np.float32),
                         np.zeros((B, T), np.float32))
  _, (_, got) = chunked_with_slopes(hidden, table, labels, dtype='bfloat16')
  _, (_, want) = naive_with_slopes(hidden, table, labels)
  assert 0.9 < np.exp(10) / (np.exp(10) + SIZE - 1) < 1
  hit = np.arange(E), np.arange(E)
  np.testing.assert_allclose(np.asarray(got)[hit], np.asarray(want)[hit], rtol=0.01)


def confident(inputs, size=SIZE):
  """``inputs`` with weights of the entropy at scored positions, two thirds of them right."""
  hidden, table, labels = inputs
  best = np.einsum('bte,ve->btv', np.asarray(hidden, np.float32), table[:size]).argmax(-1)
  rng = np.random.default_rng(11)
  own = np.where(rng.random(best.shape) < 2 / 3, best, labels.self_label).astype(np.int32)
  weight = np.where(labels.scored, rng.uniform(0.1, 5, best.shape), 0).astype(np.float32)
  return hidden, table, labels._replace(self_label=own, entropy_weight=weight)


@pytest.mark.parametrize('form', FORMS)
def test_the_entropy_of_right_predictions(form):
  """With both labels, without, and with rows of the table that are padding."""
  inputs = confident(problem(seed=12, share=0.7))
  got, want = chunked_with_slopes(*inputs, form=form), naive_with_slopes(*inputs)
  check(got, want)
  entropy = np.asarray(got[0][1][2])
  assert (entropy > 0).sum() > 20 and (entropy[inputs[2].scored] == 0).sum() > 5
  far = 30 * inputs[0], *inputs[1:]  # probabilities that are 0 or 1
  check(chunked_with_slopes(*far, form=form), naive_with_slopes(*far), atol=1e-5)


def test_the_entropy_in_bfloat16():
  hidden, table, labels = problem(seed=13, share=1.0, shape=(B, 128))
  hidden = hidden.astype(jnp.bfloat16)
  table = np.asarray(table.astype(jnp.bfloat16), np.float32)
  inputs = confident((hidden, table, labels))
  got = chunked_with_slopes(*inputs, dtype='bfloat16', form='dense')
  want = naive_with_slopes(*inputs)
  check(got[0], want[0], rtol=1e-5)
  check(got[1], want[1], rtol=0.02, atol=0.01)


def test_without_a_gradient_only_the_nats_are_computed():
  """One product with the vocabulary instead of three, and the same numbers."""
  inputs = problem(seed=7)
  value = functools.partial(losses.pair_loss, vocab_size=SIZE, chunk=16, dtype='float32',
                            form='dense')
  check(quick.jit(value)(*inputs), naive(*inputs, SIZE))
  products = lambda function: str(jax.make_jaxpr(function)(*inputs)).count('dot_general')
  assert products(value) == 1
  assert products(functools.partial(with_slopes, form='dense')) == 3


def test_nats_and_weights_carry_no_gradient():
  hidden, table, labels = problem(seed=8)
  def of_nats(hidden):
    out = losses.pair_loss(hidden, table, labels, SIZE, chunk=16, dtype='float32')
    return jnp.sum(out[1]) + jnp.sum(out[2])
  assert not np.any(quick.jit(jax.grad(of_nats))(hidden))


MESHES = [MeshConfig(data=8, fsdp=1), MeshConfig(fsdp=8), MeshConfig(fsdp=4, tensor=2),
          MeshConfig(fsdp=4, seq=2), MeshConfig(slices=2, data=2, fsdp=1, seq=1, tensor=2)]


def on_mesh(config, inputs, **settings):
  """chunked_with_slopes with everything where a train step has it."""
  mesh = sharding.make_mesh(config, jax.devices()[:8])
  put = lambda x, *axes: jax.device_put(
      x, jax.sharding.NamedSharding(mesh, sharding.spec(axes)))
  hidden, table, labels = inputs
  with jax.set_mesh(mesh):
    return jax.tree.map(np.asarray, chunked_with_slopes(
        put(hidden, 'rows', 'length', 'width'), put(table, 'vocab', 'embed'),
        jax.tree.map(lambda x: put(x, 'rows', 'length'), labels), **settings))


@pytest.mark.parametrize('mesh, form', [(mesh, 'dense') for mesh in MESHES]
                         + [(MeshConfig(fsdp=4, tensor=2), 'auto')], ids=str)
def test_every_mesh_gives_the_same(mesh, form):
  """Rows of 0 to 12 scored positions, so that devices have unequal work."""
  hidden, table, labels = problem(seed=9, share=1.0)
  dark = np.arange(T) >= np.array([12, 0, 3, 12, 5, 1, 0, 7])[:, None]
  labels = jax.tree.map(lambda x: np.where(dark, 0, x).astype(x.dtype), labels)
  inputs = hidden, table, labels
  check(on_mesh(mesh, inputs, chunk=3, form=form), naive_with_slopes(*inputs))


@pytest.mark.parametrize('form', ['rows', pytest.param('dense', marks=pytest.mark.slow)])
def test_the_entropy_on_a_mesh(form):
  inputs = confident(problem(seed=14, share=0.7))
  check(on_mesh(MeshConfig(fsdp=4, tensor=2), inputs, chunk=3, form=form),
        naive_with_slopes(*inputs))


def test_a_vocabulary_that_the_parts_do_not_divide():
  """A table of 2 x 45 rows over 2 x 4 devices, one of whose parts is all padding."""
  inputs = problem(seed=10, size=68, rows=90)
  got = on_mesh(MeshConfig(fsdp=4, tensor=2), inputs, size=68, chunk=4)
  check(got, naive_with_slopes(*inputs, size=68))


def test_memory_is_a_chunk_of_logits_not_all():
  """Temporary memory of the compiled gradient, N = 1,024 positions and V = 8,192 ids."""
  n, v, chunk = 1024, 8192, 64
  inputs = problem(shape=(4, n // 4), size=v, rows=v)
  def temporary(function, **settings):
    return function.lower(*inputs, size=v, **settings).compile().memory_analysis(
        ).temp_size_in_bytes
  table = inputs[1].nbytes
  most = 4 * chunk * v * 3 + 3 * table + 2 * inputs[0].nbytes
  assert most < 4 * n * v / 4
  for form in FORMS:
    assert temporary(chunked_with_slopes, chunk=chunk, form=form) < most
  assert temporary(naive_with_slopes) > 4 * n * v
