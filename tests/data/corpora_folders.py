"""Tiny public corpora in their published layouts: a function per corpus that writes one.

Every sound is a tone of its own; the codec of tests/data/prepare/tone.py shows which was read.
"""

import csv
import io as streams
import json
import tarfile

import soundfile

from tests.data.prepare.tone import RATE, tone


def sound(path, hertz, seconds=0.5):
  """Writes a tone, in the format of the suffix."""
  path.parent.mkdir(parents=True, exist_ok=True)
  kinds = {'.flac': ('FLAC', 'PCM_16'), '.mp3': ('MP3', None), '.opus': ('OGG', 'OPUS')}
  kind, subtype = kinds.get(path.suffix, ('WAV', 'PCM_16'))
  soundfile.write(path, tone(hertz, seconds), RATE, format=kind, subtype=subtype)
  return path


def contents(hertz, seconds=0.5, kind='WAV'):
  """The bytes of a file with a tone."""
  out = streams.BytesIO()
  soundfile.write(out, tone(hertz, seconds), RATE, format=kind)
  return out.getvalue()


def write(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text, encoding='utf-8')
  return path


def librispeech(folder, parts=('train-clean-100', 'train-clean-360', 'dev-clean', 'test-clean',
                               'test-other')):
  """Two chapters of two sentences per part."""
  root = folder / 'LibriSpeech'
  for i, part in enumerate(parts):
    for chapter in (1240, 1241):
      place = root / part / f'{100 + i}' / f'{chapter}'
      lines = []
      for n in range(2):
        name = f'{100 + i}-{chapter}-{n:04}'
        sound(place / f'{name}.flac', 500 * (n + 1))
        lines.append(f"{name} {part.upper().replace('-', ' ')} IT'S {chapter} {n}\n")
      write(place / f'{100 + i}-{chapter}.trans.txt', ''.join(lines))
  write(root / 'SPEAKERS.TXT', ';ID |SEX| SUBSET\n')
  return root


def libritts(folder):
  root = folder / 'LibriTTS'
  for part in ('train-clean-100', 'test-clean'):
    place = root / part / '103' / '1241'
    name = '103_1241_000000_000001'
    sound(place / f'{name}.wav', 1000)
    write(place / '103_1241.trans.tsv', f'{name}\tNo. 1 of {part}.\tNumber one of {part}.\n')
  return root


def aishell1(folder, packed=('S0002',)):
  """A speaker per part; those in ``packed`` as archives. One recording has no transcript."""
  root = folder / 'data_aishell'
  lines = []
  for part, speaker in (('train', 'S0002'), ('train', 'S0003'), ('dev', 'S0724'),
                        ('test', 'S0764')):
    names = [f'BAC009{speaker}W{n:04}' for n in (121, 122)]
    lines += [f'{name} 而 对 楼市 {part} 的 GDP 增 长 {n}\n' for n, name in enumerate(names)]
    if speaker in packed:
      (root / 'wav').mkdir(parents=True, exist_ok=True)
      with tarfile.open(root / 'wav' / f'{speaker}.tar.gz', 'w:gz') as archive:
        for n, name in enumerate(names):
          data = contents(500 * (n + 1))
          one = tarfile.TarInfo(f'{part}/{speaker}/{name}.wav')
          one.size = len(data)
          archive.addfile(one, streams.BytesIO(data))
    else:
      for n, name in enumerate(names):
        sound(root / 'wav' / part / speaker / f'{name}.wav', 500 * (n + 1))
  sound(root / 'wav' / 'train' / 'S0003' / 'BAC009S0003W0999.wav', 500)
  write(root / 'transcript' / 'aishell_transcript_v0.8.txt', ''.join(lines))
  return root


def aishell2(folder):
  tests = 'AISHELL-DEV-TEST-SET'
  for place, name in (('AISHELL-2/iOS/data', 'IC0001W'), (f'{tests}/iOS/test', 'IT001W'),
                      (f'{tests}/Mic/test', 'MT001W')):
    names = [f'{name}{n:04}' for n in (1, 2)]
    for n, one in enumerate(names):
      sound(folder / place / 'wav' / 'C0001' / f'{one}.wav', 500 * (n + 1))
    write(folder / place / 'wav.scp',
          ''.join(f'{one}\twav/C0001/{one}.wav\n' for one in reversed(names)))
    write(folder / place / 'trans.txt', ''.join(f'{one}\t厨房用品 {n}\n'
                                                for n, one in enumerate(names)))
  return folder


def _segmented(root, name, key, audios):
  """audios: [(path, [(part ..., text), ...])], a second per segment."""
  listed = []
  for i, (path, segments) in enumerate(audios):
    aid = path.rpartition('/')[2].partition('.')[0]
    sound(root / path, 500 * (i + 1), len(segments) + 1.0)
    listed.append({'aid': aid, 'path': path, 'duration': len(segments) + 1.0, 'md5': 'x',
                   'title': 'Straße "a" [1]', 'segments': [
                       {'sid': f'{aid}_S{n:05}', 'begin_time': n + 0.25, 'end_time': n + 0.75,
                        'confidence': 1.0, 'subsets': list(parts), key: text}
                       for n, (*parts, text) in enumerate(segments)]})
  write(root / f'{name}.json', json.dumps(
      {'dataset': name, 'language': 'ZH', 'version': 'v1', 'audios': listed}, ensure_ascii=False,
      indent=2))
  return root


def wenetspeech(folder):
  return _segmented(folder / 'WenetSpeech', 'WenetSpeech', 'text', [
      ('audio/train/youtube/B00000/Y1.opus', [('L', 'M', 'S', '一二'), ('L', '三四'), ('W', '五')]),
      ('audio/train/podcast/B00001/P1.opus', [('L', '六七')]),
      ('audio/dev/youtube/B00000/D1.opus', [('DEV', '八')]),
      ('audio/test_net/youtube/B00000/T1.opus', [('TEST_NET', '九')]),
      ('audio/test_meeting/B00000/T2.opus', [('TEST_MEETING', '十')])])


def gigaspeech(folder):
  return _segmented(folder / 'GigaSpeech', 'GigaSpeech', 'text_tn', [
      ('audio/podcast/P0001/POD1.opus', [
          ('{XL}', '{L}', "FOUR O'CLOCK <COMMA> SAID WILLIAMS <PERIOD>"),
          ('{XL}', '{M}', 'REALLY <QUESTIONMARK>')]),
      ('audio/youtube/P0002/YOU1.opus', [('{TEST}', 'YES <EXCLAMATIONPOINT>'),
                                         ('{TEST}', '<NOISE>'), ('{DEV}', 'NO')]),
      ('audio/audiobook/P0003/AUD1.opus', [('{XL}', 'LAST')])])


def common_voice(folder):
  root = folder / 'cv-corpus-17.0-2024-03-15' / 'en'
  columns = ('client_id', 'path', 'sentence_id', 'sentence', 'sentence_domain', 'up_votes',
             'down_votes', 'age', 'gender', 'accents', 'variant', 'locale', 'segment')
  for part, number in (('train', 1), ('dev', 2), ('test', 3), ('validated', 1), ('other', 4)):
    name = f'common_voice_en_{number}.mp3'
    sound(root / 'clips' / name, 500 * number, 1.0)
    values = {'client_id': 'c', 'path': name, 'sentence': f'"Quoted" {part}, it is.',
              'up_votes': '2', 'down_votes': '0', 'locale': 'en'}
    write(root / f'{part}.tsv', '\t'.join(columns) + '\n' + '\t'.join(
        values.get(column, '') for column in columns) + '\n')
  return root


def voice_assistant(folder):
  import pyarrow as pa
  from pyarrow import parquet
  root = folder / 'VoiceAssistant-400K'
  (root / 'data').mkdir(parents=True)
  for shard in range(2):
    rows = [{'split_name': 'identity', 'index': f'{shard}{n}', 'round': '1',
             'question': f'Who are you {shard}{n}?',
             'question_audio': {'bytes': contents(500 * (n + 1)), 'path': 'q.wav'},
             'answer': f'I am {shard}{n}.', 'answer_snac': '# 1 2 # 3'} for n in range(2)]
    parquet.write_table(pa.Table.from_pylist(rows),
                        root / 'data' / f'train-0000{shard}-of-00002.parquet')
  return root


def clotho(folder):
  root = folder / 'clotho'
  for number, part in enumerate(('development', 'validation', 'evaluation'), 1):
    name = f'A Bird, "{part}".wav'
    sound(root / part / name, 500 * number)
    out = streams.StringIO()
    rows = csv.writer(out)
    rows.writerow(['file_name', *(f'caption_{i}' for i in range(1, 6))])
    rows.writerow([name, *(f'Birds sing, {i} of {part}.' for i in range(1, 6))])
    write(root / f'clotho_captions_{part}.csv', out.getvalue())
  return root


def macs(folder):
  root = folder / 'MACS'
  for n, scene in enumerate(('airport', 'public_square')):
    sound(root / 'audio' / f'{scene}-barcelona-0-{n}-a.wav', 500 * (n + 1))
  write(root / 'MACS.yaml', 'files:\n' + ''.join(
      f'- filename: {scene}-barcelona-0-{n}-a.wav\n  annotations:\n'
      f'  - annotator_id: 1\n    sentence: adults talking in {scene}\n'
      f'    tags: [adults_talking, footsteps]\n'
      f'  - annotator_id: 2\n    sentence: people walk\n    tags:\n    - footsteps\n'
      for n, scene in enumerate(('airport', 'public_square'))))
  return root


# Name of the layout -> (its function, a task).
ALL = {'librispeech': (librispeech, 'asr'), 'libritts': (libritts, 'tts'),
       'aishell1': (aishell1, 'asr'), 'aishell2': (aishell2, 'asr'),
       'wenetspeech': (wenetspeech, 'asr'), 'gigaspeech': (gigaspeech, 'asr'),
       'commonvoice': (common_voice, 'asr'), 'clotho': (clotho, 'aac'), 'macs': (macs, 'aac'),
       'voiceassistant': (voice_assistant, 'audio_chat')}


def recipes(root):
  """All that the sources of configs/paper name, below one folder."""
  for make in (librispeech, libritts, aishell1, gigaspeech, wenetspeech, clotho, macs,
               voice_assistant):
    make(root)
  (common_voice(root).parent).rename(root / 'cv-corpus')
  aishell2(root)
  (root / 'AISHELL-DEV-TEST-SET').rename(root / 'AISHELL-2' / 'AISHELL-DEV-TEST-SET')
  import pyarrow as pa
  from pyarrow import parquet
  (root / 'ultrachat_200k' / 'data').mkdir(parents=True)
  rows = [{'prompt': f'Say {n}.', 'prompt_id': f'{n}', 'messages': [
      {'role': 'user', 'content': f'Say {n}.'}, {'role': 'assistant', 'content': f'{n}'}]}
          for n in range(4)]
  parquet.write_table(pa.Table.from_pylist(rows),
                      root / 'ultrachat_200k' / 'data' / 'train_sft-00000-of-00001.parquet')
  for name, words in (('en', 'piece {}'), ('zh', '第{}段'), ('sft', 'part {}'),
                      ('heldout', 'held {}')):
    place = root / 'interleaved' / name
    sound(place / 'p.wav', 1000)
    write(place / 'a.jsonl', ''.join(json.dumps({'pieces': [
        {'text': words.format(f'{n} {i}'), **({'audio': 'p.wav'} if i % 2 else {})}
        for i in range(3)]}, ensure_ascii=False) + '\n' for n in range(4)))
  return root
