"""Settings to change when a step does not fit, the cheapest first."""

import math

from ttt_jax.config import Config
from ttt_jax.config.settings import REMATS
from ttt_jax.model.types import AnyMesh
from ttt_jax.system.hardware import Topology


def advice(config: Config, mesh: AnyMesh, topology: Topology,
           all_policies: bool) -> list[str]:
  """Changes that save memory, as command-line flags.

  Args:
    config: of the run that does not fit.
    mesh: its mesh.
    topology: its chips.
    all_policies: whether all remat policies were tried; if not, a stronger one is suggested.
  """
  out, shape = [], mesh.shape
  policy = REMATS.index(config.model.remat)
  if not all_policies and policy < REMATS.index('full'):
    out.append(f'--config.model.remat={REMATS[policy + 1]}, or --remat auto to choose')
  parts = math.prod(shape[axis] for axis in ('slice', 'data', 'fsdp'))
  rows = config.train.batch_size // config.train.grad_accum_steps
  if rows % (2 * parts) == 0:
    out.append(f'--config.train.grad_accum_steps={2 * config.train.grad_accum_steps}')
  elif rows > parts or config.train.batch_size % (2 * config.train.grad_accum_steps * parts):
    fewer = parts * config.train.grad_accum_steps
    if fewer < config.train.batch_size:
      out.append(f'--config.train.batch_size={fewer}')
  if shape['data'] % 2 == 0:
    out.append(f'--config.mesh.data={shape["data"] // 2} --config.mesh.fsdp={2 * shape["fsdp"]}')
  if config.optimizer.name == 'adamw':
    out.append('--config.optimizer.name=adafactor')
  if config.objective.loss_chunk > 256:
    out.append(f'--config.objective.loss_chunk={config.objective.loss_chunk // 2}')
  if not out or len(out) < 2:
    out.append(f'more chips than {topology}, or chips with more memory')
  return out
