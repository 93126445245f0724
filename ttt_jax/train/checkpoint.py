"""Checkpoints: Orbax writes the arrays on the mesh, checksums make a checkpoint complete.

workdir/checkpoints/<step>/ holds
  params/              the parameters, array by array, restored onto any mesh
  optimizer/           step and optimizer state; absent where weights alone were saved
  seal.json, sums.*    metadata (data position, time split, config ...) and checksums: checksums.py

Evaluation, generation and export read params/ and verify nothing else: with AdamW that is a third
of the bytes. Version 0.1 wrote all of it into one folder, state/, which is still read.

  40, 60               complete; a restore takes the newest
  60                   without its checksums: removed at start if a run began to save it, else
                       renamed to 60.unfinished
  80.orbax-...-tmp     not committed by Orbax; removed at start
  20.damaged           corrupt, renamed so that it is not tried again

In a bucket (gs://, s3://) the same parts have other means: train/bucket_folders.py and
train/bucket_checksums.py.

Old checkpoints are removed here and not by Orbax: a checkpoint may replace older ones only once
its checksums are written, which is after Orbax has finished with it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
import contextlib
import logging
import math
import pathlib
import time
from typing import Any, NoReturn, TypeVar

import jax
from jax.experimental import multihost_utils
import numpy as np
from orbax.checkpoint import v1 as ocp

from ttt_jax.config import upgraded
from ttt_jax.data import store
from ttt_jax.errors import RetryableError, UserError
from ttt_jax.model.transformer import Params
from ttt_jax.storage import buckets, files, mirror, outages, remote, schema
from ttt_jax.tokens.vocab import Vocabulary, VocabularyFile
from ttt_jax.train import bucket_checksums, checksums, orbax_buckets, state as train_state
from ttt_jax.train.bucket_folders import BucketFolders
from ttt_jax.train.checkpoint_folders import Folders
from ttt_jax.train.state import TrainState

_LOG = logging.getLogger(__name__)
_T = TypeVar('_T')
_PARAMS, _OPTIMIZER = 'params', 'optimizer'  # Orbax checkpointables, one folder each
_STATE = 'state'      # the single checkpointable of version 0.1
_SMALL = 2**20        # bytes of an object that is read to learn why another cannot be
_LOOK = 1.0           # seconds between two looks whether a bucket is still there
_QUIET_POLLS = 10     # every 50 ms without new files, after which a failed save has stopped writing
_TRIES = 20           # of a reader whose checkpoint is removed while it is read
_NAMED = 3            # arrays in a message
_MESSAGE_BYTES = 400  # of an error that one process sends to the others


class ProgressFile(schema.Kind, total=False):
  """loop.RunProgress in a checkpoint's note."""
  step: schema.Count
  offset: schema.Count
  skipped: schema.Count
  in_a_row: schema.Count
  rollbacks: schema.Count
  best: float | None


class Position(schema.Kind):
  """Where the loader continues."""
  next: schema.Count


class MetaFile(schema.Kind, total=False):
  """What the training loop and an import store with a checkpoint."""
  fingerprint: str
  vocabulary: VocabularyFile
  config: dict[str, Any]
  data: Position
  progress: ProgressFile
  seconds: dict[str, float]
  revision: str
  version: str


class Checkpoints:
  """The checkpoints of one run, saved asynchronously. Use as a context manager.

  All processes of a run call the same methods in the same order. Only process 0 removes and
  renames folders.
  """

  def __init__(self, directory: str | pathlib.Path, keep: int = 2, keep_every: int = 0,
               keep_best: str = '', log: Callable[[str], None] = _LOG.warning,
               verify: str = 'checksums', confirm: Callable[[], None] = lambda: None):
    """Nothing is read or written yet; the directory need not exist.

    Args:
      directory: on a disk that all processes share, a URL of a bucket, or the local folder of one
        (storage/mirror.py).
      keep: how many of the newest are kept.
      keep_every: checkpoints at multiples of this step are never removed; 0 = none.
      keep_best: name of a score; the checkpoint with the lowest is kept, too. '' = none.
      log: takes sentences about corrupt and unfinished checkpoints.
      verify: train.verify: what is compared before a checkpoint is read, 'checksums' or 'sizes'.
      confirm: called before a checkpoint becomes complete; it raises if this run may not write.
    """
    url = mirror.url_of(directory)
    self.directory = url or pathlib.Path(directory).absolute()
    if url:
      orbax_buckets.prepare(url)
    self.last_good: tuple[int, float] | None = None  # (step, seconds since the epoch)
    self.bytes_verified = 0  # read by this process to compare checksums
    self._keep, self._keep_every, self._keep_best = keep, keep_every, keep_best
    self._log, self._verify = log, verify
    self._folders: Folders | BucketFolders = (
        BucketFolders(url, log) if url else Folders(pathlib.Path(directory).absolute(), log))
    self._sums: Any = bucket_checksums if url else checksums
    self._confirm = confirm
    self._process, self._processes = jax.process_index(), jax.process_count()
    self._pool = futures.ThreadPoolExecutor(1, thread_name_prefix='checksums')
    self._pending: tuple[int, futures.Future] | None = None
    self._begun: int | None = None  # the step of ``begin``

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, kind, *_) -> None:
    # If one of several processes fails, the others may never finish their share of a save.
    self.close(finish=kind is None or self._processes == 1)

  def close(self, finish: bool = True) -> None:
    """Wait for the last save, unless ``finish`` is False."""
    try:
      if finish:
        self.wait()
    finally:
      self._folders.unpin()
      self._pool.shutdown(wait=False)

  # -- listing and choosing ---------------------------------------------------------------

  def steps(self) -> list[int]:
    """The steps of all complete checkpoints, ascending; their files are not read."""
    return self._folders.complete()

  def latest(self) -> int | None:
    """The newest complete step, or None; its files are not read."""
    return max(self.steps(), default=None)

  def newest_good(self) -> int:
    """The newest complete step whose parameters are intact: for evaluation, generation, export.

    Files that hold no parameters are not verified. A run that goes on keeps the checkpoint until
    this object is closed, if it can be asked to; see ``read_newest``.

    Raises:
      UserError: there is none.
    """
    for _ in range(_TRIES):
      before = self.steps()
      step = self._first_good(lambda _: True, set_aside=False, params_only=True)
      if step is not None or self._processes > 1 or self.steps() == before:
        break
    if step is None:
      raise UserError(f'no checkpoint in {self.directory} is intact; copy a good one there, or '
                      'train again.')
    return step

  def check_intact(self, step: int) -> None:
    """Check the parameters of the step that a reader wants; pinned as by ``newest_good``.

    Raises:
      UserError: there is no complete checkpoint of this step, or it is corrupt.
    """
    if self._process == 0:
      self._folders.pin(step)
    if step not in (found := self.steps()):
      raise UserError(f'there is no checkpoint {step} in {self.directory}, which has '
                      f'{", ".join(map(str, found)) or "none"}; name one of these.')
    problem = self._problem(step, params_only=True)
    if problem:
      raise UserError(f'checkpoint {self._path(step)} is corrupt: {problem}; name another one.')

  def recover(self) -> int | None:
    """The newest good step for a run that starts; removes unfinished ones, renames corrupt ones.

    Returns:
      The step, the same on all processes; None if there has never been a checkpoint.

    Raises:
      UserError: there were checkpoints, and all of them are corrupt.
    """
    if self._process == 0:
      self._tidy()
    step = self._first_good(lambda _: True, set_aside=True)
    if _from_process_0(step is None and self._folders.damaged()):
      raise UserError(f'all checkpoints in {self.directory} are corrupt; copy a good one there, or '
                      'remove the folder to start from scratch.')
    return step

  def newest_clean(self) -> int | None:
    """The newest good step saved while the loss was finite; corrupt ones are renamed."""
    return self._first_good(lambda metadata: metadata.get('clean', True), set_aside=True)

  def _first_good(self, wanted: Callable[[Mapping[str, Any]], bool], set_aside: bool,
                  params_only: bool = False) -> int | None:
    """The newest step whose files are intact and whose metadata are ``wanted``."""
    candidates = iter(sorted(self.steps(), reverse=True) if self._process == 0 else ())
    while (step := _from_process_0(next(candidates, -1))) >= 0:
      if params_only and self._process == 0:
        self._folders.pin(step)
      problem = self._problem(step, params_only)
      if not problem:
        metadata = self._metadata(step)
        if metadata is not None and wanted(metadata):
          self._set_last_good(step)
          return step
        continue
      if not set_aside and not self._folders.exists(step):
        continue  # the run has removed it meanwhile
      self._log(f'checkpoint {step} is corrupt: {problem}; trying the next older one.')
      if set_aside and self._process == 0:
        self._folders.set_aside(step, 'damaged')
    return None

  def _metadata(self, step: int) -> dict[str, Any] | None:
    """What is stored beside the arrays; None if the checkpoint was removed meanwhile."""
    try:
      return self._sums.read_metadata(self._path(step))
    except checksums.CorruptCheckpoint:
      if self._folders.exists(step):
        raise
      return None

  def _problem(self, step: int, params_only: bool) -> str:
    """What is wrong with a checkpoint, the same on all processes; '' if it is intact."""
    wanted = lambda name: not (params_only and name.startswith(f'{_OPTIMIZER}/'))
    problem = ''
    try:
      self.bytes_verified += self._sums.check(
          self._path(step), self._process, self._processes, verify=self._verify, wanted=wanted)
    except checksums.CorruptCheckpoint as error:
      problem = str(error)
    if self._processes == 1:
      return problem
    message = np.zeros(_MESSAGE_BYTES, np.uint8)
    encoded = problem.encode()[:_MESSAGE_BYTES]
    message[:len(encoded)] = list(encoded)
    gathered = multihost_utils.process_allgather(message)
    return next((bytes(row[row > 0]).decode(errors='replace') for row in gathered if row.any()),
                '')

  def _set_last_good(self, step: int) -> None:
    when = self._folders.saved_at(step)  # None: a reader's, which the run has removed
    self.last_good = (step, when) if when is not None else None

  def place(self, step: int) -> str:
    """Path or URL of a step."""
    return str(self._path(step))

  def _path(self, step: int) -> pathlib.Path | str:
    return self._folders.path(step)

  # -- removing and renaming: process 0 ---------------------------------------------------

  def _tidy(self) -> None:
    """Remove what a killed run left unfinished. Only the newest checkpoint can be: an older one
    without checksums once had them, so it is corrupt."""
    folders, began = self._folders, self._folders.saving()
    folders.remove_leftovers()
    committed, complete = folders.steps(), set(folders.complete())
    for step in committed:
      if step in complete:
        continue
      if step == began:
        self._log(f'checkpoint {step} is unfinished and is removed.')
        folders.remove(step)
      elif step == committed[-1]:
        self._log(f'checkpoint {step} has no checksums; it is renamed to {step}.unfinished.')
        folders.set_aside(step, 'unfinished')
      else:
        self._log(f'checkpoint {step} is corrupt: {checksums.SEAL} or the sums of '
                  f'{self._path(step)} are missing.')
        folders.set_aside(step, 'damaged')
    folders.done()

  def _apply_retention(self) -> None:
    """Remove the complete checkpoints that no rule keeps and nobody reads."""
    self._folders.remove_leftovers()  # those that could not be removed before
    metadata = {}
    for step in self.steps():
      try:
        metadata[step] = self._sums.read_metadata(self._path(step))
      except checksums.CorruptCheckpoint:
        continue  # not ours to delete: its arrays may still be readable
    wanted = kept(metadata, self._keep, self._keep_every, self._keep_best)
    for step in sorted(set(metadata) - wanted - self._folders.pinned()):
      self._folders.remove(step)

  def drop_after(self, step: int) -> None:
    """Remove all checkpoints newer than ``step``, to which the run has rolled back."""
    self.wait()
    if self._process == 0:
      for newer in self._folders.steps():
        if newer > step:
          self._folders.remove(newer)
    _from_process_0(0)  # a barrier: the others wait here

  # -- saving -----------------------------------------------------------------------------

  def begin(self, step: int) -> None:
    """What a save does first, and alone: several processes call this and agree that all can write
    before they call ``save``, in which they wait for each other.

    Raises:
      UserError: the save before could not be written, or nothing can be written there.
    """
    self.wait()
    if self._begun == step:
      return
    try:
      self._folders.create()
      if self._process == 0:
        self._folders.begin(step)
    except (OSError, ValueError, RuntimeError, RetryableError) as error:
      self._raise(step, error)
    self._begun = step

  def save(self, step: int, state: TrainState, meta: dict[str, Any], *, clean: bool = True,
           scores: Mapping[str, float] | None = None) -> None:
    """Start saving; returns once the arrays are copied off the device.

    Args:
      step: number of the checkpoint; an existing one of this number is replaced.
      state: on the mesh; None for step and opt_state saves the parameters alone.
      meta: JSON-ready; ``meta`` returns it.
      clean: whether the last loss was finite.
      scores: name -> value of an evaluation of this state.

    Raises:
      UserError: this save, or the one before it, could not be written.
    """
    self.begin(step)
    metadata = {'meta': meta, 'clean': clean, 'scores': dict(scores or {}), 'saved': time.time()}
    try:
      items = {_PARAMS: state.params}
      if state.opt_state is not None:
        items[_OPTIMIZER] = {'step': state.step, 'opt_state': state.opt_state}
      with _write_options(items):
        writing = ocp.save_checkpointables_async(str(self._path(step)), items, overwrite=True)
    except (OSError, ValueError, RuntimeError, RetryableError) as error:
      self._remove_unfinished(step)
      self._raise(step, error)
    finally:
      self._begun = None
    self._pending = step, self._pool.submit(self._finish, writing, step, metadata)

  def _finish(self, writing: Any, step: int, metadata: dict[str, Any]) -> None:
    """In the background: wait for Orbax's commit, write the checksums, remove old checkpoints."""
    done = False
    try:
      self._wait_for(writing)
      if self._process == 0:
        self._confirm()
      self._sums.write(self._path(step), self._process, self._processes, metadata)
      done = True
    finally:
      if not done:
        self._remove_unfinished(step)
    if self._process == 0:
      self._folders.done()
      self._set_last_good(step)
      try:
        self._apply_retention()
      except OSError as error:  # the checkpoint is complete: this is not worth a run
        self._log(f'old checkpoints could not be removed ({error}); it is tried again later.')

  def _wait_for(self, writing: Any) -> None:
    """Wait for Orbax's commit, but not for a lost bucket, as TensorStore does for minutes."""
    if not isinstance(self.directory, str):
      return writing.result()
    outage = outages.of(self.directory)
    while True:
      began = time.monotonic()
      try:
        return writing.result(timeout=_LOOK)
      except TimeoutError:
        if time.monotonic() - began < _LOOK / 2:  # an error of the save
          raise
      if outage.seconds() > outages.RETRY_SECONDS:  # the lease asks the store every few seconds
        outage.give_up(silent=True)
        raise RetryableError(f'{self.directory} could not be written: its store has not answered '
                             f'for {outage.seconds():.0f} seconds; run the same command again.')

  def _remove_unfinished(self, step: int) -> None:
    """Remove a failed save. Other tasks of Orbax may still be writing, so this repeats until no
    new files appear."""
    quiet = 0
    while self._process == 0 and quiet < _QUIET_POLLS:
      # What cannot be removed is left: the next start tries again.
      quiet = 0 if self._folders.remove_unfinished(step) else quiet + 1
      time.sleep(0.05)

  def saving(self) -> bool:
    """Whether a save is still being written."""
    return self._pending is not None and not self._pending[1].done()

  def failed(self) -> bool:
    """Whether the save in the background has failed; ``wait`` raises its error."""
    return (self._pending is not None and self._pending[1].done()
            and self._pending[1].exception() is not None)

  def wait(self) -> None:
    """Wait until the last save is complete (process 0), or this process has done its share.

    Raises:
      UserError: the disk is full or not writable.
    """
    if self._pending is None:
      return
    (step, future), self._pending = self._pending, None
    error = future.exception()
    if error is not None:
      self._raise(step, error)

  def _raise(self, step: int, error: BaseException) -> NoReturn:
    known = self._as_user_error(step, error)
    if known is error:  # from itself: contextlib would follow such a chain for ever
      raise error
    raise known from error

  def _as_user_error(self, step: int, error: BaseException) -> BaseException:
    what = f'checkpoint {self._path(step)}'
    if isinstance(self.directory, str):
      return buckets.explained(error, what, 'written')
    if not isinstance(error, UserError) and files.system_code(error):
      return files.cannot_write(f'checkpoint {self._path(step)}', error,
                                'older checkpoints are intact')
    return error

  # -- reading ----------------------------------------------------------------------------

  def meta(self, step: int) -> dict[str, Any]:
    """What was passed to ``save`` as meta."""
    meta = self._sums.read_metadata(self._path(step))['meta']
    if 'course' in meta:  # version 0.1
      meta['progress'] = meta.pop('course')
    schema.check(meta, MetaFile, f'checkpoint {self._path(step)}, note',
                 'use another checkpoint, or another workdir')
    return meta | {'config': upgraded(meta['config'])} if 'config' in meta else meta

  def check_vocabulary(
      self, step: int, vocab: Vocabulary,
      remedy: str = 'use the data that it was trained on, or another workdir') -> None:
    """UserError unless the step was trained with ``vocab``, which the prepared data has."""
    fingerprint = self.meta(step).get('fingerprint')
    if fingerprint is None:
      raise UserError(f'checkpoint {self._path(step)}, note, has no fingerprint of its vocabulary; '
                      'use another checkpoint, or another workdir.')
    store.check_fingerprint(f'checkpoint {self._path(step)} was trained', fingerprint, vocab,
                            remedy)

  def scores(self, step: int) -> dict[str, float]:
    """What was passed to ``save`` as scores."""
    return self._sums.read_metadata(self._path(step))['scores']

  def stored(self, step: int) -> dict[str, Any]:
    """'params' and, unless weights alone were saved, 'step' and 'opt_state' of a complete step,
    with shapes and dtypes in place of arrays."""
    items = self._items(step)
    if _STATE in items:
      return items[_STATE]
    return {_PARAMS: items[_PARAMS], **items.get(_OPTIMIZER, {})}

  def _is_version_0_1(self, step: int) -> bool:
    return _STATE in self._items(step)

  def _items(self, step: int) -> dict[str, Any]:
    """What Orbax has stored under each name, with shapes and dtypes in place of arrays.

    Raises:
      UserError, RetryableError: some of it cannot be read.
    """
    path = self._path(step)
    with self._reading(step):
      items = ocp.checkpointables_metadata(str(path)).metadata
    unread = [name for name in (_STATE, _PARAMS, _OPTIMIZER) if name in items and not items[name]]
    if not unread and (_STATE in items or _PARAMS in items):
      return items
    # Orbax logs the reason and goes on.
    if isinstance(path, str):
      # Reading them again raises the reason: no permission, no answer.
      small = [name for name, entry in remote.files(path).items() if entry.size < _SMALL]
      remote.each(small, lambda name: remote.read_bytes(remote.join(path, name)))
    raise RetryableError(f'checkpoint {path} could not be read ({", ".join(unread) or "no arrays"} '
                         'in it); run the same command again, or name another checkpoint.')

  @contextlib.contextmanager
  def _reading(self, step: int) -> Iterator[None]:
    """A context in which errors of a bucket that Orbax reads become sentences."""
    try:
      yield
    except Exception as error:
      known = buckets.explained(error, f'checkpoint {self._path(step)}', 'read') if isinstance(
          self.directory, str) else error
      if known is error:
        raise
      raise known from error

  def restore(self, step: int, target: TrainState) -> TrainState:
    """Load onto the shardings of ``target`` (train_state.abstract).

    Raises:
      UserError: naming every array whose presence, shape or dtype differs.
    """
    wanted = target._asdict()
    self._compare(step, wanted)
    if self._is_version_0_1(step):
      return TrainState(**ocp.load_checkpointables(str(self._path(step)), {_STATE: wanted})[_STATE])
    params = wanted.pop('params')
    with self._reading(step):
      return self._restored(step, params, wanted)

  def _restored(self, step: int, params: Params, wanted: dict[str, Any]) -> TrainState:
    loaded = ocp.load_checkpointables(str(self._path(step)), {_PARAMS: params, _OPTIMIZER: wanted})
    return TrainState(params=loaded[_PARAMS], **loaded[_OPTIMIZER])

  def restore_params(self, step: int, target: Params) -> Params:
    """Load the parameters alone, cast to the dtypes of ``target``.

    Raises:
      UserError: naming every array whose presence or shape differs, or whose dtype is neither
        the target's nor, where that is float32 or bfloat16, the other of the two.
    """
    self._compare(step, {'params': target}, dtypes=False)
    if not self._is_version_0_1(step):
      with self._reading(step):
        return ocp.load_checkpointables(str(self._path(step)), {_PARAMS: target})[_PARAMS]
    loading = ocp.options.PyTreeOptions.Loading(partial_load=True)
    with ocp.Context(pytree_options=ocp.options.PyTreeOptions(loading=loading)):
      return ocp.load_checkpointables(
          str(self._path(step)), {_STATE: {'params': target}})[_STATE]['params']

  def _compare(self, step: int, target: dict[str, Any], dtypes: bool = True) -> None:
    """UserError unless ``differences`` is empty; train/resume.py also names the settings."""
    wrong = self.differences(step, target, dtypes)
    if wrong:
      raise UserError(mismatch(f'checkpoint {self._path(step)}', (), wrong,
                               'use the settings that it was trained with'))

  def differences(self, step: int, target: dict[str, Any], dtypes: bool = True) -> list[str]:
    """A sentence part for every stored array whose presence, shape or dtype is not that of
    ``target``; parts of the state that ``target`` does not name are ignored.

    Args:
      step: of a complete checkpoint.
      target: 'params' and, for a run that goes on, 'step' and 'opt_state', with shapes.
      dtypes: False: bfloat16 and float32 are the same.
    """
    stored = train_state.described(
        {part: tree for part, tree in self.stored(step).items() if part in target})
    wanted = train_state.described(target)
    if not dtypes:
      stored, wanted = ({path: shape.replace('bfloat16', 'float32') for path, shape in side.items()}
                        for side in (stored, wanted))
    return [f'{path}: checkpoint has {stored.get(path, "nothing")}, this config needs '
            f'{wanted.get(path, "nothing")}'
            for path in sorted({*wanted, *stored}, key=lambda path: (path[:6] != _PARAMS, path))
            if stored.get(path) != wanted.get(path)]


def mismatch(what: str, changed: Sequence[Any], wrong: Sequence[str], remedy: str) -> str:
  """The sentence about a checkpoint that does not fit a config: the settings that differ, and at
  most three of the arrays."""
  parts = [str(change) for change in changed] + list(wrong[:_NAMED])
  more = len(wrong) - _NAMED
  rest = f' and {more} more array{"s" * (more > 1)}' if more > 0 else ''
  return f'{what} does not fit the config: {"; ".join(parts)}{rest}; {remedy}.'


def kept(metadata: Mapping[int, Mapping[str, Any]], keep: int, keep_every: int,
         keep_best: str) -> set[int]:
  """The steps that the retention rules keep.

  Args:
    metadata: of every complete step; its 'clean' and 'scores' are read.
    keep: how many of the newest clean steps stay, with all that are newer: while the loss is not
      finite, a run must not remove the checkpoint that it may roll back to.
    keep_every: multiples of this step stay; 0 = none.
    keep_best: the step with the lowest such score stays; '' = none.
  """
  newest = sorted((step for step, note in metadata.items() if note['clean']), reverse=True)[:keep]
  out = {step for step in metadata if step >= min(newest, default=0)
         and (step in newest or not metadata[step]['clean'])}
  if keep_every:
    out |= {step for step in metadata if step % keep_every == 0}
  scores = {step: note['scores'][keep_best] for step, note in metadata.items()
            if math.isfinite(note['scores'].get(keep_best, math.nan))}
  return out | ({min(scores, key=lambda step: (scores[step], step))} if scores else set())


def read_newest(directory: str | pathlib.Path, read: Callable[['Checkpoints', int], _T],
                verify: str = 'checksums') -> _T:
  """``read(checkpoints, step)`` of the newest intact checkpoint under ``directory``.

  A run that goes on may remove the checkpoint meanwhile: then the next newest one is read.

  Args:
    directory: workdir/checkpoints.
    read: reads the parameters of a step.
    verify: as in ``Checkpoints``.

  Raises:
    UserError: there is no checkpoint, or none is intact.
  """
  for attempt in range(1, _TRIES + 1):
    with open_existing(directory, verify) as checkpoints:
      step = checkpoints.newest_good()
      try:
        return read(checkpoints, step)
      except Exception:
        if attempt == _TRIES or jax.process_count() > 1 or step in checkpoints.steps():
          raise
    _LOG.warning('checkpoint %d was removed while it was read; reading the newest one.', step)
  raise AssertionError('unreachable')


def read_step(directory: str | pathlib.Path, step: int, read: Callable[['Checkpoints', int], _T],
              verify: str = 'checksums') -> _T:
  """``read_newest`` for the checkpoint of one step.

  Raises:
    UserError: there is no such checkpoint, or it is corrupt.
  """
  with open_existing(directory, verify) as checkpoints:
    checkpoints.check_intact(step)
    return read(checkpoints, step)


def is_trained(workdir: pathlib.Path) -> bool:
  """Whether a workdir, or the bucket that it is a copy of, has a folder of checkpoints."""
  url = mirror.url_of(workdir)
  return remote.is_folder(f'{url}/checkpoints') if url else (workdir / 'checkpoints').is_dir()


def digest(workdir: pathlib.Path, step: int) -> str:
  """What distinguishes a complete checkpoint from others of its step; the step if it is gone."""
  url = mirror.url_of(workdir)
  if url:
    entry = remote.stat(f'{url}/checkpoints/{step}/{checksums.SEAL}')
    return entry.checksum if entry else str(step)
  seal = workdir / 'checkpoints' / str(step) / checksums.SEAL
  return files.sha256(seal)[:16] if seal.is_file() else str(step)


def _write_options(items: dict[str, Any]) -> ocp.Context:
  """Parameters alone, which an import writes once, are written array by array, so that not all of
  them are copied at once, and uncompressed: compressing weights is slow and saves little."""
  if _OPTIMIZER in items:
    return ocp.Context()
  largest = max(shard.data.nbytes for leaf in jax.tree.leaves(items)
                for shard in leaf.addressable_shards)
  saving = ocp.options.ArrayOptions.Saving(use_compression=False)
  return ocp.Context(
      array_options=ocp.options.ArrayOptions(saving=saving),
      memory_options=ocp.options.MemoryOptions(write_concurrent_bytes=max(2**28, largest + 1)))


def _from_process_0(value: int) -> int:
  """The ``value`` of process 0, on all processes."""
  return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def open_existing(directory: str | pathlib.Path, verify: str = 'checksums') -> Checkpoints:
  """The checkpoints under ``directory``, for reading; ``verify`` as in ``Checkpoints``.

  Raises:
    UserError: there is no complete one.
  """
  found = Checkpoints(directory, verify=verify)
  if found.latest() is None:
    raise UserError(f'no checkpoint under {directory}; run `ttt-jax train` first.')
  return found
