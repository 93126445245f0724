"""The command `evaluate`: held-out records of a run, or a benchmark (--suite)."""

import argparse
from collections.abc import Callable
import pathlib

from ttt_jax import config as config_lib
from ttt_jax.errors import UserError
from ttt_jax.evaluate.suites import registry


def add_flags(verb: Callable[..., argparse.ArgumentParser]) -> argparse.ArgumentParser:
  """Add the command to the command line; returns its parser.

  Args:
    verb: (name, text, example, takes_config=True) -> its parser, which has --workdir already.
  """
  sub = verb('evaluate', 'evaluate the trained model on held-out records, or on a benchmark',
             'ttt-jax evaluate --workdir demo --config.evaluate.items=20\n'
             '  ttt-jax evaluate --workdir demo --suite asr --data LibriSpeech/test-clean')
  sub.add_argument('--out', metavar='DIR', help='folder of evaluation.json and samples/ '
                   '(default: the workdir, if it can be written); with --suite of its results '
                   '(default: WORKDIR/suites/SUITE-DATA)')
  sub.add_argument('--checkpoint', metavar='STEP', help='step of a checkpoint in '
                   'WORKDIR/checkpoints (default: the newest); with --suite several: 100,200')
  sub.add_argument('--speed', type=int, metavar='N', help='measure instead how fast N held-out '
                   'records of asr and tts each are answered, one at a time, on an idle machine')
  sub.add_argument('--suite', metavar='NAME', help='a benchmark: ' + ', '.join(registry.SUITES))
  sub.add_argument('--data', metavar='DIR', help='folder or file of the benchmark')
  sub.add_argument('--task', metavar='TASK', help='with --suite classification: sec (sound events; '
                   'the default) or asc (scenes)')
  sub.add_argument('--subset', metavar='NAMES', help='with --suite: parts of the benchmark, such '
                   'as test-clean,test-other (default: the test parts, or all)')
  sub.add_argument('--items', type=int, metavar='N',
                   help='with --suite: only N items, evenly spaced (default: all)')
  sub.add_argument('--sounds', type=int, metavar='N', help='with --suite: keep the speech of N '
                   'answers as WAV files (default: 20; -1: all)')
  return sub


def run(args: argparse.Namespace, config: config_lib.Config) -> None:
  """Run the command."""
  steps = _steps(args.checkpoint)
  if args.suite is None:
    for flag in ('data', 'task', 'subset', 'items', 'sounds'):
      if getattr(args, flag) is not None:
        raise UserError(f'--{flag} has no effect without --suite; remove it.')
    for several, flag in ((len(args.workdirs) > 1, '--workdir'), (len(steps) > 1, '--checkpoint')):
      if several:
        raise UserError(f'{flag} names several, which only a --suite compares; name one.')
    if args.speed is not None:
      _speed(args, config, steps[0])
      return
    from ttt_jax.evaluate.evaluate import evaluate
    from ttt_jax.evaluate.summary import table_text
    print(table_text(evaluate(config, args.workdir, args.out, steps[0])))
    return
  if args.speed is not None:
    raise UserError('--speed has no effect with --suite; remove one of them.')
  if args.data is None:
    raise UserError(f'--suite {args.suite} needs --data, the folder of the benchmark.')
  if 'evaluate.items' in args.overrides:
    raise UserError('--config.evaluate.items counts held-out records; with --suite use --items N.')
  if args.items is not None and args.items < 1:
    raise UserError(f'--items is {args.items}; it must be at least 1.')
  from ttt_jax.evaluate.suites import runner
  from ttt_jax.runs.report import suite_page
  models = [runner.Model(_config(args, workdir, config), pathlib.Path(workdir), step)
            for workdir in args.workdirs for step in steps]
  summary = runner.evaluate(args.suite, args.data, models, args.out, args.items or 0,
                            20 if args.sounds is None else args.sounds, args.task or '',
                            args.subset or '')
  print(runner.text(summary))
  print(suite_page.write(summary['folder'], summary))


def _speed(args: argparse.Namespace, config: config_lib.Config, step: int | None) -> None:
  if args.speed < 1:
    raise UserError(f'--speed is {args.speed}; it must be at least 1.')
  if args.out is not None:
    raise UserError('--out has no effect with --speed, which writes WORKDIR/speed.json; remove it.')
  from ttt_jax.evaluate import speed
  for name, value in speed.measure(config, args.workdir, args.speed, step)['summary'].items():
    print(f'{name}  {value:.3g} seconds per second of speech')


def _steps(given: str | None) -> list[int | None]:
  """The steps of --checkpoint; [None] for the newest."""
  if given is None:
    return [None]
  words = given.split(',')
  if not all(word.strip().isdecimal() for word in words):
    raise UserError(f'--checkpoint is {given!r}; it must be the step of a checkpoint, or several '
                    'separated by commas.')
  return list(dict.fromkeys(int(word) for word in words))


def _config(args: argparse.Namespace, workdir: str, first: config_lib.Config) -> config_lib.Config:
  """The config of a workdir: --config for all, or that of each."""
  if args.config or workdir == args.workdir:
    return first
  saved = pathlib.Path(workdir) / 'config.json'
  if not saved.is_file():
    raise UserError(f'{saved} does not exist; name the config with --config FILE, or a workdir '
                    'that `ttt-jax prepare` has written.')
  return config_lib.load(saved, args.overrides)
