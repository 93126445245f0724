"""Metrics of generated answers: word error rates, accuracies, lengths.

All rates are pooled over the corpus: errors over reference words.
"""

import collections
import dataclasses

import numpy as np

from ttt_jax.data.records.records import Part, Record, Turn
from ttt_jax.evaluate.items import Pairs, pooled
from ttt_jax.generate.outputs import Answer
from ttt_jax.storage import names
from ttt_jax.tokens.words import normalise_words, same_words, word_errors

# Tasks whose answer is one of few; for others the words that are right count, too.
_CLOSED = ('audio_qa', 'sec', 'asc')


@dataclasses.dataclass
class Item:
  """One held-out record, the answer generated for it, and the judge's transcripts.

  Attributes:
    record: with its reference answer.
    answer: generated.
    text: of the answer, without its audio.
    codes: int32 [n], of all audio of the answer.
    heard: the ASR judge's transcripts, by kind of audio ('reference', 'roundtrip', 'generated').
    name: prefix of its files in WORKDIR/samples.
  """
  record: Record
  answer: Answer
  text: str = ''
  codes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
  heard: dict[str, str] = dataclasses.field(default_factory=dict)
  name: str = ''

  @property
  def question(self) -> tuple[Part, ...]:
    """The parts of the last turn of the user."""
    return next((turn.parts for turn in self.record.turns[::-1] if turn.role == 'user'), ())

  @property
  def reference_text(self) -> str:
    return ''.join(p.text for p in _reference(self.record).parts if p.kind == 'text').strip()

  @property
  def spoken_text(self) -> str:
    """What the reference's speech says: its transcript, or the text it goes with."""
    said = ' '.join(part.text for part in reference_audio(self.record) if part.text)
    return said or self.reference_text

  @property
  def reference_codes(self) -> np.ndarray:
    """int32 [n], codes of all audio of the reference; empty without audio."""
    return reference_codes(self.record)


def is_question(record: Record) -> bool:
  """Whether a record asks for an answer: a turn of the user, then one of the assistant."""
  roles = [turn.role for turn in record.turns]
  return 'assistant' in roles and 'user' in roles[:_last(record)]


def _last(record: Record) -> int:
  """The index of the last turn of the assistant."""
  return max(i for i, turn in enumerate(record.turns) if turn.role == 'assistant')


def _reference(record: Record) -> Turn:
  return record.turns[_last(record)]


def reference_audio(record: Record) -> list[Part]:
  """The audio parts of the reference answer, in order."""
  return [part for part in _reference(record).parts if part.kind == 'audio']


def reference_codes(record: Record) -> np.ndarray:
  """int32 [n], the codes of ``reference_audio``."""
  codes = [part.codes for part in reference_audio(record) if part.codes is not None]
  return np.concatenate(codes) if codes else np.zeros(0, np.int32)


def reference_source(record: Record) -> str | None:
  """The recording of the reference's speech, if it is one."""
  sources = {part.source for part in reference_audio(record)}
  return sources.pop() if len(sources) == 1 else None


def judged(task: str) -> tuple[str, ...]:
  """The kinds of audio that the ASR judge transcribes. For 'asr' the words are known."""
  return {'asr': (), 'tts': ('reference', 'roundtrip', 'generated')}.get(
      task, ('roundtrip', 'generated'))


def words(items: list[Item]) -> dict[str, float]:
  """Scores of texts, and of speech as the judge hears it; TASK is 'other' for records without one.

  Returns:
    'asr_wer', 'asr_exact'; for tasks other than asr and tts TASK_text_accuracy (the same words)
    and, where answers are free, TASK_text_f1 (F1 of the words, without order, a mean over
    records); with a judge TASK_wer_KIND, TASK_spoken_accuracy and TASK_spoken_ceiling. A
    key is absent where no record has what it compares.
  """
  return pooled(word_scores(items))


def word_scores(items: list[Item]) -> list[Pairs]:
  """The (value, weight) pairs of each item that ``words`` adds up."""
  listened = {item.record.task for item in items if item.heard}
  return [_text_scores(item) | (_speech_scores(item) if item.record.task in listened else {})
          for item in items]


def label_of(task: str) -> str:
  """The prefix of a task's metrics."""
  return names.slug(task) if task else 'other'


def _text_scores(item: Item) -> Pairs:
  task, label = item.record.task, label_of(item.record.task)
  if not item.reference_text or task == 'tts':
    return {}
  exact = float(same_words(item.text, item.reference_text)), 1.0
  if task == 'asr':
    return {'asr_wer': _errors(item.reference_text, item.text), 'asr_exact': exact}
  out = {f'{label}_text_accuracy': exact}
  if task not in _CLOSED:
    out[f'{label}_text_f1'] = _f1(item.text, item.reference_text), 1.0
  return out


def _speech_scores(item: Item) -> Pairs:
  """Scores of the judge's transcripts of one item."""
  task, label, out = item.record.task, label_of(item.record.task), {}
  spoken = len(item.reference_codes) > 0
  for kind in judged(task):
    # An answer without audio has an empty transcript: all of its words are deletions.
    if spoken if kind == 'generated' else kind in item.heard:
      out[f'{label}_wer_{kind}'] = _errors(item.spoken_text, item.heard.get(kind, ''))
  if task not in ('asr', 'tts') and spoken:
    for name, kind in (('accuracy', 'generated'), ('ceiling', 'roundtrip')):
      right = same_words(item.heard.get(kind, ''), item.spoken_text)
      out[f'{label}_spoken_{name}'] = float(right), 1.0
  return out


def lengths(items: list[Item], silence: tuple[int, ...], hybrid_mode: bool) -> dict[str, float]:
  """Shares of answers and spans that ended by themselves, and the ratio of speech lengths.

  Args:
    items: answered records.
    silence: codes of silence; trailing ones do not count as length.
    hybrid_mode: whether spans are opened and closed by the model; other modes have none.
  """
  return pooled(length_scores(item, silence, hybrid_mode) for item in items)


def length_scores(item: Item, silence: tuple[int, ...], hybrid_mode: bool) -> Pairs:
  """The (value, weight) pairs of one item that ``lengths`` adds up."""
  out = {'answers_finished': (float(item.answer.finished), 1.0)}
  spans = item.answer.spans if hybrid_mode else []
  if spans:
    out['spans_ended'] = float(sum(span.ended for span in spans)), float(len(spans))
  if len(item.reference_codes):
    out['length_ratio'] = (float(_audible(item.codes, silence)),
                           float(_audible(item.reference_codes, silence)))
  return out


def pass_scores(item: Item, silence: tuple[int, ...], tokens_per_second: float) -> Pairs:
  """Forward passes of one answer, per token and, where an answer has speech, per second of it.

  All passes count, those for text included; reading the prompt does not. Silence at the end is
  no speech.
  """
  calls = float(item.answer.calls)
  out = {'passes_per_token': (calls, float(len(item.answer.ids)))}
  if len(item.reference_codes):
    out['passes_per_second'] = calls, _audible(item.codes, silence) / tokens_per_second
  return out


def _audible(codes: np.ndarray, silence: tuple[int, ...]) -> int:
  """Number of codes up to the last one that is not silence."""
  return int(np.flatnonzero(~np.isin(codes, silence)).max(initial=-1)) + 1


def _errors(reference: str, heard: str) -> tuple[float, float]:
  """Word errors and reference words."""
  errors, total = word_errors(reference, heard)
  return float(errors), float(total)


def _f1(text: str, reference: str) -> float:
  """F1 of the words of two texts, as multisets; 1 or 0 if a text has no words."""
  found, wanted = (collections.Counter(normalise_words(one).split()) for one in (text, reference))
  if not found or not wanted:
    return float(same_words(text, reference))
  return 2 * (found & wanted).total() / (found.total() + wanted.total())

