"""Checkpoints in a bucket: kills at every request of a save, damage, a failing server."""

import jax
import jax.numpy as jnp
import pytest

from tests.storage import proxy as proxies, servers
from ttt_jax.errors import RetryableError, UserError
from ttt_jax.storage import outages, remote
from ttt_jax.train import checkpoint
from ttt_jax.train.checksums import SEAL
from ttt_jax.train.state import TrainState

NOTE = {'step': 0}


def state_of(step):
  return TrainState(jnp.int32(step), {'w': jnp.full((64, 8), step, jnp.float32)},
                    {'m': jnp.full((64, 8), -step, jnp.float32)})


def save(checkpoints, *steps, **options):
  for step in steps:
    checkpoints.save(step, state_of(step), NOTE, **options)
    checkpoints.wait()


def restored(checkpoints, step):
  target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])),
                        state_of(step))
  return checkpoints.restore(step, target)


def is_good(checkpoints, step):
  return jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), restored(checkpoints, step),
                                   state_of(step)))


@pytest.fixture
def url(bucket):
  return bucket + '/run/checkpoints'


def test_save_restore_retention_and_damage(url):
  with checkpoint.Checkpoints(url, keep=2) as checkpoints:
    save(checkpoints, 4, 8, 12)
    assert checkpoints.steps() == [8, 12] and checkpoints.last_good[0] == 12
    assert not any(name.startswith('4/') for name in remote.files(url))
  with checkpoint.Checkpoints(url, keep=2) as checkpoints:
    assert checkpoints.recover() == 12 and is_good(checkpoints, 12)
    data = max((name for name in remote.files(url) if name.startswith('12/params/')),
               key=lambda name: remote.files(url)[name].size)
    content = bytearray(remote.read_bytes(f'{url}/{data}'))
    content[-1] ^= 1
    remote.write_bytes(f'{url}/{data}', bytes(content))
    assert checkpoints.newest_good() == 8  # a reader marks nothing
    assert checkpoints.steps() == [8, 12]
    assert checkpoints.recover() == 8 and checkpoints.steps() == [8]
    save(checkpoints, 12)
    assert checkpoints.steps() == [8, 12] and is_good(checkpoints, 12)
    assert not remote.exists(f'{url}/12/DAMAGED')
    remote.remove(f'{url}/12/{SEAL}')
    remote.remove(f'{url}/8/commit_success.txt')
    with pytest.raises(UserError, match='all checkpoints in .*://.* are corrupt'):
      checkpoints.recover()
  with pytest.raises(UserError, match='no checkpoint under'):
    checkpoint.open_existing(url)


@pytest.mark.slow
def test_a_reader_keeps_its_checkpoint(url):
  with checkpoint.Checkpoints(url, keep=1) as run:
    save(run, 4)
    with checkpoint.open_existing(url) as reader:
      assert reader.newest_good() == 4
      save(run, 8)
      assert run.steps() == [4, 8]
    save(run, 12)
    assert run.steps() == [12]
  assert not [name for name in remote.files(url) if name.startswith('.')]


@pytest.mark.slow
def test_who_may_not_commit_does_not(url):
  def refuse():
    raise UserError('taken over')
  with pytest.raises(UserError, match='taken over'):
    with checkpoint.Checkpoints(url, confirm=refuse) as checkpoints:
      save(checkpoints, 4)
  assert not remote.exists(f'{url}/4/{SEAL}')


@pytest.mark.slow
def test_a_checkpoint_moves_between_disk_and_bucket(url, tmp_path):
  with checkpoint.Checkpoints(tmp_path / 'disk') as checkpoints:
    save(checkpoints, 4)
  remote.upload_folder(tmp_path / 'disk', url)
  with checkpoint.open_existing(url) as checkpoints:
    assert checkpoints.newest_good() == 4 and is_good(checkpoints, 4)
  with checkpoint.Checkpoints(url) as checkpoints:
    save(checkpoints, 8)
  remote.download_folder(url, tmp_path / 'copy')
  with checkpoint.open_existing(tmp_path / 'copy') as checkpoints:
    assert checkpoints.newest_good() == 8 and is_good(checkpoints, 8)


# -- behind a proxy -----------------------------------------------------------------------------


@pytest.fixture(params=[pytest.param('gs', marks=[pytest.mark.storage, pytest.mark.slow]),
                        pytest.param('s3', marks=[pytest.mark.storage, pytest.mark.slow])])
def proxied(request, monkeypatch, tmp_path):
  """(proxy, URL) of a server whose requests can be disturbed."""
  start = {'gs': servers.gcs, 's3': servers.s3}[request.param]
  monkeypatch.setattr(outages, 'RETRY_SECONDS', 1.0)
  with start() as server:
    proxy = proxies.Proxy(server.address)
    with servers.used(server, monkeypatch, proxy.address):
      yield proxy, f'{server.url}/run/checkpoints'
    proxy.close()


def contents(url):
  return {name: remote.read_bytes(remote.join(url, name)) for name in remote.files(url)}


def test_a_kill_after_any_write_of_a_save_or_a_removal_loses_nothing(proxied):
  """The bucket as it was after every request that writes: a kill leaves one of these states."""
  proxy, url = proxied
  states = []
  with checkpoint.Checkpoints(url, keep=1) as checkpoints:
    save(checkpoints, 4)
    proxy.after = lambda method, path: states.append(contents(url))
    save(checkpoints, 8)
    proxy.after = lambda method, path: None
  assert len(states) > 25
  steps = []
  for number, state in enumerate(states):
    there = f'{url}-{number}'
    remote.each(state, lambda name: remote.write_bytes(remote.join(there, name), state[name]))
    # Sums of a copy are the same on GCS; an ETag of S3 is, too, without parts.
    with checkpoint.Checkpoints(there, keep=1, log=lambda sentence: None) as checkpoints:
      steps.append(checkpoints.recover())
      assert checkpoints.steps()[-1] == steps[-1], (number, sorted(state))
      if number % 20 == 0:  # Orbax makes hundreds of requests
        assert is_good(checkpoints, steps[-1])
        save(checkpoints, 8, 12)
        assert checkpoints.steps() == [12] and is_good(checkpoints, 12)
  assert steps == sorted(steps) and set(steps) == {4, 8}, steps


def test_a_refused_permission_is_one_sentence(proxied):
  proxy, url = proxied
  with checkpoint.Checkpoints(url) as checkpoints:
    save(checkpoints, 4)
    with proxy.disturbed(lambda method, path: 403 if method in proxies.WRITES else None):
      with pytest.raises(UserError, match='permission denied'):
        save(checkpoints, 8)
    assert checkpoints.recover() == 4
    with proxy.disturbed(lambda method, path: 403):
      with pytest.raises(UserError, match='permission denied'):
        checkpoints.recover()
      with pytest.raises(UserError, match='permission denied'):
        checkpoints.newest_good()


EXPIRED = 400, b'<?xml version="1.0"?><Error><Code>ExpiredToken</Code><Message>x</Message></Error>'


@pytest.mark.parametrize('what, says', [(403, 'permission denied'), (EXPIRED, 'ExpiredToken')])
def test_arrays_that_may_not_be_read_are_one_sentence(proxied, what, says):
  """Of them Orbax says that there are none, and TensorStore knows no such code."""
  proxy, url = proxied
  if what is EXPIRED and url.startswith('gs'):
    pytest.skip('S3 alone answers so')
  with checkpoint.Checkpoints(url) as checkpoints:
    save(checkpoints, 4)
    arrays = lambda path: 'ocdbt' in path or '/d/' in path or '%2Fd%2F' in path
    with proxy.disturbed(lambda method, path: what if arrays(path) else None):
      with pytest.raises(UserError, match=says):
        restored(checkpoints, 4)
      with pytest.raises(UserError, match=says):
        checkpoints.restore_params(4, state_of(4).params)
      with pytest.raises(UserError, match=says):
        save(checkpoints, 8)
    assert checkpoints.recover() == 4 and is_good(checkpoints, 4)


@pytest.mark.parametrize('what', [503, 'reset'])
def test_errors_that_pass_are_repeated(proxied, what, monkeypatch):
  monkeypatch.setattr(outages, 'RETRY_SECONDS', 30.0)
  proxy, url = proxied
  count = 0

  def some(method, path):
    nonlocal count
    count += 1
    return what if count % 11 == 0 else None
  with checkpoint.Checkpoints(url) as checkpoints, proxy.disturbed(some):
    save(checkpoints, 4, 8)
    assert checkpoints.recover() == 8 and is_good(checkpoints, 8)


def test_a_server_that_stays_down_is_one_sentence(proxied):
  proxy, url = proxied
  with checkpoint.Checkpoints(url) as checkpoints:
    save(checkpoints, 4)
    with proxy.disturbed(lambda method, path: 503):
      with pytest.raises(RetryableError, match='could not be'):
        save(checkpoints, 8)
      with pytest.raises(RetryableError, match='could not be'):
        checkpoints.recover()
    assert checkpoints.recover() == 4 and is_good(checkpoints, 4)
