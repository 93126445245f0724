"""One training step: the published way in PyTorch against ours, on the same documents.

  python benchmarks/train_step.py --against torch --json train_step.json   # about 25 minutes
  python benchmarks/train_step.py --against torch --quick                  # about a minute
  python benchmarks/train_step.py --against none --vocabulary 8k           # ours, by piece

  torch  Hugging Face's Qwen2, a dense 4-D mask, every document padded to 2,048 tokens, logits
         for every position over the complete vocabulary, fused AdamW, gradients accumulated over
         the largest microbatches whose logits fit in --torch-memory
  ours   ttt_jax.train.step as `ttt-jax train` runs it: the same documents packed into rows,
         in microbatches of at most as many rows as PyTorch takes samples

Both start from the same weights and get the same documents with the same noise; the losses and
gradient norms of the first step must agree before anything is timed. Then the sides take
turns, one step each, every turn with a new batch, each side in a process of its own with
--threads cores. What is counted is *useful* tokens: those of documents, not padding.

Two kinds of rows. 'speech': documents of 150 to 2,048 tokens, about 700 on average, as
benchmarks/documents.py makes them. 'full': every document has 2,048 tokens, so neither side
pads and packing gains nothing.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402

from benchmarks import common, documents  # noqa: E402
from ttt_jax.config import (Config, DataConfig, ModelConfig, ObjectiveConfig,  # noqa: E402
                            TrainConfig, load, save, to_dict)

AIMS = {'speech': 4.0, 'full': 1.2}   # ours / torch, useful tokens per second
MEMORY_AIM = 1 / 3                    # ours / torch, peak
AGREE = 1e-4                          # losses of the first step, relative


@dataclasses.dataclass(frozen=True)
class Case:
  """One table: a vocabulary and a kind of rows."""
  vocabulary: str
  kind: str
  config: Config
  repetitions: int
  threads: int

  @property
  def vocab(self):
    return documents.VOCABULARIES[self.vocabulary]

  def at_once(self, memory: float) -> int:
    """Padded samples that PyTorch can take at once.

    Args:
      memory: bytes for logits, their softmax and their gradient, all float32.
    """
    each = 3 * 4 * self.config.data.seq_len * self.vocab.size
    return max(1, int(memory / each))

  def write(self, folder: pathlib.Path) -> None:
    """case.json, and from it everything else that the sides read."""
    values = {'config': to_dict(self.config), 'vocabulary': self.vocab.to_dict(),
              'kind': self.kind, 'steps': self.repetitions + 1, 'seed': 0}
    (folder / 'case.json').write_text(json.dumps(values), encoding='utf-8')
    common.run_module('benchmarks.our_side', 'prepare', str(folder), str(self.threads),
                      threads=self.threads)


def count_tokens(folder: pathlib.Path, step: int, vocab) -> dict[str, int]:
  """What a step's batch holds."""
  with np.load(folder / f'step_{step}.npz') as rows:
    real = rows['document'] > 0
    numbers = np.unique(rows['document'][real])
    text = (rows['supervised'] > 0) & ~vocab.is_audio(rows['token'])
    return {'useful': int(real.sum()), 'slots': real.size, 'documents': len(numbers),
            'supervised': int(rows['supervised'].sum()), 'masked': int(rows['masked'].sum()),
            'text_targets': int(text.sum())}


class Disagreement(RuntimeError):
  """The two sides do not compute the same loss, so their times are not comparable."""


def check_agreement(ours: dict, torch: dict) -> dict[str, float]:
  """Relative differences of the first step.

  Raises:
    Disagreement: a difference above AGREE in the loss, or above ten times that in the
      gradient's norm.
  """
  out = {}
  for name, limit in (('loss', AGREE), ('grad_norm', 10 * AGREE)):
    out[name] = abs(ours[name] - torch[name]) / max(1.0, abs(torch[name]))
    if not out[name] <= limit:
      raise Disagreement(f'{name} of the first step: ours {ours[name]}, torch {torch[name]}; they '
                         f'may differ by {limit:g} of it at most')
  return out


def against_torch(case: Case, memory: float, attention: str) -> dict:
  """Measure one case; the result is what --json gets of it."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    case.write(folder)
    tokens = [count_tokens(folder, i, case.vocab) for i in range(case.repetitions + 1)]
    pieces = min(case.at_once(memory), max(t['documents'] for t in tokens))
    with common.Side('benchmarks.torch_baseline', name, str(case.threads), str(pieces), attention,
                     threads=case.threads) as torch, \
        common.Side('benchmarks.our_side', 'serve', name, str(case.threads),
                    threads=case.threads) as ours:
      sides = {'torch': torch, 'ours': ours}
      about = {side: child.ask(do='about') for side, child in sides.items()}
      first = {side: child.ask(do='step', step=0) for side, child in sides.items()}
      difference = check_agreement(first['ours'], first['torch'])
      turns = {side: [] for side in sides}
      for step in range(1, case.repetitions + 1):
        for side, child in sides.items():
          turns[side].append(child.ask(do='step', step=step))
          note(f'{case.vocabulary} {case.kind}: step {step} of {case.repetitions}, {side} '
               f'{turns[side][-1]["seconds"]:.2f} s')
  return {
      'vocabulary': case.vocab.size, 'rows': case.kind, 'threads': case.threads,
      'config': to_dict(case.config), 'torch_microbatch': pieces, 'torch_attention': attention,
      'batches': tokens[1:], 'first_step': first, 'first_step_difference': difference,
      'versions': {side: about[side]['versions'] for side in sides}, 'steps': turns,
      'summary': summary(case, tokens[1:], turns, about)}


def summary(case: Case, tokens: list[dict], turns: dict, about: dict) -> dict:
  """Medians over the steps and their ratios, ours / torch."""
  out: dict = {'sides': {}, 'ratio': {}, 'aim': AIMS[case.kind], 'memory_aim': MEMORY_AIM}
  rates = {}
  for side, steps in turns.items():
    rates[side] = {
        'useful_tokens_per_second': [t['useful'] / s['seconds'] for t, s in zip(tokens, steps)],
        'useful_tokens_per_cpu_second': [
            t['useful'] / s['cpu_seconds'] for t, s in zip(tokens, steps)],
        'seconds_per_step': [s['seconds'] for s in steps]}
    out['sides'][side] = {name: common.median(values) for name, values in rates[side].items()} | {
        'peak_bytes': max(s['peak_bytes'] for s in steps),
        'imported_bytes': about[side]['imported_bytes']}
  for name in rates['ours']:
    pairs = zip(rates['ours'][name], rates['torch'][name])
    out['ratio'][name] = common.median([ours / torch for ours, torch in pairs])
  ours, torch = out['sides']['ours'], out['sides']['torch']
  out['ratio']['peak_bytes'] = ours['peak_bytes'] / torch['peak_bytes']
  out['loss_difference'] = max(abs(a['loss'] - b['loss']) / max(1.0, abs(b['loss']))
                               for a, b in zip(turns['ours'], turns['torch']))
  return out


# -- what people see ----------------------------------------------------------------------


def note(text: str) -> None:
  """A line of progress on standard error."""
  print(f'  {text}', file=sys.stderr, flush=True)


def heading(case: Case, tokens: list[dict]) -> list[str]:
  """What was measured, in lines of 80 columns."""
  model, data, train = case.config.model, case.config.data, case.config.train
  useful, slots, count = (sum(t[name] for t in tokens) for name in (
      'useful', 'slots', 'documents'))
  scored = sum(t['masked'] + t['text_targets'] for t in tokens)
  return [
      f'Rows: {case.kind}. Vocabulary {case.vocab.size:,}, {model.num_layers} layers of '
      f'{model.hidden_size}, float32, {case.threads} threads.',
      f'A step: {count / len(tokens):.1f} documents of {useful / count:,.0f} tokens on average, '
      f'{100 * scored / useful:.0f} % of them scored.',
      f'Ours: {train.batch_size} rows of {data.seq_len:,}, '
      f'{100 * (1 - useful / slots):.1f} % padding, '
      f'{train.batch_size // train.grad_accum_steps} at a time.'
  ]


def show(case: Case, result: dict) -> str:
  """The table of one case."""
  made = result['summary']
  torch, ours, ratio = made['sides']['torch'], made['sides']['ours'], made['ratio']
  tokens = result['batches']
  padded = 1 - sum(t['useful'] for t in tokens) / (
      sum(t['documents'] for t in tokens) * case.config.data.seq_len)
  first = result['first_step']
  line = lambda name, key, form, wanted='': (
      name, format(torch[key], form), format(ours[key], form), f'{ratio[key]:.2f}', wanted)
  mib = lambda count: f'{count / 2**20:,.0f}'
  rows = [
      line('useful tokens / s', 'useful_tokens_per_second', ',.0f', f'>= {made["aim"]:g}'),
      line('useful tokens / CPU second', 'useful_tokens_per_cpu_second', ',.0f'),
      line('seconds per step', 'seconds_per_step', ',.2f'),
      ('peak memory, MiB', mib(torch['peak_bytes']), mib(ours['peak_bytes']),
       f'{ratio["peak_bytes"]:.2f}', f'<= {MEMORY_AIM:.2f}'),
      ('  of it when imported', mib(torch['imported_bytes']), mib(ours['imported_bytes']), '', ''),
      ('loss of the first step', f'{first["torch"]["loss"]:.6f}', f'{first["ours"]["loss"]:.6f}',
       f'{result["first_step_difference"]["loss"]:.0e}', f'<= {AGREE:.0e}'),
  ]
  return '\n'.join([
      *heading(case, tokens),
      f'Torch: {100 * padded:.1f} % padding, {result["torch_microbatch"]} samples at a time, '
      f'attention {result["torch_attention"]!r}.', '',
      common.table(('median of %d steps' % case.repetitions, 'torch', 'ours', 'ours/torch',
                    'wanted'), rows), ''])


def alone(case: Case) -> dict:
  """Our step and its pieces, without the other side."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    case.write(folder)
    tokens = [count_tokens(folder, i, case.vocab) for i in range(case.repetitions + 1)]
    with common.Side('benchmarks.our_side', 'serve', name, str(case.threads),
                     threads=case.threads) as ours:
      about = ours.ask(do='about')
      steps = [ours.ask(do='step', step=i) for i in range(case.repetitions + 1)]
      pieces = ours.ask(do='pieces', repetitions=case.repetitions)
  pieces.pop('peak_bytes')
  return {'vocabulary': case.vocab.size, 'rows': case.kind, 'threads': case.threads,
          'config': to_dict(case.config), 'batches': tokens[1:], 'steps': steps[1:],
          'pieces': pieces, 'versions': {'ours': about['versions']},
          'peak_bytes': steps[-1]['peak_bytes'], 'imported_bytes': about['imported_bytes']}


def show_alone(case: Case, result: dict) -> str:
  """The table of one case without the other side."""
  middle = lambda times, name: common.median([time[name] for time in times])
  seconds = middle(result['steps'], 'seconds')
  rate = common.median([t['useful'] / s['seconds']
                        for t, s in zip(result['batches'], result['steps'])])
  rows = [(name, f'{middle(times, "seconds"):.3f}',
           f'{100 * middle(times, "seconds") / seconds:.0f} %',
           f'{middle(times, "cpu_seconds"):.3f}')
          for name, times in [*result['pieces'].items(), ('a whole step', result['steps'])]]
  return '\n'.join([
      *heading(case, result['batches']), '',
      common.table((f'ours, median of {case.repetitions}', 'seconds', 'of a step',
                    'CPU seconds'), rows),
      f'{rate:,.0f} useful tokens / s; peak memory {result["peak_bytes"] / 2**20:,.0f} MiB', ''])


# -- flags ----------------------------------------------------------------------------------


def changed(config: Config, settings: list[str]) -> Config:
  """``config`` with 'key=value' settings, read as `ttt-jax train` reads its overrides."""
  with tempfile.TemporaryDirectory() as folder:
    save(config, folder)
    return load(pathlib.Path(folder) / 'config.json',
                dict(setting.split('=', 1) for setting in settings))


def cases(args: argparse.Namespace) -> list[Case]:
  """What the flags ask for."""
  if args.quick:
    config = Config(data=DataConfig(seq_len=256),
                    train=TrainConfig(batch_size=2, steps=100),
                    model=ModelConfig(num_layers=2,
                                      hidden_size=32,
                                      num_attention_heads=4,
                                      num_key_value_heads=2,
                                      head_dim=8,
                                      intermediate_size=64))
    args.vocabulary, args.repetitions = ['tiny'], min(args.repetitions, 2)
  else:
    # Chunks of 256 instead of 512 positions: a tenth more time in the loss, half its memory.
    config = Config(train=TrainConfig(batch_size=args.batch_size, steps=1000),
                    objective=ObjectiveConfig(loss_chunk=256))
  out = []
  for vocabulary in args.vocabulary:
    for kind in args.rows:
      case = Case(vocabulary, kind, config, args.repetitions, args.threads)
      rows = config.train.batch_size
      pieces = next(n for n in range(1, rows + 1) if rows % n == 0
                    and rows // n <= case.at_once(args.torch_memory * 2**30))
      settings = [f'train.grad_accum_steps={pieces}', *args.set]
      out.append(dataclasses.replace(case, config=changed(config, settings)))
  return out


def parse(argv: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=common.description(__doc__), epilog='\n'.join(
      (__doc__ or '').split('\n')[2:6]), formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add('--against', choices=('torch', 'none'), default='torch', help='the other side')
  add('--vocabulary', nargs='+', choices=('168k', '8k'), default=['168k', '8k'])
  add('--rows', nargs='+', choices=tuple(AIMS), default=list(AIMS))
  add('--batch-rows', type=int, default=3, help='rows of 2,048 tokens per step (default 3)')
  add('--repetitions', type=int, default=5, help='timed steps of each side (default 5)')
  add('--threads', type=int, default=2, help='cores for either side (default 2)')
  add('--torch-memory', type=float, default=6.0,
      help='GiB that PyTorch may use for logits and their gradients (default 6)')
  add('--torch-attention', choices=('sdpa', 'eager'), default='sdpa')
  add('--set', nargs='+', default=[], metavar='KEY=VALUE',
      help='settings of our config, such as model.attention_block=128')
  add('--quick', action='store_true', help='a tiny model, to see that it runs')
  add('--json', metavar='F', help='write every number to this file')
  args = parser.parse_args(argv)
  if any('=' not in setting for setting in args.set):
    parser.error('--set takes settings as KEY=VALUE')
  if args.repetitions < 1 or args.threads < 1 or not math.isfinite(args.torch_memory):
    parser.error('--repetitions and --threads are at least 1')
  return args


def main(argv: list[str] | None = None) -> dict:
  """Run what the flags say; returns what --json gets."""
  args = parse(argv)
  machine = common.machine(args.threads)
  print(f'{machine["cpu"]}, {machine["cores"]} cores, {args.threads} in use\n')
  results = []
  for case in cases(args):
    if args.against == 'torch':
      results.append(against_torch(case, args.torch_memory * 2**30, args.torch_attention))
      print(show(case, results[-1]), flush=True)
    else:
      results.append(alone(case))
      print(show_alone(case, results[-1]), flush=True)
    if args.json:  # after every case: a long run that is cut off keeps what it has
      common.write_json(args.json, {'machine': machine, 'against': args.against,
                                    'cases': results})
  return {'machine': machine, 'against': args.against, 'cases': results}


if __name__ == '__main__':
  main()
