"""A codec whose codes can be read by eye: the loudest frequency of each tenth of a second."""

import os
import pathlib
import time

import numpy as np

from ttt_jax.audio import codec, io

NAME = 'tests.data.prepare.tone:Tone'
RATE = 16_000


class Tone(codec.Codec):
  """code = Hz / 62.5, 0 = quiet; 500 Hz is code 8, 1000 Hz is 16, 2000 Hz is 32."""
  name, codebook_size, sample_rate, tokens_per_second = 'tone', 64, 8000, 10
  silence = (0,)

  def encode(self, waveform, rate):
    io.check(waveform, rate, 'a recording')
    x = io.resample(waveform, rate, 8000)
    x = np.concatenate([x, np.zeros(-len(x) % 800, np.float32)]).reshape(-1, 800)
    power = np.abs(np.fft.rfft(x * np.hanning(800), axis=1))
    power[:, :3] = 0
    codes = np.round(power.argmax(1) * 10 / 62.5).astype(np.int32)
    codes[np.abs(x).max(1) < 1e-3] = 0
    return np.minimum(codes, 63)

  def decode(self, codes):
    codes = codec.check_codes(codes, self)
    t = np.arange(800) / 8000
    return np.concatenate([0.3 * np.sin(2 * np.pi * 62.5 * c * t) for c in codes] or
                          [np.zeros(0)]).astype(np.float32)


class OnDevices(Tone):
  """Wants a process for itself, and leaves the number of each in the folder $TONE_PROCESSES."""
  own_devices, at_once = True, 2

  def encode_many(self, recordings):
    if 'TONE_PROCESSES' in os.environ:
      pathlib.Path(os.environ['TONE_PROCESSES'], str(os.getpid())).touch()
      time.sleep(0.3)
    return super().encode_many(recordings)


def tone(hertz, seconds=0.5, rate=RATE):
  """float32 [N]."""
  return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(
      np.float32)
