"""The config: defaults, checks, and errors that suggest the right key or value."""

import json
import pathlib

import pytest

from ttt_jax import config as config_lib
from ttt_jax.config import Config
from ttt_jax.errors import UserError

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / 'configs').glob('*.py'))


def write(tmp_path, body):
  path = tmp_path / 'c.py'
  path.write_text('from ml_collections import ConfigDict\n\n\ndef get_config():\n  ' + body)
  return str(path)


def test_there_is_a_demo():
  assert 'demo.py' in [path.name for path in CONFIGS]


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_loads_and_says_what_it_is(path):
  config = config_lib.load(str(path))
  assert config_lib.from_dict(Config, json.loads(json.dumps(config_lib.to_dict(config)))) == config
  first = path.read_text().split('"""')[1]
  assert 'ttt-jax ' in first or 'make ' in first, 'the docstring opens with its command'


def test_file_and_overrides(tmp_path):
  path = write(tmp_path, "return ConfigDict({'name': 'x', 'model': {'num_layers': 2},\n"
                         "    'data': {'sources': [{'path': 'a.jsonl'}]}})")
  config = config_lib.load(path, {
      'model.num_layers': '4', 'optimizer.learning_rate': '3', 'data.shuffle': 'false',
      'train.init_from': '12', 'data.stages': "[{'split': 'a', 'steps': 5}, {}]"})
  assert (config.name, config.model.num_layers, config.data.shuffle) == ('x', 4, False)
  assert config.optimizer.learning_rate == 3.0 and config.train.init_from == '12'
  assert config.data.sources[0] == config_lib.Source('a.jsonl')
  assert config.data.stages == (config_lib.Stage('a', 5), config_lib.Stage())
  assert config.model.hidden_size == Config().model.hidden_size


def test_a_mix_comes_from_files_and_flags_and_survives_json(tmp_path):
  expected = (config_lib.Stage(mix={'asr': 2.0, 'tts': 0.5}, steps=5),
              config_lib.Stage(mix={'tts': 1.0}))
  said = "({'mix': {'asr': 2, 'tts': 0.5}, 'steps': 5}, {'mix': {'tts': 1}})"
  for body, overrides in ((f"return ConfigDict({{'data': {{'stages': {said}}}}})", {}),
                          (f"return {{'data': {{'stages': {said}}}}}", {}),
                          ('return ConfigDict({})', {'data.stages': said})):
    config = config_lib.load(write(tmp_path, body), overrides)
    assert config.data.stages == expected
    config_lib.save(config, tmp_path)
    assert config_lib.load(str(tmp_path / 'config.json')) == config
    hash(config)  # a config may be a static argument of a jitted function
  assert list(expected[0].splits().items()) == [('asr', 2.0), ('tts', 0.5)]
  assert config_lib.Stage('a').splits() == {'a': 1.0}


@pytest.mark.parametrize('overrides, expected', [
    ({'model.layer': '4'}, 'did you mean model.num_layers'),
    ({'modle.layers': '4'}, 'did you mean model'),
    ({'num_layers': '4'}, 'did you mean model.num_layers'),
    ({'data.sources': "[{'pth': 'a'}]"}, 'did you mean data.sources[0].path'),
    ({'model.num_layers': 'four'}, "config key model.num_layers is 'four' (str); it must be int"),
    ({'model.num_layers': '2.5'}, 'config key model.num_layers is 2.5 (float); it must be int'),
    ({'model.num_layers': 'true'}, 'it must be int'),
    ({'data.shuffle': '1'}, 'it must be bool'),
    ({'data.stages': 'train'}, 'config key data.stages'),
    ({'data.stages': "[{'mix': {}}]"}, 'a mix is empty'),
    ({'data.stages': "[{'mix': ['asr']}]"}, "data.stages[0].mix is ['asr']; it must be names"),
    ({'data.stages': "[{'mix': {'asr': 'two'}}]"}, "data.stages[0].mix.asr is 'two' (str)"),
    ({'data.stages': "[{'mix': {'asr': True}}]"}, 'data.stages[0].mix.asr is True'),
    ({'data.stages': "[{'mix': {'asr': 1, 'tts': 0}}]"}, "split 'tts' in a mix is 0.0; it must be"),
    ({'data.stages': "[{'mix': {'asr': -1}}]"}, 'must be a positive number'),
    ({'data.stages': "[{'mix': {'asr': 1e999}}]"}, 'must be a positive number'),
    ({'data.stages': "[{'mix': {'asr': 1, 'tts': 1e-9}}]"}, 'less than 1/65,536 of the sum'),
    ({'data.stages': "[{'split': 'a', 'mix': {'asr': 1}}]"}, "both split 'a' and mix"),
    ({'model': '3'}, 'config key model is a group'),
    ({'model.num_layers.x': '3'}, 'has too many parts'),
    ({
        'model.num_attention_heads': '5'
    }, 'model.num_attention_heads=5 and model.num_key_value_heads=2'),
    ({'model.head_dim': '7'}, 'model.head_dim is 7'),
    ({'train.grad_accum_steps': '3'}, 'the rows must divide evenly'),
    ({'objective.ppm': '1.5'}, 'objective.ppm is 1.5'),
    ({'objective.mode': 'both'}, "objective.mode is 'both'"),
    ({'mesh.data': '-1'}, 'at most one is -1'),
    ({'vocab.text': 'qwen2.5'}, 'vocab.tokenizer'),
    ({'generate.top_p': '0'}, 'generate.top_p is 0'),
])
def test_a_mistake_is_named(tmp_path, overrides, expected):
  with pytest.raises(UserError) as error:
    config_lib.load(write(tmp_path, 'return ConfigDict({})'), overrides)
  assert expected in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('body, expected', [
    ("return {'optimiser': {}}", 'did you mean optimizer?'),
    ("return {'model': 3}", 'config key model is 3'),
    ("return {'model': {'xyzzy': 3}}", 'known here: num_layers'),
    ('return {', 'line 5'),
])
def test_a_mistake_in_the_file_is_named(tmp_path, body, expected):
  path = write(tmp_path, body)
  with pytest.raises(UserError) as error:
    config_lib.load(path)
  assert expected in str(error.value)


def test_no_file_and_no_function(tmp_path):
  with pytest.raises(UserError, match='does not exist'):
    config_lib.load(str(tmp_path / 'none.py'))
  (tmp_path / 'empty.py').write_text('x = 1\n')
  with pytest.raises(UserError, match='no get_config'):
    config_lib.load(str(tmp_path / 'empty.py'))


def test_round_trip_keeps_every_value():
  config = config_lib.from_dict(Config, {
      'seed': 7, 'data': {'sources': [{'path': 'x', 'prompt': None}, {'prompt': ''}],
                          'stages': [{'split': 'a', 'steps': 3}, {'split': 'b'}]},
      'optimizer': {'learning_rate': 1e-3}})
  assert config_lib.from_dict(Config, json.loads(json.dumps(config_lib.to_dict(config)))) == config


def test_the_preset_of_generation(tmp_path):
  """Values beside its name win over it, in a file and on the command line; stored ones do not."""
  path = write(tmp_path, "return {'generate': {'preset': 'published', 'steps': 5, 'top_k': 0}}")
  config = config_lib.load(path, {'generate.guidance': '0'})
  got = config.generate
  assert (got.block, got.steps, got.top_k, got.top_p, got.guidance) == (26, 5, 0, 0.95, 0.0)
  config_lib.save(config, tmp_path)
  assert config_lib.load(tmp_path / 'config.json') == config
  stored = write(tmp_path, "return {'generate': {'steps': 5, 'rule': 'margin', 'max_tokens': 90}}")
  config_lib.save(config_lib.load(stored), tmp_path)
  got = config_lib.load(tmp_path / 'config.json', {
      'generate.block': '7', 'generate.preset': 'published'}).generate
  assert (got.block, got.steps, got.rule, got.max_tokens) == (7, 2, 'confidence', 90)
  with pytest.raises(UserError, match="generate.rule is 'margin', but generate.preset is"):
    config_lib.load(tmp_path / 'config.json', {
        'generate.preset': 'published', 'generate.rule': 'margin'})
  with pytest.raises(UserError, match="generate.preset is 'paper'; use 'default' or 'published'"):
    config_lib.load(tmp_path / 'config.json', {'generate.preset': 'paper'})


def test_hardware_needs_a_file_with_presets(tmp_path):
  path = write(tmp_path, "return {'name': 'x', 'presets': {'h100-1': {'train': {'steps': 7}}}}")
  taken = config_lib.load(path, {'hardware': 'h100-1'})
  assert taken.train.steps == 7
  config_lib.save(taken, tmp_path)
  assert config_lib.load(tmp_path / 'config.json', {'hardware': 'h100-1'}) == taken
  with pytest.raises(UserError, match="hardware is 'h100-8', but .*config.json has no presets"):
    config_lib.load(tmp_path / 'config.json', {'hardware': 'h100-8'})
