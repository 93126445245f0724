"""Rows on disk are read back unchanged; damaged rows and other data are rejected."""

import dataclasses
import errno
import json
import resource

import numpy as np
import pytest

from tests.data.rows import VOCAB, spoken, write_set
from ttt_jax.data import store
from ttt_jax.errors import UserError
from ttt_jax.tokens.batch import make_row


def test_a_row_comes_back_bit_for_bit(tmp_path):
  row = make_row(VOCAB, [(2**31 - 1, *spoken(14)), (5, *spoken(12))], 70)
  back = store.unpack_row(store.pack_row(row))
  for name, one, other in zip(row._fields, row, back):
    np.testing.assert_array_equal(one, other, name)
    assert other.dtype == np.int32
  write_set(tmp_path / 'd', {'train': 3})
  rows = store.Rows(tmp_path / 'd', 'train')
  assert len(rows) == 3
  assert rows[2].document.max() == 6 and rows[0].document.max() == 2


@pytest.mark.parametrize('damage', [lambda d: d[:-1], lambda d: d + b'x', lambda d: b'XXXX' + d[4:],
                                    lambda d: b''])
def test_a_damaged_row_is_rejected(damage):
  data = store.pack_row(make_row(VOCAB, [(1, *spoken(14))], 40))
  with pytest.raises(UserError, match='shard 1, row 7'):
    store.unpack_row(damage(data), 'shard 1, row 7')


def test_a_truncated_or_missing_file_is_one_sentence(tmp_path):
  data = write_set(tmp_path / 'd', {'train': 40})
  with pytest.raises(UserError, match="no split 'dev'; it has train"):
    store.Rows(data, 'dev')
  file = data / 'train.arrayrecord'
  file.write_bytes(file.read_bytes()[:1000])
  with pytest.raises(UserError, match='train.arrayrecord.*prepare` again'):
    store.Rows(data, 'train')
  file.unlink()
  with pytest.raises(UserError, match='train.arrayrecord is missing'):
    store.Rows(data, 'train')


def test_a_writer_that_fails_leaves_nothing(tmp_path):
  def rows():
    yield make_row(VOCAB, [(1, *spoken(14))], 40)
    raise UserError('enough')
  with pytest.raises(UserError, match='enough'):
    store.write_rows(tmp_path / 'x.arrayrecord', rows())
  assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_grow_is_the_systems_error(tmp_path):
  rng = np.random.default_rng(0)
  def rows():
    for _ in range(3000):
      yield make_row(VOCAB, [(1, rng.integers(0, 300, 500).astype(np.int32), np.ones(500))], 500)
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
  try:
    with pytest.raises(OSError) as caught:
      store.write_rows(tmp_path / 'x.arrayrecord', rows())
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert caught.value.errno == errno.EFBIG
  assert list(tmp_path.iterdir()) == []


def test_another_vocabulary_is_rejected_with_both_fingerprints(tmp_path):
  data = write_set(tmp_path / 'd', {'train': 1})
  assert store.read_manifest(data, VOCAB)['max_document'] == 2
  assert store.vocabulary(data) == VOCAB
  other = dataclasses.replace(VOCAB, codec='another')
  with pytest.raises(UserError, match=f'{VOCAB.fingerprint}.*{other.fingerprint}'):
    store.read_manifest(data, other)


@pytest.mark.parametrize('content, sentence', [
    (None, 'no prepared data'), ('{', 'is not JSON'), ('[]', r'is \[\]; it must be a JSON object'),
    ('{"version": 1}', 'version 1 '), ('{"version": 3}', 'has no vocabulary, which must be'),
    (json.dumps({'version': 3, 'vocabulary': VOCAB.to_dict() | {'codebook_size': 2**40}}),
     'has vocabulary.codebook_size = 1099511627776; it must be an integer from 1 to'),
    (json.dumps({'version': 3, 'vocabulary': VOCAB.to_dict(), 'fingerprint': '0', 'seq_len': 8,
                 'splits': {'train': {'rows': 1, 'files': [{'name': '../x', 'bytes': 0}]}}}),
     r"has splits.train.files\[0\].name = '../x'; it must be a name without /"),
    (json.dumps({'version': 3, 'vocabulary': VOCAB.to_dict(), 'fingerprint': '0', 'seq_len': 8,
                 'splits': {}}), 'has fingerprint 0, but that of its vocabulary is'),
    (json.dumps({'version': 99, 'vocabulary': VOCAB.to_dict()}), 'version 99'),
])
def test_a_bad_manifest_is_one_sentence(tmp_path, content, sentence):
  if content is not None:
    (tmp_path / 'manifest.json').write_text(content)
  with pytest.raises(UserError, match=sentence):
    store.read_manifest(tmp_path)
