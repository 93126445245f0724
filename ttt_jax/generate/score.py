"""`ttt-jax score`: the likelihood of recorded answers, record by record."""

import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from ttt_jax.config import Config
from ttt_jax.data import heldout
from ttt_jax.data.records import readers, records
from ttt_jax.data.records.records import Record
from ttt_jax.errors import UserError
from ttt_jax.generate import likelihood
from ttt_jax.storage import files as atomic, owned
from ttt_jax.system.progress import Progress
from ttt_jax.train import trained_model
from ttt_jax.train.trained_model import TrainedModel

FILE = 'scores.json'


def score_files(config: Config, workdir: str | os.PathLike, files: list[str],
                out: str | os.PathLike | None = None, step: int | None = None) -> dict[str, Any]:
  """Score the answers of records and write OUT (default: WORKDIR/scores.json).

  Args:
    config: its score section is used; the rest as trained.
    workdir: of a trained model.
    files: .jsonl files of records; empty: the held-out records of split ``score.split``.
    out: file to write.
    step: of the checkpoint; None = the newest.

  Returns:
    The contents of the file: {'step', 'text_nll' and 'audio_bound' (nats per token over all
    records), 'audio_error', 'text_tokens', 'audio_tokens', 'profile': [[masked up to,
    nats per masked token or None], ...], 'records': [{'name', 'task', 'text_nll' and
    'audio_bound' (nats of the complete record), 'text_tokens', 'audio_tokens',
    'audio_error'}, ...]}.

  Raises:
    UserError: no trained model, unreadable records, records without an answer.
  """
  target = pathlib.Path(out) if out else pathlib.Path(workdir) / FILE
  owned.check_json(target, 'records', 'profile', where='--out' if out else '--workdir')
  if out or pathlib.Path(workdir).is_dir():
    atomic.require_writable_file(target)
  run = trained_model.load(config, workdir, step=step)
  found = _records(run, files)
  settings = config.score
  examples = [run.renderer.render(record) for record in found]
  scorer = likelihood.Scorer(
      run.model, run.params, run.vocab, mode=config.objective.mode,
      prompt_audio=config.objective.prompt_audio,
      longest=max(len(example.token) for example in examples), repeats=settings.repeats,
      levels=settings.levels, tokens=settings.tokens, seed=config.seed)
  scores = []
  with Progress(len(found), 'score', unit='records') as progress:
    for number, example in enumerate(examples):
      scores.append(scorer.score(example.token, example.supervised > 0, number))
      progress.update(1)
  result = {'step': run.step, **summary(scores), 'records': [
      {'name': record.id, 'task': record.task, 'text_nll': score.text_nll,
       'text_tokens': score.text_tokens, 'audio_bound': score.audio_bound,
       'audio_tokens': score.audio_tokens, 'audio_error': _finite(score.audio_error)}
      for record, score in zip(found, scores)]}
  atomic.write_text(
      target, json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + '\n')
  return result


def summary(scores: list[likelihood.Score]) -> dict[str, Any]:
  """Means per token over all records, in nats; None without such tokens."""
  total = lambda name: sum(getattr(score, name) for score in scores)
  share = lambda value, count: value / count if count else None
  error = math.sqrt(sum(score.audio_error ** 2 for score in scores))
  profile = np.sum([score.profile for score in scores], axis=0)
  texts, audios = total('text_tokens'), total('audio_tokens')
  return {'text_nll': share(total('text_nll'), texts), 'text_tokens': texts,
          'audio_bound': share(total('audio_bound'), audios), 'audio_tokens': audios,
          'audio_error': _finite(error / audios) if audios else None,
          'profile': [[(i + 1) / likelihood.BINS, share(nats, count)]
                      for i, (nats, count) in enumerate(profile.T.tolist())]}


def table(result: dict[str, Any]) -> str:
  """The contents of scores.json for a terminal, 80 columns."""
  number = lambda value: '     -' if value is None else f'{value:6.3f}'
  error = '' if result['audio_error'] is None else f' +- {result["audio_error"]:.3f}'
  lines = [f'step {result["step"]}, {len(result["records"])} records', '',
           f'text    {number(result["text_nll"])} nats per token, exact, '
           f'{result["text_tokens"]:,} tokens',
           f'audio   {number(result["audio_bound"])}{error} nats per token, upper bound, '
           f'{result["audio_tokens"]:,} tokens']
  known = [(upto, nats) for upto, nats in result['profile'] if nats is not None]
  if known:
    largest = max(nats for _, nats in known) or 1.0
    lines += ['', 'masked     nats per masked token']
    lines += [f'{100 * (upto - 1 / likelihood.BINS):3.0f}-{100 * upto:3.0f} %  {nats:6.3f}  '
              f'{"#" * round(40 * nats / largest)}' for upto, nats in known]
  return '\n'.join(lines)


def _finite(value: float) -> float | None:
  return value if math.isfinite(value) else None


def _records(run: TrainedModel, files: list[str]) -> list[Record]:
  settings = run.config.score
  if not files:
    held = heldout.load_records(run.data_dir, settings.split, 'score.split')
    return records.pick(held, settings.items)
  out = []
  for path in files:
    for where, value in readers.read(path):
      out.append(run.encoded(records.parse(value, where, form=run.config.data.form), path))
  if not out:
    raise UserError(f'{", ".join(files)}: no records to score; name files with at least one '
                    'record.')
  return out
