"""Same integer, same batch: whatever the threads, the processes and the history."""

import dataclasses

import numpy as np
import pytest

from tests.data.rows import VOCAB, write_set
from ttt_jax.config import DataConfig, Stage
from ttt_jax.data.loader import Loader
from ttt_jax.errors import UserError

CONFIG = DataConfig(stages=(Stage('short', 3), Stage('train', 0)), sst=0.5, threads=2)
PLAIN = dataclasses.replace(CONFIG, sst=0.0)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return write_set(tmp_path_factory.mktemp('set') / 'd', {'short': 2, 'train': 10})


def take(loader, count):
  return [next(loader) for _ in range(count)]


def assert_same(batches, others):
  assert len(batches) == len(others)
  for batch, other in zip(batches, others):
    for name, one, two in zip(batch._fields, batch, other):
      np.testing.assert_array_equal(one, two, name)


def numbers(batches):
  """First document of each row, in order."""
  return [int(row[0]) for batch in batches for row in batch.document]


def test_batches_have_the_contract(data):
  batch = next(Loader(data, CONFIG, 4, 0, VOCAB))
  for vector in batch:
    assert vector.shape == (4, 64) and vector.dtype == np.int32


def test_the_same_seed_gives_the_same_batches_with_any_number_of_threads(data):
  runs = [take(Loader(data, dataclasses.replace(CONFIG, threads=n), 4, 5, VOCAB), 12)
          for n in (0, 1, 4)]
  assert_same(runs[0], runs[1])
  assert_same(runs[0], runs[2])
  loader = Loader(data, CONFIG, 4, 5, VOCAB)
  assert_same(runs[0], [loader.batch_at(i) for i in range(12)])
  other = take(Loader(data, CONFIG, 4, 6, VOCAB), 12)
  assert numbers(other) != numbers(runs[0])


def test_a_restored_loader_continues_after_the_consumed_batch(data):
  whole = take(Loader(data, CONFIG, 4, 5, VOCAB), 10)
  first = Loader(data, CONFIG, 4, 5, VOCAB)
  take(first, 4)
  state = first.state()
  assert state == {'next': 4}
  take(first, 3)
  second = Loader(data, CONFIG, 4, 5, VOCAB)
  second.restore(state)
  assert_same(take(second, 6), whole[4:])
  first.restore(state)  # backwards, on a loader already under way
  assert_same(take(first, 6), whole[4:])
  assert first.state() == {'next': 10}


def test_two_processes_see_the_halves_of_the_same_batches(data):
  whole = take(Loader(data, CONFIG, 4, 5, VOCAB), 8)
  halves = [take(Loader(data, CONFIG, 4, 5, VOCAB, process, 2), 8) for process in (0, 1)]
  assert_same(whole, [type(a)(*(np.concatenate(v) for v in zip(a, b))) for a, b in zip(*halves)])


def test_the_curriculum_and_the_epochs(data):
  batches = take(Loader(data, PLAIN, 4, 5, VOCAB), 13)
  assert set(numbers(batches[:3])) == {1, 3}                  # 12 rows of the 2 of 'short'
  train = numbers(batches[3:])                                # 40 rows: 4 epochs of 10
  epochs = [train[i:i + 10] for i in range(0, 40, 10)]
  assert all(sorted(epoch) == list(range(5, 25, 2)) for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) == 4
  plain = dataclasses.replace(PLAIN, shuffle=False, stages=(Stage('train', 0),))
  assert numbers(take(Loader(data, plain, 5, 5, VOCAB), 4)) == list(range(5, 25, 2)) * 2


def lengths_by_epoch(data, seed):
  """{document: [its length in epoch 0, 1, ...]}, 12 epochs of 'train'."""
  config = dataclasses.replace(CONFIG, stages=(Stage('train', 0),))
  out = {}
  for batch in take(Loader(data, config, 5, seed, VOCAB), 24):
    for row in batch.document:
      for number in np.unique(row[row > 0]):
        out.setdefault(int(number), []).append(int((row == number).sum()))
  return out


def test_cuts_are_redrawn_every_epoch_and_belong_to_the_document(data):
  found = lengths_by_epoch(data, 5)
  assert all(len(lengths) == 12 for lengths in found.values())
  cut = [n < max(lengths) for lengths in found.values() for n in lengths]
  assert abs(np.mean(cut) - 0.5) < 4 * (0.25 / len(cut)) ** 0.5
  assert sum(len(set(lengths)) > 1 for lengths in found.values()) == len(found)
  # Another order of the rows, the same epochs: the cuts stay with their documents.
  unshuffled = dataclasses.replace(CONFIG, stages=(Stage('train', 0),), shuffle=False)
  loader, again = Loader(data, unshuffled, 10, 5, VOCAB), {}
  for batch in take(loader, 12):
    for row in batch.document:
      for number in np.unique(row[row > 0]):
        again.setdefault(int(number), []).append(int((row == number).sum()))
  assert again == found


@pytest.mark.parametrize('change, sentence', [
    ({'batch_rows': 3, 'process_count': 2}, 'train.batch_rows=3 does not divide among 2'),
    ({'vocab': dataclasses.replace(VOCAB, codec='x')}, 'prepared for vocabulary'),
    ({'config': DataConfig(stages=(Stage('dev', 0),))}, "no split 'dev'"),
    ({'data_dir': '/nowhere'}, 'no prepared data in /nowhere'),
])
def test_what_cannot_work_is_one_sentence(data, change, sentence):
  settings = {'data_dir': data, 'config': CONFIG, 'batch_rows': 4, 'seed': 0, 'vocab': VOCAB}
  with pytest.raises(UserError, match=sentence):
    Loader(**{**settings, **change})


def test_a_split_without_rows_is_refused(tmp_path):
  empty = write_set(tmp_path / 'd', {'train': 0, 'short': 1})
  with pytest.raises(UserError, match="split 'train'.*no rows"):
    Loader(empty, CONFIG, 4, 0, VOCAB)
