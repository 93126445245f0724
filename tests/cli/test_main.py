"""The command line: help with examples, one sentence for every mistake, exit codes."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from ttt_jax import config as config_lib
from ttt_jax.cli import main, processes
from ttt_jax.system import exit_codes

ROOT = pathlib.Path(__file__).parents[2]


def run(*words, code=None):
  command = [sys.executable, '-m', 'ttt_jax.cli', *words] if code is None else [
      sys.executable, '-c', code]
  return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def error_of(capsys, words):
  """Runs in this process; the one line on standard error."""
  assert main.main(words) == 2
  out, err = capsys.readouterr()
  assert out == '' and err.count('\n') == 1 and err.startswith('ttt-jax: error: ')
  return err


@pytest.mark.parametrize('verb', [None, *main.VERBS])
def test_help_shows_an_example_that_parses(verb, capsys):
  with pytest.raises(SystemExit) as left:
    main.main([verb, '--help'] if verb else ['--help'])
  assert left.value.code == 0
  text = capsys.readouterr().out
  example = re.search(r'example:\n  ttt-jax (.+)', text).group(1)
  if verb:
    args, _ = main._parse(shlex.split(example))
    assert args.verb == verb
  else:
    assert all(name in text for name in main.VERBS)


def test_help_is_instant_because_nothing_heavy_is_imported():
  heavy = {'jax', 'flax', 'optax', 'orbax', 'grain', 'matplotlib', 'scipy', 'soundfile', 'rich'}
  result = run(code='import sys, ttt_jax.cli.main; print(*sys.modules)')
  assert result.returncode == 0, result.stderr
  assert not heavy & {name.split('.')[0] for name in result.stdout.split()}


@pytest.mark.parametrize('words, expected', [
    ([], 'no command; use one of prepare, inspect, train, evaluate, generate, score, report'),
    (['trian'], "'trian' is not a command; did you mean train?"),
    (['--hlp'], 'did you mean --help?'),
    (['train', '--wrkdir', 'x'], '--wrkdir is not a flag of `ttt-jax train`; did you mean '
                                 '--workdir?'),
    (['train', '--workdir', 'x', '--device=3'], 'did you mean --devices?'),
    (['train'], 'required: --workdir; see `ttt-jax train --help`'),
    (['train', '--workdir', 'x', 'y'], "'y' is an unexpected argument"),
    (['train', '--workdir', 'x', '--devices', 'two'], "invalid int value: 'two'"),
    (['prepare', '--workdir', 'x'], 'required: --config'),
    (['train', '--workdir', 'nowhere'], 'nowhere/config.json does not exist'),
    (['train', '--workdir', 'x', '--config', 'nope.py'], 'config file nope.py does not exist'),
    (['train', '--workdir', 'x', '--config.model.num_layers'], 'needs a value'),
    (['train', '--config', 'c', '--workdir'], '--workdir needs a value; see'),
    (['train', '--workdir', 'x', '--devices', '-x'], "--devices: invalid int value: '-x'"),
    (['train', '--workdir', 'x', '--config.model.num_layers', '--devices'], 'needs a value'),
    (['report', '--workdir', 'x', '--config.model.num_layers=1'], 'has no effect'),
    (['report', '--workdir', 'nowhere'], 'workdir nowhere does not exist'),
])
def test_mistakes(capsys, words, expected):
  assert expected in error_of(capsys, words)


def test_a_value_may_begin_with_a_dash(capsys, config_file):
  words = ['prepare', '--config', config_file, '--workdir', 'x', '--worker', '-1/2']
  assert "--worker is '-1/2'; it must be K/N, a number from 0" in error_of(capsys, words)
  args, _ = main._parse(['generate', '--workdir', 'x', '--text', '-5 degrees', '--out', 'y'])
  assert (args.text, args.out) == (['-5 degrees'], 'y')


@pytest.fixture
def config_file(tmp_path):
  path = tmp_path / 'c.py'
  path.write_text("def get_config():\n  return {'model': {'num_layers': 2}}\n")
  return str(path)


@pytest.mark.parametrize('override, expected', [
    ('--config.model.layer=4', 'did you mean model.num_layers?'),
    ('--config.model.num_layers=four', "config key model.num_layers is 'four'"),
    ('--config.train.batch_size=-1', 'train.batch_size is -1'),
])
def test_a_bad_override_is_named(capsys, config_file, tmp_path, override, expected):
  words = ['train', '--config', config_file, '--workdir', str(tmp_path / 'w'), override]
  assert expected in error_of(capsys, words)
  assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize('words, expected', [
    ([], 'at least one of --text, --audio and --records'),
    (['--text', 'hi'], '--task is required'),
    (['--task', 'asr', '--audio', 'none.wav'], 'file none.wav does not exist'),
    (['--task', 'sing', '--text', 'x'], "invalid choice: 'sing'"),
])
def test_generate_checks_its_inputs_first(capsys, config_file, tmp_path, words, expected):
  words = ['generate', '--config', config_file, '--workdir', str(tmp_path), *words,
           '--out', str(tmp_path / 'out')]
  assert expected in error_of(capsys, words)
  assert not (tmp_path / 'out').exists()


def test_overrides_in_both_forms_and_the_last_wins():
  rest, overrides = main._take_overrides(
      ['train', '--config.a.b=1', '--workdir', 'w', '--config.a.c', '-2', '--config.a.b', 'x=y'])
  assert rest == ['train', '--workdir', 'w']
  assert overrides == {'a.b': 'x=y', 'a.c': '-2'}


def test_a_workdir_remembers_its_config(tmp_path, config_file):
  config = config_lib.load(config_file)
  config_lib.save(config, tmp_path)
  args, overrides = main._parse(['evaluate', '--workdir', str(tmp_path),
                                '--config.evaluate.items=3'])
  loaded = main._load_config(args, overrides)
  assert loaded.model == config.model and loaded.evaluate.items == 3
  (tmp_path / 'config.json').write_text(json.dumps({'model': {'layer': 3}}))
  assert main.main(['evaluate', '--workdir', str(tmp_path)]) == 2


def test_devices_are_set_before_jax_looks(tmp_path):
  code = ('import os; os.environ.pop("XLA_FLAGS", None)\n'
          'from ttt_jax.cli import main as cli; cli._configure_process(3)\n'
          'import jax; print(jax.device_count(), os.environ["ORT_DISABLE_TELEMETRY"])')
  result = run(code='import os; os.environ["JAX_PLATFORMS"] = "cpu"\n' + code)
  assert result.stdout.split() == ['3', '1'], result.stderr


def test_a_user_error_leaves_with_2_and_no_traceback(tmp_path):
  result = run('report', '--workdir', str(tmp_path / 'none'))
  assert result.returncode == 2
  assert 'Traceback' not in result.stderr and result.stderr.count('\n') == 1


def test_an_interruption_is_no_traceback(monkeypatch, capsys, tmp_path):
  def interrupted(args, config):
    raise KeyboardInterrupt

  monkeypatch.setitem(main.VERBS, 'report', interrupted)
  (tmp_path / 'config.json').touch()
  assert main.main(['report', '--workdir', str(tmp_path)]) == exit_codes.INTERRUPTED
  assert capsys.readouterr().err == 'ttt-jax: interrupted.\n'


@pytest.mark.parametrize('message, printed', [('Event loop is closed', False), ('other', True)])
def test_late_callbacks_of_a_failed_save_print_nothing(monkeypatch, capsys, message, printed):
  for name in ('excepthook', 'unraisablehook'):
    monkeypatch.setattr(sys, name, getattr(sys, f'__{name}__'))
  processes._ignore_late_callbacks()
  def fail(*_):
    raise RuntimeError(message)
  sys.excepthook(RuntimeError, RuntimeError(message), None)
  type('Late', (), {'__del__': fail})()  # Python reports what __del__ raises to unraisablehook
  assert capsys.readouterr().err.count(f'RuntimeError: {message}') == (2 if printed else 0)


def test_openblas_has_one_thread_before_numpy_is_imported():
  """Set later it has no effect; its threads make the codec six times as slow."""
  env = {key: value for key, value in os.environ.items() if key != 'OPENBLAS_NUM_THREADS'}
  code = ('import os, sys, ttt_jax.cli; assert "numpy" not in sys.modules; '
          'print(os.environ["OPENBLAS_NUM_THREADS"])')
  done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
  assert done.stdout == '1\n', done.stderr
