"""The supervisor: what follows an exit code, who is told of a signal, what it prints."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from ttt_jax.cli import main, runs
from ttt_jax.runs import supervisor as supervise

ROOT = pathlib.Path(__file__).parents[2]
QUICK = supervise.Rules(failures=3, wait=0.02, longest_wait=0.05, crashed=0.3, orderly=20)


def drive(supervisor, limit=30.0, each=lambda: None):
  """Poll to the end; the limit only turns a hang into a failure."""
  until = time.monotonic() + limit
  try:
    while (code := supervisor.poll()) is None:
      assert time.monotonic() < until, 'the supervisor never ends'
      each()
      time.sleep(0.01)
  finally:
    supervisor.kill()
  return code


def shell(script):
  return ['bash', '-c', script]


def plan(tmp_path, *scripts, **settings):
  """A supervisor whose attempt i runs script i; the last one is repeated."""
  said = []
  supervisor = supervise.Supervisor(
      lambda attempt: [shell(scripts[min(attempt, len(scripts) - 1)])], tmp_path, QUICK,
      say=said.append, **settings)
  return supervisor, said


@pytest.mark.parametrize('codes, expected, attempts', [
    ((0,), 0, 1), ((2,), 2, 1), ((130,), 130, 1), ((77, 77, 0), 0, 3), ((1, 77, 3, 0), 0, 4),
    ((1,), 1, 3), ((1, 1, 2), 2, 3),
])
def test_what_follows_an_exit_code(tmp_path, codes, expected, attempts):
  supervisor, _ = plan(tmp_path, *(f'exit {code}' for code in codes))
  assert drive(supervisor) == expected
  assert supervisor.attempts == attempts


def test_a_crash_by_a_signal_is_started_again_and_named(tmp_path):
  supervisor, said = plan(tmp_path, 'kill -SEGV $$', 'exit 0')
  assert drive(supervisor) == 0
  assert 'was killed by SIGSEGV (failure 1 of 3' in said[0]


def test_progress_forgives_failures(tmp_path):
  """Six failures, each with a newer checkpoint, are not three in a row without one."""
  checkpoints = tmp_path / 'checkpoints'
  checkpoints.mkdir()
  scripts = [f'mkdir {checkpoints}/{step}; exit 1' for step in range(6)]
  supervisor, _ = plan(tmp_path, *scripts, 'exit 0')
  assert drive(supervisor) == 0
  assert supervisor.attempts == 7
  stuck, said = plan(tmp_path, 'echo boom; exit 1')
  assert drive(stuck) == 1
  assert stuck.attempts == 3 and 'boom' in said[-1] and stuck.error == 'boom'


def test_what_counts_as_a_checkpoint(tmp_path):
  assert supervise.newest_checkpoint(tmp_path) == -1
  for name in ('5', '20', '30.partial', 'tmp'):
    (tmp_path / 'checkpoints' / name).mkdir(parents=True)
  assert supervise.newest_checkpoint(tmp_path) == 20
  (tmp_path / 'status.json').write_text(json.dumps({'last_good_checkpoint': 5}))
  assert supervise.newest_checkpoint(tmp_path) == 5  # 20 may be damaged
  (tmp_path / 'status.json').write_text('{"last_go')
  assert supervise.newest_checkpoint(tmp_path) == 20


@pytest.mark.parametrize('number, expected', [
    (signal.SIGTERM, 77), (signal.SIGUSR1, 77), (signal.SIGINT, 130)])
def test_a_signal_is_passed_on_and_nothing_starts_again(tmp_path, number, expected):
  ready, name = tmp_path / 'ready', signal.Signals(number).name
  supervisor, _ = plan(
      tmp_path, f'trap "echo got {name}; exit {expected}" {name}; touch {ready}; '
      'while true; do sleep 0.05; done')
  asked = []

  def ask():
    if ready.exists() and not asked:
      asked.append(number)
      supervisor.forward_signal(number)

  assert drive(supervisor, each=ask) == expected
  assert supervisor.attempts == 1
  assert f'got {name}' in supervisor.log(0).read_text()


def test_asked_while_it_waits_to_start_again(tmp_path):
  supervisor = supervise.Supervisor(lambda attempt: [shell('exit 1')], tmp_path,
                                    supervise.Rules(wait=1000.0))
  asked = []

  def ask():
    if supervisor.error and not asked:
      asked.append(1)
      supervisor.forward_signal(signal.SIGTERM)

  assert drive(supervisor, each=ask) == 77


def test_processes_of_a_run_die_together_and_start_together(tmp_path):
  """Process 1 crashes while 0 would wait for it for ever; then both run through."""
  attempts = [[shell('sleep 1000'), shell('echo broken; exit 5')],
              [shell('echo a'), shell('echo b')]]
  said = []
  supervisor = supervise.Supervisor(lambda attempt: attempts[attempt], tmp_path, QUICK,
                                    say=said.append)
  assert drive(supervisor) == 0
  assert supervisor.attempts == 2
  assert 'exited with code 5' in said[0]
  assert 'echo a\na\n' in supervisor.log(0).read_text()


def test_those_who_save_are_waited_for(tmp_path):
  """One process has left with 77; the other one still writes for longer than a crash allows."""
  attempts = [[shell('exit 77'), shell('sleep 0.8; touch saved; exit 77')], [shell('exit 0')]]
  supervisor = supervise.Supervisor(
      lambda attempt: [['env', '-C', str(tmp_path), *words] for words in attempts[attempt]],
      tmp_path, QUICK)
  assert drive(supervisor) == 0
  assert (tmp_path / 'saved').exists()


@pytest.mark.parametrize('codes, expected', [
    ([0, 0], 0), ([0, 77], 77), ([77, 77], 77), ([1, 2], 2), ([77, -9], -9), ([130, 1], 130),
    ([0, 3], 3)])
def test_the_verdict_on_several_processes(codes, expected):
  assert supervise.combined_code(codes) == expected


def test_the_last_error_of_a_log(tmp_path):
  log = tmp_path / 'log'
  assert supervise.last_error(log) == ''
  log.write_text('== 1 start\nold words\n== 2 start\nTraceback\n  line\nValueError: bad\n\n')
  assert supervise.last_error(log) == 'ValueError: bad'
  log.write_text('== 1 start\nttt-jax: error: no data; prepare it.\nsome thread says bye\n')
  assert supervise.last_error(log) == 'no data; prepare it.'
  log.write_text('== 1 start\nwords of before\n== 2 start\n')
  assert supervise.last_error(log) == ''


def cli_process(*words, **settings):
  return subprocess.Popen([sys.executable, '-m', 'ttt_jax.cli', *words], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings)


def wait_for(path, process):
  until = time.monotonic() + 60
  while not path.exists():
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < until
    time.sleep(0.02)


def test_the_verb_passes_signals_on_and_shows_the_log(tmp_path):
  ready = tmp_path / 'ready'
  process = cli_process('supervise', '--workdir', str(tmp_path), '--', 'bash', '-c',
                        f'trap "echo bye; exit 77" TERM; touch {ready}; '
                        'while true; do sleep 0.05; done')
  wait_for(ready, process)
  process.terminate()
  _, err = process.communicate(timeout=60)
  assert process.returncode == 77, err
  assert 'bye' in err


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux tells a child of this')
def test_nothing_goes_on_behind_a_killed_supervisor(tmp_path):
  ready, gone = tmp_path / 'ready', tmp_path / 'gone'
  process = cli_process('supervise', '--workdir', str(tmp_path), '--', 'bash', '-c',
                        f'trap "touch {gone}; exit 77" TERM; touch {ready}; '
                        'while true; do sleep 0.05; done')
  wait_for(ready, process)
  process.kill()
  process.communicate(timeout=60)
  until = time.monotonic() + 30
  while not gone.exists():
    assert time.monotonic() < until, 'the child outlived its supervisor'
    time.sleep(0.02)


@pytest.mark.parametrize('words, expected', [
    ([], "no command; add it after '--'"),
    (['--'], "no command; add it after '--'"),
    (['--', 'no-such-program'], "program 'no-such-program' cannot be found"),
    (['--processes', '2', '--', 'bash', '-c', 'x'], '`ttt-jax export-hf`, not `bash -c`'),
    (['--processes', '0', '--', 'ttt-jax', 'train'], '--processes is 0'),
    (['--failures', '0', '--', 'ttt-jax', 'train'], '--failures is 0'),
    (['--wait', '-1', '--', 'ttt-jax', 'train'], '--wait is -1'),
])
def test_mistakes_at_supervise(capsys, tmp_path, words, expected):
  assert main.main(['supervise', '--workdir', str(tmp_path), *words]) == 2
  assert expected in capsys.readouterr().err


def test_a_command_belongs_to_supervise_and_sweep_alone(capsys, tmp_path):
  assert main.main(['report', '--workdir', str(tmp_path), '--', 'ls']) == 2
  assert "'--' has no effect" in capsys.readouterr().err


def test_flags_behind_the_dashes_are_not_ours():
  args, overrides = main._parse(['supervise', '--workdir', 'w', '--', 'ttt-jax', 'train',
                                '--workdir', 'w', '--config.train.steps=3', '--devices', '4'])
  assert args.command[2:] == ['--workdir', 'w', '--config.train.steps=3', '--devices', '4']
  assert overrides == {}
  assert runs.resolve_command(args.command)[:3] == [sys.executable, '-m', 'ttt_jax.cli']
