"""The interface of speech recognisers that judge generated speech."""

import abc
from collections.abc import Sequence
import importlib.metadata
from typing import Any

import numpy as np

from ttt_jax.audio import io
from ttt_jax.errors import UserError

RATE = 16_000  # Hz, input of every recogniser
Sound = tuple[np.ndarray, int]  # float32 [N], and its rate [Hz]


class Recogniser(abc.ABC):
  """A speech recogniser.

  Attributes:
    name: as config key evaluate.judge has it.
    language: code such as 'en' or 'zh' of all speech, whatever language a call gives; '' = that of
      the call, or detected, where the recogniser can.
    languages: codes that it knows; empty = any, or not known.
  """
  name = ''
  language = ''
  languages: tuple[str, ...] = ()

  @abc.abstractmethod
  def _recognise(self, sounds: list[np.ndarray], language: str) -> list[str]:
    """float32 [N] at RATE each, none silent -> transcripts; '' = no given language."""

  @abc.abstractmethod
  def describe(self) -> dict[str, Any]:
    """Which recogniser this is: 'judge', 'model' (path or name), 'package' with its version, and
    'files' {name: {'bytes', 'sha256'}} of the model. Reads the model's files."""

  def transcribe_all(self, sounds: Sequence[Sound], language: str = '') -> list[str]:
    """The transcripts of a batch of sounds; '' for silence.

    Args:
      sounds: float32 [N] and rate [Hz] each.
      language: of all of them; '' = not known.

    Raises:
      UserError: a rate out of range, or a language that the recogniser does not know.
    """
    language = self.language or language
    self.check_language(language)
    waves = []
    for waveform, rate in sounds:
      io.check_rate(rate, 'speech to be recognised')
      waves.append(io.resample(waveform, rate, RATE))
    heard = [i for i, wave in enumerate(waves) if np.abs(wave).max(initial=0) >= io.SILENT_PEAK]
    out = [''] * len(waves)
    if heard:
      for i, text in zip(heard, self._recognise([waves[i] for i in heard], language), strict=True):
        out[i] = text
    return out

  def transcribe(self, waveform: np.ndarray, rate: int, language: str = '') -> str:
    """float32 [N] at ``rate`` Hz -> its transcript; '' for silence."""
    return self.transcribe_all([(waveform, rate)], language)[0]

  def check_language(self, language: str) -> None:
    """UserError if the recogniser does not know a language."""
    if language and self.languages and language not in self.languages:
      known = (', '.join(map(repr, self.languages)) if len(self.languages) < 12
               else f'{len(self.languages)} languages')
      raise UserError(
          f'the judge {self.name!r} does not recognise the language {language!r} (its model knows '
          f"{known}); set config keys evaluate.judge and evaluate.judge_model to a recogniser of "
          'it, or evaluate.judge_language to the right code.')


def package(name: str) -> str:
  """'name version' of an installed package."""
  try:
    return f'{name} {importlib.metadata.version(name)}'
  except importlib.metadata.PackageNotFoundError:
    return name
