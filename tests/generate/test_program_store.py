"""Programs on disk: an engine with read programs answers as one that compiles; damaged files."""

import os

import jax
import numpy as np
import pytest

from tests.serve import tiny
from ttt_jax.data.records.records import Part
from ttt_jax.generate import compiled, program_store
from ttt_jax.serve.served_model import Message


@pytest.fixture
def cache(tmp_path):
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', str(tmp_path))
  yield tmp_path
  jax.config.update('jax_compilation_cache_dir', before)


def test_read_programs_answer_as_compiled_ones_and_none_is_missing(cache, monkeypatch):
  served = tiny.served(tiny.small())
  prompts = [served.prompt([Message('user', (Part('text', text),))])
             for text in ('Hello', 'a', 'bc')]
  wanted = [answer.ids.tolist() for answer in served.engine().generate(prompts)]
  for name, ready in served.engine().programs():
    ready()
  files = {path.name for path in cache.glob('programs/*/*.bin')}
  assert {'admit.bin', 'release.bin', 'decode_2_x_5.bin'} <= files
  (path,) = cache.glob('programs/*/decode_2_x_5.bin')
  size = path.stat().st_size
  path.write_bytes(path.read_bytes()[:-100])
  second = served.engine()
  for _, ready in second.programs():
    ready()
  for name in ('steps', 'prefill', 'admit', 'release'):
    monkeypatch.setattr(compiled, name, None)
  assert [answer.ids.tolist() for answer in second.generate(prompts)] == wanted
  assert path.stat().st_size == size


def test_a_folder_that_others_may_write_to_is_not_read(cache):
  (cache / 'programs').mkdir(mode=0o777)
  os.chmod(cache / 'programs', 0o777)
  store = program_store.ProgramStore('key')
  store.ensure('add', jax.jit(lambda x: x + 1), np.int32(1))
  assert store.get('add')(np.int32(1)) == 2 and not list(cache.glob('programs/*/*'))


def test_the_newest_keys_are_kept(cache):
  for number in range(6):
    store = program_store.ProgramStore(f'key{number}')
    store.ensure('add', jax.jit(lambda x: x + 1), np.int32(1))
    os.utime(cache / 'programs' / f'key{number}', (number, number))
  assert sorted(path.name for path in (cache / 'programs').iterdir()) == [
      'key2', 'key3', 'key4', 'key5']
