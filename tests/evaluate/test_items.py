"""items.jsonl: what it keeps, what it refuses, and runs side by side."""

import numpy as np
import pytest

from ttt_jax.errors import UserError
from ttt_jax.evaluate import items


def line(name, task='asr', **scores):
  return {'task': task, 'id': name, 'scores': {key: list(pair) for key, pair in scores.items()}}


def test_lines_survive_the_file_and_pool_to_ratios_of_sums(tmp_path):
  lines = [line('ü\u2028x', wer=(1, 3)), line('b', wer=(0, 2), empty=(0, 0)), line('c', 'tts')]
  items.write(tmp_path, lines)
  assert items.read(tmp_path) == lines
  assert items.metrics(lines) == ['wer', 'empty']
  assert items.pooled(one['scores'] for one in lines) == {'wer': 1 / 5}
  assert items.read(tmp_path / 'none') == []


@pytest.mark.parametrize('text, expected', [
    ('{"task": "asr", "id": "a", "scores": {}}\n{"task"', 'line 2, is not JSON'),
    ('{"task": "asr", "id": "a"}\n', 'line 1, has no scores'),
    ('{"task": "asr", "id": "a", "scores": {"wer": [1]}}\n', 'scores.wer'),
])
def test_damaged_files(tmp_path, text, expected):
  (tmp_path / items.FILE).write_text(text)
  with pytest.raises(UserError, match=expected):
    items.read(tmp_path)


def test_another_programs_file_is_not_replaced(tmp_path):
  (tmp_path / items.FILE).write_text('{"sku": 1}\n')
  with pytest.raises(UserError, match='was not written by ttt-jax'):
    items.check_kind(tmp_path)


def test_runs_are_aligned_by_record_also_where_ids_repeat():
  one = [line('a', wer=(1, 4)), line('a', wer=(2, 4)), line('b', wer=(0, 1)), line('c', 'tts')]
  other = [line('b', wer=(1, 1)), line('a', wer=(3, 4)), line('a', wer=(4, 4))]
  found = items.matrix([one, other], 'wer')
  np.testing.assert_array_equal(found.value, [[1, 2, 0], [3, 4, 1]])
  np.testing.assert_array_equal(found.weight, [[4, 4, 1]] * 2)
  with pytest.raises(UserError, match="wer: m1 and m0 were evaluated on different records, such "
                                      "as 'b'"):
    items.matrix([one, other[1:]], 'wer', ['m0', 'm1'])
