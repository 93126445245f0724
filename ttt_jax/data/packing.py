"""Packs documents into rows: best-fit decreasing."""

from typing import NamedTuple, Sequence

import numpy as np

from ttt_jax.errors import UserError


class Packing(NamedTuple):
  """rows[r]: indices of the documents in row r; padding: unused share of all tokens of the rows."""
  rows: list[list[int]]
  padding: float


def pack(lengths: Sequence[int] | np.ndarray, seq_len: int,
         names: Sequence[str] | None = None) -> Packing:
  """Longest document first, each into the row with the least free space that still fits it.

  Args:
    lengths: tokens of each document, [n].
    seq_len: T.
    names: name of document i in errors, e.g. 'train.jsonl:7'.

  Returns:
    A Packing in which every index occurs once; deterministic. Documents of equal length are
    taken in a fixed random order, so that neighbours in the input (often of one task) do not
    end up in the same row.

  Raises:
    UserError: a document is longer than a row.
  """
  sizes = np.asarray(lengths, np.int64)
  long = np.flatnonzero(sizes > seq_len)
  if long.size:
    i = int(long[0])
    raise UserError(f'{names[i] if names else f"document {i}"}: the record has {sizes[i]} tokens '
                    f'but a row holds {seq_len}; shorten it or raise data.seq_len.')
  mixed = np.random.default_rng(0).permutation(len(sizes))
  order = mixed[np.argsort(-sizes[mixed], kind='stable')]
  rows: list[list[int]] = []
  open_rows: list[list[int]] = [[] for _ in range(seq_len + 1)]  # row numbers by free tokens
  # Bit c is set if some row has c free tokens: the best fit for n tokens is the lowest set bit
  # from n on, found without a search.
  free = 0
  for i in order.tolist():
    n = int(sizes[i])
    fit = free >> n
    if fit:
      space = n + (fit & -fit).bit_length() - 1  # lowest set bit
      r = open_rows[space].pop()
      if not open_rows[space]:
        free &= ~(1 << space)
    else:
      space, r = seq_len, len(rows)
      rows.append([])
    rows[r].append(i)
    if space > n:
      open_rows[space - n].append(r)
      free |= 1 << (space - n)
  total = len(rows) * seq_len
  return Packing(rows, 1 - float(sizes.sum()) / total if total else 0.0)
