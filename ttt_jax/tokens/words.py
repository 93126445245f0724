"""Words of a text as they sound: to compare two texts, and to join two texts.

Unicode categories: L letters, M combining marks, N numbers, P punctuation, S symbols, Cf format.
"""

from collections.abc import Iterable
import functools
import re
import unicodedata
from typing import NamedTuple

_DIGITS = 'zero one two three four five six seven eight nine'.split()
# Signs that change the value of a number, as they are read aloud.
_SIGNS = {'+': 'plus', '-': 'minus', '\u2212': 'minus', '.': 'point', '/': 'over', '÷': 'over',
          ':': 'colon', '×': 'times', '*': 'times', '·': 'times', '=': 'equals', '≠': 'unequal',
          '<': 'less', '>': 'greater', '≤': 'atmost', '≥': 'atleast', '±': 'plusminus',
          '^': 'power', '%': 'percent', '‰': 'permille', '°': 'degrees', '$': 'dollars',
          '€': 'euros', '£': 'pounds', '¥': 'yen', '₹': 'rupees'}
_WORDS = {**{str(i): word for i, word in enumerate(_DIGITS)}, **_SIGNS, 'oh': 'zero'}

# Scripts that do not separate words by spaces: Han, kana, Thai, Lao, Tibetan's neighbours in
# South-East Asia (Myanmar, Khmer, Tai Le, New Tai Lue, Tai Tham, Balinese, Javanese, Tai Viet), Yi.
_UNSPACED = ((0x3005, 0x3007), (0x3021, 0x3029), (0x3031, 0x3035), (0x303B, 0x303C),
             (0x3041, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
             (0xF900, 0xFAFF), (0x1B000, 0x1B16F), (0x20000, 0x3FFFD), (0x0E00, 0x0EFF),
             (0x1000, 0x109F), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F), (0x1780, 0x17FF),
             (0x1950, 0x19FF), (0x1A20, 0x1AAF), (0x1B00, 0x1B7F), (0xA980, 0xA9DF),
             (0xAA80, 0xAADF), (0xA000, 0xA48F))
_WIDE = ((0x3000, 0x303F), (0xFF00, 0xFFEF))  # punctuation of Chinese and Japanese
_MARKS_END = 0x20000  # all combining marks but variation selectors are below

# Written vowels of Hebrew and Arabic (points, harakat), which most texts leave out.
_POINTS = re.compile('[\u0591-\u05bd\u05bf-\u05c5\u05c7\u0610-\u061a\u064b-\u0652\u0656-\u065f'
                     '\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed]')
_APOSTROPHES = "'’‘ʼʻ`´′＇"
# Before NFKC: 1½, 'one and a half', would become 11/2, and 10² 102.
_FRACTION = re.compile('(?<=[0-9])(?=[¼-¾⅐-⅞↉])')
_SUPERSCRIPT = re.compile('(?<=[0-9])(?=[⁺⁻]?[²³¹⁰⁴-⁹])')
_FORMAT = re.compile('[\u00ad\u0640\u061c\u200c-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff'
                     '\u180b-\u180f\ufe00-\ufe0f\U000e0000-\U000e0fff]')
_SAME = str.maketrans({
    **dict.fromkeys(_APOSTROPHES, "'"), '\u200b': ' ', '\u2044': '/', '\u2215': '/', '\u066a': '%',
    '\u066b': '.', '\u066c': ',', '\u2010': '-', '\u2012': '-', '\u2013': '-',
    '\u22c5': '·', '\u2236': ':', '\uffe5': '¥', '\u2217': '*'})

_THOUSANDS = (re.compile(r"(?<![\d.,'])[1-9]\d{0,2}(?:[,']\d{2,3})*[,']\d{3}(?![,']?\d)"),
              re.compile(r'(?<![\d.,])[1-9]\d{0,2}(?:\.\d{3}){2,}(?!\.?\d)'),
              re.compile(r'(?<![\d.,])[1-9]\d{0,2}(?:\.\d{3})+(?=,\d{1,2}(?!,?\d))'))
_DECIMAL_COMMA = re.compile(r'(?<![\d,])(\d+),(\d+)(?!,?\d)')
_SIGN = '$¢£¥֏؋৲৳৻૱௹฿៛₠-⃏'  # of currencies
_CURRENCY = re.compile(rf'([{_SIGN}]) ?(\d[\d.]*)')


class _Patterns(NamedTuple):
  word: re.Pattern[str]      # a word, or a plus or minus
  token: re.Pattern[str]     # that, a digit, or a sign beside a digit
  unspaced: re.Pattern[str]  # a character next to which no space is written


@functools.cache
def _patterns() -> _Patterns:
  """The patterns that need Unicode categories, which `re` does not know; 30 ms."""
  mark = _class(c for c in range(0x300, _MARKS_END) if unicodedata.category(chr(c))[0] == 'M')
  unspaced = _class(c for first, last in _UNSPACED for c in range(first, last + 1)
                    if unicodedata.category(chr(c))[0] in 'LN')
  letter = rf'[^\W\d_{unspaced}]'
  word = rf"{letter}(?:{letter}|[{mark}])*"
  number = r'[-\u2212+.]?\d'  # what may follow an operator
  words = rf"{word}(?:'{word})*|[{unspaced}][{mark}]*|[+\u2212]"
  token = '|'.join((
      words, r'\d', rf'(?<![\w{mark})\]])-(?=\.?\d)', r'(?<=\d )-(?= \d)', r'(?<=\de)-(?=\d)',
      r'(?<![^\W\d_])(?<!\.)\.(?=\d)', rf'(?<=\d)[/:÷×*·=<>≤≥≠^](?={number})',
      rf'(?<=\d )[/÷×*·=<>≤≥≠^](?= {number})', rf'(?<=[\w)\]])\^(?={number})',
      r'(?<![\w"\'/])[<>≤≥±](?=\d)', rf'(?<=\d)[%‰°{_SIGN}]', rf'(?<=\d )[%‰°{_SIGN}]'))
  wide = _class(c for first, last in _WIDE for c in range(first, last + 1))
  return _Patterns(re.compile(words), re.compile(token), re.compile(f'[{unspaced}{wide}]'))


def _class(points) -> str:
  """A regular expression's set of code points, without its brackets."""
  out, start, last = [], None, None
  for point in sorted(points):
    if last is not None and point == last + 1:
      last = point
      continue
    if start is not None:
      out.append((start, last))
    start = last = point
  out.append((start, last))
  return ''.join(rf'\U{first:08x}-\U{final:08x}' for first, final in out)


def normalise_words(text: str) -> str:
  """Words separated by single spaces: lower case, no punctuation, digits as words.

  - A word is letters and their combining marks of any script. In scripts that do not separate
    words by spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese ...) every character, with its
    marks, is a word.
  - A digit is a word, whatever its script: '842-82.', 'Eight, four, two, eight, two' and
    '8 4 2 8 2' are the same five words; 'oh' is zero.
  - What changes the value of a number is a word: 3.5 'three point five', -3 'minus three', 1/2
    'one over two', 10:30 'one zero colon three zero', 5% 'five percent'; '9 - 2' has a minus, the
    hyphen of '8-4' is none. Separators of thousands are not: 1,000 is 1000. A comma that separates
    no thousands is a decimal comma: 3,5 is 3.5.
  - Forms of characters are the same: NFC and NFD, full and half width, ' and ’, which are left out
    of words: don't is 'dont'. A hyphen separates words.
  """
  if not text.isascii():
    text = _SUPERSCRIPT.sub('^', _FRACTION.sub(' and ', text.translate(_SAME)))
    text = unicodedata.normalize('NFKC', text).translate(_SAME)
    text = unicodedata.normalize('NFC', text.replace('İ', 'i').lower())
    text = re.sub(r'[^\D0-9]', lambda found: str(unicodedata.decimal(found[0])),
                  _FORMAT.sub('', text))
  else:
    text = text.lower().replace('`', "'")
  text, token = ' '.join(text.split()), _patterns().word
  if any(digit in text for digit in '0123456789'):
    token = _patterns().token
    for pattern in _THOUSANDS:
      text = pattern.sub(lambda found: re.sub(r"[,.']", '', found[0]), text)
    text = _CURRENCY.sub(r'\2 \1', _DECIMAL_COMMA.sub(r'\1.\2', text))
  return ' '.join(_WORDS.get(found) or found.replace("'", '') for found in token.findall(text))


RULES = ('paper', 'default')
# Han (with Extension A and compatibility characters), kana and Hangul are scored per character.
_CJK = ('\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff'
        '\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003fffd'
        '\u1100-\u11ff\u3130-\u318f\uac00-\ud7af')
_CJK_CHARACTER = re.compile(f'[{_CJK}]')
_PAPER_TOKEN = re.compile(f'[{_CJK}]|[^\\s{_CJK}]+')


def tokens(text: str, rule: str = 'default') -> list[str]:
  """The words of a text whose errors are counted.

  Args:
    text: any.
    rule: 'default': those of ``normalise_words``, which compares texts as they sound. 'paper': the
      rule of the published scores (docs/evaluation.md): characters of Chinese, Japanese and Korean
      are words of their own, other scripts have words between spaces, punctuation and symbols are
      removed, letters are upper case. Digits stay digits: '5' and 'five' differ, and don't is DONT.
  """
  if rule == 'default':
    return normalise_words(text).split()
  text = unicodedata.normalize('NFKC', text).upper()
  return _PAPER_TOKEN.findall(''.join(
      '' if c in _APOSTROPHES or unicodedata.category(c) == 'Cf' else
      ' ' if unicodedata.category(c)[0] in 'PSZC' else c for c in text))


def is_cjk(token: str) -> bool:
  """Whether a word of ``tokens`` is a character of Chinese, Japanese or Korean."""
  return len(token) == 1 and bool(_CJK_CHARACTER.match(token))


class Edits(NamedTuple):
  """The best alignment of two texts: counts of words."""
  words: int          # of the reference
  substitutions: int
  deletions: int
  insertions: int

  @property
  def errors(self) -> int:
    return self.substitutions + self.deletions + self.insertions


def edits(reference: str, hypothesis: str, rule: str = 'default') -> Edits:
  """The errors of a hypothesis, by kind; with an empty reference every word is an insertion.

  Vowel points of Hebrew and Arabic count only if both texts have some.
  """
  import jiwer
  reference, hypothesis = _pointed_alike(reference, hypothesis)
  wanted, found = tokens(reference, rule), tokens(hypothesis, rule)
  if not wanted:
    return Edits(0, 0, 0, len(found))
  aligned = jiwer.process_words(' '.join(wanted), ' '.join(found))
  return Edits(len(wanted), aligned.substitutions, aligned.deletions, aligned.insertions)


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
  """(errors, number of reference words) after normalise_words on both sides.

  Errors are substitutions, deletions and insertions of the best alignment; with an empty
  reference every word is an insertion. The word error rate of a corpus is the sum of errors
  over the sum of reference words. Vowel points of Hebrew and Arabic count only if both have some.
  """
  found = edits(reference, hypothesis)
  return found.errors, found.words


def same_words(text: str, reference: str) -> bool:
  """Whether two texts have the same words; texts without words ('?', an emoji) must be equal."""
  text, reference = _pointed_alike(text, reference)
  words = normalise_words(text)
  return words == normalise_words(reference) and (
      bool(words) or _plain(text) == _plain(reference))


def comparable(text: str) -> str:
  """``normalise_words`` without vowel points, to find equal texts; never '' for a text with
  visible characters."""
  return normalise_words(_POINTS.sub('', text)) or _plain(text)


def _pointed_alike(one: str, other: str) -> tuple[str, str]:
  """Two texts without vowel points, unless both have some."""
  if _POINTS.search(one) and _POINTS.search(other):
    return one, other
  return _POINTS.sub('', one), _POINTS.sub('', other)


def _plain(text: str) -> str:
  return ' '.join(unicodedata.normalize('NFKC', text).split())


def separator(left: str, right: str) -> str:
  """What stands between two texts that are joined: a space or nothing.

  Nothing, if there is white space already, one text is empty, or a script without spaces between
  words is on one side; punctuation at the seam is skipped to see the script.
  """
  if not left or not right or left[-1].isspace() or right[0].isspace():
    return ''
  ends = (left[-1], right[0], _letter(reversed(left)), _letter(right))
  return '' if any(_patterns().unspaced.match(c) for c in ends) else ' '


def _letter(text: Iterable[str]) -> str:
  """The first letter or number; '' if there is none."""
  return next((c for c in text if unicodedata.category(c)[0] in 'LN'), '')
