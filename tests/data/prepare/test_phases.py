"""Large sets: pieces, processes, shards, kills, rejects; always the same documents."""

import collections
import dataclasses
import gzip
import json
import os
import pathlib
import subprocess
import sys
import time

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from ttt_jax.audio import codec as codecs, io
from ttt_jax.audio.mel_codec import MelCodec
from ttt_jax.config import Config, DataConfig, Source
from ttt_jax.data import store
from ttt_jax.data.prepare import pack, prepare, render, summary
from ttt_jax.data.records import readers
from ttt_jax.errors import UserError
from ttt_jax.storage import files
from ttt_jax.tokens.batch import split_documents

ROOT = pathlib.Path(__file__).parents[3]
CODES = 16


def conversation(rng, i):
  spoken = ''.join(f'<|audio_{code}|>' for code in rng.integers(CODES, size=rng.integers(5, 60)))
  words = ' '.join(['word'] * int(rng.integers(1, 8)))
  return {'id': f'{i}', 'task': ('asr', 'tts')[i % 2], 'messages': [
      {'role': 'user', 'content': words}, {'role': 'assistant', 'content': f'{words} {spoken}'}]}


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  """Three files of inline codes beside the codec that made them."""
  folder = tmp_path_factory.mktemp('corpus')
  rng = np.random.default_rng(0)
  MelCodec(rng.standard_normal((1, CODES, 80)).astype(np.float32), 1, 0.0).save(folder / 'codec')
  def lines(count):
    return ''.join(json.dumps(conversation(rng, i)) + '\n' for i in range(count)).encode()
  (folder / 'a.jsonl').write_bytes(lines(300))
  (folder / 'b.jsonl').write_bytes(lines(150))
  (folder / 'c.jsonl.gz').write_bytes(gzip.compress(lines(60)))
  (folder / 'held.jsonl').write_bytes(lines(10))
  return folder


def config(corpus, **data):
  sources = (Source(str(corpus / 'a.jsonl'), repeat=0.7), Source(str(corpus / 'b.jsonl')),
             Source(str(corpus / 'c.jsonl.gz'), repeat=1.5, split='other'),
             Source(str(corpus / 'held.jsonl'), split='heldout'))
  return Config(data=DataConfig(**{'seq_len': 512, 'sources': sources, **data}))


def documents(data):
  """{(split, number): (token, supervised)} as bytes."""
  out = {}
  for split in store.read_manifest(data)['splits']:
    rows = store.Rows(data, split)
    for i in range(len(rows)):
      for number, token, supervised in split_documents(rows[i]):
        assert (split, number) not in out
        out[split, number] = token.tobytes(), supervised.tobytes()
  return out


def contents(folder):
  return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


@pytest.fixture
def small(monkeypatch):
  """A dozen pieces, several blocks in each, several shards."""
  monkeypatch.setattr(readers, 'CUT', 16_000)
  monkeypatch.setattr(render, '_BLOCK_DOCUMENTS', 7)
  monkeypatch.setattr(pack, 'TOKENS', 4_000)
  monkeypatch.setattr(pack, '_SAMPLED', 40)


def test_pieces_blocks_and_shards_do_not_change_the_documents(corpus, tmp_path, request):
  whole = prepare.prepare(config(corpus), tmp_path / 'whole')
  request.getfixturevalue('small')
  assert len(readers.cut(corpus / 'a.jsonl')) > 8
  cut = prepare.prepare(config(corpus), tmp_path / 'cut')
  assert len(whole['splits']['train']['files']) == 1 and len(cut['splits']['train']['files']) > 5
  assert documents(tmp_path / 'whole' / 'data') == documents(tmp_path / 'cut' / 'data')
  assert [len(documents(tmp_path / 'cut' / 'data'))] == [210 + 150 + 90 + 10]
  for split, entry in cut['splits'].items():
    same = whole['splits'][split]
    assert {k: entry[k] for k in ('documents', 'tasks', 'lengths')} == {
        k: same[k] for k in ('documents', 'tasks', 'lengths')}
    for file in entry['files']:
      path = tmp_path / 'cut' / 'data' / file['name']
      assert (file['sha256'], file['bytes']) == (files.sha256(path), path.stat().st_size)
  text = 'heldout.records.jsonl'
  assert (tmp_path / 'whole/data' / text).read_text() == (tmp_path / 'cut/data' / text).read_text()


def test_any_number_of_processes_gives_the_same_bytes(corpus, tmp_path, small, monkeypatch):
  prepare.prepare(config(corpus, workers=1), tmp_path / 'one')
  monkeypatch.setattr(prepare, '_LARGE', 0)
  prepare.prepare(config(corpus, workers=2), tmp_path / 'two')
  # Other processes have blocks of the usual size, so that only their number differs here:
  monkeypatch.undo()
  monkeypatch.setattr(readers, 'CUT', 16_000)
  monkeypatch.setattr(pack, 'TOKENS', 4_000)
  prepare.prepare(config(corpus, workers=1), tmp_path / 'three')
  one, two, three = (contents(tmp_path / name / 'data') for name in ('one', 'two', 'three'))
  assert documents(tmp_path / 'one' / 'data') == documents(tmp_path / 'two' / 'data')
  assert two.keys() == three.keys()
  assert {name for name in two if two[name] != three[name]} == set()
  assert one.keys() >= {'manifest.json'}


def test_a_killed_run_continues_and_gives_the_same_bytes(corpus, tmp_path, monkeypatch):
  script = tmp_path / 'run.py'
  script.write_text(f"""if __name__ == '__main__':
  import pathlib, time
  from tests.data.prepare.test_phases import config
  from ttt_jax.data.prepare import pack, prepare
  from ttt_jax.data.records import readers
  readers.CUT, pack.TOKENS = 16_000, 4_000
  def slowly(*unused):
    time.sleep(0.002)  # so that there is time for a kill
  prepare.prepare(config(pathlib.Path({str(corpus)!r})), {str(tmp_path / 'killed')!r}, slowly)
""")
  monkeypatch.setattr(readers, 'CUT', 16_000)
  monkeypatch.setattr(pack, 'TOKENS', 4_000)
  prepare.prepare(config(corpus), tmp_path / 'whole')
  work, kept = tmp_path / 'killed' / '.data-work', {}
  def results():
    return {p.parent.name: p.stat().st_mtime_ns for p in work.glob('*/info.json')
            if '.part' not in p.parent.name}
  for wanted in (6, 34):  # among the first looks, and among the documents or shards
    process = subprocess.Popen([sys.executable, str(script)], cwd=ROOT,
                               env={**os.environ, 'PYTHONPATH': str(ROOT)})
    while len(results()) < wanted and process.poll() is None:
      time.sleep(0.001)
    process.kill()
    process.wait()
    assert kept.items() <= results().items() and len(results()) >= wanted
    assert not (tmp_path / 'killed' / 'data').exists()
    kept = results()
  prepare.prepare(config(corpus), tmp_path / 'killed')
  assert contents(tmp_path / 'killed' / 'data') == contents(tmp_path / 'whole' / 'data')
  assert not work.exists()


def test_a_crash_at_the_very_end_loses_nothing(corpus, tmp_path, small, monkeypatch):
  def crash(*unused):
    raise RuntimeError('power')
  with monkeypatch.context() as patch:
    patch.setattr(store, 'write_manifest', crash)
    with pytest.raises(RuntimeError, match='power'):
      prepare.prepare(config(corpus), tmp_path)
  assert not (tmp_path / 'data').exists() and not list(tmp_path.glob('.data-[!w]*'))
  kept = {p.stat().st_ino for p in tmp_path.glob('.data-work/*/*.arrayrecord')}
  prepare.prepare(config(corpus), tmp_path)
  assert {p.stat().st_ino for p in tmp_path.glob('data/*.arrayrecord')} == kept


def test_a_shard_is_a_sample_of_its_split(corpus, tmp_path, monkeypatch):
  monkeypatch.setattr(pack, 'TOKENS', 8_000)
  prepare.prepare(config(corpus, sources=(Source(str(corpus / 'a.jsonl')),)), tmp_path)
  files_of = sorted((tmp_path / 'data').glob('train-*'))
  assert len(files_of) > 4
  rows, at = store.Rows(tmp_path / 'data', 'train'), 0
  for entry in store.read_manifest(tmp_path / 'data')['splits']['train']['files']:
    numbers = [n for i in range(at, at + entry['rows']) for n, _, _ in split_documents(rows[i])]
    at += entry['rows']
    assert min(numbers) < 75 and max(numbers) > 225  # of 300; a stretch of them would not


def test_repeats_of_a_spoken_document_are_drawn_anew(corpus, tmp_path):
  (tmp_path / 'codec').symlink_to(corpus / 'codec')
  pieces = [{'text': f'piece {i}', 'codes': [i, i + 1]} for i in range(8)]
  (tmp_path / 'p.jsonl').write_text(json.dumps({'pieces': pieces}) + '\n')
  prepare.prepare(config(corpus, sources=(Source('p.jsonl', task='pt', repeat=12),)), tmp_path)
  assert len(set(documents(tmp_path / 'data').values())) > 9


def test_a_changed_source_is_read_anew(corpus, tmp_path, small):
  folder = tmp_path / 'c'
  folder.mkdir()
  lines = (corpus / 'b.jsonl').read_text().splitlines(keepends=True)
  (folder / 'codec').symlink_to(corpus / 'codec')
  (folder / 'b.jsonl').write_text(''.join(lines[:100]) + 'broken\n' + ''.join(lines[100:]))
  setup = config(corpus, sources=(Source('b.jsonl'),))
  with pytest.raises(UserError, match='b.jsonl:101: broken JSON'):
    prepare.prepare(setup, folder)
  assert (folder / '.data-work').exists()
  (folder / 'b.jsonl').write_text(''.join(lines))
  assert prepare.prepare(setup, folder)['splits']['train']['documents'] == 150


@hypothesis.given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(1, 25))
def test_every_document_is_in_one_shard(blocks, count):
  for at, size in enumerate(blocks):
    found = [i for k in range(count) for i in range(*pack.bounds(at, size, k, count))]
    assert found == list(range(size))


def test_shards_of_many_small_blocks_are_of_one_size():
  filled = np.zeros(10)
  for at in range(1000):
    for k in range(10):
      first, last = pack.bounds(at, 1, k, 10)
      filled[k] += last - first
  assert filled.min() == filled.max() == 100


# -- bad records --------------------------------------------------------------------------


@pytest.fixture
def spoilt(corpus, tmp_path):
  """40 good records, and one of every kind of bad one; the good ones are known."""
  folder = tmp_path / 's'
  (folder / 'wav').mkdir(parents=True)
  (folder / 'codec').symlink_to(corpus / 'codec')
  rng = np.random.default_rng(1)
  good = [json.dumps(conversation(rng, i)) for i in range(40)]
  silent, noise = folder / 'wav' / 'silent.wav', folder / 'wav' / 'noise.wav'
  io.write_wav(silent, np.zeros(4000, np.float32), 16_000)
  noise.write_bytes(b'RIFF????')
  def asks(name):
    return json.dumps({'messages': [{'role': 'user', 'content': [{'type': 'audio', 'audio': name}]},
                                    {'role': 'assistant', 'content': 'x'}]})
  bad = {5: '{"messages": [', 9: '[1, 2]', 12: '{"messages": []}', 13: '{"prompt": "x"}',
         17: asks('wav/silent.wav'), 18: asks('wav/noise.wav'), 19: asks('nowhere.wav'),
         25: json.dumps({'prompt': 'x', 'response': f'<|audio_{CODES}|>'}),
         30: json.dumps({'prompt': 'x', 'response': 'long ' * 200})}
  lines = []
  for i, line in enumerate(good):
    while len(lines) + 1 in bad:
      lines.append(bad[len(lines) + 1])
    lines.append(line)
  (folder / 'x.jsonl').write_text('\n'.join(lines) + '\n')
  (folder / 'good.jsonl').write_text('\n'.join(good) + '\n')
  return folder, bad


def test_not_strict_lists_rejected_records(spoilt, tmp_path):
  folder, bad = spoilt
  setup = config(folder, sources=(Source('x.jsonl'),), strict=False, max_rejects=0.2)
  manifest = prepare.prepare(setup, folder)
  assert manifest['rejects'] == {
      'code outside the codebook': 1, 'malformed record': 2, 'not readable': 2, 'too long': 1,
      'unusable audio': 3}
  listed = [json.loads(line) for line in (folder / 'data.rejects.jsonl').read_text().splitlines()]
  assert [one['where'] for one in listed] == [f'{folder / "x.jsonl"}:{n}' for n in bad]
  assert all(one['sentence'].startswith(one['where']) for one in listed)
  assert dict(collections.Counter(one['reason'] for one in listed)) == manifest['rejects']
  assert 'rejected: unusable audio: 3' in summary.table(manifest)
  good = dataclasses.replace(setup, data=dataclasses.replace(
      setup.data, path='good', sources=(Source('good.jsonl'),)))
  prepare.prepare(good, folder)
  found, wanted = (collections.Counter(documents(folder / name).values())
                   for name in ('data', 'good'))
  assert found == wanted
  assert not (folder / 'good.rejects.jsonl').exists()


def test_not_strict_gives_each_record_its_own_recording(spoilt):
  folder, _ = spoilt
  for n in (1, 2, 3):
    tone = np.sin(np.arange(8000 * n) * 0.1 * n).astype(np.float32)
    io.write_wav(folder / 'wav' / f'{n}.wav', 0.5 * tone, 16_000)
  names = ['1', 'silent', '2', 'noise', '3', 'none']
  (folder / 'r.jsonl').write_text(''.join(json.dumps(
      {'audio': f'wav/{name}.wav', 'text': name}) + '\n' for name in names))
  setup = config(folder, sources=(Source('r.jsonl', task='asr', prompt=''),), strict=False,
                 max_rejects=0.5)
  setup = dataclasses.replace(setup, codec=dataclasses.replace(setup.codec, codes=4))
  manifest = prepare.prepare(setup, folder)
  assert manifest['rejects'] == {'unusable audio': 3}
  vocab, codec = store.vocabulary(folder / 'data'), codecs.load(folder / 'data' / 'codec')
  found = {}
  for token, _ in documents(folder / 'data').values():
    token = np.frombuffer(token, np.int32)
    codes = vocab.decode_codes(token)
    found[chr(token[-3 - len(codes) // 2 - 2])] = codes[:len(codes) // 2]
  for n in '123':
    np.testing.assert_array_equal(found[n], codec.encode(*io.read(folder / 'wav' / f'{n}.wav')))


def test_too_many_rejects_are_an_error_and_listed(spoilt):
  folder, bad = spoilt
  setup = config(folder, sources=(Source('x.jsonl'),), strict=False, max_rejects=0.1)
  with pytest.raises(UserError, match=r'9 of 49 records \(18.4%\) cannot be used, and '
                                      r'data.max_rejects allows 10.0%; .*rejects.jsonl lists'):
    prepare.prepare(setup, folder)
  assert len((folder / 'data.rejects.jsonl').read_text().splitlines()) == len(bad)
  assert not (folder / 'data').exists()
  prepare.prepare(config(folder, sources=(Source('good.jsonl'),)), folder)
  assert not (folder / 'data.rejects.jsonl').exists()


def test_strict_stops_at_the_first_bad_record(spoilt):
  folder, bad = spoilt
  lines = (folder / 'x.jsonl').read_text().splitlines()
  for number, said in zip(bad, ('broken JSON', 'a list, but', 'messages must be', "'response' is",
                                'silent', 'cannot be read', 'does not exist', 'outside the code',
                                'has .* tokens but a row holds 512')):
    with pytest.raises(UserError, match=f'x.jsonl:{number}.*{said}'):
      prepare.prepare(config(folder, sources=(Source('x.jsonl'),)), folder)
    lines[number - 1] = ''
    (folder / 'x.jsonl').write_text('\n'.join(lines) + '\n')
  assert prepare.prepare(config(folder, sources=(Source('x.jsonl'),)), folder)['rejects'] == {}


def test_a_truncated_file_is_an_error_also_if_not_strict(corpus, tmp_path):
  (tmp_path / 'codec').symlink_to(corpus / 'codec')
  data = (corpus / 'c.jsonl.gz').read_bytes()
  (tmp_path / 'c.jsonl.gz').write_bytes(data[:len(data) // 2])
  with pytest.raises(UserError, match='c.jsonl.gz is damaged or truncated'):
    prepare.prepare(config(tmp_path, sources=(Source('c.jsonl.gz'),), strict=False, max_rejects=1.),
                    tmp_path)


@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.parametrize('contents', ['', '\n\n'])
def test_a_file_without_records_is_rejected(corpus, tmp_path, strict, contents):
  (tmp_path / 'none.jsonl').write_text(contents)
  sources = (Source(str(corpus / 'b.jsonl')), Source('none.jsonl'))
  with pytest.raises(UserError, match='none.jsonl is empty; it needs at least one record'):
    prepare.prepare(config(corpus, sources=sources, strict=strict), tmp_path)


def test_a_folder_that_cannot_be_made_is_one_sentence(corpus, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='file could not be written: Not a directory'):
    prepare.prepare(config(corpus), tmp_path / 'file')


def test_the_codec_beside_the_sources_is_read_once(corpus, tmp_path, small, monkeypatch):
  read, load = [], codecs.load
  monkeypatch.setattr(codecs, 'load',
                      lambda folder, *more: read.append(folder) or load(folder, *more))
  prepare.prepare(config(corpus), tmp_path)
  assert read == [corpus / 'codec']


def test_a_recording_with_a_foreign_code_is_not_joined(corpus, tmp_path):
  (tmp_path / 'codec').symlink_to(corpus / 'codec')
  rows = [{'codes': [n % CODES] * 4, 'text': f'word {n}'} for n in range(8)]
  rows += [{'codes': [CODES], 'text': 'foreign'}, {'codes': [1], 'text': 'a long enough text here'}]
  (tmp_path / 'r.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  setup = config(corpus, sources=(Source('r.jsonl', task='tts', join_most=2, join_count=20),),
                 strict=False, max_rejects=0.2)
  manifest = prepare.prepare(setup, tmp_path)
  assert manifest['rejects'] == {'code outside the codebook': 1}
  assert manifest['splits']['train']['documents'] == 9 + 20


def test_long_documents_are_cut_and_counted(corpus, tmp_path):
  spoken = ''.join(f'<|audio_{i % CODES}|>' for i in range(700))
  (tmp_path / 'codec').symlink_to(corpus / 'codec')
  (tmp_path / 'x.jsonl').write_text(json.dumps(
      {'prompt': 'x', 'response': 'words ' * 60 + spoken}) + '\n')
  manifest = prepare.prepare(config(corpus, sources=(Source('x.jsonl'),)), tmp_path)
  assert manifest['splits']['train']['truncated'] == 1
  assert '1 documents were truncated to fit' in summary.table(manifest)
  ((token, supervised),) = documents(tmp_path / 'data').values()
  vocab = store.vocabulary(tmp_path / 'data')
  assert len(token) // 4 <= 512
  assert np.frombuffer(token, np.int32)[-1] == vocab.end_of_chunk
  for change in ({'sources': (Source('x.jsonl'),), 'truncate': 'no'},
                 {'sources': (Source('x.jsonl', split='heldout'),)}):  # never cut
    with pytest.raises(UserError, match='x.jsonl:1 .*tokens but a row holds 512; shorten it'):
      prepare.prepare(config(corpus, **change), tmp_path)


def test_a_file_that_is_read_twice_is_reported(corpus, tmp_path, caplog):
  (tmp_path / 'codec').symlink_to(corpus / 'codec')
  for name in ('a.jsonl', 'copy of a.jsonl'):
    (tmp_path / name).write_bytes((corpus / 'b.jsonl').read_bytes())
  (tmp_path / 'b.jsonl').write_bytes((corpus / 'b.jsonl').read_bytes()[:-1] + b' ')
  prepare.prepare(config(corpus, sources=(Source('*.jsonl'), Source('b.jsonl', split='heldout'),
                                          Source('b.jsonl', prompt=''))), tmp_path)
  (said,) = (r.getMessage() for r in caplog.records if 'twice' in r.getMessage())
  assert 'a.jsonl is read twice for the same split and task, also as' in said
  assert 'copy of a.jsonl' in said


def test_damaged_rows_are_rejected_when_they_are_opened(corpus, tmp_path):
  prepare.prepare(config(corpus), tmp_path)
  (file,) = (tmp_path / 'data').glob('train-*')
  whole = file.read_bytes()
  file.write_bytes(whole[:-100])
  with pytest.raises(UserError, match='has .* bytes but the manifest says .*; copy it again'):
    store.Rows(tmp_path / 'data', 'train')
  file.unlink()
  with pytest.raises(UserError, match='is missing from the prepared set'):
    store.Rows(tmp_path / 'data', 'train')
