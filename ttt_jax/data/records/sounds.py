"""Sounds of records and recordings: the keys that name them, and their place in a text.

A sound is a path, or an object with a path, or codes; beside a text, inside it, or in its place:

  {"audio": "a.wav"}, {"audios": ["a.wav", "b.wav"]}, {"codes": [1, 2]}   on a record or a turn
  {"type": "audio", "audio": "a.wav"}                                     a part
  <audio>a.wav</audio>                                                    in a string
  {"audio": "long.wav", "offset": 2.5, "duration": 1.0, "channel": 0}     a stretch of a file

The sounds beside a text stand where it has placeholders, such as <audio>; see PLACEHOLDER.
"""

import dataclasses
import json
import math
import re
from collections.abc import Collection
from typing import Any, NamedTuple, Sequence

import numpy as np

from ttt_jax.data.records import embedded, markup
from ttt_jax.data.records.parts import Part
from ttt_jax.errors import UserError

# Keys of a record, a turn or a part whose value is a sound, or a list of sounds.
NAMES = ('audios', 'audio', 'speech', 'speeches', 'sound', 'sounds', 'wav', 'wavs', 'audio_path',
         'audio_paths', 'audio_file', 'audio_files', 'audio_filepath', 'audio_url', 'audio_urls',
         'input_audio', 'wav_path', 'wav_file', 'speech_path', 'speech_file', 'sound_path',
         'audio_base64')
# Keys that name a sound if their value has the suffix of one; else they are metadata.
FILE_NAMES = ('path', 'file', 'file_name', 'filename', 'filepath', 'file_path', 'audio_id')
_NAMING = frozenset((*NAMES, *FILE_NAMES, 'codes'))
_PART_NAMES = (*NAMES, 'url', 'data', 'value', 'content', *FILE_NAMES)
_INSIDE = ('path', 'url', 'file', 'filename', 'audio_filepath', 'audio', 'uri')  # of an object
_SUFFIX = re.compile(r'\.(?:wav|wave|flac|mp3|mp2|ogg|oga|opus|m4a|aac|wma|amr|aif|aiff|aifc|au|'
                     r'snd|sph|caf|w64|rf64|webm|mp4|mka|spx)$', re.I)
_PATH = re.compile(r'(?!https?:)\S+\.(?:wav|flac|mp3|ogg|opus|m4a)', re.I)
_SOUND_URI = re.compile(r'(?:data:audio/|file://|https?://\S+$)', re.I)

# What stands for a sound in a text, in forms of ms-swift, LLaMA-Factory, VITA, LLaMA-Omni, SALMONN,
# MiniCPM-o, Ultravox, Qwen2-Audio and Qwen-Omni; a begin and an end around it belong to it.
PLACEHOLDER = re.compile(
    r'(?:<\|audio_bos\|>|<\|audio_start\|>|<\|begin_of_audio\|>|<speech>(?=<speechhere>))?'
    r'(?P<name><audio>[^<>\s]{0,200}</audio>|<(?:audio|speech|sound|speechhere|audiohere|audio_here|'
    r'audio_placeholder|audio[_ ]?\d{1,3})>|<\|(?:audio|speech|sound|audio_placeholder|audio_pad)'
    r'\|>|\[audio\])'
    r'(?:<\|audio_eos\|>|<\|audio_end\|>|<\|end_of_audio\|>|(?<=<speechhere>)</speech>)?', re.I)
_USUAL = ('<audio>', '<|audio|>')
_NUMBERED = re.compile(r'(?<!\|>)<\|audio_([1-9])\|>(?!\s*<\|audio_)')
_INLINE = re.compile(r'<audio>\s*([^<>\n]+?)\s*</audio>', re.I)


# The stretch of a file, by unit [s].
_STARTS = {'offset': 1.0, 'start': 1.0, 'start_time': 1.0, 'begin': 1.0, 'begin_time': 1.0,
           'start_sec': 1.0, 'start_seconds': 1.0, 'segment_start': 1.0, 'audio_start': 1.0,
           'start_s': 1.0, 'offset_ms': 1e-3, 'start_ms': 1e-3, 'begin_ms': 1e-3,
           'start_time_ms': 1e-3}
_STOPS = {'end': 1.0, 'end_time': 1.0, 'stop': 1.0, 'end_sec': 1.0, 'end_seconds': 1.0,
          'segment_end': 1.0, 'audio_end': 1.0, 'end_s': 1.0, 'end_ms': 1e-3, 'stop_ms': 1e-3,
          'end_time_ms': 1e-3}
LENGTHS = {'duration': 1.0, 'duration_sec': 1.0, 'duration_seconds': 1.0, 'duration_ms': 1e-3}
_CHANNELS = ('channel', 'channel_selector', 'channel_index', 'channel_idx', 'channel_id')
_SIDES = {'left': 0, 'l': 0, 'a': 0, 'right': 1, 'r': 1, 'b': 1}
# Markup of a span, as records.to_json writes it where the span is a part.
SPANS = [[begin, end] for begin, ends in markup.BEGINS.items() for end in (*ends, '')] + [
    ['', end] for end in markup.ENDS]
STRETCH = frozenset((*_STARTS, *_STOPS, *LENGTHS, *_CHANNELS, 'onset'))
_CLOCK = re.compile(r'(?:(\d{1,4}):)?(\d{1,4}):(\d{1,2}(?:[.,]\d{1,9})?)', re.ASCII)
_APART = 0.02  # seconds that start + duration and end may differ, for rounded numbers


class Stretch(NamedTuple):
  """What an object says about the stretch of its sound, and the keys that say it."""
  offset: float = 0.0
  duration: float | None = None
  channel: int | None = None
  keys: tuple[str, ...] = ()

  @property
  def fields(self) -> dict[str, Any]:
    """As fields of a Part."""
    return {'offset': self.offset, 'duration': self.duration, 'channel': self.channel}


# -- the stretch of a file ------------------------------------------------------------------


def stretch(value: dict[str, Any], at: str) -> Stretch:
  """The stretch that an object names by offset and duration, or start and end, and its channel.

  Numbers may be strings, as in a table. Keys with other values, such as a date in "start", are
  not about the sound and left alone.

  Raises:
    UserError: negative numbers, an end before the start, keys that contradict each other.
  """
  if STRETCH.isdisjoint(value):
    return Stretch()
  keys: list[str] = []
  def read(units: dict[str, float], what: str) -> float | None:
    found: dict[str, float] = {}
    for key, unit in units.items():
      number = _number(value.get(key))
      if number is None:
        continue
      if not math.isfinite(number) or number < 0:
        raise UserError(f'{at} has {key!r} {value[key]!r:.40}; it must be a number from 0, in '
                        f'{"seconds" if unit == 1 else "milliseconds"}.')
      found[key] = number * unit
    keys.extend(found)
    if found and max(found.values()) - min(found.values()) > _APART:
      raise UserError(f'{at} has {" and ".join(f"{key!r} {value[key]!r}" for key in found)}, '
                      f'which contradict each other; give one {what}.')
    return next(iter(found.values()), None)
  starts, stops = _STARTS, _STOPS
  if _number(value.get('onset')) is not None:  # sound events have onset and offset, start and end
    starts = {'onset': 1.0, **{key: unit for key, unit in starts.items() if key != 'offset'}}
    stops = {'offset': 1.0, **stops}
  start, stop = read(starts, 'start'), read(stops, 'end')
  # The length of a whole file is often metadata, and only "duration" is a length to read.
  only = start is None and stop is None
  length = read({'duration': 1.0} if only else LENGTHS, 'duration')
  if length == 0 or (stop is not None and stop <= (start or 0.0)):
    raise UserError(f'{at} has {_said(value, keys)}, a stretch of no length; the end must be '
                    'after the start.')
  if stop is not None:
    between = stop - (start or 0.0)
    if length is not None and abs(length - between) > _APART:
      raise UserError(f'{at} has {_said(value, keys)}, which contradict each other; give a start '
                      'and an end, or a start and a duration.')
    length = between
  channel, key = _channel(value, at)
  return Stretch(start or 0.0, length, channel, (*keys, *key))


def _said(value: dict[str, Any], keys: Sequence[str]) -> str:
  return ' and '.join(f'{key!r} {value[key]!r}' for key in keys)


def _number(found: Any) -> float | None:
  """A number, also as a string or a time of a clock, 0:01:02.5; None if it is neither."""
  if isinstance(found, bool) or not isinstance(found, (int, float, str)):
    return None
  if isinstance(found, str) and (clock := _CLOCK.fullmatch(found.strip())):
    hours, minutes, seconds = clock.groups()
    return 3600.0 * int(hours or 0) + 60 * int(minutes) + float(seconds.replace(',', '.'))
  try:
    return float(found)
  except ValueError:
    return None
  except OverflowError:  # an integer beyond any float
    return math.inf


def _channel(value: dict[str, Any], at: str) -> tuple[int | None, tuple[str, ...]]:
  """(channel, its key); a word other than left, right, A and B is the name of a channel on air."""
  for key in _CHANNELS:
    found = value.get(key)
    if isinstance(found, list) and len(found) == 1:
      found = found[0]
    side = _SIDES.get(found.strip().lower()) if isinstance(found, str) else None
    number = float(side) if side is not None else _number(found)
    if isinstance(found, str) and found.strip().lower() in ('average', 'mean', 'mix'):
      return None, (key,)
    if isinstance(found, list) and found:
      raise UserError(f'{at} has {key!r} {str(found)[:40]}; a sound has one channel, or the mean '
                      'of all where there is no such key.')
    if number is None:
      continue
    if not math.isfinite(number) or number < 0 or number != int(number):
      raise UserError(f'{at} has {key!r} {found!r:.40}; channels count 0, 1, 2, ....')
    return int(number), (key,)
  return None, ()


# -- one sound ------------------------------------------------------------------------------


def source_of(value: Any, at: str) -> tuple[str, Stretch]:
  """The file of a value of a key such as "audio", and the stretch that the value itself names.

  Args:
    value: a path, a form of embedded.py, or an object such as {"path": ..., "offset": ...}.
    at: its place, for error messages.
  """
  if isinstance(value, list) and len(value) == 1:
    value = value[0]
  if (found := embedded.reference(value, at)) and found.strip():
    return found, stretch(value, at) if isinstance(value, dict) else Stretch()
  if isinstance(value, dict):
    inner = next((value[key] for key in _INSIDE if isinstance(value.get(key), str)
                  and value[key]), None)
    if inner is not None:
      return source_of(inner, at)[0], stretch(value, at)
  if not isinstance(value, str) or not value.strip():
    short = repr(value)[:60]
    raise UserError(f'{at} is {short}; it must be the path of an audio file.')
  return value, Stretch()


def audio_part(item: dict[str, Any], at: str, text: str, prefix: str = '') -> Part:
  """The audio part of an object with "codes" (a list of integers) or "audio" (a path).

  Args:
    item: the object; its keys start with ``prefix``, such as 'answer_'.
    at: its place, for error messages.
    text: the transcript, '' if unknown.
  """
  return _audio_part(item, at, text, prefix, ('audio',))[0]


def _audio_part(item: dict[str, Any], at: str, text: str, prefix: str,
                names: Sequence[str]) -> tuple[Part, set[str]]:
  """(the part, the keys that were used)."""
  name = next((prefix + name for name in names
               if item.get(prefix + name) not in (None, '', [])), '')
  coded = f'{prefix}codes'
  if item.get(coded) is None and not name:
    raise UserError(f'{at} needs "{prefix}audio" (the path of an audio file) or "{coded}" (a '
                    'list of integers).')
  source, own = None, Stretch()
  if name:
    try:
      source, inner = source_of(item[name], f'{at}.{name}')
    except UserError:
      if item.get(coded) is None:
        raise
    else:
      own = inner if inner.keys else stretch(item, at) if not prefix else Stretch()
  codes = None
  if item.get(coded) is not None:
    codes = _codes(item[coded])
    if codes is None:
      raise UserError(f'{at}.{coded} must be a non-empty list of integers from 0.')
  return Part('audio', text, codes, source, **own.fields), {name, coded, *own.keys}


def _codes(found: Any) -> np.ndarray | None:
  """A JSON list of codes as int32 [n]; None if it is not one."""
  if not isinstance(found, list) or set(map(type, found)) != {int}:
    return None
  if min(found) < 0 or max(found) >= 2**31:
    return None
  return np.array(found, np.int32)


# -- sounds beside a text ---------------------------------------------------------------------


def beside(value: dict[str, Any], at: str, weak: bool = True) -> tuple[list[Part], set[str]]:
  """The sounds that a record or a turn has beside its text, and the keys that name them.

  Args:
    value: the record or turn.
    at: its place, for error messages.
    weak: whether keys such as "path" count, where their value has the suffix of a sound.
  """
  if _NAMING.isdisjoint(value):
    return [], set()
  for name in (*NAMES, *(FILE_NAMES if weak else ())):
    found = value.get(name)
    if found in (None, '', [], {}):
      continue
    if name in FILE_NAMES and not (isinstance(found, str) and _SUFFIX.search(found)):
      continue
    found = _unwrapped(found)
    if isinstance(found, list) and len(found) != 1:
      return _several(value, name, found, at), {name}
    part, keys = _audio_part({**value, name: found}, at, '', '', (name,))
    return [part], keys
  codes = value.get('codes')
  if isinstance(codes, list) and codes and all(isinstance(one, list) for one in codes):
    return [_audio_part({'codes': one}, f'{at}.codes[{i}]', '', '', ())[0]
            for i, one in enumerate(codes)], {'codes'}
  if codes is not None and codes != []:
    part, keys = _audio_part(value, at, '', '', ())
    return [part], keys
  return [], set()


def cut(turns: list[list['Piece']], value: dict[str, Any], used: Collection[str],
        at: str) -> set[str]:
  """Applies the stretch that a record or a turn names to the one file inside it, in place.

  Args:
    turns: pieces of turns, of which one may be a sound without a stretch of its own.
    value: the record or turn.
    used: its keys that were used for another sound.
    at: its place, for error messages.

  Returns:
    The keys that were used.
  """
  if STRETCH.isdisjoint(value) or not STRETCH.isdisjoint(used):
    return set()
  places = [(pieces, i) for pieces in turns for i, piece in enumerate(pieces)
            if isinstance(piece, Part) and piece.kind == 'audio']
  part = places[0][0][places[0][1]] if len(places) == 1 else None
  if not isinstance(part, Part) or part.source is None or part.codes is not None or (
      part.clip[1:] != (0.0, None, None)):
    return set()
  found = stretch(value, at)
  pieces, i = places[0]
  pieces[i] = dataclasses.replace(part, **found.fields)
  return set(found.keys)


def is_sound(value: Any) -> bool:
  """Whether a value can only be a sound: a path with the suffix of one, an audio column, a list."""
  if isinstance(value, list):
    return bool(value) and all(is_sound(one) for one in value[:8])
  if isinstance(value, str):
    return bool(_PATH.fullmatch(value[:4096]))
  return embedded.is_column(value)


def _several(value: dict[str, Any], name: str, found: list, at: str) -> list[Part]:
  own = stretch({key: one for key, one in value.items() if key != 'duration'}, at)
  if own.keys:
    raise UserError(f'{at} has {len(found)} sounds in {name!r} and {_said(value, own.keys)}; give '
                    'each sound its own, as {"path": ..., "offset": ..., "duration": ...}.')
  out = []
  for i, one in enumerate(found):
    source, inner = source_of(one, f'{at}.{name}[{i}]')
    out.append(Part('audio', source=source, **inner.fields))
  return out


def _unwrapped(found: Any) -> Any:
  """A list of one as its item, and a list in JSON as a list."""
  if isinstance(found, str) and found.lstrip().startswith('['):
    try:
      found = json.loads(found)
    except (ValueError, RecursionError):
      pass
  return found[0] if isinstance(found, list) and len(found) == 1 else found


def part_of(item: dict[str, Any], at: str, text: str) -> tuple[Part | None, set[str]]:
  """(the sound of a part of type audio, the keys used); None is a place for a sound beside it."""
  if item.get('codes') is None and all(item.get(name) in (None, '', []) for name in _PART_NAMES):
    return None, set()
  item = {key: one if key == 'codes' else _unwrapped(one) for key, one in item.items()}
  part, used = _audio_part(item, at, text, '', _PART_NAMES)
  marks = item.get('span')  # written by records.to_json
  if isinstance(marks, list) and marks in SPANS:
    part, used = dataclasses.replace(part, begin=marks[0], end=marks[1]), {*used, 'span'}
  return part, used


# -- places ---------------------------------------------------------------------------------

# A piece of a turn: a string with markup, a literal Part, or None, a place for a sound.
Piece = str | Part | None


def inline(text: str) -> list[Piece]:
  """Splits a string at <audio>path</audio>; other uses of the tag stay text."""
  if '</' not in text or '</audio>' not in text.lower():
    return [text]
  out: list[Piece] = []
  start = 0
  for found in _INLINE.finditer(text):
    if _SUFFIX.search(found[1]) or _SOUND_URI.match(found[1]):
      out += [text[start:found.start()], Part('audio', source=found[1])]
      start = found.end()
  return [*out, text[start:]]


def place(turns: list[list[Piece]], sounds: Sequence[Part], after: Sequence[bool],
          targets: Sequence[int], at: str) -> list[list[Piece]]:
  """Puts sounds where the texts have placeholders, or before the text (after it, in an answer).

  Args:
    turns: pieces of each turn.
    sounds: in order; may be empty, and then placeholders are text.
    after: of each turn, whether it is an answer.
    targets: the turns that may have the sounds if there are no placeholders.
    at: the place, for error messages.

  Raises:
    UserError: the numbers of placeholders and sounds differ, or no turn can have the sounds.
  """
  slots = sum(piece is None for pieces in turns for piece in pieces)
  if not sounds:
    if slots:
      raise UserError(f'{at} has a part of type audio that needs "audio" (the path of an audio '
                      'file) or "codes" (a list of integers).')
    return turns
  texts = [piece for pieces in turns for piece in pieces if isinstance(piece, str)]
  found = [match for text in texts for match in PLACEHOLDER.finditer(text)]
  names = {_form(match) for match in found}
  if slots + len(found) != len(sounds):
    fitting = [name for name in names
               if slots + sum(_form(match) == name for match in found) == len(sounds)]
    # Where several forms fit, the others are more often words of the text.
    names = set(sorted(fitting, key=lambda name: name not in _USUAL)[:1]) or names
  count = slots + sum(_form(match) in names for match in found)
  if not count:
    return _without_placeholders(turns, sounds, after, targets, texts, at)
  if count != len(sounds):
    raise UserError(f'{at} has {_counted(count, "placeholder")} for sounds, such as '
                    f'{found[0]["name"] if found else "a part of type audio"}, but '
                    f'{_counted(len(sounds), "sound")}; give one for each.')
  rest = iter(sounds)
  out = []
  for pieces in turns:
    mine: list[Piece] = []
    for piece in pieces:
      if piece is None:
        mine.append(next(rest))
      elif isinstance(piece, Part):
        mine.append(piece)
      else:
        start = 0
        for match in PLACEHOLDER.finditer(piece):
          if _form(match) in names:
            mine += [piece[start:match.start()], next(rest)]
            start = match.end()
        mine.append(piece[start:])
    out.append(mine)
  return out


def _form(match: re.Match[str]) -> str:
  """The form of a placeholder, without what it numbers or names."""
  name = match['name'].lower()
  return '<audio>...</audio>' if name.endswith('</audio>') else re.sub(r'[_ ]?\d+', '', name)


def _without_placeholders(turns, sounds, after, targets, texts, at) -> list[list[Piece]]:
  literal = [piece.text for pieces in turns for piece in pieces
             if isinstance(piece, Part) and piece.kind == 'text']
  hidden = next((match for text in literal if (match := PLACEHOLDER.search(text))), None)
  if hidden:
    raise UserError(f'{at} has sounds and a part of type text with {hidden[0]!r}, but such parts '
                    'are taken literally; write a string, or a part {"type": "audio"} in its '
                    'place.')
  numbers = [int(match[1]) for text in texts for match in _NUMBERED.finditer(text)]
  if numbers and numbers == list(range(1, len(sounds) + 1)):
    raise UserError(f'{at} has sounds and <|audio_1|>, which is code 1 of the codec and no '
                    'placeholder; write <audio> in its place.')
  if not targets:
    raise UserError(f'{at} has {_counted(len(sounds), "sound")} but no turn of the user to put '
                    'it in; write <audio> where it belongs.')
  if len(sounds) > 1 and len(targets) > 1:
    raise UserError(f'{at} has {len(sounds)} sounds and {len(targets)} turns of the user; write '
                    '<audio> where each sound belongs.')
  out, where = list(turns), targets[0]
  out[where] = [*turns[where], *sounds] if after[where] else [*sounds, *turns[where]]
  return out


def _counted(count: int, what: str) -> str:
  return f'{count} {what}{"" if count == 1 else "s"}'


def parts_of(pieces: Sequence[Piece], at: str, answer: bool, document: bool = False) -> list[Part]:
  """Parts of a turn's pieces: audio markup of strings is read."""
  out: list[Part] = []
  for i, piece in enumerate(pieces):
    if isinstance(piece, str):
      out += markup.parse_markup(piece, at, answer, document and len(pieces) == 1)
    elif piece is not None:
      out.append(piece)
  return out
