"""Public corpora, in the layout in which they are downloaded.

A source may name the folder of a corpus: ``{'path': '/data/LibriSpeech', 'task': 'asr'}``. Its
layout is recognised by its files; LAYOUTS is the table. ``corpus`` chooses a layout by name, and
``subset`` the parts that are read, separated by commas: names of parts such as train-clean-100, or
the kinds train, dev and test. By default a source reads the training parts, and one whose split is
held out the test parts. Other parts are never read.
"""

import pathlib
from typing import Iterator

from ttt_jax.data.records import folders
from ttt_jax.data.records.corpora import (aishell, captions, common_voice, librispeech, segments,
                                          voice_assistant)
from ttt_jax.data.records.corpora.layout import KINDS, Item, Layout, Piece, Root, Skip, kind_of
from ttt_jax.errors import UserError

__all__ = ['FORMS', 'KINDS', 'LAYOUTS', 'Item', 'Layout', 'Piece', 'Skip', 'items', 'kind',
           'pieces', 'recognise']

# In the order in which they are tried.
LAYOUTS = {one.name: one for one in (
    librispeech.LIBRISPEECH, librispeech.LIBRITTS, aishell.AISHELL1, aishell.AISHELL2,
    segments.WENETSPEECH, segments.GIGASPEECH, common_voice.COMMON_VOICE, captions.CLOTHO,
    captions.MACS, voice_assistant.VOICE_ASSISTANT)}
FORMS = {'raw': lambda layout, text: text,
         'default': lambda layout, text: layout.text(text),
         'lower': lambda layout, text: layout.text(text).lower(),
         'upper': lambda layout, text: layout.text(text).upper()}


def recognise(folder: pathlib.Path, name: str = '') -> tuple[Layout, Root] | None:
  """The corpus in a folder, by its files; None if there is none.

  Args:
    folder: that the user named: of the corpus, around it, or of one of its parts.
    name: of the layout that it must have; '' = any.

  Raises:
    UserError: no such layout, or the folder has another one.
  """
  if name and name not in LAYOUTS:
    raise UserError(f'{name!r} is no corpus; use one of {", ".join(LAYOUTS)}.')
  for layout in [LAYOUTS[name]] if name else LAYOUTS.values():
    root = layout.find(folder)
    if root:
      return layout, root
  if not name:
    return None
  other = next((one for one in LAYOUTS.values() if one.find(folder)), None)
  archives = folders.archives(folder)
  hint = (f'it has the layout of {other.title}' if other else
          f'unpack {", ".join(archives[:4])}' if archives else
          f'it holds {_shown([path.name for path in folders.visible(folder)])}')
  raise UserError(f'{folder} has not the layout of {LAYOUTS[name].title}, which is '
                  f'{LAYOUTS[name].needs}; {hint}.')


def _shown(names: list[str]) -> str:
  return f'{", ".join(names[:5])}{", ..." if len(names) > 5 else ""}' if names else 'nothing'


def pieces(layout: Layout, root: Root, subset: str, heldout: bool) -> list[Piece]:
  """The pieces of the chosen parts of a corpus, in order.

  Args:
    layout, root: as ``recognise`` returns them.
    subset: names of parts or kinds, separated by commas; '' = the training parts.
    heldout: '' = the test parts instead. A corpus without official parts is read whole.

  Raises:
    UserError: an unknown part, or one that is not there, or that has no recordings.
  """
  out = []
  for part in _chosen(layout, root, subset, heldout):
    found = layout.pieces(root.path, part)
    if not found:
      raise UserError(f'{root.path} has no recordings of part {part!r} of {layout.title}; copy '
                      'the corpus again.')
    out += found
  return out


def _chosen(layout: Layout, root: Root, subset: str, heldout: bool) -> list[str]:
  if root.part:
    if subset and subset not in (root.part, kind_of(root.part)):
      raise UserError(f'{root.path / root.part} is part {root.part!r} of {layout.title}; name '
                      f'{root.path} to read {subset!r}.')
    return [root.part]
  there = layout.parts(root.path)
  said = [name.strip() for name in subset.split(',') if name.strip()]
  if not said and len(there) == 1 and not layout.official:
    return list(there)
  names = said or ['test' if heldout else 'train']
  out: dict[str, None] = {}
  for name in names:
    found = [name] if name in there or name in layout.others else [
        part for part, kind in there.items() if kind == name]
    if not found:
      reason = '' if said else (
          ', which a source with a held-out split reads unless it has a subset' if heldout else
          ', which a source reads unless it has a subset')
      raise UserError(f'{root.path} has no part {name!r} of {layout.title}{reason}; there is '
                      f'{", ".join((*there, *layout.others)) or "none"}.')
    out.update(dict.fromkeys(found))
  return list(out)


def kind(piece: Piece) -> str:
  """The kind of the part of a piece: 'train', 'dev' or 'test'."""
  known = {'development': 'train', 'validation': 'dev', 'evaluation': 'test'}  # of Clotho
  return known.get(piece.part) or kind_of(piece.part)


def items(piece: Piece, task: str, form: str = 'default') -> Iterator[Item]:
  """('file:line', object) of everything in a piece: a recording of the task, an error, or a Skip.

  Args:
    piece: as ``pieces`` returned it.
    task: of the source; one of the tasks of the layout.
    form: of transcripts, one of FORMS.

  Raises:
    UserError: a file that is unreadable from some place on.
  """
  layout = LAYOUTS[piece.corpus]
  written = FORMS[form]
  for where, value in layout.items(piece, task):
    if isinstance(value, dict):
      value = {key: found for key, found in value.items() if found is not None}
      for key in ('text', 'sentence'):
        if isinstance(value.get(key), str):
          value[key] = written(layout, value[key].strip())
    yield where, value
