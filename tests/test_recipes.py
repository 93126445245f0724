"""docs/recipes.md, from tiny corpora to its table: `make test-recipes`.

Every command of the page runs as it stands, with /data as a folder of tiny corpora, and with a tiny
model. Left out are `plan`, which compiles at full size, `import-hf`, which needs Qwen2.5 (stage 1
begins with random parameters), and spoken questions, which need a recogniser.
"""

import json
import shlex

import pytest

from tests import docs, small_run
from tests.data import corpora_folders
from tests.data.prepare import tone
from ttt_jax.cli import main
from ttt_jax.config import user_classes

PAGE = 'docs/recipes.md'
LEFT_OUT = ('plan', 'import-hf')
TINY = {
    'vocab.text': 'bytes', 'vocab.tokenizer': '', 'codec.name': tone.NAME,
    'codec.weights': '', 'data.seq_len': 1024, 'data.workers': 2,
    'model.num_layers': 1, 'model.hidden_size': 32, 'model.num_attention_heads': 2,
    'model.num_key_value_heads': 1, 'model.head_dim': 16, 'model.intermediate_size': 32,
    'model.remat': 'none', 'model.vocab_multiple': 64,
    'train.epochs': 0, 'train.steps': 3, 'train.batch_size': 8, 'train.log_every': 1,
    'train.eval_every': 0, 'train.tensorboard': 'false',
    'mesh.fsdp': -1}
ASKED = {'generate.max_tokens': 400, 'generate.max_span': 40, 'generate.steps': 2,
         'generate.guidance': 0, 'evaluate.judge': 'none'}
COMMANDS = [words for page, words in docs.command_lines()
            if page == PAGE and words[0] == 'ttt-jax' and words[1] not in LEFT_OUT
            and 'spoken_qa' not in words]


def tiny(words, data):
  """A command of the page for the tiny corpora and the tiny model."""
  out = [word.replace('/data/', f'{data}/').replace('data.root=/data', f'data.root={data}')
         for word in words[1:] if not word.startswith('--config.hardware=')]
  settings = TINY if words[1] in ('prepare', 'train') else ASKED
  return out + [f'--config.{key}={value}' for key, value in settings.items()]


@pytest.mark.slow
def test_the_page_leads_from_corpora_to_the_table(tmp_path, monkeypatch, capsys):
  data = corpora_folders.recipes(tmp_path / 'data')
  (tmp_path / 'configs').symlink_to(docs.ROOT / 'configs')
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('XDG_CONFIG_HOME', str(tmp_path))
  monkeypatch.setenv(user_classes.VARIABLE, tone.NAME)
  assert [words[1] for words in COMMANDS[:4]] == ['prepare', 'train'] * 2
  with small_run.one_device():
    for words in COMMANDS:
      assert main.main(tiny(words, data)) == 0, f'{shlex.join(words)}: {capsys.readouterr().err}'
  first, second = tmp_path / 'runs' / 'pretrain_3b', tmp_path / 'runs' / 'after_pretrain_3b'
  made = json.loads((second / 'data' / 'manifest.json').read_text())
  tasks = {task for split in made['splits'].values() for task in split['tasks']}
  assert tasks == {'asr', 'tts', 'audio_chat', 'aac', 'sec', 'asc', 'pt', 'other'}
  assert [json.loads((run / 'status.json').read_text())['step'] for run in (first, second)] == [
      3, 3]
  assert json.loads((second / 'config.json').read_text())['train']['init_from'] == (
      'runs/pretrain_3b')
  tables = [json.loads(path.read_text()) for run in (first, second)
            for path in run.glob('suites/*/summary.json')]
  assert sorted((one['suite'], len(one['checkpoints']), one['items']) for one in tables) == [
      ('asr', 1, 2), ('asr', 1, 2), ('asr', 2, 4), ('captioning', 1, 1)]
