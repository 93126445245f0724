"""What tests of training share: a run, to be copied before it is changed, and a fake device."""

import os

import numpy as np
import pytest

from tests import small_run
from ttt_jax.train import step as train_step, train


@pytest.fixture(scope='session')
def ten_steps(small_config, tmp_path_factory):
  """The workdir of a run of ten steps on one device; data.path leads out of a new workdir."""
  workdir = tmp_path_factory.mktemp('runs') / 'ten'
  config = small_run.replace(small_config, 'data',
                             path=os.path.relpath(small_config.data.path, workdir))
  with small_run.one_device():
    train.train(config, workdir)
  return workdir


class Device:
  """Stands for a device that never finishes a step before it has been given the next one.

  Who asks for a figure of the newest step would wait for ever; here it is an error.
  """

  def __init__(self, steps):
    self.steps, self.given, self.read = steps, 0, []

  def step(self, state, batch):
    self.given += 1
    names = ('loss', 'ar', 'diffusion', 'tokens', 'documents', 'scored', 'mask_pairs')
    figures = {name: Figure(self, self.given, 7.0 + self.given) for name in names}
    return state, figures | {'skipped': Figure(self, self.given, 0.0)}


class Figure:

  def __init__(self, device, step, value):
    self.device, self.step, self.value = device, step, value

  def is_ready(self):
    return self.step < self.device.given

  def __array__(self, dtype=None, copy=None):
    assert self.is_ready() or self.step == self.device.steps, (
        f'the host waits for step {self.step}, the newest one that the device has')
    self.device.read.append(self.step)
    return np.array(self.value, np.float32)


@pytest.fixture
def fake_run(monkeypatch, prepared):
  """A run whose steps are a Device's: (config, the device)."""
  device = Device(steps=6)
  monkeypatch.setattr(train_step, 'make_train_step', lambda *unused: device.step)
  # Saves in the middle wait for the device, as they must: here only the last step is saved.
  config = small_run.replace(small_run.config(steps=6, checkpoint_every=6, tensorboard=False),
                        'data', path=str(prepared))
  return config, device
