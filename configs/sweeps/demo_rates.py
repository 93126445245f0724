"""Three learning rates for the demo, two seeds each, 400 steps.

  ttt-jax sweep --sweep configs/sweeps/demo_rates.py --config configs/demo.py --workdir rates \\
    --config.data.path=../demo/data --jobs 2

Hardware: 2 CPU cores, two members at a time; `make demo` has prepared the rows. The table is
rates/sweep.csv, and `ttt-jax report --workdir rates` shows it with the curves.
"""

from ttt_jax.runs import sweep


def get_sweep() -> list[dict]:
  return sweep.product(
      {'optimizer.learning_rate': [6e-4, 1.2e-3, 2.4e-3]},
      [{'train.steps': 400}],
      sweep.seeds(2),
  )
