"""Small packed sets for the tests of the data side."""

import numpy as np

from ttt_jax.data import store
from ttt_jax.tokens.batch import make_row
from ttt_jax.tokens.vocab import Vocabulary

VOCAB = Vocabulary('bytes', 256, 'test', 50)
NEWLINE = 10


def spoken(codes: int, seed: int = 0, first: int = 3, chat: bool = True):
  """(token, supervised) of a document whose last span holds ``codes`` codes.

  Three ids of prompt, ``first`` codes in an earlier span, the quad span, im_end, newline.
  """
  rng = np.random.default_rng(seed)
  def span(n):
    return VOCAB.encode_codes(rng.integers(0, 50, n)).tolist()
  token = [1, 2, 3, 7, VOCAB.begin_of_audio, *span(first), VOCAB.end_of_chunk, 8,
           VOCAB.begin_of_quad, *span(codes), VOCAB.end_of_last]
  token += [VOCAB.im_end, NEWLINE] if chat else []
  return np.array(token, np.int32), np.array([0] * 3 + [1] * (len(token) - 3), np.int8)


def write_set(folder, splits: dict[str, int], seq_len: int = 64, vocab=VOCAB):
  """A prepared set of ``splits[name]`` rows, two spoken documents in each."""
  folder.mkdir(parents=True, exist_ok=True)
  number, entries = 0, {}
  for name, count in splits.items():
    rows = []
    for _ in range(count):
      rows.append(make_row(vocab, [(number + 1, *spoken(14, number + 1)),
                                   (number + 2, *spoken(12, number + 2))], seq_len))
      number += 2
    path = folder / f'{name}.arrayrecord'
    store.write_rows(path, rows)
    entries[name] = store.split_entry((path, count))
  store.write_manifest(folder, {
      'version': store.VERSION, 'vocabulary': vocab.to_dict(), 'fingerprint': vocab.fingerprint,
      'codec': 'codec', 'seq_len': seq_len, 'max_document': number, 'splits': entries})
  return folder
