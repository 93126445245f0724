"""Tables of public speech data sets, as their makers and pandas write them."""

import csv
import gzip

import pytest

from ttt_jax.data.records import limits, readers, tables
from ttt_jax.errors import UserError


def read(path, text, encoding='utf-8'):
  path.parent.mkdir(exist_ok=True, parents=True)
  path.write_bytes(text.encode(encoding, 'surrogateescape'))
  return [value for _, value in readers.items(readers.Piece(str(path)))]


CV = ('client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\n')


@pytest.mark.parametrize('raw, text', [
    ('Good day.', 'Good day.'), ('"""Good day,"" said he."', '"Good day," said he.'),
    ('She said "yes', 'She said "yes'), ('"Yes", she said', '"Yes", she said'),
    ('"', '"'), ('""', '""'), ('"Yes."', '"Yes."'), ('"""Yes."""', '"Yes."'),
    ('"He said ""yes"" twice"', 'He said "yes" twice'), ('"a" and "b"', '"a" and "b"'),
    ('"unmatched at the start', '"unmatched at the start'),
    ('"He said ""a, ""b"', 'He said "a, "b'), ('"A ""b"', 'A "b'), ('5" 3"', '5" 3"')])
def test_quotes_in_common_voice(tmp_path, raw, text):
  found = read(tmp_path / 'train.tsv', f'{CV}c0\ta.mp3\t9\t{raw}\t\t2\nc1\tb.mp3\t9\tnext\t\t2\n')
  assert [row['sentence'] for row in found] == [text, 'next']
  assert found[0]['path'] == 'a.mp3' and 'sentence_domain' not in found[0]


@pytest.mark.parametrize('separator, name', [('\t', 'a.tsv'), (',', 'a.csv'), ('\t', 'a.csv'),
                                             (';', 'a.csv'), (',', 'a.tsv'), ('|', 'a.csv')])
@pytest.mark.parametrize('quoting', [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize('mark', ['', '\ufeff'])
def test_what_a_csv_writer_wrote_is_what_it_was_given(tmp_path, separator, name, quoting, mark):
  texts = ['plain', 'He said "yes" twice', '"Yes."', 'one\ntwo', 'a\tb', 'x, y; z', "it's", '音']
  if separator == '|':
    texts = ['plain', 'a\tb', 'x, y; z'] if quoting == csv.QUOTE_MINIMAL else texts
  path = tmp_path / name
  with path.open('w', newline='', encoding='utf-8') as file:
    file.write(mark)
    writer = csv.writer(file, delimiter=separator, quoting=quoting)
    writer.writerow(['', 'path', 'text'])  # as pandas names its index
    writer.writerows([str(i), f'{i}.wav', text] for i, text in enumerate(texts))
  found = [row for _, row in readers.read(path)]
  assert found == [{'path': f'{i}.wav', 'text': text} for i, text in enumerate(texts)]


@pytest.mark.parametrize('text, rows', [
    ('T1|Number 1.|Number one.\nT2|"Two", he said|"Two", he said\n',
     [('T1', 'Number one.'), ('T2', '"Two", he said')]),
    ('a/1.wav|3|Hello there.\na/2.wav|4|Good day.\n',
     [('a/1.wav', 'Hello there.'), ('a/2.wav', 'Good day.')]),
    ('a/1.wav|Hello.\n', [('a/1.wav', 'Hello.')]),
    ('a/1.wav|원문|원문 하나|5.59\n', [('a/1.wav', '원문 하나')]),
    ('/x/1.wav|me|ZH|你好\n', [('/x/1.wav', '你好')]),
    ('1.flac\tHello "you\n2.flac\tGood day\n', [('1.flac', 'Hello "you'), ('2.flac', 'Good day')]),
    ('1.mp3;Hello\n', [('1.mp3', 'Hello')]), ('1.wav,"Hello, you"\n', [('1.wav', 'Hello, you')])])
def test_a_table_without_a_header_is_a_sound_and_its_text(tmp_path, text, rows):
  for name in ('metadata.csv', 'train.txt', 'train.list', 'a.tsv', 'a.psv'):
    found = read(tmp_path / name, text)
    assert found == [{'audio': audio, 'text': words} for audio, words in rows], name


@pytest.mark.parametrize('name, text', [
    ('a.txt', 'Once upon a time\nthere was\n'), ('a.csv', 'x,y\n1,2\n'), ('a.tsv', 'x\ty\n'),
    ('train.tsv', '/data/root\na.wav\t16000\n'), ('a.csv', 'a|b|c|d|e|f\n')])
def test_a_table_of_unknown_columns_is_named(tmp_path, name, text):
  with pytest.raises(UserError, match=rf'{name} has no header: its first line, .*add a line'):
    read(tmp_path / name, text)


@pytest.mark.parametrize('name, text, bad', [
    ('a.csv', 'audio,text\na.wav,"x\ny"\nb.wav,"z" z\nc.wav,ok\n', 1),
    ('a.csv', 'audio,text\na.wav,ok\nb.wav\nc.wav,ok\n', 1),
    ('a.csv', 'audio,text\na.wav,ok\nb.wav,\udce9\nc.wav,ok\n', 1),
    ('a.tsv', 'audio\ttext\na.wav\tok\nb.wav\nc.wav\tok\n', 1),
    ('a.tsv', 'audio\ttext\na.wav\tok\nb.wav\t"a\tb\nc.wav\tok\n', 1),
    ('a.list', 'a.wav|ok\nb.wav\nc.wav|ok\n', 1), ('a.list', 'a.wav|ok\nb.wav|12.5\nc.wav|ok\n', 1),
    ('a.list', 'a.wav|ok\nb.wav|not|ok\nc.wav|ok\n', 1),
    ('a.csv', 'a.wav,ok\nb.wav,not, ok\nc.wav,ok\n', 1),
    ('a.csv', 'audio,text\na.wav,ok\nc.wav,ok\nb.wav,"never ends\nd.wav,x\n', 1)])
def test_a_bad_row_is_an_item_and_the_rest_goes_on(tmp_path, name, text, bad):
  found = read(tmp_path / name, text)
  assert [str(row) for row in found if isinstance(row, UserError)] != []
  assert sum(isinstance(row, UserError) for row in found) == bad
  assert [row['audio'] for row in found if isinstance(row, dict)] == ['a.wav', 'c.wav']


def test_an_open_quote_does_not_swallow_a_file(tmp_path):
  for name, mark in (('a.tsv', '\t'), ('a.csv', ',')):
    text = f'audio{mark}text\n' + ''.join(
        f'{i}.wav{mark}{chr(34) if i == 3 else ""}text {i}\n' for i in range(1000))
    found = read(tmp_path / name, text)
    good = [row for row in found if isinstance(row, dict)]
    assert len(good) >= 1000 - tables._LINES - 1 and good[-1]['text'] == 'text 999'
    assert len(found) == len(good) + (name == 'a.csv'), 'of a CSV, an error that names the lines'


def test_names_are_found_in_any_case_and_none_twice(tmp_path):
  assert read(tmp_path / 'a.csv', 'Audio , Text,Extra\na.wav,x,y\n') == [
      {'audio': 'a.wav', 'text': 'x', 'Extra': 'y'}]
  with pytest.raises(UserError, match="the header has 'text' twice"):
    read(tmp_path / 'b.csv', 'audio,text,Text\na,b,c\n')


def test_excel_writes_utf16(tmp_path):
  assert read(tmp_path / 'a.txt', '\ufeffaudio\ttext\r\na.wav\tschön\r\n', 'utf-16-le') == [
      {'audio': 'a.wav', 'text': 'schön'}]


def test_a_long_line_is_an_item(tmp_path, monkeypatch):
  monkeypatch.setattr(limits, 'LONGEST', 100)
  for name, mark in (('a.tsv', '\t'), ('a.csv', ',')):
    found = read(tmp_path / name, f'audio{mark}text\na.wav{mark}{"x" * 500}\nb.wav{mark}ok\n')
    assert 'longer than' in str(found[0]) and found[1] == {'audio': 'b.wav', 'text': 'ok'}


def test_a_folder_of_kaldi(tmp_path):
  for name, text in (('wav.scp', 'r1 a/1.wav\nr2\t/b/2.flac\nr3 sox x.wav -t wav - |\n'),
                     ('text', 'u1 HELLO THERE\nu2  GOOD DAY\nu3 X\nu4 Y\n'),
                     ('segments', 'u1 r1 0.5 1.25\nu2 r2 0 -1\nu3 r3 0 1\nu4 r9 0 1\n'
                      'u5 r1 a 2\n')):
    (tmp_path / name).write_text(text)
  path, = readers.find(str(tmp_path), [tmp_path])
  found = [value for _, value in readers.items(readers.Piece(str(path)))]
  assert found[:2] == [
      {'id': 'u1', 'audio': 'a/1.wav', 'start': '0.5', 'end': '1.25', 'text': 'HELLO THERE'},
      {'id': 'u2', 'audio': '/b/2.flac', 'start': '0', 'text': 'GOOD DAY'}]
  assert 'is a command' in str(found[2]) and 'must be ID RECORDING START END' in str(found[3])
  assert "begins at 'a' and ends at '2'; both must be numbers" in str(found[4])
  (tmp_path / 'segments').unlink()
  (tmp_path / 'text').write_text('r1 HELLO\n')
  assert [row for _, row in readers.items(readers.Piece(str(path)))][:2] == [
      {'id': 'r1', 'audio': 'a/1.wav', 'text': 'HELLO'}, {'id': 'r2', 'audio': '/b/2.flac'}]
  (tmp_path / 'text').write_text('r1 HELLO\nr1 X\n')
  with pytest.raises(UserError, match='text:2: r1 is there twice'):
    list(readers.items(readers.Piece(str(path))))


def test_a_compressed_table(tmp_path):
  (tmp_path / 'a.tsv.gz').write_bytes(gzip.compress(b'\n\naudio\ttext\na.wav\tx\n'))
  assert list(readers.read(tmp_path / 'a.tsv.gz')) == [
      (f'{tmp_path}/a.tsv.gz:4', {'audio': 'a.wav', 'text': 'x'})]
