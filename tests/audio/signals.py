"""Signals like speech, made on the spot: voiced harmonics under moving formants, and hiss."""

import numpy as np


def babble(seconds: float, rate: int = 22_050, seed: int = 0) -> np.ndarray:
  """float32 [seconds * rate], peak 0.5: syllables of a buzz through two wandering formants."""
  draw = np.random.default_rng(seed)
  time = np.arange(round(seconds * rate)) / rate
  pitch = 110 + 30 * np.sin(2 * np.pi * (0.7 * time + draw.random()))
  phase = 2 * np.pi * np.cumsum(pitch) / rate
  first = 500 + 250 * np.sin(2 * np.pi * (2.3 * time + draw.random()))
  second = 1500 + 600 * np.sin(2 * np.pi * (1.7 * time + draw.random()))
  out = np.zeros_like(time)
  for harmonic in range(1, 30):
    hertz = harmonic * pitch
    gain = np.exp(-((hertz - first) / 150) ** 2) + 0.5 * np.exp(-((hertz - second) / 200) ** 2)
    out += gain * np.sin(harmonic * phase)
  out += 0.2 * draw.normal(size=time.size) * (np.sin(2 * np.pi * 1.3 * time) > 0.8)
  out *= np.clip(np.sin(2 * np.pi * 3 * time) * 2, 0, 1)  # syllables with silence between
  return (0.5 * out / np.abs(out).max()).astype(np.float32)


def with_noise(waveform: np.ndarray, snr: float, seed: int = 0) -> np.ndarray:
  """Speech with white noise, within full scale: float32 [N] -> [N].

  Args:
    waveform: float32 [N].
    snr: power of the speech over that of the noise [dB].
    seed: of the noise.
  """
  noise = np.random.default_rng(seed).normal(size=len(waveform))
  power = float(np.mean(np.square(waveform, dtype=np.float64)))
  mixed = waveform + noise * np.sqrt(power / 10 ** (snr / 10))
  return (mixed / max(1.0, np.abs(mixed).max(initial=0))).astype(np.float32)
