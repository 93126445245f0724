"""Public corpora in their published layouts: what is read, which parts, and what is refused."""

import copy
import dataclasses
import io
import json
import logging
import shutil
import tarfile

import pytest

from tests.data import corpora_folders
from tests.data.prepare import tone
from ttt_jax.config import CodecConfig, Config, DataConfig, Source
from ttt_jax.data.prepare import prepare
from ttt_jax.data.records import corpora, readers, sources, tasks
from ttt_jax.data.records.corpora import librispeech
from ttt_jax.errors import UserError


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """Name of a layout -> a folder with such a corpus; tests must not change it."""
  place = tmp_path_factory.mktemp('corpora')
  return {name: make(place / name) for name, (make, _) in corpora_folders.ALL.items()}


def read(path, task, **changes):
  """The items of a source, in order."""
  source = Source(str(path), task=task, **changes)
  return [item for one in sources.inputs((source,), path) for _, item in one.items()]


def texts(items):
  """What is trained on: transcripts, or answers."""
  return [''.join(part.text for part in item.answer) or item.text for item in items
          if isinstance(item, tasks.Recording)]


READ = (
    ('librispeech', 'asr', {}, ["train clean 100 it's 1240 0", "train clean 100 it's 1240 1",
                                "train clean 100 it's 1241 0", "train clean 100 it's 1241 1",
                                "train clean 360 it's 1240 0", "train clean 360 it's 1240 1",
                                "train clean 360 it's 1241 0", "train clean 360 it's 1241 1"]),
    ('librispeech', 'tts', {'subset': 'test-other, dev', 'transcript': 'raw'}, [
        f"{part} IT'S {chapter} {n}" for part in ('TEST OTHER', 'DEV CLEAN')
        for chapter in (1240, 1241) for n in (0, 1)]),
    ('libritts', 'tts', {}, ['Number one of train-clean-100.']),
    ('libritts', 'tts', {'transcript': 'upper'}, ['NUMBER ONE OF TRAIN-CLEAN-100.']),
    ('aishell1', 'asr', {}, ['而对楼市train的GDP增长0', '而对楼市train的GDP增长1'] * 2),
    ('aishell1', 'asr', {'split': 'heldout', 'transcript': 'raw'}, [
        '而 对 楼市 test 的 GDP 增 长 0', '而 对 楼市 test 的 GDP 增 长 1']),
    ('aishell2', 'asr', {}, ['厨房用品0', '厨房用品1']),
    ('aishell2', 'asr', {'subset': 'test-mic'}, ['厨房用品0', '厨房用品1']),
    ('wenetspeech', 'asr', {}, ['一二', '三四', '六七']),
    ('wenetspeech', 'asr', {'subset': 'S,W'}, ['一二', '五']),
    ('wenetspeech', 'asr', {'split': 'heldout_net'}, ['九', '十']),
    ('gigaspeech', 'asr', {}, ["four o'clock, said williams.", 'really?', 'last']),
    ('gigaspeech', 'asr', {'subset': 'L', 'transcript': 'raw'}, [
        "FOUR O'CLOCK <COMMA> SAID WILLIAMS <PERIOD>"]),
    ('gigaspeech', 'asr', {'subset': 'test,dev'}, ['yes!', 'no']),
    ('commonvoice', 'asr', {}, ['"Quoted" train, it is.']),
    ('commonvoice', 'asr', {'subset': 'other'}, ['"Quoted" other, it is.']),
    ('clotho', 'aac', {}, [f'Birds sing, {i} of development.' for i in range(1, 6)]),
    ('clotho', 'aac', {'split': 'heldout'}, [f'Birds sing, {i} of evaluation.'
                                             for i in range(1, 6)]),
    ('macs', 'aac', {}, ['adults talking in airport', 'people walk',
                         'adults talking in public_square', 'people walk']),
    ('macs', 'asc', {'split': 'heldout'}, ['airport', 'public square']),
    ('macs', 'sec', {}, ['adults_talking, footsteps'] * 2),
    ('macs', 'asc', {}, ['airport', 'public square']),
    ('voiceassistant', 'audio_chat', {}, ['I am 00.', 'I am 01.', 'I am 10.', 'I am 11.']))


@pytest.mark.parametrize('name,task,changes,expected', READ,
                         ids=[f'{one[0]}-{one[1]}-{"-".join(one[2].values())}' for one in READ])
def test_a_path_is_all_that_a_corpus_needs(folders, name, task, changes, expected):
  assert texts(read(folders[name], task, **changes)) == expected
  assert texts(read(folders[name], task, corpus=name, **changes)) == expected


def test_sounds_are_those_of_their_texts(folders, tmp_path):
  """One prepared set of all corpora: every record has the tone of its recording."""
  made = tuple(Source(str(folders[name]), task=task, split='heldout', subset='train', prompt='')
               for name, (_, task) in corpora_folders.ALL.items())
  config = Config(codec=CodecConfig(name=tone.NAME), data=DataConfig(seq_len=256, sources=made))
  manifest = prepare.prepare(config, tmp_path)
  read_ids = {}
  for line in (tmp_path / 'data' / 'heldout.records.jsonl').read_text().splitlines():
    value = json.loads(line)
    user = value['messages'][0]['content']
    parts = user if isinstance(user, list) else value['messages'][1]['content']
    read_ids[value['id'].partition('-')[2]] = [
        part['codes'] for part in parts if part['type'] == 'audio'][0]
  for name, codes in (
      ('100-1240-0000', [8] * 5), ('101-1241-0001', [16] * 5), ('103_1241_000000_000001', [16] * 5),
      ('BAC009S0002W0121', [8] * 5), ('BAC009S0003W0122', [16] * 5), ('IC0001W0002', [16] * 5),
      ('Y1_S00001', [8] * 5), ('P1_S00000', [16] * 5), ('POD1_S00001', [8] * 5),
      ('A Bird, "development".wav-5', [8] * 5), ('public_square-barcelona-0-1-a.wav-2', [16] * 5)):
    assert read_ids[name] == codes, name
  assert manifest['left_out'] == {str(folders['aishell1']): {'recording without a transcript': 1}}
  assert manifest['unused_keys'] == {str(folders['voiceassistant']): {
      'answer_snac, codes of another codec': 4}}
  assert manifest['splits']['heldout']['tasks']['aac']['records'] == 5 + 4


@pytest.mark.parametrize('name', ('librispeech', 'aishell1', 'aishell2', 'wenetspeech',
                                  'gigaspeech', 'voiceassistant'))
def test_pieces_together_are_the_corpus(folders, monkeypatch, name):
  """Jobs read pieces, whatever the number of processes: small pieces give the same records."""
  task = corpora_folders.ALL[name][1]
  whole = [item.id for item in read(folders[name], task) if isinstance(item, tasks.Recording)]
  monkeypatch.setattr(readers, 'CUT', 10)
  monkeypatch.setattr(librispeech, '_CHAPTERS', 1)
  monkeypatch.setattr(corpora.aishell, '_SPEAKERS', 1)
  found = sources.inputs((Source(str(folders[name]), task=task),), folders[name])
  assert len(found) > 1
  assert [item.id for one in found for _, item in one.items()
          if isinstance(item, tasks.Recording)] == whole


@pytest.mark.parametrize('inner,part,count', (
    ('', '', 8), ('train-clean-100', '', 4), ('train-clean-100', 'train', 4)))
def test_the_folder_of_a_part_and_the_one_around_a_corpus_are_names_of_it(
    folders, inner, part, count):
  root = folders['librispeech']
  assert len(read(root / inner, 'asr', subset=part)) == count
  assert len(read(root.parent, 'asr')) == 8


def test_folders_that_were_read_before_are_read_as_before(folders, tmp_path):
  """A manifest in a folder has priority over the layout of a corpus."""
  root = shutil.copytree(folders['librispeech'], tmp_path / 'LibriSpeech')
  corpora_folders.write(root / 'manifest.jsonl', '{"audio": "a.wav", "text": "mine"}\n')
  assert texts(read(root, 'asr')) == ['mine']
  assert len(read(root, 'asr', corpus='librispeech')) == 8


def test_training_on_an_official_test_part_is_said(folders):
  made = (Source(str(folders['librispeech']), task='asr', subset='test-clean'),
          Source(str(folders['librispeech']), task='asr', subset='test-clean', split='heldout'),
          Source(str(folders['aishell2']), task='asr', subset='dev,train,test-mic'))
  with pytest.raises(UserError, match="no part 'dev' of AISHELL-2"):
    sources.inputs(made, folders['macs'])
  made = (*made[:2], dataclasses.replace(made[2], subset='test-mic'))
  found = sources.evaluated(sources.inputs(made, folders['macs']))
  assert [one.partition(' trains on ')[::2] for one in found] == [
      ('data.sources[0]', f'test-clean, a test part of {folders["librispeech"]}; give it a split '
       "'heldout' to evaluate on it."),
      ('data.sources[2]', f'test-mic, a test part of {folders["aishell2"]}'
       "/AISHELL-DEV-TEST-SET/Mic/test; give it a split 'heldout' to evaluate on it.")]


# What is wrong -> (layout, change of the folder, settings, what the sentence says).
REFUSED = {
    'another layout': ('macs', None, {'task': 'asr', 'corpus': 'librispeech'},
                       r'not the layout of LibriSpeech.*it has the layout of MACS'),
    'no layout': ('macs', lambda root: (root / 'MACS.yaml').unlink(),
                  {'task': 'aac', 'corpus': 'macs'}, r'which is MACS.yaml and audio/; it holds au'),
    'archives': ('clotho', lambda root: [
        shutil.rmtree(root), corpora_folders.write(root / 'a.tar.gz', '')],
                 {'task': 'aac', 'corpus': 'clotho'}, r'unpack a.tar.gz'),
    'unknown corpus': ('macs', None, {'task': 'aac', 'corpus': 'librispech'},
                       r"sources\[0\]: 'librispech' is no corpus; use one of librispeech, "),
    'no corpus': ('macs', lambda root: (root / 'MACS.yaml').unlink(),
                  {'task': 'aac', 'subset': 'full'}, r"sources\[0\].subset is 'full', but"),
    'unknown part': ('librispeech', None, {'task': 'asr', 'subset': 'train-clean-500'},
                     r"no part 'train-clean-500' of LibriSpeech; there is train-clean-100, "),
    'no test part': ('commonvoice', lambda root: (root / 'test.tsv').unlink(),
                     {'task': 'asr', 'split': 'heldout'},
                     r"no part 'test' of Common Voice, which a source with a held-out split reads"),
    'part of a part': ('librispeech/train-clean-100', None, {'task': 'asr', 'subset': 'dev-clean'},
                       r"is part 'train-clean-100' of LibriSpeech; name"),
    'task': ('clotho', None, {'task': 'asr'}, r"task is 'asr', but .* is Clotho, .* for aac"),
    'no task': ('aishell1', None, {'task': ''}, r"task is '', but .* AISHELL-1, .* asr or tts"),
    'joined': ('librispeech', None, {'task': 'asr', 'join_count': 2, 'join_most': 2},
               r'join_count joins recordings of one file'),
    'no folder': ('none', None, {'task': 'asr', 'corpus': 'librispeech'}, r'there is no folder'),
    'missing transcript': ('librispeech', lambda root: next(
        root.glob('train-clean-100/*/1241/*.txt')).unlink(), {'task': 'asr'},
                           r'100/1241 has no transcript \(\*.trans.txt\)'),
    'two languages': ('commonvoice', lambda root: shutil.copytree(root, root.parent / 'de'),
                      {'task': 'asr', 'up': True}, r'several languages of Common Voice; .*/de.'),
    'no sounds': ('clotho', lambda root: shutil.rmtree(root / 'development'), {'task': 'aac'},
                  r'no folder development .* unpack clotho_audio_development.7z'),
    'no audio of MACS': ('macs', lambda root: shutil.rmtree(root / 'audio'), {'task': 'aac'},
                         r'no folder audio .* TAU Urban'),
    'no list': ('wenetspeech', lambda root: corpora_folders.write(
        root / 'WenetSpeech.json', '{"dataset": "x", "data": []}'), {'task': 'asr'},
                r"WenetSpeech.json has no list 'audios'"),
    'truncated list': ('wenetspeech', lambda root: corpora_folders.write(
        root / 'WenetSpeech.json', (root / 'WenetSpeech.json').read_text()[:900]), {'task': 'asr'},
                       r"element \d of 'audios': broken JSON"),
    'archive': ('aishell1', lambda root: (root / 'wav' / 'S0002.tar.gz').write_bytes(b'x' * 99),
                {'task': 'asr'}, r'archive .*S0002.tar.gz cannot be read'),
    'empty part': ('wenetspeech', None, {'task': 'asr', 'subset': 'TEST_MEETING,M,XS'},
                   r"no part 'XS' of WenetSpeech"),
}


@pytest.mark.parametrize('case', REFUSED)
def test_a_folder_that_cannot_be_read_is_one_sentence(folders, tmp_path, case):
  name, change, settings, said = REFUSED[case]
  layout, _, inner = name.partition('/')
  root = tmp_path / 'none'
  if layout != 'none':
    root = shutil.copytree(folders[layout], tmp_path / layout) / inner
  if change:
    change(root)
  settings = dict(settings)
  path = root.parent if settings.pop('up', False) else root
  with pytest.raises(UserError, match=said) as error:
    sources.inputs((Source(str(path), **settings),), tmp_path)
  assert str(error.value).startswith('config key data.sources[0]')
  assert '\n' not in str(error.value)


# Damage -> (layout, change of the folder, the sentence of the record).
DAMAGED = {
    'speech listed but absent': (
        'librispeech', lambda root: next(root.glob('train-clean-100/*/1241/*1.flac')).unlink(),
        r'100-1241.trans.txt:2: recording .*100-1241-0001.flac does not exist'),
    'transcript without recording': (
        'aishell1', lambda root: next(root.glob('wav/train/S0003/*122.wav')).unlink(),
        r'v0.8.txt:4: BAC009S0003W0122 has a transcript, but no recording in .*train/S0003'),
    'speaker that is nowhere': (
        'aishell1', lambda root: shutil.rmtree(root / 'wav' / 'train' / 'S0003'),
        r'v0.8.txt:3: BAC009S0003W0121 has a transcript, but speaker S0003 has neither'),
    'no line in wav.scp': (
        'aishell2', lambda root: corpora_folders.write(
            root / 'AISHELL-2/iOS/data/wav.scp', 'IC0001W0001 wav/C0001/IC0001W0001.wav\n'),
        r'trans.txt:2: IC0001W0002 has a transcript, but no line in .*wav.scp'),
    'empty transcript': (
        'aishell2', lambda root: corpora_folders.write(
            root / 'AISHELL-2/iOS/data/trans.txt', 'IC0001W0001\t\nIC0001W0002\t厨房\n'),
        r'trans.txt:1: a recording needs "text"'),
    'not UTF-8': (
        'librispeech', lambda root: next(root.glob('train-clean-100/*/1240/*.txt')).write_bytes(
            b'100-1240-0000 \xff\n100-1240-0001 A\n'), r'100-1240.trans.txt:1: not UTF-8'),
    'columns': (
        'libritts', lambda root: next(root.glob('train*/*/*/*.tsv')).write_text('a\tb\n'),
        r'103_1241.trans.tsv:1: 2 values, but a line of LibriTTS has'),
    'segment without text': (
        'gigaspeech', lambda root: corpora_folders.write(root / 'GigaSpeech.json', (
            root / 'GigaSpeech.json').read_text().replace('"text_tn": "REALLY', '"tn": "REALLY')),
        r'GigaSpeech.json:POD1_S00001: a recording needs "text"'),
    'segment before its start': (
        'gigaspeech', lambda root: corpora_folders.write(root / 'GigaSpeech.json', (
            root / 'GigaSpeech.json').read_text().replace('"end_time": 1.75', '"end_time": 1')),
        r'GigaSpeech.json:POD1_S00001: the recording has .* no length'),
    'row of another width': (
        'clotho', lambda root: (root / 'clotho_captions_development.csv').open('a').write('a,b\n'),
        r'clotho_captions_development.csv:3: the row has another number of values'),
    'clip that is absent': (
        'commonvoice', lambda root: (root / 'clips' / 'common_voice_en_1.mp3').unlink(),
        r'train.tsv:2: recording .*clips/common_voice_en_1.mp3 does not exist'),
    'annotations': (
        'macs', lambda root: (root / 'MACS.yaml').open('a').write('- filename: 3\n'),
        r'MACS.yaml:3: an element of "files" needs filename'),
}


@pytest.mark.parametrize('case', DAMAGED)
def test_a_damaged_record_is_an_error_or_a_counted_reject(folders, tmp_path, caplog, case):
  name, change, said = DAMAGED[case]
  root = shutil.copytree(folders[name], tmp_path / name)
  change(root)
  data = DataConfig(seq_len=256, sources=(
      Source(str(root), task=corpora_folders.ALL[name][1], prompt=''),
      Source(str(folders['macs']), task='aac', prompt='')))
  config = Config(codec=CodecConfig(name=tone.NAME), data=data)
  with pytest.raises(UserError, match=said):
    prepare.prepare(config, tmp_path)
  lenient = dataclasses.replace(data, strict=False, max_rejects=0.9)
  with caplog.at_level(logging.WARNING):
    manifest = prepare.prepare(dataclasses.replace(config, data=lenient), tmp_path)
  assert sum(manifest['rejects'].values()) in (1, 2)
  assert 'records were rejected' in caplog.text
  first = json.loads((tmp_path / 'data.rejects.jsonl').read_text().splitlines()[0])
  assert first['where'] and first['sentence']


def test_garbage_of_gigaspeech_is_counted(folders):
  found = read(folders['gigaspeech'], 'asr', subset='TEST')
  assert [one.reason for one in found if isinstance(one, corpora.Skip)] == ['no speech: <NOISE>']


@pytest.mark.parametrize('name', corpora_folders.ALL)
def test_files_that_macos_leaves_are_not_read(folders, tmp_path, name):
  """A ._NAME beside every file, also inside archives."""
  task = corpora_folders.ALL[name][1]
  root = tmp_path / 'copy'
  shutil.copytree(folders[name], root)
  for path in list(root.rglob('*')):
    if path.is_file():
      (path.parent / f'._{path.name}').write_bytes(b'\x00\x05\x16\x07' + bytes(99))
  for path in root.rglob('S*.tar.gz'):
    with tarfile.open(path) as archive:
      members = [(one, archive.extractfile(one).read()) for one in archive if one.isfile()]
    with tarfile.open(path, 'w:gz') as archive:
      for one, data in members:
        hidden = copy.copy(one)
        hidden.name = one.name.replace('BAC', '._BAC')
        for member in (hidden, one):
          archive.addfile(member, io.BytesIO(data))
  skips = lambda items: sum(isinstance(item, corpora.Skip) for item in items)
  before, after = read(folders[name], task), read(root, task)
  assert (len(after), skips(after)) == (len(before), skips(before))
  assert texts(after) == texts(before)


def test_archives_in_a_folder_are_to_be_unpacked(tmp_path):
  (tmp_path / 'test-clean.tar.gz').write_bytes(b'x')
  with pytest.raises(UserError, match='its archives are not read; unpack test-clean.tar.gz'):
    read(tmp_path, 'asr')
