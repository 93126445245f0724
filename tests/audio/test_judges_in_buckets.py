"""Models of judges at URLs of buckets: they give what they give from a disk, under their names."""

import numpy as np
import pytest

from tests.audio import onnx_models
from ttt_jax import config as config_lib
from ttt_jax.audio import asr_judges, quality
from ttt_jax.errors import UserError
from ttt_jax.storage import remote

pytest.importorskip('sherpa_onnx')
pytest.importorskip('faster_whisper')
pytestmark = [pytest.mark.storage, pytest.mark.slow]
RATE = 16_000


def test_judges(gs_bucket, tmp_path):
  folder = onnx_models.tones(tmp_path / 'zipformer')
  (folder / 'README.md').write_text('x')
  speaker = onnx_models.spectrum(tmp_path / 'speaker.onnx')
  remote.upload_folder(folder, f'{gs_bucket}/zipformer')
  remote.upload(speaker, f'{gs_bucket}/models/speaker.onnx')
  settings = config_lib.of_values({'evaluate': {
      'judge': 'zipformer', 'judge_model': f'{gs_bucket}/zipformer/',
      'speaker_model': f'{gs_bucket}/models/speaker.onnx',
      'dnsmos': f'{gs_bucket}/nowhere'}}).evaluate
  here = asr_judges.create('zipformer', str(folder))
  there = asr_judges.create(settings.judge, settings.judge_model)
  time = np.arange(RATE) / RATE
  sound = (0.05 * np.sin(2 * np.pi * 110 * np.arange(1, 9)[:, None] * time).sum(0)).astype(
      np.float32)
  assert there.transcribe(sound, RATE) == here.transcribe(sound, RATE) != ''
  assert there.describe() == here.describe() | {'model': f'{gs_bucket}/zipformer'}
  one, other = quality.Speaker(str(speaker)), quality.Speaker(settings.speaker_model)
  np.testing.assert_array_equal(one.embed(sound, RATE), other.embed(sound, RATE))
  assert other.describe() == one.describe() | {'model': settings.speaker_model}
  assert list(other.describe()['files']) == ['speaker.onnx']
  for fail in (lambda: quality.DnsMos(settings.dnsmos),
               lambda: quality.Speaker(f'{gs_bucket}/models/other.onnx'),
               lambda: asr_judges.create('whisper', f'{gs_bucket}/zipformer')):
    with pytest.raises(UserError, match='does not exist|is not a file|has no model.bin'):
      fail()
  with pytest.raises(UserError, match='evaluate.transcripts is gs://a/b, which is not a path'):
    config_lib.of_values({'evaluate': {'transcripts': 'gs://a/b'}})
