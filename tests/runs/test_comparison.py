"""Groups of a sweep: their members, scores side by side, the tables and the files."""

import csv
import json
import re

import numpy as np
import pytest
import soundfile

from tests import small_run
from ttt_jax import config as config_lib
from ttt_jax.errors import UserError
from ttt_jax.evaluate import items
from ttt_jax.runs import comparison, sweep
from ttt_jax.runs.report import page
from ttt_jax.train import metrics

METHODS = {'ttt': {}, 'ar': {'objective.mode': 'ar'}, 'no_banom': {'objective.banom': 0.0}}
PUBLISHED = {'columns': ['LLaMA-Q'], 'source': 'a paper', 'rows': {'ttt': [34.7], 'ar': [10.0]}}


@pytest.fixture
def study(tmp_path):
  """Three methods, two seeds: 'ar' is wrong on half of the records, 'ttt' on none; seed 1 of
  'no_banom' failed."""
  config_lib.save(small_run.config(), tmp_path / 'base')
  wanted = sweep.Sweep(sweep.named(METHODS, sweep.seeds(2)), True, 'ttt', PUBLISHED)
  found = sweep.members(wanted, tmp_path / 'base' / 'config.json', {})
  folder = tmp_path / 's'
  sweep.write_sweep(folder, wanted, found, {'command': 'ttt-jax sweep', 'hardware': '2 cores'})
  for number, member in enumerate(found):
    place = member.folder(folder)
    if member.name == 'no_banom,seed=1':
      sweep.write_state(place, state=sweep.FAILED, error='no <data> here')
      continue
    wrong = (lambda i: i % 2) if member.name.startswith('ar') else (lambda i: 0)
    items.write(place, [
        {'task': 'tts', 'id': f'r{i}', 'text': '1 2', 'reference': '1 2', 'heard': {},
         'scores': {'tts_wer_generated': [2 * wrong(i), 4], 'own': [number, 1]}}
        for i in range(20)])
    name = 'audio_nll' if member.name.startswith('ar') else 'audio_bound'
    (place / 'evaluation.json').write_text(json.dumps(
        {'step': 4, 'summary': {name: 2.0 + number}, 'seconds': 3.0}))
    sweep.write_state(place, state=sweep.DONE, started=10.0, ended=20.0 + number)
  return folder


def test_methods_by_seeds_have_all_methods_of_a_seed_first():
  found = sweep.named(METHODS, sweep.seeds(2))
  assert list(found) == ['ttt,seed=0', 'ar,seed=0', 'no_banom,seed=0', 'ttt,seed=1', 'ar,seed=1',
                         'no_banom,seed=1']
  assert found['ar,seed=1'] == {'objective.mode': 'ar', 'seed': 1}
  assert [sweep.group_of(name, point) for name, point in found.items()] == list(METHODS) * 2
  assert sweep.group_of('learning_rate=0.1,seed=3', {'seed': 3, 'x': 1}) == 'learning_rate=0.1'
  assert sweep.group_of('seed=3', {'seed': 3}) == 'base' and sweep.group_of('a', {}) == 'a'


def test_scores_of_groups_and_their_differences(study):
  found = comparison.compare(study, draws=300)
  assert [metric.name for metric in found.metrics] == ['tts_wer_generated', 'audio_loss', 'own']
  ar = found.cells['ar', 'tts_wer_generated']
  assert ar.estimate.mean == pytest.approx(0.25) and ar.items == 20 and len(ar.runs) == 2
  assert ar.difference.mean == pytest.approx(0.25) and ar.difference.clear
  assert found.cells['ttt', 'tts_wer_generated'].difference is None
  assert found.cells['ttt', 'audio_loss'].is_bound and not found.cells['ar', 'audio_loss'].is_bound
  assert found.cells['ar', 'audio_loss'].estimate.mean == pytest.approx(2 + (1 + 4) / 2)
  assert len(found.cells['no_banom', 'own'].runs) == 1
  assert [run.name for run in found.missing] == ['no_banom,seed=1'] and found.wall is None


def test_the_table_has_80_columns_and_names_what_failed(study):
  text = comparison.table(comparison.compare(study, draws=300))
  assert max(map(len, text.splitlines())) <= 80
  ar, = [line for line in text.splitlines() if line.startswith('ar ')]
  assert ar.split() == ['ar', '25.0', '±0.00*', '4.50', '±1.50']
  assert 'no_banom,seed=1: failed: no <data> here' in text and '* differs from ttt' in text


def test_the_page(study):
  """Tables, plots, the published figures and a player per run; nothing of a run becomes HTML."""
  place = study / 'ar,seed=0'
  lines = items.read(place)
  lines[0] |= {'codes': 3, 'name': 'r0', 'text': '<script>'}
  lines[1] |= {'codes': 3, 'name': '../../../x'}
  items.write(place, lines)
  (place / 'samples').mkdir()
  soundfile.write(place / 'samples' / 'r0.generated.wav', np.zeros(200, np.float32), 8000)
  for run, loss in (('ar,seed=0', 3.0), ('ar,seed=1', 2.0)):
    with metrics.Writer(study / run, tensorboard=False) as writer:
      for step in range(1, 5):
        writer.write(step, {'loss': loss, 'text_nll': loss / step})
  text = page.report(study).read_text(encoding='utf-8')
  plain = ' '.join(re.sub(r'<[^>]+>', ' ', re.sub(r'base64,[^"]*', '', text)).split())
  assert 'no_banom,seed=1 has no scores: failed: no &lt;data&gt; here' in plain
  assert '25.0 ± 0.00 +25.0 [' in plain and '34.70 0.00' in plain and 'ttt-jax sweep' in plain
  assert text.count('<svg') == 2 + 1 and text.count('<audio') == 1 and 'audio/flac' in text
  assert '<script' not in text and '&lt;script' in text


def test_the_files(study):
  found = comparison.compare(study, draws=300)
  comparison.write(study, found)
  rows = list(csv.DictReader((study / comparison.CSV).open()))
  assert len(rows) == 9
  row, = [row for row in rows if (row['group'], row['metric']) == ('ar', 'tts_wer_generated')]
  wanted = {'unit': 'fraction', 'kind': 'exact', 'runs': '2', 'records': '20', 'mean': '0.25',
            'difference': '0.25'}
  assert wanted.items() <= row.items()
  result = json.loads((study / comparison.JSON).read_text())
  assert result['command'] == 'ttt-jax sweep' and result['reference'] == 'ttt'
  assert result['groups']['ar']['scores']['tts_wer_generated']['runs'] == [0.25, 0.25]
  assert result['groups']['no_banom']['members']['no_banom,seed=1'] == 'failed'
  (study / comparison.CSV).write_text('sku,price\n')
  with pytest.raises(UserError, match='was not written by ttt-jax'):
    comparison.write(study, found)


@pytest.mark.parametrize('name', ['ar,seed=0', 'ttt,seed=1'])
def test_runs_on_different_records_are_not_compared(study, name):
  items.write(study / name, items.read(study / name)[1:])
  with pytest.raises(UserError, match=f'{name} and ttt,seed=0 were evaluated on different'):
    comparison.compare(study, draws=10)


@pytest.mark.parametrize('text, expected', [
    ("sweep.Sweep({'a': {}}, reference='b')", "reference is 'b'; it must be one of the groups a"),
    ("sweep.Sweep({'a': {}}, published={'columns': ['x'], 'rows': {'a': [1, 2]}})",
     "it must have 'columns'"),
])
def test_bad_references(tmp_path, text, expected):
  path = tmp_path / 's.py'
  path.write_text(f'from ttt_jax.runs import sweep\n\n\ndef get_sweep():\n  return {text}\n')
  with pytest.raises(UserError, match=expected):
    sweep.load(path)
