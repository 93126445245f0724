"""One plan, made in a child process: python -m ttt_jax.plan.planner REQUEST ANSWER.

REQUEST is a JSON file {config, topology, slices, remat, workdir}. The plan is written to ANSWER as
JSON, or {'error': message for the user}. Progress is printed line by line.
"""

import dataclasses
import json
import math
import pathlib
import sys
from typing import Any, Callable, NamedTuple

import jax

from ttt_jax.config import Config, from_dict, user_classes
from ttt_jax.config.settings import REMATS
from ttt_jax.errors import UserError
from ttt_jax.model import attention, flops, sharding
from ttt_jax.model.transformer import Model
from ttt_jax.model.types import AnyMesh
from ttt_jax.plan import aot_compile, collectives, roofline
from ttt_jax.plan.advice import advice
from ttt_jax.plan.batch_stats import Sample, take
from ttt_jax.plan.estimate import Estimate, estimate
from ttt_jax.plan.vocabulary import planned_vocabulary
from ttt_jax.system.hardware import Topology, parse_topology
from ttt_jax.tokens.vocab import Vocabulary
from ttt_jax.train import optimizer as optimizers, state as train_state

# With --remat auto a policy whose estimate exceeds the limit by this factor is not compiled.
_HOPELESS = 1.35
Say = Callable[[str], None]  # receives progress messages


class _Case(NamedTuple):
  """The inputs of a plan; only config.model.remat varies between the policies tried."""
  config: Config
  vocab: Vocabulary
  topology: Topology
  mesh: AnyMesh
  sample: Sample
  compiles: bool

  @property
  def limit(self) -> float:
    """Bytes of memory per device."""
    return self.topology.chip.hbm_bytes / self.topology.chip.devices

  @property
  def model(self) -> Model:
    return Model(self.config.model, self.vocab.size, platform=self.topology.chip.platform)

  def with_remat(self, policy: str) -> '_Case':
    model = dataclasses.replace(self.config.model, remat=policy)
    return self._replace(config=dataclasses.replace(self.config, model=model))


class _Outcome(NamedTuple):
  """One remat policy: the estimate and, if it was compiled, the compiler's numbers."""
  case: _Case
  guess: Estimate
  facts: aot_compile.Facts | None

  @property
  def bytes(self) -> float:
    """Per device."""
    return self.facts.bytes if self.facts else self.guess.bytes

  @property
  def fits(self) -> bool:
    return self.bytes <= self.case.limit


def plan(config: Config, topology: Topology, remat: str | None = None,
         workdir: str | None = None, say: Say = lambda what: None) -> dict[str, Any]:
  """Memory, time and communication of a training step of this config on these chips.

  Args:
    config: of the run; mesh.slices must be the topology's.
    topology: the chips. TPUs need the environment that child_process.py sets.
    remat: a policy; 'auto' for the cheapest that fits; None for the config's own.
    workdir: with prepared data to sample; None: synthetic documents.
    say: called with progress messages.

  Returns:
    The plan, JSON-ready. Bytes and seconds are of one step:
      hbm_bytes_per_chip, hbm_limit_bytes, fits; hbm_parts by name; hbm_estimate by formulas
      remat, tried: the policy, and all that were tried; advice: settings to change
      useful_flops, executed_flops, executed_parts: over all chips
      collectives: kind -> bytes per device; collective_list; warnings
      roofline: seconds by part; step_seconds_bound, mfu_bound, tokens_per_second_bound,
        chip_seconds_per_million_tokens
      compiled: whether the numbers are the compiler's, else not_compiled_because
      compile_seconds; sample: batch statistics; and the settings of the plan

  Raises:
    UserError: a mesh that does not fit the chips or does not divide the batch; a codec whose
      vocabulary is unknown before its data is prepared; no data in ``workdir``.
  """
  compiles = topology.chip.platform == 'tpu' and aot_compile.available()
  mesh = (sharding.make_mesh(config.mesh, aot_compile.tpu_devices(topology)) if compiles else
          sharding.abstract_mesh(config.mesh, topology.devices))
  sharding.check_batch(mesh, config.train.batch_size, config.train.grad_accum_steps,
                       config.data.seq_len)
  sharding.check_heads(mesh, config.model.num_attention_heads, config.model.num_key_value_heads)
  vocab = planned_vocabulary(config, workdir)
  say('counting a sample of rows')
  case = _Case(config, vocab, topology, mesh, take(config, vocab, workdir), compiles)
  tried = []
  for policy in REMATS if remat == 'auto' else (remat or config.model.remat,):
    tried.append(_try(case.with_remat(policy), remat == 'auto', say))
    if tried[-1].fits:
      break
  chosen = tried[-1] if tried[-1].fits else min(tried, key=lambda outcome: outcome.bytes)
  return _answer(chosen, tried)


def _try(case: _Case, choosing: bool, say: Say) -> _Outcome:
  """Estimate, and compile unless that is impossible or the estimate is far above the limit."""
  model = case.model
  optimizer = optimizers.make(case.config.optimizer, case.config.train.steps)
  state = train_state.abstract(model, optimizer, case.mesh)  # type: ignore  # shapes suffice
  guess = estimate(case.config, state, case.mesh, model.rows, case.sample)
  policy = case.config.model.remat
  if not case.compiles or choosing and guess.bytes > _HOPELESS * case.limit:
    return _Outcome(case, guess, None)
  assert isinstance(case.mesh, jax.sharding.Mesh)  # of libtpu's devices
  say(f'compiling the train step for {case.topology}, remat {policy!r} (minutes for a large model)')
  facts = aot_compile.compile_step(case.config, case.vocab, case.mesh, case.limit, _turns(case))
  return _Outcome(case, guess, facts)


def _turns(case: _Case) -> float:
  """Chunks of the loss per microbatch, on the average device."""
  config, pieces = case.config, case.config.train.grad_accum_steps
  parts = math.prod(case.mesh.shape[axis] for axis in ('slice', 'data', 'fsdp', 'seq'))
  positions = config.train.batch_size * config.data.seq_len / (parts * pieces)
  scored = positions * case.sample.scored / config.data.seq_len
  return max(1, math.ceil(scored / min(config.objective.loss_chunk, positions)))


def _flops(case: _Case) -> flops.Flops:
  """Of a step over all devices."""
  config, sample = case.config, case.sample
  rows, length = config.train.batch_size, config.data.seq_len
  form = attention.choose(config.model.attention, case.topology.chip.platform, length)
  parts = math.prod(case.mesh.shape[axis] for axis in ('slice', 'data', 'fsdp', 'seq'))
  chunk = min(config.objective.loss_chunk, rows * length / (parts * config.train.grad_accum_steps))
  rows *= config.objective.passes
  return flops.step_flops(
      config.model, case.vocab.size, tokens=sample.tokens * rows, scored=sample.scored * rows,
      mask_pairs=sample.mask_pairs * rows, slots=rows * length,
      logit_rows=(_turns(case) * chunk * parts * config.train.grad_accum_steps
                  * config.objective.passes),
      visited_pairs=rows * length**2 * (1.0 if form == 'dense' else sample.visited),
      backward_pairs=rows * length**2 * (1.0 if form in ('dense', 'tokamax') else sample.visited),
      vocab_rows=case.model.rows, attention=form)


def _answer(chosen: _Outcome, tried: list[_Outcome]) -> dict[str, Any]:
  case, facts = chosen.case, chosen.facts
  config, topology, per_chip = case.config, case.topology, case.topology.chip.devices
  counted = facts if facts and facts.traffic > 0 else None
  found = counted.collectives if counted else chosen.guess.collectives
  traffic = counted.traffic if counted else chosen.guess.traffic
  count = _flops(case)
  line = roofline.bound(count.executed, traffic, found, topology, _places(case))
  tokens = config.train.batch_size * config.data.seq_len
  model = case.model
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0)))
  memory = ({'arguments': facts.arguments, 'temporary': facts.temporary, 'program': facts.program,
             "the compiler's peak": facts.peak, 'on the host': facts.host}
            if facts else chosen.guess.memory)
  return {
      'config': config.name, 'hardware': config.hardware, 'topology': topology.name,
      'slices': topology.slices, 'chips': topology.chips, 'devices': topology.devices,
      'chip': dataclasses.asdict(topology.chip), 'mesh': dict(case.mesh.shape),
      'parameters': flops.parameters(config.model, model.rows),
      'vocabulary': case.vocab.size, 'batch_size': config.train.batch_size,
      'seq_len': config.data.seq_len, 'grad_accum_steps': config.train.grad_accum_steps,
      'optimizer': config.optimizer.name, 'sample': case.sample._asdict(),
      'remat': config.model.remat,
      'attention': attention.choose(config.model.attention, topology.chip.platform,
                                    config.data.seq_len),
      'compiled': counted is not None, 'not_compiled_because': _why_not(case, facts),
      'hbm_bytes_per_chip': chosen.bytes * per_chip, 'hbm_limit_bytes': topology.chip.hbm_bytes,
      'hbm_parts': {name: size * per_chip for name, size in memory.items()},
      'hbm_estimate': chosen.guess.bytes * per_chip,
      'fits': chosen.fits,
      'advice': [] if chosen.fits else advice(config, case.mesh, topology, len(tried) > 1),
      'tried': [{'remat': one.case.config.model.remat, 'bytes': one.bytes * per_chip,
                 'compiled': one.facts is not None, 'fits': one.fits} for one in tried],
      'useful_flops': count.useful, 'executed_flops': count.executed,
      'executed_parts': count.parts,
      'collectives': collectives.by_kind(found),
      'collective_list': [one._replace(group=(one.group[:2], len(one.group)))._asdict()
                          for one in found],
      'warnings': facts.notes if facts else [],
      'replicated_parameters': sharding.report(case.mesh, model.axes(), shapes),
      'memory_traffic': traffic,
      'roofline': line._asdict() | {'bound_by': line.bound_by},
      'step_seconds_bound': line.seconds,
      'mfu_bound': roofline.mfu(count.useful, line.seconds, topology),
      'tokens_per_second_bound': tokens / line.seconds,
      'chip_seconds_per_million_tokens': line.seconds * topology.chips / tokens * 1e6,
      'compile_seconds': sum(one.facts.seconds for one in tried if one.facts),
  }


def _why_not(case: _Case, facts: aot_compile.Facts | None) -> str:
  """Why the numbers are estimates; '' if they are the compiler's."""
  if case.topology.chip.platform == 'gpu':
    return 'a GPU program can only be compiled on a machine with that GPU'
  if not case.compiles:
    return "libtpu is not installed (pip install 'ttt_jax[plan]')"
  if facts is None:
    return 'the estimate is far above the memory of a chip'
  return '' if facts.traffic else 'the program is too large for the memory of a chip'


def _places(case: _Case) -> list[roofline.Place]:
  if case.compiles:
    assert isinstance(case.mesh, jax.sharding.Mesh)  # of libtpu's devices
    return aot_compile.places(case.mesh)
  chip = case.topology.chip
  if chip.platform == 'gpu':
    return [roofline.Place(at // chip.largest[0], ()) for at in range(case.mesh.size)]
  # Without libtpu the devices' coordinates are unknown: assume row-major order.
  inside = case.mesh.size // case.topology.slices
  return [roofline.Place(at // inside, _coordinates(at % inside // chip.devices,
                                                    case.topology.shape))
          for at in range(case.mesh.size)]


def _coordinates(at: int, shape: tuple[int, ...]) -> tuple[int, ...]:
  out = []
  for size in reversed(shape):
    at, rest = divmod(at, size)
    out.append(rest)
  return tuple(reversed(out))


def main() -> None:
  """Entry point of the child process: read a request file, write its answer file."""
  request_file, answer_file = sys.argv[1:]
  request = json.loads(pathlib.Path(request_file).read_text(encoding='utf-8'))
  try:
    answer = plan(from_dict(Config, user_classes.as_stored(request['config'])),
                  parse_topology(request['topology'], request['slices']), request['remat'],
                  request['workdir'], lambda what: print(what, flush=True))
  except UserError as error:
    answer = {'error': str(error)}
  pathlib.Path(answer_file).write_text(json.dumps(answer), encoding='utf-8')


if __name__ == '__main__':
  main()
