"""The forms of attention side by side: agreement, time, memory.

  python benchmarks/attention.py --json attention.json   # a few minutes on 2 cores
  python benchmarks/attention.py --quick                 # agreement and the shortest rows

Four tables, forward and backward everywhere:

  agreement    every form against the dense one in float32 on packed rows with padding and an
               empty row, the Pallas kernel interpreted, tokamax by its XLA operation: the
               largest difference as a share of the largest value
  here         dense against what suits this hardware on rows of speech documents
               (benchmarks/documents.py), in turns, medians by the clock and CPU time of all
               threads. Without an accelerator: blockwise, float32, 4 query heads and 2 key
               heads of 64. With one: its kernel, bfloat16, 16 and 2 heads of 128
  v5p          temporary memory of the program that the TPU compiler makes, bfloat16, 16 and 2
               heads of 128, from packed projections [B, T, H * D]; needs libtpu, no TPU
"""

import argparse
import importlib.util
import json
import pathlib
import subprocess
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402

from benchmarks import common, documents  # noqa: E402

AGREE = 1e-5                      # relative, float32
MEMORY_AIM = 150                  # MiB of the kernel, one row of 8,192
TOPOLOGY = 'v5p:2x2x1'
AHEAD = ((2048, 2), (8192, 1))    # (tokens, rows) that are compiled ahead of time
HERE = ((2048, 4), (8192, 1))     # (tokens, rows) that are timed
SMALL, LARGE = (4, 2, 64), (16, 2, 128)  # query heads, key heads, head dim


def ranges(length: int, rows: int, seed: int = 0):
  """(k_start, k_end), int32 [rows, length], of packed speech documents."""
  from ttt_jax.model import staircase
  vocab = documents.VOCABULARIES['tiny']
  batch = documents.steps('speech', vocab, 1, rows, min(length, 2048), seed)[0]
  if length > 2048:  # several packed rows one after another; the numbers tell documents apart
    parts = [documents.steps('speech', vocab, 1, rows, 2048, seed + n)[0]
             for n in range(length // 2048)]
    for n, part in enumerate(parts):
      part.document[part.document > 0] += n * 10_000
    batch = type(batch)(*(np.concatenate(column, 1) for column in zip(*parts)))
  return staircase.key_ranges(batch)


def both_ways(form):
  """(q, k, v, d_out, k_start, k_end) -> (out, dq, dk, dv)."""
  import jax

  def run(q, k, v, d_out, k_start, k_end):
    out, back = jax.vjp(lambda q, k, v: form(q, k, v, k_start, k_end), q, k, v)
    return out, *back(d_out)
  return run


def arrays(rows: int, length: int, shape: tuple[int, int, int], dtype: str):
  """(q, k, v, d_out)."""
  import jax.numpy as jnp
  rng = np.random.default_rng(0)
  heads, kv_heads, dim = shape
  return tuple(jnp.asarray(rng.standard_normal((rows, length, h, dim), np.float32), dtype)
               for h in (heads, kv_heads, kv_heads, heads))


# -- agreement --------------------------------------------------------------------------


def agreement(length: int) -> dict[str, list[float]]:
  """{form: differences of out, dq, dk, dv from the dense form's}."""
  import jax
  import jax.numpy as jnp
  from ttt_jax.model import attention
  from ttt_jax.model.kernels import gpu
  k_start, k_end = ranges(length, 3)
  padding = (jnp.arange(length) >= length - 40) | (jnp.arange(3)[:, None] == 1)
  k_start, k_end = (jnp.where(padding, 0, x) for x in (k_start, k_end))
  inputs = (*arrays(3, length, (4, 2, 64), 'float32'), k_start, k_end)
  kind = lambda **settings: lambda *inputs: attention.attend(*inputs, block=128, **settings)
  forms = {'blockwise': kind(kind='blockwise'), 'pallas': kind(kind='pallas', interpret=True)}
  if importlib.util.find_spec('tokamax'):
    forms['tokamax'] = lambda *inputs: gpu.attend(*inputs, operations=('xla',))
  want = jax.jit(both_ways(attention.attend))(*inputs)
  found = {}
  for name, form in forms.items():
    got = jax.jit(both_ways(form))(*inputs)
    found[name] = [float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in zip(got, want)]
  return found


# -- time on this machine ---------------------------------------------------------------


def times(length: int, rows: int, repetitions: int, block: int) -> dict[str, Any]:
  """{form: {'seconds', 'cpu_seconds', 'temp_bytes'}}, 'skipped': share of blocks."""
  import jax
  from ttt_jax.model import attention, staircase
  platform = jax.default_backend()
  shape, dtype = (SMALL, 'float32') if platform == 'cpu' else (LARGE, 'bfloat16')
  kinds = ['dense', 'blockwise']
  if platform != 'cpu':
    kinds.append(attention.choose('auto', platform, length))
  inputs = (*arrays(rows, length, shape, dtype), *ranges(length, rows))
  form = lambda kind: lambda *inputs: attention.attend(*inputs, kind=kind, block=block)
  programs = {kind: jax.jit(both_ways(form(kind))).lower(*inputs).compile() for kind in kinds}
  taken: dict[str, list] = {kind: [] for kind in kinds}
  for turn in range(repetitions + 1):
    for kind, program in programs.items():
      _, spent = common.timed(lambda: jax.block_until_ready(program(*inputs)))
      if turn:
        taken[kind].append(spent)
  skipped = staircase.blocks_skipped(*inputs[-2:], attention.BLOCKWISE_BLOCK)
  return {'length': length, 'rows': rows, 'heads': shape, 'dtype': dtype,
          'skipped': float(skipped), 'forms': {
              kind: {key: common.median([each[key] for each in spent])
                     for key in ('seconds', 'cpu_seconds')}
              | {'temp_bytes': common.temp_bytes(programs[kind])}
              for kind, spent in taken.items()}}


# -- memory on a TPU that is not here ---------------------------------------------------


def compile_here(kind: str, length: int, rows: int) -> dict[str, Any]:
  """Bytes of the TPU program; to be run in a child process, see ``compile_ahead``."""
  import jax
  import jax.numpy as jnp
  from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
  from ttt_jax.model import attention
  from ttt_jax.plan import aot_compile
  from ttt_jax.system import hardware
  device = np.asarray(aot_compile.tpu_devices(hardware.parse_topology(TOPOLOGY))[:1])
  replicated = NamedSharding(Mesh(device, ('data',), axis_types=(AxisType.Auto,)), PartitionSpec())
  heads, kv_heads, dim = LARGE
  form = both_ways(lambda *inputs: attention.attend(*inputs, kind=kind))

  def packed(q, k, v, d_out, k_start, k_end):
    apart = lambda x: x.reshape(*x.shape[:2], -1, dim)
    return [x.reshape(*x.shape[:2], -1) for x in form(
        apart(q), apart(k), apart(v), apart(d_out), k_start, k_end)]

  shape = lambda *size, dtype: jax.ShapeDtypeStruct((rows, length, *size), dtype,
                                                    sharding=replicated)
  inputs = [shape(h * dim, dtype=jnp.bfloat16) for h in (heads, kv_heads, kv_heads, heads)]
  inputs += [shape(dtype=jnp.int32)] * 2
  memory = jax.jit(packed).lower(*inputs).compile().memory_analysis()
  assert memory is not None
  return {'temp_bytes': memory.temp_size_in_bytes, 'peak_bytes': memory.peak_memory_in_bytes}


def compile_ahead(kind: str, length: int, rows: int) -> dict[str, Any]:
  """``compile_here`` in a child process with the environment that the TPU compiler wants."""
  from ttt_jax.plan import child_process
  words = [sys.executable, __file__, '--compile', kind, str(length), str(rows)]
  done = subprocess.run(words, env=child_process.environment(),
                        stdout=subprocess.PIPE, check=True, text=True)
  return json.loads(done.stdout.splitlines()[-1])


# -- the tables -------------------------------------------------------------------------


def show_agreement(found: dict[str, list[float]]) -> bool:
  print('Consensus with the dense form')
  print(common.table(('', 'out', 'dq', 'dk', 'dv'), [
      (name, *(f'{x:.0e}' for x in values)) for name, values in found.items()]), end='\n\n')
  return all(max(values) <= AGREE for values in found.values())


def show_times(tables: list[dict[str, Any]], device: str) -> None:
  rows = []
  for table in tables:
    dense = table['forms']['dense']
    for kind, spent in table['forms'].items():
      spent |= {'speedup': dense['seconds'] / spent['seconds'],
                'cpu_speedup': dense['cpu_seconds'] / spent['cpu_seconds']}
      rows.append((f'{table["rows"]} x {table["length"]:,} {kind}', f'{spent["seconds"]:.3f}',
                   f'{spent["cpu_seconds"]:.3f}', f'{spent["temp_bytes"] / 2**20:,.0f}',
                   f'{spent["speedup"]:.1f}', f'{spent["cpu_speedup"]:.1f}',
                   '' if kind == 'dense' else f'{100 * table["skipped"]:.0f} %'))
  print(f'Time on {device}, rows of speech documents')
  print(common.table(('', 's', 'CPU s', 'temp MiB', 'faster', 'by CPU', 'skipped'), rows),
        end='\n\n')


def show_memory(found: list[dict[str, Any]]) -> bool:
  rows = []
  for one in found:
    one['ratio'] = one['dense']['temp_bytes'] / one['pallas']['temp_bytes']
    rows.append((f'{one["rows"]} x {one["length"]:,}',
                 *(f'{one[kind]["temp_bytes"] / 2**20:,.0f}' for kind in ('dense', 'pallas')),
                 f'{one["ratio"]:.0f}'))
  print(f'Temporary memory on one chip of {TOPOLOGY}, MiB')
  print(common.table(('', 'dense', 'pallas', 'dense / pallas'), rows), end='\n\n')
  return found[-1]['pallas']['temp_bytes'] <= MEMORY_AIM * 2**20


def main(words: list[str]) -> int:
  parser = argparse.ArgumentParser(description=common.description(__doc__))
  parser.add_argument('--quick', action='store_true', help='agreement and the shortest rows')
  parser.add_argument('--repetitions', type=int, default=5)
  parser.add_argument('--block', type=int, default=512, help='config key model.attention_block')
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--json', help='write the results to this file')
  parser.add_argument('--compile', nargs=3, help=argparse.SUPPRESS)  # what compile_ahead starts
  args = parser.parse_args(words)
  if args.compile:
    print(json.dumps(compile_here(args.compile[0], *map(int, args.compile[1:]))))
    return 0
  common.stay_on(args.threads)
  from ttt_jax.cli import main as cli
  cli._configure_process(None)  # as `ttt-jax train` sets up its process
  import jax
  device = jax.devices()[0].device_kind if jax.default_backend() != 'cpu' else common.cpu_name()
  result = {'settings': vars(args), 'machine': common.machine(args.threads), 'device': device,
            'agreement': agreement(512)}
  good = show_agreement(result['agreement'])
  if not good:
    print(f'a form differs by more than {AGREE:g}', file=sys.stderr)
  result['times'] = [times(length, rows, args.repetitions, args.block)
                     for length, rows in (((512, 4),) if args.quick else HERE)]
  show_times(result['times'], device)
  if args.quick or not importlib.util.find_spec('libtpu'):
    print('No memory on a TPU: ' + ('--quick was given.' if args.quick else
                                    'libtpu is not installed.'))
  else:
    result['v5p'] = [{'length': length, 'rows': rows} | {
        kind: compile_ahead(kind, length, rows) for kind in ('dense', 'pallas')}
                     for length, rows in AHEAD]
    small = show_memory(result['v5p'])
    if not small:
      print(f'the kernel takes more than {MEMORY_AIM} MiB', file=sys.stderr)
    good &= small
  if args.json:
    common.write_json(args.json, result)
  return 0 if good else 1


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
