"""'@FILE' in data.sources: the data config of the published code, as it is."""

import json

import pytest

from ttt_jax import config as configs
from ttt_jax.config import Source
from ttt_jax.errors import UserError

PUBLISHED = [{'path': 'your/asr_tts.json', 'sample_ratio': 1, 'data_type': 'IT'},
             {'path': '/abs/interleaved_zh.json', 'sample_ratio': 0.5, 'data_type': 'PT'}]
EXPECTED = (Source('your/asr_tts.json'), Source('/abs/interleaved_zh.json', repeat=0.5, type='PT'))


@pytest.fixture
def here(tmp_path, monkeypatch):
  """The current folder, with data_config.json and an empty config file."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'data_config.json').write_text(json.dumps(PUBLISHED))
  config(tmp_path, {})
  return tmp_path


def config(folder, data):
  (folder / 'config.py').write_text(f'def get_config():\n  return {{"data": {data!r}}}\n')


def test_it_is_accepted_wherever_sources_are(here):
  load = lambda **flags: configs.load('config.py', flags).data.sources
  assert load(**{'data.sources': '@data_config.json'}) == EXPECTED
  assert load(**{'data.sources': f'@{here}/data_config.json'}) == EXPECTED
  held = {'path': 'held.jsonl', 'split': 'heldout'}
  config(here, {'sources': ('@data_config.json', held)})
  assert load() == (*EXPECTED, Source('held.jsonl', split='heldout'))
  assert load(**{'data.sources': f'[{held!r}, "@data_config.json"]'}) == (
      Source('held.jsonl', split='heldout'), *EXPECTED)
  config(here, {'sources': '@data_config.json'})
  configs.save(configs.load('config.py'), here)
  assert configs.load(here / 'config.json').data.sources == EXPECTED


@pytest.mark.parametrize('entry,said', (
    ({'path': 'a.json', 'ratio': 1}, r"\[1\] has the key 'ratio'; did you mean 'sample_ratio'"),
    ({'path': 'a.json', 'data_type': 'it'}, r"\[1\] has the data_type 'it'; use 'IT' or 'PT'"),
    ({'path': 'a.json', 'data_type': ['IT']}, r'\[1\] has the data_type .*; use'),
    ({'sample_ratio': 1}, r'\[1\] has no "path"'),
    ({'path': ''}, r"\[1\] has the path ''; it must name"),
    ({'path': 'hf://bucket/a'}, r'\[1\]: path is hf://bucket/a, which is not a path on a disk'),
    ({'path': 'a.json', 'sample_ratio': -1}, r'\[1\] has the sample_ratio -1; it must be'),
    ({'path': 'a.json', 'sample_ratio': float('nan')}, r'\[1\] has the sample_ratio nan'),
    ({'path': 'a.json', 'sample_ratio': True}, r'\[1\] has the sample_ratio [Tt]rue'),
    ({'path': 'a.json', 'sample_ratio': 10**400}, r'\[1\] has the sample_ratio 1'),
    ('a.json', r"\[1\] is 'a.json'; it must be an object")))
def test_a_wrong_entry_is_named(here, entry, said):
  (here / 'data_config.json').write_text(json.dumps([PUBLISHED[0], entry]))
  with pytest.raises(UserError, match='data_config.json.*' + said) as error:
    configs.load('config.py', {'data.sources': '@data_config.json'})
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('text,said', (
    ('{"path": "a.json"}', 'a data config is a JSON list'), ('[', 'data_config.json'),
    ('[]', 'is an empty list'), ('[{"path": "a", "path": "b"}]', "'path'")))
def test_a_file_of_another_form_is_named(here, text, said):
  (here / 'data_config.json').write_text(text)
  with pytest.raises(UserError, match=said):
    configs.load('config.py', {'data.sources': '@data_config.json'})


def test_a_file_that_is_not_there_is_named(here):
  with pytest.raises(UserError, match=f"no file 'other.json' in {here}"):
    configs.load('config.py', {'data.sources': '@other.json'})
  with pytest.raises(UserError, match='is a folder; name a file'):
    configs.load('config.py', {'data.sources': '@.'})
