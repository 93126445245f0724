"""The table of an evaluation: rows of label, value and note, and its text for a terminal."""

import math
import os
import pathlib
from typing import Annotated, Any, Required

from ttt_jax.config import Config, to_dict
from ttt_jax.storage import schema

FILE, SPEED = 'evaluation.json', 'speed.json'
_Number = Annotated[float, schema.ANY_NUMBER]


class Sample(schema.Kind, total=False):
  """One evaluated record; paths are relative to the workdir."""
  task: Required[str]
  id: Required[str]
  question_text: str | None
  reference_text: str | None
  roundtrip_text: str | None
  generated_text: str | None
  heard_text: str | None
  correct: bool | None
  audio: dict[str, str | None] | None


class EvaluationFile(schema.Kind, total=False):
  """evaluation.json; a row of the table is label, value and note."""
  step: schema.Count
  summary: dict[str, _Number | str | bool | None]
  table: list[tuple[str, _Number | str | None, str]]
  samples: list[Sample]
  settings: dict[str, Any]
  seconds: float


class SpeedFile(schema.Kind, total=False):
  """speed.json."""
  step: schema.Count
  machine: str
  records: int
  summary: dict[str, float]


def read_speed(workdir: str | os.PathLike) -> dict[str, Any]:
  """The contents of speed.json; {} if there is none.

  Raises:
    UserError: it is damaged.
  """
  return schema.read(pathlib.Path(workdir) / SPEED, SpeedFile,
                     'run `ttt-jax evaluate --speed` again', optional=True)


def settings(config: Config) -> dict[str, Any]:
  """The settings that an evaluation depends on, beside those of the training, as they stand in
  evaluation.json."""
  return {'evaluate': to_dict(config.evaluate), 'generate': to_dict(config.generate)}


def read(workdir: str | os.PathLike) -> dict[str, Any]:
  """The evaluation of a run; {} if it was not evaluated.

  Raises:
    UserError: evaluation.json is damaged.
  """
  return schema.read(pathlib.Path(workdir) / FILE, EvaluationFile, 'run `ttt-jax evaluate` again',
                     optional=True)


_PERCENT = (
    ('asr_wer', 'ASR word error rate', 'transcripts of held-out recordings'),
    ('asr_exact', 'ASR exact transcripts', ''),
    ('audio_qa_text_accuracy', 'spoken questions: text of the answer', 'exact match'),
    ('audio_qa_spoken_accuracy', 'spoken questions: speech of the answer', 'as the judge hears it'),
    ('audio_qa_spoken_ceiling', 'the same, codec round trip', 'its ceiling'),
    ('text_chat_text_accuracy', 'written questions', 'exact match'),
    ('tts_wer_reference', 'judge: original voice', 'first ceiling of read-aloud text'),
    ('tts_wer_roundtrip', 'judge: codec round trip', 'second ceiling'),
    ('tts_wer_generated', 'judge: generated speech', 'word error rate of read-aloud text'),
    ('spans_ended', 'spans that end by themselves', ''),
    ('answers_finished', 'answers that finish', 'before the length limit'),
)

# The same for the other tasks, by the ending of the metric's name.
TASKS = {'text_chat': 'written questions', 'audio_chat': 'spoken chat', 'aac': 'captions of sounds',
         'sec': 'sound events', 'asc': 'acoustic scenes', 'other': 'records without a task'}
_ENDINGS = (('_text_accuracy', 'text of the answer', 'exact match'),
            ('_text_f1', 'words of the answer', 'F1 of the words'),
            ('_spoken_accuracy', 'speech of the answer', 'as the judge hears it'),
            ('_spoken_ceiling', 'the same, codec round trip', 'its ceiling'))


def rows(summary: dict[str, float], config: Config) -> list[list[str]]:
  """Rows [label, value, note] of the metrics in ``summary``, for evaluation.json."""
  out = []
  if 'text_nll' in summary:
    out.append(['text loss', f'{summary["text_nll"]:.3f}', 'nats per text token, clean audio'])
  if 'text_bound' in summary:
    out.append(['text bound', f'{summary["text_bound"]:.3f}', 'nats per text token'])
  if 'audio_nll' in summary:
    out.append(['audio loss', f'{summary["audio_nll"]:.2f}', 'nats per audio token'])
  if 'audio_bound' in summary:
    error = summary.get('audio_bound_error')
    value = f'{summary["audio_bound"]:.2f}' + (f' ± {error:.2f}' if error is not None else '')
    out.append(['audio bound', value, 'nats per audio token'])
  for name, label, note in _PERCENT:
    if name in summary:
      out.append([label, f'{100 * summary[name]:.1f} %',
                   note.replace('the judge', config.evaluate.judge)])
  fixed = {name for name, *_ in _PERCENT}
  for ending, label, note in _ENDINGS:
    for name in summary:
      if name.endswith(ending) and name not in fixed:
        task = name.removesuffix(ending)
        out.append([f'{TASKS.get(task, task)}: {label}', f'{100 * summary[name]:.1f} %',
                    note.replace('the judge', config.evaluate.judge)])
  if 'length_ratio' in summary:
    out.append(['length of speech', f'{summary["length_ratio"]:.2f}', 'times the reference'])
  if 'records_without_question' in summary:
    out.append(['records without a question', f'{summary["records_without_question"]:,}',
                'not answered; their losses count'])
  if 'prompts_too_long' in summary:
    out.append(['prompts that leave no room', f'{summary["prompts_too_long"]:,}',
                f'not answered; generate.max_tokens is {config.generate.max_tokens:,}'])
  return out


def table_text(evaluation: dict[str, Any]) -> str:
  """The table of evaluation.json for a terminal: one aligned line per row."""
  lines = [[str(label), value_text(value), str(note)] for label, value, note in evaluation['table']]
  widths = [max(map(len, column), default=0) for column in zip(*lines)]
  return '\n'.join(f'{label:<{widths[0]}}  {value:>{widths[1]}}  {note}'.rstrip()
                   for label, value, note in lines)


def value_text(value: Any) -> str:
  """A value of the table; a dash where there is none."""
  if value is None or (isinstance(value, float) and not math.isfinite(value)):
    return '–'
  return f'{value:.4g}' if isinstance(value, float) else str(value)
