"""Runs of two processes: what one of them cannot do, neither does; their times are compared."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from tests import small_run
from ttt_jax import config as config_lib
from ttt_jax.train import metrics

ROOT = pathlib.Path(__file__).parents[2]
# The kernel refuses files of process 1 that grow beyond a limit: a real error of its disk.
MEMBER = """
import resource, sys
rank, port, workdir, limit = sys.argv[1:]
if rank == '1' and int(limit) > 0:
  resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
if limit == '-1' and rank == '1':
  from ttt_jax.train import checksums
  def full(path, body):
    raise OSError(28, 'No space left on device')
  checksums._write_signed = full
if limit in ('-2', '-3') and rank == str(-2 - int(limit)):
  from orbax.checkpoint.experimental.v1._src.saving import path_utils
  async def full(*unused, **options):
    raise OSError(28, 'No space left on device')
  path_utils.maybe_overwrite_existing = full
from ttt_jax.cli import main
sys.exit(main.main(['train', '--workdir', workdir, '--processes', '2', '--process', rank,
                    '--coordinator', f'127.0.0.1:{port}']))
"""


def two(config, workdir, limit):
  """[(exit code, standard error)] of a run of two processes."""
  config_lib.save(config, workdir)
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  environment = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS':
                              '--xla_force_host_platform_device_count=1'}
  processes = [subprocess.Popen(
      [sys.executable, '-c', MEMBER, str(rank), str(port), str(workdir), str(limit)],
      env=environment, stderr=subprocess.PIPE, text=True) for rank in range(2)]
  return [(process.returncode, error) for process in processes
          for error in [process.communicate(timeout=600)[1]]]


@pytest.fixture
def config(prepared):
  return small_run.replace(
      small_run.config(steps=9, checkpoint_every=3, log_every=3, profile='2:4',
                       profile_processes='all', tensorboard=False), 'data', path=str(prepared))


@pytest.mark.slow  # two processes of JAX
@pytest.mark.parametrize('limit, why', [(4096, 'grow beyond its limit'), (-1, 'disk is full')],
                         ids=['arrays', 'checksums'])
def test_all_processes_end_if_one_cannot_save(config, tmp_path, limit, why):
  (code_0, said_0), (code_1, said_1) = two(config, tmp_path, limit)
  assert code_0 == code_1 == 2, (said_0[-800:], said_1[-800:])
  assert f'checkpoint {tmp_path}/checkpoints/3 could not be written' in said_1 and why in said_1
  assert 'another process of this run failed' in said_0
  assert 'Traceback' not in said_0 + said_1
  status = json.loads((tmp_path / 'status.json').read_text())
  assert status['state'] == 'failed' and status['last_good_checkpoint'] is None


@pytest.mark.slow  # two processes of JAX
@pytest.mark.parametrize('limit, failing', [(-2, 0), (-3, 1)])
def test_all_processes_end_if_one_fails_between_two_barriers(config, tmp_path, limit, failing):
  """The other one waits in Orbax' next barrier, for five minutes if nothing ends it."""
  found = two(config, tmp_path, limit)
  code, said = found[failing]
  assert code == 2 and 'checkpoints/3 could not be written' in said, said[-800:]
  code, said = found[1 - failing]
  assert code == 2 and 'another process of this run failed' in said, said[-800:]
  assert 'Traceback' not in found[0][1] + found[1][1]
  assert json.loads((tmp_path / 'status.json').read_text())['state'] == 'failed'


@pytest.mark.slow  # two processes of JAX
def test_two_processes_are_traced_and_compared(config, tmp_path):
  assert [code for code, _ in two(config, tmp_path, 0)] == [0, 0]
  lines = [line for line in metrics.read(tmp_path) if 'hosts/slowest' in line]
  assert [line['step'] for line in lines] == [3, 6, 9]
  assert all(0 < line['hosts/median_own'] <= line['hosts/slowest_own'] for line in lines[1:])
  assert json.loads((tmp_path / 'status.json').read_text())['hosts'] == 2 * [socket.gethostname()]
  found = list(tmp_path.glob('profile/plugins/profile/*/*.xplane.pb'))
  assert sorted(path.name for path in found) == [
      f'{socket.gethostname()}-p{process}.xplane.pb' for process in (0, 1)]
  assert len({path.parent for path in found}) == 1
