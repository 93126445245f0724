"""Records: parsed from one JSON object in any of the common formats.

Accepted:
  {"messages": [{"role": "user", "content": ...}, ...]}   ChatML
  {"conversations": [{"from": "human", "value": ...}, ...]}
  {"prompt": ..., "response": ...}
  {"text": ...}                                           a pretraining document
and optionally "id", "task", "type" ('IT' or 'PT'). Content is a string, with speech
inline as <|audio_12|> runs, or a list of parts {"type": "text", "text": ...} and
{"type": "audio", "audio": "a.wav" or "codes": [...], "text": transcript}.

In strings the audio markup below is parsed; every other control token stays plain text.
"""

import dataclasses
import re
from typing import Any, Callable, Iterator, NoReturn

import numpy as np

from ttt_jax.errors import UserError

BEGINS = {'<|begin_of_audio|>': ('<|end_of_audio|>', '<|end_of_audio_new|>'),
          '<|begin_of_quad|>': ('<|end_of_audio_span_last|>',)}
ENDS = tuple(end for ends in BEGINS.values() for end in ends)
_MARKS = re.compile(r'(<\|(?:' + '|'.join(name[2:-2] for name in (*BEGINS, *ENDS)) + r')\|>)')
_RUNS = re.compile(r'((?:<\|audio_\d+\|>)+)')
_ROLES = {'system': 'system', 'user': 'user', 'human': 'user', 'assistant': 'assistant',
          'gpt': 'assistant'}
_SHAPES = '"messages", "conversations", "prompt" and "response", or "text"'


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
  """A stretch of text, or one audio span.

  Attributes:
    kind: 'text' or 'audio'.
    text: the text; for audio its transcript, '' if unknown (it is never tokenized).
    codes: int32 [n] codec codes of an audio part, or None while only ``source`` is known.
    source: path of the audio file, relative to the record's file; None for inline codes.
    begin, end: the markup around the span in the source, '' if it had none.
    offset: where the part begins in ``source`` [s].
    duration: length of the part [s]; None = to the end of the recording.
    channel: channel of ``source`` that is read, from 0; None = the mean of all channels.
  """
  kind: str
  text: str = ''
  codes: np.ndarray | None = None
  source: str | None = None
  begin: str = ''
  end: str = ''
  offset: float = 0.0
  duration: float | None = None
  channel: int | None = None

  @property
  def known_codes(self) -> np.ndarray:
    """``codes`` of an audio part that is encoded already."""
    assert self.codes is not None, f'audio of {self.source} is not encoded yet'
    return self.codes


@dataclasses.dataclass(frozen=True, eq=False)
class Turn:
  """role: 'system', 'user', 'assistant', or 'document' (the one turn of a PT text)."""
  role: str
  parts: tuple[Part, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
  """One training or test example.

  Attributes:
    id: its name; the line number in its file if the object has none.
    task: 'asr', 'tts', ...; '' if unknown.
    type: 'IT' or 'PT'.
    turns: in order.
    where: 'file:line', for error messages.
  """
  id: str
  task: str
  type: str
  turns: tuple[Turn, ...]
  where: str = ''

  def map_audio(self, change: Callable[[Part], Part]) -> 'Record':
    """The record with ``change(part) -> part`` applied to every audio part."""
    return dataclasses.replace(self, turns=tuple(
        Turn(turn.role, tuple(change(p) if p.kind == 'audio' else p for p in turn.parts))
        for turn in self.turns))

  def audio(self) -> Iterator[Part]:
    return (part for turn in self.turns for part in turn.parts if part.kind == 'audio')


def parse(value: dict[str, Any], where: str, default_type: str = 'IT',
          default_task: str = '') -> Record:
  """Parses one JSON object.

  Args:
    value: the object.
    where: 'file:line'; every error starts with it.
    default_type: 'IT' or 'PT', for a record that has no "type" ("text" is always 'PT').
    default_task: for a record that has no "task".

  Raises:
    UserError: a missing key, a wrong type, an unknown role, an empty turn, bad markup.
  """
  def fail(message: str) -> NoReturn:
    raise UserError(f'{where}: {message}')
  kind = _string(value, 'type', default_type, where)
  if kind not in ('IT', 'PT'):
    fail(f"type is {kind!r}; use 'IT' or 'PT'.")
  if 'messages' in value:
    turns = _turns(value['messages'], 'messages', 'role', 'content', where)
  elif 'conversations' in value:
    turns = _turns(value['conversations'], 'conversations', 'from', 'value', where)
  elif 'prompt' in value or 'response' in value:
    for key in ('prompt', 'response'):
      if key not in value:
        fail(f'the key {key!r} is missing; "prompt" and "response" are used together.')
    turns = [Turn('user', _content(value['prompt'], 'prompt', False, where)),
             Turn('assistant', _content(value['response'], 'response', True, where))]
  elif 'text' in value and ('audio' in value or 'codes' in value):
    fail("this is a recording, not a record; set its source's task to 'asr' or 'tts'.")
  elif 'text' in value:
    kind = 'PT'
    turns = [Turn('document', _content(value['text'], 'text', True, where))]
  else:
    fail(f'a record needs {_SHAPES}; this one has {", ".join(map(repr, value)) or "no keys"}.')
  return Record(str(value.get('id', where.rsplit(':', 1)[-1])),
                _string(value, 'task', default_task, where), kind, tuple(turns), where)


def _string(value: dict, key: str, default: str, where: str) -> str:
  found = value.get(key, default)
  if not isinstance(found, str):
    raise UserError(f'{where}: {key} is {found!r}; it must be a string.')
  return found


def _turns(items: Any, key: str, role_key: str, content_key: str, where: str) -> list[Turn]:
  if not isinstance(items, list) or not items:
    raise UserError(f'{where}: {key} must be a non-empty list of '
                    f'{{"{role_key}": ..., "{content_key}": ...}}.')
  turns = []
  for i, item in enumerate(items):
    at = f'{key}[{i}]'
    if not isinstance(item, dict) or role_key not in item or content_key not in item:
      raise UserError(f'{where}: {at} must be an object with {role_key!r} and {content_key!r}.')
    role = item[role_key]
    if not isinstance(role, str) or role not in _ROLES:
      raise UserError(f'{where}: {at}.{role_key} is {role!r}; use one of '
                      f'{", ".join(sorted(_ROLES))}.')
    role = _ROLES[role]
    if role == 'system' and i:
      raise UserError(f'{where}: {at} is a system turn; only the first turn may be one.')
    turns.append(Turn(role, _content(item[content_key], f'{at}.{content_key}',
                                     role == 'assistant', where)))
  if turns[-1].role != 'assistant':
    raise UserError(f'{where}: the last of the {key} is from the {turns[-1].role}; a record must '
                    'end with an answer of the assistant.')
  return turns


def _content(value: Any, at: str, answer: bool, where: str) -> tuple[Part, ...]:
  if isinstance(value, str):
    parts = parse_markup(value, f'{where}: {at}', answer)
  elif isinstance(value, list):
    parts = [part for i, item in enumerate(value)
             for part in _part(item, f'{where}: {at}[{i}]', answer)]
  else:
    raise UserError(f'{where}: {at} is a {type(value).__name__}; it must be a string or a list of '
                    'parts.')
  if not any(part.kind == 'audio' or part.text for part in parts):
    raise UserError(f'{where}: {at} is empty; a turn needs text or audio.')
  return tuple(parts)


def _part(item: Any, at: str, answer: bool) -> list[Part]:
  kind = item.get('type') if isinstance(item, dict) else None
  if kind not in ('text', 'audio'):
    raise UserError(f'{at} must be {{"type": "text", "text": ...}} or {{"type": "audio", "audio" '
                    'or "codes": ...}.')
  text = item.get('text', '')
  if not isinstance(text, str) or (kind == 'text' and 'text' not in item):
    raise UserError(f'{at}.text must be a string.')
  if kind == 'text':
    return parse_markup(text, at, answer)
  return [audio_part(item, at, text)]


def audio_part(item: dict, at: str, text: str, prefix: str = '') -> Part:
  """The audio part of an object with "codes" (a list of integers) or "audio" (a path).

  Args:
    item: the object; its keys start with ``prefix``, such as 'answer_'.
    at: its place, for error messages.
    text: the transcript, '' if unknown.
  """
  source = item.get(f'{prefix}audio')
  if f'{prefix}codes' in item:
    codes = _codes(item[f'{prefix}codes'])
    if codes is None:
      raise UserError(f'{at}.{prefix}codes must be a non-empty list of integers from 0.')
    return Part('audio', text, codes, source if isinstance(source, str) and source else None)
  if not isinstance(source, str) or not source:
    raise UserError(f'{at} needs "{prefix}audio" (the path of an audio file) or "{prefix}codes" (a '
                    'list of integers).')
  return Part('audio', text, None, source)


def _codes(found: Any) -> np.ndarray | None:
  """A JSON list of codes as int32 [n]; None if it is not one."""
  if not isinstance(found, list) or set(map(type, found)) != {int}:
    return None
  if min(found) < 0 or max(found) >= 2**31:
    return None
  return np.array(found, np.int32)


def parse_markup(text: str, at: str, answer: bool) -> list[Part]:
  """Splits a string at its audio markup.

  Args:
    text: e.g. 'Hi <|begin_of_audio|><|audio_3|><|audio_9|><|end_of_audio|>'. A run of codes
      without begin and end is a span of its own.
    at: its place, for error messages.
    answer: True for an assistant's content or a document, whose spans end in
      <|end_of_audio_new|> or, after <|begin_of_quad|>, in <|end_of_audio_span_last|>;
      False for a user's, which end in <|end_of_audio|>.

  Raises:
    UserError: an end without a begin, a begin inside a span, text inside a span, a span
      that does not end or ends in another kind's end, a span without codes.
  """
  if '<|' not in text:
    return [Part('text', text)] if text else []
  parts, begin, codes = [], '', None
  pieces = _MARKS.split(text)  # stretches, and begins or ends between them
  stretches, marks = pieces[::2], (*pieces[1::2], '')
  for piece, run, mark in zip(stretches, _plain_runs(stretches), marks):
    for found in (run,) if run is not None else _stretch(piece, at) if piece else ():
      if isinstance(found, str) and begin:
        raise UserError(f'{at}: the text {found[:20]!r} is inside a span that {begin} opened; '
                        'a span may hold only <|audio_n|>.')
      if isinstance(found, str):
        parts.append(Part('text', found))
      elif begin:
        codes = found
      else:
        parts.append(Part('audio', '', found))
    if mark in BEGINS:
      if begin:
        raise UserError(f'{at}: {mark} is inside a span that {begin} opened; end that span '
                        'first.')
      if not answer and mark == '<|begin_of_quad|>':
        raise UserError(f'{at}: {mark} is for answers only; a user\'s audio starts with '
                        '<|begin_of_audio|>.')
      begin, codes = mark, None
    elif mark:
      right = BEGINS[begin][-1 if answer else 0] if begin else ''
      if mark != right:
        raise UserError(f'{at}: {mark} without a begin before it.' if not begin else
                        f'{at}: {mark} closes a span that {begin} opened; it must end with '
                        f'{right}.')
      if codes is None:
        raise UserError(f'{at}: {begin}{mark} is a span without codes.')
      parts.append(Part('audio', '', codes, None, begin, mark))
      begin = ''
  if begin:
    raise UserError(f'{at}: the span that {begin} opened does not end.')
  return parts


def _plain_runs(pieces: list[str]) -> list[np.ndarray | None]:
  """For each piece its codes int32 [n] if it consists of '<|audio_3|><|audio_12|>' only.

  Most of the bytes that `prepare` reads are such runs, so all runs of a string are parsed at
  once in C: without the characters of '<|audio_' a run is '3>12>'. The markup is valid if there
  is one separator per number and the lengths add up. The result is None for other pieces, and
  for all pieces if one run may be invalid; the slow path finds the error.
  """
  out: list[np.ndarray | None] = [None] * len(pieces)
  runs = [i for i, piece in enumerate(pieces) if piece[:8] == '<|audio_' and piece[-2:] == '|>']
  joined = ''.join([pieces[i] for i in runs])
  if not joined or not joined.isascii():
    return out
  numbers = joined.encode('ascii').translate(None, b'<|audio_')
  count = joined.count('|><|audio_') + 1
  if (numbers.count(b'>') != count or len(joined) != 9 * count + len(numbers)
      or numbers[:1] == b'>' or b'>>' in numbers or not numbers.replace(b'>', b'').isdigit()):
    return out
  codes = np.fromstring(numbers[:-1], np.int64, sep='>')
  if len(codes) != count or codes.max() >= 2**31:
    return out
  codes, start = codes.astype(np.int32), 0
  for i in runs:
    stop = start + pieces[i].count('|>')
    out[i], start = codes[start:stop], stop
  return out


def _stretch(piece: str, at: str) -> Iterator[str | np.ndarray]:
  """Splits text without begin and end markup into texts and runs of codes int32 [n]."""
  if '<|audio_' not in piece:
    yield piece
    return
  for number, one in enumerate(_RUNS.split(piece)):
    if number % 2 == 0:
      if one:
        yield one
      continue
    names = one[8:-2].split('|><|audio_')
    for name in names:
      if len(name.lstrip('0')) > 10 or int(name.lstrip('0') or '0') >= 2**31:
        raise UserError(f'{at}: <|audio_{name[:20]}|> is not a code of any codec.')
    yield np.array([int(name.lstrip('0') or '0') for name in names], np.int32)


def to_json(record: Record) -> dict[str, Any]:
  """The record in `messages` form (or `text`) with inline codes; ``parse`` reads it back."""
  def content(turn: Turn):
    if all(p.kind == 'text' for p in turn.parts):
      return ''.join(p.text for p in turn.parts)
    if any(p.begin for p in turn.parts) or turn.role == 'document':
      return ''.join(p.text if p.kind == 'text' else p.begin + ''.join(
          f'<|audio_{c}|>' for c in p.known_codes.tolist()) + p.end for p in turn.parts)
    return [{'type': 'text', 'text': p.text} if p.kind == 'text' else _audio_json(p)
            for p in turn.parts]
  head = {'id': record.id, 'task': record.task, 'type': record.type}
  if record.turns[0].role == 'document':
    return {**head, 'text': content(record.turns[0])}
  return {**head, 'messages': [{'role': t.role, 'content': content(t)} for t in record.turns]}


def _audio_json(part: Part) -> dict[str, Any]:
  out: dict[str, Any] = {'type': 'audio'}
  if part.codes is not None:
    out['codes'] = part.codes.tolist()
  if part.source is not None:
    out['audio'] = part.source
  if part.text:
    out['text'] = part.text
  return out


def pick(records: list[Record], limit: int) -> list[Record]:
  """Up to ``limit`` records of each task, evenly spaced over the list; 0 = all."""
  out = []
  for task in dict.fromkeys(record.task for record in records):
    mine = [record for record in records if record.task == task]
    count = min(limit, len(mine)) if limit else len(mine)
    out += [mine[i * len(mine) // count] for i in range(count)]
  return out
