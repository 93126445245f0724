"""Every kind of file gives the same records, and errors name the place."""

import csv
import gzip
import json

import pytest

from ttt_jax.data.records import compression, readers
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
  monkeypatch.setattr(readers, '_PIECE', piece)
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
    ('a.json', b'{"a": 1}', r'is a list'),
    ('a.json', b'"data": [', r'is a list'),
    ('a.json', b'[]', r'a.json is empty'),
    ('a.json', b'[{"a": 1}, ', r'ends inside its list, after record 1'),
    ('a.json', b'[{"a": 1} {"a": 2}]', r'a.json:1: a comma or \] must follow'),
    ('a.json', b'[{"a": 1}, {"a" 2}]', r'a.json:2: broken JSON'),
    ('a.json', b'[{"a": 1}, 7]', r'a.json:2: a int, but a record is'),
    ('a.json', b'[{"a": "\xff\xff"}]', r'a.json: not UTF-8'),
    ('a.csv', b'audio,text\nx.wav\n', r'a.csv:2: 1 values under a header of 2 columns'),
    ('a.csv', b'audio,text\nx.wav,a,b\n', r'a.csv:2: 3 values under a header of 2'),
    ('a.tsv', b'audio\ttext\n\xff\xfe\tx\n', r'not UTF-8'),
    ('a.parquet', b'PAR1 and nothing else', r'cannot be read as Parquet'),
    ('a.jsonl.gz', b'not gzip', r'a.jsonl.gz is damaged or truncated'),
    ('a.jsonl.zst', b'not zstd', r'a.jsonl.zst is damaged or truncated'),
    ('b.jsonl', None, r'b.jsonl does not exist'),
    ('a.txt', b'x', r"the suffix '.txt' is unknown"),
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
  monkeypatch.setattr(readers, 'LONGEST', 1000)
  monkeypatch.setattr(readers, '_PIECE', 100)
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
  monkeypatch.setattr(readers, 'LONGEST', 100)
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
