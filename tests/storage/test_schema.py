"""JSON files against the type of their kind."""

from typing import Annotated, NotRequired

import pytest

from ttt_jax.errors import UserError
from ttt_jax.storage import schema


class Inner(schema.Kind):
  at: tuple[str, int | None]


class Outer(schema.Kind):
  count: schema.Count
  share: Annotated[float, schema.Range(0, 1)]
  name: NotRequired[schema.Name | None]
  inner: NotRequired[list[Inner]]
  scores: NotRequired[dict[str, Annotated[float, schema.ANY_NUMBER]]]


RIGHT = '{"count": 3, "share": 1, "more": [1, {}]'


def read(tmp_path, content):
  path = tmp_path / 'file.json'
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return schema.read(path, Outer, 'write it again')


@pytest.mark.parametrize('rest', [
    '}', ', "name": null}', ', "name": "a b.json"}', ', "inner": [{"at": ["x", null]}]}',
    ', "scores": {"a": NaN, "b": -Infinity, "c": 3}}'])
def test_right_files_are_read_with_keys_of_newer_versions(tmp_path, rest):
  assert read(tmp_path, RIGHT + rest)['more'] == [1, {}]


@pytest.mark.parametrize('content, sentence', [
    ('', r'is not JSON \(it is empty\)'), (b'\xff', r'is not JSON \(byte 0 is not UTF-8\)'),
    ('{', 'is not JSON'), ('[' * 10**5, 'is nested too deep'), ('9' * 5000, 'is not JSON'),
    ('[]', r'is \[\]; it must be a JSON object'), ('{"share": 1}', 'has no count, which must be'),
    ('{"count": -1}', 'has count = -1; it must be an integer from 0'),
    ('{"count": 1.0}', 'has count = 1.0; it must be an integer from 0'),
    ('{"count": true}', 'has count = True; it must be an integer from 0'),
    ('{"count": 1' + '0' * 400 + '}', r'has count = 1000.*\.\.\.; it must be an integer from 0'),
    ('{"count": 1, "share": 2}', 'has share = 2; it must be a number from 0 to 1'),
    ('{"count": 1, "share": NaN}', 'has share = nan; it must be a number from 0 to 1'),
    ('{"count": 1, "share": 1e999}', 'has share = inf; it must be a number from 0 to 1'),
    (RIGHT + ', "name": "../x"}', "has name = '../x'; it must be a name without /"),
    (RIGHT + ', "name": ".."}', "has name = '..'; it must be a name without /"),
    (RIGHT + ', "name": "a\\u0000"}', r"has name = 'a\\x00'; it must be a name without /"),
    (RIGHT + ', "name": 3}', 'has name = 3; it must be a name without /'),
    (RIGHT + ', "inner": {}}', 'has inner = {}; it must be a list'),
    (RIGHT + ', "inner": [{"at": ["x"]}]}', r"has inner\[0\].at = \['x'\]; it must be a list of 2"),
    (RIGHT + ', "inner": [{"at": ["x", "y"]}]}', r"has inner\[0\].at\[1\] = 'y'; it must be an i"),
    (RIGHT + ', "scores": {"a": "b"}}', "has scores.a = 'b'; it must be a number"),
])
def test_others_are_a_sentence(tmp_path, content, sentence):
  with pytest.raises(UserError, match=sentence) as error:
    read(tmp_path, content)
  assert '\n' not in str(error.value) and str(error.value).endswith('; write it again.')


def test_missing_files_and_folders(tmp_path):
  assert schema.read(tmp_path / 'none', Outer, 'x', optional=True) == {}
  with pytest.raises(UserError, match='none does not exist; x.'):
    schema.read(tmp_path / 'none', Outer, 'x')
  with pytest.raises(UserError, match='cannot be read .is a directory'):
    schema.read(tmp_path, Outer, 'x', optional=True)


def test_a_file_of_any_length_is_not_read(tmp_path, monkeypatch):
  monkeypatch.setattr(schema, 'MOST_BYTES', 8)
  with pytest.raises(UserError, match='is longer than 8 bytes'):
    read(tmp_path, RIGHT + '}')
