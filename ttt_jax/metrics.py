"""Numbers of a run on disk: one JSON object per line, and TensorBoard.

  {"step": 40, "time": 1760000000.1, "loss": 3.2, "ar": 0.9, "diffusion": 2.3}

``time`` is in seconds since the epoch. Names with a prefix (``eval/ar``) are measured on
held-out records. A number that is not finite is written as null, since JSON knows no NaN,
and read back as NaN.
"""

from collections.abc import Mapping
import json
import math
import os
import pathlib
import time
from typing import Any

from ttt_jax.errors import UserError

FILE = 'metrics.jsonl'


class Writer:
  """Appends to WORKDIR/metrics.jsonl and WORKDIR/tensorboard; every line is on disk at once.

  Use it as a context manager, or call ``close``.
  """

  def __init__(self, workdir: str | os.PathLike, step: int | None = None):
    """Open both.

    Args:
      workdir: made if it does not exist.
      step: None appends to whatever is there. N >= 0 says that the run goes on after its
        first N steps: later lines, left by a run that got further than its last
        checkpoint, are dropped, so that curves never fold back. 0 is a new run and
        starts with an empty file.

    Raises:
      UserError: the existing file is not ours.
    """
    from tensorboardX import SummaryWriter  # a second of imports that reading does without

    self.path = pathlib.Path(workdir) / FILE
    self.path.parent.mkdir(parents=True, exist_ok=True)
    if self.path.exists():
      kept = [line for line in read(self.path)
              if step is None or (step > 0 and line['step'] <= step)]
      partial = self.path.with_name(FILE + '.partial')
      partial.write_text(''.join(_line(line) for line in kept), encoding='utf-8')
      os.replace(partial, self.path)
    self._file = self.path.open('a', encoding='utf-8')
    self._board = SummaryWriter(str(self.path.parent / 'tensorboard'),
                                purge_step=None if step is None else step + 1)

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Add one line.

    Args:
      step: training steps done when this was measured.
      values: name -> number (Python, numpy or a JAX scalar already on the host).
    """
    assert not {'step', 'time'} & set(values), values
    numbers = {name: float(value) for name, value in values.items()}
    now = time.time()
    self._file.write(_line({'step': int(step), 'time': round(now, 3), **numbers}))
    self._file.flush()
    for name, number in numbers.items():
      self._board.add_scalar(name, number, int(step), walltime=now)
    self._board.flush()

  def close(self) -> None:
    self._file.close()
    self._board.close()

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, *unused) -> None:
    self.close()


def _line(values: Mapping[str, Any]) -> str:
  finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
  return json.dumps(finite, allow_nan=False) + '\n'


def read(path: str | os.PathLike) -> list[dict[str, float]]:
  """All lines of a metrics file, in order.

  Args:
    path: metrics.jsonl, or the workdir that holds one.

  Returns:
    A dict per line: 'step' (int), 'time' (seconds since the epoch) and the numbers. A last
    line without its line break was cut off by a crash and is left out.

  Raises:
    UserError: no such file, or a line that is not a JSON object with a step.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    path = path / FILE
  if not path.is_file():
    raise UserError(f'metrics file {path} does not exist; `ttt-jax train` writes it.')
  lines = path.read_text(encoding='utf-8').split('\n')
  out = []
  for number, line in enumerate(lines[:-1], 1):
    try:
      values = json.loads(line)
      out.append({name: math.nan if value is None else value for name, value in values.items()})
      out[-1]['step']
    except (ValueError, AttributeError, KeyError) as error:
      raise UserError(f'metrics file {path}, line {number} is {line[:60]!r}; it must be a JSON '
                      'object with a step.') from error
  return out
