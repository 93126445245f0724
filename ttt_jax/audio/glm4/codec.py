"""GLM-4-Voice as a codec: 12.5 codes per second out of 16,384.

Without weights it still describes the codes of published data sets (`<|audio_123|>`), which is
all that `prepare` and `train` need then. Encoding needs the tokenizer's folder, decoding that of
the decoder.

The published script encodes the first of several channels; here channels are averaged, as for
every codec (audio/io.py). Codes are equal for mono and equal channels. To reproduce the script for
other stereo files, extract their first channel.
"""

import collections
import concurrent.futures
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from ttt_jax.audio import io
from ttt_jax.audio.codec import Codec, check_codes
from ttt_jax.audio.glm4 import decoder, features
from ttt_jax.audio.glm4.batches import Batches
from ttt_jax.audio.glm4.checkpoint import Checkpoint, shape_of
from ttt_jax.audio.glm4.encoder import Encoder, Shape
from ttt_jax.config import CodecConfig
from ttt_jax.errors import UserError
from ttt_jax.storage import folder_copies, url_path

_WINDOW = 1_024  # recordings whose segments may share batches
_ON_CPU = 16     # recordings per job on a CPU, where each takes seconds
_THREADS = 4     # threads that compute log-mel frames while accelerators encode


class Glm4Voice(Codec):
  """The published tokenizer, or one of the same architecture and another size."""

  sample_rate = decoder.RATE
  tokens_per_second = features.RATE / features.PATCH
  own_devices = True
  class_settings = ('decoder_name',)

  def __init__(self, weights: str = '', decoder_name: str = '', decoder_weights: str = '',
               codes: int | None = None, digest: str = ''):
    """
    Args:
      weights: folder of the tokenizer, or '' if nothing will be encoded.
      decoder_name, decoder_weights: see decoder.py; '' if nothing will be decoded.
      codes, digest: size and digest of the codebook of existing codes.

    Folders are opened at first use, since a prepared set is also used on machines without them.
    """
    self.weights, self.digest = weights, digest
    self.decoder_name, self.decoder_weights = decoder_name, decoder_weights
    self.codebook_size = codes or Shape.codes
    published = self.codebook_size == Shape.codes
    # Data sets with codes of the published codebook use this name.
    self.name = 'glm-4-voice' if published else f'glm-4-voice-{self.codebook_size}'
    self._lock = threading.Lock()
    self._batches: Batches | None = None
    self._bridge: decoder.Bridge | None = None

  @classmethod
  def planned_codebook_size(cls, config: CodecConfig) -> int:
    """That of the folder's config.json; of the published tokenizer where there is none."""
    folder = folder_copies.folder(config.weights, ('config.json',), 'config key codec.weights')
    return shape_of(folder / 'config.json').codes

  @classmethod
  def create(cls, config: CodecConfig,
             recordings: Iterable[tuple[np.ndarray, int]] = ()) -> 'Glm4Voice':
    """The tokenizer in config.weights, after a check of its headers; reads no recordings.

    Raises:
      UserError: unusable weights or decoder; see Checkpoint and decoder.Bridge.
    """
    weights, codes, digest = '', None, ''
    if config.weights:
      checkpoint = Checkpoint(config.weights)
      weights = _absolute(config.weights)
      codes, digest = checkpoint.shape.codes, checkpoint.digest()
    decoder_weights = ''
    if config.decoder:
      decoder.Bridge(config.decoder, config.decoder_weights)  # reports errors here, early
      decoder_weights = _absolute(config.decoder_weights)
    return cls(weights, config.decoder, decoder_weights, codes, digest)

  @property
  def at_once(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]  read-only here
    """As in Codec; small on a CPU, where batches are not faster."""
    return _ON_CPU if jax.default_backend() == 'cpu' else _WINDOW

  def encode(self, waveform: np.ndarray, rate: int) -> np.ndarray:
    """As in Codec; ceil(samples at 16 kHz / 1280) codes for each 30 s."""
    found = next(self.encode_many([(waveform, rate)]))
    if isinstance(found, UserError):
      raise found
    return found

  def encode_many(self, recordings: Iterable[tuple[np.ndarray, int]]
                  ) -> Iterator[np.ndarray | UserError]:
    """As in Codec. On accelerators segments of up to 1,024 recordings share batches."""
    batches = self.batches()
    recordings = iter(recordings)
    while found := self._window(batches, itertools.islice(
        recordings, 1 if batches.rows(batches.buckets[-1]) == 1 else _WINDOW)):
      yield from found

  def _window(self, batches: Batches, recordings: Iterator) -> list[np.ndarray | UserError]:
    out: list[Any] = []  # per recording: the codes of its segments, or an error
    def pieces():
      for number, (waveform, rate) in enumerate(recordings):
        try:
          cut = features.segments(_checked(waveform, rate), batches.buckets[-1])
        except UserError as error:
          out.append(error)
          continue
        out.append([None] * len(cut))
        yield from (((number, i), piece) for i, piece in enumerate(cut))
    def analysed(item):
      name, piece = item
      return name, features.log_mel(piece, batches.encoder.shape.mels), len(piece)
    threads = 0 if batches.rows(batches.buckets[-1]) == 1 else _THREADS
    for (number, i), codes in batches.run(_ahead(analysed, pieces(), threads)):
      out[number][i] = codes
    return [one if isinstance(one, UserError) else np.concatenate(one) for one in out]

  def batches(self) -> Batches:
    """The encoder with its weights, on all local accelerators or one CPU; cached.

    Raises:
      UserError: no weights, damaged ones, or another codebook.
    """
    with self._lock:
      if self._batches is None:
        if not self.weights:
          raise UserError(
              f'codec {self.name} cannot encode recordings without its weights; set config key '
              'codec.weights to the folder of the GLM-4-Voice tokenizer (config.json and '
              'model.safetensors), or provide audio as codes.')
        checkpoint = Checkpoint(self.weights)
        if self.digest and checkpoint.digest() != self.digest:
          raise UserError(f'the weights in {self.weights} have another codebook than the codes of '
                          f'this data ({self.digest}); restore the weights that made them.')
        devices = jax.local_devices()
        many = len(devices) > 1 and devices[0].platform != 'cpu'
        mesh = Mesh(devices, ('data',), axis_types=(AxisType.Auto,)) if many else None
        self._batches = Batches(Encoder(checkpoint.shape), checkpoint.read(), mesh)
      return self._batches

  def decode(self, codes: np.ndarray) -> np.ndarray:
    """As in Codec, by the published PyTorch decoder; see decoder.py."""
    codes = check_codes(codes, self)
    if not self.decoder_name:
      raise UserError(
          f'codec {self.name} cannot make sound: its decoder is PyTorch and not part of this '
          'package; set config keys codec.decoder (e.g. flow_inference:AudioDecoder) and '
          'codec.decoder_weights, as described in ttt_jax/audio/glm4/decoder.py.')
    if not codes.size:
      return np.zeros(0, np.float32)
    if self._bridge is None:
      self._bridge = decoder.Bridge(self.decoder_name, self.decoder_weights)
    return np.clip(self._bridge(codes), -1, 1)

  def settings(self) -> dict[str, Any]:
    return {'weights': self.weights, 'decoder_name': self.decoder_name,
            'decoder_weights': self.decoder_weights, 'codes': self.codebook_size,
            'digest': self.digest}


def _absolute(path: str) -> str:
  """A path that holds in every directory, since a prepared set keeps it; a URL does already."""
  return path if url_path.is_url(path) else os.path.realpath(path)


def _checked(waveform: np.ndarray, rate: int) -> np.ndarray:
  io.check(waveform, rate, 'a recording')
  waveform = features.resample(waveform, rate)
  io.check(waveform, features.RATE, 'a recording')  # all of its energy may be above 8 kHz
  return waveform


def _ahead(function: Callable, items: Iterable, threads: int) -> Iterator:
  """As map(function, items), computed a few items ahead by threads; 0 threads = map."""
  if not threads:
    yield from map(function, items)
    return
  pool = concurrent.futures.ThreadPoolExecutor(threads)
  waiting: collections.deque = collections.deque()
  try:
    for item in items:
      waiting.append(pool.submit(function, item))
      if len(waiting) > 2 * threads:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)
