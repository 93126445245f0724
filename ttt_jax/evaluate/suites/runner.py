"""`ttt-jax evaluate --suite NAME --data DIR`: a benchmark on one or more checkpoints.

Writes OUT/LABEL.jsonl per checkpoint (results.py), OUT/summary.json and the speech of some items in
OUT/sounds/. What is written stays valid when the process is killed: run the same command again and
only the missing items are answered.
"""

from collections.abc import Mapping, Sequence
from concurrent import futures
import dataclasses
import hashlib
import json
import os
import pathlib
import textwrap
from typing import Any

from ttt_jax.audio import asr_judges, io
from ttt_jax.config import Config
from ttt_jax.errors import UserError
from ttt_jax.evaluate.suites import answering, reading, registry, results, table
from ttt_jax.evaluate.suites.results import ResultsFile
from ttt_jax.evaluate.suites.suite import Item, Result, Suite
from ttt_jax.storage import files, names, owned, schema
from ttt_jax.system.progress import Progress
from ttt_jax.train import checkpoint as checkpoints, trained_model

KIND = 'results of a benchmark'


@dataclasses.dataclass(frozen=True)
class Model:
  """A checkpoint to evaluate.

  Attributes:
    config: of its workdir; section generate has the sampling parameters.
    workdir: of its run.
    step: of the checkpoint; None = the newest.
  """
  config: Config
  workdir: pathlib.Path
  step: int | None = None


class SummaryFile(schema.Kind, total=False):
  """summary.json of a benchmark."""
  suite: str
  data: str
  task: str
  subset: str


def evaluate(name: str, data: str | os.PathLike, models: Sequence[Model],
             out: str | os.PathLike | None = None, items: int = 0, sounds: int = 20,
             task: str = '', subset: str = '') -> dict[str, Any]:
  """Evaluate checkpoints on a benchmark.

  Args:
    name: of the suite.
    data: folder or file of the benchmark.
    models: at least one. The judges are those of the first one's config.
    out: folder of the results; None = WORKDIR/suites/NAME-DATA of the first model.
    items: evaluate only so many items, evenly spaced; 0 = all.
    sounds: speech is kept of so many items, evenly spaced; -1 = all.
    task: of a suite that has several; '' = its default.
    subset: parts of the benchmark, separated by commas; '' = its test parts, or all.

  Returns:
    What summary.json holds: {'suite', 'data', 'items', 'settings', 'checkpoints': [{'label',
    'workdir', 'step', 'metrics', 'groups', ...}], 'table': lines}; and 'folder', where it is.

  Raises:
    UserError: an unknown suite, files of another layout, a missing judge, no checkpoint, or a
      folder that cannot be written.
  """
  data = pathlib.Path(data)
  suite = registry.create(name, models[0].config, task, subset)
  every = suite.items(data)
  if not every:
    raise UserError(f'--data {data} holds no items of suite {name}.')
  picked = [(number, every[number]) for number in spaced(len(every), items)]
  reading.check_sounds(item.record for _, item in picked)
  models = [dataclasses.replace(model, step=_step(model)) for model in models]
  folder = pathlib.Path(out) if out is not None else (
      models[0].workdir / 'suites' / '-'.join((name, names.slug(data.resolve().name), *(
          names.slug(chosen) for chosen in (task, subset) if chosen))))
  _same_benchmark(folder, suite, data)
  place = owned.Output(folder, KIND, '--out')
  labels = _labels(models)
  place.claim(results.SUMMARY, *(f'{label}.jsonl' for label in labels))
  kept = {picked[at][0] for at in spaced(len(picked), sounds)} if sounds else set()
  settings = models[0].config.evaluate
  judge = asr_judges.create(settings.judge, settings.judge_model, settings.judge_language,
                            settings.judge_device, settings.transcripts) if suite.hears else None
  if judge is not None:
    for language in {item.language for _, item in picked}:
      judge.check_language(settings.judge_language or language)
  judges = suite.judges(judge)
  found = [_one(suite, every, picked, model, label, place, kept, judge, data, judges)
           for model, label in zip(models, labels)]
  summary = summarise(suite, data, found, len(every)) | {'judges': judges}
  files.write_text(folder / results.SUMMARY,
                   json.dumps(summary, indent=1, ensure_ascii=False) + '\n')
  place.finish()
  return summary | {'folder': str(folder)}


def spaced(count: int, wanted: int) -> list[int]:
  """``wanted`` numbers below ``count``, evenly spaced; all of them for 0 or less, or too many."""
  some = wanted if 0 < wanted < count else count
  return [i * count // some for i in range(some)]


def _same_benchmark(folder: pathlib.Path, suite: Suite, data: pathlib.Path) -> None:
  """Raises a UserError if the folder has results of other items: they are not replaced."""
  if not (folder / results.SUMMARY).is_file():
    return
  owned.check_json(folder / results.SUMMARY, 'suite', 'data', where='--out')
  before = schema.read(folder / results.SUMMARY, SummaryFile, 'remove it')
  now = _benchmark(suite, data)
  if any(before.get(key, value) != value for key, value in now.items()):
    chosen = ''.join(f', --{key} {before.get(key)}' for key in ('task', 'subset')
                     if before.get(key) and before.get(key) != now.get(key))
    raise UserError(f'{folder} has the results of suite {before.get("suite")} on '
                    f'{before.get("data")}{chosen}; choose another folder with --out.')


def _benchmark(suite: Suite, data: pathlib.Path) -> SummaryFile:
  """What a folder of results holds: it is of one benchmark."""
  return {'suite': suite.name, 'data': str(data.resolve()), 'task': suite.task,
          'subset': suite.subset}


def _labels(models: Sequence[Model]) -> list[str]:
  """A name for each checkpoint that is also a file name: 'demo-3400'."""
  new = names.FileNames()
  return [new.new(f'{model.workdir.resolve().name}-{model.step}') for model in models]


def _step(model: Model) -> int:
  """The step of a model's checkpoint.

  Raises:
    UserError: there is none.
  """
  if model.step is not None:
    return model.step
  with checkpoints.open_existing(model.workdir / 'checkpoints') as found:
    return found.newest_good()


def _one(suite: Suite, every: Sequence[Item], picked: Sequence[tuple[int, Item]], model: Model,
         label: str, place: owned.Output, kept: set[int], judge: asr_judges.Recogniser | None,
         data: pathlib.Path, judges: dict[str, Any]) -> dict[str, Any]:
  """Evaluate one checkpoint; returns its label, step and results."""
  step = model.step
  assert step is not None, 'resolved by `evaluate`'
  file = ResultsFile(place.folder / f'{label}.jsonl',
                     _evaluation(suite, every, model, step, data) | {'judges': judges})
  left = [(number, item) for number, item in picked if number not in file.done]
  wanted = {number for number, _ in picked}
  if left:
    run = trained_model.load(model.config, model.workdir, step=step)
    sounds = _Sounds(place, label, kept)
    with futures.ThreadPoolExecutor(1) as background, Progress(
        len(picked), label, done=len(picked) - len(left), unit='items') as progress:
      scored = []
      for number, item, reply in answering.replies(run, left, judge):
        def finish(number=number, item=item, reply=reply):
          score = suite.score(item, reply)
          file.add(number, item, reply, score, sounds.write(number, item, reply))
          progress.update(1)
        scored.append(background.submit(finish))
        while scored and scored[0].done():
          scored.pop(0).result()  # an error ends the evaluation
      for one in scored:
        one.result()
  file.close()
  return {'label': label, 'workdir': str(model.workdir), 'step': step,
          'results': [one for one in file.results() if one.number in wanted]}


class _Sounds:
  """Writes the speech of some items to OUT/sounds."""

  def __init__(self, place: owned.Output, label: str, kept: set[int]):
    self._place, self._label, self._kept = place, label, kept

  def write(self, number: int, item: Item, reply) -> str | None:
    """The file of an item's speech, relative to the folder; None if it is not kept."""
    if number not in self._kept or not len(reply.codes):
      return None
    name = f'sounds/{self._label}/{number:05d}.wav'
    self._place.claim(name)
    with files.writing(self._place.folder):
      (self._place.folder / name).parent.mkdir(parents=True, exist_ok=True)
    io.write_wav(self._place.folder / name, reply.waveform, reply.rate)
    return name


def _evaluation(suite: Suite, every: Sequence[Item], model: Model, step: int,
                data: pathlib.Path) -> dict[str, Any]:
  """What results depend on: an evaluation goes on only if all of it is the same. ``every``: all
  items, so that a part of them (--items) and all of them share their results."""
  digest = hashlib.sha256()
  for number, item in enumerate(every):
    digest.update(json.dumps([number, item.id, item.references], ensure_ascii=True).encode())
  config = model.config
  generate = {key: value for key, value in dataclasses.asdict(config.generate).items()
              if key not in ('slots', 'memory')}
  return {'suite': suite.name, 'data': str(data.resolve()), 'items': digest.hexdigest()[:16],
          'checkpoint': checkpoints.digest(model.workdir, step),
          'step': step, 'mode': config.objective.mode, 'generate': generate,
          'settings': suite.settings}


def summarise(suite: Suite, data: pathlib.Path, found: Sequence[Mapping[str, Any]],
              total: int) -> dict[str, Any]:
  """The summary of a benchmark; ``found``: label, workdir, step and results per checkpoint."""
  every: list[list[Result]] = [one['results'] for one in found]
  metrics = [suite.metrics(some) for some in every]
  all_items = results.numbers(metrics, every)
  groups = list(dict.fromkeys(one.group for one in every[0]))
  by_group = {}
  for group in groups if len(groups) > 1 else ():
    mine = [[one for one in some if one.group == group] for some in every]
    by_group[group or 'other'] = results.numbers([suite.metrics(some) for some in mine], mine)
  out = []
  for i, one in enumerate(found):
    problems = [result.line['problem'] for result in every[i] if 'problem' in result.line]
    out.append({
        'label': one['label'], 'workdir': one['workdir'], 'step': one['step'],
        'metrics': results.as_json(all_items, i),
        'groups': {group: {'items': numbers.items} | results.as_json(numbers, i)
                   for group, numbers in by_group.items()},
        'not_asked': len(problems), 'not_asked_why': problems[:3],
        'unfinished': sum(not result.line['finished'] for result in every[i]),
        **suite.more(every[i])})
  summary = {**_benchmark(suite, data), 'items': len(every[0]), 'of': total,
             'settings': suite.settings, 'notes': suite.notes, 'checkpoints': out}
  summary['table'] = _table(summary, all_items, by_group)
  return summary


def _table(summary: dict[str, Any], all_items: results.Numbers,
           groups: Mapping[str, results.Numbers]) -> list[str]:
  """The lines that are printed."""
  labels = [one['label'] for one in summary['checkpoints']]
  some = '' if summary['items'] == summary['of'] else f' of {summary["of"]:,}'
  settings = ', '.join(f'{key} {value}' for key, value in summary['settings'].items() if value)
  out = [f'{summary["suite"]} on {pathlib.Path(summary["data"]).name}: {summary["items"]:,}{some} '
         'items' + (f'; {settings}' if settings else ''), *table.table(all_items, labels)]
  for group, found in groups.items():
    out += ['', f'{group}: {found.items:,} items', *table.table(
        dataclasses.replace(found, metrics=found.metrics[:1]), labels)[1:]]
  for one in summary['checkpoints']:
    if one['not_asked']:
      out += ['', f'{one["label"]}: {one["not_asked"]:,} items could not be asked and count as '
              f'empty answers; the first: {one["not_asked_why"][0]}']
    if one['unfinished']:
      out += ['', f'{one["label"]}: {one["unfinished"]:,} answers were cut at generate.max_tokens.']
  out += [*summary['notes'], 'In brackets: 95 % intervals, bootstrap over the items.']
  return [line for long in out for line in textwrap.wrap(long, table.WIDTH) or ['']]


def text(summary: Mapping[str, Any]) -> str:
  """The table of a summary for a terminal."""
  return '\n'.join(summary['table'])
