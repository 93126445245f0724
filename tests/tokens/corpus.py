"""Strings of many kinds: English, Chinese, code, emoji, digits, runs of blanks, markup."""

import random

_ENGLISH = ("the quick brown fox jumps over the lazy dog. It's 12 o'clock; they'll've gone, won't "
            'they? Naïve café owners re-elected Dr. O’Neill — “twice”. MIXED Case snake_case '
            'kebab-case supercalifragilistic').split(' ')
_CHINESE = (
    '今天天气很好，我们去公园散步吧。', '语音合成与识别', '你好！', '数据集包含１２３条',
    '這是繁體字', '日本語のテキスト', '한국어 문장입니다', '混合English和中文',
    'ﬁ ligature', 'e\u0301 ñ n\u0303')
_CODE = (
    'def f(x):\n\treturn x**2  # note\n', 'for (int i=0; i<10; ++i) {\r\n  a[i] += i;\r\n}',
    '{"key": [1, 2.5e-3, null]}', "SELECT * FROM t WHERE a != 'b';",
    '<div class="x">&nbsp;</div>', 'https://example.org/a?b=c&d=%20#e', 'C:\\dir\\file.txt',
    '$ grep -rn "x|y" . | wc -l')
_SIGNS = (
    '😀', '👩‍👩‍👧‍👦', '🇫🇷', '👍🏽', '\u200b', '\ufeff', '…', '½', '∑∫', '\u00a0', '\u3000',
    '\u2028', '\x00', '\x7f', '٣٤٥', '१२३', 'אבג', 'مرحبا')
_NUMBERS = ('0', '42', '3.14159', '1,234,567', '2026-11-23', '+1 (555) 010-9999', '1e10',
            '0xDEADBEEF')
_BLANKS = (' ', '  ', '\n', '\n\n', '\t', '\r\n', ' \n ', '   \n\n  ', '\t\t', '      ')
_MARKUP = ('<|im_start|>', '<|im_end|>', '<|endoftext|>', '<|audio_5|>', '<|begin_of_audio|>', '<|',
           '|>', '<tool_call>', '<|audio|>', '<|mask_token|>', '<|fim_prefix|>')
_KINDS = (_ENGLISH, _CHINESE, _CODE, _SIGNS, _NUMBERS, _BLANKS, _MARKUP)


def strings(count: int, seed: int = 0) -> list[str]:
  """``count`` different strings; the first ones are single pieces, the others mixtures."""
  rng = random.Random(seed)
  out = dict.fromkeys(piece for kind in _KINDS for piece in kind)
  while len(out) < count:
    kinds = rng.sample(_KINDS, rng.randint(1, 3))
    out[''.join(rng.choice(rng.choice(kinds)) + rng.choice(['', ' ', ''])
                for _ in range(rng.randint(2, 14)))] = None
  rng.shuffle(pieces := list(out))
  return pieces[:count]
