"""Speed and time split are right, a recompilation is heard, and nobody waits for the log."""

import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small_run
from ttt_jax.train import checkpoint, metrics, telemetry, train


class Time:
  """A clock that is moved by hand."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


def test_every_second_goes_to_one_part():
  time, busy = Time(), False
  clock = telemetry.Clock(lambda: busy, time)
  for part, seconds in (('start', 4), ('compile', 8), ('data', 1), ('step', 16), ('checkpoint', 2),
                        ('other', 1)):
    time.now += seconds
    clock.lap(part)
  shares = clock.shares()
  assert shares.pop('time/total') == 32
  assert shares == {'time/start': 4 / 32, 'time/compile': 8 / 32, 'time/data': 1 / 32,
                    'time/step': 16 / 32, 'time/checkpoint': 2 / 32, 'time/other': 1 / 32,
                    'time/eval': 0, 'time/profile': 0, 'time/lost': 0}
  assert clock.training() == 18


def test_what_the_device_did_not_notice_is_training():
  time, busy = Time(), [False]
  clock = telemetry.Clock(lambda: busy[0], time)
  for busy[0] in (True, False):
    for part in ('data', 'other', 'checkpoint'):
      time.now += 1
      clock.lap(part)
  assert clock.seconds == dict.fromkeys(telemetry.PARTS, 0) | {
      'step': 2, 'data': 1, 'other': 1, 'checkpoint': 2}


def test_a_resumed_clock_goes_on():
  time = Time()
  clock = telemetry.Clock(now=time)
  time.now += 3
  clock.lap('start')
  clock.resume({'start': 1.0, 'step': 12.0})
  assert clock.shares()['time/total'] == 16 and clock.shares()['time/step'] == 12 / 16


def test_a_rollback_loses_the_training_since_its_checkpoint():
  time = Time()
  clock = telemetry.Clock(now=time)
  for part, seconds in (('start', 4), ('step', 10), ('data', 1)):
    time.now += seconds
    clock.lap(part)
  saved = dict(clock.seconds)
  for part, seconds in (('step', 6), ('data', 2), ('checkpoint', 5)):
    time.now += seconds
    clock.lap(part)
  clock.roll_back(saved)
  assert clock.seconds == dict.fromkeys(telemetry.PARTS, 0) | {
      'start': 4, 'step': 10, 'data': 1, 'checkpoint': 5, 'lost': 8}


def test_percentiles_and_own_work_of_steps():
  time = Time()
  clock = telemetry.Clock(now=time)
  times = telemetry.StepTimes(clock)
  assert not times.percentiles()
  for number in range(101):  # the first one has none before it
    time.now += 1000 if number == 0 else number / 100
    clock.lap('step')
    times.spend('wait', 0 if number else 999)
    times.spend('data', 0.25)
    time.now += 70
    clock.lap('checkpoint')
    times.add()
  found = times.percentiles()
  assert found == {'step_seconds/p50': pytest.approx(0.505), 'step_seconds/p90':
                   pytest.approx(0.901), 'step_seconds/p99': pytest.approx(0.9901)}
  own, data = times.take_host()
  assert own == pytest.approx((1 + 50.5) / 101) and data == 0.25
  assert times.take_host() == [0, 0]
  times.restart()
  times.add()
  assert times.percentiles() == found


def test_the_slowest_host():
  found = telemetry.slowest(np.array([[0.2, 0.1], [0.9, 0.75], [0.3, 0.1]], np.float32))
  assert found == pytest.approx({'hosts/slowest': 1, 'hosts/slowest_own': 0.9,
                                 'hosts/slowest_data': 0.75, 'hosts/median_own': 0.3})


def test_rates_are_over_training_time():
  time = Time()
  clock = telemetry.Clock(now=time)
  speed = telemetry.Speed(clock, positions=1000, peak=50.0,
                          flops=lambda sums: sums['mask_pairs'] + 2 * sums['scored'])
  step = {'tokens': 800.0, 'documents': 5.0, 'scored': 100.0, 'mask_pairs': 300.0, 'loss': 7.0}
  for part, seconds in (('start', 50), ('compile', 60), ('data', 1), ('step', 8), ('other', 1),
                        ('checkpoint', 30), ('eval', 70)):
    time.now += seconds
    clock.lap(part)
  speed.add(step)
  speed.add(step | {'tokens': 400.0})
  assert speed.take() == {
      'tokens_per_second': 200, 'useful_tokens_per_second': 120, 'documents_per_second': 1,
      'steps_per_second': 0.2, 'padding_fraction': pytest.approx(0.4),
      'model_flops_per_second': 100, 'mfu': 2}
  time.now += 4
  clock.lap('step')
  speed.add(step)
  again = speed.take()  # of what came since
  assert again['tokens_per_second'] == 250 and again['padding_fraction'] == pytest.approx(0.2)


def test_without_a_peak_there_is_no_mfu():
  time = Time()
  clock = telemetry.Clock(now=time)
  speed = telemetry.Speed(clock, 10, lambda sums: sums['mask_pairs'], None)
  time.now += 2
  clock.lap('step')
  speed.add({'tokens': 10.0, 'documents': 1.0, 'scored': 1.0, 'mask_pairs': 6.0})
  rates = speed.take()
  assert 'mfu' not in rates and rates['model_flops_per_second'] == 3


# -- compilations ---------------------------------------------------------------------


def listeners():
  from jax._src import monitoring
  return list(monitoring.get_event_duration_listeners())


def test_a_second_compilation_is_an_alarm():
  said, before = [], listeners()
  watch = telemetry.CompileWatch(said.append)
  step = jax.jit(lambda x: jnp.sin(x).sum())

  def call(number, x):
    with watch:
      step(x)
    return watch.compiled(number, {'token': x})

  assert call(1, np.zeros((2, 8), np.float32)) and not said and watch.recompiles == 0
  assert not call(2, np.ones((2, 8), np.float32))
  assert call(3, np.zeros((2, 16), np.float32))
  assert watch.recompiles == 1 and len(said) == 1
  assert said[0].startswith('step 3 recompiled the train step')
  assert said[0].endswith('its batch is float32[2, 16], the first one was float32[2, 8].')
  assert not call(4, np.zeros((2, 8), np.float32)) and watch.recompiles == 1
  assert listeners() == before


def test_a_compilation_for_another_reason_says_so():
  said = []
  watch = telemetry.CompileWatch(said.append)
  step = jax.jit(lambda state, x: state + x.sum())
  x = np.zeros((2, 8), np.float32)
  for number, state in enumerate((np.float32(0), np.int32(0)), 1):
    with watch:
      step(state, x)
    assert watch.compiled(number, x)
  assert watch.recompiles == 1 and 'as before, so a dtype or a sharding in the state' in said[0]


def test_what_others_compile_is_no_alarm():
  watch = telemetry.CompileWatch(pytest.fail)
  jax.jit(lambda x: x * 3)(1.0)
  with watch:
    other = threading.Thread(target=lambda: jax.jit(lambda x: x * 5)(1.0))
    other.start()
    other.join()
  assert not watch.compiled(1, ()) and not watch.recompiles


def test_nothing_stays_registered_after_an_error():
  before = listeners()
  with pytest.raises(KeyboardInterrupt), telemetry.CompileWatch(pytest.fail):
    assert len(listeners()) == len(before) + 1
    raise KeyboardInterrupt
  assert listeners() == before


# -- the loop -------------------------------------------------------------------------


@pytest.mark.parametrize('log_every', [1, 2, 4])
def test_the_device_never_waits_for_the_log(fake_run, tmp_path, log_every):
  config, device = fake_run
  train.train(small_run.replace(config, 'train', log_every=log_every), tmp_path)
  assert list(dict.fromkeys(device.read)) == [1, 2, 3, 4, 5, 6] == sorted(set(device.read))
  lines = metrics.read(tmp_path)
  assert [line['step'] for line in lines] == sorted({*range(log_every, 7, log_every), 6})
  assert all(line['loss'] == 7 + line['step'] for line in lines)
  assert not (tmp_path / 'tensorboard').exists()


def test_a_resumed_run_counts_the_time_before(fake_run, tmp_path):
  config, device = fake_run
  device.steps = 3
  train.train(small_run.replace(config, 'train', steps=3), tmp_path)
  with checkpoint.open_existing(tmp_path / 'checkpoints') as checkpoints:
    before = checkpoints.meta(3)['seconds']
  assert set(before) == set(telemetry.PARTS) and before['checkpoint'] == 0 < before['start']
  device.steps, device.given = 6, 3
  train.train(config, tmp_path)
  line = next(line for line in metrics.read(tmp_path) if line['step'] == 4)
  assert line['time/total'] > sum(before.values())
  assert sum(line[f'time/{part}'] for part in telemetry.PARTS) == pytest.approx(1)


def test_process_0_alone_writes(tmp_path, monkeypatch):
  for process, files in ((1, []), (0, ['config.json', 'metrics.jsonl'])):
    monkeypatch.setattr(jax, 'process_index', lambda: process)
    with train._writer(small_run.config(tensorboard=False), tmp_path, 0) as writer:
      writer.write(1, {'loss': 1.0})
    assert sorted(path.name for path in tmp_path.iterdir()) == files


@pytest.mark.usefixtures('one_device')
def test_one_docstring_says_what_every_number_means(prepared, tmp_path):
  config = small_run.replace(small_run.config(steps=2), 'data', path=str(prepared))
  train.train(config, tmp_path)
  known = set(re.findall(r'[\w/]+', metrics.__doc__)) | {
      f'time/{part}' for part in telemetry.PARTS}
  lines = metrics.read(tmp_path)
  later = {f'step_seconds/p{name}' for name in metrics.PERCENTILES}  # of two steps or more
  assert len(lines) == 2 and set(lines[0]) == set(lines[1]) - later
  assert set(lines[1]) <= known, set(lines[1]) - known
  assert 0 < lines[1]['goodput'] < 1 and lines[1]['step_seconds/p50'] > 0
  last = lines[1]
  assert last['recompiles'] == 0
  assert 0 < last['padding_fraction'] < 1 and 0 < last['time/compile'] < 1
  assert last['useful_tokens_per_second'] == pytest.approx(
      last['tokens_per_second'] * (1 - last['padding_fraction']))
