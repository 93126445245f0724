"""Programs on disk: an engine with read programs answers as one that compiles; damaged files."""

import os

import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
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
  programs = second.programs()
  assert second.store.read(programs) == {name for name, _ in programs}
  assert all(second.store.get(name) for name, _ in programs)
  for name in ('steps', 'prefill', 'admit', 'release'):
    monkeypatch.setattr(compiled, name, None)
  assert [answer.ids.tolist() for answer in second.generate(prompts)] == wanted
  assert path.stat().st_size == size


def _loop():
  """A new function every time: JAX keeps the programs of an old one in memory."""
  def loop(x):
    def body(carry):
      i, x = carry
      return i + 1, jnp.where(jnp.arange(x.size) > i, jnp.sin(x) @ jnp.ones((x.size, x.size)),
                              jnp.sort(x))
    return jax.lax.while_loop(lambda carry: carry[0] < 3, body, (0, x))[1]
  return jax.jit(loop)


def test_a_program_from_the_compilation_cache_is_stored_whole(cache):
  settings = {'jax_persistent_cache_min_compile_time_secs': 0,
              'jax_persistent_cache_min_entry_size_bytes': -1}
  before = {name: getattr(jax.config, name) for name in settings}
  for name, value in settings.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  try:
    x = np.arange(8, dtype=np.float32)
    wanted = _loop().lower(x).compile()(x)
    assert list(cache.glob('jit_loop*'))
    # The second of each key reads what the first one has stored; the second key compiles again.
    for key in ('key', 'key', 'other', 'other'):
      np.testing.assert_array_equal(_loop().lower(x).compile()(x), wanted)  # the cache is in use
      store = program_store.ProgramStore(key)
      store.ensure('loop', _loop(), x)
      np.testing.assert_array_equal(store.get('loop')(x), wanted)
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_a_read_program_that_fails_is_compiled_again(cache):
  def make():
    store = program_store.ProgramStore('key')
    store.ensure('add', jax.jit(lambda x: x + 1), np.int32(1))
    return store
  assert make().distrust() == 0
  store = make()
  assert store.distrust() == 1 and store.get('add') is None
  assert not list(cache.glob('programs/*/*.bin'))
  store.ensure('add', jax.jit(lambda x: x + 1), np.int32(1))
  assert store.get('add')(np.int32(1)) == 2 and store.distrust() == 0


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
