"""`ttt-jax evaluate --speed N`: the real-time factor of a model's decoding, one request at a time.

Writes WORKDIR/speed.json. Run it on a machine that does nothing else.
"""

import dataclasses
import json
import os
import pathlib
import time
from typing import Any

import numpy as np

from ttt_jax.config import Config
from ttt_jax.data import heldout
from ttt_jax.data.records import records as record_files
from ttt_jax.data.records.records import Record
from ttt_jax.evaluate import items as items_file, metrics, summary
from ttt_jax.generate.engine import Engine
from ttt_jax.storage import files, owned
from ttt_jax.system import machine
from ttt_jax.train import trained_model
from ttt_jax.train.trained_model import TrainedModel


def measure(config: Config, workdir: str | os.PathLike, records: int,
            step: int | None = None) -> dict[str, Any]:
  """Time the answers to some held-out records of each task.

  Every record is answered twice, and the second time counts: the first one compiles.

  Args:
    config: evaluate.split and the generate section; the rest as trained.
    workdir: of the run.
    records: per task.
    step: of the checkpoint; None = the newest.

  Returns:
    What speed.json holds: {'step', 'machine', 'records', 'summary': {'rtf_text': seconds until
    the last word of a transcript over seconds of speech heard, 'rtf_audio': seconds of answers
    that read text aloud over seconds of their speech}}.

  Raises:
    UserError: no trained model, or speed.json is another program's.
  """
  workdir = pathlib.Path(workdir)
  owned.check_json(workdir / summary.SPEED, 'summary', 'records')
  run = trained_model.load(config, workdir, step=step)
  held = [record for record in heldout.load_records(run.data_dir, config.evaluate.split)
          if record.task in ('asr', 'tts') and metrics.is_question(record)]
  picked = record_files.pick(held, records)
  engine = Engine(run.model, run.params, run.vocab, dataclasses.replace(config.generate, slots=1),
                  mode=config.objective.mode, prompt_audio=config.objective.prompt_audio)
  scores = [_time(run, engine, record) for again in range(2) for record in picked][len(picked):]
  result = {'step': run.step, 'machine': machine.describe(), 'records': len(picked),
            'summary': items_file.pooled(scores)}
  files.write_text(workdir / summary.SPEED, json.dumps(result, indent=1) + '\n')
  return result


def _time(run: TrainedModel, engine: Engine, record: Record) -> items_file.Pairs:
  """(seconds of computation, seconds of speech) of one answer."""
  prompt = run.renderer.render_prompt(record)
  if len(prompt) >= engine.config.max_tokens:
    return {}
  markers = np.array([run.vocab.im_end, run.vocab.begin_of_audio, run.vocab.begin_of_quad])
  began = last_word = time.monotonic()
  engine.submit(prompt)
  per_second, answer = run.codec.tokens_per_second, None
  for event in engine.events(eager=True):
    if event.kind == 'text' and event.ids is not None and not np.isin(event.ids, markers).all():
      last_word = time.monotonic()
    answer = event.answer or answer
  if record.task == 'asr':
    heard = sum(len(part.known_codes) for turn in record.turns if turn.role == 'user'
                for part in turn.parts if part.kind == 'audio')
    return {'rtf_text': (last_word - began, heard / per_second)}
  assert answer is not None
  codes = run.vocab.is_code(answer.ids).sum()
  return {'rtf_audio': (time.monotonic() - began, float(codes) / per_second)} if codes else {}
