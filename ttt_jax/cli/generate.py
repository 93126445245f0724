"""Commands that use a trained model: `generate` answers, `score` computes likelihoods."""

import argparse
from collections.abc import Callable
import pathlib

from ttt_jax import config as config_lib
from ttt_jax.cli.checkpoint_flag import add_checkpoint
from ttt_jax.data.records.recordings import RECORDED as TASKS
from ttt_jax.errors import UserError



def add_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
  """Add the commands in VERBS to the command line.

  Args:
    verb: (name, text, example, takes_config=True) -> its parser, which has --workdir already.
  """
  _add_generate(verb('generate', 'generate answers with the trained model, as text and WAV files',
                     'ttt-jax generate --workdir demo --task tts --text "four one nine" '
                     '--out demo/answers'))
  score = verb('score', 'compute likelihoods of recorded answers: text exactly, audio as a bound',
               'ttt-jax score --workdir demo --config.score.items=10')
  add_checkpoint(score)
  score.add_argument('--records', action='append', default=[], metavar='FILE',
                     help='a .jsonl file of records (default: the held-out records)')
  score.add_argument('--out', metavar='FILE', help='JSON with one entry per record (default: '
                     'WORKDIR/scores.json)')


def _add_generate(sub: argparse.ArgumentParser) -> None:
  sub.add_argument('--task', choices=TASKS, metavar='TASK',
                   help='one of ' + ', '.join(TASKS) + '; required with --text and --audio')
  sub.add_argument('--text', action='append', default=[], metavar='TEXT',
                   help='a text to answer, or a question about --audio; can be repeated')
  sub.add_argument('--audio', action='append', default=[], metavar='FILE',
                   help='a recording to answer, any format that `prepare` reads; can be repeated')
  sub.add_argument('--records', action='append', default=[], metavar='FILE',
                   help='a .jsonl file of records; their last assistant turn is generated')
  sub.add_argument('--out', required=True, metavar='DIR', help='output folder')
  add_checkpoint(sub)
  sub.add_argument('--stream', action='store_true',
                   help='print text and write audio while they are generated, one answer at a time')


def _generate(args: argparse.Namespace, config: config_lib.Config) -> None:
  inputs = {'text': args.text, 'audio': args.audio, 'records': args.records}
  if not any(inputs.values()):
    raise UserError('no input; add at least one of --text, --audio and --records.')
  if (args.text or args.audio) and not args.task:
    raise UserError(f'--task is required with --text and --audio: one of {", ".join(TASKS)}.')
  _check_files(args.audio + args.records)
  from ttt_jax.generate.generate_files import generate_files
  generate_files(config, args.workdir, inputs | {'task': args.task}, args.out, args.stream,
                 args.checkpoint)


def _score(args: argparse.Namespace, config: config_lib.Config) -> None:
  _check_files(args.records)
  from ttt_jax.generate import score
  print(score.table(score.score_files(config, args.workdir, args.records, args.out,
                                      args.checkpoint)))


def _check_files(paths: list[str]) -> None:
  for path in paths:
    if not pathlib.Path(path).is_file():
      raise UserError(f'file {path} does not exist.')


VERBS = {'generate': _generate, 'score': _score}
