"""Suite 'spoken_qa' on folders in the layouts in which the benchmarks are published."""

import json

import numpy as np
import pytest

from tests import small_run
from ttt_jax.errors import UserError
from ttt_jax.evaluate.suites import results, spoken_qa
from ttt_jax.evaluate.suites.suite import Reply, Result


def suite(**settings):
  return spoken_qa.SpokenQa(small_run.replace(small_run.config(), 'evaluate', **settings))


def source(item):
  (part,) = item.record.audio()
  return part.source


def test_the_llama_questions_of_google(tmp_path):
  (tmp_path / 'llama_questions_300.tsv').write_text(
      'Questions\tAnswer\tWav Filename\nWhat is the capital of France?\tParis\t1.wav\n'
      'Who wrote the Diary?\tJeff Kinney \t2.wav\n')
  first, second = suite().items(tmp_path)
  assert first.references == ('Paris',) and second.references == ('Jeff Kinney',)
  assert source(first) == str(tmp_path / '1.wav')
  assert first.details['question'] == 'What is the capital of France?'
  # The question is heard, not read.
  assert not [part for turn in first.record.turns for part in turn.parts if part.kind == 'text']


def open_audio_bench(folder):
  tables = {
      'llama_questions': 'Questions,Answer,audio_filename\nWho?,Newton,llama_0.mp3\n',
      'web_questions': 'url,question,answers,audio_filename\nu,Where?,Paris;City of Paris,w0.mp3\n',
      'trivia_qa': 'question,answer_normalized_value,answer_normalized_aliases,audio_filename\n'
                   'What?,sunset boulevard,"sunset blvd, sunset strip",t0.mp3\n'}
  for name, text in tables.items():
    (folder / name / 'audios').mkdir(parents=True)
    (folder / name / f'{name}.csv').write_text(text)
  for place in ('llama_questions/audios/llama_0.mp3', 'web_questions/audios/w0.mp3',
                'trivia_qa/audios/t0.mp3'):
    (folder / place).write_bytes(b'')


def test_open_audio_bench_has_subsets(tmp_path):
  open_audio_bench(tmp_path / 'eval_datas')
  items = suite().items(tmp_path)
  assert [item.group for item in items] == ['llama_questions', 'web_questions', 'trivia_qa']
  assert [item.references for item in items] == [
      ('Newton',), ('Paris', 'City of Paris'), ('sunset boulevard', 'sunset blvd', 'sunset strip')]
  assert source(items[2]) == str(tmp_path / 'eval_datas' / 'trivia_qa' / 'audios' / 't0.mp3')
  one = suite()
  one.subset = 'trivia_qa'
  assert [item.group for item in one.items(tmp_path)] == ['trivia_qa']
  one.subset = 'squad'
  with pytest.raises(UserError, match="--subset names 'squad', but .* has llama_questions, web"):
    one.items(tmp_path)
  (alone,) = suite().items(tmp_path / 'eval_datas' / 'web_questions')
  assert alone.references == ('Paris', 'City of Paris')


def test_parquet_of_hugging_face(tmp_path):
  import pyarrow as pa
  from pyarrow import parquet
  wav = {'bytes': b'RIFF\x24\0\0\0WAVEfmt ', 'path': None}
  (tmp_path / 'data').mkdir()
  parquet.write_table(pa.Table.from_pylist([
      {'audio': wav, 'question': 'Who?', 'answer': {
          'aliases': ['The Bard', 'Shakespeare'], 'value': 'William Shakespeare',
          'normalized_aliases': ['bard', 'shakespeare']}},
      {'audio': wav, 'question': 'When?', 'answer': {
          'aliases': [], 'value': '1969', 'normalized_aliases': []}}]),
                      tmp_path / 'data' / 'test-00000-of-00001.parquet')
  first, second = suite().items(tmp_path)
  assert first.references == ('William Shakespeare', 'The Bard', 'Shakespeare', 'bard',
                              'shakespeare')
  assert second.references == ('1969',) and source(first).startswith('data:')


@pytest.mark.parametrize('row, answers', [
    ({'answers': ['a b', 'c']}, ('a b', 'c')), ({'answers': "['x', 'y z']"}, ('x', 'y z')),
    ({'answer': 'Paris, France'}, ('Paris, France',)),
    ({'answer': 'NYC', 'aliases': 'New York;Big Apple'}, ('NYC', 'New York', 'Big Apple')),
    ({'answer': 7}, ('7',)), ({'answers': ['x', '?']}, ('x',))])
def test_answers(row, answers):
  assert spoken_qa.answers_of(row, 'f:1') == answers


@pytest.mark.parametrize('row, sentence', [
    ({'audio': 'a.wav', 'question': 'Who?'}, r'f:1: a question needs its answer.*question'),
    ({'audio': 'a.wav', 'answers': []}, 'needs its answer'),
    ({'audio': 'a.wav', 'answer': '?'}, "'\\?' has no words")])
def test_a_question_without_answer_is_one_sentence(row, sentence):
  with pytest.raises(UserError, match=sentence):
    spoken_qa.answers_of(row, 'f:1')


def test_records_are_questions_too(tmp_path):
  (tmp_path / 'a.jsonl').write_text(json.dumps({'id': 'r', 'messages': [
      {'role': 'user', 'content': [{'type': 'audio', 'audio': 'q.wav'}]},
      {'role': 'assistant', 'content': 'Forty two'}]}) + '\n')
  (item,) = suite().items(tmp_path / 'a.jsonl')
  assert item.references == ('Forty two',) and source(item) == str(tmp_path / 'q.wav')
  assert item.record.turns[-1].parts == ()


class Judge:
  """Hears what it was made with."""

  def __init__(self, text):
    self.text = text

  def transcribe(self, waveform, rate, language=''):
    return self.text


class Codec:
  sample_rate = 8000

  def sound(self, codes):
    return np.ones(len(codes), np.float32)


def scored(one, item, text, heard, codes=(1, 2)):
  reply = Reply(text, np.array(codes, np.int32), Codec(), Judge(heard))
  return Result(0, item.id, item.group, one.score(item, reply).counts, {})


def test_text_and_speech_are_scored_beside_each_other(tmp_path):
  (tmp_path / 'a.jsonl').write_text(
      '{"audio": "q.wav", "answers": ["twenty four", "two dozen"]}\n' * 3)
  one = suite(judge='pocketsphinx')
  item = one.items(tmp_path / 'a.jsonl')[0]
  rows = [scored(one, item, 'It is 24.', 'It is twenty-four'),
          scored(one, item, 'Two dozen', 'too dozen'), scored(one, item, 'It is 23', 'x', ())]
  found = results.numbers([one.metrics(rows)], [rows], draws=50)
  assert found.value['speech_accuracy'][0] == pytest.approx(1 / 3)
  assert found.value['text_accuracy'][0] == pytest.approx(2 / 3)
  assert found.metrics[0].name == 'speech_accuracy' and 'own_wer' in found.value


def test_without_a_judge_text_alone_is_scored(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"audio": "q.wav", "answer": "Paris"}\n')
  one = suite(judge='none')
  (item,) = one.items(tmp_path / 'a.jsonl')
  row = scored(one, item, 'paris', '')
  assert row.counts == {'n': 1, 'text': True} and not one.hears
  assert [metric.name for metric in one.metrics([row])] == ['text_accuracy']


@pytest.mark.parametrize('written', [
    "{'value': 'Nelson', 'aliases': ['Nelson', 'Ship, The'], 'type': 'W'}",
    '{"value": "Nelson", "aliases": ["Nelson", "Ship, The"], "x": null}'])
def test_an_answer_of_trivia_qa_in_a_table_is_not_one_text(written):
  assert spoken_qa.answers_of({'answer': written}, 'f:1') == ('Nelson', 'Ship, The')


def test_the_recording_of_a_row_does_not_depend_on_the_order_of_columns(tmp_path):
  """A path on the machine of the authors, and a folder with a name of its own."""
  table = tmp_path / 'mine' / 'web_questions.csv'
  table.parent.mkdir()
  table.write_text('question,answers,source_wav,audio_filename\nQ,A,/home/x/a.wav,w0.mp3\n')
  (item,) = suite().items(table.parent)
  assert source(item) == str(table.parent / 'w0.mp3')
