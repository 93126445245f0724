"""What data.sources name, read and expanded: files -> recordings or records -> Records.

  {"path": "train.jsonl", "task": "asr"}   recordings, made into records of that task
  {"path": "qa/*.parquet"}                 records

What a path may be and how files are read is in files.py.
"""

import dataclasses
import pathlib
from typing import Callable, Iterator

import numpy as np

from ttt_jax.config import Source
from ttt_jax.data import files, records, tasks
from ttt_jax.data.records import Part, Record
from ttt_jax.data.tasks import Recording
from ttt_jax.errors import UserError

HELDOUT = 'heldout'  # splits whose name starts so are never trained on


def is_heldout(split: str) -> bool:
  return split.startswith(HELDOUT)


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
  """One source as read: ``items`` are Recordings if source.task makes records of them."""
  source: Source
  number: int
  path: pathlib.Path
  items: list[Recording] | list[Record]

  @property
  def recorded(self) -> bool:
    return self.source.task in tasks.FROM_RECORDINGS

  def audio(self) -> Iterator[tuple[str, Part]]:
    """('file:line', audio part) of everything in the source."""
    for item in self.items:
      for part in ([item.audio] if self.recorded else item.audio()):
        yield item.where, part

  def file_of(self, part: Part) -> pathlib.Path:
    """Where the audio file of a part lies: relative paths start at the source's directory."""
    return self.path.parent / part.source


def find(path: str, workdir: pathlib.Path) -> list[pathlib.Path]:
  """A path as the user means it: absolute, from the current directory, or from workdir."""
  found = files.find(path, [pathlib.Path(), workdir])
  if not found:
    raise UserError(f'config key data.sources: there is no file {path!r}, neither here '
                    f'({pathlib.Path.cwd()}) nor in {workdir}.')
  return found


def load(sources: tuple[Source, ...], workdir: pathlib.Path) -> list[Loaded]:
  """Read every source.

  Raises:
    UserError: no sources, an unknown task, a missing or malformed file.
  """
  if not sources:
    raise UserError('config key data.sources is empty; name at least one file of records.')
  out = []
  for number, source in enumerate(sources):
    known = sorted({*tasks.PROMPTS, *tasks.FROM_RECORDINGS})
    if source.task and source.task not in known:
      raise UserError(f'config key data.sources[{number}].task is {source.task!r}; use one of '
                      f'{", ".join(known)}, or leave it out.')
    if not source.split.replace('_', '').replace('-', '').isalnum():
      raise UserError(f'config key data.sources[{number}].split is {source.split!r}; it names '
                      'files, so use letters, digits, - and _.')
    paths = find(source.path, workdir)
    if source.join_count and len(paths) > 1:
      raise UserError(f'config key data.sources[{number}].join_count joins recordings of one file, '
                      f'but {source.path!r} means {len(paths)}; put them into one.')
    recorded = source.task in tasks.FROM_RECORDINGS
    for path in paths:
      items = [tasks.parse_recording(value, where) if recorded else
               records.parse(value, where, source.type, source.task)
               for where, value in files.read(path)]
      out.append(Loaded(source, number, path, items))
  return out


def expand(loaded: Loaded, codes_of, seed: int, excluded: set[str],
           fits: Callable[[Record], bool]) -> list[Record]:
  """The Records of a source: codes filled in, joined ones made, prompted, repeated.

  Args:
    loaded: the source.
    codes_of: (loaded, part) -> int32 [n].
    seed: the joined recordings depend on it and on the source's number.
    excluded: held-out texts (tasks.normal) that joining must not produce.
    fits: whether a record fits in a row; joining draws others instead of those that do not.
  """
  source = loaded.source
  def fill(part: Part) -> Part:
    return dataclasses.replace(part, codes=codes_of(loaded, part))
  if loaded.recorded:
    def make(recording: Recording) -> Record:
      return tasks.with_prompt(tasks.FROM_RECORDINGS[source.task](recording), source.prompt)
    recordings = [dataclasses.replace(r, audio=fill(r.audio)) for r in loaded.items]
    if source.join_count:
      rng = np.random.default_rng([seed, loaded.number])
      recordings += tasks.join(recordings, source.join_most, source.join_count, rng, excluded,
                               lambda recording: fits(make(recording)))
    found = [make(recording) for recording in recordings]
  else:
    if source.join_count:
      raise UserError(f'config key data.sources[{loaded.number}].join_count is for recordings; '
                      f'set task to one of {", ".join(tasks.FROM_RECORDINGS)}.')
    found = [tasks.with_prompt(record.map_audio(fill), source.prompt) for record in loaded.items]
  times = source.repeat
  return [record for i, record in enumerate(found)
          for _ in range(int((i + 1) * times + 1e-9) - int(i * times + 1e-9))]


def heldout_texts(loaded: list[Loaded]) -> set[str]:
  """What is said in held-out recordings and by held-out users, as tasks.normal gives it."""
  out = set()
  for one in loaded:
    if not is_heldout(one.source.split):
      continue
    if one.recorded:
      out |= {tasks.normal(item.text) for item in one.items}
    else:
      out |= {tasks.normal(part.text) for item in one.items for turn in item.turns
              if turn.role == 'user' for part in turn.parts if part.kind == 'audio' and part.text}
  return out


def overlap(loaded: list[Loaded], heldout: set[str]) -> list[str]:
  """'file:line' of the training recordings whose text is a held-out one; ideally none."""
  return [item.where for one in loaded
          if one.recorded and not is_heldout(one.source.split)
          for item in one.items if tasks.normal(item.text) in heldout]
