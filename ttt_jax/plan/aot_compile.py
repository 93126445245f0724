"""The real train step, compiled ahead of time for TPUs that are not attached.

Needs libtpu (the extra 'plan'), whose compiler runs on any Linux machine. For some topologies it
aborts the process, and its environment must be set before JAX starts, so this runs in a child
process (child_process.py).
"""

import importlib.util
import re
import time
from typing import Any, NamedTuple

import jax

from ttt_jax.config import Config
from ttt_jax.errors import UserError
from ttt_jax.model import sharding
from ttt_jax.model.transformer import Model
from ttt_jax.plan import collectives, hlo, memory_traffic
from ttt_jax.plan.roofline import Place
from ttt_jax.system.hardware import Topology
from ttt_jax.tokens.vocab import Vocabulary
from ttt_jax.train import optimizer as optimizers, state as train_state, step as train_step


class Facts(NamedTuple):
  """The compiler's numbers for one device's program.

  Attributes:
    arguments, temporary, program: bytes of main memory; donated buffers are counted once.
    peak: XLA's own estimate of the peak memory, bytes.
    host: bytes in the host's memory (remat 'offload').
    collectives: of a step.
    traffic: bytes to and from main memory in a step; 0 if it did not compile.
    seconds: compile time.
    notes: warnings, one sentence each.
  """
  arguments: float
  temporary: float
  program: float
  peak: float
  host: float
  collectives: list[collectives.Collective]
  traffic: float
  seconds: float
  notes: list[str]

  @property
  def bytes(self) -> float:
    """Memory to plan with: the larger of XLA's two estimates, either of which can be too low."""
    return max(self.peak, self.arguments + self.temporary + self.program)


def available() -> bool:
  """Whether TPU programs can be compiled here."""
  return importlib.util.find_spec('libtpu') is not None


def tpu_devices(topology: Topology) -> list[Any]:
  """Device descriptions of a topology; no device is attached.

  Raises:
    UserError: libtpu does not know the topology.
  """
  from jax.experimental import topologies
  try:
    # Only with this setting is a v4 chip one device, as it is at run time.
    megacore = {'chip_config_name': 'megacore'} if topology.chip.name == 'v4' else {}
    description = topologies.get_topology_desc(
        platform='tpu', topology_name=topology.name, num_slices=topology.slices, **megacore)
  except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
    reason = str(error).strip().splitlines()[0][:200]
    raise UserError(f'libtpu does not accept topology {topology}: {reason}') from error
  return list(description.devices)


def places(mesh: jax.sharding.Mesh) -> list[Place]:
  """Slice and coordinates of the devices of a mesh of TPUs, in the order of the mesh."""
  return [Place(getattr(device, 'slice_index', None) or 0, tuple(device.coords))
          for device in mesh.devices.flat]


def compile_step(config: Config, vocab: Vocabulary, mesh: jax.sharding.Mesh, limit: float,
                 turns: float) -> Facts:
  """Compile ``train_step`` as `ttt-jax train` would run it.

  Args:
    config: everything about the run.
    vocab: of its data.
    mesh: of ``tpu_devices``.
    limit: bytes of memory per device, for the message when a program does not fit.
    turns: assumed trip count of loops that depend on the data (chunks of the loss).

  Returns:
    Facts. Those of a program that is too large for the device have only its size.
  """
  model = Model(config.model, vocab.size, platform='tpu')
  optimizer = optimizers.make(config.optimizer, config.train.steps)
  batch = sharding.abstract_batch(mesh, config.train.batch_size, config.data.seq_len)
  with jax.set_mesh(mesh):
    state = train_state.abstract(model, optimizer, mesh)
    step = train_step.make_train_step(config, model, vocab, optimizer, mesh)
    lowered = step.lower(state, batch)  # type: ignore  # jitted, but typed as a plain function
    started = time.monotonic()
    try:
      compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      used = max(memory_needed(str(error)), limit + 1)
      return Facts(0.0, 0.0, 0.0, used, 0.0, [], 0.0, time.monotonic() - started, [
          f'the program needs {used / 1e9:.2f} GB per device, but a device has '
          f'{limit / 1e9:.2f} GB, so it was not compiled.'])
  seconds = time.monotonic() - started
  return _facts(compiled, mesh, turns, seconds)


def _facts(compiled: Any, mesh: jax.sharding.Mesh, turns: float, seconds: float) -> Facts:
  memory = compiled.memory_analysis()
  program = hlo.Program(compiled.as_text(), turns)
  found = collectives.find(program, mesh.shape['slice'], mesh.size)
  notes = collectives.warnings(found)
  kept = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return Facts(
      arguments=memory.argument_size_in_bytes,
      temporary=memory.temp_size_in_bytes + max(kept, 0),
      program=memory.generated_code_size_in_bytes,
      peak=getattr(memory, 'peak_memory_in_bytes', 0),
      host=memory.host_temp_size_in_bytes + memory.host_argument_size_in_bytes,
      collectives=found, traffic=memory_traffic.memory_bytes(program), seconds=seconds, notes=notes)


def memory_needed(message: str) -> float:
  """Bytes that XLA's out-of-memory message names, as in 'Used 19.08G of 15.75G hbm' or 'required
  for HLO temporaries (1.17T) exceeds available HBM'; 0 if it names none."""
  match = re.search(r'Used ([\d.]+)([KMGT])i?B? of [\d.]+[KMGT]i?B? hbm', message) or re.search(
      r'\(([\d.]+)([KMGT])\) exceeds available HBM', message)
  if not match:
    return 0.0
  return float(match[1]) * 1024 ** (' KMGT'.index(match[2]))
