"""Records: parsed from one JSON object in any of the common formats.

shapes.py lists the forms of conversations and documents, sounds.py the ways to name a sound,
keys.py the keys that change the meaning of a row. Content is a string, with codes inline as
<|audio_12|> runs, or a list of parts: {"type": "text", "text": ...}, which is taken literally, and
{"type": "audio", "audio": "a.wav" or "codes": [...], "text": transcript}.

In strings the audio markup is parsed (markup.py); every other control token stays plain text. In
the form 'published' a string is kept as it is written, for interleave.Renderer.
"""

import dataclasses
from typing import Any

from ttt_jax.data.records import keys, markup, shapes, sounds
from ttt_jax.data.records.markup import BEGINS, ENDS, parse_markup
from ttt_jax.data.records.parts import Clip, Part, Record, Turn
from ttt_jax.data.records.shapes import Written
from ttt_jax.data.records.sounds import audio_part
from ttt_jax.errors import UserError

__all__ = ['BEGINS', 'ENDS', 'FORMS', 'Clip', 'Part', 'Record', 'Turn', 'audio_part', 'parse',
           'parse_markup', 'pick', 'to_json']

FORMS = ('default', 'published')  # of strings, config key data.form
LITERAL = 'part.text with audio markup, kept as text'
_USED = ('id', 'task', 'type')
_TEXT_TYPES, _TEXT_KEYS = ('text', 'input_text', 'output_text'), ('text', 'content', 'value')
_AUDIO_TYPES = ('audio', 'input_audio', 'audio_url', 'speech', 'sound', 'wav', 'audio_file')
# Sounds of a question and its answer, on a record that has both. "question_audio" is the speech of
# "question", as in VoiceAssistant-400K.
_ASKED = ('question', 'prompt', 'query', 'instruction')
_SPOKEN_ASKS = ('question', 'query', 'instruction')
_ANSWERED = ('answer', 'response', 'output', 'completion')
_OWN = frozenset(f'{name}_{kind}' for name in (*_ASKED, *_ANSWERED) for kind in ('audio', 'codes'))


def parse(value: dict[str, Any], where: str, default_type: str = 'IT',
          default_task: str = '', form: str = 'default') -> Record:
  """Parses one JSON object; a key that is null counts as absent.

  Args:
    value: the object.
    where: 'file:line'; every error starts with it.
    default_type: 'IT' or 'PT', for a record that has no "type" ("text" is always 'PT').
    default_task: for a record that has no "task".
    form: one of FORMS.

  Raises:
    UserError: a missing key, a wrong type, an unknown role, an empty turn, bad markup, sounds
      without a place, a key whose meaning cannot be used.
  """
  value = {key: found for key, found in value.items() if found is not None}
  task = value.get('task', default_task)
  if not isinstance(task, str):
    raise UserError(f'{where}: task is {str(task)[:40]}; it must be a string.')
  written, used = shapes.turns_of(value, where)
  unused: list[str] = []
  kind = value.get('type', default_type)
  if isinstance(kind, str) and kind.upper() in ('IT', 'PT'):
    kind = kind.upper()
  else:  # another vocabulary, such as 'chatml'
    unused += [] if isinstance(kind, str) and kind.lower() in _SHAPE_NAMES else ['type']
    kind = default_type
  document = written[0].role == 'document'
  if document:
    _not_a_recording(value, where)
  pieces, more = _pieces(value, written, where)
  used |= more
  turns = [_turn(turn, found, where, form) for turn, found in zip(written, pieces)]
  turns = _joined(turns, written)
  _check_turns(turns, next(iter(used & set(shapes.LISTS)), 'turns'), where, form)
  unused += _unused(value, 'record', {*_USED, *used}, f'{where}: the record')
  for turn in written:
    if turn.value:
      unused += _unused(turn.value, 'turn', turn.used, f'{where}: {turn.at.rpartition(".")[0]}')
    unused += _unused_parts(turn.content, f'{where}: {turn.at}')
  return Record(str(value.get('id', where.rsplit(':', 1)[-1])), task, 'PT' if document else kind,
                tuple(turns), where, tuple(dict.fromkeys(unused)))


_SHAPE_NAMES = ('chatml', 'sharegpt', 'chatgpt', 'openai', 'alpaca', 'messages', 'conversation',
                'conversations', 'chat', 'sft', 'instruction', 'dialog', 'dialogue', 'text',
                'pretrain', 'pretraining', 'document', 'audio', 'speech', 'single', 'multi',
                'single_turn', 'multi_turn', 'single-turn', 'multi-turn')


def _unused(value: dict[str, Any], level: str, used: set[str], at: str) -> list[str]:
  """As keys.check; a key of unknown name that holds a sound is an error: no row loses its sound."""
  out = keys.check(value, level, used, at)
  for key, found in value.items() if out else ():
    known = key in used or key in keys.METADATA or key in sounds.NAMES or key in sounds.FILE_NAMES
    if not known and sounds.is_sound(found):
      raise UserError(f'{at} has a sound in {key!r}, which is no known key; call it "audio", or '
                      'remove it.')
  return out


def _not_a_recording(value: dict[str, Any], where: str) -> None:
  """Rejects {"text": ..., "audio": ...}, unless the text says where the sound belongs."""
  sound = next((key for key in (*sounds.NAMES, 'codes', *sounds.FILE_NAMES)
                if not keys.empty(value.get(key)) and (
                    key not in sounds.FILE_NAMES or sounds.is_sound(value[key]))), None)
  text = value['text']
  if sound and not (isinstance(text, str) and sounds.PLACEHOLDER.search(text)) and not (
      isinstance(text, list)):
    raise UserError(f"{where}: this is a recording, not a record (it has text and {sound!r}); set "
                    "its source's task to 'asr' or 'tts'.")


# -- turns --------------------------------------------------------------------------------


def _pieces(value: dict[str, Any], written: list[Written], where: str
            ) -> tuple[list[list[sounds.Piece]], set[str]]:
  """(pieces of each turn with all sounds in their places, the keys of the record used)."""
  pieces = [_content(turn, where) for turn in written]
  for turn, mine in zip(written, pieces):
    turn.used |= sounds.cut([mine], turn.value, turn.used, f'{where}: {turn.at.rpartition(".")[0]}')
  answers = [turn.role == 'assistant' for turn in written]
  out = list(pieces)
  placed = []
  for i, turn in enumerate(written):
    if not turn.value or turn.sound:
      continue
    found, names = sounds.beside(turn.value, f'{where}: {turn.at.rpartition(".")[0]}', weak=False)
    if found:
      turn.used |= names
      if _says_text(turn, names, where):
        pieces[i] = []
        found = [dataclasses.replace(found[0], text=turn.content), *found[1:]]
      out[i:i + 1] = sounds.place([pieces[i]], found, answers[i:i + 1], [0],
                                  f'{where}: {turn.at.rpartition(".")[0]}')
      placed.append(i)
  used: set[str] = set()
  rest = [i for i in range(len(written)) if i not in placed]
  users = [i for i, turn in enumerate(written) if turn.role == 'user']
  for names, place in ((_ASKED, 0), (_ANSWERED, -1)):
    for name in () if _OWN.isdisjoint(value) else names:
      if keys.empty(value.get(f'{name}_audio')) and keys.empty(value.get(f'{name}_codes')):
        continue
      targets = (users if place == 0 else [i for i, yes in enumerate(answers) if yes])[:]
      if not targets:
        continue
      target = targets[place]
      sound = audio_part(value, f'{where}: the record', '', f'{name}_')
      if name in _SPOKEN_ASKS and _is_plain(written[target]) and written[target].at == name:
        said = str(value[name])  # and perhaps an input after it, which is written
        sound = dataclasses.replace(sound, text=said)
        out[target] = sounds.inline(written[target].content[len(said):].lstrip('\n'))
      out[target:target + 1] = sounds.place([out[target]], [sound], [answers[target]], [0],
                                            f'{where}: the record')
      used |= {f'{name}_audio', f'{name}_codes'}
  found, names = sounds.beside(value, f'{where}: the record')
  targets = [k for k, i in enumerate(rest) if written[i].role == 'user']
  put = sounds.place([out[i] for i in rest], found, [answers[i] for i in rest], targets,
                     f'{where}: the record')
  for i, mine in zip(rest, put):
    out[i] = mine
  return out, used | names | sounds.cut(out, value, names, f'{where}: the record')


def _is_plain(turn: Written) -> bool:
  """Whether the content is a string without a placeholder."""
  return isinstance(turn.content, str) and not sounds.PLACEHOLDER.search(turn.content)


def _says_text(turn: Written, names: set[str], where: str) -> bool:
  """Whether the sound of a turn says the turn's text: {"from": "human", "text": ..., "speech": ...}
  of LLaMA-Omni.

  Raises:
    UserError: {"text": ..., "audio": ...}, which may be so.
  """
  if turn.role == 'user' and turn.at.endswith('.text') and _is_plain(turn):
    if names & {'speech', 'speech_path', 'speech_file'}:
      return True
    raise UserError(f'{where}: {turn.at} stands beside a sound, and may be what it says or a '
                    'question about it; call it "content" if it is a question, and "transcript" if '
                    'the sound says it.')
  return False


def _content(turn: Written, where: str) -> list[sounds.Piece]:
  """The pieces of a turn's content; strings are split at inline paths."""
  at, content = f'{where}: {turn.at}', turn.content
  if turn.sound:
    part, names = sounds.part_of({**turn.value, 'audio': content}, at, '')
    turn.used |= names
    return [part]
  spoken = turn.value.get('audio')
  if content is None and turn.role == 'assistant' and isinstance(spoken, dict) and isinstance(
      spoken.get('transcript'), str):  # an answer of OpenAI's models
    return [Part('text', spoken['transcript'])]
  if content is None:
    has = turn.value and sounds.beside(turn.value, at, weak=False)[0]
    if not has:
      raise UserError(f"{where}: {turn.at.rpartition('.')[0] or turn.at} must be an object with "
                      "'role' and 'content', or a text.")
    return []
  if isinstance(content, str):
    return sounds.inline(content)
  if isinstance(content, dict) and 'type' in content:
    content = [content]
  if not isinstance(content, list):
    raise UserError(f'{at} is a {type(content).__name__}; it must be a string or a list of parts.')
  if len(content) > 1 and all(isinstance(item, str) for item in content):
    raise UserError(f'{at} is a list of {len(content)} strings; it must be one string, or a list '
                    'of parts {"type": "text", "text": ...}.')
  return [piece for i, item in enumerate(content) if item is not None
          for piece in _part(item, f'{at}[{i}]')]


def _kind_of(item: Any) -> str:
  """'text' or 'audio' of a part, '' if it is neither."""
  if not isinstance(item, dict):
    return ''
  kind = item.get('type')
  if kind is None:  # Qwen-Audio: {"audio": ...} and {"text": ...}
    sound = any(item.get(name) is not None for name in (*sounds.NAMES, 'codes'))
    text = item.get('text') is not None
    return '' if sound and text else 'audio' if sound else 'text' if text else ''
  return 'text' if kind in _TEXT_TYPES else 'audio' if kind in _AUDIO_TYPES else ''


def _part(item: Any, at: str) -> list[sounds.Piece]:
  if isinstance(item, str):
    return sounds.inline(item)
  kind = _kind_of(item)
  if not kind:
    raise UserError(f'{at} must be {{"type": "text", "text": ...}} or {{"type": "audio", "audio" '
                    'or "codes": ...}'
                    + (f', not of type {str(item["type"])[:40]!r}.' if isinstance(item, dict)
                       and 'type' in item else '.'))
  item = {key: found for key, found in item.items() if found is not None}
  if kind == 'text':
    text = next((item[key] for key in _TEXT_KEYS if key in item), None)
    if not isinstance(text, str):
      raise UserError(f'{at}.text must be a string.')
    return [Part('text', text)] if text else []
  text = next((item[key] for key in ('text', 'transcript', 'transcription') if key in item), '')
  if not isinstance(text, str):
    raise UserError(f'{at}.text must be a string.')
  return [sounds.part_of(item, at, text)[0]]


def _unused_parts(content: Any, at: str) -> list[str]:
  """What the parts of a turn hold that is not used."""
  out: list[str] = []
  items: list[Any] = content if isinstance(content, list) else []
  for i, item in enumerate(items):
    if not isinstance(item, dict):
      continue
    item = {key: found for key, found in item.items() if found is not None}
    used = {'type', 'transcript', 'transcription', 'text'}
    if _kind_of(item) == 'text':
      used |= set(_TEXT_KEYS)
      text = next((item[key] for key in _TEXT_KEYS if key in item), '')
      out += [LITERAL] if isinstance(text, str) and markup.is_marked(text) else []
    else:
      used |= sounds.part_of(item, at, '')[1]
    out += _unused(item, 'part', used, f'{at}[{i}]')
  return out


def _turn(turn: Written, pieces: list[sounds.Piece], where: str, form: str) -> Turn:
  at, document = f'{where}: {turn.at}', turn.role == 'document'
  answer = turn.role in ('assistant', 'document')
  text = None
  if form == 'published' and len(pieces) == 1 and isinstance(pieces[0], str):
    text = pieces[0]
  try:
    parts = sounds.parts_of(pieces, at, answer, document)
  except UserError:
    if text is None:
      raise
    parts = [Part('text', text)]
  if text is None and turn.role != 'system' and not any(
      part.kind == 'audio' or part.text for part in parts):
    raise UserError(f'{at} is empty; a turn needs text or audio.')
  return Turn(turn.role, tuple(parts), turn.learned, text)


def _joined(turns: list[Turn], written: list[Written]) -> list[Turn]:
  """Joins turns of one role where one of them is a sound alone, as in Kimi-Audio's records."""
  out: list[Turn] = []
  sound = False
  for turn, one in zip(turns, written):
    if out and out[-1].role == turn.role and (sound or one.sound) and (
        out[-1].learned == turn.learned):
      out[-1] = dataclasses.replace(out[-1], parts=out[-1].parts + turn.parts, written=None)
      sound = sound or one.sound
    else:
      out.append(turn)
      sound = one.sound
  return out


def _check_turns(turns: list[Turn], key: str, where: str, form: str) -> None:
  if turns[0].role == 'document':
    return
  if turns[-1].role != 'assistant' and (form == 'default' or not any(
      turn.role == 'assistant' for turn in turns)):
    raise UserError(f'{where}: the last of the {key} is from the {turns[-1].role}; a record must '
                    'end with an answer of the assistant.')
  if not any(turn.learned for turn in turns if turn.role == 'assistant'):
    raise UserError(f'{where}: no answer of the record is learned, since all have a weight of 0; '
                    'leave the record out.')


# -- records as JSON ------------------------------------------------------------------------


def to_json(record: Record) -> dict[str, Any]:
  """The record in `messages` form (or `text`) with inline codes; ``parse`` reads it back."""
  def content(turn: Turn):
    if turn.written is not None:
      return turn.written
    plain = not _needs_parts(turn.parts)
    if plain and all(p.kind == 'text' for p in turn.parts):
      return ''.join(p.text for p in turn.parts)
    if plain and (any(p.begin or p.end for p in turn.parts) or turn.role == 'document'):
      return ''.join(p.text if p.kind == 'text' else p.begin + ''.join(
          f'<|audio_{c}|>' for c in p.known_codes.tolist()) + p.end for p in turn.parts)
    return [{'type': 'text', 'text': p.text} if p.kind == 'text' else _audio_json(p)
            for p in turn.parts]
  head = {'id': record.id, 'task': record.task, 'type': record.type}
  if record.turns[0].role == 'document':
    return {**head, 'text': content(record.turns[0])}
  return {**head, 'messages': [{'role': t.role, 'content': content(t),
                                **({} if t.learned else {'weight': 0})} for t in record.turns]}


def _needs_parts(parts: tuple[Part, ...]) -> bool:
  """Whether one string of all parts would be read as other parts."""
  bare = False  # whether codes without an end come before, and white space at most after them
  text = ''
  for part in parts:
    text = text + part.text if part.kind == 'text' else ''
    if part.kind == 'text':
      if markup.is_marked(text) or '</audio>' in text.lower():
        return True
      bare = bare and (not part.text or part.text.isspace())
    elif part.codes is None or (bare and not part.begin):
      return True
    else:
      bare = not part.end
  return False


def _audio_json(part: Part) -> dict[str, Any]:
  out: dict[str, Any] = {'type': 'audio'}
  if part.codes is not None:
    out['codes'] = part.codes.tolist()
  if part.source is not None:
    out['audio'] = part.source
  if part.text:
    out['text'] = part.text
  if part.begin or part.end:
    out['span'] = [part.begin, part.end]
  stretch = {'offset': part.offset, 'duration': part.duration, 'channel': part.channel}
  return {**out, **{key: found for key, found in stretch.items() if found not in (None, 0.0)
                    or key == 'channel' and found == 0}}


def pick(records: list[Record], limit: int) -> list[Record]:
  """Up to ``limit`` records of each task, evenly spaced over the list; 0 = all."""
  out = []
  for task in dict.fromkeys(record.task for record in records):
    mine = [record for record in records if record.task == task]
    count = min(limit, len(mine)) if limit else len(mine)
    out += [mine[i * len(mine) // count] for i in range(count)]
  return out
