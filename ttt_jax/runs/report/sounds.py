"""Audio files that a page embeds."""

import base64
import html
import io
import mimetypes
import pathlib

import soundfile

from ttt_jax.data import store
from ttt_jax.storage import url_path


class Sounds:
  """The sounds that a page embeds: audio files in the workdir or in its prepared set, no others.

  Their paths come from files that may come from elsewhere.
  """

  def __init__(self, workdir: pathlib.Path, data: str):
    self._workdir = workdir
    self._roots = [workdir.resolve(), store.locate(workdir, data).resolve()]

  def player(self, path: str, label: str, small: bool = False) -> str:
    """HTML of a player, or of a note where there is no such sound.

    Args:
      path: relative to the workdir.
      label: for screen readers.
      small: embed FLAC, about half of a WAV.
    """
    file = url_path.join(self._workdir, path.replace('\0', '')).resolve()
    if not any(url_path.is_within(file, root) for root in self._roots):
      return f'<div class="note">{html.escape(path)} is outside of the workdir</div>'
    if not file.is_file():
      return f'<div class="note">{html.escape(file.name)} is missing</div>'
    try:
      with file.open('rb') as opened:
        soundfile.info(opened)
      source = _flac(file) if small else data_uri(file)
    except (soundfile.LibsndfileError, OSError):
      return f'<div class="note">{html.escape(file.name)} is not a sound</div>'
    return (f'<audio controls preload="metadata" aria-label="{html.escape(label)}" '
            f'src="{source}"></audio>')


def data_uri(path: pathlib.Path) -> str:
  """The contents of a file as a data URI."""
  kind = mimetypes.guess_type(path.name)[0] or 'application/octet-stream'
  return _uri('audio/wav' if kind == 'audio/x-wav' else kind, path.read_bytes())


def _flac(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    waveform, rate = soundfile.read(file, dtype='int16')
  out = io.BytesIO()
  soundfile.write(out, waveform, rate, format='FLAC')
  return _uri('audio/flac', out.getvalue())


def _uri(kind: str, data: bytes) -> str:
  return f'data:{kind};base64,{base64.b64encode(data).decode()}'
