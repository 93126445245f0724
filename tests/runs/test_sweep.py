"""Sweeps: what files mean, what is refused, how members run, end, fail and go on, and the table."""

import contextlib
import csv
import html.parser
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests import conftest, small_run
from ttt_jax import config as config_lib
from ttt_jax.cli import main
from ttt_jax.errors import UserError
from ttt_jax.evaluate import summary
from ttt_jax.runs import status, supervisor, sweep, sweep_runner, sweep_table
from ttt_jax.runs.report import page as report
from ttt_jax.train import metrics

RULES = supervisor.Rules(failures=2, wait=0.02, longest_wait=0.05, crashed=0.3)


def write_sweep(tmp_path, body, name='s.py'):
  path = tmp_path / name
  path.write_text('from ttt_jax.runs import sweep\n\n\ndef get_sweep():\n  return ' + body + '\n')
  return path


# -- what a file says ---------------------------------------------------------------


def test_product_zip_and_seeds():
  points = sweep.product({'a': [1, 2]}, sweep.zip_({'b': [3, 4], 'c': ['x', 'y']}), sweep.seeds(2))
  assert len(points) == 8
  assert points[0] == {'a': 1, 'b': 3, 'c': 'x', 'seed': 0}
  assert points[1] == {'a': 1, 'b': 3, 'c': 'x', 'seed': 1}
  assert points[-1] == {'a': 2, 'b': 4, 'c': 'y', 'seed': 1}
  assert sweep.product({'a': [1], 'b': [2, 3]}) == [{'a': 1, 'b': 2}, {'a': 1, 'b': 3}]
  assert sweep.product() == [{}]


def test_names_come_from_what_varies(tmp_path):
  path = write_sweep(tmp_path, "sweep.product({'optimizer.learning_rate': [1e-3, 2e-3], "
                               "'train.steps': [5]}, sweep.seeds(2))")
  assert list(sweep.load(path).members) == [
      'learning_rate=0.001,seed=0', 'learning_rate=0.001,seed=1',
      'learning_rate=0.002,seed=0', 'learning_rate=0.002,seed=1']
  path = write_sweep(tmp_path, "[{'data.path': '/a b/c'}, {'train.init_from': 'x', "
                               "'data.path': 'y'}, {'model.hidden_size': 4, 'data.path': 'z'}]")
  assert list(
      sweep.load(path).members) == ['path=a_b_c', 'path=y,init_from=x', 'path=z,hidden_size=4']
  path = write_sweep(tmp_path, "sweep.product({'train.steps': [1, 2], 'generate.steps': [3, 4]})")
  assert list(sweep.load(path).members)[0] == 'train.steps=1,generate.steps=3'
  assert list(sweep.load(write_sweep(tmp_path, "[{'seed': 1}]")).members) == ['seed=1']
  assert list(sweep.load(write_sweep(tmp_path, '[{}]')).members) == ['base']


@pytest.mark.parametrize('body, expected', [
    ('[]', 'returns no members'),
    ("[{'seed': 1}, {'seed': 1}]", 'two members are named seed=1'),
    ('[3]', 'must return a list of dicts'),
    ("{'a/b': {}}", "'a/b' is not usable as a folder name"),
    ("{'..': {}}", "'..' is not usable as a folder name"),
    ("{'-x': {}}", "'-x' is not usable as a folder name"),
    ("{'a': 3}", 'member a is 3'),
    ("sweep.zip_({'a': [1], 'b': [1, 2]})", 'a with 1, b with 2'),
    ("sweep.product({'a': [1]}, [{'a': 2}])", 'a from two axes'),
    ('(', 'line 5'),
])
def test_bad_sweep_files(tmp_path, body, expected):
  with pytest.raises(UserError, match=re.escape(expected)):
    sweep.load(write_sweep(tmp_path, body))


def test_no_sweep_file(tmp_path):
  with pytest.raises(UserError, match='does not exist'):
    sweep.load(tmp_path / 'none.py')
  (tmp_path / 'empty.py').write_text('')
  with pytest.raises(UserError, match='has no get_sweep'):
    sweep.load(tmp_path / 'empty.py')


@pytest.mark.parametrize('path',
                         sorted((small_run.TOKENS.parents[2] / 'configs/sweeps').glob('*.py')),
                         ids=lambda path: path.stem)
def test_shipped_sweeps_fit_their_config(path):
  wanted = sweep.load(path)
  base = 'paper/mini.py' if path.stem.startswith('paper') else 'demo.py'
  members = sweep.members(wanted, path.parents[1] / base, {})
  assert len({member.name for member in members}) == len(wanted.members) > 1
  assert len({repr(member.config) for member in members}) == len(members)


# -- members ------------------------------------------------------------------------


@pytest.fixture
def config_file(tmp_path):
  config_lib.save(small_run.config(steps=4), tmp_path / 'base')
  return tmp_path / 'base' / 'config.json'


def members(config_file, points, overrides=None):
  named = {f'm{i}': point for i, point in enumerate(points)}
  return sweep.members(sweep.Sweep(named), config_file, overrides or {})


def test_members_share_the_rows_beside_them(config_file):
  first, own = members(config_file, [{'seed': 3}, {'data.path': '/rows'}], {'train.steps': '9'})
  assert first.config.data.path == '../data' and own.config.data.path == '/rows'
  assert first.config.seed == 3 and first.config.train.steps == 9
  assert first.config.name == 'test-m0'
  far, = members(config_file, [{}], {'data.path': '../demo/data'})
  assert far.config.data.path == '../../demo/data'
  fixed, = members(config_file, [{}], {'data.path': '/abs/data'})
  assert fixed.config.data.path == '/abs/data'


@pytest.mark.parametrize('point, expected', [
    ({'model.layer': 3}, 'sweep member m0: config key model.layer is unknown; did you mean '
                         'model.num_layers?'),
    ({'model.num_layers': 'two'}, "sweep member m0: config key model.num_layers is 'two'"),
    ({'data.seq_len': 128}, 'm0 changes data.seq_len, which needs rows of its own'),
    ({'codec.codes': 64}, 'm0 changes codec.codes, which needs rows of its own'),
])
def test_a_bad_member_is_named_before_anything_runs(config_file, point, expected):
  with pytest.raises(UserError, match=re.escape(expected)):
    members(config_file, [point])


def test_a_member_that_trains_differently_on_the_same_rows(config_file):
  members(config_file, [{'data.sst': 0.1}, {'data.shuffle': False}, {'data.threads': 1}])


def test_a_member_begun_with_other_settings_is_refused(config_file, tmp_path):
  wanted = sweep.Sweep({'a': {'seed': 1}})
  sweep.write_sweep(tmp_path / 's', wanted, sweep.members(wanted, config_file, {}))
  sweep.write_sweep(tmp_path / 's', wanted, sweep.members(wanted, config_file, {}))
  # A member of an older version lacks the settings that are newer.
  known = sweep.read_state(tmp_path / 's' / 'a')['settings']
  del known['mesh'], known['train']['tensorboard']
  sweep.write_state(tmp_path / 's' / 'a', settings=known)
  sweep.write_sweep(tmp_path / 's', wanted, sweep.members(wanted, config_file, {}))
  with pytest.raises(UserError, match='started with train.steps=4, but it is 5 now'):
    sweep.write_sweep(tmp_path / 's', wanted,
                      sweep.members(wanted, config_file, {'train.steps': '5'}))
  # Values that are long are not printed whole, twice.
  stages = lambda last: {'a': {'data.stages': [{'steps': 1}] * 20 + [{'steps': last}]}}
  for last, expectation in ((2, contextlib.nullcontext()), (3, pytest.raises(
      UserError, match=r'started with other data\.stages than now; use another --workdir'))):
    longer = sweep.Sweep(stages(last))
    with expectation:
      sweep.write_sweep(tmp_path / 'l', longer, sweep.members(longer, config_file, {}))


# -- the runner, with commands that are quick ---------------------------------------


def settled(config_file, tmp_path, points):
  named = {f'm{i}': point for i, point in enumerate(points)}
  wanted = sweep.Sweep(named)
  found = sweep.members(wanted, config_file, {})
  sweep.write_sweep(tmp_path / 's', wanted, found)
  return tmp_path / 's', found


def drive(runner, each=lambda: None):
  until = time.monotonic() + 120  # a hang, not slowness
  try:
    while (code := runner.poll()) is None:
      assert time.monotonic() < until
      each()
      time.sleep(0.01)
  finally:
    runner.kill()
  return code


def states(folder, found):
  return [sweep.read_state(member.folder(folder))['state'] for member in found]


def test_a_failure_does_not_stop_the_others(config_file, tmp_path):
  folder, found = settled(config_file, tmp_path, [{'seed': i} for i in range(4)])
  script = {'m0': 'exit 0', 'm1': 'echo out of luck; exit 3', 'm2': 'echo "ttt-jax: error: no."; '
            'exit 2', 'm3': 'exit 0'}
  runner = sweep_runner.Runner(folder, found, lambda m: [['bash', '-c', script[m.name]]], 2, RULES)
  assert drive(runner) == 1
  assert states(folder, found) == ['done', 'failed', 'failed', 'done']
  assert [row['error'] for row in sweep_table.rows(folder)] == ['', 'out of luck', 'no.', '']
  table = list(csv.DictReader((folder / 'sweep.csv').open()))
  assert [row['state'] for row in table] == ['done', 'failed', 'failed', 'done']
  assert [row['seed'] for row in table] == ['0', '1', '2', '3']


def test_done_members_are_not_run_again_and_failed_ones_are(config_file, tmp_path):
  folder, found = settled(config_file, tmp_path, [{'seed': i} for i in range(3)])
  mend = tmp_path / 'mended'
  command = lambda m: [['bash', '-c', f'echo {m.name} >> {tmp_path}/ran; '
                        + (f'test -e {mend}' if m.name == 'm1' else 'true')]]
  assert drive(sweep_runner.Runner(folder, found, command, 1, RULES)) == 1
  mend.touch()
  assert drive(sweep_runner.Runner(folder, found, command, 1, RULES)) == 0
  # m1 was tried twice by its supervisor, then once more.
  assert (tmp_path / 'ran').read_text().split() == ['m0', 'm1', 'm1', 'm2', 'm1']
  assert states(folder, found) == ['done', 'done', 'done']


def test_a_chain_of_commands_stops_at_the_first_that_fails(config_file, tmp_path):
  folder, found = settled(config_file, tmp_path, [{'seed': 0}, {'seed': 1}])
  step = lambda m, word, code: [
      'bash', '-c', f'echo {m.name} {word} >> {tmp_path}/ran; exit {code}']
  command = lambda m: [step(m, 'train', 2 if m.name == 'm0' else 0), step(m, 'evaluate', 0)]
  assert drive(sweep_runner.Runner(folder, found, command, 1, RULES)) == 1
  assert (tmp_path / 'ran').read_text().splitlines() == ['m0 train', 'm1 train', 'm1 evaluate']


def test_what_has_ended_is_not_run_again(config_file, tmp_path):
  """Killed at any moment: after nothing, the training, another evaluation, everything."""
  folder, found = settled(config_file, tmp_path, [{'seed': i} for i in range(5)])
  scores = lambda settings: json.dumps({'step': 4, 'summary': {}, 'settings': settings})
  for member in found[1:]:
    (member.folder(folder) / 'status.json').write_text('{"state": "done", "step": 4}')
  other = config_lib.load(config_file, {'evaluate.items': '1'})
  for number, config in ((2, other), (3, found[3].config)):
    (found[number].folder(folder) / 'evaluation.json').write_text(
        scores(summary.settings(config)))
  (found[4].folder(folder) / 'status.json').write_text('{"state": "running", "step": 3}')
  commands = lambda m: [['bash', '-c', f'echo {m.name} {name} >> {tmp_path}/ran'] for name in
                        sweep_runner.unfinished(m.folder(folder), m.config, True)]
  assert drive(sweep_runner.Runner(folder, found, commands, 1, RULES)) == 0
  assert (tmp_path / 'ran').read_text().splitlines() == [
      'm0 train', 'm0 evaluate', 'm1 evaluate', 'm2 evaluate', 'm4 train', 'm4 evaluate']
  assert states(folder, found) == ['done'] * 5


@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 77), (signal.SIGINT, 130)])
def test_asked_to_stop_it_starts_nothing_more(config_file, tmp_path, number, code):
  folder, found = settled(config_file, tmp_path, [{'seed': i} for i in range(3)])
  ready = tmp_path / 'ready'
  name = signal.Signals(number).name
  command = lambda m: [['bash', '-c', f'trap "exit {code}" {name}; touch {ready}; '
                        'while true; do sleep 0.05; done']]
  runner = sweep_runner.Runner(folder, found, command, 1, RULES)
  asked = []

  def ask():
    if ready.exists() and not asked:
      asked.append(1)
      runner.forward_signal(number)

  assert drive(runner, ask) == code
  assert states(folder, found) == ['stopped', 'waiting', 'waiting']


def test_members_at_a_time_have_their_own_gpus():
  assert sweep_runner.gpu_shares(['0', '1', '2', '3', '4'], 2) == [
      {'CUDA_VISIBLE_DEVICES': '0,1'}, {'CUDA_VISIBLE_DEVICES': '2,3'}]
  assert sweep_runner.gpu_shares([], 3) == []


def test_members_at_a_time_have_their_share_of_the_cores():
  assert sweep_runner.cpu_shares(8, 3) == [{'NPROC': '2', 'OMP_NUM_THREADS': '2'}] * 3
  assert sweep_runner.cpu_shares(2, 4) == [{'NPROC': '1', 'OMP_NUM_THREADS': '1'}] * 4
  assert sweep_runner.cpu_shares(8, 1) == []


def test_each_running_member_keeps_its_slot(config_file, tmp_path):
  folder, found = settled(config_file, tmp_path, [{'seed': i} for i in range(4)])
  command = lambda m: [['bash', '-c', f'echo $SLOT >> {tmp_path}/slots; '
                        f'mkdir {tmp_path}/slot$SLOT && sleep 0.2 && rmdir {tmp_path}/slot$SLOT']]
  runner = sweep_runner.Runner(folder, found, command, 2, RULES,
                            environments=[{'SLOT': '0'}, {'SLOT': '1'}])
  assert drive(runner) == 0  # mkdir fails where two share a slot
  assert sorted(set((tmp_path / 'slots').read_text().split())) == ['0', '1']


# -- the table and the page ---------------------------------------------------------


def fill(folder, found):
  """What members leave behind: two that trained, one that failed at once."""
  for number, member in enumerate(found[:2]):
    with metrics.Writer(member.folder(folder), tensorboard=False) as writer:
      for step in range(1, 41):
        writer.write(step, {'loss': 4 / step + number, 'text_nll': (2 - number) / step,
                            'masked_nll': (3 + number) / step,
                            'useful_tokens_per_second': 100.0 + number})
      writer.write(40, {'eval/text_nll': 0.5 + number})
    sweep.write_state(member.folder(folder), state=sweep.DONE)
  (found[0].folder(folder) / 'evaluation.json').write_text(
      json.dumps({'summary': {'asr_wer': 0.25, 'note': 'x'}}))
  sweep.write_state(found[2].folder(folder), state=sweep.FAILED, error='no <data> here')


def test_the_table_has_a_line_per_member(config_file, tmp_path):
  folder, found = settled(config_file, tmp_path, [{'seed': i} for i in range(3)])
  fill(folder, found)
  path = sweep_table.write_table(folder)
  rows = list(csv.DictReader(path.open()))
  assert [row['member'] for row in rows] == ['m0', 'm1', 'm2']
  assert float(rows[0]['loss']) == pytest.approx(sum(4 / s for s in range(36, 41)) / 5)
  assert rows[1]['eval/text_nll'] == '1.5' and rows[0]['score/asr_wer'] == '0.25'
  assert rows[2]['loss'] == '' and rows[2]['error'] == 'no <data> here'
  assert not list(folder.glob('*.partial'))


class Page(html.parser.HTMLParser):

  def __init__(self, text):
    super().__init__()
    self.tags, self.words = [], []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)

  def handle_data(self, data):
    self.words.append(data)


def test_the_page_of_a_sweep(config_file, tmp_path):
  folder, found = settled(config_file, tmp_path, [{'seed': i} for i in range(3)])
  fill(folder, found)
  text = report.report(folder).read_text(encoding='utf-8')
  page = Page(text)
  assert page.tags.count('img') == 3 and page.tags.count('table') == 1
  words = ' '.join(page.words)
  assert 'm2 failed: no <data> here' in words and '2 done, 1 failed' in words
  assert '$' not in re.sub(r'base64,[^"]*', '', text)
  assert words.count('●') == 1 + 3  # the legend's and one for each kind of loss
  assert (folder / 'report' / 'sweep_loss.png').is_file()


def test_nothing_of_a_member_becomes_html(config_file, tmp_path):
  evil = '<script>alert(1)</script>'
  folder, (one, other) = settled(config_file, tmp_path, [{'seed': 0}, {'seed': 1}])
  sweep.write_state(one.folder(folder), state=evil, error=evil)
  sweep.write_state(other.folder(folder), state=sweep.FAILED, error=evil)
  (one.folder(folder) / 'evaluation.json').write_text(json.dumps({'summary': {evil: 1.5}}))
  text = report.report(folder).read_text(encoding='utf-8')
  assert '<script' not in text and text.count('&lt;script') >= 4


def test_the_page_of_a_sweep_that_has_not_begun(config_file, tmp_path):
  folder, _ = settled(config_file, tmp_path, [{'seed': 0}])
  assert 'There are no metrics yet' in report.report(folder).read_text(encoding='utf-8')


# -- the verb -----------------------------------------------------------------------


def test_mistakes_at_sweep(capsys, tmp_path, config_file, monkeypatch):
  path = write_sweep(tmp_path, 'sweep.seeds(2)')
  base = ['sweep', '--workdir', str(tmp_path / 'w'), '--config', str(config_file), '--sweep',
          str(path)]
  for words, expected in [
      (['--jobs', '0'], '--jobs is 0'),
      (['--member', '2'], '--member is 2, but'),
      (['--sbatch=-N1'], 'no effect without --launcher slurm'),
      (['--launcher', 'cloud'], 'invalid choice'),
      (['--config.model.layer=2'], 'did you mean model.num_layers?')]:
    assert main.main([*base, *words]) == 2
    assert expected in capsys.readouterr().err
  monkeypatch.setenv('PATH', '')
  assert main.main([*base, '--launcher', 'slurm']) == 2
  assert 'this machine has no sbatch' in capsys.readouterr().err
  assert not (tmp_path / 'w').exists()


def test_a_sweep_from_the_command_line(tmp_path):
  """Rows are prepared once, one member trains, one fails; again, only the latter is tried."""
  config_lib.save(small_run.config(steps=3), tmp_path / 'base')
  path = write_sweep(tmp_path, "{'good': {'seed': 1}, 'bad': {'train.init_from': "
                               f"'{tmp_path}/start'}}}}")
  words = [sys.executable, '-m', 'ttt_jax.cli', 'sweep', '--workdir', str(tmp_path / 'w'),
           '--config', str(tmp_path / 'base' / 'config.json'), '--sweep', str(path)]
  env = os.environ | {'XLA_FLAGS': conftest.QUICK, 'TTT_JAX_CACHE': str(tmp_path / 'cache')}
  first = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
  assert first.returncode == 1, first.stderr
  assert (tmp_path / 'w/data/manifest.json').is_file()
  assert 'bad failed: ' in first.stderr and '1 done, 1 failed' in first.stdout
  rows = sweep_table.rows(tmp_path / 'w')
  assert [row['state'] for row in rows] == ['done', 'failed']
  assert rows[0]['step'] == 3 and 'start' in rows[1]['error']
  seen = (tmp_path / 'w/good/metrics.jsonl').read_bytes()
  second = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
  assert second.returncode == 1 and 'Preparing' not in second.stderr, second.stderr
  assert (tmp_path / 'w/good/metrics.jsonl').read_bytes() == seen
  assert 'w: a sweep of 2 members, 1 done, 1 failed' in status.status(tmp_path / 'w')


@pytest.mark.slow
def test_a_comparison_is_killed_and_resumed(tmp_path, prepared):
  """Two methods and two seeds, two at a time; all processes are killed in the middle."""
  base = small_run.replace(small_run.config(steps=4), 'data', path=str(prepared))
  config_lib.save(base, tmp_path / 'base')
  path = write_sweep(tmp_path, "sweep.Sweep(sweep.named({'ttt': {}, 'ar': {'objective.mode': 'ar'}}"
                               ", sweep.seeds(2)), evaluate=True, reference='ttt')")
  folder = tmp_path / 'w'
  words = [sys.executable, '-m', 'ttt_jax.cli', 'sweep', '--workdir', str(folder), '--config',
           str(tmp_path / 'base' / 'config.json'), '--sweep', str(path), '--jobs', '2']
  env = os.environ | {'XLA_FLAGS': conftest.QUICK, 'TTT_JAX_CACHE': str(tmp_path / 'cache')}
  names = ['ttt,seed=0', 'ar,seed=0', 'ttt,seed=1', 'ar,seed=1']
  state = lambda name: sweep.read_state(folder / name).get('state')
  with subprocess.Popen(words, env=env, start_new_session=True) as first:
    until = time.monotonic() + 600
    while not any(state(name) == sweep.DONE for name in names):
      assert first.poll() is None and time.monotonic() < until
      time.sleep(0.1)
    first.kill()
  ended = {name: (folder / name / 'items.jsonl').stat().st_mtime_ns
           for name in names if state(name) == sweep.DONE}
  assert 0 < len(ended) < 4
  second = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
  assert second.returncode == 0, second.stderr
  assert [state(name) for name in names] == [sweep.DONE] * 4
  assert {name: (folder / name / 'items.jsonl').stat().st_mtime_ns for name in ended} == ended
  rows = list(csv.DictReader((folder / 'comparison.csv').open()))
  assert {(row['group'], row['runs']) for row in rows} == {('ttt', '2'), ('ar', '2')}
  assert 'Means of 2 runs' in second.stdout and 'difference' in (folder / 'report.html').read_text()
  (folder / 'comparison.csv').unlink()
  assert main.main(['sweep', '--workdir', str(folder), '--collect']) == 0
  assert (folder / 'comparison.csv').is_file()
