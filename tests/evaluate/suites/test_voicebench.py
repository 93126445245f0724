"""Suite 'voicebench': its files, and the evaluator of each subset."""

import dataclasses
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from tests import small_run
from tests.evaluate.test_llm_judge import serve
from ttt_jax.errors import UserError
from ttt_jax.evaluate.suites import results, voicebench
from ttt_jax.evaluate.suites.suite import Reply, Result


def audio():
  file = io.BytesIO()
  soundfile.write(file, np.sin(np.arange(8000) / 9) / 2, 16_000, format='WAV')
  return {'bytes': file.getvalue(), 'path': 'x.wav'}


def parquet(path, **columns):
  """A file of a subset as Hugging Face has it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  count = len(columns['prompt'])
  pq.write_table(pa.table({'audio': [audio()] * count, **columns}), path)


@pytest.fixture
def data(tmp_path):
  name = 'test-00000-of-00001.parquet'
  parquet(tmp_path / 'alpacaeval' / name, prompt=['Tell me a joke.'])
  parquet(tmp_path / 'sd-qa' / 'usa-00000-of-00001.parquet', prompt=['Who was first?'],
          reference=['Neil Armstrong'])
  parquet(tmp_path / 'mmsu' / 'law-00000-of-00001.parquet', prompt=['Which? A. x B. y C. z D. w'],
          reference=['B'], question_id=['7'])
  parquet(tmp_path / 'openbookqa' / name, prompt=['Which? A, B, C or D', 'And this?'],
          reference=['A', 'D'])
  parquet(tmp_path / 'bbh' / name, prompt=['Is it plausible?', 'Which order?'],
          reference=['no', '(B)'], id=['sports_understanding_1', 'hyperbaton_2'])
  parquet(tmp_path / 'ifeval' / name, prompt=['No commas.'], key=[12],
          instruction_id_list=[['punctuation:no_comma']], kwargs=[[{'num_words': None}]])
  parquet(tmp_path / 'advbench' / name, prompt=['Something bad', 'Something worse'])
  return tmp_path


def suite(**settings):
  base = small_run.config()
  return voicebench.VoiceBench(dataclasses.replace(base, evaluate=dataclasses.replace(
      base.evaluate, **{'judge': 'none'} | settings)))


ANSWERS = {'Tell me a joke.': 'No.', 'Who was first?': 'It was Neil Armstrong.',
           'Which? A. x B. y C. z D. w': 'The answer is B.', 'Which? A, B, C or D': 'hard to say',
           'And this?': 'C', 'Is it plausible?': 'It is not plausible.', 'Which order?': 'Option A',
           'No commas.': 'Fine.', 'Something bad': "I'm sorry.", 'Something worse': 'Sure'}


def scored(one, data, heard=None):
  """(results, values of the metrics) for ANSWERS, and for transcripts of their speech."""
  rows = []
  for number, item in enumerate(one.items(data)):
    text = ANSWERS[item.details['request']]
    reply = Reply(text, np.zeros(0, np.int32), None)
    if heard is not None:
      reply.heard = heard.get(item.details['request'], text)
    score = one.score(item, reply)
    rows.append(Result(number, item.id, item.group, score.counts, score.shown))
  metrics = one.metrics(rows)
  assert all(len(metric.label) <= 28 for metric in metrics)
  found = results.numbers([metrics], [rows], draws=20)
  return rows, {metric.name: float(found.value[metric.name][0]) for metric in metrics}


def test_every_subset_is_read(data):
  items = suite().items(data)
  assert [(item.group, item.id) for item in items] == [
      ('advbench', '0'), ('advbench', '1'), ('alpacaeval', '0'),
      ('bbh', 'sports_understanding_1'), ('bbh', 'hyperbaton_2'), ('ifeval', '12'), ('mmsu', '7'),
      ('openbookqa', '0'), ('openbookqa', '1'), ('sd-qa usa', '0')]
  assert items[0].record.turns[0].parts[0].kind == 'audio' and items[0].language == 'en'
  assert [item.group for item in suite().items(data / 'sd-qa')] == ['sd-qa usa']
  one = data / 'mmsu' / 'law-00000-of-00001.parquet'
  assert [item.references for item in suite().items(one)] == [('B',)]


def test_without_an_llm_judge_open_answers_are_not_scored(data):
  one = suite()
  rows, found = scored(one, data)
  assert found == pytest.approx({
      'qa_contains': 1, 'mcq': (1 + 1 / 4 + 0) / 3, 'mcq_none': 1 / 3, 'bbh': 1 / 2,
      'bbh_none': 0, 'ifeval': 1, 'refusal': 1 / 2, 'refusal_empty': 0})
  assert one.notes == ['1 of 10 items are rated by an LLM judge alone, and none is configured '
                       '(evaluate.llm_judge_url): they are not scored.']
  assert one.judges(None) == {}


def test_with_an_llm_judge(data):
  # The judge rates the joke, then says whether the question is answered.
  with serve(['2', '3', 'funny'], ['Yes', 'Yes', 'No']) as (server, url):
    one = suite(llm_judge_url=url, llm_judge_model='gpt-x')
    rows, found = scored(one, data)
  assert found['open'] == 2.5 and found['qa_judge'] == 1 and found['qa_contains'] == 1
  assert found['judge_malformed'] == pytest.approx(1 / 6)
  assert len(server.requests) == 2 and one.notes == []
  assert one.judges(None)['llm']['model'] == 'gpt-x'
  assert rows[2].line['judge_said'] == ['2', '3', 'funny']


def test_speech_is_scored_beside_the_text(data):
  one = suite(judge='pocketsphinx')
  _, found = scored(one, data, {'And this?': 'The answer is D', 'Who was first?': 'me',
                                'No commas.': 'Well, fine', 'Something bad': 'sure'})
  assert found['mcq'] == pytest.approx(5 / 12) and found['heard_mcq'] == pytest.approx(9 / 12)
  assert found['qa_contains'] == 1 and found['heard_qa_contains'] == 0
  assert found['ifeval'] == 1 and found['heard_ifeval'] == 0
  assert found['refusal'] == 0.5 and found['heard_refusal'] == 0


@pytest.mark.parametrize('subset, columns, sentence', [
    ('mmsu', {'prompt': ['?'], 'reference': ['E']}, "the reference 'E' is not one of 'A', 'B'"),
    ('bbh', {'prompt': ['?'], 'reference': ['maybe']}, "the reference 'maybe' is not one of"),
    ('openbookqa', {'prompt': ['?']}, "needs the text 'reference'; it has 'audio', 'prompt'"),
    ('sd-qa', {'prompt': ['?'], 'reference': [' ']}, "needs the text 'reference'"),
    ('ifeval', {'prompt': ['?']}, 'needs instruction_id_list and kwargs'),
    ('advbench', {'prompt': ['?'], 'audio': [None]}, 'needs its recording, "audio"'),
])
def test_rows_of_another_form_are_a_sentence(tmp_path, subset, columns, sentence):
  parquet(tmp_path / subset / 'test-00000-of-00001.parquet', **columns)
  with pytest.raises(UserError, match=rf'parquet:1: .*{sentence}'):
    suite().items(tmp_path)


def test_other_folders_are_a_sentence(tmp_path):
  with pytest.raises(UserError, match='has no subset of VoiceBench; expected folders such as'):
    suite().items(tmp_path)
  parquet(tmp_path / 'mtbench' / 'test-00000-of-00001.parquet', prompt=['?'])
  with pytest.raises(UserError, match='is the subset mtbench of VoiceBench, which is not scored'):
    suite().items(tmp_path / 'mtbench')
