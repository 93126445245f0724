"""k-means in numpy: fits a codebook, and finds the nearest codeword of a vector."""

import numpy as np

ROWS_PER_CODE = 32   # rows used for fitting; more hardly change the codewords
STEPS = 12
_BLOCK = 4096        # rows at a time, so that the distances fit into the cache


def nearest(rows: np.ndarray, book: np.ndarray) -> np.ndarray:
  """Index of the nearest codeword: float32 rows [n, d], book [k, d] -> int32 [n]."""
  half_norms = 0.5 * (book * book).sum(axis=1)
  return np.concatenate([np.zeros(0, np.int32)] + [
      (half_norms - rows[i:i + _BLOCK] @ book.T).argmin(axis=1).astype(np.int32)
      for i in range(0, len(rows), _BLOCK)])


def fit_codebook(rows: np.ndarray, codes: int, seed: int) -> np.ndarray:
  """k-means of float32 rows [n, d], n >= codes -> codewords float32 [codes, d].

  Deterministic for a seed. Codewords without rows move to the rows with the largest errors, so
  that none stays unused.
  """
  assert len(rows) >= codes
  draw = np.random.default_rng(seed)
  if len(rows) > codes * ROWS_PER_CODE:
    rows = rows[np.sort(draw.choice(len(rows), codes * ROWS_PER_CODE, replace=False))]
  book = _first_codes(rows, codes, draw)
  for _ in range(STEPS):
    chosen = nearest(rows, book)
    counts = np.bincount(chosen, minlength=codes)
    order = np.argsort(chosen, kind='stable')
    used = np.flatnonzero(counts)
    starts = np.concatenate([[0], np.cumsum(counts[used])[:-1]])
    book[used] = np.add.reduceat(rows[order], starts, axis=0) / counts[used, None]
    unused = np.flatnonzero(counts == 0)
    if unused.size:
      errors = ((rows - book[chosen]) ** 2).sum(axis=1)
      book[unused] = rows[np.argsort(-errors, kind='stable')[:unused.size]]
  return book


def _first_codes(rows: np.ndarray, codes: int, draw: np.random.Generator) -> np.ndarray:
  """Initial codewords: rows drawn by squared distance to earlier ones, in 8 steps (k-means||)."""
  book = rows[draw.integers(len(rows), size=1)]
  distances = ((rows - book[0]) ** 2).sum(axis=1).astype(np.float64)
  for share in range(1, 9):
    count = max(1, codes * share // 8) - len(book)
    if count <= 0:
      continue
    reachable = np.flatnonzero(distances > 0)
    if reachable.size < count:  # fewer distinct rows than codes: repeat some
      new = rows[draw.integers(len(rows), size=count)]
    else:
      weights = distances[reachable] / distances[reachable].sum()
      new = rows[draw.choice(reachable, count, replace=False, p=weights)]
    closest = new[nearest(rows, new)]
    distances = np.minimum(distances, ((rows - closest) ** 2).sum(axis=1))
    book = np.concatenate([book, new])
  return book
