"""Tasks as small functions from recordings to Records, and every system prompt.

  task                  user gives      assistant gives
  asr                   audio           its text, the same audio
  tts                   text            the text, its audio
  audio_qa, audio_chat  audio           the answer, its speech
  aac, sec, asc         words, audio    the answer, its speech
  text_chat             text            the answer
  pt                    -               a document whose pieces are text or speech

What the objects of a manifest look like is in recordings.py.
"""

import dataclasses
import re
from typing import Callable, Sequence

import numpy as np

from ttt_jax.data.records.recordings import RECORDED, Recording, is_record, parse_recording
from ttt_jax.data.records.records import Part, Record, Turn
from ttt_jax.errors import UserError

__all__ = ['INSTRUCTIONS', 'PROMPTS', 'RECORDED', 'Recording', 'is_record', 'join', 'normal',
           'parse_recording', 'prompt_of', 'to_record', 'with_prompt', 'wording']

_WORDINGS = {
    'asr': 'Write down what the recording says.',
    'tts': 'Read the text aloud.',
    'audio_qa': 'Answer the spoken question.',
    'audio_chat': 'Talk with the speaker.',
    'aac': 'Describe what can be heard.',
    'sec': 'Name the sound event that can be heard.',
    'asc': 'Name the place where this was recorded.',
    'text_chat': 'Answer in writing.',
}


def wording(task: str, text_chunk: int = 13, audio_chunk: int = 26) -> str:
  """The system prompt of a task, '' if it has none; data.sources[i].prompt replaces it.

  Args:
    task: any name.
    text_chunk, audio_chunk: as in the config section data: the prompt names the ratio.
  """
  words = _WORDINGS.get(task, '')
  return words if task == 'text_chat' or not words else (
      f'{words} Write your answer as text and speak it too: {text_chunk} text tokens, then '
      f'{audio_chunk} audio tokens, and so on in turn.')


PROMPTS = {task: wording(task) for task in _WORDINGS}  # at the ratio of the paper

# What the user writes before a sound, unless the recording has an "instruction".
INSTRUCTIONS = {
    'aac': 'Describe this recording.',
    'sec': 'Which sound event is this?',
    'asc': 'Where was this recorded?',
}

# Between these and what stands beside them no space is written.
_WIDE = re.compile('[\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef]')


def _record(recording: Recording, task: str, user: Sequence[Part],
            answer: Sequence[Part]) -> Record:
  return Record(f'{task}-{recording.id}', task, 'IT',
                (Turn('user', tuple(user)), Turn('assistant', tuple(answer))), recording.where)


def asr(recording: Recording) -> Record:
  """The user plays the recording; the assistant writes it down and says it again."""
  return _record(recording, 'asr', (recording.audio,),
                 (Part('text', recording.text), recording.audio))


def tts(recording: Recording) -> Record:
  """The user writes the text; the assistant reads it aloud."""
  return _record(recording, 'tts', (Part('text', recording.text),),
                 (Part('text', recording.text), recording.audio))


def audio_qa(recording: Recording) -> Record:
  """The user asks aloud; the assistant answers in writing and, if known, in speech."""
  return _record(recording, 'audio_qa', (recording.audio,), recording.answer)


def audio_chat(recording: Recording) -> Record:
  """The user says something; the assistant answers it."""
  return _record(recording, 'audio_chat', (recording.audio,), recording.answer)


def _sound(recording: Recording, task: str) -> Record:
  words = Part('text', recording.instruction or INSTRUCTIONS[task])
  return _record(recording, task, (words, recording.audio), recording.answer)


def aac(recording: Recording) -> Record:
  """Audio captioning: the user asks what a recording holds; the assistant describes it."""
  return _sound(recording, 'aac')


def sec(recording: Recording) -> Record:
  """Sound events: the user asks what is heard; the assistant names it."""
  return _sound(recording, 'sec')


def asc(recording: Recording) -> Record:
  """Acoustic scenes: the user asks where a recording was made; the assistant says it."""
  return _sound(recording, 'asc')


def text_chat(recording: Recording) -> Record:
  """Writing answers writing."""
  return _record(recording, 'text_chat', (Part('text', recording.instruction),), recording.answer)


def pt(recording: Recording, rng: np.random.Generator, speech: float = 0.5) -> Record:
  """A pretraining document, some of its pieces replaced by their speech.

  Each piece that has speech is spoken with probability ``speech``, on its own: a document
  may come out all text. Spoken neighbours become one span, so that a span always ends
  where text goes on, and the last span of the document is the quad one. Text after
  another piece starts with a space, unless there is white space or one side is written
  without spaces between words (Chinese, Japanese).

  Args:
    recording: as read for 'pt', with codes in its audio parts.
    rng: one number is drawn for each piece.
    speech: probability.
  """
  spoken = rng.random(len(recording.answer)) < speech
  parts: list[Part] = []
  before = ''  # the words of the piece before, whether written or spoken
  for piece, aloud in zip(recording.answer, spoken):
    last = parts[-1].kind if parts else ''
    if piece.kind == 'audio' and aloud:
      assert piece.codes is not None, 'codes are filled in before the record is made'
      if last == 'audio':
        old = parts.pop()
        piece = Part('audio', old.text + _space(old.text, piece.text) + piece.text,
                     np.concatenate([old.codes, piece.codes]))
      parts.append(piece)
    else:
      seam = _space(before.rstrip() if last == 'audio' else before, piece.text)
      text = seam + piece.text
      parts.append(Part('text', parts.pop().text + text if last == 'text' else text))
    before = piece.text
  return Record(f'pt-{recording.id}', 'pt', 'PT', (Turn('document', tuple(parts)),),
                recording.where)


def _space(left: str, right: str) -> str:
  """What goes between two pieces of text."""
  ends = left[-1:] + right[:1]
  return '' if not left or any(c.isspace() or _WIDE.match(c) for c in ends) else ' '


_MAKERS = {'asr': asr, 'tts': tts, 'audio_qa': audio_qa, 'audio_chat': audio_chat, 'aac': aac,
           'sec': sec, 'asc': asc, 'text_chat': text_chat}


def to_record(recording: Recording, task: str, rng: np.random.Generator | None = None,
              speech: float = 0.5) -> Record:
  """The Record that a task makes of a recording, without a system turn.

  Args:
    recording: as parse_recording read it for this task.
    task: one of RECORDED.
    rng: for 'pt', whose codes must be known: draws which pieces are spoken.
    speech: for 'pt': the share of pieces with speech that are spoken.
  """
  if task == 'pt':
    assert rng is not None, 'pt draws which pieces are spoken'
    return pt(recording, rng, speech)
  return _MAKERS[task](recording)


def with_prompt(record: Record, prompt: str | None, text_chunk: int = 13,
                audio_chunk: int = 26) -> Record:
  """The record with its system turn.

  Args:
    record: any; a pretraining document is returned as it is.
    prompt: None keeps the record's own system turn, and gives a record without one the
      wording of its task, if it has one; '' takes the system turn away; any other
      text becomes the system turn.
    text_chunk, audio_chunk: for that wording.
  """
  if record.turns[0].role == 'document':
    return record
  has = record.turns[0].role == 'system'
  if prompt is None:
    if has:
      return record
    prompt = wording(record.task, text_chunk, audio_chunk)
  head = (Turn('system', (Part('text', prompt),)),) if prompt else ()
  return dataclasses.replace(record, turns=head + record.turns[has:])


def prompt_of(record: Record) -> str:
  """The text of the record's system turn, '' if it has none."""
  head = record.turns[0]
  return ''.join(part.text for part in head.parts) if head.role == 'system' else ''


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
