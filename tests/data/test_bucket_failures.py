"""Rows and sources in a bucket whose server fails: right rows, or one sentence."""

import json
import threading
from urllib import parse

import numpy as np
import pyarrow as pa
from pyarrow import parquet
import pytest

from tests.data import corpora_folders
from tests.data.prepare import tone
from tests.data.test_bucket_rows import data  # noqa: F401  (a fixture)
from tests.data.rows import VOCAB
from ttt_jax.config import CodecConfig, Config, DataConfig, Source, Stage
from ttt_jax.data.loader import Loader
from ttt_jax.data.prepare.prepare import prepare
from ttt_jax.data.records import places
from ttt_jax.errors import RetryableError, UserError
from ttt_jax.storage import outages, remote

pytestmark = pytest.mark.slow
PASSING = [503, 500, 429, 'reset', 'lost', 'cut', 0.7]  # 0.7: longer than the silence allowed here
STAYING = [503, 429, 403, 404, 'reset', 'cut', 'wrong', 0.7]


class First:
  """Disturbs the first request of every kind, or all, if their path has ``part``."""

  def __init__(self, what, part='', always=False):
    self.what, self.part, self.always = what, part, always
    self.seen, self.lock = set(), threading.Lock()

  def __call__(self, method, path):
    path = parse.unquote(path)
    if self.part not in path:
      return None
    with self.lock:
      first = (method, path) not in self.seen
      self.seen.add((method, path))
    return self.what if first or self.always else None


def sentence(error):
  text = str(error.value)
  assert '\n' not in text and 'Traceback' not in text and text.endswith('.'), text
  return text


# -- rows ---------------------------------------------------------------------------------------


@pytest.fixture
def rows(bucket, proxy, data):  # noqa: F811
  remote.upload_folder(data, f'{bucket}/data')
  yield f'{bucket}/data'
  for thread in threading.enumerate():
    if thread.name == 'shards':  # or it would go on in the next test, with that one's connection
      thread.join()


def take(place, threads, count=12):
  config = DataConfig(stages=(Stage('short', 3), Stage(mix={'train': 2, 'more': 1})), sst=0.5,
                      threads=threads)
  loader = Loader(place, config, 4, 5, VOCAB)
  return [next(loader) for _ in range(count)]


def assert_equal(found, wanted):
  for batch, other in zip(found, wanted, strict=True):
    for one, two in zip(batch, other):
      np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize('what, threads', [
    ('cut', 0), *((what, 2) for what in (*PASSING, 'wrong'))])
def test_rows_are_right_if_failures_pass(rows, proxy, data, what, threads, monkeypatch):  # noqa: F811
  monkeypatch.setattr(outages, 'RETRY_SECONDS', 10.0)
  with proxy.disturbed(First(what, 'arrayrecord')):
    assert_equal(take(rows, threads), take(data, threads))


@pytest.mark.parametrize('what, threads', [('cut', 0), *((what, 2) for what in STAYING)])
def test_rows_are_refused_if_failures_stay(rows, proxy, what, threads, monkeypatch, tmp_path):
  with proxy.disturbed(First(what, 'train-1.arrayrecord', always=True)):
    # Grain's threads of the test before may still have fetched the file into this test's cache.
    monkeypatch.setenv('TTT_JAX_CACHE', str(tmp_path / 'new'))
    with pytest.raises((UserError, RetryableError)) as error:
      take(rows, threads, 30)
  assert 'train-1.arrayrecord' in sentence(error)


# -- sources ------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def lake(tmp_path_factory):
  root = tmp_path_factory.mktemp('lake')
  for n in range(4):
    corpora_folders.sound(root / 'wav' / f'{n}.wav', 500 * (n + 1), 0.4 + 0.1 * n)
  named = [{'audio': f'wav/{n}.wav', 'text': f'{n} {n}'} for n in range(4)]
  named.append({'audio': 'wav/2.wav', 'start': 0.1, 'text': 'part'})
  (root / 'a.jsonl').write_text(''.join(json.dumps(one) + '\n' for one in named))
  import gzip
  (root / 'c.jsonl.gz').write_bytes(gzip.compress(
      b''.join(b'{"text": "text %d"}\n' % n for n in range(20)), mtime=0))
  parquet.write_table(pa.Table.from_pylist([{'text': f'row {n}'} for n in range(40)]),
                      root / 'b.parquet', row_group_size=8)
  return root


def config(root):
  return Config(codec=CodecConfig(tone.NAME), data=DataConfig(
      seq_len=512, sources=(Source('a.jsonl', task='asr'), Source('b.parquet'),
                            Source('c.jsonl.gz')), root=str(root), workers=1))


@pytest.fixture
def sources(bucket, proxy, lake):
  remote.upload_folder(lake, f'{bucket}/lake')
  places.forget()
  return f'{bucket}/lake'


@pytest.fixture(scope='module')
def local(lake, tmp_path_factory):
  return prepare(config(lake), tmp_path_factory.mktemp('local'))


@pytest.mark.parametrize('what', [503, 'reset', 'cut', 0.7])
def test_sources_are_right_if_failures_pass(sources, proxy, local, what, tmp_path, monkeypatch):
  monkeypatch.setattr(outages, 'RETRY_SECONDS', 10.0)
  with proxy.disturbed(First(what)):
    assert prepare(config(sources), tmp_path) == local


@pytest.mark.parametrize('name, what', [  # a range has no checksum but that of TLS
    *(('b.parquet', what) for what in STAYING if what != 'wrong'),
    *((name, what) for name in ('a.jsonl', 'c.jsonl.gz') for what in (403, 404, 'cut')),
    *((name, what) for name in ('wav/1.wav', 'wav/2.wav') for what in (503, 404, 'cut', 'wrong'))])
def test_sources_are_refused_if_failures_stay(sources, proxy, what, name, tmp_path, monkeypatch):
  monkeypatch.setattr(outages, 'RETRY_SECONDS', 1.0)
  with proxy.disturbed(First(what, name, always=True)):
    with pytest.raises((UserError, RetryableError)) as error:
      prepare(config(sources), tmp_path)
  assert name in sentence(error)
  assert not (tmp_path / 'data' / 'manifest.json').exists()
