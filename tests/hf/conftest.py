"""A run that has learned to answer with speech, and its export."""

import importlib.util

import pytest


@pytest.fixture(scope='session', autouse=True)
def own_cache(tmp_path_factory):
  """Where transformers puts a directory's code before it runs it: one folder per process, since
  Python keeps the package of the first."""
  with pytest.MonkeyPatch.context() as patch:
    if importlib.util.find_spec('transformers'):
      patch.setattr('transformers.dynamic_module_utils.HF_MODULES_CACHE',
                    str(tmp_path_factory.mktemp('code')))
    yield


@pytest.fixture(scope='session')
def exported(tmp_path_factory):
  """(workdir, directory); made once, to be read only."""
  from tests import small_run
  from ttt_jax.cli import main
  from ttt_jax.config import save
  from ttt_jax.data.prepare.prepare import prepare
  workdir = tmp_path_factory.mktemp('run')
  config = small_run.config(steps=80, checkpoint_every=80, log_every=20)
  prepare(config, workdir)
  save(config, workdir)
  assert main.main(['train', '--workdir', str(workdir)]) == 0
  out = workdir / 'export'
  assert main.main(['export-hf', '--workdir', str(workdir), '--out', str(out)]) == 0
  return workdir, out


@pytest.fixture(scope='session')
def ttt(exported):
  """The run from Python."""
  import ttt_jax
  return ttt_jax.load(exported[0])
