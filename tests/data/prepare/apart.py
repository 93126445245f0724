"""`prepare` on machines that share nothing but a bucket, for test_apart.py.

  python -m tests.data.prepare.apart ray|workers gs|s3 FOLDER

A machine is a process and its children in a mount namespace of their own: FOLDER/machine is an
empty file system there, which no other process sees. It has the home, the temporary, the cache and
the current folder. All of it runs in a network namespace with the server of the bucket, so that
nothing listens outside.

FOLDER/config.json names the sources: FOLDER/sources, which all machines have, or the URL
SCHEME://bucket/sources, to which they are copied first. One machine of two is killed with SIGKILL
in the middle. FOLDER/set gets the prepared set, FOLDER/found.json what was found on the way.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from benchmarks.ray_cluster import children
from tests.storage import servers

ROOT = pathlib.Path(__file__).parents[3]
_INSIDE = 'TTT_JAX_APART_INSIDE'
_MOUNT = 'mount -t tmpfs tmpfs "$0" && cd "$0" && mkdir home tmp cache && exec "$@"'
_DONE = 20  # results after which a machine is killed


def is_possible() -> bool:
  """Whether this system lets a user make namespaces."""
  return bool(shutil.which('unshare')) and not subprocess.run(
      ['unshare', '-rnm', 'sh', '-c', 'ip link set lo up && mount -t tmpfs tmpfs /mnt'],
      check=False, capture_output=True).returncode


class Machines:
  """Starts machines; a context manager, which ends them."""

  def __init__(self, folder: pathlib.Path):
    self._place = folder / 'machine'
    self._place.mkdir()
    self._started: list[subprocess.Popen] = []

  def start(self, *words: str, **more) -> subprocess.Popen:
    env = os.environ | {'HOME': f'{self._place}/home', 'TMPDIR': f'{self._place}/tmp',
                        'TTT_JAX_CACHE': f'{self._place}/cache', 'PYTHONPATH': str(ROOT)}
    self._started.append(subprocess.Popen(
        ['unshare', '-m', 'sh', '-c', _MOUNT, str(self._place), *words], env=env, **more))
    return self._started[-1]

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    for one in self._started:
      kill(one)
      one.wait()
    assert not list(self._place.iterdir())  # outside of the namespaces


def kill(process: subprocess.Popen) -> None:
  """SIGKILL for a machine, unless it has ended."""
  if process.poll() is None:
    for pid in [process.pid, *children(process.pid)]:
      with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def prepare(folder: pathlib.Path, url: str, *more: str) -> list[str]:
  return [sys.executable, '-m', 'ttt_jax.cli', 'prepare', '--config', str(folder / 'config.json'),
          '--workdir', url, *more]


def done(url: str) -> int:
  """Results in the bucket."""
  from ttt_jax.storage import remote
  return sum('/jobs/' in name for name in remote.files(f'{url}/.data-work'))


def on_ray(folder: pathlib.Path, url: str, machines: Machines) -> list[str]:
  """What `prepare` on two nodes says, of which one is killed."""
  head = f'127.0.0.1:{servers.free_port()}'
  os.environ |= {'RAY_USAGE_STATS_ENABLED': '0', 'RAY_worker_niceness': '0', 'RAY_ADDRESS': head}
  temporary = tempfile.mkdtemp(prefix='ray-')  # of Ray itself; paths of sockets are short
  options = ['--block', '--num-cpus=1', '--object-store-memory=100000000', '--disable-usage-stats']
  ray = [sys.executable, '-m', 'ray.scripts.scripts', 'start']
  try:
    with (folder / 'ray.log').open('w') as log:
      machines.start(*ray, '--head', f'--port={head.rpartition(":")[2]}', f'--temp-dir={temporary}',
                     '--node-ip-address=127.0.0.1', '--include-dashboard=false', *options,
                     stdout=log, stderr=log)
      wait_for(lambda: 'Ray runtime started' in (folder / 'ray.log').read_text(), 120)
      node = machines.start(*ray, f'--address={head}', '--node-ip-address=127.0.0.2', *options,
                            stdout=log, stderr=log)
      wait_for(lambda: (folder / 'ray.log').read_text().count('Ray runtime started') == 2, 120)
    driver = machines.start(*prepare(folder, url, '--config.data.runner=ray'),
                            stderr=subprocess.PIPE, text=True)
    wait_for(lambda: done(url) > _DONE or driver.poll() is not None, 200)
    kill(node)
    return [f'killed after {done(url)} results', driver.communicate()[1], str(driver.returncode)]
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def by_workers(folder: pathlib.Path, url: str, machines: Machines) -> list[str]:
  """What two workers say, of which the second is killed while it computes a job."""
  from ttt_jax.data.prepare.bucket_results import BucketBoard
  board = BucketBoard(f'{url}/.data-work')
  workers = [machines.start(*prepare(folder, url, '--worker', f'{k}/2', '--config.data.workers=1'),
                            stderr=subprocess.PIPE, text=True) for k in range(2)]
  def both():  # who comes first waits, or it would be ready before the other one begins
    there = {one.partition('-')[0] for one in board.folders('workers')}
    for k in there:
      workers[int(k)].send_signal(signal.SIGSTOP)
    return len(there) == 2
  wait_for(both, 100)
  for one in workers:
    one.send_signal(signal.SIGCONT)
  def busy():
    if workers[1].poll() is not None:
      return True
    return done(url) > _DONE and any(board.claimant(job).startswith('1-') for job in board.claims())
  wait_for(busy, 200)
  assert workers[1].poll() is None, workers[1].communicate()[1]
  kill(workers[1])
  return [f'killed after {done(url)} results', workers[0].communicate()[1],
          str(workers[0].returncode)]


def wait_for(condition, seconds: float) -> None:
  until = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < until, 'nothing happens'
    time.sleep(0.02)


def main(how: str, scheme: str, folder: pathlib.Path) -> None:
  with {'gs': servers.gcs, 's3': servers.s3}[scheme]() as server, Machines(folder) as machines:
    os.environ |= server.environment
    from ttt_jax.storage import remote
    url = f'{server.url}/run'
    remote.upload_folder(folder / 'sources', f'{server.url}/sources')
    said = {'ray': on_ray, 'workers': by_workers}[how](folder, url, machines)
    remote.download_folder(f'{url}/data', folder / 'set')
    (folder / 'found.json').write_text(json.dumps(
        {'said': said, 'left': list(remote.files(f'{url}/.data-work'))}))


if __name__ == '__main__':
  if _INSIDE not in os.environ:
    sys.exit(subprocess.run(
        ['unshare', '-rn', 'sh', '-c', 'ip link set lo up && exec "$@"', 'sh', sys.executable, '-m',
         'tests.data.prepare.apart', *sys.argv[1:]], check=False, cwd=ROOT,
        env=os.environ | {_INSIDE: '1'}).returncode)
  main(sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]))
