"""A run that tests of training share; to be copied before it is changed."""

import os

import pytest

from tests import small_run
from ttt_jax.train import train


@pytest.fixture(scope='session')
def ten_steps(small_config, tmp_path_factory):
  """The workdir of a run of ten steps on one device; data.path leads out of a new workdir."""
  workdir = tmp_path_factory.mktemp('runs') / 'ten'
  config = small_run.replace(small_config, 'data',
                             path=os.path.relpath(small_config.data.path, workdir))
  with small_run.one_device():
    train.train(config, workdir)
  return workdir
