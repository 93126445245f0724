"""A prepared set in a bucket is read as one on the disk; what differs from its manifest is not."""

import dataclasses
import os
import shutil

import numpy as np
import pytest

from tests.data.rows import VOCAB, write_set
from ttt_jax.config import DataConfig, Stage
from ttt_jax.data import shards, store
from ttt_jax.data.loader import Loader
from ttt_jax.errors import UserError
from ttt_jax.storage import object_cache, remote

CONFIG = DataConfig(stages=(Stage('short', 3), Stage(mix={'train': 2, 'more': 1})), sst=0.5,
                    threads=2)


def split_files(folder, split, count):
  """Divides the one file of a split of ``write_set`` into ``count`` files."""
  manifest = store.read_manifest(folder)
  rows = store.Rows(folder, split)
  parts = []
  for k in range(count):
    numbers = range(k * len(rows) // count, (k + 1) * len(rows) // count)
    path = folder / f'{split}-{k}.arrayrecord'
    store.write_rows(path, (rows[i] for i in numbers))
    parts.append((path, len(numbers)))
  manifest['splits'][split] |= store.split_entry(*parts)
  store.write_manifest(folder, manifest)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  folder = write_set(tmp_path_factory.mktemp('set') / 'd', {'short': 2, 'train': 30, 'more': 8})
  split_files(folder, 'train', 4)
  return folder


@pytest.fixture
def url(bucket, data):
  remote.upload_folder(data, f'{bucket}/data')
  return f'{bucket}/data'


def take(place, count=12, **changes):
  loader = Loader(place, dataclasses.replace(CONFIG, **changes), 4, 5, VOCAB)
  return [next(loader) for _ in range(count)]


def test_batches_are_those_of_the_local_set(url, data):
  for threads in (0, 2):
    for batch, other in zip(take(url, threads=threads), take(data)):
      for one, two in zip(batch, other):
        np.testing.assert_array_equal(one, two)
  assert store.fingerprints(url) == store.fingerprints(data)
  fetched = [path for path in object_cache.folder().rglob('*') if path.suffix == '.arrayrecord']
  assert len(fetched) == 6  # each file once


def test_files_are_fetched_in_the_order_of_the_batches(url, data, monkeypatch):
  order = []
  monkeypatch.setattr(shards.Shards, 'fetch_ahead', lambda self, rows: order.append(list(rows)))
  config = dataclasses.replace(CONFIG, stages=(Stage('train'),), sst=0.0, threads=0)
  loader = Loader(url, config, 4, 5, VOCAB)
  loader.restore({'next': 5})
  next(loader)
  ((found,),) = [order]
  rows = store.Rows(data, 'train')
  wanted = [row for i in range(5, 9) for row in Loader(data, config, 4, 5, VOCAB).batch_at(i).token]
  for index, row in zip(found, wanted):
    np.testing.assert_array_equal(rows[index].token, row)


@pytest.mark.parametrize('change, says', [
    (lambda url, path: remote.remove(url), 'is missing'),
    (lambda url, path: remote.write_bytes(url, path.read_bytes()[:-9]), 'bytes but the manifest'),
    (lambda url, path: remote.write_bytes(url, path.read_bytes()[::-1]), 'SHA-256')])
def test_what_the_manifest_does_not_list_is_not_read(url, data, change, says):
  name = 'train-1.arrayrecord'
  change(f'{url}/{name}', data / name)
  with pytest.raises(UserError, match=f'{name}.*{says}'):
    rows = store.Rows(url, 'train')
    rows.fetch_ahead(())
    for i in range(len(rows)):
      rows[i]


def test_a_damaged_or_removed_copy_is_fetched_again(url, data, monkeypatch):
  rows = store.Rows(url, 'train')
  expected = rows[29].token
  (copy,) = [path for path in object_cache.folder().rglob('*.arrayrecord')]
  copy.write_bytes(bytes(len(copy.read_bytes())))
  os.utime(copy, (1, 1))
  monkeypatch.setattr(object_cache, '_known', {})  # another process
  np.testing.assert_array_equal(store.Rows(url, 'train')[29].token, expected)
  rows = store.Rows(url, 'train')
  rows._shards.require(29)
  shutil.rmtree(object_cache.folder())
  np.testing.assert_array_equal(rows[29].token, expected)


def test_copies_that_were_not_used_for_long_make_room(url, monkeypatch):
  rows = store.Rows(url, 'train')
  sizes = [one[1] for one in rows._shards._files]
  monkeypatch.setenv('TTT_JAX_CACHE_GB', str((sum(sizes[:2]) + 1) / 1e9))
  with pytest.raises(UserError, match='GB that are not on this machine yet.*TTT_JAX_CACHE'):
    store.Rows(url, 'train')
  rows[0], rows[8]
  with pytest.raises(UserError, match='room'):  # the other two are in use
    rows[29]
  monkeypatch.setattr(object_cache, '_RECENT', -1.0)
  assert rows[29].document.max()
  copies = [path for path in object_cache.folder().rglob('*.arrayrecord')]
  assert sum(path.stat().st_size for path in copies) <= sum(sizes[:2]) + 1


def test_a_set_that_is_not_there_is_one_sentence(bucket):
  with pytest.raises(UserError, match=f'no prepared data in {bucket}/data'):
    store.read_manifest(f'{bucket}/data')
