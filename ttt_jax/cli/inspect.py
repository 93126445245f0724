"""The command `inspect`: shows prepared documents, and records before they are prepared."""

import argparse
from collections.abc import Callable
import pathlib

from ttt_jax import config as config_lib


def add_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
  """Add the command; ``verb`` as in cli/generate.py."""
  sub = verb('inspect', 'show a document as the model sees it: text, spans, mask and audio',
             'ttt-jax inspect --workdir demo --document 17 --ids')
  sub.add_argument('--split', default='train', metavar='NAME', help='default: train')
  sub.add_argument('--document', type=int, metavar='N',
                   help='its number (default: the first with spoken output)')
  sub.add_argument('--record', metavar='FILE:LINE',
                   help='show this record of a file instead, as `ttt-jax prepare` would render it '
                   'for each entry of data.sources that names the file')
  sub.add_argument('--task', metavar='NAME',
                   help='task of --record, if data.sources does not name its file')
  sub.add_argument('--ids', action='store_true',
                   help='list every token: id, attended positions, loss')
  sub.add_argument('--set', action='store_true', dest='summary',
                   help='write an HTML summary of the prepared data instead, with histograms')
  sub.add_argument('--out', metavar='DIR', help='folder for images, audio and the summary '
                   '(default: WORKDIR/inspect)')


def _inspect(args: argparse.Namespace, config: config_lib.Config) -> None:
  from ttt_jax.runs.report import inspect_set
  out = pathlib.Path(args.out) if args.out else pathlib.Path(args.workdir) / inspect_set.FOLDER
  if args.record:
    from ttt_jax.runs.report import inspect_record
    for text in inspect_record.show(config, pathlib.Path(args.workdir), args.record, args.task,
                                    out, args.ids):
      inspect_set.print_markup(text)
    return
  dataset = inspect_set.PreparedSet(config, args.workdir)
  if args.summary:
    print(inspect_set.page(dataset, out))
    return
  inspect_set.print_markup(inspect_set.show(dataset, args.split, args.document, out, args.ids))


VERBS = {'inspect': _inspect}
