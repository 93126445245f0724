"""Statistics of a batch, counted on rows.

The rows are those of the prepared data if there is any, else synthetic: documents like speech data
(150 to 2,048 tokens, about 700 on average, a third each of ASR, TTS and spoken question
answering), rendered and packed by the code that prepares real data.
"""

import dataclasses
import os
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from ttt_jax.config import Config
from ttt_jax.data import packing, store
from ttt_jax.data.interleave import Renderer
from ttt_jax.data.loader import Loader
from ttt_jax.data.records.records import Part, Record, Turn
from ttt_jax.model import staircase
from ttt_jax.objective import hybrid
from ttt_jax.tokens.batch import Batch, make_row, stack
from ttt_jax.tokens.vocab import Vocabulary

_DOCUMENTS = 600   # of a synthetic sample
_ROWS = 128        # rows that are counted, at most
_CODES_PER_WORD = 3.5  # speech has about 12.5 codes and 3.5 text tokens per second


class Sample(NamedTuple):
  """Averages per row of T tokens.

  Attributes:
    source: where the rows are from, as text.
    rows: number of rows that were counted.
    documents, tokens: documents and real tokens.
    scored: positions with a loss.
    mask_pairs: (query, key) pairs that the mask allows.
    visited: fraction of the attention blocks that are not skipped.
  """
  source: str
  rows: int
  documents: float
  tokens: float
  scored: float
  mask_pairs: float
  visited: float


def take(config: Config, vocab: Vocabulary,
         workdir: str | os.PathLike | None = None) -> Sample:
  """Count a sample of rows.

  Args:
    config: row length, interleaving, objective and attention block matter.
    vocab: of the data.
    workdir: of prepared data; None: synthetic documents.

  Raises:
    UserError: there is no prepared data, or it has another row length.
  """
  if workdir is None:
    batch, source = synthetic(config, vocab), 'synthetic documents like speech data'
  else:
    data_dir = store.locate(workdir, config.data.path)
    batch, source = _prepared(config, vocab, data_dir), str(data_dir)
  return count(batch, config, vocab, source)


def count(batch: Batch, config: Config, vocab: Vocabulary, source: str) -> Sample:
  """The Sample of given rows, with noise drawn once as in a training step."""
  k_start, k_end = staircase.key_ranges(batch, config.objective.mode,
                                        config.objective.prompt_audio)
  targets = hybrid.corrupt(batch, vocab, config.objective,
                           jax.random.key(config.seed))
  rows = len(batch.token)
  real = batch.document > 0
  return Sample(
      source=source, rows=rows, documents=int(((batch.position == 0) & real).sum()) / rows,
      tokens=int(real.sum()) / rows,
      scored=int(((targets.next_weight > 0) | targets.masked).sum()) / rows,
      mask_pairs=int(np.sum(np.asarray(k_end - k_start), dtype=np.int64)) / rows,
      visited=1 - float(staircase.blocks_skipped(k_start, k_end, block_of(config))))


def block_of(config: Config) -> int:
  """Side of a block of attention for rows of this length."""
  return min(config.model.attention_block, config.data.seq_len)


def _prepared(config: Config, vocab: Vocabulary, data_dir: pathlib.Path) -> Batch:
  store.check_data(config, data_dir, vocab)
  rows = min(_ROWS, max(1, 2**19 // config.data.seq_len))
  last = dataclasses.replace(config.data, stages=config.data.stages[-1:], threads=0)
  return Loader(data_dir, last, rows, config.seed, vocab).batch_at(0)


# -- synthetic documents ------------------------------------------------------------------


class _Words:
  """A tokenizer with one id per word: the planner has no real text."""
  name, ranks = 'words', 256

  def encode(self, text: str) -> list[int]:
    return [7] * len(text.split())

  def decode(self, ids) -> str:
    return ' '.join('w' for _ in ids)


def synthetic(config: Config, vocab: Vocabulary) -> Batch:
  """Packed rows of synthetic documents, int32 [B, T]; deterministic for a config."""
  length = config.data.seq_len
  rng = np.random.default_rng(0)
  documents = []
  renderer = Renderer(vocab, _Words(), config.data.text_chunk, config.data.audio_chunk)
  for number, goal in enumerate(_lengths(rng, length)):
    example = renderer.render(_record(number, int(goal), vocab, rng))
    documents.append((number + 1, example.token[:length], example.supervised[:length]))
  packed = packing.pack([len(token) for _, token, _ in documents], length)
  order = rng.permutation(len(packed.rows))[:_ROWS]
  return stack([make_row(vocab, [documents[i] for i in packed.rows[r]], length) for r in order])


def _lengths(rng: np.random.Generator, seq_len: int) -> np.ndarray:
  """Tokens per document [n]: log-normal between 150 and 2,048, mean about 700; shorter in
  proportion where a row is shorter than 2,048."""
  drawn = rng.lognormal(np.log(610), 0.6, 3 * _DOCUMENTS)
  kept = drawn[(drawn >= 150) & (drawn <= 2048)][:_DOCUMENTS]
  return np.maximum(kept * min(1.0, seq_len / 2048), 16)


def _record(number: int, goal: int, vocab: Vocabulary, rng: np.random.Generator) -> Record:
  """A record of about ``goal`` tokens; the task alternates with the number."""
  task = ('asr', 'tts', 'audio_qa')[number % 3]
  # Tokens per word of the answer: the word, its codes, its share of begin and end tokens.
  share = 1 + _CODES_PER_WORD + 2 / 13
  heard = {'asr': _CODES_PER_WORD, 'tts': 1, 'audio_qa': 0.5 * _CODES_PER_WORD}[task]
  words = max(2, int((goal - 40) / (share + heard)))
  speech = lambda n: Part('audio', codes=rng.integers(0, vocab.codebook_size, max(1, int(n))))
  text = lambda n: Part('text', 'w ' * max(1, int(n)))
  asked = text(words) if task == 'tts' else speech(heard * words)
  answer = (text(words), speech(_CODES_PER_WORD * words))
  return Record(str(number), task, 'IT', (
      Turn('system', (text(24),)), Turn('user', (asked,)), Turn('assistant', answer)))
