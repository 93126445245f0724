"""Generation: the published decoder in PyTorch against the engine, with the same tokens.

  python benchmarks/generate.py --against torch --json generate.json   # half an hour or more
  python benchmarks/generate.py --against torch --quick                # minutes, to compile

  torch  benchmarks/torch_generate.py: no cache, one request, the complete sequence and all its
         logits at every step
  ours   the engine of `ttt-jax generate`, for one request and for several at once

A conversation of 1,000 tokens: a prompt of 61, then 18 times a begin token, a span of 27
and 13 text tokens; then a second request, whose prompt is all that, answers with a begin
token and a span of 200. Blocks of 26, greedy. Weights are made so that a begin token is
the best choice after text whenever it is allowed (benchmarks/our_generate.py), and
min_span = max_span, so every span runs to its limit; every other choice is open. Both sides
take the same steps, and no block can end early. The second prompt is in the engine's prefix cache,
so it is not read again; PyTorch has no cache.

PyTorch is too slow for a thousand tokens. It answers --check rounds in full; then steps are timed
at several lengths of *our* conversation and integrated over all lengths. Every token that these
steps choose must equal ours, except where the decision is within rounding.

Guidance 'published' masks the prefix and computes the full length at every step; 'begin' is the
engine's cheaper form with other tokens, and is compared with the same published run.
"""

import argparse
from collections.abc import Callable
import dataclasses
import json
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402

from benchmarks import common, documents, generate_report  # noqa: E402
from ttt_jax.config import ModelConfig  # noqa: E402

NEAR = 1e-3   # gaps of logits that float32 may decide either way
WEIGHT = 0.1  # of guidance
LENGTHS = (500, 4000)


@dataclasses.dataclass(frozen=True)
class Shape:
  """A conversation: prompt, rounds of (begin, span, text), and (begin, last span)."""
  prompt: int = 61
  rounds: int = 18
  span: int = 27
  gap: int = 13
  last: int = 200
  block: int = 26

  @property
  def period(self) -> int:
    return 1 + self.span + self.gap

  def begin(self, number: int) -> int:
    """Index of the begin token of span ``number``; the last one is ``rounds``."""
    return self.prompt + number * self.period

  @property
  def tokens(self) -> int:
    return self.begin(self.rounds) + 1 + self.last

  def blocks(self, number: int) -> list[tuple[int, int]]:
    """(index of the first mask, masks) of a span's blocks; its end token is forced."""
    start = self.begin(number) + 1
    masks = (self.last if number == self.rounds else self.span) - 1
    return [(start + at, min(self.block, masks - at)) for at in range(0, masks, self.block)]

  def settings(self, span: int, tokens: int, steps: int, guidance: float) -> dict:
    """Of one request, for either side."""
    return {'block': self.block, 'steps': steps, 'min_span': span, 'max_span': span,
            'text_gap': self.gap, 'max_tokens': tokens, 'guidance': guidance}

  def turns(self, steps: int, guidance: float) -> list[dict]:
    """The two requests."""
    return [self.settings(self.span, self.begin(self.rounds), steps, guidance),
            self.settings(self.last, self.tokens, steps, guidance)]

  def steps(self, per_block: int) -> list[tuple[str, int]]:
    """(kind, length of the sequence) of every step of the algorithm."""
    out = []
    for number in range(self.rounds + 1):
      begin = self.begin(number)
      out.append(('text', begin))
      for start, masks in self.blocks(number):
        out += [('span', start + masks)] * min(per_block, masks)
      if number < self.rounds:
        out += [('text', begin + 1 + self.span + i) for i in range(self.gap)]
    return out


class Different(RuntimeError):
  """The two sides chose different tokens, so their times are not comparable."""


def compare(ours: list[int], torch: dict, first: int, mask: int, where: str) -> dict:
  """Count equal tokens from ``first`` on, up to the first near tie.

  Args:
    ours: ids of our conversation.
    torch: 'ids', masks where nothing was chosen yet, and the 'gaps' of those from ``first`` on.
    first: index.
    mask: the mask's id.
    where: for the message.

  Returns:
    equal: tokens; parted: index of the first difference, or None; gap: there, or the smallest.

  Raises:
    Different: a difference that rounding does not explain.
  """
  equal, gaps = 0, torch['gaps']
  for i in range(first, len(torch['ids'])):
    if torch['ids'][i] == mask:
      continue
    if torch['ids'][i] != ours[i]:
      if gaps[i - first] > NEAR:
        raise Different(f'{where}: at token {i} ours is {ours[i]}, torch has {torch["ids"][i]}, '
                        f'and the closest decision there was {gaps[i - first]:.1e} apart')
      return {'equal': equal, 'parted': i, 'gap': gaps[i - first]}
    equal += 1
  return {'equal': equal, 'parted': None, 'gap': min(gaps, default=None)}


# -- one vocabulary ---------------------------------------------------------------------------


class Run:
  """Both sides over one vocabulary, and what was measured so far."""

  def __init__(self, args: argparse.Namespace, name: str, folder: pathlib.Path):
    self.args, self.name, self.folder = args, name, folder
    self.vocab, self.shape = documents.VOCABULARIES[name], args.shape
    rng = np.random.default_rng(1)
    self.prompts = [self._words(rng, self.shape.prompt) for _ in range(max(args.batch))]
    self.longer = {length: self._words(rng, length) for length in args.lengths}
    case = {'config': dataclasses.asdict(args.model), 'vocabulary': self.vocab.to_dict(),
            'seed': 0, 'positions': max(self.shape.tokens, *args.lengths) + 200}
    (folder / 'case.json').write_text(json.dumps(case), encoding='utf-8')
    common.run_module('benchmarks.our_generate', 'prepare', str(folder), str(args.threads),
                      threads=args.threads)
    self.live = {}
    self.torch: common.Side  # both are started by ``measure``
    self.ours: common.Side

  def _words(self, rng: np.random.Generator, count: int) -> list[int]:
    return rng.integers(self.vocab.text_ranks, size=count).tolist()

  def start(self, context: str, slots: int, tokens: int) -> None:
    """Start an engine of ours."""
    self.live[f'{slots} x {tokens}'] = self.ours.ask(
        do='start', guidance_context=context, slots=slots, max_tokens=tokens)

  def talk(self, context: str, steps: int, guidance: float, batch: int) -> dict:
    """Our conversation, after a warm-up."""
    self.start(context, batch, self.shape.tokens)
    prompts = self.prompts[:batch]
    # The steps per block are data, so one step per block compiles every program.
    self.ours.ask(do='answer', prompts=prompts, turns=self.shape.turns(1, guidance))
    self.start(context, batch, self.shape.tokens)  # an empty prefix cache
    made = self.ours.ask(do='answer', prompts=prompts, turns=self.shape.turns(steps, guidance))
    note(f'{self.name}, {steps} steps, guidance {guidance:g} {context}: ours x {batch} '
         f'{made["seconds"]:.1f} s')
    return made

  def samples(self, ids: list[int], numbers: list[int], steps: int, guidance: float) -> dict:
    """PyTorch's steps at points of our conversation: {kind: [(length, seconds, check)]}."""
    shape, out = self.shape, {'text': [], 'span': []}
    for number in numbers:
      settings = self.shape.turns(steps, guidance)[number == shape.rounds]
      begin = shape.begin(number)
      start, masks = shape.blocks(number)[-1]
      made = self.torch.ask(do='block', prefix=ids[:start], begin=begin, masks=masks, max_steps=2,
                            settings=settings)
      check = compare(ids, made, start, self.vocab.mask, f'{self.name}, span {number}')
      out['span'].append((made['lengths'][-1], min(made['seconds']), check))
      # In the middle of the text before the span; the first span has none.
      at = begin - (shape.gap // 2 if number else 0)
      gap = shape.gap - shape.gap // 2 if number else 2**30
      made = self.torch.ask(do='text', prefix=ids[:at], gap=gap, settings=settings)
      check = compare(ids, made, at, self.vocab.mask, f'{self.name}, text at {at}')
      out['text'].append((at, made['seconds'][-1], check))
    note(f'{self.name}, {steps} steps, guidance {guidance:g}: torch, steps of spans {numbers}')
    return out

  def case(self, steps: int, guidance: float) -> dict:
    """The results for one number of steps, with or without guidance."""
    shape, args = self.shape, self.args
    contexts = ('published', 'begin') if guidance else ('published',)
    batches = args.batch if not guidance or not args.published_alone else args.batch[:1]
    ours = {'published': {batches[0]: self.talk('published', steps, guidance, batches[0])}}
    ids = ours['published'][batches[0]]['ids'][0]
    numbers = sorted({round(i * shape.rounds / 6) for i in range(7)})
    sampled = self.samples(ids, numbers[::2], steps, guidance)
    for context in contexts:
      for batch in (batches if context == 'published' else args.batch):
        if batch not in ours.setdefault(context, {}):
          ours[context][batch] = self.talk(context, steps, guidance, batch)
    for kind, more in self.samples(ids, numbers[1::2], steps, guidance).items():
      sampled[kind] = sorted(sampled[kind] + more)
    check = self.check(ids, steps, guidance)
    for batch in ours['published'].values():
      assert batch['ids'][0] == ids, 'our answer depends on the batch'
    return {'steps': steps, 'guidance': guidance, 'ours': ours, 'samples': sampled,
            'check': check, 'first_audio': self.first_audio(ids, steps, guidance),
            'seconds': {'torch': integrate(sampled, shape.steps(steps))}}

  def check(self, ids: list[int], steps: int, guidance: float) -> dict:
    """PyTorch's complete answer of the first rounds, compared with ours."""
    shape = self.shape
    settings = shape.settings(shape.span, shape.begin(self.args.check), steps, guidance)
    made = self.torch.ask(do='answer', prompt=ids[:shape.prompt], settings=settings)
    found = compare(ids, made, shape.prompt, self.vocab.mask, f'{self.name}, answered in full')
    note(f'{self.name}, {steps} steps, guidance {guidance:g}: {found["equal"]} equal tokens')
    return {**found, 'seconds': made['seconds'], 'lengths': made['lengths']}

  def first_audio(self, ids: list[int], steps: int, guidance: float) -> dict:
    """Seconds to a finished first block, after the short and the long prompt, neither cached."""
    shape, out = self.shape, {}
    for length in (shape.prompt, shape.begin(shape.rounds)):
      settings = shape.settings(shape.span, length + 1 + shape.span, steps, guidance)
      made = {}
      for _ in range(3):
        self.start('published', 1, shape.tokens)
        made = self.ours.ask(do='answer', prompts=[ids[:length]], turns=[settings])
      torch = self.torch.ask(do='answer', prompt=ids[:length], settings=settings)
      compare(made['ids'][0], torch, length, self.vocab.mask, f'{self.name}, after {length}')
      out[length] = {'ours': made['turns'][0]['first_audio'], 'torch': sum(torch['seconds'])}
    return out

  def contexts(self, steps: int) -> dict:
    """Seconds of an audio step after contexts of several lengths."""
    shape, out = self.shape, {}
    self.start('published', 1, max(self.args.lengths) + 4 * shape.period)
    for length, prompt in self.longer.items():
      settings = shape.settings(shape.span, length + 4 * shape.period, steps, 0.0)
      made = {}
      for _ in range(2):
        made = self.ours.ask(do='answer', prompts=[prompt], turns=[settings])
      spans = [seconds / steps for seconds, _ in made['turns'][0]['spans']]
      prefix = [*prompt, self.vocab.begin_of_audio]
      torch = self.torch.ask(do='block', prefix=prefix, begin=length, masks=shape.block,
                             max_steps=2, settings=settings)
      compare(made['ids'][0], torch, length + 1, self.vocab.mask, f'{self.name}, after {length}')
      out[length] = {'ours': common.median(spans), 'torch': min(torch['seconds']),
                     'torch_peak_bytes': torch['peak_bytes'],
                     'ours_peak_bytes': made['peak_bytes']}
      note(f'{self.name}: an audio step after {length} tokens, torch {out[length]["torch"]:.3f} s, '
           f'ours {out[length]["ours"]:.4f} s')
    return out

  def pieces(self) -> list[dict]:
    """Seconds of the parts of our steps."""
    out = []
    for rows in self.args.batch:
      for wanted in self.args.masks:
        how = {'rows': rows, 'known': self.shape.tokens // 2, 'wanted': wanted}
        made = self.ours.ask(do='pieces', tokens=self.shape.tokens, repetitions=7, **how)
        del made['peak_bytes']
        out.append(how | {name: common.median(times) for name, times in made.items()})
    return out


def integrate(sampled: dict, steps: list[tuple[str, int]]) -> float:
  """Seconds of all steps, from those that were timed: linear between their lengths."""
  total = 0.0
  for kind, points in sampled.items():
    at, seconds, _ = zip(*points)
    total += float(np.interp([length for k, length in steps if k == kind], at, seconds).sum())
  return total


def measure(args: argparse.Namespace, name: str, out: dict, save: Callable[[], None]) -> None:
  """One vocabulary.

  Args:
    args: of the command line.
    name: of the vocabulary.
    out: the results are added to it, part by part.
    save: called after every part, so that an interrupted run keeps its results.
  """
  with tempfile.TemporaryDirectory() as folder:
    run = Run(args, name, pathlib.Path(folder))
    with common.Side('benchmarks.torch_generate', folder, str(args.threads),
                     threads=args.threads) as run.torch, \
        common.Side('benchmarks.our_generate', 'serve', folder, str(args.threads),
                    threads=args.threads) as run.ours:
      about = {'torch': run.torch.ask(do='about'), 'ours': run.ours.ask(do='about')}
      warm = args.shape.settings(args.shape.span, 10 + args.shape.period, 2, WEIGHT)
      run.torch.ask(do='answer', prompt=run.prompts[0][:10], settings=warm)
      out |= {'vocabulary': run.vocab.size, 'config': dataclasses.asdict(args.model),
              'shape': dataclasses.asdict(args.shape), 'tokens': args.shape.tokens,
              'about': about, 'cases': [], 'live': run.live}
      for guided in args.guidance:
        for steps in args.steps:
          out['cases'].append(run.case(steps, WEIGHT * guided))
          save()
      out['peak_bytes'] = {side: getattr(run, side).ask(do='about')['peak_bytes']
                           for side in about}
      out['contexts'] = run.contexts(max(args.steps))
      save()
      for tokens in (1024, 2048, 4096):
        run.start('published', 1, tokens)
      out['pieces'] = run.pieces()
      save()


def note(text: str) -> None:
  """A line of progress on standard error."""
  print(f'  {text}', file=sys.stderr, flush=True)


# -- flags ------------------------------------------------------------------------------------


def parse(argv: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=common.description(__doc__), epilog='\n'.join(
      (__doc__ or '').split('\n')[2:]), formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add('--against', choices=('torch',), default='torch', help='the other side')
  add('--vocabulary', nargs='+', choices=tuple(documents.VOCABULARIES), default=['168k', '8k'])
  add('--steps', nargs='+', type=int, default=[2, 10], help='per block (default 2 10)')
  add('--guidance', nargs='+', type=int, choices=(0, 1), default=[0, 1],
      help=f'without, and with a weight of {WEIGHT:g} (default both)')
  add('--batch', nargs='+', type=int, default=[1, 8], help='our requests at once (default 1 8)')
  add('--published-alone', action='store_true',
      help='published guidance for one request only: eight take eight times as long')
  add('--check', type=int, default=2, help='rounds that PyTorch answers in full (default 2)')
  add('--threads', type=int, default=2, help='cores for either side (default 2)')
  add('--quick', action='store_true', help='a tiny model and conversation, to see that it runs')
  add('--json', metavar='F', help='write every number to this file')
  args = parser.parse_args(argv)
  if min(*args.steps, *args.batch, args.check, args.threads) < 1:
    parser.error('--steps, --batch, --check and --threads are at least 1')
  args.model, args.shape, args.lengths = ModelConfig(), Shape(), LENGTHS
  args.masks = (0, 26, 13)  # of the steps whose parts are timed
  if args.quick:
    args.model = ModelConfig(num_layers=2,
                             hidden_size=64,
                             num_attention_heads=4,
                             num_key_value_heads=2,
                             head_dim=16,
                             intermediate_size=96)
    args.shape = Shape(prompt=20, rounds=2, span=9, gap=4, last=20, block=8)
    args.vocabulary, args.steps, args.batch, args.lengths = ['tiny'], [2], [1, 2], (40, 120)
    args.masks = (0,)
  if args.check > args.shape.rounds:
    parser.error(f'--check is at most {args.shape.rounds} rounds')
  return args


def main(argv: list[str] | None = None) -> dict:
  """Run what the flags say; returns what --json gets."""
  args = parse(argv)
  machine = common.machine(args.threads)
  print(f'{machine["cpu"]}, {machine["cores"]} cores, {args.threads} in use\n')
  out = {'machine': machine, 'against': args.against, 'vocabularies': []}
  def save() -> None:
    if args.json:
      common.write_json(args.json, out)
  for name in args.vocabulary:
    out['vocabularies'].append({})
    measure(args, name, out['vocabularies'][-1], save)
    print(generate_report.show(out['vocabularies'][-1]), flush=True)
  return out


if __name__ == '__main__':
  main()
