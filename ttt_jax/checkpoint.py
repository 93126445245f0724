"""Checkpoints through Orbax: the state on the mesh and a JSON note beside it.

workdir/checkpoints/<step>/ holds
  state  the TrainState, array by array, restored onto any mesh
  meta   JSON: data position, resolved config, vocabulary, version
"""

import pathlib
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from ttt_jax.errors import UserError
from ttt_jax.train_state import TrainState


class Checkpoints:
  """The checkpoints of one run; saving is asynchronous. Use as a context manager."""

  def __init__(self, directory: str | pathlib.Path, keep: int = 2):
    self.directory = pathlib.Path(directory).absolute()
    self._manager = ocp.training.Checkpointer(
        self.directory, preservation_policy=ocp.training.preservation_policies.LatestN(keep))

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._manager.close()

  def latest(self) -> int | None:
    """The newest complete step, or None."""
    newest = self._manager.latest
    return None if newest is None else newest.step

  def save(self, step: int, state: TrainState, meta: dict[str, Any]) -> None:
    """Start saving; returns once the arrays are copied off the device."""
    self._manager.save_checkpointables_async(
        step, {'state': state._asdict(), 'meta': meta}, force=True)

  def wait(self) -> None:
    self._manager.wait()

  def meta(self, step: int) -> dict[str, Any]:
    return self._manager.load_checkpointables(step, {'meta': None})['meta']

  def restore(self, step: int, target: TrainState) -> TrainState:
    """Load onto the shardings of ``target`` (train_state.abstract).

    Raises:
      UserError: naming every parameter whose presence or shape differs.
    """
    self._compare(step, target._asdict())
    loaded = self._manager.load_checkpointables(step, {'state': target._asdict()})['state']
    return TrainState(**loaded)

  def restore_params(self, step: int, target: Any) -> Any:
    """Load the parameters alone: for evaluation, generation and new runs."""
    self._compare(step, {'params': target})
    options = ocp.Context(
        pytree_options=ocp.options.PyTreeOptions(
            loading=ocp.options.PyTreeOptions.Loading(partial_load=True)))
    with options:
      return self._manager.load_checkpointables(
          step, {'state': {'params': target}})['state']['params']

  def _compare(self, step: int, target: dict[str, Any]) -> None:
    stored = _shapes(self._manager.checkpointables_metadata(step).metadata['state'])
    wanted = _shapes(target)
    wrong = [f'{path}: checkpoint has {stored.get(path, "nothing")}, this config needs {shape}'
             for path, shape in wanted.items() if stored.get(path) != shape]
    if wrong:
      raise UserError(f'checkpoint {self.directory / str(step)} does not fit the config: '
                      + '; '.join(wrong[:20]) + '.')


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  name = lambda path: '.'.join(str(getattr(key, 'key', getattr(key, 'name', getattr(
      key, 'idx', key)))) for key in path)
  return {name(path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, 'shape')}


def open_existing(directory: str | pathlib.Path) -> Checkpoints:
  """The checkpoints under ``directory``, which must hold at least one."""
  directory = pathlib.Path(directory)
  if directory.is_dir():
    found = Checkpoints(directory)
    if found.latest() is not None:
      return found
    found.__exit__()
  raise UserError(f'no checkpoint under {directory}; run `ttt-jax train` first.')
