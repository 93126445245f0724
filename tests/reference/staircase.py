"""Who may look at whom, as a dense matrix filled in pair by pair.

Only the words of the method are used here: j is visible from i when both stand in the
same document and j is not after i, or both stand in the same audio span. A span is a
maximal run of audio ids inside one document.
"""

import numpy as np


def runs(member):
  """List the maximal runs [start, stop) of True in a list of booleans."""
  found, start = [], None
  for i, inside in enumerate(list(member) + [False]):
    if inside and start is None:
      start = i
    if not inside and start is not None:
      found.append((start, i))
      start = None
  return found


def audio_spans(vocab, ids):
  """Spans [start, stop) of one document's clean ids."""
  return runs([int(x) >= vocab.audio_threshold for x in ids])


def bidirectional_runs(vocab, ids, supervised, mode, prompt_audio):
  """The runs of one document whose tokens all see each other.

  Args:
    vocab: the id space.
    ids: clean ids [n].
    supervised: 0/1 [n].
    mode: 'hybrid' (audio spans), 'ar' (none) or 'nar' (complete answers).
    prompt_audio: 'bidirectional' or 'causal', for the audio spans of the prompt.
  """
  if mode == 'ar':
    return []
  out = []
  for start, stop in audio_spans(vocab, ids):
    if supervised[start]:
      if mode == 'hybrid':
        out.append((start, stop))
    elif prompt_audio == 'bidirectional':
      out.append((start, stop))
  if mode == 'nar':
    out += runs([bool(s) for s in supervised])
  return out


def document_matrix(vocab, ids, supervised, mode='hybrid', prompt_audio='bidirectional'):
  """bool [n, n] of one document alone: row i may look at column j."""
  run_of = [0] * len(ids)
  for number, (start, stop) in enumerate(
      bidirectional_runs(vocab, ids, supervised, mode, prompt_audio), 1):
    run_of[start:stop] = [number] * (stop - start)
  return np.array([[j <= i or (a == b != 0) for j, b in enumerate(run_of)]
                   for i, a in enumerate(run_of)], bool)


def row_matrix(vocab, documents, seq_len, mode='hybrid', prompt_audio='bidirectional'):
  """bool [T, T] of a packed row: (number, ids, supervised) documents, then padding.

  Padding attends to nothing, and nothing attends to it.
  """
  allowed = np.zeros((seq_len, seq_len), bool)
  at = 0
  for _, ids, supervised in documents:
    n = len(ids)
    allowed[at:at + n, at:at + n] = document_matrix(vocab, ids, supervised, mode, prompt_audio)
    at += n
  return allowed
