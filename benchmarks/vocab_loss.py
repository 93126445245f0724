"""The loss over a large vocabulary: all logits at once against a chunk at a time.

  python benchmarks/vocab_loss.py --json vocab_loss.json        # a few minutes on 2 cores
  python benchmarks/vocab_loss.py --vocabulary 8192 --chunk 256 512 1024

Loss and both gradients of --positions hidden states of width --width over --vocabulary ids,
float32, a --scored share of the positions with a label: the plain form (logits of every
position, log-softmax, automatic gradient) and objective/losses.py at every --chunk. Both are
compiled in one process and take turns; the numbers are medians by the clock, processor time
of all threads, and the temporary memory that the compiler reserves.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import common  # noqa: E402

AGREE = 1e-4  # relative difference of totals and of gradients' norms


def _inputs(args: argparse.Namespace):
  """(hidden, table, labels)."""
  import numpy as np
  from ttt_jax.objective import losses
  rng = np.random.default_rng(0)
  shape = (1, args.positions)
  f32 = lambda *shape: rng.standard_normal(shape, np.float32)
  scored = np.zeros(shape, bool)
  scored[0, rng.permutation(args.positions)[:round(args.scored * args.positions)]] = True
  audio = rng.random(shape) < 0.5
  weight = lambda which: np.where(scored & which, 1 / args.positions, 0).astype(np.float32)
  label = lambda: rng.integers(0, args.vocabulary, shape).astype(np.int32)
  return (f32(*shape, args.width), f32(args.vocabulary, args.width) * args.width ** -0.5,
          losses.Labels(scored, label(), label(), weight(~audio), weight(audio)))


def _naive(hidden, table, labels):
  """The total from all logits."""
  import jax
  import jax.numpy as jnp
  log_p = jax.nn.log_softmax(hidden @ table.T)
  pick = lambda label: -jnp.take_along_axis(log_p, label[..., None], -1)[..., 0]
  return jnp.sum(pick(labels.next_label) * labels.next_weight
                 + pick(labels.self_label) * labels.self_weight)


def measure(args: argparse.Namespace) -> dict:
  """{name: {'seconds', 'cpu_seconds', 'temp_bytes', 'total', 'norms'}}."""
  import jax
  import jax.numpy as jnp
  from ttt_jax.objective import losses
  inputs = jax.tree.map(jnp.asarray, _inputs(args))
  ways = {'all logits': _naive} | {
      f'chunks of {chunk}': lambda h, t, labels, chunk=chunk: losses.pair_loss(
          h, t, labels, args.vocabulary, chunk=chunk, dtype='float32', form=args.form)[0]
      for chunk in args.chunk}
  compiled = {name: jax.jit(jax.value_and_grad(way, (0, 1))).lower(*inputs).compile()
              for name, way in ways.items()}
  out: dict[str, dict] = {name: {'temp_bytes': common.temp_bytes(program)}
                          for name, program in compiled.items()}
  taken: dict[str, list] = {name: [] for name in ways}
  for turn in range(args.repetitions + 1):
    for name, program in compiled.items():
      result, times = common.timed(lambda: jax.block_until_ready(program(*inputs)))
      if turn:
        taken[name].append(times)
      else:
        total, slopes = result
        out[name] |= {'total': float(total),
                      'norms': [float(jnp.linalg.norm(slope)) for slope in slopes]}
  for name, times in taken.items():
    out[name] |= {key: common.median([each[key] for each in times])
                  for key in ('seconds', 'cpu_seconds')}
  return out


def main(words: list[str]) -> int:
  parser = argparse.ArgumentParser(description=common.description(__doc__))
  parser.add_argument('--vocabulary', type=int, default=168_072)
  parser.add_argument('--positions', type=int, default=4096)
  parser.add_argument('--width', type=int, default=256)
  parser.add_argument('--scored', type=float, default=0.5, help='share of positions with a label')
  parser.add_argument('--chunk', type=int, nargs='+', default=[256, 512, 1024])
  parser.add_argument('--form', choices=('auto', 'rows', 'dense'), default='auto')
  parser.add_argument('--repetitions', type=int, default=3)
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--json', help='write the results to this file')
  args = parser.parse_args(words)
  common.stay_on(args.threads)
  from ttt_jax.cli import main as cli
  cli._configure_process(None)  # as `ttt-jax train` sets up its process
  found = measure(args)
  base = found['all logits']
  rows, agree = [], True
  for name, at in found.items():
    pairs = zip((at['total'], *at['norms']), (base['total'], *base['norms']))
    agree &= all(abs(mine - other) <= AGREE * abs(other) for mine, other in pairs)
    at |= {'time_ratio': at['seconds'] / base['seconds'],
           'memory_ratio': at['temp_bytes'] / base['temp_bytes']}
    rows.append((name, f'{at["seconds"]:.2f}', f'{at["cpu_seconds"]:.2f}',
                 f'{at["temp_bytes"] / 2**20:,.0f}', f'{at["time_ratio"]:.2f}',
                 f'{at["memory_ratio"]:.2f}'))
  print(common.table(('', 's', 'CPU s', 'temp MiB', 'time', 'memory'), rows))
  if args.json:
    common.write_json(args.json, {'settings': vars(args), 'machine': common.machine(args.threads),
                                  'ways': found})
  if not agree:
    print('the ways disagree', file=sys.stderr)
  return 0 if agree else 1


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
