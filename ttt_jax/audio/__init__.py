"""Waveforms to codes and back: codecs, audio files, and speech recognition for evaluation."""
