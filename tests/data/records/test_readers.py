"""Every kind of file gives the same records, and errors name the place."""

import csv
import gzip
import json
import os

import numpy as np
import pytest

from ttt_jax.data.records import columns, compression, json_stream, limits, places, readers
from ttt_jax.errors import UserError

pa = pytest.importorskip('pyarrow')
zstd = pytest.importorskip('zstandard')
from pyarrow import parquet  # noqa: E402

ROWS = [{'id': f'r{i}', 'text': f'Zeile {i}: "é", ]}}\t音' * (i % 3 + 1),
         'n': {'a': [i, {'b': '{'}]}} for i in range(700)]


def lines(rows):
  return ''.join(json.dumps(row, ensure_ascii=i % 2 == 0) + '\n' + '\n' * (i % 5 == 0)
                 for i, row in enumerate(rows)).encode()


def write(path, rows):
  name = path.name
  data = json.dumps(rows, indent=1).encode() if '.json.' in f'{name}.' else lines(rows)
  if name.startswith('in_data'):
    data = b' {"data" : ' + data + b'}'
  if name.endswith('.gz'):
    data = gzip.compress(data)
  if name.endswith('.zst'):
    half = len(data) // 2  # two frames, one after the other
    data = b''.join(zstd.ZstdCompressor().compress(part) for part in (data[:half], data[half:]))
  if name.endswith('.parquet'):
    parquet.write_table(pa.Table.from_pylist([{'text': row['text']} for row in rows]), path)
  else:
    path.write_bytes(data)
  return path


@pytest.mark.parametrize('name', ['a.jsonl', 'a.jsonl.gz', 'a.b.jsonl.zst', 'a.ndjson', 'a.json',
                                  'in_data.json', 'a.json.gz', 'a.json.zst', 'A.JSONL'])
@pytest.mark.parametrize('piece', [64, 2**20])
def test_json_of_every_kind(tmp_path, monkeypatch, name, piece):
  monkeypatch.setattr(json_stream, '_PIECE', piece)
  monkeypatch.setattr(compression, '_PIECE', piece)
  path = write(tmp_path / name, ROWS)
  found = list(readers.read(path))
  assert [row for _, row in found] == ROWS
  assert found[0][0] == f'{path}:1'


def test_parquet_leaves_nulls_out(tmp_path):
  rows = [{'text': 'a', 'messages': [{'role': 'user', 'content': 'x'}]}, {'codes': [1, 2]},
          {'text': 'b', 'messages': [{'role': 'user'}]}] * 300
  path = tmp_path / 'a.parquet'
  parquet.write_table(pa.Table.from_pylist(rows, schema=pa.schema({
      'text': pa.string(), 'codes': pa.list_(pa.int32()),
      'messages': pa.list_(pa.struct({'role': pa.string(), 'content': pa.string()}))})), path)
  found = list(readers.read(path))
  assert [row for _, row in found] == rows
  assert found[-1][0] == f'{path}:900'


@pytest.mark.parametrize('name, dialect', [('a.tsv', dict(delimiter='\t', quoting=csv.QUOTE_NONE)),
                                           ('a.csv', {})])
def test_tables(tmp_path, name, dialect):
  rows = [{'audio': 'x/1.wav', 'text': 'she said "no"'}, {'audio': '2.wav', 'text': "it's, well"}]
  with (tmp_path / name).open('w', newline='', encoding='utf-8-sig') as file:
    quote = None if 'quoting' in dialect else '"'
    writer = csv.DictWriter(file, ['audio', 'text', 'speaker'], quotechar=quote, **dialect)
    writer.writeheader()
    writer.writerows(rows)
  assert [row for _, row in readers.read(tmp_path / name)] == rows


def cut(path, keep):
  path.write_bytes(path.read_bytes()[:keep])
  return path


@pytest.mark.parametrize('name, change, message', [
    ('a.jsonl', b'{"a": 1}\n[1]\n', r'a.jsonl:2: a list, but a record is a JSON object'),
    ('a.jsonl', b'{"a": 1}\n{"a": \n', r'a.jsonl:2: broken JSON'),
    ('a.jsonl', b'{"a": 1}\n{"a": "\xff"}\n', r'a.jsonl:2: byte 7 of the line is not UTF-8'),
    ('a.jsonl', b'\n \n', r'a.jsonl is empty'),
    ('a.jsonl', b'[' * 100_000, r'a.jsonl:1: broken JSON'),
    ('a.json', b'"data": [', r'starts with \{ or \[.* this one starts with'),
    ('a.json', b'{"a": 1} {"b": ', r'a.json:2: broken JSON'),
    ('a.json', b' \n', r'a file of records starts with .* this one is empty'),
    ('a.json', b'[]', r'a.json is empty'),
    ('a.json', b'[{"a": 1}, ', r'ends inside its list, after record 1'),
    ('a.json', b'[{"a": 1} {"a": 2}]', r'a.json:1: a comma or \] must follow'),
    ('a.json', b'[{"a": 1}, {"a" 2}]', r'a.json:2: broken JSON'),
    ('a.json', b'[{"a": 1}] x', r"the list of records ends, but 'x' follows"),
    ('a.json', b'{"data": [{"a": 1}], "b"', r'the object around the list of records does not end'),
    ('a.json', b'[{"a": 1, "a": 2}]', r"a.json:1: broken JSON \(the key 'a' is there twice"),
    ('a.jsonl', b'{"a": [{"b": 1, "b": 1}]}', r"a.jsonl:1: broken JSON \(the key 'b' is there"),
    ('a.json', b'[{"a": 1}, 7]', r'a.json:2: a int, but a record is'),
    ('a.json', b'[{"a": "\xff\xff"}]', r'a.json: not UTF-8'),
    ('a.csv', b'audio,text\nx.wav\n', r'a.csv:2: 1 values under a header of 2 columns'),
    ('a.csv', b'audio,text\nx.wav,a,b\n', r'a.csv:2: 3 values under a header of 2'),
    ('a.tsv', b'audio\ttext\n\xff\xfe\tx\n', r"a.tsv:2: the column 'audio' is not UTF-8"),
    ('a.parquet', b'PAR1 and nothing else', r'cannot be read as Parquet'),
    ('a.jsonl.gz', b'not gzip', r'a.jsonl.gz is damaged or truncated'),
    ('a.jsonl.zst', b'not zstd', r'a.jsonl.zst is damaged or truncated'),
    ('b.jsonl', None, r'b.jsonl does not exist'),
    ('a.md', b'x', r"the suffix '.md' is unknown"),
    ('a.parquet.gz', b'x', r"the suffix '.parquet.gz' is unknown"),
])
def test_errors_are_reported(tmp_path, name, change, message):
  if change is not None:
    (tmp_path / name).write_bytes(change)
  with pytest.raises(UserError, match=message):
    list(readers.read(tmp_path / name))


@pytest.mark.parametrize('name', ['a.jsonl.gz', 'a.jsonl.zst', 'a.json.gz', 'a.parquet'])
@pytest.mark.parametrize('share', [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_an_error(tmp_path, name, share):
  path = write(tmp_path / name, ROWS)
  cut(path, int(path.stat().st_size * share))
  with pytest.raises(UserError, match='truncated|cannot be read|broken JSON'):
    list(readers.read(path))


def test_a_table_may_hold_long_audio(tmp_path):
  text = '<|audio_7|>' * 20_000
  (tmp_path / 'a.tsv').write_text(f'text\n{text}\n')
  assert [row for _, row in readers.read(tmp_path / 'a.tsv')] == [{'text': text}]


def test_gigantic_records_are_rejected(tmp_path, monkeypatch):
  monkeypatch.setattr(limits, 'LONGEST', 1000)
  for module in (readers, json_stream):
    monkeypatch.setattr(module, '_PIECE', 100)
  for name in ('a.jsonl', 'a.json'):
    path = write(tmp_path / name, [{'text': 'x' * 2000}])
    with pytest.raises(UserError, match='longer than|broken JSON'):
      list(readers.read(path))


def test_what_a_path_means(tmp_path):
  for name in ('b/part-2.jsonl', 'b/part-1.jsonl', 'c/manifest.tsv', 'd/x.wav'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('x')
  names = lambda pattern: [str(p.relative_to(tmp_path)) for p in
                           readers.find(pattern, [tmp_path / 'nowhere', tmp_path])]
  assert names('b/part-2.jsonl') == ['b/part-2.jsonl']
  assert names('b/*.jsonl') == ['b/part-1.jsonl', 'b/part-2.jsonl']
  assert names('**/*.tsv') == names('c') == ['c/manifest.tsv']
  assert names('b/*.parquet') == names('') == names('e') == []
  with pytest.raises(UserError, match='is a folder without a manifest'):
    names('d')


# -- forms of JSON -----------------------------------------------------------------------------


@pytest.mark.parametrize('name, text, count', [
    ('train_manifest.json', '{"a": 1}\n{"a": 2}\n', 2), ('one.json', '{"a": 1}', 1),
    ('one.json', '{\n "a": 1\n}\n', 1), ('a.json', '{\n"a": 1\n}\n{\n"a": 2\n}\n', 2),
    ('a.json', '{"version": "1", "data": [{"a": 1}, {"a": 2}]}', 2),
    ('a.json', '{"data": [\n{"a": 1}, {"a": 2}]}', 2), ('a.json', '{"a": 1}{"a": 2}', 2),
    ('a.jsonl', '[{"a": 1},\n {"a": 2}]', 2), ('a.json', '\n\n{"a": 1}\n\n{"a": 2}', 2),
    ('a.json', '[{"a": 1}]\n[]\n[{"a": 2}]', 2),
    ('a.json', '{"data": [{"a": 1}], "n": {"x": 1}}\n{"data": [{"a": 2}]}', 2),
    ('data.list', '{"a": 1}\n{"a": 2}\n', 2), ('a.json', '{"data": "x"}\n{"data": "y"}\n', 2)])
@pytest.mark.parametrize('mark', ['', '\ufeff'])
@pytest.mark.parametrize('packed', [False, True])
def test_forms_of_json_and_byte_order_marks(tmp_path, name, text, count, mark, packed):
  path = tmp_path / (f'{name}.gz' if packed else name)
  data = (mark + text).encode()
  path.write_bytes(gzip.compress(data) if packed else data)
  found = [value for _, value in readers.read(path)]
  assert len(found) == count
  assert found == [{'a': i + 1} for i in range(count)] or 'data' in found[0]
  assert in_pieces(path) == list(readers.read(path))


def test_a_bad_line_of_a_json_of_lines_is_an_item(tmp_path, monkeypatch):
  path = tmp_path / 'manifest.json'
  path.write_bytes(b'{"a": 1}\n{"a": \n\xef\xbb\xbf{"a": 3}\n')
  monkeypatch.setattr(readers, 'CUT', 1)
  assert [value if isinstance(value, dict) else 'bad' for _, value in in_pieces(path)] == [
      {'a': 1}, 'bad', {'a': 3}]
  assert len(readers.cut(path)) == 3


def test_utf16_is_read_or_named(tmp_path):
  (tmp_path / 'a.json').write_bytes('[{"a": "é"}]'.encode('utf-16'))
  assert [row for _, row in readers.read(tmp_path / 'a.json')] == [{'a': 'é'}]
  (tmp_path / 'a.jsonl').write_bytes('{"a": "é"}'.encode('utf-16'))
  with pytest.raises(UserError, match=r'a.jsonl:1: the file is UTF-16; save it as UTF-8'):
    list(readers.read(tmp_path / 'a.jsonl'))


# -- cost ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['a.jsonl', 'a.json', 'a.tsv', 'a.csv'])
@pytest.mark.parametrize('ending', ['.zst', '.gz'])
@pytest.mark.parametrize('unit', [b' ', b'\n', b'a', b'[', b'{"a":1}\n', b'"'])
def test_a_decompression_bomb_ends_in_a_sentence(tmp_path, monkeypatch, name, ending, unit):
  monkeypatch.setattr(limits, 'FREE', 2**16)
  path = tmp_path / (name + ending)
  head = b'audio\ttext\n' if name[2:] in ('tsv', 'csv') else b'[' if name == 'a.json' else b''
  data = head + unit * (2**21 // len(unit))
  path.write_bytes(gzip.compress(data) if ending == '.gz' else zstd.compress(data, 19))
  with pytest.raises(UserError, match='expands to more than 500 times its size|broken JSON|values '
                                      'under a header|a comma or') as caught:
    list(readers.read(path))
  assert len(str(caught.value)) < len(str(path)) + 200


def test_zstandard_is_decompressed_in_small_pieces(tmp_path):
  path = tmp_path / 'a.jsonl.zst'
  compressor = zstd.ZstdCompressor(level=1).compressobj()
  with path.open('wb') as file:  # 300 MB
    for _ in range(300):
      file.write(compressor.compress(bytes(10**6)))
    file.write(compressor.flush())
  with path.open('rb') as file:
    stream, largest = compression._Zst(file), 0
    buffer = bytearray(2**20)
    for _ in range(20):
      assert stream.readinto(buffer)
      largest = max(largest, len(stream._ready))
  assert 2**20 < largest <= 2**25
  with pytest.raises(UserError, match='expands to more than 500 times'):
    list(readers.read(path))


@pytest.mark.parametrize('text', [
    '{"codes": [' + '1,' * 3000 + '1]}', '{"a": [' + '[],' * 3000 + '[]]}',
    '{"a": [' + '{"b":1},' * 3000 + '1]}'])
def test_a_record_of_too_many_values_is_not_built(tmp_path, monkeypatch, text):
  monkeypatch.setattr(limits, 'VALUES', 2000)
  monkeypatch.setattr(limits, 'UNCHECKED', 1000)
  for name in ('a.jsonl', 'a.json', 'b.json'):
    (tmp_path / name).write_text(text if name != 'b.json' else f'[{text}]')
    with pytest.raises(UserError, match=r'json.*:1: the record has more than 2,000 values'):
      list(readers.read(tmp_path / name))


def test_very_many_empty_lines_are_damage(tmp_path, monkeypatch):
  monkeypatch.setattr(limits, 'BLANKS', 50)
  (tmp_path / 'a.jsonl').write_bytes(b'{"a": 1}\n' + (b'\n' * 50 + b'{"a": 1}\n') * 3)
  assert len(list(readers.read(tmp_path / 'a.jsonl'))) == 4
  (tmp_path / 'a.jsonl').write_bytes(b'{"a": 1}\n' + b' \n' * 51 + b'{"a": 1}\n')
  with pytest.raises(UserError, match='a.jsonl:52: more than 50 empty lines'):
    list(readers.read(tmp_path / 'a.jsonl'))


def test_any_damage_of_any_file_is_a_sentence_or_rows(tmp_path):
  rng = np.random.default_rng(0)
  rows = [{'audio': f'{i}.wav', 'text': f'"é" {i}\tx' * 3} for i in range(9)]
  table = pa.Table.from_pylist(rows)
  (tmp_path / 'text').write_text('u1 HELLO\nu2 X\n')
  (tmp_path / 'segments').write_text('u1 r1 0 1\nu2 r1 1 2\n')
  samples = {
      'a.jsonl': lines(rows), 'a.json': json.dumps(rows).encode(), 'wav.scp': b'r1 a.wav\nr2 b|\n',
      'a.csv': b'audio,text\n1.wav,"a ""b"" c"\n2.wav,x\n', 'a.list': b'1.wav|x|y\n2.wav|z|w\n',
      'a.tsv': b'audio\ttext\n1.wav\t"a ""b"" c"\n2.wav\t"x\ny"\n'}
  samples |= {f'{name}.{ending}': pack(samples[name]) for name in ('a.jsonl', 'a.csv')
              for ending, pack in (('gz', gzip.compress), ('zst', zstd.compress))}
  parquet.write_table(table, tmp_path / 'x')
  samples['a.parquet'] = (tmp_path / 'x').read_bytes()
  with pa.ipc.new_file(tmp_path / 'x', table.schema) as file:
    file.write_table(table)
  samples['a.arrow'] = (tmp_path / 'x').read_bytes()
  for name, data in samples.items():
    for _ in range(20):
      broken = bytearray(data)
      for at in rng.integers(len(data), size=rng.integers(1, 6)):
        broken[at] = rng.choice([0, 10, 34, 44, 91, 123, 124, 255, rng.integers(256)])
      (tmp_path / name).write_bytes(broken[:rng.integers(len(data))] if rng.random() < 0.2
                                    else broken)
      try:
        for _, value in in_pieces(tmp_path / name):
          assert isinstance(value, (dict, UserError))
      except UserError as error:
        assert '\n' not in str(error) and len(str(error)) < 400 + len(str(tmp_path)), str(error)


@pytest.mark.parametrize('text', ['{"a": ' + '9' * 5000 + '}', '{"a": ' * 100_000,
                                  '{"a": ' + '[' * 10**6 + ']' * 10**6 + '}', '{"a": 1e99999'])
def test_numbers_and_nesting_beyond_any_limit(tmp_path, text):
  for name in ('a.jsonl', 'a.json', 'b.json'):
    (tmp_path / name).write_text(text if name != 'b.json' else f'[{text}]')
    with pytest.raises(UserError, match='broken JSON') as caught:
      list(readers.read(tmp_path / name))
    assert len(str(caught.value)) < len(str(tmp_path)) + 250


# -- columns ------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind, value', [
    (pa.timestamp('ns'), 1), (pa.timestamp('us'), 10**18), (pa.timestamp('us', tz='No/Where'), 1),
    (pa.timestamp('s'), -10**15), (pa.date32(), 10**8), (pa.date64(), 10**17), (pa.time64('ns'), 1),
    (pa.time32('ms'), 1), (pa.duration('ns'), 1), (pa.duration('s'), 10**17),
    (pa.list_(pa.timestamp('ns')), [1]), (pa.struct({'at': pa.timestamp('ns')}), {'at': 1}),
    (pa.list_(pa.struct({'at': pa.date32(), 'role': pa.string()})), [{'at': 10**8, 'role': 'u'}]),
    (pa.map_(pa.string(), pa.timestamp('ns')), [('a', 1)]), (pa.null(), None),
    (pa.decimal128(38, 2), None), (pa.float16(), None),
    (pa.dictionary(pa.int8(), pa.string()), 'x'),
    (pa.large_list(pa.date32()), [10**8]), (pa.list_(pa.timestamp('ns'), 1), [1]),
    (pa.string_view(), 'x')])
@pytest.mark.parametrize('name', ['a.parquet', 'a.arrow'])
def test_columns_of_any_type_beside_those_that_are_used(tmp_path, kind, value, name):
  path = tmp_path / name
  table = pa.table({'text': ['one', 'two'], 'made': pa.array([value, None], kind)})
  if name == 'a.parquet':
    parquet.write_table(table, path)
  else:
    with pa.ipc.new_stream(path, table.schema) as file:
      file.write_table(table)
  found = [row for _, row in readers.read(path)]
  assert [row['text'] for row in found] == ['one', 'two'] and 'made' not in found[1]
  if isinstance(value, list) and isinstance(value[0], dict):
    assert found[0]['made'] == [{'at': 10**8, 'role': 'u'}]


def test_a_row_that_is_not_utf8_is_an_item(tmp_path):
  bad = pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(
      b'\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0'), pa.py_buffer(b'a\xffb')])
  parquet.write_table(pa.table({'text': bad}), tmp_path / 'a.parquet')
  found = in_pieces(tmp_path / 'a.parquet')
  assert [value if isinstance(value, dict) else 'bad' for _, value in found] == [
      {'text': 'a'}, 'bad', {'text': 'b'}]
  with pytest.raises(UserError, match='a.parquet:2: the row cannot be decoded'):
    list(readers.read(tmp_path / 'a.parquet'))


def test_rows_that_are_too_large_are_not_converted(tmp_path, monkeypatch):
  monkeypatch.setattr(limits, 'LONGEST', 2000)
  monkeypatch.setattr(columns, '_BATCH', 10_000)
  parquet.write_table(pa.table({'text': ['a', 'b' * 10_000, 'c']}), tmp_path / 'a.parquet')
  found = in_pieces(tmp_path / 'a.parquet')
  assert [value.get('text') if isinstance(value, dict) else 'bad' for _, value in found] == [
      'a', 'bad', 'c']


# -- folders --------------------------------------------------------------------------------------


def test_a_snapshot_of_the_hub_is_its_one_split(tmp_path):
  def folder(name, *paths):
    for path in paths:
      (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
      (tmp_path / name / path).write_text('x')
    return tmp_path / name
  find = lambda name: [str(path.relative_to(tmp_path / name))
                       for path in readers.find(name, [tmp_path])]
  folder('a', 'README.md', 'data/train-00000-of-00002.parquet', 'data/train-00001-of-00002.parquet',
         '.gitattributes')
  assert find('a') == ['data/train-00000-of-00002.parquet', 'data/train-00001-of-00002.parquet']
  folder('b', 'train.csv', 'wavs/x.wav')
  assert find('b') == ['train.csv']
  folder('c', 'en/train-00000-of-00001.parquet')
  assert find('c') == ['en/train-00000-of-00001.parquet']
  folder('d', 'data-00000-of-00001.arrow', 'state.json', 'dataset_info.json')
  assert find('d') == ['data-00000-of-00001.arrow']
  folder('e', 'metadata.parquet', 'train.csv')
  assert find('e') == ['metadata.parquet']
  folder('f', 'data/train-00000-of-00001.parquet', 'data/test-00000-of-00001.parquet')
  folder('g', 'train/data-00000-of-00001.arrow', 'test/data-00000-of-00001.arrow',
         'dataset_dict.json')
  for name in 'fg':
    with pytest.raises(UserError, match='has several splits or subsets; name one') as caught:
      find(name)
    pattern = str(caught.value).split('pattern: ')[1].split(', ')[0]
    assert len(readers.find(pattern, [tmp_path])) == 1


# -- pieces ---------------------------------------------------------------------------------


def in_pieces(path):
  return [item for piece in readers.cut(path) for item in readers.items(piece)]


@pytest.mark.parametrize('size', [1, 50, 300, 5_000, 10**6])
def test_pieces_of_lines_are_the_file(tmp_path, monkeypatch, size):
  path = write(tmp_path / 'a.jsonl', ROWS)
  path.write_bytes(b'\n\n' + path.read_bytes()[:-1])  # the last line does not end
  whole = list(readers.read(path))
  monkeypatch.setattr(readers, 'CUT', size)
  monkeypatch.setattr(readers, '_PIECE', 64)
  assert in_pieces(path) == whole
  sizes = [piece.stop - piece.start for piece in readers.cut(path) if piece.stop]
  assert all(n >= size for n in sizes[:-1])
  assert len(readers.cut(path)) > 600 if size == 1 else True


def test_pieces_of_parquet_are_its_row_groups(tmp_path, monkeypatch):
  path = tmp_path / 'a.parquet'
  parquet.write_table(pa.Table.from_pylist([{'text': row['text']} for row in ROWS]), path,
                      row_group_size=50)
  whole = list(readers.read(path))
  monkeypatch.setattr(readers, 'CUT', 3_000)
  assert 3 < len(readers.cut(path)) <= 14
  assert in_pieces(path) == whole
  monkeypatch.setattr(readers, 'CUT', 1)
  assert len(readers.cut(path)) == 14 and in_pieces(path) == whole


@pytest.mark.parametrize('size', [1, 40, 10**6])
def test_bad_lines_are_items_and_the_rest_goes_on(tmp_path, monkeypatch, size):
  monkeypatch.setattr(limits, 'LONGEST', 100)
  monkeypatch.setattr(readers, '_PIECE', 16)
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'{"a": 1}\n{"a": \n' + b'{"b": "' + b'x' * 500 + b'"}\n\n[3]\n{"a": "\xff"}\n'
                   b'{"a": 2}\n' + b'y' * 300)
  monkeypatch.setattr(readers, 'CUT', size)
  found = in_pieces(path)
  assert [where for where, _ in found] == [f'{path}:{n}' for n in (1, 2, 3, 5, 6, 7, 8)]
  assert [value for _, value in found if isinstance(value, dict)] == [{'a': 1}, {'a': 2}]
  said = [str(value) for _, value in found if isinstance(value, UserError)]
  for sentence, part in zip(said, ('broken JSON', 'longer than', 'a list, but', 'not UTF-8',
                                   'longer than'), strict=True):
    assert part in sentence


def test_recordings_of_a_table_beside_their_folder(tmp_path):
  """TAU: evaluation_setup/fold1_evaluate.csv names audio/a.wav."""
  (tmp_path / 'audio').mkdir()
  (tmp_path / 'audio' / 'a.wav').write_bytes(b'x')
  setup = tmp_path / 'evaluation_setup'
  setup.mkdir()
  assert os.path.samefile(places.located(setup, 'audio/a.wav'), tmp_path / 'audio' / 'a.wav')
  assert places.located(setup, 'audio/b.wav') == str(setup / 'audio' / 'b.wav')
