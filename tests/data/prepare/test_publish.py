"""`prepare` into a bucket: the same bytes as on the disk, and nothing of others is replaced."""

import dataclasses
import json

import pytest

from tests.data.prepare import tone
from tests.data.prepare.test_bucket_sources import contents, lines
from ttt_jax.config import CodecConfig, Config, DataConfig, Source
from ttt_jax.data import heldout, store
from ttt_jax.data.prepare.prepare import prepare
from ttt_jax.errors import RetryableError, UserError
from ttt_jax.storage import mirror, remote

CONFIG = Config(codec=CodecConfig(tone.NAME), data=DataConfig(
    seq_len=256, workers=1, strict=False, max_rejects=1.0,
    sources=(Source('pt.jsonl'), Source('held.jsonl', split='heldout'))))


def to(path):
  return dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, path=path))


@pytest.fixture
def workdir(tmp_path):
  codes = {'user': {'type': 'text', 'text': 'say'}, 'assistant': {'type': 'text', 'text': 'this'}}
  lines(tmp_path / 'pt.jsonl', [{'text': f'document {n}'} for n in range(40)])
  lines(tmp_path / 'held.jsonl', [{'id': 'h', 'messages': [
      {'role': role, 'content': [part]} for role, part in codes.items()]}])
  return tmp_path


def objects(url):
  return {name: remote.read_bytes(f'{url}/{name}') for name in remote.files(url)}


def test_the_set_is_that_of_the_disk(bucket, workdir):
  url = f'{bucket}/sets/data'
  assert prepare(to(url), workdir) == prepare(to('data'), workdir)
  found = objects(url)
  assert store.MANIFEST in found and found.pop('.ttt-jax.json')
  assert found == contents(workdir / 'data')
  assert [record.id for record in heldout.load_records(url)] == ['h']
  assert store.Rows(url, 'train')[0].document.max()
  assert {path.name for path in workdir.iterdir()} == {
      'pt.jsonl', 'held.jsonl', 'data', 'cache'}
  times = {name: entry.time for name, entry in remote.files(url).items()}
  prepare(to(url), workdir)  # again: nothing is sent
  assert {name: entry.time for name, entry in remote.files(url).items()} == times
  lines(workdir / 'pt.jsonl', [{'text': 'another'}, {'txt': 'wrong'}])
  prepare(to(url), workdir)
  assert store.read_manifest(url)['splits']['train']['documents'] == 1
  assert b'"sentence":' in remote.read_bytes(f'{url}.rejects.jsonl')
  assert set(remote.files(url)) == {*found, '.ttt-jax.json'}
  lines(workdir / 'pt.jsonl', [{'text': 'another'}])
  prepare(to(url), workdir)
  assert not remote.exists(f'{url}.rejects.jsonl')


def test_an_interrupted_upload_is_continued(bucket, workdir, monkeypatch):
  url = f'{bucket}/data'
  prepare(to(url), workdir)
  lines(workdir / 'pt.jsonl', [{'text': f'other {n}'} for n in range(40)])
  upload, sent = remote.upload, []
  def broken(path, place):
    if len(sent) >= fails:
      raise RetryableError('the server is down')
    sent.append(remote.name(place))
    upload(path, place)
  monkeypatch.setattr(remote, 'upload', broken)
  for fails in (0, 1, 0):  # rows, manifest, manifest again
    with pytest.raises(RetryableError):
      prepare(to(url), workdir)
    with pytest.raises(UserError, match='no prepared data'):
      store.read_manifest(url)
    sent.clear()
  fails = 1000
  manifest = prepare(to(url), workdir)
  assert store.read_manifest(url) == manifest and sent[-1] == store.MANIFEST
  assert sum(name.endswith('.arrayrecord') for name in sent) == 0  # they had arrived before


@pytest.mark.parametrize('name, says', [
    ('data/notes.txt', 'notes.txt is not one of its files'), ('data', 'not a prepared set but an'),
    ('data.rejects.jsonl', 'was not written by ttt-jax')])
def test_objects_of_others_are_not_replaced(gs_bucket, workdir, name, says):
  remote.write_bytes(f'{gs_bucket}/{name}', b'mine')
  with pytest.raises(UserError, match=says):
    prepare(to(f'{gs_bucket}/data'), workdir)
  assert objects(gs_bucket) == {name: b'mine'}


def test_an_edited_document_of_a_set_is_not_replaced(gs_bucket, workdir):
  url = f'{gs_bucket}/data'
  prepare(to(url), workdir)
  manifest = json.loads(remote.read_bytes(f'{url}/manifest.json'))
  text = json.dumps(manifest | {'note': 'mine'}).encode()
  remote.write_bytes(f'{url}/manifest.json', text)
  with pytest.raises(UserError, match='manifest.json is not one of its files, or was changed'):
    prepare(to(url), workdir)
  remote.remove(f'{url}/.ttt-jax.json')  # as version 0.1 wrote it: the manifest is the proof
  prepare(to(url), workdir)
  assert remote.read_bytes(f'{url}/manifest.json') != text


def test_a_whole_bucket_is_refused(gs_bucket, workdir):
  with pytest.raises(UserError, match='gs://bucket, a whole bucket; name a folder in it'):
    prepare(to('gs://bucket'), workdir)


def test_the_workdir_itself_is_refused(gs_bucket, tmp_path, monkeypatch):
  monkeypatch.setenv('TTT_JAX_CACHE', str(tmp_path / 'cache'))
  folder = mirror.folder_of(f'{gs_bucket}/a/run')
  for path in (f'{gs_bucket}/a/run', '.', f'{gs_bucket}/a', '..'):
    with pytest.raises(UserError, match='the workdir itself or a folder around it'):
      prepare(to(path), folder)
  with pytest.raises(UserError, match='checkpoints in a workdir is for other files of a run'):
    prepare(to(f'{gs_bucket}/a/run/checkpoints'), folder)
  assert not remote.files(gs_bucket)
