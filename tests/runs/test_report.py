"""The report: whole on a whole run, in sentences where something is missing."""

import html.parser
import io
import json
import math

import numpy as np
import pytest
import soundfile

from ttt_jax import config as config_lib
from ttt_jax.data import store
from ttt_jax.errors import UserError
from ttt_jax.runs.report import mask_plot, page as report_lib, plots, speed as report_speed
from ttt_jax.tokens.batch import make_row
from ttt_jax.tokens.vocab import Vocabulary
from ttt_jax.train import metrics, telemetry

VOCAB = Vocabulary('bytes', 256, 'test-codec', 64)
SYSTEM = 'Answer the spoken question. Write your answer as text and speak it too.'


def turn(role, content):
  return [VOCAB.im_start, *f'{role}\n'.encode(), *content, VOCAB.im_end, ord('\n')]


def document(rng, codes_in=30, codes_out=34):
  """One spoken question with its interleaved answer: (ids, supervised)."""
  heard = [VOCAB.begin_of_audio, *VOCAB.encode_codes(rng.integers(0, 64, codes_in)),
           VOCAB.end_of_audio]
  codes = VOCAB.encode_codes(rng.integers(0, 64, codes_out))
  answer = [*b'seventeen hund', VOCAB.begin_of_audio, *codes[:26], VOCAB.end_of_chunk, *b'red',
            VOCAB.begin_of_quad, *codes[26:], VOCAB.end_of_last, VOCAB.im_end, ord('\n')]
  prompt = turn('system', SYSTEM.encode()) + turn('user', heard)
  prompt += [VOCAB.im_start, *b'assistant\n']
  return np.array(prompt + answer), np.array([0] * len(prompt) + [1] * len(answer))


def write_data(workdir):
  rng = np.random.default_rng(0)
  folder = workdir / 'data'
  folder.mkdir()
  rows = [make_row(VOCAB, [(2 * i + 1, *document(rng)), (2 * i + 2, *document(rng, 40, 60))], 512)
          for i in range(2)]
  path = folder / 'train.arrayrecord'
  entry = store.split_entry((path, store.write_rows(path, rows)))
  store.write_manifest(folder, {
      'version': store.VERSION, 'vocabulary': VOCAB.to_dict(), 'fingerprint': VOCAB.fingerprint,
      'codec': 'codec', 'seq_len': 512, 'max_document': 4,
      'splits': {'train': entry}})


def speed(step, rng):
  """What telemetry measures, at 0.8 s a step."""
  spent = {'step': 0.8 * step, 'compile': 12.0, 'data': 0.05 * step, 'checkpoint': step // 200,
           'start': 3.0, 'other': 0.01 * step, 'eval': 0.0}
  total = sum(spent.values())
  rate = 4100 + 100 * rng.normal()
  return {'useful_tokens_per_second': rate, 'tokens_per_second': rate / 0.9,
          'documents_per_second': rate / 70, 'steps_per_second': 1.16, 'padding_fraction': 0.1,
          'blocks_skipped': 0.62, 'model_flops_per_second': 4.32e10, 'recompiles': 0,
          'time/total': total} | {f'time/{part}': t / total for part, t in spent.items()}


def write_metrics(workdir, steps=600):
  rng = np.random.default_rng(1)
  with metrics.Writer(workdir) as writer:
    for step in range(10, steps + 1, 10):
      ar, diffusion = 5.4 * math.exp(-step / 150) + 0.1, 4.6 * math.exp(-step / 400) + 1.6
      ar, diffusion = ar + 0.05 * rng.normal(), diffusion * math.exp(0.25 * rng.normal())
      writer.write(step, {'ar': ar, 'diffusion': diffusion, 'text_nll': ar,
                          'masked_nll': diffusion - 0.4, 'loss': ar + diffusion,
                          'learning_rate': 1e-3 * math.cos(step / steps * 1.5),
                          'grad_norm': 1 + rng.random(),
                          **speed(step, rng)})
    writer.write(steps, {'eval/text_nll': 0.13, 'eval/masked_nll': 2.1})


def write_evaluation(workdir, per_task=8):
  (workdir / 'samples').mkdir()
  for i, name in enumerate(('question', 'reference', 'roundtrip', 'generated')):
    wave = 0.2 * np.sin(np.arange(11025) * 0.05 * (i + 1))
    soundfile.write(workdir / 'samples' / f'{name}.wav', wave, 22050)
  sounds = {name: f'samples/{name}.wav'
            for name in ('question', 'reference', 'roundtrip', 'generated')}
  samples = []
  for i in range(per_task):
    right = i % 4 != 3
    samples += [
        {'task': 'audio_qa', 'id': f'q{i}', 'question_text': 'what is 3 + 4?',
         'reference_text': '7', 'generated_text': '7' if right else '9',
         'heard_text': 'seven' if right else 'nine', 'audio': sounds, 'correct': right},
        {'task': 'tts', 'id': f't{i}', 'question_text': '3 1 4', 'reference_text': '3 1 4',
         'generated_text': '3 1 4', 'heard_text': 'three <one> four',
         'audio': {**sounds, 'question': None}, 'correct': True},
        {'task': 'text_chat', 'id': f'c{i}', 'question_text': '3 + 4', 'reference_text': '7',
         'generated_text': '7', 'heard_text': None, 'audio': {}, 'correct': right}]
  evaluation = {
      'summary': {'asr_wer': 0.031, 'tts_wer_reference': 0.014, 'tts_wer_roundtrip': 0.027,
                  'tts_wer_generated': 0.042, 'audio_qa_wer_generated': 0.1}, 'samples': samples,
      'table': [['Transcription: word error rate', '3.1 %', '40 recordings, 178 words'],
                ['Spoken answers: text right', '90.0 %', '36 of 40'],
                ['Generated speech: word error rate', '4.2 %', 'by Whisper tiny.en'],
                ['  ceiling: original voice', '1.4 %', 'the same recogniser'],
                ['  ceiling: through the codec', '2.7 %', ''],
                ['Audio bound, nats per audio token', 2.41234, 'mean of 4 draws'],
                ['Length ratio', float('nan'), '']]}
  (workdir / 'evaluation.json').write_text(json.dumps(evaluation))
  return evaluation


def write_run(workdir):
  """A folder as prepare, train and evaluate leave it."""
  workdir.mkdir(exist_ok=True)
  config = config_lib.from_dict(config_lib.Config, {
      'name': 'small', 'vocab': {'text': 'bytes'}, 'train': {'steps': 600},
      'data': {'seq_len': 512, 'sources': [{'path': 'corpus/strings.jsonl', 'task': 'asr'}]}})
  (workdir / 'config.json').write_text(json.dumps(config_lib.to_dict(config)))
  write_data(workdir)
  write_metrics(workdir)
  return write_evaluation(workdir)


class Page(html.parser.HTMLParser):
  """The page's tags, and whether they nest."""

  VOID = {'meta', 'img', 'br', 'link'}

  def __init__(self, text):
    super().__init__()
    self.tags, self.open, self.words = [], [], []
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.words.append(data)

  def all(self, tag):
    return [attrs for name, attrs in self.tags if name == tag]

  @property
  def text(self):
    return ' '.join(' '.join(self.words).split())


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run')
  evaluation = write_run(workdir)
  path = report_lib.report(workdir)
  return workdir, evaluation, path.read_text(encoding='utf-8')


def test_the_page_needs_nothing_else(run):
  page = Page(run[2])
  assert not page.all('script') and not page.all('link') and not page.all('iframe')
  for tag in ('img', 'audio'):
    assert page.all(tag) and all(a['src'].startswith('data:') for a in page.all(tag))
  assert all(attrs['href'].startswith('#') for attrs in page.all('a'))
  ids = {attrs['id'] for _, attrs in page.tags if 'id' in attrs}
  assert {attrs['href'][1:] for attrs in page.all('a')} <= ids
  assert 'url(' not in run[2] and '@import' not in run[2]


def test_pictures_say_what_they_show_and_stand_beside_the_page(run):
  page = Page(run[2])
  assert all(attrs['alt'] for attrs in page.all('img'))
  names = {path.name for path in (run[0] / 'report').glob('[!.]*')}
  assert names == {'text_nll.png', 'masked_nll.png', 'ar.png', 'diffusion.png', 'loss.png',
                   'useful_tokens_per_second.png', 'learning_rate.png', 'grad_norm.png',
                   'staircase_record.png', 'staircase_part.png'}
  assert len(page.all('img')) == len(names)


def test_scores_and_samples(run):
  page = Page(run[2])
  for label, value, note in run[1]['table']:
    assert label.strip() in page.text and note in page.text
  assert '2.412' in page.text and 'nan' not in page.text.lower().replace('nance', '')
  assert 'Text correct in 6 of 8; the first 6 are shown.' in page.text
  assert 'Original recording Encoded and decoded Generated' in page.text
  assert 'Text to speech 1.4 % 2.7 % 4.2 %' in page.text
  assert 'Spoken questions – – 10.0 %' in page.text
  assert 'recognised: three <one> four' in page.text  # escaped in the HTML
  # audio_qa has four sounds a record and tts three; six records of each are shown.
  assert len(page.all('audio')) == 6 * (4 + 3)
  assert all(attrs['aria-label'] for attrs in page.all('audio'))


def test_facts_and_configuration(run):
  text = Page(run[2]).text
  assert '600 steps' in ' '.join(text.split()) or 'steps 600' in text
  assert 'data.seq_len 512' in text and 'model.hidden_size 256' in text


def test_speed_and_where_the_time_went(run):
  text = Page(run[2]).text
  assert 'Padding 10.0 % fraction of positions' in text and 'Attention skipped 62.0 %' in text
  assert 'Steps per second 1.16' in text and 'Model FLOP/s 43.2 GFLOP/s' in text
  assert 'MFU' not in text  # the peak is unknown
  # 600 steps of 0.86 s, 12 s to compile, 3 s for checkpoints, 3 s to start: 534 s.
  assert 'Of 8 min 54 s in total' in text
  assert 'Training 89.9 % 8 min 00 s: ' in text and 'Compiling 2.2 % 12 s: ' in text
  assert 'Evaluation 0' not in text and 'compiled again' not in text


def test_speed_of_another_run():
  lines = [{'step': 1, 'mfu': 0.4, 'recompiles': 2, 'useful_tokens_per_second': 2.5,
            'model_flops_per_second': 3.2e15, 'time/total': 2.0, 'time/step': 1.0}
           | {f'time/{part}': 0.0 for part in telemetry.PARTS if part != 'step'}]
  text = Page(report_speed.section(lines)).text
  assert '(MFU) 40.0 %' in text and '3.2 PFLOP/s' in text and 'second 2.5' in text
  assert 'compiled again 2 times' in text and 'Training 100.0 %' in text
  assert 'was not measured' in report_speed.section([{'step': 1, 'tokens_per_second': 4.0}])


def test_the_time_split_has_a_row_for_every_part():
  assert set(report_speed.PARTS) == set(telemetry.PARTS)


def test_an_empty_folder_gives_sentences(tmp_path):
  page = Page(report_lib.report(tmp_path).read_text())
  for command in ('prepare', 'train', 'evaluate'):
    assert f'ttt-jax {command}' in page.text
  assert 'Not evaluated yet' in page.text and not page.all('img')
  assert [path.name for path in tmp_path.iterdir()] == ['report.html']


def test_a_missing_sound_is_said(tmp_path):
  write_run(tmp_path)
  (tmp_path / 'samples' / 'generated.wav').unlink()
  assert 'generated.wav is missing' in Page(report_lib.report(tmp_path).read_text()).text


def test_nothing_from_data_becomes_html(tmp_path):
  """Ids, texts, tasks, labels and settings come from elsewhere, as may the files of a workdir."""
  evil = '<script>alert("$x$")</script>'
  write_run(tmp_path)
  config = json.loads((tmp_path / 'config.json').read_text())
  config['name'] = config['data']['sources'][0]['path'] = evil
  (tmp_path / 'config.json').write_text(json.dumps(config))
  found = json.loads((tmp_path / 'evaluation.json').read_text())
  found['table'].append([evil, evil, evil])
  found['samples'] = [{'task': evil, 'id': evil, 'question_text': evil, 'reference_text': evil,
                       'generated_text': evil, 'heard_text': evil, 'correct': False,
                       'audio': {'generated': f'samples/{evil}.wav'}}]
  (tmp_path / 'evaluation.json').write_text(json.dumps(found))
  page = report_lib.report(tmp_path).read_text()
  assert '<script' not in page and '"$x$"' not in page
  assert Page(page).text.count(evil) >= 8


@pytest.mark.parametrize('path, said', [
    ('../secret.wav', 'is outside of the workdir'), ('link.wav', 'is outside of the workdir'),
    ('/etc/passwd', 'is outside of the workdir'), ('config.json', 'config.json is not a sound')])
def test_only_sounds_of_the_run_are_embedded(tmp_path, path, said):
  workdir = tmp_path / 'run'
  workdir.mkdir()
  soundfile.write(tmp_path / 'secret.wav', np.zeros(800), 8000)
  (workdir / 'link.wav').symlink_to(tmp_path / 'secret.wav')
  (workdir / 'config.json').write_text('{}')
  (workdir / 'evaluation.json').write_text(json.dumps({'samples': [
      {'task': 'tts', 'id': 'a', 'audio': {'generated': path}}]}))
  page = Page(report_lib.report(workdir).read_text())
  assert said in page.text and not page.all('audio')


def test_mistakes_are_named(tmp_path):
  with pytest.raises(UserError, match='does not exist'):
    report_lib.report(tmp_path / 'none')
  (tmp_path / 'evaluation.json').write_text('{"table": [')
  with pytest.raises(UserError, match='evaluation.json is not JSON'):
    report_lib.report(tmp_path)
  assert not (tmp_path / 'report.html').exists()


def test_smoothing_has_no_start_up_bias():
  values = np.full(50, 3.0)
  np.testing.assert_allclose(plots.smooth(values, 10), values)
  noisy = 1 + np.random.default_rng(0).normal(size=400)
  assert plots.smooth(noisy, 40)[-200:].std() < 0.3 * noisy.std()
  assert plots.smooth(np.arange(5.0), 1).tolist() == [0, 1, 2, 3, 4]


def pixels(path):
  import matplotlib.image
  return (255 * matplotlib.image.imread(io.BytesIO(path.read_bytes()))[..., :3]).round().astype(int)


def test_the_staircase_picture_shows_the_mask(tmp_path):
  """Text a, a span of four codes, text b: the area of each colour counts its cells."""
  ids = np.array([97, *VOCAB.encode_codes([1, 2, 3, 4]), 98])
  row = make_row(VOCAB, [(1, ids, np.ones(6, int))], 6)
  start, end = np.zeros(6, int), np.array([1, 5, 5, 5, 5, 6])
  mask_plot.plot(tmp_path / 's.png', row, VOCAB.is_audio(ids), (start, end),
                    list('a1234b'), (0, 6))
  image = pixels(tmp_path / 's.png')
  areas = []
  for color in (mask_plot.TEXT_WASH, mask_plot.AUDIO_WASH, plots.AUDIO):
    rgb = [int(color[i:i + 2], 16) for i in (1, 3, 5)]
    areas.append(np.all(np.abs(image - rgb) <= 1, axis=-1).sum())
  cells = np.array([6 + 1, 10 + 4, 6])  # text keys, audio keys behind, audio keys ahead
  np.testing.assert_allclose(np.array(areas) / sum(areas), cells / cells.sum(), atol=0.02)
