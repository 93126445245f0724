"""What a benchmark defines: its items, the score of a reply, and the metrics of all scores.

A suite reads published files into items. Each item is a record whose last assistant turn is empty;
the model answers it, and the suite turns the reply into counts. A metric is a function of the sums
of these counts over the items, so that it can be computed on any resample of the items: that is
how intervals and paired differences of every metric are found.
"""

import abc
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import pathlib
from typing import Any, ClassVar

import numpy as np

from ttt_jax.audio.asr_judges import Recogniser
from ttt_jax.audio.codec import Codec
from ttt_jax.config import Config
from ttt_jax.data.records.records import Record
from ttt_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Item:
  """One request of a benchmark.

  Attributes:
    id: its name in the published files.
    record: the request; its last turn is the assistant's and empty. Paths of audio are absolute.
    references: texts that the answer is compared with; () if the suite has no references.
    group: the subset that it belongs to, '' for none; metrics are also given per group.
    details: whatever else the suite's score needs, such as the path of a reference recording.
    language: code of the answer's language, for the judge; '' = not known.
  """
  id: str
  record: Record
  references: tuple[str, ...] = ()
  group: str = ''
  details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  language: str = ''


@dataclasses.dataclass(eq=False)
class Reply:
  """The model's answer to an item.

  Attributes:
    text: of the answer, without its audio.
    codes: int32 [n], of all audio of the answer.
    codec: decodes them.
    judge: the speech recogniser of config key evaluate.judge, None for 'none'.
    finished: False if the answer reached generate.max_tokens.
    seconds: from admission to the last token.
    problem: why the item could not be asked, as a sentence; '' otherwise. Its text and audio are
      empty then.
    language: of the item.
  """
  text: str
  codes: np.ndarray
  codec: Codec
  judge: Recogniser | None = None
  finished: bool = True
  seconds: float = 0.0
  problem: str = ''
  language: str = ''

  @functools.cached_property
  def waveform(self) -> np.ndarray:
    """float32 [N], the speech of the answer at ``rate`` Hz; empty without speech."""
    return self.codec.sound(self.codes) if len(self.codes) else np.zeros(0, np.float32)

  @property
  def rate(self) -> int:
    return self.codec.sample_rate

  @functools.cached_property
  def heard(self) -> str:
    """The judge's transcript of the speech; '' without speech."""
    assert self.judge is not None, 'a suite that listens has hears=True'
    return (self.judge.transcribe(self.waveform, self.rate, self.language)
            if len(self.waveform) else '')

  @property
  def was_heard(self) -> bool:
    """Whether ``heard`` was computed."""
    return 'heard' in self.__dict__


@dataclasses.dataclass(frozen=True)
class Score:
  """The score of one reply.

  Attributes:
    counts: numbers that metrics sum over the items, such as {'errors': 2, 'words': 9}; a count
      that an item does not have is 0.
    shown: what a reader of the results may want to see beside them.
  """
  counts: dict[str, float]
  shown: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Result:
  """A line of the results file: an item, the reply to it, and its score."""
  number: int
  id: str
  group: str
  counts: dict[str, float]
  line: dict[str, Any]


def ratio(sums: np.ndarray) -> np.ndarray:
  """float [..., 2] -> [...]: the first sum divided by the second; nan where that is 0."""
  value, weight = sums[..., 0], sums[..., 1]
  return np.divide(value, weight, out=np.full(np.shape(value), np.nan), where=weight != 0)


@dataclasses.dataclass(frozen=True)
class Metric:
  """A number of a benchmark.

  Attributes:
    name: its key in the summary, such as 'wer'.
    label: of the table's row, at most 28 characters.
    counts: names of counts; ``value`` gets their sums in this order.
    value: float [..., K] -> [...]; the default divides the first sum by the second.
    scale: that the value is multiplied with to be shown: 100 for percent.
    unit: '%' or ''.
    digits: after the decimal point.
    lower: whether a lower value is better; None: neither.
    note: what it compares, a few words.
  """
  name: str
  label: str
  counts: tuple[str, ...]
  value: Callable[[np.ndarray], np.ndarray] = ratio
  scale: float = 100.0
  unit: str = '%'
  digits: int = 1
  lower: bool | None = False
  note: str = ''


class Suite(abc.ABC):
  """A benchmark.

  Attributes:
    name: as in --suite.
    about: one line for the list of suites.
    task: whose system prompt requests have, one of data/records/tasks.py; an item's record may
      name another one.
    tasks: that --task chooses from; () if the suite has one task.
    has_subsets: whether --subset names parts of the benchmark.
    subset: the parts that are read, separated by commas; '' = the test parts, or all.
    notes: sentences about the items that ``items`` has read, for the end of the table.
    hears: whether scores use ``Reply.heard``; a judge is needed then.
  """
  name: ClassVar[str]
  about: ClassVar[str]
  task: str
  tasks: ClassVar[tuple[str, ...]] = ()
  has_subsets: ClassVar[bool] = False
  subset: str = ''
  hears: bool = False

  def __init__(self, config: Config, task: str = ''):
    """Checks what scoring needs, before any model is loaded.

    Args:
      config: section evaluate has the judges and their models.
      task: one of ``tasks``; '' = the default one.

    Raises:
      UserError: something that the scores need is not installed or not configured, or the suite
        has no such task.
    """
    self.config = config
    self.notes: list[str] = []
    if task and task not in self.tasks:
      raise UserError(f'--task is {task!r}; ' + (
          f'suite {self.name} has {" and ".join(self.tasks)}.' if self.tasks else
          f'suite {self.name} has one task, {self.task}; remove --task.'))
    self.task = task or self.task
    if self.hears and config.evaluate.judge == 'none':
      raise UserError(f"suite {self.name} transcribes spoken answers, but config key "
                      "evaluate.judge is 'none'; choose a speech recogniser.")

  @property
  def settings(self) -> dict[str, Any]:
    """What the scores depend on besides the answers; a change of it starts an evaluation again."""
    settings = self.config.evaluate
    return {'judge': settings.judge, 'judge_model': settings.judge_model,
            'judge_language': settings.judge_language} if self.hears else {}

  def judges(self, judge: Recogniser | None) -> dict[str, Any]:
    """Which judges give the scores: role -> name, model, and its files with their hashes; a change
    of one starts an evaluation again. ``judge``: the speech recogniser, if the suite hears."""
    return {'asr': judge.describe()} if judge is not None else {}

  @abc.abstractmethod
  def items(self, data: pathlib.Path) -> list[Item]:
    """The items of a benchmark's files, in order.

    Args:
      data: --data: a folder or a file.

    Raises:
      UserError: files of another layout, or items without what the scores need.
    """

  @abc.abstractmethod
  def score(self, item: Item, reply: Reply) -> Score:
    """The counts of one reply; called in one thread, in the order in which answers end."""

  @abc.abstractmethod
  def metrics(self, results: Sequence[Result]) -> list[Metric]:
    """The numbers of the benchmark, the most important first; ``results``: of one checkpoint."""

  def more(self, results: Sequence[Result]) -> dict[str, Any]:
    """Further parts of the summary of one checkpoint, such as a confusion matrix; JSON-ready."""
    return {}
