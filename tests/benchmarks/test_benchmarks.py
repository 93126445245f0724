"""The benchmarks run, tiny: what they compare is the same work, and their files say so."""

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import (
    common, documents, gradient_variance, loader as loader_benchmark, prepare, train_step)
from tests import small_run
from tests.conftest import QUICK
from ttt_jax import config as config_lib
from ttt_jax.tokens.batch import split_documents

VOCAB = documents.VOCABULARIES['8k']


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """The sides are processes of their own and get a machine's CPU, not eight virtual ones."""
  monkeypatch.setenv('XLA_FLAGS', QUICK)


def test_vocabularies_have_the_sizes_they_are_named_for():
  assert documents.VOCABULARIES['168k'].size == 168_072
  assert VOCAB.size == 8_192


def test_lengths_are_those_of_speech():
  drawn = documents.lengths('speech', 20_000, 2048, np.random.default_rng(0))
  assert drawn.min() == 150 and drawn.max() == 2048
  assert abs(drawn.mean() - 700) < 15


@pytest.mark.parametrize('task', documents.SHARES)
@pytest.mark.parametrize('length', [90, 700, 2048])
def test_a_document_has_its_length_and_the_real_layout(task, length):
  token, supervised = documents.document(3, task, length, VOCAB).example
  assert len(token) == length
  assert token.max() < VOCAB.size
  answer = token[supervised > 0]
  assert answer[-2] == VOCAB.im_end
  assert np.count_nonzero(answer == VOCAB.begin_of_quad) == 1
  # Chunks of 13 text tokens and 26 codes, each with a begin and an end token.
  begins = np.flatnonzero(answer == VOCAB.begin_of_audio)
  assert np.array_equal(begins, 13 + 41 * np.arange(len(begins)))
  assert not (token == VOCAB.mask).any()
  if length == 2048:
    assert len(begins) > 5
    assert 0.4 < np.mean(VOCAB.is_audio(token)) < 0.9


def test_full_rows_have_no_padding():
  for batch in documents.steps('full', VOCAB, 2, 2, 300, seed=1):
    assert batch.token.shape == (2, 300)
    assert (batch.document > 0).all()
    assert all(len(np.unique(row)) == 1 for row in batch.document)


def test_packed_rows_hold_whole_documents_once():
  seen = []
  for batch in documents.steps('speech', VOCAB, 2, 2, 512, seed=1):
    for r in range(2):
      row = type(batch)(*(x[r] for x in batch))
      seen += [number for number, *_ in split_documents(row)]
    assert np.mean(batch.document > 0) > 0.9
  assert len(seen) == len(set(seen)) >= 4


def test_a_first_step_that_differs_stops_the_benchmark():
  same = {'loss': 10.0, 'grad_norm': 2.0}
  assert train_step.check_agreement(same, same) == {'loss': 0, 'grad_norm': 0}
  with pytest.raises(train_step.Disagreement, match='loss of the first step: ours 10.0'):
    train_step.check_agreement(same, {'loss': 10.01, 'grad_norm': 2.0})
  with pytest.raises(train_step.Disagreement, match='grad_norm'):
    train_step.check_agreement({'loss': 10.0, 'grad_norm': float('nan')}, same)


def test_a_side_that_dies_says_so():
  with common.Side('benchmarks.our_side', 'serve', 'nowhere', '1', threads=1) as side:
    with pytest.raises(common.SideFailed, match='exit code 1'):
      side.ask(do='about')


def test_tables_line_up():
  text = common.table(('what', 'a'), [('x', '10'), ('longer', '1.25')])
  assert text.split('\n') == ['what       a', '------------', 'x         10', 'longer  1.25']


@pytest.mark.slow
def test_the_variance_of_the_gradient_is_measured(small_config, tmp_path):
  """Weights from counts are less noisy, and the mean gradient stays where it is."""
  config = small_run.replace(small_config, 'objective', mask_floor=0.01, banom=0.0, ppm=0.0)
  config_lib.save(config, tmp_path)
  found = gradient_variance.measure(gradient_variance.arguments([
      '--workdir', str(tmp_path), '--init', '--draws', '400', '--batch', '3', '--visits', '4',
      '--only', 'uniform', 'count', 'stratified', 'mirror draws']))
  variants = found['variants']
  assert variants['count']['variance'] < variants['uniform']['variance']
  assert variants['mirror draws']['passes'] == 2 and variants['stratified']['visits'] == 4
  assert all(one['shift'] < 1.5 for one in variants.values())


@pytest.mark.slow  # the measured step: tests/train
def test_ours_alone_by_piece(tmp_path, capsys):
  file = tmp_path / 'alone.json'
  train_step.main(['--against', 'none', '--quick', '--rows', 'speech', '--repetitions', '1',
                   '--set', 'model.num_layers=1', '--json', str(file)])
  case, = json.loads(file.read_text())['cases']
  assert case['config']['model']['num_layers'] == 1
  assert len(case['steps']) == 1
  assert {'noise', 'all gradients', 'optimizer'} <= set(case['pieces'])
  printed = capsys.readouterr().out
  assert 'useful tokens / s' in printed
  assert max(map(len, printed.split('\n'))) <= common.WIDTH


@pytest.mark.slow  # 12 MB of records; several workers in the fast suite: tests/data/prepare
def test_prepare_is_measured_with_its_workers(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(prepare, '_LINES', 200)
  monkeypatch.setattr(prepare, '_ranks', lambda: '')
  prepare.main(['--gigabytes', '0.012', '--workers', '2', '--json', str(tmp_path / 'found.json')])
  small, large = json.loads((tmp_path / 'found.json').read_text())['runs']
  assert large['documents'] > 2 * small['documents'] and large['tokens'] > 10**6
  assert large['worker_bytes'] > 2**24 and small['main_bytes'] > 2**24
  assert not small['worker_bytes']  # so small a set stays in one process
  printed = capsys.readouterr().out.splitlines()
  assert printed[1].startswith('corpus') and all(len(line) <= 80 for line in printed[1:])


def test_the_loader_is_measured_on_full_rows(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(loader_benchmark, 'POOL', 60)
  one = dict([next(iter(loader_benchmark.COLD.items()))])
  monkeypatch.setattr(loader_benchmark, 'COLD', one)
  monkeypatch.setattr(loader_benchmark, 'CASES', {'warm': ('mix of 3', 0.0, 2)})
  file = tmp_path / 'loader.json'
  loader_benchmark.main(['--tokens', '600000', '--batches', '2', '--repetitions', '1',
                         '--json', str(file)])
  found = json.loads(file.read_text())
  assert {case['tokens_per_second'] > 0 for case in found['cases'].values()} == {True}
  assert all(split['used'] > 0.95 for split in found['splits'].values())
  assert found['cases']['warm']['used'] > 0.9
  assert found['peak_bytes']['large']['after all'] > 0
  printed = capsys.readouterr().out
  assert 'M tokens/s' in printed and max(map(len, printed.split('\n'))) <= common.WIDTH


def test_dense_mask_is_the_staircase():
  torch = pytest.importorskip('torch')
  from benchmarks import torch_baseline
  from ttt_jax.model import staircase
  from ttt_jax.tokens.batch import make_row, stack
  example = documents.document(1, 'asr', 100, VOCAB).example
  row = stack([make_row(VOCAB, [(1, *example)], 120)])
  k_start, k_end = (np.asarray(x)[0][:, None] for x in staircase.key_ranges(row))
  keys = np.arange(120)
  expected = (keys >= k_start) & (keys < k_end)
  expected |= np.eye(120, dtype=bool) & (row.document[0] == 0)[:, None]
  mask = torch_baseline.dense_mask(torch.tensor(row.span), torch.tensor(row.document > 0))
  assert np.array_equal(mask[0, 0].numpy() == 0, expected)
  assert (k_end[:100] > k_start[:100]).all()


def test_both_sides_do_the_same_work(tmp_path, capsys):
  pytest.importorskip('torch')
  pytest.importorskip('transformers')
  file = tmp_path / 'both.json'
  train_step.main(['--against', 'torch', '--quick', '--rows', 'speech', '--repetitions', '2',
                   '--json', str(file)])
  found = json.loads(file.read_text())
  assert found['machine']['cpu'] and found['machine']['threads'] == 2
  case, = found['cases']
  assert case['first_step_difference']['loss'] <= 1e-4
  # Losses after updates agree only if gradients, clipping, schedule and AdamW do.
  assert case['summary']['loss_difference'] <= 1e-4
  assert case['summary']['ratio']['useful_tokens_per_second'] > 0
  for side in ('torch', 'ours'):
    assert [step['peak_bytes'] > 0 for step in case['steps'][side]] == [True, True]
  printed = capsys.readouterr().out
  assert 'peak memory' in printed and max(map(len, printed.split('\n'))) <= common.WIDTH


def test_the_script_runs_from_anywhere(tmp_path):
  done = subprocess.run([sys.executable, train_step.__file__, '--help'], cwd=tmp_path, text=True,
                        capture_output=True, check=False)
  assert done.returncode == 0 and '--against' in done.stdout
