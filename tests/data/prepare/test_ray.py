"""`prepare` on a real Ray cluster of two nodes on this machine: `make test-ray`."""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks import prepare as bench, ray_cluster
from tests.data.prepare import test_phases, tone
from tests.data.prepare.test_phases import contents
from ttt_jax import config as config_lib
from ttt_jax.audio import io
from ttt_jax.config import CodecConfig, Source
from ttt_jax.data.prepare import prepare
from ttt_jax.errors import UserError
from ttt_jax.storage import buckets

ROOT = pathlib.Path(__file__).parents[3]
slow = pytest.mark.slow


def setup_of(folder, **data):
  return dataclasses.replace(
      test_phases.config(folder, sources=(Source(f'{folder}/*.jsonl'),), seq_len=2048, workers=2,
                         **data), codec=CodecConfig('glm4_voice'))


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
  """40 files of 100 conversations, 20 MB; and the set that one process makes of them."""
  folder = tmp_path_factory.mktemp('sources')
  for i in range(40):
    (folder / f'{i}.jsonl').write_bytes(b''.join(bench.lines(100, seed=i)))
  config_lib.save(setup_of(folder), folder)
  prepare.prepare(setup_of(folder), folder / 'one')
  return folder


def on_ray(folder, workdir, *more, code=0, **env):
  found = subprocess.run(ray_cluster.command(
      1, sys.executable, '-m', 'ttt_jax.cli', 'prepare', '--config', str(folder / 'config.json'),
      '--workdir', str(workdir), '--config.data.runner=ray', *more), text=True, cwd=ROOT,
      env=os.environ | {'PYTHONPATH': str(ROOT)} | env, capture_output=True, check=False)
  assert found.returncode == code, found.stderr
  return found.stderr


@contextlib.contextmanager
def touched_at(flag, work, count):
  """Touches a file when so many results are stored."""
  process = subprocess.Popen([sys.executable, '-c', f"""
import pathlib, time
while len(list(pathlib.Path({str(work)!r}).glob('*/info.json'))) < {count}:
  time.sleep(0.01)
pathlib.Path({str(flag)!r}).touch()
"""])
  try:
    yield
  finally:
    process.kill()
    process.wait()


@slow
def test_a_node_is_killed_and_the_set_is_the_same(sources, tmp_path):
  pytest.importorskip('ray', reason="ray is not installed; the extra 'ray' brings it")
  work = tmp_path / '.data-work'
  with touched_at(tmp_path / 'kill', work, 55):
    said = on_ray(sources, tmp_path, KILL_AT=str(tmp_path / 'kill'))
  assert 'killed a node' in said, said
  assert contents(tmp_path / 'data') == contents(sources / 'one' / 'data')
  assert not work.exists()


@slow
def test_errors_of_jobs_are_the_sentences_of_a_local_run(sources, tmp_path):
  pytest.importorskip('ray', reason="ray is not installed; the extra 'ray' brings it")
  for path in sources.glob('*.jsonl'):
    (tmp_path / path.name).write_bytes(path.read_bytes())
  with (tmp_path / '7.jsonl').open('a') as file:
    file.write('{"mess\n')
  config_lib.save(setup_of(tmp_path), tmp_path)
  said = on_ray(tmp_path, tmp_path, code=2)
  assert said.splitlines()[-1].startswith(f'ttt-jax: error: {tmp_path}/7.jsonl:101: broken JSON')
  assert 'Traceback' not in said and not (tmp_path / 'data').exists()


@slow
def test_a_codec_with_devices_runs_in_actors(tmp_path):
  """One per node, the second of which is lost with its jobs."""
  pytest.importorskip('ray', reason="ray is not installed; the extra 'ray' brings it")
  (tmp_path / 'processes').mkdir()
  lines = []
  for n in range(60):
    io.write_wav(tmp_path / f'{n}.wav', tone.tone(400 + 20 * n, 0.3), tone.RATE)
    lines.append(json.dumps({'audio': f'{n}.wav', 'text': f'tone {n}'}))
  (tmp_path / 'tones.jsonl').write_text('\n'.join(lines))
  config = dataclasses.replace(
      test_phases.config(tmp_path, sources=(Source(f'{tmp_path}/tones.jsonl', task='asr'),)),
      codec=CodecConfig('tests.data.prepare.tone:OnDevices'))
  config_lib.save(config, tmp_path)
  prepare.prepare(config, tmp_path / 'one')
  with touched_at(tmp_path / 'kill', tmp_path / 'ray' / '.data-work', 8):
    said = on_ray(tmp_path, tmp_path / 'ray', '--config.codec.name=' + config.codec.name,
                  KILL_AT=str(tmp_path / 'kill'), TONE_PROCESSES=str(tmp_path / 'processes'))
  assert 'killed a node' in said, said
  assert contents(tmp_path / 'ray' / 'data') == contents(tmp_path / 'one' / 'data')
  assert len(list((tmp_path / 'processes').iterdir())) == 2


@slow
def test_what_a_node_lacks_is_named(tmp_path, monkeypatch):
  ray_pool = pytest.importorskip('ttt_jax.data.prepare.ray_pool')
  (tmp_path / 'a.jsonl').write_text('{}')
  assert not ray_pool._lacks_sources(str(tmp_path), [('a.jsonl', 2), (f'{tmp_path}/a.jsonl', 2)])
  assert 'does not have the source /gone/a.jsonl; put' in ray_pool._lacks_sources(
      str(tmp_path), [('/gone/a.jsonl', 2)])
  assert 'has another source a.jsonl, of 2 instead of 3 bytes' in ray_pool._lacks_sources(
      str(tmp_path), [('a.jsonl', 3)])
  assert 'does not see the folder' in ray_pool._look(str(tmp_path), '', ())['lacks']
  def missing(name, *_):
    raise ImportError(name=name)
  monkeypatch.setattr(buckets, 'Gcs', lambda: missing('gcsfs'))
  buckets._connect.cache_clear()
  assert ray_pool._look('gs://bucket/.data-work/x', '', ())['lacks'] == (
      'cannot use the bucket: gs:// needs the package gcsfs; install it with '
      '`pip install "ttt_jax[gcs]"`.')


def test_ray_is_refused_where_it_cannot_be(tmp_path, monkeypatch):
  from ttt_jax.data.prepare.team import Worker
  (tmp_path / 'x.jsonl').write_text(json.dumps({'text': 'x'}) + '\n')
  setup = test_phases.config(tmp_path, sources=(Source('x.jsonl'),), runner='ray')
  with pytest.raises(UserError, match='--worker shares the jobs without Ray'):
    prepare.prepare(setup, tmp_path, worker=Worker(0, 2))
  monkeypatch.setitem(sys.modules, 'ray', None)
  monkeypatch.delitem(sys.modules, 'ttt_jax.data.prepare.ray_pool', raising=False)
  with pytest.raises(UserError, match="the package ray is not installed: `pip install 'ttt_jax"):
    prepare.prepare(setup, tmp_path)
