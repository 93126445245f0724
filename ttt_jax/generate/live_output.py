"""Streaming output of one answer: text to print, and a WAV file that grows."""

import pathlib
import wave

import numpy as np

from ttt_jax.audio.codec import Codec
from ttt_jax.tokens.tokenizer import Tokenizer


class LiveOutput:
  """The output of one answer. The WAV file can be played while it grows: its header is updated
  with every write."""

  def __init__(self, codec: Codec, tokenizer: Tokenizer, path: pathlib.Path):
    self._codec, self._tokenizer, self._path = codec, tokenizer, path
    self._stream = codec.stream()
    self._ids: list[int] = []
    self._shown = ''
    self._file: wave.Wave_write | None = None

  def text(self, ids: np.ndarray) -> str:
    """The text that more ids add. A character whose bytes are incomplete is held back."""
    self._ids += [int(i) for i in ids if i < self._tokenizer.ranks]
    ready = self._tokenizer.decode(self._ids).rstrip('\N{REPLACEMENT CHARACTER}')
    new, self._shown = ready[len(self._shown):], max(self._shown, ready, key=len)
    return new

  def audio(self, codes: np.ndarray) -> None:
    """Write the samples that more codes make final."""
    self._write(self._stream.push(codes))

  def close(self) -> pathlib.Path | None:
    """Write the remaining samples; returns the file, or None if there was no audio."""
    self._write(self._stream.finish())
    if self._file is None:
      return None
    self._file.close()
    return self._path

  def _write(self, samples: np.ndarray) -> None:
    if not samples.size:
      return
    if self._file is None:
      self._file = wave.open(str(self._path), 'wb')
      self._file.setnchannels(1)
      self._file.setsampwidth(2)
      self._file.setframerate(int(self._codec.sample_rate))
    scaled = np.round(np.clip(samples, -1, 1) * 32767).astype('<i2')
    self._file.writeframes(scaled.tobytes())
