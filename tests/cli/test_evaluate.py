"""The flags of `evaluate`: one sentence for every mistake."""

import pytest

from tests.cli.test_main import error_of
from ttt_jax.cli import main

BASE = ['evaluate', '--config', 'configs/demo.py', '--workdir', 'no/such']


@pytest.mark.parametrize('words, expected', [
    (['--data', 'x'], '--data has no effect without --suite; remove it.'),
    (['--speed', '0'], '--speed is 0; it must be at least 1.'),
    (['--speed', '2', '--out', 'x'], '--out has no effect with --speed'),
    (['--speed', '2', '--suite', 'asr', '--data', 'x'], '--speed has no effect with --suite'),
    (['--items', '3'], '--items has no effect without --suite'),
    (['--subset', 'test'], '--subset has no effect without --suite'),
    (['--checkpoint', '1,2'], '--checkpoint names several, which only a --suite compares'),
    (['b'], '--workdir names several, which only a --suite compares'),
    (['--checkpoint', 'last'], "--checkpoint is 'last'; it must be the step of a checkpoint"),
    (['--suite', 'asr'], '--suite asr needs --data, the folder of the benchmark.'),
    (['--suite', 'asrr', '--data', 'x'], "'asrr', which is not a suite; did you mean asr?"),
    (['--suite', 'asr', '--data', 'x', '--items', '0'], '--items is 0; it must be at least 1.'),
    (['--suite', 'asr', '--data', 'x', '--task', 'sec'], 'suite asr has one task, asr; remove'),
    (['--suite', 'asr', '--data', 'x', '--config.evaluate.items=3'], 'with --suite use --items N'),
    (['--suite', 'asr', '--data', 'no/x'], '--data: there is no folder or file no/x.'),
    (['--suite', 'asr', '--data', 'docs'], 'docs is a folder without a manifest'),
    (['--suite', 'asr', '--data', 'x', '--config.evaluate.words=papper'], 'evaluate.words'),
])
def test_mistakes(words, expected, capsys):
  assert expected in error_of(capsys, [*BASE, *words])


def test_several_workdirs():
  args, _ = main._parse([*BASE, 'b', '--workdir', 'c', '--checkpoint', '1,2', '--suite', 'asr'])
  assert args.workdirs == ['no/such', 'b', 'c'] and args.workdir == 'no/such'
