"""What the planner counts on rows, and the rows it makes up."""

import dataclasses

import numpy as np
import pytest

from tests import small_run
from tests.reference import staircase as reference
from ttt_jax.config import (
    CodecConfig, Config, DataConfig, ModelConfig, ObjectiveConfig, VocabConfig)
from ttt_jax.errors import UserError
from ttt_jax.plan import batch_stats
from ttt_jax.plan.vocabulary import planned_vocabulary
from ttt_jax.tokens.batch import Batch, split_documents
from ttt_jax.tokens.vocab import qwen_glm4

PAPER = Config(vocab=VocabConfig('qwen2.5', 'nowhere/tokenizer.json'),
               codec=CodecConfig(name='glm4_voice'))


def with_length(length):
  return dataclasses.replace(PAPER, data=DataConfig(seq_len=length))


def test_the_published_vocabulary_needs_no_files():
  assert planned_vocabulary(PAPER).size == qwen_glm4().size == 168_072


@pytest.mark.parametrize('codec, size', [
    (CodecConfig(name='mel', codebooks=2, codes=512), 1024),
    (CodecConfig(name='codec2', mode='1200'), 2 * 1024 + 3 * 512),
    (CodecConfig(name='glm4_voice', weights='a folder of another machine'), 16_384)])
def test_codec_sizes(codec, size):
  assert planned_vocabulary(Config(codec=codec)).codebook_size == size


@pytest.mark.parametrize('name',
                         ['tests.nothing:Codec', 'tests.small_run:Nothing', 'soundstream', 'a:'])
def test_a_codec_that_nobody_knows(name):
  with pytest.raises(UserError, match='--workdir'):
    planned_vocabulary(Config(codec=CodecConfig(name=name)))


def test_a_codec_mode_that_nobody_knows():
  with pytest.raises(UserError, match="codec.mode is '9000'"):
    planned_vocabulary(Config(codec=CodecConfig(name='codec2', mode='9000')))


def test_synthetic_documents_are_like_speech_data():
  batch = batch_stats.synthetic(with_length(2048), qwen_glm4())
  numbers, lengths = np.unique(batch.document[batch.document > 0], return_counts=True)
  assert len(numbers) > 200 and 100 <= lengths.min() and lengths.max() <= 2048
  assert 620 < lengths.mean() < 780
  # The layout: 26 codes and their end token in every span of an answer but the last.
  vocab = qwen_glm4()
  ends = batch.token == vocab.end_of_chunk
  spans = [np.count_nonzero(batch.span[r] == batch.span[r, t]) for r, t in np.argwhere(ends)[:50]]
  assert set(spans) == {27}
  assert np.count_nonzero(batch.token == vocab.begin_of_quad) == len(numbers)
  assert 0.4 < batch.supervised[batch.document > 0].mean() < 0.9


def test_longer_rows_hold_more_documents():
  assert 3.5 < (batch_stats.take(with_length(8192), qwen_glm4()).documents
                / batch_stats.take(with_length(2048), qwen_glm4()).documents) < 4.5


@pytest.mark.parametrize('mode', ['hybrid', 'ar', 'nar'])
def test_counts_are_those_of_brute_force(mode):
  config = dataclasses.replace(
      with_length(128), model=ModelConfig(attention_block=32),
      objective=ObjectiveConfig(mode=mode, banom=0.0, ppm=0.0, mask_floor=0.999999))
  vocab = qwen_glm4()
  batch = batch_stats.synthetic(config, vocab)
  rows = Batch(*(x[:6] for x in batch))
  counted = batch_stats.count(rows, config, vocab, 'test')
  pairs = blocks = 0
  for row in range(6):
    documents = split_documents(Batch(*(x[row] for x in rows)))
    mask = reference.row_matrix(vocab, documents, 128, mode)
    pairs += mask.sum()
    blocks += mask.reshape(4, 32, 4, 32).any(axis=(1, 3)).sum()
  assert counted.mask_pairs * 6 == pairs
  assert counted.visited * 6 * 16 == pytest.approx(blocks)
  assert counted.tokens * 6 == (rows.document > 0).sum()
  assert counted.documents * 6 == sum(len(set(d[d > 0])) for d in rows.document)
  # With everything maskable masked, a loss falls wherever something is or follows supervised.
  audio = rows.supervised & vocab.is_audio(rows.token)
  following = np.zeros_like(audio)
  same = rows.document[:, 1:] == rows.document[:, :-1]
  following[:, :-1] = same & (rows.supervised[:, 1:] > 0)
  if mode == 'hybrid':
    following[:, :-1] &= ~vocab.is_audio(rows.token[:, 1:])
  wanted = {'hybrid': (audio | following), 'ar': following, 'nar': rows.supervised}[mode]
  assert counted.scored * 6 == np.count_nonzero(wanted)


def test_prepared_data_is_used_and_checked(prepared, tmp_path):
  config = small_run.config()
  (tmp_path / 'data').symlink_to(prepared)
  vocab = planned_vocabulary(config, tmp_path)
  counted = batch_stats.take(config, vocab, tmp_path)
  assert counted.source == str(tmp_path / 'data') and 0 < counted.rows <= 128
  assert 0.5 * 256 < counted.tokens <= 256 and 0 < counted.scored < counted.tokens
  with pytest.raises(UserError, match='data.seq_len is 64'):
    batch_stats.take(small_run.replace(config, 'data', seq_len=64), vocab, tmp_path)
  with pytest.raises(UserError, match='no prepared data'):
    planned_vocabulary(config, tmp_path / 'elsewhere')
