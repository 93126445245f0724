"""Whether an answer contains a reference: the score of spoken question answering and of labels.

Both texts are reduced to the same words: those of ``words.tokens`` with the rule 'paper', without
the articles a, an, the and without accents. A number is one word, so that 25 does not contain 5;
English number words are numbers: 'twenty-four' and '24' are the same, as are 'two hundred and five'
and '205', 'nineteen sixty-nine' and '1969', '1,000' and 'one thousand', 'three point one four' and
'3.14'. Initials are one word: 'U.S.A.' is USA, and 'J. K. Rowling', 'J K Rowling', 'JK Rowling' are
the same.
"""

import re
import unicodedata

from ttt_jax.tokens import words

_UNITS = {word: value for value, word in enumerate(
    'zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen '
    'sixteen seventeen eighteen nineteen'.split())}
_TENS = {word: 10 * value for value, word in enumerate(
    'twenty thirty forty fifty sixty seventy eighty ninety'.split(), 2)} | {'fourty': 40}
_SCALES = {'thousand': 10**3, 'million': 10**6, 'billion': 10**9, 'trillion': 10**12}
_PLURALS = {f'{word}s': word for word in (*_SCALES, 'hundred')}
_NUMBER = {*_UNITS, *_TENS, *_SCALES, *_PLURALS, 'hundred'}
_WORD = re.compile(r"[A-Za-z]+|[^A-Za-z]+")
_ARTICLES = ('A', 'AN', 'THE')
_THOUSANDS = re.compile(r"(?<=\d)[,'](?=\d{3}(?!\d))")
_POINT = re.compile(r'(?<=\d)\.(?=\d)')
_SAID_POINT = re.compile(r'(?<=\d) point (\d(?: \d)*)(?!\d)', re.I)
_DOTTED = re.compile(r'(?<![A-Za-z.])(?:[A-Za-z]\. ?){2,}')  # U.S.A., J. K.
# J K; not A and I, which are words.
_SPACED = re.compile(r"(?<![\w.'])[B-HJ-Z](?: [B-HJ-Z])+(?![\w'])", re.I)


def reduced(text: str) -> str:
  """The words of a text that are compared, separated by single spaces; of a text that has only
  articles, such as 'A', these."""
  found = _words(text)
  return ' '.join([word for word in found if word not in _ARTICLES] or found)


def contains(text: str, reference: str) -> bool:
  """Whether the words of ``reference`` stand in ``text``, in order and beside each other."""
  return contains_any(text, (reference,))


def contains_any(text: str, references: tuple[str, ...]) -> bool:
  """Whether one of the references stands in ``text``."""
  every = _words(text)
  said, with_articles = (f' {" ".join(some)} ' for some in (
      [word for word in every if word not in _ARTICLES], every))
  return any(wanted and f' {wanted} ' in (with_articles if wanted in _ARTICLES else said)
             for wanted in map(reduced, references))


def _words(text: str) -> list[str]:
  text = _DOTTED.sub(lambda found: re.sub(r'[. ]', '', found[0]) + ' ', _plain(text))
  text = _SPACED.sub(lambda found: found[0].replace(' ', ''), text)
  text = _SAID_POINT.sub(lambda found: '.' + found[1].replace(' ', ''), _numbers(text))
  return words.tokens(_POINT.sub('POINT', _THOUSANDS.sub('', text)), 'paper')


def _plain(text: str) -> str:
  """Latin letters without accents; other scripts as they are."""
  out = []
  for c in unicodedata.normalize('NFC', text):
    parts = unicodedata.normalize('NFD', c)
    latin = len(parts) > 1 and parts[0].isascii() and parts[0].isalpha()
    out.append(parts[0] if latin else c)
  return ''.join(out)


def _numbers(text: str) -> str:
  """The text with runs of English number words as digits."""
  pieces = _WORD.findall(text)
  out: list[str] = []
  at = 0
  while at < len(pieces):
    end, run = at, []
    while end < len(pieces):
      word = pieces[end].lower()
      joined = bool(run) and pieces[end].strip() in ('', '-') and len(pieces[end]) <= 2
      if word in _NUMBER:
        run.append(_PLURALS.get(word, word))
      elif not joined and not (word == 'and' and run and run[-1] in ('hundred', *_SCALES)
                               and _number_follows(pieces, end)):
        break
      end += 1
    if not run:
      out.append(pieces[at])
      at += 1
      continue
    while pieces[end - 1].lower() not in _NUMBER:  # a separator or 'and' after the last number
      end -= 1
    out.append(' '.join(map(str, _values(run))))
    at = end
  return ''.join(out)


def _number_follows(pieces: list[str], at: int) -> bool:
  return at + 2 < len(pieces) and pieces[at + 2].lower() in _NUMBER


def _values(run: list[str]) -> list[int]:
  """The numbers that a run of number words says: years such as 'nineteen sixty nine' are one."""
  out: list[int] = []
  total, part, last = 0, 0, ''
  for word in run:
    if word in _SCALES:
      total, part = total + (part or 1) * _SCALES[word], 0
    elif word == 'hundred':
      part = (part or 1) * 100
    else:
      value = _TENS.get(word, _UNITS.get(word, 0))
      fits = (not last or last in ('hundred', *_SCALES)
              or last in _TENS and word in _UNITS and 0 < value < 10)
      if fits:
        part += value
      elif not total and 10 <= part < 100 and value >= 10:  # a year
        part = 100 * part + value
      elif not total and part >= 1000 and part % 100 in _TENS.values() and 0 < value < 10:
        part += value
      else:  # 'one two three'
        out.append(total + part)
        total, part = 0, value
    last = word
  return [*out, total + part]
