"""`ttt-jax inspect` shows what training reads, and nothing else."""

import json
import re

import numpy as np
import pytest
import soundfile

from tests import small_run
from ttt_jax import config as config_lib
from ttt_jax.audio import codec as codecs, io
from ttt_jax.cli import main
from ttt_jax.config import CodecConfig
from ttt_jax.errors import UserError
from ttt_jax.runs.report import inspect_record, inspect_set


@pytest.fixture(scope='module')
def workdir(tmp_path_factory, prepared):
  folder = tmp_path_factory.mktemp('run')
  (folder / 'data').symlink_to(prepared)
  config_lib.save(small_run.config(), folder)
  return folder


def plain(text):
  """Without rich's markup."""
  import io

  import rich.console
  out = io.StringIO()
  rich.console.Console(file=out, soft_wrap=True).print(text)
  return out.getvalue()


def test_a_document_in_words_spans_picture_and_sound(workdir, tmp_path, capsys):
  assert main.main(['inspect', '--workdir', str(workdir), '--out', str(tmp_path)]) == 0
  said = capsys.readouterr().out
  number = int(re.match(r'document (\d+) of split train: (\d+) tokens', said).group(1))
  assert '<|im_start|>assistant' in said and '<|begin_of_quad|>[' in said
  assert '<|end_of_audio_span_last|>' in said
  held = inspect_set.PreparedSet(small_run.config(), workdir)
  _, document = held.document('train', number)
  codes = held.vocab.decode_codes(document.token[document.supervised > 0])
  sound, rate = soundfile.read(tmp_path / f'{number}-output.wav', dtype='float32')
  assert rate == held.codec.sample_rate
  np.testing.assert_allclose(sound, held.codec.decode(codes), atol=1e-3)
  assert (tmp_path / f'{number}-mask.png').read_bytes().startswith(b'\x89PNG')
  assert f'wrote {tmp_path / f"{number}-mask.png"}' in said


def test_every_token_is_listed_with_what_it_reads(workdir):
  held = inspect_set.PreparedSet(small_run.config(), workdir)
  number, document = held.document('train', None)
  lines = plain(inspect_set.show(held, 'train', number, None, ids=True)).split('position')[1]
  rows = [line.split() for line in lines.splitlines()[1:] if line.strip()]
  assert [int(row[1]) for row in rows] == document.token.tolist()
  ends = np.array([int(re.search(r'\d+\.\.(\d+)', ' '.join(row)).group(1)) for row in rows])
  spoken = document.span > 0
  assert (ends[~spoken] == np.flatnonzero(~spoken)).all()
  for span in np.unique(document.span[spoken]):
    where = np.flatnonzero(document.span == span)
    assert (ends[where] == where[-1]).all()
  learned = [row[-1] if row[-1] != 'token' else 'next token' for row in rows]
  expected = np.where(spoken, 'diffusion', 'next token')
  assert [word for word, yes in zip(learned, document.supervised) if yes] == (
      expected[document.supervised > 0].tolist())


def test_codes_that_cannot_be_heard_here_are_shown(workdir, tmp_path):
  held = inspect_set.PreparedSet(small_run.config(), workdir)
  held.codec = codecs.create(config_lib.CodecConfig(name='glm4_voice'))  # no decoder is given
  said = plain(inspect_set.show(held, 'train', None, tmp_path))
  assert re.search(r'\[\d+ codes: \d', said)
  assert 'audio could not be decoded: codec glm-4-voice cannot make sound' in said
  assert [path.suffix for path in tmp_path.glob('[!.]*')] == ['.png']


def test_the_page_counts_every_document(workdir, tmp_path, capsys):
  assert main.main(['inspect', '--workdir', str(workdir), '--set', '--out', str(tmp_path)]) == 0
  page = (tmp_path / 'set.html').read_text()
  held = inspect_set.PreparedSet(small_run.config(), workdir)
  for name, split in held.manifest['splits'].items():
    found = inspect_set.measure(held, name)
    assert len(found['length']) == split['documents']
    assert found['audio'].sum() == split['tokens']['audio'] == found['span'].sum()
    assert found['length'].sum() == split['tokens']['audio'] + split['tokens']['text']
    assert found['supervised'].sum() == split['tokens']['supervised']
    assert f'{split["documents"]:,} documents' in page
  assert page.count('data:image/png') == len(held.manifest['splits'])


def test_names_from_records_do_not_become_html(workdir, tmp_path):
  evil = '<script>alert(1)</script>'
  held = inspect_set.PreparedSet(small_run.config(), workdir)
  split = held.manifest['splits']['heldout']
  held.manifest |= {'fingerprint': evil, 'rejects': {evil: 1}, 'splits': {
      'heldout': {**split, 'tasks': {evil: split['tasks']['asr']}}}}
  page = inspect_set.page(held, tmp_path).read_text()
  assert '<script' not in page and page.count('&lt;script') == 3


# -- a record that is not prepared ------------------------------------------------------------

RECORDS = small_run.TOKENS / 'train_short.jsonl'  # the asr and the tts records of runs.config()
CODEC2 = small_run.replace(small_run.config(), 'codec', name='codec2')


def listed(text):
  """Ids of a text that lists them."""
  lines = plain(text).split('position')[1].splitlines()[1:]
  return [int(line.split()[1]) for line in lines if re.match(r' *\d+ +\d+ ', line)]


def test_a_record_is_shown_as_prepare_renders_it(workdir, tmp_path):
  held = inspect_set.PreparedSet(small_run.config(), workdir)
  prepared = {tuple(document.token.tolist()) for _, document in held.documents('train')}
  for place, out in ((f'{RECORDS}:5', tmp_path), (str(RECORDS), None)):
    shown = list(inspect_record.show(small_run.config(), workdir, place, None, out, ids=True))
    assert [re.search('task (.*):', text).group(1) for text in shown] == ['asr', 'tts']
    assert len({tuple(listed(text)) for text in shown} & prepared) == 2
  names = {path.name for path in tmp_path.iterdir()}
  assert {'train_short.jsonl-5-source0-input.wav', 'train_short.jsonl-5-source1-mask.png',
          'train_short.jsonl-5-source1-output.wav'} <= names
  assert 'train_short.jsonl-5-source1-input.wav' not in names  # tts has no audio input


def test_a_recording_is_encoded_before_anything_is_prepared(tmp_path, capsys):
  wave = np.sin(np.arange(8000) / 8).astype(np.float32) / 2
  io.write_wav(tmp_path / 'a.wav', wave, 8000)
  (tmp_path / 'lines.jsonl').write_text('{"broken"\n' + json.dumps(
      {'audio': 'a.wav', 'text': 'a [long] tone'}) + '\n')
  config_lib.save(CODEC2, tmp_path)
  words = ['inspect', '--workdir', str(tmp_path), '--record', 'lines.jsonl:2']
  assert main.main([*words, '--task', 'asr']) == 0
  said = capsys.readouterr().out
  codes = codecs.create(CodecConfig(name='codec2')).encode(wave, 8000)
  assert 'a [long] tone' in said and f'[{len(codes)} codes, 1.00 s:' in said
  assert soundfile.info(tmp_path / 'inspect' / 'lines.jsonl-2-output.wav').duration > 0.9
  assert main.main(words) == 2  # without the task
  assert "set its source's task to 'asr'" in capsys.readouterr().err


def test_what_prepare_does_beyond_rendering_is_said(tmp_path, workdir):
  questions = small_run.TOKENS / 'train_questions.jsonl'  # repeat=0.2 in runs.config()
  shown, = inspect_record.show(small_run.config(), workdir, f'{questions}:2', None, None)
  assert 'repeat=0.2 uses this record 0 times' in shown
  short = small_run.replace(small_run.config(), 'data', seq_len=40)
  shown = next(inspect_record.show(short, workdir, str(RECORDS), None, None))
  assert re.search(r'has \d+ tokens, a row 40; (truncated by|`prepare` rejects)', shown)


@pytest.mark.parametrize('config, place, task, sentence', [
    (small_run.config(), '{0}/none.jsonl:3', None, 'file .*none.jsonl. is neither in'),
    (small_run.config(), f'{RECORDS}:99999', None, 'has no such record; its last one is at'),
    (small_run.config(), str(RECORDS), 'tts', r'data.sources\[0\] already sets the task'),
    (CODEC2, '{0}/b.jsonl', 'sing', "--task is 'sing'; use one of"),
    (CODEC2, '{0}/b.jsonl:1', None, 'b.jsonl:1: broken JSON'),
    (CODEC2, '{0}/b.jsonl:2', 'asr', 'b.jsonl:2: recording .*none.wav does not exist'),
    (small_run.config(), '{0}/b.jsonl:2', 'asr', 'codec mel is fitted by `ttt-jax prepare`')])
def test_a_record_that_cannot_be_shown_is_one_sentence(tmp_path, config, place, task, sentence):
  (tmp_path / 'b.jsonl').write_text('{"broken"\n{"audio": "none.wav", "text": "x"}\n')
  with pytest.raises(UserError, match=sentence):
    list(inspect_record.show(config, tmp_path, place.format(tmp_path), task, None))


@pytest.mark.parametrize('words, sentence', [
    (['--split', 'x'], "--split is 'x'; .* has heldout, train"),
    (['--document', '99999'], "has no such document")])
def test_mistakes(workdir, capsys, words, sentence):
  assert main.main(['inspect', '--workdir', str(workdir), *words]) == 2
  assert re.search(sentence, capsys.readouterr().err)
