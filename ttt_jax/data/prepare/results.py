"""Where the results of jobs are stored: in a folder (folder_results.py), or in a bucket
(bucket_results.py).

A result is the files that a job writes, and the info that its function returns. It is named by the
hash of the job, and is there whole or not at all: half a result of a process that has ended is
nobody's. It does not matter which process on which machine stores it, nor how often.

Functions of jobs find the results of earlier jobs by ``root``, a string that is the same on all
machines: see addresses.py.
"""

import abc
from collections.abc import Callable, Collection, Iterable, Iterator
import contextlib
import dataclasses
import pathlib
from typing import Any, TypeVar

import numpy as np

from ttt_jax.data.prepare.board import Board
from ttt_jax.errors import RetryableError

Function = Callable[[Any, pathlib.Path], dict[str, Any]]  # (job, its folder) -> JSON-ready info
T = TypeVar('T')
S = TypeVar('S')


@dataclasses.dataclass(frozen=True)
class Result:
  """The result of a job: its name, and what its function returned."""
  name: str
  info: dict[str, Any]


class Results(abc.ABC):
  """The results of the jobs of one set.

  Attributes:
    where: the folder or URL, for sentences.
    disk: the folder of this machine that jobs write to.
    root: names it in jobs; known after ``open``.
    board: what processes that share it tell each other.
  """
  where: str
  disk: pathlib.Path
  root: str
  board: Board

  @abc.abstractmethod
  def open(self, alone: bool = False) -> None:
    """Creates what is missing; ``alone``: no other process uses it.

    Raises:
      UserError: it cannot be written.
    """

  @abc.abstractmethod
  def lacks(self) -> str:
    """Why this machine cannot use the opened results of another one, as the end of the sentence
    'node X ...'; '' = it can."""

  @abc.abstractmethod
  def names(self) -> Collection[str]:
    """Of all results that are stored; none if nothing was opened yet."""

  @abc.abstractmethod
  def stored(self, names: Iterable[str]) -> dict[str, Result]:
    """Those of some results that are stored."""

  @abc.abstractmethod
  def do(self, function: Function, job: Any, name: str) -> Result:
    """Computes a job and stores its result; the one of another process if that was faster."""

  @abc.abstractmethod
  def read(self, name: str, file: str, start: int = 0, size: int = -1) -> bytes:
    """``size`` bytes from ``start`` of a file of a result; -1 = all."""

  @abc.abstractmethod
  def array(self, name: str, file: str, start: int = 0, count: int = -1) -> np.ndarray:
    """``count`` numbers from ``start`` of a file of int32; -1 = all."""

  @abc.abstractmethod
  def file(self, name: str, file: str) -> pathlib.Path:
    """A file of a result on this disk, until ``close``."""

  @abc.abstractmethod
  def folder(self, name: str) -> contextlib.AbstractContextManager[pathlib.Path]:
    """All files of a result on this disk."""

  def url(self, name: str, file: str) -> str | None:
    """The object that is a file of a result; None where results are files."""
    return None

  @abc.abstractmethod
  def address(self, name: str) -> str:
    """What jobs call a result, for addresses.py."""

  @abc.abstractmethod
  def put(self, name: str, text: str) -> str:
    """Stores a text that all machines would write alike; returns its path or URL."""

  def each(self, function: Callable[[T], S], items: Iterable[T]) -> Iterator[S]:
    """``map``; several at once where each waits for the network."""
    return map(function, items)

  @abc.abstractmethod
  def clear(self, keep: tuple[str, ...] = ()) -> None:
    """Deletes everything of ours, but for what the board calls by the names in ``keep``."""

  @abc.abstractmethod
  def remove(self, lease: Any) -> None:
    """``clear``, and gives back the lease of all of it, which leaves nothing."""

  def folder_for(self, folder: pathlib.Path) -> pathlib.Path:
    """Where the set is assembled, which is ``folder`` if results are on a disk."""
    return folder

  @abc.abstractmethod
  def close(self) -> None:
    """Deletes what this process has on its disk beside the results."""


def damaged(what: str) -> RetryableError:
  """The error for a result that cannot be read and was removed, so that it is computed again."""
  return RetryableError(f'a result of `ttt-jax prepare` is damaged ({what}); it was removed, and '
                        'the same command computes it again.')
