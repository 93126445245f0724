"""`ttt-jax status`: one screen, whatever a run has left behind so far."""

import json
import os
import socket
import subprocess
import sys

import pytest

from tests import small_run
from ttt_jax import config as config_lib
from ttt_jax.cli import main
from ttt_jax.errors import UserError
from ttt_jax.runs import status, sweep
from ttt_jax.train import metrics, status_file

NOW = 2_000_000_000.0


def gone_pid():
  """A process id that was somebody's a moment ago."""
  process = subprocess.Popen([sys.executable, '-c', ''])
  process.wait()
  return process.pid


def write(folder, **changes):
  """status.json as a run in its middle writes it."""
  folder.mkdir(parents=True, exist_ok=True)
  values = {'state': 'running', 'step': 1240, 'steps': 3100, 'time': NOW - 4, 'rate': 3.6,
            'last_good_checkpoint': 1000, 'last_good_time': NOW - 65.0,
            'time_split': {'start': 6.0, 'compile': 24.0, 'data': 3.0, 'step': 300.0,
                           'checkpoint': 3.0, 'eval': 0.0, 'other': 1.0},
            'errors': [], 'pid': os.getpid(), 'host': socket.gethostname(),
            'process_count': 2} | changes
  (folder / 'status.json').write_text(json.dumps(values))


def screen(folder):
  text = status.status(folder, lambda: NOW)
  assert max(map(len, text.splitlines())) <= status.WIDTH
  return text


def write_lines(folder, steps=40, pace=0.25):
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / metrics.FILE).open('w') as file:
    for step in range(1, steps + 1):
      line = {'step': step, 'time': NOW - (steps - step) * pace, 'loss': 8 - step / 10, 'ar': 1.0,
              'diffusion': 2.0, 'steps_per_second': 9.0, 'time/total': 100.0, 'time/step': 0.75,
              'time/compile': 0.25}
      file.write(json.dumps(line) + '\n')


def test_a_run_in_its_middle(tmp_path):
  write(tmp_path / 'demo')
  text = screen(tmp_path / 'demo')
  assert text.startswith(f'demo: training on {socket.gethostname()}, 2 processes\n')
  for line in ('  step        1,240 of 3,100 (40 %), 3.6 steps/s, 8 min 37 s left\n',
               '  updated     4 s ago\n', '  checkpoint  step 1,000, 1 min 05 s ago\n',
               '  time        5 min 37 s: step 89 %, compile 7 %, start 2 %, data 1 %\n',
               '  errors      none\n'):
    assert line in text, text


def test_goodput_step_times_and_the_slowest_host(tmp_path):
  write(tmp_path, began=NOW - 354, earlier_seconds=150.0, starts=3, hosts=['gpu-01', 'gpu-02'])
  write_lines(tmp_path)
  with (tmp_path / metrics.FILE).open('a') as file:
    file.write(json.dumps({'step': 41, 'step_seconds/p50': 0.0381, 'step_seconds/p90': 0.9999,
                           'step_seconds/p99': 12.345, 'hosts/slowest': 1,
                           'hosts/slowest_own': 0.93, 'hosts/slowest_data': 0.9,
                           'hosts/median_own': 0.05}) + '\n')
  text = screen(tmp_path)
  for line in ('  goodput     60 % of 8 min 20 s since the first start, 3 starts\n',
               '  step time   p50 38.1 ms, p90 1 s, p99 12.3 s (of at most the latest 1,000)\n',
               '  slowest     process 1 on gpu-02: 930 ms of own work per step'):
    assert line in text, text
  assert 'profile' not in text
  trace = tmp_path / 'profile' / 'plugins' / 'profile' / '2026_11_26_10_00_00'
  trace.mkdir(parents=True)
  assert 'profile' not in screen(tmp_path)  # nothing in it
  (trace / 'vm.xplane.pb').touch()
  assert '  profile     2026_11_26_10_00_00; open it with xprof' in screen(tmp_path)


@pytest.mark.parametrize('state, resumed, seconds, starts', [
    ('running', True, 130, 3), ('running', False, 130, 3), ('preempted', True, 130, 3),
    ('failed', False, 130, 3),  # it crashed before its first checkpoint
    ('done', True, 40, 3), ('interrupted', True, 40, 3), ('done', False, 0, 1)])
def test_the_life_of_a_run(tmp_path, monkeypatch, state, resumed, seconds, starts):
  """A start of 10 s that ended 90 s before this one."""
  monkeypatch.setattr(status_file.time, 'time', lambda: NOW)
  write(tmp_path, state=state, began=NOW - 100, time=NOW - 90, earlier_seconds=30.0, starts=2)
  found = status_file.Status(tmp_path, 10, 0, 2)
  found.begin(resumed, ['a', 'b'])
  monkeypatch.setattr(status_file.time, 'time', lambda: NOW + 10)
  found.update(state='running')
  values = status_file.read(tmp_path)
  assert (values['earlier_seconds'], values['starts'], values['hosts']) == (
      seconds, starts, ['a', 'b'])
  assert status_file.life(values) == seconds + 10
  assert found.goodput(7.0) == pytest.approx(7 / (seconds + 10))


def test_rate_and_losses_come_from_the_log(tmp_path):
  write(tmp_path, rate=77.0)
  write_lines(tmp_path)
  text = screen(tmp_path)
  assert ' 4 steps/s' in text
  assert 'losses      loss 4.95, ar 1, diffusion 2 (mean of 20 log lines)' in text


def test_a_pause_does_not_count_as_slow(tmp_path):
  write_lines(tmp_path)
  path = tmp_path / metrics.FILE
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  for line in lines[:30]:
    line['time'] -= 3600
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  write(tmp_path)
  assert ' 4 steps/s' in screen(tmp_path)


@pytest.mark.parametrize('changes, expected', [
    ({'time': NOW - 720, 'pid': 'gone'}, 'no update for 12 min 00 s and process'),
    ({'pid': 'gone'}, 'killed while training'),
    ({'time': NOW - 720}, 'it may be compiling, or stuck'),
    ({'time': NOW - 720, 'host': 'n7'}, 'on n7; check that machine'),
    ({'time': NOW - 59}, 'updated     59 s ago'),
    ({'time': NOW - 100, 'rate': 0.02}, 'updated     1 min 40 s ago'),  # 50 s a step: no wonder
    ({'rate': 0.02}, '50 s/step'),
    ({'state': 'done', 'step': 3100, 'time': NOW - 7200}, 'ended 2 h 00 min ago'),
    ({'state': 'preempted'}, 'preempted after saving'),
    ({'state': 'interrupted'}, 'interrupted; run the same command to resume'),
    ({'last_good_checkpoint': None, 'last_good_time': None}, 'none yet'),
    ({'state': 'starting', 'step': 0, 'rate': 0.0, 'time_split': {}}, '0 of 3,100 (0 %)'),
    ({'state': 'evaluating'}, 'evaluating on'),
    ({'process_count': 1}, f'training on {socket.gethostname()}\n'),
])
def test_what_it_says_of_other_moments(tmp_path, changes, expected):
  if changes.get('pid') == 'gone':
    changes = changes | {'pid': gone_pid()}
  write(tmp_path, **changes)
  assert expected in ' '.join(screen(tmp_path).replace('\n', '\n ').split('\n' + ' ' * 15))


def test_the_last_errors_are_shown(tmp_path):
  write(tmp_path, errors=[{'time': NOW - 100 * i, 'step': 10 * i, 'text': f'loss is not finite, '
                           f'update {i} skipped; ' + 'and so on ' * 8} for i in range(9, 0, -1)])
  text = screen(tmp_path)
  assert 'errors      9, the last 5:' in text
  assert '1 min 40 s ago, step 10: loss is not finite' in text and 'update 6' not in text


def test_without_status_json(tmp_path):
  write_lines(tmp_path)
  config_lib.save(small_run.config(steps=80), tmp_path)
  text = screen(tmp_path)
  assert 'state unknown: there is no status.json' in text
  assert '40 of 80 (50 %), 4 steps/s, 10 s left' in text
  assert '1 min 40 s: step 75 %, compile 25 %' in text


def test_nothing_there(tmp_path, capsys):
  assert 'not trained yet' in screen(tmp_path)
  with pytest.raises(UserError, match='does not exist'):
    status.status(tmp_path / 'none')
  (tmp_path / 'status.json').write_text('{"half')
  assert main.main(['status', '--workdir', str(tmp_path)]) == 2
  assert 'status.json is not JSON' in capsys.readouterr().err


def test_a_sweep_has_a_line_per_member(tmp_path):
  config_lib.save(small_run.config(steps=400), tmp_path / 'base')
  wanted = sweep.Sweep({'learning_rate=0.0006,a_long_name_indeed,seed=0': {'seed': 0},
                        'b': {'seed': 1}, 'c': {'seed': 2}, 'd': {'seed': 3}})
  found = sweep.members(wanted, tmp_path / 'base' / 'config.json', {})
  folder = tmp_path / 's'
  sweep.write_sweep(folder, wanted, found)
  states = (sweep.RUNNING, sweep.FAILED, sweep.RUNNING, sweep.WAITING)
  for member, state in zip(found, states):
    sweep.write_state(member.folder(folder), state=state)
  write(found[0].folder(folder), step=100, steps=400)
  write_lines(found[0].folder(folder))
  sweep.write_state(found[1].folder(folder), error='checkpoint nowhere does not exist; ' * 9)
  write(found[2].folder(folder), step=399, steps=400, time=NOW - 720, pid=gone_pid())
  text = screen(folder)
  lines = text.splitlines()
  assert lines[0] == 's: a sweep of 4 members, 2 running, 1 failed, 1 waiting'
  assert lines[2].split() == ['learning_rate=0.0006,a_long...', 'running', '100/400',
                              *'1 min 15 s'.split(), '4.95']
  assert 'checkpoint nowhere does not exist' in text and 'no update for 12 min' in text
  assert lines[-1].split() == ['d', 'waiting', '0/400']
