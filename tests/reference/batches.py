"""Random documents and packed batches in the shapes that real data has, and its corners."""

import numpy as np

from ttt_jax.tokens import batch as batch_lib, vocab as vocab_lib

VOCAB = vocab_lib.Vocabulary('tiny', 8, 'tiny', 10)
KINDS = ('asr', 'tts', 'chat', 'multiturn', 'pt', 'pt_audio', 'text_only', 'sst', 'one_token',
         'prompt_only', 'audio_only')


def text(rng, n, vocab=VOCAB):
  """n ordinary text ids."""
  return rng.integers(0, vocab.text_ranks, n).tolist()


def codes(rng, n, vocab=VOCAB):
  """n audio codes as ids."""
  return (vocab.code_start + rng.integers(0, vocab.codebook_size, n)).tolist()


def answer(rng, chunks, vocab=VOCAB, most=4, one_token=False):
  """Interleaved text and spans; the last span is the quad one. No im_end."""
  out = []
  for chunk in range(chunks):
    last = chunk == chunks - 1
    n = 0 if one_token else int(rng.integers(1, most + 1))
    out += text(rng, int(rng.integers(1, 3)), vocab)
    out += [vocab.begin_of_quad if last else vocab.begin_of_audio] + codes(rng, n, vocab)
    out += [vocab.end_of_last if last else vocab.end_of_chunk]
  return out


def user_turn(rng, spoken, vocab=VOCAB):
  """im_start ... im_end of a user, unsupervised."""
  body = text(rng, 2, vocab)
  if spoken:
    body += [vocab.begin_of_audio] + codes(rng, int(rng.integers(1, 5)), vocab)
    body += [vocab.end_of_audio]
  return [vocab.im_start] + body + [vocab.im_end]


def document(rng, kind, vocab=VOCAB):
  """(ids, supervised) of one document of a kind in KINDS."""
  def mark(prompt, target):
    return prompt + target, [0] * len(prompt) + [1] * len(target)

  opening, closing = [vocab.im_start, 1], [vocab.im_end, 2]
  chunks = int(rng.integers(1, 4))
  if kind in ('asr', 'tts', 'chat'):
    prompt = user_turn(rng, kind != 'tts', vocab) + opening
    return mark(prompt, answer(rng, chunks, vocab) + closing)
  if kind == 'multiturn':
    first = mark(user_turn(rng, True, vocab) + opening, answer(rng, 1, vocab) + closing)
    second = mark(user_turn(rng, True, vocab) + opening, answer(rng, 1, vocab) + closing)
    return first[0] + second[0], first[1] + second[1]
  if kind == 'pt':
    return mark([], text(rng, int(rng.integers(2, 12)), vocab))
  if kind == 'pt_audio':  # speech from the first token on, and a span at the very end
    return mark([], codes(rng, 2, vocab) + [vocab.end_of_chunk] + answer(rng, chunks, vocab))
  if kind == 'text_only':
    return mark(user_turn(rng, False, vocab) + opening, text(rng, 3, vocab) + closing)
  if kind == 'sst':  # cut inside its last span: no end token, no im_end
    return mark(user_turn(rng, True, vocab) + opening,
                answer(rng, 1, vocab) + [3, vocab.begin_of_quad] + codes(rng, 3, vocab))
  if kind == 'one_token':
    return mark(user_turn(rng, True, vocab) + opening,
                answer(rng, 3, vocab, one_token=True) + closing)
  if kind == 'prompt_only':  # neither term, yet it counts
    return mark(user_turn(rng, True, vocab), [])
  assert kind == 'audio_only', kind  # no supervised text at all
  prompt = user_turn(rng, False, vocab) + [vocab.begin_of_audio]
  return mark(prompt, codes(rng, 4, vocab) + [vocab.end_of_last])


def packed(rng, rows=4, seq_len=64, kinds=KINDS, vocab=VOCAB, empty_row=True):
  """Random rows of several documents each, one of them empty.

  Returns:
    (documents, Batch [rows, seq_len]): documents are per row, lists of
    (number, ids, supervised).
  """
  plan, number = [], int(rng.integers(1, 1000))
  for row in range(rows):
    plan.append([])
    used = 0
    while not (empty_row and row == rows // 2):
      ids, supervised = document(rng, kinds[int(rng.integers(len(kinds)))], vocab)
      if used + len(ids) > seq_len:
        break
      plan[-1].append((number, ids, supervised))
      used += len(ids)
      number += int(rng.integers(1, 5))
  return plan, layout(plan, seq_len, vocab)


def layout(plan, seq_len, vocab=VOCAB):
  """Rows of documents -> Batch [rows, seq_len]."""
  return batch_lib.stack([
      batch_lib.make_row(vocab, [(k, np.array(x), np.array(s)) for k, x, s in row], seq_len)
      for row in plan])
