"""Checkpoints: Orbax writes the state on the mesh, a seal makes it count.

workdir/checkpoints/<step>/ holds
  state               the TrainState, array by array, restored onto any mesh
  seal.json, sums.*   the run's note (data position, clock, config ...) and checksums: seal.py

  40, 60              sealed: these can be chosen, the newest first
  60                  without its seal: the run was killed while writing it; removed at the start
  80.orbax-...-tmp    not even committed; removed at the start
  20.damaged          set aside, because its files are not what was written

Retention is ours and not Orbax's: a checkpoint may push out older ones only once it is
sealed, which is after Orbax has let go of it.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
import logging
import math
import pathlib
import shutil
import time
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np
from orbax.checkpoint import v1 as ocp

from ttt_jax.config import upgraded
from ttt_jax.data import store
from ttt_jax.errors import UserError
from ttt_jax.storage import files
from ttt_jax.tokens.vocab import Vocabulary
from ttt_jax.train import checksums, state as train_state
from ttt_jax.train.state import TrainState

_LOG = logging.getLogger(__name__)
_QUIET = 10      # looks at a twentieth of a second each, in which nothing new appeared
_SENTENCE = 400  # bytes of a sentence that processes tell each other


class Checkpoints:
  """The checkpoints of one run; saving is asynchronous. Use as a context manager.

  All processes of a run call the same methods in the same order; process 0 alone removes and
  renames.
  """

  def __init__(self, directory: str | pathlib.Path, keep: int = 2, keep_every: int = 0,
               keep_best: str = '', say: Callable[[str], None] = _LOG.warning):
    """Look at a directory, which need not exist.

    Args:
      directory: on a disk that all processes share.
      keep: how many of the newest are kept.
      keep_every: those of every so many steps are kept for ever; 0 = none.
      keep_best: name of a score; the checkpoint with the lowest is kept, too. '' = none.
      say: takes sentences about damaged and unfinished checkpoints.
    """
    self.directory = pathlib.Path(directory).absolute()
    self.last_good: tuple[int, float] | None = None  # (step, seconds since the epoch)
    self._keep, self._keep_every, self._keep_best = keep, keep_every, keep_best
    self._say = say
    self._process, self._processes = jax.process_index(), jax.process_count()
    self._pool = futures.ThreadPoolExecutor(1, thread_name_prefix='seal')
    self._pending: tuple[int, futures.Future] | None = None

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, kind, *_) -> None:
    # After a mistake in one of several processes the others may never answer.
    self.close(finish=kind is None or self._processes == 1)

  def close(self, finish: bool = True) -> None:
    """Wait for the last save, unless ``finish`` is False."""
    try:
      if finish:
        self.wait()
    finally:
      self._pool.shutdown(wait=False)

  # -- which there are --------------------------------------------------------------------

  def steps(self) -> list[int]:
    """The steps whose checkpoints are sealed, ascending."""
    return [step for step in self._committed() if checksums.is_sealed(self._path(step))]

  def latest(self) -> int | None:
    """The newest sealed step, unread, or None."""
    return max(self.steps(), default=None)

  def newest_good(self) -> int:
    """The newest sealed step whose files are what was written, for those who only read.

    Raises:
      UserError: there is none.
    """
    step = self._first_good(lambda _: True, set_aside=False)
    if step is None:
      raise UserError(f'no checkpoint in {self.directory} is whole; train again, or put a good '
                      'copy of one there.')
    return step

  def recover(self) -> int | None:
    """What a starting run goes on from: removes what is unfinished, sets aside what is damaged.

    Returns:
      The newest good step, the same on all processes; None if there never was one.

    Raises:
      UserError: there were checkpoints, and all of them are damaged.
    """
    if self._process == 0:
      self._tidy()
    step = self._first_good(lambda _: True, set_aside=True)
    lost = sorted(self.directory.glob('*.damaged*')) if self.directory.is_dir() else []
    if _of_first(step is None and bool(lost)):
      raise UserError(f'all checkpoints in {self.directory} are damaged; put a good copy of one '
                      'there, or remove the folder to start from the beginning.')
    return step

  def newest_clean(self) -> int | None:
    """The newest good step that was saved while losses were finite; damaged ones are set aside."""
    return self._first_good(lambda notes: notes.get('clean', True), set_aside=True)

  def _first_good(self, wanted: Callable[[Mapping[str, Any]], bool], set_aside: bool) -> int | None:
    candidates = iter(sorted(self.steps(), reverse=True) if self._process == 0 else ())
    while (step := _of_first(next(candidates, -1))) >= 0:
      problem = self._problem(step)
      if not problem:
        if wanted(checksums.notes(self._path(step))):
          self._remember(step)
          return step
        continue
      self._say(f'checkpoint {step} is damaged: {problem}; the next older one is tried.')
      if set_aside and self._process == 0:
        self._set_aside(step)
    return None

  def _problem(self, step: int) -> str:
    """What is wrong with a checkpoint, told to all processes by the one that found it."""
    found = ''
    try:
      checksums.check(self._path(step), self._process, self._processes)
    except checksums.CorruptCheckpoint as error:
      found = str(error)
    if self._processes == 1:
      return found
    text = np.zeros(_SENTENCE, np.uint8)
    letters = found.encode()[:_SENTENCE]
    text[:len(letters)] = list(letters)
    told = multihost_utils.process_allgather(text)
    return next((bytes(one[one > 0]).decode(errors='replace') for one in told if one.any()), '')

  def _remember(self, step: int) -> None:
    self.last_good = step, (self._path(step) / checksums.SEAL).stat().st_mtime

  def _committed(self) -> list[int]:
    if not self.directory.is_dir():
      return []
    return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdigit())

  def _path(self, step: int) -> pathlib.Path:
    return self.directory / str(step)

  # -- removing and renaming: process 0 ---------------------------------------------------

  def _tidy(self) -> None:
    """Remove what a kill left half done. Only the newest can be: an older checkpoint without
    its seal has lost it."""
    for path in self._leftovers():
      shutil.rmtree(path)
    committed = self._committed()
    for step in committed:
      if checksums.is_sealed(self._path(step)):
        continue
      if step == committed[-1]:
        self._say(f'checkpoint {step} was never finished and is removed.')
        self._remove(step)
      else:
        self._say(
            f'checkpoint {step} is damaged: {self._path(step) / checksums.SEAL} or its sums are '
            'missing.')
        self._set_aside(step)

  def _leftovers(self, step: int | None = None) -> Iterator[pathlib.Path]:
    """Temporary folders, of one step or of all."""
    first = '*' if step is None else str(step)
    for pattern in (f'{first}.orbax-checkpoint-tmp*', f'{first}.deleting'):
      yield from self.directory.glob(pattern)

  def _set_aside(self, step: int) -> None:
    names = [f'{step}.damaged', *(f'{step}.damaged-{number}' for number in range(2, 1000))]
    free = next(name for name in names if not (self.directory / name).exists())
    self._path(step).rename(self.directory / free)

  def _remove(self, step: int) -> None:
    """By way of a name that nobody takes for a checkpoint: removing a folder takes a while."""
    doomed = self.directory / f'{step}.deleting'
    shutil.rmtree(doomed, ignore_errors=True)
    self._path(step).rename(doomed)
    shutil.rmtree(doomed)

  def _thin(self) -> None:
    """Remove the sealed ones that no rule keeps."""
    notes = {}
    for step in self.steps():
      try:
        notes[step] = checksums.notes(self._path(step))
      except checksums.CorruptCheckpoint:
        continue  # kept for whoever may still read something in it
    for step in set(notes) - kept(notes, self._keep, self._keep_every, self._keep_best):
      self._remove(step)

  def drop_after(self, step: int) -> None:
    """Remove all newer ones: the run went back to ``step`` and continues differently."""
    self.wait()
    if self._process == 0:
      for newer in self._committed():
        if newer > step:
          self._remove(newer)
    _of_first(0)  # the others wait here

  # -- saving -----------------------------------------------------------------------------

  def save(self, step: int, state: TrainState, meta: dict[str, Any], *, clean: bool = True,
           scores: Mapping[str, float] | None = None) -> None:
    """Start saving; returns once the arrays are copied off the device.

    Args:
      step: its number; a checkpoint that has it already is replaced.
      state: on the mesh; None for step and opt_state saves weights alone.
      meta: JSON-ready note, given back by ``meta``.
      clean: whether the last loss was finite.
      scores: name -> value of an evaluation of just this state.

    Raises:
      UserError: this save, or the one before it, could not be written.
    """
    self.wait()
    notes = {'meta': meta, 'clean': clean, 'scores': dict(scores or {}), 'saved': time.time()}
    try:
      self.directory.mkdir(parents=True, exist_ok=True)
      parts = {name: part for name, part in state._asdict().items() if part is not None}
      with _way_of_writing(parts):
        writing = ocp.save_checkpointables_async(self._path(step), {'state': parts}, overwrite=True)
    except (OSError, ValueError, RuntimeError) as error:
      self._remove_half(step)
      raise self._explained(step, error) from error
    self._pending = step, self._pool.submit(self._finish, writing, step, notes)

  def _finish(self, writing: Any, step: int, notes: dict[str, Any]) -> None:
    """In the background: the commit, the seal, then room for the next one."""
    done = False
    try:
      writing.result()
      checksums.write(self._path(step), self._process, self._processes, notes)
      done = True
    finally:
      if not done:
        self._remove_half(step)
    if self._process == 0:
      self._remember(step)
      self._thin()

  def _remove_half(self, step: int) -> None:
    """Orbax' other tasks may still be writing when one has failed: until nothing comes back."""
    quiet = 0
    while self._process == 0 and quiet < _QUIET:
      found = [path for path in (*self._leftovers(step), self._path(step)) if path.exists()]
      for path in found:
        shutil.rmtree(path, ignore_errors=True)
      quiet = 0 if found else quiet + 1
      time.sleep(0.05)

  def saving(self) -> bool:
    """Whether a save is still on its way to the disk."""
    return self._pending is not None and not self._pending[1].done()

  def failed(self) -> bool:
    """Whether the save in the background has failed; ``wait`` says why."""
    return (self._pending is not None and self._pending[1].done()
            and self._pending[1].exception() is not None)

  def wait(self) -> None:
    """Until the last save is sealed (process 0) or this process has done its part.

    Raises:
      UserError: the disk is full, or does not let us write.
    """
    if self._pending is None:
      return
    (step, future), self._pending = self._pending, None
    error = future.exception()
    if error is not None:
      raise self._explained(step, error) from error

  def _explained(self, step: int, error: BaseException) -> BaseException:
    if not isinstance(error, UserError) and files.system_code(error):
      return files.cannot_write(f'checkpoint {self._path(step)}', error)
    return error

  # -- reading ----------------------------------------------------------------------------

  def meta(self, step: int) -> dict[str, Any]:
    """The note that was saved with a sealed step."""
    meta = checksums.notes(self._path(step))['meta']
    if 'course' in meta:  # version 0.1
      meta['progress'] = meta.pop('course')
    return meta | {'config': upgraded(meta['config'])} if 'config' in meta else meta

  def check_vocabulary(self, step: int, vocab: Vocabulary) -> None:
    """UserError unless the step was trained with ``vocab``, which the prepared data has."""
    store.check_fingerprint(
        f'checkpoint {self._path(step)} was trained', self.meta(step)['fingerprint'], vocab,
        'use the data that it was trained on, or another workdir')

  def scores(self, step: int) -> dict[str, float]:
    """The scores that were saved with a sealed step."""
    return checksums.notes(self._path(step))['scores']

  def stored(self, step: int) -> dict[str, Any]:
    """The parts of a sealed step's state, with shapes and dtypes in place of arrays."""
    return ocp.checkpointables_metadata(self._path(step)).metadata['state']

  def restore(self, step: int, target: TrainState) -> TrainState:
    """Load onto the shardings of ``target`` (train_state.abstract).

    Raises:
      UserError: naming every array whose presence, shape or type differs.
    """
    self._compare(step, target._asdict())
    loaded = ocp.load_checkpointables(self._path(step), {'state': target._asdict()})['state']
    return TrainState(**loaded)

  def restore_params(self, step: int, target: Any) -> Any:
    """Load the parameters alone: for evaluation, generation and new runs. bfloat16 is widened."""
    self._compare(step, {'params': target}, dtypes=False)
    options = ocp.Context(
        pytree_options=ocp.options.PyTreeOptions(
            loading=ocp.options.PyTreeOptions.Loading(partial_load=True)))
    with options:
      return ocp.load_checkpointables(
          self._path(step), {'state': {'params': target}})['state']['params']

  def _compare(self, step: int, target: dict[str, Any], dtypes: bool = True) -> None:
    """UserError unless the parts of the state that ``target`` names are just what it wants."""
    stored = train_state.described(
        {part: tree for part, tree in self.stored(step).items() if part in target})
    wanted = train_state.described(target)
    if not dtypes:
      stored, wanted = ({path: shape.replace('bfloat16', 'float32') for path, shape in side.items()}
                        for side in (stored, wanted))
    wrong = [f'{path}: checkpoint has {stored.get(path, "nothing")}, this config needs '
             f'{wanted.get(path, "nothing")}'
             for path in dict.fromkeys((*wanted, *stored)) if stored.get(path) != wanted.get(path)]
    if wrong:
      raise UserError(f'checkpoint {self._path(step)} does not fit the config: '
                      + '; '.join(wrong) + '.')


def kept(notes: Mapping[int, Mapping[str, Any]], keep: int, keep_every: int,
         keep_best: str) -> set[int]:
  """The steps that the rules keep.

  Args:
    notes: of every sealed step: 'clean' and 'scores' matter.
    keep: the newest so many that are clean stay, and whatever is newer than they are: a run
      whose loss is not finite must not push out what it may have to go back to.
    keep_every: multiples of it stay; 0 = none.
    keep_best: the step with the lowest such score stays; '' = none.
  """
  newest = sorted((step for step, note in notes.items() if note['clean']), reverse=True)[:keep]
  out = {step for step in notes if step >= min(newest, default=0)
         and (step in newest or not notes[step]['clean'])}
  if keep_every:
    out |= {step for step in notes if step % keep_every == 0}
  scores = {step: note['scores'][keep_best] for step, note in notes.items()
            if math.isfinite(note['scores'].get(keep_best, math.nan))}
  return out | ({min(scores, key=lambda step: (scores[step], step))} if scores else set())


def _way_of_writing(parts: dict[str, Any]) -> ocp.Context:
  """Weights alone, which an import writes once, go array by array instead of all copied at
  once, and as they are: compressing them takes long and hardly helps."""
  if 'opt_state' in parts:
    return ocp.Context()
  largest = max(shard.data.nbytes for leaf in jax.tree.leaves(parts)
                for shard in leaf.addressable_shards)
  saving = ocp.options.ArrayOptions.Saving(use_compression=False)
  return ocp.Context(
      array_options=ocp.options.ArrayOptions(saving=saving),
      memory_options=ocp.options.MemoryOptions(write_concurrent_bytes=max(2**28, largest + 1)))


def _of_first(value: int) -> int:
  """What process 0 says; the others' ``value`` does not matter."""
  return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def open_existing(directory: str | pathlib.Path) -> Checkpoints:
  """The checkpoints under ``directory``, which must hold at least one."""
  found = Checkpoints(directory)
  if found.latest() is None:
    raise UserError(f'no checkpoint under {directory}; run `ttt-jax train` first.')
  return found
