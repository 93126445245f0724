"""Every form of attention equals the dense one, and nobody reads what the staircase hides."""

import contextlib
import functools
import importlib.metadata
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.reference import batches, quick, staircase as slow
from ttt_jax.config import MeshConfig
from ttt_jax.errors import UserError
from ttt_jax.model import attention, sharding, staircase
from ttt_jax.model.attention import attend

V = batches.VOCAB


def tokamax(q, k, v, k_start, k_end, operations=('xla',)):
  pytest.importorskip('tokamax')
  from ttt_jax.model.kernels import gpu
  return gpu.attend(q, k, v, k_start, k_end, operations=operations)


def sharded_tokamax(*arrays):
  return attention._on_mesh(tokamax, *arrays)


FORMS = {
    'dense': attend,
    'blockwise': functools.partial(attend, kind='blockwise', block=16),
    'pallas': functools.partial(attend, kind='pallas', block=16, interpret=True),
    'tokamax': sharded_tokamax,
}
FAST = [name for name in FORMS if name != 'dense']


def projections(rng, rows, queries, keys, heads, kv_heads, dim, dtype=jnp.float32):
  """q, k, v and a cotangent of the output."""
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  return (normal(rows, queries, heads, dim), normal(rows, keys, kv_heads, dim),
          normal(rows, keys, kv_heads, dim), normal(rows, queries, heads, dim))


def value_and_gradients(form, q, k, v, d_out, k_start, k_end):
  """(out, dq, dk, dv)."""
  def run(q, k, v, d_out, k_start, k_end):
    out, back = jax.vjp(lambda q, k, v: form(q, k, v, k_start, k_end), q, k, v)
    return out, *back(d_out)
  return quick.jit(run)(q, k, v, d_out, k_start, k_end)


def assert_equal(got, want, tolerance=1e-5):
  for name, a, b in zip(('out', 'dq', 'dk', 'dv'), got, want, strict=True):
    assert a.dtype == b.dtype and np.isfinite(a).all(), name
    scale = np.abs(b).max()
    assert scale > 0.1, 'the comparison needs values of some size'
    np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32),
                               atol=tolerance * scale, rtol=0, err_msg=name)


@functools.cache
def packed_case(length, heads, kv_heads, dim):
  """(batch, inputs, what the dense form gives)."""
  rng = np.random.default_rng(length + kv_heads)
  _, batch = batches.packed(rng, rows=4, seq_len=length)
  inputs = (*projections(rng, 4, length, length, heads, kv_heads, dim),
            *staircase.key_ranges(batch))
  return batch, inputs, value_and_gradients(attend, *inputs)


@pytest.mark.parametrize('form', FAST)
@pytest.mark.parametrize('case', [(64, 4, 2, 8), (53, 4, 1, 24)], ids=('4to2', '4to1'))
def test_equals_dense(form, case):
  """Rows of documents with one-token spans, spans at an end, padding, and an empty row;
  head dims and lengths that fill no block."""
  batch, inputs, want = packed_case(*case)
  got = value_and_gradients(FORMS[form], *inputs)
  assert_equal(got, want)
  padding = np.asarray(batch.document) == 0
  assert padding[2].all() and (~padding).any()
  assert not np.asarray(got[0])[padding].any() and not np.asarray(got[1])[padding].any()


@pytest.mark.parametrize('form', FAST)
def test_equals_dense_from_a_cache(form):
  """Generation: fewer queries than keys, ranges anywhere, every row another one; as many
  query heads as key heads."""
  rng = np.random.default_rng(5)
  arrays = projections(rng, 3, 7, 40, 2, 2, 16)
  start = rng.integers(0, 30, (3, 7)).astype(np.int32)
  end = (start + rng.integers(0, 11, (3, 7))).astype(np.int32)
  end[0, 3] = start[0, 3]
  got = value_and_gradients(FORMS[form], *arrays, start, end)
  assert_equal(got, value_and_gradients(attend, *arrays, start, end))


@pytest.mark.parametrize('form', FAST)
def test_bfloat16_keeps_float32_scores(form):
  inputs = packed_case(64, 4, 2, 8)[1]
  half = [x.astype(jnp.bfloat16) for x in inputs[:4]]
  want = value_and_gradients(attend, *(x.astype(jnp.float32) for x in half), *inputs[4:])
  got = value_and_gradients(FORMS[form], *half, *inputs[4:])
  assert all(x.dtype == jnp.bfloat16 for x in got)
  assert_equal([x.astype(jnp.float32) for x in got], want, tolerance=1e-2)


@pytest.mark.parametrize('form', FORMS)
def test_no_pair_leaks(form):
  """Row i of a batch is the same row with a gradient at query i alone: what arrives at the
  keys and values is one line of the staircase, and nothing arrives at another query."""
  rng = np.random.default_rng(11)
  plan, batch = batches.packed(rng, rows=1, seq_len=48, empty_row=False,
                               kinds=('one_token', 'pt', 'audio_only'))
  allowed = slow.row_matrix(V, plan[0], 48)
  assert len(plan[0]) > 1 and not allowed[-1].any()
  ranges = [jnp.broadcast_to(x, (48, 48)) for x in staircase.key_ranges(batch)]
  q, k, v, _ = projections(rng, 1, 48, 48, 2, 1, 8)
  q, k, v = (jnp.broadcast_to(x, (48, *x.shape[1:])) for x in (q, k, v))
  d_out = jnp.eye(48)[:, :, None, None] * jnp.ones((2, 8))
  _, dq, dk, dv = value_and_gradients(FORMS[form], q, k, v, d_out, *ranges)
  reached = lambda x: np.asarray(x != 0).any((-1, -2))
  np.testing.assert_array_equal(reached(dv), allowed)
  assert not (reached(dk) & ~allowed).any() and reached(dk).sum() > 0.8 * allowed.sum()
  assert not (reached(dq) & ~np.eye(48, dtype=bool)).any() and reached(dq).any()


def count(jaxpr, names):
  """Equations of these primitives whose results are used, at any depth: what XLA must run."""
  jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
  total, used = 0, {id(variable) for variable in jaxpr.outvars}
  for equation in reversed(jaxpr.eqns):
    if used.isdisjoint(map(id, equation.outvars)):
      continue
    used.update(map(id, equation.invars))
    total += equation.primitive.name in names
    inside = jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr)
    total += sum(count(inner, names) for inner in inside if is_jaxpr(inner))
  return total


def is_jaxpr(x):
  return hasattr(getattr(x, 'jaxpr', x), 'eqns')


@pytest.mark.parametrize('form, work, forward, backward', [
    ('blockwise', ('while',), 1, 1), ('pallas', ('pallas_call',), 1, 2)])
@pytest.mark.parametrize('mesh', [None, dict(fsdp=8)])
def test_saved_names_spare_the_second_forward(form, work, forward, backward, mesh):
  """A remat policy that keeps the two names recomputes the projections, not attention."""
  rng = np.random.default_rng(0)
  q, k, v, _ = projections(rng, 8, 32, 32, 2, 1, 8)
  ranges = (jnp.zeros((8, 32), jnp.int32), jnp.broadcast_to(jnp.arange(1, 33), (8, 32)))

  def loss(scale, policy):
    layer = lambda scale: FORMS[form](jnp.sin(q * scale), k * scale, v * scale, *ranges)
    return jax.checkpoint(layer, policy=policy)(scale).sum()

  def work_of(policy):
    with jax.set_mesh(sharding.make_mesh(MeshConfig(**mesh))) if mesh else contextlib.nullcontext():
      return count(jax.make_jaxpr(jax.value_and_grad(functools.partial(loss, policy=policy)))(2.0),
                   work)

  policies = jax.checkpoint_policies
  kept = policies.save_only_these_names('attention_out', 'attention_lse')
  assert work_of(policies.nothing_saveable) == 2 * forward + backward
  assert work_of(kept) == forward + backward


HALVES = dict(seq=2, tensor=2, fsdp=2)


@pytest.mark.parametrize('form, mesh, rows', [
    *((form, mesh, 4) for form in ('dense', 'blockwise')
      for mesh in (dict(tensor=2, fsdp=4), dict(seq=2, fsdp=4))),
    *((form, HALVES, rows) for form, rows in (
        ('dense', 4), ('blockwise', 3), ('pallas', 4), ('tokamax', 4)))])
def test_sharded_is_unsharded(form, mesh, rows):
  """Two devices do not divide three rows, so rows are replicated."""
  inputs, want = [[x[:rows] for x in xs] for xs in packed_case(64, 4, 2, 8)[1:]]
  with jax.set_mesh(sharding.make_mesh(MeshConfig(**mesh))):
    assert_equal(value_and_gradients(FORMS[form], *inputs), want)


def long_row(rng, length):
  """Ranges [1, length] of documents of 200 to 6,000 tokens with spans, and 500 of padding."""
  start, end = np.zeros((2, 1, length), np.int32)
  at = 0
  while at < length - 500:
    stop = min(at + int(rng.integers(200, 6000)), length - 500)
    start[0, at:stop] = at
    end[0, at:stop] = np.arange(at, stop) + 1
    for span in range(at + 50, stop, 90):
      end[0, span:span + 40] = min(span + 40, stop)
    end[0, stop:] = 0
    at = stop
  return start, end


def test_a_long_row_over_the_seq_axis():
  """32,768 tokens on 8 devices: exact against one device, and where the dense form fits."""
  length = 32768
  rng = np.random.default_rng(1)
  start, end = long_row(rng, length)
  q, k, v, d_out = projections(rng, 1, length, length, 1, 1, 8)
  blockwise = functools.partial(attend, kind='blockwise', block=256)
  want = value_and_gradients(blockwise, q, k, v, d_out, start, end)
  with jax.set_mesh(sharding.make_mesh(MeshConfig(seq=8, fsdp=1))):
    got = value_and_gradients(blockwise, q, k, v, d_out, start, end)
  assert_equal(got, want)
  some = np.sort(rng.choice(length, 256, replace=False))
  reference = value_and_gradients(attend, q[:, some], k, v, d_out[:, some], start[:, some],
                                  end[:, some])
  for a, b in zip((got[0][:, some], got[1][:, some]), reference[:2], strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max(), rtol=0)


def test_blocks_skipped():
  rng = np.random.default_rng(7)
  _, batch = batches.packed(rng, rows=3, seq_len=50)
  start, end = map(np.asarray, staircase.key_ranges(batch))
  for block in (1, 8, 64):
    read = np.zeros((3, -(-50 // block), -(-50 // block)), bool)
    for row, i in np.ndindex(3, 50):
      read[row, i // block, np.arange(start[row, i], end[row, i]) // block] = True
    skipped = quick.jit(staircase.blocks_skipped, static_argnums=2)(start, end, block)
    assert skipped.dtype == jnp.float32 and skipped.shape == ()
    assert float(skipped) == pytest.approx(1 - read.mean(), abs=1e-6)
  empty = np.zeros((2, 50), np.int32)
  assert quick.jit(staircase.blocks_skipped, static_argnums=2)(empty, empty, 8) == 1.0


def test_the_hardware_chooses():
  long, short = attention.LONG_ROW, attention.LONG_ROW - 1
  assert attention.choose('auto', 'tpu', short) == 'pallas'
  assert attention.choose('auto', 'gpu', long) == attention.choose('auto', 'cuda', 1) == 'tokamax'
  assert attention.choose('auto', 'cpu', short) == 'dense'
  assert attention.choose('auto', 'cpu', long) == 'blockwise'
  for platform in ('cpu', 'tpu', 'gpu', 'cuda'):
    assert attention.choose('blockwise', platform, 8) == 'blockwise'
    assert attention.choose('dense', platform, 1 << 20) == 'dense'
  for kind, platform in (('pallas', 'cpu'), ('pallas', 'gpu'), ('tokamax', 'tpu'),
                         ('tokamax', 'cpu')):
    with pytest.raises(UserError, match=f"model.attention is '{kind}'.*{platform.upper()}"):
      attention.choose(kind, platform, 64)


def test_tokamax_must_be_the_version_it_was_written_for(monkeypatch):
  from ttt_jax.model.kernels import gpu
  arrays = projections(np.random.default_rng(0), 1, 8, 8, 2, 1, 8)[:3]
  ranges = (jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 8), jnp.int32))

  def missing(name):
    raise importlib.metadata.PackageNotFoundError(name)

  gpu._tokamax.cache_clear()
  for version, words in ((missing, 'it is not installed'),
                         (lambda name: '0.1.0', 'version 0.1.0 is installed')):
    monkeypatch.setattr(importlib.metadata, 'version', version)
    with pytest.raises(UserError, match=f'{words}.*{re.escape("tokamax==" + gpu.TOKAMAX)}'):
      gpu.attend(*arrays, *ranges)


def test_a_gpu_kernel_takes_ranges_per_row():
  """Without a GPU: tokamax's Triton kernels, forward and backward, down to what XLA would
  compile for one. No T x S mask goes into the forward kernel."""
  pytest.importorskip('tokamax')
  from ttt_jax.model.kernels import gpu
  gpu._tokamax()
  from tokamax import config
  form = functools.partial(tokamax, operations=('triton',))
  shape = lambda *size, dtype=jnp.float32: jax.ShapeDtypeStruct(size, dtype)
  q, k, ranges = shape(2, 256, 4, 64), shape(2, 256, 2, 64), shape(2, 256, dtype=jnp.int32)

  def both(q, k, v, k_start, k_end):
    out, back = jax.vjp(lambda q, k, v: form(q, k, v, k_start, k_end), q, k, v)
    return back(out)

  with config.cross_compile(True):
    forward, step = (jax.jit(run).trace(q, k, k, ranges, ranges).lower(
        lowering_platforms=('cuda',)).as_text() for run in (form, both))
  assert forward.count('custom_call @__gpu$xla.gpu.triton') == 1
  assert step.count('custom_call @__gpu$xla.gpu.triton') == 2
  assert not re.search(r'tensor<[0-9x]*256x256xi1>', forward)
