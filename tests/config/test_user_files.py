"""Mistakes in a user's config file, and paths in it: one sentence with file, line and message."""

import os
import pathlib
import re

import pytest

from ttt_jax import config as config_lib
from ttt_jax.cli import main
from ttt_jax.config import paths
from ttt_jax.data.records import readers
from ttt_jax.errors import UserError
from ttt_jax.runs import sweep


def load(tmp_path, text, name='c.py', **overrides):
  (tmp_path / name).write_text(text)
  return config_lib.load(tmp_path / name, {
      key.replace('__', '.'): value for key, value in overrides.items()})


@pytest.mark.parametrize('text, expected', [
    ('def get_config():\n  return {"train": {"steps": ROWS}}\n',
     "c.py, line 2: name 'ROWS' is not defined."),
    ('import my_paths_that_nobody_has\n', "c.py, line 1: No module named 'my_paths_that_nobody"),
    ('from ml_collections import ConfigDict\n\ndef get_config():\n  c = ConfigDict()\n'
     '  c.train.steps = 3\n  return c\n', 'c.py, line 5: AttributeError: '),
    ('def get_config():\n  return 1 // 0\n', 'c.py, line 2: ZeroDivisionError: '),
    ('def get_config():\n  def inner():\n    return {}["x"]\n  return inner()\n',
     "c.py, line 3: KeyError: 'x'."),
    ('import json\ndef get_config():\n  return json.loads("{")\n', 'c.py, line 3: JSONDecodeError'),
    ('class E(Exception):\n  def __str__(self): raise ValueError\nraise E\n',
     'c.py, line 3: E: its message cannot be read.'),
    ('raise ValueError("many words " * 9999)\n', 'c.py, line 1: ValueError: many words'),
    ('x = 1\0\n', 'c.py: source code string cannot contain null bytes.'),
    ('import sys\nsys.exit("no")\n', 'c.py, line 2: SystemExit: no.'),
    ('def get_config(rows):\n  return {}\n', 'TypeError: get_config() missing 1 required'),
    ('def get_config():\n  return {\n', 'c.py, line 2: '),
    ('def get_config():\n  pass\n', 'get_config() returns None; it must return an ml_coll'),
    ('def get_config():\n  return [1]\n', 'get_config() returns list; it must return'),
    ('get_config = 3\n', "TypeError: 'int' object is not callable"),
    ('def get_config():\n  return {1: 2}\n', 'c.py: config key 1 is unknown'),
    ('def get_config():\n  return {"model": 3}\n', 'config key model is 3; it must be a group'),
    ('def get_config():\n  return {"presets": [1]}\n', 'presets is [1]; it must be a dict'),
])
def test_a_mistake_in_a_config_file_is_a_sentence(tmp_path, monkeypatch, text, expected):
  with pytest.raises(UserError) as error:
    load(tmp_path, text, model__num_layers='2')
  monkeypatch.chdir(tmp_path)  # users name the file relative to the current directory
  with pytest.raises(UserError) as relative:
    config_lib.load('c.py', {'model.num_layers': '2'})
  assert str(relative.value) == str(error.value).replace(f'{tmp_path}/c.py', 'c.py')
  assert expected in str(error.value) and '\n' not in str(error.value)
  assert len(str(error.value)) < 700


@pytest.mark.parametrize('name, text, expected', [
    ('x.yaml', 'train:\n  steps: 20\n', 'is neither a Python file (.py) with get_config() nor a'),
    ('x', '', 'is neither a Python file'),
    ('list.json', '["a"]', "list.json is ['a']; it must be a JSON object; it"),
    ('n.json', '3', 'n.json is 3; it must be a JSON object'),
    ('deep.json', '[' * 100_000, 'is not JSON'),
    ('broken.json', '{', 'is not JSON'),
    ('config.json', '{"architectures": ["T"], "model_type": "qwen2"}', 'is that of a Hugging Face'),
])
def test_a_file_of_another_kind_is_a_sentence(tmp_path, name, text, expected):
  with pytest.raises(UserError) as error:
    load(tmp_path, text, name)
  assert expected in str(error.value)
  with pytest.raises(UserError, match='is a folder'):
    config_lib.load(tmp_path)


def test_settings_may_be_groups_of_settings(tmp_path):
  text = ('from ttt_jax.config import ModelConfig\n\ndef get_config():\n'
          '  return {"model": ModelConfig(num_layers=3)}\n')
  assert load(tmp_path, text, model__hidden_size='32').model == config_lib.ModelConfig(
      num_layers=3, hidden_size=32)


def test_a_sweep_file_raises_the_same_way(tmp_path):
  (tmp_path / 's.py').write_text('def get_sweep():\n  return [x]\n')
  with pytest.raises(UserError, match="sweep file .*s.py, line 2: name 'x' is not defined"):
    sweep.load(tmp_path / 's.py')


def test_the_home_folder_is_expanded_everywhere(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  config = load(tmp_path, 'def get_config():\n  return {"data": {"path": "~/rows", "sources": ['
                '{"path": "~/a.jsonl"}]}, "train": {"init_from": "~/run"}}\n',
                vocab__tokenizer='~/tokenizer.json')
  assert config.data.path == f'{tmp_path}/rows' and config.train.init_from == f'{tmp_path}/run'
  assert config.data.sources[0].path == f'{tmp_path}/a.jsonl'
  assert config.vocab.tokenizer == f'{tmp_path}/tokenizer.json'
  for words in (['export-hf', '--workdir=~/w', '--out=~/o'], ['import-hf', '--workdir', 'w',
                '--hf=~/hf', '--adapter=~/a'], ['generate', '--workdir', 'w', '--out', 'o',
                                               '--records=~/r', '--audio=~/a.wav']):
    args, _ = main._parse(words)
    named = [value for value in vars(args).values() if isinstance(value, str) and '/' in value]
    named += [item for value in vars(args).values() if isinstance(value, list) for item in value]
    assert named and all(value.startswith(str(tmp_path)) for value in named), named


@pytest.mark.parametrize('address, expected', [
    ('hf://datasets/x', 'hf download'),
    ('https://host/x.jsonl', 'name the copy'), ('file:///data/x', 'leave file:// out')])
def test_an_address_is_refused(tmp_path, capsys, address, expected):
  for key in ('data.path', 'train.init_from', 'vocab.tokenizer', 'codec.weights'):
    with pytest.raises(UserError) as error:
      load(tmp_path, 'def get_config():\n  return {}\n', **{key.replace('.', '__'): address})
    assert f'config key {key} is {address}, which is not a path on a disk; ' in str(error.value)
  with pytest.raises(UserError, match=r'data\.sources\[0\]\.path is'):
    load(tmp_path, 'def get_config():\n  return {"data": {"sources": [{"path": '
         f'{address!r}}}]}}}}\n')
  assert main.main(['prepare', '--config', str(tmp_path / 'c.py'), '--workdir', address]) == 2
  assert f'--workdir is {address}' in capsys.readouterr().err
  assert expected in str(error.value) or expected in _message(address)
  assert not pathlib.Path(address.partition('/')[0]).exists()


@pytest.mark.parametrize('written, right', [
    ('gs:/bucket/x', 'gs://bucket/x'), ('gs:bucket/x', 'gs://bucket/x'), ('s3:/b', 's3://b'),
    ('gs//bucket/x', 'gs://bucket/x'), (' gs://bucket/x', 'gs://bucket/x'),
    ('s3:', 's3://BUCKET/NAME'), ('GS://bucket/x', 'gs://bucket/x')])
def test_a_url_that_is_not_quite_one_names_no_folder(tmp_path, capsys, monkeypatch, written, right):
  monkeypatch.chdir(tmp_path)
  assert main.main(['status', '--workdir', written]) == 2
  said = capsys.readouterr().err
  assert written in said and f'write {right}' in said and said.count('\n') == 1, said
  with pytest.raises(UserError, match=f'config key data.path .*write {right}'):
    load(tmp_path, 'def get_config():\n  return {}\n', data__path=written)
  assert main.main(['status', '--workdir', 'gs://bucket/']) == 2
  assert '--workdir is gs://bucket, a whole bucket' in capsys.readouterr().err


def test_folders_whose_names_resemble_urls(tmp_path):
  for name in ('./gs:/x', 'gs/x', 'gs', 's3/x', '/a/gs://x', 'gs-data:x'):
    assert paths.local(name, '--workdir', bucket=True) == name


def test_data_may_be_in_a_bucket(tmp_path):
  text = 'def get_config():\n  return {"data": {"sources": [{"path": "s3://bucket/a/*.jsonl"}]}}\n'
  found = load(tmp_path, text, data__path='gs://bucket/data/')
  assert found.data.path == 'gs://bucket/data' and found.data.sources[0].path[:5] == 's3://'
  with pytest.raises(UserError, match='config key data.path.*write gs://bucket/data'):
    load(tmp_path, text, data__path='gcs://bucket/data')
  with pytest.raises(UserError, match='mount the bucket'):
    paths.local('gs://bucket/x', '--out')


def _message(address):
  with pytest.raises(UserError) as error:
    paths.local(address, '--out')
  return str(error.value)


def test_a_workdir_may_have_the_characters_of_patterns(tmp_path):
  folder = tmp_path / 'run[1]' / 'a'
  folder.mkdir(parents=True)
  for name in ('x.jsonl', 'y.jsonl'):
    (folder / name).touch()
  workdir = tmp_path / 'run[1]'
  assert readers.find('a/*.jsonl', [workdir]) == [folder / 'x.jsonl', folder / 'y.jsonl']
  assert readers.find('a/x.jsonl', [workdir]) == [folder / 'x.jsonl']


@pytest.mark.parametrize('name, expected', [
    ('a\0b', r"'a\\x00b'; it must have no NUL character"),
    ('a\udce9b', r"'a\\udce9b', whose name is not UTF-8"), ('', 'is empty')])
def test_a_name_that_no_library_takes_is_refused(tmp_path, capsys, name, expected):
  assert main.main(['status', f'--workdir={name}']) == 2
  assert re.search(f'--workdir (is )?{expected}', capsys.readouterr().err)
  if name:
    with pytest.raises(UserError, match=f'config key data.path is {expected}'):
      load(tmp_path, 'def get_config():\n  return {}\n', data__path=name)


def test_other_names_are_left_alone():
  for name in ('', 'a/b', 'run[1]', 'C:/x', 'a:b//c', './~', 'x~'):
    assert paths.local(name, '--out') == name
  assert paths.local('~', '--out') == os.path.expanduser('~')
