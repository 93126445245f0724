"""Synthetic conversations with the real layout: prompts, interleaved answers, class by class.

Ids and codes are random; everything else is made by the project's own functions, so a
document has the turns, chunks (13 text tokens, 26 codes), begin and end tokens and the
supervision of a prepared one.

Proportions are ours, since the published mixture is not known in detail:

  task      share  the user gives                    the assistant gives
  asr       40 %   the recording                     transcript and the same recording
  tts       40 %   the text                          text and its recording
  audio_qa  20 %   a third of the speech: a question answer, text and speech

each after the task's own system prompt. Speech has 12.5 codes and 3.3 text tokens a
second (a tokenizer of GLM-4-Voice's rate; 150 English words a minute, 1.3 tokens each).
"""

import re
from typing import NamedTuple
import zlib

import numpy as np

from ttt_jax.data import interleave, packing
from ttt_jax.data.records import tasks
from ttt_jax.data.records.records import Part, Record, Turn
from ttt_jax.tokens import batch as batches
from ttt_jax.tokens.batch import Batch
from ttt_jax.tokens.vocab import Vocabulary, qwen_glm4

SHARES = {'asr': 0.4, 'tts': 0.4, 'audio_qa': 0.2}
TEXT_PER_CODE = 3.3 / 12.5
SHORTEST, MEAN, SPREAD = 150 / 2048, 700 / 2048, 0.6  # lengths, in row lengths; sigma of the log
FEWEST = 90  # tokens: the system prompt, the turns and a word of speech

_POOL, _DRAWS = 1000, 200

VOCABULARIES = {
    '168k': qwen_glm4(),                                         # 168,072 ids
    '8k': Vocabulary('synthetic', 6099, 'synthetic', 2048),      # 8,192 ids
    'tiny': Vocabulary('synthetic', 150, 'synthetic', 60),       # for --quick and tests
}


class Words:
  """Stands in for a text tokenizer: one id per word and per line break, by their hash."""
  name = 'words'

  def __init__(self, ranks: int):
    self.ranks = ranks

  def encode(self, text: str) -> list[int]:
    return [zlib.crc32(word.encode()) % self.ranks for word in re.findall(r'\n|\S+', text)]

  def decode(self, ids) -> str:
    return ' '.join(f'<{int(i)}>' for i in ids)


class Document(NamedTuple):
  """One document as a model without packing sees it; arrays [n]."""
  number: int
  task: str
  example: interleave.Example


def lengths(kind: str, count: int, seq_len: int, rng: np.random.Generator) -> np.ndarray:
  """Tokens per document, int [count].

  Args:
    kind: 'speech' is log-normal like utterances, cut to 150..2,048 with a mean of about
      700 in rows of 2,048; 'full' makes every document as long as a row.
    count: how many.
    seq_len: T; other row lengths scale all of it.
    rng: draws.
  """
  if kind == 'full':
    return np.full(count, seq_len)
  # The cut at a row takes about 2 % off the mean of a log-normal of this spread.
  middle = np.log(1.02 * MEAN * seq_len) - SPREAD ** 2 / 2
  drawn = np.exp(rng.normal(middle, SPREAD, count))
  low = max(FEWEST, round(SHORTEST * seq_len))
  return np.clip(np.round(drawn), low, seq_len).astype(int)


def record(task: str, codes: int, filler: int, vocab: Vocabulary, seed: int) -> Record:
  """A record of ``codes`` codes of speech, with ``filler`` more words in its system prompt."""
  rng = np.random.default_rng(seed)
  speech = rng.integers(vocab.codebook_size, size=codes)
  def words(spoken: int) -> str:
    return ' '.join(f'w{n}' for n in rng.integers(10**9, size=max(1, round(
        spoken * TEXT_PER_CODE))))
  if task == 'asr':
    user, answer = Part('audio', codes=speech), (Part('text', words(codes)),
                                                 Part('audio', codes=speech))
  elif task == 'tts':
    text = words(codes)
    user, answer = Part('text', text), (Part('text', text), Part('audio', codes=speech))
  else:
    asked = max(1, codes // 3)
    user = Part('audio', codes=speech[:asked])
    answer = (Part('text', words(codes - asked)), Part('audio', codes=speech[asked:]))
  prompt = ' '.join([tasks.PROMPTS[task], *(f'f{i}' for i in range(filler))])
  return tasks.with_prompt(Record(f'{task}-{seed}', task, 'IT', (
      Turn('user', (user,)), Turn('assistant', answer))), prompt)


def document(number: int, task: str, length: int, vocab: Vocabulary) -> Document:
  """A document of exactly ``length`` tokens: as much speech as fits, then some filler."""
  renderer = interleave.Renderer(vocab, Words(vocab.text_ranks))
  def render(codes: int, filler: int = 0) -> interleave.Example:
    return renderer.render(record(task, codes, filler, vocab, number))
  low, high = 2, length  # render(low) fits, render(high) does not
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if len(render(middle).token) <= length else (low, middle)
  missing = length - len(render(low).token)
  assert missing >= 0, f'a document of {length} tokens has no room for its {task} prompt'
  return Document(number, task, render(low, missing))


def steps(kind: str, vocab: Vocabulary, count: int, rows: int, seq_len: int,
          seed: int) -> list[Batch]:
  """Packed batches [rows, T], one per training step.

  A pool of documents is packed, as `ttt-jax prepare` packs a split, and rows are drawn from
  it. A few rows of some long or many short documents would not stand for the distribution,
  so of many draws the one is taken whose steps come closest to the pool's mean length.
  """
  rng = np.random.default_rng(seed)
  sizes = lengths(kind, max(_POOL, 4 * count * rows), seq_len, rng)
  packed = packing.pack(sizes.tolist(), seq_len).rows
  filled = sorted(packed, key=lambda row: sizes[row].sum())[1:]  # the last row is half empty
  chosen = min((rng.permutation(len(filled))[:count * rows].reshape(count, rows)
                for _ in range(_DRAWS)), key=lambda draw: _strangeness(draw, filled, sizes))
  kinds = rng.choice(list(SHARES), size=len(sizes), p=list(SHARES.values()))
  def row(index: int) -> Batch:
    parts = [document(i + 1, str(kinds[i]), int(sizes[i]), vocab) for i in filled[index]]
    return batches.make_row(vocab, [(part.number, *part.example) for part in parts], seq_len)
  return [batches.stack([row(index) for index in step]) for step in chosen]


def _strangeness(draw: np.ndarray, filled: list[list[int]], sizes: np.ndarray) -> float:
  """How far the mean length of any of the drawn steps is from that of all rows."""
  mean = lambda rows: float(np.mean([sizes[i] for row in rows for i in filled[row]]))
  every = mean(range(len(filled)))
  return max(abs(mean(step) - every) for step in draw)
