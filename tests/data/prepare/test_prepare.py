"""Small WAV and JSONL files become a prepared set, or one error and no set."""

import dataclasses
import json
import logging
import shutil

import numpy as np
import pytest

from ttt_jax.audio import codec as codecs, io
from ttt_jax.config import CodecConfig, Config, DataConfig, Source, VocabConfig
from ttt_jax.data import export, heldout, store
from ttt_jax.data.interleave import Renderer
from ttt_jax.data.loader import Loader
from ttt_jax.data.prepare import encode, prepare, summary
from ttt_jax.data.records import records, tasks
from ttt_jax.errors import UserError
from ttt_jax.storage import files, owned
from ttt_jax.tokens.batch import split_documents
from ttt_jax.tokens.tokenizer import create

RATE = 16_000
SOURCES = (Source('train.jsonl', task='asr'), Source('train.jsonl', task='tts', prompt=''),
           Source('qa.jsonl'), Source('pt.jsonl', repeat=0.5),
           Source('held.jsonl', task='asr', split='heldout'))
CONFIG = Config(codec=CodecConfig(codes=8), data=DataConfig(seq_len=512, sources=SOURCES))


def lines(path, values):
  path.write_text(''.join(json.dumps(value) + '\n' for value in values))


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  """Six tones that glide, as recordings, a spoken question, and a document."""
  folder = tmp_path_factory.mktemp('corpus')
  (folder / 'wav').mkdir()
  for n in range(6):
    seconds = np.arange(int(RATE * (0.3 + 0.05 * n))) / RATE
    tone = 0.5 * np.sin(2 * np.pi * (200 + 90 * n + 300 * seconds) * seconds)
    io.write_wav(folder / 'wav' / f'{n}.wav', tone.astype(np.float32), RATE)
  lines(folder / 'train.jsonl', [{'id': f'r{n}', 'audio': f'wav/{n}.wav', 'text': f'{n} {n}'}
                                 for n in range(5)])
  lines(folder / 'held.jsonl', [{'id': 'h', 'audio': 'wav/5.wav', 'text': '5 5'}])
  lines(folder / 'qa.jsonl', [{'id': 'q', 'task': 'audio_qa', 'messages': [
      {'role': 'user', 'content': [{'type': 'audio', 'audio': 'wav/0.wav', 'text': 'what'}]},
      {'role': 'assistant', 'content': [{'type': 'text', 'text': '1 1'},
                                        {'type': 'audio', 'audio': 'wav/1.wav'}]}]}])
  lines(folder / 'pt.jsonl', [{'text': f'document {n}'} for n in range(4)])
  return folder


def with_sources(*sources, **data):
  return dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, sources=sources, **data))


@pytest.fixture(scope='module')
def prepared(corpus):
  """(workdir, manifest) of CONFIG."""
  return corpus, prepare.prepare(CONFIG, corpus)


def documents(data, split):
  """{document id: (token, supervised)} of a split's rows."""
  rows = store.Rows(data, split)
  return {number: (token, supervised) for i in range(len(rows))
          for number, token, supervised in split_documents(rows[i])}


def test_the_set_is_complete_and_its_counts_are_right(prepared):
  workdir, manifest = prepared
  data = workdir / 'data'
  assert store.read_manifest(data) == manifest
  assert {p.name for p in data.iterdir()} == {
      '.ttt-jax.json', 'codec', 'manifest.json', 'train-00000-of-00001.arrayrecord',
      'heldout-00000-of-00001.arrayrecord',
      'heldout.records.jsonl', 'heldout_wav'}
  assert str(workdir) not in ''.join(p.read_text() for p in data.glob('*.json*'))
  vocab = store.vocabulary(data)
  assert vocab.codec == codecs.load(data / 'codec').name and vocab.codebook_size == 8
  train, held = manifest['splits']['train'], manifest['splits']['heldout']
  assert {task: entry['records'] for task, entry in train['tasks'].items()} == {
      'asr': 5, 'tts': 5, 'audio_qa': 1, 'other': 2}
  assert held['documents'] == 1 and manifest['max_document'] == 14
  found = documents(data, 'train')
  assert sorted(found) == list(range(1, 14)) and sorted(documents(data, 'heldout')) == [14]
  tokens = np.concatenate([token for token, _ in found.values()])
  audio = int((tokens >= vocab.audio_threshold).sum())
  assert train['tokens'] == {
      'audio': audio, 'text': len(tokens) - audio,
      'supervised': sum(int(s.sum()) for _, s in found.values()),
      'padding': train['rows'] * 512 - len(tokens)}
  assert sum(e['audio'] for e in train['tasks'].values()) == audio
  for split in (train, held):
    (file,) = split['files']
    assert file['sha256'] == files.sha256(data / file['name'])
  assert train['files'][0]['sha256'] != held['files'][0]['sha256']
  assert sum(train['lengths']['documents']) == 13 and manifest['rejects'] == {}


def test_a_document_is_its_record_rendered(prepared):
  workdir, _ = prepared
  vocab, codec = store.vocabulary(workdir / 'data'), codecs.load(workdir / 'data' / 'codec')
  text = create(VocabConfig())
  token, supervised = documents(workdir / 'data', 'train')[6]  # tts of the first recording
  answer, spans = Renderer(vocab, text).unrender(token[supervised == 1])
  assert answer == '0 0\n'
  codes = codec.encode(*io.read(workdir / 'wav' / '0.wav'))
  np.testing.assert_array_equal(np.concatenate(spans), codes)
  assert Renderer(vocab, text).unrender(token)[0].startswith('user\n0 0\nassistant\n0 0')


def test_heldout_records_come_back_with_prompt_codes_and_recording(prepared):
  workdir, _ = prepared
  (record,) = heldout.load_records(workdir / 'data', 'heldout')
  assert [turn.role for turn in record.turns] == ['system', 'user', 'assistant']
  assert record.task == 'asr' and record.turns[2].parts[0].text == '5 5'
  original = workdir / 'wav' / '5.wav'
  for part in record.audio():
    assert part.text == '5 5' and part.source == 'heldout_wav/5.wav'
    assert (workdir / 'data' / part.source).read_bytes() == original.read_bytes()
  vocab = store.vocabulary(workdir / 'data')
  rendered = Renderer(vocab, create(VocabConfig())).render(record)
  np.testing.assert_array_equal(rendered.token, documents(workdir / 'data', 'heldout')[14][0])
  with pytest.raises(UserError, match="no records of split 'train'; it stores those of heldout"):
    heldout.load_records(workdir / 'data', 'train')


def test_system_prompts_are_stored_per_task_and_version_2_looks_at_heldout_records(
    prepared, tmp_path):
  data_dir, manifest = prepared[0] / 'data', prepared[1]
  assert manifest['system_prompts'] == {
      'asr': tasks.wording('asr'), 'audio_qa': tasks.wording('audio_qa'),
      'tts': ''}  # whose source has prompt=''
  assert heldout.system_prompt(data_dir, 'tts') == ''
  assert heldout.system_prompt(data_dir, 'asc', 3, 5) == tasks.wording('asc', 3, 5)  # not there
  old = {key: value for key, value in manifest.items() if key != 'system_prompts'}
  store.write_manifest(tmp_path, {**old, 'version': 2})
  (record,) = heldout.load_records(data_dir)
  asked = tasks.with_prompt(record, 'Listen.')
  lines(tmp_path / 'heldout.records.jsonl', [records.to_json(asked)])
  assert heldout.system_prompt(tmp_path, 'asr') == 'Listen.'
  assert heldout.system_prompt(tmp_path, 'tts') == tasks.wording('tts')


def test_the_loader_reads_what_prepare_wrote(prepared):
  workdir, _ = prepared
  vocab = store.vocabulary(workdir / 'data')
  batch = next(Loader(workdir / 'data', CONFIG.data, 2, 0, vocab))
  assert batch.token.shape == (2, 512) and batch.token.max() < vocab.size


def test_preparing_again_gives_the_same_bytes_and_replaces_the_old_set(prepared):
  workdir, manifest = prepared
  before = (workdir / 'data').stat().st_ino
  assert prepare.prepare(CONFIG, workdir) == manifest
  assert (workdir / 'data').stat().st_ino != before
  assert not [p for p in workdir.iterdir() if p.name.startswith('.')]


def test_recordings_encoded_in_other_processes_give_the_same_bytes(corpus, tmp_path, prepared,
                                                                   monkeypatch):
  _, manifest = prepared
  folder = tmp_path / 'c'
  shutil.copytree(corpus, folder, ignore=shutil.ignore_patterns('data'))
  monkeypatch.setattr(prepare, '_LARGE', 0)
  monkeypatch.setattr(encode, '_MANY', 0)
  monkeypatch.setattr(codecs.Codec, 'at_once', 2)
  config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, workers=2))
  assert prepare.prepare(config, folder) == manifest
  for file in (corpus / 'data').rglob('*'):
    if file.is_file():
      assert (folder / file.relative_to(corpus)).read_bytes() == file.read_bytes(), file


def test_the_codec_is_fitted_on_training_recordings_alone(corpus, tmp_path, prepared):
  _, manifest = prepared
  folder = tmp_path / 'c'
  shutil.copytree(corpus, folder, ignore=shutil.ignore_patterns('data'))
  noise = 0.3 * np.random.default_rng(0).standard_normal(RATE)
  io.write_wav(folder / 'wav' / '5.wav', noise.astype(np.float32), RATE)
  assert prepare.prepare(CONFIG, folder)['vocabulary'] == manifest['vocabulary']


def test_codes_alone_with_their_codec_give_the_same_rows(prepared, tmp_path):
  workdir, manifest = prepared
  codec = codecs.load(workdir / 'data' / 'codec')
  for name, count in [('train', 5), ('qa', 1), ('pt', 4), ('held', 1)]:
    written = export.inline_codes(workdir / f'{name}.jsonl', tmp_path / f'{name}.jsonl', codec)
    assert written == count
  assert 'wav' not in ''.join(p.read_text() for p in tmp_path.glob('*.jsonl'))
  again = prepare.prepare(CONFIG, tmp_path)
  assert again == manifest
  (record,) = heldout.load_records(tmp_path / 'data')
  assert all(part.source is None and len(part.codes) for part in record.audio())


def test_codes_without_their_codec_are_rejected(tmp_path):
  lines(tmp_path / 'a.jsonl', [{'codes': [1, 2], 'text': 'x'}])
  with pytest.raises(UserError, match=r'a.jsonl:1: the audio is given as codes, but there is no'):
    prepare.prepare(with_sources(Source('a.jsonl', task='asr')), tmp_path)


def test_joined_recordings_fit_a_row_and_avoid_the_heldout(corpus, tmp_path):
  folder = tmp_path / 'c'
  shutil.copytree(corpus, folder, ignore=shutil.ignore_patterns('data'))
  lines(folder / 'held.jsonl', [{'audio': 'wav/5.wav', 'text': f'{a} {a} {b} {b}'}
                                for a in range(5) for b in range(5) if a != b])
  lines(folder / 'train.jsonl', [{'audio': f'wav/{n}.wav', 'text': f'{n} {n}'}
                                 for n in range(5)] + [{'audio': 'wav/0.wav', 'text': 'longest'}])
  config = with_sources(Source('train.jsonl', task='tts', join_most=2, join_count=5, prompt=''),
                        Source('held.jsonl', task='tts', split='heldout'))
  prepare.prepare(config, folder)
  text, vocab = create(VocabConfig()), store.vocabulary(folder / 'data')
  said = [Renderer(vocab, text).unrender(token[s == 1])[0].strip()
          for token, s in documents(folder / 'data', 'train').values()]
  assert sorted(said) == sorted(['longest', *(f'{n} {n}' for n in range(5))] +
                                [f'{n} {n} {n} {n}' for n in range(5)])


def test_training_on_a_heldout_text_is_reported(corpus, tmp_path, caplog):
  config = dataclasses.replace(with_sources(
      Source('train.jsonl', task='asr'), Source('train.jsonl', task='asr', split='heldout')),
      data=dataclasses.replace(CONFIG.data, path=str(tmp_path / 'd'), sources=(
          Source('train.jsonl', task='asr'), Source('train.jsonl', task='asr', split='heldout'))))
  with caplog.at_level(logging.WARNING):
    assert prepare.prepare(config, corpus)['heldout_overlap'] == 5
  assert '5 training recordings have the text of a held-out one' in caplog.text


@pytest.mark.parametrize('sources, data, sentence', [
    ((), {}, 'data.sources is empty'),
    ((Source('none.jsonl'),), {}, "no file 'none.jsonl'"),
    ((Source('train.jsonl', task='sing'),), {}, "task is 'sing'; use one of"),
    ((Source('train.jsonl', split='a/b'),), {}, "split is 'a/b'"),
    ((Source('train.jsonl'),), {}, 'train.jsonl:1: this is a recording, not a record'),
    ((Source('qa.jsonl', task='asr'),), {}, 'qa.jsonl:1: a recording needs "text"'),
    ((Source('qa.jsonl', join_count=2),), {}, 'join_count is for recordings'),
    ((Source('train.jsonl', task='asr'),), {'seq_len': 40},
     r'train.jsonl:\d .record asr-r\d.: the record has \d+ tokens but a row holds 40'),
    ((Source('bad_missing.jsonl', task='asr'),), {}, 'bad_missing.jsonl:1: .*nowhere.wav'),
    ((Source('bad_silent.jsonl', task='asr'),), {}, 'bad_silent.jsonl:1: .*silent'),
    ((Source('bad_empty.jsonl', task='asr'),), {}, 'bad_empty.jsonl:1: .*empty'),
    ((Source('bad_noise.jsonl', task='asr'),), {}, 'bad_noise.jsonl:1: .*cannot be read'),
    ((Source('train.jsonl', task='asr', split='heldout'),), {}, 'codec.codes'),
])
def test_bad_input_is_one_sentence_and_leaves_no_set(corpus, tmp_path, sources, data, sentence):
  shutil.copytree(corpus, tmp_path / 'c', ignore=shutil.ignore_patterns('data'))
  folder = tmp_path / 'c'
  io.write_wav(folder / 'wav' / 'silent.wav', np.zeros(4000, np.float32), RATE)
  io.write_wav(folder / 'wav' / 'empty.wav', np.zeros(0, np.float32), RATE)
  (folder / 'wav' / 'noise.wav').write_bytes(b'RIFF????')
  for name, file in [('missing', 'nowhere'), *((n, n) for n in ('silent', 'empty', 'noise'))]:
    lines(folder / f'bad_{name}.jsonl', [{'audio': f'wav/{file}.wav', 'text': 'x'}])
  before = sorted(folder.rglob('*'))
  with pytest.raises(UserError, match=sentence):
    prepare.prepare(with_sources(*sources, **data), folder)
  kept = folder / '.data-work'  # what was done, for the next try
  assert sorted(p for p in folder.rglob('*') if kept not in (p, *p.parents)) == before


def test_a_failed_run_keeps_the_old_set_and_foreign_directories_are_safe(prepared, tmp_path):
  workdir, manifest = prepared
  with pytest.raises(UserError, match='a row holds 100'):
    prepare.prepare(with_sources(*SOURCES, seq_len=100, truncate='no'), workdir)
  assert store.read_manifest(workdir / 'data') == manifest
  (tmp_path / 'data').mkdir()
  (tmp_path / 'data' / 'thesis.txt').write_text('do not lose')
  with pytest.raises(UserError, match='exists and is not a prepared set'):
    prepare.prepare(CONFIG, tmp_path)
  assert (tmp_path / 'data' / 'thesis.txt').read_text() == 'do not lose'


@pytest.mark.parametrize('path', ['.', '..', '../c', 'wav', 'checkpoints', 'logs/rows'])
def test_a_folder_that_holds_anything_else_is_refused_before_the_work(corpus, tmp_path, path):
  """A folder of recordings may hold a manifest.json of its own: that does not make it a set."""
  folder = tmp_path / 'c'
  shutil.copytree(corpus, folder, ignore=shutil.ignore_patterns('data'))
  (folder / 'wav' / 'manifest.json').write_text('{"audio": "0.wav", "text": "0"}')
  before = {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob('*')}
  with pytest.raises(UserError, match='config key data.path'):
    prepare.prepare(with_sources(*SOURCES, path=path), folder)
  assert {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob('*')} == before


def test_a_set_without_a_marker_is_replaced_if_its_manifest_proves_every_file(prepared, tmp_path):
  workdir, manifest = prepared
  folder = tmp_path / 'c'
  shutil.copytree(workdir, folder)
  (folder / 'data' / owned.MARKER).unlink()  # as version 0.1 wrote it
  (folder / 'data' / 'heldout_wav' / 'mine.wav').write_text('mine')
  with pytest.raises(UserError, match='heldout_wav/mine.wav is not one of its files'):
    prepare.prepare(CONFIG, folder)
  (folder / 'data' / 'heldout_wav' / 'mine.wav').unlink()
  assert prepare.prepare(CONFIG, folder) == manifest
  assert (folder / 'data' / owned.MARKER).exists()


def test_data_may_be_a_link_to_another_disk(corpus, tmp_path):
  (tmp_path / 'disk').mkdir()
  shutil.copytree(corpus, tmp_path / 'run', ignore=shutil.ignore_patterns('data'))
  (tmp_path / 'run' / 'data').symlink_to(tmp_path / 'disk' / 'set')
  for _ in range(2):
    manifest = prepare.prepare(CONFIG, tmp_path / 'run')
    assert (tmp_path / 'run' / 'data').is_symlink()
    assert store.read_manifest(tmp_path / 'disk' / 'set') == manifest
    assert [p.name for p in (tmp_path / 'disk').iterdir()] == ['set']


def test_heldout_recordings_of_one_name_are_all_kept(tmp_path):
  copies = prepare._Copies(tmp_path / 'heldout_wav')
  names = {}
  for n in range(400):
    file = tmp_path / f'{n}' / ('audio.wav', 'AUDIO.wav', 'audio-2.wav')[n % 3]
    file.parent.mkdir()
    file.write_text(str(n))
    names[n] = copies.add(records.Clip(str(file)))
    assert copies.add(records.Clip(str(file))) == names[n]
  assert len({name.casefold() for name in names.values()}) == 400
  assert all((copies.folder / name).read_text() == str(n) for n, name in names.items())
  assert copies.add(records.Clip(str(tmp_path / 'nowhere.wav'))) is None


def test_the_list_of_rejects_does_not_replace_a_file_of_the_same_name(corpus, tmp_path):
  (tmp_path / 'data.rejects.jsonl').write_text('{"my": "file"}')
  with pytest.raises(UserError, match='data.rejects.jsonl exists and was not written by ttt-jax'):
    prepare.prepare(with_sources(Source(str(corpus / 'pt.jsonl'))), tmp_path)
  assert (tmp_path / 'data.rejects.jsonl').read_text() == '{"my": "file"}'


def test_stretches_of_a_file_are_encoded_apart_and_unused_keys_are_listed(prepared, tmp_path):
  workdir, _ = prepared
  codec = codecs.load(workdir / 'data' / 'codec')
  codec.save(tmp_path / 'codec')
  tones = [0.5 * np.sin(2 * np.pi * hz * np.arange(RATE) / RATE) for hz in (300, 1500)]
  waveform = np.concatenate(tones).astype(np.float32)
  io.write_wav(tmp_path / 'long.wav', waveform, RATE)
  parts = [{'audio': 'long.wav', 'offset': 0, 'duration': 1, 'mood': 'glad'},
           {'audio': 'long.wav', 'start': '1.0', 'end': '2.0', 'speaker': 'x'},
           {'audio': 'long.wav', 'mood': 'sad'}]
  lines(tmp_path / 'a.jsonl', [{'text': str(i), **part} for i, part in enumerate(parts)])
  lines(tmp_path / 'codes.jsonl', [{'codes': [1], 'text': 'x'}])  # the codec is the one beside it
  config = with_sources(Source('a.jsonl', task='tts', prompt=''),
                        Source('a.jsonl', task='tts', prompt='', split='heldout'),
                        Source('codes.jsonl', task='asr'))
  manifest = prepare.prepare(config, tmp_path)
  assert manifest['unused_keys'] == {'a.jsonl': {'mood': 4}}
  assert 'keys not used in a.jsonl (records): mood (4)' in summary.table(manifest)
  first, second, whole = heldout.load_records(tmp_path / 'data')
  read, rate = io.read(tmp_path / 'long.wav')
  for record, piece in ((first, read[:RATE]), (second, read[RATE:]), (whole, read)):
    (part,) = record.audio()
    np.testing.assert_array_equal(part.codes, codec.encode(piece, rate))
    copy, _ = io.read(tmp_path / 'data' / part.source)  # a stretch is copied as a file of its own
    np.testing.assert_allclose(copy, piece, atol=1e-4)
    assert (part.offset, part.duration) == (0, None)
