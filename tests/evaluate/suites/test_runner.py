"""A benchmark from files to numbers, on a small run."""

import json
import pathlib

import jax
import numpy as np
import pytest
import soundfile

from benchmarks import evaluate_suite
from tests import small_run
from tests.data import corpora_folders
from ttt_jax.config import MeshConfig
from ttt_jax.errors import UserError
from ttt_jax.evaluate.suites import answering, asr, runner
from ttt_jax.model import sharding
from ttt_jax.runs.report import suite_page
from ttt_jax.train import trained_model


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  """Seven recordings, of which one is silent and one is too long for the model."""
  folder = tmp_path_factory.mktemp('corpus')
  lines = []
  for i in range(7):
    seconds = 30 if i == 5 else 0.4 + 0.1 * i
    time = np.arange(int(16_000 * seconds)) / 16_000
    wave = (0 if i == 3 else 0.3) * np.sin(2 * np.pi * (200 + 50 * i) * time)
    soundfile.write(folder / f'{i}.wav', wave, 16_000)
    lines.append(json.dumps({'id': f'utt{i}', 'audio': f'{i}.wav', 'text': f'{i} two three'}))
  (folder / 'manifest.jsonl').write_text('\n'.join(lines) + '\n')
  return folder


def models(workdir, *steps, **evaluate):
  config = small_run.replace(small_run.config(), 'evaluate', **{'batch': 4} | evaluate)
  return [runner.Model(config, pathlib.Path(workdir), step) for step in steps]


def lines(folder, label):
  """The items of a file of results, without lines that are cut off."""
  out = []
  for line in (folder / f'{label}.jsonl').read_text().splitlines()[1:]:
    try:
      out.append(json.loads(line))
    except ValueError:
      pass
  return out


def test_checkpoints_side_by_side_and_a_killed_evaluation(workdir, corpus, tmp_path, monkeypatch):
  out = tmp_path / 'whole'
  summary = runner.evaluate('asr', corpus, models(workdir, 1, 2), out, sounds=2)
  name = workdir.name
  assert [one['label'] for one in summary['checkpoints']] == [f'{name}-1', f'{name}-2']
  assert json.loads((out / 'summary.json').read_text()) | {'folder': str(out)} == summary
  page = suite_page.write(out, summary).read_text()
  first, second = summary['checkpoints']
  assert first['not_asked'] == 2 and 'difference' in second['metrics']['wer']
  assert max(map(len, summary['table'])) <= 80
  assert 'could not be asked' in ' '.join(summary['table'])
  found = {line['number']: line for line in lines(out, f'{name}-2')}
  assert sorted(found) == list(range(7))
  assert 'cannot be encoded' in found[3]['problem'] and 'max_tokens' in found[5]['problem']
  assert all(line['counts']['wer_words'] == 3 for line in found.values())
  assert found[5]['counts']['wer_deletions'] == 3
  kept = [line['audio'] for line in found.values() if line['audio']]
  assert all((out / path).is_file() and f'src="{path}"' in page for path in kept)
  assert len(kept) <= 2 and page.count('utt6') >= 2 and 'word error rate' in page

  asked, replies, limit = [], answering.replies, 3

  def killed(run, items, judge=None):
    for count, reply in enumerate(replies(run, items, judge)):
      if count == limit:
        raise KeyboardInterrupt
      asked.append(reply[0])
      yield reply

  monkeypatch.setattr(answering, 'replies', killed)
  again = tmp_path / 'again'
  with pytest.raises(KeyboardInterrupt):
    runner.evaluate('asr', corpus, models(workdir, 2), again, sounds=2)
  with open(again / f'{name}-2.jsonl', 'a', encoding='utf-8') as cut:
    cut.write('{"number": 6, "id": "ut')
  limit = 9
  resumed = runner.evaluate('asr', corpus, models(workdir, 2), again, sounds=2)
  assert sorted(asked) == list(range(7))  # none twice
  assert resumed['checkpoints'][0]['metrics']['wer']['value'] == second['metrics']['wer']['value']
  assert {line['number']: line['text'] for line in lines(again, f'{name}-2')} == {
      number: line['text'] for number, line in found.items()}

  # All is there: nothing is answered.
  limit = 0
  runner.evaluate('asr', corpus, models(workdir, 1, 2), out, sounds=2)
  with pytest.raises(UserError, match='has the results of suite asr on'):
    runner.evaluate('asr', corpus / 'manifest.jsonl', models(workdir, 2), out)


def test_some_items(workdir, corpus, tmp_path):
  summary = runner.evaluate('spoken_qa', _questions(corpus, tmp_path), models(workdir, 2),
                            tmp_path / 'out', items=4, sounds=0)
  assert (summary['items'], summary['of']) == (4, 5)
  assert '4 of 5 items' in summary['table'][0]
  assert set(summary['checkpoints'][0]['metrics']) == {'text_accuracy'}


def _questions(corpus, tmp_path):
  (tmp_path / 'q.jsonl').write_text('\n'.join(
      json.dumps({'audio': str(corpus / '0.wav'), 'answers': ['one', str(i)]})
      for i in range(5)) + '\n')
  return tmp_path / 'q.jsonl'


@pytest.mark.slow
def test_batches_and_meshes_give_the_same_answers(workdir, corpus):
  """As the benchmark measures them: one request at a time and four, then four devices."""
  config = small_run.config()
  one, four = evaluate_suite.measure(config, workdir, corpus, 7, [1, 4], 1)
  assert one['texts'] == four['texts'] and len(one['texts']) == 7
  mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4])
  run = trained_model.load(config, workdir, mesh=mesh)
  asked = list(enumerate(asr.Asr(config).items(corpus)))
  assert {number: reply.text for number, _, reply in answering.replies(run, asked)} == one['texts']


def test_a_missing_checkpoint_or_judge_is_found_before_the_work(workdir, corpus, tmp_path):
  with pytest.raises(UserError, match='no checkpoint under'):
    runner.evaluate('asr', corpus, models(tmp_path, None), tmp_path / 'out')
  with pytest.raises(UserError, match="evaluate.judge is 'whisperr'.*did you mean 'whisper'"):
    runner.evaluate('spoken_qa', _questions(corpus, tmp_path),
                    models(workdir, 2, judge='whisperr'), tmp_path / 'out')


def test_a_part_of_the_items_and_other_parts_of_a_corpus_replace_nothing(
    workdir, corpus, tmp_path, monkeypatch):
  asked, replies = [], answering.replies
  monkeypatch.setattr(answering, 'replies', lambda run, items, judge=None: (
      asked.extend(number for number, _ in items) or replies(run, items, judge)))
  some = runner.evaluate('asr', corpus, models(workdir, 1), tmp_path, items=2, sounds=0)
  every = runner.evaluate('asr', corpus, models(workdir, 1), tmp_path, sounds=0)
  again = runner.evaluate('asr', corpus, models(workdir, 1), tmp_path, items=2, sounds=0)
  assert sorted(asked) == list(range(7)) and (some['items'], every['items']) == (2, 7)
  assert again['checkpoints'][0]['metrics'] == some['checkpoints'][0]['metrics']
  path = tmp_path / 'summary.json'
  path.write_text(path.read_text().replace('"subset": ""', '"subset": "test-other"'))
  with pytest.raises(UserError, match='--subset test-other; choose another folder with --out'):
    runner.evaluate('asr', corpus, models(workdir, 1), tmp_path)


def test_a_missing_recording_is_found_before_the_work(workdir, tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"audio": "b.wav", "text": "x"}\n')
  with pytest.raises(UserError, match='a.jsonl:1: there is no recording .*b.wav'):
    runner.evaluate('asr', tmp_path / 'a.jsonl', models(workdir, 1), tmp_path / 'out')
  with pytest.raises(UserError, match="^the suite needs records of task 'asr', but --data"):
    asr.Asr(small_run.config()).items(corpora_folders.clotho(tmp_path))
