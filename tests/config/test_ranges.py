"""Every number among the settings has a range, and what is outside of it is named by its key."""

import dataclasses
import math
import typing

import pytest

from ttt_jax import config as config_lib
from ttt_jax.config import Config, ranges, settings
from ttt_jax.errors import UserError

GROUPS = [cls for cls in vars(settings).values()
          if isinstance(cls, type) and dataclasses.is_dataclass(cls)]
NUMBERS = [(cls, name) for cls in GROUPS for name, hint in typing.get_type_hints(cls).items()
           if hint in (int, float)]


def test_all_groups_are_found():
  assert {Config, config_lib.GenerateConfig, config_lib.Source, config_lib.LoraConfig} <= {*GROUPS}
  assert len(NUMBERS) > 80


@pytest.mark.parametrize('cls, name', NUMBERS, ids=lambda value: getattr(value, 'group', value))
def test_every_number_has_a_range_that_is_checked(cls, name):
  allowed = ranges.ranges(cls).get(name)
  assert allowed is not None, f'give {cls.__name__}.{name} a type of config/ranges.py'
  key = f'{cls.group}.{name}' if cls.group else name
  floating = typing.get_type_hints(cls)[name] is float
  outside = [allowed.low - 1, 10**20 if not floating else math.inf, -math.inf, math.nan]
  outside += [allowed.low] if allowed.open_low else []
  outside += [allowed.high] if allowed.open_high else []
  outside += [allowed.high + 0.5] if math.isfinite(allowed.high) else []
  for value in outside:
    with pytest.raises(UserError) as error:
      cls(**{name: value})
    assert str(error.value).startswith(f'config key {key} is {value}; it must be '), error.value
  default = next(field.default for field in dataclasses.fields(cls) if field.name == name)
  assert default in allowed


@pytest.mark.parametrize('key, text, expected', [
    ('seed', '-1', 'seed is -1; it must be in [0, 4294967295]'),
    ('seed', '99999999999999999999', 'seed is 99999999999999999999; it must be in'),
    ('data.threads', '-1', 'data.threads is -1; it must be at least 0.'),
    ('optimizer.beta1', '1.5', 'optimizer.beta1 is 1.5; it must be in [0, 1).'),
    ('optimizer.weight_decay', '-0.1', 'optimizer.weight_decay is -0.1; it must be at least 0.'),
    ('optimizer.eps', '0', 'optimizer.eps is 0.0; it must be above 0.'),
    ('optimizer.learning_rate', '1' + '0' * 400, 'learning_rate is inf; it must be above 0 and'),
    ('optimizer.learning_rate', '1e999', 'learning_rate is inf; it must be above 0 and finite.'),
    ('evaluate.items', '-3', 'evaluate.items is -3; it must be at least 0.'),
    ('evaluate.batch', '0', 'evaluate.batch is 0; it must be at least 1.'),
    ('mesh.fsdp', '0', 'mesh.fsdp is 0; it must be at least 1, or -1.'),
])
def test_the_sentences(tmp_path, key, text, expected):
  (tmp_path / 'c.py').write_text('def get_config():\n  return {}\n')
  with pytest.raises(UserError) as error:
    config_lib.load(tmp_path / 'c.py', {key: text})
  assert expected in str(error.value)
