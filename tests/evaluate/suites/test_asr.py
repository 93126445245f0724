"""Suite 'asr': which words are counted, and which recordings are read."""

import itertools
import json

import numpy as np
import pytest

from tests import small_run
from ttt_jax.audio import asr_judges, codec as codecs
from ttt_jax.config import CodecConfig
from ttt_jax.data.records import readers
from ttt_jax.errors import UserError
from ttt_jax.evaluate.suites import asr, results
from ttt_jax.evaluate.suites.suite import Result
from ttt_jax.tokens import words


@pytest.mark.parametrize('text, expected', [
    ("Don't stop—now, Mr. X!", ['DONT', 'STOP', 'NOW', 'MR', 'X']),
    ('今天GPT-4很好。', ['今', '天', 'GPT', '4', '很', '好']),
    ('ＡＢＣ ひらがな、カタカナー', ['ABC', *'ひらがなカタカナー']),
    ('Straße ÉTÉ', ['STRASSE', 'ÉTÉ']),
    ('3.5 %', ['3', '5']),
    ('...', []),
])
def test_the_words_of_the_paper(text, expected):
  assert words.tokens(text, 'paper') == expected


def test_errors_by_kind():
  assert words.edits('a b c d', 'a x c d e', 'paper') == (4, 1, 0, 1)
  assert words.edits('你好吗', '你们好', 'paper').errors == 2
  assert words.edits('', 'a b', 'paper') == (0, 0, 0, 2)
  assert words.edits('five', '5').errors == 0 and words.edits('five', '5', 'paper').errors == 1


def test_rates_are_pooled_per_kind_of_script():
  pairs = [('a b c', 'a b c'), ('d e', ''), ('你好', '你号'), ('吗', '吗')]
  rows = [Result(i, '', '', asr.error_counts(*pair, 'paper'), {}) for i, pair in enumerate(pairs)]
  metrics = asr.error_metrics(rows)
  found = results.numbers([metrics], [rows], draws=50)
  assert found.value['wer'][0] == pytest.approx(2 / 5)
  assert found.value['wer_deletions'][0] == pytest.approx(2 / 5)
  assert found.value['cer'][0] == pytest.approx(1 / 3)
  assert found.value['cer_substitutions'][0] == pytest.approx(1 / 3)
  assert found.value['wer_exact'][0] == 0.5
  assert all(len(metric.label) <= 28 for metric in metrics)


def write(path, *rows):
  path.write_text('\n'.join(json.dumps(row) for row in rows) + '\n')
  return path


def test_items_are_recordings_and_records(tmp_path):
  suite = asr.Asr(small_run.config())
  data = write(tmp_path / 'a.jsonl', {'id': 'x', 'audio': 'wav/x.wav', 'text': 'hello there'})
  (item,) = suite.items(data)
  assert item.references == ('hello there',) and item.record.turns[-1].parts == ()
  (part,) = item.record.audio()
  assert part.source == str(tmp_path / 'wav' / 'x.wav') and item.record.task == 'asr'
  (tmp_path / 'b.tsv').write_text('audio\ttext\nx.wav\thi\n')
  assert suite.items(tmp_path / 'b.tsv')[0].references == ('hi',)


def libri_speech(root, *parts):
  for number, part in enumerate(parts):
    folder = root / 'LibriSpeech' / part / f'{number}1' / '7'
    folder.mkdir(parents=True)
    (folder / f'{number}1-7.trans.txt').write_text(f'{number}1-7-0000 HELLO THERE\n')
    (folder / f'{number}1-7-0000.flac').write_bytes(b'')
  return root / 'LibriSpeech'


def test_parts_of_a_corpus_have_numbers_of_their_own(tmp_path):
  data = libri_speech(tmp_path, 'test-clean', 'test-other', 'dev-clean')
  suite = asr.Asr(small_run.config())
  assert [(item.id, item.group) for item in suite.items(data)] == [
      ('01-7-0000', 'test-clean'), ('11-7-0000', 'test-other')]
  suite.subset = 'dev-clean'
  (item,) = suite.items(data)
  (part,) = item.record.audio()
  assert item.group == 'dev-clean' and part.source == str(
      data / 'dev-clean' / '21' / '7' / '21-7-0000.flac')


@pytest.mark.parametrize('row, sentence', [
    ({'audio': 'x.wav', 'text': '...'}, "reference '...' has no words"),
    ({'audio': 'x.wav', 'text': ''}, 'needs "text"'),
    ({'audio': 'x.wav'}, 'needs "text"'),
])
def test_a_reference_without_words_is_an_error(tmp_path, row, sentence):
  data = write(tmp_path / 'a.jsonl', {'audio': 'y.wav', 'text': 'good'}, row)
  with pytest.raises(UserError, match=sentence):
    asr.Asr(small_run.config()).items(data)


def test_a_folder_of_another_layout_is_one_sentence(tmp_path):
  with pytest.raises(UserError, match='--data: there is no folder or file'):
    asr.Asr(small_run.config()).items(tmp_path / 'none')
  (tmp_path / 'readme.md').write_text('hello')
  with pytest.raises(UserError, match='is a folder without a manifest'):
    asr.Asr(small_run.config()).items(tmp_path)


def test_the_error_rate_rises_with_noise():
  """Spoken digits as a recogniser hears them: without noise, at 10 dB and at -10 dB."""
  codec = codecs.load(small_run.TOKENS / 'codec', CodecConfig())
  judge = asr_judges.create('pocketsphinx')
  rng = np.random.default_rng(0)
  rates = []
  spoken = []
  for _, value in itertools.islice(readers.read(small_run.TOKENS / 'heldout_strings.jsonl'), 6):
    wave = codec.sound(np.array(value['codes'], np.int32))
    spoken.append((value['text'], wave, rng.normal(size=wave.size) * np.sqrt(np.mean(wave**2))))
  for noise in (0, 10**-0.5, 10**0.5):
    rows = [Result(i, '', '', asr.error_counts(text, judge.transcribe(
        (wave + noise * hiss).astype(np.float32), codec.sample_rate), 'default'), {})
            for i, (text, wave, hiss) in enumerate(spoken)]
    rates.append(results.numbers([asr.error_metrics(rows)], [rows], draws=50).value['wer'][0])
  assert rates[0] < 0.3 and rates[0] + 0.1 < rates[1] < rates[2], rates
