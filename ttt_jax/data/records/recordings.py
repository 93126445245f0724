"""One object of a manifest -> Recording: sound, words and answer, before any task is made of it.

What an object needs depends on the task. Audio is "audio": "a.wav" or "codes": [...]; keys
that a task does not use are ignored, so that one manifest can serve several tasks.

  task                  keys
  asr, tts              audio, text
  audio_qa, audio_chat  audio, answer; maybe text, answer_audio
  aac, sec, asc         audio, answer or text; maybe instruction, answer_audio
  text_chat             text, answer
  pt                    pieces: [{text; maybe audio}, ...]

"text" is what is said in the audio, except for aac, sec and asc, where it is the answer if
there is no "answer". "answer_audio" or "answer_codes" is the speech of an answer. Other
names that manifests use for the same things are in the tables of aliases.
"""

import dataclasses
from typing import Any, Callable, Iterator

from ttt_jax.data.records.records import BEGINS, ENDS, Part, audio_part
from ttt_jax.errors import UserError

SOUNDS = ('aac', 'sec', 'asc')  # tasks about sounds that nobody needs to have said
RECORDED = ('asr', 'tts', 'audio_qa', 'audio_chat', *SOUNDS, 'text_chat', 'pt')

# Manifests of NeMo, of Common Voice, of LJSpeech's descendants, of AudioCaps, ESC-50 and TAU.
ALIASES = {'audio': ('audio_filepath', 'audio_path', 'path', 'file', 'file_name', 'filename',
                     'wav'),
           'text': ('transcript', 'transcription', 'sentence')}
_SOUND_ALIASES = {'audio': ALIASES['audio'],
                  'answer': ('caption', 'label', 'category', 'scene', 'scene_label', 'text')}
_CHAT_ALIASES = {'text': ('question', 'instruction')}


@dataclasses.dataclass(frozen=True, eq=False)
class Recording:
  """One object of a manifest, read for a task.

  Attributes:
    id: its name; the line number of its file when the data gives none.
    audio: what the user plays, or the speech of asr and tts: a Part of kind 'audio' whose
      text is the transcript, '' if unknown; None for text_chat and pt.
    where: 'file:line', for messages.
    answer: the assistant's words and, if known, their speech; () for asr and tts, whose
      answer is the recording itself. Of pt the pieces of the document: those that have
      speech are audio parts with their words as transcript.
    instruction: what the user writes; '' for nothing or, before a sound, for the usual words.
  """
  id: str
  audio: Part | None
  where: str = ''
  answer: tuple[Part, ...] = ()
  instruction: str = ''

  @property
  def text(self) -> str:
    """The transcript of ``audio``; '' where there is none."""
    return self.audio.text if self.audio else ''

  def audio_parts(self) -> Iterator[Part]:
    """Every audio part that the recording has."""
    return (part for part in (self.audio, *self.answer) if part and part.kind == 'audio')

  def map_audio(self, change: Callable[[Part], Part]) -> 'Recording':
    """The same recording with ``change`` applied to every audio part."""
    return dataclasses.replace(
        self, audio=change(self.audio) if self.audio else None,
        answer=tuple(change(part) if part.kind == 'audio' else part for part in self.answer))


def is_record(value: dict[str, Any]) -> bool:
  """Whether an object of a manifest holds a whole record, for records.parse."""
  return any(key in value for key in ('messages', 'conversations', 'prompt', 'response'))


def parse_recording(value: dict[str, Any], where: str, task: str = 'asr') -> Recording:
  """One JSON object -> Recording; a key that is null is as good as absent.

  Args:
    value: the object; see the module for the keys of each task.
    where: 'file:line'; every error starts with it.
    task: one of RECORDED.

  Raises:
    UserError: no text, answer, audio or pieces where the task needs them, or audio markup
      inside words.
  """
  assert task in RECORDED, task
  value = {key: found for key, found in value.items() if found is not None}
  name = str(value.get('id', where.rsplit(':', 1)[-1]))
  return _READERS.get(task, _read_answered)(value, where, task, name)


def _read_spoken(value: dict, where: str, task: str, name: str) -> Recording:
  """asr, tts: speech and its words."""
  value = _renamed(value, ALIASES)
  text = value.get('text')
  if not isinstance(text, str) or not text.strip():
    raise UserError(f'{where}: a recording needs "text", what it says, as a non-empty string; '
                    'records with "messages" belong to a source without a task of recordings.')
  text = _words(value, 'text', where)
  return Recording(name, audio_part(value, f'{where}: the recording', text), where)


def _read_answered(value: dict, where: str, task: str, name: str) -> Recording:
  """audio_qa, audio_chat, aac, sec, asc: audio and an answer to it."""
  sound = task in SOUNDS
  value = _renamed(value, _SOUND_ALIASES if sound else ALIASES)
  _need(value, 'answer', where, task)
  instruction = ''
  if sound:
    instruction = _words(value, 'instruction', where)
  text = '' if sound else _words(value, 'text', where)
  answer = _words(value, 'answer', where)
  audio = audio_part(value, f'{where}: the recording', text)
  speech = ()
  if value.get('answer_codes') is not None or value.get('answer_audio', '') != '':
    speech = (audio_part(value, f'{where}: the recording', answer, 'answer_'),)
  return Recording(name, audio, where, (Part('text', answer), *speech), instruction)


def _read_chat(value: dict, where: str, task: str, name: str) -> Recording:
  """text_chat: words and an answer to them."""
  value = _renamed(value, _CHAT_ALIASES)
  for key in ('text', 'answer'):
    _need(value, key, where, task)
  return Recording(name, None, where, (Part('text', _words(value, 'answer', where)),),
                   _words(value, 'text', where))


def _read_pieces(value: dict, where: str, task: str, name: str) -> Recording:
  """pt: pieces of text, some with their speech."""
  pieces = value.get('pieces')
  if not isinstance(pieces, list) or not pieces:
    raise UserError(f'{where}: a recording for pt needs "pieces", a non-empty list of {{"text": '
                    '..., "audio" or "codes": ...}; documents of text alone belong to a source '
                    'without a task.')
  parts = []
  for i, piece in enumerate(pieces):
    at = f'pieces[{i}]'
    if not isinstance(piece, dict):
      raise UserError(f'{where}: {at} is a {type(piece).__name__}; it must be an object with '
                      '"text" and, if it has speech, "audio" or "codes".')
    piece = _renamed({key: found for key, found in piece.items() if found is not None}, ALIASES)
    _need(piece, 'text', where, task, f'{at}.')
    text = _words(piece, 'text', where, f'{at}.')
    spoken = 'codes' in piece or piece.get('audio', '') != ''
    parts.append(audio_part(piece, f'{where}: {at}', text) if spoken else Part('text', text))
  return Recording(name, None, where, tuple(parts))


_READERS = {'asr': _read_spoken, 'tts': _read_spoken, 'text_chat': _read_chat, 'pt': _read_pieces}


def _renamed(value: dict, aliases: dict[str, tuple[str, ...]]) -> dict:
  """The object with a task's own names for what has one of their aliases."""
  for name, others in aliases.items():
    known = [other for other in others if other in value]
    if known and name not in value:
      value = {**value, name: value[known[0]]}
  return value


def _need(value: dict, key: str, where: str, task: str, at: str = '') -> None:
  if not isinstance(value.get(key), str) or not value[key].strip():
    raise UserError(f'{where}: a recording for {task} needs "{at}{key}" as a non-empty string.')


def _words(value: dict, key: str, where: str, at: str = '') -> str:
  """value[key] as plain text, '' if it is not there."""
  text = value.get(key, '')
  if not isinstance(text, str):
    raise UserError(f'{where}: {at}{key} is {text!r}; it must be a string.')
  if any(mark in text for mark in ('<|audio_', *BEGINS, *ENDS)):
    raise UserError(f'{where}: the {at}{key} of a recording holds audio markup; it must be plain '
                    'text.')
  return text
