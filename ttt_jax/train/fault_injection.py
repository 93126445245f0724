"""Injected faults, for tests and drills: batches whose loss is NaN, and stalls.

`ttt-jax train` (not the Python API) reads the environment variable TTT_JAX_FAULT:

  TTT_JAX_FAULT=nan:7-9     batches 7, 8 and 9 (counted from 0, in the order of the data)
  TTT_JAX_FAULT=stall:12:90 the host sleeps 90 s before batch 12

Nothing is mocked: the marked batch reaches the compiled train step like any other, and its loss
and gradients are NaN there.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

from ttt_jax.errors import UserError
from ttt_jax.tokens.batch import Batch

VARIABLE = 'TTT_JAX_FAULT'
_MARK = 2**31 - 1  # a document id larger than any in prepared data


@dataclasses.dataclass(frozen=True)
class Faults:
  """The faults of a run.

  Attributes:
    poison: indices of the global batches whose loss is NaN.
    stall: index of a global batch -> seconds that the host sleeps before it.
  """
  poison: frozenset[int] = frozenset()
  stall: tuple[tuple[int, float], ...] = ()

  def apply(self, index: int, batch: Batch) -> Batch:
    """Batch ``index`` (int32 [B, T], numpy), marked if it is to fail; may sleep first."""
    time.sleep(dict(self.stall).get(index, 0.0))
    if index not in self.poison:
      return batch
    document = np.array(batch.document)
    document[:, 0] = _MARK
    return batch._replace(document=document)


def poisoned(batch: Batch) -> jax.Array:
  """Whether ``apply`` has marked this batch: a bool scalar, traceable."""
  return jnp.any(batch.document == _MARK)


def parse(text: str) -> Faults | None:
  """The faults in the value of the environment variable; None if it is empty.

  Raises:
    UserError: the value is malformed.
  """
  poison, stall = set(), []
  for word in text.split(',') if text else ():
    kind, *numbers = word.replace('-', ':').split(':')
    if kind == 'nan' and len(numbers) == 2 and all(n.isdigit() for n in numbers):
      poison |= set(range(int(numbers[0]), int(numbers[1]) + 1))
    elif kind == 'stall' and len(numbers) == 2 and all(n.isdigit() for n in numbers):
      stall.append((int(numbers[0]), float(numbers[1])))
    else:
      raise UserError(f'environment variable {VARIABLE} is {text!r}; use nan:FIRST-LAST or '
                      'stall:BATCH:SECONDS, such as nan:7-9,stall:12:90.')
  return Faults(frozenset(poison), tuple(stall)) if text else None
