"""Files of results, numbers with intervals, and the table."""

import json

import numpy as np
import pytest

from ttt_jax.data.records.records import Part
from ttt_jax.errors import UserError
from ttt_jax.evaluate.suites import reading, registry, results, runner, table
from ttt_jax.evaluate.suites.suite import Item, Metric, Reply, Result, Score


def item(name):
  return Item(name, reading.question(name, 'asr', (Part('text', 'what?'),), 'f:1'), ('one',))


def reply(text):
  return Reply(text, np.zeros(0, np.int32), None)


def result(number, **counts):
  return Result(number, str(number), '', counts, {})


def test_an_interrupted_file_goes_on_where_it_ended(tmp_path):
  file = results.ResultsFile(tmp_path / 'a.jsonl', {'suite': 'x', 'step': 1})
  for number in (2, 0):
    file.add(number, item(f'i{number}'), reply('one\u2028two'), Score({'n': 1, 'x': 0.5}), None)
  file.close()
  with open(tmp_path / 'a.jsonl', 'a', encoding='utf-8') as cut:
    cut.write('{"number": 1, "id": "i1", "gr')  # the process was killed
  again = results.ResultsFile(tmp_path / 'a.jsonl', {'suite': 'x', 'step': 1})
  assert sorted(again.done) == [0, 2] and again.done[2].counts == {'n': 1, 'x': 0.5}
  again.add(1, item('i1'), reply('ü'), Score({'n': 1}), None)
  again.close()
  third = results.ResultsFile(tmp_path / 'a.jsonl', {'suite': 'x', 'step': 1})
  assert [one.id for one in third.results()] == ['i0', 'i1', 'i2']
  assert third.done[1].line['text'] == 'ü'


def test_results_of_another_evaluation_are_replaced(tmp_path, caplog):
  file = results.ResultsFile(tmp_path / 'a.jsonl', {'step': 1})
  file.add(0, item('i'), reply(''), Score({}), None)
  with caplog.at_level('INFO'):
    assert not results.ResultsFile(tmp_path / 'a.jsonl', {'step': 2}).done
  assert 'another step' in caplog.text
  (tmp_path / 'b.jsonl').write_text('{"id": 3}\n')
  with pytest.raises(UserError, match='no file of results'):
    results.ResultsFile(tmp_path / 'b.jsonl', {'step': 2})


WER = Metric('wer', 'word error rate', ('errors', 'words'), digits=2, lower=True)


def test_rates_are_pooled_and_differences_are_paired():
  """Two checkpoints that differ by one error on every item: the difference has no spread."""
  first = [result(i, errors=i % 4, words=10) for i in range(40)]
  second = [result(i, errors=i % 4 + 1, words=10) for i in range(40)]
  found = results.numbers([[WER], [WER]], [first, second], draws=400)
  assert found.value['wer'] == pytest.approx([0.15, 0.25])
  assert found.low['wer'][0] < 0.15 < found.high['wer'][0]
  assert found.difference['wer'][1] == pytest.approx((0.1, 0.1, 0.1))
  entry = results.as_json(found, 1)['wer']
  assert entry['difference_low'] == pytest.approx(0.1) and entry['high'] > 0.25


def test_a_metric_may_be_any_function_of_sums():
  longer = Metric('m', 'm', ('a', 'b', 'c'), lambda sums: sums[..., 0] / sums[..., 1:].sum(-1))
  found = results.numbers([[longer]], [[result(0, a=1, b=1), result(1, a=2, c=3)]], draws=50)
  assert found.value['m'][0] == pytest.approx(3 / 4)


def test_the_table_has_80_columns_and_all_checkpoints():
  some = [[result(i, errors=i + k, words=10) for i in range(9)] for k in range(4)]
  found = results.numbers([[WER]] * 4, some, draws=50)
  lines = table.table(found, ['a' * 60, 'second', 'third', 'fourth'])
  assert max(map(len, lines)) <= 80
  text = '\n'.join(lines)
  assert text.count('word error rate, %') == 3 and 'fourth' in text and '+30.00' in text
  assert len(table.table(results.numbers([[WER]], some[:1], draws=50), ['one'])) == 2


def test_items_are_spread_evenly():
  assert runner.spaced(10, 4) == [0, 2, 5, 7] and runner.spaced(3, 0) == [0, 1, 2]
  assert runner.spaced(3, 9) == runner.spaced(3, -1) == [0, 1, 2]


def test_an_unknown_suite_is_one_sentence():
  with pytest.raises(UserError, match="'asrr', which is not a suite; did you mean asr"):
    registry.suite_class('asrr')
  assert all(registry.suite_class(name).name == name for name in registry.SUITES)


def test_lines_are_json_and_say_what_could_not_be_asked(tmp_path):
  file = results.ResultsFile(tmp_path / 'a.jsonl', {})
  unasked = Reply('', np.zeros(0, np.int32), None, problem='too long')
  file.add(0, item('i'), unasked, Score({}), None)
  line = json.loads((tmp_path / 'a.jsonl').read_text().splitlines()[1])
  assert line['problem'] == 'too long' and line['request'] == 'what?'
  assert line['references'] == ['one'] and line['heard'] is None
