"""The whole walk through the command line, tiny, on the token set that the repository keeps."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests import small_run
from tests.conftest import QUICK

ROOT = pathlib.Path(__file__).parents[1]
TINY = ('model.num_layers=1', 'model.hidden_size=32', 'model.num_attention_heads=2',
        'model.num_key_value_heads=1', 'model.head_dim=16', 'model.intermediate_size=32',
        'train.steps=4', 'train.batch_size=4', 'train.log_every=2',
        'data.stages=[{"split":"short","steps":2},{"split":"train"}]', 'evaluate.items=1',
        'evaluate.batch=4', 'evaluate.judge=none', 'evaluate.bound_samples=2',
        'generate.max_tokens=200', 'generate.max_span=40', 'generate.steps=2')


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A working directory with demo/speech where configs/demo.py looks for it."""
  folder = tmp_path_factory.mktemp('walk')
  (folder / 'demo').mkdir()
  (folder / 'demo' / 'speech').symlink_to(small_run.TOKENS)
  return folder


def walk(place, *words):
  """Run one command as a user does."""
  environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'XLA_FLAGS': QUICK}
  done = subprocess.run([sys.executable, '-m', 'ttt_jax.cli', *words], cwd=place, text=True,
                        capture_output=True, env=environment, check=False)
  assert 'Traceback' not in done.stderr, done.stderr
  return done


def test_the_walk(place):
  settings = [f'--config.{setting}' for setting in TINY]
  config = str(ROOT / 'configs' / 'demo.py')
  demo = place / 'demo'
  made = walk(place, 'prepare', '--config', config, '--workdir', 'demo', *settings)
  assert made.returncode == 0, made.stderr
  trained = walk(place, 'train', '--workdir', 'demo')
  assert trained.returncode == 0, trained.stderr
  assert 'train 4/4 (100 %)' in trained.stderr
  scored = walk(place, 'evaluate', '--workdir', 'demo')
  assert scored.returncode == 0, scored.stderr
  found = json.loads((demo / 'evaluation.json').read_text())
  assert {'text_nll', 'audio_bound', 'asr_wer', 'audio_qa_text_accuracy'} <= set(found['summary'])
  assert {sample['task'] for sample in found['samples']} == {'asr', 'tts', 'audio_qa'}
  answered = walk(place, 'generate', '--workdir', 'demo', '--task', 'tts', '--text', '3 1 4',
                  '--records', str(small_run.TOKENS / 'heldout_chat.jsonl'), '--out', 'answers')
  assert answered.returncode == 0, answered.stderr
  answers = json.loads((place / 'answers' / 'answers.json').read_text())
  assert len(answers) == 20 and answers[0]['prompt'] == '3 1 4'
  for answer in answers:
    assert (answer['audio'] is None) or (place / 'answers' / answer['audio']).is_file()
  reported = walk(place, 'report', '--workdir', 'demo')
  assert reported.returncode == 0, reported.stderr
  page = (demo / 'report.html').read_text()
  assert 'data:image/png;base64,' in page


@pytest.mark.parametrize('words, sentence', [
    (('train', '--workdir', 'nowhere', '--config', str(ROOT / 'configs' / 'demo.py')),
     'there is no prepared data in nowhere/data'),
    (('evaluate', '--workdir', 'empty', '--config', str(ROOT / 'configs' / 'demo.py')),
     'there is no prepared data'),
])
def test_a_walk_out_of_order_is_a_sentence(place, words, sentence):
  done = walk(place, *words)
  assert done.returncode == 2
  assert sentence in done.stderr and done.stderr.count('\n') == 1
  assert not (place / words[2]).exists()
