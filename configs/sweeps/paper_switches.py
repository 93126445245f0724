"""Switches of the objective on the miniature of the paper: what they buy in scores.

  ttt-jax sweep --sweep configs/sweeps/paper_switches.py --config configs/paper/mini.py \\
    --workdir paper_switches --jobs 2 --config.data.path=../paper/data

'count' has the noise with the least variance at the same cost. 'mirror' takes two passes per step,
so half the steps are an equal number of passes. 'confidence' is for fewer decoding steps:
`ttt-jax evaluate --workdir paper_switches/MEMBER --config.generate.steps=3` gives its scores there.
docs/method.md explains the switches, docs/benchmarks.md has the results.
"""

from ttt_jax.runs import sweep


def get_sweep() -> sweep.Sweep:
  rate = {'optimizer.learning_rate': 1.5e-3}  # of 'ttt' in configs/sweeps/paper.py
  methods = {
      'ttt': rate,
      'count': {'objective.t_sampling': 'stratified', 'objective.mask_weight': 'count', **rate},
      'mirror': {'objective.mirror': 'draws', 'objective.mask_weight': 'count',
                 'train.steps': 1000,
                 'data.stages': [{'split': 'short', 'steps': 150}, {'split': 'train'}], **rate},
      'confidence': {'objective.confidence_weight': 0.2, **rate},
  }
  return sweep.Sweep(sweep.named(methods, sweep.seeds(3)), evaluate=True, reference='ttt')
