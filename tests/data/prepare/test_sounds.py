"""Where a sound is and which part of it is meant: from a source to the codes of its documents."""

import base64
import dataclasses
import io as buffers
import json
import os

import numpy as np
import pyarrow as pa
from pyarrow import parquet
import pytest
import soundfile

from tests.data.prepare import tone as tones
from tests.data.prepare.tone import RATE, tone
from ttt_jax.audio import io
from ttt_jax.config import CodecConfig, Config, DataConfig, Source
from ttt_jax.data import heldout, store
from ttt_jax.data.prepare import prepare
from ttt_jax.data.records import embedded, places, sounds
from ttt_jax.data.records.records import Part
from ttt_jax.errors import UserError
from ttt_jax.tokens.batch import split_documents

LOW, HIGH = [8] * 5, [16] * 5  # half a second of 500 Hz, of 1000 Hz


def wav(waveform, form='WAV'):
  out = buffers.BytesIO()
  soundfile.write(out, waveform, RATE, format=form)
  return out.getvalue()


A, B = wav(tone(500)), wav(tone(1000))


def prepared(folder, path, task='tts', work='work', **data):
  """The documents of a source: (text, codes) of each in order of the source."""
  split = data.pop('split', 'train')
  config = Config(codec=CodecConfig(name=tones.NAME), data=DataConfig(
      seq_len=512, workers=1, sources=(Source(path, task=task, prompt='', split=split),), **data))
  cwd = os.getcwd()
  os.chdir(folder)
  try:
    prepare.prepare(config, folder / work)
  finally:
    os.chdir(cwd)
  data = folder / work / 'data'
  vocab, rows = store.vocabulary(data), store.Rows(data, split)
  out = {}
  for row in range(len(rows)):
    for number, token, _ in split_documents(rows[row]):
      audio = vocab.is_audio(token) & ~vocab.is_end(token)
      text = bytes(int(one) for one in token if one < 256).decode()
      out[number] = text, vocab.decode_codes(token[audio]).tolist()
  return [out[number] for number in sorted(out)]


def codes(*args, **kwargs):
  return [found for _, found in prepared(*args, **kwargs)]


def lines(path, *values):
  path.write_text(''.join(json.dumps(value) + '\n' for value in values))
  return path.name


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'a.wav').write_bytes(A)
  (tmp_path / 'b.wav').write_bytes(B)
  io.write_wav(tmp_path / 'long.wav', np.concatenate([tone(500), tone(1000), tone(2000)]), RATE)
  soundfile.write(tmp_path / 'call.wav', np.stack([tone(500), tone(1000)], 1), RATE)
  return tmp_path


# -- parts of files -----------------------------------------------------------------------------


@pytest.mark.parametrize('keys, found', [
    ([{'offset': 0.0, 'duration': 0.5}, {'offset': 0.5, 'duration': 0.5}, {'offset': 1.0}],
     [LOW, HIGH, [32] * 5]),
    ([{'start': 0.5, 'end': 1.0}, {'start_time': '0', 'end_time': '0.5'}], [HIGH, LOW]),
    ([{'audio': 'call.wav', 'channel': 0}, {'audio': 'call.wav', 'channel': 1}], [LOW, HIGH])])
@pytest.mark.parametrize('kind', ['jsonl', 'parquet', 'tsv'])
def test_a_part_or_a_channel_of_a_file(folder, keys, found, kind):
  rows = [{'audio': 'long.wav', **one, 'text': f'{i}'} for i, one in enumerate(keys)]
  name = f'd.{kind}'
  if kind == 'jsonl':
    lines(folder / name, *rows)
  elif kind == 'parquet':
    parquet.write_table(pa.table({key: [row.get(key) for row in rows] for key in {
        key for row in rows for key in row}}), folder / name)
  else:
    header = sorted({key for row in rows for key in row})
    (folder / name).write_text('\n'.join('\t'.join(str(row.get(key, '')) for key in header)
                                         for row in [dict(zip(header, header)), *rows]))
  assert codes(folder, name) == found


@pytest.mark.parametrize('keys, sentence', [
    ({'offset': 1.0, 'duration': 5.0}, 'lasts 1.5 s; there is no part from 1 s to 6 s'),
    ({'offset': 2.0}, 'lasts 1.5 s; there is no part from 2 s to its end'),
    ({'channel': 1}, 'has 1 channel.*there is no channel 1')])
def test_a_part_that_is_not_there_is_a_sentence(folder, keys, sentence):
  name = lines(folder / 'd.jsonl', {'audio': 'long.wav', 'text': 'x', **keys})
  with pytest.raises(UserError, match=rf'd.jsonl:1: recording .*long.wav {sentence}'):
    codes(folder, name)
  assert codes(folder, lines(folder / 'e.jsonl', {'audio': 'a.wav', 'text': 'x'},
                             {'audio': 'long.wav', 'text': 'x', **keys}),
               strict=False, max_rejects=0.5) == [LOW]


@pytest.mark.parametrize('turn', [{'type': 'Speech', 'content': 'a.wav'},
                                  {'content': '<AUDIO>a.wav</AUDIO>'}])
def test_names_of_sounds_in_any_case_are_found_in_a_set_that_is_not_strict(folder, turn):
  name = lines(folder / 'd.jsonl', {'messages': [
      {'role': 'user', **turn}, {'role': 'assistant', 'content': 'x'}]})
  assert codes(folder, name, task='', strict=False) == [LOW]


def test_a_lone_surrogate_in_a_heldout_record_is_kept(folder):
  name = lines(folder / 'd.jsonl', {'id': '\ud800/x', 'audio': 'a.wav', 'text': 'a \udc80'})
  assert codes(folder, name, 'asr', split='heldout') == [LOW * 2]
  record, = heldout.load_records(folder / 'work' / 'data', 'heldout')
  assert record.id == 'asr-\ud800/x' and record.turns[-1].parts[0].text == 'a \udc80'


# -- sounds inside records ------------------------------------------------------------------------

B64 = base64.b64encode(A).decode()
STRUCT = pa.struct({'bytes': pa.binary(), 'path': pa.string()})


@pytest.mark.parametrize('name, kind, value', [
    ('audio', STRUCT, {'bytes': A, 'path': None}), ('audio', STRUCT, {'bytes': A, 'path': 'b.wav'}),
    ('audio', STRUCT, {'bytes': None, 'path': 'a.wav'}), ('audio', pa.binary(), A),
    ('audio', pa.list_(STRUCT), [{'bytes': A, 'path': 'x'}]), ('recording', STRUCT, {'bytes': A}),
    ('speech', STRUCT, {'bytes': wav(tone(500), 'FLAC'), 'path': 'x.flac'}),
    ('audio', pa.string(), B64), ('audio', pa.large_binary(), A),
    ('mp3', STRUCT, {'bytes': wav(tone(500), 'MP3')}),
    ('audio', pa.struct({'array': pa.list_(pa.float32()), 'sampling_rate': pa.int64()}),
     {'array': tone(500).tolist(), 'sampling_rate': RATE}),
    ('voice', pa.struct({'array': pa.list_(pa.list_(pa.float64())), 'sampling_rate': pa.int32(),
                         'path': pa.string()}),
     {'array': [tone(500).tolist()] * 2, 'sampling_rate': RATE, 'path': 'x'})])
def test_an_audio_column_of_any_name(folder, name, kind, value):
  table = pa.table({'file': ['gone.wav'] if name == 'audio' else [None], 'made': pa.array(
      [1], pa.timestamp('ns')), name: pa.array([value], kind), 'text': ['x'],
      'picture': pa.array([{'bytes': b'\x89PNG', 'path': 'x.png'}], STRUCT)})
  (folder / 'snap' / 'data').mkdir(parents=True)
  for at in ('d.parquet', 'snap/data/train-00000-of-00001.parquet'):
    parquet.write_table(table, folder / at)
  if value is not None and isinstance(value, dict) and value.get('bytes') is None and (
      'path' in value and 'array' not in value):
    (folder / 'snap' / 'data' / 'a.wav').write_bytes(A)
  for source in ('d.parquet', 'snap'):
    found, = codes(folder, source, work=f'work-{source}')
    assert found[:5] == LOW and set(found) <= {8, 0} and len(found) <= 7


@pytest.mark.parametrize('array', [[0.25, -0.5], [[0.25, -0.5, 0.125], [0.5, 0.25, 0.75]]])
def test_an_array_is_the_same_file_at_any_time(array):
  found = embedded.reference({'array': array, 'sampling_rate': RATE}, 'x')
  data = embedded.contents(found)
  assert b'PEAK' not in data  # which has the time
  samples, rate = soundfile.read(buffers.BytesIO(data))
  np.testing.assert_array_equal(samples, np.transpose(array))
  assert rate == RATE


def test_two_audio_columns_are_not_guessed(folder):
  parquet.write_table(pa.table({
      'one': pa.array([{'bytes': A}], STRUCT), 'two': pa.array([{'bytes': A}], STRUCT),
      'text': ['x']}), folder / 'd.parquet')
  with pytest.raises(UserError, match="several sounds, 'one', 'two'; rename one to audio"):
    codes(folder, 'd.parquet')


@pytest.mark.parametrize('part', [
    {'type': 'input_audio', 'input_audio': {'data': B64, 'format': 'wav'}},
    {'type': 'audio_url', 'audio_url': {'url': 'a.wav'}}, {'type': 'audio', 'path': 'a.wav'},
    {'type': 'audio_url', 'audio_url': {'url': f'data:audio/wav;base64,{B64}'}},
    {'type': 'audio', 'audio_url': 'a.wav'}, {'type': 'audio', 'audio': 'file://FOLDER/a%2Ewav'},
    {'type': 'audio', 'audio': 'file://localhost/FOLDER/a.wav'},
    {'type': 'audio', 'audio': f'data:audio/wav;base64,{B64}'}, {'type': 'audio', 'audio': B64},
    {'type': 'audio', 'audio': B64.rstrip('=').replace('+', '-').replace('/', '_')},
    {'type': 'audio', 'audio': {'bytes': B64}}, {'type': 'audio', 'audio': {'bytes': list(A)}},
    {'type': 'audio', 'audio': '\n'.join(B64[i:i + 76] for i in range(0, len(B64), 76))}])
def test_a_sound_in_a_message(folder, part):
  part = json.loads(json.dumps(part).replace('FOLDER', str(folder)))
  name = lines(folder / 'd.jsonl', {'messages': [
      {'role': 'user', 'content': [part, {'type': 'text', 'text': 'What?'}]},
      {'role': 'assistant', 'content': 'A tone.'}]})
  assert codes(folder, name, task='') == [LOW]
  assert codes(folder, name, task='', work='held', split='heldout') == [LOW]
  record, = heldout.load_records(folder / 'held' / 'data', 'heldout')
  sound = next(record.audio())
  assert sound.source and not embedded.is_embedded(sound.source)
  np.testing.assert_allclose(places.read(sound, folder / 'held' / 'data')[0], tone(500), atol=1e-4)


@pytest.mark.parametrize('value, sentence', [
    ('https://x.org/a.wav', "is the address 'https://x.org/a.wav'; download"),
    ('ftp://b/a.wav', 'is the address'), ('file://host/a.wav', "of the machine 'host'"),
    ('sox a.mp3 -t wav - |', 'is the command'),
    ('data:image/png;base64,iVBOR', 'must be data:audio'),
    ('data:audio/wav;base64,@@@', 'is not base64'), ('data:audio/wav;base64,', 'is not base64'),
    ('x' * 5000, 'has 5,000 characters'), (B64[:5000], 'truncated'),
    ('data:audio/wav;base64,aGVsbG8gdGhlcmUgaGVsbG8gdGhlcmU=', 'inside the record cannot be read'),
    ({'bytes': '@@'}, 'must be a file in base64'), ({'bytes': [999]}, 'must be integers'),
    ({'array': ['x'], 'sampling_rate': 8000}, 'must be a list of numbers'),
    ({'array': [0.1]}, 'needs "array"'),
    ({'array': [[[1]]], 'sampling_rate': 8000}, 'needs "array"'),
    ({'data': B64, 'format': 'pcm16'}, 'raw samples'), (7, 'must be the path'),
    ({'bytes': None, 'path': None}, 'must be the path'), ('b\0.wav', 'does not exist'),
    ('caf\udce9.wav', r'caf\\udce9.wav does not exist'),
    ('b\0c.wav', r'b\\x00c.wav does'), ('gone.wav', 'does not exist')])
def test_what_is_no_sound_is_a_short_sentence(folder, value, sentence):
  name = lines(folder / 'd.jsonl', {'audio': value, 'text': 'x'})
  with pytest.raises(UserError, match=sentence) as caught:
    codes(folder, name, task='asr')
  assert 'd.jsonl:1' in str(caught.value)
  assert len(str(caught.value)) < 300 + 2 * len(str(folder))


def test_embedded_sounds_are_stored_once_and_survive_an_interruption(folder, monkeypatch):
  name = lines(folder / 'd.jsonl', *[{'audio': one, 'text': f'{i}'} for i, one in enumerate(
      (B64, 'a.wav', B64, f'data:audio/wav;base64,{base64.b64encode(B).decode()}'))])
  with monkeypatch.context() as patch:
    patch.setattr(prepare, '_pack', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      codes(folder, name)
  blobs = list((folder / 'work' / '.data-work').glob('*/sounds.bin'))
  assert [blob.stat().st_size for blob in blobs] == [len(A) + len(B)]
  assert codes(folder, name) == [LOW, LOW, LOW, HIGH]
  assert not (folder / 'work' / '.data-work').exists()


# -- tables -----------------------------------------------------------------------------------


def test_the_folders_of_public_data_sets(folder):
  def put(path, data=A):
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(data)
  put('cv/clips/x_1.mp3', wav(tone(500), 'MP3'))
  put('cv/train.tsv', b'client_id\tpath\tsentence\tup_votes\nc\tx_1.mp3\t"""Yes,"" he said."\t2\n')
  put('lj/wavs/T1.wav')
  put('lj/metadata.csv', b'T1|Number 1.|Number one.\n')
  put('esc/audio/1-A-0.wav')
  put('esc/meta/esc50.csv', b'filename,fold,target,category,esc10\n1-A-0.wav,1,0,dog,True\n')
  put('tau/audio/airport-1.wav')
  put('tau/meta.csv', b'filename\tscene_label\tidentifier\naudio/airport-1.wav\tairport\tx\n')
  put('semi.csv', b'audio;text\na.wav;x\n')
  put('train_manifest.json', b'{"audio_filepath": "a.wav", "duration": 0.5, "text": "one"}\n')
  put('wenet/data.list', b'{"key": "k", "wav": "../a.wav", "txt": "one"}\n')
  put('kaldi/wav.scp', b'r1 ../long.wav\n')
  put('kaldi/text', b'u1 HELLO\n')
  put('kaldi/segments', b'u1 r1 0.0 0.5\n')
  put('cuts.jsonl', json.dumps({
      'id': 'c', 'start': 0.5, 'duration': 1.0, 'channel': 0, 'type': 'MonoCut', 'supervisions': [
          {'id': 's', 'start': 0.5, 'duration': 0.5, 'text': 'two'}], 'recording': {
              'id': 'r', 'sources': [{'type': 'file', 'channels': [0], 'source': 'long.wav'}],
              'sampling_rate': RATE, 'num_samples': 24000, 'duration': 1.5}}).encode())
  for path, task, text, found in (
      ('cv/train.tsv', 'tts', '"Yes," he said.', LOW), ('lj', 'tts', 'Number one.', LOW),
      ('esc/meta/esc50.csv', 'sec', 'dog', LOW), ('tau/meta.csv', 'asc', 'airport', LOW),
      ('semi.csv', 'tts', 'x', LOW), ('train_manifest.json', 'asr', 'one', LOW),
      ('wenet', 'asr', 'one', LOW), ('kaldi', 'tts', 'HELLO', LOW),
      ('cuts.jsonl', 'tts', 'two', [32] * 5)):
    (said, heard), = prepared(folder, path, task)
    assert text in said, path
    assert [one for one in heard if one][:5] == found, path
  put('esc/meta/gone.csv', b'filename,category\ngone.wav,dog\n')
  with pytest.raises(UserError, match=r'gone.wav does not exist, nor in ../audio'):
    codes(folder, 'esc/meta/gone.csv', 'sec')


def test_a_name_that_is_not_utf8_is_a_file(folder):
  path = os.fsdecode(b'caf\xe9.wav')
  with open(os.path.join(folder, path), 'wb') as file:
    file.write(A)
  (folder / 'd.jsonl').write_text('{"audio": "caf\\udce9.wav", "text": "x"}\n')
  assert codes(folder, 'd.jsonl') == [LOW]


# -- recordings beside codes -----------------------------------------------------------------------


def test_a_recording_beside_codes_is_a_sound_inside_the_roots(folder, tmp_path_factory, caplog):
  other = tmp_path_factory.mktemp('other')
  (other / 'private.wav').write_bytes(A)
  (other / 'passwd').write_text('root:x:0:0\n' * 50)
  (folder / 'notes.txt').write_text('secret\n' * 50)
  (folder / 'link.wav').symlink_to(other / 'private.wav')
  held = folder / 'work' / 'data'
  def run(audio, **data):
    name = lines(folder / 'd.jsonl', {'text': 'x', 'codes': LOW, 'audio': audio})
    found = codes(folder, name, 'asr', split='heldout', **data)
    assert set(sum(found, [])) == {8}
    return [path.read_bytes() for path in (held / 'heldout_wav').glob('*')]
  assert run('a.wav') == [A]
  assert run(f'data:audio/wav;base64,{B64}') != []
  for audio in (f'{other}/private.wav', os.path.relpath(other / 'private.wav', folder), 'link.wav'):
    with pytest.raises(UserError, match='in none of the folders .* add its folder to '
                                        'data.audio_roots'):
      run(audio)
    assert run(audio, audio_roots=(str(other),)) == [A]
  for audio in ('notes.txt', f'{other}/passwd', '/etc/passwd', 'd.jsonl'):
    with pytest.raises(UserError, match='cannot be read as WAV|in none of the folders'):
      run(audio, audio_roots=(str(other),))
  assert run('gone.wav') == []
  assert '1 held-out recordings beside codes do not exist' in caplog.text
  assert not any(b'root:' in path.read_bytes() for path in (folder / 'work').rglob('*')
                 if path.is_file())


def test_a_part_of_a_heldout_recording_is_kept_alone(folder):
  name = lines(folder / 'd.jsonl', {'audio': 'long.wav', 'offset': 0.5, 'duration': 0.5,
                                    'text': 'x'})
  assert codes(folder, name, 'tts', split='heldout') == [HIGH]
  record, = heldout.load_records(folder / 'work' / 'data', 'heldout')
  sound = [part for part in record.audio() if part.source][-1]
  waveform, rate = places.read(sound, folder / 'work' / 'data')
  assert len(waveform) == rate // 2


def test_a_part_of_an_embedded_sound_is_read_the_same_everywhere():
  part = sounds.audio_part({'audio': {'bytes': wav(np.concatenate([tone(500), tone(1000)]))},
                            'offset': 0.5}, 'here', '')
  waveform, _ = places.read(part, '/')
  np.testing.assert_allclose(waveform, tone(1000), atol=1e-4)
  assert dataclasses.replace(part, source='x').source == 'x' and isinstance(part, Part)
