"""A batch depends on its index only, not on threads, processes or history."""

import dataclasses
import hashlib

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


@pytest.mark.parametrize('change, expected', [
    ({}, '67c79a2ef6d52fa3'),
    ({'stages': (Stage('train', 2), Stage('train', 0))}, 'f765ce3e44aa0dc7'),
    ({'shuffle': False, 'sst': 0.0}, 'f3f51b689c6f8695')])
def test_the_order_of_single_splits_never_changes(data, change, expected):
  """A run that continues with a newer version must read the rows it has not read yet."""
  digest = hashlib.sha256()
  for batch in take(Loader(data, dataclasses.replace(CONFIG, **change), 4, 5, VOCAB), 12):
    for vector in batch:
      digest.update(vector.tobytes())
  assert digest.hexdigest()[:16] == expected


# -- mixtures ---------------------------------------------------------------------------------

MIX = dataclasses.replace(CONFIG, stages=(
    Stage(mix={'train': 2, 'short': 1}, steps=3), Stage(mix={'short': 0.25, 'train': 0.75})))
SHORT = {1, 3}  # first documents of the two rows of 'short'; those of 'train' are 5, 7, ... 23


def test_weights_hold_in_every_window_and_change_at_their_step(data):
  found = numbers(take(Loader(data, MIX, 4, 5, VOCAB), 13))
  for rows, share in ((found[:12], 1 / 3), (found[12:], 1 / 4)):
    given = np.cumsum([n in SHORT for n in rows])
    assert abs(given - share * np.arange(1, len(rows) + 1)).max() < 1


def test_each_split_of_a_mix_has_epochs_of_its_own_that_the_next_stage_goes_on_with(data):
  found = numbers(take(Loader(data, MIX, 4, 5, VOCAB), 13))          # 8 + 4 rows, then 30 + 10
  train, short = [n for n in found if n not in SHORT], [n for n in found if n in SHORT]
  assert len(train) == 38 and len(short) == 14
  epochs = [train[i:i + 10] for i in range(0, 30, 10)]               # the first spans both stages
  assert all(sorted(epoch) == list(range(5, 25, 2)) for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) == 3
  assert all(set(short[i:i + 2]) == SHORT for i in range(0, 14, 2))


def test_a_mix_goes_on_where_a_stage_of_one_split_stopped(data):
  alone = numbers(take(Loader(data, dataclasses.replace(PLAIN, stages=(Stage(),)), 4, 5, VOCAB), 9))
  stages = (Stage('train', 2), Stage(mix={'train': 3, 'short': 1}, steps=4), Stage('train', 1))
  found = numbers(take(Loader(data, dataclasses.replace(PLAIN, stages=stages), 4, 5, VOCAB), 7))
  assert [n for n in found[:24] if n not in SHORT] == alone[:20]
  assert found[24:] != alone[20:24]                                  # drawn anew
  only = dataclasses.replace(PLAIN, stages=(Stage(mix={'train': 7}),))
  assert numbers(take(Loader(data, only, 4, 5, VOCAB), 9)) == alone


def test_a_mix_is_a_function_of_the_batch_number(data):
  whole = take(Loader(data, MIX, 4, 5, VOCAB), 9)
  loader = Loader(data, MIX, 4, 5, VOCAB)
  assert_same(whole[::-1], [loader.batch_at(i) for i in reversed(range(9))])
  halves = [take(Loader(data, MIX, 4, 5, VOCAB, process, 2), 9) for process in (0, 1)]
  assert_same(whole, [type(a)(*(np.concatenate(v) for v in zip(a, b))) for a, b in zip(*halves)])
  loader.restore({'next': 4})
  assert_same(take(loader, 5), whole[4:])
  turned = tuple(Stage(mix=dict(reversed(stage.mix.items())), steps=stage.steps)
                 for stage in MIX.stages)
  assert_same(whole, take(Loader(data, dataclasses.replace(MIX, stages=turned), 4, 5, VOCAB), 9))


def test_cuts_of_a_mix_follow_the_epochs_of_each_split(data):
  """A document's cut is that of its split's own epoch, wherever the mixture puts its row."""
  def lengths_in(config):
    out = {}
    for batch in take(Loader(data, config, 4, 5, VOCAB), 30):
      for row in batch.document:
        for n in np.unique(row[row > 0]):
          if n > 4:
            out.setdefault(int(n), []).append(int((row == n).sum()))
    return out
  alone = lengths_in(dataclasses.replace(CONFIG, stages=(Stage(),)))
  stages = (Stage('train', 1), Stage(mix={'short': 2, 'train': 1}))
  mixed = lengths_in(dataclasses.replace(CONFIG, stages=stages))
  assert set(alone) == set(mixed)
  for number, lengths in mixed.items():
    assert len(lengths) >= 3 and lengths == alone[number][:len(lengths)]
  assert any(len(set(lengths)) > 1 for lengths in mixed.values())


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
    ({'batch_size': 3, 'process_count': 2}, 'train.batch_size=3 does not divide among 2'),
    ({'vocab': dataclasses.replace(VOCAB, codec='x')}, 'written with vocabulary .* is in use'),
    ({'config': DataConfig(stages=(Stage('dev', 0),))}, "no split 'dev'"),
    ({'config': DataConfig(stages=(Stage(mix={'train': 1, 'dev': 1}),))}, "no split 'dev'"),
    ({'config': DataConfig(stages=(Stage(mix={'train': 1, 'heldout_b': 1}),))}, 'is held out'),
    ({'config': DataConfig(stages=(Stage('heldout', 0),))}, 'is held out'),
    ({'data_dir': '/nowhere'}, 'no prepared data in /nowhere'),
])
def test_what_cannot_work_is_one_sentence(data, change, sentence):
  settings = {'data_dir': data, 'config': CONFIG, 'batch_size': 4, 'seed': 0, 'vocab': VOCAB}
  with pytest.raises(UserError, match=sentence):
    Loader(**{**settings, **change})


def test_a_split_without_rows_is_rejected(tmp_path):
  empty = write_set(tmp_path / 'd', {'train': 0, 'short': 1})
  with pytest.raises(UserError, match="split 'train'.*no rows"):
    Loader(empty, CONFIG, 4, 0, VOCAB)
