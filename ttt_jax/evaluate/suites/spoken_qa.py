"""Suite 'spoken_qa': spoken questions with short answers, answered in text and in speech.

An answer is right if it contains a reference answer or one of its aliases (containment.py). Files:

  LLAMA1-Test-Set     llama_questions_300.tsv (Questions, Answer, Wav Filename) beside the WAV files
  OpenAudioBench      eval_datas/NAME/NAME.csv and audios/, NAME of SUBSETS; a folder of it as well
  Hugging Face        Parquet with an audio column and question, answer or answers: fixie-ai's and
                      TwinkStart's LLaMA-Questions, Web Questions, TriviaQA
  others              JSONL, TSV, CSV with audio and answers (a list) or answer
"""

import ast
from collections.abc import Sequence
import json
import pathlib
import re
from typing import Any

from ttt_jax.config import Config
from ttt_jax.data.records import records, tasks
from ttt_jax.data.records.records import Record
from ttt_jax.errors import UserError
from ttt_jax.evaluate import containment
from ttt_jax.evaluate.suites import asr, reading
from ttt_jax.evaluate.suites.suite import Item, Metric, Reply, Result, Score, Suite

SUBSETS = ('llama_questions', 'web_questions', 'trivia_qa')  # of OpenAudioBench, with short answers
# Keys of answers, in lower case and with '_' for spaces; a record's answers are all that it has.
_ANSWERS = ('answers', 'answer', 'answer_value', 'answer_normalized_value', 'reference',
            'references', 'target', 'gold', 'output', 'response')
_ALIASES = ('aliases', 'answer_aliases', 'answer_normalized_aliases', 'normalized_aliases')
_QUESTIONS = ('question', 'questions', 'prompt', 'query', 'transcript', 'text')
# The first of them that a row has is taken.
_NAMES = {'wav_filename': 'audio', 'audio_filename': 'audio', 'audio_file': 'audio',
          'question_audio': 'audio', 'speech': 'audio', 'source_wav': 'audio', 'question_id': 'id'}


class SpokenQa(Suite):
  """Spoken question answering."""
  name = 'spoken_qa'
  about = 'LLaMA-Questions, Web Questions, TriviaQA: accuracy of text and speech'
  task = 'audio_qa'
  has_subsets = True

  def __init__(self, config: Config, task: str = ''):
    self.hears = config.evaluate.judge != 'none'  # without a judge, text alone is scored
    super().__init__(config, task)

  @property
  def settings(self) -> dict[str, Any]:
    return {'words': self.config.evaluate.words, **super().settings}

  def items(self, data: pathlib.Path) -> list[Item]:
    places = _places(data)
    wanted = [name.strip() for name in self.subset.split(',') if name.strip()]
    unknown = next((name for name in wanted if name not in dict(places)), None)
    if unknown is not None:
      known = ', '.join(group for group, _ in places if group)
      raise UserError(f'--subset names {unknown!r}, but {data} has {known or "no subsets"}.')
    return [item for group, place in places if not wanted or group in wanted
            for item in _items(place, group, self.task)]

  def score(self, item: Item, reply: Reply) -> Score:
    counts: dict[str, float] = {
        'n': 1, 'text': containment.contains_any(reply.text, item.references)}
    if self.hears:
      counts['speech'] = containment.contains_any(reply.heard, item.references)
      if reply.text:
        counts |= {f'own_{name}': value for name, value in asr.error_counts(
            reply.text, reply.heard, self.config.evaluate.words).items()}
    return Score(counts)

  def metrics(self, results: Sequence[Result]) -> list[Metric]:
    out = [Metric('text_accuracy', 'text contains the answer', ('text', 'n'),
                  note='S->T')]
    if self.hears:
      out = [Metric('speech_accuracy', 'speech contains the answer', ('speech', 'n'),
                    note='S->S, as the judge hears it'), *out]
      out += [metric for metric in asr.error_metrics(results, 'own_', ', own text')
              if metric.name in ('own_wer', 'own_cer')]
    return out


def _places(data: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
  """(subset or '', file or folder) of what ``data`` holds."""
  reading.require(data)
  for folder in (data, data / 'eval_datas'):
    found = [(name, folder / name / f'{name}.csv') for name in SUBSETS
             if (folder / name / f'{name}.csv').is_file()]
    if found:
      return found
  for name in (data.resolve().name, *SUBSETS):
    if (data / f'{name}.csv').is_file():
      return [('', data / f'{name}.csv')]
  tables = sorted(data.glob('llama_questions*.tsv')) if data.is_dir() else []
  return [('', tables[0])] if tables else [('', data)]


def _items(place: pathlib.Path, group: str, task: str) -> list[Item]:
  out = []
  for where, row, folder in reading.rows(place):
    if 'messages' in row or 'conversations' in row:
      out.append(_of_record(records.parse(row, where, default_task=task), group, folder))
      continue
    row = _named(row)
    answers = answers_of(row, where)
    given = {key: value for key, value in row.items()
             if key not in (*_ANSWERS, *_ALIASES, *_QUESTIONS)}
    question = next((row[key] for key in _QUESTIONS if isinstance(row.get(key), str)), '')
    recording = tasks.parse_recording(
        {**given, 'answer': answers[0], **({'text': question} if question else {})}, where, task)
    record = reading.asked(recording.map_audio(lambda part: reading.absolute(part, folder)), task)
    out.append(Item(recording.id, record, answers, group, {'question': question}))
  return out


def _of_record(record: Record, group: str, folder: pathlib.Path) -> Item:
  """The item of a record, whose last answer is the reference."""
  answer = reading.answer_of(record)
  if not containment.reduced(answer):
    raise UserError(f'{record.where}: the reference answer {answer!r} has no words; correct or '
                    'remove it.')
  asked = reading.asked(record.map_audio(lambda part: reading.absolute(part, folder)), record.task)
  return Item(record.id, asked, (answer,), group)


def _named(row: dict[str, Any]) -> dict[str, Any]:
  """The row with names of columns in one form: 'Wav Filename' is 'audio'."""
  out = {}
  for key, value in row.items():
    out.setdefault('_'.join(re.split(r'[\s.]+', str(key).strip().lower())), value)
  for name, known in _NAMES.items():
    if name in out:
      out.setdefault(known, out[name])
  return {key: value for key, value in out.items() if key not in _NAMES}


def answers_of(row: dict[str, Any], where: str) -> tuple[str, ...]:
  """The reference answers of a row with their aliases, without repetitions.

  Raises:
    UserError: there is none, or one without words.
  """
  found: dict[str, None] = {}
  for key in (*_ANSWERS, *_ALIASES):
    found |= dict.fromkeys(_texts(row.get(key), key))
  if not found:
    raise UserError(f'{where}: a question needs its answer, in a column such as "answer" or '
                    f'"answers"; it has {", ".join(map(repr, row)) or "no columns"}.')
  empty = [text for text in found if not containment.reduced(text)]
  if len(empty) == len(found):
    raise UserError(f'{where}: the reference answer {empty[0]!r} has no words; correct or remove '
                    'it.')
  return tuple(text for text in found if text not in empty)


def _texts(value: Any, key: str) -> list[str]:
  """The texts of one column: a text, a list, several in one text, or TriviaQA's object."""
  if isinstance(value, dict):
    return [text for name in ('value', 'normalized_value', 'aliases', 'normalized_aliases')
            for text in _texts(value.get(name), 'aliases')]
  if isinstance(value, list):
    return [str(text).strip() for text in value if text is not None]
  if value is None:
    return []
  text = str(value).strip()
  if text[:1] + text[-1:] in ('[]', '{}'):  # of Python or JSON
    for parse in (ast.literal_eval, json.loads):
      try:
        found = parse(text)
      except (ValueError, SyntaxError, MemoryError, RecursionError):
        continue
      if isinstance(found, (dict, list)):
        return _texts(found, key)
    return [text]
  if key in ('answer_normalized_aliases', 'normalized_aliases'):  # they have no other commas
    return [one.strip() for one in text.split(',') if one.strip()]
  if key in ('answers', *_ALIASES):
    return [one.strip() for one in text.split(';') if one.strip()]
  return [text]
