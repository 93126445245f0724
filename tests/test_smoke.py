"""One tiny run through every command, on the token set of the repository: `make smoke`.

The commands run in this process through the command line's ``main``; those that `supervise` and
`sweep` start are real processes. The order of the tests is the order of a run.
"""

import contextlib
import csv
import io
import json
import pathlib
import re
import shlex
import signal

import pytest

from tests import docs, small_run
from tests.conftest import QUICK
from ttt_jax.cli import main

# Some of the demo's sources, at most as often as they are.
SOURCES = [{'path': f'demo/speech/{name}.jsonl', 'split': split, 'task': task, 'prompt': prompt}
           for name, split, task, prompt in [
               ('train_chat', 'train', '', 'qa'), ('tables', 'train', '', ''),
               ('train_short', 'short', 'asr', 'asr'), ('train_short', 'train', 'tts', 'tts'),
               ('heldout_strings', 'heldout', 'asr', 'asr'),
               ('heldout_strings', 'heldout', 'tts', 'tts'),
               ('heldout_questions', 'heldout', '', 'qa')]]
TINY = {
    'model.num_layers': 1, 'model.hidden_size': 32, 'model.num_attention_heads': 2,
    'model.num_key_value_heads': 1, 'model.head_dim': 16, 'model.intermediate_size': 32,
    'model.scan_unroll': 1, 'train.steps': 2, 'train.batch_size': 4, 'train.log_every': 1,
    'train.tensorboard': 'false',
    'data.stages': '[{"split":"short","steps":1},{"split":"train"}]', 'data.workers': 1,
    'data.sources': json.dumps(SOURCES),
    'evaluate.items': 1, 'evaluate.batch': 4, 'evaluate.judge': 'none',
    'evaluate.bound_samples': 2, 'generate.max_tokens': 200, 'generate.max_span': 40,
    'generate.steps': 2, 'score.items': 1}
SETTINGS = [f'--config.{key}={value}' for key, value in TINY.items()]


@pytest.fixture(scope='module', autouse=True)
def place(tmp_path_factory):
  """The working directory: demo/speech where configs/demo.py looks for it; one device."""
  folder = tmp_path_factory.mktemp('smoke')
  (folder / 'demo').mkdir()
  (folder / 'demo' / 'speech').symlink_to(small_run.TOKENS)
  (folder / 'configs').symlink_to(docs.ROOT / 'configs')
  handlers = {number: signal.getsignal(number)
              for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
  with pytest.MonkeyPatch.context() as patch, small_run.one_device():
    patch.chdir(folder)
    # Processes that are started here: a plain CPU, and this checkout.
    patch.setenv('XLA_FLAGS', QUICK)
    patch.setenv('PYTHONPATH', str(docs.ROOT))
    yield folder
  for number, handler in handlers.items():  # `supervise` and `sweep` set their own
    signal.signal(number, handler)


@pytest.fixture(autouse=True)
def earlier(request, place):
  """What the tests before this one make, if another worker ran them."""
  name = request.node.name
  if name.startswith(('test_prepare', 'test_without', 'test_every')):
    return
  if not pathlib.Path('demo/data/manifest.json').exists():
    test_prepare()
  if name not in ('test_inspect', 'test_train') and not list(pathlib.Path('demo').glob(
      'checkpoints/*')):
    test_train()
  if name == 'test_status' and '"step": 4' not in pathlib.Path('demo/metrics.jsonl').read_text():
    test_supervise_resumes_in_a_process_of_its_own()


def run(command, *more, code=0):
  """Run one command line; returns what it wrote to standard output and error."""
  # Streams with a .buffer, to which `supervise` copies what its process writes.
  streams = [io.TextIOWrapper(io.BytesIO(), 'utf-8', write_through=True) for _ in range(2)]
  with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
    returned = main.main([*shlex.split(command)[1:], *more])
  out, err = (stream.buffer.getvalue().decode() for stream in streams)
  assert returned == code, err
  return out, err


def test_prepare():
  run('ttt-jax prepare --config configs/demo.py --workdir demo', *SETTINGS)
  assert pathlib.Path('demo/data/manifest.json').is_file()


def test_inspect():
  out, _ = run('ttt-jax inspect --workdir demo --document 17 --ids')
  assert out.count('\n') > 50
  run('ttt-jax inspect --workdir demo --record demo/speech/train_chat.jsonl:3')
  run('ttt-jax inspect --workdir demo --set')
  assert list(pathlib.Path('demo/inspect').glob('*.html'))


def test_train():
  _, err = run('ttt-jax train --workdir demo')
  assert 'train 2/2 (100 %)' in err


def test_supervise_resumes_in_a_process_of_its_own():
  config = json.loads(pathlib.Path('demo/config.json').read_text())
  config['train']['steps'] = 4
  pathlib.Path('demo/config.json').write_text(json.dumps(config))
  run('ttt-jax supervise --workdir demo -- ttt-jax train --workdir demo')
  lines = [json.loads(line) for line in pathlib.Path('demo/metrics.jsonl').read_text().splitlines()]
  assert [line['step'] for line in lines if 'loss' in line] == [1, 2, 3, 4]


def test_status():
  assert re.search(r'step +4 of 4', run('ttt-jax status --workdir demo')[0])


def test_evaluate():
  run('ttt-jax evaluate --workdir demo')
  found = json.loads(pathlib.Path('demo/evaluation.json').read_text())
  assert {'text_nll', 'audio_bound', 'asr_wer', 'audio_qa_text_accuracy'} <= set(found['summary'])
  assert {sample['task'] for sample in found['samples']} == {'asr', 'tts', 'audio_qa'}


def test_generate():
  lines = (small_run.TOKENS / 'heldout_chat.jsonl').read_text().splitlines()
  pathlib.Path('asked.jsonl').write_text('\n'.join(lines[:4]))
  run('ttt-jax generate --workdir demo --task tts --text "3 1 4" --out demo/answers',
      '--records', 'asked.jsonl')
  answers = json.loads(pathlib.Path('demo/answers/answers.json').read_text())
  assert len(answers) == 5 and answers[0]['prompt'] == '3 1 4'
  for answer in answers:
    assert answer['audio'] is None or pathlib.Path('demo/answers', answer['audio']).is_file()


def test_score():
  run('ttt-jax score --workdir demo --config.score.items=10', '--config.score.items=1')
  assert json.loads(pathlib.Path('demo/scores.json').read_text())


def test_report():
  run('ttt-jax report --workdir demo')
  assert 'data:image/png;base64,' in pathlib.Path('demo/report.html').read_text()


def test_weights_out_and_in():
  out, _ = run('ttt-jax export-hf --workdir demo --out demo/export')
  assert 'read back and verified' in out
  run('ttt-jax import-hf --hf demo/export --config demo/config.json --workdir imported '
      '--config.data.path=../demo/data')
  assert pathlib.Path('imported/checkpoints/0').is_dir()


def test_plan_by_formulas():
  out, _ = run('ttt-jax plan --workdir demo --topology h100:1 --json plan.json')
  assert 'fits' in out
  assert json.loads(pathlib.Path('plan.json').read_text())['fits'] is True


def test_sweep():
  pathlib.Path('rates.py').write_text(
      'from ttt_jax.runs import sweep\n\n\ndef get_sweep():\n'
      "  return sweep.product({'optimizer.learning_rate': [1e-3]})\n")
  run('ttt-jax sweep --sweep rates.py --config demo/config.json --workdir rates --jobs 2 '
      '--config.data.path=../demo/data --config.train.steps=1')
  row, = csv.DictReader(pathlib.Path('rates/sweep.csv').open())
  assert row['state'] == 'done' and row['step'] == '1'
  run('ttt-jax report --workdir rates')
  assert '1 done' in run('ttt-jax status --workdir rates')[0]


@pytest.mark.parametrize('command', ['train', 'evaluate'])
def test_without_prepared_data(command):
  _, err = run(f'ttt-jax {command} --workdir nowhere --config configs/demo.py', code=2)
  assert 'there is no prepared data in nowhere/data' in err and err.count('\n') == 1
  assert not pathlib.Path('nowhere').exists()


def test_every_command_ran():
  """Keeps the list above complete: a new command needs a test here."""
  text = pathlib.Path(__file__).read_text()
  elsewhere = {'serve', 'profile'}  # tests/serve, tests/train/test_profiling.py
  assert set(re.findall(r"'ttt-jax ([a-z-]+) --", text)) | {
      'train', 'evaluate'} | elsewhere == set(main.VERBS)
