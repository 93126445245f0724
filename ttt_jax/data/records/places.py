"""Where the recordings of a table are: beside it, or in the folder that its data set uses.

A question about an object of a bucket takes a request, so answers come from listings: a folder is
listed once it has been asked about _SINGLE files, and is taken not to change during a run.
"""

import functools
import os
import pathlib

import numpy as np

from ttt_jax.audio import io
from ttt_jax.data.records import embedded, tables
from ttt_jax.data.records.parts import Part
from ttt_jax.storage import url_path

# Common Voice has clips/, LJSpeech wavs/, ESC-50 a folder ../audio.
_FOLDERS = ('clips', 'wavs', 'wav', 'audio', 'audios', '../audio', '../wavs', '../wav', '../clips')
_SUFFIXES = ('.wav', '.flac', '.mp3', '.ogg', '.opus')
_SINGLE = 8  # files of a folder
_FOLDERS_KEPT = 64


def located(folder: pathlib.Path, source: str) -> str:
  """The path of a recording.

  A path with folders and a suffix is relative to ``folder``, or to the folder above if it exists
  there alone: the tables of TAU lie in evaluation_setup, beside audio. A name alone may also be in
  a folder of _FOLDERS, and a name without the suffix of a sound gets one, if such a file exists.
  """
  path = str(url_path.join(folder, source)) if _in_bucket(folder, source) else os.path.join(
      folder, source)
  suffixed = bool(tables.SOUND.search(source))
  near = () if os.path.dirname(source) else _near(str(folder))
  if suffixed and not near:
    if not os.path.dirname(source) or os.path.isabs(source) or url_path.is_url(source):
      return path
    above = _joined(folder, '..', source)
    return above if not is_file(path) and is_file(above) else path
  for place in ('', *near):
    for suffix in ('',) if suffixed else ('', *_SUFFIXES):
      found = _joined(folder, place, source + suffix)
      if is_file(found):
        return found
  return path


def searched(path: str) -> str:
  """Where else ``located`` looked for a file that does not exist, as the end of a sentence."""
  near = _near(str(url_path.place(path).parent) if url_path.is_url(path) else os.path.dirname(path))
  return f', nor in {", ".join(near)}' if near else ''


def read(part: Part, folder: str | pathlib.Path) -> tuple[np.ndarray, int]:
  """The recording of a part, float32 [N] and its rate; its path is relative to ``folder``.

  Raises:
    UserError: it cannot be read.
  """
  clip = part.clip
  if embedded.is_embedded(clip.path):
    return io.read(embedded.contents(clip.path), *clip[1:], name='inside the record')
  return io.read(located(url_path.place(folder), clip.path), *clip[1:])


@functools.lru_cache(256)
def _near(folder: str) -> tuple[str, ...]:
  return tuple(name for name in _FOLDERS if url_path.join(folder, name).is_dir())


def _joined(folder: pathlib.Path, *names: str) -> str:
  """The names joined as they are: a path that is printed keeps its '..'."""
  if _in_bucket(folder, names[-1]):
    return str(url_path.join(folder, *names))
  return os.path.join(folder, *names)


def _in_bucket(folder: pathlib.Path, source: str) -> bool:
  return url_path.is_url(folder) or url_path.is_url(source)


# -- what is there ------------------------------------------------------------------------


def is_file(path: str) -> bool:
  """Whether a recording is there."""
  if not url_path.is_url(path):
    return os.path.isfile(path)
  return _entry(path) is not None


def stamp(path: str) -> tuple[int, int]:
  """As url_path.stamp, of a recording."""
  if not url_path.is_url(path):
    return url_path.stamp(path)
  found = _entry(path)
  return found or (0, 0)


_asked: dict[str, int] = {}
_listed: dict[str, dict[str, tuple[int, int]]] = {}


def forget() -> None:
  """Forget listings: what is in a bucket may have changed since the last run."""
  _asked.clear()
  _listed.clear()
  _near.cache_clear()


def _entry(url: str) -> tuple[int, int] | None:
  """The stamp of an object; None if there is none."""
  folder, _, name = url.rpartition('/')
  if folder not in _listed:
    _asked[folder] = _asked.get(folder, 0) + 1
    if _asked[folder] <= _SINGLE:
      found = url_path.place(url)
      return url_path.stamp(found) if found.is_file() else None
    if len(_listed) >= _FOLDERS_KEPT:
      del _listed[next(iter(_listed))]
    _listed[folder] = {path.name: url_path.stamp(path)
                       for path in url_path.place(folder).iterdir() if path.is_file()}
  return _listed[folder].get(name)
