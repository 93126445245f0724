"""Safetensors files against the library's own reading and writing, and every kind of damage."""

import json
import re

import ml_dtypes
import numpy as np
import pytest

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
  first = np.zeros((3, 5), np.float32)
  np.testing.assert_array_equal(folder.read('a', first), VALUES['a'][:3])


def test_the_library_reads_and_writes_the_same(tmp_path):
  library = pytest.importorskip('safetensors.numpy')
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


def header(path, change):
  """Rewrite a file's header without touching its tensors."""
  data = path.read_bytes()
  length = int.from_bytes(data[:8], 'little')
  values = json.loads(data[8:8 + length])
  change(values)
  text = json.dumps(values).encode()
  path.write_bytes(len(text).to_bytes(8, 'little') + text + data[8 + length:])


ONE = 'model-00001-of-00004.safetensors'


@pytest.mark.parametrize('harm, expected', [
    (lambda d: cut(d / ONE, 200), r'has 200 bytes, but its header needs \d+; the file is trunc'),
    (lambda d: cut(d / ONE, 12), 'is not a safetensors file'),
    (lambda d: cut(d / ONE, 3), 'is not a safetensors file'),
    (lambda d: (d / ONE).write_bytes(b'PK' + bytes(500)), 'is not a safetensors file'),
    (lambda d: (d / ONE).unlink(), f'names the file {ONE}, which is not in'),
    (lambda d: (d / safetensors_io.INDEX).write_text('[]'), 'is not an index of safetensors files'),
    (lambda d:
     (d / safetensors_io.INDEX).write_text('{"weight_map": {"a": 3}}'), 'is not an index'),
    (lambda d: index(d, lambda v: v['weight_map'].update(b=ONE)), f'lists tensor b in {ONE}'),
    (lambda d:
     (d / safetensors_io.INDEX).unlink(), 'has neither model.safetensors nor model.safetensors'),
    (lambda d: header(d / ONE, lambda v: v['a'].update(dtype='I4')), 'has dtype I4; it must be'),
    (lambda d: header(d / ONE, lambda v: v['a'].update(shape=[7, 6])), 'not a safetensors file'),
    (lambda d: header(d / ONE, lambda v: v.update(a=3)), 'is not a safetensors file'),
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
  cut(tmp_path / safetensors_io.SINGLE, folder['b'].start - 4)
  with pytest.raises(UserError, match='ends inside tensor'):
    for name in folder:
      folder.read(name)
