"""Paraformer, SenseVoice and zipformer through sherpa-onnx: recognisers in ONNX files.

A model is a folder as the sherpa-onnx project publishes it:

  paraformer, sense_voice   model.onnx or model.int8.onnx, and tokens.txt
  zipformer, CTC            the same
  zipformer, transducer     encoder*.onnx, decoder*.onnx, joiner*.onnx, and tokens.txt

Of a file in two precisions the one that is not int8 is used. Streaming models are not taken. The
library ends the process at a file that it does not expect, so files are looked into first.
"""

import pathlib
from typing import Any

import numpy as np

from ttt_jax.audio import onnx_models
from ttt_jax.audio.recogniser import RATE, Recogniser, package
from ttt_jax.errors import UserError
from ttt_jax.storage import folder_copies

_KEY = 'config key evaluate.judge_model'
_PATTERNS = ('*.onnx', '*.onnx.data', '*.weights', 'tokens.txt')
FAMILIES = ('paraformer', 'sense_voice', 'zipformer')
_BATCH = 16  # sounds per run of the model
_SENSE_VOICE = ('zh', 'en', 'ja', 'ko', 'yue')
_LFR = ('vocab_size', 'lfr_window_size', 'lfr_window_shift', 'neg_mean', 'inv_stddev')
# Metadata that a model of the family has.
_METADATA = {'paraformer': _LFR,
             'sense_voice': (*_LFR, 'normalize_samples', 'with_itn', 'without_itn', 'lang_auto')}
_TRANSDUCERS = ('zipformer', 'zipformer2', 'conformer', 'lstm')


class Sherpa(Recogniser):
  """A recogniser of sherpa-onnx with greedy search."""

  def __init__(self, family: str, folder: str, device: str = 'cpu'):
    """
    Args:
      family: of FAMILIES.
      folder: of the model, or its URL.
      device: 'cpu' or 'cuda' (a build of sherpa-onnx for CUDA; the one from PyPI has none).
    """
    assert family in FAMILIES, family
    onnx_models.local_only()
    self.name, self._named, self._device = family, folder, device
    try:
      import sherpa_onnx
    except ImportError as error:
      raise UserError(f"the judge {family!r} needs the package sherpa-onnx (extra 'judges'); "
                      "install it or set config key evaluate.judge to 'none'.") from error
    self._library = sherpa_onnx.OfflineRecognizer
    if not folder:
      raise UserError(f'the judge {family!r} has no model: set {_KEY} to a folder '
                      'of sherpa-onnx with model.onnx and tokens.txt (its pre-trained '
                      'models have them); judges download nothing.')
    self._folder = folder_copies.folder(folder, _PATTERNS, _KEY)
    if not self._folder.is_dir():
      raise UserError(f'{_KEY} is {folder!r}, which is not a folder; '
                      f'expected one of sherpa-onnx with {self._expected()}.')
    self._files = self._find()
    self._check()
    self.languages = _SENSE_VOICE if family == 'sense_voice' else ()
    self._models: dict[str, Any] = {}  # by language: SenseVoice takes it when it is loaded
    self._model('')

  def _expected(self) -> str:
    return ('encoder*.onnx, decoder*.onnx, joiner*.onnx and tokens.txt, or model.onnx and '
            'tokens.txt' if self.name == 'zipformer' else 'model.onnx and tokens.txt')

  def _find(self) -> dict[str, pathlib.Path]:
    """Part -> file: 'model', or 'encoder', 'decoder', 'joiner'; and 'tokens'."""
    def first(pattern: str) -> pathlib.Path | None:
      found = sorted(self._folder.glob(pattern), key=lambda path: ('int8' in path.name, path.name))
      return found[0] if found else None
    parts = ('model',)
    if self.name == 'zipformer' and first('encoder*.onnx'):
      parts = ('encoder', 'decoder', 'joiner')
    patterns = {part: f'{part}*.onnx' for part in parts} | {'tokens': 'tokens.txt'}
    found = {part: first(pattern) for part, pattern in patterns.items()}
    for part, path in found.items():
      if path is None:
        raise UserError(f'the {self.name} model {self._folder} has no {patterns[part]}; expected '
                        f'a folder of sherpa-onnx with {self._expected()}.')
    return {part: path for part, path in found.items() if path is not None}

  def _check(self) -> None:
    """UserError for files at which the library would end the process."""
    what = f'the {self.name} model'
    try:
      lines = self._files['tokens'].read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
      raise UserError(f'{self._files["tokens"]} cannot be read as text: {error}.') from error
    for number, line in enumerate(lines, 1):
      if line.strip() and not line.split()[-1].isdigit():
        raise UserError(f'{self._files["tokens"]}, line {number}: {line!r} is not a token and its '
                        'number.')
    if not lines:
      raise UserError(f'{self._files["tokens"]} is empty; expected a token and its number per '
                      'line.')
    sessions = {part: onnx_models.session(path, what) for part, path in self._files.items()
                if part != 'tokens'}
    path = self._files.get('encoder') or self._files['model']
    main = sessions.get('encoder') or sessions['model']
    metadata = main.get_modelmeta().custom_metadata_map
    missing = [key for key in _METADATA.get(self.name, ()) if key not in metadata]
    if missing:
      raise UserError(f'{what} {path} has no metadata {missing[0]!r}; this is not a {self.name} '
                      'model of sherpa-onnx.')
    if 'encoder' in sessions and metadata.get('model_type') not in _TRANSDUCERS:
      raise UserError(f'{what} {path} has the model_type {metadata.get("model_type")!r}; expected '
                      f'one of {", ".join(_TRANSDUCERS)}.')
    if 'decode_chunk_len' in metadata or 'T' in metadata:
      raise UserError(f'{what} {path} is a streaming model; expected one that hears whole '
                      'recordings.')
    if self.name == 'zipformer' and 'model' in sessions and len(main.get_outputs()[0].shape) != 3:
      raise UserError(f'{what} {path} has outputs of shape {main.get_outputs()[0].shape}; expected '
                      'a CTC model, whose outputs are [batch, time, tokens].')

  def _model(self, language: str) -> Any:
    if language not in self._models:
      if self._models:  # again: the cache of what is in a bucket may have lost it
        self._folder = folder_copies.folder(self._named, _PATTERNS, _KEY)
        self._files = self._find()
      paths = {part: str(path) for part, path in self._files.items()}
      common = {'tokens': paths['tokens'], 'num_threads': onnx_models.threads(),
                'provider': self._device}
      if self.name == 'sense_voice':
        made = self._library.from_sense_voice(model=paths['model'], language=language or 'auto',
                                              use_itn=False, **common)
      elif self.name == 'paraformer':
        made = self._library.from_paraformer(paraformer=paths['model'], **common)
      elif 'model' in paths:
        made = self._library.from_zipformer_ctc(model=paths['model'], **common)
      else:
        made = self._library.from_transducer(
            encoder=paths['encoder'], decoder=paths['decoder'], joiner=paths['joiner'], **common)
      self._models[language] = made
    return self._models[language]

  def _recognise(self, sounds: list[np.ndarray], language: str) -> list[str]:
    model = self._model(language if self.name == 'sense_voice' else '')
    out = []
    for at in range(0, len(sounds), _BATCH):
      streams = []
      for waveform in sounds[at:at + _BATCH]:
        stream = model.create_stream()
        stream.accept_waveform(RATE, waveform)
        streams.append(stream)
      model.decode_streams(streams)
      out += [stream.result.text.strip() for stream in streams]
    return out

  def describe(self) -> dict[str, Any]:
    return {'judge': self.name, 'model': self._named, 'package': package('sherpa-onnx'),
            'files': onnx_models.facts(*self._files.values())}
