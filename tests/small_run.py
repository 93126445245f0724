"""A small run on the token set that the repository keeps, for tests that train."""

import contextlib
import dataclasses
import json
import pathlib

import jax
import pytest

from ttt_jax.config import (Config, DataConfig, EvaluateConfig, GenerateConfig, ModelConfig,
                            MeshConfig, OptimizerConfig, Source, Stage, TrainConfig)
from ttt_jax.model import sharding
from ttt_jax.tokens.vocab import Vocabulary

TOKENS = pathlib.Path(__file__).parents[1] / 'data' / 'demo_tokens'


def config(**train) -> Config:
  """Digits and questions as codes, a model of 60,000 parameters, eight rows a step."""
  strings = str(TOKENS / 'train_short.jsonl')
  held = str(TOKENS / 'heldout_strings.jsonl')
  return Config(name='test',
                data=DataConfig(seq_len=256,
                                threads=2,
                                stages=(Stage('train', 0),),
                                sources=(
                                    Source(path=strings, task='asr', prompt='asr'),
                                    Source(path=strings, task='tts', prompt='tts'),
                                    Source(path=str(TOKENS / 'train_questions.jsonl'),
                                           prompt='qa',
                                           repeat=0.2),
                                    Source(path=held,
                                           task='asr',
                                           prompt='asr',
                                           split='heldout',
                                           repeat=0.1),
                                    Source(path=held,
                                           task='tts',
                                           prompt='tts',
                                           split='heldout',
                                           repeat=0.1),
                                )),
                model=ModelConfig(num_layers=2,
                                  hidden_size=32,
                                  num_attention_heads=4,
                                  num_key_value_heads=2,
                                  head_dim=8,
                                  intermediate_size=64,
                                  vocab_multiple=64),
                optimizer=OptimizerConfig(learning_rate=3e-3, warmup_ratio=0.2),
                train=TrainConfig(**{
                    'steps': 10,
                    'batch_size': 8,
                    'log_every': 1,
                    'checkpoint_every': 5,
                    'keep': 10
                } | train),
                generate=GenerateConfig(block=9, steps=3, max_span=30, max_tokens=220),
                evaluate=EvaluateConfig(items=2, batch=4, judge='none', bound_samples=2))


def replace(base: Config, section: str, **values) -> Config:
  """``base`` with some keys of one section changed."""
  return dataclasses.replace(base, **{
      section: dataclasses.replace(getattr(base, section), **values)})


@contextlib.contextmanager
def one_device():
  """Runs whose config names no mesh get one of the eight virtual devices: the subject is not the
  mesh, and a program for one device compiles in half the time."""
  make, default = sharding.make_mesh, MeshConfig()

  def make_mesh(config, devices=None):
    if devices is None and config == default:
      devices = jax.devices()[:1]
    return make(config, devices)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding, 'make_mesh', make_mesh)
    yield


def name_codec(data_dir: pathlib.Path, name: str) -> None:
  """Gives a prepared set the vocabulary of another codec."""
  file = data_dir / 'manifest.json'
  manifest = json.loads(file.read_text())
  manifest['vocabulary']['codec'] = name
  manifest['fingerprint'] = Vocabulary.from_dict(manifest['vocabulary']).fingerprint
  file.write_text(json.dumps(manifest))
