"""WenetSpeech and GigaSpeech: stretches of long recordings, in one large JSON file.

  WenetSpeech.json    {"audios": [{"path": "audio/train/youtube/B00000/Y1.opus", "segments": [
                      {"sid": ..., "begin_time": 1.2, "end_time": 3.4, "text": ...,
                       "subsets": ["L"]}, ...]}, ...]}
  GigaSpeech.json     the same, with "text_tn" and "subsets": ["{XL}", "{L}"]

The files have a gigabyte and more, so they are never held in memory: an index of the byte ranges of
``audios`` divides them into pieces. A part is the set of segments with its name among ``subsets``.
GigaSpeech writes punctuation as <COMMA>, and marks what is no speech with tags such as <NOISE>; the
segments with such a tag are counted and left out, as its authors recommend.
"""

import functools
import pathlib
import re
from typing import Any, Iterator, NamedTuple

from ttt_jax.data.records import json_stream, readers
from ttt_jax.data.records.corpora.layout import Item, Layout, Piece, Root, Skip
from ttt_jax.errors import UserError
from ttt_jax.storage import url_path

_GARBAGE = ('<SIL>', '<MUSIC>', '<NOISE>', '<OTHER>')
_MARKS = {'<COMMA>': ',', '<PERIOD>': '.', '<QUESTIONMARK>': '?', '<EXCLAMATIONPOINT>': '!'}
_MARK = re.compile(r'\s*(' + '|'.join(_MARKS) + r')(?=\s|$)')


def punctuated(text: str) -> str:
  """GigaSpeech's transcript in small letters, with its tags of punctuation as signs."""
  return _MARK.sub(lambda found: _MARKS[found[1]], text).lower().strip()


class _Audio(NamedTuple):
  """Where an element of ``audios`` is in the file, and the parts that its segments belong to."""
  start: int
  stop: int
  segments: int
  parts: frozenset[str]


@functools.lru_cache(2)
def _index(path: pathlib.Path, stamp: tuple[int, int]) -> list[_Audio]:
  del stamp  # a part of the cache's key
  out = []
  for start, stop, value in json_stream.elements(path, 'audios'):
    segments = value.get('segments') if isinstance(value, dict) else None
    found = [one for one in segments if isinstance(one, dict)] if isinstance(segments, list) else []
    out.append(_Audio(start, stop, len(found),
                      frozenset(part for one in found for part in _parts_of(one))))
  return out


def _parts_of(segment: dict[str, Any]) -> list[str]:
  subsets = segment.get('subsets')
  return [str(one).strip('{}') for one in subsets] if isinstance(subsets, list) else []


def _find(name: str):
  def find(folder: pathlib.Path) -> Root | None:
    return next((Root(root) for root in (folder, folder / name.removesuffix('.json'))
                 if (root / name).is_file()), None)
  return find


def _pieces(corpus: str, name: str):
  """``Layout.pieces``: stretches of at most readers.CUT from one element of the part to another."""
  def pieces(root: pathlib.Path, part: str) -> list[Piece]:
    path = root / name
    found: list[tuple[int, int, int]] = []  # start, stop, segments before
    count = 0
    for one in _index(path, url_path.stamp(path)):
      if part in one.parts:
        if found and one.stop - found[-1][0] <= readers.CUT:
          found[-1] = found[-1][0], one.stop, found[-1][2]
        else:
          found.append((one.start, one.stop, count))
      count += one.segments
    return [Piece(str(path), *place, corpus, str(root), part) for place in found]
  return pieces


def _items(key: str):
  """``Layout.items``; ``key`` is that of the text."""
  def items(piece: Piece, task: str) -> Iterator[Item]:
    with url_path.place(piece.path).open('rb') as file:
      file.seek(piece.start)
      data = file.read((piece.stop or 0) - piece.start)
    for audio in json_stream.joined(data, piece.path):
      path = audio.get('path') if isinstance(audio, dict) else None
      segments = audio.get('segments') if isinstance(audio, dict) else None
      if not isinstance(segments, list):
        continue  # such an element has no segment of any part
      for segment in segments:
        if not isinstance(segment, dict) or piece.part not in _parts_of(segment):
          continue
        where = f'{piece.path}:{segment.get("sid")}'
        text = segment.get(key)
        if not isinstance(path, str):
          yield where, UserError(f'{where}: its recording has no "path".')
        elif isinstance(text, str) and not _GARBAGE_SET.isdisjoint(text.split()):
          tag = next(one for one in text.split() if one in _GARBAGE_SET)
          yield where, Skip(f'no speech: {tag}')
        else:
          yield where, {'id': segment.get('sid'), 'audio': path,
                        'start': segment.get('begin_time'), 'end': segment.get('end_time'),
                        'text': text, 'speaker': segment.get('speaker')}
  return items


_GARBAGE_SET = frozenset(_GARBAGE)

WENETSPEECH = Layout(
    'wenetspeech', 'WenetSpeech', 'WenetSpeech.json and audio/', ('asr', 'tts'),
    _find('WenetSpeech.json'),
    lambda root: {'L': 'train', 'DEV': 'dev', 'TEST_NET': 'test', 'TEST_MEETING': 'test'},
    _pieces('wenetspeech', 'WenetSpeech.json'), _items('text'), others=('S', 'M', 'W'))
GIGASPEECH = Layout(
    'gigaspeech', 'GigaSpeech', 'GigaSpeech.json and audio/', ('asr', 'tts'),
    _find('GigaSpeech.json'), lambda root: {'XL': 'train', 'DEV': 'dev', 'TEST': 'test'},
    _pieces('gigaspeech', 'GigaSpeech.json'), _items('text_tn'), others=('XS', 'S', 'M', 'L'),
    text=punctuated)
