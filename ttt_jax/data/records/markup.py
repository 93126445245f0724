"""Audio markup in strings: '<|begin_of_audio|><|audio_3|><|audio_9|><|end_of_audio|>'.

Every other control token stays plain text.
"""

import re
from typing import Iterator

import numpy as np

from ttt_jax.data.records.parts import Part
from ttt_jax.errors import UserError

BEGINS = {'<|begin_of_audio|>': ('<|end_of_audio|>', '<|end_of_audio_new|>'),
          '<|begin_of_quad|>': ('<|end_of_audio_span_last|>',)}
ENDS = tuple(end for ends in BEGINS.values() for end in ends)
_MARKS = re.compile(r'(<\|(?:' + '|'.join(name[2:-2] for name in (*BEGINS, *ENDS)) + r')\|>)')
_CODE = re.compile(r'<\|audio_(\d+)\|>')
_RUNS = re.compile(r'((?:<\|audio_\d+\|>)+)')
_NONE = np.zeros(0, np.int32)


def is_marked(text: str) -> bool:
  """Whether a string holds audio markup."""
  return '<|' in text and (bool(_MARKS.search(text)) or bool(_CODE.search(text)))


def parse_markup(text: str, at: str, answer: bool, document: bool = False) -> list[Part]:
  """Splits a string at its audio markup.

  Args:
    text: e.g. 'Hi <|begin_of_audio|><|audio_3|><|audio_9|><|end_of_audio|>'. A run of codes
      without begin and end is a span of its own; white space between codes counts for nothing.
    at: its place, for error messages.
    answer: True for an assistant's content or a document, whose spans end in
      <|end_of_audio_new|> or, after <|begin_of_quad|>, in <|end_of_audio_span_last|>;
      False for a user's, which end in <|end_of_audio|>. A span of an answer that ends in
      <|end_of_audio|> is one without markup: it does not say which span is the last.
    document: True for a document, which may begin and end inside a span: it may be a piece of a
      longer one.

  Raises:
    UserError: an end without a begin, a begin inside a span, text inside a span, a span
      that does not end or ends in another kind's end, a span without codes.
  """
  if '<|' not in text:
    return [Part('text', text)] if text else []
  parts: list[Part] = []
  begin, codes = '', None
  pieces = _MARKS.split(text)  # stretches, and begins or ends between them
  stretches, marks = pieces[::2], (*pieces[1::2], '')
  for place, (piece, run, mark) in enumerate(zip(stretches, _plain_runs(stretches), marks)):
    for found in (run,) if run is not None else _stretch(piece, at) if piece else ():
      if not begin:
        parts.append(Part('text', found) if isinstance(found, str) else Part('audio', '', found))
      elif not isinstance(found, str):
        codes = found
      elif not found.isspace():
        raise UserError(f'{at}: the text {found[:20]!r} is inside a span that {begin} opened; '
                        'a span may hold only <|audio_n|>.')
    if mark in BEGINS:
      if begin:
        raise UserError(f'{at}: {mark} is inside a span that {begin} opened; end that span '
                        'first.')
      if not answer and mark == '<|begin_of_quad|>':
        raise UserError(f'{at}: {mark} is for answers only; a user\'s audio starts with '
                        '<|begin_of_audio|>.')
      begin, codes = mark, None
    elif mark and not begin:
      # A document that begins inside a span: codes, if any are left, and the end.
      cut = [part.codes for part in parts] or [_NONE]
      if not document or place or len(cut) > 1 or cut[0] is None:
        raise UserError(f'{at}: {mark} without a begin before it.')
      parts = [Part('audio', '', cut[0], None, '', mark)]
    elif mark:
      plain = answer and begin == '<|begin_of_audio|>' and mark == '<|end_of_audio|>'
      right = BEGINS[begin][-1 if answer else 0]
      if mark != right and not plain:
        raise UserError(f'{at}: {mark} closes a span that {begin} opened; it must end with '
                        f'{right}.')
      if codes is None:
        raise UserError(f'{at}: {begin}{mark} is a span without codes.')
      parts.append(Part('audio', '', codes, None, '' if plain else begin, '' if plain else mark))
      begin = ''
  if begin and not document:
    raise UserError(f'{at}: the span that {begin} opened does not end.')
  if begin:
    parts.append(Part('audio', '', _NONE if codes is None else codes, None, begin, ''))
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
  split = _RUNS.split(piece)
  names: list[str] = []
  for number, one in enumerate(split):
    if number % 2:
      names += one[8:-2].split('|><|audio_')
    elif not one or (names and number < len(split) - 1 and one.isspace()):
      continue  # white space between two runs: they are one
    else:
      if names:
        yield _numbers(names, at)
      names = []
      yield one
  if names:
    yield _numbers(names, at)


def _numbers(names: list[str], at: str) -> np.ndarray:
  for name in names:
    if len(name.lstrip('0')) > 10 or int(name.lstrip('0') or '0') >= 2**31:
      raise UserError(f'{at}: <|audio_{name[:20]}|> is not a code of any codec.')
  return np.array([int(name.lstrip('0') or '0') for name in names], np.int32)
