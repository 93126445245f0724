"""`prepare` on machines without a common disk, one of which is killed: `make test-ray`."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.data.prepare import apart, test_ray
from tests.data.prepare.test_phases import contents
from ttt_jax import config as config_lib
from ttt_jax.config import Source

pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    not apart.is_possible(), reason='this system does not let a user make namespaces')]
ROOT = pathlib.Path(__file__).parents[3]
sources = test_ray.sources  # a fixture: 40 files, and the set of one process


@pytest.mark.parametrize('how, scheme, where', [
    ('ray', 'gs', 'local'), ('workers', 'gs', 'bucket'), ('workers', 's3', 'local')])
def test_a_machine_is_killed_and_the_set_is_the_same(sources, tmp_path, how, scheme, where):
  if how == 'ray':
    pytest.importorskip('ray', reason="ray is not installed; the extra 'ray' brings it")
  pytest.importorskip({'gs': 'gcsfs', 's3': 's3fs'}[scheme])
  (tmp_path / 'sources').mkdir()
  for path in sources.glob('*.jsonl'):
    os.link(path, tmp_path / 'sources' / path.name)
  setup = test_ray.setup_of(tmp_path / 'sources')
  if where == 'bucket':
    data = dataclasses.replace(setup.data, sources=(Source(f'{scheme}://bucket/sources/*.jsonl'),))
    setup = dataclasses.replace(setup, data=data)
  config_lib.save(setup, tmp_path)
  done = subprocess.run([sys.executable, '-m', 'tests.data.prepare.apart', how, scheme,
                         str(tmp_path)], cwd=ROOT, env=os.environ | {'PYTHONPATH': str(ROOT)},
                        text=True, capture_output=True, check=False)
  assert not done.returncode, done.stderr
  found = json.loads((tmp_path / 'found.json').read_text())
  killed, said, code = found['said']
  assert code == '0' and int(killed.split()[2]) > apart._DONE, found
  assert contents(tmp_path / 'set') == contents(sources / 'one' / 'data')
  assert found['left'] == (['done.json'] if how == 'workers' else []), found
