"""Metrics of generated answers: word error rates, accuracies, lengths.

All rates are pooled over the corpus: errors over reference words.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from ttt_jax.data.records.records import Part, Record
from ttt_jax.generate.outputs import Answer
from ttt_jax.tokens.words import same_words, word_errors

# The kinds of audio that the ASR judge transcribes, by task. For 'asr' the words are known.
JUDGED = {'tts': ('reference', 'roundtrip', 'generated'), 'audio_qa': ('roundtrip', 'generated')}


@dataclasses.dataclass
class Item:
  """One held-out record, the answer generated for it, and the judge's transcripts.

  Attributes:
    record: with its reference answer.
    answer: generated.
    text: of the answer, without its audio.
    codes: int32 [n], of all audio of the answer.
    heard: the ASR judge's transcripts, by kind of audio ('reference', 'roundtrip', 'generated').
  """
  record: Record
  answer: Answer
  text: str = ''
  codes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
  heard: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def question(self) -> Part:
    return _last_part(self.record, 'user')

  @property
  def reference_text(self) -> str:
    return ''.join(p.text for p in self.record.turns[-1].parts if p.kind == 'text').strip()

  @property
  def spoken_text(self) -> str:
    """What the reference's speech says: its transcript, or the text it goes with."""
    audio = self.reference_audio
    return audio.text if audio is not None and audio.text else self.reference_text

  @property
  def reference_audio(self) -> Part | None:
    return reference_audio(self.record)

  @property
  def reference_codes(self) -> np.ndarray:
    """int32 [n], codes of the reference's audio; empty without audio."""
    return codes_of(self.reference_audio)


def reference_audio(record: Record) -> Part | None:
  """The first audio of a record's last turn."""
  return next((part for part in record.turns[-1].parts if part.kind == 'audio'), None)


def codes_of(audio: Part | None) -> np.ndarray:
  """int32 [n]; empty where there is no audio."""
  return np.zeros(0, np.int32) if audio is None or audio.codes is None else audio.codes


def _last_part(record: Record, role: str) -> Part:
  return [turn for turn in record.turns if turn.role == role][-1].parts[-1]


def words(items: list[Item]) -> dict[str, float]:
  """ASR word error rate, answer accuracies, and the judge's word error rates by kind of audio."""
  out = {}
  asr = [i for i in items if i.record.task == 'asr']
  if asr:
    out['asr_wer'] = _wer((i.reference_text, i.text) for i in asr)
    out['asr_exact'] = _mean(same_words(i.text, i.reference_text) for i in asr)
  for task in ('audio_qa', 'text_chat'):
    mine = [i for i in items if i.record.task == task]
    if mine:
      out[f'{task}_text_accuracy'] = _mean(same_words(i.text, i.reference_text) for i in mine)
  heard = any(i.heard for i in items)
  for task, kinds in JUDGED.items():
    mine = [i for i in items if i.record.task == task] if heard else []
    for kind in kinds:
      # An answer without audio has an empty transcript: all of its words are deletions.
      if any(kind in i.heard for i in mine):
        out[f'{task}_wer_{kind}'] = _wer((i.spoken_text, i.heard.get(kind, '')) for i in mine)
    if task == 'audio_qa' and mine:
      out['audio_qa_spoken_accuracy'] = _mean(
          same_words(i.heard.get('generated', ''), i.spoken_text) for i in mine)
      out['audio_qa_spoken_ceiling'] = _mean(
          same_words(i.heard.get('roundtrip', ''), i.spoken_text) for i in mine)
  return out


def lengths(items: list[Item], silence: tuple[int, ...], hybrid_mode: bool) -> dict[str, float]:
  """Shares of answers and spans that ended by themselves, and the ratio of speech lengths.

  Args:
    items: answered records.
    silence: codes of silence; trailing ones do not count as length.
    hybrid_mode: whether spans are opened and closed by the model; other modes have none.
  """
  every = [span for i in items for span in i.answer.spans] if hybrid_mode else []
  spoken = [i for i in items if i.reference_audio is not None]
  out = {'answers_finished': _mean(i.answer.finished for i in items)}
  if every:
    out['spans_ended'] = _mean(span.ended for span in every)
  if spoken:
    out['length_ratio'] = sum(_audible(i.codes, silence) for i in spoken) / sum(
        _audible(i.reference_codes, silence) for i in spoken)
  return out


def _audible(codes: np.ndarray, silence: tuple[int, ...]) -> int:
  """Number of codes up to the last one that is not silence."""
  return int(np.flatnonzero(~np.isin(codes, silence)).max(initial=-1)) + 1


def _wer(pairs: Iterable[tuple[str, str]]) -> float:
  """Pooled word error rate of (reference, hypothesis) pairs."""
  counts = np.array([word_errors(reference, heard) for reference, heard in pairs])
  errors, total = counts.sum(0)
  return float(errors / max(total, 1))


def _mean(values: Iterable[float]) -> float:
  return float(np.mean([float(value) for value in values]))
