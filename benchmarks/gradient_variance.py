"""Variance of the gradient over draws of the noise, for the switches of the objective.

  python benchmarks/gradient_variance.py --workdir demo                 # a trained model
  python benchmarks/gradient_variance.py --workdir demo --init          # the same, untrained
  python benchmarks/gradient_variance.py --workdir demo --config configs/demo.py --rows 3

One batch of --rows rows of the training split, the parameters of the workdir's newest checkpoint
(or random ones), and --draws gradients of each variant, computed as a train step does. The variance
is the total one, E |g - E g|^2 over all parameters, times the forward passes of a draw, so that
variants with two passes are compared at equal cost: 0.8 is what uniform draws reach with 25 % more
passes. The objective is the config's; a variant changes what its name says.

A stratified t is spread over the visits of a document and means nothing in a single one. So it is
measured as --visits visits of the batch with one model: that many times the variance of their mean.

--density K first measures E |g|^2 with t in each of K equal parts of [0, 1), prints the density of
t that is best for it (proportional to its root: objective.t_density), half of it uniform so that
no weight exceeds 2, and adds it as a variant, "importance".

"shift" compares the mean gradient with that of the first variant: |difference|^2 over what the
noise of both means makes of it, about 1 for equal expectations. A t for each span has another one.
"""

import argparse
import dataclasses
import pathlib
import sys
import time
from typing import Any
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import common  # noqa: E402

_GROUPS = 10  # of draws; the spread of their variances gives the standard error
# Name -> changes of the objective.
VARIANTS: dict[str, dict[str, Any]] = {
    'uniform': {},
    'count': {'mask_weight': 'count'},
    'stratified': {'t_sampling': 'stratified'},
    'stratified, count': {'t_sampling': 'stratified', 'mask_weight': 'count'},
    'mirror masks': {'mirror': 'masks'},
    'mirror draws': {'mirror': 'draws'},
    'mirror draws, count': {'mirror': 'draws', 'mask_weight': 'count'},
    'span': {'t_unit': 'span'},
    'span, stratified, count': {'t_unit': 'span', 't_sampling': 'stratified',
                                'mask_weight': 'count'},
}


def _parameters(args: argparse.Namespace, config, model, vocab):
  import jax
  from ttt_jax.train import trained_model
  if args.init:
    return jax.jit(model.init)(jax.random.key(config.seed)), 'random'
  run = trained_model.load(config, args.workdir)
  assert run.vocab == vocab
  return run.params, f'checkpoint {run.step}'


def _problem(args: argparse.Namespace):
  """(config, model, vocab, params, where they are from, batch)."""
  import jax
  import jax.numpy as jnp
  from ttt_jax import config as config_lib
  from ttt_jax.data import loader, store
  from ttt_jax.model.transformer import Model
  workdir = pathlib.Path(args.workdir)
  config = config_lib.load(args.config or workdir / 'config.json', dict(
      change.split('=', 1) for change in args.set))
  data_dir = store.locate(workdir, config.data.path)
  vocab = store.vocabulary(data_dir)
  last = dataclasses.replace(config.data, stages=config.data.stages[-1:], threads=0)
  batch = loader.Loader(data_dir, last, args.rows, config.seed, vocab).batch_at(args.batch)
  model = Model(config.model, vocab.size)
  params, source = _parameters(args, config, model, vocab)
  return config, model, vocab, params, source, jax.tree.map(jnp.asarray, batch)


def _density(args: argparse.Namespace, config, model, vocab, params, batch, documents: int
             ) -> tuple[float, ...]:
  """The density of t, over --density parts, with which a document's gradient varies least."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  from ttt_jax.objective import diffusion
  from ttt_jax.train import step as train_step
  count = max(2, args.draws // args.density)
  found = []
  for part in range(args.density):
    form = dataclasses.replace(config, objective=dataclasses.replace(
        config.objective, t_density=(1.0,), banom=0.0))
    inside = lambda uniform, _, part=part: ((part + uniform) / args.density, 1.0)

    @jax.jit
    def sums(keys):
      def add(total, key):
        with mock.patch.object(diffusion, 'importance', inside):
          grads, _ = train_step.gradients(form, model, vocab, params, batch, key, None)
        g = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(grads)])
        return (total[0] + g, total[1] + jnp.sum(g * g)), None
      size = sum(leaf.size for leaf in jax.tree.leaves(params))
      return jax.lax.scan(add, (jnp.zeros(size), jnp.float32(0)), keys)[0]

    total, square = sums(jax.random.split(jax.random.key(part), count))
    mean = np.asarray(total, np.float64) / count
    variance = (float(square) / count - mean @ mean) * count / (count - 1)
    # Of one document: the variance of a mean over n of them is an nth, its square is not.
    found.append(float(np.sqrt(variance * documents + max(mean @ mean - variance / count, 0.0))))
    print(f't in {part / args.density:.2f} to {(part + 1) / args.density:.2f}: {found[-1]:.4g}',
          file=sys.stderr, flush=True)
  best = np.array(found) / np.mean(found)
  return tuple(round(float(x), 3) for x in (1 + best) / 2)


def measure(args: argparse.Namespace) -> dict[str, Any]:
  """{'parameters', 'documents', 'variants': {name: numbers}}: the variance times the passes of a
  draw, its standard error, the squared length of the mean gradient, and how they were measured."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  from ttt_jax.objective import hybrid
  from ttt_jax.train import step as train_step
  config, model, vocab, params, source, batch = _problem(args)
  config = dataclasses.replace(config, train=dataclasses.replace(config.train, grad_accum_steps=1))
  out: dict[str, Any] = {'parameters': source, 'variants': {},
                         'documents': int(train_step.documents_in(batch))}
  base, base_noise = None, 0.0
  variants = {name: VARIANTS[name] for name in args.only or VARIANTS}
  if args.density:
    density = _density(args, config, model, vocab, params, batch, out['documents'])
    out['density'] = density
    print(f'config.objective.t_density = {density}', flush=True)
    variants |= {'importance': {'t_density': density},
                 'mirror draws, importance': {'t_density': density, 'mirror': 'draws'}}
  for name, changes in variants.items():
    objective = dataclasses.replace(config.objective, **changes)
    form = dataclasses.replace(config, objective=objective)
    spread = objective.t_sampling == 'stratified' and objective.t_unit == 'document'
    visits = args.visits if spread else 1

    def gradient(key, number):
      visit = hybrid.Visit(key, jnp.full((args.rows, 1), number)) if spread else None
      grads, _ = train_step.gradients(form, model, vocab, params, batch,
                                      jax.random.fold_in(key, number), None, visit)
      return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(grads)])

    def mean_of_visits(key):
      first = gradient(key, 0)
      if visits == 1:
        return first
      return jax.lax.fori_loop(1, visits, lambda i, total: total + gradient(key, i), first) / visits

    @jax.jit
    def sums(keys):
      def add(total, key):
        g = mean_of_visits(key)
        return (total[0] + g, total[1] + jnp.sum(g * g)), None
      size = sum(leaf.size for leaf in jax.tree.leaves(params))
      return jax.lax.scan(add, (jnp.zeros(size), jnp.float32(0)), keys)[0]

    started = time.perf_counter()
    count = max(2, args.draws // (_GROUPS * visits * objective.passes))  # in a group
    parts = [sums(jax.random.split(jax.random.key(1000 + group), count))
             for group in range(_GROUPS)]
    means = np.array([np.asarray(total, np.float64) / count for total, _ in parts])
    mean = means.mean(0)
    # Around the mean of all groups, so that few draws in a group cost no accuracy.
    total = count * _GROUPS
    cost = objective.passes * visits
    spreads = [float(square) / count - 2 * part @ mean + mean @ mean
               for (_, square), part in zip(parts, means)]
    variance = cost * np.mean(spreads) * total / (total - 1)
    noise = variance / cost / total
    if base is None:
      base, base_noise = mean, noise
    out['variants'][name] = {
        'variance': variance, 'error': cost * np.std(spreads, ddof=1) / np.sqrt(_GROUPS),
        'mean_square': mean @ mean, 'passes': objective.passes, 'visits': visits,
        'draws': total * cost, 'seconds': time.perf_counter() - started,
        'shift': float((mean - base) @ (mean - base) / (noise + base_noise))}
    found = out['variants'][name]
    print(f'{name}: {found["variance"]:.4g} +- {found["error"]:.2g} ({found["seconds"]:.0f} s)',
          file=sys.stderr, flush=True)
  return out


def arguments(words: list[str]) -> argparse.Namespace:
  """Of the command line."""
  parser = argparse.ArgumentParser(description=common.description(__doc__))
  parser.add_argument('--workdir', required=True, help='with prepared data and a checkpoint')
  parser.add_argument('--config', help="config file; default: the workdir's config.json")
  parser.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE', help='settings')
  parser.add_argument('--init', action='store_true', help='random parameters')
  parser.add_argument('--rows', type=int, default=1)
  parser.add_argument('--batch', type=int, default=400, help='number of the batch')
  parser.add_argument('--draws', type=int, default=1000, help='forward passes of a variant')
  parser.add_argument('--visits', type=int, default=8)
  parser.add_argument('--only', nargs='*', choices=sorted(VARIANTS))
  parser.add_argument('--density', type=int, default=0, metavar='K', help='parts; 0: none')
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--json', help='write the results to this file')
  return parser.parse_args(words)


def main(words: list[str]) -> int:
  args = arguments(words)
  common.stay_on(args.threads)
  from ttt_jax.cli import main as cli
  cli._configure_process(None)  # as `ttt-jax train` sets up its process
  found = measure(args)
  variants = found['variants']
  first = next(iter(variants.values()))['variance']
  print(f'{found["documents"]} documents, {found["parameters"]} parameters')
  print(common.table(
      ('', 'variance', 'ratio', '+-', 'passes', 'visits', 'shift'),
      [(name, f'{one["variance"]:.4g}', f'{one["variance"] / first:.3f}',
        f'{one["error"] / first:.3f}', str(one['passes']), str(one['visits']),
        f'{one["shift"]:.2f}') for name, one in variants.items()]))
  if args.json:
    common.write_json(args.json, {'settings': vars(args), 'machine': common.machine(args.threads),
                                  **found})
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
