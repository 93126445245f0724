"""What a reader of a corpus is: ``Layout``, its pieces, and helpers of several readers.

A reader lists the parts of a corpus (train-clean-100, dev, ...), divides a part into ``Piece``,
each of which one process reads, and yields the objects of a piece with the keys of recordings.py.
"""

import dataclasses
import hashlib
import pathlib
from typing import Any, Callable, Iterator, NamedTuple, Sequence

from ttt_jax.data.records import compression, limits, readers
from ttt_jax.errors import UserError
from ttt_jax.storage import url_path

KINDS = ('train', 'dev', 'test')  # of the parts of a corpus


class Skip(NamedTuple):
  """Something that a corpus lists and its own rules leave out; counted by ``reason``."""
  reason: str


Item = tuple[str, dict[str, Any] | UserError | Skip]


@dataclasses.dataclass(frozen=True)
class Piece(readers.Piece):
  """A share of one part of a corpus.

  Attributes:
    path: the file that lists the recordings, or the folder of the part.
    start, stop, before: as in readers.Piece, for a reader that divides a file.
    corpus: name of the layout.
    root: folder of the corpus; the paths of its sounds are relative to it.
    part: name of the part.
    files: further files and folders that are read, relative to root.
  """
  corpus: str = ''
  root: str = ''
  part: str = ''
  files: tuple[str, ...] = ()

  def stamp(self) -> tuple[int, int]:
    """(bytes, hash of sizes and times) of what is read; it identifies the contents."""
    found = []
    root = url_path.place(self.root)
    for path in (url_path.place(self.path), *(root / name for name in self.files)):
      status = path.stat()
      found.append((status.st_size if path.is_file() else 0, url_path.version_of(status)))
    digest = hashlib.sha256(repr(found).encode()).digest()
    return sum(size for size, _ in found), int.from_bytes(digest[:8], 'big') >> 1


class Root(NamedTuple):
  """A folder with a corpus: where it is, and the part that the folder's name chose, or ''."""
  path: pathlib.Path
  part: str = ''


@dataclasses.dataclass(frozen=True)
class Layout:
  """How a corpus lies on a disk.

  Attributes:
    name: value of data.sources[i].corpus.
    title: its name in messages.
    needs: what its folder holds, for messages.
    tasks: values of data.sources[i].task.
    find: the corpus in a folder, or None if the folder has another layout.
    parts: part that is there -> its kind, one of KINDS.
    pieces: the shares of a part.
    items: ('file:line', object) of a piece for a task; errors replace bad objects.
    others: parts that are read only where they are named, since they overlap others.
    official: whether the corpus is divided into training and test parts.
    text: transcript as written -> as it is trained on (data.sources[i].transcript 'default').
  """
  name: str
  title: str
  needs: str
  tasks: tuple[str, ...]
  find: Callable[[pathlib.Path], Root | None]
  parts: Callable[[pathlib.Path], dict[str, str]]
  pieces: Callable[[pathlib.Path, str], list[Piece]]
  items: Callable[[Piece, str], Iterator[Item]]
  others: tuple[str, ...] = ()
  official: bool = True
  text: Callable[[str], str] = str


def kind_of(part: str) -> str:
  """The kind of a part by its name: 'dev-clean' -> 'dev', 'TEST_NET' -> 'test'."""
  name = part.lower()
  return next((kind for kind in KINDS if name.startswith(kind)), 'train')


def groups(names: Sequence[str], size: int) -> list[tuple[str, ...]]:
  """Names in groups of at most ``size``, in order."""
  return [tuple(names[i:i + size]) for i in range(0, len(names), size)]


def relative(path: pathlib.Path, root: pathlib.Path) -> str:
  return path.relative_to(root).as_posix()


def lines(path: pathlib.Path, piece: readers.Piece | None = None
          ) -> Iterator[tuple[str, str | UserError]]:
  """('file:line', line without its end) of a UTF-8 file, or of a piece; not of empty lines."""
  for where, line in readers.lines(piece or readers.Piece(str(path))):
    if isinstance(line, UserError):
      yield where, line
      continue
    try:
      yield where, line.decode('utf-8-sig').rstrip('\r\n')
    except UnicodeDecodeError:
      yield where, UserError(f'{where}: not UTF-8; save the file as UTF-8.')


def listed(path: pathlib.Path, wanted: set[str] | None = None) -> dict[str, str]:
  """ID -> the rest of its line, of a file of lines 'ID VALUE', for the IDs in ``wanted`` or all.

  Raises:
    UserError: an ID that is there twice with other values, or bytes that are not UTF-8.
  """
  out: dict[str, str] = {}
  with compression.opened(path) as file:
    number = 0
    while line := file.readline(limits.LONGEST + 1):
      number += 1
      name, _, value = line.strip().partition(b'\t' if b'\t' in line else b' ')
      try:
        key = name.decode('utf-8-sig').strip()
        if not key or wanted is not None and key not in wanted:
          continue
        said = value.decode('utf-8').strip()
      except UnicodeDecodeError as error:
        raise UserError(f'{path}:{number}: not UTF-8; save the file as UTF-8.') from error
      if out.get(key, said) != said:
        raise UserError(f'{path}:{number}: {key} is there twice.')
      out[key] = said
  return out
