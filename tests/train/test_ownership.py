"""A run of several processes owns its workdir as one."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

from ttt_jax.errors import UserError
from ttt_jax.storage.lease import LOCK, NOTE, Lease
from ttt_jax.train import ownership

ROOT = pathlib.Path(__file__).parents[2]

MEMBER = """
import pathlib, sys
import jax
port, rank, workdir = sys.argv[1:]
jax.distributed.initialize(f'127.0.0.1:{port}', 2, int(rank), initialization_timeout=900)
from ttt_jax.errors import UserError
from ttt_jax.train import ownership
try:
  with ownership.owned(workdir) as owner:
    owner.check()
    print('owned', (pathlib.Path(workdir) / '.owner.json').exists())
except UserError as error:
  print(error)
"""


def test_one_process_owns_a_workdir_and_gives_it_back(tmp_path):
  with ownership.owned(tmp_path) as owner:
    owner.check()
    with pytest.raises(UserError, match=f'^workdir {tmp_path} is in use by process {os.getpid()} '):
      with ownership.owned(tmp_path):
        pass
    assert (tmp_path / NOTE).exists()
  assert [path.name for path in tmp_path.iterdir()] == [LOCK]


@pytest.mark.slow  # two processes of JAX
@pytest.mark.parametrize('taken', [False, True])
def test_all_processes_of_a_run_learn_who_owns_its_workdir(tmp_path, taken):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  lease = Lease(tmp_path, 'x')
  if taken:
    lease.acquire()
  environment = os.environ | {'PYTHONPATH': str(ROOT), 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}
  processes = [subprocess.Popen([sys.executable, '-c', MEMBER, str(port), str(rank), str(tmp_path)],
                                env=environment, stdout=subprocess.PIPE, text=True)
               for rank in range(2)]
  said = [process.communicate(timeout=1800)[0] for process in processes]
  lease.release()
  if taken:
    assert f'is in use by process {os.getpid()}' in said[0], said
    assert 'process 0 of this run could not take workdir' in said[1], said
  else:
    assert 'owned True' in said[0] and 'owned' in said[1], said
