"""The sound of an answer: samples at the protocol's rate, and the formats they are sent in."""

import io
import struct

import numpy as np

from ttt_jax.audio.codec import Codec
from ttt_jax.audio.resampling import Resampler
from ttt_jax.errors import UserError

RATE = 24_000  # Hz, of all sound that the server sends and of PCM that it receives
# Format -> (soundfile's format and subtype, media type); None: written here.
_FORMATS = {'wav': (None, 'audio/wav'), 'pcm16': (None, 'audio/pcm'), 'pcm': (None, 'audio/pcm'),
            'mp3': (('MP3', 'MPEG_LAYER_III'), 'audio/mpeg'),
            'flac': (('FLAC', 'PCM_16'), 'audio/flac'), 'opus': (('OGG', 'OPUS'), 'audio/ogg')}
FORMATS = tuple(_FORMATS)
STREAMED = ('wav', 'pcm16', 'pcm')  # the others are encoded when the answer is complete
_UNKNOWN = 0xFFFFFFFF  # length in the header of a WAV that is still being written


class PcmStream:
  """PCM of one answer as its codes arrive: int16, little-endian, mono, at RATE.

  The first codes wait until they last for ``first`` seconds, or until the answer ends: one code of
  a block may be final long before the others, and a player that starts with it would run dry.
  """

  def __init__(self, codec: Codec, first: float = 0.0):
    self._codec, self._stream = codec, codec.stream()
    self._resampler = Resampler(codec.sample_rate, RATE)
    self._least = first * codec.tokens_per_second
    self._waiting: list[np.ndarray] = []

  def push(self, codes: np.ndarray) -> bytes:
    """The samples that more codes [n] make final."""
    self._waiting.append(codes)
    if sum(map(len, self._waiting)) < self._least:
      return b''
    self._least = 0.0
    return pcm16(self._resampler.push(self._flush()))

  def finish(self) -> bytes:
    """The remaining samples."""
    rest = self._resampler.push(np.concatenate([self._flush(), self._stream.finish()]))
    return pcm16(np.concatenate([rest, self._resampler.finish()]))

  def _flush(self) -> np.ndarray:
    codes, self._waiting = self._waiting, []
    return self._stream.push(np.concatenate(codes)) if codes else np.zeros(0, np.float32)


def pcm16(samples: np.ndarray) -> bytes:
  """float32 [n] in [-1, 1] -> little-endian int16."""
  return np.round(np.clip(samples, -1, 1) * 32767).astype('<i2').tobytes()


def wav_header(size: int | None = None) -> bytes:
  """The header of a WAV file of ``size`` bytes of PCM at RATE; None = not known yet."""
  data = _UNKNOWN if size is None else size
  riff = _UNKNOWN if size is None else 36 + size
  return (b'RIFF' + struct.pack('<I', riff) + b'WAVEfmt '
          + struct.pack('<IHHIIHH', 16, 1, 1, RATE, 2 * RATE, 2, 16)
          + b'data' + struct.pack('<I', data))


def encode(pcm: bytes, form: str) -> bytes:
  """A complete answer's PCM in one of FORMATS.

  Raises:
    UserError: the installed libsndfile does not write the format.
  """
  settings, _ = _FORMATS[form]
  if settings is None:
    return wav_header(len(pcm)) + pcm if form == 'wav' else pcm
  import soundfile
  out = io.BytesIO()
  try:
    soundfile.write(out, np.frombuffer(pcm, '<i2'), RATE, settings[1], format=settings[0])
  except (ValueError, RuntimeError) as error:
    raise UserError(f'the installed libsndfile cannot write {form} ({error}); use wav.') from error
  return out.getvalue()


def media_type(form: str) -> str:
  return _FORMATS[form][1]
