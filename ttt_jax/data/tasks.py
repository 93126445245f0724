"""Tasks as small functions from recordings to Records, and every system prompt.

A recording is one object {"id": ..., "audio": "a.wav" or "codes": [...], "text": ...}:
speech and what it says. Other names that manifests use for the two are in ALIASES.
"""

import dataclasses
from typing import Any, Callable, Sequence

import numpy as np

from ttt_jax.data.records import BEGINS, ENDS, Part, Record, Turn, audio_part
from ttt_jax.errors import UserError

_INTERLEAVED = ('Write your answer as text and speak it too: 13 text tokens, then 26 audio tokens, '
                'and so on in turn.')

# The system prompt of every task, in one place; data.sources[i].prompt replaces it.
PROMPTS = {
    'asr': f'Write down what the recording says. {_INTERLEAVED}',
    'tts': f'Read the text aloud. {_INTERLEAVED}',
    'audio_qa': f'Answer the spoken question. {_INTERLEAVED}',
    'audio_chat': f'Talk with the speaker. {_INTERLEAVED}',
    'aac': f'Describe what can be heard. {_INTERLEAVED}',
    'sec': f'Name the sound event that can be heard. {_INTERLEAVED}',
    'asc': f'Name the place where this was recorded. {_INTERLEAVED}',
    'text_chat': 'Answer in writing.',
}

# Manifests of NeMo, of Common Voice, of LJSpeech's descendants.
ALIASES = {'audio': ('audio_filepath', 'audio_path', 'path', 'file', 'file_name', 'wav'),
           'text': ('transcript', 'transcription', 'sentence')}


@dataclasses.dataclass(frozen=True, eq=False)
class Recording:
  """Speech and its words; ``audio`` is a Part of kind 'audio' whose text is the transcript."""
  id: str
  audio: Part
  where: str = ''

  @property
  def text(self) -> str:
    return self.audio.text


def parse_recording(value: dict[str, Any], where: str) -> Recording:
  """One JSON object -> Recording.

  Raises:
    UserError: no text, no audio, or audio markup inside the text.
  """
  for name, others in ALIASES.items():
    known = [other for other in others if other in value]
    if known and name not in value:
      value = {**value, name: value[known[0]]}
  text = value.get('text')
  if not isinstance(text, str) or not text.strip():
    raise UserError(f'{where}: a recording needs "text", what it says, as a non-empty string; '
                    'records with "messages" belong to a source without a task of recordings.')
  if any(mark in text for mark in ('<|audio_', *BEGINS, *ENDS)):
    raise UserError(f'{where}: the text of a recording holds audio markup; it must be plain text.')
  part = audio_part(value, f'{where}: the recording', text)
  return Recording(str(value.get('id', where.rsplit(':', 1)[-1])), part, where)


def _record(recording: Recording, task: str, user: Part) -> Record:
  answer = (Part('text', recording.text), recording.audio)
  return Record(f'{task}-{recording.id}', task, 'IT',
                (Turn('user', (user,)), Turn('assistant', answer)), recording.where)


def asr(recording: Recording) -> Record:
  """The user plays the recording; the assistant writes it down and says it again."""
  return _record(recording, 'asr', recording.audio)


def tts(recording: Recording) -> Record:
  """The user writes the text; the assistant reads it aloud."""
  return _record(recording, 'tts', Part('text', recording.text))


FROM_RECORDINGS = {'asr': asr, 'tts': tts}


def with_prompt(record: Record, prompt: str | None) -> Record:
  """The record with its system turn.

  Args:
    record: any; a pretraining document is returned as it is.
    prompt: None keeps the record's own system turn, and gives a record without one the
      wording of its task, if PROMPTS has it; '' takes the system turn away; any other
      text becomes the system turn.
  """
  if record.turns[0].role == 'document':
    return record
  has = record.turns[0].role == 'system'
  if prompt is None:
    if has:
      return record
    prompt = PROMPTS.get(record.task, '')
  head = (Turn('system', (Part('text', prompt),)),) if prompt else ()
  return dataclasses.replace(record, turns=head + record.turns[has:])


def normal(text: str) -> str:
  """The form in which two texts count as the same: lower case, single spaces, no
  punctuation at the ends of words."""
  return ' '.join(word.strip('.,;:!?\'"') for word in text.lower().split())


def join(recordings: Sequence[Recording], most: int, count: int, rng: np.random.Generator,
         excluded: frozenset[str] | set[str] = frozenset(),
         fits: Callable[[Recording], bool] = lambda recording: True) -> list[Recording]:
  """Longer recordings: the codes and texts of several, one after another.

  A joined text is never longer than the longest single one, so that joining makes more
  of what is there and not something else.

  Args:
    recordings: the pieces; their codes must be known.
    most: 2 up to this many pieces are joined.
    count: how many to make; no text comes twice, none equals that of a single piece.
    rng: draws the number of pieces and the pieces.
    excluded: ``normal`` texts that must not come out, such as the held-out ones, not even
      as a run of words inside a longer text.
    fits: whether a joined recording is short enough; others are drawn instead.

  Raises:
    UserError: there are not enough different combinations.
  """
  if count and (most < 2 or not recordings):
    raise UserError(f'data source: join_count={count} needs join_most of at least 2 (it is {most}) '
                    f'and some recordings ({len(recordings)}).')
  seen = {normal(r.text) for r in recordings}
  leaks = lambda text: any(f' {held} ' in f' {text} ' for held in excluded)
  longest = max((len(r.text) for r in recordings), default=0)
  out, tries = [], 0
  while len(out) < count:
    tries += 1
    if tries > 100 * count + 1000:
      raise UserError(f'data source: join_count={count} is more than {len(recordings)} recordings '
                      f'give with join_most={most} in one row; {len(out)} were found.')
    pieces = [recordings[i] for i in rng.integers(len(recordings), size=rng.integers(2, most + 1))]
    text = ' '.join(piece.text for piece in pieces)
    if len(text) > longest or normal(text) in seen or leaks(normal(text)):
      continue
    codes = np.concatenate([piece.audio.codes for piece in pieces])
    joined = Recording('+'.join(piece.id for piece in pieces), Part('audio', text, codes),
                       pieces[0].where)
    if fits(joined):
      seen.add(normal(text))
      out.append(joined)
  return out
