"""A Ray cluster of two nodes on this machine, for tests/data/prepare/test_ray.py and prepare.py.

  python -m benchmarks.ray_cluster CORES COMMAND...

runs COMMAND with RAY_ADDRESS set, beside nodes with CORES cores each. The one to which COMMAND is
not connected is killed with SIGKILL, with all its processes, when the file $KILL_AT appears. Ray's
servers listen on all interfaces, so all of it runs in a network namespace where the system allows
that.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

_INSIDE = 'TTT_JAX_RAY_INSIDE'


def command(cores: int, *words: str) -> list[str]:
  """The command line of this module."""
  return [sys.executable, '-m', 'benchmarks.ray_cluster', str(cores), *words]


def children(pid: int) -> list[int]:
  """Descendants of a process."""
  out = [pid]
  for one in out:
    try:
      for task in os.listdir(f'/proc/{one}/task'):
        out += map(int, pathlib.Path(f'/proc/{one}/task/{task}/children').read_text().split())
    except (FileNotFoundError, ProcessLookupError):
      pass
  return out[1:]


def main(argv: list[str]) -> int:
  unshare = ['unshare', '-rn']
  if _INSIDE not in os.environ and shutil.which('unshare') and not subprocess.run(
      [*unshare, 'ip', 'link', 'set', 'lo', 'up'], check=False, capture_output=True).returncode:
    return subprocess.run([*unshare, 'sh', '-c', 'ip link set lo up && exec "$@"', 'sh',
                           *command(int(argv[0]), *argv[1:])], check=False,
                          env=os.environ | {_INSIDE: '1'}).returncode
  from ray.cluster_utils import Cluster
  settings = {'num_cpus': int(argv[0]), 'object_store_memory': 100 * 2**20}
  os.environ['RAY_USAGE_STATS_ENABLED'] = '0'
  os.environ.setdefault('RAY_worker_niceness', '0')  # 15 by default: slower beside other work
  cluster = Cluster(initialize_head=True, head_node_args={
      **settings, 'include_dashboard': False, 'node_ip_address': '127.0.0.1'})
  try:
    node = cluster.add_node(**settings, node_ip_address='127.0.0.2')
    cluster.wait_for_nodes()
    process = subprocess.Popen(argv[1:], env=os.environ | {'RAY_ADDRESS': cluster.address})
    kill_at = os.environ.get('KILL_AT')
    while process.poll() is None:
      if kill_at and os.path.exists(kill_at):
        kill_at = None
        raylet = node.all_processes['raylet'][0].process.pid
        family = [raylet, *children(raylet)]
        for pid in family:
          os.kill(pid, signal.SIGKILL)
        print(f'killed a node of {len(family)} processes', file=sys.stderr, flush=True)
      time.sleep(0.02)
    return process.returncode
  finally:
    cluster.shutdown()


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
