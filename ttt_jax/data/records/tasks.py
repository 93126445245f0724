"""Tasks: functions from recordings to records, and the wording of every system prompt.

  task                  user gives      assistant gives
  asr                   audio           its text, the same audio
  tts                   text            the text, its audio
  audio_qa, audio_chat  audio           the answer, its speech
  aac, sec, asc         words, audio    the answer, its speech
  text_chat             text            the answer
  pt                    -               a document whose pieces are text or speech

recordings.py describes the objects of a manifest.
"""

import dataclasses
from typing import Callable, Sequence

import numpy as np

from ttt_jax.data.records.recordings import RECORDED, Recording, is_record, parse_recording
from ttt_jax.data.records.records import Part, Record, Turn
from ttt_jax.errors import UserError
from ttt_jax.tokens import words

__all__ = ['INSTRUCTIONS', 'PROMPTS', 'RECORDED', 'Recording', 'is_record', 'join',
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
  """The default system prompt of a task, '' if it has none; data.sources[i].prompt overrides it.

  Args:
    task: any name.
    text_chunk, audio_chunk: as in config section data; the prompt names the ratio.
  """
  words = _WORDINGS.get(task, '')
  return words if task == 'text_chat' or not words else (
      f'{words} Write your answer as text and speak it too: {text_chunk} text tokens, then '
      f'{audio_chunk} audio tokens, and so on in turn.')


PROMPTS = {task: wording(task) for task in _WORDINGS}  # at the ratio of the paper

# The user's text before the audio of a recording without an "instruction".
INSTRUCTIONS = {
    'aac': 'Describe this recording.',
    'sec': 'Which sound event is this?',
    'asc': 'Where was this recorded?',
}


def _record(recording: Recording, task: str, user: Sequence[Part],
            answer: Sequence[Part]) -> Record:
  return Record(f'{task}-{recording.id}', task, 'IT',
                (Turn('user', tuple(user)), Turn('assistant', tuple(answer))), recording.where)


def asr(recording: Recording) -> Record:
  """The user gives the recording; the assistant answers with its transcript and the same speech."""
  return _record(recording, 'asr', (recording.speech,),
                 (Part('text', recording.text), recording.speech))


def tts(recording: Recording) -> Record:
  """The user gives the text; the assistant answers with the text and its speech."""
  return _record(recording, 'tts', (Part('text', recording.text),),
                 (Part('text', recording.text), recording.speech))


def audio_qa(recording: Recording) -> Record:
  """The user asks in speech; the assistant answers in text and, if known, in speech."""
  return _record(recording, 'audio_qa', _asked(recording), recording.answer)


def audio_chat(recording: Recording) -> Record:
  """The user speaks; the assistant answers in text and, if known, in speech."""
  return _record(recording, 'audio_chat', _asked(recording), recording.answer)


def _asked(recording: Recording, default: str = '') -> list[Part]:
  """The user's turn: the audio, and what is written before and after it."""
  before = recording.instruction or ('' if recording.after else default)
  return [part for part in (Part('text', before), recording.speech, Part('text', recording.after))
          if part.kind == 'audio' or part.text]


def _sound(recording: Recording, task: str) -> Record:
  return _record(recording, task, _asked(recording, INSTRUCTIONS[task]), recording.answer)


def aac(recording: Recording) -> Record:
  """Audio captioning (AAC): the assistant describes a recording."""
  return _sound(recording, 'aac')


def sec(recording: Recording) -> Record:
  """Sound event classification (SEC): the assistant names the event."""
  return _sound(recording, 'sec')


def asc(recording: Recording) -> Record:
  """Acoustic scene classification (ASC): the assistant names the place of a recording."""
  return _sound(recording, 'asc')


def text_chat(recording: Recording) -> Record:
  """The user writes; the assistant answers in text."""
  return _record(recording, 'text_chat', (Part('text', recording.instruction),), recording.answer)


def pt(recording: Recording, rng: np.random.Generator, speech: float = 0.5) -> Record:
  """A pretraining document with some of its pieces replaced by their speech.

  Each piece that has speech is spoken with probability ``speech``, independently: a document
  may be all text. Adjacent spoken pieces become one span, so that a span always ends where
  text follows, and the last span of the document is the quad span. Pieces are joined
  as ``words.separator`` says: with a space, except in scripts that have none.

  Args:
    recording: as read for 'pt', with codes in its audio parts.
    rng: draws one number for each piece.
    speech: probability.
  """
  spoken = rng.random(len(recording.answer)) < speech
  parts: list[Part] = []
  before = ''  # text of the previous piece, written or spoken
  for piece, aloud in zip(recording.answer, spoken):
    last = parts[-1].kind if parts else ''
    if piece.kind == 'audio' and aloud:
      if last == 'audio':
        old = parts.pop()
        piece = Part('audio', old.text + words.separator(old.text, piece.text) + piece.text,
                     np.concatenate([old.known_codes, piece.known_codes]))
      parts.append(piece)
    else:
      seam = words.separator(before.rstrip() if last == 'audio' else before, piece.text)
      text = seam + piece.text
      parts.append(Part('text', parts.pop().text + text if last == 'text' else text))
    before = piece.text
  return Record(f'pt-{recording.id}', 'pt', 'PT', (Turn('document', tuple(parts)),),
                recording.where)


_MAKERS = {'asr': asr, 'tts': tts, 'audio_qa': audio_qa, 'audio_chat': audio_chat, 'aac': aac,
           'sec': sec, 'asc': asc, 'text_chat': text_chat}


def to_record(recording: Recording, task: str, rng: np.random.Generator | None = None,
              speech: float = 0.5) -> Record:
  """The record of a task for a recording, with a system turn if the recording has one.

  Args:
    recording: as parse_recording returned it for this task.
    task: one of RECORDED.
    rng: for 'pt', whose codes must be known: draws which pieces are spoken.
    speech: for 'pt': probability that a piece with speech is spoken.
  """
  if task == 'pt':
    assert rng is not None, 'pt draws which pieces are spoken'
    return pt(recording, rng, speech)
  record = _MAKERS[task](recording)
  if not recording.system:
    return record
  system = Turn('system', (Part('text', recording.system),))
  return dataclasses.replace(record, turns=(system, *record.turns))


def with_prompt(record: Record, prompt: str | None, text_chunk: int = 13,
                audio_chunk: int = 26) -> Record:
  """The record with its system turn.

  Args:
    record: any record; a pretraining document is returned unchanged.
    prompt: None keeps an existing system turn and otherwise adds the default wording of the
      task, if it has one; '' removes the system turn; any other text replaces it.
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


def join(recordings: Sequence[Recording], max_pieces: int, count: int, rng: np.random.Generator,
         excluded: frozenset[str] | set[str] = frozenset(),
         fits: Callable[[Recording], bool] = lambda recording: True) -> list[Recording]:
  """Makes longer recordings by concatenating codes and texts of several.

  Texts are joined as ``words.separator`` says: with a space, except in scripts that have none.
  A joined text is never longer than the longest single one, so that the distribution of
  lengths keeps its range.

  Args:
    recordings: the pieces; their codes must be known.
    max_pieces: each joined recording has 2 to this many pieces.
    count: how many to make; all texts differ, also from those of single pieces.
    rng: draws the number of pieces and the pieces.
    excluded: texts that no joined text may equal or contain as a sequence of words, such as those
      of held-out recordings; compared as ``words.comparable`` does.
    fits: whether a joined recording is short enough; others are redrawn.

  Raises:
    UserError: there are not enough different combinations.
  """
  if count and (max_pieces < 2 or not recordings):
    raise UserError(f'data source: join_count={count} needs join_most of at least 2 (it is '
                    f'{max_pieces}) and at least one recording (there are {len(recordings)}).')
  excluded = {words.comparable(text) for text in excluded}
  seen = {words.comparable(r.text) for r in recordings}
  leaks = lambda text: any(f' {held} ' in f' {text} ' for held in excluded)
  longest = max((len(r.text) for r in recordings), default=0)
  out, tries = [], 0
  while len(out) < count:
    tries += 1
    if tries > 100 * count + 1000:
      raise UserError(f'data source: join_count={count} is more than {len(recordings)} recordings '
                      f'give with join_most={max_pieces} in one row; {len(out)} were found.')
    size = rng.integers(2, max_pieces + 1)
    pieces = [recordings[i] for i in rng.integers(len(recordings), size=size)]
    text = ''
    for piece in pieces:
      text += words.separator(text, piece.text) + piece.text
    normal = words.comparable(text) if len(text) <= longest else ''
    if not normal or normal in seen or leaks(normal):
      continue
    codes = np.concatenate([piece.speech.known_codes for piece in pieces])
    joined = Recording('+'.join(piece.id for piece in pieces), Part('audio', text, codes),
                       pieces[0].where)
    if fits(joined):
      seen.add(normal)
      out.append(joined)
  return out
