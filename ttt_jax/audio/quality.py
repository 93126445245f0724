"""Quality of speech without a reference, and similarity of speakers: numbers of TTS evaluations.

DNSMOS predicts mean opinion scores of listeners, 1 (bad) to 5 (excellent), with the ONNX models of
the wheel speechmos: P.835 (Reddy et al., arXiv 2110.01763) signal, background and overall quality,
and P.808 (arXiv 2010.15258) overall quality. Only the models of the wheel are used: its code needs
librosa and reads one sound at a time. Scores are those of its function (tests compare them).

Speaker similarity is the cosine of two speaker embeddings of a model that the user names.
"""

from collections.abc import Sequence
import functools
import pathlib
from typing import Any

import numpy as np

from ttt_jax.audio import io, onnx_models
from ttt_jax.audio.recogniser import RATE, Sound, package
from ttt_jax.errors import UserError
from ttt_jax.storage import folder_copies

_P835, _P808 = 'sig_bak_ovr.onnx', 'model_v8.onnx'
_WINDOW = 144_160     # samples of 16 kHz that the models hear at once: 9.01 s
_HOP = RATE           # between two windows
_BATCH = 16           # windows per run of a model
# From the model's output to the scale of listeners; the highest power first.
_SCALE = {'sig': (-0.08397278, 1.22083953, 0.0052439),
          'bak': (-0.13166888, 1.60915514, -0.39604546),
          'ovrl': (-0.06766283, 1.11546468, 0.04602535)}
_FFT, _MEL_HOP, _MELS = 321, 160, 120  # of the P.808 model
_TOP, _AMIN = 80.0, 1e-10              # dB below the peak; least power


class DnsMos:
  """DNSMOS P.835 and, if its model is there, P.808."""

  def __init__(self, path: str = ''):
    """
    Args:
      path: a folder with sig_bak_ovr.onnx and, for P.808, model_v8.onnx; or the first of these
        files; either on a disk or at a URL; '' = the folder in the wheel speechmos.

    Raises:
      UserError: the wheel is not installed, or there is no such model.
    """
    if not path:
      import importlib.util
      found = importlib.util.find_spec('speechmos')
      if found is None or not found.submodule_search_locations:
        raise UserError("DNSMOS needs the package speechmos (extra 'judges'), which has its "
                        'models; install it, set config key evaluate.dnsmos to a folder with '
                        f"{_P835}, or to 'none'.")
      path = str(pathlib.Path(list(found.submodule_search_locations)[0]) / 'dnsmos_models')
      self._name = package('speechmos')
    else:
      self._name = path
    key = 'config key evaluate.dnsmos'
    place = (onnx_models.file(path, key, _P808) if path.endswith('.onnx')
             else folder_copies.folder(path, (_P835, _P808), key))
    main = place / _P835 if place.is_dir() else place
    if not main.is_file():
      raise UserError(f'config key evaluate.dnsmos is {path!r}: there is no file {main}; expected '
                      f'the folder of {_P835}, as in the package speechmos.')
    self._files = [main]
    self._p835 = onnx_models.session(main, 'the DNSMOS model')
    shape = self._p835.get_inputs()[0].shape
    if len(shape) != 2 or shape[1] != _WINDOW:
      raise UserError(f'the DNSMOS model {main} takes inputs of shape {shape}; expected [N, '
                      f'{_WINDOW}], as {_P835} has.')
    self._p808 = None
    if main.with_name(_P808).is_file():
      self._files.append(main.with_name(_P808))
      self._p808 = onnx_models.session(self._files[-1], 'the DNSMOS model')

  def score_all(self, sounds: Sequence[Sound]) -> list[dict[str, float] | None]:
    """{'ovrl', 'sig', 'bak', and 'p808'} of each sound, from 1 to 5; None for one without samples.

    Windows of 9.01 s, one every second, are averaged; a shorter sound is repeated.
    """
    return [self._score(*sound) if len(sound[0]) else None for sound in sounds]

  def score(self, waveform: np.ndarray, rate: int) -> dict[str, float]:
    """As ``score_all``, of one sound that has samples."""
    return self._score(waveform, rate)

  def _score(self, waveform: np.ndarray, rate: int) -> dict[str, float]:
    windows = _windows(io.resample(waveform, rate, RATE))
    out: dict[str, list[float]] = {name: [] for name in (*_SCALE, 'p808')}
    for at in range(0, len(windows), _BATCH):
      batch = windows[at:at + _BATCH]
      found = self._p835.run(None, {self._p835.get_inputs()[0].name: batch})[0]
      for column, name in enumerate(('sig', 'bak', 'ovrl')):
        out[name] += np.polyval(_SCALE[name], found[:, column].astype(np.float64)).tolist()
      if self._p808 is not None:
        mels = np.stack([_log_mels(window[:-_MEL_HOP]) for window in batch])
        found = self._p808.run(None, {self._p808.get_inputs()[0].name: mels})[0]
        out['p808'] += found[:, 0].tolist()
    return {name: float(np.mean(values)) for name, values in out.items() if values}

  def describe(self) -> dict[str, Any]:
    return {'model': self._name, 'files': onnx_models.facts(*self._files)}


def _windows(waveform: np.ndarray) -> np.ndarray:
  """float32 [N] at RATE -> [W, _WINDOW]; a short sound is doubled until it is long enough."""
  while len(waveform) < _WINDOW:
    waveform = np.concatenate([waveform, waveform])
  count = max(int(len(waveform) // RATE - _WINDOW / RATE) + 1, 1)
  starts = [at * _HOP for at in range(count) if at * _HOP + _WINDOW <= len(waveform)]
  return np.stack([waveform[at:at + _WINDOW] for at in starts]).astype(np.float32)


def _log_mels(waveform: np.ndarray) -> np.ndarray:
  """float32 [N] at RATE -> [1 + N // 160, 120]: mel powers in dB below their peak, + 40, / 40."""
  padded = np.pad(waveform, _FFT // 2)
  frames = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[::_MEL_HOP]
  window, filters = _mel_filters()
  power = np.abs(np.fft.rfft(frames * window, axis=1)) ** 2
  mels = np.maximum(power @ filters, _AMIN)
  decibels = 10 * np.log10(mels / mels.max())
  return ((np.maximum(decibels, -_TOP) + 40) / 40).astype(np.float32)


@functools.cache
def _mel_filters() -> tuple[np.ndarray, np.ndarray]:
  """(periodic Hann window [321], Slaney's mel filters of unit area [161, 120])."""
  window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_FFT) / _FFT)
  # Slaney's scale: linear below 1 kHz, then logarithmic with 27 steps per factor of 6.4.
  step, knee = 200 / 3, 1000.0
  top = knee / step + np.log(RATE / 2 / knee) / (np.log(6.4) / 27)
  mels = np.linspace(0, top, _MELS + 2)
  hertz = np.where(mels < knee / step, mels * step,
                   knee * np.exp((np.log(6.4) / 27) * (mels - knee / step)))
  bins = np.fft.rfftfreq(_FFT, 1 / RATE)[:, None]
  rising = (bins - hertz[:-2]) / (hertz[1:-1] - hertz[:-2])
  falling = (hertz[2:] - bins) / (hertz[2:] - hertz[1:-1])
  return window, np.maximum(0, np.minimum(rising, falling)) * (2 / (hertz[2:] - hertz[:-2]))


class Speaker:
  """A model of speaker embeddings in an ONNX file.

  Either a model with the metadata of sherpa-onnx (WeSpeaker, 3D-Speaker, NeMo), or one that takes
  waveforms float32 [N, samples] of 16 kHz and gives embeddings [N, D], such as an export of the
  WavLM of Seed-TTS's evaluation.
  """

  def __init__(self, path: str):
    """
    Args:
      path: of the .onnx file, or its URL.

    Raises:
      UserError: no such model, or a model of another form.
    """
    self._named = path
    self._path = onnx_models.file(path, 'config key evaluate.speaker_model')
    what = 'the speaker model'
    if not self._path.is_file():
      raise UserError(f'config key evaluate.speaker_model is {path!r}, which is not a file; '
                      'expected an ONNX model of speaker embeddings; judges download nothing.')
    self._session = onnx_models.session(self._path, what)
    metadata = self._session.get_modelmeta().custom_metadata_map
    inputs = self._session.get_inputs()
    self._extractor = None
    if metadata.get('framework') in ('wespeaker', '3d-speaker', 'nemo'):
      needed = ('output_dim', 'sample_rate') + (
          () if metadata['framework'] == 'nemo' else ('normalize_samples', 'language'))
      missing = [key for key in needed if key not in metadata]
      if missing:  # the library would end the process
        raise UserError(f'{what} {path} has no metadata {missing[0]!r} of sherpa-onnx.')
      try:
        import sherpa_onnx
      except ImportError as error:
        raise UserError(f"{what} {path} needs the package sherpa-onnx (extra 'judges').") from error
      self._extractor = sherpa_onnx.SpeakerEmbeddingExtractor(
          sherpa_onnx.SpeakerEmbeddingExtractorConfig(
              model=str(self._path), num_threads=onnx_models.threads()))
    elif len(inputs) != 1 or len(inputs[0].shape) != 2 or inputs[0].type != 'tensor(float)':
      shapes = ', '.join(f'{one.name} {one.shape}' for one in inputs)
      raise UserError(f'{what} {path} has the inputs {shapes} and no metadata of sherpa-onnx; '
                      'expected one input [batch, samples] of 16 kHz, or a model that sherpa-onnx '
                      'publishes.')

  def embed(self, waveform: np.ndarray, rate: int) -> np.ndarray:
    """float32 [N] at ``rate`` Hz -> float64 [D] of length 1; zeros for a sound too short for it."""
    waveform = io.resample(waveform, rate, RATE)
    if self._extractor is not None:
      stream = self._extractor.create_stream()
      stream.accept_waveform(sample_rate=RATE, waveform=waveform)
      stream.input_finished()
      ready = self._extractor.is_ready(stream)
      found = self._extractor.compute(stream) if ready else [0.0]
    else:
      found = self._session.run(None, {self._session.get_inputs()[0].name: waveform[None]})[0][0]
    vector = np.asarray(found, np.float64).reshape(-1)
    return vector / max(float(np.linalg.norm(vector)), 1e-12)

  def similarity(self, one: Sound, other: Sound) -> float:
    """The cosine of two speakers' embeddings, in [-1, 1]; 0 if a sound is too short."""
    a, b = self.embed(*one), self.embed(*other)
    return float(a @ b) if a.shape == b.shape else 0.0

  def describe(self) -> dict[str, Any]:
    return {'model': self._named, 'files': onnx_models.facts(self._path)}
