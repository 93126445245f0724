"""Sources in a bucket become the same set, byte for byte, as sources on the disk."""

import gzip
import json

import pyarrow as pa
from pyarrow import parquet
import pytest
import zstandard

from tests.data import corpora_folders
from tests.data.prepare import tone
from ttt_jax.config import CodecConfig, Config, DataConfig, Source
from ttt_jax.data import store
from ttt_jax.data.prepare.prepare import prepare
from ttt_jax.data.records import places, readers
from ttt_jax.errors import UserError
from ttt_jax.storage import object_cache, remote

SOURCES = (Source('train.jsonl', task='asr'), Source('more.jsonl.gz', task='tts'),
           Source('last.jsonl.zst', task='asr'), Source('qa/*.parquet'), Source('pt/**/*.json'),
           Source('table', task='asr'), Source('segments.jsonl', task='asr'),
           Source('LibriSpeech', task='asr', subset='train-clean-100'),
           Source('held.jsonl', task='asr', split='heldout'))


def lines(path, values):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(value) + '\n' for value in values))
  return path


@pytest.fixture(scope='module')
def lake(tmp_path_factory):
  """A folder with every form of sources; recordings are relative to the files that name them."""
  root = tmp_path_factory.mktemp('lake')
  for n in range(12):
    corpora_folders.sound(root / 'wav' / f'{n}.wav', 500 * (n % 4 + 1), 0.4 + 0.1 * n)
  named = [{'id': f'r{n}', 'audio': f'wav/{n}.wav', 'text': f'{n} {n}'} for n in range(12)]
  lines(root / 'train.jsonl', named)
  text = (root / 'train.jsonl').read_bytes()
  (root / 'more.jsonl.gz').write_bytes(gzip.compress(text, mtime=0))
  (root / 'last.jsonl.zst').write_bytes(zstandard.compress(text))
  lines(root / 'segments.jsonl', [{'audio': 'wav/11.wav', 'start': n / 10, 'end': n / 10 + 0.4,
                                   'text': f'part {n}'} for n in range(4)])
  lines(root / 'held.jsonl', [{'audio': 'wav/1.wav', 'text': 'held'},
                              {'audio': 'wav/2.wav', 'start': 0.1, 'text': 'part'}])
  rows = [{'messages': json.dumps([{'role': 'user', 'content': f'q{n}'},
                                   {'role': 'assistant', 'content': f'a{n}'}])} for n in range(40)]
  (root / 'qa').mkdir()
  for k in range(2):
    table = pa.Table.from_pylist(rows[20 * k:20 * k + 20])
    parquet.write_table(table, root / 'qa' / f'{k}.parquet', row_group_size=8)
  (root / 'pt' / 'a').mkdir(parents=True)
  (root / 'pt' / 'x.json').write_text(json.dumps([{'text': f'd{n}'} for n in range(3)]))
  (root / 'pt' / 'a' / 'y.json').write_text(json.dumps({'data': [{'text': 'other'}]}))
  (root / 'pt' / 'a' / '.hidden.json').write_text('[]')
  (root / 'table' / 'clips').mkdir(parents=True)
  corpora_folders.sound(root / 'table' / 'clips' / 't.mp3', 1500)
  (root / 'table' / 'metadata.tsv').write_text('path\tsentence\nt\tfound in clips\n')
  corpora_folders.librispeech(root, ('train-clean-100', 'test-clean'))
  return root


def config(root, *sources, **data):
  return Config(codec=CodecConfig(tone.NAME), data=DataConfig(
      seq_len=512, sources=sources or SOURCES, root=str(root), **{'workers': 1, **data}))


@pytest.fixture(scope='module')
def local(lake, tmp_path_factory):
  """The manifest of the set prepared from the disk."""
  workdir = tmp_path_factory.mktemp('local')
  return prepare(config(lake), workdir), workdir / 'data'


def contents(folder):
  return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*')
          if path.is_file() and path.name != '.ttt-jax.json'}


@pytest.mark.slow
def test_pieces_are_read_by_range(bucket, lake, local, tmp_path, monkeypatch):
  remote.upload_folder(lake, f'{bucket}/lake')
  monkeypatch.setattr(readers, 'CUT', 100)  # pieces by range
  found = prepare(config(f'{bucket}/lake'), tmp_path)
  expected, folder = local
  assert found['splits']['train']['tokens'] == expected['splits']['train']['tokens']
  monkeypatch.undo()
  places.forget()


def test_bytes_are_equal(bucket, lake, local, tmp_path):
  remote.upload_folder(lake, f'{bucket}/lake')
  manifest = prepare(config(f'{bucket}/lake'), tmp_path)
  assert manifest == local[0]
  assert contents(tmp_path / 'data') == contents(local[1])
  # Copies are kept of the recordings of which parts are read.
  assert len(list(object_cache.folder().rglob('*.wav'))) == 2


def test_records_name_recordings_by_their_urls(bucket, lake, tmp_path):
  remote.upload_folder(lake / 'wav', f'{bucket}/sounds')
  lines(tmp_path / 'a.jsonl', [{'audio': f'{bucket}/sounds/{n}.wav', 'text': 'x'}
                               for n in range(12)])
  manifest = prepare(config(tmp_path, Source('a.jsonl', task='asr')), tmp_path / 'w')
  assert manifest['splits']['train']['documents'] == 12
  remote.remove(f'{bucket}/sounds/3.wav')
  with pytest.raises(UserError, match=f'a.jsonl:4: recording {bucket}/sounds/3.wav does not exist'):
    prepare(config(tmp_path, Source('a.jsonl', task='asr'), strict=True), tmp_path / 'w')


def test_a_changed_source_is_read_again(bucket, tmp_path):
  url = f'{bucket}/a.jsonl'
  for text, documents in (('{"text": "one"}\n', 1), ('{"text": "two"}\n', 1)):
    remote.write_bytes(url, text.encode())
    manifest = prepare(config('', Source(url)), tmp_path)
    assert manifest['splits']['train']['documents'] == documents
  row = store.Rows(tmp_path / 'data', 'train')[0]
  assert bytes(row.token[(row.token < 256) & (row.document > 0)].astype('u1')).find(b'two') >= 0


@pytest.mark.parametrize('path, says', [
    ('{}/gone.jsonl', "there is no file '{}/gone.jsonl'."), ('{}/*.jsonl', 'there is no file'),
    ('gs://no-such-bucket/a.jsonl', 'no-such-bucket'), ('{}/empty', 'a folder without a manifest')])
def test_what_is_not_there_is_one_sentence(gs_bucket, tmp_path, path, says):
  remote.write_bytes(f'{gs_bucket}/empty/x', b'x')
  with pytest.raises(UserError) as caught:
    prepare(config('', Source(path.format(gs_bucket))), tmp_path)
  assert says.format(gs_bucket) in str(caught.value) and '\n' not in str(caught.value)
