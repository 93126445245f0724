"""Records of tables: delimited text, with or without a header line, and Kaldi's folders.

  .tsv .csv .psv .txt .list   one object per row; the separator (tab, comma, semicolon or |) is the
                              one that gives the header most known names
  wav.scp                     beside `text` and perhaps `segments`: one object per utterance

A table without a header has the sound first and its text last, as in LJSpeech and the file lists of
VITS; columns of numbers at the end are passed over. Values are quoted as CSV writers do it. In a
table separated by tabs a value is unquoted only if its inner quotes are doubled, or the header is
quoted: otherwise quotes belong to the text, and may be unmatched. With | they always do.
"""

import csv
import io
import pathlib
import re
from typing import Any, Iterator

from ttt_jax.data.records import compression, limits
from ttt_jax.data.records.json_stream import encoding
from ttt_jax.errors import UserError

Item = tuple[str, dict[str, Any] | UserError]
SUFFIXES = ('.tsv', '.csv', '.psv', '.txt', '.list')
SCP = 'wav.scp'
SOUND = re.compile(r'\.(wav|wave|flac|ogg|oga|opus|mp3|m4a|mp4|aac|aif|aiff|au|sph|w64|caf|webm|'
                   r'wma)$', re.IGNORECASE)
_SEPARATORS = '\t,;|'
_COLUMNS = 5   # of a table without a header, at most
_LINES = 100   # of one quoted value
# Names by which a line is known to be a header.
_KNOWN = frozenset((
    'audio', 'audio_filepath', 'audio_file', 'audio_path', 'audiopath', 'path', 'file', 'file_name',
    'filename', 'filepath', 'file_path', 'fname', 'wav', 'wav_path', 'wav_filename', 'wav_file',
    'slice_file_name', 'speech', 'sound', 'codes', 'text', 'transcript', 'transcription',
    'sentence', 'txt', 'normalized_text', 'caption', 'label', 'labels', 'category', 'scene',
    'scene_label', 'class', 'question', 'instruction', 'input', 'output', 'answer', 'prompt',
    'response', 'completion', 'messages', 'conversations', 'pieces', 'answer_audio', 'id', 'key',
    'utt_id', 'duration', 'speaker', 'speaker_id', 'client_id'))


def rows(path: pathlib.Path) -> Iterator[Item]:
  """('file:line', object) of every row; a row that cannot be read is replaced by its error.

  Raises:
    UserError: a file without a header whose columns are not clear.
  """
  with compression.opened(path) as file:
    # Bytes that are not UTF-8 are errors of their rows.
    text = io.TextIOWrapper(file, encoding=encoding(file), errors='surrogateescape', newline='')
    number = 1
    while (first := text.readline(limits.LONGEST)) and not first.strip():
      number += 1
    if first:
      yield from _Table(path, first, number).read(text)


class _Table:
  """A table whose first line is known."""

  def __init__(self, path: pathlib.Path, first: str, number: int):
    self.path, self.first, self.number = path, first, number
    default = '\t' if '.tsv' in path.name.lower() else ','
    known = {mark: _known(_split(first, mark)) for mark in _SEPARATORS}
    self.separator = max(_SEPARATORS, key=lambda mark: (known[mark], mark == default))
    if known[self.separator]:
      self.header: list[str] | None = _split(first, self.separator)
      self.header = [_name(cell) if _name(cell) in _KNOWN else cell.strip() for cell in self.header]
      double = {name for name in self.header if name and self.header.count(name) > 1}
      if double:
        raise UserError(f'data file {path}: the header has {min(double)!r} twice; rename one.')
    else:
      self.header, self.separator = None, self._headerless()
    self.columns = 0  # of the first row of a table without a header
    self.quoted = self.header is not None and first.lstrip()[:1] == '"'

  def _headerless(self) -> str:
    for mark in '|\t;,':
      cells = _split(self.first, mark)
      if 2 <= len(cells) <= _COLUMNS and (SOUND.search(cells[0].strip()) or mark == '|'):
        return mark
    raise UserError(f'data file {self.path} has no header: its first line, '
                    f'{self.first.strip()[:60]!r}, names no column such as audio and text; add '
                    'a line with the names of the columns.')

  def read(self, text: io.TextIOBase) -> Iterator[Item]:
    lines = _numbered(text, self.number)
    if self.header is None:
      yield self._bare(self.number, self.first.rstrip('\r\n'))
      yield from (self._bare(number, line) for number, line in lines)
      return
    if self.separator == '\t' and not self.quoted:
      found = self._tabs(lines)
    elif self.separator == '|' and not self.quoted:
      found = ((number, line.split('|') if isinstance(line, str) else line)
               for number, line in lines)
    else:
      found = self._quoted(lines)
    for number, cells in found:
      yield self._object(f'{self.path}:{number}', cells)

  def _object(self, where: str, cells: list[str] | UserError) -> Item:
    assert self.header is not None, 'a table with a header'
    if isinstance(cells, UserError):
      return where, UserError(f'{where}: {cells}')
    if len(cells) != len(self.header):
      return where, UserError(f'{where}: {len(cells)} values under a header of '
                              f'{len(self.header)} columns.')
    return where, _checked(where, {name: cell for name, cell in zip(self.header, cells)
                                   if cell and name})  # pandas writes its index without a name

  def _bare(self, number: int, line: str | UserError) -> Item:
    """A row of a table without a header."""
    where = f'{self.path}:{number}'
    if isinstance(line, UserError):
      return where, UserError(f'{where}: {line}')
    if self.separator == '|':
      cells = line.split('|')
    elif self.separator == '\t':
      cells = [_unquoted(cell) for cell in line.split('\t')]
    else:
      cells = _split(line, self.separator)
    prose = [cell for cell in cells[2:] if cell[:1].isspace()]
    cells, count = [cell.strip() for cell in cells], len(cells)
    while len(cells) > 2 and re.fullmatch(r'[\d.]*', cells[-1]):
      cells.pop()
    if self.separator in ',;' and prose:
      return where, UserError(f'{where}: the table has no header, and {prose[0][:40]!r} begins '
                              'with a space, as if the text went on; add a header, or quote it.')
    if self.columns and count != self.columns:
      return where, UserError(f'{where}: {count} values, but the first line has {self.columns}, '
                              f'separated by {self.separator!r}; add a header, or quote a value '
                              'that has the separator inside.')
    self.columns = count
    if not 2 <= len(cells) <= _COLUMNS or not cells[0] or re.fullmatch(r'[\d.]*', cells[-1]):
      return where, UserError(f'{where}: the table has no header, and this line is not a sound '
                              f'and its text, separated by {self.separator!r}; add a header.')
    return where, _checked(where, {'audio': cells[0], 'text': cells[-1]})

  def _tabs(self, lines: Iterator[tuple[int, str | UserError]]
            ) -> Iterator[tuple[int, list[str] | UserError]]:
    """Rows separated by tabs; a quoted value may hold tabs and go over several lines."""
    columns = len(self.header or ())
    waiting: list[tuple[int, str | UserError]] = []  # lines that were read ahead
    def following():
      return waiting.pop(0) if waiting else next(lines, None)
    while (now := following()) is not None:
      number, line = now
      if isinstance(line, UserError):
        yield number, line
        continue
      cells = line.split('\t')
      if '"' in line and (len(cells) != columns or any(map(_opens, cells))):
        joined, ahead = line, []
        while (found := _whole(joined, columns)) is None and len(ahead) < _LINES and (
            len(cells) <= columns):
          more = following()
          if more is None:
            break
          ahead.append(more)
          if isinstance(more[1], UserError) or more[1].count('\t') == columns - 1:
            break  # a row of its own
          joined += f'\n{more[1]}'
        if found is not None:
          yield number, found
          continue
        waiting = ahead + waiting
      yield number, [_unquoted(cell) for cell in cells]

  def _quoted(self, lines: Iterator[tuple[int, str | UserError]]
              ) -> Iterator[tuple[int, list[str] | UserError]]:
    """Rows of a CSV; a broken row is an error and the next one is read."""
    csv.field_size_limit(limits.LONGEST)  # inline codes exceed csv's limit of 128 KiB
    numbers: list[int] = []  # of the lines of the row that is being read
    broken: list[UserError] = []
    def feed() -> Iterator[str]:
      for number, line in lines:
        numbers.append(number)
        if len(numbers) > _LINES:
          raise csv.Error(f'a quoted value does not end within {_LINES} lines')
        if isinstance(line, UserError):
          broken.append(line)
        yield '\n' if isinstance(line, UserError) else f'{line}\n'
    reader = csv.reader(feed(), delimiter=self.separator, strict=True)
    while True:
      numbers.clear()
      broken.clear()
      try:
        cells = next(reader, None)
      except csv.Error as error:
        yield numbers[0], UserError(f'lines {numbers[0]} to {numbers[-1]} are not CSV ({error}).')
        reader = csv.reader(feed(), delimiter=self.separator, strict=True)
        continue
      if cells is None:
        return
      if broken:
        yield numbers[0], broken[0]
      elif cells:
        yield numbers[0], cells


def _known(cells: list[str]) -> int:
  """How many of a line's values are names of columns; 0 if one is the name of a sound file."""
  names = {_name(cell) for cell in cells}
  return 0 if any(SOUND.search(name) for name in names) else len(_KNOWN & names)


def _name(cell: str) -> str:
  return cell.strip().strip('"').strip().lower()


def _split(line: str, mark: str) -> list[str]:
  line = line.rstrip('\r\n')
  if mark == '|' and line[:1] != '"':
    return line.split('|')
  try:
    return next(csv.reader([line], delimiter=mark), [])
  except csv.Error:
    return line.split(mark)


def _numbered(text: io.TextIOBase, number: int) -> Iterator[tuple[int, str | UserError]]:
  """(number, line without its end) of the lines that follow line ``number``."""
  while line := text.readline(limits.LONGEST + 1):
    number += 1
    if len(line) > limits.LONGEST:
      while line and not line.endswith('\n'):
        line = text.readline(2**20)
      yield number, UserError(f'the line is longer than {limits.LONGEST // 2**20} MiB.')
    elif line.strip('\r\n'):
      yield number, line.rstrip('\r\n')


def _unquoted(cell: str) -> str:
  """A value without the quotes of a CSV writer, which doubles those inside."""
  if len(cell) < 4 or cell[0] != '"' or cell[-1] != '"' or '"' not in cell[1:-1]:
    return cell
  inner = cell[1:-1]
  return inner.replace('""', '"') if '"' not in inner.replace('""', '') else cell


def _opens(cell: str) -> bool:
  """Whether a value starts with a quote that it does not close."""
  return cell[:1] == '"' and (len(cell) == 1 or cell[-1] != '"' or cell.count('"') % 2 == 1)


def _whole(line: str, columns: int) -> list[str] | None:
  """The values of a row in which a quoted value holds tabs or ends of lines; None if it is none."""
  try:
    rows = list(csv.reader(io.StringIO(line, newline=''), delimiter='\t', strict=True))
  except csv.Error:
    return None
  return rows[0] if len(rows) == 1 and len(rows[0]) == columns else None


def _checked(where: str, row: dict[str, str]) -> dict[str, str] | UserError:
  for name, cell in row.items():
    if not cell.isascii() and any('\udc80' <= c <= '\udcff' for c in cell):
      return UserError(f'{where}: the column {name!r} is not UTF-8; save the file as UTF-8.')
  return row


# -- Kaldi ------------------------------------------------------------------------------------


def kaldi(path: pathlib.Path) -> Iterator[Item]:
  """As ``rows``, of a wav.scp (ID PATH) with `text` (ID WORDS) and perhaps `segments`
  (ID RECORDING START END) beside it."""
  folder = path.parent
  texts = _by_id(folder / 'text') if (folder / 'text').is_file() else {}
  sounds = _by_id(path)
  segments = _by_id(folder / 'segments') if (folder / 'segments').is_file() else None
  for number, (name, value) in enumerate((sounds if segments is None else segments).items(), 1):
    where = f'{path if segments is None else folder / "segments"}:{number}'
    row: dict[str, Any] = {'id': name, 'audio': value}
    if segments is not None:
      fields = value.split()
      if len(fields) not in (3, 4) or fields[0] not in sounds:
        yield where, UserError(f'{where}: segment {name} must be ID RECORDING START END, with a '
                               f'recording of {path}.')
        continue
      if None in map(_float, fields[1:3]):
        yield where, UserError(f'{where}: segment {name} begins at {fields[1]!r:.40} and ends at '
                               f'{fields[2]!r:.40}; both must be numbers, in seconds.')
        continue
      row |= {'audio': sounds[fields[0]], 'start': fields[1], 'end': fields[2]}
      if _float(fields[2]) == -1:
        del row['end']  # to the end of the recording
      if len(fields) == 4:
        row['channel'] = fields[3]
    if row['audio'].rstrip().endswith('|'):
      yield where, UserError(f'{where}: the sound of {name} is a command, '
                             f'{row["audio"][:60]!r}; commands are not run: write the files and '
                             'name them.')
      continue
    yield where, {**row, 'text': texts[name]} if name in texts else row


def _float(text: str) -> float | None:
  try:
    return float(text)
  except ValueError:
    return None


def _by_id(path: pathlib.Path) -> dict[str, str]:
  out: dict[str, str] = {}
  with compression.opened(path) as file:
    for number, line in enumerate(file, 1):
      try:
        words = line.decode('utf-8-sig' if number == 1 else 'utf-8').split(maxsplit=1)
      except UnicodeDecodeError as error:
        raise UserError(f'{path}:{number}: not UTF-8; save the file as UTF-8.') from error
      if words:
        if words[0] in out:
          raise UserError(f'{path}:{number}: {words[0]} is there twice.')
        out[words[0]] = words[1].strip() if len(words) > 1 else ''
  return out
