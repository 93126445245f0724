"""What the method's parts are worth: the demo without each of them, scored on held-out records.

  ttt-jax sweep --sweep configs/sweeps/demo_ablations.py --config configs/demo.py \\
    --workdir ablations --config.data.path=../demo/data

Hardware: 2 CPU cores, about 25 minutes a member; on SLURM, `--launcher slurm` runs them side by
side.
"""

from ttt_jax.runs import sweep


def get_sweep() -> sweep.Sweep:
  return sweep.Sweep({
      'all': {},
      'no_banom': {'objective.banom': 0.0},        # never clean audio with the AR term alone
      'no_ppm': {'objective.ppm': 0.0},            # no clean spans before a drawn one
      'no_sst': {'data.sst': 0.0},                 # spans never cut short
      'ar': {'objective.mode': 'ar'},              # everything token by token
      'nar': {'objective.mode': 'nar'},            # everything by diffusion
  }, evaluate=True)
