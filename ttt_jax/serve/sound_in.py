"""Recordings of requests: base64 or files, to waveforms of a limited length."""

import base64
import binascii
import io as stdlib_io

import numpy as np

from ttt_jax.audio import io
from ttt_jax.errors import UserError
from ttt_jax.serve.errors import ApiError
from ttt_jax.serve.sound_out import RATE

_PCM = ('pcm16', 'pcm')


def from_base64(data: str, form: str, where: str, seconds: float) -> tuple[np.ndarray, int]:
  """(float32 [N], rate) of the contents of a file in base64.

  Args:
    data: base64, also as a data: URI.
    form: as the client names it; 'pcm16' is mono at sound_out.RATE, everything else is known by its
      content.
    where: the field, for messages.
    seconds: longest recording.

  Raises:
    ApiError: no base64 (400), or longer than ``seconds`` (413).
    UserError: no recording.
  """
  if data[:5].lower() == 'data:':
    head, comma, data = data.partition(',')
    if not comma or not head.lower().endswith(';base64'):
      raise ApiError(400, f'{where} is a data: URI without base64; write data:audio/wav;base64,...',
                     where)
  try:
    contents = base64.b64decode(data, validate=True)
  except (binascii.Error, ValueError) as error:
    raise ApiError(400, f'{where} is not base64 ({error}).', where) from error
  return from_bytes(contents, form, where, seconds)


def from_bytes(contents: bytes, form: str, where: str, seconds: float) -> tuple[np.ndarray, int]:
  """As ``from_base64``, of the bytes."""
  if not contents:
    raise ApiError(400, f'{where} is empty; it must be a recording.', where)
  if form.lower() in _PCM:
    if len(contents) % 2:
      raise ApiError(400, f'{where} has {len(contents)} bytes; PCM of 16 bits has an even number.',
                     where)
    waveform, rate = np.frombuffer(contents, '<i2').astype(np.float32) / 32768, RATE
  else:
    if (length := _announced(contents)) > seconds:
      raise _too_long(length, seconds, where)
    try:
      waveform, rate = io.read(contents, name=f'in {where}',
                               longest=int(seconds * io.HIGHEST_RATE))
    except UserError as error:
      raise ApiError(400, str(error), where) from error
  if len(waveform) > seconds * rate:
    raise _too_long(len(waveform) / rate, seconds, where)
  return waveform, rate


def _announced(contents: bytes) -> float:
  """Seconds of sound by the header of a file, before anything is decoded; 0 if it does not say."""
  import soundfile
  try:
    found = soundfile.info(stdlib_io.BytesIO(contents))
  except (soundfile.LibsndfileError, RuntimeError):
    return 0.0  # reading it says what is wrong
  return found.frames / found.samplerate if found.frames < 2**40 and found.samplerate else 0.0


def _too_long(length: float, seconds: float, where: str) -> ApiError:
  return ApiError(413, f'{where} lasts {length:.1f} s; the server takes at most {seconds:g} s '
                  '(serve.max_audio).', where, 'audio_too_long')
