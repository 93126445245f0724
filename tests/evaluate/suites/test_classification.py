"""Suite 'classification': labels in answers, accuracy, macro F1, confusions."""

import json
import pathlib

import numpy as np
import pytest

from tests import small_run
from ttt_jax.errors import UserError
from ttt_jax.evaluate.suites import classification, results
from ttt_jax.evaluate.suites.suite import Reply, Result


def read(tmp_path, *labels, task=''):
  (tmp_path / 'a.jsonl').write_text('\n'.join(
      json.dumps({'audio': f'{i}.wav', 'label': label}) for i, label in enumerate(labels)) + '\n')
  suite = classification.Classification(small_run.config(), task)
  return suite, suite.items(tmp_path / 'a.jsonl')


def score(suite, items, *texts):
  out = []
  for number, (item, text) in enumerate(zip(items, texts, strict=True)):
    found = suite.score(item, Reply(text, np.zeros(0, np.int32), None))
    out.append(Result(number, item.id, '', found.counts, found.shown))
  return out


def test_the_first_label_of_an_answer_is_the_prediction(tmp_path):
  suite, items = read(tmp_path, 'dog', 'car horn', 'car', 'street_traffic')
  rows = score(suite, items, 'A dog, not a car.', 'This is a car horn.', 'a dog', 'no idea')
  assert [row.line['predicted'] for row in rows] == [['dog'], ['car horn'], ['dog'], []]
  found = results.numbers([suite.metrics(rows)], [rows], draws=200)
  assert found.value['accuracy'][0] == 0.5
  # F1: dog 2/3, car horn 1, car 0, street_traffic 0.
  assert found.value['macro_f1'][0] == pytest.approx((2 / 3 + 1) / 4)
  assert found.value['named'][0] == 0.75 and found.value['contained'][0] == 0.5
  assert found.low['macro_f1'][0] <= found.value['macro_f1'][0] <= found.high['macro_f1'][0]
  assert suite.more(rows)['confusion'] == {
      'car': {'dog': 1}, 'car horn': {'car horn': 1}, 'dog': {'dog': 1},
      'street_traffic': {classification.NONE: 1}}


def test_a_label_is_found_however_it_is_written(tmp_path):
  suite, items = read(tmp_path, 'street_traffic', 'park', task='asc')
  assert suite.named('It was recorded in Street-Traffic!') == ['street_traffic']
  assert suite.named('in a car park and a park') == ['park']
  assert items[0].record.task == 'asc' and suite.settings == {'task': 'asc'}


def test_several_labels_of_a_sound(tmp_path):
  suite, items = read(tmp_path, 'birds singing, footsteps', 'footsteps')
  rows = score(suite, items, 'footsteps and birds singing', 'birds singing and footsteps')
  found = results.numbers([suite.metrics(rows)], [rows], draws=50)
  assert found.value['accuracy'][0] == 0.5 and found.value['contained'][0] == 1
  assert found.value['macro_f1'][0] == pytest.approx((2 / 3 + 1) / 2)


def test_esc_50(tmp_path):
  for name in ('meta', 'audio'):
    (tmp_path / name).mkdir()
  (tmp_path / 'meta' / 'esc50.csv').write_text(
      'filename,fold,target,category,esc10,src_file,take\n1-1-A-0.wav,1,0,dog,True,1,A\n'
      '1-2-A-1.wav,1,1,clock_tick,True,2,A\n')
  for name in ('1-1-A-0.wav', '1-2-A-1.wav'):
    (tmp_path / 'audio' / name).write_bytes(b'')
  suite = classification.Classification(small_run.config())
  first, second = suite.items(tmp_path / 'meta' / 'esc50.csv')
  assert first.references == ('dog',) and suite.named('It is a clock tick') == ['clock_tick']
  (part,) = second.record.audio()
  assert pathlib.Path(part.source).samefile(tmp_path / 'audio' / '1-2-A-1.wav')


def test_the_tags_of_macs(tmp_path):
  (tmp_path / 'MACS.yaml').write_text(
      'files:\n- filename: airport-1.wav\n  annotations:\n  - sentence: people talk\n'
      '    tags: [adults talking, footsteps]\n')
  (tmp_path / 'audio').mkdir()
  (tmp_path / 'audio' / 'airport-1.wav').write_bytes(b'')
  for task, labels in (('sec', ('adults talking', 'footsteps')), ('asc', ('airport',))):
    suite = classification.Classification(small_run.config(), task)
    assert suite.items(tmp_path)[0].references == labels


@pytest.mark.parametrize('name, sentence', [('aac', "'aac'; suite classification has sec and asc"),
                                            ('tts', "'tts'; suite classification has")])
def test_another_task_is_one_sentence(name, sentence):
  with pytest.raises(UserError, match=sentence):
    classification.Classification(small_run.config(), name)


def test_a_label_without_words_is_one_sentence(tmp_path):
  with pytest.raises(UserError, match="the label '---' has no words"):
    read(tmp_path, 'dog', '---')
