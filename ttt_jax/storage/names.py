"""File names made of names that come from data, such as record ids.

An id is any string: '../x', '/etc/passwd', 'CON', 4,000 characters, 'Clip' beside 'clip'. It never
becomes a path by itself. ``FileNames`` turns it into one component of a path that is valid on the
file systems of Linux, macOS and Windows, and that no other name of the same folder equals.
"""

import hashlib
import re
import unicodedata

_LONGEST = 80  # bytes of UTF-8; the rest of a component's 255 is for hashes, kinds and endings
# Devices of Windows, with any ending. https://learn.microsoft.com/windows/win32/fileio/naming-a-file
_RESERVED = re.compile(r'(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(\..*)?', re.I | re.S)
_ENDING = re.compile(r'\.[A-Za-z0-9]{1,10}')


def slug(text: str) -> str:
  """A file name that resembles ``text``; ``text`` itself if it is a safe name.

  Letters, marks and digits of any script, '-', '_' and '.' stay; every other run of characters
  becomes '_'. A changed name ends in 8 digits of the SHA-256 of ``text``, so that different texts
  have different names.

  Returns:
    A non-empty name of at most 89 bytes of UTF-8, in NFC, that starts with neither '.' nor '-'.
  """
  name = ''.join(c if c in '-_.' or unicodedata.category(c)[0] in 'LMN' else ' '
                 for c in unicodedata.normalize('NFC', text))
  name = re.sub(r'\.{2,}', '.', '_'.join(name.split())).lstrip('.-').rstrip('.')
  # A cut must not end in '.', which Windows drops.
  name = name.encode()[:_LONGEST].decode(errors='ignore').rstrip('.')
  if _RESERVED.fullmatch(name):
    name = f'_{name}'
  if name and name == text:
    return name
  digest = hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]
  return f'{name}-{digest}' if name else digest


class FileNames:
  """The file names of one folder: no name is given twice, also where case does not count."""

  def __init__(self):
    self._used: set[str] = set()
    self._numbers: dict[str, int] = {}  # name -> the last number after it

  def new(self, text: str, ending: str = '') -> str:
    """A name for ``text`` that was not given before: ``slug(text)``, or with '-2', '-3', ... .

    The cost does not depend on the number of names given before.

    Args:
      text: any string, such as a record's id or a file's stem.
      ending: such as '.wav', placed after the number; one that is not a plain ending is dropped.
    """
    stem = slug(text)
    ending = ending if _ENDING.fullmatch(ending) else ''
    name, key = stem + ending, _key(stem + ending)
    number = self._numbers.get(key, 1)
    while _key(name) in self._used:
      number += 1
      name = f'{stem}-{number}{ending}'
    self._numbers[key] = number
    self._used.add(_key(name))
    return name


def _key(name: str) -> str:
  """Equal for names that some file system takes for the same: case and Unicode forms."""
  return unicodedata.normalize('NFKC', unicodedata.normalize('NFKC', name).casefold())
