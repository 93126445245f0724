"""A small trained run, made once for the tests of evaluation."""

import pytest

from tests import small_run
from ttt_jax.train import train


@pytest.fixture(scope='package')
def workdir(tmp_path_factory, prepared):
  """A workdir with the checkpoints 1 and 2 of small_run.config(); to be read only."""
  folder = tmp_path_factory.mktemp('evaluated')
  (folder / 'data').symlink_to(prepared)
  with small_run.one_device():
    train.train(small_run.config(steps=2, checkpoint_every=1), folder)
    yield folder
