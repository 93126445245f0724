"""Transcripts that are kept in a file, so that several evaluations recognise equal speech once.

The members of a sweep are judged on the same recordings, beside their own speech: a recogniser
takes as long for one as a small model takes to make it.
"""

import hashlib
import json
import os
import pathlib

import numpy as np

from ttt_jax.audio.recogniser import RATE, Recogniser
from ttt_jax.errors import UserError
from ttt_jax.storage import files


class KeptTranscripts(Recogniser):
  """A recogniser that first looks into a file of JSON lines {'key', 'text'}.

  A key is the SHA-256 of the recogniser with its model's files, the language and the samples.
  Several processes may share the file.
  """

  def __init__(self, judge: Recogniser, path: str | os.PathLike):
    """
    Args:
      judge: asked for what the file does not hold.
      path: created if needed.

    Raises:
      UserError: the file cannot be read or written, or holds something else.
    """
    self.name, self.language, self.languages = judge.name, judge.language, judge.languages
    self._judge = judge
    self._about = json.dumps(judge.describe(), sort_keys=True)
    self._file = files.Appender(path)
    self._known = _read(pathlib.Path(path))

  def describe(self):
    return self._judge.describe()

  def _recognise(self, sounds: list[np.ndarray], language: str) -> list[str]:
    keys = [self._key(sound, language) for sound in sounds]
    missing = {key: sound for key, sound in zip(keys, sounds) if key not in self._known}
    if missing:
      heard = self._judge.transcribe_all([(sound, RATE) for sound in missing.values()], language)
      for key, text in zip(missing, heard, strict=True):
        self._file.write(json.dumps({'key': key, 'text': text}, ensure_ascii=False) + '\n')
        self._known[key] = text
    return [self._known[key] for key in keys]

  def _key(self, sound: np.ndarray, language: str) -> str:
    digest = hashlib.sha256(f'{self._about}\n{language}\n'.encode())
    digest.update(np.ascontiguousarray(sound, np.float32).tobytes())
    return digest.hexdigest()


def _read(path: pathlib.Path) -> dict[str, str]:
  known = {}
  with path.open('rb') as lines:
    for number, line in enumerate(lines, 1):
      if not line.endswith(b'\n'):
        break  # cut off by a crash; the recogniser is asked again
      try:
        entry = json.loads(line)
        key, text = entry['key'], entry['text']
      except (ValueError, TypeError, KeyError):
        key = text = None
      if not isinstance(key, str) or not isinstance(text, str):
        raise UserError(f'{path}, line {number}: not a transcript; config key '
                        'evaluate.transcripts needs a file of its own.')
      known[key] = text
  return known
