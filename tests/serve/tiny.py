"""A served model of random parameters that speaks, and a real server of it in this process."""

import asyncio
import contextlib
import dataclasses
import threading
import time

import numpy as np

from tests.reference import weights
from ttt_jax.audio.codec import Codec
from ttt_jax.config import GenerateConfig, ModelConfig, ObjectiveConfig, ServeConfig
from ttt_jax.data.interleave import Renderer
from ttt_jax.model.transformer import Model
from ttt_jax.serve import app, server
from ttt_jax.serve.served_model import ServedModel
from ttt_jax.serve.service import Service
from ttt_jax.tokens.tokenizer import ByteTokenizer
from ttt_jax.tokens.vocab import Vocabulary

VOCAB = Vocabulary('bytes', 256, 'tones', 16)
SETTINGS = GenerateConfig(block=4, steps=2, slots=4, max_span=12, max_tokens=240)


def small():
  """Settings with few programs."""
  return dataclasses.replace(SETTINGS, slots=2, max_span=4, max_tokens=60)


class Tones(Codec):
  """50 codes per second, each a tone of its own; a recording's codes are its loudness."""
  name, codebook_size, sample_rate, tokens_per_second = 'tones', 16, 8000, 50.0

  def encode(self, waveform, rate):
    size = max(1, rate // 50)
    pieces = [waveform[i:i + size] for i in range(0, len(waveform), size)]
    return np.array([int(15 * min(1.0, np.abs(p).max())) for p in pieces], np.int32)

  def decode(self, codes):
    time_ = np.arange(160) / 8000
    return np.concatenate([np.zeros(0, np.float32), *(
        0.5 * np.sin(2 * np.pi * (200 + 50 * code) * time_) for code in codes)]).astype(np.float32)


MODEL = Model(ModelConfig(num_layers=1, hidden_size=16, num_attention_heads=2,
                          num_key_value_heads=1, head_dim=8, intermediate_size=24,
                          tie_word_embeddings=False, vocab_multiple=32), VOCAB.size)


def served(settings=SETTINGS, codec=True, seed=0):
  """Random parameters whose head often opens spans, closes them and stops."""
  params = weights.random(MODEL, np.random.default_rng(seed), scale=0.4)
  params['trunk']['embedding'] *= 2
  head = params['trunk']['head']
  head[[VOCAB.begin_of_audio, VOCAB.begin_of_quad]] *= 2.5
  head[VOCAB.im_end] *= 1.5
  return ServedModel('tiny', MODEL, params, VOCAB, Renderer(VOCAB, ByteTokenizer()),
                     Tones() if codec else None, ObjectiveConfig(), settings,
                     lambda task: 'read' if task == 'tts' else '', created=1)


@contextlib.contextmanager
def running(model=None, config=ServeConfig(), key='', origins=(), routes=()):
  """A server on a free port of loopback, in a thread; yields (service, address)."""
  service = Service.make(model or served(), config)
  listener = server.bind('127.0.0.1', 0)
  listener.listen(64)
  one = server.Server(app.make(service, key, origins, routes), service)
  thread = threading.Thread(target=lambda: asyncio.run(one.serve([listener])), daemon=True)
  thread.start()
  while not one.started and thread.is_alive():
    time.sleep(0.005)
  try:
    yield service, f'http://127.0.0.1:{listener.getsockname()[1]}'
  finally:
    one.should_exit = True
    thread.join(60)
    assert not thread.is_alive(), 'the server does not stop'
