"""storage/remote.py against a GCS emulator, and in `make test-storage` an S3 server."""

import os

import pytest

from tests.storage import servers
from ttt_jax.errors import RetryableError, UserError
from ttt_jax.storage import outages, remote

def test_names():
  assert remote.is_url('gs://a/b') and not remote.is_url('a/b') and not remote.is_url('C:\\x')
  assert remote.join('gs://a/', 'b/', '', 'c.json') == 'gs://a/b/c.json'
  assert remote.name('gs://a/b/c/') == 'c'
  assert remote.parent('gs://a/b/c') == 'gs://a/b'
  assert remote.parent('gs://a') == 'gs://a'


@pytest.mark.parametrize('url, says', [
    ('gcs://bucket/run', 'write gs://bucket/run'),
    ('https://host/run', 'scheme https'),
    ('file:///run', 'local paths'),
    ('gs:///run', 'no valid bucket'),
    ('gs://Big/run', 'no valid bucket'),
    ('gs://bucket/a/../b', "'..'"),
    ('gs://bucket/a//b', 'empty part'),
    ('gs://bucket/a\nb', r"'gs://bucket/a\nb' has a control character"),
    ('gs://bucket/\udcff', r"'gs://bucket/\udcff' has a control character, or bytes that are"),
    ('s3://key:hunter2@bucket/\0', r"'s3://...@bucket/\x00'"),
    ('s3://key:hunter2@bucket/run', 'credentials come from')])
def test_urls_of_users_are_checked(url, says):
  with pytest.raises(UserError) as found:
    remote.check(url, '--workdir')
  assert says in str(found.value) and '--workdir' in str(found.value)
  assert 'hunter2' not in str(found.value)


def test_objects(bucket):
  url = remote.join(bucket, 'run', 'a b#ü?.txt')
  assert remote.stat(url) is None and not remote.exists(url) and remote.files(bucket) == {}
  assert not remote.is_folder(bucket)
  remote.write_bytes(url, b'first\r\n--x')
  remote.write_bytes(url, b'second')
  assert remote.read_bytes(url) == b'second'
  assert remote.is_folder(bucket) and remote.is_folder(remote.join(bucket, 'run'))
  assert not remote.is_folder(url) and not remote.exists(remote.join(bucket, 'run'))
  assert remote.files(bucket) == {'run/a b#ü?.txt': remote.stat(url)}
  remote.upload(__file__, remote.join(bucket, 'run2/empty'))
  assert list(remote.files(remote.join(bucket, 'run'))) == ['a b#ü?.txt']  # and not of run2
  remote.copy(url, remote.join(bucket, 'run3', 'c#ü'))
  assert remote.find_bytes(remote.join(bucket, 'run3', 'c#ü')) == b'second'
  assert remote.read_range(url, 1, 4) == b'eco'
  remote.remove(url)
  remote.remove(url)
  assert not remote.exists(url) and remote.find_bytes(url) is None
  with pytest.raises(UserError, match='could not be copied: it does not exist'):
    remote.copy(url, remote.join(bucket, 'd'))
  with pytest.raises(UserError, match='does not exist'):
    remote.read_bytes(url)


def test_of_two_writers_one_wins(bucket):
  url = remote.join(bucket, 'lease')
  assert remote.create(url, b'mine') and not remote.create(url, b'yours')
  entry = remote.stat(url)
  assert remote.write_bytes_if(url, b'mine again', entry)
  assert not remote.write_bytes_if(url, b'yours', entry)
  assert remote.read_bytes(url) == b'mine again'
  entry = remote.stat(url)
  remote.remove(url)
  assert not remote.write_bytes_if(url, b'yours', entry)


def test_a_reader_seeks(bucket):
  url, data = remote.join(bucket, 'data'), os.urandom(10_000)
  remote.write_bytes(url, data)
  with remote.open_reader(url, block=1000) as file:
    assert file.read(10) == data[:10]
    file.seek(-500, os.SEEK_END)
    assert file.read() == data[-500:] and file.read() == b''
    file.seek(0)
    assert file.read() == data
  remote.write_bytes(url, b'')
  with remote.open_reader(url) as file:
    assert file.read() == b''


def test_folders_are_copied(bucket, tmp_path):
  source = tmp_path / 'source'
  for number in range(20):
    (source / f'{number % 3}').mkdir(parents=True, exist_ok=True)
    (source / f'{number % 3}' / f'{number}').write_bytes(os.urandom(number * 1000))
  (source / 'manifest.json').write_text('{}')
  names = remote.upload_folder(source, remote.join(bucket, 'set'))
  found = remote.files(remote.join(bucket, 'set'))
  assert sorted(names) == sorted(found)
  assert found['manifest.json'].time == max(entry.time for entry in found.values())
  remote.download_folder(remote.join(bucket, 'set'), tmp_path / 'copy')
  assert {name: (tmp_path / 'copy' / name).read_bytes() for name in names} == {
      name: (source / name).read_bytes() for name in names}
  assert not list((tmp_path / 'copy').rglob('*.partial'))
  remote.remove_folder(remote.join(bucket, 'set'), first=['manifest.json'])
  assert remote.files(bucket) == {}


def test_a_missing_bucket_is_one_sentence(bucket):
  url = bucket.replace('://bucket', '://nobody')
  for action in (lambda: remote.files(url), lambda: remote.write_bytes(url, b''),
                 lambda: remote.create(url, b''), lambda: remote.is_folder(url)):
    with pytest.raises(UserError, match='://nobody'):
      action()


def test_no_server_is_one_sentence(gcs_server, monkeypatch):
  monkeypatch.setattr(outages, 'RETRY_SECONDS', 0.5)
  nobody = f'http://127.0.0.1:{servers.free_port()}'
  with servers.used(gcs_server, monkeypatch, nobody):
    with pytest.raises(RetryableError, match=r'for 0\.\d seconds: no connection'):
      remote.read_bytes(f'{gcs_server.url}/x')


@pytest.mark.parametrize('what', [503, 429, 'reset', 'lost', 'cut', 1.0])
def test_what_passes_is_repeated(bucket, proxy, what):
  remote.write_bytes(bucket + '/a', b'a')  # the connection stands
  count = 0

  def first(method, path):
    nonlocal count
    count += 1
    return what if count % 2 else None
  with proxy.disturbed(first):
    assert remote.create(bucket + '/b', b'b')  # also if the answer to the first try was lost
    count = 0
    assert remote.read_bytes(bucket + '/a') == b'a'
    count = 0
    assert set(remote.files(bucket)) == {'a', 'b'}


@pytest.mark.parametrize('what, kind, says', [
    (403, UserError, 'permission denied'), (401, UserError, 'permission denied'),
    (400, UserError, 'HTTP 400'), (503, RetryableError, 'HTTP 503'),
    (1.0, RetryableError, 'no answer')])
def test_what_stays_is_one_sentence(bucket, proxy, what, kind, says, tmp_path):
  remote.write_bytes(bucket + '/a', b'a')
  with proxy.disturbed(lambda method, path: what):
    for action in (lambda: remote.read_bytes(bucket + '/a'),
                   lambda: remote.write_bytes(bucket + '/a', b''),
                   lambda: remote.download(bucket + '/a', tmp_path / 'a')):
      with pytest.raises(kind, match=says) as found:
        action()
      assert servers.SECRET not in str(found.value) and '\n' not in str(found.value)
  assert not (tmp_path / 'a').exists() and not list(tmp_path.glob('.a*'))
