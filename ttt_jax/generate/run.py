"""`ttt-jax generate`: texts, recordings or records in; text, WAV and JSON out."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np

from ttt_jax import trained
from ttt_jax.audio import io
from ttt_jax.config import Config
from ttt_jax.data import interleave, prepare, records, sources, store, tasks
from ttt_jax.data.records import Part, Record, Turn
from ttt_jax.errors import UserError
from ttt_jax.generate import decode
from ttt_jax.progress import Progress
from ttt_jax.trained import Trained


def generate_files(config: Config, workdir: str | os.PathLike, inputs: dict[str, Any],
                   out: str | os.PathLike) -> list[dict[str, Any]]:
  """Answer every input and write OUT/<name>.wav and OUT/answers.json.

  Args:
    config: the generate section is the policy.
    workdir: of a trained model.
    inputs: 'text' and 'audio' (lists, answered as 'task'), 'records' (files of records).
    out: folder, made if it does not exist.

  Returns:
    What answers.json lists: {'name', 'task', 'prompt', 'text', 'audio' (file name or None),
    'finished', 'spans', 'calls', 'ids'} per answer.

  Raises:
    UserError: unreadable input, a prompt that leaves no room, no trained model.
  """
  run = trained.load(config, workdir)
  asked = _requests(run, inputs)
  prompts = [interleave.render_prompt(record, run.vocab, run.tokenizer, config.data.text_chunk,
                                      config.data.audio_chunk) for record in asked]
  out = pathlib.Path(out)
  out.mkdir(parents=True, exist_ok=True)
  answers = []
  with Progress(len(prompts), 'generate', unit='answers') as progress:
    for at in range(0, len(prompts), config.evaluate.batch):
      numbers = list(range(at, min(at + config.evaluate.batch, len(prompts))))
      given = decode.generate(run.model, run.params, run.vocab, [prompts[i] for i in numbers],
                              config.generate, config.objective.mode,
                              config.objective.prompt_audio, numbers)
      answers += [_write(run, asked[i], answer, out) for i, answer in zip(numbers, given)]
      progress.update(len(numbers))
  partial = out / 'answers.json.partial'
  partial.write_text(json.dumps(answers, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
  os.replace(partial, out / 'answers.json')
  return answers


def _requests(run: Trained, inputs: dict[str, Any]) -> list[Record]:
  """Inputs -> records whose last assistant turn is to be generated."""
  task = inputs['task']
  found = []
  for i, text in enumerate(inputs['text'], 1):
    found.append((f'text{i}', Part('text', text)))
  for path in inputs['audio']:
    codes = run.codec.encode(*io.read(path))
    found.append((pathlib.Path(path).stem, Part('audio', codes=codes, source=path)))
  asked = [Record(name, task, 'IT', (Turn('user', (part,)), Turn('assistant', ())), name)
           for name, part in found]
  if asked:
    prompt = system_prompt(run, task)
    asked = [tasks.with_prompt(record, prompt) for record in asked]
  for path in inputs['records']:
    for where, value in records.read_jsonl(path):
      record = _with_codes(run, records.parse(value, where), pathlib.Path(path))
      if record.turns[0].role != 'system':
        record = tasks.with_prompt(record, system_prompt(run, record.task))
      asked.append(record)
  return _unique(asked)


def system_prompt(run: Trained, task: str) -> str:
  """The wording that the model was trained with for a task: that of the held-out records,
  else the task's own. '' where those records have no system turn."""
  for split in store.read_manifest(run.data_dir)['splits']:
    if sources.is_heldout(split):
      for record in prepare.load_records(run.data_dir, split):
        if record.task == task:
          head = record.turns[0]
          return head.parts[0].text if head.role == 'system' else ''
  return tasks.PROMPTS.get(task, '')


def _with_codes(run: Trained, record: Record, file: pathlib.Path) -> Record:
  """Encode the recordings that a prompt names; its answer's are not needed."""
  def fill(part: Part) -> Part:
    if part.codes is not None:
      return part
    return Part('audio', part.text, run.codec.encode(*io.read(file.parent / part.source)),
                part.source)
  last = max((i for i, turn in enumerate(record.turns) if turn.role == 'assistant'), default=-1)
  if last < 0:
    raise UserError(f'{record.where}: record {record.id} has no assistant turn to answer.')
  kept = Record(record.id, record.task, record.type,
                record.turns[:last] + (Turn('assistant', ()),), record.where)
  return kept.map_audio(fill)


def _unique(asked: list[Record]) -> list[Record]:
  """Names become file names, so two of a name are told apart by a number."""
  seen: dict[str, int] = {}
  out = []
  for record in asked:
    name = ''.join(c if c.isalnum() or c in '-_.' else '_' for c in record.id)
    seen[name] = seen.get(name, 0) + 1
    if seen[name] > 1:
      name = f'{name}-{seen[name]}'
    out.append(dataclasses.replace(record, id=name))
  return out


def _write(run: Trained, record: Record, answer: decode.Answer,
           out: pathlib.Path) -> dict[str, Any]:
  text, spans = interleave.unrender(answer.ids, run.vocab, run.tokenizer)
  audio = None
  if spans:
    audio = f'{record.id}.wav'
    io.write_wav(out / audio, run.codec.decode(np.concatenate(spans)), run.codec.sample_rate)
  asked = [turn for turn in record.turns if turn.role == 'user'][-1:]
  prompt = ' '.join(part.text or f'[{part.source}]' for turn in asked for part in turn.parts)
  print(f'{record.id}: {prompt} -> {text.strip()}' + (f'  ({out / audio})' if audio else ''))
  return {'name': record.id, 'task': record.task, 'prompt': prompt, 'text': text.strip(),
          'audio': audio, 'finished': answer.finished, 'calls': answer.calls,
          'spans': [{'start': s.start, 'length': s.length, 'ended': s.ended, 'blocks': s.blocks}
                    for s in answer.spans], 'ids': answer.ids.tolist()}
