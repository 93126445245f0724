"""The benchmark's PyTorch side beside ours: a second, independent parity, where torch is."""

import numpy as np
import pytest

from tests.audio.glm4 import folders
from tests.audio.signals import babble
from tests.reference import glm4 as reference, quick
from ttt_jax.audio.glm4 import features
from ttt_jax.audio.glm4.batches import Batches
from ttt_jax.audio.glm4.checkpoint import Checkpoint
from ttt_jax.audio.glm4.encoder import Encoder

torch = pytest.importorskip('torch')
pytest.importorskip('safetensors')


def test_torch_and_ours_agree_on_features_states_and_tokens(tmp_path):
  from benchmarks import glm4_torch
  folder, _ = folders.small(tmp_path)
  theirs = glm4_torch.load(folder)
  checkpoint = Checkpoint(folder)
  encoder, params = Encoder(checkpoint.shape), checkpoint.read()
  mels = reference.SMALL['num_mel_bins']
  wave = babble(1.2, 16_000, seed=11)
  mel = features.log_mel(wave, mels)
  padded = torch.from_numpy(np.pad(wave, (0, -len(wave) % 1280)))[None]
  np.testing.assert_allclose(glm4_torch.log_mel(padded, mels)[0].T, mel, atol=1e-4)
  hidden = theirs.hidden(torch.from_numpy(mel.T[None]), torch.tensor([len(wave)]))[0].numpy()
  ours = quick.jit(encoder.hidden)(params, mel[None], np.array([-(-len(wave) // 320)], np.int32))
  np.testing.assert_allclose(np.asarray(ours)[0], hidden, atol=1e-4)
  batches = Batches(encoder, params)
  (_, codes), = batches.run([(0, mel, len(wave))])
  assert (codes == glm4_torch.tokens(theirs, [wave])[0]).mean() >= 14 / 15
