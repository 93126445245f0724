"""The tokenizer's network against numpy; tokens independent of batch and mesh."""

import functools

import jax
import jax.export
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from tests.audio.glm4 import folders
from tests.audio.signals import babble
from tests.reference import glm4 as reference, quick
from ttt_jax.audio.glm4 import features, layers
from ttt_jax.audio.glm4.batches import Batches, buckets
from ttt_jax.audio.glm4.checkpoint import Checkpoint
from ttt_jax.audio.glm4.encoder import Encoder, Shape

SMALL = reference.SMALL
MELS, LONGEST = SMALL['num_mel_bins'], 16  # tokens
SAMPLES = (20_480, 1, 700, 1_280, 5_000, 9_600, 10_007, 20_000)
NEAR = 1e-4  # relative distance of two codes between which rounding may decide


@pytest.fixture(scope='module')
def small(tmp_path_factory):
  folder, tensors = folders.small(tmp_path_factory.mktemp('glm4'))
  checkpoint = Checkpoint(folder)
  return Encoder(checkpoint.shape), checkpoint.read(), tensors


@functools.cache
def recordings():
  return [babble(2.0, 16_000, seed=i)[:samples] for i, samples in enumerate(SAMPLES)]


def named_segments():
  return [(i, features.log_mel(wave, MELS), len(wave)) for i, wave in enumerate(recordings())]


def padded(waves, tokens=LONGEST, fill=0.0):
  mels = np.full((len(waves), tokens * 8, MELS), fill, np.float32)
  for row, wave in enumerate(waves):
    mel = features.log_mel(wave, MELS)
    mels[row, :len(mel)] = mel
  return mels, np.array([-(-len(wave) // 320) for wave in waves], np.int32)


def assert_nearest(tokens, distance, near=NEAR):
  """`tokens` are nearest but for ties: no other code is nearer by more than `near` of it."""
  best = distance.min(axis=1)
  chosen = distance[np.arange(len(tokens)), tokens]
  assert (chosen <= best * (1 + near)).all(), (chosen / best).max()


def test_hidden_states_and_tokens_are_those_of_the_text(small):
  encoder, params, tensors = small
  mels, valid = padded(recordings())
  hidden = np.asarray(quick.jit(encoder.hidden)(params, mels, valid))
  tokens = np.asarray(quick.jit(encoder.quantize)(params, hidden))
  met = set()
  for row, wave in enumerate(recordings()):
    want = reference.hidden(SMALL, tensors, reference.log_mel(wave, MELS), len(wave))
    np.testing.assert_allclose(hidden[row, :len(want)], want, atol=1e-4)
    assert_nearest(tokens[row, :len(want)], reference.distances(tensors, want))
    met.update(tokens[row, :len(want)].tolist())
  assert len(met) > 15, 'the codebook is too easy: hardly any two tokens differ'


def test_nothing_beyond_a_segments_own_end_is_read(small):
  encoder, params, _ = small
  program = quick.jit(encoder.hidden)
  clean, valid = padded(recordings())
  dirty, _ = padded(recordings(), fill=7.0)
  clean, dirty = (np.asarray(program(params, mels, valid)) for mels in (clean, dirty))
  for row, wave in enumerate(recordings()):
    own = features.tokens(len(wave))
    np.testing.assert_array_equal(clean[row, :own], dirty[row, :own])


def test_a_block_sees_its_own_future_and_no_other(small):
  encoder, params, _ = small
  program = quick.jit(encoder.hidden)
  mels, valid = padded(recordings()[:1])
  before = np.asarray(program(params, mels, valid))[0]
  changed = mels.copy()
  changed[0, 8 * 9:] += 0.5  # tokens 6 to 11 are a block of 24 frames
  after = np.asarray(program(params, changed, valid))[0]
  moved = np.abs(after - before).max(axis=1) > 1e-6
  np.testing.assert_array_equal(moved, [False] * 6 + [True] * 10)


def test_of_equal_codes_the_lowest_and_of_close_ones_the_nearest():
  shape = Shape(mels=4, width=64, heads=2, ffn=8, layers=1, positions=32, block=4, codes=12)
  draw = np.random.default_rng(0)
  x = (300 + draw.normal(size=(40, 64))).astype(np.float32)  # far from the origin
  codes = (300 + draw.normal(size=(12, 64))).astype(np.float32)
  codes[7] = codes[9] = codes[2]
  params = {'codebook': {'codes': codes, 'squares': (codes.astype(np.float64) ** 2).sum(
      axis=1).astype(np.float32)}}
  found = np.asarray(quick.jit(Encoder(shape).quantize)(params, x))
  distance = ((x[:, None].astype(np.float64) - codes) ** 2).sum(axis=2)
  np.testing.assert_array_equal(found, distance.argmin(axis=1))
  assert 2 in found and 7 not in found and 9 not in found


@pytest.mark.parametrize('form', [layers.one_by_one, layers.all_at_once])
def test_both_forms_of_attention_read_what_the_mask_says(form):
  draw = np.random.default_rng(0)
  q, k, v = draw.normal(size=(3, 2, 2, 6, 4)).astype(np.float32)
  real = np.arange(6) < np.array([[5], [1]])
  grid = [[1, 1, 0, 0, 0, 0]] * 2 + [[1, 1, 1, 1, 0, 0]] * 2 + [[1, 1, 1, 1, 1, 1]] * 2
  scores = np.where(np.array(grid) * real[:, None, None] > 0, q @ k.swapaxes(2, 3), -np.inf)
  weight = np.exp(scores - scores.max(axis=-1, keepdims=True))
  want = weight / weight.sum(axis=-1, keepdims=True) @ v
  found = quick.jit(form, static_argnums=4)(q, k, v, real, 2)
  np.testing.assert_allclose(found, want, atol=1e-6)


@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
def test_accelerators_take_the_program_of_the_published_size(platform):
  encoder = Encoder(Shape())
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, np.float32 if len(sizes) > 1 else np.int32)
  lowered = jax.export.export(jax.jit(encoder.tokens), platforms=[platform])(
      encoder.abstract(), shape(8, 3000, 128), shape(8))
  assert lowered.out_avals[0].shape == (8, 375)


@pytest.fixture(scope='module')
def alone(small):
  """The tokens of every segment, encoded by itself."""
  batches = Batches(small[0], small[1], rows=1)
  return [next(batches.run([segment]))[1] for segment in named_segments()]


@pytest.mark.parametrize('rows, devices', [(3, 1), (2, 4)])
def test_tokens_do_not_depend_on_the_batch_or_the_mesh(small, alone, rows, devices):
  mesh = None if devices == 1 else Mesh(
      np.array(jax.devices()[:devices]).reshape(2, -1), ('data', 'fsdp'),
      axis_types=(AxisType.Auto,) * 2)
  batches = Batches(small[0], small[1], mesh, rows)
  assert batches.buckets == (8, 10, 13, 16) and batches.rows(16) == rows * devices
  for seed in range(2):
    order = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(SAMPLES)), 2))
    found = list(batches.run(named_segments()[i] for i in order))
    assert sorted(name for name, _ in found) == sorted(order)
    for name, tokens in found:
      assert tokens.dtype == np.int32 and len(tokens) == features.tokens(SAMPLES[name])
      np.testing.assert_array_equal(tokens, alone[name])
  assert batches._program._cache_size() == 2  # no recording has 9 to 13 tokens


def test_on_a_mesh_every_device_has_its_rows_and_the_weights():
  mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ('a', 'b'), axis_types=(AxisType.Auto,) * 2)
  shape = Shape(mels=4, width=8, heads=2, ffn=8, layers=1, positions=32, block=4, codes=8)
  encoder = Encoder(shape)
  batches = Batches(encoder, jax.tree.map(lambda x: np.ones(x.shape, x.dtype),
                                          encoder.abstract()), mesh)
  codes = batches._params['codebook']['codes']
  assert codes.sharding.is_fully_replicated and len(codes.sharding.device_set) == 8
  tokens, _ = batches._start(8, [('x', np.ones((64, 4), np.float32), 10_000)])
  assert tokens.shape == (8, 8)
  assert {shard.data.shape for shard in tokens.addressable_shards} == {(1, 8)}
  assert len({shard.device for shard in tokens.addressable_shards}) == 8


def test_buckets_waste_little():
  sizes = np.array(buckets(375))
  assert sizes[-1] == 375 and (np.diff(sizes) > 0).all()
  counts = np.arange(8, 376)
  taken = sizes[np.searchsorted(sizes, counts)]
  assert (taken / counts).max() < 1.34 and (taken.sum() / counts.sum()) < 1.07


def test_the_published_size_has_the_published_number_of_parameters():
  shapes = Encoder(Shape()).abstract()
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  extra = 16_384                # the codes' squared lengths, which follow from the codes
  second_table = 375 * 1280     # positions of quantized vectors, which tokens do not need
  assert count - extra + second_table == 343_599_360


@pytest.mark.slow
def test_the_real_size_is_that_of_the_text(tmp_path):
  """About two minutes and 8 GB: features, hidden states and tokens of 9 s, three blocks."""
  config = reference.FULL
  tensors = reference.random_tensors(config)
  wave = babble(9.0, 16_000, seed=3)
  mel = reference.log_mel(wave, 128)
  np.testing.assert_allclose(features.log_mel(wave), mel.T, atol=1e-4)
  want = reference.hidden(config, tensors, mel, len(wave))
  draw = np.random.default_rng(0)  # the codes near the states, so that there is a choice
  rows = want[np.arange(16_384) % len(want)]
  tensors['codebook.weight'] = (
      rows + 0.05 * want.std() * draw.standard_normal(rows.shape)).astype(np.float32)
  checkpoint = Checkpoint(folders.write(tmp_path, config, tensors, 'model.encoder.'))
  assert checkpoint.shape == Shape()
  batches = Batches(Encoder(checkpoint.shape), checkpoint.read())
  mels = np.zeros((1, 125 * 8, 128), np.float32)
  mels[0, :mel.shape[1]] = mel.T
  valid = np.array([-(-len(wave) // 320)], np.int32)
  hidden = np.asarray(jax.jit(batches.encoder.hidden)(batches._params, mels, valid))[0]
  np.testing.assert_allclose(hidden[:len(want)], want, atol=1e-4 * max(1, want.std()))
  (_, tokens), = batches.run([('a', features.log_mel(wave), len(wave))])
  distance = reference.distances(tensors, want)
  best = np.sort(distance, axis=1)
  flips = tokens != distance.argmin(axis=1)
  chosen = distance[np.arange(len(tokens)), tokens]
  print(f'hidden error {np.abs(hidden[:len(want)] - want).max():.1e} at sd {want.std():.2f}; '
        f'{flips.sum()} of {len(tokens)} tokens differ, by {(chosen / best[:, 0] - 1).max():.1e}; '
        f'median gap {np.median(best[:, 1] / best[:, 0] - 1):.1e}')
  assert_nearest(tokens, distance)
  assert (tokens == distance.argmin(axis=1)).mean() > 0.97
