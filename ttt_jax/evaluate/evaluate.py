"""`ttt-jax evaluate`: answers held-out records, scores them, and writes what the report shows.

Writes WORKDIR/evaluation.json (summary, table, samples), WORKDIR/items.jsonl (the scores of every
record, see items.py) and WORKDIR/samples/*.wav. Losses are those of all held-out rows; documents,
and answers without a question before them, are not answered.
"""

from concurrent import futures
import dataclasses
import json
import logging
import os
import pathlib
import time
from typing import Any

import numpy as np

from ttt_jax.audio import asr_judges, io
from ttt_jax.config import Config
from ttt_jax.data import heldout
from ttt_jax.data.records import records as record_files
from ttt_jax.data.records.records import Record
from ttt_jax.errors import UserError
from ttt_jax.evaluate import items as items_file, metrics, summary
from ttt_jax.evaluate.losses import losses
from ttt_jax.evaluate.metrics import Item
from ttt_jax.generate.engine import Engine
from ttt_jax.storage import files, names, owned, url_path
from ttt_jax.system.progress import Progress
from ttt_jax.tokens import words
from ttt_jax.train import metrics as metrics_file, trained_model
from ttt_jax.train.trained_model import TrainedModel

_LOG = logging.getLogger(__name__)
FILE = 'evaluation.json'
_KINDS = ('generated', 'roundtrip')  # of the waveforms of a sample


def evaluate(config: Config, workdir: str | os.PathLike,
             out: str | os.PathLike | None = None, step: int | None = None) -> dict[str, Any]:
  """Measure a checkpoint of ``workdir``.

  Args:
    config: evaluate and generate sections; the rest as trained.
    workdir: of the run.
    out: folder of evaluation.json, items.jsonl and samples/. None: the workdir, where a line is
      added to metrics.jsonl as well; if that cannot be written, nothing is.
    step: of the checkpoint; None = the newest.

  Returns:
    What evaluation.json holds: {'step', 'summary': {metric: value}, 'table': [[label,
    value, note]], 'samples': [...], 'settings': of evaluate and generate, 'seconds'}.

  Raises:
    UserError: no trained model, or ``out`` cannot be written or holds such files of a user.
  """
  began = time.monotonic()
  workdir = pathlib.Path(workdir)
  folder = _place(workdir, out)
  samples_folder = None if folder is None else _samples_folder(folder)
  run = trained_model.load(config, workdir, step=step)
  records = heldout.load_records(run.data_dir, config.evaluate.split)
  asking = [record for record in records if metrics.is_question(record)]
  picked = record_files.pick(asking, config.evaluate.items)
  if samples_folder is not None:
    file_names = names.FileNames()
    samples_folder.claim(*(_sample_name(file_names.new(record.id), kind) for record in picked
                           for kind in _KINDS))
  judge = asr_judges.create(
      config.evaluate.judge, config.evaluate.judge_model, config.evaluate.judge_language,
      config.evaluate.judge_device, config.evaluate.transcripts) if picked else None
  transcripts = _Transcripts(run, judge) if judge else None
  with futures.ThreadPoolExecutor(1) as background:
    if transcripts:  # references do not depend on the model: transcribed while it is compiled
      background.submit(transcripts.add_references, picked)
    try:
      scores = losses(run)
      items = answer(run, picked)
    finally:
      if transcripts:
        transcripts.stopped = True  # `listen` asks for those that are missing
  listen(run, items, transcripts, samples_folder and samples_folder.folder)
  of_items = item_scores(run, items)
  scores |= items_file.pooled(of_items)
  if len(asking) < len(records):
    scores['records_without_question'] = len(records) - len(asking)
  if len(items) < len(picked):
    scores['prompts_too_long'] = len(picked) - len(items)
  samples = [_sample(run, item, _data_place(run, folder or workdir)) for item in items]
  result = {'step': run.step, 'summary': scores, 'table': summary.rows(scores, config),
            'samples': samples, 'settings': summary.settings(config),
            'seconds': round(time.monotonic() - began, 1)}
  if folder is not None and samples_folder is not None:
    samples_folder.finish()
    items_file.write(folder, [_line(item, found) for item, found in zip(items, of_items)])
    # Last: an evaluation.json means that the evaluation has ended.
    files.write_text(folder / FILE, json.dumps(result, indent=1, ensure_ascii=False) + '\n')
    if out is None:
      with metrics_file.Writer(workdir) as writer:
        writer.write(run.step, {f'eval/{name}': value for name, value in scores.items()})
  return result


def _place(workdir: pathlib.Path, out: str | os.PathLike | None) -> pathlib.Path | None:
  """Where the results go, before the work; None if the workdir cannot be written."""
  if out is None and not workdir.is_dir():
    return None  # loading the model says what is missing
  folder = workdir if out is None else pathlib.Path(out)
  where = '--workdir' if out is None else '--out'
  owned.check_json(folder / FILE, 'summary', 'samples', where=where)
  items_file.check_kind(folder, where)
  try:
    files.require_writable(folder)
  except UserError as error:
    if out is not None:
      raise
    _LOG.warning('%s The results are shown and not stored; --out DIR stores them.', error)
    return None
  return folder


def _samples_folder(folder: pathlib.Path) -> owned.Output:
  def earlier(samples: pathlib.Path) -> set[str]:
    """Before there were markers, evaluation.json named the files."""
    try:
      entries = summary.read(samples.parent).get('samples', [])
    except UserError:
      return set()  # a damaged one proves nothing
    named = [str(path) for entry in entries for path in (entry.get('audio') or {}).values()]
    return {path.removeprefix('samples/') for path in named if path.startswith('samples/')}
  return owned.Output(folder / 'samples', 'samples', '--out', earlier)


def _sample_name(name: str, kind: str) -> str:
  return f'{name}.{kind}.wav'


def _data_place(run: TrainedModel, folder: pathlib.Path) -> str:
  """The prepared set as evaluation.json names it, relative to ``folder`` if it can be."""
  if not url_path.is_url(run.data_dir) and (folder / run.config.data.path).is_dir():
    return run.config.data.path
  return str(run.data_dir.resolve())


def answer(run: TrainedModel, records: list[Record]) -> list[Item]:
  """Generate an answer to every record whose prompt leaves room for one."""
  config = run.config
  asked = [(record, prompt) for record in records
           if len(prompt := run.renderer.render_prompt(record)) < config.generate.max_tokens]
  if not asked:
    return []
  engine = Engine(run.model, run.params, run.vocab, dataclasses.replace(
      config.generate, slots=min(config.evaluate.batch, len(asked))),
                  mode=config.objective.mode, prompt_audio=config.objective.prompt_audio,
                  short_lived=True)
  for record, prompt in asked:
    engine.submit(prompt, where=f'the prompt of {record.id}')
  items = []
  with Progress(len(asked), 'generate', unit='answers') as progress:
    for event in engine.events():
      if event.answer is not None:
        text, codes = run.renderer.unrender(event.answer.ids)
        codes = np.concatenate(codes) if codes else np.zeros(0, np.int32)
        items.append((event.request,
                      Item(asked[event.request][0], event.answer, text.strip(), codes)))
        progress.update(1)
  return [item for _, item in sorted(items, key=lambda pair: pair[0])]


class _Transcripts:
  """The judge's transcripts. Equal sounds are transcribed once: many answers are the same."""

  def __init__(self, run: TrainedModel, judge: asr_judges.Recogniser):
    self._run, self._judge = run, judge
    self._known: dict[bytes | str, str] = {}
    self.stopped = False  # ends ``add_references``

  def of_codes(self, codes: np.ndarray) -> str:
    key = codes.tobytes()
    if key not in self._known:
      codec = self._run.codec
      self._known[key] = self._judge.transcribe(codec.sound(codes), codec.sample_rate)
    return self._known[key]

  def of_recording(self, source: str) -> str:
    """``source``: its path, relative to the prepared set."""
    if source not in self._known:
      self._known[source] = self._judge.transcribe(*io.read(self._run.data_dir / source))
    return self._known[source]

  def add_references(self, records: list[Record]) -> None:
    """Transcribe all that ``listen`` will ask for except the model's own speech."""
    for record in records:
      codes, source = metrics.reference_codes(record), metrics.reference_source(record)
      judged = metrics.judged(record.task)
      if self.stopped:
        return
      if 'roundtrip' in judged and len(codes):
        self.of_codes(codes)
      if 'reference' in judged and source:
        self.of_recording(source)


def listen(run: TrainedModel, items: list[Item], transcripts: _Transcripts | None,
           folder: pathlib.Path | None) -> None:
  """Name every item, write its waveforms and transcribe those of ``metrics.judged``.

  Three kinds: 'reference' (the original voice), 'roundtrip' (the reference's codes decoded:
  the codec's ceiling) and 'generated'. A ``folder`` of None writes nothing.
  """
  file_names = names.FileNames()  # of records, whose ids may be any text, and need not differ
  with Progress(len(items), 'listen', unit='answers') as progress:
    for item in items:
      item.name = file_names.new(item.record.id)
      judged, source = metrics.judged(item.record.task), metrics.reference_source(item.record)
      sounds = {'generated': item.codes, 'roundtrip': item.reference_codes}
      for kind, codes in sounds.items():
        if len(codes):
          waveform = run.codec.sound(codes)
          if folder is not None:
            io.write_wav(folder / _sample_name(item.name, kind), waveform, run.codec.sample_rate)
          if transcripts and kind in judged:
            item.heard[kind] = transcripts.of_codes(codes)
      if transcripts and 'reference' in judged and source:
        item.heard['reference'] = transcripts.of_recording(source)
      progress.update(1)


def item_scores(run: TrainedModel, items: list[Item]) -> list[items_file.Pairs]:
  """The scores of each item, which `evaluate` adds up."""
  hybrid, codec = run.config.objective.mode == 'hybrid', run.codec
  return [words_of | metrics.length_scores(item, codec.silence, hybrid)
          | metrics.pass_scores(item, codec.silence, codec.tokens_per_second)
          for item, words_of in zip(items, metrics.word_scores(items))]


def _line(item: Item, scores: items_file.Pairs) -> dict[str, Any]:
  """The line of one item in items.jsonl."""
  return {'task': item.record.task, 'id': item.record.id, 'name': item.name,
          'reference': item.reference_text, 'text': item.text, 'heard': item.heard,
          'codes': len(item.codes), 'tokens': len(item.answer.ids), 'calls': item.answer.calls,
          'scores': scores}


def _sample(run: TrainedModel, item: Item, place: str) -> dict[str, Any]:
  """The entry of one item in evaluation.json; paths are relative to its folder. ``place`` is the
  prepared set."""
  data = lambda source: f'{place}/{source}' if source else None
  made = lambda kind, count: f'samples/{_sample_name(item.name, kind)}' if count else None
  return {
      'task': item.record.task, 'id': item.record.id,
      'question_text': ' '.join(part.text for part in item.question if part.text),
      'reference_text': item.reference_text, 'generated_text': item.text,
      'heard_text': item.heard.get('generated'),
      'correct': words.same_words(item.text, item.reference_text),
      'calls': item.answer.calls,
      'audio': {'question': data(next((p.source for p in item.question if p.source), None)),
                'reference': data(metrics.reference_source(item.record)),
                'roundtrip': made('roundtrip', len(item.reference_codes)),
                'generated': made('generated', len(item.codes))}}
