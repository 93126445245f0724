"""The verb `inspect`: look at data before training on them, or before preparing them."""

import argparse
from collections.abc import Callable
import pathlib

from ttt_jax import config as config_lib


def add_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
  """Add the verb; ``verb`` is as in cli_generate."""
  sub = verb('inspect', 'show a document as the model sees it: words, spans, mask and sound',
             'ttt-jax inspect --workdir demo --document 17 --ids')
  sub.add_argument('--split', default='train', metavar='NAME', help='default: train')
  sub.add_argument('--document', type=int, metavar='N',
                   help='its number; default: the first that speaks')
  sub.add_argument('--record', metavar='FILE:LINE',
                   help='show this record of a file instead, as prepare would render it for every '
                   'entry of data.sources that names the file')
  sub.add_argument('--task', metavar='NAME',
                   help='of --record, if data.sources does not name its file')
  sub.add_argument('--ids', action='store_true',
                   help='list every token: id, what it reads, whether it has a loss')
  sub.add_argument('--set', action='store_true', dest='whole',
                   help='write a page about the whole set, with histograms, instead')
  sub.add_argument('--out', metavar='DIR', help='for pictures, sounds and the page; default: '
                   'WORKDIR/inspect')


def _inspect(args: argparse.Namespace, config: config_lib.Config) -> None:
  from ttt_jax.runs.report import inspect_set
  out = pathlib.Path(args.out) if args.out else pathlib.Path(args.workdir) / inspect_set.FOLDER
  if args.record:
    from ttt_jax.runs.report import inspect_record
    for text in inspect_record.show(config, pathlib.Path(args.workdir), args.record, args.task,
                                    out, args.ids):
      inspect_set.say(text)
    return
  held = inspect_set.Set(config, args.workdir)
  if args.whole:
    print(inspect_set.page(held, out))
    return
  inspect_set.say(inspect_set.show(held, args.split, args.document, out, args.ids))


VERBS = {'inspect': _inspect}
