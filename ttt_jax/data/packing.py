"""Documents into rows: best fit, longest first."""

from typing import NamedTuple, Sequence

import numpy as np

from ttt_jax.errors import UserError


class Packing(NamedTuple):
  """rows[r] = indices of the documents in row r; padding = share of the rows' tokens unused."""
  rows: list[list[int]]
  padding: float


def pack(lengths: Sequence[int], seq_len: int, names: Sequence[str] | None = None) -> Packing:
  """Best-fit decreasing: each document goes to the fullest row that still has room.

  Args:
    lengths: tokens of each document, [n].
    seq_len: T.
    names: what to call document i in an error, e.g. 'train.jsonl:7'.

  Returns:
    A Packing in which every index occurs once; the same for the same lengths. Documents of
    one length are taken in a fixed mixed order, so that neighbours in the input (often one
    task) do not end up in one row.

  Raises:
    UserError: a document is longer than a row.
  """
  lengths = np.asarray(lengths, np.int64)
  long = np.flatnonzero(lengths > seq_len)
  if long.size:
    i = int(long[0])
    raise UserError(f'{names[i] if names else f"document {i}"}: the record has {lengths[i]} tokens '
                    f'but a row holds {seq_len}; shorten it or raise data.seq_len.')
  mixed = np.random.default_rng(0).permutation(len(lengths))
  order = mixed[np.argsort(-lengths[mixed], kind='stable')]
  rows: list[list[int]] = []
  open_rows: list[list[int]] = [[] for _ in range(seq_len + 1)]  # by room left
  rooms = 0  # bit c set: some row has c tokens of room
  for i in order.tolist():
    n = int(lengths[i])
    fit = rooms >> n
    if fit:
      room = n + (fit & -fit).bit_length() - 1
      r = open_rows[room].pop()
      if not open_rows[room]:
        rooms &= ~(1 << room)
    else:
      room, r = seq_len, len(rows)
      rows.append([])
    rows[r].append(i)
    if room > n:
      open_rows[room - n].append(r)
      rooms |= 1 << (room - n)
  total = len(rows) * seq_len
  return Packing(rows, 1 - float(lengths.sum()) / total if total else 0.0)
