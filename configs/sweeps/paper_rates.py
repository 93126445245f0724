"""Learning rates for configs/sweeps/paper.py: one grid for each of its three objectives.

  ttt-jax sweep --sweep configs/sweeps/paper_rates.py --config configs/paper/mini.py \\
    --workdir paper_rates --jobs 2 --config.data.path=../paper/data

Scored on the validation set, by the scores that the comparison reports, with a seed that is not
among its three. The full number of steps: the best rate of a short run is often another one.
"""

from ttt_jax.runs import sweep

RATES = (1.5e-3, 3e-3, 6e-3)
MORE = {'ttt': 7.5e-4, 'nar': 1.2e-2}  # where the best was at an end of the grid


def get_sweep() -> sweep.Sweep:
  methods = {'ttt': {}, 'ar': {'objective.mode': 'ar'}, 'nar': {'objective.mode': 'nar'}}
  fixed = {'seed': 100, 'evaluate.split': 'heldout_validation'}
  members = sweep.named(methods, {'optimizer.learning_rate': RATES})
  for name, rate in MORE.items():
    members |= sweep.named({name: methods[name]}, {'optimizer.learning_rate': [rate]})
  return sweep.Sweep({name: {**point, **fixed} for name, point in members.items()}, evaluate=True)
