"""Where the recordings of a table are: beside it, or in the folder that its data set uses."""

import functools
import os
import pathlib

import numpy as np

from ttt_jax.audio import io
from ttt_jax.data.records import embedded, tables
from ttt_jax.data.records.parts import Part

# Common Voice has clips/, LJSpeech wavs/, ESC-50 a folder ../audio.
_FOLDERS = ('clips', 'wavs', 'wav', 'audio', 'audios', '../audio', '../wavs', '../wav', '../clips')
_SUFFIXES = ('.wav', '.flac', '.mp3', '.ogg', '.opus')


def located(folder: pathlib.Path, source: str) -> str:
  """The path of a recording.

  A path with folders and a suffix is relative to ``folder``, or to the folder above if it exists
  there alone: the tables of TAU lie in evaluation_setup, beside audio. A name alone may also be in
  a folder of _FOLDERS, and a name without the suffix of a sound gets one, if such a file exists.
  """
  path = os.path.join(folder, source)
  suffixed = bool(tables.SOUND.search(source))
  near = () if os.path.dirname(source) else _near(str(folder))
  if suffixed and not near:
    above = os.path.join(folder, '..', source)
    return above if os.path.dirname(source) and not os.path.isabs(source) and (
        not os.path.isfile(path) and os.path.isfile(above)) else path
  for place in ('', *near):
    for suffix in ('',) if suffixed else ('', *_SUFFIXES):
      found = os.path.join(folder, place, source + suffix)
      if os.path.isfile(found):
        return found
  return path


def searched(path: str) -> str:
  """Where else ``located`` looked for a file that does not exist, as the end of a sentence."""
  near = _near(os.path.dirname(path))
  return f', nor in {", ".join(near)}' if near else ''


def read(part: Part, folder: str | pathlib.Path) -> tuple[np.ndarray, int]:
  """The recording of a part, float32 [N] and its rate; its path is relative to ``folder``.

  Raises:
    UserError: it cannot be read.
  """
  clip = part.clip
  if embedded.is_embedded(clip.path):
    return io.read(embedded.contents(clip.path), *clip[1:], name='inside the record')
  return io.read(located(pathlib.Path(folder), clip.path), *clip[1:])


@functools.lru_cache(256)
def _near(folder: str) -> tuple[str, ...]:
  return tuple(name for name in _FOLDERS if os.path.isdir(os.path.join(folder, name)))
