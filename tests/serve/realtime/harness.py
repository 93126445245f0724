"""A session without a network: a model that has everything but its weights, and a client."""

import base64
import json

import numpy as np

from tests.audio.test_vad import stream, voice  # noqa: F401  (for the tests)
from ttt_jax.audio.codec2 import Codec2
from ttt_jax.config import GenerateConfig, ObjectiveConfig, ServeConfig
from ttt_jax.data.interleave import Renderer
from ttt_jax.generate.outputs import Answer
from ttt_jax.serve import engine_loop
from ttt_jax.serve.realtime import socket
from ttt_jax.serve.realtime.session import Ask, Session, Stop
from ttt_jax.serve.served_model import ServedModel
from ttt_jax.tokens.tokenizer import ByteTokenizer
from ttt_jax.tokens.vocab import Vocabulary

CODEC = Codec2('700C')  # 75 codes per second
VOCAB = Vocabulary(text='bytes', text_ranks=256, codec=CODEC.name,
                   codebook_size=CODEC.codebook_size)


def served(**settings):
  settings = {'max_tokens': 400, **settings}
  return ServedModel('tiny', None, None, VOCAB, Renderer(VOCAB, ByteTokenizer()), CODEC,
                     ObjectiveConfig(), GenerateConfig(**settings), lambda task: f'[{task}]')


def pcm(waveform):
  samples = np.round(np.clip(waveform, -1, 1) * 32767).astype('<i2')
  return base64.b64encode(samples.tobytes()).decode()


def sound(seconds):
  return engine_loop.Sound(bytes(2 * round(seconds * 24_000)))


def codes(count, begin=True):
  """Ids of a span, or of more codes of it."""
  ids = VOCAB.encode_codes(np.arange(count))
  return np.concatenate([[VOCAB.begin_of_quad], ids] if begin else [ids]).astype(np.int32)


def text(words):
  return np.array(ByteTokenizer().encode(words), np.int32)


class Client:
  """Speaks to a session; collects what the server sends, asks and stops."""

  def __init__(self, model=None, **settings):
    self.served = model or served(**settings)
    self.session = Session(self.served, 's', ServeConfig(max_audio=20.0))
    self.sent, self.asked, self.stopped = [], [], []
    self.take(self.session.open())

  def take(self, effects):
    sent = [effect for effect in effects if isinstance(effect, dict)]
    self.asked += [effect for effect in effects if isinstance(effect, Ask)]
    self.stopped += [effect.key for effect in effects if isinstance(effect, Stop)]
    self.sent += sent
    return sent

  def send(self, type, **fields):
    return self.take(self.session.receive(json.dumps({'type': type, **fields})))

  def types(self, events=None):
    return [event['type'] for event in (self.sent if events is None else events)]

  def say(self, words='2 + 2'):
    """A written turn of the user; returns its item's id."""
    return self.send('conversation.item.create', item={
        'type': 'message', 'role': 'user',
        'content': [{'type': 'input_text', 'text': words}]})[0]['item']['id']

  def hear(self, waveform, piece=2_400):
    out = []
    for at in range(0, len(waveform), piece):
      out += self.send('input_audio_buffer.append', audio=pcm(waveform[at:at + piece]))
    return out

  def prompt(self):
    """Ids of the last request, and its settings."""
    ids, settings, since = socket.prepare(self.served, self.asked[-1])
    self.session.fits(self.asked[-1].key, since)
    return ids, settings

  def report(self, *reported):
    key = self.asked[-1].key
    return self.take([effect for event in reported
                      for effect in self.session.answered(key, event)])

  def ids(self, *ids):
    return engine_loop.Ids(np.concatenate(ids).astype(np.int32))

  def done(self, reason='stop', prompt=3, words=2, audio=4):
    nothing = np.zeros(0, np.int32)
    return engine_loop.Done(Answer(nothing, [], reason == 'stop', 1), reason, '', nothing, prompt,
                            audio, words, 0.1, 0.2)

  def answer(self, words='4', count=75):
    """A complete answer of text and one second of sound."""
    return self.report(self.ids(text(words)), engine_loop.Text(words), self.ids(codes(count)),
                       sound(count / 75), self.ids([VOCAB.end_of_last, VOCAB.im_end]), self.done())
