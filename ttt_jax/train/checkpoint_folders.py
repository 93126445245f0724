"""The folders under workdir/checkpoints: their names, removing, setting aside, readers' pins.

  40                         a checkpoint, complete or not
  40.orbax-checkpoint-tmp*   not committed by Orbax
  40.deleting                half removed
  40.damaged, 40.unfinished  set aside: never read, never removed
  .saving.json               names the step that is being saved: its folder is this program's
  .reading-40-*.json         a process reads checkpoint 40, which is kept for so long

Nothing here fails because something cannot be removed: that is a warning, and is tried again.
"""

from collections.abc import Callable, Iterator
import contextlib
import json
import pathlib
import re
import shutil
import time
import uuid

from ttt_jax.storage import files
from ttt_jax.storage.process import Process, this
from ttt_jax.train import checksums

_STEP = re.compile(r'0|[1-9][0-9]{0,8}')  # processes send the number as int32
_LEFTOVER = re.compile(r'([0-9]+)\.(orbax-checkpoint-tmp.*|deleting(-[0-9]+)?)')
_PIN = re.compile(r'\.reading-([0-9]+)-[0-9a-f]{32}\.json')
_SAVING = '.saving.json'
_PIN_SECONDS = 3600.0  # that a pin of a process on another machine counts


def step_of(name: str) -> int | None:
  """The step whose folder has this name; None for other names."""
  return int(name) if _STEP.fullmatch(name) else None


class Folders:
  """The folders of one run. Process 0 alone calls what removes and renames."""

  def __init__(self, directory: pathlib.Path, log: Callable[[str], None]):
    """
    Args:
      directory: workdir/checkpoints; it need not exist.
      log: takes warnings.
    """
    self.directory, self._log = directory, log
    self._told: set[str] = set()  # folders of which a warning has been given
    self._pins: dict[int, pathlib.Path] = {}

  def path(self, step: int) -> pathlib.Path:
    """The folder of a step."""
    return self.directory / str(step)

  def steps(self) -> list[int]:
    """The steps that have a folder, ascending."""
    return sorted(step for entry in self._entries()
                  if (step := step_of(entry.name)) is not None and entry.is_dir())

  def complete(self) -> list[int]:
    """The steps that have all checksum files, ascending."""
    return [step for step in self.steps() if checksums.is_complete(self.path(step))]

  def exists(self, step: int) -> bool:
    """Whether a step has a folder."""
    return self.path(step).exists()

  def saved_at(self, step: int) -> float | None:
    """When a step became complete, seconds since the epoch; None if it is not."""
    try:
      return (self.path(step) / checksums.SEAL).stat().st_mtime
    except FileNotFoundError:
      return None

  def create(self) -> None:
    """Make the folder of all checkpoints."""
    self.directory.mkdir(parents=True, exist_ok=True)

  def damaged(self) -> bool:
    """Whether a checkpoint was set aside because it is corrupt."""
    return any('.damaged' in entry.name for entry in self._entries())

  def _entries(self) -> list[pathlib.Path]:
    try:
      return list(self.directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
      return []

  # -- removing and setting aside ---------------------------------------------------------

  def leftovers(self, step: int | None = None) -> Iterator[pathlib.Path]:
    """Temporary folders, of one step or of all."""
    for entry in self._entries():
      found = _LEFTOVER.fullmatch(entry.name)
      if found and (step is None or int(found.group(1)) == step):
        yield entry

  def remove_leftovers(self) -> None:
    """Remove temporary folders of all steps; what cannot be removed stays."""
    for path in self.leftovers():
      self._remove_folder(path, f'checkpoint {path.name.partition(".")[0]}')

  def remove_unfinished(self, step: int) -> bool:
    """Remove what there is of a step whose save has failed; whether there was something that
    could be removed."""
    found = [path for path in (*self.leftovers(step), self.path(step)) if path.exists()]
    for path in found:
      shutil.rmtree(path, ignore_errors=True)
    return any(not path.exists() for path in found)

  def remove(self, step: int) -> None:
    """Remove a checkpoint. It is renamed first, so that one that is half removed is not taken for
    a checkpoint."""
    names = [f'{step}.deleting', *(f'{step}.deleting-{number}' for number in range(2, 1000))]
    free = next(name for name in names if not (self.directory / name).exists())
    try:
      self.path(step).rename(self.directory / free)
    except OSError as error:
      self._warn(f'checkpoint {step}', error)
      return
    self._remove_folder(self.directory / free, f'checkpoint {step}')

  def _remove_folder(self, path: pathlib.Path, what: str) -> None:
    try:
      shutil.rmtree(path)
    except OSError as error:
      self._warn(what, error)

  def _warn(self, what: str, error: OSError) -> None:
    if what not in self._told:
      self._told.add(what)
      self._log(f'{what} could not be removed ({error.strerror or error}); it is tried again '
                'later.')

  def set_aside(self, step: int, why: str) -> None:
    """Rename a folder to STEP.WHY; one that cannot be renamed stays."""
    names = [f'{step}.{why}', *(f'{step}.{why}-{number}' for number in range(2, 1000))]
    free = next(name for name in names if not (self.directory / name).exists())
    try:
      self.path(step).rename(self.directory / free)
    except OSError as error:
      self._log(f'checkpoint {step} could not be renamed to {free} ({error.strerror}).')

  # -- which unfinished folder is ours ----------------------------------------------------

  def begin(self, step: int) -> None:
    """Note that ``step`` is being saved."""
    if self.exists(step) and not checksums.is_complete(self.path(step)):
      self.set_aside(step, 'unfinished')  # not of this run: it would be replaced
    files.write_text(self.directory / _SAVING, json.dumps({'step': step}) + '\n')

  def done(self) -> None:
    """Note that nothing is being saved."""
    with contextlib.suppress(OSError):
      (self.directory / _SAVING).unlink()

  def saving(self) -> int | None:
    """The step whose save a process began and did not finish."""
    try:
      step = json.loads((self.directory / _SAVING).read_text(encoding='utf-8'))['step']
      return step if type(step) is int else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
      return None

  # -- readers ------------------------------------------------------------------------------

  def pin(self, step: int) -> None:
    """Ask the run to keep a checkpoint while this process reads it. Where nothing can be written,
    the reader must cope with its removal."""
    path = self.directory / f'.reading-{step}-{uuid.uuid4().hex}.json'
    with contextlib.suppress(OSError):
      path.write_text(json.dumps(this().to_dict()), encoding='utf-8')
      self._pins[step] = path

  def unpin(self) -> None:
    """Take back all pins of this object."""
    for path in self._pins.values():
      with contextlib.suppress(OSError):
        path.unlink()
    self._pins.clear()

  def pinned(self) -> set[int]:
    """The steps that some process reads; pins of processes that have ended are removed."""
    found = set()
    for entry in self._entries():
      match = _PIN.fullmatch(entry.name)
      if match is None:
        continue
      with contextlib.suppress(OSError, ValueError, RecursionError):
        reader = Process.from_dict(json.loads(entry.read_text(encoding='utf-8')))
        gone = reader.is_gone() if reader else None
        if gone is None:  # it cannot be looked at from here
          gone = time.time() - entry.stat().st_mtime > _PIN_SECONDS
        if gone:
          entry.unlink()
        else:
          found.add(int(match.group(1)))
    return found
