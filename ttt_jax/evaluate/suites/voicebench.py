"""Suite 'voicebench': VoiceBench (arXiv 2410.17196), spoken requests to a voice assistant.

DIR is the data set as Hugging Face has it, a folder per subset with Parquet files of splits, or one
of these folders or files:

  subset                                       evaluator   score
  alpacaeval, alpacaeval_full, commoneval,     open        rating of an LLM judge, 1 to 5
  wildvoice
  sd-qa (a split per region)                   qa          the LLM judge agrees; contains the
                                                           reference
  mmsu, openbookqa                             mcq         the letter that the answer chooses
  bbh                                          bbh         yes or no, or the letter
  ifeval                                       ifeval      instructions that are followed
  advbench                                     refusal     refuses, or says nothing

What is scored is the text of the answer, as VoiceBench does, and beside it what the recogniser of
evaluate.judge hears of its speech. An answer that names no choice counts as a guess: VoiceBench
draws one at random, and here it counts its probability of being right.
"""

from collections.abc import Callable, Mapping, Sequence
import logging
import pathlib
from typing import Any

import numpy as np

from ttt_jax.audio.recogniser import Recogniser
from ttt_jax.config import Config
from ttt_jax.data.records import sounds
from ttt_jax.data.records.records import Part
from ttt_jax.errors import UserError
from ttt_jax.evaluate import answers, containment, ifeval
from ttt_jax.evaluate.llm_judge import LlmJudge, Verdict
from ttt_jax.evaluate.suites import reading
from ttt_jax.evaluate.suites.suite import Item, Metric, Reply, Result, Score, Suite, ratio

_LOG = logging.getLogger(__name__)
EVALUATORS = {
    'alpacaeval': 'open', 'alpacaeval_full': 'open', 'commoneval': 'open', 'wildvoice': 'open',
    'sd-qa': 'qa', 'mmsu': 'mcq', 'openbookqa': 'mcq', 'bbh': 'bbh', 'ifeval': 'ifeval',
    'advbench': 'refusal'}
_WITHOUT = {'mtbench': 'its requests have several turns, and VoiceBench publishes no evaluator'}
_YES = {'yes': True, 'no': False}
# The texts that are scored: prefix of counts -> end of the metrics' labels.
ROWS = {'': '', 'heard_': ', as heard'}
Counts = dict[str, float]


class VoiceBench(Suite):
  """VoiceBench."""
  name = 'voicebench'
  about = 'VoiceBench: open, qa, mcq, bbh, ifeval and refusal'
  task = 'audio_chat'
  tasks = ('audio_chat', 'audio_qa')

  def __init__(self, config: Config, task: str = ''):
    self.hears = config.evaluate.judge != 'none'
    super().__init__(config, task)
    settings = config.evaluate
    self._llm = (LlmJudge(settings.llm_judge_url, settings.llm_judge_model)
                 if settings.llm_judge_url else None)
    self._score: dict[str, Callable[[Item, str], tuple[Counts, dict[str, Any]]]] = {
        'open': self._open, 'qa': self._qa, 'mcq': _mcq, 'bbh': _bbh, 'ifeval': _ifeval,
        'refusal': _refusal}

  @property
  def settings(self) -> dict[str, Any]:
    found = self.config.evaluate
    return {**super().settings, 'llm_judge_model': found.llm_judge_model if self._llm else ''}

  def judges(self, judge: Recogniser | None) -> dict[str, Any]:
    return super().judges(judge) | ({'llm': self._llm.describe()} if self._llm else {})

  def items(self, data: pathlib.Path) -> list[Item]:
    out = [item for subset, path in _subsets(data) for item in _read(subset, path, self.task)]
    rated = sum(item.details['evaluator'] == 'open' for item in out)
    if rated and self._llm is None:
      self.notes.append(f'{rated:,} of {len(out):,} items are rated by an LLM judge alone, and '
                        'none is configured (evaluate.llm_judge_url): they are not scored.')
    return out

  def score(self, item: Item, reply: Reply) -> Score:
    counts: Counts = {}
    shown: dict[str, Any] = {'prompt': item.details['request']}
    texts = {'': reply.text} | ({'heard_': reply.heard} if self.hears else {})
    for row, text in texts.items():
      if row and text == reply.text:  # no need to ask the LLM judge again
        found, said = {name: value for name, value in counts.items()}, {}
      else:
        found, said = self._score[item.details['evaluator']](item, text)
      counts |= {f'{row}{name}': value for name, value in found.items()}
      shown |= {f'{row}{name}': value for name, value in said.items()}
    return Score(counts, shown)

  def _open(self, item: Item, text: str) -> tuple[Counts, dict[str, Any]]:
    if self._llm is None:
      return {}, {}
    verdict = self._llm.rate(item.details['request'], text)
    mean = sum(verdict.values) / len(verdict.values) if verdict.values else 0.0
    return ({'open_sum': mean, 'open_n': float(bool(verdict.values)), **_malformed(verdict)},
            {'judge_said': verdict.said})

  def _qa(self, item: Item, text: str) -> tuple[Counts, dict[str, Any]]:
    counts: Counts = {'qa_contains': containment.contains_any(text, item.references), 'qa_n': 1}
    if self._llm is None:
      return counts, {}
    verdict = self._llm.compare(item.details['request'], item.references[0], text)
    right = verdict.majority
    return (counts | {'qa_right': right or 0.0, 'qa_judged': float(right is not None),
                      **_malformed(verdict)}, {'judge_said': verdict.said})

  def metrics(self, results: Sequence[Result]) -> list[Metric]:
    has = lambda name: any(name in one.counts for one in results)
    out: list[Metric] = []
    def add(row: str, name: str, label: str, value: str, weight: str, **more: Any) -> None:
      if has(f'{row}{weight}'):
        out.append(Metric(f'{row}{name}', label, (f'{row}{value}', f'{row}{weight}'), **more))
    for row, what in ROWS.items():
      add(row, 'open', 'rating (1-5)' + what, 'open_sum', 'open_n', scale=1, unit='', digits=2)
      add(row, 'qa_judge', 'qa: LLM agrees' + what, 'qa_right', 'qa_judged')
      add(row, 'qa_contains', 'qa: has reference' + what, 'qa_contains', 'qa_n')
      add(row, 'mcq', 'mcq accuracy' + what, 'mcq_right', 'mcq_n')
      add(row, 'mcq_none', '  no choice' + what, 'mcq_none', 'mcq_n', lower=True)
      add(row, 'bbh', 'bbh accuracy' + what, 'bbh_right', 'bbh_n')
      add(row, 'bbh_none', '  no yes or no' + what, 'bbh_none', 'bbh_n', lower=True)
      if has(f'{row}ifeval_n'):
        names = tuple(f'{row}ifeval_{name}' for name in (
            'strict', 'loose', 'n', 'strict_instructions', 'loose_instructions', 'instructions'))
        out.append(Metric(f'{row}ifeval', 'ifeval, mean of 4' + what, names,
                          value=_mean_of_four))
      add(row, 'refusal', 'refusals' + what, 'refused', 'refusal_n')
      add(row, 'refusal_empty', '  empty answers' + what, 'refusal_empty', 'refusal_n', lower=None)
      add(row, 'judge_malformed', '  LLM unreadable' + what, 'malformed', 'asked', lower=True)
    return out


def _mean_of_four(sums: np.ndarray) -> np.ndarray:
  """float [..., 6] -> [...]: IFEval's mean of strict and loose, per request and per instruction."""
  return np.mean([ratio(sums[..., [value, weight]]) for value, weight in (
      (0, 2), (1, 2), (3, 5), (4, 5))], axis=0)


def _malformed(verdict: Verdict) -> Counts:
  return {'malformed': float(verdict.malformed), 'asked': float(len(verdict.said))}


def _guess(row: str, found: Any, wanted: Any, choices: int) -> Counts:
  """The counts of an answer that is ``found``, None if it says nothing."""
  right = 1 / choices if found is None else float(found == wanted)
  return {f'{row}_right': right, f'{row}_none': float(found is None), f'{row}_n': 1.0}


def _mcq(item: Item, text: str) -> tuple[Counts, dict[str, Any]]:
  found = answers.choice(text)
  return _guess('mcq', found, item.references[0], 4), {'chosen': found}


def _bbh(item: Item, text: str) -> tuple[Counts, dict[str, Any]]:
  wanted = item.references[0].lower()
  if wanted in _YES:
    said = answers.yes_no(text)
    found = None if said is None else 'yes' if said else 'no'
  else:
    letter = answers.choice(text, 'AB')
    found = None if letter is None else f'({letter.lower()})'
  return _guess('bbh', found, wanted, 2), {'chosen': found}


def _ifeval(item: Item, text: str) -> tuple[Counts, dict[str, Any]]:
  strict, loose = ifeval.followed(item.details['instructions'], text)
  return ({'ifeval_strict': float(all(strict)), 'ifeval_loose': float(all(loose)), 'ifeval_n': 1.0,
           'ifeval_strict_instructions': float(sum(strict)),
           'ifeval_loose_instructions': float(sum(loose)),
           'ifeval_instructions': float(len(strict))}, {'followed': strict})


def _refusal(item: Item, text: str) -> tuple[Counts, dict[str, Any]]:
  refused = answers.refuses(text)
  return {'refused': float(refused), 'refusal_empty': float(not text.strip()),
          'refusal_n': 1.0}, {'refused': refused}


# -- files ----------------------------------------------------------------------------------


def _subsets(data: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
  """(subset, file or folder) of what ``data`` names.

  Raises:
    UserError: none of VoiceBench's subsets.
  """
  reading.require(data)
  for place in (data, *data.resolve().parents[:2]):  # a subset's folder, or a file in it
    if place.name.lower() in EVALUATORS:
      return [(place.name.lower(), data)]
  for name, why in _WITHOUT.items():
    if name in (data.name.lower(), data.resolve().parent.name.lower()):
      raise UserError(f'--data {data} is the subset {name} of VoiceBench, which is not scored: '
                      f'{why}.')
  folders = sorted(path for path in data.iterdir() if path.is_dir()) if data.is_dir() else []
  if not any(path.name.lower() in EVALUATORS for path in folders) and (data / 'data').is_dir():
    folders = sorted(path for path in (data / 'data').iterdir() if path.is_dir())
  found = [(path.name.lower(), path) for path in folders if path.name.lower() in EVALUATORS]
  if not found:
    raise UserError(f'--data {data} has no subset of VoiceBench; expected folders such as '
                    f'{", ".join(EVALUATORS)} with Parquet files, or one of them.')
  for path in folders:
    if path.name.lower() in _WITHOUT:
      _LOG.warning('%s is left out: %s.', path, _WITHOUT[path.name.lower()])
  return found


def _read(subset: str, path: pathlib.Path, task: str) -> list[Item]:
  """The items of a subset."""
  evaluator = EVALUATORS[subset]
  out = []
  for number, (where, row, folder) in enumerate(reading.rows(path)):
    file = pathlib.Path(where.rpartition(':')[0] or where)
    split = file.name.partition('-0')[0].partition('.')[0]
    prompt = _text(row, 'prompt', where)
    group = f'{subset} {split}' if subset == 'sd-qa' and split != 'test' else subset
    details: dict[str, Any] = {'evaluator': evaluator, 'request': prompt, 'split': split}
    references: tuple[str, ...] = ()
    if evaluator in ('qa', 'mcq', 'bbh'):
      references = (_reference(row, evaluator, where),)
    if evaluator == 'ifeval':
      details['instructions'] = ifeval.instructions(row, where)
    name = next((str(row[key]) for key in ('id', 'question_id', 'key') if row.get(key) is not None),
                str(number))
    record = reading.question(name, task, (_audio(row, where, folder),), where)
    out.append(Item(name, record, references, group, details, 'en'))
  if not out:
    raise UserError(f'{path} holds no rows of VoiceBench.')
  return out


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
  value = row.get(key)
  if not isinstance(value, str) or not value.strip():
    raise UserError(f'{where}: a row of VoiceBench needs the text {key!r}; it has '
                    f'{", ".join(map(repr, row)) or "no columns"}.')
  return value.strip()


def _reference(row: Mapping[str, Any], evaluator: str, where: str) -> str:
  """The reference answer, in the form that the evaluator compares."""
  found = _text(row, 'reference', where)
  if evaluator == 'mcq':
    found = found.strip('().').upper()
    allowed: tuple[str, ...] = ('A', 'B', 'C', 'D')
  elif evaluator == 'bbh':
    found = found.lower()
    allowed = (*_YES, '(a)', '(b)')
  else:
    return found
  if found not in allowed:
    raise UserError(f'{where}: the reference {row["reference"]!r} is not one of '
                    f'{", ".join(map(repr, allowed))}.')
  return found


def _audio(row: Mapping[str, Any], where: str, folder: pathlib.Path) -> Part:
  """The spoken request."""
  if row.get('audio') is None:
    raise UserError(f'{where}: a row of VoiceBench needs its recording, "audio"; it has '
                    f'{", ".join(map(repr, row))}.')
  part, _ = sounds.part_of({'audio': row['audio']}, f'{where}: the row', '')
  if part is None:
    raise UserError(f'{where}: "audio" is empty; expected the recording of the request.')
  return reading.absolute(part, folder)
