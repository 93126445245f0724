"""Numbers on disk survive crashes and resumes; progress says where the work is."""

import io
import json
import math
import re
import sys
import threading
import types

import numpy as np
import pytest

from ttt_jax.errors import UserError
from ttt_jax.system import progress as progress_lib
from ttt_jax.train import metrics


def steps(workdir):
  return [line['step'] for line in metrics.read(workdir)]


def test_lines_are_on_disk_at_once_and_strict_json(tmp_path):
  with metrics.Writer(tmp_path) as writer:
    writer.write(10, {'loss': np.float32(0.5), 'grad_norm': math.nan, 'ar': math.inf})
    line, rest = (tmp_path / 'metrics.jsonl').read_text().split('\n')
  assert rest == '' and 'NaN' not in line and 'Infinity' not in line
  values = json.loads(line)
  assert values['step'] == 10 and values['loss'] == 0.5 and values['grad_norm'] is None
  (read,) = metrics.read(tmp_path / 'metrics.jsonl')
  assert math.isnan(read['grad_norm']) and read['time'] > 1.7e9
  assert list((tmp_path / 'tensorboard').iterdir())


def test_resume_drops_what_came_after_the_checkpoint(tmp_path):
  with metrics.Writer(tmp_path, step=0) as writer:
    for step in (10, 20, 30):
      writer.write(step, {'loss': step})
    writer.write(30, {'eval/ar': 1})
  with metrics.Writer(tmp_path, step=20) as writer:
    writer.write(30, {'loss': -30})
  lines = metrics.read(tmp_path)
  assert [(line['step'], line['loss']) for line in lines] == [(10, 10), (20, 20), (30, -30)]


def test_none_appends_and_zero_starts_over(tmp_path):
  with metrics.Writer(tmp_path) as writer:
    writer.write(5, {'loss': 1})
  with metrics.Writer(tmp_path) as writer:
    writer.write(5, {'eval/ar': 2})
  assert steps(tmp_path) == [5, 5]
  with metrics.Writer(tmp_path, step=0) as writer:
    writer.write(1, {'loss': 3})
  assert steps(tmp_path) == [1]


def test_a_line_cut_off_by_a_crash_is_dropped(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1, "time": 2.0}\n{"step": 2, "ti')
  assert steps(tmp_path) == [1]
  with metrics.Writer(tmp_path) as writer:
    writer.write(2, {'loss': 1})
  assert steps(tmp_path) == [1, 2]


@pytest.mark.parametrize('line', ['hello', '[1]', '{"loss": 1}', '[' * 100_000, '{"step": "1"}'])
def test_a_foreign_file_is_named_and_kept_and_a_damaged_line_is_left_out(tmp_path, line, caplog):
  path = tmp_path / 'metrics.jsonl'
  path.write_text(line + '\n')
  for read in (lambda: metrics.Writer(tmp_path, step=0), lambda: metrics.Writer(tmp_path),
               lambda: metrics.read(tmp_path)):
    with pytest.raises(UserError, match='line 1 is .*must be a JSON object with a step'):
      read()
  assert path.read_text() == line + '\n'
  path.write_text(line)  # no line break: another program's file, or what a crash has left of ours
  if line != '{"step": "1"}':
    with pytest.raises(UserError, match='line 1 is'):
      metrics.Writer(tmp_path, step=0)
    assert path.read_text() == line
  assert [p.name for p in tmp_path.iterdir()] == ['metrics.jsonl']
  path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
  assert steps(tmp_path) == [1, 2] and 'line 2 cannot be read and is left out' in caplog.text
  with metrics.Writer(tmp_path, step=2, tensorboard=False) as writer:
    writer.write(3, {})
  assert steps(tmp_path) == [1, 2, 3]


def course(folder):
  """(step, loss) that TensorBoard shows of event files in the order of their names: the mark of a
  start removes what was read from its step on."""
  from tensorboardX.proto.event_pb2 import Event, SessionLog
  shown = []
  for path in sorted(folder.iterdir()):
    data = path.read_bytes()
    while data:  # length, its checksum, the event, its checksum
      size = int.from_bytes(data[:8], 'little')
      event, data = Event.FromString(data[12:12 + size]), data[16 + size:]
      if event.session_log.status == SessionLog.START:
        shown = [one for one in shown if one[0] < event.step]
      shown += [(event.step, value.simple_value) for value in event.summary.value]
  return shown


def test_tensorboard_shows_one_course_after_a_rollback(tmp_path):
  with metrics.Writer(tmp_path, 0) as writer:
    for step in (10, 20, 30):
      writer.write(step, {'loss': step})
    writer.drop_after(10)
    for step in (20, 30):
      writer.write(step, {'loss': -step})
  assert course(tmp_path / 'tensorboard') == [(10, 10), (20, -20), (30, -30)]


@pytest.mark.slow  # tensorboard is an extra
def test_tensorboard_itself_shows_it(tmp_path):
  accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
  test_tensorboard_shows_one_course_after_a_rollback(tmp_path)
  found = accumulator.EventAccumulator(str(tmp_path / 'tensorboard')).Reload()
  assert [(event.step, event.value) for event in found.Scalars('loss')] == course(
      tmp_path / 'tensorboard')


def test_two_writers_and_a_rollback_lose_no_line(tmp_path):
  """A training, which replaces the file when it rolls back, and evaluations beside it."""
  with metrics.Writer(tmp_path, 0, tensorboard=False) as trainer:
    trainer.write(1, {'loss': 1})
    with metrics.Writer(tmp_path, tensorboard=False) as other:
      trainer.drop_after(1)
      other.write(1, {'eval/ar': 2})  # into the new file
    trainer.write(2, {'loss': 2})
    def evaluate(number):
      for _ in range(20):
        with metrics.Writer(tmp_path, tensorboard=False) as writer:
          writer.write(1, {f'eval/{number}': 1})
    threads = [threading.Thread(target=evaluate, args=(number,)) for number in range(4)]
    for thread in threads:
      thread.start()
    while any(thread.is_alive() for thread in threads):
      trainer.write(3, {'loss': 3})
      trainer.drop_after(2)
    for thread in threads:
      thread.join()
  found = metrics.read(tmp_path)
  assert [line['loss'] for line in found if 'loss' in line] == [1, 2]
  assert sum(any(name.startswith('eval/') for name in line) for line in found) == 81


@pytest.mark.parametrize('line', [
    b'hello', b'[1]', b'{"loss": 1, "time": 2}', b'{"step": "2", "time": 2}', b'\xff\xfe',
    b'{"step": 2, "time": 2, "loss": "low"}', b'{"step": 2, "time": 2, "loss": [1]}',
    b'{"step": -1, "time": 2}', b'{"step": 2, "time": "late"}', b'{"step": true, "time": 2}',
    b'{"step": 2, "loss": true}', b'{"step": ' + b'9' * 30 + b', "time": 2}',
    b'{"step": ' + b'9' * 5000 + b', "time": 2}'], ids=lambda line: repr(line[:20]))
def test_damaged_lines_are_left_out_with_a_warning(tmp_path, caplog, line):
  path = tmp_path / 'metrics.jsonl'
  good = b'{"step": %d, "time": 2.5, "loss": null}\n'
  path.write_bytes(good % 1 + line + b'\n' + good % 3)
  assert steps(tmp_path) == [1, 3]
  assert f'metrics file {path}: line 2 cannot be read and is left out.' in caplog.text


def test_boards_are_written_when_switched_on(tmp_path):
  with metrics.Writer(tmp_path / 'on') as writer:
    writer.write(1, {'loss': 2})
  (board,) = (tmp_path / 'on' / 'tensorboard').iterdir()
  assert b'loss' in board.read_bytes()
  with metrics.Writer(tmp_path / 'off', tensorboard=False) as writer:
    writer.write(1, {'loss': 2})
  assert [path.name for path in (tmp_path / 'off').iterdir()] == ['metrics.jsonl']


class Wandb(types.ModuleType):
  """As much of the package as a run uses, keeping what it is told."""

  class Error(Exception):
    pass

  def __init__(self, refuses=''):
    super().__init__('wandb')
    self.refuses, self.runs, self.points, self.finished = refuses, [], [], 0
    self.Settings = dict

  def init(self, **settings):
    if self.refuses:
      raise self.Error(self.refuses)
    self.runs.append(settings)
    return self

  def define_metric(self, pattern, step_metric):
    assert (pattern, step_metric) == ('*', 'step')

  def log(self, values):
    self.points.append(values)

  def finish(self):
    self.finished += 1


def test_weights_and_biases_gets_every_line_and_a_resume_goes_on_in_its_run(tmp_path, monkeypatch):
  wandb = Wandb()
  monkeypatch.setitem(sys.modules, 'wandb', wandb)
  metrics.check('speech')
  asked = {'wandb': 'speech', 'name': 'small', 'settings': {'seed': 3}, 'tensorboard': False}
  for step in (0, 4, 0):
    with metrics.Writer(tmp_path, step, **asked) as writer:
      writer.write(step + 1, {'loss': 2.5})
  assert wandb.points == [{'step': step, 'loss': 2.5} for step in (1, 5, 1)]
  first, resumed, fresh = wandb.runs
  assert first == resumed and first['project'] == 'speech' and first['resume'] == 'allow'
  assert first['name'] == 'small' and first['config'] == {'seed': 3}
  assert first['dir'] == str(tmp_path) and fresh['id'] != first['id']
  assert wandb.finished == 3


def test_without_the_package_weights_and_biases_is_a_sentence(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)  # as if it were not installed
  metrics.check('')
  for ask in (lambda: metrics.check('speech'), lambda: metrics.Writer(tmp_path, wandb='speech')):
    with pytest.raises(UserError, match=r"train\.wandb is 'speech'.*pip install wandb.*\.$"):
      ask()


def test_what_weights_and_biases_refuses_is_a_sentence(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', Wandb(refuses='no API key'))
  with pytest.raises(UserError, match='reports: no API key; log in with `wandb login`'):
    metrics.Writer(tmp_path, wandb='speech')


def test_a_silent_progress_and_a_sentence_in_between(monkeypatch):
  silent, log = io.StringIO(), io.StringIO()
  with progress_lib.Progress(2, 'train', stream=silent, shown=False) as progress:
    progress.update(1)
    progress.say('a warning')
  assert silent.getvalue() == ''
  with progress_lib.Progress(2, 'train', stream=log) as progress:
    progress.say('a warning')
  assert 'train: a warning\n' in log.getvalue()


def test_progress_in_a_log(monkeypatch):
  clock = [100.0]
  monkeypatch.setattr(progress_lib.time, 'monotonic', lambda: clock[0])
  out = io.StringIO()
  with progress_lib.Progress(60, 'train', done=20, unit='steps', stream=out) as progress:
    for _ in range(30):
      clock[0] += 1
      progress.update(1, loss=2.345678, tokens=12345)
    halfway = out.getvalue().splitlines()
    for _ in range(10):
      clock[0] += 0.1
      progress.update(1)
  assert len(halfway) == 3  # one line every ten seconds
  # After 30 s at one step a second, ten steps are left.
  assert '  train 50/60 (83 %)  1 steps/s  10 s left  loss 2.35  tokens 12,345' in halfway[-1]
  assert 'train 60/60 (100 %)' in out.getvalue().splitlines()[-1]
  assert 'in 31 s' in out.getvalue().splitlines()[-1]


def test_progress_says_nothing_twice(monkeypatch):
  clock = [100.0]
  monkeypatch.setattr(progress_lib.time, 'monotonic', lambda: clock[0])
  out = io.StringIO()
  with progress_lib.Progress(2, 'train', stream=out) as progress:
    for _ in range(2):
      clock[0] += 11
      progress.update(1, loss=1.0)
  assert [line.split()[2] for line in out.getvalue().splitlines()] == ['1/2', '2/2']


def test_stages_show_each_stage_to_its_end():
  out = io.StringIO()
  with progress_lib.Stages(out) as stages:
    for done in (1, 2, 3):
      stages('fitting', done, 3)
    stages('rendering', 7, 0)
  first, second = out.getvalue().splitlines()
  assert 'fitting 3/3 (100 %)' in first
  assert 'rendering 7  ' in second and '%' not in second and 'left' not in second


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.mark.parametrize('columns, seen, left_out', [(80, 'tok/s 8,812', 'diffusion'),
                                                     (120, 'diffusion 3.46', 'nothing')])
def test_a_narrow_terminal_keeps_the_bar_and_whole_figures(monkeypatch, columns, seen, left_out):
  monkeypatch.setenv('COLUMNS', str(columns))
  monkeypatch.setenv('TERM', 'xterm')
  clock = [100.0]
  monkeypatch.setattr(progress_lib.time, 'monotonic', lambda: clock[0])
  out = Terminal()
  figures = {'loss': 4.42, 'tok/s': 8812, 'ar': 0.958, 'diffusion': 3.46}
  with progress_lib.Progress(3300, 'train', unit='steps', stream=out) as progress:
    for _ in range(30):
      clock[0] += 0.325
      progress.update(1, **figures)
    clock[0] += 1
  plain = re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', out.getvalue())
  last = [line for line in re.split(r'[\r\n]+', plain) if line][-1]
  assert last.startswith('train ') and '30/3300' in last and '━' in last and '…' not in last
  assert 'steps/s  in 11 s  loss 4.42' in last and seen in last and left_out not in last
  assert len(last) <= columns


def test_the_first_unit_does_not_count_towards_the_rate(monkeypatch):
  clock = [100.0]
  monkeypatch.setattr(progress_lib.time, 'monotonic', lambda: clock[0])
  out = io.StringIO()
  with progress_lib.Progress(100, 'train', stream=out) as progress:
    clock[0] += 40  # a compilation
    progress.update(1)
    for _ in range(10):
      clock[0] += 1
      progress.update(1)
  first, second = out.getvalue().splitlines()[:2]
  assert first.endswith('train 1/100 (1 %)') and '1/s  1 min 29 s left' in second


def test_a_terminal_that_cannot_redraw_gets_a_log(monkeypatch):
  monkeypatch.setenv('TERM', 'dumb')
  out = Terminal()
  with progress_lib.Progress(3, 'fit', stream=out) as progress:
    progress.update(3)
  assert out.getvalue().count('\n') == 1 and 'fit 3/3 (100 %)' in out.getvalue()


def test_progress_on_a_terminal(monkeypatch):
  monkeypatch.setenv('TERM', 'xterm')
  out = Terminal()
  with progress_lib.Progress(3, 'fit', stream=out) as progress:
    for _ in range(3):
      progress.update(1, error='small')
  assert '3/3' in out.getvalue() and 'fit' in out.getvalue() and 'error small' in out.getvalue()


@pytest.mark.parametrize('seconds, words', [
    (0.4, '0 s'), (59.6, '1 min 00 s'), (200, '3 min 20 s'), (7500, '2 h 05 min')])
def test_duration(seconds, words):
  assert progress_lib.duration(seconds) == words
