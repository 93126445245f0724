"""Safetensors files against the library's own reading and writing, and every kind of damage."""

import json
import re
import shutil

import ml_dtypes
import numpy as np
import pytest

from safetensors import numpy as library

from ttt_jax.errors import UserError
from ttt_jax.storage import safetensors_io

RNG = np.random.default_rng(0)
VALUES = {
    'a': RNG.standard_normal((7, 5)).astype(np.float32),
    'b': RNG.standard_normal((3,)).astype(ml_dtypes.bfloat16),
    'c': RNG.standard_normal((2, 3, 4)).astype(np.float16),
    'empty': np.zeros((0, 4), np.float32),
}


def write(folder, shard_bytes=2**40, values=VALUES):
  folder.mkdir(exist_ok=True)
  writer = safetensors_io.Writer(folder, (safetensors_io.Plan(name, value.shape, value.dtype)
                                   for name, value in values.items()), shard_bytes)
  writer.write(values.get)
  return writer


@pytest.mark.parametrize('shard_bytes, files', [(2**40, 1), (150, 2), (1, 4)])
def test_what_is_written_is_read(tmp_path, shard_bytes, files):
  writer = write(tmp_path, shard_bytes)
  assert len(writer.names()) == files
  assert all((tmp_path / name).is_file() for name in writer.names())
  folder = safetensors_io.Folder(tmp_path)
  assert set(folder) == set(VALUES)
  for name, value in VALUES.items():
    found = folder.read(name)
    assert found.dtype == value.dtype and found.tobytes() == value.tobytes()
    assert safetensors_io.checksum(folder, name) == writer.sums[name]


def test_two_writers_share_the_files(tmp_path):
  write(tmp_path / 'one', 150)
  (tmp_path / 'two').mkdir()
  for part in range(2):
    writer = safetensors_io.Writer(
        tmp_path / 'two', (safetensors_io.Plan(name, value.shape, value.dtype)
                           for name, value in VALUES.items()), 150)
    writer.write(VALUES.get, own=lambda file, part=part: file == part)
    assert set(writer.sums) == set(writer.tensors()[part])
    writer.check(tmp_path / 'two')
  same = lambda name: {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
  assert same('one') == same('two')
  damaged = tmp_path / 'two' / writer.names()[1]
  damaged.write_bytes(damaged.read_bytes()[:-1] + b'?')
  with pytest.raises(UserError, match='differs from what was written'):
    writer.check(tmp_path / 'two')


def test_rows_alone_are_read(tmp_path):
  write(tmp_path)
  folder = safetensors_io.Folder(tmp_path)
  np.testing.assert_array_equal(folder.read_rows('a', 2, 6), VALUES['a'][2:6])
  into = np.zeros((3, 3, 4), np.float16)
  folder.read_rows('c', 1, 2, into[1:2])
  np.testing.assert_array_equal(into[1], VALUES['c'][1])
  assert not into[0].any() and not into[2].any()
  assert folder.read_rows('empty', 0, 0).shape == (0, 4)
  cut(tmp_path / safetensors_io.SINGLE, 250)
  with pytest.raises(UserError, match='it ends too early'):
    folder.read_rows('c', 0, 2)


def test_the_library_reads_and_writes_the_same(tmp_path):
  write(tmp_path)
  found = library.load_file(tmp_path / safetensors_io.SINGLE)
  assert {name: value.tobytes() for name, value in found.items()} == {
      name: value.tobytes() for name, value in VALUES.items()}
  library.save_file(VALUES, tmp_path / safetensors_io.SINGLE, {'format': 'pt'})
  folder = safetensors_io.Folder(tmp_path)
  for name, value in VALUES.items():
    assert folder.read(name).tobytes() == value.tobytes()


def index(folder, change):
  path = folder / safetensors_io.INDEX
  values = json.loads(path.read_text())
  change(values)
  path.write_text(json.dumps(values))


def cut(path, size):
  path.write_bytes(path.read_bytes()[:size])


def grow(path):
  path.write_bytes(path.read_bytes() + bytes(8))


def raw_header(path, change):
  """Rewrite the text of a file's header without touching its tensors."""
  data = path.read_bytes()
  length = int.from_bytes(data[:8], 'little')
  text = change(data[8:8 + length].rstrip())
  path.write_bytes(len(text).to_bytes(8, 'little') + text + data[8 + length:])


def header(path, change):
  def changed(text):
    values = json.loads(text)
    values.pop('__metadata__')
    change(values)
    return json.dumps(values).encode()
  raw_header(path, changed)


def mixed(folder):
  """The second file also holds the tensor of the first."""
  values = {name: VALUES[name] for name in 'ab'}
  write(folder / 'other', values=values)
  shutil.copy(folder / 'other' / safetensors_io.SINGLE, folder / TWO)


ONE, TWO = (f'model-0000{number}-of-00004.safetensors' for number in (1, 2))


@pytest.mark.parametrize('harm, expected', [
    (lambda d: cut(d / ONE, 200), 'is not a complete safetensors file .*not fully covered'),
    (lambda d: grow(d / ONE), 'is not a complete safetensors file .*not fully covered'),
    (lambda d: cut(d / ONE, 12), 'is not a safetensors file'),
    (lambda d: cut(d / ONE, 3), 'is not a safetensors file'),
    (lambda d: (d / ONE).write_bytes(b'PK' + bytes(500)), 'is not a safetensors file'),
    (lambda d: (d / ONE).unlink(), f'names the file {ONE}, which is not in'),
    (lambda d: (d / safetensors_io.INDEX).write_text('[]'),
     'must be a JSON object; it must map tensor'),
    (lambda d:
     (d / safetensors_io.INDEX).write_text('{"weight_map": {"a": 3}}'),
     'has weight_map.a = 3; it must be a name'),
    (lambda d: index(d, lambda v: v['weight_map'].update(a='../x.safetensors')),
     "has weight_map.a = '../x.safetensors'; it must be a name without /"),
    (lambda d: index(d, lambda v: v['weight_map'].update(a=str(d / ONE))), 'has weight_map.a = '),
    (lambda d: index(d, lambda v: v['weight_map'].update(a='x' * 300)), 'names the file xxx'),
    (lambda d: (d / safetensors_io.INDEX).write_text(
        f'{{"weight_map": {{"a": "{ONE}", "a": "{ONE}"}}}}'), "key 'a' appears twice"),
    (lambda d: shutil.copy(d / ONE, d / TWO), f'lists tensor b in {TWO}, which does not'),
    (mixed, f'tensor a is in .*{ONE} and in .*{TWO}; files of two models'),
    (lambda d: shutil.copy(d / ONE, d / safetensors_io.SINGLE),
     'has both model.safetensors and model.saf'),
    (lambda d: index(d, lambda v: v['weight_map'].update(b=ONE)), f'lists tensor b in {ONE}'),
    (lambda d:
     (d / safetensors_io.INDEX).unlink(), 'has neither model.safetensors nor model.safetensors'),
    (lambda d: header(d / ONE, lambda v: v['a'].update(dtype='I32')), 'has dtype I32; it must'),
    (lambda d: header(d / ONE, lambda v: v['a'].update(dtype='I4')), 'unknown variant `I4`'),
    (lambda d: header(d / ONE, lambda v: v['a'].update(shape=[7, 6])), 'not a complete safet'),
    (lambda d: header(d / ONE, lambda v: v.update(a=3)), 'is not a complete safetensors file'),
    (lambda d: header(d / ONE, lambda v: v['a'].pop('data_offsets')), 'missing field `data_off'),
    (lambda d: header(d / ONE, lambda v: v['a'].update(data_offsets=[-140, 0])), 'invalid value'),
    (lambda d: header(d / ONE, lambda v: v['a'].update(data_offsets=[140, 0])), 'invalid offset'),
    (lambda d: header(d / ONE, lambda v: v.update(z=v['a'])), 'invalid offset for tensor'),
    (lambda d: header(d / ONE, lambda v: v.update(
        z={'dtype': 'F32', 'shape': [0, 2**62], 'data_offsets': [140, 140]})), 'has shape'),
    (lambda d: raw_header(d / ONE, lambda text: text[:-1] + text[text.index(b', "a"'):]),
     "the header of .* is not JSON .*'a' appears twice"),
    (lambda d: (d / ONE).write_bytes((2**40).to_bytes(8, 'little') + bytes(99)),
     'is not a safetensors file'),
])
def test_damage_is_one_sentence(tmp_path, harm, expected):
  write(tmp_path, 1)
  harm(tmp_path)
  with pytest.raises(UserError) as error:
    safetensors_io.Folder(tmp_path)
  assert re.search(expected, str(error.value)) and str(error.value).count('\n') == 0


def test_not_a_directory(tmp_path):
  with pytest.raises(UserError, match='nowhere is not a directory'):
    safetensors_io.Folder(tmp_path / 'nowhere')


def test_cut_off_while_it_is_read(tmp_path):
  write(tmp_path)
  folder = safetensors_io.Folder(tmp_path)
  cut(tmp_path / safetensors_io.SINGLE, 250)
  with pytest.raises(UserError, match='cannot be read .*; the file is truncated'):
    for name in folder:
      folder.read(name)


@pytest.mark.parametrize('dtype', safetensors_io.DTYPES.values(), ids=str)
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_named(tmp_path, dtype, value):
  tensor = np.full((4, 3), np.finfo(np.float16).max).astype(dtype)
  write(tmp_path / 'good', values={'w': tensor})
  assert safetensors_io.Folder(tmp_path / 'good').read_finite('w').tobytes() == tensor.tobytes()
  tensor[2, 1] = value
  write(tmp_path / 'bad', values={'w': tensor})
  with pytest.raises(UserError, match='tensor w in .* has 1 of 12 numbers that are NaN or inf'):
    safetensors_io.Folder(tmp_path / 'bad').read_finite('w')


def test_links_of_the_hub_cache_are_followed(tmp_path):
  """The cache of huggingface_hub has links in snapshots/REVISION to files in blobs/."""
  write(tmp_path / 'blobs')
  (tmp_path / 'snapshot').mkdir()
  link = tmp_path / 'snapshot' / safetensors_io.SINGLE
  link.symlink_to(tmp_path / 'blobs' / safetensors_io.SINGLE)
  assert safetensors_io.Folder(tmp_path / 'snapshot').read('b').tobytes() == VALUES['b'].tobytes()
