"""Ablations on the demo: training without one part of the method, scored on held-out records.

  ttt-jax sweep --sweep configs/sweeps/demo_ablations.py --config configs/demo.py \\
    --workdir ablations --config.data.path=../demo/data

Hardware: 2 CPU cores, about 25 minutes per member; with `--launcher slurm` members run in
parallel.
"""

from ttt_jax.runs import sweep


def get_sweep() -> sweep.Sweep:
  return sweep.Sweep({
      'all': {},
      'no_banom': {'objective.banom': 0.0},        # no documents with clean audio
      'no_ppm': {'objective.ppm': 0.0},            # no clean spans before a drawn one
      'no_sst': {'data.sst': 0.0},                 # no truncated spans
      'ar': {'objective.mode': 'ar'},              # all tokens autoregressive
      'nar': {'objective.mode': 'nar'},            # all answer tokens by diffusion
  }, evaluate=True)
