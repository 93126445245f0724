"""The codecs of an export's own code (numpy alone) beside ttt_jax.audio."""

import importlib.util
import json

import numpy as np
import pytest

from tests.hf.torch_models import CODE
from ttt_jax.audio.codec2 import WIDTHS, Codec2
from ttt_jax.audio.mel_codec import FLOOR, MELS, MelCodec
from ttt_jax.hf import export_hf


@pytest.fixture(scope='module')
def carried():
  spec = importlib.util.spec_from_file_location('ttt_codec', CODE / 'ttt_codec.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def find(folder):
  return lambda name: str(folder / name) if (folder / name).is_file() else None


@pytest.mark.parametrize('books', [1, 3])
def test_mel(carried, tmp_path, books):
  """The same samples, also for codes in another codebook's slot and incomplete patches. The
  exported code has NumPy's Fourier transform, the package SciPy's."""
  rng = np.random.default_rng(books)
  codec = MelCodec(rng.uniform(FLOOR, 0, (books, 8, 2 * MELS)), 2, 0.4)
  codec.save(tmp_path)
  own = carried.load(find(tmp_path), codec.name)
  assert own.sample_rate == codec.sample_rate
  for count in (0, 1, 20):
    codes = rng.integers(0, codec.codebook_size, count)
    np.testing.assert_allclose(own.decode(codes), codec.decode(codes), atol=1e-4)
  with pytest.raises(ValueError, match=f'audio code {codec.codebook_size} is outside'):
    own.decode([codec.codebook_size])


@pytest.mark.parametrize('mode', WIDTHS)
def test_codec2(carried, tmp_path, mode):
  """The same frames where the codes are in their slots; the samples have a random phase."""
  rng = np.random.default_rng(0)
  codec = Codec2(mode)
  codec.save(tmp_path)
  own = carried.load(find(tmp_path), codec.name)
  fields = np.stack([rng.integers(0, 1 << width, 5) for width in WIDTHS[mode]], axis=1)
  codes = (fields + codec.offsets).reshape(-1)
  assert own.frames(codes) == codec.frames_of(codes)
  for some in (codes[:0], codes, rng.permutation(codes)[:-1]):
    waveform = own.decode(some)
    assert waveform.dtype == np.float32 and waveform.shape == codec.decode(some).shape


def test_every_embedded_codec_is_known(carried, tmp_path):
  for kind in export_hf.EMBEDDED:
    (tmp_path / 'codec.json').write_text(json.dumps({'kind': kind, 'settings': {}}))
    with pytest.raises(ValueError, match='cannot be read|not part of its directory'):
      carried.load(find(tmp_path), 'x').decode([0])


@pytest.mark.parametrize('text, words', [
    (None, r'\(mine-7\) is not part of its directory; give its decoder'),
    ('{"kind": "my_module:Codec", "settings": {}}', 'mine-7'), ('[]', 'cannot be read'),
    ('{"kind": "codec2", "settings": {"mode": "9"}}', 'cannot be read'), ('{', 'cannot be read')])
def test_other_directories(carried, tmp_path, text, words):
  if text is not None:
    (tmp_path / 'codec.json').write_text(text)
  with pytest.raises(ValueError, match=words):
    carried.load(find(tmp_path), 'mine-7').decode([0])
