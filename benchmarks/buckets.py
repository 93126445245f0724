"""Time and requests of a save and of a resume in a bucket, beside the local disk.

  python -m benchmarks.buckets --json buckets.json

The store is the GCS emulator of the tests, in memory on loopback: the times are those of this
program and the emulator, without a network. A save counts from its start until the checkpoint is
complete and older ones are removed; a resume chooses the newest intact checkpoint and restores it.
With --count, requests are counted behind a proxy instead.
"""

import argparse
import collections
import os
import tempfile
import time
from typing import Any

from benchmarks import common


def state_of(megabytes: float, step: int) -> Any:
  """Parameters and AdamW state of a model of 24 arrays."""
  import jax
  import jax.numpy as jnp
  from ttt_jax.train.state import TrainState
  count = int(megabytes * 1e6 / 4 / 3 / 24)
  draw = lambda seed: {f'w{i}': jax.random.normal(jax.random.key(seed + i), (count // 64, 64))
                       for i in range(24)}
  return TrainState(jnp.int32(step), draw(step), {'mu': draw(step + 100), 'nu': draw(step + 200)})


def save_and_resume(directory: str, state: Any, rounds: int) -> dict[str, list[float]]:
  """Seconds of every save and of every resume, but for the first of each."""
  import jax
  from ttt_jax.train import checkpoint
  target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype,
                                                          sharding=leaf.sharding), state)
  out: dict[str, list[float]] = {'save': [], 'resume': []}
  for step in range(1, rounds + 2):
    with checkpoint.Checkpoints(directory, keep=2) as checkpoints:
      began = time.perf_counter()
      checkpoints.save(step, state, {})
      checkpoints.wait()
      out['save'].append(time.perf_counter() - began)
    with checkpoint.Checkpoints(directory, keep=2) as checkpoints:
      began = time.perf_counter()
      jax.block_until_ready(checkpoints.restore(checkpoints.recover(), target))
      out['resume'].append(time.perf_counter() - began)
  return {name: seconds[1:] for name, seconds in out.items()}


def requests(server: Any, state: Any) -> dict[str, dict[str, int]]:
  """Requests of a save that replaces an older checkpoint, and of a resume, by method."""
  import jax
  from tests.storage import proxy as proxies
  from ttt_jax.train import checkpoint
  os.environ |= server.through((proxy := proxies.Proxy(server.address)).address)
  url = server.url + '/counted/checkpoints'
  target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype,
                                                          sharding=leaf.sharding), state)
  out = {}
  with checkpoint.Checkpoints(url, keep=2) as checkpoints:
    for step in (1, 2, 3, 4):
      proxy.requests.clear()
      checkpoints.save(step, state, {})
      checkpoints.wait()
    out['save'] = dict(collections.Counter(method for method, _ in proxy.requests))
  with checkpoint.Checkpoints(url, keep=2) as checkpoints:
    proxy.requests.clear()
    checkpoints.restore(checkpoints.recover(), target)
    out['resume'] = dict(collections.Counter(method for method, _ in proxy.requests))
  proxy.close()
  return out


def main() -> None:
  parser = argparse.ArgumentParser(description=common.description(__doc__), allow_abbrev=False)
  parser.add_argument('--megabytes', type=float, default=30.0, help='of the state')
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--threads', type=int, default=2, help='cores')
  parser.add_argument('--count', action='store_true', help='count requests, and measure no times')
  parser.add_argument('--json', metavar='FILE', help='also write the result here')
  args = parser.parse_args()
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  common.stay_on(args.threads)
  from tests.storage import servers
  with servers.gcs() as server, tempfile.TemporaryDirectory() as folder:
    os.environ |= server.environment
    state = state_of(args.megabytes, 0)
    # The libraries read the address once, so requests are counted by another process.
    if args.count:
      counted = requests(server, state)
      for name, methods in counted.items():
        print(name, *(f'{method}={number}' for method, number in sorted(methods.items())))
      return
    disk = save_and_resume(folder, state, args.rounds)
    bucket = save_and_resume(server.url + '/run/checkpoints', state, args.rounds)
  rows = []
  for name in ('save', 'resume'):
    one, other = common.median(disk[name]), common.median(bucket[name])
    rows.append((name, f'{one:.3f}', f'{other:.3f}', f'{other / one:.2f}'))
  print(common.table((f'{args.megabytes:g} MB', 'disk [s]', 'gs:// [s]', 'ratio'), rows))
  if args.json:
    common.write_json(args.json, {'machine': common.machine(args.threads), 'disk': disk,
                                  'bucket': bucket})


if __name__ == '__main__':
  main()
