"""The benchmark of generation runs, tiny: both sides choose the same tokens."""

import json

import pytest

from benchmarks import common, documents, generate
from tests.conftest import QUICK

VOCAB = documents.VOCABULARIES['tiny']


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """The sides get a machine's CPU, not eight virtual ones, and compile quickly."""
  monkeypatch.setenv('XLA_FLAGS', QUICK)


def test_the_conversation_is_the_one_that_is_described():
  shape = generate.Shape()
  assert shape.tokens == 1000
  assert shape.begin(shape.rounds) == 799
  assert shape.blocks(0) == [(62, 26)]
  assert sum(masks for _, masks in shape.blocks(18)) == 199
  steps = shape.steps(10)
  assert steps[:2] == [('text', 61), ('span', 88)] and steps[-1] == ('span', 999)
  assert sum(kind == 'text' for kind, _ in steps) == 19 + 18 * 13
  assert sum(kind == 'span' for kind, _ in steps) == 10 * (18 + 8)
  # A block of fewer masks than steps takes no empty steps.
  assert len(generate.Shape(last=4).blocks(18)) == 1
  assert sum(kind == 'span' for kind, _ in generate.Shape(last=4).steps(10)) == 183


def test_samples_are_integrated_over_all_lengths():
  sampled = {'text': [(10, 1.0, None), (20, 2.0, None)], 'span': [(10, 5.0, None)]}
  steps = [('text', 10), ('text', 15), ('text', 20), ('span', 10), ('span', 10)]
  assert generate.integrate(sampled, steps) == pytest.approx(1 + 1.5 + 2 + 5 + 5)


def test_other_tokens_stop_the_benchmark_unless_they_are_near_ties():
  ours = [5, 6, 7, 8]
  same = {'ids': [5, 6, 99, 8], 'gaps': [0.5, 0.4, 0.3]}
  assert generate.compare(ours, same, 1, 99, 'here') == {'equal': 2, 'parted': None, 'gap': 0.3}
  other = {'ids': [5, 6, 9, 8], 'gaps': [0.5, 0.4, 0.3]}
  with pytest.raises(generate.Different, match='here: at token 2 ours is 7, torch has 9'):
    generate.compare(ours, other, 1, 99, 'here')
  tie = {'ids': [5, 6, 9, 8], 'gaps': [0.5, 1e-6, 0.3]}
  assert generate.compare(ours, tie, 1, 99, 'here')['parted'] == 2


@pytest.mark.parametrize('guided', ['0', pytest.param('1', marks=pytest.mark.slow)])
def test_both_sides_say_the_same(tmp_path, capsys, guided):
  pytest.importorskip('torch')
  pytest.importorskip('transformers')
  file = tmp_path / 'generate.json'
  generate.main(['--quick', '--guidance', guided, '--json', str(file)])
  found, = json.loads(file.read_text())['vocabularies']
  case, = found['cases']
  assert case['check']['equal'] == 28 and case['check']['parted'] is None  # two rounds in full
  for batches in case['ours'].values():
    for made in batches.values():
      assert [len(ids) for ids in made['ids']] == [found['tokens']] * len(made['ids'])
      assert [turn['compiled'] for turn in made['turns']] == [0, 0]
  assert set(case['ours']) == ({'published', 'begin'} if guided == '1' else {'published'})
  shape = generate.Shape(**found['shape'])
  ids = case['ours']['published']['1']['ids'][0]
  begins = [shape.begin(i) for i in range(shape.rounds + 1)]
  assert [i for i in range(len(ids)) if ids[i] == VOCAB.begin_of_audio] == begins
  assert [VOCAB.is_audio(i) for i in ids[begins[-1] + 1:]] == [True] * shape.last
  live = found['live']
  assert live['1 x 4096']['cache_bytes'] == 4 * live['1 x 1024']['cache_bytes']
  printed = capsys.readouterr().out
  assert 'first block' in printed and max(map(len, printed.split('\n'))) <= common.WIDTH
