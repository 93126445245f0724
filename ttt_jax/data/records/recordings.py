"""Recordings: audio, text and answer of one object of a manifest, before it becomes a record.

The required keys depend on the task. Audio is "audio": "a.wav" or "codes": [...]. Keys that a
task does not use are passed over, so that one manifest can be used for several tasks; `prepare`
lists them, unless they are metadata (keys.py).

  task                  keys
  asr, tts              audio, text
  audio_qa, audio_chat  audio, answer; optional: question, text, answer_audio
  aac, sec, asc         audio, answer or text; optional: question, answer_audio
  text_chat             text, answer
  pt                    pieces: [{text; optional: audio}, ...]

"text" is the transcript of the audio, except for aac, sec and asc, where it is the answer if
there is no "answer". "answer_audio" or "answer_codes" is the speech of an answer. "question"
(also instruction, query, input) is what the user writes beside the audio, which stands where
the question has a placeholder such as <audio>, or else after it. "system" is a system prompt.
Accepted names of other manifest formats are in ALIASES.
"""

import dataclasses
from typing import Any, Callable, Iterator

from ttt_jax.data.records import embedded, keys, lhotse, shapes, sounds
from ttt_jax.data.records.markup import BEGINS, ENDS
from ttt_jax.data.records.parts import Part
from ttt_jax.data.records.sounds import audio_part
from ttt_jax.errors import UserError

SOUNDS = ('aac', 'sec', 'asc')  # tasks about sounds that need not be speech
RECORDED = ('asr', 'tts', 'audio_qa', 'audio_chat', *SOUNDS, 'text_chat', 'pt')

# Names in manifests of NeMo, Common Voice, DeepSpeech, WeNet, VoxPopuli, LibriTTS, FLEURS,
# AudioCaps, ESC-50, UrbanSound8K and TAU.
ALIASES = {'audio': ('audio_filepath', 'audio_path', 'audio_file', 'audiopath', 'path', 'file',
                     'file_name', 'filename', 'filepath', 'file_path', 'wav', 'wav_path',
                     'wav_filename', 'wav_file', 'speech', 'sound', 'flac', 'mp3', 'opus', 'fname',
                     'slice_file_name'),
           'text': ('transcript', 'transcription', 'sentence', 'txt', 'normalized_text',
                    'text_normalized', 'norm_text', 'raw_text', 'raw_transcription')}
_ANSWERS = ('response', 'output', 'completion')
_SPOKEN_ALIASES = {**ALIASES, 'answer': _ANSWERS}
_SOUND_ALIASES = {'audio': ALIASES['audio'], 'answer': (
    *_ANSWERS, 'caption', 'label', 'category', 'scene', 'scene_label', 'text')}
_QUESTIONS = ('instruction', 'question', 'query', 'input')
_SPOKEN_QUESTIONS = _QUESTIONS[:3]
_ASKED = (*_QUESTIONS, 'context')  # of text_chat


@dataclasses.dataclass(frozen=True, eq=False)
class Recording:
  """One object of a manifest, parsed for a task.

  Attributes:
    id: its name; the line number in its file if the object has none.
    audio: the user's audio, or the speech of asr and tts: a Part of kind 'audio' whose text is
      the transcript, '' if unknown; None for text_chat and pt.
    where: 'file:line', for error messages.
    answer: the assistant's text and, if known, its speech; () for asr and tts, whose answer is
      the recording itself. For pt the pieces of the document: those that have speech are
      audio parts with their text as transcript.
    instruction: the user's text before the audio; '' = none, or for aac, sec and asc the default
      instruction, unless there is text after the audio.
    after: the user's text after the audio.
    system: the system prompt, '' if it has none.
    unused: keys of the object that were not used and are not known to be metadata.
  """
  id: str
  audio: Part | None
  where: str = ''
  answer: tuple[Part, ...] = ()
  instruction: str = ''
  after: str = ''
  system: str = ''
  unused: tuple[str, ...] = ()

  @property
  def speech(self) -> Part:
    """``audio`` of a task that has it."""
    assert self.audio is not None, f'{self.where}: a recording of text_chat or pt'
    return self.audio

  @property
  def text(self) -> str:
    """The transcript of ``audio``; '' if there is none."""
    return self.audio.text if self.audio else ''

  def audio_parts(self) -> Iterator[Part]:
    """Every audio part of the recording."""
    return (part for part in (self.audio, *self.answer) if part and part.kind == 'audio')

  def map_audio(self, change: Callable[[Part], Part]) -> 'Recording':
    """The recording with ``change`` applied to every audio part."""
    return dataclasses.replace(
        self, audio=change(self.audio) if self.audio else None,
        answer=tuple(change(part) if part.kind == 'audio' else part for part in self.answer))


def is_record(value: dict[str, Any]) -> bool:
  """Whether an object of a manifest is a record, to be parsed by records.parse."""
  return any(key in value for key in ('messages', 'conversations', 'prompt', 'response'))


def parse_recording(value: dict[str, Any], where: str, task: str = 'asr') -> Recording:
  """Parses one JSON object; a key that is null counts as absent.

  Args:
    value: the object; the module's docstring lists the keys of each task.
    where: 'file:line'; every error starts with it.
    task: one of RECORDED.

  Raises:
    UserError: no text, answer, audio or pieces where the task needs them, or audio markup
      inside text.
  """
  assert task in RECORDED, task
  value = _with_audio(lhotse.flat(
      {key: found for key, found in value.items() if found is not None}, where), task)
  value = columns_of_sounds(value, where)
  name = str(value.get('id', where.rsplit(':', 1)[-1]))
  found, used = _READERS.get(task, _read_answered)(value, where, task, name)
  if not keys.empty(value.get('history')):
    raise UserError(f'{where}: a recording has no history; write "messages" with all turns, in a '
                    'source without a task.')
  used |= {'id', 'task', 'type', *shapes.record_flags(value, where)}
  system = next((key for key in shapes.SYSTEMS if isinstance(value.get(key), str)), '')
  return dataclasses.replace(
      found, system=value[system] if system else '', unused=(*found.unused, *keys.check(
          value, 'record', {*used, system}, f'{where}: the recording')))


def _with_audio(value: dict[str, Any], task: str) -> dict[str, Any]:
  """The object with "question_audio", the speech of "question", or with a path in "audio_id" as
  "audio", if it has no other."""
  if any(key in value for key in ('codes', 'audio', *ALIASES['audio'])):
    return value
  for key in _SPOKEN_QUESTIONS if task in ('audio_qa', 'audio_chat') else ():
    if not keys.empty(value.get(f'{key}_audio')):
      out = {**value, 'audio': value[f'{key}_audio']}
      del out[f'{key}_audio']
      text = out.get(key)
      if 'text' not in out and isinstance(text, str) and not sounds.PLACEHOLDER.search(text):
        out['text'] = out.pop(key)
      return out
  if sounds.is_sound(value.get('audio_id')):
    return {**value, 'audio': value['audio_id']}
  return value


def columns_of_sounds(value: dict[str, Any], where: str) -> dict[str, Any]:
  """The object with its only audio column of Hugging Face, whatever its name, as "audio"."""
  if any(key in value for key in ('codes', 'audio', *ALIASES['audio'], 'pieces', 'messages')):
    return value
  found = [key for key, one in value.items()
           if key != 'answer_audio' and embedded.is_column(one)]
  if len(found) > 1:
    raise UserError(f'{where}: the recording has several sounds, {", ".join(map(repr, found))}; '
                    'rename one to audio.')
  return {**{key: one for key, one in value.items() if key not in found},
          'audio': value[found[0]]} if found else value


Found = tuple[Recording, set[str]]  # the recording, and the keys that were used


def _read_spoken(value: dict, where: str, task: str, name: str) -> Found:
  """asr, tts: speech and its transcript."""
  given, value = value, _renamed(value, ALIASES)
  text = value.get('text')
  if not isinstance(text, str) or not text.strip():
    raise UserError(f'{where}: a recording needs "text", its transcript, as a non-empty string; '
                    'records with "messages" need a source without a task.')
  text = _words(value, 'text', where)
  return (Recording(name, audio_part(value, f'{where}: the recording', text), where),
          {*_audio_keys(value, where), 'text', *_used(given, ALIASES['text'])})


def _read_answered(value: dict, where: str, task: str, name: str) -> Found:
  """audio_qa, audio_chat, aac, sec, asc: audio and an answer to it."""
  sound = task in SOUNDS
  aliases = _SOUND_ALIASES if sound else _SPOKEN_ALIASES
  given, value = value, _renamed(value, aliases)
  _need(value, 'answer', where, task)
  before, after = _question(value, where)
  text = '' if sound else _words(value, 'text', where)
  answer = _words(value, 'answer', where)
  audio = audio_part(value, f'{where}: the recording', text)
  speech = ()
  if value.get('answer_codes') is not None or value.get('answer_audio', '') != '':
    speech = (audio_part(value, f'{where}: the recording', answer, 'answer_'),)
  used = {*_audio_keys(value, where), 'answer', 'answer_audio', 'answer_codes', *_QUESTIONS,
          *_used(given, aliases['answer'], 'answer')}
  if not sound:
    used |= {'text', *_used(given, ALIASES['text'])}
  return Recording(name, audio, where, (Part('text', answer), *speech), before, after), used


def _question(value: dict, where: str) -> tuple[str, str]:
  """What the user writes (before the audio, after it)."""
  text = '\n'.join(words for key in _QUESTIONS if (words := _words(value, key, where)))
  if not sounds.PLACEHOLDER.search(text):
    return text, ''
  sound = Part('audio')
  (pieces,) = sounds.place([[text]], [sound], [False], [0], f'{where}: the recording')
  at = pieces.index(sound)
  return tuple(''.join(piece for piece in side if isinstance(piece, str)).strip()
               for side in (pieces[:at], pieces[at + 1:]))  # pyright: ignore[reportReturnType]


def _read_chat(value: dict, where: str, task: str, name: str) -> Found:
  """text_chat: a text and an answer to it."""
  given, value = value, _renamed(value, {'answer': _ANSWERS})
  asked = {key for key in _ASKED if value.get(key)}
  if asked - {'input', 'context'}:  # Alpaca's "text" is question and answer in one
    value = {**value, 'text': '\n'.join(_words(value, key, where) for key in _ASKED
                                        if key in asked)}
  else:
    asked = {'text'}
  for key in ('text', 'answer'):
    _need(value, key, where, task)
  used = {'answer', *asked, *_used(given, _ANSWERS, 'answer')}
  return Recording(name, None, where, (Part('text', _words(value, 'answer', where)),),
                   _words(value, 'text', where)), used


def _read_pieces(value: dict, where: str, task: str, name: str) -> Found:
  """pt: pieces of text, some with their speech."""
  pieces = value.get('pieces')
  if not isinstance(pieces, list) or not pieces:
    raise UserError(f'{where}: a recording for pt needs "pieces", a non-empty list of {{"text": '
                    '..., "audio" or "codes": ...}; documents of text only need a source '
                    'without a task.')
  parts: list[Part] = []
  unused: list[str] = []
  for i, piece in enumerate(pieces):
    at = f'pieces[{i}]'
    if not isinstance(piece, dict):
      raise UserError(f'{where}: {at} is a {type(piece).__name__}; it must be an object with '
                      '"text" and, if it has speech, "audio" or "codes".')
    piece = _renamed({key: found for key, found in piece.items() if found is not None}, ALIASES)
    unused += (f'piece.{key}' for key in keys.check(
        piece, 'record', {'text', 'audio', 'codes', *_audio_keys(piece, where),
                          *ALIASES['text']}, f'{where}: {at}'))
    _need(piece, 'text', where, task, f'{at}.')
    text = _words(piece, 'text', where, f'{at}.')
    spoken = 'codes' in piece or piece.get('audio', '') != ''
    parts.append(audio_part(piece, f'{where}: {at}', text) if spoken else Part('text', text))
  return Recording(name, None, where, tuple(parts),
                   unused=tuple(dict.fromkeys(unused))), {'pieces'}


_READERS = {'asr': _read_spoken, 'tts': _read_spoken, 'text_chat': _read_chat, 'pt': _read_pieces}


def _renamed(value: dict, aliases: dict[str, tuple[str, ...]]) -> dict:
  """The object with aliases replaced by the names of ``aliases``; a name itself has priority."""
  for name, others in aliases.items():
    known = [other for other in others if other in value]
    if known and name not in value:
      value = {**value, name: value[known[0]]}
  return value


def _audio_keys(value: dict, where: str) -> set[str]:
  """The keys of a recording that say what its sound is."""
  return {'audio', 'codes', *ALIASES['audio'], *sounds.LENGTHS,
          *sounds.stretch(value, f'{where}: the recording').keys}


def _used(value: dict, aliases: tuple[str, ...], name: str = 'text') -> set[str]:
  """The alias that ``_renamed`` takes for a name."""
  return set() if name in value else set([one for one in aliases if one in value][:1])


def _need(value: dict, key: str, where: str, task: str, at: str = '') -> None:
  if not isinstance(value.get(key), str) or not value[key].strip():
    raise UserError(f'{where}: a recording for {task} needs "{at}{key}" as a non-empty string.')


def _words(value: dict, key: str, where: str, at: str = '') -> str:
  """value[key] as plain text, '' if it is absent."""
  text = value.get(key, '')
  if not isinstance(text, str):
    raise UserError(f'{where}: {at}{key} is {text!r}; it must be a string.')
  if any(mark in text for mark in ('<|audio_', *BEGINS, *ENDS)):
    raise UserError(f'{where}: the {at}{key} of a recording holds audio markup; it must be plain '
                    'text.')
  return text
