"""Local copies of folders in buckets: complete, fetched once, and never a mixture of versions."""

import os

import pytest

from ttt_jax.errors import UserError
from ttt_jax.storage import folder_copies, object_cache, remote

PATTERNS = ('*.json', '*.safetensors')


@pytest.fixture
def fetched(monkeypatch):
  download, names = remote.download, []
  def recorded(url, path, entry=None):
    names.append(remote.name(url))
    download(url, path, entry)
  monkeypatch.setattr(remote, 'download', recorded)
  return names


def write(url, **contents):
  for name, data in contents.items():
    remote.write_bytes(f'{url}/{name.replace("_", ".")}', data)


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_is_fetched_once(bucket, fetched):
  url = f'{bucket}/models/m'
  write(url, config_json=b'{}', model_safetensors=b'weights', optimizer_bin=b'unused')
  write(f'{url}/original', config_json=b'another')
  found = folder_copies.folder(f'{url}/', PATTERNS)
  assert contents(found) == {'config.json': b'{}', 'model.safetensors': b'weights'}
  assert sorted(fetched) == ['config.json', 'model.safetensors']
  assert folder_copies.folder(url, PATTERNS) == found and len(fetched) == 2
  assert folder_copies.in_urls(f'{found}/config.json lacks x') == f'{url}/config.json lacks x'
  write(url, config_json=b'[]')
  changed = folder_copies.folder(url, PATTERNS)
  assert contents(changed)['config.json'] == b'[]' and contents(found)['config.json'] == b'{}'
  assert fetched[2:] == ['config.json']


def test_what_the_cache_has_lost_is_fetched_again(gs_bucket, fetched):
  url = f'{gs_bucket}/m'
  write(url, config_json=b'{}')
  found = folder_copies.folder(url, PATTERNS)
  (found / 'config.json').resolve().unlink()
  assert contents(folder_copies.folder(url, PATTERNS)) == {'config.json': b'{}'}
  assert fetched == 2 * ['config.json']


def test_a_file(gs_bucket, tmp_path):
  write(gs_bucket, tokenizer_json=b'{}')
  found = folder_copies.file(f'{gs_bucket}/tokenizer.json')
  assert found.read_bytes() == b'{}' and found.suffix == '.json'
  assert folder_copies.file(str(tmp_path / 'a')) == tmp_path / 'a'
  assert folder_copies.folder(tmp_path, PATTERNS) == tmp_path


@pytest.mark.parametrize('get, name, says', [
    (folder_copies.folder, '{}/none', '--hf: {}/none does not exist'),
    (folder_copies.folder, '{}/m/config.json', 'config.json is an object; name the folder'),
    (folder_copies.folder, 'gs://no-such-bucket/m', 'bucket.* does not exist: gs://no-such-bucket'),
    (folder_copies.folder, 'hf://m', '--hf = hf://m has the scheme hf://'),
    (folder_copies.file, '{}/m', '--hf: {}/m is a folder; name a file'),
    (folder_copies.file, '{}/none', '--hf: {}/none does not exist')])
def test_mistakes(gs_bucket, get, name, says):
  write(f'{gs_bucket}/m', config_json=b'{}')
  patterns = [PATTERNS] if get is folder_copies.folder else []
  with pytest.raises(UserError, match=says.format(gs_bucket)):
    get(name.format(gs_bucket), *patterns, where='--hf')


def test_no_room_is_found_before_anything_is_fetched(gs_bucket, fetched, monkeypatch):
  write(f'{gs_bucket}/m', config_json=b'{}', model_safetensors=bytes(1500))
  monkeypatch.setenv('TTT_JAX_CACHE_GB', '1e-6')
  with pytest.raises(UserError, match='/m has 1,502 bytes, but its local copy would take 502 bytes '
                     f'more than there is room for in {object_cache.folder()}; set TTT_JAX_CACHE'):
    folder_copies.folder(f'{gs_bucket}/m', PATTERNS)
  assert not fetched


def test_room_is_made_for_all_at_once(gs_bucket, monkeypatch):
  write(f'{gs_bucket}/old', a_json=bytes(900))
  write(f'{gs_bucket}/m', a_json=bytes(400), b_json=bytes(400))
  old = next(folder_copies.folder(f'{gs_bucket}/old', PATTERNS).iterdir()).resolve()
  os.utime(old, (0, 0))
  monkeypatch.setenv('TTT_JAX_CACHE_GB', '1e-6')
  assert len(contents(folder_copies.folder(f'{gs_bucket}/m', PATTERNS))) == 2
  assert not old.exists()
